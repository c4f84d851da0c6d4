"""The settings of the sink for TimescaleDB and PostgreSQL, and how a connection is made of them."""

import re
import ssl
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, FilePath, SecretStr, model_validator

from sinks.base import SinkSettings, unpaired
from sinks.timescale.tables import KINDS, RESERVED, TAKEN_TABLES, Kind, declared

#: A table's name that needs no quotes and leaves room for those of its index and key.
_TABLE: Final = re.compile(r"[a-z_][a-z0-9_]{0,40}")

#: What says of a list that it has nothing in it: an empty variable is as one that is not set.
_NONE: Final = "none"


def _wide(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if names == (_NONE,):
        return ()
    for name in names:
        if not _TABLE.fullmatch(name):
            raise ValueError(f"{name!r} cannot be a table: small letters, digits and _ only, 41 at most")
        if name in RESERVED:
            raise ValueError(
                f"{name!r} cannot be a table of readings: iotflow keeps its own {name} there, always; take it out"
            )
        if (
            name == _NONE
            or name in TAKEN_TABLES
            or name.startswith("pg_")
            or name.endswith(("_key", "_ts", "_hourly", "_daily"))
        ):
            raise ValueError(f"{name!r} cannot be a table of its own: the name is reserved")
    return names


def _columns(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    columns: dict[str, str] = {}
    for entry in filter(None, map(str.strip, value.split(","))):
        name, _, kind = entry.rpartition("=")
        measurement, _, metric = name.partition(".")
        if not measurement or not metric:
            raise ValueError(f"{entry!r} is not MEASUREMENT.METRIC=TYPE")
        if kind.lower() not in KINDS:
            raise ValueError(f"{name!r} has an unknown type {kind!r}; allowed: {', '.join(KINDS)}")
        if name in columns:
            raise ValueError(f"{name!r} is there twice")
        columns[name] = KINDS[kind.lower()]
    return columns


class Settings(SinkSettings):
    """Where the database is; `URLS` name the variables that hold all of it as one URL, the last to be asked."""

    model_config = ConfigDict(validate_by_name=True)

    PREFIX: ClassVar[str] = "TIMESCALE"
    STAGE: ClassVar[str] = "store-timescale"
    PORT: ClassVar[int] = 6067
    BOOKS: ClassVar[bool] = True
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
    chunk_interval: str = Field("1 day", description="time that a chunk of a hypertable spans, as an SQL interval")
    compress_after_days: int = Field(
        7,
        ge=0,
        le=36_500,
        description="days after which a chunk is compressed, 0 for never; readings that come later than that cost more",
    )
    retention_days: int = Field(
        0,
        ge=0,
        le=36_500,
        description="days that readings (and `quality`) are kept, 0 for ever (the documents say 30 or 90)",
    )
    retention_hourly_days: int = Field(0, ge=0, le=36_500, description="days that hourly figures are kept, 0 for ever")
    retention_daily_days: int = Field(
        0, ge=0, le=36_500, description="days that daily figures and iotflow's aggregates are kept, 0 for ever"
    )
    wide: Annotated[tuple[str, ...], BeforeValidator(_wide)] = Field(
        ("telemetry", "fire"),
        description="measurements that have a table of their own, a row for each reading: NAME,NAME, or none",
    )
    new_columns: Literal["auto", "plan"] = Field(
        "auto",
        description="who makes the column of a metric that is new in such a table: the worker, or `schema apply`, "
        "told by `columns`",
    )
    columns: Annotated[dict[str, Kind], BeforeValidator(_columns)] = Field(
        {},
        description="columns that `schema apply` makes: MEASUREMENT.METRIC=TYPE,…; number, integer, text or boolean",
    )
    max_columns: int = Field(250, ge=1, le=1500, description="columns for metrics that such a table may have")
    exactly_once: bool = Field(False, description="keep the offsets in the database, in the transaction of their data")
    fast_path: Literal["auto", "off"] = Field(
        "auto", description="copy a batch straight into the table while batches hold nothing that is stored already"
    )
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
        flaws += [
            f"`{name}` must be 0 (for ever) or at least 3: daily figures are made of whole days"
            for name in ("retention_hourly_days", "retention_daily_days")
            if 0 < getattr(self, name) < 3  # noqa: PLR2004  as it says
        ]
        flaws += [
            f"`columns` names {name}, whose measurement is not in `wide`"
            for name in self.columns
            if name.partition(".")[0] not in {*self.wide, *RESERVED}
        ]
        if flaws:
            raise ValueError("\n".join(flaws))
        return self

    @property
    def measurements(self) -> tuple[str, ...]:
        """Those that are stored wide, the reserved ones with them."""
        return tuple(dict.fromkeys((*self.wide, *RESERVED)))

    def metrics_of(self, measurement: str, types: Mapping[str, str]) -> dict[str, Kind]:
        """The metrics whose columns `schema apply` makes in a wide table, by what is declared and by `columns`."""
        own = {
            name.removeprefix(f"{measurement}."): kind
            for name, kind in self.columns.items()
            if name.startswith(f"{measurement}.")
        }
        return {**declared(measurement, types), **own}


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
