"""The views: readings in every shape that the documents have, whichever way they are stored.

`measurements` has everything that was read in the shape of `iot_measurements`, a row for each value, of narrow and wide
tables alike. A reading that is in both, stored narrow before its measurement was wide and delivered again since, is in
it twice, and counts twice in the views that count; the product's own reading gives the wide one alone.

`telemetry` (where that measurement has no table of its own), `realtime` and `alert` are the shapes of the other
documents; `iot_hourly_stats` and `iot_daily_stats` have the mean, least, greatest and count of what is a number;
`recent_activity`, `compression_stats` and `uncompressed_chunks` are for the operator.

No view is made of another, so that each can be made anew by itself. A wide table's metrics are read off its rows, so a
column that is added later is in `measurements` at once. What the reserved measurements hold (aggregates, alarms, what
is wrong with data, bookkeeping) is nothing that a device said, and in their own tables only; of the alarms `alert` has
the times as times.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from msgspec import Struct

from sinks.timescale.catalog import Server
from sinks.timescale.steps import literal
from sinks.timescale.tables import FIXED, NARROW, ORIGINAL_TOPIC, metric_of, quoted

#: Ends the columns of a continuous aggregate: count, sum, least and greatest of the column before it.
SUFFIXES: Final = ("#n", "#sum", "#min", "#max")
#: A continuous aggregate: its table, its tier, and a number where the table has several of a tier.
ROLLUP: Final = re.compile(r"(.+)_(hourly|daily)(_\d+)?")

_TELEMETRY: Final = ("temperature", "humidity", "battery")
_FIRE: Final = ("temperature", "humidity", "smoke_density", "co_level", "gas_level")
#: The documents' kinds of alert, by metric.
_ALERTS: Final = {"temperature": "HEAT", "smoke_density": "SMOKE", "co_level": "CO", "gas_level": "GAS"}
#: A time as iotflow's own texts have it.
_ISO: Final = r"^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d([.]\d+)?Z$"
_SORTED: Final = ' COLLATE "default"'
#: The columns that are read off the channel of a row `s`, sorting as the narrow table's own.
_ADDRESS: Final = ", ".join(
    f"({column.derived}){_SORTED if column.type == 'text' else ''} AS {column.name}"
    for column in NARROW.columns
    if column.derived
)
_NUMBER: Final = "coalesce(s.value, s.value_int::double precision)"


class View(Struct, frozen=True):
    """A view, its query, and the tables that it reads."""

    name: str
    sql: str
    needs: Sequence[str] = ()


def views(server: Server, wide: Sequence[str], rollups: Mapping[str, Sequence[str]] | None) -> list[View]:
    """All views over the narrow table and these wide ones (of readings).

    `rollups` are the continuous aggregates with their columns; None where there are none to be had.
    """
    everything = _measurements(wide)
    needs = [NARROW.name, *wide]
    stats = {
        f"iot_{tier}_stats": _stats(everything, span) if rollups is None else _rolled_up(rollups, tier)
        for tier, span in (("hourly", "hour"), ("daily", "day"))
    }
    return [
        View("measurements", everything, needs),
        *([] if "telemetry" in wide else [View("telemetry", _telemetry(), needs)]),
        _realtime_wide() if "fire" in wide else View("realtime", _realtime(), needs),
        View("alert", _alert(), ["alarms"]),
        View("recent_activity", _recent(everything), needs),
        *(View(name, sql, needs) for name, sql in stats.items()),
        *_chunks(server, [NARROW.name, *wide, "aggregates", "quality"]),
    ]


def metrics_of(columns: Iterable[str]) -> list[str]:
    """What a continuous aggregate is of, by its columns."""
    return [column.removesuffix(SUFFIXES[0]) for column in columns if column.endswith(SUFFIXES[0])]


def _measurements(wide: Sequence[str]) -> str:
    names = ", ".join(f"s.{quoted(column.name)}" for column in NARROW.columns)
    narrow = f"SELECT {names} FROM {NARROW.name} s"  # noqa: S608  our own names, here and below
    return "\nUNION ALL\n".join([narrow, *map(_unpivoted, wide)])


def _unpivoted(name: str) -> str:
    """A wide table in the shape of the narrow one; a value that is absent has no row."""
    fixed = ", ".join(f"'{column}'" for column in sorted(FIXED))
    kinds = {"value": "double precision", "value_int": "bigint", "value_text": "text", "value_bool": "boolean"}
    values = ", ".join(
        f"CASE WHEN a.atttypid = '{kind}'::regtype THEN (v.value #>> '{{}}')::{kind} END AS {column}"
        for column, kind in kinds.items()
    )
    types = ", ".join(f"'{kind}'::regtype" for kind in kinds.values())
    meta = (
        f"jsonb_strip_nulls(jsonb_build_object('dialect', nullif(coalesce(s.meta->>'dialect', '{name}'), ''), "
        f"'tags', nullif((s.meta->'tags') - '{ORIGINAL_TOPIC}', '{{}}'), "
        "'flags', s.meta->'flags')) || "
        "CASE WHEN s.meta->'raw' ? m.metric THEN jsonb_build_object('raw', s.meta->'raw'->m.metric) ELSE '{}' END"
    )
    return (
        f'SELECT s.ts AS "timestamp", \'{name}\'::text COLLATE "C" AS measurement, s.device_id, s.channel, '  # noqa: S608
        f'm.metric COLLATE "C" AS component_type, {values}, '
        f"coalesce(s.meta->'units'->>m.metric, '') AS unit, "
        f"coalesce(s.meta->'tags'->>'{ORIGINAL_TOPIC}', '') AS topic, {meta} AS meta, {_ADDRESS}, "
        f"s.created_at AS inserted_at FROM {quoted(name)} s "
        f"CROSS JOIN LATERAL jsonb_each(to_jsonb(s) - ARRAY[{fixed}]) v (key, value) "
        f"JOIN pg_attribute a ON a.attrelid = '{quoted(name)}'::regclass AND a.attname = v.key::name "
        "CROSS JOIN LATERAL (SELECT CASE "
        "WHEN v.key LIKE '=#%' THEN coalesce(col_description(a.attrelid, a.attnum), v.key) "
        "WHEN v.key LIKE '=%' THEN substr(v.key, 2) ELSE v.key END) m (metric) "
        f"WHERE v.value <> 'null' AND a.atttypid IN ({types})"
    )


def _pivoted(metrics: Sequence[str]) -> str:
    return ", ".join(f"max({_NUMBER}) FILTER (WHERE s.component_type = '{metric}') AS {metric}" for metric in metrics)


def _telemetry() -> str:
    return (
        f'SELECT s.device_id, s."timestamp" AS ts, s.channel, {_pivoted(_TELEMETRY)}, '  # noqa: S608
        f"max(s.inserted_at) AS created_at FROM {NARROW.name} s WHERE s.measurement = 'telemetry' "
        'GROUP BY s.device_id, s."timestamp", s.channel'
    )


def _realtime() -> str:
    return (
        "SELECT s.device_id AS equipment_id, max(s.meta->'tags'->>'facility_id') AS facility_id, "  # noqa: S608
        "max(s.meta->'tags'->>'location') AS equipment_location, s.\"timestamp\" AS measured_at, "
        f"max(s.inserted_at) AS ingested_at, {_pivoted(_FIRE)} FROM {NARROW.name} s WHERE s.measurement = 'fire' "
        'GROUP BY s.device_id, s."timestamp", s.channel'
    )


def _realtime_wide() -> View:
    sql = (
        "SELECT s.device_id AS equipment_id, s.meta->'tags'->>'facility_id' AS facility_id, "  # noqa: S608
        "s.meta->'tags'->>'location' AS equipment_location, s.ts AS measured_at, s.created_at AS ingested_at, "
        f"{', '.join(f's.{metric}' for metric in _FIRE)} FROM fire s"
    )
    return View("realtime", sql, ["fire"])


def _alert() -> str:
    kinds = " ".join(f"WHEN '{metric}' THEN '{kind}'" for metric, kind in _ALERTS.items())
    return (
        "SELECT s.alarm_id AS alert_id, s.device_id AS equipment_id, "  # noqa: S608
        "coalesce(nullif(s.facility_id, ''), s.meta->'tags'->>'facility_id') AS facility_id, "
        "s.meta->'tags'->>'location' AS equipment_location, "
        f"coalesce(nullif(s.kind, ''), CASE s.metric {kinds} ELSE 'CUSTOM' END) AS alert_type, "
        "s.severity, upper(s.state) AS status, s.metric, s.value, s.threshold, s.message, "
        f"coalesce({_instant('measured_at')}, s.ts) AS measured_at, s.created_at AS ingested_at, "
        f"{_instant('acknowledged_at')} AS acknowledged_at, {_instant('resolved_at')} AS resolved_at, "
        f"s.ts AS created_at, {_instant('updated_at')} AS updated_at, "
        "nullif(s.acknowledged_by, '') AS acknowledged_by, nullif(s.label, '') AS label, s.unit, s.rule, s.replayed "
        "FROM alarms s"
    )


def _instant(column: str) -> str:
    """A column of texts as times; a text that has not the form of one is none."""
    return f"CASE WHEN s.{column} ~ '{_ISO}' THEN s.{column}::timestamptz END"


def _recent(everything: str) -> str:
    return (
        "SELECT date_trunc('minute', s.\"timestamp\") AS minute, s.device_id, count(*) AS records "  # noqa: S608
        f"FROM (\n{everything}\n) s WHERE s.\"timestamp\" > now() - interval '1 hour' "
        "GROUP BY minute, s.device_id ORDER BY minute DESC"
    )


def _stats(everything: str, span: str) -> str:
    same = "s.measurement, s.device_id, s.channel, s.connector_mode, s.connector, s.pin_position, s.component_type"
    return (
        f"SELECT date_trunc('{span}', s.\"timestamp\", 'UTC') AS bucket, {same}, "  # noqa: S608
        f"avg({_NUMBER}) AS avg_value, min({_NUMBER}) AS min_value, max({_NUMBER}) AS max_value, "
        f"count(*) AS measurement_count FROM (\n{everything}\n) s WHERE {_NUMBER} IS NOT NULL GROUP BY bucket, {same}"
    )


def _rolled_up(rollups: Mapping[str, Sequence[str]], tier: str) -> str:
    parts = []
    for name, columns in sorted(rollups.items()):
        found = ROLLUP.fullmatch(name)
        metrics = metrics_of(columns)
        if found is None or found.group(2) != tier or not metrics:
            continue
        if found.group(1) == NARROW.name:
            measurement, source = "s.measurement", ""
            metric, number, total, least, most = "s.component_type", *(f's."value{suffix}"' for suffix in SUFFIXES)
        else:
            rows = ", ".join(_row(metric) for metric in metrics)
            measurement = f"'{found.group(1)}'::text COLLATE \"C\""
            source = f" CROSS JOIN LATERAL (VALUES {rows}) v (metric, number, total, least, most) WHERE v.number > 0"
            metric, number, total, least, most = 'v.metric COLLATE "C"', "v.number", "v.total", "v.least", "v.most"
        parts.append(
            f"SELECT s.bucket, {measurement} AS measurement, s.device_id, s.channel, "  # noqa: S608
            f"{_ADDRESS}, {metric} AS component_type, {total} / {number} AS avg_value, {least} AS min_value, "
            f"{most} AS max_value, {number} AS measurement_count FROM {quoted(name)} s{source}"
        )
    return "\nUNION ALL\n".join(parts)


def _row(column: str) -> str:
    """A metric's figures as a row of its own; integers as the double that all the others are."""
    number, *others = (f"s.{quoted(column + suffix)}" for suffix in SUFFIXES)
    return f"({literal(metric_of(column))}, {number}, {', '.join(f'{each}::double precision' for each in others)})"


def _chunks(server: Server, names: Sequence[str]) -> list[View]:
    ours = f"IN ({', '.join(map(literal, names))})"
    schema = literal(server.schema)
    sizes = "pg_size_pretty({0}) AS before, pg_size_pretty({1}) AS after, round({1}::numeric / nullif({0}, 0) * 100, 2)"
    if server.policies:
        function = "chunk_columnstore_stats" if server.columnstore else "chunk_compression_stats"
        before, after = "c.before_compression_total_bytes", "c.after_compression_total_bytes"
        stats = (
            f"SELECT c.chunk_name, {sizes.format(before, after)} AS compression_ratio, "  # noqa: S608
            f"h.hypertable_name, {before} AS before_bytes, {after} AS after_bytes "
            "FROM timescaledb_information.hypertables h "
            f"CROSS JOIN LATERAL {function}(format('%I.%I', h.hypertable_schema, h.hypertable_name)::regclass) c "
            f"WHERE h.hypertable_schema = {schema} AND h.hypertable_name {ours} AND h.compression_enabled "
            "AND c.compression_status = 'Compressed'"
        )
    else:
        before, after = "pg_total_relation_size(c.oid)", "NULL::bigint"
        stats = (
            f"SELECT c.relname AS chunk_name, {sizes.format(before, after)} AS compression_ratio, "  # noqa: S608
            f"c.relname AS hypertable_name, {before} AS before_bytes, {after} AS after_bytes FROM pg_class c "
            f"JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = {schema} AND c.relname {ours}"
        )
    if server.timescale:
        chunks = (
            "SELECT c.hypertable_name, c.chunk_schema, c.chunk_name, c.range_start, c.range_end "  # noqa: S608
            "FROM timescaledb_information.chunks c "
            f"WHERE NOT c.is_compressed AND c.hypertable_schema = {schema} AND c.hypertable_name {ours}"
        )
    else:
        chunks = (
            "SELECT NULL::name AS hypertable_name, NULL::name AS chunk_schema, NULL::name AS chunk_name, "
            "NULL::timestamptz AS range_start, NULL::timestamptz AS range_end WHERE false"
        )
    return [View("compression_stats", stats), View("uncompressed_chunks", chunks)]
