"""`iotflow check` where a store, or all of Kafka, cannot be asked, or refuses what it has taken before."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from app import check
from app.cli.check import command
from app.ledger import Good, Ledger
from schemas.reading import RESERVED, Reading
from sinks.base import Selection
from tests.lab.stores import StoreLab

T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
SENT = [
    Reading("telemetry", "dev", T0 + timedelta(seconds=at), {"temperature": 20.5, "humidity": value}, "c")
    for at, value in enumerate((60.0, 60.1))
]


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """What was sent: two readings."""
    with Ledger(tmp_path / "ledger") as made:
        made.write([Good("raw", 0, at, reading) for at, reading in enumerate(SENT)])
    return tmp_path / "ledger"


async def stored(lab: StoreLab) -> None:
    """Both are in the store."""
    await lab.apply_schema()
    async with lab.opened() as sink:
        await sink.write(sink.prepare(SENT).payload)


async def test_what_a_column_refuses_by_now_is_missing_with_the_reason(timescale: Any, ledger: Path) -> None:
    await stored(timescale)
    connection = await timescale.connect()
    for name in ("realtime", "measurements", "recent_activity"):
        await connection.execute(f"DROP VIEW IF EXISTS {name} CASCADE")
    await connection.execute("ALTER TABLE telemetry ALTER COLUMN humidity TYPE text")
    await connection.close()
    async with timescale.opened() as sink:
        await sink.delete(Selection(device_id="dev", start=SENT[1].time))
        found = await check.store(sink, ledger)

    assert (found.expected, found.missing, found.different, found.unexpected) == (2, 1, 1, 0)
    assert "refuses as it is now (type_conflict: humidity is a number" in found.examples[-1]


async def test_what_iotflow_finds_is_no_second_row(timescale: Any, ledger: Path) -> None:
    await stored(timescale)
    async with timescale.opened() as sink:
        own = [Reading(name, "dev", SENT[1].time, {"count": 1}, "telemetry|c|x|1m") for name in sorted(RESERVED)]
        await sink.write(sink.prepare(own).payload)
        assert (await check.store(sink, ledger)).unexpected == 0
        await sink.write(sink.prepare([Reading("telemetry", "dev", SENT[1].time, {"humidity": 1.0})]).payload)
        assert (await check.store(sink, ledger)).unexpected == 1


def test_one_store_that_is_away_hides_nothing_of_another(
    timescale: Any, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asyncio.run(stored(timescale))
    away = {"INFLUXDB_URL": "http://127.0.0.1:1", "INFLUXDB_TOKEN": "t", "STORES": "influxdb,timescale"}
    for name, value in {**timescale.env, **away, "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(command, [str(ledger), "--json"])

    assert done.exit_code == 1, done.output
    report = msgspec.json.decode(done.stdout)
    assert not report["ok"]
    assert set(report["unreachable"]) == {"influxdb", "dead letters"}
    assert report["stores"]["timescale"]["expected"] == 2
    assert report["stores"]["timescale"]["missing"] == 0
    said = CliRunner().invoke(command, [str(ledger)])
    assert "influxdb: could not be looked into: http://127.0.0.1:1" in said.output
    assert "timescale: 2 expected, 0 missing" in said.output
    assert "dead letters: could not be looked into" in said.output
    assert "dead letters: 0 expected" not in said.output
