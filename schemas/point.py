"""Data points: one value in the bytes that a sensor at a pin of a controller sends, and all that stand at one pin."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationInfo,
    field_validator,
    model_validator,
)

from schemas.config import Model
from schemas.payload import NAME_CHARS, quoted

#: No data point ends behind this byte of the data.
MAX_BYTES: Final = 1024
#: No pin has more data points.
MAX_POINTS: Final = 64
#: As many of one kind of mistake are named, and then how many more there are.
NAMED: Final = 20
#: No scaled number has more bytes: it would not fit a double exactly.
SCALED_HEX_BYTES: Final = 6

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

_SIZES: Final[Mapping[str, int]] = {
    "Int8": 1,
    "Int16": 2,
    "Int32": 4,
    "Uint8": 1,
    "Uint16": 2,
    "Uint32": 4,
    "Float32": 4,
}
#: The encodings with a range of lengths.
_LONGEST: Final[Mapping[str, int]] = {
    "Boolean": 8,
    "BooleanMap": 8,
    "ScaledHex": SCALED_HEX_BYTES,
    "RawString": MAX_BYTES,
}
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

_RAW: Final = re.compile(r"0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20}")


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
        raise ValueError("; ".join(named(wrong)))
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
                raise ValueError(f"{encoding} has {byte_count(size)}, not {length}")
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
                raise ValueError(f"has {raw}, which {byte_count(length or 1)} cannot hold")
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

    @field_validator("points", mode="before")
    @classmethod
    def _counted(cls, points: object) -> object:
        # Before they are looked at one by one, which takes long when there are very many.
        if isinstance(points, list | tuple | set) and not 1 <= len(points) <= MAX_POINTS:
            raise ValueError(f"a pin has 1..{MAX_POINTS} data points, not {len(points)}")
        return points

    @field_validator("points")
    @classmethod
    def _told_apart(cls, points: tuple[Point, ...]) -> tuple[Point, ...]:
        twice = repeated([point.label for point in points])
        if twice:
            raise ValueError(twice)
        return points


def repeated(labels: Iterable[str]) -> str:
    """What is wrong with labels of one pin that are not different; `''` when they are."""
    again = [quoted(label) for label, count in Counter(labels).items() if count > 1]
    return f"two data points are called {' and two '.join(again)}" if again else ""


def named(mistakes: list[str]) -> list[str]:
    """The first of many mistakes, and how many more there are."""
    more = len(mistakes) - NAMED
    return mistakes if more <= 0 else [*mistakes[:NAMED], f"and {more} more"]


def byte_count(count: int) -> str:
    """How a person says how many bytes."""
    return "1 byte" if count == 1 else f"{count} bytes"
