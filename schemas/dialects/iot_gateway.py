"""The `iot-gateway` dialect: what controllers say at MQTT topics, in the envelope that a bridge puts around it.

The topic names the device and the channel (`schemas.gateway`), and is kept as a tag. A sensor's data is hex, and the
registry of data points (`schemas.datapoints`) says what it means. Strikes, door sensors, readers, buttons, motion
sensors and sirens send members, which become metrics. What cannot be read becomes null, flagged, its text in `raw`. The
time is the device's own, else when the bridge received the message. Without an envelope, the record must say the
original topic.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final

import msgspec
from msgspec import Struct

from schemas import gateway, units
from schemas.datapoints import DataPoints
from schemas.datapoints import parse as entries_of
from schemas.dialects import Example, Match, Meta, Walk, changed, cut
from schemas.extract import Extractor, octets, pack
from schemas.gateway import TAG
from schemas.payload import extras, fields, measured, name, quoted
from schemas.policy import Policy, Time
from schemas.reading import RECEIVE_TIME, UNPARSABLE, Reading, Rejected, RejectedError, Value
from schemas.time import parse

#: A sensor's data has at most this many characters.
DATA_CHARS: Final = 8192

MATCH: Final = Match("iot-gateway", origin=gateway.TOPIC)

POLICY: Final = Policy(time=Time(zone="UTC", missing="receive"))

#: The members that are measured, where a text must hold a number.
_MEASURED: Final = frozenset({"voltage", "current", "signal_strength", "sensitivity", "volume"})
_TIME: Final = "timestamp"
_DATA: Final = "data"


class _Sent(Struct, forbid_unknown_fields=True, gc=False):
    timestamp: str | int | float
    data: str


class _Plain(Struct, gc=False):
    """A sensor's message as it usually is, checked while it is parsed; any other goes the careful way."""

    original_topic: str
    device_id: str
    payload: _Sent


_read: Final = msgspec.json.Decoder(_Plain).decode


def decode(payload: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
    """A message to its reading, or to why there is none, and why not all of it is in the reading."""
    try:
        got = _read(payload)
        address = gateway.address(got.original_topic)
        text = got.payload.data
        data = bytes.fromhex(text)
        if got.device_id != address.device_id or not address.sensor or not data or len(text) > DATA_CHARS:
            return _carefully(payload, meta)
        points = _points(address, meta)
        return (
            Reading(
                gateway.MEASUREMENT,
                address.device_id,
                parse(got.payload.timestamp, zone=meta.setup.zone),
                {point.label: point.read(text, data) for point in points},
                address.channel,
                {point.label: point.unit for point in points if point.unit},
                {TAG: address.topic},
                dialect="iot-gateway",
            ),
        )
    except (ValueError, RecursionError):  # msgspec's, UnicodeDecodeError, RejectedError and that of no hex all are
        return _carefully(payload, meta)


def _carefully(payload: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
    try:
        said = _envelope(payload, meta)
        address = gateway.address(name(said, TAG))
        _agrees(said.get("device_id"), address)
        members = _members(said.get("payload"), address)
        time, flags = meta.time(members.get(_TIME), "payload.timestamp", received=_received(said))
        reading = Reading(
            gateway.MEASUREMENT,
            address.device_id,
            time,
            {},
            address.channel,
            tags={TAG: address.topic},
            dialect="iot-gateway",
            flags=flags,
        )
        refused = _sensor(members, address, meta, reading) if address.sensor else _component(members, meta, reading)
    except RejectedError as error:
        return (error.rejected,)
    if not reading.values:
        return refused or (Rejected("empty", "nothing in the payload is a reading"),)
    if reading.raw:
        flags.append(UNPARSABLE)
    return (reading, *refused)


def _envelope(payload: bytes, meta: Meta) -> Mapping[str, Any]:
    origin = meta.origin
    bare = gateway.TOPIC.fullmatch(origin) is not None
    try:
        found = fields(payload)
    except RejectedError:
        if not bare:
            raise
        try:
            return {TAG: origin, "payload": payload.decode()}
        except UnicodeDecodeError as error:
            raise RejectedError("undecodable", "the payload is no text in UTF-8") from error
    return {TAG: origin, "payload": found} if bare and TAG not in found else found


def _agrees(said: object, address: gateway.Address) -> None:
    if said is None:
        return
    if not isinstance(said, str):
        raise RejectedError("bad_type", f"device_id is {quoted(said)}, not a string")
    if gateway.controller(said) != address.controller:
        raise RejectedError("contradiction", f"device_id is {quoted(said)}, but {TAG} is of {address.device_id}")


def _members(sent: object, address: gateway.Address) -> Mapping[str, Any]:
    if isinstance(sent, dict):
        # A controller says when; who commands it does not.
        if address.command and not address.sensor and sent.get(_TIME) in (None, ""):
            raise RejectedError("not_telemetry", "the payload is a command: it says no timestamp")
        return sent
    if address.command and not address.sensor:
        raise RejectedError("not_telemetry", f"the payload is a command: {quoted(sent)}")
    if sent is None:
        raise RejectedError("missing_field", "payload is missing")
    if address.sensor and isinstance(sent, int) and not isinstance(sent, bool):
        sent = str(sent)  # hex without a letter, which the bridge took for a number
    if address.sensor and isinstance(sent, str):
        return {_DATA: sent}
    wanted = "neither an object nor a text of hex" if address.sensor else "not an object"
    raise RejectedError("bad_type", f"payload is {quoted(sent)}, {wanted}")


def _received(said: Mapping[str, Any]) -> datetime | None:
    try:
        return parse(said.get(_TIME))
    except RejectedError:
        return None


def _points(address: gateway.Address, meta: Meta) -> Sequence[Extractor]:
    registry = meta.setup.registry
    points = registry.points(address.controller, address.connector, address.pin) if registry is not None else None
    if points is None:
        pin = f"{address.controller}/{address.connector}/{address.pin}"
        raise RejectedError("unknown_device", f"the registry has no data points for the pin {pin}")
    found: Sequence[Extractor] = points
    return found


def _sensor(members: Mapping[str, Any], address: gateway.Address, meta: Meta, reading: Reading) -> Sequence[Rejected]:
    points = _points(address, meta)
    text = members.get(_DATA)
    if text is None:
        raise RejectedError("missing_field", "payload.data is missing")
    if not isinstance(text, str):
        raise RejectedError("bad_type", f"payload.data is {quoted(text)}, not a text of hex")
    if len(text) > DATA_CHARS:
        raise RejectedError("too_large", f"payload.data has {len(text)} characters, more than {DATA_CHARS}")
    data = octets(text)
    if not text.strip() or data == b"":
        raise RejectedError("missing_field", "payload.data is empty")
    refused: list[Rejected] = []
    for point in points:
        try:
            reading.values[point.label] = point.read(text, data)
        except RejectedError as error:
            _unread(point.label, text, error.rejected, meta, reading, refused)
        if point.unit and point.label in reading.values:
            reading.units[point.label] = point.unit
    if data is None and all(reading.values.get(point.label) is None for point in points):
        raise RejectedError("undecodable", f"payload.data is {quoted(text)}, which is no hex of whole bytes")
    labels = [point.label for point in points]
    refused += [
        Rejected("bad_type", f"payload.{label} has the name of a data point, and that is kept")
        for label in labels
        if label in members
    ]
    more, wrong = extras(members, {_TIME, _DATA, *labels})
    reading.values.update(more)
    return refused if wrong is None else [*refused, wrong]


def _component(members: Mapping[str, Any], meta: Meta, reading: Reading) -> Sequence[Rejected]:
    refused: list[Rejected] = []
    for metric, value in members.items():
        if metric not in _MEASURED:
            continue
        try:
            if isinstance(value, str):
                _quantity(metric, value, reading)
            else:
                reading.values[metric] = None if value is None else measured(metric, value)
        except RejectedError as error:
            if error.rejected.reason == "unparsable":
                _unread(metric, value, error.rejected, meta, reading, refused)
            else:
                refused.append(error.rejected)
    more, wrong = extras(members, {_TIME, *_MEASURED})
    reading.values.update(more)
    return refused if wrong is None else [*refused, wrong]


def _quantity(metric: str, text: str, reading: Reading) -> None:
    found = units.split(text)
    if found is None or not isfinite(found[0]):
        raise RejectedError("unparsable", f"{metric} is {quoted(text)}, which is no number, nor one with its unit")
    reading.values[metric], unit = found
    if unit:
        reading.units[metric] = unit


def _unread(  # noqa: PLR0913  where it goes is all of these
    metric: str, text: str, why: Rejected, meta: Meta, reading: Reading, refused: list[Rejected]
) -> None:
    if meta.setup.unparsable:
        reading.values[metric] = None
        reading.raw[metric] = text
    else:
        refused.append(why)


def encode(reading: Reading) -> bytes:
    """The message that `decode` makes this reading of, where a sensor is wired as in `EXAMPLE_REGISTRY`."""
    address = gateway.address(reading.tags[TAG])
    said: dict[str, object] = {}
    if RECEIVE_TIME not in reading.flags:
        said[_TIME] = reading.time.isoformat(" ")
    values = {metric: reading.raw.get(metric, value) for metric, value in reading.values.items()}
    if address.sensor:
        points = EXAMPLE_REGISTRY.points(address.controller, address.connector, address.pin) or ()
        unread = [raw for metric, raw in reading.raw.items() if reading.values.get(metric) is None]
        said[_DATA] = unread[0] if unread else pack(points, values)
        labels = {point.label for point in points}
        said |= {metric: value for metric, value in values.items() if metric not in labels}
    else:
        for metric, value in values.items():
            unit = reading.units.get(metric)
            said[metric] = f"{value} {unit}" if unit else value
    return msgspec.json.encode(
        {
            TAG: address.topic,
            "device_id": reading.device_id,
            "payload": said,
            _TIME: reading.time.timestamp(),
        }
    )


def template(prefix: str, number: int) -> Reading:
    """The first example's reading as a simulated controller says it."""
    device_id = gateway.simulated(prefix, number)
    first = _gives(_AIR_VALUES, "sensor-mode/1/1", _AIR, topic=f"cmnd/{device_id}/{_SENSOR}")
    return msgspec.structs.replace(first, device_id=device_id)


WALKS: Final[Mapping[str, Walk]] = {
    "Temperature": Walk(18.0, 28.0, 0.1, odd=(55.0, 95.0), digits=2),
    "Humidity": Walk(35.0, 65.0, 0.3, odd=(92.0, 100.0), digits=2),
    "CO2": Walk(400.0, 1200.0, 15.0, odd=(5000.0, 20000.0), digits=0),
}


def _unwired(payload: bytes) -> bytes:
    return payload.replace(b"/sensor-1", b"/sensor-99")


SPOILED: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "not_json": cut,
    "unknown_device": _unwired,
    "missing_field": changed(original_topic=msgspec.UNSET),
    "contradiction": changed(device_id="f2-000000000000"),
    "bad_timestamp": changed(payload={"timestamp": "yesterday", "data": "01 03"}),
    "undecodable": changed(payload="no answer"),
}

EXAMPLE_REGISTRY: Final = DataPoints()
EXAMPLE_REGISTRY.load(
    entries_of(
        {
            "controllers": {
                "*": {
                    "1/1": {
                        "name": "Environmental Sensor",
                        "points": [
                            {"label": "Temperature", "encoding": "Int16", "offset": 0, "decimals": 2, "unit": "°C"},
                            {"label": "Humidity", "encoding": "Uint16", "offset": 2, "decimals": 2, "unit": "%"},
                            {"label": "CO2", "encoding": "Uint16", "offset": 4, "unit": "ppm"},
                        ],
                    },
                    "1/2": {
                        "name": "Power Monitor",
                        "points": [
                            {"label": "Voltage", "encoding": "Uint16", "offset": 0, "decimals": 1, "unit": "V"},
                            {"label": "Current", "encoding": "Int16", "offset": 2, "decimals": 3, "unit": "A"},
                        ],
                    },
                    "2/1": {
                        "name": "Door Contact",
                        "points": [
                            {
                                "label": "Door",
                                "encoding": "BooleanMap",
                                "map": {0: "closed", 1: "open", 2: "ajar"},
                            },
                            {"label": "Armed", "encoding": "BooleanMap", "offset": 1, "map": {0: False, 255: True}},
                            {"label": "Tamper", "encoding": "Boolean", "offset": 2},
                            {"label": "Signal", "encoding": "Int8", "offset": 3, "unit": "dBm"},
                            {"label": "Battery", "encoding": "Uint8", "offset": 4, "unit": "%"},
                        ],
                    },
                    "2/2": {
                        "name": "Gas Meter",
                        "points": [
                            {
                                "label": "Volume",
                                "encoding": "Uint32",
                                "order": "little",
                                "decimals": 3,
                                "unit": "m³",
                            },
                            {
                                "label": "Flow",
                                "encoding": "Float32",
                                "offset": 4,
                                "order": "little",
                                "unit": "m³/h",
                            },
                            {"label": "Balance", "encoding": "Int32", "offset": 8, "scale": 0.5},
                            {"label": "Serial", "encoding": "RawString", "offset": 12, "length": 8},
                        ],
                    },
                    "2/3": {
                        "name": "Thermometer",
                        "points": [{"label": "Temperature", "encoding": "ScaledHex", "scale": 0.1, "unit": "°C"}],
                    },
                    "2/4": {"name": "Card Reader", "points": [{"label": "Card", "encoding": "RawString"}]},
                }
            }
        }
    )
)

_AT: Final = datetime(2023, 5, 25, 15, 13, 10, 543400, tzinfo=UTC)
_BRIDGED: Final = datetime(2023, 5, 21, 15, 13, 10, 543400, tzinfo=UTC)
_DEVICE: Final = "f2-e4fd45f654be"


def _said(place: str, payload: bytes, *, start: str = "cmnd/f2-e4fd45f654be/") -> bytes:
    """The envelope around a payload that was published at a place, as the documents show it."""
    return (
        f'{{"original_topic":"{start}{place}","device_id":"{_DEVICE}","payload":'.encode()
        + payload
        + b',"timestamp":1684681990.5434}'
    )


def _data(data: str, more: str = "") -> bytes:
    return f'{{"timestamp":"2023-05-25 15:13:10.543400","data":"{data}"{more}}}'.encode()


def _gives(  # noqa: PLR0913  the parts of a reading
    values: Mapping[str, Value],
    channel: str,
    units: Mapping[str, str] | None = None,
    *,
    topic: str = "",
    at: datetime = _AT,
    raw: Mapping[str, Value] | None = None,
    flags: Sequence[str] = (),
) -> Reading:
    return Reading(
        gateway.MEASUREMENT,
        _DEVICE,
        at,
        dict(values),
        channel,
        dict(units or {}),
        {TAG: topic or f"cmnd/{_DEVICE}/{channel}"},
        dict(raw or {}),
        "iot-gateway",
        list(flags),
    )


_SENSOR: Final = "sensor-mode/1/sensor-1"
_CMND: Final = f"cmnd/{_DEVICE}/{_SENSOR}"
_AIR: Final = {"Temperature": "°C", "Humidity": "%", "CO2": "ppm"}
_AIR_VALUES: Final = {"Temperature": 2.59, "Humidity": 31.22, "CO2": 12338.0}
_AIR_DATA: Final = "01 03 0C 32 30 32 30 36 32 38 30 31 30 31 5B 18 28 01"
_STRIKE: Final = "access-control-mode/2/strike-1"

EXAMPLES: Final = (
    Example(  # bytes behind the last data point are not looked at
        _said(_SENSOR, _data(_AIR_DATA)), [_gives(_AIR_VALUES, "sensor-mode/1/1", _AIR, topic=_CMND)]
    ),
    Example(  # other spellings of the address, a time with a zone, a negative temperature, a member more
        b'{"original_topic":"tele/f2-E4FD45F654BE/sensor-mode/J1/sensor-01","device_id":"E4FD45F654BE","payload":'
        b'{"data":"ff9c0c320190","timestamp":"2023-05-25T17:13:10.5434+02:00","rssi":-70,"token":"t"}}',
        [
            _gives(
                {"Temperature": -1.0, "Humidity": 31.22, "CO2": 400.0, "rssi": -70},
                "sensor-mode/1/1",
                _AIR,
                topic="tele/f2-E4FD45F654BE/sensor-mode/J1/sensor-01",
            )
        ],
    ),
    Example(  # a payload of hex alone, which says no time
        _said("sensor-mode/1/sensor-2", b'"08FC FB2E"'),
        [
            _gives(
                {"Voltage": 230.0, "Current": -1.234},
                "sensor-mode/1/2",
                {"Voltage": "V", "Current": "A"},
                topic=f"cmnd/{_DEVICE}/sensor-mode/1/sensor-2",
                at=_BRIDGED,
                flags=[RECEIVE_TIME],
            )
        ],
    ),
    Example(  # the same without a letter, which the bridge took for a number
        _said("sensor-mode/1/sensor-2", b"10000100"),
        [
            _gives(
                {"Voltage": 409.6, "Current": 0.256},
                "sensor-mode/1/2",
                {"Voltage": "V", "Current": "A"},
                topic=f"cmnd/{_DEVICE}/sensor-mode/1/sensor-2",
                at=_BRIDGED,
                flags=[RECEIVE_TIME],
            )
        ],
    ),
    Example(
        _said("sensor-mode/J2/sensor-1", _data("02 FF 00 C4 64")),
        [
            _gives(
                {"Door": "ajar", "Armed": True, "Tamper": False, "Signal": -60.0, "Battery": 100.0},
                "sensor-mode/2/1",
                {"Signal": "dBm", "Battery": "%"},
                topic=f"cmnd/{_DEVICE}/sensor-mode/J2/sensor-1",
            )
        ],
    ),
    Example(
        _said("sensor-mode/2/sensor-2", _data("D2040000 0000C03F FFFFFFFE 41422D3432000000")),
        [
            _gives(
                {"Volume": 1.234, "Flow": 1.5, "Balance": -1.0, "Serial": "AB-42"},
                "sensor-mode/2/2",
                {"Volume": "m³", "Flow": "m³/h"},
                topic=f"cmnd/{_DEVICE}/sensor-mode/2/sensor-2",
            )
        ],
    ),
    Example(
        _said("sensor-mode/2/sensor-3", _data("0x12A")),
        [
            _gives(
                {"Temperature": 29.8},
                "sensor-mode/2/3",
                {"Temperature": "°C"},
                topic=f"cmnd/{_DEVICE}/sensor-mode/2/sensor-3",
            )
        ],
    ),
    Example(
        _said("sensor-mode/2/sensor-4", _data("CARD_4711 ok")),
        [_gives({"Card": "CARD_4711 ok"}, "sensor-mode/2/4", topic=f"cmnd/{_DEVICE}/sensor-mode/2/sensor-4")],
    ),
    Example(  # too short for two of the three
        _said(_SENSOR, _data("01 03 0C")),
        [
            _gives(
                {"Temperature": 2.59, "Humidity": None, "CO2": None},
                "sensor-mode/1/1",
                _AIR,
                topic=_CMND,
                raw={"Humidity": "01 03 0C", "CO2": "01 03 0C"},
                flags=[UNPARSABLE],
            )
        ],
    ),
    Example(  # a number that its map does not have, text that is not UTF-8
        _said("sensor-mode/2/sensor-1", _data("07 00 01 00 00")),
        [
            _gives(
                {"Door": None, "Armed": False, "Tamper": True, "Signal": 0.0, "Battery": 0.0},
                "sensor-mode/2/1",
                {"Signal": "dBm", "Battery": "%"},
                topic=f"cmnd/{_DEVICE}/sensor-mode/2/sensor-1",
                raw={"Door": "07 00 01 00 00"},
                flags=[UNPARSABLE],
            )
        ],
    ),
    Example(  # not a number, and text that is not UTF-8
        _said("sensor-mode/2/sensor-2", b'"000000000000C07F00000000FFFFFFFFFFFFFFFF"'),
        [
            _gives(
                {"Volume": 0.0, "Flow": None, "Balance": 0.0, "Serial": None},
                "sensor-mode/2/2",
                {"Volume": "m³", "Flow": "m³/h"},
                topic=f"cmnd/{_DEVICE}/sensor-mode/2/sensor-2",
                at=_BRIDGED,
                raw=dict.fromkeys(["Flow", "Serial"], "000000000000C07F00000000FFFFFFFFFFFFFFFF"),
                flags=[RECEIVE_TIME, UNPARSABLE],
            )
        ],
    ),
    Example(
        _said(
            _STRIKE,
            b'{"timestamp":"2023-05-25 15:13:10.543400","state":"locked","voltage":12,"current":0.25,"api_key":"k"}',
        ),
        [_gives({"voltage": 12.0, "current": 0.25, "state": "locked"}, _STRIKE)],
    ),
    Example(
        _said(_STRIKE, b'{"timestamp":"2023-05-25 15:13:10.543400","status":true,"voltage":"11.9 V","current":"none"}'),
        [
            _gives(
                {"voltage": 11.9, "current": None, "status": True},
                _STRIKE,
                {"voltage": "V"},
                raw={"current": "none"},
                flags=[UNPARSABLE],
            )
        ],
    ),
    Example(
        _said(
            "access-control-mode/J2/door-sensors",
            b'{"timestamp":"","door_1":"open","door_2":"closed","tamper":false}',
            start=f"stat/{_DEVICE}/",
        ),
        [
            _gives(
                {"door_1": "open", "door_2": "closed", "tamper": False},
                "access-control-mode/2/door-sensors",
                topic=f"stat/{_DEVICE}/access-control-mode/J2/door-sensors",
                at=_BRIDGED,
                flags=[RECEIVE_TIME],
            )
        ],
    ),
    Example(
        _said(
            "access-control-mode/2/reader-1",
            b'{"timestamp":"2023-05-25 15:13:10.543400","card_id":"A1B2C3D4","read_type":"nfc","signal_strength":88}',
        ),
        [
            _gives(
                {"signal_strength": 88.0, "card_id": "A1B2C3D4", "read_type": "nfc"}, "access-control-mode/2/reader-1"
            )
        ],
    ),
    Example(
        _said(
            "access-control-mode/2/exit-buttons",
            b'{"timestamp":"2023-05-25 15:13:10.543400","button_pressed":true,"button_id":4}',
        ),
        [_gives({"button_pressed": True, "button_id": 4}, "access-control-mode/2/exit-buttons")],
    ),
    Example(
        _said(
            "alarm-mode/5/motion-sensor-2",
            b'{"timestamp":"2023-05-25 15:13:10.543400","motion_detected":false,"sensitivity":7,"zone":"zone_1"}',
        ),
        [_gives({"sensitivity": 7.0, "motion_detected": False, "zone": "zone_1"}, "alarm-mode/5/motion-sensor-2")],
    ),
    Example(
        _said(
            "alarm-mode/3/siren-1",
            b'{"timestamp":"2023-05-25 15:13:10.543400","state":"active","volume":110,"pattern":"steady"}',
        ),
        [_gives({"volume": 110.0, "state": "active", "pattern": "steady"}, "alarm-mode/3/siren-1")],
    ),
    Example(  # without an envelope: the record says the topic
        _data("0A 28 0C 32 01 90"),
        [_gives({"Temperature": 26.0, "Humidity": 31.22, "CO2": 400.0}, "sensor-mode/1/1", _AIR, topic=_CMND)],
        origin=_CMND,
    ),
    Example(
        _said(_SENSOR, _data(_AIR_DATA, ',"CO2":1,"gps":[1]')),
        [_gives(_AIR_VALUES, "sensor-mode/1/1", _AIR, topic=_CMND), "bad_type", "bad_type"],
    ),
    Example(
        _said(_STRIKE, b'{"timestamp":"2023-05-25 15:13:10.543400","state":"open","voltage":true,"current":[1]}'),
        [_gives({"state": "open"}, _STRIKE), "bad_type", "bad_type"],
    ),
    Example(_said("sensor-mode/9/sensor-9", _data(_AIR_DATA)), ["unknown_device"]),
    Example(_said("sensor-mode/1/sensor-1", _data("no answer")), ["undecodable"]),
    Example(_said("sensor-mode/1/sensor-1", b'"0x12A"'), ["undecodable"]),
    Example(_said(_SENSOR, _data("")), ["missing_field"]),
    Example(_said(_SENSOR, _data("0x")), ["missing_field"]),
    Example(_said(_SENSOR, b"{}"), ["missing_field"]),
    Example(_said(_SENSOR, b"null"), ["missing_field"]),
    Example(_said(_SENSOR, _data("00" * 4097)), ["too_large"]),
    Example(_said(_SENSOR, b'{"data":[1,3]}'), ["bad_type"]),
    Example(_said(_SENSOR, b"[1,3]"), ["bad_type"]),
    Example(_said(_SENSOR, b"1.5"), ["bad_type"]),
    Example(_said(_SENSOR, _data(_AIR_DATA).replace(b"2023", b"1923")), ["bad_timestamp"]),
    Example(_said(_SENSOR, _data(_AIR_DATA).replace(b"2023", b"2123")), ["future"]),
    Example(_said(_SENSOR, _data(_AIR_DATA)).replace(b'"device_id":"f2-e', b'"device_id":"f2-f'), ["contradiction"]),
    Example(_said(_SENSOR, _data(_AIR_DATA)).replace(b'"f2-e4fd45f654be"', b"17"), ["bad_type"]),
    Example(_said(_SENSOR, _data(_AIR_DATA), start="cmnd/e4fd45f654be/"), ["bad_type"]),
    Example(_said(_SENSOR, _data(_AIR_DATA), start="datalake/f2-e4fd45f654be/"), ["bad_type"]),
    Example(_said("sensor-mode/conn1/sensor-1", _data(_AIR_DATA)), ["bad_type"]),
    Example(_said("sensor-mode/100/sensor-1", _data(_AIR_DATA)), ["bad_type"]),
    Example(_said("m" * 180 + "/1/sensor-1", _data(_AIR_DATA)), ["too_large"]),
    Example(_said("sensor-mode/1/sensor-100", _data(_AIR_DATA)), ["not_telemetry"]),
    Example(_said("sensor-mode/1/valve-1", b'{"state":"open"}'), ["not_telemetry"]),
    Example(_said("access-control-mode/J2/reader-1/success", b"1"), ["not_telemetry"]),
    Example(_said("access-control-mode/J2/strike-1", b'{"power-flag":2,"period":3}'), ["not_telemetry"]),
    Example(_said("alarm-mode/1/siren-1", b"null"), ["not_telemetry"]),
    Example(_said("alarm-mode/1/siren-1", b'"on"', start=f"stat/{_DEVICE}/"), ["bad_type"]),
    Example(_said("alarm-mode/1/siren-1", b'{"timestamp":1684681990}'), ["empty"]),
    Example(_said(_SENSOR, _data(_AIR_DATA))[:-1], ["not_json"]),
    Example(b"", ["not_json"]),
    Example(b"\xff", ["undecodable"], origin=_CMND),
    Example(b"[]", ["bad_type"]),
    Example(b"{}", ["missing_field"]),
    Example(b'{"original_topic":["x"],"payload":"01"}', ["bad_type"]),
)
