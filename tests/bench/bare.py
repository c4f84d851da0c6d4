"""What is possible without a framework: loops over the drivers alone, doing the same work with the same guarantees."""

import asyncio
import gc
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from app.produce import BATCH_BYTES
from app.transport import Consumer, fold
from schemas import wire
from schemas.decoding import Item
from schemas.partition import partition_of
from schemas.reading import Reading
from sinks import registry
from tests.bench.spec import BATCH, COMMIT_EVERY_S, Spec, given
from tests.bench.stores import bare_of

_FETCH_BYTES = 1024 * 1024
_POLL_MS = 200


async def fetches(spec: Spec) -> Any:
    """What `getmany` gives, committed once a second after it was handled."""
    consumer = AIOKafkaConsumer(
        spec.topic,
        bootstrap_servers=spec.servers,
        group_id=spec.group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=_FETCH_BYTES,
    )
    await consumer.start()
    while not consumer.assignment():  # noqa: ASYNC110  aiokafka tells nobody
        await asyncio.sleep(0.05)
    spec.ready.touch()
    due, handled = time.monotonic() + COMMIT_EVERY_S, False
    while True:
        fetched = await consumer.getmany(timeout_ms=_POLL_MS)
        if fetched:
            yield fetched
            handled = True
        if handled and time.monotonic() >= due:
            await consumer.commit()
            due, handled = time.monotonic() + COMMIT_EVERY_S, False


async def consume(spec: Spec) -> None:
    """Decode each record, and no more."""
    decode = msgspec.json.decode
    async for fetched in fetches(spec):
        for records in fetched.values():
            for record in records:
                decode(record.value)


async def send(producer: Any, topic: str, partitions: Mapping[int, Iterable[Item]]) -> list[asyncio.Future[Any]]:
    """Send records in batches; the futures of the broker's acknowledgements."""
    now_ms = time.time_ns() // 1_000_000
    sent = []
    for partition, items in partitions.items():
        batch = producer.create_batch()
        for key, value, headers in items:
            while batch.append(timestamp=now_ms, key=key, value=value, headers=headers) is None:
                sent.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
        if batch.record_count():
            sent.append(await producer.send_batch(batch, topic, partition=partition))
    return sent


async def decode(spec: Spec) -> None:
    """The decode stage: the same decoder, an idempotent producer, dead letters; commits once all is acknowledged."""
    decoder = spec.decoder()
    producer = AIOKafkaProducer(
        bootstrap_servers=spec.servers, enable_idempotence=True, acks="all", max_batch_size=BATCH_BYTES
    )
    await producer.start()
    async for fetched in fetches(spec):
        sent: list[asyncio.Future[Any]] = []
        for records in fetched.values():
            decoded = decoder(records, time.time_ns() // 1_000_000)
            sent += await send(producer, spec.decoded, decoded.items)
            letters: dict[int, list[Item]] = {}
            for dead in decoded.letters:
                item = Item(dead.key, dead.value, dead.headers)
                letters.setdefault(partition_of(dead.id, spec.partitions), []).append(item)
            sent += await send(producer, spec.dead, letters)
        await asyncio.gather(*sent)


async def store(spec: Spec, way: str) -> None:
    """Batch after batch through a driver; encoded by the sink, in the loop or ahead of it, or by the driver."""
    settings = spec.settings().sinks[spec.store]
    sink = registry.load()[spec.store].Sink(settings)
    kind = bare_of(spec.store)
    assert kind is not None
    client = kind(settings)
    batches = (await readings(spec))[spec.share :: spec.of]
    sizes = [(sink.prepare(batch).rows, len(batch)) for batch in batches]
    made = [sink.prepare(batch).payload for batch in batches] if way == "ahead" else []
    await client.open()
    steps = (client.send(sink.prepare(batch).payload) for batch in batches)
    if way == "ahead":
        steps = (client.send(payload) for payload in made)
        batches = []
    elif way == "public":
        steps = (client.insert(batch) for batch in batches)
    gc.collect()
    gc.freeze()  # what was loaded beforehand must not be walked through again and again
    spec.ready.touch()
    await asyncio.sleep(1.0)
    while spec.of > 1 and not spec.go.exists():  # noqa: ASYNC110  another process makes it
        await asyncio.sleep(0.005)
    for step, (rows, size) in zip(steps, sizes, strict=True):
        await step
        spec.stored(rows, size)
    await asyncio.Event().wait()  # so that what it cost can be read


async def readings(spec: Spec) -> Sequence[list[Reading]]:
    """The topic's readings in batches as our worker meets them: chunks of the partitions in turn."""
    consumer = AIOKafkaConsumer(bootstrap_servers=spec.servers, enable_auto_commit=False)
    await consumer.start()
    partitions = [TopicPartition(spec.topic, number) for number in range(spec.partitions)]
    consumer.assign(partitions)
    await consumer.seek_to_beginning()
    found: dict[TopicPartition, list[Any]] = {tp: [] for tp in partitions}
    while sum(map(len, found.values())) < spec.count:
        for tp, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
            found[tp] += records
    await consumer.stop()
    lanes = [fold(records, Consumer.chunk_records, Consumer.chunk_bytes) for records in found.values()]
    flat = [wire.read(record.value) for chunk in _in_turn(lanes) for record in chunk]
    return [flat[start : start + BATCH] for start in range(0, len(flat), BATCH)]


def _in_turn(lanes: Sequence[Iterator[Any]]) -> Iterator[Any]:
    left = list(lanes)
    while left:
        for lane in tuple(left):
            chunk = next(lane, None)
            if chunk is None:
                left.remove(lane)
            else:
                yield chunk


async def main() -> None:
    """Run what this process was told to."""
    spec = given()
    match spec.kind:
        case "bare-consume":
            await consume(spec)
        case "bare-decode":
            await decode(spec)
        case "bare-store":
            await store(spec, "in the loop")
        case "bare-store-ahead":
            await store(spec, "ahead")
        case "bare-store-public":
            await store(spec, "public")
        case other:
            raise ValueError(other)


if __name__ == "__main__":
    uvloop.run(main())
