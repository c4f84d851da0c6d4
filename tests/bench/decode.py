"""Consuming alone, and the decode stage: messages per CPU-second."""

import asyncio

from tests.bench import load
from tests.bench.bench import Bench, Storeless, rounds
from tests.bench.figures import Figure
from tests.bench.load import PARTITIONS, Load
from tests.bench.spec import Contender
from tests.bench.watch import cpu_s, rss_mb
from tests.lab.apps import create, unique

_SETTLE_S = 1.0
#: One record in a thousand is bad, so that dead letters are part of the work.
_BAD = 0.001


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
        async with Storeless(bench, "decode") as pipeline:
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
