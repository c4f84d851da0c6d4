"""The quarantine as it is worked with: whose readings are held back and why, and sending them on.

Nothing is ever taken from the topic. How far it was replayed is what a consumer group of its own, `PREFIX-quarantine`,
has committed: of each partition the offset below which all was sent. What was sent of some devices only stands in the
metadata of that same commit, as globs of device ids with the offset below which each was sent: so what is known of a
partition changes at once, whatever is chosen in which order, and a few bytes tell of any number of devices. Readings
are sent before that is said: whoever is interrupted in between sends some once more, and the stores are idempotent.
Kafka forgets what a group committed (`offsets.retention.minutes`, 7 days) as it forgets the records.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError
from aiokafka.structs import OffsetAndMetadata
from msgspec import Struct

from app import kafka, topics
from app.deadletters import SILENCE_S, Progress
from app.lenient import read_leniently
from app.produce import BatchProducer
from app.settings import Settings
from schemas import wire
from schemas.budget import HEADER_QUARANTINE
from schemas.decoding import Item
from schemas.partition import partition_of_key

#: The group is PREFIX-quarantine.
GROUP: Final = "quarantine"
#: Every device.
EVERY: Final = "*"
#: Records that are sent and acknowledged together; what an interruption repeats.
_AT_ONCE: Final = 1000
_POLL_MS: Final = 500
#: Brokers keep 4,096 bytes (`offset.metadata.max.bytes`).
_METADATA_BYTES: Final = 4000
_REPLAY: Final = (wire.HEADER_REPLAY, b"1")


class Position(Struct, frozen=True):
    """How far a partition was replayed: all below `offset`, and of some devices, by glob, what is below another."""

    offset: int
    beyond: Mapping[str, int] = {}

    def sent(self, device: str, offset: int) -> bool:
        """Whether a device's record was sent."""
        return offset < self.offset or any(
            offset < end and fnmatchcase(device, glob) for glob, end in self.beyond.items()
        )

    def after(self, glob: str, end: int, left: int | None) -> "Position":
        """When all below `end` was sent that a glob chooses; `left` is the first that was not, by no glob."""
        offset = end if left is None else left
        beyond = {**self.beyond, glob: max(end, self.beyond.get(glob, 0))}
        return Position(offset, {one: up_to for one, up_to in beyond.items() if up_to > offset})

    @property
    def metadata(self) -> str:
        """What a commit says beside the offset."""
        return msgspec.json.encode(self.beyond).decode() if self.beyond else ""


def position_of(offset: int, metadata: str, begin: int, end: int) -> Position:
    """The position that a commit says (-1: none), of a partition that has the records from `begin` to below `end`.

    A commit that is ahead of the end is about a topic that was made anew.
    """
    try:
        beyond = msgspec.json.decode(metadata, type=dict[str, int]) if metadata else {}
    except (msgspec.DecodeError, RecursionError):  # somebody else's
        beyond = {}
    if max(offset, *beyond.values(), -1) > end:
        return Position(begin)
    offset = max(offset, begin)
    return Position(offset, {glob: up_to for glob, up_to in beyond.items() if up_to > offset})


class Held(Struct):
    """What the quarantine has of one device; `waiting` was not sent on yet. Times are those of receipt, epoch ms."""

    device: str
    readings: int = 0
    waiting: int = 0
    reasons: Counter[str] = msgspec.field(default_factory=Counter)
    first_ms: int = 0
    last_ms: int = 0


class Done(Struct):
    """What was sent on, by device, or would be; how many others wait still; whether it was stopped before the end."""

    devices: Counter[str] = msgspec.field(default_factory=Counter)
    left: int = 0
    stopped: bool = False


class _Topic:
    """The topic, its partitions and how far each was replayed, as they were when this was opened."""

    def __init__(
        self, consumer: Any, begin: Mapping[Any, int], end: Mapping[Any, int], at: dict[Any, Position]
    ) -> None:
        self.consumer = consumer
        self.begin = begin
        self.end = end
        self.at = at

    async def batches(
        self, start: Mapping[Any, int], on_read: Progress | None = None
    ) -> AsyncIterator[tuple[dict[Any, list[Any]], dict[Any, int]]]:
        """The records from some offsets on, each partition's in order, and what the next offsets are after them."""
        consumer, end = self.consumer, self.end
        for tp, offset in start.items():
            consumer.seek(tp, offset)
        total = sum(end[tp] - offset for tp, offset in start.items())
        left = {tp: offset for tp, offset in start.items() if offset < end[tp]}
        heard = time.monotonic()
        while left:
            async with asyncio.timeout(SILENCE_S):
                found = await consumer.getmany(*left, timeout_ms=_POLL_MS, max_records=_AT_ONCE)
                after = {tp: min(await consumer.position(tp), end[tp]) for tp in left}
            if after != left:
                yield {tp: [one for one in some if one.offset < end[tp]] for tp, some in found.items()}, after
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_S:
                raise TimeoutError
            left = {tp: offset for tp, offset in after.items() if offset < end[tp]}
            if on_read is not None:
                on_read(total - sum(end[tp] - offset for tp, offset in left.items()), total)


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[_Topic]:
    topic = settings.topics.quarantine
    async with asyncio.timeout(SILENCE_S):
        if topic in await topics.missing(settings):
            raise topics.TopicsError(f"there is no topic {topic}: run iotflow topics apply")
    consumer = AIOKafkaConsumer(
        **kafka.client_args(settings),
        group_id=settings.app_id(GROUP),
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    try:
        async with asyncio.timeout(SILENCE_S):
            await consumer.start()
            read_leniently(consumer._fetcher)  # noqa: SLF001  there is no public way
            await consumer._client._wait_on_metadata(topic)  # noqa: SLF001  aiokafka cannot be asked for one topic
            numbers = sorted(consumer.partitions_for_topic(topic) or ())
            partitions = [TopicPartition(topic, number) for number in numbers]
            consumer.assign(partitions)
            # Its public way leaves out what a commit says beside the offset.
            committed = await consumer._coordinator.fetch_committed_offsets(partitions)  # noqa: SLF001
            begin = await consumer.beginning_offsets(partitions)
            end = await consumer.end_offsets(partitions)
        none = OffsetAndMetadata(-1, "")
        at: dict[Any, Position] = {}
        for tp in partitions:
            said = committed.get(tp, none)
            at[tp] = position_of(said.offset, said.metadata, begin[tp], end[tp])
        yield _Topic(consumer, begin, end, at)
    finally:
        await consumer.stop()


def device_of(record: Any) -> str:
    """The device whose reading a record is."""
    return (record.key or b"").decode("utf-8", "backslashreplace")


def _reason(record: Any) -> str:
    said = next((value for name, value in record.headers if name == HEADER_QUARANTINE), None)
    return (said or b"").decode("utf-8", "backslashreplace")


async def survey(settings: Settings, on_read: Progress | None = None) -> list[Held]:
    """What the quarantine has, by device, the most readings first.

    Raises what aiokafka raises, `TimeoutError`, and `TopicsError` where the topic is missing.
    """
    found: dict[str, Held] = {}
    async with _opened(settings) as topic:
        async for batches, _ in topic.batches(topic.begin, on_read):
            for tp, records in batches.items():
                for record in records:
                    device = device_of(record)
                    held = found.get(device) or found.setdefault(device, Held(device))
                    at_ms = wire.ingest_ms(record.headers, record.timestamp)
                    held.first_ms = min(held.first_ms, at_ms) if held.readings else at_ms
                    held.last_ms = max(held.last_ms, at_ms)
                    held.readings += 1
                    held.waiting += not topic.at[tp].sent(device, record.offset)
                    held.reasons[_reason(record)] += 1
    return sorted(found.values(), key=lambda held: (-held.readings, held.device))


async def replay(
    settings: Settings,
    glob: str = EVERY,
    *,
    dry_run: bool = False,
    stop: asyncio.Event | None = None,
    on_sent: Progress | None = None,
) -> Done:
    """Send what waits of the devices that a glob chooses on to the decoded topic, each device's readings in order.

    It ends with what there was when it began. When `stop` is set, what has been begun is finished, and no more. Raises
    as `survey` does, and `TopicsError` when Kafka cannot keep in mind that this glob was sent too.
    """
    done = Done()
    producer = BatchProducer(kafka.client_args(settings), max_message_bytes=settings.topics.max_message_bytes)
    try:
        async with _opened(settings) as topic:
            _check(topic, glob)
            #: The first record of each partition that no glob chose, now or before.
            left: dict[Any, int] = {}
            start = {tp: position.offset for tp, position in topic.at.items()}
            async for batches, after in topic.batches(start, on_sent):
                if stop is not None and stop.is_set():
                    done.stopped = True
                    break
                chosen = _chosen(topic, glob, batches, left, done)
                if not dry_run:
                    async with asyncio.timeout(SILENCE_S):
                        await _send(settings, producer, chosen)
                        await _commit(topic, glob, left, after)
                done.devices.update(device_of(record) for record in chosen)
    finally:
        await producer.stop()
    return done


def _check(topic: _Topic, glob: str) -> None:
    """Refuse a glob of which a commit could not tell, before anything is sent."""
    for tp, at in topic.at.items():
        if len(at.after(glob, topic.end[tp], at.offset).metadata.encode()) > _METADATA_BYTES:
            raise topics.TopicsError(
                f"Kafka cannot keep in mind that {glob!r} was sent too, after so many other choices: replay {tp.topic} "
                "without --device first"
            )


def _chosen(
    topic: _Topic, glob: str, batches: Mapping[Any, Sequence[Any]], left: dict[Any, int], done: Done
) -> list[Any]:
    """The records to send; takes note of those that are left."""
    chosen: list[Any] = []
    for tp, records in batches.items():
        at = topic.at[tp]
        for record in records:
            device = device_of(record)
            if at.sent(device, record.offset):
                continue
            if fnmatchcase(device, glob):
                chosen.append(record)
            else:
                left.setdefault(tp, record.offset)
                done.left += 1
    return chosen


async def _send(settings: Settings, producer: BatchProducer, records: Sequence[Any]) -> None:
    """Return when the broker has acknowledged them all."""
    if not records:
        return
    name = settings.topics.decode_output
    count = await producer.partitions(name)
    partitions: dict[int, list[Item]] = {}
    for record in records:
        item = Item(record.key, record.value, [_REPLAY, *record.headers])
        partitions.setdefault(partition_of_key(record.key or b"", count), []).append(item)
    try:
        for sent in await producer.send(name, partitions):
            await sent.done()
    except RuntimeError as error:
        if isinstance(error.__cause__, MessageSizeTooLargeError | RecordListTooLargeError):
            raise topics.TopicsError(str(error)) from error
        raise


async def _commit(topic: _Topic, glob: str, left: Mapping[Any, int], after: Mapping[Any, int]) -> None:
    positions = {tp: topic.at[tp].after(glob, end, left.get(tp)) for tp, end in after.items()}
    await topic.consumer.commit({tp: (position.offset, position.metadata) for tp, position in positions.items()})
