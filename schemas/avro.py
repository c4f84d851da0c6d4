"""Avro: what a schema says of a record's bytes, made values that JSON can hold.

`fastavro` checks a schema and resolves its names. The bytes are read here: its reader ends the process at a payload
that nests a recursive schema deeply enough, makes millions of nulls of six bytes, and rounds decimals in silence.

What becomes of what: timestamps are ISO 8601 text, in UTC and to the microsecond, `local-timestamp-…` without a zone;
a date and a time of day are ISO 8601 text; a decimal is a number when its schema allows 15 digits at most, which a
double can tell apart, and text otherwise; a UUID is text, an enum its symbol. Other bytes, `fixed` too, are base64 text
(the standard alphabet, with padding), as Protobuf's JSON has them. NaN and Infinity are refused.
"""

import struct
from base64 import b64encode
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from math import isfinite
from typing import Any, Final
from uuid import UUID

import msgspec

from schemas.payload import DEPTH, quoted
from schemas.reading import RejectedError

#: Reads a value at a place in the bytes, nested at most so deep; gives it and the place behind it.
_Read = Callable[[bytes, int, int], tuple[Any, int]]
#: Takes the bytes at a place, as many as they are; gives them and the place behind.
_Take = Callable[[bytes, int], tuple[bytes, int]]

_DOUBLE_DIGITS: Final = 15
_MOST_DIGITS: Final = 1000
_INT: Final = 2**31
_LONG: Final = 2**63
_UUID_BYTES: Final = 16
_double: Final = struct.Struct("<d").unpack_from
_float: Final = struct.Struct("<f").unpack_from
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TICKS: Final = {"millis": 1_000, "micros": 1_000_000, "nanos": 1_000_000_000}
_STEP: Final = 1_000_000


class SchemaError(ValueError):
    """A schema that cannot be used; the text says why."""


def reader(text: str, references: Sequence[str] = ()) -> Callable[[bytes], Any]:
    """What reads records of a schema; `references` are the schemas it names, each after those that it names itself.

    The reader raises `RejectedError`: `undecodable`, `too_large`, `not_finite`, `bad_timestamp` or `out_of_range`.
    Raises `SchemaError`, and `ImportError` without fastavro.
    """
    from fastavro.schema import parse_schema  # noqa: PLC0415  an extra

    named: dict[str, Any] = {}
    try:
        for reference in references:
            parse_schema(msgspec.json.decode(reference), named_schemas=named)
        parsed = parse_schema(msgspec.json.decode(text), named_schemas=named)
        read = _Maker(named).make(parsed, "the record", DEPTH)
    except SchemaError:
        raise
    except Exception as error:  # its own errors share no class, and a wrong schema gives others too
        raise SchemaError(f"it is no Avro schema: {type(error).__name__}: {str(error)[:200]}") from error

    def whole(data: bytes) -> Any:
        try:
            value, end = read(data, 0, DEPTH)
        except (IndexError, struct.error) as error:
            raise RejectedError("undecodable", "the payload ends before its record does") from error
        except UnicodeDecodeError as error:
            raise RejectedError("undecodable", "a text is not UTF-8") from error
        if end != len(data):
            raise RejectedError("undecodable", f"{len(data) - end} bytes follow the record")
        return value

    return whole


class _Maker:
    """Makes readers for the types of one schema; `named` has those with a name."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = named
        self._made: dict[str, _Read] = {}
        self._open: set[str] = set()

    def make(self, schema: Any, place: str, depth: int) -> _Read:
        """A type's reader; errors call its value `place`."""
        if depth == 0:
            raise SchemaError(f"it is nested deeper than {DEPTH}")
        if isinstance(schema, list):
            return _union([self.make(branch, place, depth - 1) for branch in schema])
        own = schema if isinstance(schema, dict) else {"type": schema}
        kind = own["type"]
        if kind in self._named:
            return self._by_name(kind, place, depth)
        return _logical(kind, own, place) or self._plain(kind, own, place, depth)

    def _plain(self, kind: str, own: Mapping[str, Any], place: str, depth: int) -> _Read:
        match kind:
            case "record" | "error":
                return self._record(own, depth)
            case "enum":
                return _enum(own["symbols"])
            case "array":
                if not self._takes_room(own["items"]):
                    raise SchemaError(f"{quoted(place)} is an array of what takes no room, so of any number of it")
                return _array(self.make(own["items"], place, depth - 1))
            case "map":
                return _map(self.make(own["values"], place, depth - 1))
            case "bytes":
                return _encoded(_slice)
            case "fixed":
                return _encoded(_exactly(own, place))
        if kind not in _PRIMITIVES:
            raise SchemaError(f"nothing says what {quoted(kind)} is")
        return _PRIMITIVES[kind](place)

    def _by_name(self, name: str, place: str, depth: int) -> _Read:
        own = self._named[name]
        if own["type"] not in {"record", "error"}:
            return self.make(own, place, depth)
        if name in self._open:
            return lambda data, at, left: self._made[name](data, at, left)  # noqa: PLW0108  it is not made yet
        return self._made.get(name) or self._record(own, depth)

    def _record(self, own: Mapping[str, Any], depth: int) -> _Read:
        self._open.add(own["name"])
        fields = [(field["name"], self.make(field["type"], field["name"], depth - 1)) for field in own["fields"]]

        def read(data: bytes, at: int, left: int) -> tuple[Any, int]:
            if left == 0:
                raise RejectedError("too_large", f"the record is nested deeper than {DEPTH}")
            found = {}
            for name, inner in fields:
                found[name], at = inner(data, at, left - 1)
            return found, at

        self._open.discard(own["name"])
        self._made[own["name"]] = read
        return read

    def _takes_room(self, schema: Any, within: frozenset[str] = frozenset()) -> bool:
        """Whether a value takes a byte at least."""
        if isinstance(schema, list):
            return True
        kind = schema["type"] if isinstance(schema, dict) else schema
        if kind in {"record", "error"}:
            inner = within | {schema["name"]}
            return any(self._takes_room(field["type"], inner) for field in schema["fields"])
        if kind == "fixed":
            return bool(schema["size"] > 0)
        if kind in self._named:
            return kind not in within and self._takes_room(self._named[kind], within)
        return bool(kind != "null")


# -- numbers and texts -------------------------------------------------------------------------------------------------


def _varint(data: bytes, at: int, limit: int = _LONG) -> tuple[int, int]:
    byte = data[at]
    at += 1
    number = byte & 127
    shift = 7
    while byte > 127:  # noqa: PLR2004  the bit that says: more follows
        if shift > 63:  # noqa: PLR2004  ten bytes at most
            raise RejectedError("undecodable", "an integer has more than ten bytes")
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        shift += 7
    number = (number >> 1) ^ -(number & 1)
    if not -limit <= number < limit:
        raise RejectedError("undecodable", "an integer is larger than its type")
    return number, at


def _slice(data: bytes, at: int) -> tuple[bytes, int]:
    size, at = _varint(data, at)
    end = at + size
    if not at <= end <= len(data):
        raise RejectedError("undecodable", "a length is negative, or more than what follows")
    return data[at:end], end


def _exactly(own: Mapping[str, Any], place: str) -> _Take:
    """What takes the bytes of a `fixed`."""
    size = own["size"]
    if not isinstance(size, int) or size < 0:
        raise SchemaError(f"{quoted(place)} is a fixed of {quoted(size)} bytes")

    def take(data: bytes, at: int) -> tuple[bytes, int]:
        end = at + size
        if end > len(data):
            raise IndexError
        return data[at:end], end

    return take


def _null(place: str) -> _Read:  # noqa: ARG001  as the others
    return lambda data, at, left: (None, at)  # noqa: ARG005


def _boolean(place: str) -> _Read:
    def read(data: bytes, at: int, left: int) -> tuple[bool, int]:  # noqa: ARG001
        if data[at] > 1:
            raise RejectedError("undecodable", f"{quoted(place)} is {data[at]}, which is no boolean")
        return data[at] == 1, at + 1

    return read


def _integer(limit: int) -> Callable[[str], _Read]:
    def make(place: str) -> _Read:  # noqa: ARG001  as the others
        return lambda data, at, left: _varint(data, at, limit)  # noqa: ARG005

    return make


def _floating(unpack: Callable[[bytes, int], tuple[Any, ...]], size: int) -> Callable[[str], _Read]:
    def make(place: str) -> _Read:
        def read(data: bytes, at: int, left: int) -> tuple[float, int]:  # noqa: ARG001
            value: float = unpack(data, at)[0]
            if not isfinite(value):
                raise RejectedError("not_finite", f"{quoted(place)} is {value}, which is no number")
            return value, at + size

        return read

    return make


def _string(place: str) -> _Read:  # noqa: ARG001  as the others
    def read(data: bytes, at: int, left: int) -> tuple[str, int]:  # noqa: ARG001
        text, at = _slice(data, at)
        return text.decode(), at

    return read


_PRIMITIVES: Final[Mapping[str, Callable[[str], _Read]]] = {
    "null": _null,
    "boolean": _boolean,
    "int": _integer(_INT),
    "long": _integer(_LONG),
    "float": _floating(_float, 4),
    "double": _floating(_double, 8),
    "string": _string,
}


def _encoded(take: _Take) -> _Read:
    def read(data: bytes, at: int, left: int) -> tuple[str, int]:  # noqa: ARG001
        held, at = take(data, at)
        return b64encode(held).decode(), at

    return read


# -- types of types ----------------------------------------------------------------------------------------------------


def _union(branches: Sequence[_Read]) -> _Read:
    def read(data: bytes, at: int, left: int) -> tuple[Any, int]:
        index, at = _varint(data, at)
        if not 0 <= index < len(branches):
            raise RejectedError("undecodable", f"a union has {len(branches)} branches, and {index} is none of them")
        return branches[index](data, at, left)

    return read


def _enum(symbols: Sequence[str]) -> _Read:
    def read(data: bytes, at: int, left: int) -> tuple[str, int]:  # noqa: ARG001
        index, at = _varint(data, at)
        if not 0 <= index < len(symbols):
            raise RejectedError("undecodable", f"an enum has {len(symbols)} symbols, and {index} is none of them")
        return symbols[index], at

    return read


def _block(data: bytes, at: int, left: int) -> tuple[int, int]:
    """How many items a block has, none at the end."""
    if left == 0:
        raise RejectedError("too_large", f"the record is nested deeper than {DEPTH}")
    count, at = _varint(data, at)
    if count < 0:
        count = -count
        _, at = _varint(data, at)  # the block's bytes, for those who skip it
    if count > len(data) - at:
        raise RejectedError("undecodable", f"{count} items are said to follow, and {len(data) - at} bytes do")
    return count, at


def _array(item: _Read) -> _Read:
    def read(data: bytes, at: int, left: int) -> tuple[list[Any], int]:
        found = []
        count, at = _block(data, at, left)
        while count:
            for _ in range(count):
                value, at = item(data, at, left - 1)
                found.append(value)
            count, at = _block(data, at, left)
        return found, at

    return read


def _map(item: _Read) -> _Read:
    def read(data: bytes, at: int, left: int) -> tuple[dict[str, Any], int]:
        found = {}
        count, at = _block(data, at, left)
        while count:
            for _ in range(count):
                key, at = _slice(data, at)
                found[key.decode()], at = item(data, at, left - 1)
            count, at = _block(data, at, left)
        return found, at

    return read


# -- logical types -----------------------------------------------------------------------------------------------------


def _logical(kind: str, own: Mapping[str, Any], place: str) -> _Read | None:
    """The reader of a logical type, or None: of any that is not known here, what it is made of is read."""
    logical = own.get("logicalType")
    if not isinstance(logical, str):
        return None
    name, _, unit = logical.rpartition("-")
    if kind == "long" and name in {"timestamp", "local-timestamp"} and unit in _TICKS:
        return _timestamp(_TICKS[unit], place, local=name == "local-timestamp")
    if (kind, logical) in {("int", "time-millis"), ("long", "time-micros")}:
        return _time(_TICKS[unit], place)
    if (kind, logical) == ("int", "date"):
        return _date(place)
    if logical == "decimal" and kind in {"bytes", "fixed"}:
        return _decimal(own, place, _slice if kind == "bytes" else _exactly(own, place))
    if (kind, logical, own.get("size")) == ("fixed", "uuid", _UUID_BYTES):
        return _uuid(_exactly(own, place))
    return None


def _moment(count: int, ticks: int, place: str) -> datetime:
    # Finer than a microsecond is cut off, not rounded.
    try:
        return _EPOCH + timedelta(microseconds=count * _STEP // ticks)
    except OverflowError as error:
        raise RejectedError("bad_timestamp", f"{quoted(place)} is outside the calendar") from error


def _timestamp(ticks: int, place: str, *, local: bool) -> _Read:
    end = "" if local else "Z"

    def read(data: bytes, at: int, left: int) -> tuple[str, int]:  # noqa: ARG001
        count, at = _varint(data, at)
        return _moment(count, ticks, place).isoformat()[:-6] + end, at

    return read


def _date(place: str) -> _Read:
    def read(data: bytes, at: int, left: int) -> tuple[str, int]:  # noqa: ARG001
        days, at = _varint(data, at, _INT)
        try:
            return date.fromordinal(_EPOCH.toordinal() + days).isoformat(), at
        except (ValueError, OverflowError) as error:
            raise RejectedError("bad_timestamp", f"{quoted(place)} is outside the calendar") from error

    return read


def _time(ticks: int, place: str) -> _Read:
    def read(data: bytes, at: int, left: int) -> tuple[str, int]:  # noqa: ARG001
        count, at = _varint(data, at)
        if not 0 <= count < 86_400 * ticks:
            raise RejectedError("bad_timestamp", f"{quoted(place)} is {count}, which is no time of day")
        return (
            datetime.combine(_EPOCH, time()) + timedelta(microseconds=count * _STEP // ticks)
        ).time().isoformat(), at

    return read


def _decimal(own: Mapping[str, Any], place: str, take: _Take) -> _Read:
    digits, scale = own.get("precision"), own.get("scale", 0)
    if not (isinstance(digits, int) and isinstance(scale, int) and 0 <= scale <= digits <= _MOST_DIGITS):
        raise SchemaError(f"{quoted(place)} is a decimal of {digits} digits, {scale} of them behind the point")
    limit, context = 10**digits, Context(prec=digits)

    def read(data: bytes, at: int, left: int) -> tuple[float | str, int]:  # noqa: ARG001
        held, at = take(data, at)
        # The length first: what is much too long would take its time to be converted.
        unscaled = int.from_bytes(held, "big", signed=True) if len(held) <= digits else limit
        if not -limit < unscaled < limit:
            raise RejectedError("out_of_range", f"{quoted(place)} has more than the {digits} digits of its type")
        if digits <= _DOUBLE_DIGITS:
            return float(f"{unscaled}e-{scale}"), at
        return format(Decimal(unscaled).scaleb(-scale, context), "f"), at

    return read


def _uuid(take: _Take) -> _Read:
    def read(data: bytes, at: int, left: int) -> tuple[str, int]:  # noqa: ARG001
        held, at = take(data, at)
        return str(UUID(bytes=held)), at

    return read
