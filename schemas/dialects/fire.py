"""The `fire` dialect: a fire-safety sensor's temperature, humidity, smoke density, CO and gas levels, any of them.

A value out of bounds is clamped, flagged, and its original kept in `raw`; a null is no value; a value of the wrong
type rejects itself and not its siblings. A time without a zone is UTC. `facility_id`, `equipment_location` (as
`location`) and the members of `metadata` (as `metadata.NAME`) are tags; other scalars are kept as further metrics.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec

from schemas.dialects import Example, Match, Meta, Walk, changed, cut
from schemas.payload import NAME_CHARS, extras, fields, measured, members, name, object_of, quoted, text
from schemas.policy import Metric, Policy, Time
from schemas.reading import CLAMPED, Reading, Rejected, RejectedError, Value
from schemas.time import parse

MATCH: Final = Match("fire", topics=("datalake.sensorData", "dataLake.sensorData"))

_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "temperature": (-50.0, 100.0),
    "humidity": (0.0, 100.0),
    "smoke_density": (0.0, 999.999),
    "co_level": (0.0, 999.999),
    "gas_level": (0.0, 999.999),
}

POLICY: Final = Policy(
    metrics={metric: Metric(low=low, high=high, outside="clamp") for metric, (low, high) in _BOUNDS.items()},
    time=Time(zone="UTC"),
)

_TAGS: Final = {"facility_id": "facility_id", "equipment_location": "location"}
_KNOWN: Final = frozenset({"equipment_id", "measured_at", "metadata", *_TAGS, *_BOUNDS})


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """The usual payload, checked while it is parsed; one that is more or other than this goes the careful way."""

    equipment_id: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS)]
    measured_at: str | int | float
    temperature: float | None = None
    humidity: float | None = None
    smoke_density: float | None = None
    co_level: float | None = None
    gas_level: float | None = None
    facility_id: str | None = None
    equipment_location: str | None = None


_read: Final = msgspec.json.Decoder(_Plain).decode


def decode(payload: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
    """A payload to its reading, or to why there is none, and why not all of it is in the reading."""
    try:
        got = _read(payload)
        time = parse(got.measured_at, zone=meta.setup.zone, field="measured_at")
    except ValueError:  # msgspec's, UnicodeDecodeError and RejectedError all are
        return _carefully(payload, meta)
    values: dict[str, Value] = {}
    if got.temperature is not None:
        values["temperature"] = got.temperature
    if got.humidity is not None:
        values["humidity"] = got.humidity
    if got.smoke_density is not None:
        values["smoke_density"] = got.smoke_density
    if got.co_level is not None:
        values["co_level"] = got.co_level
    if got.gas_level is not None:
        values["gas_level"] = got.gas_level
    if not values:
        return _carefully(payload, meta)
    tags: dict[str, str] = {}
    if got.facility_id is not None:
        tags["facility_id"] = got.facility_id
    if got.equipment_location is not None:
        tags["location"] = got.equipment_location
    return (Reading("fire", got.equipment_id, time, values, tags=tags, dialect="fire"),)


def _carefully(payload: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
    try:
        found = fields(payload)
        device_id = name(found, "equipment_id")
        time, flags = meta.time(found.get("measured_at"), "measured_at")
    except RejectedError as error:
        return (error.rejected,)
    rejected: list[Rejected] = []
    values: dict[str, Value] = {}
    for metric in _BOUNDS:
        value = found.get(metric)
        if value is None:
            continue
        try:
            values[metric] = measured(metric, value)
        except RejectedError as error:
            rejected.append(error.rejected)
    if not found.keys() <= _KNOWN:
        more, wrong = extras(found, _KNOWN)
        values |= {field: value for field, value in more.items() if value is not None}
        if wrong is not None:
            rejected.append(wrong)
    if not values:
        return rejected or (Rejected("missing_field", f"none of {', '.join(_BOUNDS)} has a value"),)
    tags = _tags(found, rejected)
    return (Reading("fire", device_id, time, values, tags=tags, dialect="fire", flags=flags), *rejected)


def _tags(found: Mapping[str, Any], rejected: list[Rejected]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for field, tag in _TAGS.items():
        value = found.get(field)
        if isinstance(value, dict | list):
            rejected.append(Rejected("bad_type", f"{field} is {quoted(value)}, not text"))
        elif value is not None:
            tags[tag] = text(value)
    more, wrong = members(found, "metadata")
    if wrong is not None:
        rejected.append(wrong)
    return tags | more


def encode(reading: Reading) -> bytes:
    """The payload that `decode` makes this reading of."""
    said: dict[str, object] = {"equipment_id": reading.device_id, "measured_at": reading.time}
    said |= {field: reading.tags[tag] for field, tag in _TAGS.items() if tag in reading.tags}
    said |= reading.values | reading.raw
    if metadata := object_of(reading.tags, "metadata"):
        said["metadata"] = metadata
    return msgspec.json.encode(said)


WALKS: Final[Mapping[str, Walk]] = {
    "temperature": Walk(20.0, 27.0, 0.1, odd=(80.0, 99.0)),
    "humidity": Walk(40.0, 65.0, 0.3, odd=(90.0, 99.0)),
    "smoke_density": Walk(0.0, 0.02, 0.002, odd=(100.0, 600.0)),
    "co_level": Walk(0.0, 2.0, 0.05, odd=(50.0, 250.0)),
    "gas_level": Walk(0.0, 5.0, 0.1, odd=(100.0, 600.0)),
}

SPOILED: Final = {
    "not_json": cut,
    "missing_field": changed(measured_at=msgspec.UNSET),
    "bad_timestamp": changed(measured_at="yesterday"),
    "bad_type": changed(equipment_id=17),
}

_START: Final = b'{"equipment_id":"EQ001","measured_at":"2024-01-01T12:00:00Z"'
_PLACE: Final = {"facility_id": "FAC001", "location": "Building A, Floor 1"}


def _gives(
    values: Mapping[str, Value], *, tags: Mapping[str, str] | None = None, raw: Mapping[str, Value] | None = None
) -> Reading:
    return Reading(
        "fire",
        "EQ001",
        datetime(2024, 1, 1, 12, tzinfo=UTC),
        dict(values),
        tags=dict(tags or {}),
        raw=dict(raw or {}),
        dialect="fire",
        flags=[CLAMPED] if raw else [],
    )


EXAMPLES: Final = (
    Example(
        b'{"equipment_id":"EQ001","facility_id":"FAC001","equipment_location":"Building A, Floor 1",'
        b'"measured_at":"2024-01-01T12:00:00Z",'
        b'"temperature":25.5,"humidity":60.2,"smoke_density":0.001,"co_level":0.005,"gas_level":0.002}',
        [
            _gives(
                {"temperature": 25.5, "humidity": 60.2, "smoke_density": 0.001, "co_level": 0.005, "gas_level": 0.002},
                tags=_PLACE,
            )
        ],
    ),
    Example(  # as the mock server says it: no zone, nulls for what it has not; 0.0 is a value
        b'{"equipment_id":"EQ001","facility_id":null,"measured_at":"2024-01-01T12:00:00",'
        b'"temperature":0.0,"humidity":null,"smoke_density":0,"metadata":null}',
        [_gives({"temperature": 0.0, "smoke_density": 0.0})],
    ),
    Example(
        b'{"equipment_id":"EQ001","measured_at":"2024-01-01T21:00:00+09:00","co_level":1.5}',
        [_gives({"co_level": 1.5})],
    ),
    Example(
        _START + b',"temperature":120,"humidity":-0.5,"gas_level":1000.0,"co_level":999.999}',
        [
            _gives(
                {"temperature": 100.0, "humidity": 0.0, "co_level": 999.999, "gas_level": 999.999},
                raw={"temperature": 120.0, "humidity": -0.5, "gas_level": 1000.0},
            )
        ],
    ),
    Example(
        _START + b',"temperature":25,"metadata":{"floor":3,"armed":true,"zone":"B","note":null,"api_key":"k",'
        b'"net":{"ip":"10.0.0.1","password":"p"}}}',
        [
            _gives(
                {"temperature": 25.0},
                tags={
                    "metadata.floor": "3",
                    "metadata.armed": "true",
                    "metadata.zone": "B",
                    "metadata.net": '{"ip":"10.0.0.1"}',
                },
            )
        ],
    ),
    Example(_START + b',"temperature":25,"battery":80,"rssi":null}', [_gives({"temperature": 25.0, "battery": 80})]),
    Example(
        _START + b',"temperature":"27.9","humidity":55,"co_level":true}',
        [_gives({"humidity": 55.0}), "bad_type", "bad_type"],
    ),
    Example(
        _START + b',"humidity":55,"facility_id":["F"],"gps":[1,2]}', [_gives({"humidity": 55.0}), *["bad_type"] * 2]
    ),
    Example(_START + b',"humidity":55,"metadata":"B"}', [_gives({"humidity": 55.0}), "bad_type"]),
    Example(
        _START + b',"humidity":55,"metadata":{"deep":' + b"[" * 40 + b"]" * 40 + b',"floor":3}}',
        [_gives({"humidity": 55.0}, tags={"metadata.floor": "3"}), "too_large"],
    ),
    Example(b"{equipment_id}", ["not_json"]),
    Example(_START + b',"temperature":NaN}', ["not_json"]),
    Example(b'"EQ001"', ["bad_type"]),
    Example(_START + b"}", ["missing_field"]),
    Example(_START + b',"temperature":null}', ["missing_field"]),
    Example(_START + b',"temperature":"hot"}', ["bad_type"]),
    Example(_START + b',"temperature":-1e999}', ["out_of_range"]),
    Example(b'{"measured_at":"2024-01-01T12:00:00Z","temperature":1}', ["missing_field"]),
    Example(b'{"equipment_id":"","measured_at":"2024-01-01T12:00:00Z","temperature":1}', ["missing_field"]),
    Example(b'{"equipment_id":17,"measured_at":"2024-01-01T12:00:00Z","temperature":1}', ["bad_type"]),
    Example(b'{"equipment_id":"EQ001","temperature":1}', ["missing_field"]),
    Example(b'{"equipment_id":"EQ001","measured_at":"noon","temperature":1}', ["bad_timestamp"]),
    Example(b'{"equipment_id":"EQ001","measured_at":"2201-01-01T00:00:00Z","temperature":1}', ["bad_timestamp"]),
)
