"""What the benchmarks of the analysis measure with is what they say it is."""

from datetime import timedelta

from app import analysis
from app.settings import load as settings_of
from schemas import rules, wire
from schemas.decoding import Item
from tables.analysis import Partition
from tables.rules import Rulebook
from tests.bench import alarms, analyze, load, recovery
from tests.bench.spec import Raw


def test_readings_on_schedule_come_in_order_and_are_received_when_they_are_of() -> None:
    """Each device has one every so often; the log is sorted by time."""
    items, times_ms = load.on_schedule(30, devices=10, every_s=5.0)
    readings = [wire.read(item.value) for item in items]
    assert times_ms == sorted(times_ms) == [int(reading.time.timestamp() * 1000) for reading in readings]
    assert [reading.device_id for reading in readings] == [f"dev-{number % 10}" for number in range(30)]
    assert all(readings[at + 10].time - readings[at].time == timedelta(seconds=5) for at in range(20))
    assert all(wire.ingest_ms(item.headers, 0) == at for item, at in zip(items, times_ms, strict=True))


def test_readings_on_schedule_are_all_folded_and_nothing_is_said_of_them() -> None:
    """No repeats, no second values of one time, no alarms: what is measured is the usual way."""
    items, times_ms = load.on_schedule(2000, devices=10, every_s=1.0)
    part = Partition(0, analysis.config(settings_of({}), 1), Rulebook(rules.profile("fire")), lambda _table, _key: None)
    records = [Raw("decoded", 0, at, times_ms[at], *item) for at, item in enumerate(items)]
    assert part.fold(records, times_ms[-1]) == []
    assert not part.tally
    windows = [output for output in part.snapshot(1).outputs if output.topic == "aggregates"]
    assert len(windows) >= analyze.least_windows(10, 200, 1.0) > 0


def test_tables_of_many_devices_are_those_of_a_few_under_other_names() -> None:
    """Every state is of a device of its own, whose readings the topic does not have."""
    tables = recovery.tables_after_an_hour(2 * recovery.PATTERNS)
    names = {recovery.device_of(item) for item in tables["state"]}
    assert len(names) == len(tables["state"]) == 2 * recovery.PATTERNS
    assert {recovery.device_of(item) for item in tables["windows"]} == names
    part = Partition(0, analysis.config(settings_of({}), 1), Rulebook(rules.profile("fire")), lambda _table, _key: None)
    for key, value, _ in tables["state"]:
        part.restore(key or b"", value or b"")
    assert part.rewind(0) == 0
    said = {output.device_id for output in part.snapshot(1).outputs if output.topic == "latest"}
    assert said <= names


def test_a_quantile_is_a_value_that_so_many_are_not_above() -> None:
    """Of the highest value where there are few."""
    values = [float(number) for number in range(1, 101)]
    assert [alarms.quantile(values, q) for q in (0.5, 0.95, 0.99)] == [51.0, 96.0, 100.0]
    assert alarms.quantile([7.0], 0.99) == 7.0


def test_an_entry_of_a_table_is_of_the_device_that_its_key_begins_with() -> None:
    """Names are escaped in keys."""
    assert recovery.device_of(Item(b"a%7Cb|telemetry|", b"", [])) == "a|b"
