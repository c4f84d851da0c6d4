"""Producing in batches: what the stages send on, and their dead letters, acknowledged by the broker before any ack.

`topic.send` costs 15 to 20 µs a message; a batch built per partition and sent whole costs a quarter of that. The
producer is idempotent and keeps trying while a broker is away: whoever waits for it must be ready to be cancelled.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, RecordListTooLargeError

from app.steady import steady
from schemas.deadletter import Letter
from schemas.decoding import Item
from schemas.partition import partition_of_key

log = logging.getLogger(__name__)

#: A batch is what the broker compares with `max.message.bytes`: never larger than that, whatever it is set to.
BATCH_BYTES = 128 * 1024
#: Stopping sends what is queued; a broker that is away must not keep a worker from stopping.
_STOP_S = 5.0


class BatchProducer:
    """Sends records to chosen partitions, in batches; records of a partition stay in order."""

    def __init__(self, client_args: Mapping[str, Any], *, max_message_bytes: int) -> None:
        self.max_message_bytes = max_message_bytes
        self._args = client_args
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()

    async def start(self) -> AIOKafkaProducer:
        """Connect; waits for a broker that is away."""
        async with self._starting:
            delay = 0.1
            while self._producer is None:
                producer = AIOKafkaProducer(
                    **self._args,
                    enable_idempotence=True,
                    acks="all",
                    max_batch_size=min(BATCH_BYTES, self.max_message_bytes),
                )
                steady(producer)
                try:
                    await producer.start()
                    self._producer = producer
                except Exception as error:  # noqa: BLE001  there is no last try
                    await producer.stop()
                    log.error("cannot reach Kafka to produce; trying again", extra={"error": str(error)})  # noqa: TRY400
                    await asyncio.sleep(delay)
                    delay = min(5.0, delay * 2)
            return self._producer

    async def stop(self) -> None:
        """Disconnect; what is not acknowledged by then may or may not arrive."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_STOP_S):
                    await producer.stop()

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has."""
        producer = await self.start()
        return len(await producer.partitions_for(topic))

    async def send(self, topic: str, partitions: Mapping[int, Iterable[Item]]) -> list["Sent"]:
        """Hand batches over for sending, a partition's items in order; await each `Sent.done` before acking.

        Returns as soon as the batches are queued: while one is queued for a partition, the next waits here.
        """
        producer = await self.start()
        now_ms = time.time_ns() // 1_000_000
        sent: list[Sent] = []
        for partition, items in partitions.items():
            builder = producer.create_batch()
            records = 0
            for item in items:
                key, value, headers = item
                while builder.append(timestamp=now_ms, key=key, value=value, headers=headers) is None:
                    sent.append(await self._submit(builder, topic, partition, records))
                    builder, records = producer.create_batch(), 0
                records += 1
            if records:
                builder.close()
                sent.append(await self._submit(builder, topic, partition, records))
        return sent

    async def deliver(self, topic: str, items: Iterable[Item]) -> None:
        """Send records to the partitions of their keys, and return when the broker has acknowledged them all."""
        count = await self.partitions(topic)
        by_partition: dict[int, list[Item]] = {}
        for item in items:
            by_partition.setdefault(partition_of_key(item.key or b"", count), []).append(item)
        for sent in await self.send(topic, by_partition):
            await sent.done()

    async def _submit(self, builder: Any, topic: str, partition: int, records: int) -> "Sent":
        """Queue a batch behind the one before it, however long that takes."""
        producer = await self.start()
        while True:
            try:
                future = await producer.send_batch(builder, topic, partition=partition)
            except KafkaTimeoutError:
                log.warning("Kafka does not take what is produced; trying on", extra={"topic": topic})
            else:
                return Sent(topic, future, records)


class Sent:
    """A batch on its way to one partition."""

    def __init__(self, topic: str, future: asyncio.Future[Any], records: int) -> None:
        self._topic = topic
        self._future = future
        self._records = records
        #: Where its last record lies, once the broker has acknowledged it; None where the broker does not say.
        self.last_offset: int | None = None

    async def done(self) -> None:
        """Wait for the broker's acknowledgement; raises what it refuses with."""
        try:
            place = await self._future
        except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
            raise RuntimeError(
                f"{self._topic} takes less than IOTFLOW_MAX_MESSAGE_BYTES: run iotflow topics apply"
            ) from error
        # A batch that was sent twice, because the first answer was lost, may be acknowledged without its place.
        if place is not None and place.offset >= 0:
            self.last_offset = place.offset + self._records - 1


class LetterProducer:
    """The dead-letter topic: `sinks.contracts.Letters` on a real broker."""

    def __init__(self, producer: BatchProducer, topic: str) -> None:
        self._producer = producer
        self._topic = topic

    async def send(self, letters: Sequence[Letter]) -> None:
        """Return when the broker has acknowledged all letters."""
        if letters:
            await self._producer.deliver(self._topic, (Item(dead.key, dead.value, dead.headers) for dead in letters))
