"""What every part of the benchmark is given: the servers, folders and places of its own, and how much to do."""

import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec import Struct

from app import kafka, topics
from deploy.local.kafka import Kafka
from deploy.local.stack import Stack
from tests.bench.load import PARTITIONS
from tests.bench.spec import Spec
from tests.bench.stores import bare_of
from tests.lab.apps import unique
from tests.lab.pipeline import Pipeline
from tests.lab.stores import StoreLab, lab_of


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
    dialects: int
    batches: int
    analyze: int
    #: Devices whose state is held in memory, and restored.
    held: int
    #: So long they then send readings.
    live_s: int
    #: Points of each series for the detectors.
    points: int


FULL = Counts(3, 600_000, 100_000, 400_000, 60_000, 200_000, 60_000, 30, 7, 200_000, 300, 400_000, 10_000, 75, 100_000)
QUICK = Counts(1, 60_000, 10_000, 40_000, 6_000, 40_000, 10_000, 8, 5, 10_000, 30, 80_000, 1_000, 10, 5_000)


class Bench:
    """The servers, a folder, and how much to do."""

    def __init__(self, stack: Stack, folder: Path, counts: Counts) -> None:
        self.stack = stack
        self.folder = folder
        self.counts = counts

    @property
    def servers(self) -> str:
        """`host:port` of the broker."""
        broker = self.stack.servers["kafka"]
        assert isinstance(broker, Kafka)
        return broker.bootstrap

    @property
    def broker(self) -> int:
        """The broker's process."""
        (pid,) = self.pids("kafka")
        return pid

    def pids(self, server: str) -> list[int]:
        """A server's first processes; none where a store needs no server."""
        if not server:
            return []
        found: Any = self.stack.servers[server]
        processes = [found._process(part).find() for part in found.parts]
        assert all(processes), f"{server} does not run"
        return [process.pid for process in processes]

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
    async def place(self, store: str) -> AsyncIterator[StoreLab]:
        """An empty place in a store, with its schema, where every round begins alike."""
        kind = lab_of(store)
        lab = kind(store, self.stack.servers.get(kind.server_name))
        await lab.make()
        try:
            await lab.apply_schema()
            if (bare := bare_of(store)) is not None:
                await bare.settle(lab)
            yield lab
        finally:
            await lab.drop()


class Storeless(Pipeline):
    """Topics and workers that need no store."""

    def __init__(self, bench: Bench, name: str, **more: str) -> None:
        super().__init__(bench.servers, {}, bench.fresh(name), **more)

    async def __aenter__(self) -> "Storeless":
        async with kafka.admin(self.settings) as admin:
            await topics.apply(admin, await topics.plan(admin, topics.wanted(self.settings)))
        return self


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
