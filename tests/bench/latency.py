"""From the receipt of a raw record to its being durable, at a steady rate; and what the workers hold then."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from msgspec import Struct

from app.telemetry import quantile
from tests.bench.bench import Bench
from tests.bench.figures import Figure
from tests.bench.load import METRICS
from tests.bench.watch import Watch, rss_mb
from tests.lab.pipeline import Pipeline

_RATE = 2000
_DEVICES = 10_000
#: ms, by quantile.
_TARGETS: Mapping[float, float | None] = {0.5: None, 0.95: 80, 0.99: 150}
_MEMORY_MB = 250


class Run(Struct):
    """What was found: ms by store and quantile (and of one write at p95), MB by stage, shares of a core by process."""

    ms: dict[str, dict[float, float]]
    write_ms: dict[str, float]
    memory_mb: dict[str, float]
    shares: dict[str, float]


async def one(bench: Bench, store: str, part: str) -> list[Figure]:
    """Decode and one store's worker."""
    found = await _run(bench, [store])
    share, write = found.shares, found.write_ms[store]
    bound = (
        f"one write takes {write:.0f} ms at p95; of one core the decode worker had {share['decode']:.0%}, the store "
        f"worker {share[store]:.0%}, the server {share['server of ' + store]:.0%} (its busiest process "
        f"{share['backend']:.0%}), Kafka {share['broker']:.0%}"
    )
    return [
        *(
            Figure(
                part,
                f"event to durable, p{q * 100:.0f}",
                value,
                "ms",
                {"write p95": write} if q == 0.95 else {},
                _TARGETS[q],
                at_most=True,
                bound=bound,
            )
            for q, value in found.ms[store].items()
        ),
        *(
            Figure(part, f"resident memory, {stage} worker", value, "MB", {}, _MEMORY_MB, at_most=True)
            for stage, value in found.memory_mb.items()
        ),
    ]


async def together(bench: Bench, stores: Sequence[str], part: str) -> list[Figure]:
    """Decode and every store's worker at once, for information."""
    found = await _run(bench, stores)
    cores = sum(share for name, share in found.shares.items() if name != "backend")
    return [
        *(
            Figure(
                part,
                f"event to durable in {store}, p95",
                found.ms[store][0.95],
                "ms",
                {f"p{q * 100:.0f}": value for q, value in found.ms[store].items()}
                | {"write p95": found.write_ms[store]},
            )
            for store in stores
        ),
        Figure(
            part, "workers and servers, of one core", cores * 100, "%", {n: s * 100 for n, s in found.shares.items()}
        ),
        Figure(part, "resident memory of all workers", sum(found.memory_mb.values()), "MB", found.memory_mb),
    ]


async def _run(bench: Bench, stores: Sequence[str]) -> Run:
    counts = bench.counts
    async with AsyncExitStack() as stack:
        labs = [await stack.enter_async_context(bench.place(store)) for store in stores]
        env = {name: value for lab in labs for name, value in lab.env.items()} | {"STORES": ",".join(stores)}
        pipeline = await stack.enter_async_context(Pipeline(bench.servers, env, bench.fresh("latency")))
        workers = await pipeline.started_all()
        storing = {lab.name: workers[lab.stage] for lab in labs}
        named = {"decode": workers["decode"], **storing}
        pids = {"broker": bench.broker} | {name: worker.process.pid for name, worker in named.items()}
        servers = {f"server of {lab.name}": bench.pids(lab.server_name) for lab in labs}

        async def send(seconds: int) -> int:
            sent = await pipeline.simulate(_RATE * seconds, rate=_RATE, devices=str(_DEVICES))
            return int(sent["good"])

        good = await send(counts.warm_s)
        await pipeline.settled()  # what new devices cost a store is not what is measured
        first = {store: worker.metrics() for store, worker in storing.items()}
        async with Watch(pids, servers) as watch:
            good += await send(counts.latency_s)
            ended = time.time()
            await pipeline.settled()
        last = {store: worker.metrics() for store, worker in storing.items()}
        memory = {name: rss_mb(worker.process.pid) for name, worker in named.items()}
        for lab in labs:
            async with lab.opened() as sink:
                found = await sink.count()
            if found != good * METRICS:
                raise RuntimeError(f"{lab.name}: {good * METRICS} values should be stored, not {found}")
        return Run(
            {
                store: {q: _quantile(first[store], last[store], "iotflow_durable_seconds", q) * 1000 for q in _TARGETS}
                for store in stores
            },
            {store: _quantile(first[store], last[store], "sink_query_seconds", 0.95) * 1000 for store in stores},
            memory,
            watch.shares(ended - counts.latency_s, ended),
        )


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
