"""TimescaleDB, or PostgreSQL without the extension: measurements in wide tables of their own, all others narrow.

A batch is written in one transaction, so a batch delivered twice changes nothing and half a batch is never seen.
"""

import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final

import asyncpg

from schemas.reading import Reading
from sinks.base import PartialWriteError, Prepared, Progress, Verdict, without_nulls
from sinks.timescale import verdicts
from sinks.timescale.connections import Connections
from sinks.timescale.guard import AlteredError
from sinks.timescale.layout import Layout, add_columns, read_layout
from sinks.timescale.offsets import move, offsets
from sinks.timescale.reading import Reader
from sinks.timescale.rows import Payload, Rows, Stack
from sinks.timescale.schema import apply_schema, drift, plan_schema
from sinks.timescale.settings import Settings, connect_args
from sinks.timescale.tables import NARROW, Table, wide
from sinks.timescale.upkeep import compress, maintain
from sinks.timescale.write import Writer

__all__ = [
    "Settings",
    "Sink",
    "TimescaleSink",
    "apply_schema",
    "compress",
    "connect_args",
    "drift",
    "maintain",
    "plan_schema",
]

#: So many times new columns are made that others take away again, and a batch is prepared for tables that others alter.
_ATTEMPTS: Final = 3
#: Seconds for which nobody looks again at what columns there are before a reading is refused for them.
_LOOK_S: Final = 5.0


class TimescaleSink(Reader):
    """`sinks.base.Sink` for PostgreSQL 14 or newer, with or without the TimescaleDB extension.

    Limits: a text may not hold NUL (U+0000); device and channel (and metric, where it is narrow) together fit an index
    row, about 2,700 bytes; integers beyond 2^53 need an INT32 or INT64 override, or a column that is bigint already; a
    metric of a wide measurement has one type.

    No reading is refused for columns as they were more than `_LOOK_S` ago: so what `schema apply` has made is used
    without a restart, and many bad readings cost one look at the catalog in that time. `clock` counts seconds.
    """

    name = "timescale"

    def __init__(
        self,
        settings: Settings,
        types: Mapping[str, str] | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.types = types or {}
        #: The wide tables: until `open` those that the settings speak of, then those that there are.
        told = {name: wide(name, settings.metrics_of(name, self.types)) for name in settings.measurements}
        self.layout = Layout(told)
        self._rows = Rows(settings, self.types, self.layout)
        self._clock = clock
        self._looked = -math.inf
        self._writer = Writer(fast=settings.fast_path == "auto")
        self._connections = Connections(settings, self.classify, self._writer.greet)

    @property
    def place(self) -> str:
        """Where it stores, for a person."""
        settings = self.settings
        return f"{settings.user}@{settings.host}:{settings.port}/{settings.db}"

    async def open(self) -> None:
        """Connect, and look at the tables. Raises what `classify` knows."""
        await self._connections.open()
        try:
            await self._connections.work(self._look)
        except BaseException:
            self._connections.close()
            raise

    async def close(self) -> None:
        """Drop the connections."""
        self._connections.close()

    async def _look(self, connection: asyncpg.Connection) -> None:
        """See which columns there are. What was prepared for others is prepared again when it is written."""
        now = self._clock()
        found = await read_layout(connection, self.settings.measurements)
        self._looked = now
        if (found.wide, found.foreign) != (self.layout.wide, self.layout.foreign):
            self.layout = found
            self._rows = Rows(self.settings, self.types, found)

    async def probe(self) -> None:
        """Write nothing to every table: connection, tables, columns and rights as a write needs them."""

        async def work(connection: asyncpg.Connection) -> None:
            await self._look(connection)
            tables = self._tables()
            await self._writer.ready(connection, tables)
            async with connection.transaction():
                await self._writer.hold(connection, tables)
                for table in tables:
                    columns = [column.name for column in table.columns if column.name in table.key or column.metric]
                    await self._writer.staged(connection, Stack(table, (*columns, "meta"), ()))

        await self._connections.work(lambda connection: self._again(connection, work))

    async def _again(
        self, connection: asyncpg.Connection, work: Callable[[asyncpg.Connection], Awaitable[None]]
    ) -> None:
        """Do work that stores nothing where a table has been altered; then look at the tables, and do it again."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return await work(connection)
            except AlteredError:
                await self._look(connection)
        try:
            return await work(connection)
        except AlteredError as error:
            raise error.__cause__ or error from None

    def _tables(self) -> list[Table]:
        return [NARROW, *self.layout.wide.values()]

    def prepare(self, readings: Sequence[Reading]) -> Prepared[Payload]:
        """A row for each reading or value; within a batch the last value of a key wins.

        What does not fit columns that were looked at a while ago is left to `write`, which looks again.
        """
        return self._rows.prepare(readings, doubt=self._clock() - self._looked >= _LOOK_S)

    async def write(self, payload: Payload) -> None:
        """Store a batch in one transaction; the columns that it needs are made before.

        Raises `PartialWriteError` where readings do not fit the columns that there are.
        """
        await self._store(payload)

    async def offsets(self, group: str) -> Mapping[tuple[str, int], int]:
        """The next offset of each partition that is known."""
        found: Mapping[tuple[str, int], int] = await self._connections.work(lambda each: offsets(each, group))
        return found

    async def write_at(self, payload: Payload, group: str, progress: Progress) -> None:
        """As `write`, and move the offsets in the same transaction, before anything is written.

        Raises `FencedError` where an offset is not what it must have been until now.
        """
        await self._store(payload, lambda connection: move(connection, group, progress))

    async def _store(
        self, payload: Payload, before: Callable[[asyncpg.Connection], Awaitable[None]] | None = None
    ) -> None:
        async def work(connection: asyncpg.Connection) -> None:
            fitting = await self._fitting(connection, payload)
            tables = [stack.table for stack in fitting.stacks]
            await self._writer.ready(connection, tables)
            async with connection.transaction():
                if before is not None:
                    await before(connection)
                await self._writer.hold(connection, tables)
                for stack in fitting.stacks:
                    await self._writer.write(connection, stack)

        await self._connections.work(lambda connection: self._again(connection, work))

    async def _fitting(self, connection: asyncpg.Connection, payload: Payload) -> Payload:
        """A payload as the tables are now, with the columns that it needs.

        Raises `PartialWriteError` where readings do not fit: into the columns as they are, or as somebody else has just
        made them.
        """
        for _ in range(_ATTEMPTS):
            if payload.doubtful or payload.layout is not self.layout:
                prepared = self.prepare(payload.readings)
                if prepared.payload.doubtful:
                    await self._look(connection)
                    prepared = self._rows.prepare(payload.readings)
                if prepared.rejected:
                    raise PartialWriteError(prepared.rejected)
                payload = prepared.payload
            if not payload.wanted:
                return payload
            await add_columns(connection, payload.wanted)
            await self._look(connection)
        raise ConnectionError("columns that were made are not there: somebody else takes them away")

    def classify(self, error: BaseException) -> Verdict:
        """By SQLSTATE class; what is not known is tried again, since a lost row is worse than a late one."""
        return verdicts.classify(error, self.settings)

    def reading_connection(self) -> AbstractAsyncContextManager[asyncpg.Connection]:
        """A connection in a transaction that only reads, and sees the database as it was at its beginning."""
        return self._connections.reading()

    def kept(self, reading: Reading) -> Reading | None:
        """All of it where it is narrow, else all but nulls; None where nothing is left to say."""
        if reading.measurement not in self.layout.wide:
            return reading
        return without_nulls(reading) if self._rows.kept(reading) else None


#: What the registry of sinks makes one with.
Sink = TimescaleSink
