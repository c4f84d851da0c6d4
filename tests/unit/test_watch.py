"""What the live view makes of a worker's metrics."""

import pytest
from rich.console import Console

from app.telemetry import Telemetry
from app.watch import Watch, Worker, read
from sinks.contracts import Breaker


def store() -> Telemetry:
    """A store's telemetry with something to say."""
    telemetry = Telemetry("store-timescale", "timescale")
    telemetry.taken(12_000)
    telemetry.stored(10_000, 30_000, 0.1, 5000)
    telemetry.durable(0.04, 900)
    telemetry.durable(0.4, 100)
    telemetry.dead("refused", 3)
    telemetry.breaker(Breaker.OPEN)
    return telemetry


def shown(watch: Watch) -> str:
    """The table as a terminal has it."""
    console = Console(width=200)
    with console.capture() as capture:
        console.print(watch.table("title"))
    return capture.get()


def test_a_store_is_read_from_its_metrics() -> None:
    """Counters, the breaker's state and the latency buckets; the durations are the store's own, to durable."""
    seen = read(store().render()[0].decode())

    assert (12_000, 30_000, 3) == (seen.records, seen.rows, seen.letters)
    assert seen.breaker == "open"
    assert seen.buckets[float("inf")] == 1000


def test_a_stage_that_stores_nothing_has_no_breaker() -> None:
    """Decode shows readings."""
    seen = read(Telemetry("decode").render()[0].decode())

    assert (seen.breaker, seen.out) == ("", "0 readings")


def test_each_stage_has_its_row_and_a_note_beside_its_breaker() -> None:
    """What is not up is starting; an open breaker and what is being built are said; latencies are the last while's."""
    watch = Watch({"decode": 1, "store-timescale": 2, "store-influxdb": 3})
    watch.seen = {"decode": Worker(up=True, records=12_345), "store-timescale": read(store().render()[0].decode())}
    watch.notes["store-influxdb"] = "building, 20 s"
    watch._remember("store-timescale")

    table, line = shown(watch), watch.line()

    assert "12,345" in table
    assert "30,000 rows" in table
    assert "open" in table
    assert "building, 20 s" in table
    assert "starting" in table
    assert "breaker open" in line
    assert "store-influxdb: starting, building, 20 s" in line
    p50, _, p99 = watch.latencies("store-timescale")
    assert float(p50.split()[0]) == pytest.approx(40, abs=20)
    assert float(p99.split()[0]) == pytest.approx(400, abs=200)


def test_a_latency_above_the_last_bucket_is_said_to_be_more() -> None:
    """An old backlog is not "300 s" old."""
    telemetry = Telemetry("store-timescale", "timescale")
    telemetry.durable(5000.0, 10)
    watch = Watch({"store-timescale": 1})
    watch.seen["store-timescale"] = read(telemetry.render()[0].decode())
    watch._remember("store-timescale")

    assert all(latency.startswith("> ") for latency in watch.latencies("store-timescale"))


def test_a_lag_in_time_is_said_when_it_is_worth_a_word() -> None:
    """A batch on its way is no lag."""
    assert "5" == Worker(lag=5, oldest_s=0.5).behind
    assert "5,000 (12 s)" == Worker(lag=5000, oldest_s=12).behind
