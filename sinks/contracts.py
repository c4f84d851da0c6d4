"""What delivery is given to work with, as Protocols: nothing here or in `sinks.delivery` knows the app."""

import asyncio
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Protocol

from msgspec import Struct

from schemas.deadletter import Letter
from schemas.reading import Reading
from schemas.saved import Flush


class Letters(Protocol):
    """The dead-letter topic."""

    async def send(self, letters: Sequence[Letter]) -> None:
        """Return when the broker has acknowledged them all; waits for a broker that is away."""


class Books(Protocol):
    """Who keeps account of what was stored of devices' readings; iotflow's own are not told of."""

    async def saved(self, flush: Flush, readings: Sequence[Reading]) -> None:
        """Return when it is on record; the batch is acknowledged only then."""


class Clock(Protocol):
    """Time, so that tests can make it pass."""

    def monotonic(self) -> float:
        """Seconds, for durations."""

    def wall_ms(self) -> int:
        """Milliseconds since the epoch."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""


class Breaker(StrEnum):
    """Whether the destination is taken to be there."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class Telemetry(Protocol):
    """What delivery tells of itself, per batch and never per record."""

    def taken(self, records: int) -> None:
        """Records came in."""

    def stored(self, readings: int, rows: int, seconds: float, size: int) -> None:
        """A write of a batch succeeded; `size` is the batch size aimed at."""

    def durable(self, seconds: float, records: int) -> None:
        """So many records became durable this long after they were received."""

    def fresh(self, seconds: float, readings: int) -> None:
        """So many readings became durable this long after the time that they are of."""

    def skipped(self, records: int) -> None:
        """Records were acknowledged that are meant for another stage, or that let go of a key (tombstones)."""

    def failed(self, kind: str) -> None:
        """A write or probe failed."""

    def dead(self, reason: str, letters: int) -> None:
        """Letters were sent."""

    def breaker(self, state: Breaker) -> None:
        """The breaker changed."""

    def ceiling(self, tripped: bool) -> None:  # noqa: FBT001  a gauge's value
        """The ceiling tripped or was reset."""

    def stopped(self, stopped: bool) -> None:  # noqa: FBT001  a gauge's value
        """Intake was stopped, or goes on."""


class Options(Struct, frozen=True):
    """How to deliver; times in seconds."""

    stage: str
    version: str
    batch_size: int = 5000
    batch_timeout: float = 0.02
    write_timeout: float = 30.0
    retry_first: float = 0.1
    retry_cap: float = 5.0
    #: So many failures in a row open the breaker: from then on a probe goes first.
    breaker_after: int = 3
    max_letter_bytes: int = 1_000_000
    #: The topic that anybody may write to, and so not of everything.
    open_topic: str = ""
    #: The consumer group whose offsets the destination keeps with the data; '' where it keeps none.
    exactly_once: str = ""


class SystemClock:
    """The real one."""

    monotonic = staticmethod(time.monotonic)
    sleep = staticmethod(asyncio.sleep)

    @staticmethod
    def wall_ms() -> int:
        """Milliseconds since the epoch."""
        return time.time_ns() // 1_000_000
