"""Alarms as records and events: their keys, ids and members, and reading them back."""

import json
import re
import uuid
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import wire
from schemas.alarm import (
    HEADER_CHANGE,
    HEADER_EVENT,
    STATES,
    Alarm,
    AlarmError,
    Facts,
    Severity,
    Signal,
    State,
    Subject,
    Transition,
    alarm_id,
    anomaly_event,
    escalation,
    event_id,
    headers,
    read_record,
    record,
    subject_of,
)
from schemas.reading import RESERVED, Value
from sinks.timescale import tables

SUBJECT = Subject("fire", "EQ003", "", "smoke_density", "fire-smoke")
FACTS = Facts("SMOKE", 2, unit="ppm", facility_id="FAC001", location="Building A")
RAISED = 1_704_110_400_000_000
SMOKE = Signal("EMERGENCY", 600.0, 500.0, "smoke_density 600 ppm is at or above 500 ppm (EMERGENCY)")
COLUMNS = {"double precision": float, "bigint": int, "text": str, "boolean": bool}


def alarm(**changes: Any) -> Alarm:
    fields: dict[str, Any] = {
        "state": "ACTIVE",
        "severity": "EMERGENCY",
        "raised_at": RAISED,
        "seen_at": RAISED + 2_000_000,
        "updated_at": RAISED + 2_000_000,
        "turned_at": RAISED,
        "measured_at": RAISED + 1_000_000,
        "value": 600.0,
        "threshold": 500.0,
        "message": SMOKE.message,
        "facts": FACTS,
    }
    return Alarm(**{**fields, **changes})


def as_json(value: bytes) -> Any:
    return json.loads(value)


# -- subjects and ids --------------------------------------------------------------------------------------------------

names = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8) | st.sampled_from(
    ["|", "%", "%7C", "a|b", "telemetry"]
)
subjects = st.builds(Subject, names, names, names | st.just(""), names | st.just(""), names)


@given(subjects)
def test_a_key_has_its_subject(subject: Subject) -> None:
    assert subject_of(subject.key) == subject


@given(subjects, subjects)
def test_two_subjects_have_two_keys_and_ids(one: Subject, other: Subject) -> None:
    assert (one.key == other.key) is (one == other)
    assert (alarm_id(one, RAISED) == alarm_id(other, RAISED)) is (one == other)


def test_keys_are_as_documented() -> None:
    assert SUBJECT.key == "EQ003||smoke_density|fire-smoke|fire"
    assert Subject("telemetry", "a|b", "1/2%", "t", "r").key == "a%7Cb|1/2%25|t|r"


@pytest.mark.parametrize(
    "key", ["", "a", "a|b|c", "|b|c|d", "a|b|c|", "a|b|c|d|e|f", "a|b|c|d|telemetry", "a%7c|b|c|d"]
)
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(AlarmError, match=re.escape("DEVICE|CHANNEL|METRIC|RULE")):
        subject_of(key)


def test_ids_are_the_same_for_ever() -> None:
    """What was sent once is known by them after an upgrade too."""
    said = Transition("raised", RAISED, alarm())
    assert alarm_id(SUBJECT, RAISED) == "f245ef14-38d3-5cb2-93de-7d195fd889f1"
    assert event_id(SUBJECT, said) == "e808dd42-8917-51b5-a821-4fe1e9d34c73"


def test_each_change_has_an_id_of_its_own() -> None:
    said = Transition("raised", RAISED, alarm())
    others = [
        Transition("cleared", RAISED, alarm()),
        Transition("raised", RAISED + 1, alarm()),
        Transition("raised", RAISED, alarm(facts=Facts("SMOKE", 3))),
    ]
    ids = {event_id(SUBJECT, each) for each in (said, *others)}
    assert len({*ids, alarm_id(SUBJECT, RAISED)}) == 5
    assert all(uuid.UUID(each).version == 5 for each in ids)
    # What is only known later changes none.
    assert event_id(SUBJECT, Transition("raised", RAISED, alarm(value=601.0))) in ids


# -- records -----------------------------------------------------------------------------------------------------------


def test_a_record_is_a_reading_that_every_store_has_columns_for() -> None:
    key, reading = record(SUBJECT, alarm(low=1.0, high=2.0, acknowledged_at=RAISED, acknowledged_by="ann"))
    assert key == SUBJECT.key.encode()
    assert (reading.measurement, reading.device_id, reading.channel) == (
        "alarms",
        "EQ003",
        "fire||smoke_density|fire-smoke",
    )
    assert reading.measurement in RESERVED
    assert reading.time.isoformat() == "2024-01-01T12:00:00+00:00"
    assert reading.tags == {"facility_id": "FAC001", "location": "Building A"}
    columns = tables.RESERVED["alarms"]
    assert set(reading.values) == set(columns)
    for name, value in reading.values.items():
        assert value is None or value.__class__ is COLUMNS[columns[name]], name


def test_the_members_of_a_record() -> None:
    _, reading = record(SUBJECT, alarm(ended_at=RAISED + 3, resolved_by="bob", state="RESOLVED", replayed=True))
    assert reading.tags["resolved_by"] == "bob"
    assert reading.values == {
        "alarm_id": alarm_id(SUBJECT, RAISED),
        "measurement": "fire",
        "metric": "smoke_density",
        "rule": "fire-smoke",
        "kind": "SMOKE",
        "severity": "EMERGENCY",
        "label": None,
        "state": "RESOLVED",
        "unit": "ppm",
        "value": 600.0,
        "threshold": 500.0,
        "message": SMOKE.message,
        "score": None,
        "expected_low": None,
        "expected_high": None,
        "facility_id": "FAC001",
        "measured_at": "2024-01-01T12:00:01.000000Z",
        "updated_at": "2024-01-01T12:00:02.000000Z",
        "acknowledged_at": None,
        "acknowledged_by": None,
        "resolved_at": "2024-01-01T12:00:00.000003Z",
        "rule_version": 2,
        "detector_version": None,
        "replayed": True,
    }


@pytest.mark.parametrize(("value", "said"), [(True, "the value is true"), ("open", "the value is 'open'")])
def test_what_is_no_number_is_in_the_message(value: Value, said: str) -> None:
    _, reading = record(SUBJECT, alarm(value=value, message=""))
    assert (reading.values["value"], reading.values["message"]) == (None, said)
    _, reading = record(SUBJECT, alarm(value=value))
    assert reading.values["message"] == SMOKE.message


@given(subjects, st.sampled_from(STATES), st.booleans(), st.integers(1, 4 * 10**15))
def test_a_record_is_read_as_it_was_written(subject: Subject, state: State, flag: bool, at: int) -> None:  # noqa: FBT001
    given_ = alarm(state=state, replayed=flag, raised_at=at, acknowledged_at=at * flag, acknowledged_by="ann" * flag)
    key, reading = record(subject, given_)
    found = read_record(key, wire.write(reading))
    assert found.key == subject.key
    series = (found.measurement, found.device_id, found.channel, found.metric, found.rule)
    assert Subject(*series) == subject
    assert (found.state, found.open) == (state, state in {"ACTIVE", "ACKNOWLEDGED", "FLAPPING"})
    assert (found.raised_at, found.acknowledged_by) == (reading.time, "ann" if flag else None)
    shown = msgspec.to_builtins(found)
    for name, value in reading.values.items():
        if not name.endswith("_at"):
            assert shown[name] == value, name
    assert (found.facility_id, found.location) == ("FAC001", "Building A")


def test_headers_name_the_change() -> None:
    said = Transition("escalated", RAISED, alarm())
    assert headers(SUBJECT, said) == [
        ("iotflow-v", b"1"),
        (HEADER_EVENT, event_id(SUBJECT, said).encode()),
        (HEADER_CHANGE, b"escalated"),
    ]


def spoilt(**changes: Any) -> bytes:
    found = as_json(wire.write(record(SUBJECT, alarm())[1]))
    values = {**found["values"], **changes.pop("values", {})}
    return json.dumps({**found, "values": values, **changes}).encode()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"", "JSON"),
        (b"{}", "shape"),
        (b"[]", "object"),
        (b"\xff", "JSON"),
        (spoilt(measurement="telemetry"), "of another alarm, or none"),
        (spoilt(device_id="EQ004"), "of another alarm, or none"),
        (spoilt(channel="fire||smoke_density|other"), "of another alarm, or none"),
        (spoilt(values={"state": "OPEN"}), "'OPEN'"),
        (spoilt(values={"severity": None}), "severity"),
        (spoilt(values={"updated_at": "soon"}), "updated_at"),
    ],
)
def test_a_record_that_is_none_is_refused(value: bytes, said: str) -> None:
    with pytest.raises(AlarmError, match=re.escape(said)):
        read_record(SUBJECT.key.encode(), value)


@pytest.mark.parametrize("key", [b"", b"\xff", b"x", b"EQ004||smoke_density|fire-smoke|fire"])
def test_a_record_under_another_key_is_refused(key: bytes) -> None:
    with pytest.raises(AlarmError):
        read_record(key, spoilt())


# -- events ------------------------------------------------------------------------------------------------------------


def test_an_anomaly_has_exactly_the_members_that_are_documented() -> None:
    key, value = anomaly_event(SUBJECT, SMOKE, measured_at=RAISED, detected_at=RAISED + 250_000, facility_id="FAC001")
    assert key == b"EQ003"
    assert as_json(value) == {
        "version": 1,
        "event_id": "ae0b49b8-cb1c-58b9-bdd5-e125fe55bc26",
        "equipment_id": "EQ003",
        "facility_id": "FAC001",
        "metric": "smoke_density",
        "value": 600.0,
        "threshold": 500.0,
        "rule_id": "fire-smoke",
        "measured_at": "2024-01-01T12:00:00.000000Z",
        "detected_at": "2024-01-01T12:00:00.250000Z",
        "severity": "EMERGENCY",
    }


def anomaly(subject: Subject = SUBJECT, signal: Signal = SMOKE, at: int = RAISED, later: int = 0) -> Any:
    return as_json(anomaly_event(subject, signal, measured_at=at, detected_at=at + later)[1])


def test_an_anomaly_is_of_a_metric_and_a_time_whichever_rule_found_it() -> None:
    one = anomaly()["event_id"]
    other = msgspec.structs.replace(SUBJECT, rule="other")
    assert anomaly(other, Signal("WARN", 1.0), later=5)["event_id"] == one
    assert anomaly(at=RAISED + 1)["event_id"] != one
    for field in ("measurement", "device_id", "channel", "metric"):
        assert anomaly(msgspec.structs.replace(SUBJECT, **{field: "x"}))["event_id"] != one


def test_what_is_not_known_of_an_anomaly_is_null() -> None:
    found = anomaly(msgspec.structs.replace(SUBJECT, rule=""), Signal("WARN", "open"))
    assert (found["facility_id"], found["rule_id"], found["threshold"]) == (None, None, None)
    assert found["value"] == "open"


@pytest.mark.parametrize(
    ("signal", "threshold"),
    [
        (Signal("WARN", 9.0, None, low=1.0, high=5.0), 5.0),
        (Signal("WARN", 0.0, None, low=1.0, high=5.0), 1.0),
        (Signal("WARN", 9.0, 8.0, low=1.0, high=5.0), 8.0),
        (Signal("WARN", 9.0, None, high=5.0), 5.0),
        (Signal("WARN", 9.0), None),
    ],
)
def test_the_threshold_of_a_detector_is_the_bound_that_was_passed(signal: Signal, threshold: float | None) -> None:
    assert anomaly(signal=signal)["threshold"] == threshold


def test_the_control_tower_is_told_in_its_own_words_and_ours() -> None:
    said = Transition("escalated", RAISED + 7_000_000, alarm())
    told = escalation(SUBJECT, said)
    assert told is not None
    where, key, value = told
    assert (where, key) == ("emergencies", b"EQ003")
    assert as_json(value) == {
        "version": 1,
        "alert_id": alarm_id(SUBJECT, RAISED),
        "equipment_id": "EQ003",
        "facility_id": "FAC001",
        "equipment_location": "Building A",
        "alert_type": "SMOKE",
        "severity": "EMERGENCY",
        "status": "ACTIVE",
        "created_at": "2024-01-01T12:00:07.000000Z",
        "event_id": event_id(SUBJECT, said),
        "alarm_id": alarm_id(SUBJECT, RAISED),
        "rule_id": "fire-smoke",
        "metric": "smoke_density",
        "value": 600.0,
        "threshold": 500.0,
        "message": SMOKE.message,
        "raised_at": "2024-01-01T12:00:00.000000Z",
    }


@pytest.mark.parametrize(
    ("change", "severity", "state", "replayed", "where"),
    [
        ("raised", "WARN", "ACTIVE", False, "warnings"),
        ("raised", "EMERGENCY", "ACTIVE", False, "emergencies"),
        ("raised", "INFO", "ACTIVE", False, None),
        ("raised", "EMERGENCY", "ACTIVE", True, None),
        ("paged", "WARN", "ACTIVE", False, "warnings"),
        ("flapping", "WARN", "FLAPPING", False, "warnings"),
        ("settled", "WARN", "ACTIVE", False, "warnings"),
        ("settled", "WARN", "CLEARED", False, None),
        ("deescalated", "WARN", "ACTIVE", False, None),
        ("acknowledged", "WARN", "ACKNOWLEDGED", False, None),
        ("cleared", "EMERGENCY", "CLEARED", False, None),
        ("rebaselined", "WARN", "CLEARED", False, None),
    ],
)
def test_whom_a_change_is_told(
    change: Any,
    severity: Severity,
    state: State,
    replayed: bool,  # noqa: FBT001
    where: str | None,
) -> None:
    told = escalation(SUBJECT, Transition(change, RAISED, alarm(severity=severity, state=state), replayed))
    assert (told and told[0]) == where
