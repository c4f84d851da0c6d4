"""A batch of readings as the rows that are copied to the tables: narrow, and wide by the shape of a reading.

The shape of a reading is its measurement, its metrics and the classes of its values. What becomes of it is found once
and remembered, so that the usual reading costs little.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from operator import attrgetter, itemgetter
from typing import Any, Final, Literal, NamedTuple, cast

from msgspec import Struct

from schemas.reading import EXACT_INTEGER, Reading, Rejected, RejectedError, Value
from schemas.reasons import Reason
from sinks.base import Prepared, integer_type, out_of_type, unfit
from sinks.meta import meta_text
from sinks.timescale import narrow
from sinks.timescale.layout import Layout
from sinks.timescale.settings import Settings
from sinks.timescale.tables import KINDS, NARROW, Kind, Table, column_of

#: Shapes that are remembered; a hostile device may say any number.
_REMEMBERED: Final = 2048
#: The columns before and after those of the metrics.
_HEAD: Final = ("ts", "device_id", "channel")
_TAIL: Final = ("meta",)
_HEAD_LENGTH: Final = len(_HEAD)
#: Aggregates are replaced only by those of the same or a higher revision.
AGGREGATES: Final = "aggregates"
REVISION: Final = "revision"

_INSTANT: Final = attrgetter("time", "device_id", "channel", "measurement")
_TIME: Final = attrgetter("time")
#: The driver writes these two as -infinity and infinity.
_ENDLESS: Final = frozenset({datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)})
#: Why a wide reading may be refused that other columns would take.
_BY_COLUMNS: Final[frozenset[Reason]] = frozenset({"type_conflict", "bad_value", "integer_too_large"})
_INT64: Final = 2**63
_CLASS: Final[Mapping[type, tuple[Kind, str]]] = {
    float: ("double precision", "a number"),
    int: ("double precision", "a number"),
    str: ("text", "a text"),
    bool: ("boolean", "a boolean"),
}
_WORD: Final = {kind: word for word, kind in KINDS.items()}
#: An escaped NUL in JSON, and not an escaped backslash before `u0000`.
_NUL: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")

#: Measurement, metrics and the classes of their values.
Key = tuple[object, ...]
Line = tuple[Any, ...]


class Stack(NamedTuple):
    """Rows of one table, no two of the same key."""

    table: Table
    columns: tuple[str, ...]
    rows: Sequence[Line]


class Payload(Struct, frozen=True):
    """A batch as it was prepared for a layout; `wanted` are the columns that must be made before it is written.

    Where it is `doubtful`, some of its readings have no row, since the layout that they do not fit may be out of date:
    it is to be prepared again for a newer one.
    """

    stacks: Sequence[Stack]
    layout: Layout
    wanted: Mapping[str, Mapping[str, Kind]]
    readings: Sequence[Reading]
    doubtful: bool = False


class _Shape(Struct, frozen=True, eq=False):
    """What becomes of the readings of one shape."""

    measurement: str
    #: Of the metrics that are not null.
    columns: tuple[str, ...]
    metrics: tuple[tuple[str, Callable[[str, Any], Any]], ...]
    #: All are floats for doubles: their sum tells whether all are finite.
    floats: bool
    #: The metrics among them that have no column yet.
    new: Mapping[str, Kind]


class Rows:
    """Prepares batches for a layout. `types` maps `metric` or `measurement.metric` to INT32, INT64 or FLOAT."""

    def __init__(self, settings: Settings, types: Mapping[str, str], layout: Layout) -> None:
        self.layout = layout
        self._settings = settings
        self._types = types
        self._shapes: dict[Key, _Shape] = {}

    def prepare(self, readings: Sequence[Reading], *, doubt: bool = False) -> Prepared[Payload]:
        """A row for each reading or value; within a batch the last value of a key wins.

        With `doubt` no reading is refused that other columns would take: it is in the payload, which is `doubtful`.
        """
        batch = _Batch()
        wide, tall, types = self.layout.wide, batch.tall, self._types
        rejected: dict[int, Rejected] = {}
        doubtful: set[int] = set()
        endless = not _ENDLESS.isdisjoint(map(_TIME, readings))
        for index, reading in enumerate(readings):
            try:
                if endless:
                    _check_time(reading)
                if reading.measurement in wide:
                    self._add(batch, reading)
                else:
                    before = len(tall)
                    try:
                        narrow.add_rows(tall, reading, types)
                    except RejectedError:
                        del tall[before:]
                        raise
            except RejectedError as error:
                if doubt and reading.measurement in wide and error.rejected.reason in _BY_COLUMNS:
                    doubtful.add(index)
                else:
                    rejected[index] = error.rejected
        fitting = readings
        if rejected or doubtful:
            fitting = [each for index, each in enumerate(readings) if index not in rejected and index not in doubtful]
            readings = [each for index, each in enumerate(readings) if index not in rejected]
        alone = len(set(map(_INSTANT, fitting))) == len(fitting)
        stacks = self._stacks(batch) if alone else self._merged(batch, fitting)
        total = sum(len(stack.rows) for stack in stacks) + len(doubtful)
        return Prepared(Payload(stacks, self.layout, batch.new, readings, bool(doubtful)), total, rejected)

    def kept(self, reading: Reading) -> bool:
        """Whether a wide reading is a row. Raises `RejectedError` where it can have none."""
        batch = _Batch()
        _check_time(reading)
        self._add(batch, reading)
        return bool(batch.wide)

    # -- one reading ---------------------------------------------------------------------------------------------------

    def _add(self, batch: "_Batch", reading: Reading) -> None:
        """Add a wide reading's row, if it has anything to say."""
        values = reading.values
        cells: Any = values.values()
        # Names are texts and classes are not, so this is no other shape's key.
        key = (reading.measurement, *values, *map(type, cells))
        shape = self._shapes.get(key) or batch.shapes.get(key) or self._shape(batch, key, reading)
        if not shape.floats or not math.isfinite(sum(cells)):
            cells = [form(metric, values[metric]) for metric, form in shape.metrics]
        device, channel, meta = reading.device_id, reading.channel, meta_text(reading) or None
        if "\0" in device or (channel and "\0" in channel) or (meta and _NUL.search(meta)):
            raise RejectedError("nul", "a name, tag, unit or text holds a NUL character, which PostgreSQL cannot store")
        if not shape.columns and meta is None:
            return
        if shape.new:
            batch.new.setdefault(reading.measurement, {}).update(shape.new)
            batch.shapes[key] = shape
        row = (reading.time, device, channel, *cells, meta)
        rows = batch.wide.get(shape)
        if rows is None:
            batch.wide[shape] = [row]
        else:
            rows.append(row)

    def _shape(self, batch: "_Batch", key: Key, reading: Reading) -> _Shape:
        """A shape that is not known yet. Raises `RejectedError` where no row can be made of its readings."""
        measurement, names = reading.measurement, reading.values
        classes = set(map(type, names.values()))
        new: dict[str, Kind] = {}
        metrics = []
        for metric, value in names.items():
            if value is not None:
                kind = type(value)
                column = self._column(measurement, metric, kind, batch.new.get(measurement, {}), new)
                metrics.append((metric, self._form(measurement, metric, kind, column)))
        columns = tuple(column_of(metric) for metric, _ in metrics)
        floats = bool(metrics) and classes == {float} and all(form is _double for _, form in metrics)
        shape = _Shape(measurement, columns, tuple(metrics), floats, new)
        if not new:
            # Columns that the batch is to make may yet be made by somebody else, with other types.
            lasting = not any(name in batch.new.get(measurement, ()) for name in names)
            if lasting and len(self._shapes) >= _REMEMBERED:
                self._shapes.clear()
            (self._shapes if lasting else batch.shapes)[key] = shape
        return shape

    def _column(
        self, measurement: str, metric: str, kind: type, made: Mapping[str, Kind], new: dict[str, Kind]
    ) -> Kind:
        """The type of a metric's column; of one that there is not yet, which then is in `new`."""
        table = self.layout.wide[measurement]
        live = table.metrics
        if metric in live:
            return cast("Kind", live[metric].type)
        if metric in made:
            return made[metric]
        if metric in (foreign := self.layout.foreign.get(measurement, {})):
            raise RejectedError(
                "type_conflict",
                f"{metric} is {_CLASS[kind][1]}, and the column {column_of(metric)} of {table.name} is "
                f"{foreign[metric]}, which iotflow does not write: rename or drop that column",
            )
        if "\0" in metric:
            raise RejectedError("nul", "a metric's name holds a NUL character, which PostgreSQL cannot store")
        wanted = self._wanted(measurement, metric, kind)
        if self._settings.new_columns == "plan":
            raise RejectedError(
                "bad_value",
                f"the table {table.name} has no column for {metric}: add {measurement}.{metric}={_WORD[wanted]} to "
                "TIMESCALE_COLUMNS, and run iotflow schema apply",
            )
        if len(live) + len(made) + len(new) >= self._settings.max_columns:
            raise RejectedError(
                "bad_value",
                f"the table {table.name} has no column for {metric}, and TIMESCALE_MAX_COLUMNS="
                f"{self._settings.max_columns} allows no more: set it higher, or take {measurement} out of "
                "TIMESCALE_WIDE",
            )
        new[metric] = wanted
        return wanted

    def _wanted(self, measurement: str, metric: str, kind: type) -> Kind:
        told = self._settings.columns.get(f"{measurement}.{metric}")
        if told is None and integer_type(self._types, measurement, metric):
            return "bigint"
        return told or _CLASS[kind][0]

    def _form(self, measurement: str, metric: str, kind: type, column: Kind) -> Callable[[str, Any], Any]:
        """What makes a value of some class a cell of a column, and raises `RejectedError` where it cannot."""
        integer = integer_type(self._types, measurement, metric)
        if integer is not None and (kind in {int, float} or column == "bigint"):
            return _INTEGER[column == "bigint", cast("_Integer", integer)]
        form = _FORMS.get((column, kind))
        if form is not None:
            return form
        said = _CLASS[kind][1]
        raise RejectedError(
            "type_conflict", f"{metric} is {said}, and its column in {self.layout.wide[measurement].name} is {column}"
        )

    # -- all of a batch ------------------------------------------------------------------------------------------------

    def _stacks(self, batch: "_Batch") -> list[Stack]:
        stacks = [Stack(NARROW, narrow.COLUMNS, batch.tall)] if batch.tall else []
        parts: dict[str, list[tuple[_Shape, list[Line]]]] = {}
        for shape, rows in batch.wide.items():
            parts.setdefault(shape.measurement, []).append((shape, rows))
        for measurement, found in parts.items():
            columns = tuple(dict.fromkeys(column for shape, _ in found for column in shape.columns))
            stacks.append(
                Stack(
                    self.layout.wide[measurement],
                    (*_HEAD, *columns, *_TAIL),
                    found[0][1] if len(found) == 1 else _padded(columns, found),
                )
            )
        return stacks

    def _merged(self, batch: "_Batch", readings: Sequence[Reading]) -> list[Stack]:
        """The stacks of a batch that holds two readings of one instant."""
        rows = list({row[: narrow.KEY_LENGTH]: row for row in batch.tall}.values())
        stacks = [Stack(NARROW, narrow.COLUMNS, rows)] if rows else []
        parts: dict[str, dict[Line, dict[str, Any]]] = {}
        for reading in readings:
            if reading.measurement not in self.layout.wide:
                continue
            alone = _Batch(new=batch.new, shapes=batch.shapes)
            self._add(alone, reading)
            for shape, (row,) in alone.wide.items():
                known = parts.setdefault(shape.measurement, {})
                newer = dict(zip((*shape.columns, *_TAIL), row[_HEAD_LENGTH:], strict=True))
                head = row[:_HEAD_LENGTH]
                known[head] = _over(shape.measurement, known[head], newer) if head in known else newer
        for measurement, cells in parts.items():
            columns = tuple(dict.fromkeys(name for row in cells.values() for name in row if name not in _TAIL))
            whole = [(*head, *map(row.get, (*columns, *_TAIL))) for head, row in cells.items()]
            stacks.append(Stack(self.layout.wide[measurement], (*_HEAD, *columns, *_TAIL), whole))
        return stacks


class _Batch(Struct, frozen=True):
    """What was made of a batch so far. Shapes that need new columns are the batch's own until those are made."""

    tall: list[narrow.Row] = []
    wide: dict[_Shape, list[Line]] = {}
    new: dict[str, dict[str, Kind]] = {}
    shapes: dict[Key, _Shape] = {}


def _check_time(reading: Reading) -> None:
    """Raises `RejectedError` for a time that would not be read back as it is."""
    if reading.time in _ENDLESS:
        raise RejectedError(
            "bad_timestamp",
            f"time is {reading.time}, the calendar's own end, which PostgreSQL is given as infinite: no device's time",
        )


def _padded(columns: Sequence[str], parts: Sequence[tuple[_Shape, list[Line]]]) -> list[Line]:
    """Rows of several shapes as rows of all columns."""
    padded: list[Line] = []
    for shape, rows in parts:
        if shape.columns == columns:
            padded += rows
            continue
        places = {column: place for place, column in enumerate(shape.columns, _HEAD_LENGTH)}
        absent = _HEAD_LENGTH + len(shape.columns) + len(_TAIL)
        meta = absent - 1
        first, *others = [*range(_HEAD_LENGTH), *(places.get(column, absent) for column in columns), meta]
        pick = itemgetter(first, *others)
        padded += [pick((*row, None)) for row in rows]
    return padded


def _over(measurement: str, older: dict[str, Any], newer: dict[str, Any]) -> dict[str, Any]:
    """Two rows of one key as the table would have them one after the other (`sinks.timescale.write`)."""
    if measurement == AGGREGATES and REVISION in older:
        revision = newer.get(REVISION)
        if revision is None or revision < older[REVISION]:
            return older
    whole = older.keys() <= newer.keys()  # no column of a row is null but `meta`, which both have
    meta = newer["meta"] if whole or newer["meta"] is not None else older["meta"]
    return {**older, **newer, "meta": meta}


# -- values ------------------------------------------------------------------------------------------------------------


def _double(metric: str, value: Value) -> Value:
    if not math.isfinite(cast("float", value)):
        raise unfit(metric, value)
    return value


def _double_of_int(metric: str, value: int) -> int:
    if not -EXACT_INTEGER <= value <= EXACT_INTEGER:
        raise unfit(metric, value)
    return value


def _bigint(metric: str, value: float) -> int:
    if value.__class__ is float and not value.is_integer():
        raise RejectedError("type_conflict", f"{metric} is {value}, which is no integer, and its column is bigint")
    if not -_INT64 <= value < _INT64:
        raise RejectedError("integer_too_large", f"{metric} is {value}, beyond the 64 bits of its column, a bigint")
    return int(value)


def _text(metric: str, value: str) -> str:
    if "\0" in value:
        raise RejectedError("nul", f"{metric} holds a NUL character, which PostgreSQL cannot store")
    return value


def _boolean(metric: str, value: bool) -> bool:  # noqa: ARG001, FBT001  a form like the others
    return value


_FORMS: Final[Mapping[tuple[Kind, type], Callable[[str, Any], Any]]] = {
    ("double precision", float): _double,
    ("double precision", int): _double_of_int,
    ("bigint", float): _bigint,
    ("bigint", int): _bigint,
    ("text", str): _text,
    ("boolean", bool): _boolean,
}

_Integer = Literal["INT32", "INT64"]


def _integer_form(kind: _Integer, *, bigint: bool) -> Callable[[str, Any], Any]:
    """What checks a value by the integer type that is set for its metric."""

    def form(metric: str, value: Any) -> Any:
        if out_of_type(kind, value):
            raise unfit(metric, value, kind)
        if not bigint and not -EXACT_INTEGER <= value <= EXACT_INTEGER:
            raise RejectedError(
                "type_conflict",
                f"{metric} is {value}, set to be {kind}, and its column is double precision, which would round it",
            )
        return value

    return form


_INTEGER: Final = {
    (bigint, kind): _integer_form(kind, bigint=bigint) for bigint in (False, True) for kind in ("INT32", "INT64")
}
