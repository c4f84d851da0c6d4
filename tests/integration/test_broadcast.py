"""A compacted topic on a real broker: learned whole, followed, and never lost sight of."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from app import broadcast
from app.broadcast import Broadcast
from deploy.local.kafka import Kafka
from tests.acceptance.test_odd_headers import send_odd
from tests.lab.apps import unique, until

Value = bytes | None


class Known:
    """What was told, in order, and what holds; a value `bad` is refused."""

    def __init__(self) -> None:
        self.told: list[tuple[bytes, bytes | None]] = []
        self.now: dict[bytes, bytes] = {}
        self.batches = 0

    def apply(self, key: bytes, value: bytes | None) -> None:
        if value == b"bad":
            raise ValueError("it is bad")
        self.told.append((key, value))
        if value is None:
            self.now.pop(key, None)
        else:
            self.now[key] = value

    def after(self) -> None:
        self.batches += 1


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the topic itself more often than one would."""
    monkeypatch.setattr(broadcast, "LOOK_S", 0.3)


@asynccontextmanager
async def admin(servers: str) -> AsyncIterator[AIOKafkaAdminClient]:
    client = AIOKafkaAdminClient(bootstrap_servers=servers)
    await client.start()
    try:
        yield client
    finally:
        await client.close()


async def create(servers: str, topic: str, partitions: int = 1, policy: str = "compact") -> None:
    """Make a topic, also where one is still being deleted."""
    async with admin(servers) as client:
        async with asyncio.timeout(20):
            while True:
                made = NewTopic(topic, partitions, 1, topic_configs={"cleanup.policy": policy})
                ((_, code, _),) = (await client.create_topics([made])).topic_errors
                if code == 0:
                    break
                await asyncio.sleep(0.1)


async def delete(servers: str, topic: str) -> None:
    async with admin(servers) as client:
        await client.delete_topics([topic])


async def write(servers: str, topic: str, *records: tuple[Value, Value], partition: int = 0, **more: Any) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=servers, **more)
    await producer.start()
    try:
        async with producer.transaction() if more else contextlib.nullcontext():
            for key, value in records:
                await producer.send_and_wait(topic, key=key, value=value, partition=partition)
    finally:
        await producer.stop()


@pytest.fixture
async def topic(kafka_servers: str) -> str:
    name = unique("broadcast")
    await create(kafka_servers, name)
    return name


@asynccontextmanager
async def following(servers: str, topic: str, known: Known, *, ready: bool = True) -> AsyncIterator[Broadcast]:
    """A broadcast that runs, and has read the topic unless `ready` is not asked for."""
    found = Broadcast({"bootstrap_servers": servers}, topic, known.apply, after=known.after)
    task = asyncio.create_task(found.run())
    try:
        if ready:
            async with asyncio.timeout(20):
                await found.read()
        yield found
        assert not task.done()
    finally:
        task.cancel()
        async with asyncio.timeout(10):
            with contextlib.suppress(asyncio.CancelledError):
                await task
    assert task.cancelled()


async def holds(known: Known, expected: Mapping[bytes, bytes], seconds: float = 20.0) -> None:
    try:
        await until(lambda: known.now == expected, seconds)
    except TimeoutError:
        assert known.now == expected


async def test_a_topic_is_read_whole_and_then_followed(kafka_servers: str) -> None:
    """Every partition, the last value of each key, tombstones; then what comes, in order."""
    topic = unique("broadcast")
    await create(kafka_servers, topic, 3)
    await write(kafka_servers, topic, (b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"b", None))
    await write(kafka_servers, topic, *((b"c%d" % n, b"x" * 1000) for n in range(500)), partition=2)
    known = Known()
    async with following(kafka_servers, topic, known) as found:
        assert found.ready
        assert known.now == {b"a": b"2", **{b"c%d" % n: b"x" * 1000 for n in range(500)}}
        assert known.batches > 0

        known.told.clear()
        await write(kafka_servers, topic, (b"d", b"1"), (b"a", None), (b"d", b"2"), partition=1)
        await until(lambda: len(known.told) == 3)
        assert known.told == [(b"d", b"1"), (b"a", None), (b"d", b"2")]


async def test_an_empty_topic_is_read_at_once(kafka_servers: str, topic: str) -> None:
    known = Known()
    async with following(kafka_servers, topic, known):
        assert known.now == {}
        await write(kafka_servers, topic, (b"a", b"1"))
        await holds(known, {b"a": b"1"})


async def test_the_marker_of_a_transaction_at_the_end_is_passed(kafka_servers: str, topic: str) -> None:
    """The end of the log lies behind it, and no record ever comes from there."""
    await write(kafka_servers, topic, (b"a", b"1"), transactional_id=unique("t"))
    known = Known()
    async with following(kafka_servers, topic, known):
        assert known.now == {b"a": b"1"}


async def test_what_is_refused_is_said_once_and_nothing_stops(
    kafka_servers: str, caplog: pytest.LogCaptureFixture
) -> None:
    topic = unique("broadcast")
    await create(kafka_servers, topic, policy="delete")  # where a record without a key can be written
    await write(kafka_servers, topic, (b"a", b"1"), (b"a", b"bad"), (None, b"1"), (b"b\xff", b"bad"), (b"c", b"1"))
    known = Known()
    async with following(kafka_servers, topic, known) as found:
        assert known.now == {b"a": b"1", b"c": b"1"}
        assert found.refused == 3
        await write(kafka_servers, topic, (b"c", b"bad"), (b"d", b"1"))
        await holds(known, {b"a": b"1", b"c": b"1", b"d": b"1"})
        assert found.refused == 4
    said = [record.__dict__ for record in caplog.records if record.name == "app.broadcast"]
    assert [(each["at"], each["key"], each["error"]) for each in said if "refused" in each["msg"]] == [
        ("0/1", "'a'", "it is bad"),
        ("0/2", "null", "the record has no key"),
        ("0/3", "'b\ufffd'", "it is bad"),
        ("0/5", "'c'", "it is bad"),
    ]


async def test_header_names_that_are_not_utf8_are_passed(kafka_servers: str, topic: str) -> None:
    """At the start and while it follows."""
    known = Known()
    await send_odd(kafka_servers, topic, 0, [b"1", b"2"], 0, key=b"a")
    async with following(kafka_servers, topic, known) as found:
        assert known.now == {b"a": b"2"}
        await send_odd(kafka_servers, topic, 0, [b"1", b"2"], 1, key=b"b")
        await write(kafka_servers, topic, (b"c", b"1"))
        await holds(known, {b"a": b"2", b"b": b"2", b"c": b"1"})
        assert not found.troubled


async def test_a_partition_that_is_added_is_read_too(kafka_servers: str, topic: str) -> None:
    await write(kafka_servers, topic, (b"a", b"1"))
    known = Known()
    async with following(kafka_servers, topic, known):
        async with admin(kafka_servers) as client:
            await client.create_partitions({topic: NewPartitions(2)})
        await write(kafka_servers, topic, (b"b", b"1"), partition=1)
        await write(kafka_servers, topic, (b"a", b"2"))
        await holds(known, {b"a": b"2", b"b": b"1"})
        assert known.told.count((b"a", b"1")) == 1


async def test_a_broker_that_restarts_is_waited_for(kafka: Kafka, topic: str, caplog: pytest.LogCaptureFixture) -> None:
    """It goes on where it was: nothing is told twice, and what comes later is told."""
    caplog.set_level(logging.INFO, "app.broadcast")
    await write(kafka.bootstrap, topic, (b"a", b"1"))
    known = Known()
    async with following(kafka.bootstrap, topic, known) as found:
        await asyncio.to_thread(kafka.stop)
        try:
            await until(lambda: any("cannot be read" in record.message for record in caplog.records))
            assert found.ready
        finally:
            await asyncio.to_thread(kafka.start)
            await asyncio.to_thread(kafka.wait_ready)
        await write(kafka.bootstrap, topic, (b"b", b"1"))
        await holds(known, {b"a": b"1", b"b": b"1"}, 40)
        assert known.told == [(b"a", b"1"), (b"b", b"1")]
    assert [record.message for record in caplog.records if record.name == "app.broadcast"] == [
        "a topic has been read",
        "a topic cannot be read; what is known of it is kept",
        "a topic is read again",
    ]


@pytest.mark.parametrize("more", [0, 5])
async def test_a_topic_that_is_made_anew_is_read_from_its_start(kafka_servers: str, topic: str, more: int) -> None:
    """Whether it ends below where we were or above: what is not there any more is forgotten, the rest told at once."""
    await write(kafka_servers, topic, (b"a", b"1"), (b"b", b"1"), (b"c", b"1"))
    known = Known()
    async with following(kafka_servers, topic, known):
        await delete(kafka_servers, topic)
        await create(kafka_servers, topic)
        later = [(b"b", b"%d" % n) for n in range(2, 2 + more)]
        await write(kafka_servers, topic, (b"a", b"0"), (b"a", b"2"), *later)
        await holds(known, {b"a": b"2", **dict(later)})
        # An older value of a key was not believed for a moment.
        assert known.told.count((b"a", b"0")) <= 1
        await write(kafka_servers, topic, (b"d", b"1"))
        await holds(known, {b"a": b"2", b"d": b"1", **dict(later)})


async def test_a_topic_that_is_gone_keeps_what_was_known(kafka_servers: str, topic: str) -> None:
    """And nobody creates it by asking for it."""
    await write(kafka_servers, topic, (b"a", b"1"))
    known = Known()
    async with following(kafka_servers, topic, known):
        await delete(kafka_servers, topic)
        await asyncio.sleep(2.0)
        assert known.now == {b"a": b"1"}
        async with admin(kafka_servers) as client:
            assert topic not in await client.list_topics()
        await create(kafka_servers, topic)
        await holds(known, {})


async def test_reading_begins_while_there_is_no_topic_and_while_nobody_is_there(kafka_servers: str) -> None:
    topic = unique("broadcast")
    known = Known()
    async with following(kafka_servers, topic, known, ready=False) as found:
        await asyncio.sleep(0.5)
        assert not found.ready
        await create(kafka_servers, topic)
        await until(lambda: found.ready)
    async with following("127.0.0.1:1", topic, known, ready=False) as found:
        await asyncio.sleep(0.5)
        assert not found.ready


async def test_after_a_long_silence_it_is_read_from_its_start(
    kafka_servers: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tombstone may have come and gone meanwhile; what has not changed is what was known."""
    await write(kafka_servers, topic, (b"a", b"1"), (b"b", b"1"), (b"b", None))
    known = Known()
    async with following(kafka_servers, topic, known):
        known.told.clear()
        with monkeypatch.context() as patch:
            patch.setattr(broadcast, "GAP_S", -1.0)
            await until(lambda: (b"a", b"1") in known.told)
        assert known.now == {b"a": b"1"}


async def test_where_the_broker_tells_no_id_the_partitions_and_offsets_tell(
    kafka_servers: str, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As before Kafka 2.8: a topic made anew is noticed by where it ends."""
    monkeypatch.setattr(broadcast._TopicRequest, "_CLASSES", broadcast._TopicRequest._CLASSES[:1])
    await write(kafka_servers, topic, (b"a", b"1"), (b"b", b"1"), (b"c", b"1"))
    consumer = broadcast.AIOKafkaConsumer(bootstrap_servers=kafka_servers)
    await consumer.start()
    assert await broadcast.describe(consumer, topic) == broadcast.Description(None, [0])
    await consumer.stop()
    known = Known()
    async with following(kafka_servers, topic, known):
        await delete(kafka_servers, topic)
        await create(kafka_servers, topic)
        await write(kafka_servers, topic, (b"d", b"1"))
        await holds(known, {b"d": b"1"})
