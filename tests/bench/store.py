"""A store end to end, against its driver alone on the same batches: rows per second of wall."""

import asyncio
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from typing import NamedTuple

import psutil
from msgspec import Struct

from tests.bench import load
from tests.bench.bench import Bench, Storeless, say
from tests.bench.figures import Figure
from tests.bench.load import METRICS, Load
from tests.bench.spec import Contender
from tests.bench.stores import Bare, bare_of
from tests.bench.watch import Watch
from tests.lab.pipeline import Pipeline, Process
from tests.lab.stores import StoreLab

#: From this share of what there is, something counts as busy.
_BUSY = 0.9


class Batch(NamedTuple):
    """What was stored at once, and when."""

    at: float
    rows: int
    readings: int


class Stored(Struct):
    """One run: rows a second between 10 % and 90 % of the rows, and what a row cost meanwhile.

    `batch` is the mean of rows written at once, which should be the same for all that are compared.
    """

    rate: float
    client_us: float
    server_us: float
    batch: float
    shares: dict[str, float]
    peak_mb: float


def window(batches: Sequence[Batch]) -> tuple[float, float, int]:
    """When the first tenth and nine tenths of the rows were stored, and how many rows came in between."""
    total = sum(batch.rows for batch in batches)
    stored, marks = 0, list[tuple[float, int]]()
    for batch in batches:
        stored += batch.rows
        if len(marks) < 2 and stored >= total * (0.1, 0.9)[len(marks)]:
            marks.append((batch.at, stored))
    (start, first), (end, last) = marks
    return start, end, last - first


def of_progress(contender: Contender) -> list[Batch]:
    """The batches that a contender told of."""
    contender.fail_if_ended()
    path = contender.spec.progress
    if not path.exists():
        return []
    lines = (line.split() for line in path.read_text().splitlines(keepends=True) if line.endswith("\n"))
    return [Batch(float(at), int(rows), int(readings)) for at, rows, readings in lines]


def of_log(worker: Process) -> list[Batch]:
    """The batches that our worker logged: exact, and without asking it anything while it works."""
    if worker.process.returncode is not None:
        raise RuntimeError(f"the worker ended with {worker.process.returncode}")
    lines = (json.loads(line) for line in worker.log.splitlines(keepends=True) if _whole(line))
    return [
        Batch(datetime.fromisoformat(line["ts"]).timestamp(), line["rows"], line["readings"])
        for line in lines
        if line["event"] == "batch stored"
    ]


def _whole(line: str) -> bool:
    return line.startswith("{") and line.endswith("}\n")


async def _measured(bench: Bench, lab: StoreLab, pid: int, batches: Callable[[], list[Batch]], count: int) -> Stored:
    """Watch a process until it has stored so many readings, and see that they are there; bounded by the caller.

    `batches` are those until now; it raises when there will be no more.
    """
    async with Watch({"client": pid, "broker": bench.broker}, {"server": bench.pids(lab.server_name)}) as watch:
        while True:
            stored = batches()
            if sum(batch.readings for batch in stored) >= count:
                break
            await asyncio.sleep(0.25)
        await asyncio.sleep(0.5)
    async with lab.opened() as sink:
        found = await sink.count()
    if found < count * METRICS:
        raise RuntimeError(f"{count * METRICS} values should be stored, not {found}")
    start, end, rows = window(stored)
    used = watch.used(start, end)
    return Stored(
        rows / (end - start),
        used["client"] / rows * 1e6,
        used["server"] / rows * 1e6,
        rows / sum(start < batch.at <= end for batch in stored),
        watch.shares(start, end),
        watch.peak_mb["client"],
    )


async def ours(bench: Bench, store: str, topic: str, count: int) -> Stored:
    """Our worker on a preloaded topic."""
    async with bench.place(store) as lab:
        env = {**lab.env, "STORES": store}
        async with Pipeline(bench.servers, env, bench.fresh("store"), KAFKA_INPUT_TOPIC=topic) as pipeline:
            worker = await pipeline.start(lab.stage)
            return await _measured(bench, lab, worker.process.pid, lambda: of_log(worker), count)


async def other(bench: Bench, store: str, kind: str, topic: str, loaded: int, count: int) -> Stored:
    """Another contender on a topic with `loaded` readings; it is stopped after `count`."""
    async with bench.place(store) as lab:
        spec = bench.spec(kind, topic, store=store, place=lab.env, count=loaded)
        async with Contender(spec) as contender:
            return await _measured(bench, lab, contender.pid, lambda: of_progress(contender), count)


async def limit(bench: Bench, store: str, topic: str, count: int) -> float:
    """What the server takes at most, in rows a second: prepared batches through as many connections as it has cores."""
    width = psutil.cpu_count() or 1
    async with bench.place(store) as lab, AsyncExitStack() as stack:
        contenders = [
            await stack.enter_async_context(
                Contender(
                    bench.spec(
                        "bare-store-ahead", topic, store=store, place=lab.env, count=count, of=width, share=share
                    )
                )
            )
            for share in range(width)
        ]
        for contender in contenders:
            contender.spec.go.touch()
        while True:
            stored = sorted(batch for contender in contenders for batch in of_progress(contender))
            if sum(batch.readings for batch in stored) >= count:
                break
            await asyncio.sleep(0.25)
        async with lab.opened() as sink:
            found = await sink.count()
    if found < count * METRICS:
        raise RuntimeError(f"{count * METRICS} values should be stored, not {found}")
    start, end, rows = window(stored)
    rate = rows / (end - start)
    say(f"  the server's limit, by {width} connections: {rate:,.0f} rows/s")
    return rate


async def measure(bench: Bench, store: str, part: str) -> list[Figure]:
    """Our worker and its alternatives in turn."""
    bare = bare_of(store)
    counts = bench.counts
    count = counts.store * (bare.times if bare else 1)
    kinds = {"bare": "bare-store", "bare ahead": "bare-store-ahead"} if bare else {}
    if bare and bare.public:
        kinds["public API"] = "bare-store-public"
    if bare is None:
        say(f"  without its bare client: there is no tests/bench/stores/{store}.py")
    runs: dict[str, list[Stored]] = {}
    async with Storeless(bench, "preload") as pipeline:
        topic = pipeline.settings.topics.decoded
        async with Load(bench.servers, topic, load.decoded(count)) as sending:
            await sending.send()

        async def run(name: str) -> None:
            if name == "ours":
                found = await ours(bench, store, topic, count)
            elif name == "stock":
                found = await other(bench, store, "stock-store", topic, count, counts.store_stock)
            else:
                found = await other(bench, store, kinds[name], topic, count, count)
            runs.setdefault(name, []).append(found)
            say(
                f"  {name}: {found.rate:,.0f} rows/s, {found.client_us:.1f} µs a row of the client and "
                f"{found.server_us:.1f} of the server, {found.batch:,.0f} rows a batch"
            )

        if bare and bare.warm_up:
            say("  warming the server up")
            await run("bare")
            runs.clear()
        contenders = ["ours", *kinds]
        for _ in range(min(counts.rounds, 2)):
            for name in contenders:
                await run(name)
            contenders.reverse()  # a server that gets faster, or slower, does so for all alike
        if bare and bare.stock:
            await run("stock")
        most = await limit(bench, store, topic, count) if bare else 0.0
    return _figures(part, runs, bare, most)


def _figures(part: str, runs: Mapping[str, Sequence[Stored]], bare: type[Bare] | None, most: float) -> list[Figure]:
    rate = {name: statistics.median(each.rate for each in found) for name, found in runs.items()}
    cost = {name: statistics.median(each.client_us for each in found) for name, found in runs.items()}
    batch = {name: found[-1].batch for name, found in runs.items()}
    bound = _bound(runs)
    several = {"several connections": most}
    client_us, least = (bare.client_us, bare.ratio) if bare else (None, None)
    client = ""
    if "bare" in cost:
        client = (
            f"the bare loop takes {cost['bare']:.1f} µs a row to prepare and send, {cost['bare ahead']:.1f} to send "
            "alone; what is above that is fetching, decoding, Faust and delivery"
        )
    ratios = {
        "bare": ("bare client", least),
        "bare ahead": ("bare client, prepared ahead", None),
        "public API": ("bare client, its public API", least),
        "stock": ("stock Faust", None),
    }
    return [
        Figure(part, "ours", rate["ours"], "rows/s", rate),
        *(
            Figure(part, f"ours / {what}", rate["ours"] / rate[name], "x", {}, target, bound=bound)
            for name, (what, target) in ratios.items()
            if name in rate
        ),
        *(
            [Figure(part, "ours / the most the server took", rate["ours"] / max(most, *rate.values()), "x", several)]
            if most
            else []
        ),
        Figure(part, "client CPU of ours", cost["ours"], "µs/row", cost, client_us, at_most=True, bound=client),
        Figure(part, "rows in a batch of ours", batch["ours"], "rows", batch),
        Figure(
            part,
            "peak resident memory in catch-up",
            max(each.peak_mb for each in runs["ours"]),
            "MB",
            {name: max(each.peak_mb for each in found) for name, found in runs.items()},
            250,
            at_most=True,
        ),
    ]


def _bound(runs: Mapping[str, Sequence[Stored]]) -> str:
    """What our store waited for, by the CPU shares of one interval."""
    found = runs["ours"][-1]
    share = found.shares
    cores = psutil.cpu_count() or 1
    said = (
        f"of one core the worker had {share['client']:.0%}, the server {share['server']:.0%} (its busiest process "
        f"{share['backend']:.0%}) and Kafka {share['broker']:.0%}"
    )
    for name, other_runs in runs.items():
        if name != "ours":
            each = other_runs[-1]
            said += (
                f"; with {name} the client had {each.shares['client']:.0%} and the server {each.shares['server']:.0%}"
            )
    said += ". A row cost the server " + ", ".join(
        f"{each[-1].server_us:.1f} µs ({name}, {each[-1].batch:,.0f} rows a batch)" for name, each in runs.items()
    )
    if share["client"] + share["server"] + share["broker"] > _BUSY * cores:
        return f"all {cores} cores: {said}"
    if share["backend"] > _BUSY:
        return f"the server: {said}"
    if share["client"] > _BUSY:
        return f"the worker's CPU: {said}"
    return f"neither is busy all the time, so they wait for each other, for the disk or for a core: {said}"
