"""What TimescaleDB is to do with the tables: hypertables, compression, retention, continuous aggregates. Pure."""

from collections.abc import Collection, Iterator, Sequence
from datetime import timedelta
from typing import Final

from msgspec.structs import replace

from sinks.base import Change
from sinks.timescale.catalog import Hypertable, Live, Rollup, Server
from sinks.timescale.desired import NUMBERS, Desired, Series, Tier, least
from sinks.timescale.steps import Step, aside, literal, refused
from sinks.timescale.tables import NARROW, quoted
from sinks.timescale.views import ROLLUP, SUFFIXES, metrics_of

#: The narrow table's value in the columns of its continuous aggregates.
_VALUE: Final = "value"
_NUMBER: Final = "coalesce(value, value_int::double precision)"
_FUNCTIONS: Final = ("count", "sum", "min", "max")


# -- hypertables -------------------------------------------------------------------------------------------------------


def series_steps(series: Series, found: Hypertable | None, server: Server) -> Iterator[Step]:
    """Make a table a hypertable, with its compression."""
    name = series.table
    if found is None:
        yield Step(
            Change(f"hypertable {name}", "create", f"chunks of {_span(series.interval)}, to which its rows are moved"),
            (
                f"SELECT create_hypertable({_regclass(name)}, {literal(series.time)}, "
                f"chunk_time_interval => {_interval(series.interval)}, create_default_indexes => false, "
                "migrate_data => true)",
            ),
        )
        found = Hypertable(series.time, series.interval)
    elif found.time != series.time:
        yield refused(f"hypertable {name}", f"it is cut by {found.time}, not {series.time}: {aside(name)}")
        return
    if found.interval != series.interval:
        yield Step(
            Change(
                f"chunks of {name}", "change", f"{_span(found.interval)} -> {_span(series.interval)}, of new chunks"
            ),
            (f"SELECT set_chunk_time_interval({_regclass(name)}, {_interval(series.interval)})",),
        )
    if server.policies:
        yield from _compression(series, found, columnstore=server.columnstore)


def _compression(series: Series, found: Hypertable, *, columnstore: bool) -> Iterator[Step]:
    what = f"compression of {series.table}"
    if not found.compressed or (found.segment_by, found.order_by) != (series.segment_by, series.order_by):
        prefix = "" if columnstore else "compress_"
        order = ", ".join(f"{quoted(name)}{way}" for name, way in map(_split, series.order_by))
        options = (
            f"timescaledb.{'enable_columnstore' if columnstore else 'compress'}, "
            f"timescaledb.{prefix}segmentby = {literal(', '.join(map(quoted, series.segment_by)))}, "
            f"timescaledb.{prefix}orderby = {literal(order)}"
        )
        detail = f"by {', '.join(series.segment_by)} in the order of {', '.join(series.order_by)}"
        action = Change(what, "change" if found.compressed else "create", detail)
        yield Step(action, (f"ALTER TABLE {quoted(series.table)} SET ({options})",))
    if found.compress_after != series.compress_after:
        remove, add = (
            ("CALL remove_columnstore_policy({}, if_exists => true)", "CALL add_columnstore_policy({}, after => {})")
            if columnstore
            else ("SELECT remove_compression_policy({}, if_exists => true)", "SELECT add_compression_policy({}, {})")
        )
        yield _policy(
            f"compression policy of {series.table}",
            series.table,
            found.compress_after,
            series.compress_after,
            (remove, add),
        )


def _split(order: str) -> tuple[str, str]:
    return (order.removesuffix(" DESC"), " DESC") if order.endswith(" DESC") else (order, "")


def retention_steps(name: str, found: timedelta | None, wanted: timedelta | None) -> Iterator[Step]:
    """Have a hypertable or continuous aggregate forget what is older, or no longer.

    Done after what is made of it has been told not to go back further.
    """
    if found != wanted:
        words = ("SELECT remove_retention_policy({}, if_exists => true)", "SELECT add_retention_policy({}, {})")
        yield _policy(f"retention policy of {name}", name, found, wanted, words)


def _policy(what: str, name: str, found: timedelta | None, wanted: timedelta | None, words: tuple[str, str]) -> Step:
    remove, add = words
    sql = [remove.format(_regclass(name))] if found is not None else []
    if wanted is not None:
        sql.append(add.format(_regclass(name), _interval(wanted)))
    if found is None:
        change = Change(what, "create", f"after {_span(wanted)}")
    elif wanted is None:
        change = Change(what, "drop", f"after {_span(found)}")
    else:
        change = Change(what, "change", f"{_span(found)} -> {_span(wanted)}")
    return Step(change, sql)


def _regclass(name: str) -> str:
    return f"{literal(quoted(name))}::regclass"


def _interval(span: timedelta) -> str:
    return f"interval '{span.days} days {(span % timedelta(days=1)).total_seconds():f} seconds'"


def _span(span: timedelta | None) -> str:
    """For a person."""
    if span is None:
        return "never"
    for unit, name in ((timedelta(days=1), "d"), (timedelta(hours=1), "h"), (timedelta(minutes=1), "min")):
        if not span % unit:
            return f"{span // unit} {name}"
    return f"{span.total_seconds():g} s"


# -- continuous aggregates ---------------------------------------------------------------------------------------------


def rollup_steps(wanted: Desired, live: Live, broken: Collection[str]) -> tuple[list[Step], dict[str, Sequence[str]]]:
    """Make and mend the continuous aggregates; and all there are after that, with their columns."""
    hourly, daily = wanted.tiers
    steps: list[Step] = []
    columns: dict[str, Sequence[str]] = {
        name: found.columns for name, found in live.rollups.items() if ROLLUP.fullmatch(name)
    }
    for table, metrics in wanted.rolled.items():
        if table in broken:
            continue
        if lacking := _lacking(table, metrics, live):
            name = _free(f"{table}_hourly", live)
            columns[name] = _outputs(table, lacking)
            steps.append(_made(name, _hourly(name, table, lacking), hourly, live))
        for source in _of(table, "hourly", columns):
            name = f"{table}_daily{source.removeprefix(f'{table}_hourly')}"
            if name not in columns:
                columns[name] = columns[source]
                steps.append(_made(name, _daily(name, source, table, metrics_of(columns[source])), daily, live))
        for tier in wanted.tiers:
            for name in _of(table, tier.name, live.rollups):
                source, time = table, NARROW.time if table == NARROW.name else "ts"
                if tier is daily:
                    source, time = f"{table}_hourly{name.removeprefix(f'{table}_daily')}", "bucket"
                steps += _mended(name, tier, live.rollups[name], source, time)
    return steps, columns


def _of(table: str, tier: str, names: Collection[str]) -> list[str]:
    found = ((name, ROLLUP.fullmatch(name)) for name in names)
    return [name for name, match in found if match and match.group(1, 2) == (table, tier)]


def _free(name: str, live: Live) -> str:
    number = 1
    free = name
    while free in live.rollups:
        number += 1
        free = f"{name}_{number}"
    return free


def _lacking(table: str, metrics: Sequence[str], live: Live) -> list[str]:
    """The columns that no hourly aggregate of the table is of yet."""
    covered = {
        metric for name in _of(table, "hourly", live.rollups) for metric in metrics_of(live.rollups[name].columns)
    }
    if table == NARROW.name:
        return [] if _VALUE in covered else [_VALUE]
    there = live.relations[table].columns if table in live.relations else {}
    return [
        metric for metric in metrics if metric not in covered and (metric not in there or there[metric].type in NUMBERS)
    ]


def _dimensions(table: str) -> tuple[str, ...]:
    return (
        ("measurement", "device_id", "channel", "component_type") if table == NARROW.name else ("device_id", "channel")
    )


def _outputs(table: str, metrics: Sequence[str]) -> tuple[str, ...]:
    return ("bucket", *_dimensions(table), *(metric + suffix for metric in metrics for suffix in SUFFIXES))


def _hourly(name: str, table: str, metrics: Sequence[str]) -> str:
    narrow = table == NARROW.name
    figures = ", ".join(
        f"{function}({_NUMBER if narrow else quoted(metric)}) AS {quoted(metric + suffix)}"
        for metric in metrics
        for function, suffix in zip(_FUNCTIONS, SUFFIXES, strict=True)
    )
    time = NARROW.time if narrow else "ts"
    where = f" WHERE {_NUMBER} IS NOT NULL" if narrow else ""
    return _aggregate(name, f"interval '1 hour', {quoted(time)}", _dimensions(table), figures, quoted(table) + where)


def _daily(name: str, source: str, table: str, metrics: Sequence[str]) -> str:
    n, total, least, most = SUFFIXES
    figures = ", ".join(
        f"sum({quoted(metric + n)})::bigint AS {quoted(metric + n)}, "
        f"sum({quoted(metric + total)}) AS {quoted(metric + total)}, "
        f"min({quoted(metric + least)}) AS {quoted(metric + least)}, "
        f"max({quoted(metric + most)}) AS {quoted(metric + most)}"
        for metric in metrics
    )
    return _aggregate(name, "interval '1 day', bucket", _dimensions(table), figures, quoted(source))


def _aggregate(name: str, bucket: str, by: Sequence[str], figures: str, source: str) -> str:
    return (
        f"CREATE MATERIALIZED VIEW {quoted(name)} WITH (timescaledb.continuous, timescaledb.materialized_only = false) "  # noqa: S608  our own names
        f"AS SELECT time_bucket({bucket}) AS bucket, {', '.join(by)}, {figures} FROM {source} "
        f"GROUP BY {', '.join(str(place) for place in range(1, len(by) + 2))} WITH NO DATA"
    )


def _made(name: str, create: str, tier: Tier, live: Live) -> Step:
    what = f"continuous aggregate {name}"
    if name in live.relations:
        return refused(what, f"something else has that name: rename {quoted(name)} and apply again")
    sql = [create, _refresh(name, tier, _wanted_start(tier))]
    if tier.retention is not None:
        sql.append(f"SELECT add_retention_policy({_regclass(name)}, {_interval(tier.retention)})")
    return Step(Change(what, "create", f"refreshed every {_span(tier.refresh.every)}"), sql)


def _refresh(name: str, tier: Tier, start: str) -> str:
    refresh = tier.refresh
    return (
        f"SELECT add_continuous_aggregate_policy({_regclass(name)}, start_offset => {start}, "
        f"end_offset => {_interval(refresh.end)}, schedule_interval => {_interval(refresh.every)})"
    )


def _wanted_start(tier: Tier) -> str:
    return "NULL::interval" if tier.refresh.start is None else _interval(tier.refresh.start)


def _safe_start(name: str, tier: Tier, source: str, time: str) -> str:
    """How far back a refresh may go, as SQL: not to where there are figures whose source has been deleted.

    A refresh of such a time would find nothing, and delete the figures.
    """
    width, wanted = _interval(tier.bucket), _wanted_start(tier)
    return (
        "(SELECT CASE WHEN figures.first < rows.first "  # noqa: S608  our own names
        f"THEN least({wanted}, greatest(now() - rows.first - {width}, 4 * {width})) ELSE {wanted} END "
        f"FROM (SELECT min(bucket) AS first FROM {quoted(name)}) figures, "
        f"(SELECT time_bucket({width}, coalesce(min({quoted(time)}), now())) AS first FROM {quoted(source)}) rows)"
    )


def _mended(name: str, tier: Tier, found: Rollup, source: str, time: str) -> Iterator[Step]:
    if not found.live:
        sql = f"ALTER MATERIALIZED VIEW {quoted(name)} SET (timescaledb.materialized_only = false)"
        yield Step(Change(f"continuous aggregate {name}", "change", "answers with the newest readings too"), (sql,))
    what, every = f"refresh policy of {name}", _span(tier.refresh.every)
    if found.refresh is None:
        add = _refresh(name, tier, _safe_start(name, tier, source, time))
        yield Step(Change(what, "create", f"every {every}"), (add,))
    elif found.refresh != (wanted := replace(tier.refresh, start=least(found.refresh.start, tier.refresh.start))):
        remove = f"SELECT remove_continuous_aggregate_policy({_regclass(name)}, if_exists => true)"
        start = "NULL" if wanted.start is None else _interval(wanted.start)
        detail = f"goes back {_back(found.refresh.start)} -> {_back(wanted.start)}, every {every}"
        yield Step(Change(what, "change", detail), (remove, _refresh(name, tier, start)))
    yield from retention_steps(name, found.retention, tier.retention)


def _back(start: timedelta | None) -> str:
    return "to the beginning" if start is None else _span(start)


def short_refreshes(wanted: Desired, live: Live) -> list[str]:
    """The continuous aggregates whose refresh goes back less far than the settings let it.

    That is left as it is, since of an earlier time there may be nothing left but the figures.
    """
    return [
        name
        for tier in wanted.tiers
        for table in wanted.rolled
        for name in _of(table, tier.name, live.rollups)
        if (found := live.rollups[name].refresh) is not None
        and found.start is not None
        and (tier.refresh.start is None or found.start < tier.refresh.start)
    ]
