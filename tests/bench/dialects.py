"""Decoding alone, dialect by dialect: readings per CPU-second of this process, policy included."""

import gc
import statistics
import time
from datetime import UTC, datetime, timedelta
from itertools import cycle, islice

from app.fleet import Fleet, speakable
from schemas import dialects
from schemas.dialects import Meta
from schemas.reading import Reading
from tests.bench.bench import Bench
from tests.bench.figures import Figure
from tests.lab import speech

#: As many different payloads are decoded over and over.
_SAMPLES = 2_000
_FAST = {"telemetry": 400_000, "fire": 400_000}
_LEAST = 60_000
_AT = datetime(2026, 1, 1, tzinfo=UTC)
_RECEIVED_MS = int(_AT.timestamp() * 1000) + 1000


def payloads(name: str) -> list[tuple[bytes, Meta]]:
    """What a fleet of the dialect says, or its first example where the simulator cannot speak it."""
    module = dialects.load()[name]
    _, setup = speech.speaker(name)
    if name in speakable():
        fleet = Fleet(100, name, 1, bad_share=0.0)
        said = [fleet.sample(_AT + timedelta(milliseconds=number)) for number in range(_SAMPLES)]
        found = [(sample.payload, sample.origin) for sample in said]
    else:
        first = module.EXAMPLES[0]
        found = [(first.payload, first.origin)]
    return [
        (payload, Meta("raw", None, [(dialects.HEADER_ORIGIN, origin.encode())] if origin else (), _RECEIVED_MS, setup))
        for payload, origin in found
    ]


def rate(name: str, count: int) -> float:
    """Readings per CPU-second."""
    speak, _ = speech.speaker(name)
    said = list(islice(cycle(payloads(name)), count))
    readings = 0
    gc.collect()
    begun = time.process_time()
    for payload, meta in said:
        readings += len(speak(payload, meta))
    spent = time.process_time() - begun
    assert all(isinstance(outcome, Reading) for outcome in speak(*said[0]))
    return readings / spent


async def decode_alone(bench: Bench) -> list[Figure]:
    """Every dialect there is."""
    figures = []
    for name in sorted(dialects.load()):
        rates = [rate(name, bench.counts.dialects) for _ in range(bench.counts.rounds)]
        target = _FAST.get(name, _LEAST)
        bound = "the interpreter: what a payload of this form costs to take apart"
        figures.append(Figure("dialects", name, statistics.median(rates), "readings/CPU-s", {}, target, bound=bound))
    return figures
