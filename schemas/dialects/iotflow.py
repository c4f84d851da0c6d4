"""The `iotflow` dialect: what devices of IoTFlow publish below `iotflow/`, and where they publish it.

The payload is structured, its measurements in `data` and what describes them in `metadata`, or flat: then every field
of its root is one but for those that say who and when. Measurements keep their types; objects and arrays among them
are refused alone, and so is one that `data` and the root give different values. Times without a zone are UTC.

The original topic, the record's or else the payload's own `original_topic`, says what a message is and whose, and
becomes a tag. Below a device, `telemetry` and its `sensors`, `metrics` and `events` are readings of measurement
`telemetry`; `status/heartbeat`, `status/online`, `status/offline` and the device's last will are readings of
measurement `status` whose metrics `status` and `online` the topic says where the payload does not. Which of these it
was is the tag `kind`. Whatever else is below `iotflow/`, as commands, is no telemetry. A message from elsewhere, or
from nowhere, is telemetry. The device is the topic's, else the payload's `device_id`; a number N is `device_N`.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

import msgspec

from schemas.dialects import Example, Match, Meta, Walk, changed, cut
from schemas.payload import device, extras, fields, members, object_of, quoted
from schemas.policy import Policy, Time
from schemas.reading import Reading, Rejected, RejectedError, Value

MATCH: Final = Match("iotflow", origin=re.compile(r"iotflow/.+"))

POLICY: Final = Policy(time=Time(zone="UTC"))

_TOPIC_TAG: Final = "original_topic"

_TOPIC: Final = re.compile(
    r"iotflow/(?:devices/(?P<device>[^/]+)/(?:telemetry(?:/(?P<telemetry>sensors|metrics|events))?"
    r"|status/(?P<status>heartbeat|online|offline))|lwt/devices/(?P<gone>[^/]+))"
)
_LAST_WILL: Final = "lwt"
#: What devices say on a status topic that is not JSON.
_BARE: Final = frozenset({b"online", b"offline"})
_TIMES: Final = ("timestamp", "ts")
_KNOWN: Final = frozenset({*_TIMES, "device_id", "metadata", _TOPIC_TAG})
_STRUCTURED: Final = _KNOWN | {"data"}
_NAMED_IN_ERROR: Final = 3


class _Place(NamedTuple):
    """What a message's topic says of it; `device` is `''` where it does not say one."""

    topic: str = ""
    measurement: str = "telemetry"
    device: str = ""
    kind: str = ""


def decode(payload: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
    """A payload to its reading, or to why there is none, and why not all of it is in the reading."""
    rejected: list[Rejected] = []
    try:
        # What is no telemetry need not be JSON either.
        place = _place(meta.origin)
        found = {"status": payload.decode()} if place.measurement == "status" and payload in _BARE else fields(payload)
        if not place.topic and found.get(_TOPIC_TAG) is not None:
            place = _place(found[_TOPIC_TAG])
        device_id = _device(found, place)
        time, flags = _time(found, meta)
    except RejectedError as error:
        return (error.rejected,)
    values = _values(found, rejected)
    if place.measurement == "status":
        _complete(values, place.kind, rejected)
    elif not values:
        return rejected or (Rejected("missing_field", "there is no measurement in the payload"),)
    tags, wrong = members(found, "metadata")
    if wrong is not None:
        rejected.append(wrong)
    if place.topic:
        tags[_TOPIC_TAG] = place.topic
    if place.kind:
        tags["kind"] = place.kind
    return (Reading(place.measurement, device_id, time, values, tags=tags, dialect="iotflow", flags=flags), *rejected)


def _place(topic: object) -> _Place:
    if not isinstance(topic, str):
        raise RejectedError("bad_type", f"{_TOPIC_TAG} is {quoted(topic)}, not text")
    if not topic.startswith("iotflow/"):
        return _Place(topic)
    found = _TOPIC.fullmatch(topic)
    if found is None:
        raise RejectedError("not_telemetry", f"the topic {quoted(topic)} is none of telemetry, status or a last will")
    if found["gone"] is not None:
        return _Place(topic, "status", device("the topic's device", found["gone"]), _LAST_WILL)
    whose = device("the topic's device", found["device"])
    if found["status"] is not None:
        return _Place(topic, "status", whose, found["status"])
    return _Place(topic, "telemetry", whose, found["telemetry"] or "")


def _device(found: Mapping[str, Any], place: _Place) -> str:
    said = found.get("device_id")
    if place.device and (said is None or said == ""):
        return place.device
    if said is None:
        raise RejectedError("missing_field", "device_id is missing, and no topic says the device")
    device_id = device("device_id", said)
    if place.device and device_id != place.device:
        raise RejectedError("contradiction", f"device_id is {quoted(said)}, and its topic is of {quoted(place.device)}")
    return device_id


def _time(found: Mapping[str, Any], meta: Meta) -> tuple[datetime, list[str]]:
    for part in (found, found.get("data")):
        if isinstance(part, dict):
            for field in _TIMES:
                value = part.get(field)
                if value is not None and value != "":
                    return meta.time(value, field)
    return meta.time(None)


def _values(found: Mapping[str, Any], rejected: list[Rejected]) -> dict[str, Value]:
    data = found.get("data")
    inner: dict[str, Value] = {}
    known = _KNOWN
    if data is None or isinstance(data, dict):
        inner, wrong = extras(data or {}, _TIMES)
        known = _STRUCTURED
        if wrong is not None:
            rejected.append(wrong)
    if found.keys() <= known:
        return inner
    outer, wrong = extras(found, known)
    if wrong is not None:
        rejected.append(wrong)
    if known is _STRUCTURED and data:
        _agree(inner, outer, data, rejected)
    return inner | {metric: value for metric, value in outer.items() if metric not in inner}


def _agree(inner: dict[str, Value], outer: dict[str, Value], data: dict[str, Any], rejected: list[Rejected]) -> None:
    """Refuse the measurements that `data` and the root give different values; all share one `Rejected`."""
    apart = [metric for metric in outer if metric in data and not _same(outer[metric], data[metric])]
    if not apart:
        return
    named = [
        f"{quoted(metric)} is {quoted(data[metric])} in data, and {quoted(outer[metric])} beside it"
        for metric in apart[:_NAMED_IN_ERROR]
    ]
    rest = len(apart) - len(named)
    rejected.append(Rejected("contradiction", "; ".join(named) + (f"; and {rest} more" if rest else "")))
    for metric in apart:
        del outer[metric]
        inner.pop(metric, None)


def _same(value: object, other: object) -> bool:
    """Whether two values are the same in JSON, where 1 is 1.0, and not true."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _complete(values: dict[str, Value], kind: str, rejected: list[Rejected]) -> None:
    online = kind not in {"offline", _LAST_WILL}
    for metric, wanted, default in (("status", str, "online" if online else "offline"), ("online", bool, online)):
        value = values.get(metric)
        if value is not None and not isinstance(value, wanted):
            what = "text" if wanted is str else "true or false"
            rejected.append(Rejected("bad_type", f"{metric} is {quoted(value)}, not {what}"))
            value = None
        values[metric] = default if value is None else value


def encode(reading: Reading) -> bytes:
    """The payload that `decode` makes this reading of, from the topic that `origin` says."""
    said: dict[str, object] = {"device_id": reading.device_id, "timestamp": reading.time, "data": reading.values}
    if metadata := object_of(reading.tags, "metadata"):
        said["metadata"] = metadata
    return msgspec.json.encode(said)


def origin(reading: Reading) -> str:
    """The topic of the message with this reading."""
    return reading.tags.get(_TOPIC_TAG, "")


def template(prefix: str, number: int) -> Reading:
    """The first example's reading as a simulated device says it."""
    device_id = f"{prefix}-{number:03d}"
    return _gives(
        _VALUES,
        device_id=device_id,
        origin=f"iotflow/devices/{device_id}/telemetry/sensors",
        kind="sensors",
        tags=_FIRST,
    )


WALKS: Final[Mapping[str, Walk]] = {
    "temperature": Walk(18.0, 28.0, 0.1, odd=(55.0, 95.0)),
    "humidity": Walk(35.0, 65.0, 0.3, odd=(92.0, 100.0)),
    "pressure": Walk(990.0, 1030.0, 0.2, odd=(900.0, 950.0)),
}

SPOILED: Final = {
    "not_json": cut,
    "missing_field": changed(data={}),
    "bad_timestamp": changed(timestamp="yesterday"),
    "bad_type": changed(device_id=True),
    "contradiction": changed(device_id="another"),
}

_AT: Final = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)
_VALUES: Final = {"temperature": 23.5, "humidity": 65.2, "pressure": 1013.25}
_FIRST: Final = {"metadata.firmware": "1.2.0", "metadata.floor": "3"}
_KEY: Final = b'"api_key":"0123456789abcdef"'
_FLAT: Final = b"{" + _KEY + b',"temperature":23.5,"ts":'
_BELOW: Final = "iotflow/devices/1/"


def _gives(
    values: Mapping[str, Value],
    *,
    origin: str = "",
    kind: str = "",
    device_id: str = "device_1",
    tags: Mapping[str, str] | None = None,
) -> Reading:
    said = dict(tags or {})
    if origin:
        said[_TOPIC_TAG] = origin
    if kind:
        said["kind"] = kind
    measurement = "status" if "online" in values else "telemetry"
    return Reading(measurement, device_id, _AT, dict(values), tags=said, dialect="iotflow")


def _status(origin: str, payload: bytes, values: Mapping[str, Value], *reasons: str, kind: str) -> Example:
    return Example(payload, [_gives(values, origin=origin, kind=kind), *reasons], origin)


EXAMPLES: Final = (
    Example(
        b'{"device_id":1,' + _KEY + b',"timestamp":"2025-10-05T12:34:56Z",'
        b'"data":{"temperature":23.5,"humidity":65.2,"pressure":1013.25},"metadata":{"firmware":"1.2.0","floor":3}}',
        [_gives(_VALUES, origin=_BELOW + "telemetry/sensors", kind="sensors", tags=_FIRST)],
        _BELOW + "telemetry/sensors",
    ),
    Example(  # a time without a zone; numbers, texts and booleans as they are said; fields beside `data` are not lost
        b"{" + _KEY + b',"timestamp":"2025-10-05T12:34:56","data":{"count":20,"level":20.0,"mode":"auto","open":false,'
        b'"fault":null,"password":"p","ts":17},"metadata":{"api_key":"k","in":{"token":"t","a":1}},"level":20,"rssi":-71}',
        [
            _gives(
                {"count": 20, "level": 20.0, "mode": "auto", "open": False, "fault": None, "rssi": -71},
                origin=_BELOW + "telemetry/metrics",
                kind="metrics",
                tags={"metadata.in": '{"a":1}'},
            )
        ],
        _BELOW + "telemetry/metrics",
    ),
    Example(_FLAT + b"1759667696}", [_gives({"temperature": 23.5}, origin=_BELOW + "telemetry")], _BELOW + "telemetry"),
    Example(  # two that `data` and the root do not agree on
        _FLAT + b'1759667696,"open":1,"rssi":-71,"data":{"temperature":23.4,"open":true,"rssi":-71.0}}',
        [_gives({"rssi": -71.0}, origin=_BELOW + "telemetry"), "contradiction"],
        _BELOW + "telemetry",
    ),
    Example(  # flat, and what the record does not say in the payload
        _FLAT + b'1759667696000,"timestamp":"","device_id":"1","data":7,'
        b'"original_topic":"iotflow/devices/1/telemetry/sensors"}',
        [
            _gives(
                {"temperature": 23.5, "data": 7},
                origin=_BELOW + "telemetry/sensors",
                kind="sensors",
            )
        ],
    ),
    Example(
        b'{"device_id":"esp32-a","data":{"event":"door_open","ts":1759667696}}',
        [_gives({"event": "door_open"}, device_id="esp32-a", origin="site/7")],
        "site/7",
    ),
    Example(
        _FLAT + b'1759667696,"gps":[1,2],"net":{"password":"p"},"metadata":"B"}',
        [_gives({"temperature": 23.5}, origin=_BELOW + "telemetry"), "bad_type", "bad_type"],
        _BELOW + "telemetry",
    ),
    _status(
        _BELOW + "status/heartbeat",
        b"{" + _KEY + b',"timestamp":1759667696,"status":"alive","uptime":3600}',
        {"status": "alive", "uptime": 3600, "online": True},
        kind="heartbeat",
    ),
    _status(_BELOW + "status/online", b'{"timestamp":1759667696}', {"status": "online", "online": True}, kind="online"),
    _status(
        _BELOW + "status/offline",
        b'{"timestamp":1759667696,"online":"no","status":1,"reason":"battery"}',
        {"online": False, "status": "offline", "reason": "battery"},
        "bad_type",
        "bad_type",
        kind="offline",
    ),
    _status(
        "iotflow/lwt/devices/1", b'{"ts":1759667696,"status":null}', {"status": "offline", "online": False}, kind="lwt"
    ),
    Example(b"offline", ["missing_field"], _BELOW + "status/offline"),  # when it was, it does not say
    Example(b"offline", ["not_json"], _BELOW + "telemetry"),
    Example(b'{"command":"reboot","timestamp":1759667696}', ["not_telemetry"], _BELOW + "commands/control"),
    Example(b"", ["not_telemetry"], _BELOW + "config"),
    Example(_FLAT + b"1759667696}", ["not_telemetry"], "iotflow/fleet/status/group-1"),
    Example(_FLAT + b"1759667696}", ["not_telemetry"], _BELOW + "telemetry/sensors/extra"),
    Example(_FLAT + b'1759667696,"original_topic":"iotflow/system/health"}', ["not_telemetry"]),
    Example(_FLAT + b'1759667696,"original_topic":7}', ["bad_type"]),
    Example(_FLAT + b'1759667696,"device_id":2}', ["contradiction"], _BELOW + "telemetry"),
    Example(_FLAT + b"1759667696}", ["missing_field"]),
    Example(_FLAT + b'1759667696,"device_id":-1}', ["bad_type"]),
    Example(_FLAT + b'1759667696,"device_id":[]}', ["bad_type"], _BELOW + "telemetry"),
    Example(_FLAT + b'1759667696,"device_id":"' + b"d" * 257 + b'"}', ["too_large"]),
    Example(_FLAT + b'null,"device_id":1}', ["missing_field"]),
    Example(_FLAT + b'true,"device_id":1}', ["bad_timestamp"]),
    Example(b'{"device_id":1,"ts":1759667696}', ["missing_field"]),
    Example(b'{"device_id":1,"ts":1759667696,"data":{}}', ["missing_field"]),
    Example(b'{"device_id":1,"ts":1759667696,"data":{"a":{}},"b":[]}', ["bad_type", "bad_type"]),
    Example(b"23.5", ["bad_type"], _BELOW + "telemetry/sensors"),
)
