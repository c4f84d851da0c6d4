"""From the receipt of an anomalous raw record to the event that says so, at a steady rate."""

import asyncio
import json
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from random import Random
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from msgspec import Struct

from app import check
from schemas.partition import partition_of
from tests.bench.analyze import total
from tests.bench.bench import Bench, Storeless, say
from tests.bench.figures import Figure
from tests.bench.load import PARTITIONS
from tests.bench.watch import Watch
from tests.lab.apps import create
from tests.lab.pipeline import Pipeline
from tests.lab.stores import StoreLab

_RATE = 2000
_DEVICES = 10_000
#: One reading in so many is anomalous, each of another device; hotter than the rule's 80.
_ANOMALOUS = 100
_HOT = 85.0
_TICK_S = 0.01
#: ms, by quantile.
_TARGETS: Mapping[float, float | None] = {0.5: None, 0.95: 250, 0.99: None}
_SILENCE_S = 30.0


class Run(Struct):
    """Latencies (ms) of each anomalous reading: of all of it, until it was decoded, and from then on.

    `shares` are of one core, by process, while the readings came.
    """

    total: list[float]
    decoded: list[float]
    said: list[float]
    shares: dict[str, float]
    peak_mb: float
    checkpoint_ms: float
    rate: float


async def latency(bench: Bench, store: str) -> list[Figure]:
    """Decode and analyze by themselves, and beside a store whose server stands still."""
    found = {"no store": await _run(bench, Storeless(bench, "alarms"), None)}
    async with bench.place(store) as lab:
        pipeline = Pipeline(bench.servers, {**lab.env, "STORES": store}, bench.fresh("alarms"))
        found[f"{store} stands still"] = await _run(bench, pipeline, lab)
    return [figure for what, run in found.items() for figure in _figures(what, run)]


async def _run(bench: Bench, pipeline: Pipeline, lab: StoreLab | None) -> Run:
    topics = pipeline.settings.topics
    # Of these the broker says itself when it had a record.
    own = {"raw": pipeline.raw, "decoded": topics.decoded, "said": topics.anomalies}
    for topic in own.values():
        await create(bench.servers, topic, PARTITIONS, **{"message.timestamp.type": "LogAppendTime"})
    async with pipeline:
        stages = ["decode", "analyze", *([lab.stage] if lab else [])]
        workers = await pipeline.started_all(stages)
        pids = {name: worker.process.pid for name, worker in workers.items()}
        with ExitStack() as stack:
            await _send(bench, pipeline.raw, bench.counts.warm_s, hot=False)
            await pipeline.settled(stages=stages)  # what a new device costs is not what is measured
            if lab:
                stack.enter_context(lab.frozen())
            async with Watch({**pids, "broker": bench.broker}, {}) as watch:
                begun = time.time()
                sent = await _send(bench, pipeline.raw, bench.counts.latency_s, hot=True)
                ended = time.time()
                await pipeline.settled(stages=["decode", "analyze"])
            metrics = workers["analyze"].metrics()
            at = {name: await _times(pipeline, topic) for name, topic in own.items()}
    if at["said"].keys() != at["raw"].keys() or not at["raw"]:
        raise RuntimeError(f"{len(at['raw'])} anomalies were sent, and {len(at['said'])} said")

    def between(first: str, second: str) -> list[float]:
        return sorted(float(at[second][device] - ms) for device, ms in at[first].items())

    checkpoints = max(1.0, total(metrics, "iotflow_checkpoint_seconds_count"))
    found = Run(
        between("raw", "said"),
        between("raw", "decoded"),
        between("decoded", "said"),
        {name: share for name, share in watch.shares(begun, ended).items() if name in watch.peak_mb},
        watch.peak_mb["analyze"],
        total(metrics, "iotflow_checkpoint_seconds_sum") / checkpoints * 1000,
        sent / (ended - begun),
    )
    say(f"  {lab.name + ' stands still' if lab else 'no store'}: p95 {quantile(found.total, 0.95):.0f} ms")
    return found


async def _send(bench: Bench, topic: str, seconds: int, *, hot: bool) -> int:
    """Send readings at the rate, some of them anomalous; how many."""
    random = Random(seconds)
    producer = AIOKafkaProducer(bootstrap_servers=bench.servers)
    await producer.start()
    try:
        begun, count, sent = time.monotonic(), _RATE * seconds, list[Any]()
        while len(sent) < count:
            due = min(count, int((time.monotonic() - begun) * _RATE))
            now = datetime.now(UTC).isoformat()
            for number in range(len(sent), due):
                turn, device = divmod(number, _DEVICES)
                anomalous = hot and number % _ANOMALOUS == turn % _ANOMALOUS
                name = f"dev-{device}"
                reading = {
                    "device_id": name,
                    "timestamp": now,
                    "temperature": _HOT if anomalous else round(20.0 + random.random(), 2),
                    "humidity": round(50.0 + random.random(), 2),
                    "battery": 90.5,
                }
                place = partition_of(name, PARTITIONS)
                sent.append(
                    await producer.send(topic, msgspec.json.encode(reading), key=name.encode(), partition=place)
                )
            await asyncio.sleep(_TICK_S)
        await asyncio.gather(*sent)
    finally:
        await producer.stop()
    return len(sent)


async def _times(pipeline: Pipeline, topic: str) -> dict[str, int]:
    """When the broker had what a topic says of each anomaly (ms), by device."""
    found: dict[str, int] = {}
    for record in await check.tail(pipeline.settings, topic, silence=_SILENCE_S):
        said = json.loads(record.value)
        value = said.get("temperature", said.get("value", said.get("values", {}).get("temperature")))
        if value == _HOT:
            device = said.get("device_id") or said["equipment_id"]
            found.setdefault(device, record.timestamp)
    return found


def quantile(values: list[float], q: float) -> float:
    """A quantile of sorted values: the least that so many are not above."""
    return values[min(len(values) - 1, int(q * len(values)))]


def _figures(what: str, run: Run) -> list[Figure]:
    bound = (
        f"until it was decoded it took {quantile(run.decoded, 0.95):.0f} ms at p95, from then on "
        f"{quantile(run.said, 0.95):.0f}; a checkpoint took {run.checkpoint_ms:.0f} ms on average; of one core "
        + ", ".join(f"{name} had {share:.0%}" for name, share in run.shares.items())
    )
    figures = []
    for q, target in _TARGETS.items():
        raw = {"until decoded": quantile(run.decoded, q), "from then on": quantile(run.said, q)}
        if q == 0.5:
            raw |= {"anomalies": float(len(run.total)), "readings/s": run.rate, "ms a checkpoint": run.checkpoint_ms}
            raw |= {f"% of a core, {name}": share * 100 for name, share in run.shares.items()}
        if q == max(_TARGETS):
            raw |= {"highest": run.total[-1], "peak MB of analyze": run.peak_mb}
        figures.append(
            Figure(
                "alarm-latency",
                f"p{q * 100:.0f}, {what}",
                quantile(run.total, q),
                "ms",
                raw,
                target,
                at_most=True,
                bound=bound,
            )
        )
    return figures
