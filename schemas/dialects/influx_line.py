r"""The `influx-line` dialect: InfluxDB line protocol, as Telegraf sends it and InfluxDB exports it; a line is a point.

The measurement stays; one tag is the device, and by default the others are the channel, since points that differ in a
tag are different series: `cpu,host=a,cpu=cpu0 idle=1` is device `a`, channel `cpu=cpu0`. All tags, the device's too,
stay in `tags`, so that `encode` gives the line back. Fields become metrics: `1.0` a float, `1i` and `1u` integers,
`t` or `true` a boolean, `"…"` text. Units are not stated, and of a field that a line repeats the last counts.

A secret tag or field is dropped, and so tells no series apart: points that differ in a tag such as `token` alone are
one series, and those of one payload and time contradict each other unless they are equal.

Timestamps count what the option `precision` says. Seconds that are taken for nanoseconds lie in the first days of 1970,
where the policy's `time.since` refuses them as `old`: say `precision: s`, or `auto`.

Escapes are InfluxDB's: in names a backslash before a comma, a space or `=` takes its meaning away, in texts one before
`"` or a backslash; any other backslash is itself. A text may hold line breaks. What cannot be read rejects its line,
and a value that is out of range only itself.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Final, Literal, NamedTuple

from msgspec import structs
from pydantic import AfterValidator, Field

from schemas.config import Model
from schemas.dialects import Decode, Example, Match, Meta, Walk
from schemas.payload import LETTERS, NAME_CHARS, Refusals, is_secret, quoted
from schemas.reading import RECEIVE_TIME, Reading, Rejected, RejectedError, Value
from schemas.time import FIRST_YEAR, LAST_YEAR

MATCH: Final = Match("influx-line")

_NAME: Final = "influx-line"
#: How many heads of lines, names of fields and names of tags are remembered in all, and how long they may be, so that
#: hostile ones cannot fill the memory: heads of 256 characters that are all tags take 20 MB, usual ones 6.
_HEADS: Final = 4_096
_NAMES: Final = 2_048
_REMEMBERED_CHARS: Final = 256
_LARGEST: Final = 2**63 - 1
_LARGEST_UNSIGNED: Final = 2**64 - 1
#: No 64-bit integer has more digits.
_DIGITS: Final = 20


def _public(name: str) -> str:
    if is_secret(name):
        raise ValueError(f"{name} is the name of a secret, which is never read")
    return name


Tag = Annotated[str, Field(min_length=1, max_length=NAME_CHARS), AfterValidator(_public)]


class Options(Model):
    """How points become readings.

    `device` are the tags that may name the device; the first one that a point has does. `channel` are the tags that
    make the channel, all others when it is not said; only name fewer where the rest say nothing about which series it
    is. `precision` is what timestamps count; `auto` tells by their size, and takes what is near 1970 for seconds. Any
    other must be right: the policy's `time.since` refuses most of what is not.
    """

    device: tuple[Tag, ...] = Field(("device_id", "device", "host"), min_length=1)
    channel: tuple[Tag, ...] | None = None
    precision: Literal["ns", "us", "ms", "s", "auto"] = "ns"


# -- the form ----------------------------------------------------------------------------------------------------------

# Every quantifier is possessive: what was matched once is never tried another way, so time grows with the length alone.


def _until(ends: str) -> str:
    """A pattern for text up to one of some characters or a line's end, where a backslash takes their meaning away."""
    plain = rf"[^\\{ends}\n]*+"
    return rf"{plain}(?:\\++[^\n]{plain})*+"


_KEY: Final = _until(",= ")
_TEXT: Final = r"[^\"\\]*+(?:\\.[^\"\\]*+)*+"
_ONE_FIELD: Final = rf'{_KEY}=(?:"{_TEXT}"|[^", \r\n][^, \r\n]*+)'
_FIELDS: Final = rf"{_ONE_FIELD}(?:,{_ONE_FIELD})*+"
_NOTHING: Final = r"(?:[ \t\r]*+(?:\#[^\n]*+)?+\n)*+[ \t\r]*+"
_HEAD: Final = rf"(?![,#]){_until(' ')}"
_STAMP: Final = rf"(?:(-?+[0-9]{{1,{_DIGITS}}}+)(?=[ \r\n]|\Z)|([^ \r\n]++))"
_END: Final = r" *+\r?+(?:\n|\Z)"

#: A point, with the empty lines and comments before it: its head, its fields, and its timestamp, a number or not.
_point = re.compile(rf"{_NOTHING}({_HEAD}) ++({_FIELDS})(?: ++{_STAMP})?+{_END}", re.DOTALL)
#: Of the fields of a point each: its name, its number and what is behind it, or another value that is no text, or its
#: text.
_fields = re.compile(
    rf"({_KEY})="
    r"(?:(-?+(?:[0-9]++(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?+[0-9]++)?+)([iu]?+)(?![^,])"
    rf'|([^",][^,]*+)|"({_TEXT})"),?+',
    re.DOTALL,
)
_tags = re.compile(rf",({_KEY})=({_KEY})")
_measurement = re.compile(_until(","))
_nothing = re.compile(_NOTHING)
_head = re.compile(_HEAD)
_one_field = re.compile(_ONE_FIELD, re.DOTALL)
_one_key = re.compile(rf'{_KEY}="')
_escaped = re.compile(r"\\([, =])")
_escaped_measurement = re.compile(r"\\([, ])")
_escaped_text = re.compile(r'\\(["\\])')
_not_utf8 = re.compile("[\ud800-\udfff]")
_not_a_number = re.compile(r"[+-]?(?:nan|inf|infinity)", re.IGNORECASE | re.ASCII)

_BOOLEANS: Final[Mapping[str, bool]] = {
    **dict.fromkeys(("t", "T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("f", "F", "false", "False", "FALSE"), False),
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST_US: Final = (datetime(FIRST_YEAR, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_END_US: Final = (datetime(LAST_YEAR + 1, 1, 1, tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_IN_US: Final = {"us": 1, "ms": 1_000, "s": 1_000_000}


class _Lines:
    """The numbers of lines, asked for in rising order."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at, self._line = 0, 1

    def number(self, at: int) -> int:
        """The number, from 1, of the line in which a character is."""
        self._line += self._text.count("\n", self._at, at)
        self._at = at
        return self._line


# -- decoding ----------------------------------------------------------------------------------------------------------


class _Series(NamedTuple):
    """What the head of a line says; `tags` belongs to all readings of it and is copied."""

    measurement: str
    device_id: str
    channel: str
    tags: dict[str, str]


def decoder(options: Options) -> Decode:
    """What decodes line protocol as some options say."""
    return _Points(options).decode


class _Points:
    def __init__(self, options: Options) -> None:
        self._device, self._channel = options.device, options.channel
        self._precision = options.precision

    def decode(self, payload: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
        text, damaged = _text(payload)
        at, end = 0, len(text)
        readings: list[Reading] = []
        refusals, lines = Refusals(), _Lines(text)
        while at < end:
            point = _point.match(text, at)
            if point is None:
                at = _refuse_line(text, at, refusals, lines)
                continue
            at = point.end()
            wrong: list[Rejected] = []
            try:
                if damaged and _not_utf8.search(point[0]) is not None:
                    raise RejectedError("undecodable", "it is not UTF-8")
                reading = self._reading(point, meta, wrong)
            except RejectedError as error:
                wrong = [error.rejected]
            else:
                if reading is not None:
                    readings.append(reading)
            for why in wrong:
                refusals.add(why.reason, f"line {lines.number(point.start(1))}: {why.error}")
        return refusals.after(readings) or (Rejected("empty", "the payload holds no points"),)

    def _reading(self, point: re.Match[str], meta: Meta, wrong: list[Rejected]) -> Reading | None:
        head, fields, stamp, other = point.groups()
        find = _series if len(head) <= _REMEMBERED_CHARS else _series.__wrapped__
        series = find(head, self._device, self._channel)
        time = None if stamp is None else _instant(stamp, self._precision)
        flags: list[str] = []
        if time is None:
            time, flags = _unusual_time(stamp, other, self._precision, meta)
        values = _values(fields, wrong)
        if values:
            measurement, device_id, channel, tags = series
            return Reading(measurement, device_id, time, values, channel, tags=tags.copy(), dialect=_NAME, flags=flags)
        if not wrong:
            raise RejectedError("missing_field", "it has no field but secrets")
        return None


def _refuse_line(text: str, at: int, refusals: Refusals, lines: _Lines) -> int:
    """Refuse the line at a character, unless it is a comment; where the next one begins."""
    blank = _nothing.match(text, at)
    at = at if blank is None else blank.end()
    if at < len(text) and text[at] != "#":
        refusals.add("undecodable", f"line {lines.number(at)}: {_why(text, at)}")
    newline = text.find("\n", at)
    return len(text) if newline < 0 else newline + 1


def _text(payload: bytes) -> tuple[str, bool]:
    """A payload's text, and whether some of it, in place of which are surrogates, is not UTF-8."""
    try:
        return payload.decode(), False
    except UnicodeDecodeError:
        return payload.decode("utf-8", "surrogateescape"), True


@lru_cache(maxsize=_HEADS)
def _series(head: str, devices: tuple[str, ...], channels: tuple[str, ...] | None) -> _Series:
    """What a head says, as `Options` of these `device` and `channel` have it: topics that agree on them share it."""
    named = _measurement.match(head)
    at, end = 0 if named is None else named.end(), len(head)
    measurement = _escaped_measurement.sub(r"\1", head[:at])
    _fits(measurement, "the measurement")
    tags: dict[str, str] = {}
    while at < end:
        tag = _tags.match(head, at)
        name, value = tag.groups() if tag is not None else ("", "")
        if tag is None or not name or not value:
            raise RejectedError("undecodable", f"at character {at + 1} there is no tag of the form ,name=value")
        at = tag.end()
        if at < end and head[at] != ",":
            raise RejectedError("undecodable", f"at character {at + 1} a tag's value has = without a backslash")
        if "\\" in name or "\\" in value:
            name, value = _escaped.sub(r"\1", name), _escaped.sub(r"\1", value)
        _fits(name, "a tag's name")
        if is_secret(name):
            continue
        if name in tags:
            raise RejectedError("undecodable", f"the tag {quoted(name)} is there twice")
        tags[name] = value
    device = next((name for name in devices if name in tags), None)
    if device is None:
        raise RejectedError("missing_field", f"none of the tags {', '.join(devices)} is there: no device")
    _fits(tags[device], f"the device's tag {quoted(device)}")
    chosen = sorted(tags.keys() if channels is None else tags.keys() & set(channels))
    channel = ",".join(f"{_marked(name)}={_marked(tags[name])}" for name in chosen if name != device)
    if len(channel) > NAME_CHARS:
        why = f"the channel of its tags has {len(channel)} characters, more than {NAME_CHARS}: name fewer as `channel`"
        raise RejectedError("too_large", why)
    return _Series(measurement, tags[device], channel, tags)


def _marked(part: str) -> str:
    """A tag's name or value as it stands in a channel: no two sets of tags have the same channel."""
    return part.replace("\\", "\\\\").replace(",", "\\,").replace("=", "\\=")


def _fits(name: str, what: str) -> None:
    if len(name) > NAME_CHARS:
        raise RejectedError("too_large", f"{what} has {len(name)} characters, more than {NAME_CHARS}")


def _values(said: str, wrong: list[Rejected]) -> dict[str, Value]:
    """The values of a point's fields, without secrets; what is wrong with others is put to `wrong`.

    Raises `RejectedError` for a field that is none.
    """
    values: dict[str, Value] = {}
    for key, number, kind, other, text in _fields.findall(said):
        metric = (_metric if len(key) <= _REMEMBERED_CHARS else _metric.__wrapped__)(key)
        if metric is None:
            continue
        try:
            if len(metric) > NAME_CHARS:
                _fits(metric, "a field's name")
            elif number:
                values[metric] = _integer(metric, number, kind) if kind else _float(metric, number)
            elif not other:
                values[metric] = _escaped_text.sub(r"\1", text) if "\\" in text else text
            elif other in _BOOLEANS:
                values[metric] = _BOOLEANS[other]
            else:
                raise _not_a_value(metric, other)
        except RejectedError as error:
            if error.rejected.reason == "undecodable":
                raise
            wrong.append(error.rejected)
    return values


@lru_cache(maxsize=_NAMES)
def _metric(key: str) -> str | None:
    """The name of a field's metric, None when it is a secret."""
    if not key:
        raise RejectedError("undecodable", "a field has no name")
    metric = _escaped.sub(r"\1", key)
    return None if is_secret(metric) else metric


def _float(metric: str, number: str) -> float:
    value = float(number)
    if value - value != 0.0:
        raise RejectedError("out_of_range", f"{quoted(metric)} is {quoted(number)}, which no double can hold")
    return value


def _integer(metric: str, number: str, kind: str) -> int:
    if number.removeprefix("-").isdecimal() and not (kind == "u" and number[0] == "-"):
        digits = number.lstrip("-0") or "0"
        value = int(digits) if len(digits) <= _DIGITS else _LARGEST_UNSIGNED + 1
        if number[0] == "-":
            value = -value
        if -_LARGEST - 1 <= value <= (_LARGEST if kind == "i" else _LARGEST_UNSIGNED):
            return value
        raise RejectedError("out_of_range", f"{quoted(metric)} is {quoted(number + kind)}, beyond 64 bits")
    raise RejectedError("undecodable", f"{quoted(metric)} is {quoted(number + kind)}, which is no integer")


def _not_a_value(metric: str, other: str) -> RejectedError:
    if _not_a_number.fullmatch(other) is not None:
        return RejectedError("not_finite", f"{quoted(metric)} is {quoted(other)}, which is not a finite number")
    why = f'{quoted(metric)} is {quoted(other)}, neither a number, a boolean nor text in "'
    return RejectedError("undecodable", why)


@lru_cache(maxsize=1_024)
def _instant(stamp: str, precision: str) -> datetime | None:
    """The instant that a number says, finer than a microsecond cut off; None where that is to be looked at closer."""
    if precision == "auto":
        return None
    count = int(stamp)
    micros = count // 1_000 if precision == "ns" else count * _IN_US[precision]
    return _EPOCH + timedelta(microseconds=micros) if _FIRST_US <= micros < _END_US else None


def _unusual_time(stamp: str | None, other: str | None, precision: str, meta: Meta) -> tuple[datetime, list[str]]:
    if stamp is None and other is None:
        return meta.time(None)
    if stamp is None:
        # It may be part of a field, and of a secret's value, so it is not shown.
        if other is not None and ("=" in other or '"' in other):
            raise RejectedError("undecodable", "behind the fields comes more than a timestamp")
        why = f"the timestamp is no integer of at most {_DIGITS} digits"
    elif precision == "auto":
        return meta.time(int(stamp))
    else:
        why = f"the timestamp is {stamp} {precision}, outside the years {FIRST_YEAR}..{LAST_YEAR}"
    if meta.setup.unreadable:
        return meta.received, [RECEIVE_TIME]
    raise RejectedError("bad_timestamp", why)


def _why(text: str, start: int) -> str:
    """Why the line that begins at a character is no point; nothing of it is shown, since it may hold a secret."""
    head = _head.match(text, start)
    if head is None:
        return "the measurement is missing"
    at = head.end()
    if text[at : at + 1] != " ":
        return "there are no fields: a space, then name=value, must follow the measurement and its tags"
    while text[at : at + 1] == " ":
        at += 1
    while (field := _one_field.match(text, at)) is not None:
        at = field.end()
        if text[at : at + 1] != ",":
            return f"behind the field that ends at character {at - start} comes neither a comma nor a timestamp alone"
        at += 1
    if _one_key.match(text, at) is not None:
        return f"the text that begins in the field at character {at - start + 1} has no end"
    return f"at character {at - start + 1} there is no field of the form name=value"


# -- encoding ----------------------------------------------------------------------------------------------------------


def encode(reading: Reading) -> bytes:
    """The line that `decode` makes this reading of, whatever the options, but for `precision`, which must be `ns`."""
    head = re.sub("[, ]", r"\\\g<0>", reading.measurement)
    tags = "".join(f",{_written(tag)}={_written(value)}" for tag, value in reading.tags.items())
    values = reading.values.items()
    fields = ",".join(f"{_written(metric)}={_value(value)}" for metric, value in values if value is not None)
    return f"{head}{tags} {fields} {(reading.time - _EPOCH) // timedelta(microseconds=1)}000".encode()


def _written(name: str) -> str:
    return re.sub("[, =]", r"\\\g<0>", name)


def _value(value: bool | float | str) -> str:  # noqa: FBT001  it is a value, no switch
    if isinstance(value, str):
        return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float) else f"{value}{'i' if value <= _LARGEST else 'u'}"


def template(prefix: str, number: int) -> Reading:
    """What a simulated device says first; its name is a tag, too."""
    device_id = f"{prefix}-{number:03d}"
    return structs.replace(_FIRST, device_id=device_id, tags=_FIRST.tags | {"device_id": device_id})


WALKS: Final[Mapping[str, Walk]] = {
    "temperature": Walk(18.0, 28.0, 0.1, odd=(55.0, 95.0)),
    "humidity": Walk(35.0, 65.0, 0.3, odd=(92.0, 100.0)),
}


def _without_fields(payload: bytes) -> bytes:
    return payload.partition(b" ")[0]


def _without_device(payload: bytes) -> bytes:
    return payload.replace(b",device_id=", b",id=")


def _without_time(payload: bytes) -> bytes:
    return payload.rpartition(b" ")[0]


SPOILED: Final = {
    "undecodable": _without_fields,
    "missing_field": _without_device,
    "bad_timestamp": lambda payload: _without_time(payload) + b" -1",
}

_BOOLEAN_WORDS: Final = tuple(word.encode() for word in _BOOLEANS)
_AT: Final = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
_STAMPED: Final = b" 1759667696123456789\n"


def _gives(  # noqa: PLR0913  all that a point says
    values: Mapping[str, Value],
    measurement: str = "m",
    device_id: str = "a",
    channel: str = "",
    *,
    at: datetime = _AT,
    tags: Mapping[str, str] | None = None,
) -> Reading:
    return Reading(
        measurement, device_id, at, dict(values), channel, tags=dict(tags or {"host": device_id}), dialect=_NAME
    )


_FIRST: Final = _gives(
    {"temperature": 23.5, "humidity": 65.2},
    "climate",
    "sensor-001",
    "room=hall",
    tags={"device_id": "sensor-001", "room": "hall"},
)

EXAMPLES: Final = (
    Example(b"climate,device_id=sensor-001,room=hall temperature=23.5,humidity=65.2 1759667696123456000", [_FIRST]),
    Example(  # as Telegraf says it: two processors of one machine are two series
        b"cpu,cpu=cpu0,host=edge-1 usage_idle=98.5\n# a comment\n\n".replace(b"\n#", _STAMPED + b"#")
        + b"  cpu,cpu=cpu1,host=edge-1 usage_idle=97"
        + _STAMPED,
        [
            _gives({"usage_idle": 98.5}, "cpu", "edge-1", "cpu=cpu0", tags={"cpu": "cpu0", "host": "edge-1"}),
            _gives({"usage_idle": 97.0}, "cpu", "edge-1", "cpu=cpu1", tags={"cpu": "cpu1", "host": "edge-1"}),
        ],
    ),
    Example(
        b"m,host=a " + b",".join(b"%d=%s" % pair for pair in enumerate(_BOOLEAN_WORDS)) + _STAMPED,
        [_gives({str(number): number < len(_BOOLEAN_WORDS) // 2 for number in range(len(_BOOLEAN_WORDS))})],
    ),
    Example(
        b'm,host=a i=-9223372036854775808i,u=18446744073709551615u,n=1,e=-1.5e-3,p=.5,t=""' + _STAMPED,
        [_gives({"i": -(2**63), "u": 2**64 - 1, "n": 1.0, "e": -0.0015, "p": 0.5, "t": ""})],
    ),
    Example(  # escapes: of commas, spaces and = in names, of quotes and backslashes in a text, which may have lines
        rb"a\,b\ c=d,host=h\ 1,k\=\,=v\\=\w x\ y\==" + b'"say \\"hi\\", C:\\\\dir\\n\r\n=1 "' + _STAMPED,
        [
            _gives(
                {"x y=": 'say "hi", C:\\dir\\n\r\n=1 '},
                "a,b c=d",
                "h 1",
                "k\\=\\,=v\\\\\\=\\\\w",
                tags={"host": "h 1", "k=,": "v\\=\\w"},
            )
        ],
    ),
    Example(b"m,host=a  f=1,f=2  1759667696123456789 \r\n", [_gives({"f": 2.0})]),
    Example(b'm,host=a,api_key=k f=1,password="p"' + _STAMPED, [_gives({"f": 1.0})]),
    Example(  # a bad line rejects itself, and a bad value itself
        b"m,host=a f=1" + _STAMPED + b"m,host=a f=\n" + b"m,host=a f=2,g=NaN,h=1i" + _STAMPED,
        [_gives({"f": 1.0}), _gives({"f": 2.0, "h": 1}), "undecodable", "not_finite"],
    ),
    Example(  # a text without an end takes no other line with it
        b'm,host=a f="1' + _STAMPED + b"m,host=a f=2" + _STAMPED, [_gives({"f": 2.0}), "undecodable"]
    ),
    Example(b'm,host=a f="\xff"' + _STAMPED + b"m,host=a f=2" + _STAMPED, [_gives({"f": 2.0}), "undecodable"]),
    Example(b"m,host=a f=1" + _STAMPED + b"bad\n" * 1_000, [_gives({"f": 1.0}), *["undecodable"] * (LETTERS + 1)]),
    Example(b"bad\n" * 1_000, ["undecodable"]),
    Example(b"", ["empty"]),
    Example(b"\n# nothing but comments\r\n  \n#", ["empty"]),
    Example(b"m,host=a", ["undecodable"]),
    Example(b"m,host=a " + _STAMPED, ["undecodable"]),
    Example(b",host=a f=1" + _STAMPED, ["undecodable"]),
    Example(b"m,host= f=1" + _STAMPED, ["undecodable"]),
    Example(b"m,=a f=1" + _STAMPED, ["undecodable"]),
    Example(b"m,host=a=b f=1" + _STAMPED, ["undecodable"]),
    Example(b"m,host=a,host=a f=1" + _STAMPED, ["undecodable"]),
    Example(b"m,host=a =1" + _STAMPED, ["undecodable"]),
    Example(b"m,host=a f=1,,g=2" + _STAMPED, ["undecodable"]),
    Example(b"m,host=a f=text" + _STAMPED, ["undecodable"]),
    Example(b'm,host=a f="a"b' + _STAMPED, ["undecodable"]),
    Example(b"m,host=a f=1.5i" + _STAMPED, ["undecodable"]),
    Example(b"m,host=a f=-1u" + _STAMPED, ["undecodable"]),
    Example(b"m,host=a f=1_000" + _STAMPED, ["undecodable"]),
    Example(b"m,host=a f=1 g=2" + _STAMPED, ["undecodable"]),
    Example(b'{"host":"a","f":1}', ["undecodable"]),
    Example(b"m,host=a f=-inf" + _STAMPED, ["not_finite"]),
    Example(b"m,host=a f=1e400" + _STAMPED, ["out_of_range"]),
    Example(b"m,host=a f=9223372036854775808i" + _STAMPED, ["out_of_range"]),
    Example(b"m,host=a f=18446744073709551616u" + _STAMPED, ["out_of_range"]),
    Example(b"m,room=hall f=1" + _STAMPED, ["missing_field"]),
    Example(b"m f=1" + _STAMPED, ["missing_field"]),
    Example(b"m,host=a f=1", ["missing_field"]),
    Example(b'm,host=a token="t"' + _STAMPED, ["missing_field"]),
    Example(b"m,host=a f=1 noon", ["bad_timestamp"]),
    Example(b"m,host=a f=1 -1", ["bad_timestamp"]),
    Example(b"m,host=a f=1 99999999999999999999", ["bad_timestamp"]),
    Example(b"m,host=a f=1 1893456000000000000", ["future"]),
    Example(b"m,host=" + b"a" * 257 + b" f=1" + _STAMPED, ["too_large"]),
    Example(b"m,host=a " + b"f" * 257 + b"=1" + _STAMPED, ["too_large"]),
)
