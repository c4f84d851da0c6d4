"""What a database should have, by the settings: tables, hypertables, continuous aggregates. Views: see `views`.

Readings, the windows that iotflow computes of them and what it finds wrong with them are hypertables. Alarms,
bookkeeping and offsets are plain tables: their rows are few, and are changed for as long as they matter.

An hourly continuous aggregate is made of each table of readings, a daily one of each hourly one, so that daily figures
outlive the hourly, and those the readings. Wide tables have one over the numbers among their declared columns; when
columns are declared later a second one is made of them, since an aggregate's columns cannot be changed without
forgetting what it has of readings that are gone.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from sinks.timescale.catalog import Refresh, Server
from sinks.timescale.offsets import OFFSETS
from sinks.timescale.settings import Settings
from sinks.timescale.tables import NAME_BYTES, NARROW, VERSIONS, Table, wide
from sinks.timescale.views import SUFFIXES

#: Goes up with every change of what is made here.
SCHEMA_VERSION: Final = 2

_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
#: Types of columns that figures are made of.
NUMBERS: Final = frozenset({"double precision", "bigint"})
#: Of plain PostgreSQL only, where old rows are found by it; a hypertable drops whole chunks.
_BY_TIME: Final = {"idx_iot_time": "USING brin (timestamp)"}


class Series(Struct, frozen=True):
    """A hypertable. Whatever `order_by` lacks of the key an upsert into a compressed chunk would search for in vain."""

    table: str
    time: str
    interval: timedelta
    segment_by: tuple[str, ...]
    order_by: tuple[str, ...]
    compress_after: timedelta | None
    retention: timedelta | None


class Tier(Struct, frozen=True):
    """The continuous aggregates of one width."""

    name: str
    bucket: timedelta
    refresh: Refresh
    retention: timedelta | None


class Desired(Struct, frozen=True):
    """What there should be."""

    server: Server
    tables: Sequence[Table]
    series: Sequence[Series] = ()
    tiers: Sequence[Tier] = ()
    #: The wide tables of readings.
    wide: Sequence[str] = ()
    #: The tables that workers write.
    written: frozenset[str] = frozenset()
    #: Workers make columns in wide tables.
    grows: bool = False
    #: The columns that the settings speak of: MEASUREMENT.METRIC.
    told: frozenset[str] = frozenset()
    #: What is aggregated: by table the columns, of the narrow table none.
    rolled: Mapping[str, Sequence[str]] = {}


def desired(settings: Settings, types: Mapping[str, str], server: Server, interval: timedelta) -> Desired:
    """What the settings ask of this server; `interval` is what `chunk_interval` means to it."""
    own = [wide(name, settings.metrics_of(name, types)) for name in settings.measurements]
    narrow = NARROW
    if server.timescale is None and settings.retention_days:
        narrow = replace(NARROW, indexes={**NARROW.indexes, **_BY_TIME})
    tables = (narrow, *own, OFFSETS, VERSIONS)
    plain = Desired(
        server,
        tables,
        wide=settings.wide,
        written=frozenset(table.name for table in (narrow, *own, *([OFFSETS] if settings.exactly_once else []))),
        grows=settings.new_columns == "auto",
        told=frozenset(settings.columns),
    )
    if server.timescale is None:
        return plain
    readings = [narrow, *(table for table in own if table.name in settings.wide)]
    kept = retention(settings)
    compress = days(settings.compress_after_days) if server.policies else None
    series = [
        _series(table, interval, compress, days(kept[table.name]) if server.policies else None)
        for table in (narrow, *own)
        if table.name in kept
    ]
    if not server.policies:
        return replace(plain, series=series)
    return replace(
        plain, series=series, tiers=_tiers(settings), rolled={table.name: _rolled(table) for table in readings}
    )


def retention(settings: Settings) -> dict[str, int]:
    """The tables whose rows are let go of with time, each with the days that it keeps them; 0 is for ever."""
    return {
        **dict.fromkeys((NARROW.name, *settings.wide), settings.retention_days),
        "aggregates": settings.retention_daily_days,
        "quality": settings.retention_days,
    }


def days(number: int) -> timedelta | None:
    """A setting's days; 0 is for ever."""
    return timedelta(days=number) if number else None


def _series(table: Table, interval: timedelta, compress: timedelta | None, retention: timedelta | None) -> Series:
    rest = [name for name in table.key if name not in {*table.segment_by, table.time}]
    order = (f"{table.time} DESC", *rest)
    return Series(table.name, table.time, interval, table.segment_by, order, compress, retention)


def _tiers(settings: Settings) -> tuple[Tier, Tier]:
    """A refresh never goes back to where the source has been forgotten: it would forget the figures too."""
    raw, hourly, daily = (
        days(number)
        for number in (settings.retention_days, settings.retention_hourly_days, settings.retention_daily_days)
    )
    return (
        Tier("hourly", _HOUR, Refresh(least(raw, hourly), _HOUR, timedelta(minutes=30)), hourly),
        Tier("daily", _DAY, Refresh(least(hourly, daily), _DAY, _HOUR), daily),
    )


def least(*spans: timedelta | None) -> timedelta | None:
    """The shortest span; None is without end."""
    return min((span for span in spans if span is not None), default=None)


def _rolled(table: Table) -> list[str]:
    return [
        column.name for column in table.columns if column.metric and column.type in NUMBERS and suffixed(column.name)
    ]


def suffixed(column: str) -> bool:
    """Whether a column's name leaves room for what an aggregate adds to it."""
    return len(column.encode()) + max(map(len, SUFFIXES)) <= NAME_BYTES


def names(wanted: Iterable[Table], views: Iterable[str]) -> list[str]:
    """Whatever has to be looked up in the catalogs."""
    return [*(table.name for table in wanted), *views]
