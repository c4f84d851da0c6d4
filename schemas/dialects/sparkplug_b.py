"""The `sparkplug-b` dialect: Protobuf payloads of edge nodes and their devices, as version 3.0.0 of Sparkplug has them.

Who speaks is in the MQTT topic, `spBv1.0/GROUP/TYPE/EDGE[/DEVICE]`, which the record says in a header or as its key.
The device's id is `GROUP/EDGE` or `GROUP/EDGE/DEVICE`; the tags are `original_topic`, `group_id` and `edge_node_id`.

- Metrics of one payload with one time are one reading; one without a time has the payload's. Times are in ms, as the
  specification says; numbers too large for that are µs or ns, and 0 is no time.
- Metrics keep their names. Integers stay integers, a `DateTime` becomes ISO 8601 text, a null null. What is no single
  value (arrays, data sets, templates, bytes, files) is refused, and its siblings are kept. `bdSeq`, `Node Control/…`,
  `Device Control/…`, definitions of templates, metrics that say they are transient, and secrets are no measurements.
- The property `engUnit` is the unit, and a `Quality` other than 192 (good) the tag `quality.METRIC`.
- A birth also gives `online` = true at the payload's time, a death `online` = false: a device's at the payload's time,
  an edge node's at its receive time, as the specification wants it, because its will was written when it connected. A
  will of an older session than the birth that came before it is refused. That its devices are offline with an edge
  node is for the reader to know.
- Commands and the state of hosts are no telemetry.
- A payload that Ignition compressed is decompressed: to 64 KiB at most, or to 32 times what was received where that is
  more, and never to more than 2 MiB. It holds 2,048 metrics at most, or one for every two bytes received where that is
  more, as no payload can that is not compressed; and never more than 250,000.

**Aliases.** Data may name a metric by the alias that the birth of its edge node or device gave it, and leave out type
and unit, which the birth said. Each decoder (one per topic and worker) remembers the births that it has seen, as many
as its options allow, the longest unused forgotten first. After a restart or a rebalance it has seen none: until the
next birth, what needs one is refused as `unknown_alias`, each metric alone, and can be replayed afterwards. Births and
data of an edge node must reach the same worker: give the raw topic's records a key that they share, as `GROUP/EDGE`,
and not the MQTT topic, which differs between them; or let devices send names with their data.
"""

import re
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import msgspec
from msgspec import Struct
from pydantic import Field

from schemas import sparkplug
from schemas.config import Model
from schemas.dialects import Decode, Example, Match, Meta, Walk
from schemas.payload import NAME_CHARS, is_secret, quoted
from schemas.reading import RECEIVE_TIME, Reading, Rejected, RejectedError, Value
from schemas.reasons import Reason
from schemas.time import LAST_YEAR

MATCH: Final = Match("sparkplug-b", origin=re.compile(r"spBv1\.0/.+"))


class Options(Model):
    """What is remembered of births: those of so many edge nodes and devices, with so many metrics in all."""

    devices: int = Field(10_000, ge=1, le=1_000_000)
    metrics: int = Field(100_000, ge=1, le=10_000_000)


_FORM: Final = "spBv1.0/GROUP/TYPE/EDGE, and for a device /DEVICE"
_TOPIC_CHARS: Final = 2 * NAME_CHARS
_NODE_PARTS: Final = 4
_DEVICE_PARTS: Final = 5
_COMMANDS: Final = frozenset({"NCMD", "DCMD"})
_BIRTHS: Final = frozenset({"NBIRTH", "DBIRTH"})
_KINDS: Final = frozenset({*_BIRTHS, "NDATA", "DDATA", "NDEATH", "DDEATH"})

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)
_MICROSECOND: Final = timedelta(microseconds=1)
_LAST_MS: Final = (datetime(LAST_YEAR + 1, 1, 1, tzinfo=UTC) - _EPOCH) // _MILLISECOND - 1

_MEASUREMENT: Final = "telemetry"
_ONLINE: Final = "online"
_BD_SEQ: Final = "bdSeq"
_CONTROL: Final = ("Node Control/", "Device Control/")
_UNITS: Final = frozenset({"engUnit", "EngUnit"})
_UNIT: Final = "engUnit"
_QUALITY: Final = "Quality"
_QUALITY_TAG: Final = "quality."
_GOOD: Final = 192
_INT_FIELD_BELOW: Final = 2**32

_COMPRESSED: Final = "SPBV1.0_COMPRESSED"
#: What a payload may be decompressed to whatever its size, how often its size, and in any case.
_INFLATED_ANYWAY, _INFLATED_TIMES, _INFLATED_BYTES = 64 * 1024, 32, 2 * 1024 * 1024
#: How many metrics a payload may hold whatever its size, how many bytes each beyond needs, and how many in any case.
_METRICS_ANYWAY, _METRIC_BYTES, _METRICS = 2_048, 2, 250_000
_ZLIB_OR_GZIP: Final = 15 + 32

_NAMED_IN_ERROR: Final = 3


class _Topic(Struct, frozen=True):
    kind: str
    device_id: str
    tags: dict[str, str]


@lru_cache(maxsize=16_384)
def _topic(origin: str) -> _Topic:
    """Who says what kind of message; raises `RejectedError`: `missing_field`, `not_telemetry`, `too_large`."""
    if not origin:
        why = f"the record says no original topic, in a header or as its key; it must be {_FORM}"
        raise RejectedError("missing_field", why)
    if len(origin) > _TOPIC_CHARS:
        why = f"the original topic has {len(origin)} characters, more than {_TOPIC_CHARS}"
        raise RejectedError("too_large", why)
    parts = origin.split("/")
    if parts[:2] == ["spBv1.0", "STATE"]:
        raise RejectedError("not_telemetry", f"{quoted(origin)} is about the state of a host")
    if parts[0] != "spBv1.0" or not all(parts) or not _NODE_PARTS <= len(parts) <= _DEVICE_PARTS:
        raise RejectedError("missing_field", f"the original topic is {quoted(origin)}; it must be {_FORM}")
    _, group, kind, edge, *device = parts
    if kind in _COMMANDS:
        raise RejectedError("not_telemetry", f"{quoted(origin)} is a command")
    if kind not in _KINDS:
        raise RejectedError("not_telemetry", f"{quoted(kind)} is no kind of message that holds readings")
    if bool(device) != (kind[0] == "D"):
        why = f"the original topic is {quoted(origin)}: a device is named in D… messages, and in no other"
        raise RejectedError("missing_field", why)
    device_id = "/".join([group, edge, *device])
    if len(device_id) > NAME_CHARS:
        raise RejectedError("too_large", f"{quoted(device_id)} has {len(device_id)} characters, more than {NAME_CHARS}")
    return _Topic(kind, device_id, {"original_topic": origin, "group_id": group, "edge_node_id": edge})


class _Birth(Struct):
    """What a birth said: types and units by metric, metrics by alias, and for an edge node its session."""

    points: dict[str, tuple[int, str]]
    names: dict[int, str]
    session: int | None
    received_ms: int
    size: int


class _Births:
    """The births that have passed, but for the longest unused beyond so many devices or so many metrics."""

    def __init__(self, devices: int, metrics: int) -> None:
        self._devices = devices
        self._metrics = metrics
        self._size = 0
        self._found: OrderedDict[str, _Birth] = OrderedDict()

    def get(self, device_id: str) -> _Birth | None:
        birth = self._found.get(device_id)
        if birth is not None:
            self._found.move_to_end(device_id)
        return birth

    def remember(self, device_id: str, metrics: Sequence[Any], received_ms: int) -> None:
        """Take the place of the device's earlier birth. Raises `RejectedError` when there is no room for it."""
        self._forget(device_id)
        if len(metrics) > self._metrics:
            why = f"the birth has {len(metrics)} metrics, more than the {self._metrics} that are remembered"
            raise RejectedError("too_large", f"{why}: say the metrics in the dialect's options")
        birth = _Birth({}, {}, None, received_ms, len(metrics))
        for metric in metrics:
            name = metric.name
            if not name or name.__class__ is not str or len(name) > NAME_CHARS:
                continue
            if name == _BD_SEQ:
                birth.session = _integer(metric)
            unit, _ = _properties(metric)
            birth.points[name] = (metric.datatype, unit if len(unit) <= NAME_CHARS else "")
            if metric.HasField("alias"):
                birth.names[metric.alias] = name
        self._found[device_id] = birth
        self._size += birth.size
        while self._size > self._metrics or len(self._found) > self._devices:
            self._forget(next(iter(self._found)))

    def _forget(self, device_id: str) -> None:
        birth = self._found.pop(device_id, None)
        if birth is not None:
            self._size -= birth.size


class _Moment(Struct):
    """What becomes the reading of one time."""

    time: datetime
    flags: list[str]
    values: dict[str, Value]
    units: dict[str, str]
    tags: dict[str, str]

    def put(self, name: str, value: Value, unit: str, quality: int | None) -> None:
        """Take a value in; of two with one name the last one counts, all of it."""
        if name in self.values:
            del self.values[name]
            self.units.pop(name, None)
            self.tags.pop(_QUALITY_TAG + name, None)
        self.values[name] = value
        if unit:
            self.units[name] = unit
        if quality is not None:
            self.tags[_QUALITY_TAG + name] = str(quality)


class _Wrong(Struct):
    """What is refused for one reason: the first few sentences, and how many there are."""

    errors: list[str]
    count: int = 0


class _Saying:
    """The readings of a payload, and what is wrong with the rest of it.

    What is refused for the same reason shares one `Rejected`: a payload of a thousand such metrics makes one dead
    letter.
    """

    def __init__(self, topic: _Topic, meta: Meta, timestamp: int) -> None:
        self._topic = topic
        self._meta = meta
        self._timestamp = timestamp
        #: By what the payload says, and by what that means: times that cannot be read may all be the receive time.
        self._said: dict[int, _Moment] = {}
        self._moments: dict[tuple[datetime, bool], _Moment] = {}
        self._wrong: dict[Reason, _Wrong] = {}

    def metric(self, metric: Any, birth: _Birth | None) -> None:
        """Take a metric in. Raises `RejectedError` where there is a reason against it."""
        name = _name(metric, birth)
        if not _is_measurement(name) or metric.is_transient:
            return
        field = metric.WhichOneof("value")
        if field == "template_value" and metric.template_value.is_definition:
            return
        datatype, unit, quality = metric.datatype, "", None
        point = birth.points.get(name) if birth is not None else None
        if point is not None:
            datatype, unit = datatype or point[0], point[1]
        value = sparkplug.scalar(datatype, field, metric)
        if metric.HasField("properties"):
            said, quality = _properties(metric)
            unit = said or unit
            if quality is not None or len(unit) > NAME_CHARS:
                _check_lengths(name, unit, quality)
        at = metric.timestamp or self._timestamp
        (self._said.get(at) or self._moment(at)).put(name, value, unit, quality)

    def online(self, online: bool) -> None:  # noqa: FBT001  it is the value
        """Say whether the device is, at the payload's time."""
        if self._timestamp or 0 in self._said or not self._said:
            # A device may have such a metric of its own.
            self._moment(self._timestamp).values.setdefault(_ONLINE, online)

    def refuse(self, why: Rejected, subject: str = "") -> None:
        """Take in that something is wrong."""
        wrong = self._wrong.get(why.reason)
        if wrong is None:
            wrong = self._wrong[why.reason] = _Wrong([])
        wrong.count += 1
        if wrong.count <= _NAMED_IN_ERROR:
            wrong.errors.append(f"{subject} {why.error}" if subject else why.error)

    def outcomes(self) -> Sequence[Reading | Rejected]:
        """All of it, the readings in the order of their times."""
        moments = list(self._moments.values())
        if len(moments) > 1:
            moments.sort(key=lambda moment: (moment.time, bool(moment.flags)))
        tags = self._topic.tags
        found: list[Reading | Rejected] = [
            Reading(
                _MEASUREMENT,
                self._topic.device_id,
                moment.time,
                moment.values,
                units=moment.units,
                tags=tags | moment.tags,
                raw={},
                dialect=MATCH.name,
                flags=moment.flags,
            )
            for moment in moments
        ]
        for reason, wrong in self._wrong.items():
            rest = wrong.count - len(wrong.errors)
            found.append(Rejected(reason, "; ".join(wrong.errors) + (f"; and {rest} more" if rest else "")))
        return found or (Rejected("empty", "the payload holds no measurements"),)

    def _moment(self, at: int) -> _Moment:
        time, flags = _time(at, self._meta)
        moment = self._moments.get((time, bool(flags)))
        if moment is None:
            moment = self._moments[time, bool(flags)] = _Moment(time, flags, {}, {}, {})
        self._said[at] = moment
        return moment


def _time(at: int, meta: Meta) -> tuple[datetime, list[str]]:
    if 0 < at <= _LAST_MS:
        return _EPOCH + timedelta(milliseconds=at), []
    return meta.time(at or None)


@lru_cache(maxsize=16_384)
def _is_measurement(name: str) -> bool:
    return name != _BD_SEQ and not name.startswith(_CONTROL) and not is_secret(name)


def _name(metric: Any, birth: _Birth | None) -> str:
    name: str | None = metric.name
    if not isinstance(name, str):
        raise RejectedError("undecodable", "has a name that is not UTF-8")
    if len(name) > NAME_CHARS:
        raise RejectedError("too_large", f"has a name of {len(name)} characters, more than {NAME_CHARS}")
    if name:
        return name
    if not metric.HasField("alias"):
        raise RejectedError("missing_field", "has neither a name nor an alias")
    name = birth.names.get(metric.alias) if birth is not None else None
    if name is None:
        raise RejectedError("unknown_alias", "is not explained by a birth that has passed")
    return name


def _check_lengths(name: str, unit: str, quality: int | None) -> None:
    if len(unit) > NAME_CHARS:
        raise RejectedError("too_large", f"has a unit of {len(unit)} characters, more than {NAME_CHARS}")
    if quality is not None and len(_QUALITY_TAG) + len(name) > NAME_CHARS:
        raise RejectedError("too_large", f"has quality {quality}, and a name too long for a tag to say so")


def _subject(metric: Any) -> str:
    name = metric.name
    if name:
        return quoted(name if isinstance(name, str) else "…")
    return f"the metric with alias {metric.alias}" if metric.HasField("alias") else "a metric"


def _properties(metric: Any) -> tuple[str, int | None]:
    """A metric's unit, `''` without one, and its quality where that is not good."""
    unit, quality = "", None
    properties = metric.properties
    try:
        for at, key in enumerate(properties.keys):
            if key in _UNITS:
                said = properties.values[at].string_value
                unit = said if isinstance(said, str) else ""
            elif key == _QUALITY:
                quality = _integer(properties.values[at])
    except IndexError:
        pass  # there are fewer values than keys
    return unit, None if quality == _GOOD else quality


def _integer(value: Any) -> int | None:
    field = value.WhichOneof("value")
    number: int | None = getattr(value, field) if field in {"int_value", "long_value"} else None
    return number


class _Decoder:
    """Decodes the payloads of one topic, and remembers the births among them."""

    def __init__(self, options: Options) -> None:
        self._read: Callable[[bytes], Any] = sparkplug.payload_type().FromString
        self._corrupt = sparkplug.decode_error()
        self._births = _Births(options.devices, options.metrics)

    def __call__(self, payload: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
        """A payload to its readings, and to why not all of it is in them."""
        try:
            topic = _topic(meta.origin)
            got = self._parse(payload, len(payload))
            if got.uuid == _COMPRESSED:
                got = self._parse(_inflated(got.body, len(payload)), len(payload))
            if topic.kind == "NDEATH":
                return (_will(topic, got, meta, self._births.get(topic.device_id)),)
            saying = _Saying(topic, meta, got.timestamp)
            if topic.kind == "DDEATH":
                saying.online(False)
            else:
                self._hear(saying, topic, got.metrics, meta)
        except RejectedError as error:
            return (error.rejected,)
        return saying.outcomes()

    def _parse(self, payload: bytes, received: int) -> Any:
        try:
            got = self._read(payload)
        except self._corrupt as error:
            raise RejectedError("undecodable", "the payload is no Protobuf message of Sparkplug B") from error
        most = min(max(_METRICS_ANYWAY, received // _METRIC_BYTES), _METRICS)
        if len(got.metrics) > most:
            why = f"the payload has {len(got.metrics)} metrics, more than the {most} that its {received} bytes may hold"
            raise RejectedError("too_large", why)
        return got

    def _hear(self, saying: _Saying, topic: _Topic, metrics: Sequence[Any], meta: Meta) -> None:
        is_birth = topic.kind in _BIRTHS
        if is_birth:
            try:
                self._births.remember(topic.device_id, metrics, meta.received_ms)
            except RejectedError as error:
                saying.refuse(error.rejected)
        birth = self._births.get(topic.device_id)
        for metric in metrics:
            try:
                saying.metric(metric, birth)
            except RejectedError as error:
                saying.refuse(error.rejected, _subject(metric))
        if is_birth:
            try:
                saying.online(True)
            except RejectedError as error:
                saying.refuse(error.rejected)


def decoder(options: Options) -> Decode:
    """What decodes payloads and remembers their births. Raises `RejectedError` when protobuf is not installed."""
    return _Decoder(options)


def _will(topic: _Topic, got: Any, meta: Meta, birth: _Birth | None) -> Reading | Rejected:
    """An edge node's death: what its broker says for it, when it is gone or has come back already."""
    session = next((_integer(metric) for metric in got.metrics if metric.name == _BD_SEQ), None)
    if (
        birth is not None
        and session is not None
        and birth.session is not None
        and session != birth.session
        # Between partitions order is lost: this one may be of the session before, and no later than its end.
        and meta.received_ms >= birth.received_ms
    ):
        why = f"the death is of the session with bdSeq {session}, and that with bdSeq {birth.session} has begun"
        return Rejected("not_telemetry", why)
    if meta.received_ms <= 0:
        return Rejected("bad_timestamp", "an edge node's death is timed by its record, which has no time")
    values: dict[str, Value] = {_ONLINE: False}
    tags = dict(topic.tags)
    return Reading(
        _MEASUREMENT,
        topic.device_id,
        meta.received,
        values,
        units={},
        tags=tags,
        raw={},
        dialect=MATCH.name,
        flags=[RECEIVE_TIME],
    )


def _inflated(body: bytes, received: int) -> bytes:
    """The payload in a compressed body; `received` are the bytes of the payload that the body came in."""
    most = min(max(_INFLATED_ANYWAY, _INFLATED_TIMES * received), _INFLATED_BYTES)
    inflate = zlib.decompressobj(_ZLIB_OR_GZIP)
    try:
        payload = inflate.decompress(body, most + 1)
    except zlib.error as error:
        raise RejectedError("undecodable", "the payload's body is not compressed as it says") from error
    if len(payload) > most:
        raise RejectedError("too_large", f"the payload's {received} bytes decompress to more than {most}")
    if not inflate.eof:
        raise RejectedError("undecodable", "the payload's compressed body is cut short")
    return payload


def encode(reading: Reading) -> bytes:
    """The payload that `decode` makes this reading of, in a message with the reading's original topic.

    It has no `seq`, which counts an edge node's messages. Raises `RejectedError` without protobuf.
    """
    payload = sparkplug.payload_type()()
    # A time that we made is not the device's.
    said = None if RECEIVE_TIME in reading.flags else _count(reading.time)
    is_birth = not _BIRTHS.isdisjoint(origin(reading).split("/")[2:3])
    if said is not None and (_ONLINE in reading.values or not is_birth):
        # A birth's own time is when it came online, which is not that of all its metrics.
        payload.timestamp = said
    for name, value in reading.values.items():
        metric = payload.metrics.add(name=name)
        if said is not None:
            metric.timestamp = said
        sparkplug.write(metric, value)
        unit, quality = reading.units.get(name), reading.tags.get(_QUALITY_TAG + name)
        if unit:
            metric.properties.keys.append(_UNIT)
            metric.properties.values.add(type=sparkplug.STRING, string_value=unit)
        if quality is not None:
            metric.properties.keys.append(_QUALITY)
            code = int(quality)
            if code < _INT_FIELD_BELOW:
                metric.properties.values.add(type=sparkplug.INT32, int_value=code)
            else:
                metric.properties.values.add(type=sparkplug.INT64, long_value=code)
    encoded: bytes = payload.SerializeToString()
    return encoded


def _count(time: datetime) -> int:
    """A time in ms, or in µs where it has them, as `decode` tells from the size."""
    micros = (time - _EPOCH) // _MICROSECOND
    return micros if micros % 1_000 else micros // 1_000


def origin(reading: Reading) -> str:
    """The topic of the message with this reading."""
    return reading.tags.get("original_topic", "")


def template(prefix: str, number: int) -> Reading:
    """The first example's reading, of another device of the same edge node."""
    first = EXAMPLES[0].gives[0]
    assert isinstance(first, Reading)  # noqa: S101  for the type checker
    device = f"{prefix}-{number:03d}"
    topic = _topic(f"spBv1.0/Plant 1/DDATA/Line 4/{device}")
    return msgspec.structs.replace(first, device_id=topic.device_id, tags=dict(topic.tags))


WALKS: Final[Mapping[str, Walk]] = {
    "Temperature": Walk(18.0, 28.0, 0.1, odd=(55.0, 95.0)),
    "Pressure": Walk(300.0, 320.0, 0.5, odd=(380.0, 420.0)),
    "Motor/Current": Walk(4.0, 6.0, 0.05, odd=(9.0, 12.0)),
}


def _spoiled(spoil: Callable[[Any], None]) -> Callable[[bytes], bytes]:
    def spoiled(payload: bytes) -> bytes:
        got = sparkplug.payload_type().FromString(payload)
        for metric in got.metrics:
            spoil(metric)
        got.ClearField("timestamp")
        encoded: bytes = got.SerializeToString()
        return encoded

    return spoiled


def _nameless(metric: Any) -> None:
    metric.ClearField("name")
    metric.alias = 1


def _infinite(metric: Any) -> None:
    metric.double_value = float("inf")


SPOILED: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    # The last byte is the middle of a metric, wherever a half would end.
    "undecodable": lambda payload: payload[:-1],
    "missing_field": _spoiled(lambda metric: metric.ClearField("timestamp")),
    "unknown_alias": _spoiled(_nameless),
    "not_finite": _spoiled(_infinite),
}


_AT: Final = datetime(2025, 10, 4, 12, 34, 56, 789_000, tzinfo=UTC)
_NODE: Final = "spBv1.0/Plant 1/NDATA/Line 4"
_DATA: Final = "spBv1.0/Plant 1/DDATA/Line 4/press-001"
_VALUES: Final = {"Temperature": 21.5, "Pressure": 312.25, "Motor/Current": 4.75}
_UNITS_SAID: Final = {"Temperature": "°C", "Pressure": "kPa", "Motor/Current": "A"}
_hex = bytes.fromhex


def _gives(
    values: Mapping[str, Value],
    *,
    units: Mapping[str, str] | None = None,
    more: Mapping[str, str] | None = None,
    at: datetime = _AT,
    origin: str = _DATA,
) -> Reading:
    topic = _topic(origin)
    tags = topic.tags | dict(more or {})
    return Reading(
        _MEASUREMENT, topic.device_id, at, dict(values), units=dict(units or {}), tags=tags, dialect=MATCH.name
    )


EXAMPLES: Final = (
    Example(
        _hex(
            "0895b1dff99a33"
            "12330a0b54656d70657261747572651895b1dff99a33200a4a120a07656e67556e69741207080c4203c2b043690000000000"
            "803540"
            "12300a0850726573737572651895b1dff99a33200a4a120a07656e67556e69741207080c42036b5061690000000000847340"
            "12330a0d4d6f746f722f43757272656e741895b1dff99a33200a4a100a07656e67556e69741205080c420141690000000000"
            "001340"
        ),
        [_gives(_VALUES, units=_UNITS_SAID)],
        _DATA,
    ),
    Example(  # negative numbers in as many bits as their types, or as their fields
        _hex(
            "0895b1dff99a33 120b0a04496e7438200150fe01 120f0a05496e743136200250d4fdffff0f"
            "120f0a05496e74333220035090ddfbff0f 12140a05496e743634200458ffffffffffffffefff01"
            "12100a0655496e743332200758ffffffff0f 12150a0655496e743634200858ffffffffffffffffff01"
            "120e0a05466c6f61742009650000003f 120d0a0752756e6e696e67200b7000 120f0a055374617465200c7a0469646c65"
            "12170a0c4c6173742073657276696365200d5880f8a5f9c132 120c0a06526563697065200c3801 1807"
        ),
        [
            _gives(
                {
                    "Int8": -2,
                    "Int16": -300,
                    "Int32": -70_000,
                    "Int64": -(2**53) - 1,
                    "UInt32": 2**32 - 1,
                    "UInt64": 2**64 - 1,
                    "Float": 0.5,
                    "Running": False,
                    "State": "idle",
                    "Last service": "2025-01-01T00:00:00.000Z",
                    "Recipe": None,
                }
            )
        ],
        _DATA,
    ),
    Example(  # what was stored while the line was down, sent with what is now
        _hex(
            "0895b1dff99a33 12120a054c6576656c200a690000000000000840"
            "121b0a054c6576656c18c5a1dff99a33200a280169000000000000f03f"
            "121b0a054c6576656c18ada9dff99a33200a2801690000000000000040"
            "121a0a04466c6f7718c5a1dff99a33200a280169000000000000d03f 1808"
        ),
        [
            _gives({"Level": 1.0, "Flow": 0.25}, at=_AT - timedelta(seconds=2)),
            _gives({"Level": 2.0}, at=_AT - timedelta(seconds=1)),
            _gives({"Level": 3.0}),
        ],
        _DATA,
    ),
    Example(
        _hex(
            "0895b1dff99a33 12120a0562645365711895b1dff99a3320045803"
            "12210a144e6f646520436f6e74726f6c2f526562697274681895b1dff99a33200b7000"
            "123a0a10526f6f6d2f54656d706572617475726510051895b1dff99a33200a4a120a07656e67556e69741207080c4203c2b0"
            "43690000000000403340 1800"
        ),
        [
            _gives(
                {"Room/Temperature": 19.25, "online": True},
                units={"Room/Temperature": "°C"},
                origin=_NODE.replace("DATA", "BIRTH"),
            )
        ],
        _NODE.replace("DATA", "BIRTH"),
    ),
    Example(
        _hex("0895b1dff99a33 1809"),
        [_gives({"online": False}, origin=_DATA.replace("DATA", "DEATH"))],
        _DATA.replace("DATA", "DEATH"),
    ),
    Example(  # stale, and good, which is not said
        _hex(
            "0895b1dff99a33"
            "12340a054c6576656c200a4a200a07656e67556e69740a075175616c6974791205080c42016d1205080318f4036900000000"
            "0000f83f 12230a04466c6f77200a4a100a075175616c6974791205080318c00169000000000000d03f 180a"
        ),
        [_gives({"Level": 1.5, "Flow": 0.25}, units={"Level": "m"}, more={"quality.Level": "500"})],
        _DATA,
    ),
    Example(  # a device without a birth
        _hex("0895b1dff99a33 12120a054c6576656c200a69000000000000f83f 120b1011690000000000001040 180b"),
        [_gives({"Level": 1.5}, origin=_DATA.replace("001", "002")), "unknown_alias"],
        _DATA.replace("001", "002"),
    ),
    Example(  # a data set and an array, which are refused together
        _hex(
            "0895b1dff99a33 12120a054c6576656c200a69000000000000f83f 120c0a055461626c6520108a0100"
            "12170a08537065637472756d201f8201080000000000000000 180c"
        ),
        [_gives({"Level": 1.5}), "bad_type"],
        _DATA,
    ),
    Example(
        _hex("0895b1dff99a33 12110a04466c6f77200a69000000000000f87f 12120a054c6576656c200a69000000000000f83f 180d"),
        [_gives({"Level": 1.5}), "not_finite"],
        _DATA,
    ),
    Example(
        _hex("0895b1dff99a33 12080a04466c6f77200a"),
        ["missing_field"],
        _DATA,
    ),
    Example(
        _hex("0895b1dff99a33 120b0a04466c6f77200a7a0131"),
        ["bad_type"],
        _DATA,
    ),
    Example(
        _hex("0895b1dff99a33 120c0a055374657073200150ac02"),
        ["out_of_range"],
        _DATA,
    ),
    Example(
        _hex("12120a054c6576656c200a69000000000000f83f"),
        ["missing_field"],
        _DATA,
    ),
    Example(
        _hex("0880808080808080808001 12120a054c6576656c200a69000000000000f83f"),
        ["bad_timestamp"],
        _DATA,
    ),
    Example(
        _hex("0895a18ee1b13c 12120a054c6576656c200a69000000000000f83f"),
        ["future"],
        _DATA,
    ),
    Example(  # nothing but an order to send a birth
        _hex("0895b1dff99a33 121a0a144e6f646520436f6e74726f6c2f52656269727468200b7001"),
        ["empty"],
        _NODE,
    ),
    Example(_hex("0895b1dff99a3312120a054c657665"), ["undecodable"], _DATA),
    Example(b'{"Level":1.5}', ["undecodable"], _DATA),
    Example(b"", ["empty"], _DATA),
    Example(_hex("0895b1dff99a33"), ["not_telemetry"], "spBv1.0/Plant 1/NCMD/Line 4"),
    Example(_hex("0895b1dff99a33"), ["not_telemetry"], "spBv1.0/Plant 1/DCMD/Line 4/press-001"),
    Example(b'{"online":true,"timestamp":1759581296789}', ["not_telemetry"], "spBv1.0/STATE/scada"),
    Example(_hex("0895b1dff99a33"), ["not_telemetry"], "spBv1.0/Plant 1/XDATA/Line 4"),
    Example(_hex("0895b1dff99a33"), ["missing_field"], "spBv1.0/Plant 1/DDATA/Line 4"),
    Example(_hex("0895b1dff99a33"), ["missing_field"], "spBv1.0/Plant 1/DDATA//press-001"),
    Example(_hex("0895b1dff99a33"), ["missing_field"], "plant/line/press"),
    Example(_hex("0895b1dff99a33"), ["missing_field"]),
    Example(_hex("0895b1dff99a33"), ["too_large"], "spBv1.0/Plant 1/NDATA/" + "e" * 256),
)
