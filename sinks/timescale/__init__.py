"""TimescaleDB, or PostgreSQL without the extension: the narrow table `iot_measurements`, one row per value.

A batch is copied to a temporary staging table and upserted from there in one transaction, so a batch delivered twice
changes nothing and half a batch is never seen.
"""

import asyncio
import math
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar, Final, Literal, NamedTuple

import asyncpg
import msgspec
from pydantic import AliasChoices, ConfigDict, Field, FilePath, SecretStr, model_validator

from schemas.reading import EXACT_INTEGER, Reading, Rejected, RejectedError, Value
from sinks.base import (
    EVERYTHING,
    Fatal,
    Prepared,
    Reject,
    Retry,
    SchemaPlan,
    Selection,
    SinkSettings,
    Verdict,
    integer_type,
    out_of_type,
    unpaired,
)


class Settings(SinkSettings):
    """Where the database is; `URLS` name the variables that hold all of it as one URL, the last to be asked."""

    model_config = ConfigDict(validate_by_name=True)

    PREFIX: ClassVar[str] = "TIMESCALE"
    STAGE: ClassVar[str] = "store-timescale"
    PORT: ClassVar[int] = 6067
    URLS: ClassVar[tuple[str, ...]] = ("DATABASE_URL", "POSTGRES_URL")

    host: str = Field(
        "localhost",
        validation_alias=AliasChoices("POSTGRES_HOST"),
        description="host name, address, or directory of the server's socket",
    )
    port: int = Field(
        5432, ge=1, le=65535, validation_alias=AliasChoices("POSTGRES_PORT"), description="port of the server"
    )
    db: str = Field("timeseries", validation_alias=AliasChoices("POSTGRES_DB"), description="database")
    user: str = Field("ts_user", validation_alias=AliasChoices("POSTGRES_USER"), description="role to log in as")
    password: SecretStr | None = Field(
        None,
        validation_alias=AliasChoices("POSTGRES_PASSWORD"),
        description="its password; unset for trust or peer authentication",
    )
    pool_min: int = Field(1, ge=1, le=100, description="connections kept open")
    pool_max: int = Field(2, ge=1, le=100, description="connections at most")
    chunk_interval: str = Field("1 day", description="time that a chunk of the hypertable spans, as an SQL interval")
    sslmode: Literal["disable", "prefer", "require", "verify-ca", "verify-full"] = Field(
        "prefer", description="encryption, in PostgreSQL's own words"
    )
    ssl_ca: FilePath | None = Field(None, description="certificates to trust instead of the system's")
    ssl_cert: FilePath | None = Field(None, description="client certificate")
    ssl_key: FilePath | None = Field(None, description="key of the client certificate")

    @model_validator(mode="after")
    def _agree(self) -> "Settings":
        flaws = []
        if self.pool_max < self.pool_min:
            flaws.append(f"`pool_max` ({self.pool_max}) must be at least `pool_min` ({self.pool_min})")
        flaws += unpaired(self.ssl_cert, self.ssl_key)
        if self.sslmode in {"disable", "prefer"} and (self.ssl_ca or self.ssl_cert):
            flaws.append(f"`ssl_ca` and `ssl_cert` need another `sslmode` than {self.sslmode}: verify-full")
        if flaws:
            raise ValueError("\n".join(flaws))
        return self


#: Seconds that giving a connection back may take; then it is cut.
_RELEASE_S: Final = 5.0

Row = tuple[datetime, str, str, str, str, float | None, int | None, str | None, bool | None, str, str, str]


class Column(NamedTuple):
    """A column of `iot_measurements`: the one model that the DDL, the COPY and the upsert are made from.

    `derived` is the SQL that computes it from a staged row `s`, for what is not copied.
    """

    name: str
    sql: str
    key: bool = False
    derived: str = ""


#: `timestamp` to `meta` in the order of `Row`; the address columns of the documents are read off the channel.
COLUMNS: Final = (
    Column("timestamp", "timestamptz NOT NULL", key=True),
    Column("measurement", 'text COLLATE "C" NOT NULL', key=True),
    Column("device_id", 'text COLLATE "C" NOT NULL', key=True),
    Column("channel", "text COLLATE \"C\" NOT NULL DEFAULT ''", key=True),
    Column("component_type", 'text COLLATE "C" NOT NULL', key=True),
    Column("value", "double precision"),
    Column("value_int", "bigint"),
    Column("value_text", "text"),
    Column("value_bool", "boolean"),
    Column("unit", "text NOT NULL DEFAULT ''"),
    Column("topic", "text NOT NULL DEFAULT ''"),
    Column("meta", "jsonb NOT NULL DEFAULT '{}'"),
    Column(
        "connector_mode",
        "text NOT NULL DEFAULT 'unknown'",
        derived="CASE WHEN s.channel = '' THEN 'unknown' ELSE split_part(s.channel, '/', 1) END",
    ),
    Column(
        "connector",
        "smallint NOT NULL DEFAULT -1",
        derived="CASE WHEN split_part(s.channel, '/', 2) ~ '^[0-9]{1,4}$' "
        "THEN split_part(s.channel, '/', 2)::smallint ELSE -1 END",
    ),
    Column(
        "pin_position",
        "text NOT NULL DEFAULT '-1'",
        derived="CASE WHEN split_part(s.channel, '/', 3) = '' THEN '-1' ELSE split_part(s.channel, '/', 3) END",
    ),
)
#: The tag that becomes the column `topic`.
ORIGINAL_TOPIC: Final = "original_topic"
TABLE: Final = "iot_measurements"
STAGING: Final = "iotflow_staging"
#: Leads with the device, so that it serves as the documents' `idx_iot_device_id (device_id, timestamp DESC)` too.
KEY: Final = ("device_id", "timestamp", "component_type", "channel", "measurement")

_COPIED: Final = tuple(column for column in COLUMNS if not column.derived)
_ALL: Final = (*_COPIED, *(column for column in COLUMNS if column.derived))
_PLAIN: Final = tuple(column for column in _ALL if not column.key)


def schema() -> list[str]:
    """The statements that make the table and its indexes; each may be run again."""
    columns = ",\n    ".join(f"{column.name} {column.sql}" for column in COLUMNS)
    return [
        f"CREATE TABLE IF NOT EXISTS {TABLE} (\n    {columns},\n    inserted_at timestamptz NOT NULL DEFAULT now(),\n"
        f"    CONSTRAINT idx_iot_device_id PRIMARY KEY ({', '.join(KEY)})\n)",
        f"CREATE INDEX IF NOT EXISTS idx_iot_component ON {TABLE} (component_type, timestamp DESC)",
        f"CREATE INDEX IF NOT EXISTS idx_iot_mode ON {TABLE} (connector_mode, timestamp DESC)",
    ]


def staging() -> str:
    """The temporary table of one connection that a batch is copied to."""
    columns = ", ".join(f"{column.name} {column.sql.split(' NOT NULL')[0]}" for column in _COPIED)
    return f"CREATE TEMP TABLE IF NOT EXISTS {STAGING} ({columns}) ON COMMIT DELETE ROWS"


def upsert() -> str:
    """Move the staged batch into the table: new rows in, changed rows over, equal rows untouched."""
    names = ", ".join(column.name for column in _ALL)
    values = ", ".join(column.derived or f"s.{column.name}" for column in _ALL)
    old = ", ".join(f"t.{column.name}" for column in _PLAIN if not column.derived)
    new = ", ".join(f"EXCLUDED.{column.name}" for column in _PLAIN if not column.derived)
    assign = ", ".join(f"{column.name} = EXCLUDED.{column.name}" for column in _PLAIN)
    return (
        f"INSERT INTO {TABLE} AS t ({names}) SELECT {values} FROM {STAGING} s "  # noqa: S608  our own column names
        f"ON CONFLICT ({', '.join(KEY)}) DO UPDATE SET {assign}, inserted_at = now() "
        f"WHERE ({old}) IS DISTINCT FROM ({new})"
    )


_UPSERT: Final = upsert()
_STAGING: Final = staging()
_NULL: Final = (None, None, None, None)
_COPY_COLUMNS: Final = [column.name for column in _COPIED]


class TimescaleSink:
    """`sinks.base.Sink` for PostgreSQL 14 or newer, with or without the TimescaleDB extension.

    Limits: a text may not hold NUL (U+0000); device, channel and metric together fit an index row (about 2,700
    bytes); integers beyond 2^53 need an INT32 or INT64 override.
    """

    name = "timescale"

    def __init__(self, settings: Settings, types: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self.types = types or {}
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Connect the pool. Raises what `classify` knows."""
        await self.close()
        settings = self.settings
        self._pool = await asyncpg.create_pool(
            **connect_args(settings),
            min_size=settings.pool_min,
            max_size=settings.pool_max,
            init=_init,
        )

    async def close(self) -> None:
        """Drop the connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()

    def _connected(self) -> asyncpg.Pool:
        if self._pool is None:
            raise ConnectionError("not connected")
        return self._pool

    async def _transact(self, work: Callable[[asyncpg.Connection], Awaitable[None]]) -> None:
        """Do some work in a transaction.

        That there is no connection to be had never counts against the batch. When this is cancelled the connection is
        cut: asyncpg would ask the server to stop the query and wait for its answer, which a server that stands still
        never gives.
        """
        pool = self._connected()
        try:
            connection = await pool.acquire()
        except Exception as error:
            if isinstance(self.classify(error), Reject):
                raise ConnectionError(f"{type(error).__name__}: {error}") from error
            raise
        task = asyncio.ensure_future(_in_transaction(connection, work))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            connection.terminate()
            await asyncio.wait([task])
            raise
        finally:
            # It resets the connection, which a server that stands still keeps waiting just so.
            await pool.release(connection, timeout=_RELEASE_S)

    async def probe(self) -> None:
        """Run the upsert on an empty staging table: connection, table and rights as a write needs them."""

        async def work(connection: asyncpg.Connection) -> None:
            await connection.execute(_UPSERT)

        await self._transact(work)

    def prepare(self, readings: Sequence[Reading]) -> Prepared[list[Row]]:
        """One row per value; within a batch the last value of a key wins, since an upsert cannot meet a key twice."""
        rows: list[Row] = []
        rejected: dict[int, Rejected] = {}
        seen: set[tuple[datetime, str, str, str]] = set()
        for index, reading in enumerate(readings):
            start = len(rows)
            try:
                self._rows(reading, rows)
            except RejectedError as error:
                del rows[start:]
                rejected[index] = error.rejected
                continue
            seen.add((reading.time, reading.device_id, reading.channel, reading.measurement))
        if len(seen) + len(rejected) < len(readings):
            rows = list({row[:5]: row for row in rows}.values())
        return Prepared(rows, len(rows), rejected)

    def _rows(self, reading: Reading, rows: list[Row]) -> None:
        time, measurement, device, channel = reading.time, reading.measurement, reading.device_id, reading.channel
        if "\0" in device or "\0" in channel or "\0" in measurement:
            raise RejectedError("nul", "a name holds a NUL character, which PostgreSQL cannot store")
        units, tags = reading.units, reading.tags
        topic = tags.get(ORIGINAL_TOPIC, "") if tags else ""
        meta = self._meta_of(reading)
        for metric, value in reading.values.items():
            unit = units.get(metric, "") if units else ""
            own = meta if not reading.raw else _meta_text(reading, metric)
            integer = integer_type(self.types, measurement, metric) if self.types else None
            columns = _columns(metric, value, integer)
            rows.append((time, measurement, device, channel, metric, *columns, unit, topic, own))

    def _meta_of(self, reading: Reading) -> str:
        if reading.tags or reading.flags or reading.raw:
            return "" if reading.raw else _meta_text(reading, None)
        return _dialect_text(reading.dialect)

    async def write(self, payload: list[Row]) -> None:
        """COPY to the staging table and upsert from it, in one transaction."""

        async def work(connection: asyncpg.Connection) -> None:
            await connection.copy_records_to_table(STAGING, records=payload, columns=_COPY_COLUMNS)
            await connection.execute(_UPSERT)

        await self._transact(work)

    def classify(self, error: BaseException) -> Verdict:
        """By SQLSTATE class; what is not known is tried again, since a lost row is worse than a late one."""
        if isinstance(error, asyncpg.PostgresError):
            return _classify_state(error, self.settings)
        if isinstance(error, ssl.SSLCertVerificationError):  # a ValueError too, but not one of the data
            return Fatal(f"the certificate of {self.settings.host} is not trusted ({error}): set TIMESCALE_SSL_CA")
        if isinstance(error, (ValueError, TypeError, OverflowError)):  # asyncpg cannot encode it
            return Reject(Rejected("bad_value", f"{type(error).__name__}: {error}"))
        return Retry(f"{type(error).__name__}: {error}")

    # -- reading back --------------------------------------------------------------------------------------------------

    @staticmethod
    def kept(reading: Reading) -> Reading:
        """All of it: a null is a row without a value."""
        return reading

    async def count(self) -> int:
        """How many values are stored."""
        return int(await self._connected().fetchval(f"SELECT count(*) FROM {TABLE}"))  # noqa: S608  our own name

    async def scan(self, where: Selection = EVERYTHING) -> AsyncIterator[Reading]:
        """Every stored reading in (device, time, channel, measurement) order; `start` inclusive, `end` exclusive."""
        measurement, device_id, start, end = where.measurement, where.device_id, where.start, where.end
        query = (
            f"SELECT {', '.join(_COPY_COLUMNS)} FROM {TABLE} "  # noqa: S608  our own names
            "WHERE ($1::text IS NULL OR measurement = $1) AND ($2::text IS NULL OR device_id = $2) "
            "AND ($3::timestamptz IS NULL OR timestamp >= $3) AND ($4::timestamptz IS NULL OR timestamp < $4) "
            "ORDER BY device_id, timestamp, channel, measurement, component_type"
        )
        key: tuple[Any, ...] = ()
        group: list[Any] = []
        async with self._connected().acquire() as connection, connection.transaction(readonly=True):
            async for row in connection.cursor(query, measurement, device_id, start, end, prefetch=2000):
                if row[:4] != key and group:
                    yield _reading(group)
                    group = []
                key = row[:4]
                group.append(row)
        if group:
            yield _reading(group)


async def _in_transaction(
    connection: asyncpg.Connection, work: Callable[[asyncpg.Connection], Awaitable[None]]
) -> None:
    async with connection.transaction():
        await work(connection)


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
            raise RejectedError("bad_type", f"{metric} is {value}, which is no {integer}")
        return None, value, None, None  # type: ignore[return-value]  # out_of_type has seen that it is an int
    match value:
        case bool():
            return None, None, None, value
        case float():
            if not math.isfinite(value):
                raise RejectedError("bad_type", f"{metric} is {value}, which is not a finite number")
            return value, None, None, None
        case str():
            return None, None, value, None
    if not -EXACT_INTEGER <= value <= EXACT_INTEGER:
        raise RejectedError(
            "integer_too_large",
            f"{metric} is {value}, beyond 2^53, which a double would round: set IOTFLOW_VALUE_TYPES={metric}=INT64",
        )
    return float(value), None, None, None


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


def _reading(rows: Sequence[Any]) -> Reading:
    """The reading that rows of one (device, time, channel, measurement) were made from."""
    first = rows[0]
    values: dict[str, Value] = {}
    units: dict[str, str] = {}
    raw: dict[str, Value] = {}
    meta: dict[str, Any] = {}
    for row in rows:
        metric = row["component_type"]
        columns = (row["value"], row["value_int"], row["value_text"], row["value_bool"])
        values[metric] = next((value for value in columns if value is not None), None)
        if row["unit"]:
            units[metric] = row["unit"]
        meta = msgspec.json.decode(row["meta"])
        if "raw" in meta:
            raw[metric] = meta["raw"]
    tags: dict[str, str] = dict(meta.get("tags", {}))
    if first["topic"]:
        tags[ORIGINAL_TOPIC] = first["topic"]
    return Reading(
        measurement=first["measurement"],
        device_id=first["device_id"],
        time=first["timestamp"],
        values=values,
        channel=first["channel"],
        units=units,
        tags=tags,
        raw=raw,
        dialect=meta.get("dialect", ""),
        flags=list(meta.get("flags", ())),
    )


#: SQLSTATE classes: data exceptions, constraints, views that check, limits such as an index row, and PL/pgSQL's own.
_OF_THE_DATA: Final = frozenset({"22", "23", "44", "54", "P0"})
#: All classes that PostgreSQL itself uses (its manual, appendix A).
_CLASSES: Final = frozenset(
    re.findall(
        "..",
        "0001020308090A0B0F0L0P0Z102021222324252627282B2D2F3438393B3D3F404244535455575872F0HVP0XX",
    )
)
#: The server's own time limits, for a statement and for a transaction.
_TOO_MUCH: Final = frozenset({"57014", "25P04"})


def _classify_state(error: asyncpg.PostgresError, settings: Settings) -> Verdict:
    state = error.sqlstate or ""
    place = f"{settings.user}@{settings.host}:{settings.port}/{settings.db}"
    fatal = {
        "28P01": f"PostgreSQL refuses the password of {place}: set TIMESCALE_PASSWORD or TIMESCALE_PASSWORD_FILE",
        "28000": f"PostgreSQL does not let {place} in: look at pg_hba.conf and TIMESCALE_USER",
        "3D000": f"no database {settings.db!r} on {settings.host}:{settings.port}: make it, or set TIMESCALE_DB",
        "42P01": f"the table {TABLE} is missing: run iotflow schema apply"
        if STAGING not in str(error)
        else f"{place} loses temporary tables between transactions: connect without a pooler, or one in session mode",
        "42703": f"the table {TABLE} lacks a column: run iotflow schema apply ({error})",
        "42P10": f"the table {TABLE} lacks its key: run iotflow schema apply on an empty database ({error})",
        "42501": f"{place} may not write to {TABLE}: grant SELECT, INSERT and UPDATE, and TEMP on the database",
    }.get(state)
    if fatal is not None:
        return Fatal(fatal)
    if state in _TOO_MUCH:
        return Retry(f"{state}: {error}", smaller=True)
    # Of the data, or of nobody's but the user's own: a trigger may raise whatever it likes.
    if state[:2] in _OF_THE_DATA or (state and state[:2] not in _CLASSES):
        return Reject(Rejected("refused", f"{state}: {error}"))
    return Retry(f"{state}: {error}")


def connect_args(settings: Settings) -> dict[str, Any]:
    """How to reach the server, for any asyncpg connection."""
    return {
        "host": settings.host,
        "port": settings.port,
        "database": settings.db,
        "user": settings.user,
        "password": settings.password.get_secret_value() if settings.password else None,
        "ssl": _ssl(settings),
        "timeout": 10,
        "server_settings": {"application_name": "iotflow", "timezone": "UTC"},
    }


def _ssl(settings: Settings) -> Any:
    """What asyncpg takes as `ssl`: the mode's name, or a context where certificates are named."""
    if settings.sslmode in {"disable", "prefer"}:
        return settings.sslmode
    context = ssl.create_default_context(cafile=settings.ssl_ca)
    context.check_hostname = settings.sslmode == "verify-full"
    if settings.sslmode == "require" and settings.ssl_ca is None:
        context.verify_mode = ssl.CERT_NONE
    if settings.ssl_cert is not None:
        context.load_cert_chain(settings.ssl_cert, settings.ssl_key)
    return context


async def _init(connection: asyncpg.Connection) -> None:
    await connection.execute(_STAGING)


async def _apply(settings: Settings) -> list[str]:
    """Make the table, its indexes and, where the extension is there, the hypertable; returns what to tell the user.

    May be run again. Raises what `TimescaleSink.classify` knows.
    """
    connection = await asyncpg.connect(**connect_args(settings))
    try:
        for statement in schema():
            await connection.execute(statement)
        available = await connection.fetchval("SELECT 1 FROM pg_available_extensions WHERE name = 'timescaledb'")
        if not available:
            return [
                f"{TABLE}: plain table; TimescaleDB is not installed on this server, so there is no hypertable, "
                "compression or retention policy"
            ]
        await connection.execute("CREATE EXTENSION IF NOT EXISTS timescaledb")
        await connection.execute(
            "SELECT create_hypertable($1::regclass, 'timestamp', chunk_time_interval => $2::text::interval, "
            "if_not_exists => TRUE, migrate_data => TRUE)",
            TABLE,
            settings.chunk_interval,
        )
        return [f"{TABLE}: hypertable, chunks of {settings.chunk_interval}"]
    finally:
        await connection.close()


async def apply_schema(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:  # noqa: ARG001
    """Make what is missing; returns what to tell the user. May be run again. Raises what the sink's classify knows."""
    return SchemaPlan("", notes=await _apply(settings))


#: What the registry of sinks makes one with.
Sink = TimescaleSink
