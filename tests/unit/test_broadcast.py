"""What a broadcast makes of a broker's odder answers, which a real one gives only by bad luck."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from io import BytesIO
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.errors import CorruptRecordException, OffsetOutOfRangeError, TopicAuthorizationFailedError
from aiokafka.protocol.metadata import MetadataRequest_v5

from app import broadcast
from app.broadcast import Broadcast

Told = list[tuple[bytes, bytes | None]]


class Broker:
    """One topic, and what goes wrong with it next."""

    def __init__(self, *records: tuple[bytes, bytes | None]) -> None:
        self.id: bytes | None = b"1" * 16
        self.logs: dict[int, list[tuple[bytes, bytes | None]]] = {0: list(records)}
        self.starts: dict[int, int] = {}
        self.errors: list[BaseException] = []
        self.stop: BaseException | None = None
        self.connections = 0
        self.closed = 0
        self.at_once = 1

    def anew(self, *logs: Iterable[tuple[bytes, bytes | None]]) -> None:
        """Another topic of the same name."""
        self.logs = {number: list(log) for number, log in enumerate(logs)}


class Client:
    """aiokafka's client, which the consumer has inside."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def _metadata_update(self) -> bool:
        return True

    def get_random_node(self) -> int:
        return 1

    def set_topics(self, topics: tuple[str, ...]) -> None:
        assert not topics

    async def send(self, *_: object) -> Any:
        found: dict[str, Any] = {
            "error_code": 0,
            "topic": "t",
            "partitions": [{"partition": number} for number in self._broker.logs],
        }
        if self._broker.id is not None:
            found["topic_id"] = self._broker.id
        return SimpleNamespace(to_object=lambda: {"topics": [found]})

    async def close(self) -> None:
        self._broker.closed += 1


class Consumer:
    """As much of aiokafka's consumer as a broadcast uses."""

    broker: Broker

    def __init__(self, **args: Any) -> None:
        assert args["group_id"] is None
        self._client = Client(self.broker)
        self._fetcher = Fetcher.__new__(Fetcher)
        self._positions: dict[TopicPartition, int] = {}

    async def start(self) -> None:
        self.broker.connections += 1

    async def stop(self) -> None:
        if self.broker.stop is not None:
            raise self.broker.stop

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: self.broker.starts.get(tp.partition, 0) for tp in partitions}

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {tp: len(self.broker.logs[tp.partition]) for tp in partitions}

    def assign(self, partitions: list[TopicPartition]) -> None:
        self._positions = dict.fromkeys(partitions, 0)

    def assignment(self) -> set[TopicPartition]:
        return set(self._positions)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._positions[partition] = offset

    async def position(self, partition: TopicPartition) -> int:
        return self._positions[partition]

    async def getmany(self, **_: object) -> dict[TopicPartition, list[Any]]:
        await asyncio.sleep(0.001)
        if self.broker.errors:
            raise self.broker.errors.pop(0)
        found = {}
        for tp, at in self._positions.items():
            records = self.broker.logs.get(tp.partition, [])[at : at + self.broker.at_once]
            if records:
                found[tp] = [
                    SimpleNamespace(offset=at + n, key=key, value=value) for n, (key, value) in enumerate(records)
                ]
                self._positions[tp] = at + len(records)
        return found


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    """A topic with three records."""
    found = Broker((b"a", b"1"), (b"b", b"1"), (b"c", b"1"))
    monkeypatch.setattr(Consumer, "broker", found, raising=False)
    monkeypatch.setattr(broadcast, "AIOKafkaConsumer", Consumer)
    monkeypatch.setattr(broadcast, "LOOK_S", 0.01)
    monkeypatch.setattr(broadcast, "_FIRST_S", 0.001)
    monkeypatch.setattr(broadcast, "_CAP_S", 0.002)
    return found


@asynccontextmanager
async def following(told: Told) -> AsyncIterator[Broadcast]:
    """A broadcast of the topic, which has read it."""
    found = Broadcast({}, "t", lambda key, value: told.append((key, value)))
    task = asyncio.create_task(found.run())
    try:
        async with asyncio.timeout(5):
            await found.read()
        yield found
        assert not task.done()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(told: Told, expected: set[tuple[bytes, bytes | None]]) -> None:
    async with asyncio.timeout(5):
        while set(told) != expected:  # noqa: ASYNC110  nothing tells us when
            await asyncio.sleep(0.002)


async def test_what_is_read_again_is_told_when_it_is_whole(broker: Broker) -> None:
    """No value that is not a key's last one, and what is gone first: nobody believes an old value for a moment."""
    told: Told = []
    async with following(told):
        assert told == [(b"a", b"1"), (b"b", b"1"), (b"c", b"1")]
        told.clear()
        broker.anew([(b"a", b"0"), (b"d", b"1"), (b"c", b"0"), (b"a", b"2"), (b"c", None), (b"e", b"1")])
        broker.errors = [OffsetOutOfRangeError()]
        await until(told, {(b"b", None), (b"a", b"2"), (b"d", b"1"), (b"c", None), (b"e", b"1")})
        assert told[0] == (b"b", None)
        assert len(told) == 5


@pytest.mark.parametrize("known", [True, False])
async def test_records_that_are_not_those_that_were_read(broker: Broker, known: bool) -> None:  # noqa: FBT001
    """A log that was cut ends below where we were, and the broker says so, or the offsets do."""
    told: Told = []
    async with following(told):
        told.clear()
        broker.anew([(b"a", b"2")])
        broker.errors = [OffsetOutOfRangeError() if known else CorruptRecordException()]
        await until(told, {(b"b", None), (b"c", None), (b"a", b"2")})


async def test_records_that_were_deleted_before_they_were_read(broker: Broker) -> None:
    """The log begins behind where we were: whatever was said in between is not known, so all of it is read."""
    told: Told = []
    async with following(told):
        told.clear()
        broker.errors = [CorruptRecordException()]
        broker.logs[0] += [(b"a", None), (b"b", b"2"), (b"d", b"1")]
        broker.starts[0] = 4
        await until(told, {(b"a", None), (b"c", None), (b"b", b"2"), (b"d", b"1")})


async def test_fewer_partitions_than_there_were(broker: Broker) -> None:
    """Where the broker tells no id."""
    broker.id = None
    broker.logs[1] = [(b"d", b"1")]
    told: Told = []
    async with following(told):
        told.clear()
        broker.anew([(b"a", b"1"), (b"b", b"1"), (b"c", b"2")])
        await until(told, {(b"d", None), (b"a", b"1"), (b"b", b"1"), (b"c", b"2")})


async def test_a_client_that_is_cancelled_while_it_stops_does_not_end_it(broker: Broker) -> None:
    """The `stop` of aiokafka raises the cancellation of a task of its own when a fetch fails meanwhile."""
    told: Told = []
    async with following(told):
        broker.stop = asyncio.CancelledError()
        broker.errors = [CorruptRecordException()] * 3
        broker.logs[0].append((b"d", b"1"))
        await until(told, {(b"a", b"1"), (b"b", b"1"), (b"c", b"1"), (b"d", b"1")})
        assert broker.connections == 4
        assert broker.closed >= 3
    assert broker.closed == 4


async def test_trouble_is_said_once_until_the_end_was_reached(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """What cannot be read is tried again and again, and nothing before it is told twice."""
    caplog.set_level(logging.INFO, "app.broadcast")
    told: Told = []
    async with following(told) as found:
        broker.logs[0] += [(b"d", b"1"), (b"e", b"1")]
        broker.errors = [CorruptRecordException()] * 20
        await until(told, {(b"a", b"1"), (b"b", b"1"), (b"c", b"1"), (b"d", b"1"), (b"e", b"1")})
        assert not found.troubled
        assert len(told) == 5
    assert [record.message for record in caplog.records] == [
        "a topic has been read",
        "a topic cannot be read; what is known of it is kept",
        "a topic is read again",
    ]


async def test_it_is_told_when_trouble_begins_and_ends(broker: Broker) -> None:
    """And when the topic has been read for the first time."""
    seen: list[tuple[bool, bool]] = []
    found = Broadcast({}, "t", lambda *_: None, after=lambda: seen.append((found.ready, found.troubled)))
    broker.errors = [CorruptRecordException()] * 2
    task = asyncio.create_task(found.run())
    async with asyncio.timeout(5):
        await found.read()
        broker.errors = [CorruptRecordException()] * 2
        while (True, True) not in seen or seen[-1] != (True, False):  # noqa: ASYNC110  nothing tells us when
            await asyncio.sleep(0.002)
    task.cancel()
    await asyncio.wait({task})
    changes = [now for before, now in pairwise([None, *seen]) if now != before]
    assert changes == [(False, True), (True, False), (True, True), (True, False)]


async def test_what_is_logged_of_a_refusal_is_short(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    broker.anew([(b"k" * 10_000, b"1")])

    def apply(*_: object) -> None:
        raise ValueError("why " * 10_000)

    task = asyncio.create_task((found := Broadcast({}, "t", apply)).run())
    async with asyncio.timeout(5):
        await found.read()
    task.cancel()
    await asyncio.wait({task})
    (record,) = (vars(each) for each in caplog.records)
    assert len(record["error"]) == 1000
    assert len(record["key"]) <= 60
    assert "restart" in record["msg"]


async def test_whatever_refuses_a_record_stops_nothing(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    """Its key is no entry then: read again, it is no loss."""

    def apply(key: bytes, value: bytes | None) -> None:
        if key == b"b":
            raise ZeroDivisionError
        told.append((key, value))

    told: Told = []
    found = Broadcast({}, "t", apply)
    task = asyncio.create_task(found.run())
    async with asyncio.timeout(5):
        await found.read()
    assert told == [(b"a", b"1"), (b"c", b"1")]
    assert found.refused == 1
    assert [vars(record)["error"] for record in caplog.records] == ["ZeroDivisionError"]
    told.clear()
    broker.anew([(b"c", b"2")])
    broker.id = b"2" * 16
    await until(told, {(b"a", None), (b"c", b"2")})
    task.cancel()
    await asyncio.wait({task})


# -- the question that aiokafka cannot ask -----------------------------------------------------------------------------


def test_the_newest_form_that_the_broker_knows_is_asked() -> None:
    request = broadcast._TopicRequest("t")
    assert isinstance(request.prepare({3: (0, 13)}), broadcast._MetadataStruct)
    assert isinstance(request.prepare({3: (0, 10)}), broadcast._MetadataStruct)
    older = request.prepare({3: (0, 9)})
    assert isinstance(older, MetadataRequest_v5)
    assert older.to_object() == {"topics": ["t"], "allow_auto_topic_creation": False}


def test_the_question_is_what_kafka_expects() -> None:
    """By the tables of the protocol (Metadata, version 10): one topic, no creation, no lists of permissions."""
    asked = broadcast._TopicRequest("ab").prepare({3: (0, 10)}).encode()
    assert asked == b"\x02" + bytes(16) + b"\x03ab\x00" + b"\x00\x00\x00\x00"


async def test_an_error_of_the_topic_is_raised(broker: Broker) -> None:
    class Forbidding(Client):
        async def send(self, *_: object) -> Any:
            return SimpleNamespace(to_object=lambda: {"topics": [{"error_code": 29, "topic": "t", "partitions": []}]})

    with pytest.raises(TopicAuthorizationFailedError):
        await broadcast.describe(SimpleNamespace(_client=Forbidding(broker)), "t")


def test_the_answer_is_read_to_its_end() -> None:
    uuid = bytes(range(16))
    partition = (0, 3, 1, 7, [1], [1], [], {})
    answer = broadcast._MetadataResponse(
        0, [(1, "host", 9092, None, {})], "cluster", 1, [(0, "t", uuid, False, [partition], 0, {})], 0, {}
    )
    encoded = BytesIO(answer.encode())
    (topic,) = broadcast._MetadataResponse.decode(encoded).to_object()["topics"]
    assert not encoded.read()
    assert (topic["topic_id"], [each["partition"] for each in topic["partitions"]]) == (uuid, [3])
