"""Records to measure with, and the servers' side of a measurement: sending, and telling when all is committed."""

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
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


def on_schedule(
    count: int, devices: int, every_s: float, *, until: datetime | None = None
) -> tuple[list[Item], list[int]]:
    """Decoded readings of three metrics that a profile of rules watches and is content with, until about now.

    Each device has one in `every_s` seconds, and times are in order; with them the times of receipt (ms), the same.
    """
    random = Random(1)
    levels = [20.0 + random.random() for _ in range(devices)]
    step = timedelta(seconds=every_s / devices)
    begin = (until or datetime.now(UTC)) - step * count
    items, times_ms = [], []
    for number in range(count):
        device = number % devices
        levels[device] += random.gauss(0.0, 0.05)
        at = begin + step * number
        values: dict[str, Any] = {
            "temperature": round(levels[device], 2),
            "humidity": round(50.0 + random.gauss(0.0, 1.0), 2),
            "smoke_density": round(0.01 + random.random() / 100, 4),
        }
        name = f"dev-{device}"
        times_ms.append(int(at.timestamp() * 1000))
        value = wire.write(Reading("telemetry", name, at, values, dialect="telemetry"))
        items.append(Item(name.encode(), value, wire.headers(b"raw/0/%d/0" % number, times_ms[-1])))
    return items, times_ms


def device_of(item: Item) -> str:
    """The device that a record is of, where its key says so."""
    return (item.key or b"").decode()


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
    """Records in finished batches inside the block, so that sending them costs this process next to nothing.

    `times_ms` are the records' times, now where they are not said; `device` decides the partition of a record.
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        items: Sequence[Item],
        times_ms: Sequence[int] = (),
        device: Callable[[Item], str] = device_of,
    ) -> None:
        self.topic = topic
        self.count = len(items)
        self._items = items
        self._times_ms = times_ms or [time.time_ns() // 1_000_000] * len(items)
        self._device = device
        self._producer = AIOKafkaProducer(
            bootstrap_servers=servers, enable_idempotence=True, acks="all", max_batch_size=BATCH_BYTES
        )
        self._lanes: list[list[Any]] = []

    async def __aenter__(self) -> "Load":
        await self._producer.start()
        try:
            count = len(await self._producer.partitions_for(self.topic))
            parts: list[list[tuple[Item, int]]] = [[] for _ in range(count)]
            for item, at_ms in zip(self._items, self._times_ms, strict=True):
                parts[partition_of(self._device(item), count)].append((item, at_ms))
            self._lanes = [self._batches(part) for part in parts]
        except BaseException:
            await self._producer.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    def _batches(self, items: Iterable[tuple[Item, int]]) -> list[Any]:
        batches = [self._producer.create_batch()]
        for (key, value, headers), at_ms in items:
            while batches[-1].append(timestamp=at_ms, key=key, value=value, headers=headers) is None:
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
