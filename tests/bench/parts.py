"""The parts of the benchmark: each measures ours and the alternatives, in turn, on the same servers."""

import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path

import asyncpg
from msgspec import Struct

from app.telemetry import quantile
from deploy.local.kafka import Kafka
from deploy.local.postgres import DATABASE, USER, Postgres
from schemas.decoding import Item
from sinks import timescale
from tests.bench import load
from tests.bench.figures import Figure
from tests.bench.load import PARTITIONS, Load
from tests.bench.spec import Contender, Spec
from tests.bench.watch import Watch, cpu_s, rss_mb
from tests.lab.apps import create, unique
from tests.lab.pipeline import Pipeline, Process

METRICS = 3
_SETTLE_S = 1.0


class Counts(Struct, frozen=True):
    """How much of everything; stock Faust gets less, as it would take too long, which its rates do not feel."""

    rounds: int
    consume: int
    consume_stock: int
    decode: int
    decode_stock: int
    store: int
    store_stock: int
    latency_s: int
    warm_s: int


FULL = Counts(3, 600_000, 100_000, 400_000, 60_000, 200_000, 60_000, 30, 5)
QUICK = Counts(1, 60_000, 10_000, 40_000, 6_000, 40_000, 10_000, 8, 3)
#: One record in a thousand is bad, so that dead letters are part of the work.
_BAD = 0.001
_RATE = 2000


class Bench:
    """The servers, a folder, and how much to do."""

    def __init__(self, kafka: Kafka, postgres: Postgres, folder: Path, counts: Counts) -> None:
        self.kafka = kafka
        self.postgres = postgres
        self.folder = folder
        self.counts = counts

    @property
    def servers(self) -> str:
        """`host:port` of the broker."""
        return self.kafka.bootstrap

    @property
    def pids(self) -> dict[str, int]:
        """The broker's process, to be watched."""
        pid = self.kafka.status().pid
        assert pid is not None
        return {"broker": pid}

    @property
    def postmaster(self) -> int:
        """PostgreSQL's first process."""
        pid = self.postgres.status().pid
        assert pid is not None
        return pid

    def fresh(self, name: str) -> Path:
        """A new folder."""
        path = self.folder / unique(name)
        path.mkdir()
        return path

    def spec(self, kind: str, topic: str, **more: object) -> Spec:
        """A contender with a group and a folder of its own."""
        name = unique(kind)
        return Spec(kind, str(self.folder / name), self.servers, topic, name, PARTITIONS, **more)  # type: ignore[arg-type]

    @asynccontextmanager
    async def database(self) -> AsyncIterator[dict[str, str]]:
        """An empty database with the table in it, after a checkpoint: every round begins alike."""
        name = unique("bench").replace("-", "_")
        admin = await asyncpg.connect(self.postgres.dsn(user="postgres", database=DATABASE))
        try:
            await admin.execute(f"CREATE DATABASE {name} OWNER {USER}")
            env = {**self.postgres.environment(), "TIMESCALE_DB": name}
            owner = await asyncpg.connect(self.postgres.dsn(database=name))
            for statement in timescale.schema():
                await owner.execute(statement)
            await owner.close()
            await admin.execute("CHECKPOINT")
            try:
                yield env
            finally:
                await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        finally:
            await admin.close()

    async def rows(self, env: Mapping[str, str]) -> int:
        """How many rows are in a database's table."""
        connection = await asyncpg.connect(self.postgres.dsn(database=env["TIMESCALE_DB"]))
        try:
            return int(await connection.fetchval(f"SELECT count(*) FROM {timescale.TABLE}"))
        finally:
            await connection.close()


def say(text: str) -> None:
    """Progress, for whoever watches."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


async def rounds(
    count: int, runs: Mapping[str, Callable[[], Awaitable[float]]], once: Sequence[str]
) -> dict[str, float]:
    """Run contenders in turn, those in `once` in the first round alone; the median of each."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(count):
        for name, run in runs.items():
            if number and name in once:
                continue
            figure = await run()
            found[name].append(figure)
            say(f"  {name}: {figure:,.0f}")
    return {name: statistics.median(values) for name, values in found.items()}


# -- consume and decode: messages per CPU-second -----------------------------------------------------------------------


async def per_cpu_second(bench: Bench, pid: int, group: str, sending: Load) -> float:
    """Messages per CPU-second of a process that is ready: from before the records are sent to after their commit."""
    await asyncio.sleep(_SETTLE_S)
    before = cpu_s(pid)
    await sending.send()
    await load.until_committed(bench.servers, group, sending.topic, sending.count)
    return sending.count / (cpu_s(pid) - before)


async def consume(bench: Bench) -> list[Figure]:
    """Consume and decode one record, nothing else."""
    counts = bench.counts
    items, _ = load.raw(max(counts.consume, counts.consume_stock), 0.0)

    async def run(kind: str, count: int) -> float:
        topic = unique("consume")
        await create(bench.servers, topic, PARTITIONS)
        spec = bench.spec(kind, topic)
        async with Load(bench.servers, topic, items[:count]) as sending, Contender(spec) as contender:
            return await per_cpu_second(bench, contender.pid, spec.group, sending)

    raw = await rounds(
        counts.rounds,
        {
            "ours": lambda: run("ours-consume", counts.consume),
            "bare": lambda: run("bare-consume", counts.consume),
            "stock": lambda: run("stock-consume", counts.consume_stock),
        },
        ["stock"],
    )
    return [
        Figure("consume", "ours", raw["ours"], "messages/CPU-s", {}),
        Figure("consume", "ours / stock Faust", raw["ours"] / raw["stock"], "x", raw),
        Figure("consume", "ours / bare aiokafka (the limit)", raw["ours"] / raw["bare"], "x", raw),
    ]


async def decode(bench: Bench) -> list[Figure]:
    """The decode stage: raw to decoded, produced and acknowledged, dead letters included."""
    counts = bench.counts
    memory: list[float] = []

    async def complete(count: int, bad: int, out: str, dead: str) -> None:
        found = (await load.ends(bench.servers, out), await load.ends(bench.servers, dead))
        if found[0] < count - bad or found[1] < bad:
            raise RuntimeError(f"{count - bad} readings and {bad} letters should be there, not {found}")

    async def ours() -> float:
        items, bad = load.raw(counts.decode, _BAD)
        async with Pipeline(bench.servers, bench.postgres.environment(), bench.fresh("decode")) as pipeline:
            worker = await pipeline.started("decode")
            async with Load(bench.servers, pipeline.raw, items) as sending:
                group = pipeline.settings.app_id("decode")
                figure = await per_cpu_second(bench, worker.process.pid, group, sending)
            memory.append(rss_mb(worker.process.pid))
            topics = pipeline.settings.topics
            await complete(counts.decode, bad, topics.decode_output, topics.dead_letters)
            return figure

    async def other(kind: str, count: int) -> float:
        items, bad = load.raw(count, _BAD)
        name = unique("decode")
        topic, out, dead = f"{name}-raw", f"{name}-decoded", f"{name}-dead"
        for each in (topic, out, dead):
            await create(bench.servers, each, PARTITIONS)
        spec = bench.spec(kind, topic, decoded=out, dead=dead)
        async with Load(bench.servers, topic, items) as sending, Contender(spec) as contender:
            figure = await per_cpu_second(bench, contender.pid, spec.group, sending)
        await complete(count, bad, out, dead)
        return figure

    raw = await rounds(
        counts.rounds,
        {
            "ours": ours,
            "bare": lambda: other("bare-decode", counts.decode),
            "stock": lambda: other("stock-decode", counts.decode_stock),
        },
        ["stock"],
    )
    ours_us, bare_us, alone_us = 1e6 / raw["ours"], 1e6 / raw["bare"], load.decoder_us(bench.spec("", "t", decoded="d"))
    bound = (
        f"of {ours_us:.1f} µs of CPU a message, {bare_us:.1f} are what a bare loop with the same decoder and producer "
        f"takes on this machine ({alone_us:.1f} of them the decoder alone, the rest getmany and producing), and "
        f"{ours_us - bare_us:.1f} are Faust, the transport and the worker"
    )
    return [
        Figure("decode", "ours", raw["ours"], "messages/CPU-s", {}, 120_000, bound=bound),
        Figure("decode", "ours / stock Faust", raw["ours"] / raw["stock"], "x", raw, 10, bound=bound),
        Figure("decode", "ours / bare aiokafka (the limit)", raw["ours"] / raw["bare"], "x", raw),
        Figure("decode", "resident memory after it", max(memory), "MB", {}, 250, at_most=True),
    ]


# -- store: rows per second of wall ------------------------------------------------------------------------------------


class Stored(Struct):
    """One run of a store: rows a second between 10 % and 90 % of the rows, and what a row cost meanwhile.

    `batch` is the mean of rows written at once, which should be the same for all that are compared.
    """

    rate: float
    client_us: float
    backend_us: float
    batch: float
    shares: dict[str, float]
    peak_mb: float


def window(points: Sequence[tuple[float, int]], total: int) -> tuple[float, float, int]:
    """When the first tenth and nine tenths of the rows were stored, and how many rows came in between."""
    stored, marks = 0, list[tuple[float, int]]()
    for at, rows in points:
        stored += rows
        if len(marks) < 2 and stored >= total * (0.1, 0.9)[len(marks)]:
            marks.append((at, stored))
    (start, first), (end, last) = marks
    return start, end, last - first


def of_progress(path: Path) -> list[tuple[float, int]]:
    """The batches that a contender told of: when, and how many rows."""
    if not path.exists():
        return []
    lines = (line.split() for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
    return [(float(at), int(rows)) for at, rows in lines]


def of_log(worker: Process) -> list[tuple[float, int]]:
    """The batches that our worker logged: exact, and without asking it anything while it works."""
    lines = (json.loads(line) for line in worker.log.splitlines(keepends=True) if _whole(line))
    return [
        (datetime.fromisoformat(line["ts"]).timestamp(), line["rows"])
        for line in lines
        if line["event"] == "batch stored"
    ]


def _whole(line: str) -> bool:
    return line.startswith("{") and line.endswith("}\n")


async def until_stored(points: Callable[[], Sequence[tuple[float, int]]], total: int) -> list[tuple[float, int]]:
    """Wait until `total` rows are stored; bounded by the caller."""
    while True:
        found = points()
        if sum(rows for _, rows in found) >= total:
            return list(found)
        await asyncio.sleep(0.25)


def _summary(points: Sequence[tuple[float, int]], total: int, watch: Watch) -> Stored:
    start, end, rows = window(points, total)
    used = watch.used(start, end)
    return Stored(
        rows / (end - start),
        used["client"] / rows * 1e6,
        used["backend"] / rows * 1e6,
        rows / sum(start < at <= end for at, _ in points),
        watch.shares(start, end),
        watch.peak_mb["client"],
    )


async def store_ours(bench: Bench, topic: str, rows: int) -> Stored:
    """Our worker on a preloaded topic."""
    async with (
        bench.database() as env,
        Pipeline(bench.servers, env, bench.fresh("store"), KAFKA_INPUT_TOPIC=topic) as pipeline,
    ):
        worker = await pipeline.start("store-timescale")
        async with Watch({**bench.pids, "client": worker.process.pid}, bench.postmaster) as watch:
            points = await until_stored(lambda: of_log(worker), rows)
            await asyncio.sleep(0.5)
        await _complete(bench, env, rows)
        return _summary(points, rows, watch)


async def store_other(bench: Bench, kind: str, topic: str, count: int, rows: int) -> Stored:
    """Another contender; it is stopped after `rows` rows."""
    async with bench.database() as env, Contender(bench.spec(kind, topic, database=env, count=count)) as contender:
        async with Watch({**bench.pids, "client": contender.pid}, bench.postmaster) as watch:
            points = await until_stored(lambda: of_progress(contender.spec.progress), rows)
            await asyncio.sleep(0.5)
        await _complete(bench, env, rows)
        return _summary(points, rows, watch)


async def _complete(bench: Bench, env: Mapping[str, str], rows: int) -> None:
    found = await bench.rows(env)
    if found < rows:
        raise RuntimeError(f"{rows} rows should be stored, not {found}")


async def store(bench: Bench) -> list[Figure]:
    """The TimescaleDB store end to end, against the same statements on one bare connection."""
    counts = bench.counts
    rows = counts.store * METRICS
    runs: dict[str, list[Stored]] = {}
    async with Pipeline(bench.servers, bench.postgres.environment(), bench.fresh("preload")) as pipeline:
        topic = pipeline.settings.topics.decoded
        items: list[Item] = load.decoded(counts.store)
        async with Load(bench.servers, topic, items) as sending:
            await sending.send()
        del items

        async def run(name: str, one: Awaitable[Stored]) -> None:
            found = await one
            runs.setdefault(name, []).append(found)
            say(
                f"  {name}: {found.rate:,.0f} rows/s, {found.client_us:.1f} µs a row of the client and "
                f"{found.backend_us:.1f} of PostgreSQL, {found.batch:,.0f} rows a batch"
            )

        for _ in range(min(counts.rounds, 2)):
            await run("ours", store_ours(bench, topic, rows))
            await run("bare", store_other(bench, "bare-store", topic, counts.store, rows))
            await run("bare, prepared ahead", store_other(bench, "bare-store-ahead", topic, counts.store, rows))
        await run("stock", store_other(bench, "stock-store", topic, counts.store, counts.store_stock * METRICS))
    return _store_figures(runs)


def _store_figures(runs: Mapping[str, Sequence[Stored]]) -> list[Figure]:
    raw = {name: statistics.median(each.rate for each in found) for name, found in runs.items()}
    cost = {name: statistics.median(each.client_us for each in found) for name, found in runs.items()}
    bound = _busy(runs["ours"][-1], runs["bare"][-1])
    client = (
        f"the bare loop takes {cost['bare']:.1f} µs a row to prepare and send, {cost['bare, prepared ahead']:.1f} to "
        "send alone; what is above that is fetching, decoding, Faust and delivery"
    )
    names = {"ours": "ours", "bare": "bare", "bare, prepared ahead": "bare ahead", "stock": "stock"}
    raw = {names[name]: value for name, value in raw.items()}
    cost = {names[name]: value for name, value in cost.items()}
    peak = max(each.peak_mb for each in runs["ours"])
    return [
        Figure("store", "ours / bare asyncpg", raw["ours"] / raw["bare"], "x", raw, 0.85, bound=bound),
        Figure("store", "ours / bare, rows prepared ahead", raw["ours"] / raw["bare ahead"], "x", raw, bound=bound),
        Figure("store", "ours / stock Faust", raw["ours"] / raw["stock"], "x", raw, bound=bound),
        Figure("store", "client CPU of ours", cost["ours"], "µs/row", cost, 6, at_most=True, bound=client),
        Figure(
            "store",
            "rows in a batch of ours",
            runs["ours"][-1].batch,
            "rows",
            {n: r[-1].batch for n, r in runs.items()},
        ),
        Figure("store", "peak resident memory in catch-up", peak, "MB", {}, 250, at_most=True),
    ]


def _busy(ours: Stored, bare: Stored) -> str:
    """What our store waited for, by the CPU shares of one interval."""
    share = ours.shares
    said = (
        f"of one core the worker had {share['client']:.0%}, its PostgreSQL backend {share['backend']:.0%} (all of "
        f"PostgreSQL {share['postgres']:.0%}) and Kafka {share['broker']:.0%}; with the bare loop the backend had "
        f"{bare.shares['backend']:.0%}. A row cost PostgreSQL {ours.backend_us:.1f} µs of CPU with ours and "
        f"{bare.backend_us:.1f} with the bare loop, in batches of {ours.batch:,.0f} and {bare.batch:,.0f} rows"
    )
    if share["backend"] > 0.9:
        return f"PostgreSQL: {said}"
    if share["client"] > 0.9:
        return f"the worker's CPU: {said}"
    return f"neither is busy all the time, so they wait for each other, for the disk or for a core: {said}"


# -- latency and memory ------------------------------------------------------------------------------------------------


async def latency(bench: Bench) -> list[Figure]:
    """From the receipt of a raw record to its row being durable, at a steady rate; and what the workers hold then."""
    counts = bench.counts
    async with (
        bench.database() as env,
        Pipeline(bench.servers, env, bench.fresh("latency")) as pipeline,
    ):
        decoder = await pipeline.started("decode")
        storer = await pipeline.started("store-timescale")
        pids = {**bench.pids, "decode": decoder.process.pid, "client": storer.process.pid}
        seconds = counts.warm_s + counts.latency_s
        fleet = asyncio.create_task(pipeline.simulate(_RATE * seconds, rate=_RATE, devices="10000"))
        async with Watch(pids, bench.postmaster) as watch:
            while storer.metric("iotflow_rows_total") < _RATE * METRICS * counts.warm_s:
                if fleet.done():
                    await fleet
                    raise RuntimeError("the simulator ended before the warm-up did")
                await asyncio.sleep(0.2)
            first, begun = storer.metrics(), time.time()
            await fleet
            ended = time.time()
            await pipeline.settled()
            last = storer.metrics()
        memory = {"decode": rss_mb(decoder.process.pid), "store": rss_mb(storer.process.pid)}
        shares = watch.shares(begun, ended)
    found = {f"p{q * 100:.0f}": _quantile(first, last, "iotflow_durable_seconds", q) * 1000 for q in (0.5, 0.95, 0.99)}
    write = _quantile(first, last, "sink_query_seconds", 0.95) * 1000
    bound = (
        f"one write takes {write:.0f} ms at p95; of one core the decode worker had {shares['decode']:.0%}, the store "
        f"worker {shares['client']:.0%}, its PostgreSQL backend {shares['backend']:.0%}, Kafka {shares['broker']:.0%}"
    )
    return [
        Figure("latency", "event to durable, p50", found["p50"], "ms", {}, bound=bound),
        Figure("latency", "event to durable, p95", found["p95"], "ms", {}, 80, at_most=True, bound=bound),
        Figure("latency", "event to durable, p99", found["p99"], "ms", {}, 150, at_most=True, bound=bound),
        *(
            Figure("latency", f"resident memory, {name} worker", value, "MB", {}, 250, at_most=True)
            for name, value in memory.items()
        ),
    ]


def _quantile(first: Mapping[str, float], last: Mapping[str, float], name: str, q: float) -> float:
    """A quantile of what a histogram counted between two readings of a worker's metrics."""
    below: dict[float, float] = {}
    for sample, value in last.items():
        if sample.startswith(f"{name}_bucket{{"):
            bound = float(sample.partition("le=")[2].partition(",")[0].rstrip("}"))
            below[bound] = below.get(bound, 0.0) + value - first.get(sample, 0.0)
    bounds = sorted(below)
    counts = [below[bound] - (below[bounds[index - 1]] if index else 0.0) for index, bound in enumerate(bounds)]
    found = quantile(bounds[:-1], counts, q)
    assert found is not None
    return found


async def peers(bench: Bench) -> list[Figure]:
    """Other frameworks are no dependencies of ours, so they are compared by hand."""
    del bench
    say(
        "  skipped: peers are not installed. By hand: a virtualenv of its own with quixstreams or bytewax, a consumer "
        "of JSON records (tests/bench/load.py, raw) that decodes and commits, and its CPU seconds over 600,000 of them "
        "as parts.per_cpu_second takes them, next to `--only consume` on the same machine; targets 2x and 1.2x"
    )
    return []


#: Each part, with the seconds after which it is given up.
PARTS: Mapping[str, tuple[Callable[[Bench], Awaitable[list[Figure]]], float]] = {
    "consume": (consume, 100.0),
    "decode": (decode, 130.0),
    "store": (store, 140.0),
    "latency": (latency, 85.0),
    "peers": (peers, 5.0),
}
