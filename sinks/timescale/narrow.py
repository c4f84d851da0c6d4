"""A reading as rows of the narrow table, one for each value."""

import math
import re
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import msgspec

from schemas.reading import EXACT_INTEGER, Reading, RejectedError, Value
from sinks.base import integer_type, out_of_type, unfit
from sinks.timescale.tables import NARROW, ORIGINAL_TOPIC

Row = tuple[
    datetime, str, str, str, str, float | None, int | None, str | None, bool | None, str, str, str, str, int, str
]
#: The columns of a row, in its order.
COLUMNS: Final = tuple(column.name for column in NARROW.columns if column.name != "inserted_at")
#: How many of them, at the beginning, are the key.
KEY_LENGTH: Final = len(NARROW.key)

_NULL: Final = (None, None, None, None)
_CONNECTOR: Final = re.compile(r"[0-9]{1,4}")
#: Longer channels are not remembered, so that hostile ones cannot fill the memory.
_REMEMBERED_CHARS: Final = 512


def add_rows(rows: list[Row], reading: Reading, types: Mapping[str, str]) -> None:
    """Append a reading's rows; `types` are those set for metrics. Raises `RejectedError` where a value has no form."""
    time, measurement, device, channel = reading.time, reading.measurement, reading.device_id, reading.channel
    if "\0" in device or "\0" in channel or "\0" in measurement:
        raise RejectedError("nul", "a name holds a NUL character, which PostgreSQL cannot store")
    units, tags = reading.units, reading.tags
    topic = tags.get(ORIGINAL_TOPIC, "") if tags else ""
    meta = _meta_of(reading)
    mode, connector, pin = (_address if len(channel) <= _REMEMBERED_CHARS else _address.__wrapped__)(channel)
    raw = reading.raw
    for metric, value in reading.values.items():
        unit = units.get(metric, "") if units else ""
        own = _meta_text(reading, metric) if raw else meta
        integer = integer_type(types, measurement, metric) if types else None
        number: Any = value
        whole = text = truth = None
        if value.__class__ is not float or integer is not None or not math.isfinite(value):
            number, whole, text, truth = _columns(metric, value, integer)
        rows.append(
            (
                time,
                measurement,
                device,
                channel,
                metric,
                number,
                whole,
                text,
                truth,
                unit,
                topic,
                own,
                mode,
                connector,
                pin,
            )
        )


@lru_cache(maxsize=4096)
def _address(channel: str) -> tuple[str, int, str]:
    """The documents' connector_mode, connector and pin_position."""
    if not channel:
        return "unknown", -1, "-1"
    mode, connector, pin, *_ = (*channel.split("/"), "", "")
    return mode, int(connector) if _CONNECTOR.fullmatch(connector) else -1, pin or "-1"


def _columns(
    metric: str, value: Value, integer: str | None
) -> tuple[float | None, int | None, str | None, bool | None]:
    """The columns value, value_int, value_text and value_bool; `integer` is the integer type set for the metric.

    Raises `RejectedError` where none of them holds the value exactly.
    """
    if value is None:
        return _NULL
    if integer is not None:
        if out_of_type(integer, value):
            raise unfit(metric, value, integer)
        return None, value, None, None  # type: ignore[return-value]  # out_of_type has seen that it is an int
    match value:
        case bool():
            return None, None, None, value
        case float():
            if not math.isfinite(value):
                raise unfit(metric, value)
            return value, None, None, None
        case str():
            return None, None, value, None
    if not -EXACT_INTEGER <= value <= EXACT_INTEGER:
        raise unfit(metric, value)
    return float(value), None, None, None


def _meta_of(reading: Reading) -> str:
    if reading.tags or reading.flags or reading.raw:
        return "" if reading.raw else _meta_text(reading, None)
    return _dialect_text(reading.dialect)


@lru_cache(maxsize=256)
def _dialect_text(dialect: str) -> str:
    """The meta column of the many readings that have nothing but a dialect to say."""
    return msgspec.json.encode({"dialect": dialect} if dialect else {}).decode()


def _meta_text(reading: Reading, metric: str | None) -> str:
    """The meta column: what a reading says besides its values, as JSON."""
    meta: dict[str, Any] = {}
    if reading.dialect:
        meta["dialect"] = reading.dialect
    tags = {name: value for name, value in reading.tags.items() if name != ORIGINAL_TOPIC}
    if tags:
        meta["tags"] = tags
    if reading.flags:
        meta["flags"] = reading.flags
    if metric is not None and metric in reading.raw:
        meta["raw"] = reading.raw[metric]
    if any("\0" in name or "\0" in value for name, value in tags.items()):
        raise RejectedError("nul", "a tag holds a NUL character, which PostgreSQL cannot store")
    return msgspec.json.encode(meta).decode()
