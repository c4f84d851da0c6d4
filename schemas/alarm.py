"""Alarms: what a rule says of a series at one moment, the alarm that comes of it, and both as records.

An alarm is of a series and a rule (`Subject`). Its state is a reading of the measurement `alarms`, so that it is stored
like any other; on the compacted topic of alarms its key is the subject's, so that the topic has the last state of each.
What the documents' consumers are told are events of their own: one for each anomalous value, and one for each alarm
that somebody must act on. All ids follow from what they are of, so whatever is said twice has one id.
"""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, get_args

import msgspec
from msgspec import Struct

from schemas import wire
from schemas.names import joined, parted
from schemas.payload import brief, quoted
from schemas.reading import Reading, RejectedError, Value

Severity = Literal["INFO", "WARN", "EMERGENCY"]
#: From the least to the most severe.
SEVERITIES: Final[tuple[Severity, ...]] = get_args(Severity)
#: What is wrong, as the documents name it.
Kind = Literal["SMOKE", "GAS", "CO", "HEAT", "POWER", "COMM", "CUSTOM"]
State = Literal["ACTIVE", "ACKNOWLEDGED", "FLAPPING", "CLEARED", "RESOLVED", "EXPIRED"]
STATES: Final[tuple[State, ...]] = get_args(State)
#: Somebody should look at it still.
OPEN: Final[frozenset[State]] = frozenset({"ACTIVE", "ACKNOWLEDGED", "FLAPPING"})
Change = Literal[
    "raised",
    "escalated",
    "deescalated",
    "cleared",
    "flapping",
    "settled",
    "acknowledged",
    "resolved",
    "expired",
    "rebaselined",
    "paged",
]

#: The measurement of alarms' states.
MEASUREMENT: Final = "alarms"
#: Headers of a state's record: which change it tells of, and that change's id.
HEADER_EVENT: Final = "iotflow-event-id"
HEADER_CHANGE: Final = "iotflow-change"
#: The measurement that a key does not name.
_USUAL: Final = "telemetry"
#: So many `|` are in a key.
_BARS: Final = (3, 4)
_NAMESPACE: Final = uuid.UUID("c1f5a0a4-52d2-5d0e-8a31-6f1f6c4f7a5b")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: After these somebody is told, where the alarm is worth it.
_TOLD: Final[frozenset[Change]] = frozenset({"raised", "escalated", "flapping", "settled", "paged"})
_encode: Final = msgspec.json.Encoder().encode


class AlarmError(ValueError):
    """A key or a record of the topic of alarms is not what it should be; the text says why."""


# -- what a rule says --------------------------------------------------------------------------------------------------


class Signal(Struct, frozen=True):
    """What a rule says of a series at one moment; without a severity, that nothing is wrong.

    `low` and `high` bound what was expected, None where a side has no bound; `score` is how far it is off, from 1
    where it is just too far, 0 where a rule does not measure that. `message` is one sentence for a person.
    """

    severity: Severity | None
    value: float | bool | str | None = None
    threshold: float | None = None
    message: str = ""
    score: float = 0.0
    low: float | None = None
    high: float | None = None


#: Nothing is wrong.
QUIET: Final = Signal(None)


def rank(severity: Severity) -> int:
    """How severe, from 0."""
    return SEVERITIES.index(severity)


# -- what comes of it --------------------------------------------------------------------------------------------------


class Subject(Struct, frozen=True):
    """What an alarm is of: a series, and the rule that watches it."""

    measurement: str
    device_id: str
    channel: str
    metric: str
    rule: str

    @property
    def key(self) -> str:
        """DEVICE|CHANNEL|METRIC|RULE, and |MEASUREMENT where that is not `telemetry`; escaped as `joined` does."""
        more = () if self.measurement == _USUAL else (self.measurement,)
        return joined(self.device_id, self.channel, self.metric, self.rule, *more)


def subject_of(key: str) -> Subject:
    """The subject that has a key. Raises `AlarmError`."""
    device, channel, metric, rule, measurement = [*parted(key), _USUAL][:5] if key.count("|") in _BARS else [""] * 5
    found = Subject(measurement, device, channel, metric, rule)
    if not device or not rule or found.key != key:
        raise AlarmError(f"{quoted(key)} is no alarm's key, DEVICE|CHANNEL|METRIC|RULE")
    return found


class Facts(Struct, frozen=True, array_like=True):
    """What is known of an alarm beside its signals: from its rule, and from the reading."""

    kind: Kind = "CUSTOM"
    rule_version: int = 1
    #: 0 where no detector is behind it.
    detector_version: int = 0
    unit: str = ""
    #: What the severity is shown as, where the rule calls it otherwise.
    label: str = ""
    facility_id: str = ""
    location: str = ""


#: Nothing is known.
NO_FACTS: Final = Facts()


class Alarm(Struct, array_like=True):
    """The state of one subject's alarm, as `tables.alarms` changes it and as it is packed.

    Times are microseconds since the epoch, 0 where there was none; `value` to `high` are the last signal's that said
    that something is wrong, of `measured_at`. What is known once of an alarm is never unknown later: stores that only
    ever add to a row have the same as the others. So `acknowledged_at` stays when an escalation asks for another.
    """

    state: State
    severity: Severity
    raised_at: int
    #: The time of the last signal; an earlier one says nothing of now.
    seen_at: int
    updated_at: int
    #: When `on`, whether something is wrong, last changed.
    turned_at: int
    measured_at: int
    on: bool = True
    #: What was said of it paged nobody.
    replayed: bool = False
    value: float | bool | str | None = None
    threshold: float | None = None
    message: str = ""
    score: float = 0.0
    low: float | None = None
    high: float | None = None
    facts: Facts = NO_FACTS
    #: Since it was raised or escalated, whichever was later.
    acknowledged: bool = False
    acknowledged_at: int = 0
    acknowledged_by: str = ""
    #: When it was cleared, resolved or expired.
    ended_at: int = 0
    resolved_by: str = ""
    #: The most severe that was said of it while it flaps.
    worst: Severity = "INFO"
    #: When it was raised last, as long as that counts as flapping.
    raises: list[int] = []


class Transition(Struct, frozen=True):
    """A change of an alarm that is worth saying, at a time (µs), and the alarm right after it; `replayed`: silently."""

    change: Change
    at: int
    alarm: Alarm
    replayed: bool = False


# -- ids ---------------------------------------------------------------------------------------------------------------


def alarm_id(subject: Subject, raised_at: int) -> str:
    """The id of the alarm that was raised then (µs)."""
    return _id("alarm", subject, subject.rule, str(raised_at))


def event_id(subject: Subject, transition: Transition) -> str:
    """The id of a change."""
    version = transition.alarm.facts.rule_version
    return _id("change", subject, subject.rule, str(version), transition.change, str(transition.at))


def _id(what: str, subject: Subject, *more: str) -> str:
    series = (subject.measurement, subject.device_id, subject.channel, subject.metric)
    return str(uuid.uuid5(_NAMESPACE, joined(what, *series, *more)))


# -- records -----------------------------------------------------------------------------------------------------------


def record(subject: Subject, alarm: Alarm) -> tuple[bytes, Reading]:
    """An alarm's state as the key and the reading of a record of the topic of alarms.

    The reading's time is when the alarm was raised, its channel MEASUREMENT|CHANNEL|METRIC|RULE, escaped as `joined`
    does: so a store has a row for each alarm there was. `resolved_at` is when it ended in whichever way, and who
    resolved it is the tag `resolved_by`. A value that is text or a boolean is in the message alone.
    """
    facts, value = alarm.facts, alarm.value
    number = value if isinstance(value, float) else None
    values: dict[str, Value] = {
        "alarm_id": alarm_id(subject, alarm.raised_at),
        "measurement": subject.measurement,
        "metric": subject.metric,
        "rule": subject.rule,
        "kind": facts.kind,
        "severity": alarm.severity,
        "label": facts.label or None,
        "state": alarm.state,
        "unit": facts.unit or None,
        "value": number,
        "threshold": alarm.threshold,
        "message": alarm.message or (f"the value is {quoted(value)}" if number is None else None),
        "score": alarm.score or None,
        "expected_low": alarm.low,
        "expected_high": alarm.high,
        "facility_id": facts.facility_id or None,
        "measured_at": _text(alarm.measured_at),
        "updated_at": _text(alarm.updated_at),
        "acknowledged_at": _text(alarm.acknowledged_at),
        "acknowledged_by": alarm.acknowledged_by or None,
        "resolved_at": _text(alarm.ended_at),
        "rule_version": facts.rule_version,
        "detector_version": facts.detector_version or None,
        "replayed": alarm.replayed,
    }
    said = {"facility_id": facts.facility_id, "location": facts.location, "resolved_by": alarm.resolved_by}
    tags = {name: text for name, text in said.items() if text}
    channel = joined(subject.measurement, subject.channel, subject.metric, subject.rule)
    time = _instant(alarm.raised_at)
    return subject.key.encode(), Reading(MEASUREMENT, subject.device_id, time, values, channel, tags=tags)


def headers(subject: Subject, transition: Transition) -> list[tuple[str, bytes]]:
    """The headers of a state's record: its wire version, the change that it tells of, and that change's id."""
    return [
        (wire.HEADER_VERSION, wire.VERSION),
        (HEADER_EVENT, event_id(subject, transition).encode()),
        (HEADER_CHANGE, transition.change.encode()),
    ]


class Record(Struct, frozen=True, kw_only=True):
    """A state as it stands on the topic of alarms."""

    key: str
    alarm_id: str
    device_id: str
    measurement: str
    channel: str
    metric: str
    rule: str
    kind: Kind
    severity: Severity
    state: State
    raised_at: datetime
    updated_at: datetime
    message: str = ""
    label: str | None = None
    value: float | None = None
    unit: str | None = None
    threshold: float | None = None
    score: float | None = None
    expected_low: float | None = None
    expected_high: float | None = None
    rule_version: int = 1
    detector_version: int | None = None
    replayed: bool = False
    measured_at: datetime | None = None
    acknowledged_at: datetime | None = None
    acknowledged_by: str | None = None
    resolved_at: datetime | None = None
    resolved_by: str | None = None
    facility_id: str | None = None
    location: str | None = None

    @property
    def open(self) -> bool:
        """Whether somebody should look at it still."""
        return self.state in OPEN


def read_record(key: bytes, value: bytes) -> Record:
    """Read a record of the topic of alarms. Raises `AlarmError`."""
    try:
        subject = subject_of(key.decode())
        reading = wire.read(value)
    except (UnicodeDecodeError, RejectedError) as error:
        raise AlarmError(brief(error)) from error
    place = (reading.measurement, reading.device_id, reading.channel)
    mine = joined(subject.measurement, subject.channel, subject.metric, subject.rule)
    if place != (MEASUREMENT, subject.device_id, mine):
        raise AlarmError(f"its key is {quoted(subject.key)}, and its value of another alarm, or none")
    series = {"key": subject.key, "device_id": subject.device_id, "channel": subject.channel}
    fields = {**reading.tags, **reading.values, **series, "raised_at": reading.time}
    try:
        return msgspec.convert({name: field for name, field in fields.items() if field is not None}, Record)
    except msgspec.ValidationError as error:
        raise AlarmError(brief(error)) from error


# -- events ------------------------------------------------------------------------------------------------------------


def anomaly_event(
    subject: Subject, signal: Signal, *, measured_at: int, detected_at: int, facility_id: str = ""
) -> tuple[bytes, bytes]:
    """A `sensorDataAnomalyDetected` as S4 defines it: its record's key and value.

    One for each anomalous metric of a reading, whatever became of alarms: the id says which reading and metric, not
    which rule. Times are microseconds; `detected_at` must be the same when a reading is delivered again, as the time
    when it was received. A subject without a rule has the rule_id null.
    """
    event = {
        "version": 1,
        "event_id": _id("anomaly", subject, str(measured_at)),
        "equipment_id": subject.device_id,
        "facility_id": facility_id or None,
        "metric": subject.metric,
        "value": signal.value,
        "threshold": _passed(signal),
        "rule_id": subject.rule or None,
        "measured_at": _text(measured_at),
        "detected_at": _text(detected_at),
        "severity": signal.severity,
    }
    return subject.device_id.encode(), _encode(event)


def escalation(
    subject: Subject, transition: Transition
) -> tuple[Literal["warnings", "emergencies"], bytes, bytes] | None:
    """What the control tower is told of a change: the topic, as `Topics` calls it, and the record's key and value.

    None where it is told nothing: of what is replayed, of INFO, and of changes that ask nobody to act. The members up
    to `created_at`, when the change was, are S4's; those after it are ours.
    """
    alarm, facts = transition.alarm, transition.alarm.facts
    if transition.change not in _TOLD or transition.replayed or alarm.state not in OPEN or alarm.severity == "INFO":
        return None
    alarm_is = alarm_id(subject, alarm.raised_at)
    event: dict[str, Any] = {
        "version": 1,
        "alert_id": alarm_is,
        "equipment_id": subject.device_id,
        "facility_id": facts.facility_id or None,
        "equipment_location": facts.location or None,
        "alert_type": facts.kind,
        "severity": alarm.severity,
        "status": alarm.state,
        "created_at": _text(transition.at),
        "event_id": event_id(subject, transition),
        "alarm_id": alarm_is,
        "rule_id": subject.rule,
        "metric": subject.metric,
        "value": alarm.value,
        "threshold": _passed(alarm),
        "message": alarm.message,
        "raised_at": _text(alarm.raised_at),
    }
    where: Literal["warnings", "emergencies"] = "warnings" if alarm.severity == "WARN" else "emergencies"
    return where, subject.device_id.encode(), _encode(event)


def _passed(of: Signal | Alarm) -> float | None:
    """The threshold, or the bound of what was expected that the value is beyond."""
    if of.threshold is not None or not isinstance(of.value, int | float):
        return of.threshold
    if of.high is not None and of.value > of.high:
        return of.high
    return of.low


def _instant(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


def _text(micros: int) -> str | None:
    if not micros:
        return None
    return _instant(micros).isoformat(timespec="microseconds").replace("+00:00", "Z")
