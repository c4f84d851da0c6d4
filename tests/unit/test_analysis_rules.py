"""Rules, detectors and alarms on the way of a reading: what is said, once, and the same after a death."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from schemas import rules, wire
from schemas.reading import Reading
from schemas.rules import RuleSet
from tables.output import Output
from tables.rules import Rulebook
from tests.lab.analysis import START, Kept, Raw, reading, records


def fire(device: str = "EQ002", at: float = 0, tags: dict[str, str] | None = None, **values: Any) -> Reading:
    return Reading("fire", device, START + timedelta(seconds=at), values, tags=tags or {}, dialect="fire")


def kept(profile: str = "fire", **extra: Any) -> Kept:
    base = rules.profile(profile)
    own = rules.parse({"profile": "none", "rules": extra}).rules
    return Kept(rules=Rulebook(RuleSet({**base.rules, **own}, profile)))


def fold(store: Kept, readings: list[Reading], received: datetime | None = None) -> list[Output]:
    log = records(readings, received)
    return store.begin().fold(log, log[-1].timestamp)


def events(said: list[Output]) -> list[dict[str, Any]]:
    return [json.loads(output.value or b"") for output in said if output.topic == "anomalies"]


def states(said: list[Output]) -> list[Reading]:
    return [wire.read(output.value) for output in said if output.topic == "alarms"]


def test_s4_a_temperature_of_85_degrees() -> None:
    """S4's second example: a warning, with its facility, and nothing else."""
    found = fold(kept(), [fire(tags={"facility_id": "FAC001"}, temperature=85.0, humidity=65.0)])
    (event,) = events(found)
    assert set(event) == {
        *("version", "event_id", "equipment_id", "facility_id", "metric", "value", "threshold", "rule_id"),
        *("measured_at", "detected_at", "severity"),
    }
    assert event["equipment_id"] == "EQ002"
    assert event["facility_id"] == "FAC001"
    assert (event["metric"], event["value"], event["threshold"]) == ("temperature", 85.0, 80.0)
    assert event["severity"] == "WARN"
    (state,) = states(found)
    assert (state.values["kind"], state.values["severity"], state.values["state"]) == ("HEAT", "WARN", "ACTIVE")


def test_s4_smoke_of_600_ppm() -> None:
    (event,) = events(fold(kept(), [fire("EQ003", smoke_density=600.0)]))
    assert (event["metric"], event["severity"], event["threshold"]) == ("smoke_density", "EMERGENCY", 500.0)


def test_s4_two_metrics_at_once_are_two_events() -> None:
    found = events(fold(kept(), [fire(temperature=95.0, co_level=60.0, humidity=50.0)]))
    assert [(event["metric"], event["severity"]) for event in found] == [
        ("temperature", "EMERGENCY"),
        ("co_level", "WARN"),
    ]
    assert len({event["event_id"] for event in found}) == 2


def test_s4_a_hundred_ordinary_records_are_no_event() -> None:
    readings = [fire(f"EQ00{number}", temperature=20.0 + number % 10) for number in range(1, 101)]
    said = fold(kept(), readings)
    assert not events(said)
    assert not states(said)


def test_a_clamped_value_is_judged_by_what_was_measured() -> None:
    one = fire(temperature=100.0)
    one.raw["temperature"] = 120.0
    (event,) = events(fold(kept(), [one]))
    assert (event["value"], event["severity"]) == (120.0, "EMERGENCY")


def test_each_anomalous_reading_is_an_event_and_its_alarm_is_said_once() -> None:
    readings = [fire(at=at, temperature=value) for at, value in enumerate([85.0, 86.0, 96.0, 84.0, 20.0, 20.0])]
    said = fold(kept(), readings)
    assert len(events(said)) == 4
    assert [state.values["severity"] for state in states(said)] == ["WARN", "EMERGENCY", "WARN", "WARN"]
    assert [state.values["state"] for state in states(said)][-1] == "CLEARED"
    again = fold(kept(), readings)
    assert said == again, "what is delivered again says the same, with the same ids"


def test_readings_that_are_old_page_nobody() -> None:
    store = kept()
    log = records([fire(temperature=85.0)])
    said = {output.topic: output for output in store.begin().fold(log, log[0].timestamp + 2 * 3_600_000)}
    event, alarm = said["anomalies"], said["alarms"]
    assert dict(event.headers) == {"iotflow-replayed": b"1"}
    assert wire.read(alarm.value).values["replayed"] is True


def test_an_old_alarm_that_still_burns_pages_when_readings_are_fresh() -> None:
    store = kept()
    partition = store.begin()
    log = records([fire(at=at, temperature=85.0) for at in range(0, 7200, 600)])
    now = log[-1].timestamp
    said = partition.fold(log, now)
    replayed = [state.values["replayed"] for state in states(said)]
    assert replayed == [True, False]


def test_rules_that_change_hold_at_once_and_end_alarms_of_those_that_are_gone() -> None:
    store = kept()
    partition = store.begin()
    log = records([fire(at=at, temperature=85.0) for at in range(3)])
    assert len(events(partition.fold(log[:1], log[0].timestamp))) == 1
    off = b'{"kind":"level","metric":"temperature","levels":{"WARN":90.0},"unit":"\xc2\xb0C","enabled":false}'
    store.rules.put("temperature", off)
    said = partition.fold(log[1:2], log[1].timestamp)
    assert not events(said)
    assert [state.values["state"] for state in states(said)] == ["RESOLVED"]
    store.rules.put("temperature", None)
    assert len(events(partition.fold(log[2:], log[2].timestamp))) == 1


def test_a_detector_finds_a_spike_in_windows_and_says_why() -> None:
    store = kept()
    partition = store.begin()
    values = [20 + (minute * 7919 % 100) / 100 for minute in range(400)]
    values[350:353] = [70.0, 70.0, 70.0]
    log = records([fire(at=60 * minute + 5, temperature=value) for minute, value in enumerate(values)])
    partition.fold(log, log[-1].timestamp)
    store.keep(partition, len(log))
    found = [state for state in states(store.said) if state.values["rule"] == "envelope"]
    assert found[0].values["severity"] == "WARN"
    assert found[0].time == START + timedelta(minutes=351)
    assert "temperature" in str(found[0].values["message"])
    assert "above the range" in str(found[0].values["message"])
    assert found[0].values["detector_version"] == 1
    assert found[0].values["expected_high"] == pytest.approx(21, abs=0.5)


def test_silence_is_an_alarm_and_the_next_reading_clears_it() -> None:
    store = kept()
    partition = store.begin()
    log = records([fire(at=0, temperature=20.0), fire(at=9000, temperature=20.0)])
    partition.fold(log[:1], log[0].timestamp)
    assert not states(store.clock(partition, log[0].timestamp + 3_500_000))
    (raised,) = states(store.clock(partition, log[0].timestamp + 3_601_000))
    assert (raised.values["rule"], raised.values["kind"], raised.values["state"]) == ("silent", "COMM", "ACTIVE")
    assert not states(store.clock(partition, log[0].timestamp + 3_700_000))
    store.keep(partition, 1)
    partition = store.begin()
    assert [state.values["state"] for state in states(partition.fold(log[1:], log[1].timestamp))] == ["CLEARED"]


def test_an_alarm_is_acknowledged_and_resolved_by_hand() -> None:
    store = kept()
    partition = store.begin()
    log = records([fire(temperature=85.0)])
    said = partition.fold(log, log[0].timestamp)
    key = next(output.key for output in said if output.topic == "alarms").decode()
    partition.acknowledge(key, "kim", log[0].timestamp * 1000 + 1)
    (state,) = states(store.clock(partition, log[0].timestamp))
    assert (state.values["state"], state.values["acknowledged_by"]) == ("ACKNOWLEDGED", "kim")
    with pytest.raises(LookupError, match="nothing to do"):
        partition.acknowledge(key, "kim", log[0].timestamp * 1000 + 2)
    partition.resolve(key, "kim", log[0].timestamp * 1000 + 3)
    (state,) = states(store.clock(partition, log[0].timestamp))
    assert state.values["state"] == "RESOLVED"
    with pytest.raises(LookupError, match="no alarm"):
        partition.resolve(key.replace("EQ002", "EQ999"), "kim", 0)


def test_more_than_three_missing_sensors_are_an_event_of_quality_once_an_hour() -> None:
    readings = [fire(at=at, temperature=20.0) for at in (0, 10, 3700)]
    found = [output for output in fold(kept(), readings) if output.topic == "quality"]
    assert [wire.read(output.value).values["kind"] for output in found] == ["missing", "missing"]
    assert wire.read(found[0].value).values["count"] == 4
    nulls = [output for output in fold(kept(), [reading(0, a=1.0, b=None)]) if output.topic == "quality"]
    assert [wire.read(output.value).values["kind"] for output in nulls] == ["nulls"]


def test_the_last_values_are_said_with_each_checkpoint_and_a_silent_channel_is_offline() -> None:
    store = kept()
    partition = store.begin()
    log = records([fire(at=at, temperature=float(at)) for at in range(5)])
    partition.fold(log, log[-1].timestamp)
    store.keep(partition, 5)
    (last,) = [msgspec.json.decode(output.value or b"") for output in store.said if output.topic == "latest"]
    assert last["reading"]["values"] == {"temperature": 4.0}
    assert (last["online"], last["hour"]["count"], last["day"]["count"]) == (True, 5, 5)
    store.said.clear()
    partition.expire(log[-1].timestamp + 61_000)
    store.keep(partition, 5)
    (last,) = [msgspec.json.decode(output.value or b"") for output in store.said if output.topic == "latest"]
    assert last["online"] is False
    assert last["seen"] == datetime.fromtimestamp(log[-1].timestamp / 1000, UTC).isoformat().replace("+00:00", "Z")


def test_a_death_before_anything_is_kept_says_the_same_again() -> None:
    readings = [fire(at=7 * at, temperature=20.0 + (at % 13 == 0) * 70) for at in range(300)]
    log: list[Raw] = records(readings)
    calm = kept()
    partition = calm.begin()
    undisturbed = partition.fold(log, log[-1].timestamp)
    calm.keep(partition, len(log))
    shaken = kept()
    heard: list[Output] = []
    place = 0
    for dies in ("state", "outputs", "side", "ack", ""):
        partition = shaken.begin()
        upto = min(len(log), place + 70)
        heard += partition.fold(log[place:upto], log[upto - 1].timestamp)
        shaken.keep(partition, upto, dies)
        place = shaken.acknowledged
    partition = shaken.begin()
    heard += partition.fold(log[place:], log[-1].timestamp)
    shaken.keep(partition, len(log))
    assert {output.value for output in heard} == {output.value for output in undisturbed}
    assert shaken.aggregates() == calm.aggregates()
    assert {key: value[9:] for key, value in shaken.state.items()} == {
        key: value[9:] for key, value in calm.state.items()
    }


def test_silence_and_gaps_are_events_of_quality_too() -> None:
    store = kept()
    partition = store.begin()
    log = records([fire(at=0, temperature=20.0)])
    partition.fold(log, log[0].timestamp)
    said = store.clock(partition, log[0].timestamp + 3_601_000)
    (event,) = [wire.read(output.value) for output in said if output.topic == "quality"]
    assert event.values["kind"] == "silent"


@pytest.mark.parametrize("on", ["reading", "5m"])
def test_detectors_look_at_readings_or_larger_windows_where_a_rule_says_so(on: str) -> None:
    store = kept("none", jump={"kind": "detector", "metric": "temperature", "detector": "envelope", "on": on})
    partition = store.begin()
    step = 1 if on == "reading" else 300
    values = [20 + (number * 7919 % 100) / 100 for number in range(400)]
    values[350] = 70.0
    log = records([fire(at=step * number, temperature=value) for number, value in enumerate(values)])
    said = partition.fold(log, log[-1].timestamp)
    store.keep(partition, len(log))
    found = [state for state in states([*said, *store.said]) if state.values["rule"] == "jump"]
    assert found[0].time == START + timedelta(seconds=step * (350 if on == "reading" else 351))


def test_one_time_far_ahead_does_not_hide_what_comes_after() -> None:
    store = kept()
    partition = store.begin()
    log = records([fire(at=0, temperature=20.0), fire(at=172_800, temperature=21.0), fire(at=400, temperature=22.0)])
    log[1].timestamp = log[0].timestamp + 1000
    partition.fold(log, log[2].timestamp)
    store.keep(partition, 3)
    (last,) = [msgspec.json.decode(output.value or b"") for output in store.said if output.topic == "latest"]
    assert last["reading"]["values"] == {"temperature": 22.0}


def test_a_time_before_the_epoch_is_a_time() -> None:
    store = kept()
    partition = store.begin()
    old = Reading("fire", "d", datetime(1969, 7, 20, tzinfo=UTC), {"temperature": 20.0})
    partition.fold([Raw(0, wire.write(old), timestamp=1)], 1)
    store.keep(partition, 1)
    assert [output.topic for output in store.said] == ["latest"]
