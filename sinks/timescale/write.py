"""How prepared rows get into their tables, in one transaction: straight by COPY, or by way of a staging table.

COPY (which the driver does in PostgreSQL's binary form) straight into the table is the fast path: it takes two thirds
of the time, and fails where a row is there already. Then the batch is copied to a temporary table and upserted from
there, and for a while so are the next ones.

A wide row is written over a stored one value by value: a null never takes a value away. What it says besides (`meta`)
replaces what was said when it has a value for all that is stored, else only when it has something to say. So a
correction loses its flag, and a part of a reading leaves the flag of the rest.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import asyncpg

from sinks.timescale import narrow
from sinks.timescale.guard import Guard
from sinks.timescale.rows import AGGREGATES, REVISION, Stack
from sinks.timescale.tables import NARROW, Table, quoted

#: Begins the name of a temporary table.
STAGING: Final = "iotflow_staging"
#: After a batch that was stored already, so many go by way of staging; each time in a row that it happens again, twice
#: as many, until the most.
_PAUSE: Final = 16
_LONGEST_PAUSE: Final = 1024
#: Columns of a table that are not copied.
_OWN: Final = frozenset({"inserted_at", "created_at"})
#: Statements that are remembered, one for each set of columns.
_REMEMBERED: Final = 256


def staging(table: Table) -> str:
    """The temporary table of one connection that a batch for the table is copied to."""
    columns = ", ".join(f"{quoted(name)} {kind}" for name, kind in _staged(table))
    return f"CREATE TEMP TABLE {quoted(_name(table))} ({columns}) ON COMMIT DELETE ROWS"


def upsert(table: Table, columns: Sequence[str]) -> str:
    """Move the staged batch into the table: new rows in, changed rows over, equal rows untouched."""
    if not table.wide:
        return _NARROW
    return _wide_upsert(table.measurement, tuple(column.name for column in table.metrics.values()), tuple(columns))


async def copy(connection: asyncpg.Connection, target: str, stack: Stack) -> None:
    """Copy rows to a table."""
    await connection.copy_records_to_table(target, records=stack.rows, columns=stack.columns)


class Writer:
    """Writes stacks, and knows what each connection has and which tables are worth a try of the fast path."""

    def __init__(self, *, fast: bool) -> None:
        self._fast = fast
        self._guard = Guard()
        #: Tables that cannot be copied to.
        self._never: set[str] = set()
        #: By the server's process and the table: what its staging table consists of.
        self._made: dict[tuple[int, str], tuple[tuple[str, str], ...]] = {}
        #: By table: for how many batches it is left alone, and for how many it was last time.
        self._pauses: dict[str, tuple[int, int]] = {}

    async def greet(self, connection: asyncpg.Connection) -> None:
        """Meet a new connection."""
        pid = connection.get_server_pid()
        self._made = {key: columns for key, columns in self._made.items() if key[0] != pid}
        self._guard.forget(pid)

    async def ready(self, connection: asyncpg.Connection, tables: Sequence[Table]) -> None:
        """Make the staging tables that are lacking; outside of a transaction, whose end would take them away."""
        for table in tables:
            key, columns = (connection.get_server_pid(), table.name), _staged(table)
            known = self._made.get(key)
            if known == columns:
                continue
            if known is not None:
                await connection.execute(f"DROP TABLE IF EXISTS pg_temp.{quoted(_name(table))}")
                await connection.reload_schema_state()  # or the driver goes by the columns that it had
            await connection.execute(staging(table))
            self._made[key] = columns

    async def hold(self, connection: asyncpg.Connection, tables: Sequence[Table]) -> None:
        """Lock tables against changes for the transaction at hand. Raises `AlteredError` where one has changed."""
        for table in tables:
            await self._guard.hold(connection, table)

    async def write(self, connection: asyncpg.Connection, stack: Stack) -> None:
        """Store rows, in the transaction at hand."""
        if not self._worth_a_try(stack.table.name) or not await self._straight(connection, stack):
            await self.staged(connection, stack)

    @staticmethod
    async def staged(connection: asyncpg.Connection, stack: Stack) -> None:
        """Store rows by way of the staging table."""
        await copy(connection, _name(stack.table), stack)
        await connection.execute(upsert(stack.table, stack.columns))

    def _worth_a_try(self, table: str) -> bool:
        if not self._fast or table in self._never:
            return False
        left, pause = self._pauses.get(table, (0, 0))
        if left:
            self._pauses[table] = left - 1, pause
        return not left

    async def _straight(self, connection: asyncpg.Connection, stack: Stack) -> bool:
        """Copy rows into their table; False where that is not possible, and nothing has happened."""
        name = stack.table.name
        try:
            async with connection.transaction():  # a savepoint
                await copy(connection, name, stack)
        except asyncpg.UniqueViolationError:
            _, last = self._pauses.get(name, (0, 0))
            pause = min(max(_PAUSE, 2 * last), _LONGEST_PAUSE)
            self._pauses[name] = pause, pause
            return False
        except (asyncpg.FeatureNotSupportedError, asyncpg.WrongObjectTypeError):  # row security, a view with a trigger
            self._never.add(name)
            return False
        self._pauses.pop(name, None)
        return True


def _name(table: Table) -> str:
    return f"{STAGING}_{table.name}" if table.wide else STAGING


def _staged(table: Table) -> tuple[tuple[str, str], ...]:
    return tuple((column.name, column.type) for column in table.columns if column.name not in _OWN)


def _narrow_upsert() -> str:
    plain = [name for name in narrow.COLUMNS if name not in NARROW.key]
    # The address follows from the channel, which is in the key.
    told = [name for name in plain if name not in {"connector_mode", "connector", "pin_position"}]
    return (
        f"INSERT INTO {quoted(NARROW.name)} AS t ({_list(narrow.COLUMNS)}) "  # noqa: S608  our own column names
        f"SELECT {_list(narrow.COLUMNS, 's.')} FROM {STAGING} s ON CONFLICT ({_list(NARROW.key)}) DO UPDATE SET "
        f"{', '.join(f'{quoted(name)} = EXCLUDED.{quoted(name)}' for name in plain)}, inserted_at = now() "
        f"WHERE ({_list(told, 't.')}) IS DISTINCT FROM ({_list(told, 'EXCLUDED.')})"
    )


@lru_cache(maxsize=_REMEMBERED)
def _wide_upsert(measurement: str, stored: tuple[str, ...], columns: tuple[str, ...]) -> str:
    """`stored` are the columns of all metrics, `columns` those of the batch with the key before and `meta` behind."""
    table = quoted(measurement)
    key, given = columns[:3], columns[3:-1]
    values = {name: f"COALESCE(EXCLUDED.{quoted(name)}, t.{quoted(name)})" for name in given}
    whole = [
        f"(EXCLUDED.{quoted(name)} IS NOT NULL OR t.{quoted(name)} IS NULL)"
        if name in values
        else f"t.{quoted(name)} IS NULL"
        for name in stored
    ]
    values["meta"] = (
        f"CASE WHEN {' AND '.join(whole) or 'TRUE'} THEN EXCLUDED.meta ELSE COALESCE(EXCLUDED.meta, t.meta) END"
    )
    newer = f"(t.{REVISION} IS NULL OR EXCLUDED.{REVISION} >= t.{REVISION}) AND " if measurement == AGGREGATES else ""
    return (
        f"INSERT INTO {table} AS t ({_list(columns)}) SELECT {_list(columns, 's.')} "  # noqa: S608  quoted
        f"FROM {quoted(f'{STAGING}_{measurement}')} s ON CONFLICT ({_list(key)}) DO UPDATE SET "
        f"{', '.join(f'{quoted(name)} = {value}' for name, value in values.items())} "
        f"WHERE {newer}ROW({_list(tuple(values), 't.')}) IS DISTINCT FROM ROW({', '.join(values.values())})"
    )


def _list(names: Sequence[str], prefix: str = "") -> str:
    return ", ".join(prefix + quoted(name) for name in names)


_NARROW: Final = _narrow_upsert()
