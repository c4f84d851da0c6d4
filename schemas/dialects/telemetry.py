"""The `telemetry` dialect: one JSON object with temperature, humidity and battery, all of them required.

A value outside its range rejects the whole reading. Fields beyond the five are kept: scalars as further metrics,
`channel` as the reading's channel; a secret is dropped. Units are not stated by devices, so none are made up.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec

from schemas.dialects import Example, Match, Meta, Walk, changed, cut
from schemas.payload import NAME_CHARS, extras, fields, measured, name, need
from schemas.policy import Metric, Policy
from schemas.reading import Reading, Rejected, RejectedError, Value
from schemas.time import parse

MATCH: Final = Match("telemetry", origin=re.compile(r"telemetry/[^/]+"))

POLICY: Final = Policy(
    metrics={
        "temperature": Metric(low=-50.0, high=100.0),
        "humidity": Metric(low=0.0, high=100.0),
        "battery": Metric(low=0.0, high=100.0),
    },
    required=("temperature", "humidity", "battery"),
)

_METRICS: Final = POLICY.required
_KNOWN: Final = frozenset({"device_id", "timestamp", "channel", *_METRICS})


class _Plain(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A payload of exactly the five fields, checked while it is parsed.

    Whatever is unusual fails here and goes the careful way, which alone decides and words the error, so both ways can
    only agree.
    """

    device_id: Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_CHARS)]
    timestamp: str | int | float
    temperature: float
    humidity: float
    battery: float


_read: Final = msgspec.json.Decoder(_Plain).decode


def decode(payload: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
    """A payload to its reading, or to why there is none."""
    try:
        got = _read(payload)
        return (
            Reading(
                "telemetry",
                got.device_id,
                parse(got.timestamp, zone=meta.setup.zone),
                {"temperature": got.temperature, "humidity": got.humidity, "battery": got.battery},
                dialect="telemetry",
            ),
        )
    except ValueError:  # msgspec's, UnicodeDecodeError and RejectedError all are
        return _carefully(payload, meta)


def _carefully(payload: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
    try:
        found = fields(payload)
        device_id = name(found, "device_id")
        time, flags = meta.time(found.get("timestamp"))
        values: dict[str, Value] = {metric: measured(metric, need(found, metric)) for metric in _METRICS}
        channel = name(found, "channel") if found.get("channel", "") not in (None, "") else ""
    except RejectedError as error:
        return (error.rejected,)
    more, wrong = extras(found, _KNOWN)
    reading = Reading("telemetry", device_id, time, values | more, channel, dialect="telemetry", flags=flags)
    return (reading,) if wrong is None else (reading, wrong)


def encode(reading: Reading) -> bytes:
    """The payload that `decode` makes this reading of."""
    said: dict[str, object] = {"device_id": reading.device_id, "timestamp": reading.time, **reading.values}
    if reading.channel:
        said["channel"] = reading.channel
    return msgspec.json.encode(said)


WALKS: Final[Mapping[str, Walk]] = {
    "temperature": Walk(18.0, 28.0, 0.1, odd=(55.0, 95.0)),
    "humidity": Walk(35.0, 65.0, 0.3, odd=(92.0, 100.0)),
    "battery": Walk(40.0, 100.0, 0.05, odd=(0.5, 9.0)),
}

SPOILED: Final = {
    "not_json": cut,
    "out_of_range": changed(temperature=999.0),
    "missing_field": changed(humidity=msgspec.UNSET),
}

_AT: Final = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)
_VALUES: Final = {"temperature": 23.5, "humidity": 65.2, "battery": 87.3}
_START: Final = b'{"device_id":"sensor-001","timestamp":"2025-10-05T12:34:56Z",'
_FIVE: Final = _START + b'"temperature":23.5,"humidity":65.2,"battery":87.3'


def _gives(values: Mapping[str, Value] = _VALUES, *, at: datetime = _AT, channel: str = "") -> Reading:
    return Reading("telemetry", "sensor-001", at, dict(values), channel, dialect="telemetry")


EXAMPLES: Final = (
    Example(_FIVE + b"}", [_gives()]),
    Example(  # the edges of the ranges, whole numbers, an offset, more digits than a microsecond has
        b'{"timestamp":"2025-10-05 21:34:56.1234569+09:00","device_id":"sensor-001",'
        b'"temperature":-50,"humidity":0,"battery":100}',
        [
            _gives(
                {"temperature": -50.0, "humidity": 0.0, "battery": 100.0},
                at=_AT.replace(microsecond=123456),
            )
        ],
    ),
    Example(
        b'{"device_id":"sensor-001","timestamp":1759667696.5,"temperature":1,"humidity":2,"battery":3}',
        [_gives({"temperature": 1.0, "humidity": 2.0, "battery": 3.0}, at=_AT.replace(microsecond=500_000))],
    ),
    Example(  # a device that has grown: a channel, text, boolean, null, an integer no double holds
        _FIVE + b',"channel":"probe/2","state":"open","tamper":false,"rssi":null,"pulses":9007199254740993}',
        [_gives(_VALUES | {"state": "open", "tamper": False, "rssi": None, "pulses": 2**53 + 1}, channel="probe/2")],
    ),
    Example(_FIVE + b',"api_key":"k","access-token":"t","rssi":-70}', [_gives(_VALUES | {"rssi": -70})]),
    Example(_FIVE + b',"rssi":-70,"gps":{"lat":1.5},"":1}', [_gives(_VALUES | {"rssi": -70}), "bad_type"]),
    Example(b"", ["not_json"]),
    Example(b"device sensor-001 is fine", ["not_json"]),
    Example(_FIVE, ["not_json"]),
    Example(_START + b'"temperature":NaN,"humidity":65.2,"battery":87.3}', ["not_json"]),
    Example(_START + b'"temperature":-Infinity,"humidity":65.2,"battery":87.3}', ["not_json"]),
    Example(_FIVE + b',"note":"\xff\xfe"}', ["not_json"]),
    Example(b"[" + _FIVE + b"}]", ["bad_type"]),
    Example(b"null", ["bad_type"]),
    Example(b"{}", ["missing_field"]),
    Example(_START + b'"temperature":23.5,"humidity":65.2}', ["missing_field"]),
    Example(b'{"device_id":"sensor-001","temperature":1,"humidity":2,"battery":3}', ["missing_field"]),
    Example(_FIVE.replace(b"sensor-001", b"") + b"}", ["missing_field"]),
    Example(_FIVE.replace(b'"sensor-001"', b"1") + b"}", ["bad_type"]),
    Example(_FIVE.replace(b"sensor-001", b"s" * 257) + b"}", ["too_large"]),
    Example(_START + b'"temperature":"23.5","humidity":65.2,"battery":87.3}', ["bad_type"]),
    Example(_START + b'"temperature":true,"humidity":65.2,"battery":87.3}', ["bad_type"]),
    Example(_START + b'"temperature":null,"humidity":65.2,"battery":87.3}', ["bad_type"]),
    Example(_FIVE + b',"channel":3}', ["bad_type"]),
    Example(_START + b'"temperature":999.0,"humidity":65.2,"battery":87.3}', ["out_of_range"]),
    Example(_START + b'"temperature":100.01,"humidity":65.2,"battery":87.3}', ["out_of_range"]),
    Example(_START + b'"temperature":23.5,"humidity":-0.1,"battery":87.3}', ["out_of_range"]),
    Example(_START + b'"temperature":23.5,"humidity":65.2,"battery":1e400}', ["out_of_range"]),
    Example(_FIVE.replace(b"56Z", b"56") + b"}", ["bad_timestamp"]),
    Example(_FIVE.replace(b"2025-10-05T12:34:56Z", b"2025-10-05") + b"}", ["bad_timestamp"]),
    Example(_FIVE.replace(b"2025-10-05T12:34:56Z", b"yesterday") + b"}", ["bad_timestamp"]),
    Example(_FIVE.replace(b"2025", b"1969") + b"}", ["bad_timestamp"]),
    Example(_FIVE.replace(b'"2025-10-05T12:34:56Z"', b"null") + b"}", ["missing_field"]),
    Example(_FIVE.replace(b'"2025-10-05T12:34:56Z"', b"[1]") + b"}", ["bad_timestamp"]),
    Example(_FIVE.replace(b"2025-10", b"2035-10") + b"}", ["future"]),
    Example(_FIVE + b',"deep":' + b"[" * 5_000 + b"]" * 5_000 + b"}", ["too_large"]),
)
