"""What a database has at the moment, read from its catalogs; nothing here changes anything."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import asyncpg
from msgspec import Struct

from sinks.timescale.tables import FIXED, quoted

#: The oldest that is used as TimescaleDB; with an older one tables are treated as PostgreSQL's own.
OLDEST: Final = (2, 11)
#: From here on the compressed form is called the columnstore.
_COLUMNSTORE: Final = (2, 18)


class Server(Struct, frozen=True):
    """A server and what TimescaleDB is to it; versions are None where it is not there."""

    version: str
    user: str
    database: str
    schema: str
    #: Where the extension's functions are, or will be.
    home: str = "public"
    #: The extension in this database.
    extension: tuple[int, ...] | None = None
    #: The extension on the server's disk.
    available: tuple[int, ...] | None = None
    #: The server was started with it.
    loaded: bool = False
    #: The role may create it.
    may_create: bool = False
    #: Its licence lets it compress, forget and aggregate by policy.
    community: bool = True

    @property
    def title(self) -> str:
        """For a person."""
        timescale = f", TimescaleDB {_dotted(self.extension)}" if self.extension else ""
        return f"PostgreSQL {self.version}{timescale}"

    @property
    def search_path(self) -> str:
        """Our tables, and the functions of TimescaleDB, which need not be on the role's own path."""
        return f"{quoted(self.schema)}, {quoted(self.home)}"

    @property
    def creates_extension(self) -> bool:
        """Whether the extension is not there, and can be made."""
        usable = self.available is not None and self.available >= OLDEST
        return self.extension is None and usable and self.loaded and self.may_create

    @property
    def timescale(self) -> tuple[int, ...] | None:
        """The version that tables are made for: the one that is there, or will be when it is created."""
        version = self.available if self.creates_extension else self.extension
        return version if version is not None and version >= OLDEST else None

    @property
    def policies(self) -> bool:
        """Whether compression, retention and continuous aggregates are to be had."""
        return self.timescale is not None and self.community

    @property
    def columnstore(self) -> bool:
        """Whether compression goes by its newer names."""
        return self.timescale is not None and self.timescale >= _COLUMNSTORE

    @property
    def notes(self) -> list[str]:
        """What a person should know about it."""
        without = "without it there are no hypertables, compression, continuous aggregates and retention policies"
        if self.extension is not None:
            if self.extension < OLDEST:
                return [
                    f"TimescaleDB {_dotted(self.extension)} is older than {_dotted(OLDEST)}, the oldest that is used: "
                    "tables are treated as PostgreSQL's own; update the extension and apply again"
                ]
            if not self.community:
                return [
                    "TimescaleDB runs under its Apache licence (timescaledb.license), which has hypertables but no "
                    "compression, continuous aggregates and policies"
                ]
            return []
        if self.available is None:
            return [f"TimescaleDB is not installed on this server: {without}"]
        if not self.loaded:
            return [
                f"TimescaleDB {_dotted(self.available)} is installed but not loaded: put timescaledb into "
                f"shared_preload_libraries, restart the server and apply again; {without}"
            ]
        if self.available < OLDEST:
            return [f"TimescaleDB {_dotted(self.available)} is older than {_dotted(OLDEST)}, so it is not used"]
        if not self.may_create:
            return [
                f"{self.user} may not create the extension: have a superuser run CREATE EXTENSION timescaledb in "
                f"{self.database}, and apply again; {without}"
            ]
        return []


class LiveColumn(Struct, frozen=True):
    """A column; `type` with its collation where that is not the type's own."""

    type: str
    null: bool = True
    default: str | None = None
    generated: bool = False
    comment: str | None = None


class Relation(Struct, frozen=True):
    """A table or view. `kind` as pg_class has it: r table, p partitioned table, v view, m materialized view, f foreign.

    `marked` and `digest` are of views: the comment, and the MD5 of its definition.
    """

    kind: str
    columns: Mapping[str, LiveColumn] = {}
    key: tuple[str, ...] = ()
    indexes: Mapping[str, str] = {}
    constraints: Mapping[str, str] = {}
    marked: str = ""
    digest: str = ""
    #: Rights to what it holds that the role does not have.
    denied: tuple[str, ...] = ()
    #: The role has the rights of its owner.
    owned: bool = True


class Hypertable(Struct, frozen=True):
    """What TimescaleDB does with a table; None for what it does not."""

    time: str
    interval: timedelta | None
    compressed: bool = False
    segment_by: tuple[str, ...] = ()
    order_by: tuple[str, ...] = ()
    compress_after: timedelta | None = None
    retention: timedelta | None = None


class Refresh(Struct, frozen=True):
    """A continuous aggregate's refresh policy; an open start is None."""

    start: timedelta | None
    end: timedelta
    every: timedelta


class Rollup(Struct, frozen=True):
    """A continuous aggregate; `live` when it answers with what is not yet aggregated too."""

    columns: tuple[str, ...]
    live: bool = True
    refresh: Refresh | None = None
    retention: timedelta | None = None


class Live(Struct, frozen=True):
    """A database: what of it concerns us."""

    server: Server
    #: Tables and views of the names that were asked for, and all continuous aggregates.
    relations: Mapping[str, Relation] = {}
    hypertables: Mapping[str, Hypertable] = {}
    rollups: Mapping[str, Rollup] = {}
    #: The highest version of the schema that was applied.
    version: int | None = None
    #: Tables that are wide ones by their making, and not among those that there should be: their rows, `MANY` at most.
    former: Mapping[str, int] = {}


_SERVER: Final = """
SELECT current_setting('server_version') AS version, current_user AS user, current_database() AS database,
    current_schema() AS schema,
    e.extversion AS extension, coalesce((SELECT nspname FROM pg_namespace WHERE oid = e.extnamespace),
        current_schema()) AS home,
    a.default_version AS available,
    current_setting('timescaledb.disable_load', true) IS NOT NULL AS loaded,
    coalesce(current_setting('timescaledb.license', true), 'timescale') <> 'apache' AS community,
    coalesce((SELECT rolsuper FROM pg_roles WHERE rolname = current_user), false)
        OR coalesce((v.trusted OR NOT v.superuser)
            AND has_database_privilege(current_database(), 'CREATE'), false) AS may_create
FROM (VALUES (1)) AS one
LEFT JOIN pg_extension e ON e.extname = 'timescaledb'
LEFT JOIN pg_available_extensions a ON a.name = 'timescaledb'
LEFT JOIN pg_available_extension_versions v ON v.name = a.name AND v.version = a.default_version
"""

_RELATIONS: Final = """
SELECT c.oid, c.relname AS name, c.relkind AS kind, obj_description(c.oid, 'pg_class') AS marked,
    CASE WHEN c.relkind = 'v' THEN md5(pg_get_viewdef(c.oid)) END AS digest,
    ARRAY(SELECT p FROM unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) p
        WHERE NOT has_table_privilege(c.oid, p)) AS denied,
    pg_has_role(c.relowner, 'USAGE') AS owned
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = ANY($2::text[]) AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
"""
_COLUMNS: Final = """
SELECT a.attrelid AS oid, a.attname AS name, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull AS required,
    CASE WHEN a.attcollation <> t.typcollation THEN l.collname END AS collation,
    pg_get_expr(d.adbin, d.adrelid) AS default, a.attgenerated <> '' OR a.attidentity <> '' AS generated,
    col_description(a.attrelid, a.attnum) AS comment
FROM pg_attribute a
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_collation l ON l.oid = a.attcollation
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
WHERE a.attrelid = ANY($1::oid[]) AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
"""
_CONSTRAINTS: Final = """
SELECT c.conrelid AS oid, c.conname AS name, c.contype::text AS kind, pg_get_constraintdef(c.oid) AS definition,
    ARRAY(SELECT a.attname::text FROM unnest(c.conkey) WITH ORDINALITY k (number, place)
        JOIN pg_attribute a ON a.attrelid = c.conrelid AND a.attnum = k.number ORDER BY k.place) AS columns
FROM pg_constraint c
WHERE c.conrelid = ANY($1::oid[]) AND c.contype IN ('p', 'u', 'c', 'f', 'x')
"""
_INDEXES: Final = """
SELECT i.indrelid AS oid, c.relname AS name, pg_get_indexdef(i.indexrelid) AS definition, i.indisvalid AS valid
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
WHERE i.indrelid = ANY($1::oid[])
    AND NOT EXISTS (SELECT 1 FROM pg_constraint o WHERE o.conindid = i.indexrelid AND o.conrelid = i.indrelid)
"""

_FORMER: Final = """
SELECT c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype = 'p' AND k.conname = c.relname || '_key'
WHERE n.nspname = $1 AND c.relkind = 'r' AND c.relname <> ALL($2::text[]) AND has_table_privilege(c.oid, 'SELECT')
    AND (SELECT count(*) FROM pg_attribute a WHERE a.attrelid = c.oid AND NOT a.attisdropped
        AND a.attname = ANY($3::text[])) = cardinality($3::text[])
ORDER BY c.relname
"""
#: Rows are counted no further, which would take its time.
MANY: Final = 100_000

_DIMENSIONS: Final = """
SELECT hypertable_name AS name, column_name AS time, time_interval AS interval
FROM timescaledb_information.dimensions WHERE hypertable_schema = $1 AND dimension_number = 1
"""
_COMPRESSION: Final = """
SELECT hypertable_name AS name, attname AS column, segmentby_column_index AS segment, orderby_column_index AS place,
    orderby_asc AS ascending
FROM timescaledb_information.compression_settings WHERE hypertable_schema = $1
ORDER BY hypertable_name, segmentby_column_index, orderby_column_index
"""
_COMPRESSED: Final = """
SELECT hypertable_name AS name FROM timescaledb_information.hypertables
WHERE hypertable_schema = $1 AND compression_enabled
"""
_JOBS: Final = """
SELECT hypertable_name AS name, proc_name AS work, schedule_interval AS every,
    (config->>'compress_after')::interval AS compress_after, (config->>'drop_after')::interval AS drop_after,
    (config->>'start_offset')::interval AS start, (config->>'end_offset')::interval AS end
FROM timescaledb_information.jobs WHERE hypertable_schema = $1 AND proc_name LIKE 'policy!_%' ESCAPE '!'
"""
_ROLLUPS: Final = """
SELECT view_name AS name, NOT materialized_only AS live FROM timescaledb_information.continuous_aggregates
WHERE view_schema = $1
"""
_TYPES: Final = {"timestamp with time zone": "timestamptz"}
_INDEXED: Final = re.compile(r"USING (\w+) (\(.*\))")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def version_of(text: str | None) -> tuple[int, ...] | None:
    """`2.26.4` or `2.27.0-dev` as numbers."""
    return None if text is None else tuple(int(part) for part in re.findall(r"\d+", text.partition("-")[0]))


async def read_server(connection: asyncpg.Connection) -> Server:
    """The server behind a connection."""
    row = await connection.fetchrow(_SERVER)
    versions = {"extension": version_of(row["extension"]), "available": version_of(row["available"])}
    return Server(**{**dict(row), **versions, "version": row["version"].partition(" ")[0]})


async def read(connection: asyncpg.Connection, names: Sequence[str], versions: str) -> Live:
    """What is there of these names, and of TimescaleDB's works; `versions` is the table of applied versions."""
    server = await read_server(connection)
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        # So that the catalogs' functions print every name alike, whoever asks.
        await connection.execute("SET LOCAL search_path TO pg_catalog")
        hypertables: dict[str, Hypertable] = {}
        rollups: dict[str, Mapping[str, Any]] = {}
        jobs: list[Any] = []
        if server.extension is not None and server.extension >= OLDEST:
            jobs = await connection.fetch(_JOBS, server.schema)
            hypertables = await _hypertables(connection, server.schema, jobs)
            rollups = {row["name"]: row for row in await connection.fetch(_ROLLUPS, server.schema)}
        relations = await _relations(connection, server.schema, [*names, *rollups])
        version = None
        if "version" in relations.get(versions, Relation("")).columns:
            table = f"{quoted(server.schema)}.{quoted(versions)}"
            version = await connection.fetchval(f"SELECT max(version) FROM {table}")  # noqa: S608  ours
    made = {name: _rollup(row, relations[name], jobs) for name, row in rollups.items() if name in relations}
    return Live(server, relations, hypertables, made, version)


async def read_former(connection: asyncpg.Connection, schema: str, names: Sequence[str]) -> dict[str, int]:
    """The tables that are made as wide ones are, but for these names: by name the rows, `MANY` at most."""
    found: dict[str, int] = {}
    for row in await connection.fetch(_FORMER, schema, names, sorted(FIXED)):
        rows = f"SELECT FROM {quoted(schema)}.{quoted(row['relname'])} LIMIT {MANY}"
        found[row["relname"]] = await connection.fetchval(f"SELECT count(*) FROM ({rows}) s")  # noqa: S608  quoted
    return found


async def _relations(connection: asyncpg.Connection, schema: str, names: Sequence[str]) -> dict[str, Relation]:
    rows = await connection.fetch(_RELATIONS, schema, names)
    oids = [row["oid"] for row in rows]
    columns: dict[int, dict[str, LiveColumn]] = {oid: {} for oid in oids}
    keys: dict[int, tuple[str, ...]] = {}
    constraints: dict[int, dict[str, str]] = {oid: {} for oid in oids}
    indexes: dict[int, dict[str, str]] = {oid: {} for oid in oids}
    for row in await connection.fetch(_COLUMNS, oids):
        columns[row["oid"]][row["name"]] = _column(row)
    for row in await connection.fetch(_CONSTRAINTS, oids):
        if row["kind"] == "p":
            keys[row["oid"]] = tuple(row["columns"])
        else:
            constraints[row["oid"]][row["name"]] = row["definition"]
    for row in await connection.fetch(_INDEXES, oids):
        indexes[row["oid"]][row["name"]] = indexed(row["definition"]) if row["valid"] else "invalid"
    return {
        row["name"]: Relation(
            kind=row["kind"].decode() if isinstance(row["kind"], bytes) else row["kind"],
            columns=columns[row["oid"]],
            key=keys.get(row["oid"], ()),
            indexes=indexes[row["oid"]],
            constraints=constraints[row["oid"]],
            marked=row["marked"] or "",
            digest=row["digest"] or "",
            denied=tuple(row["denied"]),
            owned=row["owned"],
        )
        for row in rows
    }


def _column(row: Mapping[str, Any]) -> LiveColumn:
    kind = _TYPES.get(row["type"], row["type"])
    if row["collation"] is not None:
        kind = f'{kind} COLLATE "{row["collation"]}"'
    return LiveColumn(kind, not row["required"], row["default"], row["generated"], row["comment"])


async def _hypertables(connection: asyncpg.Connection, schema: str, jobs: Sequence[Any]) -> dict[str, Hypertable]:
    segments: dict[str, list[str]] = {}
    orders: dict[str, list[str]] = {}
    for row in await connection.fetch(_COMPRESSION, schema):
        if row["segment"] is not None:
            segments.setdefault(row["name"], []).append(row["column"])
        elif row["place"] is not None:
            orders.setdefault(row["name"], []).append(row["column"] + ("" if row["ascending"] else " DESC"))
    compressed = {row["name"] for row in await connection.fetch(_COMPRESSED, schema)}
    return {
        row["name"]: Hypertable(
            row["time"],
            row["interval"],
            row["name"] in compressed,
            tuple(segments.get(row["name"], ())),
            tuple(orders.get(row["name"], ())),
            _job(jobs, row["name"], "policy_compression", "compress_after"),
            _job(jobs, row["name"], "policy_retention", "drop_after"),
        )
        for row in await connection.fetch(_DIMENSIONS, schema)
    }


def _rollup(row: Mapping[str, Any], relation: Relation, jobs: Sequence[Any]) -> Rollup:
    refresh = next(
        (
            Refresh(job["start"], job["end"], job["every"])
            for job in jobs
            if job["name"] == row["name"] and job["work"] == "policy_refresh_continuous_aggregate"
        ),
        None,
    )
    retention = _job(jobs, row["name"], "policy_retention", "drop_after")
    return Rollup(tuple(relation.columns), row["live"], refresh, retention)


def _job(jobs: Sequence[Any], name: str, work: str, field: str) -> timedelta | None:
    return next((job[field] for job in jobs if job["name"] == name and job["work"] == work), None)


def indexed(definition: str) -> str:
    """What an index is over, as `btree (component_type, timestamp DESC)`, of the server's or of our own words."""
    found = _INDEXED.search(definition)
    method, columns = found.groups() if found else ("btree", f"({definition})")
    return f"{method} {columns}".replace('"', "")
