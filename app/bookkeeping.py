"""The books: what each store really stored, as events when it did, and summed up by interval.

An event is acknowledged by the broker before its batch is; a sum is written under the same key again and again while
its interval lasts, so that a worker that is killed takes the last seconds of its sum with it, and no event.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final

from app.produce import BatchProducer
from app.settings import Settings
from schemas import saved, wire
from schemas.decoding import Item
from schemas.reading import Reading
from schemas.saved import Flush, Sum

#: A sum that is not closed yet is written this often, in seconds.
_EVERY_S: Final = 10.0


class Books:
    """`sinks.contracts.Books` on Kafka.

    `place` says where the store is, without secrets.
    """

    def __init__(
        self,
        settings: Settings,
        store: str,
        place: str,
        producer: BatchProducer,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._topics = settings.topics
        self._events = settings.saved_events
        self._interval_ms = int(settings.books_interval * 1000)
        self._store = store
        self._place = place
        # With the moment, since a container's host and process are called the same after a restart.
        self._worker = f"{socket.gethostname()}-{os.getpid()}-{now_ms()}"
        self._producer = producer
        self._now_ms = now_ms
        self._sum: Sum | None = None
        self._written = 0
        self._batches = 0

    async def saved(self, flush: Flush, readings: Sequence[Reading]) -> None:
        """Count a batch, and return when the broker has its events."""
        self._batches += 1
        now_ms = self._now_ms()
        batch_id = f"{self._store}-{self._worker}-{self._batches}"
        entry = saved.Saved(self._store, batch_id, flush, now_ms)
        (await self._current(now_ms)).add(flush)
        if self._events == "batch":
            await self._producer.deliver(self._topics.saved, [Item(self._store.encode(), saved.batch_event(entry), [])])
        elif self._events == "reading":
            events = saved.reading_events(entry, readings)
            items = [Item(device.encode(), event, []) for device, event in events]
            await self._producer.deliver(self._topics.saved, items)

    async def run(self) -> None:
        """Write the sums, until cancelled."""
        while True:
            await asyncio.sleep(min(_EVERY_S, self._interval_ms / 1000))
            await self._write()

    async def close(self) -> None:
        """Write what is not written yet; the broker must be there."""
        await self._write()

    async def _current(self, now_ms: int) -> Sum:
        """The sum of the interval at hand; that of the one before is written first."""
        start_ms = now_ms - now_ms % self._interval_ms
        if self._sum is None or self._sum.start_ms != start_ms:
            await self._write()
            self._sum, self._written = Sum(self._store, self._place, self._worker, start_ms), 0
        return self._sum

    async def _write(self) -> None:
        current = self._sum
        if current is None or self._written == current.flushes:
            return
        flushes = current.flushes
        key = f"{current.store}|{current.worker}|{current.start_ms}".encode()
        await self._producer.deliver(self._topics.storage_metadata, [Item(key, wire.write(current.reading), [])])
        if self._sum is current:
            self._written = flushes
