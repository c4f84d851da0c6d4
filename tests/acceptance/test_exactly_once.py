"""PostgreSQL keeps the offsets with the data: what is stored and how far the log was read can never disagree."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer

from app import check, kafka
from tests.conftest import place
from tests.lab.apps import until
from tests.lab.pipeline import Pipeline, Process

STORE = "store-timescale"


@pytest.fixture
async def lab(stack: Any) -> AsyncIterator[Any]:
    """A database of the test's own."""
    made = await place(stack, "timescale")
    yield made
    await made.drop()


@pytest.fixture
def pipeline(kafka_servers: str, lab: Any, tmp_path: Path) -> Pipeline:
    """Decode and the one store, exactly once."""
    return Pipeline(kafka_servers, {**lab.env, "STORES": "timescale", "TIMESCALE_EXACTLY_ONCE": "true"}, tmp_path)


class Offsets:
    """The offsets as the database has them, and as Kafka has."""

    def __init__(self, pipeline: Pipeline, connection: Any) -> None:
        self.group = pipeline.settings.app_id(STORE)
        self.topic = pipeline.settings.topics.decoded
        self.connection = connection
        self.settings = pipeline.settings

    async def kept(self) -> dict[int, int]:
        """The database's."""
        query = "SELECT partition, next FROM sink_offsets WHERE group_id = $1 AND topic = $2"
        return dict(await self.connection.fetch(query, self.group, self.topic))

    async def keep(self, offset: int) -> None:
        """Set the database's."""
        await self.connection.execute("UPDATE sink_offsets SET next = $1 WHERE topic = $2", offset, self.topic)

    async def ends(self) -> dict[int, int]:
        """Where the log ends, of partitions that hold anything."""
        ends = await check.ends(self.settings, self.topic)
        return {partition: end for partition, end in ends.items() if end}

    async def commit(self, offset: int) -> None:
        """Set Kafka's; nobody else may be in the group."""
        args = kafka.client_args(self.settings)
        consumer = AIOKafkaConsumer(self.topic, **args, group_id=self.group, enable_auto_commit=False)
        await consumer.start()
        try:
            await consumer.getmany(timeout_ms=100)
            await consumer.commit(dict.fromkeys(consumer.assignment(), offset))
        finally:
            await consumer.stop()


@asynccontextmanager
async def offsets(pipeline: Pipeline, lab: Any) -> AsyncIterator[Offsets]:
    """Both kinds."""
    connection = await lab.connect()
    try:
        yield Offsets(pipeline, connection)
    finally:
        await connection.close()


async def test_the_offsets_are_those_of_the_data_whatever_is_killed(pipeline: Pipeline, lab: Any) -> None:
    """Killed in mid-batch again and again: all is there once, and the offsets stand at the end of the log."""
    async with pipeline as p, offsets(p, lab) as found:
        workers = await p.started_all()
        sending = asyncio.create_task(p.simulate(30_000, rate=2500))
        for how in ("kill", "terminate", "kill"):
            await asyncio.sleep(2)
            await getattr(workers[STORE], how)()
            workers[STORE] = await p.start(STORE)
        await sending
        await p.settled()
        await p.check()
        assert await found.kept() == await found.ends()


async def test_the_database_decides_where_to_go_on(pipeline: Pipeline, lab: Any) -> None:
    """Kafka's committed offsets, forward or back, change nothing; a database set back is filled up again."""
    async with pipeline as p, offsets(p, lab) as found:
        decode = await p.started("decode")
        store = await p.started(STORE)
        await p.simulate(5000)
        await p.settled()
        kept = await found.kept()
        assert await store.terminate() == 0
        await found.commit(0)
        store = await p.started(STORE)
        await p.settled()
        assert store.metric("iotflow_rows_total") < 10  # the books
        assert await store.terminate() == 0

        # As after a restore of a backup that is older than the last reading.
        await found.connection.execute("TRUNCATE telemetry")
        await found.keep(0)
        store = await p.started(STORE)
        await until(lambda: store.metric("iotflow_readings_total") >= 4900, 60)
        await p.settled()
        await p.check()
        assert await found.kept() == kept
        assert await decode.terminate() == 0


async def test_workers_come_and_go_while_nothing_flows(pipeline: Pipeline, lab: Any) -> None:
    """The offsets agree then, and there is nothing to set right."""
    async with pipeline as p, offsets(p, lab) as found:
        await p.started("decode")
        first = await p.started(STORE)
        await p.simulate(1000)
        await p.settled()
        assert await first.terminate() == 0
        first = await p.started(STORE)
        second = await p.started(STORE)
        await asyncio.sleep(3)
        assert first.ready()
        assert await second.terminate() == 0
        await until(first.ready, 30)
        await p.simulate(1000)
        await p.settled()
        await p.check()
        assert await found.kept() == await found.ends()


@pytest.mark.parametrize("seconds", [25, pytest.param(150, marks=pytest.mark.long)])
async def test_a_worker_that_starts_while_the_database_is_away_waits_for_it(
    pipeline: Pipeline, lab: Any, seconds: int
) -> None:
    """Nobody else knows where to begin; it is alive and not ready, and goes on by itself."""
    async with pipeline as p:
        await p.started("decode")
        store = await p.started(STORE)
        await p.simulate(500)
        await p.settled()
        assert await store.terminate() == 0
        await p.simulate(500)
        await asyncio.to_thread(lab.server.kill)
        try:
            store = await p.start(STORE)
            await asyncio.sleep(seconds)
            assert store.process.returncode is None
            assert store.get("/health/live")[0] == 200
            assert not store.ready()
        finally:
            await asyncio.to_thread(lab.server.start)
        await until(store.ready, 60)
        await p.settled()
        await p.check()


async def test_who_was_away_too_long_stores_nothing_any_more(pipeline: Pipeline, lab: Any) -> None:
    """A worker that stood still while another took its partitions writes no batch when it wakes, and ends."""
    async with pipeline as p, offsets(p, lab) as found:
        await p.started("decode")
        # A batch that is open when the worker falls asleep, and is closed when it wakes.
        sleeper = await p.started(STORE, TIMESCALE_BATCH_TIMEOUT="12")
        await p.simulate(200, bad=0)
        await asyncio.sleep(3)
        pid = sleeper.process.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            other = await p.start(STORE)
            await until(other.ready, 60)
            await until(lambda: other.metric("iotflow_readings_total") >= 200, 60)
            kept = await found.kept()
        finally:
            os.kill(pid, signal.SIGCONT)
        await _asleep_no_more(sleeper)
        await p.settled()
        await p.check()
        assert await found.kept() == kept
        assert sleeper.process.returncode == 70 or sleeper.metric("iotflow_rows_total") == 0


async def _asleep_no_more(worker: Process) -> None:
    """Until it has ended, or is a member of the group again."""
    await asyncio.sleep(15)
    await until(lambda: worker.process.returncode is not None or worker.ready(), 60)


async def test_an_offset_that_the_log_does_not_have_is_an_error(pipeline: Pipeline, lab: Any) -> None:
    """The worker says which, and does not guess."""
    async with pipeline as p, offsets(p, lab) as found:
        await p.started("decode")
        store = await p.started(STORE)
        await p.simulate(500)
        await p.settled()
        assert await store.terminate() == 0
        await found.keep(10**9)
        store = await p.start(STORE)
        async with asyncio.timeout(60):
            assert await store.process.wait() != 0
        assert "sink_offsets" in store.log
        assert "1000000000" in store.log
