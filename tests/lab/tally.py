"""A worker with state in a test's own loop: the real tables, checkpoints and transport around the simplest machine.

The machine adds up numbers by key, and closes a window of every ten of a key's. What it keeps and sends can be computed
from what was produced, so it shows whether anything was lost, doubled or said in two ways.
"""

import asyncio
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from faust.types import TP

from agents.analyze import Analyzer, Limits, Load
from agents.held import Held
from app.produce import BatchProducer
from schemas.partition import partition_of
from tables.binding import Table
from tables.channel import HEADER, header
from tests.lab.apps import Lab, create, unique, until

PARTITIONS = 4
#: A window is so many numbers of a key.
WINDOW = 10
TABLES = ("state", "windows")
TOPICS = ("alarms", "aggregates")


class Output(NamedTuple):
    """A record to send."""

    topic: str
    device_id: str
    key: bytes
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]] = ()


class Sum(msgspec.Struct, array_like=True):
    """What is known of a key: the sum and number of its values, and windows that are still to be sent."""

    position: int
    total: int = 0
    count: int = 0
    pending: list[tuple[int, int]] = []


def packed(generation: int, sums: Sum) -> bytes:
    """As the table of states has it."""
    return header(generation, sums.position + 1) + msgspec.msgpack.encode(sums)


class Snapshot:
    """What is to be kept."""

    def __init__(self, tally: "Tally", generation: int, keys: Sequence[bytes]) -> None:
        self._tally = tally
        self._sent = {key: list(tally.sums[key].pending) for key in keys}
        self.states = [(key, packed(generation, tally.sums[key])) for key in keys]
        for key in keys:
            del tally.changed[key]

    @property
    def outputs(self) -> list[Output]:
        """Closed windows."""
        return [
            Output("aggregates", key.decode(), b"%b/%d" % (key, number), b"%d" % total)
            for key, windows in self._sent.items()
            for number, total in windows
        ]

    @property
    def side(self) -> list[tuple[str, bytes, bytes | None]]:
        """The same, by key."""
        return [("windows", output.key, output.value) for output in self.outputs]

    def done(self) -> None:
        """What was sent is no longer pending."""
        for key, windows in self._sent.items():
            if windows:
                del self._tally.sums[key].pending[: len(windows)]
                self._tally.touch(key)


class Tally:
    """A partition's sums. A value below zero gives an alarm at once."""

    def __init__(self, number: int, load: Load) -> None:
        self.number = number
        self.load = load
        self.sums: dict[bytes, Sum] = {}
        #: Since which offset.
        self.changed: dict[bytes, int] = {}
        self.expired = self.offset = 0
        self.tally: Counter[str] = Counter()
        self.news: list[Output] = []

    def restore(self, key: bytes, value: bytes) -> None:
        """Take over."""
        self.sums[key] = msgspec.msgpack.decode(value[HEADER.size :], type=Sum)
        if self.sums[key].pending:
            self.touch(key)

    def touch(self, key: bytes) -> None:
        """It has changed."""
        self.changed.setdefault(key, self.offset)

    def rewind(self, end: int) -> int:
        """Records below `end` are not known."""
        lost = [key for key, sums in self.sums.items() if sums.position >= end]
        for key in lost:
            self.sums[key].position = -1
            self.touch(key)
        return len(lost)

    def fold(self, records: Sequence[Any], now_ms: int) -> list[Output]:
        """Add up what was not added yet."""
        del now_ms
        outputs = []
        for record in records:
            self.offset = record.offset
            sums = self.sums.setdefault(record.key, Sum(-1))
            if record.offset <= sums.position:
                continue
            value = int(record.value)
            sums.position = record.offset
            sums.total += value
            sums.count += 1
            if sums.count % WINDOW == 0:
                sums.pending.append((sums.count // WINDOW, sums.total))
            if value < 0:
                outputs.append(Output("alarms", record.key.decode(), record.key, record.value))
            self.touch(record.key)
        self.offset = records[-1].offset + 1
        return outputs

    full = False

    def expire(self, now_ms: int) -> bool:
        """Count."""
        del now_ms
        self.expired += 1
        return False

    def _due(self, before: int) -> list[bytes]:
        return [key for key, since in self.changed.items() if since < before or self.sums[key].pending]

    def waiting(self, before: int) -> int:
        """What was changed before that, or has something to say."""
        return len(self._due(before))

    def snapshot(self, generation: int, most: int, before: int) -> Snapshot:
        """That."""
        return Snapshot(self, generation, sorted(self._due(before)[:most]))

    @property
    def unsaid(self) -> int:
        """How many have windows that are to be sent."""
        return sum(bool(self.sums[key].pending) for key in self.changed)

    @property
    def safe(self) -> int:
        """Where what is not in a snapshot begins."""
        return min(self.changed.values(), default=1 << 62)

    def latest(self, most: int) -> list[Output]:
        """Whatever a test has put there."""
        said, self.news = self.news[:most], self.news[most:]
        return said

    @property
    def fresh(self) -> int:
        """How much that is."""
        return len(self.news)

    def acknowledge(self, key: str, by: str, at: int) -> None:
        """There are no alarms to acknowledge."""
        raise LookupError(f"{key} {by} {at}")

    resolve = acknowledge

    def __len__(self) -> int:
        """How many keys there are."""
        return len(self.sums)

    @property
    def dirty(self) -> int:
        """How many keys have."""
        return len(self.changed)


class Silent:
    """Telemetry that nobody reads."""

    def analysed(self, records: int, by_outcome: Mapping[str, int]) -> None:
        """Nothing."""

    def said(self, by_topic: Mapping[str, int]) -> None:
        """Nothing."""

    def checkpoint(self, seconds: float, states: int) -> None:
        """Nothing."""

    def channels(self, channels: int) -> None:
        """Nothing."""

    def stopped(self, stopped: bool) -> None:  # noqa: FBT001  a gauge's value
        """Nothing."""


class Place:
    """Topics of a test's own: where the numbers are, where what was found goes, and the changelogs."""

    def __init__(self, servers: str, folder: Path) -> None:
        self.servers = servers
        self.folder = folder
        self.group = unique("tally")
        self.source = f"{self.group}-decoded"
        self.topics = {name: f"{self.group}-{name}" for name in TOPICS}

    async def make(self) -> "Place":
        """Create the topics."""
        await create(self.servers, self.source, PARTITIONS)
        for topic in self.topics.values():
            await create(self.servers, topic, PARTITIONS)
        for table in TABLES:
            await create(self.servers, self.changelog(table), PARTITIONS, **{"cleanup.policy": "compact"})
        return self

    def changelog(self, table: str) -> str:
        """A table's changelog."""
        return f"{self.group}-{table}-changelog"

    async def produce(self, numbers: Iterable[tuple[bytes, int]]) -> None:
        """Numbers of keys, each in its key's partition."""
        items = [(partition_of(key.decode(), PARTITIONS), key, b"%d" % value) for key, value in numbers]
        await self.write(self.source, items)

    async def write(self, topic: str, items: Iterable[tuple[int, bytes, bytes | None]]) -> None:
        """Records: partition, key and value."""
        producer = AIOKafkaProducer(bootstrap_servers=self.servers)
        await producer.start()
        try:
            sends = [await producer.send(topic, value, key=key, partition=place) for place, key, value in items]
            await asyncio.gather(*sends)
        finally:
            await producer.stop()

    async def read(self, topic: str) -> list[Any]:
        """All records of a topic, a partition's in order."""
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=self.servers, auto_offset_reset="earliest", enable_auto_commit=False
        )
        await consumer.start()
        try:
            ends = await consumer.end_offsets(consumer.assignment())
            found: list[Any] = []
            while any([await consumer.position(place) < end for place, end in ends.items()]):
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
            return found
        finally:
            await consumer.stop()

    async def ends(self) -> dict[int, int]:
        """Where the partitions of the numbers end, of those that have any."""
        found: dict[int, int] = {}
        for record in await self.read(self.source):
            found[record.partition] = record.offset + 1
        return found


class Worker:
    """One worker with its tables."""

    def __init__(
        self,
        place: Place,
        *,
        folder: Path | None = None,
        store: str = "rocksdb://",
        limits: Limits | None = None,
        chunk_records: int = 100,
        **options: Any,
    ) -> None:
        self.place = place
        self.faults: list[BaseException] = []
        self.steps: list[str] = []
        self.tables = {
            "state": Table("state", keeps_highest=True, store=store),
            "windows": Table("windows", store=store),
        }
        self.parts: dict[int, Tally] = {}
        self.producer = BatchProducer({"bootstrap_servers": place.servers}, max_message_bytes=1_000_000)
        self.analyzer = Analyzer(
            self.tables,
            place.source,
            lambda _: self._make,
            place.topics,
            Silent(),
            self.faults.append,
            limits=limits or Limits(every=0.3),
            at=self.steps.append,
        )

        async def feed(lab: Lab, event: Any, records: Sequence[Any]) -> None:
            await self.analyzer.put(Held(event, lab.consumer))

        limits_of_transport = {"chunk_records": chunk_records}
        folder = folder or place.folder
        folder.mkdir(exist_ok=True)
        self.lab = Lab(
            place.servers, place.source, place.group, folder, feed, limits=limits_of_transport,
            **{"datadir": folder / "data", **options},
        )  # fmt: skip
        for table in self.tables.values():
            table.bind(self.lab.app, PARTITIONS)
        ended = self.lab.app.on_rebalance_end

        def on_rebalance_end() -> None:
            ended()
            self.analyzer.begin(self.lab.app.consumer_generation_id, self.lab.assigned, self)

        self.lab.app.on_rebalance_end = on_rebalance_end
        self._running: asyncio.Task[None] | None = None

    def _make(self, number: int, load: Load) -> Tally:
        self.parts[number] = Tally(number, load)
        return self.parts[number]

    def caught_up(self, partition: int) -> bool:
        """As the transport says."""
        return bool(self.lab.consumer.caught_up(TP(self.place.source, partition)))

    async def ends(self, partitions: Collection[int]) -> Mapping[int, int]:
        """Where the logs end."""
        places = [TP(self.place.source, partition) for partition in partitions]
        found = await self.lab.consumer.highwaters(*places) if places else {}
        return {place.partition: int(found[place]) for place in places}

    async def __aenter__(self) -> "Worker":
        await self.producer.start()
        await self.analyzer.start(self.producer)
        self._running = asyncio.create_task(self._run())
        await self.lab.__aenter__()
        self.lab.consumer.on_drain.append(self.analyzer.drain)
        self.lab.consumer.unfinished.append(lambda: self.analyzer.busy)
        return self

    async def _run(self) -> None:
        try:
            await self.analyzer.run()
        except Exception as error:
            self.faults.append(error)
            raise

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self, seconds: float = 12.0) -> bool:
        """Stop; whether it did by itself."""
        if self._running is None:
            return True
        by_itself = await self.lab.stop(seconds)
        running, self._running = self._running, None
        running.cancel()
        await asyncio.wait({running})
        await self.producer.stop()
        return by_itself

    async def up(self) -> None:
        """Wait until its state is there."""
        await until(lambda: self.lab.running and self.analyzer._phase == "working", 40)

    async def committed_all(self, seconds: float = 30.0) -> None:
        """Wait until all numbers are behind a checkpoint."""
        ends = await self.place.ends()

        async def at_the_end() -> bool:
            return await self.lab.committed() == ends

        await until(at_the_end, seconds)


def sums(*workers: Worker) -> dict[bytes, tuple[int, int]]:
    """Sum and number by key, of the partitions that the workers have now."""
    return {
        key: (found.total, found.count)
        for worker in workers
        for number in worker.lab.assigned
        for key, found in worker.parts[number].sums.items()
    }


def expected(numbers: Iterable[tuple[bytes, int]]) -> dict[bytes, tuple[int, int]]:
    """The same, computed from what was produced."""
    found: dict[bytes, tuple[int, int]] = {}
    for key, value in numbers:
        total, count = found.get(key, (0, 0))
        found[key] = (total + value, count + 1)
    return found


def windows(numbers: Iterable[tuple[bytes, int]]) -> Mapping[bytes, bytes]:
    """The windows that come of it, by the key of their record."""
    found: dict[bytes, bytes] = {}
    totals: dict[bytes, tuple[int, int]] = {}
    for key, value in numbers:
        total, count = totals.get(key, (0, 0))
        totals[key] = total, count = total + value, count + 1
        if count % WINDOW == 0:
            found[b"%b/%d" % (key, count // WINDOW)] = b"%d" % total
    return found
