"""The dead-letter topic as it is worked with: letters read and joined with their states, sent again, dropped.

Nothing is ever taken from the topic; what became of a letter is a record of the compacted topic of states, under the
letter's id. A letter is sent again before that is said: whoever is interrupted in between sends it once more, and the
stores are idempotent.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError
from msgspec import Struct

from app import __version__, kafka, registry, topics
from app.lenient import read_leniently
from app.produce import BatchProducer
from app.settings import Settings
from app.stages import schema_source
from schemas.datapoints import encode
from schemas.deadletter import Replayed
from schemas.decoding import Decoder, Item
from schemas.letterstate import (
    DECODE,
    Again,
    Entry,
    Index,
    Mark,
    Plan,
    Skip,
    decode_mark,
    dropped_mark,
    encode_mark,
    entry_of,
    headers_again,
    original,
    partition_again,
    replayed_marks,
    summed,
)
from sinks.contracts import Clock, SystemClock

#: A broker that says nothing for longer than this is away; all together may take longer.
SILENCE_S: Final = 60.0
#: Records that are sent, acknowledged and marked together; what an interruption repeats.
_AT_ONCE: Final = 1000
_AT_ONCE_BYTES: Final = 8 * 2**20
_POLL_MS: Final = 500
#: What is not wanted between two letters is read over up to this many records; beyond, it is jumped.
_JUMP: Final = 2000
#: Room for the framing of a record, and of the batch that it is alone in.
_FRAME_BYTES: Final = 128
#: A schema registry is waited for so long, in seconds.
_SCHEMAS_S: Final = 10.0

#: Told how many of how many are done.
Progress = Callable[[int, int], None]


def _tell(whom: Progress | None, done: int, of: int) -> None:
    if whom is not None:
        whom(done, of)


def readers(settings: Settings) -> dict[str, frozenset[str]]:
    """The topics that records are sent to again for each stage of this configuration.

    Not all that it reads: of a compacted topic an older state would become the latest of its key.
    """
    topics = settings.topics
    stored = frozenset({topics.decoded, topics.aggregates, topics.quality})
    return {DECODE: frozenset(topics.raw), **{settings.sinks[store].STAGE: stored for store in settings.stores}}


# -- reading -----------------------------------------------------------------------------------------------------------


async def index(settings: Settings, on_read: Progress | None = None) -> Index:
    """All letters with what became of them; of a letter about half a kilobyte is kept in memory.

    Raises what aiokafka raises, `TimeoutError`, and `TopicsError` where a topic is missing.
    """
    found = Index()
    await _check(settings)
    await _read(settings, settings.topics.dead_letters, found.add, on_read)
    # Behind the letters, so that none is missing that a mark is about.
    await _read(settings, settings.topics.dead_letter_state, lambda record: found.mark(record.key, record.value))
    return found


async def _check(settings: Settings) -> None:
    async with asyncio.timeout(SILENCE_S):
        missing = await topics.missing(settings)
    for name in (settings.topics.dead_letters, settings.topics.dead_letter_state):
        if name in missing:
            raise topics.TopicsError(f"there is no topic {name}: run iotflow topics apply")


@asynccontextmanager
async def _consumer(settings: Settings, topic: str) -> AsyncIterator[tuple[Any, list[Any]]]:
    """A consumer without a group on all partitions of a topic."""
    consumer = AIOKafkaConsumer(
        **kafka.client_args(settings), auto_offset_reset="earliest", enable_auto_commit=False, group_id=None
    )
    try:
        async with asyncio.timeout(SILENCE_S):
            await consumer.start()
            read_leniently(consumer._fetcher)  # noqa: SLF001  there is no public way
            await consumer._client._wait_on_metadata(topic)  # noqa: SLF001  aiokafka cannot be asked for one topic
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions)
        yield consumer, partitions
    finally:
        await consumer.stop()


async def _read(settings: Settings, topic: str, take: Callable[[Any], object], on_read: Progress | None = None) -> None:
    """Hand over all records of a topic up to its present end, each partition's in order."""
    clock = asyncio.get_running_loop().time
    async with _consumer(settings, topic) as (consumer, partitions), asyncio.timeout(SILENCE_S) as patience:
        start = await consumer.beginning_offsets(partitions)
        end = await consumer.end_offsets(partitions)
        for tp in partitions:
            consumer.seek(tp, start[tp])
        total = sum(end[tp] - start[tp] for tp in partitions)
        left = {tp: start[tp] for tp in partitions if start[tp] < end[tp]}
        while left:
            for records in (await consumer.getmany(*left, timeout_ms=_POLL_MS)).values():
                for record in records:
                    take(record)
                patience.reschedule(clock() + SILENCE_S)
            positions = {tp: await consumer.position(tp) for tp in left}
            left = {tp: position for tp, position in positions.items() if position < end[tp]}
            _tell(on_read, total - sum(end[tp] - position for tp, position in left.items()), total)


class _Letters:
    """The records of letters, found again by where they stand."""

    def __init__(self, consumer: Any, topic: str) -> None:
        self._consumer = consumer
        self._topic = topic
        #: The next offset of each partition that was read.
        self._next: dict[Any, int] = {}

    async def get(self, entries: Sequence[Entry]) -> dict[tuple[int, int], Any]:
        """The records of letters by partition and offset; those that the topic has forgotten are absent."""
        wanted: dict[Any, set[int]] = {}
        for entry in entries:
            wanted.setdefault(TopicPartition(self._topic, entry.partition), set()).add(entry.offset)
        found: dict[tuple[int, int], Any] = {}
        for tp, offsets in wanted.items():
            async for record in self._some(tp, offsets):
                found[tp.partition, record.offset] = record
        return found

    async def _some(self, tp: Any, offsets: set[int]) -> AsyncIterator[Any]:
        """The records of one partition, at a time no more than are wanted: what follows is what is wanted next."""
        heard = time.monotonic()
        left = offsets
        while left:
            first = min(left)
            if not (position := self._next.get(tp, -1)) <= first <= position + _JUMP:
                self._consumer.seek(tp, first)
            async with asyncio.timeout(SILENCE_S):
                batches = await self._consumer.getmany(tp, timeout_ms=_POLL_MS, max_records=len(left))
                position = self._next[tp] = await self._consumer.position(tp)
            for record in batches.get(tp, ()):
                heard = time.monotonic()
                if record.offset in left:
                    yield record
            if time.monotonic() - heard > SILENCE_S:
                raise TimeoutError
            left = {offset for offset in left if offset >= position}


@asynccontextmanager
async def _letters(settings: Settings) -> AsyncIterator[_Letters]:
    topic = settings.topics.dead_letters
    async with _consumer(settings, topic) as (consumer, _):
        yield _Letters(consumer, topic)


async def errors(settings: Settings, entries: Sequence[Entry]) -> AsyncIterator[tuple[Entry, str]]:
    """Letters with the sentences that say why they were refused, in the order given; '' for one that is gone."""
    async with _letters(settings) as letters:
        for start in range(0, len(entries), _AT_ONCE):
            some = entries[start : start + _AT_ONCE]
            found = await letters.get(some)
            for entry in some:
                record = found.get((entry.partition, entry.offset))
                yield entry, "" if record is None else error_of(record)


def error_of(record: Any) -> str:
    """What a letter's record says of why it was refused."""
    said = dict(record.headers).get("iotflow-dlq-error") or b""
    return str(said.decode("utf-8", "backslashreplace"))


# -- one letter --------------------------------------------------------------------------------------------------------


class Try(Struct, frozen=True):
    """One time that a letter was written."""

    attempt: int
    failed_ms: int
    reason: str
    error: str
    version: str


class Shown(Struct, frozen=True):
    """All that is known of one letter; `held` is what it holds, cut as the letter is."""

    entry: Entry
    tries: Sequence[Try]
    #: As far as the compacted topic still has them, the last one counts.
    marks: Sequence[Mark]
    held: Replayed


async def show(settings: Settings, id_: str) -> Shown | None:
    """One letter by its id; None where there is none. Raises as `index` does."""
    await _check(settings)
    found = Index()
    last: dict[str, Any] = {}
    tries: dict[str, list[Try]] = {}
    marks: list[Mark] = []

    def letter(record: Any) -> None:
        if not _names(record.key, id_) or (entry := found.add(record)) is None:
            return
        own = entry_of(record)
        version = (dict(record.headers).get("iotflow-dlq-version") or b"").decode("utf-8", "backslashreplace")
        tries.setdefault(entry.id, []).append(Try(own.attempt, own.failed_ms, own.reason, error_of(record), version))
        if (entry.partition, entry.offset) == (record.partition, record.offset):
            last[entry.id] = record

    def mark(record: Any) -> None:
        if _names(record.key, id_):
            entry = found.mark(record.key, record.value)
            if entry is not None and entry.id == id_:
                marks.append(decode_mark(record.value))

    await _read(settings, settings.topics.dead_letters, letter)
    await _read(settings, settings.topics.dead_letter_state, mark)
    shown = found.get(id_)
    return None if shown is None else Shown(shown, tries[id_], marks, original(last[id_]))


def _names(key: bytes | None, id_: str) -> bool:
    """Whether a record may be about a letter: ids that say a sum have it at their end."""
    said = (key or b"").decode("utf-8", "backslashreplace").partition("~")[0]
    return bool(said) and said == id_.partition("~")[0]


class Verdict(Struct, frozen=True):
    """What decode makes of a record now: readings of wire version 1, and refusals as (reason, error)."""

    readings: Sequence[bytes]
    refusals: Sequence[tuple[str, str]]


async def decode_now(settings: Settings, held: Replayed) -> Verdict:
    """Decode a raw record as the stage would with these settings, the registry's topic and the schemas there are.

    Dialects that must have met another message before, as Sparkplug's birth, have met none. Raises as `index` does, and
    `ValueError` where the settings do not say where schemas are.
    """
    points = registry.from_file(settings.registry_file)
    for id_, entry in (await registry.held(settings)).entries.items():
        points.put(id_, encode(entry))
    source = schema_source(settings)
    decoder = Decoder(
        settings.inputs,
        partitions=settings.topics.partitions,
        stage=DECODE,
        version=__version__,
        max_message_bytes=settings.topics.max_message_bytes,
        registry=points,
        schemas=source.schemas if source is not None else None,
    )
    if source is not None and (wanted := decoder.wanted([held])):
        async with asyncio.timeout(_SCHEMAS_S):
            await source.fetch(wanted)
    decoded = decoder([held], held.timestamp)
    return Verdict(
        [item.value for items in decoded.items.values() for item in items if item.value is not None],
        [(letter.reason, dict(letter.headers)["iotflow-dlq-error"].decode()) for letter in decoded.letters],
    )


# -- sending again, and dropping ---------------------------------------------------------------------------------------


class Done(Struct):
    """What was sent again: records, and the letters that they are; and which letters were not, by why."""

    records: int = 0
    letters: int = 0
    #: Letters among them that stay open, since another store than their own got them.
    kept_open: int = 0
    skipped: dict[Skip, list[str]] = {}
    #: Whether it was stopped before the end.
    stopped: bool = False


async def replay(  # noqa: PLR0913  each is one knob of it
    settings: Settings,
    plan: Plan,
    *,
    rate: float = 0.0,
    by: str = "",
    stop: asyncio.Event | None = None,
    on_sent: Progress | None = None,
    clock: Clock | None = None,
) -> Done:
    """Send records again in the plan's order, at most `rate` a second (0: as fast as can be), and mark their letters.

    Those that go to another store than their own are not marked. When `stop` is set, what has been begun is finished,
    and no more. Whenever it is cut short, a new plan has what is left. Raises as `index` does.
    """
    clock = clock or SystemClock()
    stop = stop or asyncio.Event()
    done = Done(skipped={why: list(ids) for why, ids in plan.skipped.items()})
    args, limit = kafka.client_args(settings), settings.topics.max_message_bytes
    producer = BatchProducer(args, max_message_bytes=limit)
    started, seen = clock.monotonic(), 0
    try:
        async with _letters(settings) as letters:
            for some in _portions(plan.records, _AT_ONCE if not rate else max(1, min(_AT_ONCE, int(rate)))):
                if rate:
                    await _pause(clock, started + seen / rate, stop)
                if stop.is_set():
                    done.stopped = True
                    break
                await _Sender(settings, producer, done, by)(some, await letters.get([again.letter for again in some]))
                seen += len(some)
                _tell(on_sent, seen, len(plan.records))
    finally:
        await producer.stop()
    return done


async def _pause(clock: Clock, until: float, stop: asyncio.Event) -> None:
    while not stop.is_set() and (left := until - clock.monotonic()) > 0:
        await clock.sleep(min(left, 0.2))


def _portions(records: Sequence[Again], most: int) -> Iterator[list[Again]]:
    """Records in portions that fit into memory."""
    some: list[Again] = []
    size = 0
    for again in records:
        if some and (len(some) >= most or size + again.letter.size > _AT_ONCE_BYTES):
            yield some
            some, size = [], 0
        some.append(again)
        size += again.letter.size
    if some:
        yield some


class _Sender:
    """Sends a portion again: records first, and when the broker has them all, what is said of their letters."""

    def __init__(self, settings: Settings, producer: BatchProducer, done: Done, by: str) -> None:
        self._settings = settings
        self._producer = producer
        self._done = done
        self._by = by

    async def __call__(self, some: Sequence[Again], found: dict[tuple[int, int], Any]) -> None:
        """Return when the broker has acknowledged everything."""
        pairs: list[tuple[Again, Replayed]] = []
        for again in some:
            letter = again.letter
            record = found.get((letter.partition, letter.offset))
            if record is None or summed(record) != letter.sum:
                self._skip("gone", again)
            elif _size(again, held := original(record)) > self._settings.topics.max_message_bytes:
                self._skip("too_large", again)
            else:
                pairs.append((again, held))
        # A broker that is away is not waited for as a worker waits for it: there is somebody who can be told.
        async with asyncio.timeout(SILENCE_S):
            await self._all(pairs)

    async def _all(self, pairs: Sequence[tuple[Again, Replayed]]) -> None:
        """Send them together; where the topic takes less than it should, one by one to find which it does not take."""
        try:
            await self._send(pairs)
        except RuntimeError as error:
            if not isinstance(error.__cause__, MessageSizeTooLargeError | RecordListTooLargeError):
                raise
            await self._producer.stop()  # behind a batch that was refused it can send nothing to that partition
            if len(pairs) == 1:
                self._skip("too_large", pairs[0][0])
            else:
                for pair in pairs:
                    await self._all([pair])

    def _skip(self, why: Skip, again: Again) -> None:
        self._done.skipped.setdefault(why, []).extend(entry.id for entry in again.letters)

    async def _send(self, pairs: Sequence[tuple[Again, Replayed]]) -> None:
        by_topic: dict[str, dict[int, list[Item]]] = {}
        for again, held in pairs:
            partition = partition_again(again.letter, held, await self._producer.partitions(held.topic))
            item = Item(held.key, held.value, headers_again(again, held))
            by_topic.setdefault(held.topic, {}).setdefault(partition, []).append(item)
        for topic, partitions in by_topic.items():
            for sent in await self._producer.send(topic, partitions):
                await sent.done()
        at = datetime.now(UTC)
        marks = [mark for again, _ in pairs for mark in replayed_marks(again, at, self._by)]
        await _mark(self._settings, self._producer, marks)
        self._done.records += len(pairs)
        for again, _ in pairs:
            self._done.letters += len(again.letters)
            self._done.kept_open += len(again.letters) if again.elsewhere else 0


def _size(again: Again, held: Replayed) -> int:
    headers = sum(len(name.encode()) + len(value or b"") + 4 for name, value in headers_again(again, held))
    return len(held.key or b"") + len(held.value or b"") + headers + _FRAME_BYTES


async def _mark(settings: Settings, producer: BatchProducer, marks: Sequence[tuple[str, Mark]]) -> None:
    if marks:
        items = (Item(id_.encode(), encode_mark(mark), []) for id_, mark in marks)
        await producer.deliver(settings.topics.dead_letter_state, items)


async def drop(settings: Settings, entries: Sequence[Entry], *, by: str = "", on_sent: Progress | None = None) -> None:
    """Mark letters as dropped; nothing is deleted. Raises as `index` does."""
    producer = BatchProducer(kafka.client_args(settings), max_message_bytes=settings.topics.max_message_bytes)
    at = datetime.now(UTC)
    try:
        for start in range(0, len(entries), _AT_ONCE):
            some = entries[start : start + _AT_ONCE]
            async with asyncio.timeout(SILENCE_S):
                await _mark(settings, producer, [(entry.id, dropped_mark(entry, at, by)) for entry in some])
            _tell(on_sent, start + len(some), len(entries))
    finally:
        await producer.stop()
