"""Alarms where nothing is wrong: the detectors on made-up series a minute apart, the same at every run."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from operator import attrgetter
from random import Random
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from app.detection import judge
from schemas.alarm import Signal
from tables.detectors import Tuning

POINTS: Final = 400_000
SEED: Final = 7
_MINUTE_US: Final = 60_000_000
_DAY: Final = 1440
_PER: Final = 100_000
_ENVELOPE: Final = attrgetter("envelope")
_SURPRISE: Final = attrgetter("surprise")
_SHIFT: Final = attrgetter("shift")


def _normal(random: Random) -> Iterator[float]:
    while True:
        yield random.gauss(0.0, 1.0)


def _uniform(random: Random) -> Iterator[float]:
    while True:
        yield random.random()


def _ar1(random: Random) -> Iterator[float]:
    value = 0.0
    while True:
        value = 0.95 * value + random.gauss(0.0, 1.0)
        yield value


def _daily(random: Random) -> Iterator[float]:
    minute = 0
    while True:
        yield 10.0 * math.sin(2.0 * math.pi * minute / _DAY) + random.gauss(0.0, 1.0)
        minute += 1


def _walk(random: Random) -> Iterator[float]:
    value = 0.0
    while True:
        value += random.gauss(0.0, 1.0)
        yield value


#: Each kind of series by its name. In the first two, values are independent of each other.
SERIES: Final[Mapping[str, Callable[[Random], Iterator[float]]]] = MappingProxyType(
    {
        "normal": _normal,
        "uniform": _uniform,
        "ar1": _ar1,
        "daily": _daily,
        "walk": _walk,
    }
)


class Alarms(Struct, frozen=True):
    """How often each detector's alarm went on, and any of them, in 100,000 points; `alarms` is the sum."""

    envelope: float
    surprise: float
    shift: float
    alarms: float


class Result(Struct, frozen=True):
    """What each kind of series came to, and what a point took."""

    series: dict[str, Alarms]
    points: int
    us_per_point: float


def bench(
    tuning: Tuning, points: int = POINTS, seed: int = SEED, on_series: Callable[[str], None] = lambda _: None
) -> Result:
    """Run the detectors over `points` of each kind; `on_series` hears the name of each when done."""
    found, seconds = {}, 0.0
    for name in SERIES:
        found[name], took = count(name, tuning, points, seed)
        seconds += took
        on_series(name)
    return Result(found, points, 1e6 * seconds / (points * len(SERIES)))


def count(name: str, tuning: Tuning, points: int = POINTS, seed: int = SEED) -> tuple[Alarms, float]:
    """Run new detectors over one kind; their alarms, and the CPU seconds they took."""
    random = Random(f"{seed} {name}")  # noqa: S311  a benchmark wants the same series each time
    judged = judge(
        [minute * _MINUTE_US for minute in range(points)], list(islice(SERIES[name](random), points)), tuning
    )
    envelope, surprise, shift = (
        _raised(detector(found) for found in judged.findings) * _PER / points
        for detector in (_ENVELOPE, _SURPRISE, _SHIFT)
    )
    return Alarms(envelope, surprise, shift, envelope + surprise + shift), judged.seconds


def _raised(signals: Iterable[Signal]) -> int:
    """How often an alarm went on."""
    raised, before = 0, False
    for signal in signals:
        now = signal.severity is not None
        raised += now and not before
        before = now
    return raised
