"""Delivery with everything around it, in memory and in time that passes by itself: faults at will, and no server."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from schemas import wire
from schemas.deadletter import Letter
from schemas.reading import Reading, Rejected
from sinks.base import Fatal, PartialWriteError, Prepared, Reject, Retry, Verdict
from sinks.ceiling import Ceiling
from sinks.contracts import Books, Breaker, Options
from sinks.delivery import Delivery
from tests.lab.virtual import Selector

AT = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)
WALL_MS = 1_760_000_000_000


def now() -> float:
    """Seconds since the test began."""
    return asyncio.get_running_loop().time() - Selector.now


class Clock:
    """The loop's time; remembers what was slept."""

    def __init__(self) -> None:
        self.slept: list[float] = []

    def monotonic(self) -> float:
        """The loop's time."""
        return asyncio.get_running_loop().time()

    def wall_ms(self) -> int:
        """The loop's time, as the epoch has it."""
        return WALL_MS + int(now() * 1000)

    async def sleep(self, seconds: float) -> None:
        """Pass the time."""
        self.slept.append(seconds)
        await asyncio.sleep(seconds)


async def until(condition: Callable[[], object]) -> None:
    """Let time pass until something is so."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110  whatever it is that comes true, it sets no event
            await asyncio.sleep(0.005)


# -- the fakes ---------------------------------------------------------------------------------------------------------


class AwayError(Exception):
    """The destination is away; `after` is what it asks for."""

    def __init__(self, after: float | None = None) -> None:
        super().__init__("away")
        self.after = after


class DeniedError(Exception):
    """The destination wants a person."""


class BadError(Exception):
    """Something in the batch cannot be stored."""


HANG = "hang"
Fault = BaseException | type[BaseException] | str | None


@dataclass
class Sink:
    """Stores in memory; fails as it was told: per attempt, or for devices named after a fault."""

    name: str = "fake"
    #: What the next writes, probes and opens do; nothing said: they succeed.
    writes: list[Fault] = field(default_factory=list)
    probes: list[Fault] = field(default_factory=list)
    opens: list[Fault] = field(default_factory=list)
    prepares: list[Exception] = field(default_factory=list)
    #: How long a write takes.
    takes: float = 0.0
    #: Whether a refused batch leaves its good readings behind all the same.
    leaks: bool = False
    stored: list[str] = field(default_factory=list)
    values: dict[tuple[str, str], Any] = field(default_factory=dict)
    #: What was done, with the sizes of the writes, and when they began.
    log: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)
    prepared: list[list[str]] = field(default_factory=list)
    cancelled: int = 0

    async def open(self) -> None:
        """Connect."""
        await self._do("open", self.opens)

    async def close(self) -> None:
        """Let go."""
        self.log.append("close")

    async def probe(self) -> None:
        """Try."""
        await self._do("probe", self.probes)

    def prepare(self, readings: Sequence[Reading]) -> Prepared[list[Reading]]:
        """Refuse the devices called prepare; keep the others as they are."""
        if self.prepares and len(readings) > 1:
            raise self.prepares.pop(0)
        if any(reading.device_id.startswith("raise") for reading in readings):
            raise KeyError("raise")
        self.prepared.append([reading.device_id for reading in readings])
        no_form = {
            index: Rejected("no_form", reading.device_id)
            for index, reading in enumerate(readings)
            if reading.device_id.startswith(("prepare", "unknown"))
        }
        if any(reading.device_id.startswith("unknown") for reading in readings):
            no_form = {index: Rejected("unknown_device", "unknown") for index in no_form}
        kept = [reading for index, reading in enumerate(readings) if index not in no_form]
        return Prepared(kept, 3 * len(kept), no_form)

    async def write(self, payload: list[Reading]) -> None:
        """Store, or fail."""
        self.sizes.append(len(payload))
        self.begun.append(now())
        if self.takes:
            await asyncio.sleep(self.takes)
        await self._do("write", self.writes)
        partial = {
            i: Rejected("partial", "no") for i, each in enumerate(payload) if each.device_id.startswith("partial")
        }
        bad = any(each.device_id.startswith("reject") for each in payload)
        if not (partial or bad) or self.leaks:
            for each in payload:
                if not each.device_id.startswith(("partial", "reject")):
                    self.stored.append(each.device_id)
                    self.values |= {(each.device_id.partition("#")[0], metric): v for metric, v in each.values.items()}
        if partial:
            raise PartialWriteError(partial)
        if bad:
            raise BadError("one of them")

    def classify(self, error: BaseException) -> Verdict:
        """What an error means; a time-out is taken for the worst there is."""
        match error:
            case AwayError():
                return Retry("away", error.after)
            case DeniedError():
                return Fatal(f"remedy: {error}")
            case BadError() | TimeoutError():
                return Reject(Rejected("refused", str(error)))
            case ConnectionError():
                return Retry(str(error))
        raise error

    async def _do(self, what: str, script: list[Fault]) -> None:
        self.log.append(what)
        fault = script.pop(0) if script else None
        if fault == HANG:
            try:
                await asyncio.sleep(1e9)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        if isinstance(fault, BaseException | type):
            raise fault


class Letters:
    """The dead-letter topic: remembers, waits for `gate`, fails as it was told."""

    def __init__(self) -> None:
        self.sent: list[Letter] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: list[Exception] = []
        self.waiting = 0

    async def send(self, letters: Sequence[Letter]) -> None:
        """Take letters once the gate is open."""
        self.waiting += 1
        await self.gate.wait()
        self.waiting -= 1
        if self.fails:
            raise self.fails.pop(0)
        self.sent += letters

    @property
    def devices(self) -> list[str]:
        """Who the letters are about."""
        return [dict(dead.headers)["iotflow-orig-key"].decode() for dead in self.sent]


class Telemetry:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.records = 0
        self.writes: list[tuple[int, int, int]] = []
        self.durables: list[tuple[float, int]] = []
        self.ages: list[tuple[float, int]] = []
        self.skips = 0
        self.stops: list[bool] = []
        self.failures: list[str] = []
        self.reasons: dict[str, int] = {}
        self.breakers: list[Breaker] = []
        self.ceilings: list[bool] = []

    def taken(self, records: int) -> None:
        """Count."""
        self.records += records

    def stored(self, readings: int, rows: int, seconds: float, size: int) -> None:
        """Keep."""
        assert seconds >= 0
        self.writes.append((readings, rows, size))

    def durable(self, seconds: float, records: int) -> None:
        """Keep."""
        self.durables.append((seconds, records))

    def fresh(self, seconds: float, readings: int) -> None:
        """Keep."""
        self.ages.append((seconds, readings))

    def skipped(self, records: int) -> None:
        """Count."""
        self.skips += records

    def stopped(self, stopped: bool) -> None:  # noqa: FBT001  a gauge's value
        """Keep."""
        self.stops.append(stopped)

    def failed(self, kind: str) -> None:
        """Keep."""
        self.failures.append(kind)

    def dead(self, reason: str, letters: int) -> None:
        """Count."""
        self.reasons[reason] = self.reasons.get(reason, 0) + letters

    def breaker(self, state: Breaker) -> None:
        """Keep."""
        self.breakers.append(state)

    def ceiling(self, tripped: bool) -> None:  # noqa: FBT001  a gauge's value
        """Keep."""
        self.ceilings.append(tripped)


@dataclass
class Record:
    """A record of the decoded topic."""

    offset: int
    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    topic: str = "decoded"
    partition: int = 0
    timestamp: int = WALL_MS


class Held:
    """A chunk in delivery's hands; what became of it is told to its bench."""

    def __init__(self, bench: "Bench", records: Sequence[Record], generation: int) -> None:
        self.bench = bench
        self.records = records
        self.generation = generation
        self.acks = self.releases = 0

    def ack(self) -> None:
        """All of it is safe."""
        self.acks += 1
        self.bench.acked.append(self)

    def release(self) -> None:
        """Given up."""
        self.releases += 1
        self.bench.released.append(self)

    @property
    def pending(self) -> bool:
        """Neither acknowledged nor given up."""
        return self.acks == self.releases == 0


class Bench:
    """A delivery with everything around it."""

    def __init__(
        self,
        sink: Sink | None = None,
        *,
        ceiling: Ceiling | None = None,
        books: Books | None = None,
        **options: Any,
    ) -> None:
        self.sink = sink or Sink()
        self.letters = Letters()
        self.telemetry = Telemetry()
        self.clock = Clock()
        self.faults: list[BaseException] = []
        self.jitter = 1.0  # the whole of a back-off
        defaults: dict[str, Any] = {"stage": "store-fake", "version": "1", "batch_size": 10, "open_topic": "decoded"}
        self.delivery = Delivery(
            self.sink,
            Options(**defaults | options),
            self.letters,
            self.telemetry,
            ceiling=ceiling,
            books=books,
            fault=self.faults.append,
            clock=self.clock,
            jitter=lambda: self.jitter,
        )
        self._feeding = asyncio.Lock()
        self.put_in: list[Held] = []
        self.acked: list[Held] = []
        self.released: list[Held] = []
        self.task: asyncio.Task[None] | None = None
        self._offset = 0

    def chunk(self, *devices: str, generation: int = 1) -> Held:
        """A chunk with a record of each device; `bytes` is one that is no reading."""
        records = []
        for device in devices:
            value = b"\x00no" if device.startswith("bytes") else wire.write(reading(device, self._offset))
            records.append(Record(self._offset, value, device.encode()))
            self._offset += 1
        held = Held(self, records, generation)
        self.put_in.append(held)
        return held

    async def put(self, *devices: str, generation: int = 1) -> Held:
        """Put a chunk."""
        held = self.chunk(*devices, generation=generation)
        await self.delivery.put(held)
        return held

    async def many(self, *sizes: int, generation: int = 1) -> list[Held]:
        """Put chunks of so many good records."""
        async with self._feeding:  # one after the other, as an agent does
            return [await self.put(*good(size, len(self.put_in)), generation=generation) for size in sizes]

    def drain(self, seconds: float) -> None:
        """Begin to give up."""
        self.delivery.drain(time.monotonic() + seconds)

    async def stop(self) -> None:
        """Cancel."""
        assert self.task is not None
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task

    async def done(self) -> None:
        """Wait until every chunk is acknowledged, and see that nothing else became of any."""
        await until(lambda: len(self.acked) >= len(self.put_in))
        assert self.acked == self.put_in
        assert not self.released
        assert all(held.acks == 1 for held in self.put_in)


def reading(device: str, x: float = 1.0) -> Reading:
    """A reading."""
    return Reading("m", device, AT, {"x": float(x)})


def good(size: int, first: int = 0) -> list[str]:
    """Names of devices that nothing is wrong with."""
    return [f"d{first}.{index}" for index in range(size)]


def devices(chunks: Sequence[Held]) -> list[str]:
    """The devices of chunks, in order."""
    return [record.key.decode() for held in chunks for record in held.records if record.key is not None]


@asynccontextmanager
async def running(sink: Sink | None = None, **options: Any) -> AsyncIterator[Bench]:
    """A bench whose delivery runs; each chunk is settled exactly once by the time it has ended."""
    bench = Bench(sink, **options)
    bench.task = asyncio.create_task(bench.delivery.run())
    await until(lambda: bench.delivery.ready or bench.telemetry.failures or bench.sink.log)
    try:
        yield bench
    finally:
        await bench.stop()
    assert all(held.acks + held.releases == 1 for held in bench.put_in)
    assert bench.delivery.held_records == 0
