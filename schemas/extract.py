"""Extractors: the values that data points have in a sensor's data, and the data that has such values."""

import struct
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from math import isfinite
from typing import Any, NamedTuple, NoReturn

from schemas.payload import quoted
from schemas.point import SCALED_HEX_BYTES, Entry, Point, byte_count
from schemas.reading import RejectedError, Value


class Extractor(NamedTuple):
    """A data point, ready for use.

    `read` takes the text of the data and its bytes, None when the text is no hex, and gives the value; it raises
    `RejectedError`: `unparsable` or `not_finite`. `write` is its inverse, and raises `ValueError` or `OverflowError`
    for what the encoding cannot say. `whole` are those that are the text itself.
    """

    label: str
    unit: str
    offset: int
    whole: bool
    read: Callable[[str, bytes | None], Value]
    write: Callable[[Any], bytes]


def octets(text: str) -> bytes | None:
    """The bytes that hex digits say, with or without spaces and `0x`; None where the text is not that."""
    try:
        return bytes.fromhex(_digits(text))
    except ValueError:
        return None


def _digits(text: str) -> str:
    digits = "".join(text.split())
    return digits[2:] if digits[:2] in {"0x", "0X"} else digits


def extractors(entry: Entry) -> tuple[Extractor, ...]:
    """An entry's data points, ready for use."""
    return tuple(_extractor(point) for point in entry.points)


def pack(points: Sequence[Extractor], values: Mapping[str, Value]) -> str:
    """The text of data that has these values at points that do not lie on each other; zero where there is none.

    Raises `ValueError` or `OverflowError` for a value that its point cannot say.
    """
    data = bytearray()
    for point in points:
        value = values.get(point.label)
        if value is None:
            continue
        if point.whole:
            return str(value)
        piece = point.write(value)
        data.extend(bytes(max(0, point.offset + len(piece) - len(data))))
        data[point.offset : point.offset + len(piece)] = piece
    return data.hex(" ").upper()


def _extractor(point: Point) -> Extractor:
    whole = point.encoding == "RawString" and point.length is None and point.offset == 0
    if whole:
        pair: _Pair = _whole, _utf8
    elif point.encoding == "RawString":
        pair = _string(point)
    elif point.encoding == "Float32":
        pair = _float(point)
    elif point.encoding in {"Boolean", "BooleanMap"}:
        pair = _truth(point)
    elif point.encoding == "ScaledHex" and point.length is None:
        pair = _hex(point)
    else:
        pair = _integer(point)
    return Extractor(point.label, point.unit, point.offset, whole, *pair)


_Pair = tuple[Callable[[str, bytes | None], Value], Callable[[Any], bytes]]


def _whole(text: str, data: bytes | None) -> Value:  # noqa: ARG001  one form for all
    return text


def _utf8(value: str) -> bytes:
    return value.encode()


def _ratio(point: Point) -> tuple[int, int]:
    # A decimal's own digits, so that a product or quotient is rounded once: 298 times 0.1 is 29.8.
    factor, divisor = Decimal(repr(point.scale)).as_integer_ratio()
    return factor, divisor * 10**point.decimals


def _integer(point: Point) -> _Pair:
    start, length, order = point.offset, point.length or 0, point.order
    end, signed = start + length, point.encoding.startswith("Int")
    factor, divisor = _ratio(point)
    number = int.from_bytes

    def read(text: str, data: bytes | None) -> Value:
        if data is None or len(data) < end:
            _fail(point, text, data)
        return number(data[start:end], order, signed=signed) * factor / divisor

    def write(value: float) -> bytes:
        return round(value * divisor / factor).to_bytes(length, order, signed=signed)

    return read, write


def _hex(point: Point) -> _Pair:
    start, order = point.offset, point.order
    factor, divisor = _ratio(point)
    limit = 256**SCALED_HEX_BYTES

    def read(text: str, data: bytes | None) -> Value:
        if data is None and start == 0 and order == "big":
            data = octets("0" + _digits(text))  # a number as 0x12A may have any count of digits
        if data is None or len(data) <= start:
            _fail(point, text, data)
        number = int.from_bytes(data[start:], order)
        if number >= limit:
            most = byte_count(SCALED_HEX_BYTES)
            raise RejectedError("unparsable", f"{point.label} is {quoted(text)}, more than {most} can say")
        return number * factor / divisor

    def write(value: float) -> bytes:
        number = round(value * divisor / factor)
        return number.to_bytes(max(1, (number.bit_length() + 7) // 8), order)

    return read, write


def _float(point: Point) -> _Pair:
    start, end = point.offset, point.offset + 4
    form = struct.Struct(">f" if point.order == "big" else "<f")
    factor, divisor = _ratio(point)

    def read(text: str, data: bytes | None) -> Value:
        if data is None or len(data) < end:
            _fail(point, text, data)
        (value,) = form.unpack_from(data, start)
        if not isfinite(value):
            raise RejectedError("not_finite", f"{point.label} is {value}, which is not a number that can be stored")
        return float(value * factor / divisor)

    def write(value: float) -> bytes:
        return form.pack(value * divisor / factor)

    return read, write


def _truth(point: Point) -> _Pair:
    start, length, order, table = point.offset, point.length or 1, point.order, point.map
    end = start + length
    number = int.from_bytes
    back = {value: raw for raw, value in reversed(table.items())}

    def read(text: str, data: bytes | None) -> Value:
        if data is None or len(data) < end:
            _fail(point, text, data)
        raw = number(data[start:end], order)
        if not table:
            return raw != 0
        value = table.get(raw)
        if value is None:
            raise RejectedError("unparsable", f"{point.label} is {raw}, which is not in its map")
        return value

    def write(value: bool | str) -> bytes:  # noqa: FBT001  its value
        if table and value not in back:
            raise ValueError(f"{point.label} is {quoted(value)}, which is not in its map")
        return (back[value] if table else int(bool(value))).to_bytes(length, order)

    return read, write


def _string(point: Point) -> _Pair:
    start, length = point.offset, point.length
    end = None if length is None else start + length

    def read(text: str, data: bytes | None) -> Value:
        if data is None or len(data) < (end or start + 1):
            _fail(point, text, data)
        try:
            return data[start:end].rstrip(b"\0").decode()
        except UnicodeDecodeError as error:
            raise RejectedError("unparsable", f"{point.label} is not text in UTF-8") from error

    def write(value: str) -> bytes:
        said = value.encode().ljust(length or 1, b"\0")
        if length is not None and len(said) > length:
            raise ValueError(f"{point.label} has {len(said)} bytes, more than {length}")
        return said

    return read, write


def _fail(point: Point, text: str, data: bytes | None) -> NoReturn:
    if data is None:
        raise RejectedError("unparsable", f"{point.label} is in the data, {quoted(text)}, which is no whole hex bytes")
    first = point.offset + 1
    place = f"bytes {first}..{point.offset + point.length}" if point.length else f"what follows byte {first - 1}"
    raise RejectedError("unparsable", f"{point.label} is {place} of the data, which has {byte_count(len(data))}")
