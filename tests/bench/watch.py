"""CPU time and memory of processes while something is measured."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import psutil

_EVERY_S = 0.2
_CHILDREN_EVERY_S = 1.0


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, all its threads together."""
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def rss_mb(pid: int) -> float:
    """Resident memory of a process, in MB."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


class Watch:
    """Samples named processes and PostgreSQL's children inside the block; `shares` says who was busy when."""

    def __init__(self, pids: Mapping[str, int], postgres: int) -> None:
        self._named = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._postgres = psutil.Process(postgres)
        self._children: list[psutil.Process] = []
        self._samples: list[tuple[float, dict[str | int, float]]] = []
        self._task: asyncio.Task[None] | None = None
        #: The most that each named process had, in MB.
        self.peak_mb: dict[str, float] = dict.fromkeys(pids, 0.0)

    async def __aenter__(self) -> "Watch":
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        refresh = 0.0
        while True:
            if time.monotonic() >= refresh:
                self._children = self._postgres.children()
                refresh = time.monotonic() + _CHILDREN_EVERY_S
            self._sample()
            await asyncio.sleep(_EVERY_S)

    def _sample(self) -> None:
        found: dict[str | int, float] = {}
        for name, process in self._named.items():
            with suppress(psutil.Error):
                found[name] = _cpu(process)
                self.peak_mb[name] = max(self.peak_mb[name], process.memory_info().rss / 1e6)
        for child in self._children:
            with suppress(psutil.Error):
                found[child.pid] = _cpu(child)
        self._samples.append((time.time(), found))

    def used(self, start: float, end: float) -> dict[str, float]:
        """CPU seconds between two times (epoch) by name; `backend` is PostgreSQL's busiest process."""
        before, after = self._at(start), self._at(end)
        grown = {who: after[who] - before.get(who, 0.0) for who in after}
        children = [spent for who, spent in grown.items() if isinstance(who, int)]
        named = {who: spent for who, spent in grown.items() if isinstance(who, str)}
        return {**named, "backend": max(children, default=0.0), "postgres": sum(children)}

    def shares(self, start: float, end: float) -> dict[str, float]:
        """The same as a share of one core."""
        return {who: spent / (end - start) for who, spent in self.used(start, end).items()}

    def _at(self, moment: float) -> dict[str | int, float]:
        """CPU seconds of each at a moment, interpolated between samples."""
        samples = self._samples
        if not samples:
            return {}
        later = next((index for index, (at, _) in enumerate(samples) if at >= moment), len(samples) - 1)
        (at, found), (at_before, before) = samples[later], samples[max(0, later - 1)]
        if at <= at_before:
            return found
        part = min(1.0, max(0.0, (moment - at_before) / (at - at_before)))
        return {who: before.get(who, spent) + (spent - before.get(who, spent)) * part for who, spent in found.items()}


def _cpu(process: Any) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
