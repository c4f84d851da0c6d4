"""Lag, measured on a real broker."""

import asyncio
import contextlib
import logging
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import UnknownTopicOrPartitionError

from app import lag
from app.telemetry import BROKER_UP, LAG, LAG_STALE, Telemetry
from deploy.local.kafka import Kafka
from tests.lab.apps import create


@pytest.fixture
async def topic(kafka_servers: str) -> str:
    name = f"lag-{uuid.uuid4().hex[:8]}"
    await create(kafka_servers, name, 3)
    return name


async def produce(servers: str, topic: str, partition: int, count: int) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers)
    await producer.start()
    try:
        for number in range(count):
            await producer.send_and_wait(topic, b"%d" % number, partition=partition)
    finally:
        await producer.stop()


async def commit(servers: str, group: str, offsets: dict[TopicPartition, int]) -> None:
    consumer = AIOKafkaConsumer(bootstrap_servers=servers, group_id=group, enable_auto_commit=False)
    await consumer.start()
    try:
        consumer.assign(list(offsets))
        await consumer.commit(offsets)
    finally:
        await consumer.stop()


async def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  nothing tells us when
            await asyncio.sleep(0.02)


@asynccontextmanager
async def watching(
    servers: str, group: str, partitions: list[tuple[str, int]], telemetry: Telemetry
) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(
        lag.watch({"bootstrap_servers": servers}, group, lambda: list(partitions), telemetry, interval=0.1)
    )
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert task.cancelled()


async def test_lag_counts_from_the_commit_or_else_from_the_oldest_record(kafka_servers: str, topic: str) -> None:
    group = f"group-{topic}"
    await produce(kafka_servers, topic, 0, 7)
    await produce(kafka_servers, topic, 1, 3)
    await commit(kafka_servers, group, {TopicPartition(topic, 0): 5})

    lags = await lag.measure({"bootstrap_servers": kafka_servers}, group, [topic])

    assert lags == {
        TopicPartition(topic, 0): lag.Lag(end=7, committed=5, lag=2),
        TopicPartition(topic, 1): lag.Lag(end=3, committed=None, lag=3),
        TopicPartition(topic, 2): lag.Lag(end=0, committed=None, lag=0),
    }


async def test_a_commit_beyond_the_end_is_no_negative_lag(kafka_servers: str, topic: str) -> None:
    group = f"group-{topic}"
    await commit(kafka_servers, group, {TopicPartition(topic, 0): 5})

    lags = await lag.measure({"bootstrap_servers": kafka_servers}, group, [topic])

    assert lags[TopicPartition(topic, 0)].lag == 0


async def test_a_topic_that_is_not_there_is_named(kafka_servers: str) -> None:
    with pytest.raises(UnknownTopicOrPartitionError, match="no topic nowhere"):
        await lag.measure({"bootstrap_servers": kafka_servers}, "nobody", ["nowhere"])


async def test_watching_follows_the_log_and_the_assignment(kafka_servers: str, topic: str) -> None:
    telemetry = Telemetry("decode")
    partitions: list[tuple[str, int]] = [(topic, 0), (topic, 1)]
    async with watching(kafka_servers, f"group-{topic}", partitions, telemetry):
        await until(lambda: telemetry.lag_records == {(topic, 0): 0, (topic, 1): 0})
        assert telemetry.value(LAG_STALE) == 0
        assert telemetry.value(BROKER_UP) == 1

        await produce(kafka_servers, topic, 1, 4)
        await until(lambda: telemetry.value(LAG, topic, "1") == 4)

        partitions.pop()
        await until(lambda: telemetry.lag_records == {(topic, 0): 0})

        partitions.clear()
        await until(lambda: telemetry.lag_records == {})
        assert telemetry.broker_answers


async def test_a_broker_that_goes_away_and_comes_back(
    kafka: Kafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "app.lag")
    await produce(kafka.bootstrap, topic, 0, 3)
    telemetry = Telemetry("decode")
    async with watching(kafka.bootstrap, f"group-{topic}", [(topic, 0)], telemetry):
        await until(lambda: telemetry.lag_records == {(topic, 0): 3})
        await asyncio.to_thread(kafka.stop)
        try:
            await until(lambda: telemetry.lag_is_stale and not telemetry.broker_answers)
            await asyncio.sleep(2.0)
            assert telemetry.value(LAG, topic, "0") == 3
        finally:
            await asyncio.to_thread(kafka.start)
            await asyncio.to_thread(kafka.wait_ready)
        await produce(kafka.bootstrap, topic, 0, 1)
        await until(lambda: telemetry.lag_records == {(topic, 0): 4}, 40)
        assert not telemetry.lag_is_stale
        assert telemetry.broker_answers
    assert [record.message for record in caplog.records if record.name == "app.lag"] == [
        "lag cannot be measured; the last one is kept",
        "lag is measured again",
    ]


async def test_watching_begins_while_nobody_is_there() -> None:
    telemetry = Telemetry("decode")
    async with watching("127.0.0.1:1", "nobody", [("nowhere", 0)], telemetry):
        await asyncio.sleep(1.0)
        assert telemetry.lag_is_stale
        assert not telemetry.broker_answers


async def test_the_last_lag_is_kept_while_nobody_answers(
    kafka_servers: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await produce(kafka_servers, topic, 0, 3)
    telemetry = Telemetry("decode")
    async with watching(kafka_servers, f"group-{topic}", [(topic, 0)], telemetry):
        await until(lambda: telemetry.lag_records == {(topic, 0): 3})
        with monkeypatch.context() as patch:
            patch.setattr(lag.AIOKafkaAdminClient, "find_coordinator", _refuse)
            await until(lambda: telemetry.lag_is_stale)
            assert not telemetry.broker_answers
            assert telemetry.value(LAG, topic, "0") == 3
        await until(lambda: not telemetry.lag_is_stale)


async def test_an_answer_of_no_is_an_answer(kafka_servers: str, topic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    telemetry = Telemetry("decode")
    monkeypatch.setattr(lag.AIOKafkaAdminClient, "find_coordinator", _forbid)
    async with watching(kafka_servers, f"group-{topic}", [(topic, 0)], telemetry):
        await until(lambda: telemetry.broker_answers)
        assert telemetry.lag_is_stale


async def test_a_group_wide_error_is_not_taken_for_a_group_without_commits(
    kafka_servers: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    telemetry = Telemetry("decode")
    monkeypatch.setattr(lag.AIOKafkaAdminClient, "list_consumer_group_offsets", _nothing)
    await produce(kafka_servers, topic, 0, 3)
    async with watching(kafka_servers, f"group-{topic}", [(topic, 0)], telemetry):
        await asyncio.sleep(1.0)
        assert telemetry.lag_records == {}
        assert telemetry.lag_is_stale


async def _refuse(*_: object) -> int:
    raise lag.GroupCoordinatorNotAvailableError


async def _forbid(*_: object) -> int:
    from aiokafka.errors import GroupAuthorizationFailedError  # noqa: PLC0415

    raise GroupAuthorizationFailedError


async def _nothing(*_: object) -> dict[TopicPartition, object]:
    return {}
