"""What a stage's Faust app is told: each value here is one that Faust's own default would lose data or time with."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest

from app.build import app_options, build, transport_limits
from app.runtime import EXIT_FAULT
from app.settings import load
from app.stages import reads
from app.transport import Consumer, Transport

ENV: Mapping[str, str] = {"KAFKA_BOOTSTRAP_SERVERS": "one:9092,two:9093", "CHANNEL_SIZE": "1234"}


@pytest.fixture
def options() -> dict[str, Any]:
    """Of the decode stage."""
    return app_options("decode", load(ENV))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("broker_max_poll_interval", 86_400.0),
        ("broker_max_poll_records", None),
        ("broker_commit_every", 1_000_000),
        ("broker_rebalance_timeout", 60.0),
        ("broker_session_timeout", 30.0),
        ("consumer_auto_offset_reset", "earliest"),
        ("stream_wait_empty", True),
        ("stream_buffer_maxsize", 64),
        ("table_standby_replicas", 0),
        ("topic_allow_declare", False),
        ("web_tables_enabled", False),
        ("broker", ["iotflow://one:9092", "iotflow://two:9093"]),
    ],
)
def test_the_options_that_promises_rest_on(options: dict[str, Any], name: str, value: object) -> None:
    """Taking one of them out of the build fails here."""
    assert value == options[name]


def test_fetches_shrink_with_the_partitions_but_take_the_largest_record() -> None:
    """Memory is bounded over all partitions; a record that the topic allows always fits a fetch."""
    few = app_options("decode", load({**ENV, "IOTFLOW_MAX_MESSAGE_BYTES": "2000"}))["consumer_max_fetch_size"]
    many = app_options("decode", load({**ENV, "IOTFLOW_MAX_MESSAGE_BYTES": "2000", "IOTFLOW_PARTITIONS": "100"}))
    assert 2**20 == few > many["consumer_max_fetch_size"] >= 64 * 1024
    assert (
        app_options("decode", load({**ENV, "IOTFLOW_MAX_MESSAGE_BYTES": "9MiB"}))["consumer_max_fetch_size"]
        == 9 * 2**20
    )


def test_fetches_shrink_with_all_topics_of_a_stage() -> None:
    """A store reads more topics than readings'; a stage that is none is refused."""
    env = {**ENV, "IOTFLOW_MAX_MESSAGE_BYTES": "2000", "IOTFLOW_PARTITIONS": "8", "KAFKA_RAW_TOPICS": "a:fire,b:fire"}
    settings = load(env)
    sizes = {name: app_options(name, settings)["consumer_max_fetch_size"] for name in ("decode", "store-influxdb")}
    assert reads("store-influxdb", settings) == [
        "decoded_iot_data",
        "iotflow.aggregates",
        "iotflow.alarms",
        "iotflow.quality",
    ]
    assert reads("store-timescale", settings)[4:] == ["iotflow.storage_metadata"]
    assert sizes == {"decode": 2**24 // 16, "store-influxdb": 2**24 // 32}
    with pytest.raises(ValueError, match="no stage is called"):
        reads("store-nothing", settings)


def test_the_transport_is_found_by_its_url_and_gets_its_limits() -> None:
    """The scheme leads to our transport, and every limit is an attribute that its consumer has."""
    settings = load(ENV)
    app = build("store-timescale", settings)

    assert isinstance(app.transport, Transport)
    assert 1234 == app.transport_limits["max_inflight_records"]
    assert all(hasattr(Consumer, name) for name in transport_limits(settings))
    assert app.conf.id == "iotflow-store-timescale"


def test_a_stage_that_sheds_its_records_has_few_in_flight() -> None:
    """Its memory is for state."""
    env = {**ENV, "CHANNEL_SIZE": "50000"}
    store, analyze = (build(stage, load(env)).transport_limits for stage in ("store-timescale", "analyze"))
    assert (store["max_inflight_records"], analyze["max_inflight_records"]) == (50_000, 10_000)
    assert analyze["max_inflight_bytes"] < store["max_inflight_bytes"]


@pytest.mark.parametrize(("crashed", "code"), [(False, 0), (True, EXIT_FAULT)], ids=["asked for", "after a crash"])
def test_a_stop_that_is_cut_short_says_why_it_was_begun(crashed: bool, code: int) -> None:  # noqa: FBT001
    """Faust stops after a crash as after SIGTERM: only the exit code tells a supervisor to start the worker again."""
    program = f"""
import asyncio, time
from app import runtime
from app.build import build
from app.settings import load

async def main():
    app = build("decode", load({dict(ENV)!r} | {{"IOTFLOW_REBALANCE_TIMEOUT": "15"}}))
    if {crashed}:
        await app.crash(RuntimeError("of Faust's own"))
    runtime._STOP_MARGIN_S = -4.9
    app.runtime.limit_stop()
    time.sleep(30)

asyncio.run(main())
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=25).returncode == code
