"""Past readings, device by device and each device's by time: of the decoded topic, of files, or of a store.

What has another order is sorted in temporary files (in TMPDIR), so memory is bounded; of readings of one series and
time the later holds, as in the stores.
"""

import asyncio
import io
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from threading import Event
from typing import IO, Any, BinaryIO, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from msgspec import Struct

from app import kafka, samples, topics
from app.lenient import read_leniently
from app.settings import Settings
from schemas import wire
from schemas.payload import quoted
from schemas.reading import RESERVED, Reading, RejectedError
from sinks import registry
from sinks.base import Selection
from sinks.file.archive import MARKER, Archive, ArchiveError, GivenUp, GivenUpError
from sinks.file.aside import Aside
from sinks.file.reading import in_order

#: The decoded topic.
TOPIC: Final = "topic"
#: What stands in front of a path.
FILE: Final = "file:"
STDIN: Final = "-"

#: Told what is being done, how much of it is, and of how much: 0 where that is not known.
Progress = Callable[[str, int, int], None]

#: A broker or store that says nothing for longer than this is away.
_SILENCE_S: Final = 60.0
_POLL_MS: Final = 500
_PAGE: Final = 1000
#: So much of a topic is held in memory before it is sorted; more goes into a temporary file.
_SPOOL_BYTES: Final = 32 * 2**20
#: So many wrong lines of a file are named.
_EXAMPLES: Final = 5
_MICROSECOND: Final = timedelta(microseconds=1)


class SourceError(ValueError):
    """Readings that cannot be read; the text says why, a line each."""


class Wanted(Struct, frozen=True):
    """Which readings: by their own times, `start` inclusive and `end` exclusive; devices by name or pattern."""

    start: datetime | None = None
    end: datetime | None = None
    devices: Sequence[str] = ()

    def admits(self, reading: Reading) -> bool:
        """Whether a reading is one of them; iotflow's own never are."""
        return (
            (self.start is None or self.start <= reading.time)
            and (self.end is None or reading.time < self.end)
            and reading.measurement not in RESERVED
            and self._names(reading.device_id)
        )

    def _names(self, device: str) -> bool:
        return not self.devices or any(name == device or fnmatchcase(device, name) for name in self.devices)

    @property
    def selections(self) -> list[Selection]:
        """What to ask a store for, in order: all that is admitted, and where devices are patterns, more."""
        if not self.devices or any(set(name) & set("*?[") for name in self.devices):
            return [Selection(start=self.start, end=self.end)]
        return [Selection(device_id=name, start=self.start, end=self.end) for name in sorted(set(self.devices))]


class Past(Struct):
    """Readings as they come, in pages, each device's together and by time; from when to when; how many, if known."""

    pages: AsyncIterator[list[Reading]]
    start: datetime
    end: datetime
    total: int = 0
    #: Records of the topic that hold no reading.
    unreadable: int = 0


class _Tally:
    """What was met on the way into the sorting."""

    def __init__(self) -> None:
        self.count = 0
        self.unreadable = 0
        self.oldest: datetime | None = None
        self.newest: datetime | None = None

    def counted(self, readings: Iterator[tuple[Reading, int]]) -> Iterator[tuple[Reading, int]]:
        """The same, counted."""
        for reading, size in readings:
            self.count += 1
            time = reading.time
            if self.oldest is None or time < self.oldest:
                self.oldest = time
            if self.newest is None or time > self.newest:
                self.newest = time
            yield reading, size


@asynccontextmanager
async def opened(settings: Settings, source: str, wanted: Wanted, tell: Progress) -> AsyncIterator[Past]:
    """The readings of a source: `topic`, `-`, `file:PATH` or a store's name.

    Where `wanted` has no start or end, which only files may leave open, these are the first and the last reading's.
    Raises `SourceError`, `TopicsError`, and what aiokafka raises; so does reading the pages.
    """
    if source == TOPIC:
        with tempfile.SpooledTemporaryFile(_SPOOL_BYTES) as spool:
            tally = _Tally()
            await _spool(settings, wanted, spool, tally, tell)
            spool.seek(0)
            async with _sorted(lambda _: _spooled(spool), wanted, tally) as past:
                yield past
    elif source == STDIN or source.startswith(FILE):
        made = _file(source.removeprefix(FILE), wanted, tell)
        async with _sorted(made, wanted, _Tally()) as past:
            yield past
    elif source not in registry.load():
        raise _unknown(source)
    elif wanted.start is None or wanted.end is None:
        raise SourceError("a store needs to be told from when to when")
    else:
        async with aclosing(_stored(settings, source, wanted)) as pages:
            yield Past(pages, wanted.start, wanted.end)


def _unknown(source: str) -> SourceError:
    hint = f"; a file is named {FILE}{source}" if Path(source).exists() else ""
    known = ", ".join([TOPIC, f"{FILE}PATH", STDIN, *sorted(registry.load())])
    return SourceError(f"no source is called {quoted(source)}; there are: {known}{hint}")


def span(source: str, start: datetime | None, end: datetime | None, now: datetime) -> tuple[Any, Any]:
    """From when to when, where somebody left that open: the last week, and of a file all of it."""
    if source != STDIN and not source.startswith(FILE):
        end = end or now
        start = start or end - timedelta(weeks=1)
    return start, end


# -- sorted ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _sorted(
    made: Callable[[GivenUp], Iterator[tuple[Reading, int]]], wanted: Wanted, tally: _Tally
) -> AsyncIterator[Past]:
    """Readings in any order as `Past`; they are read and sorted beside the event loop."""
    left, aside = Event(), Aside("past")
    found = in_order(tally.counted(made(left.is_set)))

    async def page() -> list[Reading]:
        try:
            return await aside.run(lambda: list(islice(found, _PAGE)))
        except ArchiveError as error:
            raise SourceError(str(error)) from error
        except OSError as error:
            raise (
                _spoilt(error) if error.filename is None else SourceError(f"{error.filename}: {error.strerror}")
            ) from error

    async def pages(some: list[Reading]) -> AsyncIterator[list[Reading]]:
        while some:
            yield some
            some = await page()

    try:
        first = await page()
        start, end = wanted.start or tally.oldest, wanted.end
        if end is None and tally.newest is not None:
            end = tally.newest + _MICROSECOND
        now = datetime.now(UTC)
        yield Past(pages(first), start or now, end or now, tally.count, tally.unreadable)
    finally:
        left.set()
        aside.stop()


# -- files -------------------------------------------------------------------------------------------------------------


def _file(path: str, wanted: Wanted, tell: Progress) -> Callable[[GivenUp], Iterator[tuple[Reading, int]]]:
    """What reads standard input, a file of JSON lines, or an archive of the store `file`. Raises `SourceError`."""
    if path == STDIN:
        return lambda left: _lines("standard input", _stdin(), wanted, tell, left)
    place = Path(path)
    if place.is_dir():
        if not (place / MARKER).exists():
            raise SourceError(f"{place} is a directory and no archive of the store file: it has no {MARKER}")
        return lambda left: _archived(place, wanted, tell, left)
    if not place.exists():
        raise SourceError(f"{place}: no such file")

    def read(left: GivenUp) -> Iterator[tuple[Reading, int]]:
        with place.open("rb") as file:
            yield from _lines(str(place), file, wanted, tell, left)

    return read


def _stdin() -> BinaryIO:
    """Standard input, where it can be in a buffer of its own: Python's cannot be closed while a thread waits for it."""
    try:
        return os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    except io.UnsupportedOperation:
        return sys.stdin.buffer
    except AttributeError as error:
        raise SourceError("standard input is closed") from error


def _archived(path: Path, wanted: Wanted, tell: Progress, left: GivenUp) -> Iterator[tuple[Reading, int]]:
    read = 0
    for selection in wanted.selections:
        for reading, size in Archive(path).read(selection, left):
            read += 1
            if not read % _PAGE:
                tell("reading", read, 0)
                if left():
                    raise GivenUpError
            if wanted.admits(reading):
                yield reading, size


def _lines(name: str, file: BinaryIO, wanted: Wanted, tell: Progress, left: GivenUp) -> Iterator[tuple[Reading, int]]:
    problems: list[str] = []
    for number, line in enumerate(samples.lines(file), 1):
        if not number % _PAGE:
            tell("reading", number, 0)
            if left():
                raise GivenUpError
        if line is not None and not line.strip():
            continue
        try:
            if line is None:
                raise RejectedError("too_large", f"longer than {samples.MAX_BYTES >> 20} MiB")
            reading = wire.read(line)
        except RejectedError as error:
            problems.append(f"{name}: line {number}: {error}")
            if len(problems) == _EXAMPLES:
                break
            continue
        if wanted.admits(reading):
            yield reading, len(line)
    if problems:
        raise SourceError("\n".join([*problems, "each line must be a reading as on the decoded topic"]))


# -- the topic ---------------------------------------------------------------------------------------------------------


async def _spool(settings: Settings, wanted: Wanted, spool: IO[bytes], tally: _Tally, tell: Progress) -> None:
    """Write down what the decoded topic has: a line each."""
    topic = settings.topics.decoded
    async with asyncio.timeout(_SILENCE_S):
        missing = await topics.missing(settings)
    if topic in missing:
        raise topics.TopicsError(f"there is no topic {topic}: run iotflow topics apply")

    def take(record: Any) -> None:
        try:
            reading = wire.read(record.value)
        except RejectedError:
            tally.unreadable += 1  # as the stages do: the stores make dead letters of them
            return
        if wanted.admits(reading):
            try:
                spool.write(wire.write(reading) + b"\n")
            except OSError as error:
                raise _spoilt(error) from error

    await _received(settings, topic, wanted, take, tell)


def _spooled(spool: IO[bytes]) -> Iterator[tuple[Reading, int]]:
    return ((wire.read(line), len(line)) for line in spool)


def _spoilt(error: OSError) -> SourceError:
    return SourceError(f"readings cannot be sorted in {tempfile.gettempdir()}: {error.strerror}; TMPDIR may be another")


async def _received(
    settings: Settings, topic: str, wanted: Wanted, take: Callable[[Any], None], tell: Progress
) -> None:
    """Hand over what a topic received in a span of time, or soon after: what comes later than that pages nobody.

    Raises what aiokafka raises, and `TimeoutError`.
    """
    analysis = settings.analysis
    start = _millis(wanted.start, -analysis.skew)
    end = _millis(wanted.end, analysis.replay_after)
    clock = asyncio.get_running_loop().time
    consumer = AIOKafkaConsumer(
        **kafka.client_args(settings), auto_offset_reset="earliest", enable_auto_commit=False, group_id=None
    )
    try:
        async with asyncio.timeout(_SILENCE_S) as patience:
            await consumer.start()
            read_leniently(consumer._fetcher)  # noqa: SLF001  there is no public way
            await consumer._client._wait_on_metadata(topic)  # noqa: SLF001  aiokafka cannot be asked for one topic
            partitions = [
                TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())
            ]
            consumer.assign(partitions)
            last = await _places(consumer, partitions, end)
            places = await _places(consumer, partitions, start)
            left = {tp: places[tp] for tp in partitions if places[tp] < last[tp]}
            for tp, offset in left.items():
                consumer.seek(tp, offset)
            total = sum(last[tp] - offset for tp, offset in left.items())
            while left:
                for tp, records in (await consumer.getmany(*left, timeout_ms=_POLL_MS)).items():
                    for record in records:
                        if record.offset < last[tp]:
                            take(record)
                    patience.reschedule(clock() + _SILENCE_S)
                left = {tp: position for tp in left if (position := await consumer.position(tp)) < last[tp]}
                tell("reading", total - sum(last[tp] - position for tp, position in left.items()), total)
    finally:
        await consumer.stop()


def _millis(moment: datetime | None, off_s: float) -> int | None:
    return None if moment is None else max(0, round((moment.timestamp() + off_s) * 1000))


async def _places(consumer: Any, partitions: Sequence[Any], at_ms: int | None) -> dict[Any, int]:
    """The offset of each partition's first record of a time or later; where there is none, its end."""
    ends: dict[Any, int] = await consumer.end_offsets(partitions)
    if at_ms is None:
        return ends
    found = await consumer.offsets_for_times(dict.fromkeys(partitions, at_ms))
    return {tp: ends[tp] if found.get(tp) is None else found[tp].offset for tp in partitions}


# -- stores ------------------------------------------------------------------------------------------------------------


async def _stored(settings: Settings, name: str, wanted: Wanted) -> AsyncGenerator[list[Reading], None]:
    sink = registry.load()[name].Sink(settings.sinks[name], settings.types)
    try:
        async with asyncio.timeout(_SILENCE_S):
            await sink.open()
        for selection in wanted.selections:
            page: list[Reading] = []
            async with aclosing(sink.scan(selection)) as scan:
                async for reading in scan:
                    if wanted.admits(reading):
                        page.append(reading)
                    if len(page) == _PAGE:
                        yield page
                        page = []
            yield page
    except Exception as error:
        verdict = sink.classify(error)
        why = getattr(verdict, "remedy", "") or f"{sink.place}: {error or type(error).__name__}"
        raise SourceError(f"{name}: {why}") from error
    finally:
        await sink.close()
