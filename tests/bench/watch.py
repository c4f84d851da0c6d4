"""CPU time and memory of processes while something is measured."""

import asyncio
import time
from collections.abc import Mapping, Sequence
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
    """Samples named processes, and servers with all their children, inside the block; `shares` says who was busy."""

    def __init__(self, pids: Mapping[str, int], servers: Mapping[str, Sequence[int]]) -> None:
        self._named = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._roots = {name: [psutil.Process(pid) for pid in roots] for name, roots in servers.items()}
        #: The servers' processes, with the server that each is of.
        self._parts: dict[psutil.Process, str] = {}
        self._samples: list[tuple[float, dict[str | psutil.Process, float]]] = []
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
                self._find()
                refresh = time.monotonic() + _CHILDREN_EVERY_S
            self._sample()
            await asyncio.sleep(_EVERY_S)

    def _find(self) -> None:
        for name, roots in self._roots.items():
            for root in roots:
                with suppress(psutil.Error):
                    self._parts |= dict.fromkeys((root, *root.children(recursive=True)), name)

    def _sample(self) -> None:
        found: dict[str | psutil.Process, float] = {}
        for name, process in self._named.items():
            with suppress(psutil.Error):
                found[name] = _cpu(process)
                self.peak_mb[name] = max(self.peak_mb[name], process.memory_info().rss / 1e6)
        for part in self._parts:
            with suppress(psutil.Error):
                found[part] = _cpu(part)
        self._samples.append((time.time(), found))

    def used(self, start: float, end: float) -> dict[str, float]:
        """CPU seconds between two times (epoch) by name; `backend` is the servers' busiest single process."""
        before, after = self._at(start), self._at(end)
        used: dict[str, float] = {**dict.fromkeys(self._roots, 0.0), "backend": 0.0}
        for who, spent in after.items():
            grown = spent - before.get(who, 0.0)
            if isinstance(who, str):
                used[who] = grown
            else:
                used[self._parts[who]] += grown
                used["backend"] = max(used["backend"], grown)
        return used

    def shares(self, start: float, end: float) -> dict[str, float]:
        """The same as a share of one core."""
        return {who: spent / (end - start) for who, spent in self.used(start, end).items()}

    def _at(self, moment: float) -> dict[str | psutil.Process, float]:
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
