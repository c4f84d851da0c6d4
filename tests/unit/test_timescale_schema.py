"""What a plan is made of: two descriptions are compared, no server is asked."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from msgspec.structs import replace
from pydantic import ValidationError

from sinks.timescale.catalog import (
    Hypertable,
    Live,
    LiveColumn,
    Relation,
    Rollup,
    Server,
    indexed,
    version_of,
)
from sinks.timescale.compare import compare
from sinks.timescale.desired import SCHEMA_VERSION, Desired, desired
from sinks.timescale.policies import short_refreshes
from sinks.timescale.settings import Settings
from sinks.timescale.steps import Step
from sinks.timescale.tables import Table

DAY = timedelta(days=1)
PLAIN = Server("15.4", "joe", "db", "public")
TIMESCALE = replace(PLAIN, extension=(2, 26, 4), available=(2, 26, 4), loaded=True)
SETTINGS = Settings(wide=("telemetry",))


def wanted_of(server: Server = TIMESCALE, settings: Settings = SETTINGS) -> Desired:
    return desired(settings, {}, server, DAY)


def live_table(table: Table) -> Relation:
    """A table as the catalogs have it once it was made."""
    return Relation(
        "r",
        {
            column.name: LiveColumn(column.type, column.null and column.name not in table.key, column.default or None)
            for column in table.columns
        },
        table.key,
        {name: indexed(over) for name, over in table.indexes.items()},
    )


def live_of(server: Server = TIMESCALE, settings: Settings = SETTINGS, **changes: Relation | None) -> Live:
    """A database where all tables, hypertables and continuous aggregates are as the settings want them; no views."""
    wanted = wanted_of(server, settings)
    relations = {table.name: live_table(table) for table in wanted.tables} | changes
    hypertables = {
        each.table: Hypertable(
            each.time, each.interval, True, each.segment_by, each.order_by, each.compress_after, each.retention
        )
        for each in wanted.series
    }
    rollups = {}
    for tier in wanted.tiers:
        for table, metrics in wanted.rolled.items():
            columns = [f"{metric}{end}" for metric in metrics or ["value"] for end in ("#n", "#sum", "#min", "#max")]
            rollups[f"{table}_{tier.name}"] = Rollup(("bucket", *columns), True, tier.refresh, tier.retention)
    relations |= dict.fromkeys(rollups, Relation("v"))
    there = {name: relation for name, relation in relations.items() if relation is not None}
    return Live(server, there, hypertables, rollups, SCHEMA_VERSION)


def steps_of(live: Live, settings: Settings = SETTINGS) -> dict[str, Step]:
    """The steps but those of views, by what they are about."""
    steps = compare(wanted_of(live.server, settings), live)
    return {step.change.what: step for step in steps if not step.change.what.startswith("view ")}


@pytest.mark.parametrize("server", [PLAIN, TIMESCALE])
def test_what_is_as_it_should_be_needs_nothing(server: Server) -> None:
    assert steps_of(live_of(server)) == {}


def test_everything_is_made_in_an_empty_database_and_the_extension_first() -> None:
    empty = replace(TIMESCALE, extension=None, may_create=True)
    steps = compare(wanted_of(empty), Live(empty))
    assert steps[0].change.what == "extension timescaledb"
    assert {step.change.action for step in steps} == {"create"}
    names = [step.change.what for step in steps]
    assert names.index("table telemetry") < names.index("hypertable telemetry") < names.index("view measurements")
    assert names.index("continuous aggregate telemetry_hourly") < names.index("continuous aggregate telemetry_daily")


@pytest.mark.parametrize(
    ("server", "note", "timescale"),
    [
        (PLAIN, "not installed", None),
        (replace(TIMESCALE, extension=None, loaded=False), "shared_preload_libraries", None),
        (replace(TIMESCALE, extension=None, may_create=False), "have a superuser run CREATE EXTENSION", None),
        (replace(TIMESCALE, extension=None, may_create=True), "", (2, 26, 4)),
        (replace(TIMESCALE, extension=(2, 10, 3)), "2.10.3 is older than 2.11", None),
        (replace(TIMESCALE, extension=None, available=(2, 9), may_create=True), "2.9 is older than 2.11", None),
        (replace(TIMESCALE, community=False), "Apache licence", (2, 26, 4)),
        (TIMESCALE, "", (2, 26, 4)),
    ],
)
def test_what_can_be_had_of_timescaledb_and_what_is_said_about_it(server: Server, note: str, timescale: object) -> None:
    assert server.timescale == timescale
    assert (note in " ".join(server.notes)) if note else server.notes == []


def test_without_its_community_licence_there_are_hypertables_only() -> None:
    wanted = wanted_of(replace(TIMESCALE, community=False), Settings(retention_days=30))
    assert wanted.series
    assert not wanted.tiers
    assert {series.retention for series in wanted.series} == {None}


@pytest.mark.parametrize(("version", "word"), [((2, 17, 2), "compress_segmentby"), ((2, 18, 0), "enable_columnstore")])
def test_compression_goes_by_the_names_of_the_version(version: tuple[int, ...], word: str) -> None:
    server = replace(TIMESCALE, extension=version)
    live = live_of(server)
    bare = replace(live, hypertables={"telemetry": Hypertable("ts", DAY)})
    assert word in " ".join(steps_of(bare)["compression of telemetry"].sql)


def test_the_documents_own_table_is_refused_with_the_reason_and_the_remedy() -> None:
    documents = Relation(
        "r",
        {
            name: LiveColumn("text", null=False)
            for name in ("timestamp", "device_id", "connector_mode", "component_type")
        },
        ("timestamp", "device_id", "connector_mode", "component_type"),
    )
    steps = compare(wanted_of(), live_of(iot_measurements=documents))
    refused = {step.change.what: step.change.detail for step in steps if step.change.action == "refused"}
    assert "two pins of a controller" in refused["table iot_measurements"]
    assert "SET SCHEMA old" in refused["table iot_measurements"]
    assert "iot_measurements" in refused["view measurements"]
    assert not [step for step in steps if step.sql and step.change.action == "refused"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda table: replace(table, key=("id",)), "its key is (id), not (device_id, ts, channel)"),
        (lambda table: replace(table, kind="p"), "a partitioned table has that name"),
        (lambda table: replace(table, kind="v"), "a view has that name"),
        (
            lambda table: replace(table, columns={**table.columns, "device_id": LiveColumn("character varying(50)")}),
            "device_id is character varying(50)",
        ),
        (
            lambda table: replace(table, columns={n: c for n, c in table.columns.items() if n != "channel"}),
            "it has no channel",
        ),
    ],
)
def test_what_would_need_the_data_to_be_rewritten_is_refused(change: Callable[[Relation], Relation], said: str) -> None:
    live = live_of()
    live = replace(live, relations={**live.relations, "telemetry": change(live.relations["telemetry"])})
    step = steps_of(live)["table telemetry"]
    assert step.change.action == "refused"
    assert said in step.change.detail
    assert not step.sql


def test_differences_of_columns_and_indexes() -> None:
    table = live_of().relations["telemetry"]
    columns = dict(table.columns)
    del columns["battery"]
    columns["humidity"] = LiveColumn("text")
    columns["temperature"] = LiveColumn("double precision", null=False)
    columns["created_at"] = LiveColumn("timestamptz", null=True)
    columns["co2"] = LiveColumn("double precision")  # as a worker adds it
    columns["site"] = LiveColumn("uuid")
    changed = replace(
        table,
        columns=columns,
        indexes={"telemetry_ts": "btree (ts)", "mine": "btree (site)"},
        constraints={"sane": "CHECK (temperature < 100)"},
    )
    steps = compare(wanted_of(), live_of(telemetry=changed))
    found = {
        (step.change.what, step.change.action) for step in steps if not step.change.what.startswith(("view", "cont"))
    }
    assert found == {
        ("column telemetry.battery", "create"),
        ("column telemetry.humidity", "refused"),
        ("column telemetry.temperature", "change"),
        ("column telemetry.created_at", "change"),
        ("column telemetry.site", "foreign"),
        ("index telemetry_ts", "change"),
        ("index mine", "foreign"),
        ("constraint telemetry.sane", "foreign"),
    }
    assert len([step for step in steps if step.change.what == "column telemetry.created_at"]) == 2


@pytest.mark.parametrize("default", ["''::text", "''", "('')"])
def test_a_default_is_the_same_however_the_server_writes_it(default: str) -> None:
    table = live_of().relations["telemetry"]
    columns = {**table.columns, "channel": LiveColumn('text COLLATE "C"', False, default)}
    assert steps_of(live_of(telemetry=replace(table, columns=columns))) == {}


def test_policies_follow_the_settings() -> None:
    settings = Settings(
        wide=("telemetry",),
        retention_days=30,
        retention_daily_days=365,
        compress_after_days=0,
        chunk_interval="ignored",
    )
    steps = steps_of(live_of(), settings)
    assert {what: step.change.detail for what, step in steps.items()} == {
        "retention policy of iot_measurements": "after 30 d",
        "compression policy of iot_measurements": "after 7 d",
        "retention policy of telemetry": "after 30 d",
        "compression policy of telemetry": "after 7 d",
        "retention policy of aggregates": "after 365 d",
        "compression policy of aggregates": "after 7 d",
        "retention policy of quality": "after 30 d",
        "compression policy of quality": "after 7 d",
        # it must not go back to where the readings have been forgotten
        "refresh policy of iot_measurements_hourly": "goes back to the beginning -> 30 d, every 30 min",
        "refresh policy of telemetry_hourly": "goes back to the beginning -> 30 d, every 30 min",
        "refresh policy of iot_measurements_daily": "goes back to the beginning -> 365 d, every 1 h",
        "refresh policy of telemetry_daily": "goes back to the beginning -> 365 d, every 1 h",
        "retention policy of iot_measurements_daily": "after 365 d",
        "retention policy of telemetry_daily": "after 365 d",
    }
    assert steps["compression policy of telemetry"].change.action == "drop"


def test_figures_are_not_refreshed_where_their_readings_may_be_gone() -> None:
    short = Settings(wide=("telemetry",), retention_days=30)
    live = live_of(settings=short)
    longer = steps_of(live, Settings(wide=("telemetry",), retention_days=90))
    assert set(longer) == {f"retention policy of {name}" for name in ("iot_measurements", "telemetry", "quality")}
    assert short_refreshes(wanted_of(), live) == ["iot_measurements_hourly", "telemetry_hourly"]
    order = list(steps_of(live, Settings(wide=("telemetry",), retention_days=7)))
    assert order.index("refresh policy of telemetry_hourly") < order.index("retention policy of telemetry")


def test_a_retention_that_nobody_asked_for_is_taken_away() -> None:
    live = live_of()
    hyper = {**live.hypertables, "telemetry": replace(live.hypertables["telemetry"], retention=DAY)}
    step = steps_of(replace(live, hypertables=hyper))["retention policy of telemetry"]
    assert step.change.action == "drop"
    assert "remove_retention_policy" in " ".join(step.sql)


def test_columns_that_are_declared_later_get_an_aggregate_of_their_own() -> None:
    later = Settings(wide=("telemetry",), columns={"telemetry.co2": "double precision", "telemetry.note": "text"})
    steps = steps_of(live_of(), later)
    assert "column telemetry.co2" in steps
    hourly = " ".join(steps["continuous aggregate telemetry_hourly_2"].sql)
    assert '"co2#n"' in hourly
    assert "temperature" not in hourly
    assert "note" not in hourly
    assert "continuous aggregate telemetry_daily_2" in steps
    assert not [step for step in steps.values() if step.change.action == "drop"]


def test_an_aggregate_that_only_answers_with_what_is_aggregated_is_mended() -> None:
    live = live_of()
    rollups = {**live.rollups, "telemetry_hourly": replace(live.rollups["telemetry_hourly"], live=False, refresh=None)}
    steps = steps_of(replace(live, rollups=rollups))
    assert set(steps) == {"continuous aggregate telemetry_hourly", "refresh policy of telemetry_hourly"}


def test_a_newer_schema_is_left_alone() -> None:
    steps = compare(wanted_of(), replace(live_of(), version=SCHEMA_VERSION + 1, relations={}))
    assert [(step.change.what, step.change.action, step.sql) for step in steps] == [("schema version", "refused", ())]


def test_a_table_and_a_view_of_one_name() -> None:
    narrow = Settings(wide=())
    steps = compare(wanted_of(PLAIN, narrow), live_of(PLAIN, narrow, telemetry=Relation("r")))
    refused = next(step for step in steps if step.change.what == "view telemetry")
    assert refused.change.action == "refused"
    assert "put telemetry into TIMESCALE_WIDE" in refused.change.detail
    ours = live_of(PLAIN, telemetry=Relation("v", marked="iotflow 1 2"))
    made = steps_of(ours)["table telemetry"]
    assert made.sql[0] == 'DROP VIEW "telemetry"'


def test_what_versions_and_indexes_say() -> None:
    assert version_of("2.27.0-dev") == (2, 27, 0)
    assert version_of(None) is None
    server = 'CREATE INDEX idx_iot_component ON public.iot_measurements USING btree (component_type, "timestamp" DESC)'
    assert indexed(server) == indexed("component_type, timestamp DESC")
    assert indexed("USING brin (timestamp)") == "brin (timestamp)"


@pytest.mark.parametrize("days", [1, 2])
@pytest.mark.parametrize("name", ["retention_hourly_days", "retention_daily_days"])
def test_daily_figures_need_whole_days(name: str, days: int) -> None:
    with pytest.raises(ValidationError, match="at least 3"):
        Settings(**{name: days})


def test_rights_that_the_role_lacks_are_refused_with_the_grant() -> None:
    live = live_of()
    telemetry = replace(live.relations["telemetry"], denied=("INSERT", "UPDATE"), owned=False)
    found = steps_of(live_of(telemetry=telemetry))

    rights = found["rights on telemetry"].change
    assert rights.action == "refused"
    assert 'GRANT INSERT, UPDATE ON "telemetry" TO "joe"' in rights.detail
    assert "TIMESCALE_NEW_COLUMNS=plan" in found["ownership of telemetry"].change.detail
    planned = Settings(wide=("telemetry",), new_columns="plan")
    assert "ownership of telemetry" not in steps_of(live_of(settings=planned, telemetry=telemetry), planned)


def test_a_table_that_no_worker_writes_needs_no_rights() -> None:
    live = live_of()
    offsets = replace(live.relations["sink_offsets"], denied=("INSERT",))
    assert "rights on sink_offsets" not in steps_of(live_of(sink_offsets=offsets))
    once = Settings(wide=("telemetry",), exactly_once=True)
    assert "rights on sink_offsets" in steps_of(live_of(settings=once, sink_offsets=offsets), once)


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({}, "or say telemetry.humidity=text in TIMESCALE_COLUMNS"),
        ({"telemetry.humidity": "bigint"}, "or take telemetry.humidity out of TIMESCALE_COLUMNS"),
    ],
)
def test_a_column_of_another_type_gets_advice_that_helps(columns: dict[str, str], says: str) -> None:
    settings = Settings(wide=("telemetry",), columns=columns)
    table = live_of(settings=settings).relations["telemetry"]
    other = replace(table, columns={**table.columns, "humidity": LiveColumn("text")})
    step = steps_of(live_of(settings=settings, telemetry=other), settings)["column telemetry.humidity"]
    assert step.change.action == "refused"
    assert step.change.detail.endswith(says)


def test_none_is_no_wide_table() -> None:
    assert Settings(wide="none").wide == ()
    with pytest.raises(ValidationError, match="reserved"):
        Settings(wide="none,fire")
