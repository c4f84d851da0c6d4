"""Which wide tables there are, with the columns that they have at the moment."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, get_args

import asyncpg
from msgspec import Struct

from sinks.timescale.tables import FIXED, SCHEMA_LOCK, Kind, Table, column_of, comment_of, metric_of, quoted, wide

#: Milliseconds that a change waits for its turn among changes, which holds up nobody else.
_TURN_MS: Final = 5000
#: Milliseconds that it waits for whoever uses the table, while everybody else waits behind it.
_LOCK_MS: Final = 200
_KINDS: Final = frozenset(get_args(Kind))
_CATALOG: Final = """
SELECT c.relname AS table, a.attname AS column, format_type(a.atttypid, a.atttypmod) AS type,
    a.attgenerated <> '' AS generated, col_description(a.attrelid, a.attnum) AS comment
FROM unnest($1::text[]) AS wanted (name)
JOIN pg_class c ON c.oid = to_regclass(quote_ident(wanted.name)) AND c.relkind IN ('r', 'p')
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY c.relname, a.attnum
"""
#: For a person.
_WHO: Final = (
    "SELECT a.* FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.relation = '{}'::regclass AND l.granted "
    "ORDER BY a.xact_start"
)
_PATIENCE: Final = """
SELECT set_config('lock_timeout', (CASE WHEN EXISTS (
    SELECT FROM pg_locks WHERE relation = to_regclass(quote_ident($1)) AND mode = 'ShareUpdateExclusiveLock' AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
) THEN (SELECT setting::int FROM pg_settings WHERE name = 'deadlock_timeout') ELSE 0 END + $2::int)::text, true)
"""


class LayoutError(Exception):
    """A wide table is not there, or is somebody else's; the text says how to mend it."""


class LockedError(Exception):
    """A column could not be made in the time for which others may be held up; the text says whom it waits for."""


class Layout(Struct, frozen=True, eq=False):
    """The wide tables by their measurement, each with its live columns; whatever is not in `wide` is stored narrow."""

    wide: Mapping[str, Table] = {}
    #: The types of columns that are nobody's metric, since values of readings have no such type: by table and metric.
    foreign: Mapping[str, Mapping[str, str]] = {}


async def read_layout(connection: asyncpg.Connection, measurements: Sequence[str]) -> Layout:
    """The live tables of these measurements. Raises `LayoutError` where one is missing."""
    found: dict[str, list[Any]] = {name: [] for name in measurements}
    for row in await connection.fetch(_CATALOG, list(measurements)):
        found[row["table"]].append(row)
    missing = [name for name, rows in found.items() if not rows]
    if missing:
        raise LayoutError(f"the table {', '.join(missing)} is missing: run iotflow schema apply")
    tables: dict[str, Table] = {}
    foreign: dict[str, dict[str, str]] = {}
    for name, rows in found.items():
        if lacking := FIXED - {row["column"] for row in rows}:
            raise LayoutError(
                f"the table {name} is not one of iotflow's, it lacks {', '.join(sorted(lacking))}: run iotflow schema "
                "plan, and rename it or take its name out of TIMESCALE_WIDE"
            )
        metrics: dict[str, Kind] = {}
        foreign[name] = {}
        for row in rows:
            metric = metric_of(row["column"], row["comment"])
            if row["column"] in FIXED:
                continue
            if row["type"] in _KINDS and not row["generated"] and column_of(metric) == row["column"]:
                metrics[metric] = row["type"]
            else:
                foreign[name][metric] = "generated" if row["generated"] else row["type"]
        tables[name] = wide(name, metrics)
    return Layout(tables, foreign)


async def add_columns(connection: asyncpg.Connection, wanted: Mapping[str, Mapping[str, Kind]]) -> None:
    """Make columns for metrics, by measurement, where they are not there yet; each table's in a transaction of its own.

    One that somebody else has made meanwhile stays as it is, whatever its type. Raises `LockedError` where the table
    is in use for longer than others may be held up: it is to be tried again after a pause.
    """
    for name, metrics in wanted.items():
        async with connection.transaction():
            await _turn(connection, name)
            await _add(connection, name, metrics)


async def _turn(connection: asyncpg.Connection, name: str) -> None:
    """Wait until nobody else changes tables."""
    await connection.execute(f"SET LOCAL lock_timeout = {_TURN_MS}")
    try:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", SCHEMA_LOCK)
    except asyncpg.LockNotAvailableError as error:
        raise LockedError(
            f"a new column of {name} waits until another worker, or iotflow schema apply, has changed the tables"
        ) from error


async def _add(connection: asyncpg.Connection, name: str, metrics: Mapping[str, Kind]) -> None:
    added = ", ".join(
        f"ADD COLUMN IF NOT EXISTS {quoted(column_of(metric))} {kind}" for metric, kind in metrics.items()
    )
    await be_patient(connection, name)
    try:
        await connection.execute(f"ALTER TABLE {quoted(name)} {added}")
    except asyncpg.LockNotAvailableError as error:
        raise LockedError(
            f"a new column of {name} waits for whoever has that table in use, as pg_dump or a long query: who that is, "
            f"says {_WHO.format(name)}"
        ) from error
    for metric in metrics:
        if comment := comment_of(name, metric):
            await connection.execute(comment)


async def be_patient(connection: asyncpg.Connection, name: str) -> None:
    """Set how long the transaction at hand waits for a table.

    A vacuum that the server began by itself gives way, but only to whoever has waited for `deadlock_timeout`.
    """
    await connection.execute(_PATIENCE, name, _LOCK_MS)
