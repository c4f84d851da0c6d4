"""The `decoded` dialect: readings that somebody else has decoded, in wire version 1 or one of three older shapes.

Wire version 1 stays what it is, whatever dialect it says; only secrets among its metrics and tags, and flags that there
are not, are dropped. A record without `v` has one value, and for its parts any mixture of the older shapes' names:

    timestamp   when; without a zone, in UTC
    device      mac_address, device_id or deviceid: a MAC address becomes f2-MAC, a number N becomes device_N, unless it
                is one of twelve digits in mac_address, which is a MAC address that has no letters
    metric      data_point_label, component_type or datapointid; else `unknown`
    value       a number, a text of one with its unit, a boolean, or null; it must be there
    unit        unless the value's text has one, which is the one that the value was written in
    mode, pin   mode or connector_mode; pin or pin_position; `unknown` and -1 mean that they are not known
    topic       original_topic or topic, which is kept as a tag

The channel is MODE/CONNECTOR/PIN as in the `iot-gateway` dialect. The connector is in the topic, and so are mode and
pin where the record does not say them. A mode that nobody says is `unknown`, a connector or pin empty, and the channel
is empty where all of them are. A record is refused that says two MAC addresses, or another pin than its topic. A text
that is no number becomes null, flagged, itself in `raw`. All else in such a record, as `raw_data`, is dropped.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from schemas import gateway, units
from schemas.dialects import Example, Match, Meta, Walk, changed, cut
from schemas.payload import NAME_CHARS, brief, fields, is_secret, name, need, quoted
from schemas.payload import device as canonical
from schemas.policy import Policy, Time
from schemas.reading import EXACT_INTEGER, FLAGS, UNPARSABLE, Reading, Rejected, RejectedError, Value, flaw
from schemas.time import parse

MATCH: Final = Match("decoded")

POLICY: Final = Policy(time=Time(zone="UTC"))

_MAC: Final = "mac_address"
# In each, the first that is said counts.
_DEVICE: Final = (_MAC, "device_id", "deviceid")
_METRIC: Final = ("data_point_label", "component_type", "datapointid")
_MODE: Final = ("mode", "connector_mode")
_PIN: Final = ("pin", "pin_position")
_ORIGIN: Final = ("original_topic", "topic")

_UNKNOWN: Final = "unknown"
_NO_PIN: Final = "-1"
#: A unit has at most this many characters, as one in a value's text.
_UNIT_CHARS: Final = 32
#: How a MAC address is told that came as a number; a smaller one may be any id.
_MAC_NUMBERS: Final = range(10**11, 10**12)

_read: Final = msgspec.json.Decoder(Reading).decode


def decode(payload: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
    """A payload to its one reading, or to why there is none."""
    try:
        found = fields(payload)
        return (_current(payload, found) if "v" in found else _older(found, meta),)
    except RejectedError as error:
        return (error.rejected,)


def _current(payload: bytes, found: Mapping[str, Any]) -> Reading:
    try:
        reading = _read(payload)
    except (msgspec.DecodeError, RecursionError) as error:
        raise RejectedError("wire", f"the record is no reading of wire version 1: {brief(error)}") from error
    for members in (reading.values, reading.units, reading.tags, reading.raw):
        for member in [member for member in members if is_secret(member)]:
            del members[member]
    # They label a metric.
    reading.flags[:] = [flag for flag in reading.flags if flag in FLAGS]
    rejected = flaw(reading) or _too_long(reading)
    if rejected is not None:
        raise RejectedError(rejected.reason, rejected.error)
    # The text once more: what is finer than a microsecond is cut here, while msgspec rounds it.
    return replace(reading, time=parse(found["time"], field="time"))


def _too_long(reading: Reading) -> Rejected | None:
    names = (reading.measurement, reading.device_id, reading.channel, *reading.values, *reading.tags)
    longest = max(map(len, names))
    if longest <= NAME_CHARS:
        return None
    return Rejected("too_large", f"a name has {longest} characters, more than {NAME_CHARS}")


def _older(found: Mapping[str, Any], meta: Meta) -> Reading:
    device_id, mac = _device(found)
    time, flags = meta.time(found.get("timestamp"))
    metric = _name(found, _METRIC) or _UNKNOWN
    if is_secret(metric):
        raise RejectedError("not_telemetry", f"the record is of {quoted(metric)}, which is a secret")
    topic = _text(found, _ORIGIN)
    channel = _channel(_name(found, _MODE), _name(found, _PIN), _address(topic, mac))
    value, written, raw = _value(need(found, "value"), meta)
    said = _unit(found)
    unit = written or said
    if raw is not None:
        flags.append(UNPARSABLE)
    return Reading(
        gateway.MEASUREMENT,
        device_id,
        time,
        {metric: value},
        channel,
        {metric: unit} if unit else {},
        {gateway.TAG: topic} if topic else {},
        {metric: raw} if raw is not None else {},
        "decoded",
        flags,
    )


def _said(found: Mapping[str, Any], names: Sequence[str]) -> tuple[str, Any]:
    for field in names:
        value = found.get(field)
        if value is not None and value != "":
            return field, value
    return names[0], None


def _text(found: Mapping[str, Any], names: Sequence[str]) -> str:
    field, value = _said(found, names)
    if value is None or isinstance(value, str):
        return value or ""
    raise RejectedError("bad_type", f"{field} is {quoted(value)}, not text")


def _name(found: Mapping[str, Any], names: Sequence[str]) -> str:
    """A part's name, `''` when it is not said; the newest shape has numbers for names."""
    field, value = _said(found, names)
    if value is None:
        return ""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    return name({field: value}, field)


def _unit(found: Mapping[str, Any]) -> str:
    unit = _text(found, ("unit",)).strip()
    if len(unit) > _UNIT_CHARS:
        raise RejectedError("bad_unit", f"unit is {quoted(unit)}, of more than {_UNIT_CHARS} characters")
    return unit


def _device(found: Mapping[str, Any]) -> tuple[str, str]:
    """The device's id, and the MAC address that is said anywhere, or `''`."""
    field, value = _said(found, _DEVICE)
    if value is None:
        raise RejectedError("missing_field", f"none of {', '.join(_DEVICE)} says the device")
    macs = {other: mac for other in _DEVICE if (mac := _mac(other, found.get(other))) is not None}
    if len(set(macs.values())) > 1:
        said = " and ".join(f"{other} {quoted(found[other])}" for other in macs)
        raise RejectedError("contradiction", f"two controllers are named: {said}")
    device_id = gateway.device_id(macs[field]) if field in macs else canonical(field, value)
    return device_id, next(iter(macs.values()), "")


def _mac(field: str, value: object) -> str | None:
    if field == _MAC and value.__class__ is int and value in _MAC_NUMBERS:
        value = str(value)
    return gateway.controller(value) if isinstance(value, str) else None


def _value(value: Any, meta: Meta) -> tuple[Value, str, str | None]:
    """A value, the unit that it says itself, and its text where that cannot be read."""
    if isinstance(value, str):
        split = units.split(value)
        if split is not None and isfinite(split[0]):
            return *split, None
        if meta.setup.unparsable:
            return None, "", value
        raise RejectedError("unparsable", f"value is {quoted(value)}, neither a number nor one with its unit")
    if isinstance(value, dict | list):
        raise RejectedError("bad_type", f"value is {quoted(value)}, not a number, text, boolean or null")
    # An integer that a double would round is the stores' to judge, which know its type.
    if value.__class__ is int and -EXACT_INTEGER <= value <= EXACT_INTEGER:
        value = float(value)
    return value, "", None


def _address(topic: str, mac: str) -> gateway.Address | None:
    """What the topic says, None where it is not one of a gateway's; it must not be of another controller."""
    controller = gateway.controller_of(topic)
    if controller is None:
        return None
    if mac not in {"", controller}:
        device_id = gateway.device_id(controller)
        raise RejectedError("contradiction", f"the record is of the controller {mac}, but its topic of {device_id}")
    try:
        return gateway.address(topic)
    except RejectedError:
        return None


def _channel(mode: str, pin: str, address: gateway.Address | None) -> str:
    if pin.isascii() and pin.isdigit():
        pin = pin.lstrip("0") or "0"
    if pin == _NO_PIN:
        pin = ""
    if mode == _UNKNOWN:
        mode = ""
    if "/" in mode or "/" in pin:
        raise RejectedError("bad_type", f"mode is {quoted(mode)} and pin {quoted(pin)}, which must not hold a slash")
    connector = ""
    if address is not None:
        mode, connector = mode or address.mode, address.connector
        if pin in {"", address.number, address.component}:
            pin = address.pin
        elif address.number:
            raise RejectedError("contradiction", f"pin is {quoted(pin)}, but the topic of {address.component}")
    if not (mode or pin or connector):
        return ""
    return name({"channel": f"{mode or _UNKNOWN}/{connector}/{pin}"}, "channel")


_ENCODED: Final = Meta("", None, (), -1)


def encode(reading: Reading) -> bytes:
    """A payload that `decode` makes this reading of: an older shape where that can say it, else wire version 1."""
    current = msgspec.json.encode(reading)
    metric, value = next(iter(reading.values.items()))
    mode, _, rest = reading.channel.partition("/")
    said = {
        "timestamp": reading.time,
        "mac_address": reading.device_id.removeprefix("f2-"),
        "mode": mode or _UNKNOWN,
        "data_point_label": metric,
        "pin": rest.partition("/")[2] or _NO_PIN,
        "value": reading.raw.get(metric, value),
        "unit": reading.units.get(metric, ""),
        "original_topic": reading.tags.get(gateway.TAG, ""),
    }
    older = msgspec.json.encode(said)
    again = decode(older, _ENCODED)[0]
    return older if isinstance(again, Reading) and msgspec.json.encode(again) == current else current


def template(prefix: str, number: int) -> Reading:
    """The first example's reading of a simulated controller."""
    device_id = gateway.simulated(prefix, number)
    topic = _TOPIC_1.replace(_DEVICE_ID, device_id)
    return _gives(29.8, "°C", "sensor-mode/1/1", metric="Temperature", device_id=device_id, topic=topic)


WALKS: Final[Mapping[str, Walk]] = {"Temperature": Walk(18.0, 28.0, 0.1, odd=(55.0, 95.0))}

SPOILED: Final = {
    "not_json": cut,
    "missing_field": changed(mac_address=msgspec.UNSET),
    "bad_timestamp": changed(timestamp="yesterday"),
    "bad_type": changed(value=[29.8]),
    "contradiction": changed(pin="2"),
    "wire": changed(v=2),
}

_AT: Final = datetime(2023, 5, 25, 15, 13, 10, 543400, tzinfo=UTC)
_DEVICE_ID: Final = "f2-e4fd45f654be"
_TOPIC_1: Final = "cmnd/f2-e4fd45f654be/sensor-mode/1/sensor-1"
_START: Final = b'{"timestamp":"2023-05-25T15:13:10.543400","mac_address":"e4fd45f654be"'


def _gives(  # noqa: PLR0913  the parts of such a record
    value: Value = 29.8,
    unit: str = "",
    channel: str = "",
    *,
    metric: str = _UNKNOWN,
    device_id: str = _DEVICE_ID,
    topic: str = "",
    raw: str | None = None,
) -> Reading:
    return Reading(
        gateway.MEASUREMENT,
        device_id,
        _AT,
        {metric: value},
        channel,
        {metric: unit} if unit else {},
        {gateway.TAG: topic} if topic else {},
        {} if raw is None else {metric: raw},
        "decoded",
        [] if raw is None else [UNPARSABLE],
    )


EXAMPLES: Final = (
    Example(
        _START + b',"mode":"sensor-mode","data_point_label":"Temperature","pin":"1","value":29.8,"unit":"\xc2\xb0C",'
        b'"original_topic":"cmnd/f2-e4fd45f654be/sensor-mode/1/sensor-1"}',
        [_gives(29.8, "°C", "sensor-mode/1/1", metric="Temperature", topic=_TOPIC_1)],
    ),
    Example(
        _START + b',"mode":"sensor-mode","data_point_label":"Temperature","pin":"1","value":29.8}',
        [_gives(29.8, "", "sensor-mode//1", metric="Temperature")],
    ),
    Example(  # as the documents have it
        b'{"timestamp":1685027590.5434,"device_id":"f2-e4fd45f654be","connector_mode":"sensor-mode",'
        b'"component_type":"sensor","pin_position":"3","value":29.8,"unit":"celsius",'
        b'"topic":"cmnd/f2-e4fd45f654be/sensor-mode/J2/sensor-3","raw_data":{"data":"01 03"}}',
        [
            _gives(
                29.8,
                "celsius",
                "sensor-mode/2/3",
                metric="sensor",
                topic="cmnd/f2-e4fd45f654be/sensor-mode/J2/sensor-3",
            )
        ],
    ),
    Example(  # the newest, with what its decoder adds
        b'{"timestamp":1685027590543.4,"deviceid":7,"datapointid":12,"value":30,"controller_device_id":3,'
        b'"connector":"1","component":"sensor-1"}',
        [_gives(30.0, metric="12", device_id="device_7")],
    ),
    Example(_START + b',"value":null}', [_gives(None)]),
    Example(_START + b',"value":true,"mode":"unknown","pin":-1}', [_gives(value=True)]),
    Example(_START + b',"value":"27.93 \xc2\xb0C","pin":2}', [_gives(27.93, "°C", "unknown//2")]),
    Example(_START + b',"value":"27.93 \xc2\xb0C","unit":" K "}', [_gives(27.93, "°C")]),
    Example(_START + b',"value":"27.93","unit":" K "}', [_gives(27.93, "K")]),
    Example(_START + b',"value":"n/a"}', [_gives(None, raw="n/a")]),
    Example(_START + b',"value":"1e999"}', [_gives(None, raw="1e999")]),
    Example(
        b'{"timestamp":"2023-05-25 17:13:10.543400+02:00","device_id":"F2-E4:FD:45:F6:54:BE","mac_address":null,'
        b'"value":9007199254740993,"topic":"site/7","connector_mode":"alarm-mode"}',
        [_gives(2**53 + 1, "", "alarm-mode//", topic="site/7")],
    ),
    Example(
        _START + b',"value":1,"pin":"02","topic":"stat/f2-e4fd45f654be/access-control-mode/2/strike-2"}',
        [
            _gives(
                1.0,
                "",
                "access-control-mode/2/strike-2",
                topic="stat/f2-e4fd45f654be/access-control-mode/2/strike-2",
            )
        ],
    ),
    Example(b'{"v":1,"measurement":"telemetry"}', ["wire"]),
    Example(_START + b',"value":29.8,"v":1}', ["wire"]),
    Example(_START + b"}", ["missing_field"]),
    Example(_START + b',"temperature":29.8}', ["missing_field"]),
    Example(b'{"timestamp":1685027590,"value":1,"mac_address":""}', ["missing_field"]),
    Example(b'{"mac_address":"e4fd45f654be","value":1}', ["missing_field"]),
    Example(b'{"timestamp":"noon","mac_address":"e4fd45f654be","value":1}', ["bad_timestamp"]),
    Example(b'{"timestamp":1685027590,"deviceid":7.5,"value":1}', ["bad_type"]),
    Example(b'{"timestamp":1685027590,"deviceid":-7,"value":1}', ["bad_type"]),
    Example(_START + b',"value":{"celsius":29.8}}', ["bad_type"]),
    Example(_START + b',"value":1,"unit":7}', ["bad_type"]),
    Example(_START + b',"value":1,"unit":"' + b"u" * 33 + b'"}', ["bad_unit"]),
    Example(_START + b',"value":1,"device_id":"f2-e4fd45f654bf"}', ["contradiction"]),
    Example(_START + b',"value":1,"topic":"tele/f2-e4fd45f654bf/LWT"}', ["contradiction"]),
    Example(_START + b',"value":1,"pin":2,"topic":"' + _TOPIC_1.encode() + b'"}', ["contradiction"]),
    Example(_START + b',"value":1,"pin":true}', ["bad_type"]),
    Example(_START + b',"value":1,"pin":"1/2"}', ["bad_type"]),
    Example(_START + b',"value":1,"mode":"' + b"m" * 256 + b'","pin":1}', ["too_large"]),
    Example(_START + b',"value":"hunter2","data_point_label":"db_password"}', ["not_telemetry"]),
    Example(_START + b',"value":1e400}', ["out_of_range"]),
    Example(b"[" + _START + b',"value":1}]', ["bad_type"]),
    Example(b"29.8 C", ["not_json"]),
)
