"""What the benchmarks of the detectors share: series run through them, and folders that cannot be read."""

import math
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

from msgspec import Struct

from tables.detectors import Findings, Memory, Tuning, step, trim
from tables.histograms import Histograms

MICROSECOND: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: As often as the stage stores histograms, in points.
_STORED_EVERY: Final = 500


class FolderError(Exception):
    """A folder that is not what a benchmark reads: `problems` has all that is wrong, a sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


class Judged(Struct, frozen=True):
    """What the detectors said of each point of a series, and the CPU seconds they took."""

    findings: list[Findings]
    seconds: float


def judge(times_us: Sequence[int], values: Sequence[float], tuning: Tuning) -> Judged:
    """Run new detectors over a series, one point after another; no point is taken for the first after a gap."""
    memory, histograms, findings = Memory(), Histograms(), list[Findings]()
    begun = time.process_time()
    for start in range(0, len(values), _STORED_EVERY):
        end = start + _STORED_EVERY
        findings += [
            step(memory, histograms, at_us, value, tuning)
            for at_us, value in zip(times_us[start:end], values[start:end], strict=True)
        ]
        trim(memory, memory.points)
    return Judged(findings, time.process_time() - begun)


def microseconds(text: str) -> int:
    """A time of a benchmark's file, taken as UTC, in microseconds since the epoch; raises `ValueError`."""
    return (datetime.fromisoformat(text).replace(tzinfo=UTC) - _EPOCH) // MICROSECOND


def finite(text: str) -> float:
    """A number; raises `ValueError` for what is none, or not finite."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value
