"""The schema of a database as a plan: what there should be, what there is, and putting it right.

Comparison is `compare`'s; here it meets a server. Nothing that holds data is ever dropped or made anew: what would need
that is refused with what a person can do. Every step is a transaction of its own, so an apply that is broken off is
taken up by the next one; one at a time holds the schema's lock.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from importlib.metadata import version
from typing import Final

import asyncpg
from msgspec.structs import replace

from sinks.base import Change, SchemaPlan
from sinks.timescale.catalog import MANY, Live, read, read_former, read_server
from sinks.timescale.compare import compare, counted
from sinks.timescale.desired import SCHEMA_VERSION, Desired, desired
from sinks.timescale.layout import LayoutError
from sinks.timescale.policies import short_refreshes
from sinks.timescale.settings import Settings, connect_args
from sinks.timescale.steps import Step
from sinks.timescale.tables import SCHEMA_LOCK, TAKEN_TABLES, VERSIONS, metric_of

#: Milliseconds that a step waits for whoever uses its table, while all others wait behind it.
_LOCK_MS: Final = 60_000
#: What the server may say of a step that only a person can make room for: by the data (23), by what depends on it (2B),
#: by what TimescaleDB cannot do (0A, 55), by names that are taken and views that do not fit (42P07, 42P16).
_REFUSALS: Final = ("23", "2B", "0A", "55000", "55006", "42P07", "42P16", "42710", "TS")
_RECORD: Final = (
    f"INSERT INTO {VERSIONS.name} (version, iotflow_version) VALUES ($1, $2) "  # noqa: S608  our own name
    "ON CONFLICT (version) DO UPDATE SET applied_at = now(), iotflow_version = excluded.iotflow_version"
)


async def plan_schema(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:
    """What `apply_schema` would do; changes nothing. Raises what the sink's classify knows."""
    found = await drift(settings, types)
    return replace(found, changes=[change for change in found.changes if change.action != "foreign"])


async def drift(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:
    """The plan, what `apply_schema` leaves alone, and what stands in our tables without being of our making."""
    async with connected(settings) as connection:
        wanted, live = await _look(connection, settings, types or {})
    return SchemaPlan(
        live.server.title, [step.change for step in compare(wanted, live)], _notes(wanted, live, settings)
    )


async def apply_schema(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:
    """Make what is missing and change what differs; returns what was done, and what a person must do.

    May be run again and by several at once. Raises what the sink's classify knows; what was done until then stays.
    """
    async with connected(settings) as connection:
        await connection.execute("SELECT pg_advisory_lock($1)", SCHEMA_LOCK)
        await connection.execute(f"SET lock_timeout = {_LOCK_MS}; SET statement_timeout = 0")
        wanted, live = await _look(connection, settings, types or {})
        changes = [
            await _do(connection, step, settings, live)
            for step in compare(wanted, live)
            if step.change.action != "foreign"
        ]
        newer = live.version is not None and live.version > SCHEMA_VERSION
        if not newer and (live.version is None or any(change.action != "refused" for change in changes)):
            await connection.execute(_RECORD, SCHEMA_VERSION, version("iotflow"))
        wanted, live = await _look(connection, settings, types or {})
    return SchemaPlan(live.server.title, changes, _notes(wanted, live, settings))


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[asyncpg.Connection]:
    """A connection of its own."""
    connection = await asyncpg.connect(**connect_args(settings))
    try:
        yield connection
    finally:
        await connection.close()


async def _look(connection: asyncpg.Connection, settings: Settings, types: Mapping[str, str]) -> tuple[Desired, Live]:
    server = await read_server(connection)
    if server.schema is None:
        raise LayoutError(
            f"{settings.user} has no schema to make tables in: make one, or put one that exists into the role's "
            "search_path"
        )
    wanted = desired(settings, types, server, await _interval(connection, settings.chunk_interval))
    names = {table.name for table in wanted.tables} | TAKEN_TABLES | {"telemetry", "fire"}
    live = await read(connection, sorted(names), VERSIONS.name)
    former = await read_former(connection, server.schema, [table.name for table in wanted.tables])
    return wanted, replace(live, former=former)


async def _interval(connection: asyncpg.Connection, text: str) -> timedelta:
    try:
        interval: timedelta = await connection.fetchval("SELECT $1::text::interval", text)
    except asyncpg.DataError as error:
        raise LayoutError(f"TIMESCALE_CHUNK_INTERVAL is {text!r}, which is no SQL interval such as '1 day'") from error
    if interval <= timedelta(0):
        raise LayoutError(f"TIMESCALE_CHUNK_INTERVAL is {text!r}: it must be longer than nothing")
    return interval


async def _do(connection: asyncpg.Connection, step: Step, settings: Settings, live: Live) -> Change:
    """Do a step; the change that it was, or what the server says against it."""
    try:
        try:
            await _execute(connection, step.sql, live.server.search_path)
        except asyncpg.InvalidTableDefinitionError:
            if not step.otherwise:
                raise
            await _execute(connection, step.otherwise, live.server.search_path)
            detail = f"{step.change.detail}; rights that were granted on it are gone"
            return replace(step.change, detail=detail)
    except asyncpg.InsufficientPrivilegeError as error:
        raise LayoutError(
            f"{settings.user} may not make {step.change.what} ({error}): run iotflow schema apply as the owner of the "
            f"database and its tables, or GRANT CREATE ON SCHEMA and ON DATABASE {settings.db} to {settings.user}"
        ) from error
    except asyncpg.PostgresError as error:
        if not (error.sqlstate or "").startswith(_REFUSALS):
            raise
        detail = f"the server refuses: {error}" + (f" ({error.detail})" if error.detail else "")
        return Change(step.change.what, "refused", detail)
    return step.change


async def _execute(connection: asyncpg.Connection, statements: Sequence[str], path: str) -> None:
    if not statements:
        return
    async with connection.transaction():
        await connection.execute("SELECT set_config('search_path', $1, true)", path)
        for statement in statements:
            await connection.execute(statement)


def _notes(wanted: Desired, live: Live, settings: Settings) -> list[str]:
    """What a person should know besides."""
    notes = list(live.server.notes)
    for name, rows in live.former.items():
        number = f"{rows:,} rows" if rows < MANY else f"{MANY:,} rows or more"
        notes.append(
            f"the table {name} has {number} of readings that are in no view and that no command finds, since {name} is "
            "not in TIMESCALE_WIDE: put it back there and apply, or drop the table if it is not needed"
        )
    if not wanted.tiers:
        if settings.retention_days:
            notes.append(
                "iot_hourly_stats and iot_daily_stats are views over the readings here, so they forget what "
                "TIMESCALE_RETENTION_DAYS deletes"
            )
        return notes
    if short := short_refreshes(wanted, live):
        notes.append(
            f"{', '.join(short)}: refreshed less far back than the settings of retention allow. That is kept, since "
            "a refresh forgets the figures of what has been deleted; where it is still there, SELECT "
            f"remove_continuous_aggregate_policy('{short[0]}'), and apply"
        )
    for name in wanted.wide:
        columns = live.relations[name].columns.items() if name in live.relations else ()
        metrics = {metric_of(column, found.comment) for column, found in columns if counted(column, found)}
        if left := sorted(metrics - {metric_of(column) for column in wanted.rolled[name]}):
            notes.append(
                f"{', '.join(left)} of {name} are not in iot_hourly_stats: name them in TIMESCALE_COLUMNS, as "
                f"{name}.{left[0]}=number, and apply"
            )
    return notes
