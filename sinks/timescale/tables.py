"""The tables: one model that the DDL, its comparison with a live database, the COPY and the upsert are made from.

Every reading goes to one table. Narrow is `iot_measurements`, a row for each value; wide is a table for a measurement,
a row for each reading and a column for each metric. Aggregates, alarms, what is wrong with data and the bookkeeping are
readings too, of the reserved measurements, whose wide tables have their columns from the start.
"""

from collections.abc import Mapping
from hashlib import sha256
from typing import Final, Literal

from msgspec import Struct

from schemas import dialects
from sinks.base import integer_type

#: A wide table's columns for metrics, by the kind of value: number, integer by override, text, boolean.
Kind = Literal["double precision", "bigint", "text", "boolean"]
#: What a person calls them.
KINDS: Final[Mapping[str, Kind]] = {
    "number": "double precision",
    "integer": "bigint",
    "text": "text",
    "boolean": "boolean",
}

_C: Final = 'text COLLATE "C"'


class Column(Struct, frozen=True):
    """A column. `derived` is the SQL that computes it from a row `s`, for views of tables that do not have it."""

    name: str
    #: As in DDL, with its collation.
    type: str
    null: bool = True
    default: str = ""
    derived: str = ""
    #: The metric that is stored here, in a wide table.
    metric: str = ""

    @property
    def sql(self) -> str:
        """As a table's definition has it."""
        default = f" DEFAULT {self.default}" if self.default else ""
        return f"{quoted(self.name)} {self.type}{'' if self.null else ' NOT NULL'}{default}"


class Table(Struct, frozen=True):
    """A table. Its key's index leads with the device, so that it serves every query for one."""

    name: str
    #: The column of time, which a hypertable is cut by; '' for what is no time series.
    time: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    key_name: str
    #: Other indexes: name to columns as SQL.
    indexes: Mapping[str, str]
    #: What compressed chunks are segmented by.
    segment_by: tuple[str, ...]
    #: The measurement that alone is in it, '' for narrow.
    measurement: str = ""

    @property
    def wide(self) -> bool:
        """Whether a row is a reading."""
        return bool(self.measurement)

    @property
    def metrics(self) -> dict[str, Column]:
        """The column of each metric, in a wide table."""
        return {column.metric: column for column in self.columns if column.metric}


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return '"' + name.replace('"', '""') + '"'


#: What this lock is held for: changing tables, by a worker or by `schema apply`.
SCHEMA_LOCK: Final = 0x696F74666C6F77
#: Tables and views that are no measurement's.
TAKEN_TABLES: Final = frozenset(
    {
        "alert",
        "compression_stats",
        "iot_daily_stats",
        "iot_hourly_stats",
        "iot_measurements",
        "iotflow_schema",
        "measurements",
        "realtime",
        "recent_activity",
        "sink_offsets",
        "uncompressed_chunks",
    }
)

#: The tag that becomes the column `topic`.
ORIGINAL_TOPIC: Final = "original_topic"

NARROW: Final = Table(
    name="iot_measurements",
    time="timestamp",
    # In the order of a row as it is copied, but for the last; `connector_mode` and so on are read off the channel.
    columns=(
        Column("timestamp", "timestamptz", null=False),
        Column("measurement", _C, null=False),
        Column("device_id", _C, null=False),
        Column("channel", _C, null=False, default="''"),
        Column("component_type", _C, null=False),
        Column("value", "double precision"),
        Column("value_int", "bigint"),
        Column("value_text", "text"),
        Column("value_bool", "boolean"),
        Column("unit", "text", null=False, default="''"),
        Column("topic", "text", null=False, default="''"),
        Column("meta", "jsonb", null=False, default="'{}'"),
        Column(
            "connector_mode",
            "text",
            null=False,
            default="'unknown'",
            derived="CASE WHEN s.channel = '' THEN 'unknown' ELSE split_part(s.channel, '/', 1) END",
        ),
        Column(
            "connector",
            "smallint",
            null=False,
            default="-1",
            derived="CASE WHEN split_part(s.channel, '/', 2) ~ '^[0-9]{1,4}$' "
            "THEN split_part(s.channel, '/', 2)::smallint ELSE -1 END",
        ),
        Column(
            "pin_position",
            "text",
            null=False,
            default="'-1'",
            derived="CASE WHEN split_part(s.channel, '/', 3) = '' THEN '-1' ELSE split_part(s.channel, '/', 3) END",
        ),
        Column("inserted_at", "timestamptz", null=False, default="now()"),
    ),
    # As the documents' `idx_iot_device_id (device_id, timestamp DESC)`.
    key=("device_id", "timestamp", "component_type", "channel", "measurement"),
    key_name="idx_iot_device_id",
    indexes={
        "idx_iot_component": "component_type, timestamp DESC",
        "idx_iot_mode": "connector_mode, timestamp DESC",
    },
    segment_by=("device_id", "component_type"),
)

#: Columns of a wide table that are not metrics.
FIXED: Final = frozenset({"ts", "device_id", "channel", "meta", "created_at"})
#: No metric's column has such a name: those, and PostgreSQL's own columns of every table.
TAKEN: Final = FIXED | {"tableoid", "xmin", "cmin", "xmax", "cmax", "ctid"}
#: Before a metric's name that cannot be a column's as it is.
_MARK: Final = "="
#: Begins the column of a metric whose name is too long; no marked name begins so.
_LONG: Final = "=#"
#: Hexadecimal digits of its digest that such a column's name has.
_DIGITS: Final = 16
#: PostgreSQL cuts longer names off, in bytes.
NAME_BYTES: Final = 63

_NUMBERS: Final = ("mean", "min", "max", "stddev", "sum", "first", "last", "p50", "p95", "p99")
#: What wide tables of the reserved measurements hold. The channel names the series and what is said of it, joined by
#: `schemas.names`: of an aggregate it is MEASUREMENT|CHANNEL|METRIC|WINDOW and the time its window's start; of an alarm
#: MEASUREMENT|CHANNEL|METRIC|RULE and the time when it was raised; of what is wrong with data
#: KIND|MEASUREMENT|CHANNEL|METRIC and the time when it was so. Of the bookkeeping the device is the store, the channel
#: the worker, and the time the interval's start. Other times are texts of ISO 8601 in UTC, with microseconds and `Z`.
#: A null never takes a stored value away, here as in every store: a text that no longer holds becomes ''.
RESERVED: Final[Mapping[str, Mapping[str, Kind]]] = {
    "aggregates": {
        "measurement": "text",
        "metric": "text",
        "window": "text",
        "revision": "bigint",
        "count": "bigint",
        **dict.fromkeys(_NUMBERS, "double precision"),
    },
    "alarms": {
        **dict.fromkeys(("alarm_id", "measurement", "metric", "rule", "severity", "state", "unit"), "text"),
        "value": "double precision",
        "threshold": "double precision",
        "message": "text",
        **dict.fromkeys(("updated_at", "acknowledged_at", "acknowledged_by", "resolved_at"), "text"),
        "rule_version": "bigint",
        "replayed": "boolean",
        **dict.fromkeys(("kind", "label"), "text"),
        **dict.fromkeys(("score", "expected_low", "expected_high"), "double precision"),
        "detector_version": "bigint",
        **dict.fromkeys(("facility_id", "measured_at"), "text"),
    },
    "quality": {
        **dict.fromkeys(("kind", "measurement", "metric", "message", "facility_id"), "text"),
        "count": "bigint",
    },
    "storage_metadata": {
        **dict.fromkeys(("batch_id", "storage_type", "storage_path", "flush_type"), "text"),
        **dict.fromkeys(("period_start", "period_end"), "text"),
        **dict.fromkeys(
            ("record_count", "row_count", "size_bytes", "flush_count", "success_count", "error_count", "retry_count"),
            "bigint",
        ),
        "duration_ms": "double precision",
        "error_message": "text",
    },
}


def column_of(metric: str) -> str:
    """The column for a metric; no two metrics have the same.

    Of a name that is longer than `NAME_BYTES` the column has its beginning, and all of it is the column's comment.
    """
    column = _MARK + metric if metric in TAKEN or metric.startswith(_MARK) else metric
    if len(column.encode()) <= NAME_BYTES:
        return column
    head = f"{_LONG}{sha256(metric.encode()).hexdigest()[:_DIGITS]}#"
    return head + metric.encode()[: NAME_BYTES - len(head)].decode(errors="ignore")


def metric_of(column: str, comment: str | None = None) -> str:
    """The metric of a wide table's column."""
    if column.startswith(_LONG):
        return comment if comment is not None and column_of(comment) == column else column
    return column.removeprefix(_MARK)


def comment_of(table: str, metric: str) -> str | None:
    """The statement that keeps a metric's name where its column cannot."""
    column = column_of(metric)
    if not column.startswith(_LONG):
        return None
    text = metric.replace("'", "''").replace("\\", "\\\\")
    return f"COMMENT ON COLUMN {quoted(table)}.{quoted(column)} IS E'{text}'"


def declared(measurement: str, types: Mapping[str, str]) -> dict[str, Kind]:
    """The metrics that are known of a measurement before any reading of it comes, as columns' types."""
    if measurement in RESERVED:
        return dict(RESERVED[measurement])
    if measurement not in dialects.load():
        return {}
    metrics = dialects.load()[measurement].POLICY.metrics
    return {metric: "bigint" if integer_type(types, measurement, metric) else "double precision" for metric in metrics}


def wide(measurement: str, metrics: Mapping[str, Kind]) -> Table:
    """The wide table of a measurement, of its name, with these metrics' columns."""
    return Table(
        name=measurement,
        time="ts",
        columns=(
            Column("ts", "timestamptz", null=False),
            Column("device_id", _C, null=False),
            Column("channel", _C, null=False, default="''"),
            *(Column(column_of(metric), kind, metric=metric) for metric, kind in metrics.items()),
            Column("meta", "jsonb"),
            Column("created_at", "timestamptz", null=False, default="now()"),
        ),
        key=("device_id", "ts", "channel"),
        key_name=f"{measurement}_key",
        indexes={f"{measurement}_ts": "ts DESC"},
        segment_by=("device_id",),
        measurement=measurement,
    )


#: Which versions of the schema were applied.
VERSIONS: Final = Table(
    name="iotflow_schema",
    time="",
    columns=(
        Column("version", "integer", null=False),
        Column("applied_at", "timestamptz", null=False, default="now()"),
        Column("iotflow_version", "text", null=False),
    ),
    key=("version",),
    key_name="iotflow_schema_key",
    indexes={},
    segment_by=(),
)
