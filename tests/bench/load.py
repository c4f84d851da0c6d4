"""Records to measure with, and the servers' side of a measurement: sending, and telling when all is committed."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from app import lag
from app.fleet import Fleet
from app.produce import BATCH_BYTES
from schemas import wire
from schemas.decoding import Item
from schemas.partition import partition_of
from schemas.reading import Reading
from tests.bench.spec import Raw, Spec

DEVICES = 1000
PARTITIONS = 4
#: Values of a reading.
METRICS = 3
_UNIQUE = 50_000
_POLL_S = 0.2


def raw(count: int, bad: float) -> tuple[list[Item], int]:
    """Raw telemetry of about 130 bytes, and how many of the records are bad; after a while they repeat."""
    fleet = Fleet(DEVICES, "telemetry", 1, bad_share=bad)
    samples = [fleet.sample(datetime.now(UTC)) for _ in range(min(count, _UNIQUE))]
    items = [Item(sample.device_id.encode(), sample.payload, []) for sample in samples]
    wrong = [not isinstance(sample.expected, Reading) for sample in samples]
    chosen = [number % len(items) for number in range(count)]
    return [items[number] for number in chosen], sum(wrong[number] for number in chosen)


def decoded(count: int) -> list[Item]:
    """Decoded readings of three metrics each, all different, every device in turn."""
    fleet = Fleet(DEVICES, "telemetry", 1, bad_share=0.0)
    begin = datetime.now(UTC) - timedelta(hours=1)
    ingest_ms = time.time_ns() // 1_000_000
    items = []
    for number in range(count):
        sample = fleet.sample(begin + timedelta(milliseconds=number))
        reading = sample.expected
        assert isinstance(reading, Reading)
        headers = wire.headers(b"raw/0/%d/0" % number, ingest_ms)
        items.append(Item(sample.device_id.encode(), wire.write(reading), headers))
    return items


def decoder_us(spec: Spec) -> float:
    """CPU microseconds that the decoder alone takes for a record, in chunks of 1,000."""
    decode, now_ms = spec.decoder(), time.time_ns() // 1_000_000
    items, _ = raw(30_000, 0.0)
    records = [Raw(spec.topic, 0, at, now_ms, item.key, item.value, []) for at, item in enumerate(items)]
    begun = time.process_time()
    for start in range(0, len(records), 1000):
        decode(records[start : start + 1000], now_ms)
    return (time.process_time() - begun) / len(records) * 1e6


class Load:
    """Records in finished batches inside the block, so that sending them costs this process next to nothing."""

    def __init__(self, servers: str, topic: str, items: Sequence[Item]) -> None:
        self.topic = topic
        self.count = len(items)
        self._items = items
        self._producer = AIOKafkaProducer(
            bootstrap_servers=servers, enable_idempotence=True, acks="all", max_batch_size=BATCH_BYTES
        )
        self._lanes: list[list[Any]] = []

    async def __aenter__(self) -> "Load":
        await self._producer.start()
        try:
            count = len(await self._producer.partitions_for(self.topic))
            parts: list[list[Item]] = [[] for _ in range(count)]
            for item in self._items:
                parts[partition_of((item.key or b"").decode(), count)].append(item)
            self._lanes = [self._batches(part) for part in parts]
        except BaseException:
            await self._producer.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    def _batches(self, items: Iterable[Item]) -> list[Any]:
        now_ms = time.time_ns() // 1_000_000
        batches = [self._producer.create_batch()]
        for key, value, headers in items:
            while batches[-1].append(timestamp=now_ms, key=key, value=value, headers=headers) is None:
                batches.append(self._producer.create_batch())
        return [batch for batch in batches if batch.record_count()]

    async def send(self) -> None:
        """Send everything and wait for the broker's acknowledgement."""
        await asyncio.gather(*(self._send(partition, lane) for partition, lane in enumerate(self._lanes)))

    async def _send(self, partition: int, batches: Sequence[Any]) -> None:
        sent = [await self._producer.send_batch(batch, self.topic, partition=partition) for batch in batches]
        await asyncio.gather(*sent)


async def until_committed(servers: str, group: str, topic: str, count: int) -> None:
    """Wait until a group has committed all `count` records of a topic; bounded by the caller."""
    while True:
        try:
            async with lag.connect({"bootstrap_servers": [servers]}, group) as gauge:
                partitions = await gauge.partitions([topic])
                while True:
                    found = await gauge.read(partitions)
                    if sum(each.end for each in found.values()) >= count and not any(f.lag for f in found.values()):
                        return
                    await asyncio.sleep(_POLL_S)
        except KafkaError:  # the group is not known yet
            await asyncio.sleep(_POLL_S)


async def ends(servers: str, topic: str) -> int:
    """How many records a topic holds."""
    async with lag.connect({"bootstrap_servers": [servers]}, "iotflow-bench") as gauge:
        found = await gauge.read(await gauge.partitions([topic]))
    return sum(each.end for each in found.values())
