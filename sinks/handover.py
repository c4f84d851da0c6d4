"""Giving partitions up: what holds chunks finishes them by a deadline, and lets the rest go."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from schemas.record import Record


class Held(Protocol):
    """A chunk of records that the transport handed out; exactly one of `ack` and `release` is called, once.

    `generation` is the consumer group's when it was handed out. A chunk that is released stays uncommitted, and Kafka
    delivers it again, to whoever has the partition then.
    """

    records: Sequence[Record]
    generation: int

    def ack(self) -> None:
        """All of it is stored or dead-lettered."""

    def release(self) -> None:
        """Give it up."""


class Handover:
    """Follows the generations of the group for one holder of chunks.

    Between the start of a drain and its deadline the holder finishes what it has (`draining`). At the deadline
    `release` is called, and from then on nothing is taken (`released`), until a chunk of a later generation comes.
    A drain may be started again before that, as a stop does: only its last deadline counts.
    """

    def __init__(self, release: Callable[[], None]) -> None:
        self.draining = False
        self.released = False
        self._release = release
        self._generation = -1
        self._timer: asyncio.TimerHandle | None = None

    def meet(self, held: Held) -> None:
        """See a chunk come: the first of a later generation ends a drain."""
        if held.generation > self._generation:
            self._generation = held.generation
            self.draining = self.released = False
            self._stop_timer()

    def refuses(self, held: Held) -> bool:
        """Whether a chunk came too late to be taken."""
        return self.released or held.generation < self._generation

    def start(self, deadline: float) -> None:
        """Begin to drain, until `deadline` (of `time.monotonic`)."""
        self._stop_timer()
        self.draining = True
        self._timer = asyncio.get_running_loop().call_later(max(0.0, deadline - time.monotonic()), self.end)

    def end(self) -> None:
        """Do not wait for the deadline."""
        self._stop_timer()
        self.draining = self.released = True
        self._release()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
