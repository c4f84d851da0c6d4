"""A store's worker on all of its topics: readings, and what iotflow itself finds, with the offsets of each."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from app import check, kafka, lag
from app.stages import reads
from schemas import wire
from schemas.names import joined
from schemas.quality import quality, written
from schemas.reading import Reading
from sinks import registry
from tests.lab.pipeline import Pipeline

STORE = "store-timescale"
T0 = datetime(2025, 10, 5, 12, tzinfo=UTC)


@pytest.fixture
async def pipeline(kafka_servers: str, database: dict[str, str], tmp_path: Path) -> AsyncIterator[Pipeline]:
    """Topics and one store, exactly once."""
    async with Pipeline(kafka_servers, {**database, "TIMESCALE_EXACTLY_ONCE": "true"}, tmp_path) as p:
        yield p


async def send(p: Pipeline, *records: tuple[str, bytes, bytes | None]) -> None:
    """Records of topics, in order, each acknowledged."""
    producer = AIOKafkaProducer(**kafka.client_args(p.settings))
    await producer.start()
    try:
        for topic, key, value in records:
            await producer.send_and_wait(topic, value, key=key, partition=0)
    finally:
        await producer.stop()


async def settled(p: Pipeline) -> None:
    """Until the store has committed to the end of its topics; its own books go on coming."""
    topics = [topic for topic in reads(STORE, p.settings) if topic != p.settings.topics.storage_metadata]
    async with asyncio.timeout(60):
        while True:
            found = await lag.measure(kafka.client_args(p.settings), p.settings.app_id(STORE), topics)
            if all(each.lag == 0 for each in found.values()):
                return
            await asyncio.sleep(0.3)


async def stored(p: Pipeline) -> dict[tuple[str, str], dict[str, Any]]:
    """Values by measurement and channel, but for the books."""
    sink = registry.load()["timescale"].Sink(p.settings.sinks["timescale"])
    await sink.open()
    try:
        found = [each async for each in sink.scan()]
    finally:
        await sink.close()
    there = {(each.measurement, each.channel): each.values for each in found if each.measurement != "storage_metadata"}
    assert len(there) == sum(each.measurement != "storage_metadata" for each in found)
    return there


async def test_a_store_reads_what_iotflow_finds(pipeline: Pipeline, timescale: Any) -> None:
    """Each as it is now, the offsets of all topics with them; a tombstone is nothing, a device may not say as much."""
    p, topics = pipeline, pipeline.settings.topics
    window, alarm = joined("fire", "", "co_level", "1m"), joined("fire", "", "co_level", "high")

    def aggregate(revision: int, **more: Any) -> tuple[str, bytes, bytes]:
        values = {"measurement": "fire", "metric": "co_level", "window": "1m", "revision": revision, **more}
        return topics.aggregates, b"d|w", wire.write(Reading("aggregates", "d", T0, {**values}, window))

    def state(state: str) -> tuple[str, bytes, bytes]:
        return topics.alarms, b"d|a", wire.write(Reading("alarms", "d", T0, {"state": state, "score": 1.5}, alarm))

    key, event = written(quality("over_budget", "d", T0, "too much", count=900))
    reading = wire.write(Reading("fire", "d", T0, {"co_level": 60.0}))
    forged = wire.write(Reading("alarms", "d", T0, {"state": "CLEARED"}, alarm))

    worker = await p.started(STORE)
    await send(
        p,
        (topics.decoded, b"d", reading),
        aggregate(1, count=59),
        state("ACTIVE"),
        (topics.alarms, b"gone", None),
        (topics.quality, key, event),
        (topics.decoded, b"d", forged),
        aggregate(2, count=60),
    )
    await settled(p)
    there = await stored(p)
    assert set(there) == {
        ("fire", ""),
        ("aggregates", window),
        ("alarms", alarm),
        ("quality", joined("over_budget", "", "", "")),
    }
    assert (there["aggregates", window]["revision"], there["aggregates", window]["count"]) == (2, 60)
    assert there["alarms", alarm] == {"state": "ACTIVE", "score": 1.5}
    letters = [dict(letter.headers)["iotflow-dlq-reason"] for letter in await p.letters()]
    assert letters == [b"reserved"]

    assert await worker.terminate() == 0
    await send(p, state("CLEARED"), (topics.alarms, b"gone", None), aggregate(3, count=61))
    worker = await p.started(STORE)
    await settled(p)
    there = await stored(p)
    assert there["alarms", alarm]["state"] == "CLEARED"
    assert there["aggregates", window]["count"] == 61
    assert worker.metric("iotflow_skipped_total") == 1
    assert await worker.terminate() == 0

    connection = await timescale.connect()
    kept = {
        (row["topic"], row["partition"]): row["next"]
        for row in await connection.fetch("SELECT * FROM sink_offsets")
        if row["topic"] != topics.storage_metadata
    }
    await connection.close()
    ends = {
        (topic, partition): end
        for topic in (topics.decoded, topics.aggregates, topics.alarms, topics.quality)
        for partition, end in (await check.ends(p.settings, topic)).items()
        if end
    }
    assert kept == ends
    assert len(await p.letters()) == 1
