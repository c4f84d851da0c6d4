"""Did everything arrive, once, and as it was sent? Compares a ledger with the stores and the dead letters."""

import asyncio
import hashlib
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from msgspec import Struct

from app import ledger
from app.kafka import client_args, explain
from app.lenient import read_leniently
from app.settings import Settings
from schemas.reading import RESERVED, Reading, RejectedError
from sinks import registry
from sinks.base import Selection

Place = tuple[str, str, str, Any]
#: The first and the last offset of what a ledger has, by topic and partition.
Sent = dict[tuple[str, int], tuple[int, int]]


class Finding(Struct):
    """What one place holds of a ledger: how many it should, lacks, holds changed, and holds besides.

    `repeated` counts dead letters that were sent again: the same letter, by its id. `together` counts readings that a
    store cannot tell from another, because it counts time less finely.
    """

    expected: int = 0
    missing: int = 0
    different: int = 0
    unexpected: int = 0
    repeated: int = 0
    together: int = 0
    examples: list[str] = []

    @property
    def ok(self) -> bool:
        """Whether everything is there exactly once, by content, and nothing else."""
        return self.missing == self.different == self.unexpected == 0


class Report(Struct):
    """The whole comparison; `unreachable` has, of each place that could not be looked into, what to do."""

    stores: dict[str, Finding]
    letters: Finding
    unreachable: dict[str, str] = {}

    @property
    def ok(self) -> bool:
        """Whether nothing was lost, doubled, changed or wrongly refused, and everything was looked into."""
        return not self.unreachable and self.letters.ok and all(store.ok for store in self.stores.values())


def _equal(one: Reading, other: Reading) -> bool:
    """Equal, and a boolean where the other has one: Python takes True for 1."""
    return one == other and all(
        (each.__class__ is bool) is (other.values[name].__class__ is bool) for name, each in one.values.items()
    )


def _place(reading: Reading) -> Place:
    return (reading.measurement, reading.device_id, reading.channel, reading.time)


async def store(sink: Any, path: Path, topic: str | None = None) -> Finding:
    """Compare an open sink with a ledger, or with its part of a raw topic: within its span of time they are equal.

    A reading that the store refuses as it is now, as for a column of another type, is expected as it was sent.
    """
    kept: list[Reading] = []
    refused: dict[Place, str] = {}
    for reading in ledger.readings(path, topic):
        try:
            expected = sink.kept(reading)
        except RejectedError as error:
            expected = reading
            refused[_place(reading)] = f"{error.rejected.reason}: {error.rejected.error}"
        if expected is not None:
            kept.append(expected)
    wanted: dict[Place, Reading] = {_place(reading): reading for reading in kept}
    found = Finding(expected=len(wanted), together=len(kept) - len(wanted))
    if not wanted:
        return found
    devices = {reading.device_id for reading in wanted.values()}
    start = min(reading.time for reading in wanted.values())
    end = max(reading.time for reading in wanted.values()) + timedelta(microseconds=1)
    begin = ledger.begin(path, topic) or end
    async for reading in sink.scan(Selection(start=start, end=end)):
        expected = wanted.pop(_place(reading), None)
        if expected is None:
            # Somebody else's device is not this ledger's business, and neither is what iotflow finds; a second row of
            # one of its own is.
            if reading.device_id in devices and reading.time >= begin and reading.measurement not in RESERVED:
                found.unexpected += 1
                _example(found.examples, f"unexpected: {reading}")
        elif not _equal(expected, reading):
            found.different += 1
            _example(found.examples, f"sent {expected}, stored {reading}")
    found.missing = len(wanted)
    for place, reading in list(wanted.items())[:3]:
        why = f", which the store refuses as it is now ({refused[place]})" if place in refused else ""
        _example(found.examples, f"missing: {reading}{why}")
    return found


async def letters(
    settings: Settings, path: Path, topic: str | None = None, since: Mapping[int, int] | None = None
) -> Finding:
    """Compare the dead-letter topic, from offsets `since` on (all by default), with a ledger or its part of a topic."""
    rejects = list(ledger.rejects(path, topic))
    wanted = {f"decode:{bad.topic}/{bad.partition}/{bad.offset}/0": bad.sha256 for bad in rejects if bad.offset >= 0}
    # After an outage the broker may say that it has a record already, and not where: those are known by their bytes.
    placeless = [bad.sha256 for bad in rejects if bad.offset < 0]
    sent = _sent(path, topic)
    found = Finding(expected=len(rejects))
    seen: set[str] = set()
    for record in await tail(settings, settings.topics.dead_letters, since):
        identity = (record.key or b"").decode()
        digest = hashlib.sha256(record.value or b"").hexdigest()
        if identity in seen:
            found.repeated += 1
        elif identity not in wanted and digest in placeless:
            placeless.remove(digest)
        elif identity not in wanted and not _within(identity, sent):
            continue  # of somebody else's records
        elif identity not in wanted:
            found.unexpected += 1
            headers = {name: value for name, value in record.headers if name.startswith("iotflow-dlq-")}
            _example(found.examples, f"unexpected: {identity} {headers}")
        elif digest != wanted[identity]:
            found.different += 1
            _example(found.examples, f"other bytes: {identity}")
        seen.add(identity)
    lost = [*(identity for identity in wanted if identity not in seen), *placeless]
    found.missing = len(lost)
    for identity in lost[:3]:
        _example(found.examples, f"missing: {identity}")
    return found


def _sent(path: Path, topic: str | None) -> Sent:
    sent: Sent = {}
    for entry in ledger.read(path, topic):
        if entry.offset >= 0:
            low, high = sent.get((entry.topic, entry.partition), (entry.offset, entry.offset))
            sent[entry.topic, entry.partition] = (min(low, entry.offset), max(high, entry.offset))
    return sent


def _within(identity: str, sent: Sent) -> bool:
    """Whether a letter is about a raw record among those of a ledger: its id is STAGE:TOPIC/PARTITION/OFFSET/INDEX."""
    name, *numbers = identity.partition(":")[2].split("/")
    if len(numbers) < 2 or not all(number.isdecimal() for number in numbers[:2]):  # noqa: PLR2004
        return False
    low, high = sent.get((name, int(numbers[0])), (1, 0))
    return low <= int(numbers[1]) <= high


async def ends(settings: Settings, topic: str) -> dict[int, int]:
    """The end offset of each partition of a topic, now."""
    consumer = AIOKafkaConsumer(**client_args(settings))
    await consumer.start()
    try:
        partitions = [TopicPartition(topic, number) for number in await _partitions(consumer, topic)]
        return {tp.partition: offset for tp, offset in (await consumer.end_offsets(partitions)).items()}
    finally:
        await consumer.stop()


async def tail(
    settings: Settings, topic: str, since: Mapping[int, int] | None = None, *, silence: float | None = None
) -> list[Any]:
    """All records of a topic from offsets `since` on (the beginning by default) to its present end.

    Raises `TimeoutError` when nothing comes for `silence` seconds, if that is said.
    """
    consumer = AIOKafkaConsumer(**client_args(settings), auto_offset_reset="earliest", enable_auto_commit=False)
    clock = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(silence) as patience:
            await consumer.start()
            read_leniently(consumer._fetcher)  # noqa: SLF001  there is no public way
            partitions = [TopicPartition(topic, number) for number in await _partitions(consumer, topic)]
            consumer.assign(partitions)
            end = await consumer.end_offsets(partitions)
            for tp in partitions:
                consumer.seek(tp, (since or {}).get(tp.partition, 0))
            records: list[Any] = []
            while any([await consumer.position(tp) < end[tp] for tp in partitions]):
                for batch in (await consumer.getmany(timeout_ms=500)).values():
                    records += batch
                    if silence is not None:
                        patience.reschedule(clock() + silence)
            return records
    finally:
        await consumer.stop()


async def compare(
    settings: Settings, path: Path, topic: str | None = None, since: Mapping[int, int] | None = None
) -> Report:
    """Compare every store of `STORES` and the dead letters with a ledger, or with its part of a raw topic.

    What cannot be looked into hides nothing of the others: it is in `unreachable`.
    """
    stores: dict[str, Finding] = {}
    unreachable: dict[str, str] = {}
    for name in settings.stores:
        sink = registry.load()[name].Sink(settings.sinks[name], settings.types)
        try:
            await sink.open()
            stores[name] = await store(sink, path, topic)
        except Exception as error:  # noqa: BLE001  the sink says what it means
            unreachable[name] = getattr(sink.classify(error), "remedy", "") or f"{sink.place}: {error}"
        finally:
            await sink.close()
    found = Finding()
    try:
        found = await letters(settings, path, topic, since)
    except (KafkaError, OSError) as error:
        unreachable["dead letters"] = explain(error, settings)
    return Report(stores, found, unreachable)


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> list[int]:
    await consumer._client._wait_on_metadata(topic)  # noqa: SLF001  aiokafka has no public way to ask for one topic
    return sorted(consumer.partitions_for_topic(topic) or ())


def _example(examples: list[str], text: str) -> None:
    if len(examples) < 5:  # noqa: PLR2004  a few are enough to see what is wrong
        examples.append(text)
