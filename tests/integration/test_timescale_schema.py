"""The schema of a real PostgreSQL: planned, applied, changed by hand, and read by the documents' own queries."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from schemas.reading import Reading
from sinks import timescale as store
from sinks.base import Fatal
from sinks.timescale import Settings, TimescaleSink, apply_schema, drift, maintain, plan_schema
from sinks.timescale.desired import SCHEMA_VERSION
from sinks.timescale.layout import LayoutError
from sinks.timescale.tables import SCHEMA_LOCK
from tests.lab.stores import StoreLab

NOW = datetime.now(UTC).replace(microsecond=0)


def settings_of(lab: StoreLab, **changes: Any) -> Settings:
    """The settings that lead to the test's database."""
    told = {name.removeprefix("TIMESCALE_").lower(): value for name, value in lab.env.items() if "TIMESCALE_" in name}
    return Settings(**{**told, **changes})


@pytest.fixture
async def connection(timescale: StoreLab) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the test's database."""
    made = await timescale.connect()
    yield made
    await made.close()


async def write(settings: Settings, readings: Sequence[Reading]) -> None:
    """Store readings as a worker does."""
    sink = TimescaleSink(settings)
    await sink.open()
    prepared = sink.prepare(readings)
    assert not prepared.rejected
    await sink.write(prepared.payload)
    await sink.close()


async def said(settings: Settings) -> dict[str, str]:
    """What drift says: what differs, and how."""
    return {change.what: change.action for change in (await drift(settings)).changes}


async def test_a_plan_after_apply_is_empty_twice_in_a_row(timescale: StoreLab, connection: Any) -> None:
    settings = settings_of(timescale)
    planned = await plan_schema(settings)
    assert {change.action for change in planned.pending} == {"create"}
    assert not await connection.fetch("SELECT 1 FROM pg_class WHERE relnamespace = 'public'::regnamespace")
    done = await apply_schema(settings)
    assert done.changes == planned.changes
    assert done.server.startswith("PostgreSQL ")
    assert "TimescaleDB" in " ".join(done.notes)
    for _ in range(2):
        assert (await plan_schema(settings)).changes == []
        assert (await apply_schema(settings)).changes == []
        assert (await drift(settings)).changes == []
    assert await connection.fetchval("SELECT version FROM iotflow_schema") == SCHEMA_VERSION


async def test_several_at_once_make_one_schema(timescale: StoreLab) -> None:
    settings = settings_of(timescale)
    done = await asyncio.gather(*(apply_schema(settings) for _ in range(4)))
    assert sorted(bool(each.changes) for each in done) == [False, False, False, True]
    assert (await drift(settings)).changes == []


async def test_what_somebody_has_changed_is_found_and_mended(timescale: StoreLab, connection: Any) -> None:
    settings = settings_of(timescale)
    await apply_schema(settings)
    await connection.execute("""
        DROP VIEW measurements, recent_activity, iot_hourly_stats, iot_daily_stats;
        ALTER TABLE iot_measurements DROP COLUMN unit;
        ALTER TABLE iot_measurements ALTER pin_position DROP DEFAULT, ALTER inserted_at DROP NOT NULL;
        DROP INDEX telemetry_ts;
        DROP INDEX idx_iot_mode;
        CREATE INDEX idx_iot_mode ON iot_measurements (connector_mode);
        ALTER TABLE fire DROP CONSTRAINT fire_key;
        ALTER TABLE fire ADD COLUMN co2 double precision;
        ALTER TABLE fire ADD COLUMN site uuid;
        ALTER TABLE sink_offsets ADD COLUMN who text;
        CREATE INDEX mine ON fire (site);
        ALTER TABLE fire ADD CONSTRAINT sane CHECK (temperature < 1000);
        DROP VIEW alert;
        CREATE VIEW alert AS SELECT alarm_id AS alert_id, device_id AS equipment_id FROM alarms WHERE false;
    """)
    await connection.execute("COMMENT ON VIEW alert IS 'iotflow 0123456789abcdef 0123456789abcdef0123456789abcdef'")
    mended = {
        "view measurements": "create",
        "view recent_activity": "create",
        "view iot_hourly_stats": "create",
        "view iot_daily_stats": "create",
        "view alert": "change",
        "column iot_measurements.unit": "create",
        "column iot_measurements.pin_position": "change",
        "column iot_measurements.inserted_at": "change",
        "index telemetry_ts": "create",
        "index idx_iot_mode": "change",
        "key of fire": "create",
    }
    left = {
        "column fire.site": "foreign",
        "column sink_offsets.who": "foreign",
        "index mine": "foreign",
        "constraint fire.sane": "foreign",
    }
    assert await said(settings) == mended | left
    assert {change.what: change.action for change in (await apply_schema(settings)).changes} == mended
    assert await said(settings) == left
    assert (await plan_schema(settings)).changes == []


async def test_a_database_of_the_first_version_gets_what_is_new(timescale: StoreLab, connection: Any) -> None:
    """Its alarms stay; a worker that comes before it was brought up to date says what to do."""
    settings = settings_of(timescale)
    await apply_schema(settings)
    await write(settings, [Reading("alarms", "d", NOW, {"alarm_id": "1", "state": "ACTIVE"}, "m||x|r")])
    new = ("kind", "label", "score", "expected_low", "expected_high", "detector_version", "facility_id", "measured_at")
    await connection.execute(f"""
        DROP VIEW alert;
        ALTER TABLE alarms {", ".join(f"DROP COLUMN {name}" for name in new)};
        CREATE VIEW alert AS SELECT alarm_id AS alert_id, device_id AS equipment_id, upper(state) AS status FROM alarms;
        DROP TABLE quality;
        UPDATE iotflow_schema SET version = 1;
    """)
    await connection.execute("COMMENT ON VIEW alert IS 'iotflow 0123456789abcdef 0123456789abcdef0123456789abcdef'")
    sink = TimescaleSink(settings)
    with pytest.raises(LayoutError, match="the table quality is missing: run iotflow schema apply"):
        await sink.open()
    wanted = {
        **{f"column alarms.{name}": "create" for name in new},
        "table quality": "create",
        "view alert": "change",
        "schema version": "change",
    }
    assert await said(settings) == wanted
    assert {change.what: change.action for change in (await apply_schema(settings)).changes} == wanted
    assert await said(settings) == {}
    row = await connection.fetchrow("SELECT * FROM alert")
    assert (row["alert_id"], row["status"], row["alert_type"]) == ("1", "ACTIVE", "CUSTOM")


async def test_a_view_that_somebody_has_redefined_is_put_right(timescale: StoreLab, connection: Any) -> None:
    settings = settings_of(timescale)
    await apply_schema(settings)
    definition = await connection.fetchval("SELECT pg_get_viewdef('realtime'::regclass)")
    await connection.execute(f"CREATE OR REPLACE VIEW realtime AS {definition.rstrip(';')} WHERE false")
    await connection.execute("CREATE VIEW of_theirs AS SELECT * FROM realtime")
    assert await said(settings) == {"view realtime": "change"}
    assert [change.action for change in (await apply_schema(settings)).changes] == ["change"]
    assert await said(settings) == {}
    assert await connection.fetchval("SELECT pg_get_viewdef('realtime'::regclass)") == definition


async def test_a_view_that_others_depend_on_is_refused_where_it_must_be_made_anew(
    timescale: StoreLab, connection: Any
) -> None:
    settings = settings_of(timescale)
    await apply_schema(settings)
    await connection.execute("CREATE VIEW of_theirs AS SELECT * FROM alert")
    await connection.execute("ALTER VIEW alert RENAME COLUMN metric TO what")
    (change,) = (await apply_schema(settings)).changes
    assert (change.what, change.action) == ("view alert", "refused")
    assert "of_theirs" in change.detail
    assert await said(settings) == {"view alert": "change"}


async def test_columns_that_a_worker_adds_are_ours_and_in_the_views_at_once(
    timescale: StoreLab, connection: Any
) -> None:
    settings = settings_of(timescale)
    await apply_schema(settings)
    long = "a metric with a name that is far longer than what PostgreSQL lets a column have, 63 bytes"
    values = {"temperature": 20.5, "ts": 3.0, "note": "'quoted' \\ \"text\"", "on": True, long: 7.0, "=odd": 1.0}
    await write(settings, [Reading("telemetry", "d", NOW, values, "a/1/2", {"temperature": "C"})])
    assert await said(settings) == {}
    rows = await connection.fetch("SELECT * FROM measurements ORDER BY component_type")
    found = {row["component_type"]: next(filter(lambda v: v is not None, tuple(row)[5:9])) for row in rows}
    assert found == values
    assert {row["unit"] for row in rows if row["component_type"] == "temperature"} == {"C"}
    assert {(row["connector_mode"], row["connector"], row["pin_position"]) for row in rows} == {("a", 1, "2")}


async def test_both_layouts_look_alike_in_the_views(timescale: StoreLab, connection: Any) -> None:
    readings = [
        Reading(
            "telemetry",
            "sensor-001",
            NOW,
            {"temperature": 23.5, "humidity": 65.25, "battery": 87.0},
            units={"temperature": "°C"},
            tags={"original_topic": "telemetry/1", "site": "a\\b"},
            raw={"humidity": None, "battery": "87 %"},
            flags=["clamped"],
            dialect="telemetry",
        ),
        Reading("telemetry", "sensor-002", NOW, {"temperature": -1.5e-7}, "x"),
        Reading(
            "fire",
            "EQ001",
            NOW,
            {"temperature": 25.5, "co_level": 0.005},
            tags={"facility_id": "F", "location": "L"},
            dialect="json",
        ),
    ]
    queries = [
        "SELECT timestamp, measurement, device_id, channel, component_type, value, value_int, value_text, value_bool, "
        "unit, topic, meta, connector_mode, connector, pin_position FROM measurements "
        "ORDER BY measurement, device_id, component_type",
        "SELECT device_id, ts, channel, temperature, humidity, battery FROM telemetry ORDER BY device_id",
        "SELECT equipment_id, facility_id, equipment_location, measured_at, temperature, humidity, smoke_density, "
        "co_level, gas_level FROM realtime",
        "SELECT * FROM iot_hourly_stats ORDER BY measurement, device_id, component_type",
        "SELECT * FROM iot_daily_stats ORDER BY measurement, device_id, component_type",
        "SELECT * FROM recent_activity ORDER BY device_id",
    ]
    seen = []
    for wide in (("telemetry", "fire"), ()):
        settings = settings_of(timescale, wide=wide)
        await apply_schema(settings)
        assert (await plan_schema(settings)).changes == []
        await write(settings, readings)
        seen.append([[tuple(row) for row in await connection.fetch(query)] for query in queries])
        tables = "iot_measurements, sink_offsets" + "".join(f", {name}" for name in wide)
        await connection.execute(f"DROP TABLE {tables} CASCADE")
    wide_rows, narrow_rows = seen
    for query, rows, others in zip(queries, wide_rows, narrow_rows, strict=True):
        assert rows, query
        assert rows == others, query


async def test_a_measurement_that_becomes_wide_takes_the_place_of_its_view(
    timescale: StoreLab, connection: Any
) -> None:
    narrow = settings_of(timescale, wide=("fire",))
    await apply_schema(narrow)
    await write(narrow, [Reading("telemetry", "d", NOW, {"temperature": 1.0})])
    assert await connection.fetchval("SELECT temperature FROM telemetry") == 1.0
    wide = settings_of(timescale)
    await apply_schema(wide)
    await write(wide, [Reading("telemetry", "d", NOW + timedelta(seconds=1), {"temperature": 2.0})])
    assert (await plan_schema(wide)).changes == []
    assert await connection.fetch("SELECT value FROM measurements ORDER BY timestamp") == [(1.0,), (2.0,)]
    back = {change.what: change for change in (await plan_schema(narrow)).changes}
    assert back["view telemetry"].action == "refused"
    assert "TIMESCALE_WIDE" in back["view telemetry"].detail


async def test_the_documents_tables_are_refused_and_kept(timescale: StoreLab, connection: Any) -> None:
    await connection.execute("""
        CREATE TABLE iot_measurements (timestamp TIMESTAMPTZ NOT NULL, device_id VARCHAR(50) NOT NULL,
            connector_mode VARCHAR(50) NOT NULL, component_type VARCHAR(50) NOT NULL, pin_position VARCHAR(10),
            value DOUBLE PRECISION, unit VARCHAR(20), topic VARCHAR(255),
            PRIMARY KEY (timestamp, device_id, connector_mode, component_type, pin_position));
        INSERT INTO iot_measurements VALUES (now(), 'f2-e4fd45f654be', 'm', 'Temperature', '1', 20, 'C', 't');
        CREATE INDEX idx_iot_device_id ON iot_measurements (device_id, timestamp DESC);
        CREATE TABLE telemetry (id BIGSERIAL PRIMARY KEY, device_id TEXT NOT NULL, ts TIMESTAMPTZ NOT NULL,
            temperature DOUBLE PRECISION NOT NULL, UNIQUE (device_id, ts));
        CREATE VIEW recent_activity AS SELECT 1 AS one;
        CREATE TABLE alert (id int);
    """)
    settings = settings_of(timescale)
    done = {change.what: change for change in (await apply_schema(settings)).changes}
    assert "two pins of a controller" in done["table iot_measurements"].detail
    assert "channel" in done["table telemetry"].detail
    for view in ("recent_activity", "alert", "measurements"):
        assert done[f"view {view}"].action == "refused", view
    assert await connection.fetchval("SELECT count(*) FROM iot_measurements") == 1
    plan = await plan_schema(settings)
    assert plan.pending == []
    assert {change.action for change in plan.changes} == {"refused"}
    await connection.execute("""
        CREATE SCHEMA old; ALTER TABLE iot_measurements SET SCHEMA old; ALTER TABLE telemetry SET SCHEMA old;
        DROP VIEW recent_activity; ALTER TABLE alert RENAME TO their_alert;
    """)
    await apply_schema(settings)  # as the remedies say
    assert (await drift(settings)).changes == []
    assert await connection.fetchval("SELECT count(*) FROM old.iot_measurements") == 1


async def test_a_change_that_the_data_forbid_is_refused_with_the_servers_words(
    timescale: StoreLab, connection: Any
) -> None:
    settings = settings_of(timescale)
    await apply_schema(settings)
    await connection.execute("ALTER TABLE fire DROP CONSTRAINT fire_key, ALTER created_at DROP NOT NULL")
    await connection.execute("INSERT INTO fire VALUES (now(), 'a'), (now(), 'b')")
    await connection.execute("INSERT INTO fire (ts, device_id, created_at) SELECT ts, device_id, NULL FROM fire")
    done = {change.what: change for change in (await apply_schema(settings)).changes}
    assert done["key of fire"].action == "refused"
    assert "Key (device_id, ts, channel)" in done["key of fire"].detail
    assert "contains null values" in done["column fire.created_at"].detail
    assert await connection.fetchval("SELECT count(*) FROM fire") == 4


async def test_a_newer_schema_is_left_alone(timescale: StoreLab, connection: Any) -> None:
    settings = settings_of(timescale)
    await apply_schema(settings)
    await connection.execute("UPDATE iotflow_schema SET version = 99; DROP VIEW measurements")
    (change,) = (await apply_schema(settings)).changes
    assert change.action == "refused"
    assert "use the newer one" in change.detail
    assert await connection.fetch("SELECT version FROM iotflow_schema") == [(99,)]


async def test_a_role_without_rights_is_told_which_it_needs(timescale: StoreLab, connection: Any) -> None:
    role, secret = f"reader_{uuid.uuid4().hex[:8]}", "s3cret-of-the-reader"
    admin = await asyncpg.connect(timescale.server.dsn(user="postgres", database=timescale.env["TIMESCALE_DB"]))
    await admin.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{secret}'")
    try:
        settings = settings_of(timescale, user=role, password=secret)
        assert (await plan_schema(settings)).pending
        with pytest.raises(Exception, match="permission denied") as raised:
            await apply_schema(settings)
        verdict = TimescaleSink(settings).classify(raised.value)
        assert isinstance(verdict, Fatal)
        assert "GRANT CREATE ON SCHEMA" in verdict.remedy
        assert secret not in verdict.remedy
        await apply_schema(settings_of(timescale))
        await connection.execute(f"GRANT SELECT ON iotflow_schema TO {role}")
        left = await plan_schema(settings)
        assert not left.pending
        assert {change.what.split()[0] for change in left.changes} == {"rights", "ownership"}
        await connection.execute("DROP INDEX telemetry_ts")
        with pytest.raises(Exception, match="must be owner"):
            await apply_schema(settings)
    finally:
        await admin.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await admin.close()


@pytest.mark.parametrize("interval", ["a day", "-1 day"])
async def test_a_chunk_interval_that_is_none_is_said(timescale: StoreLab, interval: str) -> None:
    settings = settings_of(timescale, chunk_interval=interval)
    with pytest.raises(Exception, match="TIMESCALE_CHUNK_INTERVAL") as raised:
        await plan_schema(settings)
    assert isinstance(TimescaleSink(settings).classify(raised.value), Fatal)


async def test_another_schema_is_made_and_read_alone(timescale: StoreLab, connection: Any) -> None:
    await apply_schema(settings_of(timescale))
    user, database = timescale.env["TIMESCALE_USER"], timescale.env["TIMESCALE_DB"]
    await connection.execute(
        f'CREATE SCHEMA "it\'s"; ALTER ROLE {user} IN DATABASE {database} SET search_path TO "it\'s"'
    )
    settings = settings_of(timescale)
    assert "table telemetry" in {change.what for change in (await plan_schema(settings)).pending}
    await apply_schema(settings)
    assert (await drift(settings)).changes == []
    await write(settings, [Reading("telemetry", "d", NOW, {"temperature": 1.0})])
    assert await connection.fetchval('SELECT count(*) FROM "it\'s".measurements') == 1
    assert await connection.fetchval("SELECT count(*) FROM public.measurements") == 0


# -- retention ---------------------------------------------------------------------------------------------------------


async def test_old_rows_are_deleted_in_pieces_and_no_others(
    timescale: StoreLab, connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sinks.timescale.upkeep.PIECE", 100)
    settings = settings_of(timescale, retention_days=30, retention_daily_days=300)
    await apply_schema(settings)
    assert "index idx_iot_time" not in await said(settings)
    ages = [*(timedelta(days=31, seconds=n) for n in range(250)), *(timedelta(days=29, seconds=n) for n in range(20))]
    for table, measurement in (("iot_measurements", "power"), ("telemetry", "telemetry"), ("aggregates", "aggregates")):
        await write(settings, [Reading(measurement, "d", NOW - age, {"mean": 1.0}) for age in ages])
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 270
    await write(settings, [Reading("aggregates", "e", NOW - timedelta(days=301), {"mean": 1.0})])
    await write(settings, [Reading("alarms", "e", NOW - timedelta(days=4000), {"rule": "r"})])
    await write(settings, [Reading("quality", "e", NOW - timedelta(days=days), {"kind": "nulls"}) for days in (29, 31)])
    await connection.execute("""
        CREATE TABLE seen (table_name text, rows bigint);
        CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            INSERT INTO seen SELECT TG_TABLE_NAME, count(*) FROM gone; RETURN NULL; END $$;
        CREATE TRIGGER see AFTER DELETE ON telemetry REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION see();
    """)
    done = await maintain(settings)
    assert done == [
        "iot_measurements: 250 rows older than 30 d deleted",
        "telemetry: 250 rows older than 30 d deleted",
        "aggregates: 1 rows older than 300 d deleted",
        "quality: 1 rows older than 30 d deleted",
    ]
    assert await connection.fetch("SELECT rows FROM seen WHERE rows > 0") == [(100,), (100,), (50,)]
    for table, left in (("iot_measurements", 20), ("telemetry", 20), ("aggregates", 270), ("alarms", 1)):
        assert await connection.fetchval(f"SELECT count(*) FROM {table}") == left
    assert await maintain(settings) == []


async def test_nothing_is_deleted_that_nobody_asked_for(timescale: StoreLab, connection: Any) -> None:
    settings = settings_of(timescale)
    await apply_schema(settings)
    await write(settings, [Reading("telemetry", "d", datetime(1900, 1, 1, tzinfo=UTC), {"temperature": 1.0})])
    assert await maintain(settings) == []
    assert await connection.fetchval("SELECT count(*) FROM telemetry") == 1


async def test_of_many_workers_one_deletes(timescale: StoreLab, connection: Any) -> None:
    settings = settings_of(timescale, retention_days=1)
    await apply_schema(settings)
    await write(settings, [Reading("telemetry", "d", NOW - timedelta(days=2), {"temperature": 1.0})])
    await connection.execute("SELECT pg_advisory_lock($1)", SCHEMA_LOCK + 1)
    assert await maintain(settings) == []
    await connection.execute("SELECT pg_advisory_unlock($1)", SCHEMA_LOCK + 1)
    assert len(await maintain(settings)) == 1


async def test_compression_needs_timescaledb_and_says_so(timescale: StoreLab) -> None:
    settings = settings_of(timescale)
    with pytest.raises(Exception, match="TimescaleDB") as raised:
        await store.compress(settings, timedelta(days=7))
    assert isinstance(TimescaleSink(settings).classify(raised.value), Fatal)


# -- the documents' queries --------------------------------------------------------------------------------------------


def documented() -> list[str]:
    """Every SELECT that the documents have about the tables, but those of TimescaleDB's own catalogs."""
    return [
        "SELECT * FROM {0} WHERE timestamp > NOW() - INTERVAL '1 hour' ORDER BY timestamp DESC LIMIT 100",
        "SELECT device_id, component_type, COUNT(*) AS measurement_count, AVG(value) AS avg_value, "
        "MIN(timestamp) AS first_measurement, MAX(timestamp) AS last_measurement FROM {0} "
        "GROUP BY device_id, component_type ORDER BY measurement_count DESC",
        "SELECT date_trunc('minute', timestamp) AS minute, COUNT(*) AS records_per_minute FROM {0} "
        "WHERE timestamp > NOW() - INTERVAL '1 hour' GROUP BY minute ORDER BY minute DESC LIMIT 10",
        "SELECT device_id, COUNT(*) AS total_records, MIN(timestamp) AS first_record, MAX(timestamp) AS latest_record "
        "FROM {0} GROUP BY device_id ORDER BY total_records DESC",
        "SELECT * FROM {0} WHERE device_id = 'f2-e4fd45f654be' ORDER BY timestamp DESC LIMIT 10",
        "SELECT date_trunc('minute', timestamp) AS minute, AVG(value) AS avg_temp FROM {0} "
        "WHERE component_type = 'Temperature' AND timestamp > NOW() - INTERVAL '1 hour' GROUP BY minute "
        "ORDER BY minute",
        "SELECT device_id, component_type, COUNT(*) AS readings, AVG(value) AS avg_value, MIN(value) AS min_value, "
        "MAX(value) AS max_value FROM {0} WHERE timestamp > NOW() - INTERVAL '24 hours' "
        "GROUP BY device_id, component_type ORDER BY device_id, component_type",
        "SELECT device_id, component_type, timestamp, LAG(timestamp) OVER (PARTITION BY device_id, component_type "
        "ORDER BY timestamp) AS prev_timestamp, timestamp - LAG(timestamp) OVER (PARTITION BY device_id, "
        "component_type ORDER BY timestamp) AS gap FROM {0} WHERE timestamp > NOW() - INTERVAL '1 hour' "
        "ORDER BY device_id, component_type, timestamp",
        "SELECT device_id, component_type, COUNT(*) AS total, COUNT(value) AS valid_values, "
        "COUNT(*) - COUNT(value) AS null_values FROM {0} WHERE timestamp > NOW() - INTERVAL '1 hour' "
        "GROUP BY device_id, component_type",
    ]


@pytest.mark.parametrize("wide", [("telemetry", "fire"), ("telemetry", "fire", "iot")], ids=["narrow", "wide"])
async def test_the_documents_queries_find_what_was_stored(
    timescale: StoreLab, connection: Any, wide: tuple[str, ...]
) -> None:
    settings = settings_of(timescale, wide=wide)
    await apply_schema(settings)
    device = "f2-e4fd45f654be"
    recent = datetime.now(UTC) - timedelta(minutes=5)
    await write(
        settings,
        [
            Reading("iot", device, recent + timedelta(seconds=n), {"Temperature": 20.0 + n}, "sensor-mode/1/3")
            for n in range(3)
        ],
    )
    for query in documented():
        names = ["measurements"] if "iot" in wide else ["measurements", "iot_measurements"]
        answers = [await connection.fetch(query.format(name)) for name in names]
        assert all(answers), query
        assert all(answer == answers[0] for answer in answers), query
    for name in ("measurements", "iot_hourly_stats", "realtime", "telemetry", "alert"):
        for column in [row[0] for row in await connection.fetch(_COLUMNS, name)]:
            await connection.fetch(f'SELECT * FROM {name} ORDER BY "{column}"')  # each has one collation
    assert await connection.fetch("SELECT sum(records), device_id FROM recent_activity GROUP BY 2") == [(3, device)]
    assert await connection.fetchval("SELECT sum(measurement_count) FROM iot_hourly_stats") == 3
    assert await connection.fetchval("SELECT max(max_value) FROM iot_daily_stats") == 22.0
    columns = [row[0] for row in await connection.fetch(_COLUMNS, "compression_stats")]
    assert columns[:4] == ["chunk_name", "before", "after", "compression_ratio"]
    assert {row["after"] for row in await connection.fetch("SELECT * FROM compression_stats")} == {None}
    assert await connection.fetch("SELECT * FROM uncompressed_chunks") == []


_COLUMNS = """
SELECT column_name FROM information_schema.columns
WHERE table_schema = 'public' AND table_name = $1 ORDER BY ordinal_position
"""


async def test_the_other_documents_shapes(timescale: StoreLab, connection: Any) -> None:
    settings = settings_of(timescale)
    await apply_schema(settings)
    await write(
        settings,
        [
            Reading("telemetry", "sensor-001", NOW, {"temperature": 23.5, "humidity": 65.2, "battery": 87.3}),
            Reading("fire", "EQ001", NOW, {"smoke_density": 600.0}, tags={"facility_id": "FAC001", "location": "A"}),
            Reading(
                "alarms",
                "EQ001",
                NOW,
                {
                    "alarm_id": "1",
                    "metric": "smoke_density",
                    "severity": "EMERGENCY",
                    "state": "ACTIVE",
                    "value": 600.0,
                    "measured_at": (NOW + timedelta(seconds=1)).isoformat().replace("+00:00", "Z"),
                    "updated_at": "2025-02-29 or so",
                    "acknowledged_at": "",
                },
                "fire||smoke_density|high",
                tags={"facility_id": "FAC001"},
            ),
        ],
    )
    row = await connection.fetchrow("SELECT device_id, ts, temperature, humidity, battery, created_at FROM telemetry")
    assert tuple(row)[:5] == ("sensor-001", NOW, 23.5, 65.2, 87.3)
    row = await connection.fetchrow("SELECT * FROM realtime WHERE equipment_id = 'EQ001'")
    assert (row["facility_id"], row["equipment_location"], row["smoke_density"]) == ("FAC001", "A", 600.0)
    assert (row["measured_at"], row["temperature"]) == (NOW, None)
    row = await connection.fetchrow("SELECT * FROM alert WHERE status = 'ACTIVE'")
    assert (row["equipment_id"], row["alert_type"], row["severity"]) == ("EQ001", "SMOKE", "EMERGENCY")
    assert (row["facility_id"], row["label"], row["acknowledged_by"]) == ("FAC001", None, None)
    assert (row["measured_at"], row["created_at"]) == (NOW + timedelta(seconds=1), NOW)
    assert [row[f"{what}_at"] for what in ("updated", "acknowledged", "resolved")] == [None] * 3
    resolved = {"kind": "CUSTOM", "facility_id": "F2", "state": "RESOLVED", "resolved_at": "2025-10-05T12:40:00.5Z"}
    await write(settings, [Reading("alarms", "EQ001", NOW, {**resolved}, "fire||smoke_density|high")])
    row = await connection.fetchrow("SELECT * FROM alert")
    assert (row["status"], row["alert_type"], row["facility_id"]) == ("RESOLVED", "CUSTOM", "F2")
    assert row["resolved_at"] == datetime(2025, 10, 5, 12, 40, 0, 500_000, tzinfo=UTC)
    assert await connection.fetchval("SELECT count(*) FROM measurements WHERE measurement = 'alarms'") == 0


async def test_a_measurement_that_is_no_longer_wide_is_not_hidden(timescale: StoreLab, connection: Any) -> None:
    settings = settings_of(timescale, wide=("telemetry", "pump"))
    await apply_schema(settings)
    await write(settings, [Reading("pump", "a", NOW + timedelta(seconds=at), {"x": 1.0}) for at in range(3)])
    assert not any("pump" in note for note in (await drift(settings)).notes)
    without = settings_of(timescale, wide=("telemetry",))
    for work in (plan_schema, drift, apply_schema):
        (note,) = [note for note in (await work(without)).notes if "pump" in note]
        assert "the table pump has 3 rows of readings that are in no view" in note
        assert "put it back there and apply" in note
    await apply_schema(settings)
    assert await connection.fetchval("SELECT count(*) FROM measurements WHERE measurement = 'pump'") == 3


async def test_a_role_without_rights_sees_the_grants_to_run(timescale: Any, connection: Any) -> None:
    settings = settings_of(timescale)
    await apply_schema(settings)
    role = await timescale.account()
    name = role["TIMESCALE_USER"]
    await timescale._as_admin(f"REVOKE {timescale.env['TIMESCALE_USER']} FROM {name}")
    await connection.execute(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {name}")
    poor = settings_of(timescale, user=name, password=role["TIMESCALE_PASSWORD"])
    for work in (plan_schema, drift):
        found = {change.what: change for change in (await work(poor)).changes}
        assert found["rights on telemetry"].action == "refused"
        grant = found["rights on telemetry"].detail.partition("run ")[2]
        assert grant == f'GRANT INSERT, UPDATE, DELETE ON "telemetry" TO "{name}"'
        assert found["ownership of telemetry"].action == "refused"
    for change in found.values():
        if change.what.startswith("rights on"):
            await connection.execute(change.detail.partition("run ")[2])
    left = await plan_schema(settings_of(timescale, user=name, password=role["TIMESCALE_PASSWORD"], new_columns="plan"))
    assert not [change for change in left.changes if change.what.startswith(("rights", "ownership"))]
    await connection.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {name}")
