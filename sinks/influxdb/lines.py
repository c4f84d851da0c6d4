"""Readings as InfluxDB's line protocol, and the names that it cannot take."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from math import isfinite
from typing import Final
from urllib.parse import quote, unquote

from schemas.reading import EXACT_INTEGER, Reading, RejectedError, Value
from sinks.base import integer_type, out_of_type, unfit
from sinks.influxdb.fields import FieldTypes
from sinks.meta import META, meta_text

#: The tags that every point has, `channel` where it is not empty.
DEVICE: Final = "device_id"
CHANNEL: Final = "channel"

# -- names -------------------------------------------------------------------------------------------------------------

#: Begins a name that is stored percent-encoded, because line protocol or InfluxDB could not take it as it is.
_MARK: Final = "%"
_ODD: Final = "%\\\ufffd"


def stored(name: str, reserved: frozenset[str] = frozenset()) -> str:
    """The name that stands for any name at all in InfluxDB; no two names have the same."""
    plain = name.isprintable() and "\\" not in name and "\ufffd" not in name
    if plain and name and name[0] not in "%_#" and name not in reserved:
        return name
    return _MARK + "".join(c if c.isprintable() and c not in _ODD else quote(c, safe="") for c in name)


def original(stored: str) -> str:
    """The name that a stored one stands for."""
    return unquote(stored[1:]) if stored.startswith(_MARK) else stored


def _escaped(stored: str) -> str:
    """A stored name as line protocol has it in tags and field names; measurements take an escaped `=` as it is."""
    return stored.replace(",", "\\,").replace(" ", "\\ ").replace("=", "\\=")


def _text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


# -- lines -------------------------------------------------------------------------------------------------------------

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND: Final = timedelta(microseconds=1)
#: InfluxDB counts nanoseconds in 64 bits: the years 1677 to 2262.
_LAST_US: Final = (2**63 - 1) // 1000
#: Longer names of devices and channels are not remembered, so that hostile ones cannot fill the memory.
_REMEMBERED_CHARS: Final = 512
_META_FIELD: Final = f"{META}="


class Lines:
    """Readings as line protocol, for one set of promoted tags and types."""

    def __init__(
        self, tags: Sequence[str] = (), types: Mapping[str, str] | None = None, known: FieldTypes | None = None
    ) -> None:
        types, known = types or {}, known or FieldTypes()
        self._tags = tuple(tags)
        self._promoted = frozenset(tags)
        # A field of a tag's name could not be told from it by InfluxQL, and InfluxDB 3 refuses it.
        reserved = frozenset({DEVICE, CHANNEL, "time"} | self._promoted)

        @lru_cache(maxsize=32_768)
        def head(measurement: str, device: str, channel: str, more: tuple[tuple[str, str], ...]) -> str:
            tags = sorted([(DEVICE, device), *([(CHANNEL, channel)] if channel else []), *more])
            name = stored(measurement).replace(",", "\\,").replace(" ", "\\ ")
            return name + "".join(f",{_escaped(tag)}={_escaped(stored(value))}" for tag, value in tags) + " "

        @lru_cache(maxsize=32_768)
        def field(measurement: str, metric: str) -> tuple[str, bool, _Field]:
            """What a value follows, whether a finite float needs nothing more, and what other values need."""
            name = stored(metric, reserved)
            integer = integer_type(types, measurement, metric)
            there = known.of(stored(measurement), name)
            plain = integer is None and there in {None, "float"}
            return f"{_escaped(name)}=", plain, _Field(measurement, metric, integer, there, known)

        self._head, self._field = head, field

    def forget(self) -> None:
        """Ask anew what type each field has."""
        self._field.cache_clear()

    def line(self, reading: Reading) -> str:
        """One point, '' when there is nothing to store; raises `RejectedError` where no point holds the reading."""
        field, measurement = self._field, reading.measurement
        fields = []
        for metric, value in reading.values.items():
            key, plain, other = field(measurement, metric)
            if value.__class__ is float and plain and isfinite(value):
                fields.append(f"{key}{value!r}")
            elif value is not None:
                fields.append(key + other.text(value))
        promoted: tuple[tuple[str, str], ...] = ()
        tags = reading.tags
        if tags and self._promoted:
            promoted = tuple((name, tags[name]) for name in self._tags if name in tags)
        if meta := meta_text(reading, leave_out=self._promoted):
            fields.append(_META_FIELD + _text(meta))
        if not fields:
            return ""
        time = (reading.time - EPOCH) // MICROSECOND
        if not -_LAST_US <= time <= _LAST_US:
            raise RejectedError("bad_timestamp", f"{reading.time.isoformat()} is outside InfluxDB's years 1677 to 2262")
        device, channel = reading.device_id, reading.channel
        head = self._head if len(device) + len(channel) <= _REMEMBERED_CHARS else self._head.__wrapped__
        return f"{head(measurement, device, channel, promoted)}{','.join(fields)} {time}"


class _Field:
    """A metric of a measurement: the integer type set for it, and the type that it has in the bucket, if known."""

    __slots__ = ("_integer", "_known", "_measurement", "_metric", "_there")

    def __init__(
        self, measurement: str, metric: str, integer: str | None, there: str | None, known: FieldTypes
    ) -> None:
        self._measurement = measurement
        self._metric = metric
        self._integer = integer
        self._there = there
        self._known = known

    def text(self, value: Value) -> str:
        """A value as line protocol has it; raises `RejectedError` where it has none, or the bucket another type."""
        integer, metric, kind = self._integer, self._metric, "float"
        if integer is not None:
            if out_of_type(integer, value):
                raise unfit(metric, value, integer)
            text, kind = f"{value}i", "integer"
        elif isinstance(value, bool):
            text, kind = "true" if value else "false", "boolean"
        elif isinstance(value, str):
            text, kind = _text(value), "string"
        elif (isinstance(value, float) and not isfinite(value)) or (
            isinstance(value, int) and not -EXACT_INTEGER <= value <= EXACT_INTEGER
        ):
            raise unfit(metric, value)
        else:
            text = repr(value)
        there = self._there
        if there is not None and kind != there and self._known.trusted:
            raise RejectedError(
                "type_conflict",
                f"{metric} is of type {kind}, and has the type {there} in measurement {self._measurement!r}: send it "
                "as before, or under another name",
            )
        return text
