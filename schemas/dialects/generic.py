"""The `json` dialect: any JSON, where the configuration says which part of a payload is what (`Options`).

A path leads to a part: `data.probes[0].value`; a name with other characters stands in quotes, `data."a.b"`, where a
backslash goes before a quote or a backslash. `[-1]` is the last of an array. Within `each`, paths begin at the element,
which is also `@`, and `$` is the whole payload: `$.site.name`. `$key`, `$topic`, `$header.NAME`, `$origin` and
`$origin[1]`, the second part between its slashes, are the record's key, topic, header and original topic.

The device is a text, kept as it is, or a number N, which is `device_N`. What tells the parts of one device apart is
their `channel`: without it their values are of one series, and those of one time contradict each other.

Numbers stay what they are, integers integers; units come from the configuration, the payload, or a text such as
`27.93 °C` where `numbers` is `parse`. A part that is not there is left out, null is null, and what has another kind of
value than it must rejects itself, the whole reading where it is its device, channel, measurement or time. What is named
like a secret is never read.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from schemas import units
from schemas.config import Model
from schemas.dialects import Decode, Example, Match, Meta
from schemas.payload import NAME_CHARS, Refusals, device, fields, is_secret, quoted, text
from schemas.reading import UNPARSABLE, Reading, Rejected, RejectedError, Value

MATCH: Final = Match("json")

#: Among fields or tags this name stands for every member of an object, under its own name.
EVERY: Final = "*"
_ELEMENT: Final = "@"
_ROOT: Final = "$"


# -- paths -------------------------------------------------------------------------------------------------------------

#: What finds a part of an element, its payload or its record: its value, or UNSET when there is none.
Find = Callable[[Any, Any, Meta], Any]


class Path(NamedTuple):
    """A path, ready for use: what is written, what finds it, and where it begins and the steps from there."""

    text: str
    find: Find
    begin: str
    steps: tuple[str | int, ...]


_index = re.compile(r"\[(-?[0-9]{1,6})\]")
_bare = re.compile(r"[^.\[\]\"\s]+")
_in_quotes = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_escaped = re.compile(r"\\(.)", re.DOTALL)
_origin = re.compile(r"\$origin(?:\[(-?[0-9]{1,3})\])?")
_HEADER: Final = "$header."
#: What begins a path where a text may also be meant as it is.
_clearly_a_path = re.compile(r"@[.\[]|\$[.\[a-z]")


def path(written: str) -> Path:
    """The path that a text is; raises `ValueError` that says what is wrong, and at which character."""
    if not written:
        raise ValueError("a path must not be empty")
    if len(written) > NAME_CHARS:
        raise ValueError(f"a path has at most {NAME_CHARS} characters")
    begin, behind = written[0], written[1:2]
    if begin == _ROOT and behind not in {"", ".", "["}:
        return _of_record(written)
    if begin in {_ROOT, _ELEMENT} and behind in {"", ".", "["}:
        steps = tuple(_steps(written, 1))
    else:
        begin, steps = _ELEMENT, tuple(_steps(written, 0))
    for step in steps:
        if isinstance(step, str):
            _public(step)
    return Path(written, _follower(steps, from_root=begin == _ROOT), begin, steps)


def _steps(written: str, at: int) -> Iterator[str | int]:
    begin = at
    while at < len(written):
        if written[at] == "[":
            index = _index.match(written, at)
            if index is None:
                raise _wrong(at, "in brackets stands a whole number, as [0]")
            yield int(index[1])
            at = index.end()
            continue
        if at or begin:
            if written[at] != ".":
                raise _wrong(at, "between two names stands a dot")
            at += 1
        if written[at : at + 1] == '"':
            name = _in_quotes.match(written, at)
            if name is None:
                raise _wrong(at, "the quote that ends the name is missing")
            yield _escaped.sub(r"\1", name[1])
        else:
            name = _bare.match(written, at)
            if name is None:
                raise _wrong(at, "here must be a name; one with dots, brackets, quotes or spaces stands in quotes")
            yield name[0]
        at = name.end()


def _wrong(at: int, why: str) -> ValueError:
    return ValueError(f"character {at + 1}: {why}")


def _public(name: str) -> str:
    if is_secret(name):
        raise ValueError(f"{quoted(name)} is the name of a secret, which is never read")
    return name


def _follower(steps: tuple[str | int, ...], *, from_root: bool) -> Find:
    def member(element: Any, _root: Any, _meta: Meta) -> Any:
        return element.get(steps[0], UNSET) if element.__class__ is dict else UNSET

    def find(element: Any, root: Any, _meta: Meta) -> Any:
        value = root if from_root else element
        for step in steps:
            if isinstance(step, str):
                if value.__class__ is not dict:
                    return UNSET
                value = value.get(step, UNSET)
            elif value.__class__ is list and -len(value) <= step < len(value):
                value = value[step]
            else:
                return UNSET
        return value

    # Most paths are a name alone, and need no loop.
    return member if len(steps) == 1 and isinstance(steps[0], str) and not from_root else find


def _of_record(written: str) -> Path:
    find: Find
    if written == "$key":
        find = _key
    elif written == "$topic":
        find = _topic
    elif (origin := _origin.fullmatch(written)) is not None:
        find = _origin_part(None if origin[1] is None else int(origin[1]))
    elif written.startswith(_HEADER) and written != _HEADER:
        find = _header(_public(written.removeprefix(_HEADER)))
    else:
        known = "$.NAME, $key, $topic, $origin, $origin[0] and $header.NAME"
        raise _wrong(0, f"{quoted(written)} is nothing of a record's; there are {known}")
    return Path(written, find, "", ())


def _key(_element: Any, _root: Any, meta: Meta) -> Any:
    return UNSET if meta.key is None else _utf8("the record's key", meta.key)


def _topic(_element: Any, _root: Any, meta: Meta) -> Any:
    return meta.topic


def _origin_part(part: int | None) -> Find:
    def find(_element: Any, _root: Any, meta: Meta) -> Any:
        origin = meta.origin
        if not origin:
            return UNSET
        if part is None:
            return origin
        parts = origin.split("/")
        return parts[part] if -len(parts) <= part < len(parts) else UNSET

    return find


def _header(name: str) -> Find:
    def find(_element: Any, _root: Any, meta: Meta) -> Any:
        for header, value in meta.headers:
            if header == name:
                return UNSET if value is None else _utf8(f"the header {quoted(name)}", value)
        return UNSET

    return find


def _utf8(what: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RejectedError("bad_type", f"{what} is not UTF-8 text") from error


# -- options -----------------------------------------------------------------------------------------------------------


def _a_path(written: str) -> str:
    path(written)
    return written


def _text_or_path(written: str) -> str:
    return _a_path(written) if _clearly_a_path.match(written) else written


def _mapping(said: Any) -> Any:
    """Of the path to an object, the mapping that means it."""
    if isinstance(said, str):
        said = {EVERY: said}
    if isinstance(said, Mapping) and said.get(EVERY) == EVERY:
        said = {**said, EVERY: _ELEMENT}
    return said


Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARS), AfterValidator(_public)]
PathText = Annotated[str, AfterValidator(_a_path)]
#: A text as it is, or a path that begins with `$` or `@.`.
TextOrPath = Annotated[str, Field(min_length=1, max_length=NAME_CHARS), AfterValidator(_text_or_path)]
Parts = Annotated[dict[Name, PathText], BeforeValidator(_mapping)]


class Options(Model):
    """Which part of a payload is what.

    `measurement` is a text, or a path that begins with `$` or `@.`; so is each of `units`, by metric. `device`, `time`
    and `channel` are paths; without a `time` the policy says whether the receive time stands in. `fields` is metrics
    and their paths, or the path of an object each of whose scalars is a metric, or `*` for the scalars that are beside
    each other at the top; of those two, what another path leads to is left out. `tags` are likewise, and an object or
    array among them is kept as JSON. Both may have `*` among their names for what the path of an object says. `each` is
    the path of an array of which every element is a reading. `numbers` says whether a text stays text (`strict`), or is
    a number, with its unit if there is one (`parse`); what is none is null and flagged, or refused, as the policy says.
    """

    measurement: TextOrPath = "telemetry"
    device: PathText
    time: PathText | None = None
    channel: PathText | None = None
    fields: Annotated[Parts, Field(min_length=1)]
    tags: Parts = Field(default_factory=dict)
    units: dict[Name, TextOrPath] = Field(default_factory=dict)
    each: PathText | None = None
    numbers: Literal["strict", "parse"] = "strict"

    @model_validator(mode="after")
    def _agree(self) -> "Options":
        if EVERY not in self.fields and (unknown := self.units.keys() - self.fields.keys()):
            raise ValueError(f"units: no field is called {', '.join(sorted(unknown))}")
        return self


# -- decoding ----------------------------------------------------------------------------------------------------------

_NUMBERS: Final[frozenset[type]] = frozenset({int, float})
_NESTED: Final[frozenset[type]] = frozenset({dict, list})
_decode: Final = msgspec.json.Decoder().decode


def decoder(options: Options) -> Decode:
    """What decodes JSON as some options say."""
    return _Mapped(options).decode


class _Mapped:
    """The options, ready for use."""

    def __init__(self, options: Options) -> None:
        self._measurement = _text_and_path(options.measurement)
        self._device = path(options.device)
        self._time = None if options.time is None else path(options.time)
        self._channel = None if options.channel is None else path(options.channel)
        self._each = None if options.each is None else path(options.each)
        self._fields = [(name, path(said)) for name, said in options.fields.items() if name != EVERY]
        self._tags = [(name, path(said)) for name, said in options.tags.items() if name != EVERY]
        self._units = [(name, *_text_and_path(said)) for name, said in options.units.items()]
        self._every_field = path(options.fields[EVERY]) if EVERY in options.fields else None
        self._every_tag = path(options.tags[EVERY]) if EVERY in options.tags else None
        self._used = frozenset(self._used_elsewhere()) if self._every_field is not None else frozenset()
        self._parses = options.numbers == "parse"

    def _used_elsewhere(self) -> Iterator[str | int]:
        """The members of the object whose every scalar is a metric to which, or into which, another path leads."""
        others = [self._measurement[1], self._device, self._time, self._channel, self._every_tag]
        others += [found for _, found in (*self._fields, *self._tags)]
        others += [found for _, _, found in self._units]
        every = self._from(self._every_field)
        for other in others:
            steps = self._from(other)
            if len(steps) > len(every) and steps[: len(every)] == every:
                yield steps[len(every)]

    def _from(self, found: Path | None) -> tuple[str | int, ...]:
        """The steps of a path from where all begin; an element is a beginning of its own."""
        if found is None or not found.begin:
            return ()
        begin = _ELEMENT if self._each is None else found.begin
        return (begin, *found.steps)

    def decode(self, payload: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
        try:
            root = _json(payload)
            elements = [root] if self._each is None else _elements(self._each, root, meta)
        except RejectedError as error:
            return (error.rejected,)
        readings: list[Reading] = []
        refusals = Refusals()
        for number, element in enumerate(elements):
            wrong: list[Rejected] = []
            try:
                readings.append(self._reading(element, root, meta, wrong))
            except RejectedError as error:
                wrong.append(error.rejected)
            for why in wrong:
                place = "" if self._each is None else f"{self._each.text}[{number}]: "
                refusals.add(why.reason, place + why.error)
        return refusals.after(readings) or (Rejected("empty", "there are no elements in the array"),)

    def _reading(self, element: Any, root: Any, meta: Meta, wrong: list[Rejected]) -> Reading:
        device_id = _device(self._device, element, root, meta)
        if not device_id:
            raise RejectedError("missing_field", f"{self._device.text} is missing or empty, which is the device")
        measurement, at = self._measurement
        if at is not None:
            measurement = _label(at, element, root, meta)
            if not measurement:
                raise RejectedError("missing_field", f"{at.text} is missing or empty, which is the measurement")
        channel = "" if self._channel is None else _label(self._channel, element, root, meta)
        if self._time is None:
            time, flags = meta.time(None, "the time")
        else:
            said = self._time.find(element, root, meta)
            time, flags = meta.time(None if said is UNSET else said, self._time.text)
        reading = Reading(measurement, device_id, time, {}, channel, {}, {}, {}, "json", flags)
        self._measure(reading, element, root, meta, wrong)
        if not reading.values:
            if not wrong:
                raise RejectedError("missing_field", "none of its fields is there")
            why = wrong.pop()
            raise RejectedError(why.reason, why.error)
        if self._every_tag is not None:
            for name, value in _members(self._every_tag, element, root, meta, wrong):
                _tag(reading.tags, name, value, wrong)
        for name, found in self._tags:
            _tag(reading.tags, name, found.find(element, root, meta), wrong)
        return reading

    def _measure(self, reading: Reading, element: Any, root: Any, meta: Meta, wrong: list[Rejected]) -> None:
        values = reading.values
        self._find(values, element, root, meta, wrong)
        if self._parses:
            for name, said in [(name, value) for name, value in values.items() if isinstance(value, str)]:
                _parse(reading, name, said, meta, wrong)
        for name, unit, at in self._units:
            if values.get(name).__class__ in _NUMBERS:
                _unit(reading, name, unit if at is None else at.find(element, root, meta), wrong)

    def _find(self, values: dict[str, Value], element: Any, root: Any, meta: Meta, wrong: list[Rejected]) -> None:
        if self._every_field is not None:
            members = _members(self._every_field, element, root, meta, wrong)
            values.update(pair for pair in members if pair[0] not in self._used and pair[1].__class__ not in _NESTED)
        for name, found in self._fields:
            value = found.find(element, root, meta)
            if value.__class__ in _NESTED:
                why = f"{found.text} is {quoted(value)}, not a number, text, boolean or null"
                wrong.append(Rejected("bad_type", why))
            elif value is not UNSET:
                values[name] = value


def _json(payload: bytes) -> Any:
    try:
        return _decode(payload)
    except (ValueError, RecursionError):  # msgspec's and UnicodeDecodeError are ValueErrors
        return fields(payload)  # which says in words why it is none


def _elements(each: Path, root: Any, meta: Meta) -> list[Any]:
    found = each.find(root, root, meta)
    if found is UNSET or found is None:
        raise RejectedError("missing_field", f"{each.text} is missing")
    if not isinstance(found, list):
        raise RejectedError("bad_type", f"{each.text} is {quoted(found)}, not an array")
    return found


def _text_and_path(said: str) -> tuple[str, Path | None]:
    return (said, path(said)) if _clearly_a_path.match(said) else (said, None)


def _device(found: Path, element: Any, root: Any, meta: Meta) -> str:
    value = found.find(element, root, meta)
    return device(found.text, value) if value.__class__ is int else _name(found.text, value)


def _label(found: Path, element: Any, root: Any, meta: Meta) -> str:
    """The text or integer at a path as a name, `''` when there is none."""
    value = found.find(element, root, meta)
    return _name(found.text, str(value) if value.__class__ is int else value)


def _name(place: str, value: object) -> str:
    if value is None or value is UNSET:
        return ""
    if not isinstance(value, str):
        raise RejectedError("bad_type", f"{place} is {quoted(value)}, neither text nor an integer")
    if len(value) > NAME_CHARS:
        raise RejectedError("too_large", f"{place} has {len(value)} characters, more than {NAME_CHARS}")
    return value


def _members(found: Path, element: Any, root: Any, meta: Meta, wrong: list[Rejected]) -> Iterator[tuple[str, Any]]:
    """The members of the object at a path, if it is there, without secrets; those unfit for names share a letter."""
    value = found.find(element, root, meta)
    if value is UNSET or value is None:
        return
    if not isinstance(value, dict):
        wrong.append(Rejected("bad_type", f"{found.text} is {quoted(value)}, not an object"))
        return
    unfit = 0
    for name, member in value.items():
        if 0 < len(name) <= NAME_CHARS:
            if not is_secret(name):
                yield name, member
        else:
            unfit += 1
    if unfit:
        why = f"{found.text} has {unfit} members whose names are empty or longer than {NAME_CHARS} characters"
        wrong.append(Rejected("too_large", why))


def _parse(reading: Reading, name: str, said: str, meta: Meta, wrong: list[Rejected]) -> None:
    """Make of a text the number, with its unit, that it should be."""
    found = units.split(said)
    if found is not None and math.isfinite(found[0]):
        reading.values[name], unit = found
        if unit:
            reading.units[name] = unit
    elif found is not None:
        del reading.values[name]
        wrong.append(Rejected("out_of_range", f"{quoted(name)} is {quoted(said)}, which no double can hold"))
    elif meta.setup.unparsable:
        reading.values[name] = None
        reading.raw[name] = said
        if UNPARSABLE not in reading.flags:
            reading.flags.append(UNPARSABLE)
    else:
        del reading.values[name]
        wrong.append(Rejected("unparsable", f"{quoted(name)} is {quoted(said)}, not a number and its unit"))


def _unit(reading: Reading, name: str, unit: object, wrong: list[Rejected]) -> None:
    """Say a value's unit, unless its own text has; a value whose unit cannot be known is not kept."""
    if name in reading.units or unit is UNSET or unit is None or unit == "":
        return
    if isinstance(unit, str) and len(unit) <= NAME_CHARS:
        reading.units[name] = unit
    else:
        del reading.values[name]
        wrong.append(Rejected("bad_unit", f"the unit of {quoted(name)} is {quoted(unit)}, not a short text"))


def _tag(tags: dict[str, str], name: str, value: object, wrong: list[Rejected]) -> None:
    if value is UNSET or value is None:
        return
    try:
        tags[name] = text(value)
    except RejectedError as error:
        wrong.append(Rejected(error.rejected.reason, f"the tag {quoted(name)}: {error}"))


# -- examples ----------------------------------------------------------------------------------------------------------

#: There is no `encode`: what to say depends on the options, which only the stage that decodes knows.
EXAMPLE_OPTIONS: Final[Mapping[str, Any]] = {
    "measurement": "machine",
    "device": "id",
    "time": "ts",
    "channel": "spindle.slot",
    "fields": {"*": "data", "load": "spindle.load[0]"},
    "tags": {"*": "place", "cell": "$origin[1]", "firmware": 'about."fw.version"'},
    "units": {"speed": "rpm", "pressure": "@.data.unit"},
    "numbers": "parse",
}

_AT: Final = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)
_START: Final = b'{"id":"press-7","ts":"2025-10-05T12:34:56Z"'


def _gives(values: Mapping[str, Value], **more: Any) -> Reading:
    return Reading("machine", "press-7", _AT, dict(values), dialect="json", **more)


EXAMPLES: Final = (
    Example(
        b'{"id":"press-7","ts":"2025-10-05T12:34:56Z","spindle":{"slot":2,"load":[0.5,0.7]},'
        b'"data":{"speed":1500,"pressure":2.5,"unit":"bar","temperature":"27.93 \xc2\xb0C","open":false},'
        b'"place":{"site":"Ulm","line":4,"api_key":"k"},"about":{"fw.version":"1.2"},"other":1}',
        [
            _gives(
                {"speed": 1500, "pressure": 2.5, "temperature": 27.93, "open": False, "load": 0.5},
                channel="2",
                units={"temperature": "°C", "speed": "rpm", "pressure": "bar"},
                tags={"site": "Ulm", "line": "4", "cell": "c9", "firmware": "1.2"},
            )
        ],
        origin="plant/c9/press-7",
    ),
    Example(_START + b',"data":{"speed":1e3}}', [_gives({"speed": 1000.0}, units={"speed": "rpm"})], origin="plant"),
    Example(
        b'{"id":17,"ts":1759667696,"data":{"pulses":9007199254740993,"door":null}}',
        [Reading("machine", "device_17", _AT, {"pulses": 2**53 + 1, "door": None}, dialect="json")],
        origin="plant",
    ),
    Example(  # a text that is no number
        _START + b',"data":{"level":"high"}}',
        [_gives({"level": None}, raw={"level": "high"}, flags=[UNPARSABLE])],
        origin="plant",
    ),
    Example(
        _START + b',"data":{"speed":1,"password":"p","gps":[1,2]},"spindle":{"load":[[1]]}}',
        [_gives({"speed": 1}, units={"speed": "rpm"}), "bad_type"],
        origin="plant",
    ),
    Example(
        _START + b',"data":{"pressure":1,"speed":2,"unit":5}}',
        [_gives({"speed": 2}, units={"speed": "rpm"}), "bad_unit"],
        origin="plant",
    ),
    Example(
        _START + b',"data":{"speed":2,"":1},"place":"Ulm"}',
        [_gives({"speed": 2}, units={"speed": "rpm"}), "too_large", "bad_type"],
        origin="plant",
    ),
    Example(b"", ["not_json"]),
    Example(_START, ["not_json"]),
    Example(_START + b',"data":{"speed":NaN}}', ["not_json"]),
    Example(_START + b',"data":{"speed":1e400}}', ["out_of_range"]),
    Example(_START + b',"data":{"speed":"1e400"}}', ["out_of_range"]),
    Example(_START + b',"data":' + b"[" * 5_000 + b"]" * 5_000 + b"}", ["too_large"]),
    Example(b'"press-7"', ["missing_field"]),
    Example(b"[]", ["missing_field"]),
    Example(b'{"ts":"2025-10-05T12:34:56Z","data":{"speed":1}}', ["missing_field"]),
    Example(_START.replace(b'"press-7"', b'""') + b',"data":{"speed":1}}', ["missing_field"]),
    Example(_START.replace(b'"press-7"', b"1.5") + b',"data":{"speed":1}}', ["bad_type"]),
    Example(_START.replace(b'"press-7"', b"true") + b',"data":{"speed":1}}', ["bad_type"]),
    Example(_START.replace(b"press-7", b"p" * 257) + b',"data":{"speed":1}}', ["too_large"]),
    Example(_START + b',"spindle":{"slot":[2]},"data":{"speed":1}}', ["bad_type"]),
    Example(_START + b"}", ["missing_field"]),
    Example(_START + b',"data":[1]}', ["bad_type"]),
    Example(b'{"id":"press-7","data":{"speed":1}}', ["missing_field"]),
    Example(_START.replace(b"56Z", b"56") + b',"data":{"speed":1}}', ["bad_timestamp"]),
    Example(_START.replace(b"2025", b"2035") + b',"data":{"speed":1}}', ["future"]),
)
