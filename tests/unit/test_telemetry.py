"""The catalogue, the counters behind it and the text Prometheus reads."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric as Family
from prometheus_client.parser import text_string_to_metric_families

from app import __version__
from app import telemetry as t
from app.telemetry import CATALOGUE, Histogram, Telemetry, quantile
from sinks.contracts import Breaker
from sinks.contracts import Telemetry as Told

STAGES = {"decode": "", "store-timescale": "timescale", "analyze": ""}
DOCUMENTED = {
    "ingestor_messages_total": "counter",
    "ingestor_valid_messages_total": "counter",
    "ingestor_invalid_messages_total": "counter",
    "ingestor_db_inserts_total": "counter",
    "ingestor_db_failures_total": "counter",
    "ingestor_batch_size": "gauge",
    "ingestor_ingest_latency_seconds": "histogram",
    "ingest_backpressure_total": "counter",
    "sink_up": "gauge",
    "sink_query_seconds": "histogram",
    "sink_batch_utilisation": "gauge",
}


def store() -> Telemetry:
    return Telemetry("store-timescale", "timescale")


def families(telemetry: Telemetry) -> dict[str, Family]:
    body, content_type = telemetry.render()
    assert content_type.startswith("text/plain; version=0.0.4")
    return {family.name: family for family in text_string_to_metric_families(body.decode())}


def sample(telemetry: Telemetry, name: str, **labels: str) -> float | None:
    """One number as Prometheus would read it; all labels must agree."""
    for family in families(telemetry).values():
        for found in family.samples:
            if found.name == name and found.labels == labels:
                return found.value
    return None


@pytest.mark.parametrize(("stage", "sink"), STAGES.items())
def test_a_stage_exports_its_part_of_the_catalogue_and_nothing_else(stage: str, sink: str) -> None:
    telemetry = Telemetry(stage, sink)
    expected = {
        metric.name.removesuffix("_total"): metric for metric in CATALOGUE.values() if telemetry.role in metric.roles
    }
    found = families(telemetry)
    assert set(found) == set(expected)
    for name, metric in expected.items():
        assert found[name].type == metric.kind, name
        allowed = {*metric.labels, "le"} if metric.kind == "histogram" else set(metric.labels)
        assert all(set(one.labels) <= allowed for one in found[name].samples), name


def test_each_metric_is_exported_somewhere_and_documented() -> None:
    roles = {Telemetry(stage).role for stage in STAGES}
    for name, metric in CATALOGUE.items():
        assert name == metric.name
        assert metric.help.endswith("."), name
        assert roles & set(metric.roles), name
        assert (metric.kind == "counter") == name.endswith("_total"), name
        assert bool(metric.buckets) == (metric.kind == "histogram"), name
        assert name.split("_")[0] in {"iotflow", "process"} or name in DOCUMENTED, name
        assert not name.startswith("iotflow_") or metric.labels[0] == "stage", name


def test_the_documents_names_are_kept() -> None:
    assert {name: CATALOGUE[name].kind for name in DOCUMENTED} == DOCUMENTED
    assert (t.INGEST_LATENCY.buckets[0], t.INGEST_LATENCY.buckets[-1]) == (0.001, 5.0)
    assert all(not CATALOGUE[name].labels for name in DOCUMENTED if name.startswith("ingest"))
    assert t.SINK_UP.labels == t.SINK_SECONDS.labels == t.UTILISATION.labels == ("sink",)


def test_counters_are_there_before_anything_is_counted() -> None:
    telemetry = store()
    assert sample(telemetry, "ingestor_db_inserts_total") == 0
    stage: dict[str, str] = {"stage": "store-timescale"}
    for kind in ("retry", "reject", "fatal"):
        assert sample(telemetry, "iotflow_write_failures_total", sink="timescale", kind=kind, **stage) == 0
    assert sample(telemetry, "iotflow_readings_total", outcome="stored", **stage) == 0
    assert sample(telemetry, "iotflow_breaker", sink="timescale", state="closed", **stage) == 1
    assert sample(telemetry, "iotflow_build_info", version=__version__, **stage) == 1
    assert sample(telemetry, "iotflow_group_generation", **stage) == -1
    assert sample(telemetry, "iotflow_broker_up", **stage) == 0
    assert sample(telemetry, "iotflow_lag_stale", **stage) == 1


def test_the_process_is_measured() -> None:
    telemetry = Telemetry("decode")
    assert (sample(telemetry, "process_resident_memory_bytes") or 0) > 1_000_000
    assert (sample(telemetry, "process_cpu_seconds_total") or 0) > 0


def test_what_delivery_tells() -> None:
    telemetry = store()
    told: Told = telemetry
    told.taken(300)
    told.stored(200, 600, 0.02, 5000)
    told.stored(50, 150, 7.0, 5000)
    told.durable(0.025, 240)
    told.durable(-3.0, 10)
    told.failed("retry")
    told.dead("not_finite", 2)
    told.dead("type_conflict", 1)
    assert telemetry.value(t.RECORDS) == 300
    assert telemetry.value(t.INSERTS) == telemetry.value(t.ROWS) == 750
    assert telemetry.value(t.BATCHES) == 2
    assert telemetry.value(t.READINGS, "stored") == 250
    assert telemetry.value(t.READINGS, "dead") == 3
    assert telemetry.value(t.DEAD_LETTERS, "", "not_finite") == 2
    assert telemetry.value(t.FAILURES) == telemetry.value(t.WRITE_FAILURES, "retry") == 1
    assert telemetry.value(t.BATCH_SIZE) == 50
    assert telemetry.value(t.UTILISATION) == 0.01
    assert telemetry.value(t.SINK_UP) == 1
    latency: dict[str, Any] = {"stage": "store-timescale", "sink": "timescale"}
    assert sample(telemetry, "ingestor_ingest_latency_seconds_bucket", le="0.025") == 1
    assert sample(telemetry, "ingestor_ingest_latency_seconds_bucket", le="5.0") == 1
    assert sample(telemetry, "ingestor_ingest_latency_seconds_bucket", le="+Inf") == 2
    assert sample(telemetry, "sink_query_seconds_sum", sink="timescale") == pytest.approx(7.02)
    assert sample(telemetry, "iotflow_durable_seconds_bucket", le="0.005", **latency) == 10
    assert sample(telemetry, "iotflow_durable_seconds_bucket", le="0.03", **latency) == 250
    assert sample(telemetry, "iotflow_durable_seconds_count", **latency) == 250


@pytest.mark.parametrize("state", Breaker)
def test_the_breaker_has_one_state(state: Breaker) -> None:
    telemetry = store()
    telemetry.breaker(state)
    assert [each for each in Breaker if telemetry.value(t.BREAKER, each)] == [state]
    assert telemetry.value(t.SINK_UP) == (state is Breaker.CLOSED)


@pytest.mark.parametrize(
    ("records", "readings", "rejected", "valid", "invalid"),
    [(1000, 1000, 0, 1000, 0), (1000, 990, 10, 990, 10), (2, 5, 3, 0, 2), (0, 0, 0, 0, 0)],
)
def test_what_decode_tells(records: int, readings: int, rejected: int, valid: int, invalid: int) -> None:
    telemetry = Telemetry("decode")
    telemetry.decoded(records, readings, rejected)
    assert telemetry.value(t.MESSAGES) == telemetry.value(t.RECORDS) == records
    assert telemetry.value(t.VALID) == valid
    assert telemetry.value(t.INVALID) == invalid
    assert telemetry.value(t.READINGS, "decoded") == readings
    telemetry.flagged("fire", "clamped", 3)
    assert telemetry.value(t.FLAGS, "fire", "clamped") == 3


def test_what_budgets_tell() -> None:
    telemetry = Telemetry("decode")
    assert sample(telemetry, "iotflow_over_budget_total", stage="decode", reason="series") == 0
    telemetry.over_budget({"rate": 5, "series": 1}, 6, 2)
    telemetry.over_budget({"rate": 1}, 0, 1)
    assert sample(telemetry, "iotflow_over_budget_total", stage="decode", reason="rate") == 6
    assert sample(telemetry, "iotflow_over_budget_total", stage="decode", reason="series") == 1
    assert sample(telemetry, "iotflow_readings_total", stage="decode", outcome="quarantined") == 6
    assert sample(telemetry, "iotflow_noisy_devices", stage="decode") == 1


@pytest.mark.parametrize("stale", [True, False])
def test_what_the_registry_tells(stale: bool) -> None:  # noqa: FBT001
    telemetry = Telemetry("decode")
    telemetry.registry({"file": 2, "topic": 3}, 4, stale=stale)
    assert sample(telemetry, "iotflow_registry_entries", stage="decode", source="file") == 2
    assert sample(telemetry, "iotflow_registry_entries", stage="decode", source="topic") == 3
    assert sample(telemetry, "iotflow_registry_refused_total", stage="decode") == 4
    assert sample(telemetry, "iotflow_registry_stale", stage="decode") == stale


def test_gauges() -> None:
    telemetry = store()
    telemetry.backpressure()
    telemetry.oldest(-1.0)
    telemetry.inflight(10, 2000)
    telemetry.partitions(4, 1)
    telemetry.generation(7)
    telemetry.rebalancing(True)
    telemetry.ready(True)
    telemetry.ceiling(True)
    stage = {"stage": "store-timescale"}
    assert sample(telemetry, "ingest_backpressure_total") == 1
    assert sample(telemetry, "iotflow_oldest_unstored_seconds", **stage) == 0
    assert sample(telemetry, "iotflow_inflight_records", **stage) == 10
    assert sample(telemetry, "iotflow_inflight_bytes", **stage) == 2000
    assert sample(telemetry, "iotflow_assigned_partitions", **stage) == 4
    assert sample(telemetry, "iotflow_frozen_partitions", **stage) == 1
    assert sample(telemetry, "iotflow_group_generation", **stage) == 7
    assert sample(telemetry, "iotflow_rebalancing", **stage) == 1
    assert sample(telemetry, "iotflow_ready", **stage) == 1
    assert sample(telemetry, "iotflow_ceiling_tripped", **stage) == 1


def test_a_partition_that_moved_away_is_no_longer_shown() -> None:
    telemetry = Telemetry("decode")
    telemetry.lag({("raw", 0): 5, ("raw", 1): 6})
    telemetry.lag({("raw", 1): 0})
    assert sample(telemetry, "iotflow_lag_records", stage="decode", topic="raw", partition="1") == 0
    assert sample(telemetry, "iotflow_lag_records", stage="decode", topic="raw", partition="0") is None


def test_a_label_may_hold_anything() -> None:
    telemetry = Telemetry("decode")
    telemetry.dead('"\\\n{}', 1)
    telemetry.dead("", 2, "fire")
    assert sample(telemetry, "iotflow_dead_letters_total", stage="decode", dialect="", reason='"\\\n{}') == 1
    assert sample(telemetry, "iotflow_dead_letters_total", stage="decode", dialect="fire", reason="") == 2


def test_the_sink_may_be_named_later() -> None:
    telemetry = Telemetry("store-timescale")
    telemetry.sink = "timescale"
    assert sample(telemetry, "sink_up", sink="timescale") == 0


@pytest.mark.parametrize(
    "tell", [lambda t: t.stored(1, 1, 1.0, 1), lambda t: t.failed("retry"), lambda t: t.durable(1.0, 1)]
)
def test_a_number_of_another_stage_is_refused(tell: Callable[[Telemetry], None]) -> None:
    with pytest.raises(KeyError):
        tell(Telemetry("decode"))


def test_a_stage_that_does_nothing_known_is_refused() -> None:
    with pytest.raises(ValueError, match="'cook'"):
        Telemetry("cook")


def test_a_bound_belongs_to_the_bucket_below_it() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.5, 2.0, 2.1):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert list(histogram.cumulative()) == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]


@pytest.mark.parametrize(
    ("counts", "q", "expected"),
    [
        ([0, 0, 0, 0], 0.5, None),
        ([10, 0, 0, 0], 0.5, 0.5),
        ([10, 0, 0, 0], 1.0, 1.0),
        ([0, 10, 0, 0], 0.0, 1.0),
        ([0, 10, 0, 0], 0.5, 1.5),
        ([5, 0, 5, 0], 0.5, 1.0),
        ([5, 0, 5, 0], 0.75, 3.0),
        ([50, 45, 4, 1], 0.95, 2.0),
        ([50, 45, 4, 1], 0.99, 4.0),
        ([0, 0, 0, 3], 0.5, 4.0),
    ],
)
def test_quantile(counts: list[float], q: float, expected: float | None) -> None:
    assert quantile((1.0, 2.0, 4.0), counts, q) == expected


@given(
    values=st.lists(st.floats(0.0, 250.0), min_size=1, max_size=300),
    q=st.floats(0.001, 1.0),
)
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    histogram = Histogram(t.DURABLE.buckets)
    for value in values:
        histogram.observe(value)
    true = sorted(values)[max(0, math.ceil(q * len(values)) - 1)]
    bounds = (0.0, *t.DURABLE.buckets)
    lower, upper = next((low, high) for low, high in pairwise(bounds) if true <= high)
    estimate = quantile(histogram.bounds, histogram.counts, q)
    assert estimate is not None
    assert lower - 1e-9 <= estimate <= upper + 1e-9
