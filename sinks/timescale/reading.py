"""Reading back from the tables: each method's SQL over the narrow table and the wide ones together.

Every call reads the catalog first, in the transaction of its data, so a column or a reading that another worker added
is seen. A measurement that is stored wide may have older readings in the narrow table, from before; of a reading that
is in both the wide one counts. Others may have stored infinite times: they are read as the calendar's first and last
instants, which is what the driver makes of them, and what a selection by those instants finds.
"""

import heapq
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, cast

import asyncpg
import msgspec

from schemas.reading import Reading, Value
from sinks.base import EVERYTHING, Bucket, Function, Selection, device_of, span_of
from sinks.meta import apply_meta
from sinks.timescale.connections import Connections
from sinks.timescale.layout import read_layout
from sinks.timescale.settings import Settings
from sinks.timescale.tables import NARROW, ORIGINAL_TOPIC, RESERVED, Table, quoted

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Before all data, and after what the driver takes for minus infinity.
_LONG_AGO: Final = datetime(1000, 1, 1, tzinfo=UTC)
#: Rows that a scan fetches at once, from each table.
_FETCHED: Final = 2000
#: Arguments that a function may have, and a little less.
_ARGUMENTS: Final = 90
#: The columns of a value, by its type, as the narrow table calls them.
_VALUES: Final[Mapping[str, str]] = {
    "value": "double precision",
    "value_int": "bigint",
    "value_text": "text",
    "value_bool": "boolean",
}
_NARROW_ROW: Final = (
    *("device_id", "timestamp", "channel", "measurement", "component_type"),
    *_VALUES,
    *("unit", "topic", "meta"),
)
#: Of a row of the narrow table, what it shares with the others of its reading.
_NARROW_KEY: Final = 4

#: Where a reading is: device, time, channel, measurement.
Place = tuple[str, datetime, str, str]


class _Sink(Protocol):
    """What the methods need of the sink that has them."""

    settings: Settings
    _connections: Connections

    def reading_connection(self) -> AbstractAsyncContextManager[asyncpg.Connection]: ...


class _Query:
    """Statements over the tables that a selection may find something in; `arguments` are those of all of them."""

    def __init__(self, where: Selection, wide: Mapping[str, Table]) -> None:
        self.where = where
        self.arguments: list[Any] = []
        self._wide = wide
        self._given = {
            name: self.argument(value)
            for name in ("device_id", "channel", "measurement", "start", "end")
            if (value := getattr(where, name)) is not None
        }

    def argument(self, value: Any) -> str:
        """The place holder of a value."""
        self.arguments.append(value)
        return f"${len(self.arguments)}"

    @property
    def wide(self) -> list[Table]:
        """The wide tables."""
        measurement = self.where.measurement
        return [table for name, table in self._wide.items() if measurement in {None, name}]

    @property
    def tables(self) -> list[Table]:
        """All of them."""
        return self.wide if self.where.measurement in RESERVED else [NARROW, *self.wide]

    def condition(self, table: Table) -> str:
        """What selects the rows `t` of a table."""
        given, time = self._given, f"t.{table.time}"
        parts = [f"t.{name} = {given[name]}" for name in ("device_id", "channel") if name in given]
        parts += [f"{time} {sign} {given[name]}" for name, sign in (("start", ">="), ("end", "<")) if name in given]
        if not table.wide:
            parts += [f"t.measurement = {given['measurement']}"] if "measurement" in given else []
            parts += [_not_in(other) for other in self.wide if other.measurement not in RESERVED]
        # Every argument must be used.
        used = [f"{given['measurement']}::text IS NOT NULL"] if table.wide and "measurement" in given else []
        return " AND ".join(parts + used) or "true"

    def rows(self, table: Table, columns: Sequence[str], more: str = "") -> str:
        """A statement for columns of a table."""
        names = ", ".join(f"t.{quoted(name)}" for name in columns)
        return f"SELECT {names} FROM {quoted(table.name)} t WHERE {self.condition(table)}{more}"  # noqa: S608  our names


def _not_in(wide: Table) -> str:
    """That a row `t` of the narrow table is not of a reading that a wide one has.

    Not by EXISTS, for which PostgreSQL may read all of the wide table at once.
    """
    return (
        f"(t.measurement <> '{wide.measurement}' OR (SELECT w.ts FROM {quoted(wide.name)} w "  # noqa: S608
        "WHERE w.device_id = t.device_id AND w.ts = t.timestamp AND w.channel = t.channel) IS NULL)"
    )


def _place(table: Table) -> str:
    """The columns of a row `t` that are its reading's place."""
    return f"t.device_id, t.{table.time} AS at, t.channel, {_measurement(table)} AS measurement"


def _measurement(table: Table) -> str:
    return f"'{table.measurement}'::text COLLATE \"C\"" if table.wide else "t.measurement"


class Reader:
    """`sinks.base.Readable` for the sink that inherits it."""

    async def scan(self: _Sink, where: Selection = EVERYTHING) -> AsyncIterator[Reading]:
        """Every stored reading in (device, time, channel, measurement) order, as the tables were at the beginning."""
        async with self.reading_connection() as connection:
            query = await _asked(connection, self.settings, where)
            async for reading in _in_order([_stream(connection, query, table) for table in query.tables]):
                yield reading

    async def query(self: _Sink, where: Selection = EVERYTHING, *, limit: int = 100, offset: int = 0) -> list[Reading]:
        """A page of readings, newest first; raises `ValueError` for a page that is none."""
        if limit < 0 or offset < 0:
            raise ValueError(f"limit is {limit} and offset is {offset}: neither can be negative")
        async with self.reading_connection() as connection:
            query = await _asked(connection, self.settings, where)
            found = await connection.fetch(_page(query, limit, offset), *query.arguments)
            return await _at(connection, query.tables, found)

    async def latest(self: _Sink, where: Selection) -> list[Reading]:
        """The newest reading of each (device, channel, measurement), in that order."""
        async with self.reading_connection() as connection:
            query = await _asked(connection, self.settings, where)
            found = await connection.fetch(_newest(query), *query.arguments)
            return await _at(connection, query.tables, found)

    async def count(self: _Sink, where: Selection = EVERYTHING, *, readings: bool = False) -> int:
        """How many values are stored, nulls of the narrow table with them; with `readings`, how many readings."""
        async with self.reading_connection() as connection:
            query = await _asked(connection, self.settings, where)
            parts = [_readings_of(query, table) if readings else _values_of(query, table) for table in query.tables]
            total = f"SELECT sum(n)::bigint FROM ({' UNION ALL '.join(parts)}) counted (n)"  # noqa: S608  our names
            return int(await connection.fetchval(total, *query.arguments) or 0)

    async def aggregate(
        self: _Sink,
        where: Selection,
        every: timedelta,
        functions: Sequence[Function] = ("count", "mean", "min", "max"),
        metrics: Sequence[str] | None = None,
    ) -> list[Bucket]:
        """Buckets that hold a value, in (device, channel, measurement, metric, start) order.

        Raises `ValueError` for a span that is none.
        """
        start, _ = span_of(where, every, functions)
        async with self.reading_connection() as connection:
            query = await _asked(connection, self.settings, where)
            statement = _aggregated(query, _begin(start, every), every, functions, metrics)
            rows = await connection.fetch(statement, *query.arguments) if statement else []
        buckets = (_bucket(row, functions) for row in rows)
        return [bucket for bucket in buckets if bucket.values]

    async def delete(self: _Sink, where: Selection) -> None:
        """Delete what is selected of a device, of all tables at once; raises `ValueError` where no device is named.

        Compressed chunks of TimescaleDB take it from version 2.11 on.
        """
        device_of(where)
        settings = self.settings

        async def work(connection: asyncpg.Connection) -> None:
            async with connection.transaction():
                query = await _asked(connection, settings, where)
                # The narrow table last: what a wide one has hides rows of it, which must not come out again.
                for table in reversed(query.tables):
                    condition = query.condition(table)
                    await connection.execute(
                        f"DELETE FROM {quoted(table.name)} t WHERE {condition}",  # noqa: S608  our own names
                        *query.arguments,
                    )

        await self._connections.work(work)


async def _asked(connection: asyncpg.Connection, settings: Settings, where: Selection) -> _Query:
    layout = await read_layout(connection, settings.measurements)
    return _Query(where, layout.wide)


# -- readings of rows --------------------------------------------------------------------------------------------------


def _columns(table: Table) -> list[str]:
    """What `_wide` takes of a row."""
    return ["device_id", "ts", "channel", *(column.name for column in table.metrics.values()), "meta"]


def _wide(table: Table, metrics: Sequence[str], row: Any) -> Reading:
    """The reading of a row of a wide table."""
    device, time, channel, *cells, meta = row
    values = {metric: value for metric, value in zip(metrics, cells, strict=True) if value is not None}
    said = apply_meta(meta or "", table.measurement)
    return Reading(table.measurement, device, _aware(time), values, channel, **said)


def _aware(time: datetime) -> datetime:
    """A time from the driver, which has no zone for infinite ones."""
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _narrow(rows: Sequence[Any]) -> Reading:
    """The reading that rows of one place in the narrow table were made from."""
    device, time, channel, measurement, *_ = rows[0]
    values: dict[str, Value] = {}
    units: dict[str, str] = {}
    raw: dict[str, Value] = {}
    meta: dict[str, Any] = {}
    tags: dict[str, str] = {}
    for *_, metric, double, integer, text, boolean, unit, topic, said in (row[_NARROW_KEY:] for row in rows):
        values[metric] = next((value for value in (double, integer, text, boolean) if value is not None), None)
        if unit:
            units[metric] = unit
        meta = msgspec.json.decode(said)
        if "raw" in meta:
            raw[metric] = meta["raw"]
        tags = {**meta.get("tags", {}), **({ORIGINAL_TOPIC: topic} if topic else {})}
    return Reading(
        measurement=measurement,
        device_id=device,
        time=_aware(time),
        values=values,
        channel=channel,
        units=units,
        tags=tags,
        raw=raw,
        dialect=meta.get("dialect", ""),
        flags=list(meta.get("flags", ())),
    )


async def _stream(connection: asyncpg.Connection, query: _Query, table: Table) -> AsyncIterator[Reading]:
    """The selected readings of a table in a scan's order, fetched as they are needed."""
    if table.wide:
        metrics = list(table.metrics)
        statement = query.rows(table, _columns(table), " ORDER BY t.device_id, t.ts, t.channel")
        async for row in connection.cursor(statement, *query.arguments, prefetch=_FETCHED):
            yield _wide(table, metrics, row)
        return
    order = " ORDER BY t.device_id, t.timestamp, t.channel, t.measurement, t.component_type"
    group: list[Any] = []
    async for row in connection.cursor(query.rows(table, _NARROW_ROW, order), *query.arguments, prefetch=_FETCHED):
        if group and row[:_NARROW_KEY] != group[0][:_NARROW_KEY]:
            yield _narrow(group)
            group = []
        group.append(row)
    if group:
        yield _narrow(group)


async def _in_order(streams: Sequence[AsyncIterator[Reading]]) -> AsyncIterator[Reading]:
    """Readings that are in a scan's order in each stream, as one."""
    heap: list[tuple[Place, int, Reading]] = []
    for number, stream in enumerate(streams):
        async for reading in stream:
            heap.append((_place_of(reading), number, reading))
            break
    heapq.heapify(heap)
    while heap:
        _, number, reading = heap[0]
        yield reading
        async for following in streams[number]:
            heapq.heapreplace(heap, (_place_of(following), number, following))
            break
        else:
            heapq.heappop(heap)


def _place_of(reading: Reading) -> Place:
    return reading.device_id, reading.time, reading.channel, reading.measurement


async def _at(connection: asyncpg.Connection, tables: Sequence[Table], found: Sequence[Any]) -> list[Reading]:
    """The readings at places, in their order; `found` are rows of a table's number and a place in it."""
    readings: dict[Place, Reading] = {}
    for number, table in enumerate(tables):
        places = [tuple(row)[1:] for row in found if row[0] == number]
        if not places:
            continue
        if table.wide:
            rows = await _joined(connection, table, _columns(table), places)
            metrics = list(table.metrics)
            readings |= {(row[0], row[1], row[2], table.measurement): _wide(table, metrics, row) for row in rows}
            continue
        groups: dict[Place, list[Any]] = {}
        for row in await _joined(connection, table, _NARROW_ROW, places):
            groups.setdefault(cast("Place", tuple(row[:_NARROW_KEY])), []).append(row)
        readings |= {place: _narrow(rows) for place, rows in groups.items()}
    return [readings[cast("Place", tuple(row)[1:])] for row in found]


async def _joined(
    connection: asyncpg.Connection, table: Table, columns: Sequence[str], places: Sequence[tuple[Any, ...]]
) -> list[Any]:
    names = ", ".join(f"t.{quoted(name)}" for name in columns)
    same = "" if table.wide else " AND t.measurement = p.measurement"
    # OFFSET keeps it from being a join: each place is looked up by the key, whatever the planner thinks of the table.
    statement = (
        "SELECT r.* FROM unnest($1::text[], $2::timestamptz[], $3::text[], $4::text[]) "  # noqa: S608  our own names
        f"AS p (device_id, at, channel, measurement) CROSS JOIN LATERAL (SELECT {names} FROM {quoted(table.name)} t "
        f"WHERE t.device_id = p.device_id AND t.{table.time} = p.at AND t.channel = p.channel{same} OFFSET 0) r"
    )
    found: list[Any] = await connection.fetch(statement, *map(list, zip(*places, strict=True)))
    return found


# -- places ------------------------------------------------------------------------------------------------------------


def _page(query: _Query, limit: int, offset: int) -> str:
    """Table and place of each reading of a page: the newest of each table, merged."""
    order = "at DESC, device_id, channel, measurement"
    most, page, skipped = (query.argument(number) for number in (limit + offset, limit, offset))
    parts: list[str] = []
    for number, table in enumerate(query.tables):
        if table.wide:
            parts.append(
                f"w{number} AS (SELECT {number} AS source, {_place(table)} FROM {quoted(table.name)} t "  # noqa: S608
                f"WHERE {query.condition(table)} ORDER BY {order} LIMIT {most})"
            )
    pages = [part.partition(" ")[0] for part in parts]
    if NARROW in query.tables:
        bound = ""
        if pages:  # no older than the last of a page that the wide tables fill by themselves
            wide = " UNION ALL ".join(f"SELECT at FROM {name}" for name in pages)  # noqa: S608  our own names
            last = f"SELECT at FROM ({wide}) w ORDER BY at DESC OFFSET {most}::bigint - 1 LIMIT 1"  # noqa: S608
            bound = f" AND ({most}::bigint = 0 OR t.timestamp >= COALESCE(({last}), '-infinity'))"
        parts.append(
            f"narrow AS (SELECT DISTINCT {query.tables.index(NARROW)} AS source, {_place(NARROW)} "  # noqa: S608
            f"FROM {NARROW.name} t WHERE {query.condition(NARROW)}{bound} ORDER BY {order} LIMIT {most})"
        )
        pages.append("narrow")
    everything = " UNION ALL ".join(f"SELECT * FROM {name}" for name in pages)  # noqa: S608  our own names
    return f"WITH {', '.join(parts)} {everything} ORDER BY {order} LIMIT {page} OFFSET {skipped}"


def _newest(query: _Query) -> str:
    """Table and place of the newest reading of each series; read off the keys alone where PostgreSQL may."""
    parts = [f"({_newest_of(query, number, table)})" for number, table in enumerate(query.tables)]
    series = "device_id, channel, measurement"
    return (
        f"SELECT DISTINCT ON ({series}) source, device_id, at, channel, measurement "  # noqa: S608  our own names
        f"FROM ({' UNION ALL '.join(parts)}) found ORDER BY {series}, at DESC"
    )


def _newest_of(query: _Query, number: int, table: Table) -> str:
    where = query.where
    rows = f"FROM {quoted(table.name)} t WHERE {query.condition(table)}"
    if where.device_id is not None and where.channel is not None and (table.wide or where.measurement is not None):
        return f"SELECT {number} AS source, {_place(table)} {rows} ORDER BY at DESC LIMIT 1"  # one series
    measurement = _measurement(table)
    return (
        f"SELECT {number} AS source, t.device_id, max(t.{table.time}) AS at, t.channel, {measurement} AS measurement "
        f"{rows} GROUP BY t.device_id, t.channel, {measurement}"
    )


# -- counts and aggregates ---------------------------------------------------------------------------------------------


def _values_of(query: _Query, table: Table) -> str:
    count = "count(*)"
    if table.wide:
        names = [f"t.{quoted(column.name)}" for column in table.metrics.values()]
        groups = (names[start : start + _ARGUMENTS] for start in range(0, len(names), _ARGUMENTS))
        count = " + ".join(f"coalesce(sum(num_nonnulls({', '.join(group)})), 0)" for group in groups) or "0::bigint"
    return f"SELECT {count} FROM {quoted(table.name)} t WHERE {query.condition(table)}"  # noqa: S608  our own names


def _readings_of(query: _Query, table: Table) -> str:
    rows = f"SELECT {_place(table)} FROM {quoted(table.name)} t WHERE {query.condition(table)}"  # noqa: S608  our names
    source = rows if table.wide else rows.replace("SELECT", "SELECT DISTINCT", 1)
    return f"SELECT count(*) FROM ({source}) r"  # noqa: S608  our own names


#: A number of either type as a double.
_NUMBER: Final = "coalesce(value, value_int::double precision)"
#: What each function needs of a bucket's values; where integers have a type of their own they stay exact.
_COMPUTED: Final[Mapping[Function, tuple[str, ...]]] = {
    "count": ("count(*)",),
    "mean": (f"avg({_NUMBER})",),
    "stddev": (f"stddev_samp({_NUMBER})",),
    **{name: (f"{name}(value)", f"{name}(value_int)") for name in ("min", "max", "sum")},
    **{
        name: tuple(
            f"{'bool_or' if column == 'value_bool' else 'max'}({column}) FILTER (WHERE {name}_of_all)"
            for column in _VALUES
        )
        for name in ("first", "last")
    },
}
_SERIES: Final = "device_id, channel, measurement, metric, start"


def _aggregated(
    query: _Query,
    begin: datetime,
    every: timedelta,
    functions: Sequence[Function],
    metrics: Sequence[str] | None,
) -> str:
    """A row for each bucket: its series and start, and then the parts of each function; '' where there is no column."""
    span, origin = query.argument(every), query.argument(begin)
    wanted = None if metrics is None else query.argument(list(metrics))
    sources = [
        source
        for table in query.tables
        if (source := _valued(query, table, f"date_bin({span}, t.{table.time}, {origin})", metrics, wanted))
    ]
    if not sources:
        return ""
    found = " UNION ALL ".join(sources)
    if not {"first", "last"}.isdisjoint(functions):
        found = (
            "SELECT *, lag(at) OVER bucket IS NULL AS first_of_all, lead(at) OVER bucket IS NULL AS last_of_all "  # noqa: S608
            f"FROM ({found}) v WINDOW bucket AS (PARTITION BY {_SERIES} ORDER BY at)"
        )
    computed = ", ".join(part for function in functions for part in _COMPUTED[function])
    # Every argument must be used.
    used = f" WHERE {wanted}::text[] IS NOT NULL" if wanted else ""
    return f"SELECT {_SERIES}, {computed} FROM ({found}) v{used} GROUP BY {_SERIES} ORDER BY {_SERIES}"  # noqa: S608


def _valued(query: _Query, table: Table, start: str, metrics: Sequence[str] | None, wanted: str | None) -> str:
    """The values of a table that are not null, one in a row, in the narrow table's columns."""
    place = f"{_place(table)}, {start} AS start"
    if not table.wide:
        chosen = f" AND t.component_type = ANY({wanted}::text[])" if wanted else ""
        return (
            f"SELECT {place}, t.component_type AS metric, {', '.join(f't.{name}' for name in _VALUES)} "  # noqa: S608
            f"FROM {table.name} t WHERE {query.condition(table)}{chosen} "
            f"AND num_nonnulls({', '.join(f't.{name}' for name in _VALUES)}) > 0"
        )
    rows = []
    for metric, column in table.metrics.items():
        if metrics is None or metric in metrics:
            cells = (
                f"t.{quoted(column.name)}" if column.type == kind else f"NULL::{kind}" for kind in _VALUES.values()
            )
            rows.append(f"({query.argument(metric)}::text, {', '.join(cells)})")
    if not rows:
        return ""
    names = ", ".join(f"v.{name}" for name in _VALUES)
    return (
        f'SELECT {place}, v.metric COLLATE "C", {names} FROM {quoted(table.name)} t '  # noqa: S608  our own names
        f"CROSS JOIN LATERAL (VALUES {', '.join(rows)}) v (metric, {', '.join(_VALUES)}) "
        f"WHERE {query.condition(table)} AND num_nonnulls({names}) > 0"
    )


def _begin(start: datetime, every: timedelta) -> datetime:
    """The start of the first bucket. Not the epoch: some versions miscount the times before an origin."""
    try:
        return _EPOCH + (max(start, _LONG_AGO) - _EPOCH) // every * every
    except OverflowError as error:
        raise ValueError(f"`every` is {every}: longer than the calendar") from error


def _bucket(row: Any, functions: Sequence[Function]) -> Bucket:
    device, channel, measurement, metric, start, *parts = row
    values: dict[str, Value] = {}
    for function in functions:
        count = len(_COMPUTED[function])
        found = [part for part in parts[:count] if part is not None]
        parts = parts[count:]
        if found:
            values[function] = _combined(function, found)
    return Bucket(measurement, device, channel, metric, _aware(start), values)


def _combined(function: Function, found: Sequence[Any]) -> Value:
    """A function's result from those of doubles and of integers."""
    match function:
        case "min":
            return cast("Value", min(found))
        case "max":
            return cast("Value", max(found))
        case "sum":  # integers add up to a numeric
            return sum(part if isinstance(part, float) else int(part) for part in found)
        case _:
            return cast("Value", found[0])
