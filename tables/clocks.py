"""Checks of what has not come: silence, and gaps in what is expected. They are asked when the clock says so."""

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from math import inf
from typing import Final

from schemas.alarm import QUIET, Severity, Signal
from tables.checks import Check, Compiled, Memory, Said, Subject, Value

#: Parts of its span that a gap counts readings in.
_BUCKETS: Final = 12
#: A bucket remembers so many more readings than expected, to lend one to a neighbour on each side.
_SPARE: Final = 2
#: Windows of a bucket's end may close so much later.
_SETTLE_US: Final = 120_000_000
#: Places in a gap's memory: the first bucket there was, the newest, the one up to which it was judged, and counts.
_FIRST, _NEWEST, _JUDGED, _COUNTS = 1, 2, 3, 4


class Clock(Check):
    """A check of what has not come. `last` is the time of the latest reading (of the metric, or of the channel).

    `step(memory, at, count)` tells it of `count` readings: of each while it remembers anything, at its time, or where
    `counts`, at the close of each base window, at its start, of those that were not counted before.
    """

    __slots__ = ()

    counts = False

    def due(self, memory: Memory | None, last: int) -> int | None:
        """When to ask `expire` next; None is not before the next reading."""
        raise NotImplementedError

    def expire(self, memory: Memory | None, last: int, now: int) -> tuple[Memory | None, Said]:
        """What the time makes of the memory, and what is said."""
        raise NotImplementedError


class Silent(Clock):
    """No reading for a time. Remembers after which reading that was said."""

    __slots__ = ("_for", "_severity", "_span")

    def __init__(self, rule: Compiled, subject: Subject, severity: Severity, span: tuple[int, str]) -> None:
        super().__init__(rule, subject, "q")
        self.low, self.high = -inf, inf
        self._severity = severity
        self._for, self._span = span

    def step(self, memory: Memory | None, at: int, value: Value) -> tuple[Memory | None, Said]:
        """Readings came."""
        own = self.own(memory)
        if not value or (own is not None and at <= own[1]):
            return memory, None
        return None, QUIET

    def due(self, memory: Memory | None, last: int) -> int | None:
        """As `Clock` has it."""
        own = self.own(memory)
        if own is None:
            return last + self._for
        return last if own[1] < last else None

    def expire(self, memory: Memory | None, last: int, now: int) -> tuple[Memory | None, Said]:
        """As `Clock` has it."""
        own = self.own(memory)
        if now - last < self._for:
            return (memory, None) if own is None or own[1] >= last else (None, QUIET)
        if own is not None and own[1] >= last:
            return memory, None
        since = datetime.fromtimestamp(last // 1_000_000, UTC)
        who = f"{self.subject.name}: no" if self.subject.metric else "no"
        message = f"{who} reading for {self._span}: none since {since:%Y-%m-%d %H:%M:%S} UTC"
        # As it was when it fell due, whenever that is seen.
        seconds = self._for / 1_000_000
        signal = Signal(self._severity, seconds, seconds, f"{message} ({self.labelled(self._severity)})", 1.0)
        return [self.tag, last], signal


class Gap(Clock):
    """More than a share of the readings that were expected has not come.

    The span is divided into twelve buckets, or one for each expected reading if these are fewer; what a bucket has too
    many does not make up for what another lacks, but for one reading next to the border. Nothing is said before the
    span has passed once. Remembers how many readings each bucket has.
    """

    __slots__ = ("_allowed", "_bucket", "_buckets", "_each", "_settle", "_severity", "_within")

    counts = True

    def __init__(  # noqa: PLR0913  what a rule says
        self, rule: Compiled, subject: Subject, severity: Severity, missing: float, within: tuple[int, str], every: int
    ) -> None:
        self._buckets = min(_BUCKETS, within[0] // every)
        self._bucket = within[0] // self._buckets
        self._each = max(1, self._bucket // every)
        super().__init__(rule, subject, f"g{self._buckets}x{self._bucket}x{self._each}")
        self.low, self.high = -inf, inf
        self._severity = severity
        self._allowed = missing
        self._within = within[1]
        self._settle = max(_SETTLE_US, self._bucket // 6)

    def step(self, memory: Memory | None, at: int, value: Value) -> tuple[Memory | None, Said]:
        """A base window closed: `at` its start, `value` how many readings it has."""
        slot = at // self._bucket
        own = self.own(memory)
        if own is None:
            own = [self.tag, slot, slot, slot, *[0] * (self._buckets + 1)]
        return self._counted(self._rolled(own, slot), slot, int(value)), None

    def due(self, memory: Memory | None, last: int) -> int | None:
        """As `Clock` has it: after the end of each bucket, when its last windows have closed."""
        own = self.own(memory)
        if own is None or (not any(own[_COUNTS:]) and last < (own[_NEWEST] - self._buckets) * self._bucket):
            return None
        return int((own[_JUDGED] + 1) * self._bucket + self._settle)

    def expire(self, memory: Memory | None, last: int, now: int) -> tuple[Memory | None, Said]:
        """As `Clock` has it."""
        own = self.own(memory)
        slot = (now - self._settle) // self._bucket
        if own is None or slot <= own[_JUDGED]:
            return memory, None
        own = [*self._rolled(own, slot)]
        own[_JUDGED] = slot
        newest = own[_NEWEST]
        place = last // self._bucket
        if place <= newest and not own[max(_COUNTS, _COUNTS + self._buckets - newest + place)]:
            own = self._counted(own, place, 1)  # its window may still be open
        if own[_FIRST] >= newest - self._buckets:
            return own, None
        expected = self._buckets * self._each
        missing = self._missing(own[_COUNTS:])
        if missing <= self._allowed * expected:
            return own, QUIET
        much = f"{missing} of {expected} readings of {self._within} are missing"
        message = f"{self.subject.name}: {much}, more than {self._allowed:.0%} ({self.labelled(self._severity)})"
        score = missing / expected / self._allowed if self._allowed else 0.0
        return own, Signal(self._severity, missing / expected, self._allowed, message, score)

    def _rolled(self, memory: Memory, slot: int) -> Memory:
        """With the newest bucket no older than `slot`."""
        on = slot - memory[_NEWEST]
        if on <= 0:
            return memory
        places = self._buckets + 1
        counts = [*memory[_COUNTS:], *[0] * min(on, places)][-places:]
        return [self.tag, memory[_FIRST], slot, memory[_JUDGED], *counts]

    def _counted(self, memory: Memory, slot: int, count: int) -> Memory:
        place = self._buckets - (memory[_NEWEST] - slot)
        if place < 0:
            return memory
        memory = [self.tag, *memory[1:]]  # the one tag, not a copy for each series
        memory[_COUNTS + place] = min(self._each + _SPARE, memory[_COUNTS + place] + count)
        return memory

    def _missing(self, counts: Sequence[int]) -> int:
        """What is missing of the buckets but the newest, which is not over."""
        lacking = [max(0, self._each - count) for count in counts]
        spare = [max(0, count - self._each) for count in counts]
        for left, right in pairwise(range(len(counts))):
            for giver, taker in ((left, right), (right, left)):
                if spare[giver] and lacking[taker]:
                    spare[giver] -= 1
                    lacking[taker] -= 1
        return sum(lacking[:-1])
