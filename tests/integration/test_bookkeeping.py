"""The books on a real broker: events before acknowledgements, sums by interval."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from app import check, kafka, topics
from app.bookkeeping import Books
from app.produce import BatchProducer
from app.settings import Settings, load
from schemas import wire
from schemas.reading import Reading
from schemas.saved import Flush
from tests.lab.apps import own_topics, unique

AT = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)
MINUTE = 60_000


class Bench:
    """Books of a store, on topics of the test's own; `now_ms` is what their clock says."""

    def __init__(self, settings: Settings, producer: BatchProducer) -> None:
        self.settings = settings
        self.now_ms = 100 * MINUTE
        self.books = Books(settings, "timescale", "here", producer, now_ms=lambda: self.now_ms)

    async def store(self, *devices: str) -> None:
        """What delivery does when a batch is stored."""
        readings = [Reading("fire", device, AT, {"temperature": 1.0}) for device in devices]
        flush = Flush(len(readings), len(readings), 10, 0, 0, "", AT, AT, self.now_ms, 0.5)
        await self.books.saved(flush, readings)

    async def events(self) -> list[dict[str, Any]]:
        """What is on the topic of events."""
        records = await check.tail(self.settings, self.settings.topics.saved)
        return [{**msgspec.json.decode(record.value), "key": record.key.decode()} for record in records]

    async def sums(self) -> list[Reading]:
        """What a compacted topic would keep: the last of each key, by time."""
        records = await check.tail(self.settings, self.settings.topics.storage_metadata)
        found = {record.key: wire.read(record.value) for record in records}
        return sorted(found.values(), key=lambda reading: reading.time)


@asynccontextmanager
async def bench(servers: str, **more: str) -> AsyncIterator[Bench]:
    """Books that can be written."""
    settings = load({"KAFKA_BOOTSTRAP_SERVERS": servers, **own_topics(unique("books")), **more})
    async with kafka.admin(settings) as admin:
        await topics.apply(admin, await topics.plan(admin, topics.wanted(settings)))
    producer = BatchProducer(kafka.client_args(settings), max_message_bytes=1_000_000)
    await producer.start()
    try:
        yield Bench(settings, producer)
    finally:
        await producer.stop()


async def test_each_batch_has_an_event_and_each_interval_one_sum(kafka_servers: str) -> None:
    """The interval's sum is written when the next one begins, and when the books are closed."""
    async with bench(kafka_servers) as made:
        await made.store("a", "b")
        made.now_ms += 30_000
        await made.store("c")
        made.now_ms += 40_000
        await made.store("d")
        await made.books.close()
        assert [event["record_count"] for event in await made.events()] == [2, 1, 1]
        assert {event["key"] for event in await made.events()} == {"timescale"}
        sums = await made.sums()
        assert [found.values["record_count"] for found in sums] == [3, 1]
        assert [int(found.time.timestamp() * 1000) for found in sums] == [100 * MINUTE, 101 * MINUTE]
        assert {found.values["storage_path"] for found in sums} == {"here"}


async def test_a_sum_is_written_again_while_its_interval_lasts(kafka_servers: str) -> None:
    """Under one key, so that the last one stands; nothing new is nothing written."""
    async with bench(kafka_servers) as made:
        for device in ("a", "b", "c"):
            await made.store(device)
            await made.books.close()
            await made.books.close()
        records = await check.tail(made.settings, made.settings.topics.storage_metadata)
        assert len(records) == 3
        assert [found.values["record_count"] for found in await made.sums()] == [3]


async def test_events_may_be_of_readings_or_off(kafka_servers: str) -> None:
    """A reading's is keyed by its device."""
    async with bench(kafka_servers, IOTFLOW_SAVED_EVENTS="reading") as made:
        await made.store("a", "b")
        assert {event["key"] for event in await made.events()} == {"a", "b"}
    async with bench(kafka_servers, IOTFLOW_SAVED_EVENTS="off") as made:
        await made.store("a", "b")
        assert await made.events() == []
        await made.books.close()
        assert len(await made.sums()) == 1
