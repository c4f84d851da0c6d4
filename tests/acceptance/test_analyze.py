"""The stage `analyze` as an operator runs it: killed at each step of a checkpoint, and nothing of it shows."""

import asyncio
import json
import math
import signal
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from app import check, kafka
from schemas import wire
from schemas.partition import partition_of
from schemas.reading import Reading
from tables import channel
from tables.analysis import spans
from tests.lab.analysis import LATE, SIZES, recomputed
from tests.lab.apps import until
from tests.lab.pipeline import Pipeline, Process

STEPS = ("folded", "outputs", "state", "emitted", "side", "acked")
DEVICES = 12
#: Long ago, so that all is old news in every run, whatever the time.
BEGIN = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=3)


def readings(count: int) -> list[Reading]:
    """Of some devices, twenty seconds apart; some late, some of one time, some anomalous."""
    found = []
    for number in range(count):
        device, turn = number % DEVICES, number // DEVICES
        late = 45 if number % 17 == 3 else 0
        time = BEGIN + timedelta(seconds=20 * turn + device - late)
        values: dict[str, Any] = {
            "temperature": 96.0 if number % 53 == 7 else round(20 + math.sin(number) + turn % 7 / 10, 3),
            "humidity": 50.0 + number % 5,
            "smoke_density": 0.01,
        }
        found.append(Reading("fire", f"dev-{device}", time, values, tags={"facility_id": "F1"}, dialect="fire"))
    return found


async def send(pipeline: Pipeline, log: Sequence[Reading], first: int, received_ms: int) -> None:
    """As decode would: to the partition of the device, with where each is from."""
    topics = pipeline.settings.topics
    producer = AIOKafkaProducer(**kafka.client_args(pipeline.settings), enable_idempotence=True, acks="all")
    await producer.start()
    try:
        for number, reading in enumerate(log, first):
            await producer.send(
                topics.decoded,
                wire.write(reading),
                key=reading.device_id.encode(),
                partition=partition_of(reading.device_id, topics.partitions),
                timestamp_ms=received_ms,
                headers=wire.headers(b"raw/0/%d/0" % number, received_ms),
            )
        await producer.flush()
    finally:
        await producer.stop()


async def worker(pipeline: Pipeline, received_ms: int, **more: str) -> Process:
    """A worker whose clock stands at a second after all was received."""
    command = [sys.executable, "-m", "tests.lab.analyze_worker"]
    found = await pipeline.start("analyze", command, IOTFLOW_TEST_CLOCK=str(received_ms / 1000 + 1), **more)
    if not more:
        await until(found.ready, 60)
    return found


async def said(pipeline: Pipeline, topic: str) -> list[Any]:
    """All records of a topic."""
    return await check.tail(pipeline.settings, topic, silence=30)


async def outcome(pipeline: Pipeline) -> dict[str, Any]:
    """What a run comes to, as those see it who read its topics and who takes its state over."""
    topics = pipeline.settings.topics
    aggregates: dict[bytes, Reading] = {}
    for record in await said(pipeline, topics.aggregates):
        found = wire.read(record.value)
        before = aggregates.get(record.key)
        if before is not None and before.values["revision"] == found.values["revision"]:
            assert before == found, "one revision, two contents"
        if before is None or int(found.values["revision"]) >= int(before.values["revision"]):  # type: ignore[arg-type]
            aggregates[record.key] = found
    events = {}
    for record in await said(pipeline, topics.anomalies):
        event = json.loads(record.value)
        assert events.setdefault(event["event_id"], event) == event
    alarms = {record.key: wire.read(record.value) for record in await said(pipeline, topics.alarms)}
    states = {
        record.key: record.value
        for record in await said(pipeline, f"{pipeline.settings.app_id('analyze')}-state-changelog")
    }
    return {
        "aggregates": aggregates,
        "events": events,
        "alarms": alarms,
        "states": {key: restored(key, value) for key, value in states.items()},
    }


def restored(key: bytes, value: bytes) -> dict[str, Any]:
    """A state, without what only says how far it was kept and said, and when the clock was looked at."""
    found = channel.restore(key, value, tuple(spans(SIZES, LATE)), lambda _: value)
    deep = found.opened()
    for memories in deep.detectors.values():
        for memory in memories.values():
            memory.log, memory.before_log = b"", 0
    for series in found.series.values():
        series.heard = 0  # which readings were looked at closely depends on when the clock was
    return {
        "position": found.position,
        "sources": found.sources,
        "watermark": found.watermark,
        "blocks": found.blocks,
        "uppers": deep.windows.uppers,
        "archived": deep.windows.archived,
        "detectors": deep.detectors,
        "series": {metric: series for metric, series in found.series.items() if metric or series.alarms},
        "latest": found.latest,
        "counts": found.counts,
    }


async def settled(pipeline: Pipeline) -> None:
    """Wait until all is acknowledged, and a checkpoint has followed."""
    await pipeline.settled(stages=["analyze"])
    await asyncio.sleep(2)


def lab(servers: str, folder: Path, **more: str) -> Pipeline:
    """Two partitions, quick checkpoints, and no rules of the clock: when that is looked at is no matter of records."""
    folder.mkdir(exist_ok=True)
    rules = folder / "rules.yaml"
    rules.write_text(
        "rules: {silent: {kind: silent, for: 1h, enabled: false}, gap: {kind: gap, metric: '*', enabled: false}}"
    )
    return Pipeline(
        servers,
        {},
        folder,
        IOTFLOW_CHECKPOINT="0.3",
        IOTFLOW_IDLE="86400",
        IOTFLOW_RULES=str(rules),
        IOTFLOW_PARTITIONS="2",
        IOTFLOW_CHUNK_RECORDS="40",
        **more,
    )


async def undisturbed(servers: str, folder: Path, log: Sequence[Reading], received_ms: int) -> dict[str, Any]:
    """The same without trouble."""
    async with lab(servers, folder) as pipeline:
        await send(pipeline, log, 0, received_ms)
        await worker(pipeline, received_ms)
        await settled(pipeline)
        return await outcome(pipeline)


async def killed(servers: str, folder: Path, steps: Sequence[str], log: Sequence[Reading], received_ms: int) -> Any:
    """Kill a worker at each of these steps, one after another, while records come."""
    async with lab(servers, folder) as pipeline:
        share = len(log) // len(steps)
        for place, step in enumerate(steps):
            await send(pipeline, log[place * share : (place + 1) * share], place * share, received_ms)
            process = await worker(pipeline, received_ms, IOTFLOW_TEST_DIES=f"{step}:{1 + place % 3}")
            async with asyncio.timeout(60):
                assert await process.process.wait() == -signal.SIGKILL, process.log[-3000:]
        rest = len(steps) * share
        await send(pipeline, log[rest:], rest, received_ms)
        await worker(pipeline, received_ms)
        await settled(pipeline)
        return await outcome(pipeline)


def compare(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for part in ("events", "alarms", "aggregates", "states"):
        assert found[part].keys() == wanted[part].keys(), part
        for key, value in wanted[part].items():
            assert found[part][key] == value, (part, key)


async def kill_everywhere(servers: str, folder: Path, times: int) -> None:
    log = readings(1200 * times)
    received_ms = int(datetime.now(UTC).timestamp() * 1000)
    wanted = await undisturbed(servers, folder / "calm", log, received_ms)
    assert len(wanted["events"]) > 10
    assert {alarm.values["state"] for alarm in wanted["alarms"].values()} >= {"CLEARED"}
    results = await asyncio.gather(
        *(
            killed(servers, folder / f"{number}", [step for _ in range(times) for step in pair], log, received_ms)
            for number, pair in enumerate((STEPS[:2], STEPS[2:4], STEPS[4:]))
        )
    )
    for found in results:
        compare(found, wanted)


async def test_a_kill_at_each_step_of_a_checkpoint_changes_nothing(kafka_servers: str, tmp_path: Path) -> None:
    await kill_everywhere(kafka_servers, tmp_path, 1)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_twenty_kills_at_each_step_change_nothing(kafka_servers: str, tmp_path: Path) -> None:
    await kill_everywhere(kafka_servers, tmp_path, 20)


async def test_windows_equal_a_recomputation_through_rebalances(kafka_servers: str, tmp_path: Path) -> None:
    """Two workers, one of which comes and goes; then all windows that are over have what the readings come to."""
    log = readings(2400)
    received_ms = int(datetime.now(UTC).timestamp() * 1000)
    async with lab(kafka_servers, tmp_path) as pipeline:
        first = await pipeline.started("analyze")
        for turn in range(4):
            await send(pipeline, log[turn * 600 : (turn + 1) * 600], turn * 600, received_ms)
            if turn % 2 == 0:
                second = await pipeline.started("analyze", IOTFLOW_DATA_DIR=str(tmp_path / "other"))
            elif turn == 1:
                assert await second.terminate() == 0
            else:
                await first.kill()
        await settled(pipeline)
        found = (await outcome(pipeline))["aggregates"]
    end = {device: max(one.time for one in log if one.device_id == device) for device in {one.device_id for one in log}}
    wanted = recomputed(log, SIZES)
    over = 0
    for (device, measurement, place, metric, window, start), numbers in wanted.items():
        closes = datetime.fromtimestamp((int(start) + SIZES[window]) / 1e6 + 2, UTC)
        if closes > end[device]:
            continue
        over += 1
        reading = found[f"{device}|{measurement}|{place}|{metric}|{window}|{start}".encode()]
        for name, number in numbers.items():
            assert math.isclose(float(reading.values[name]), number, rel_tol=1e-9, abs_tol=1e-9), (device, window, name)  # type: ignore[arg-type]
    assert over > 500


async def test_a_worker_that_stops_in_good_order_leaves_nothing_to_do_again(kafka_servers: str, tmp_path: Path) -> None:
    log = readings(600)
    received_ms = int(datetime.now(UTC).timestamp() * 1000)
    async with lab(kafka_servers, tmp_path, IOTFLOW_COMMIT_INTERVAL="0.5") as pipeline:
        await send(pipeline, log, 0, received_ms)
        worker = await pipeline.started("analyze")
        await until(lambda: worker.metric("iotflow_records_total") == len(log), 30)
        assert await worker.terminate() == 0
        assert await pipeline.lag("analyze") == 0
        again = await pipeline.started("analyze")
        await asyncio.sleep(2)
        assert again.metric("iotflow_records_total") == 0
        assert again.metric("iotflow_channels") == DEVICES


S4: list[dict[str, Any]] = [
    {"equipment_id": "EQ001", "facility_id": "FAC001", "temperature": 25.5, "humidity": 60.2, "smoke_density": 0.001},
    {"equipment_id": "EQ002", "facility_id": "FAC001", "temperature": 85.0, "humidity": 65.0},
    {"equipment_id": "EQ003", "facility_id": "FAC001", "smoke_density": 600.0},
    {"equipment_id": "EQ004", "temperature": 120.0, "co_level": 50.0},
    *({"equipment_id": f"EQ1{number:02}", "temperature": 20 + number % 10} for number in range(100)),
]


async def test_s4s_examples_are_exactly_the_events_that_they_must_be(kafka_servers: str, tmp_path: Path) -> None:
    """From a raw payload to the event that a control tower reads, through decode and analyze."""
    async with Pipeline(kafka_servers, {}, tmp_path, dialect="fire", IOTFLOW_ESCALATE="true") as pipeline:
        await pipeline.started_all(["decode", "analyze"])
        now = datetime.now(UTC).replace(microsecond=0)
        producer = AIOKafkaProducer(**kafka.client_args(pipeline.settings))
        await producer.start()
        try:
            for payload in S4:
                value = json.dumps({"measured_at": now.isoformat(), **payload}).encode()
                await producer.send_and_wait(pipeline.raw, value, key=payload["equipment_id"].encode())
        finally:
            await producer.stop()
        topics = pipeline.settings.topics

        async def heard() -> bool:
            return len(await said(pipeline, topics.anomalies)) >= 4

        await until(heard, 30)
        await pipeline.settled(stages=["decode", "analyze"])
        found = {}
        for record in await said(pipeline, topics.anomalies):
            event = json.loads(record.value)
            assert record.key.decode() == event["equipment_id"]
            assert set(event) == {
                *("version", "event_id", "equipment_id", "facility_id", "metric", "value", "threshold", "rule_id"),
                *("measured_at", "detected_at", "severity"),
            }
            found[event["equipment_id"], event["metric"]] = (event["value"], event["threshold"], event["severity"])
            assert event["facility_id"] == (None if event["equipment_id"] == "EQ004" else "FAC001")
        assert found == {
            ("EQ002", "temperature"): (85.0, 80.0, "WARN"),
            ("EQ003", "smoke_density"): (600.0, 500.0, "EMERGENCY"),
            ("EQ004", "temperature"): (120.0, 95.0, "EMERGENCY"),
            ("EQ004", "co_level"): (50.0, 50.0, "WARN"),
        }
        warned = {json.loads(record.value)["equipment_id"] for record in await said(pipeline, topics.warnings)}
        pressing = {json.loads(record.value)["equipment_id"] for record in await said(pipeline, topics.emergencies)}
        assert (warned, pressing) == ({"EQ002", "EQ004"}, {"EQ003", "EQ004"})
