"""What batching is worth: a sink alone, one write after the other, of few readings and of one."""

import statistics
import time
from collections.abc import Sequence
from typing import Any

from schemas import wire
from schemas.reading import Reading
from tests.bench import load
from tests.bench.bench import Bench, say
from tests.bench.figures import Figure

#: The documents' batch, and how many times single inserts they say it is.
_BATCH = 100
_TIMES = 10.0
#: Singles in a turn with a batch.
_SINGLES = 5


async def _write(sink: Any, readings: Sequence[Reading]) -> float:
    """Seconds that one durable write takes, encoding included."""
    begun = time.perf_counter()
    prepared = sink.prepare(readings)
    await sink.write(prepared.payload)
    return time.perf_counter() - begun


async def measure(bench: Bench, store: str, part: str) -> list[Figure]:
    """Batches and single readings in turn, each with devices and times of its own; medians."""
    turns = bench.counts.batches
    size = _BATCH + _SINGLES
    readings = [wire.read(item.value) for item in load.decoded((turns + 1) * size)]
    batches: list[float] = []
    singles: list[float] = []
    async with bench.place(store) as lab, lab.opened() as sink:
        rows = sink.prepare(readings[:_BATCH]).rows
        await _write(sink, readings[turns * size :])  # what a server does once for a table or a device
        for start in range(0, turns * size, size):
            batches.append(await _write(sink, readings[start : start + _BATCH]))
            singles += [await _write(sink, [reading]) for reading in readings[start + _BATCH : start + size]]
        found = await sink.count(readings=True)
    if found != len(readings):
        raise RuntimeError(f"{len(readings)} readings should be stored, not {found}")
    batch, single = statistics.median(batches) * 1000, statistics.median(singles) * 1000
    say(f"  {batch:.2f} ms for {_BATCH} readings ({rows} rows), {single:.2f} ms for one")
    raw = {"batch ms": batch, "single ms": single, "rows a batch": float(rows)}
    return [
        Figure(part, f"a batch of {_BATCH} readings", batch, "ms", raw),
        Figure(
            part,
            f"batches of {_BATCH} / single writes, readings a second",
            single * _BATCH / batch,
            "x",
            {},
            _TIMES,
            bound="a single write is durable by itself, as a batch is",
        ),
    ]
