"""The stage `analyze` as an operator runs it: readings per CPU-second and memory; and its detectors by themselves."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from aiokafka import AIOKafkaProducer
from msgspec import Struct

from app import analysis, quiet
from app.settings import load as settings_of
from schemas import rules, wire
from schemas.decoding import Item
from schemas.partition import partition_of
from tables.analysis import Partition
from tables.detectors import PROFILES
from tables.rules import Rulebook
from tests.bench import load
from tests.bench.bench import Bench, Storeless, say
from tests.bench.figures import Figure
from tests.bench.load import DEVICES, METRICS, Load
from tests.bench.spec import Contender, Raw
from tests.bench.store import Batch, of_progress, window
from tests.bench.watch import Watch, rss_mb
from tests.lab.pipeline import Process

#: How far the readings of a device are apart (s): the rarer they are, the more windows close for each.
_EVERY_S = (1.0, 5.0)
_GOAL = 60_000
_MEMORY_MB = 250
_DETECTORS_US = 5.0
#: For the memory: readings so far apart, so many of each device; a base window is a minute.
_HELD_EVERY_S = 10.0
_HELD_TURNS = 36
_LIVE_EVERY_S = 5.0
#: So long it takes at most to make the readings that are sent live.
_PREPARING_S = 10
_TICK_S = 0.01
_POLL_S = 0.25
_MINUTE_S = 60.0
#: In process, with a snapshot after so many readings.
_ALONE = 100_000
_SNAPSHOT_EVERY = 50_000
_CHUNK = 1000


class Cost(Struct):
    """One run between 10 % and 90 % of its readings: CPU µs a reading, of the process and of the broker for it.

    `rate` is readings a second of wall; `states`, `said` and `checkpoint_ms` are the worker's own numbers of the run.
    """

    us: float
    broker_us: float
    rate: float
    shares: dict[str, float]
    peak_mb: float
    states: float = 0.0
    said: float = 0.0
    checkpoint_ms: float = 0.0

    @property
    def per_cpu_second(self) -> float:
        """Readings that a second of CPU is enough for."""
        return 1e6 / self.us


class Folded:
    """What a worker says that it has folded so far, asked again and again."""

    def __init__(self, worker: Process) -> None:
        self._worker = worker
        self._folded = 0.0
        self._batches: list[Batch] = []
        self.metrics: Mapping[str, float] = {}

    async def __call__(self) -> list[Batch]:
        """What was folded between questions; raises when the worker has ended."""
        if self._worker.process.returncode is not None:
            raise RuntimeError(f"the worker ended with {self._worker.process.returncode}")
        found = await asyncio.to_thread(self._worker.metrics)
        folded = total(found, "iotflow_records_total")
        if folded > self._folded:
            new = round(folded - self._folded)
            self._batches.append(Batch(time.time(), new, new))
            self._folded, self.metrics = folded, found
        return self._batches


def total(metrics: Mapping[str, float], name: str) -> float:
    """A metric summed over its labels."""
    return sum(value for sample, value in metrics.items() if sample.partition("{")[0] == name)


async def measured(bench: Bench, pid: int, batches: Callable[[], Awaitable[list[Batch]]], count: int) -> Cost:
    """Watch a process until it has handled so many readings; bounded by the caller."""
    async with Watch({"worker": pid, "broker": bench.broker}, {}) as watch:
        while True:
            done = await batches()
            if sum(batch.readings for batch in done) >= count:
                break
            await asyncio.sleep(_POLL_S)
        await asyncio.sleep(2 * _POLL_S)
    start, end, readings = window(done)
    used = watch.used(start, end)
    return Cost(
        used["worker"] / readings * 1e6,
        used["broker"] / readings * 1e6,
        readings / (end - start),
        watch.shares(start, end),
        watch.peak_mb["worker"],
    )


async def of_worker(bench: Bench, pipeline: Storeless, count: int) -> tuple[Cost, Process]:
    """A worker of the stage on what the topic of readings has; it goes on running."""
    worker = await pipeline.start("analyze")
    folded = Folded(worker)
    found = await measured(bench, worker.process.pid, folded, count)
    metrics = folded.metrics
    checkpoints = max(1.0, total(metrics, "iotflow_checkpoint_seconds_count"))
    found.states = total(metrics, "iotflow_states_total") / count
    found.said = total(metrics, "iotflow_said_total") / count
    found.checkpoint_ms = total(metrics, "iotflow_checkpoint_seconds_sum") / checkpoints * 1000
    return found, worker


async def complete(bench: Bench, pipeline: Storeless, worker: Process, least: int) -> None:
    """See that this worker has acknowledged all, and said so many windows; raises otherwise."""
    await pipeline.settled(stages=["analyze"])
    if worker.process.returncode is not None:
        raise RuntimeError(f"the worker ended with {worker.process.returncode}:\n{worker.log[-3000:]}")
    found = await load.ends(bench.servers, pipeline.settings.topics.aggregates)
    if found < least:
        raise RuntimeError(f"{least} closed windows should be there, not {found}")


def least_windows(devices: int, turns: int, every_s: float) -> int:
    """Closed windows of a minute that there must be, of all series: the first and the last may not be whole."""
    return devices * METRICS * max(0, int(turns * every_s / _MINUTE_S) - 2)


async def cost(bench: Bench) -> list[Figure]:
    """CPU of the stage for a reading, next to a worker that only reads them, and to the analysis without a worker."""
    count = bench.counts.analyze
    ours: dict[float, Cost] = {}
    alone: dict[float, dict[str, float]] = {}
    read: Cost | None = None
    for every_s in _EVERY_S:
        items, times_ms = load.on_schedule(count, DEVICES, every_s)
        alone[every_s] = alone_us(items[:_ALONE], times_ms)
        async with Storeless(bench, "analyze") as pipeline:
            topic = pipeline.settings.topics.decoded
            async with Load(bench.servers, topic, items, times_ms) as sending:
                await sending.send()
            ours[every_s], worker = await of_worker(bench, pipeline, count)
            _say(f"ours, {every_s:.0f} s between readings of a device", ours[every_s])
            await complete(bench, pipeline, worker, least_windows(DEVICES, count // DEVICES, every_s))
            if read is None:
                async with Contender(bench.spec("ours-read", topic)) as contender:
                    read = await measured(bench, contender.pid, lambda c=contender: _told(c), count)  # type: ignore[misc]
                _say("reading alone", read)
    assert read is not None
    return _figures(ours, read, alone)


async def _told(contender: Contender) -> list[Batch]:
    return of_progress(contender)


def _say(what: str, found: Cost) -> None:
    say(
        f"  {what}: {found.per_cpu_second:,.0f} readings/CPU-s ({found.us:.1f} µs), {found.rate:,.0f} a second; "
        f"the broker {found.broker_us:.1f} µs; {found.peak_mb:.0f} MB"
    )


def _figures(ours: Mapping[float, Cost], read: Cost, alone: Mapping[float, Mapping[str, float]]) -> list[Figure]:
    figures = []
    for every_s, found in ours.items():
        what = f"{every_s:.0f} s between readings of a device"
        parts = alone[every_s]
        inner = parts["fold"] + parts["snapshot"]
        bound = (
            f"of {found.us:.1f} µs of CPU a reading, {read.us:.1f} are what a worker takes that only fetches and "
            f"parses them; in process folding takes {parts['fold']:.1f} besides parsing, and snapshots "
            f"{parts['snapshot']:.1f}; the other {found.us - read.us - inner:.1f} are producing what is said and the "
            f"changelogs, the tables on disk and the web pages. The worker had {found.shares['worker']:.0%} of a core, "
            f"Kafka {found.shares['broker']:.0%}"
        )
        raw = {
            "µs": found.us,
            "readings/s of wall": found.rate,
            "states a reading": found.states,
            "records said a reading": found.said,
            "ms a checkpoint": found.checkpoint_ms,
            "µs of the broker": found.broker_us,
        }
        least = _GOAL if every_s == _EVERY_S[0] else None
        each = {f"µs {name}": value for name, value in parts.items()}
        figures += [
            Figure("analyze", what, found.per_cpu_second, "readings/CPU-s", raw, least, bound=bound),
            Figure("analyze", f"{what}, in process alone", 1e6 / sum(parts.values()), "readings/CPU-s", each),
            Figure(
                "analyze",
                f"{what} / reading them alone (the limit)",
                read.us / found.us,
                "x",
                {"alone": read.per_cpu_second, "µs alone": read.us},
            ),
        ]
    return figures


def alone_us(items: Sequence[Item], times_ms: Sequence[int]) -> dict[str, float]:
    """CPU microseconds a reading of the analysis in this process: to parse it, to fold it, and for snapshots."""
    side: dict[tuple[str, bytes], bytes] = {}
    config = analysis.config(settings_of({}), 1)
    part = Partition(0, config, Rulebook(rules.profile("fire")), lambda table, key: side.get((table, key)))
    records = [Raw("decoded", 0, at, times_ms[at], *item) for at, item in enumerate(items)]
    begun = time.process_time()
    for record in records:
        wire.read(record.value)
    read = time.process_time() - begun
    fold = snapshot = 0.0
    for start in range(0, len(records), _CHUNK):
        chunk = records[start : start + _CHUNK]
        begun = time.process_time()
        part.fold(chunk, chunk[-1].timestamp)
        folded = time.process_time()
        fold += folded - begun
        if (start + len(chunk)) % _SNAPSHOT_EVERY == 0 or start + _CHUNK >= len(records):
            kept = part.snapshot(1)
            for table, key, value in [*(("state", *entry) for entry in kept.states), *kept.side]:
                if value is None:
                    side.pop((table, key), None)
                else:
                    side[table, key] = value
            kept.done()
            snapshot += time.process_time() - folded
    found = {"read": read, "fold": fold - read, "snapshot": snapshot}
    return {name: seconds / len(records) * 1e6 for name, seconds in found.items()}


async def memory(bench: Bench) -> list[Figure]:
    """What a worker holds for many devices: one that catches up, and the next, which restores that and goes on live."""
    devices = bench.counts.held
    count = devices * _HELD_TURNS
    items, times_ms = load.on_schedule(count, devices, _HELD_EVERY_S)
    async with Storeless(bench, "analyze") as pipeline:
        topic = pipeline.settings.topics.decoded
        async with Load(bench.servers, topic, items, times_ms) as sending:
            await sending.send()
        found, worker = await of_worker(bench, pipeline, count)
        _say(f"{devices:,} devices", found)
        await complete(bench, pipeline, worker, least_windows(devices, _HELD_TURNS, _HELD_EVERY_S))
        channels = total(worker.metrics(), "iotflow_channels")
        await worker.terminate()
        if channels != devices:
            raise RuntimeError(f"the state of {devices} devices should be kept, not of {channels:.0f}")
        worker = await pipeline.start("analyze", IOTFLOW_WEB_PORT=str(worker.port))
        async with Watch({"worker": worker.process.pid}, {}) as watch:
            await pipeline.settled(stages=["analyze"])
            written = total(worker.metrics(), "iotflow_states_total")
            begun = time.time()
            live = await _live(bench, topic, devices, bench.counts.live_s)
            ended = time.time()
            written = total(worker.metrics(), "iotflow_states_total") - written
            await pipeline.settled(stages=["analyze"])
        share = watch.shares(begun, ended)["worker"]
        after = rss_mb(worker.process.pid)
    what = f"{devices:,} devices x {METRICS} metrics"
    raw = {"MB after it": after, "readings/s": live / (ended - begun), "% of a core": share * 100}
    raw |= {"states written a reading": written / live}
    behind = {"readings/s": found.rate, "readings/CPU-s": found.per_cpu_second, "ms a checkpoint": found.checkpoint_ms}
    bound = (
        "it keeps each device's open windows and last values as objects, some 6 kB; the rest is Python with packages "
        "(90 MB), RocksDB (20 MB), and what closing windows need and say until the checkpoint"
    )
    return [
        Figure("analyze-memory", f"peak of {what}, live", watch.peak_mb["worker"], "MB", raw, _MEMORY_MB, at_most=True,
               bound=bound),
        Figure("analyze-memory", f"peak of {what}, catching up", found.peak_mb, "MB", behind),
    ]  # fmt: skip


async def _live(bench: Bench, topic: str, devices: int, seconds: int) -> int:
    """Send the readings of devices that have one in five seconds as they come; how many."""
    count = round(devices * seconds / _LIVE_EVERY_S)
    until = datetime.now(UTC) + timedelta(seconds=seconds + _PREPARING_S)
    items, times_ms = load.on_schedule(count, devices, _LIVE_EVERY_S, until=until)
    producer = AIOKafkaProducer(bootstrap_servers=bench.servers)
    await producer.start()
    try:
        partitions = len(await producer.partitions_for(topic))
        sent = list[Any]()
        for (key, value, headers), at_ms in zip(items, times_ms, strict=True):
            early_s = at_ms / 1000 - time.time()
            if early_s > 0:
                await asyncio.sleep(max(early_s, _TICK_S))
            place = partition_of((key or b"").decode(), partitions)
            message = {"key": key, "headers": headers, "partition": place, "timestamp_ms": at_ms}
            sent.append(await producer.send(topic, value, **message))
        await asyncio.gather(*sent)
    finally:
        await producer.stop()
    return count


async def detectors(bench: Bench) -> list[Figure]:
    """The three detectors on made-up series, in this process."""
    found = quiet.bench(PROFILES["default"], bench.counts.points)
    alarms = {f"alarms in 100,000 of {name}": each.alarms for name, each in found.series.items()}
    return [Figure("detectors", "all three", found.us_per_point, "µs/point", alarms, _DETECTORS_US, at_most=True)]
