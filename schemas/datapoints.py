"""Data points: what the bytes mean that a sensor at a pin of a controller sends, and where that is written down.

A pin's id is `CONTROLLER/CONNECTOR/PIN`: the twelve hex digits of the controller's MAC address in lower case, or `*`
for every controller that is wired alike, and two numbers; an exact controller wins over `*`. What stands at a pin comes
from a YAML file (`parse`) and from the compacted topic `iotflow.registry` (`encode`, `decode`), and the topic wins.
"""

import re
import struct
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from math import isfinite
from typing import Annotated, Any, Final, Literal, NamedTuple, NoReturn

import msgspec
from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from schemas.inputs import explained
from schemas.payload import NAME_CHARS, quoted
from schemas.policy import Model
from schemas.reading import RejectedError, Value

#: No data point ends behind this byte of the data.
MAX_BYTES: Final = 1024
#: No pin has more data points.
MAX_POINTS: Final = 64
#: Stands for every controller that has no entry of its own for a pin.
ANY: Final = "*"
#: Connectors and pins are numbered up to here.
LAST_NUMBER: Final = 99

Encoding = Literal[
    "Int8",
    "Int16",
    "Int32",
    "Uint8",
    "Uint16",
    "Uint32",
    "Float32",
    "Boolean",
    "BooleanMap",
    "ScaledHex",
    "RawString",
]
Source = Literal["file", "topic"]

_SIZES: Final[Mapping[str, int]] = {
    "Int8": 1,
    "Int16": 2,
    "Int32": 4,
    "Uint8": 1,
    "Uint16": 2,
    "Uint32": 4,
    "Float32": 4,
}
#: The encodings with a range of lengths; a scaled number of more bytes would not fit a double exactly.
_LONGEST: Final[Mapping[str, int]] = {"Boolean": 8, "BooleanMap": 8, "ScaledHex": 6, "RawString": MAX_BYTES}
_NUMBERS: Final = frozenset({*_SIZES, "ScaledHex"})
_ENCODINGS: Final[Mapping[str, str]] = {name.lower(): name for name in (*_SIZES, *_LONGEST)}
#: What S1's own table of data points and its older documents call the members.
_OLD_NAMES: Final[Mapping[str, str]] = {
    "Label": "label",
    "Offset": "offset",
    "Length": "length",
    "DataEncoding": "encoding",
    "Decimals": "decimals",
    "Append": "unit",
    "scaling_factor": "scale",
}
_SMALLEST_SCALE: Final = 1e-12
_LARGEST_SCALE: Final = 1e12

_CONTROLLER: Final = re.compile(r"[0-9a-f]{12}")
_SEPARATORS: Final = re.compile(r"[:.\-]")
_NUMBER: Final = re.compile(r"[Jj]?([0-9]{1,2})")
_RAW: Final = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}")


class RegistryError(ValueError):
    """Entries of the registry are wrong; `problems` has a line for each thing to correct."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def _encoding(said: object) -> object:
    found = _ENCODINGS.get(said.lower()) if isinstance(said, str) else None
    if found is None:
        raise ValueError(f"must be one of {', '.join(_ENCODINGS.values())}, not {quoted(said)}")
    return found


def _lower(said: object) -> object:
    return said.lower() if isinstance(said, str) else said


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError(f"has characters that cannot be shown: {quoted(text)}")
    return text


def _mapped(said: object) -> bool | str:
    if isinstance(said, bool) or (isinstance(said, str) and 0 < len(said) <= NAME_CHARS and said.isprintable()):
        return said
    raise ValueError(f"must be a text of 1..{NAME_CHARS} characters or a boolean, not {quoted(said)}")


def _raw(said: object) -> int | None:
    if isinstance(said, int) and not isinstance(said, bool):
        return said
    if isinstance(said, str) and _RAW.fullmatch(said):
        return int(said, 16 if said[1:2] in {"x", "X"} else 10)
    return None


def _numbered(said: object) -> object:
    if not isinstance(said, Mapping):
        return said
    found: dict[int, object] = {}
    wrong: list[str] = []
    for key, value in said.items():
        raw = _raw(key)
        if raw is None:
            wrong.append(f"{quoted(key)} is no number as 1 or 0x01")
        elif raw in found:
            wrong.append(f"{quoted(key)} stands there twice")
        else:
            found[raw] = value
    if wrong:
        raise ValueError("; ".join(wrong))
    return found


_Integer = Annotated[int, Field(strict=True)]
_Label = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1, max_length=NAME_CHARS)]


class Point(Model):
    """One value in a pin's data.

    It is `length` bytes from `offset` on. The numbers of integers, floats and scaled hex are multiplied by `scale` and
    divided by 10**`decimals`. `Boolean` is false where all bytes are zero; `BooleanMap` looks the unsigned number up in
    `map`. `ScaledHex` without a length is all the rest of the data, as one unsigned number. `RawString` is UTF-8, where
    zero bytes at the end fill up; with neither offset nor length it is the text of the data itself, hex or not.
    """

    label: _Label
    encoding: Annotated[Encoding, BeforeValidator(_encoding)]
    offset: _Integer = Field(0, ge=0, lt=MAX_BYTES)
    length: _Integer | None = Field(None, validate_default=True)
    order: Annotated[Literal["big", "little"], BeforeValidator(_lower)] = "big"
    decimals: _Integer = Field(0, ge=0, le=12)
    scale: float = Field(1.0, strict=True)
    unit: Annotated[str, StringConstraints(strict=True, strip_whitespace=True, max_length=64)] = ""
    map: Annotated[dict[int, Annotated[bool | str, PlainValidator(_mapped)]], BeforeValidator(_numbered)] = Field(
        {}, validate_default=True
    )

    @model_validator(mode="before")
    @classmethod
    def _by_any_name(cls, said: Any) -> Any:
        if not isinstance(said, Mapping | Point):
            raise ValueError(f"must be an object with a label and an encoding, not {quoted(said)}")  # noqa: TRY004  Pydantic's own
        if isinstance(said, Point) or said.keys().isdisjoint(_OLD_NAMES):
            return said
        for old, name in _OLD_NAMES.items():
            if old in said and name in said:
                raise ValueError(f"says {name} twice, also as {old}")
        return {_OLD_NAMES.get(name, name): value for name, value in said.items()}

    _shown = field_validator("label", "unit")(_printable)

    @field_validator("length")
    @classmethod
    def _fits(cls, length: int | None, info: ValidationInfo) -> int | None:
        encoding = info.data.get("encoding")
        if encoding is None:
            return length
        size = _SIZES.get(encoding)
        if size is not None:
            if length not in {None, size}:
                raise ValueError(f"{encoding} has {_bytes(size)}, not {length}")
            length = size
        elif length is None and encoding in {"Boolean", "BooleanMap"}:
            length = 1
        elif length is not None and not 1 <= length <= _LONGEST[encoding]:
            raise ValueError(f"{encoding} has 1..{_LONGEST[encoding]} bytes, not {length}")
        end = info.data.get("offset", 0) + (length or 0)
        if end > MAX_BYTES:
            raise ValueError(f"ends at byte {end}, behind the last one, {MAX_BYTES}")
        return length

    @field_validator("order")
    @classmethod
    def _ordered(cls, order: str, info: ValidationInfo) -> str:
        if order != "big" and info.data.get("encoding") == "RawString":
            raise ValueError("RawString has no order of bytes")
        return order

    @field_validator("decimals", "scale")
    @classmethod
    def _counts(cls, value: float, info: ValidationInfo) -> float:
        encoding = info.data.get("encoding")
        neutral = 0 if info.field_name == "decimals" else 1
        if encoding is not None and encoding not in _NUMBERS and value != neutral:
            raise ValueError(f"{encoding} makes no number, so it has no {info.field_name}")
        if info.field_name == "scale" and not _SMALLEST_SCALE <= abs(value) <= _LARGEST_SCALE:
            raise ValueError(f"must be {_SMALLEST_SCALE:g}..{_LARGEST_SCALE:g} or as much below zero, not {value:g}")
        return value

    @field_validator("map")
    @classmethod
    def _maps(cls, table: dict[int, bool | str], info: ValidationInfo) -> dict[int, bool | str]:
        encoding = info.data.get("encoding")
        if encoding is None:
            return table
        if encoding != "BooleanMap":
            if table:
                raise ValueError(f"{encoding} has no map, only BooleanMap")
            return table
        if not table:
            raise ValueError("BooleanMap needs it: what each number means, as {0: closed, 1: open}")
        if len({type(value) for value in table.values()}) > 1:
            raise ValueError("has texts and booleans; a metric is one or the other")
        length = info.data.get("length")
        for raw in table:
            if raw < 0 or (length is not None and raw >= 256**length):
                raise ValueError(f"has {raw}, which {_bytes(length or 1)} cannot hold")
        return table


class Entry(Model):
    """What stands at one pin: its data points, and what a person calls the device that is wired to it."""

    name: Annotated[str, StringConstraints(strict=True, strip_whitespace=True, max_length=NAME_CHARS)] = ""
    points: tuple[Point, ...]

    @model_validator(mode="before")
    @classmethod
    def _listed(cls, said: Any) -> Any:
        if isinstance(said, list):
            return {"points": said}
        if not isinstance(said, Mapping | Entry):
            raise ValueError(f"must be an object with points, or the list of them, not {quoted(said)}")  # noqa: TRY004
        return said

    @field_validator("points")
    @classmethod
    def _told_apart(cls, points: tuple[Point, ...]) -> tuple[Point, ...]:
        if not 1 <= len(points) <= MAX_POINTS:
            raise ValueError(f"a pin has 1..{MAX_POINTS} data points, not {len(points)}")
        twice = _twice([point.label for point in points])
        if twice:
            raise ValueError(twice)
        return points


def _twice(labels: Sequence[str]) -> str:
    again = {label: None for number, label in enumerate(labels) if label in labels[:number]}
    return f"two data points are called {' and two '.join(map(quoted, again))}" if again else ""


def _bytes(count: int) -> str:
    return "1 byte" if count == 1 else f"{count} bytes"


# -- reading and writing entries ---------------------------------------------------------------------------------------


def parse(document: object) -> dict[str, Entry]:
    """The entries, by id, that the content of a YAML file describes.

    It is `{"controllers": {CONTROLLER: {"CONNECTOR/PIN": {"name", "points": [..]}}}}`; the list of points alone will do
    for the innermost. Raises `RegistryError` with every problem and its place.
    """
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise RegistryError([f"must be an object with the member controllers, not {quoted(document)}"])
    problems = [f"{name}: is not known here, only controllers" for name in document if name != "controllers"]
    entries: dict[str, Entry] = {}
    controllers = document.get("controllers")
    if not isinstance(controllers, Mapping | None):
        problems.append(f"controllers: must have a member for each controller, not be {quoted(controllers)}")
    seen: dict[str, object] = {}
    for said, pins in controllers.items() if isinstance(controllers, Mapping) else ():
        where = f"controllers.{said}"
        try:
            controller = _controller(said)
        except RegistryError as error:
            problems.append(f"{where}: {error}")
            controller = ""
        if controller and controller in seen:
            problems.append(f"{where}: is the controller {controller}, which is there already as {seen[controller]}")
        seen.setdefault(controller, said)
        if isinstance(pins, Mapping) and pins:
            _pins(where, controller, pins, entries, problems)
        else:
            problems.append(f"{where}: must have a member CONNECTOR/PIN for each pin, as 1/1")
    if problems:
        raise RegistryError(problems)
    return entries


def _pins(
    where: str, controller: str, pins: Mapping[Any, object], entries: dict[str, Entry], problems: list[str]
) -> None:
    seen: dict[str, object] = {}
    for said, value in pins.items():
        place = f"{where}.{said}"
        try:
            pin = _pin(said)
        except RegistryError as error:
            problems.append(f"{place}: {error}")
            pin = ""
        if pin and pin in seen:
            problems.append(f"{place}: is the pin {pin}, which is there already as {seen[pin]}")
        seen.setdefault(pin, said)
        try:
            entries[f"{controller}/{pin}"] = _entry(place, value)
        except RegistryError as error:
            problems += error.problems


_placed: Final = TypeAdapter(dict[str, Entry]).validate_python


def _entry(place: str, value: object) -> Entry:
    try:
        return _placed({place: value})[place]
    except ValidationError as error:
        found = value.get("points") if isinstance(value, Mapping) else value
        # Pydantic looks at the points together only when each of them is right.
        labels = [_label(point) for point in found if isinstance(point, Mapping)] if isinstance(found, list) else []
        twice = _twice([label for label in labels if isinstance(label, str)])
        lines = [*explained(error), f"{place}.points: {twice}"] if twice else explained(error)
        raise RegistryError(list(dict.fromkeys(lines))) from error


def _label(point: Mapping[Any, object]) -> object:
    label = point.get("label", point.get("Label"))
    return label.strip() if isinstance(label, str) else label


def _controller(said: object) -> str:
    if not isinstance(said, str):
        raise RegistryError([f"a controller is written in quotes, lest YAML takes it for a number: {quoted(said)}"])
    if said == ANY:
        return ANY
    text = said.strip().lower()
    for digits in (_SEPARATORS.sub("", text.removeprefix("f2-")), _SEPARATORS.sub("", text)):
        if _CONTROLLER.fullmatch(digits):
            return digits
    raise RegistryError([f"a controller is the 12 hex digits of its MAC address, or *, not {quoted(said)}"])


def _pin(said: object) -> str:
    parts = said.split("/") if isinstance(said, str) else []
    found = [_NUMBER.fullmatch(part.strip()) for part in parts]
    if len(found) != 2 or found[0] is None or found[1] is None:  # noqa: PLR2004  a connector and a pin
        raise RegistryError([f"a pin is CONNECTOR/PIN, two numbers of 0..{LAST_NUMBER}, as 1/3, not {quoted(said)}"])
    return f"{int(found[0][1])}/{int(found[1][1])}"


def normalise(id: str) -> str:  # noqa: A002  what it is called everywhere
    """The canonical form of an entry's id. Raises `RegistryError`."""
    controller, _, pin = id.partition("/")
    problems = []
    try:
        controller = _controller(controller)
    except RegistryError as error:
        problems += error.problems
    try:
        pin = _pin(pin)
    except RegistryError as error:
        problems += error.problems
    if problems:
        raise RegistryError(problems)
    return f"{controller}/{pin}"


def encode(entry: Entry) -> bytes:
    """The value of an entry's record in the topic; its key is the entry's id."""
    return msgspec.json.encode(entry.model_dump(exclude_defaults=True))


def decode(id: str, value: bytes) -> Entry:  # noqa: A002
    """The entry in a record's value. Raises `RegistryError` with every problem, that of a wrong id too."""
    normalise(id)
    try:
        said = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RegistryError([f"{id}: the value is not JSON: {error}"]) from error
    return _entry(id, said)


# -- bytes to values and back ------------------------------------------------------------------------------------------


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
    limit = 256 ** _LONGEST["ScaledHex"]

    def read(text: str, data: bytes | None) -> Value:
        if data is None and start == 0 and order == "big":
            data = octets("0" + _digits(text))  # a number as 0x12A may have any count of digits
        if data is None or len(data) <= start:
            _fail(point, text, data)
        number = int.from_bytes(data[start:], order)
        if number >= limit:
            raise RejectedError("unparsable", f"{point.label} is {quoted(text)}, more than 6 bytes can say")
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
    raise RejectedError("unparsable", f"{point.label} is {place} of the data, which has {_bytes(len(data))}")


# -- the registry ------------------------------------------------------------------------------------------------------


class DataPoints:
    """The registry that dialects ask (`schemas.dialects.Registry`): what the file and the topic say now."""

    def __init__(self) -> None:
        self._entries: dict[Source, dict[str, Entry]] = {"file": {}, "topic": {}}
        self._pins: dict[tuple[str, str, str], tuple[Extractor, ...]] = {}

    def points(self, controller: str, connector: str, pin: str) -> tuple[Extractor, ...] | None:
        """What stands at a pin of a controller, canonically named; None when that is not known."""
        pins = self._pins
        return pins.get((controller, connector, pin)) or pins.get((ANY, connector, pin))

    def load(self, entries: Mapping[str, Entry]) -> None:
        """Take these entries, by id, for what the file says, and forget what it said before.

        Raises `RegistryError` for an id that is none, and changes nothing.
        """
        before = self._entries["file"]
        after = {normalise(id_): entry for id_, entry in entries.items()}
        self._entries["file"] = after
        for id_ in {**before, **after}:
            self._renew(id_)

    def put(self, id: str, value: bytes | None) -> None:  # noqa: A002
        """Apply a record of the topic: an entry, or None, after which the file's holds again.

        Raises `RegistryError` for one that is wrong, and changes nothing.
        """
        canonical = normalise(id)
        if value is None:
            self._entries["topic"].pop(canonical, None)
        else:
            self._entries["topic"][canonical] = decode(id, value)
        self._renew(canonical)

    def entries(self) -> dict[str, tuple[Entry, Source]]:
        """Every entry that holds, by id, and where it comes from."""
        found: dict[str, tuple[Entry, Source]] = {}
        for source, entries in self._entries.items():
            found.update({id_: (entry, source) for id_, entry in entries.items()})
        return dict(sorted(found.items()))

    def __len__(self) -> int:
        return len(self._pins)

    def _renew(self, id_: str) -> None:
        controller, connector, pin = id_.split("/")
        entry = self._entries["topic"].get(id_) or self._entries["file"].get(id_)
        if entry is None:
            self._pins.pop((controller, connector, pin), None)
        else:
            self._pins[controller, connector, pin] = extractors(entry)
