"""Checks: rules compiled for series of one metric and unit, which say what they see as `schemas.alarm.Signal`.

A check is pure. What it must remember of a series is its memory, a list that msgspec packs and that is None when there
is nothing to remember. A memory says what made it: one of another kind of rule, or of another unit, counts as None, so
that whatever is kept under a rule's id may be given back to it. Times are microseconds since the epoch.

What is said is None where a check says nothing of a value: one that it does not look at, or that came too late.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from math import inf
from typing import Any, Final, TypeGuard

from msgspec import Struct
from msgspec.structs import replace

from schemas.alarm import QUIET, SEVERITIES, Kind, Severity, Signal

Memory = list[Any]
Value = float | bool | str
Said = Signal | None
#: A level of severity: its rank from 1, its name, where it is reached, and where it is no longer.
Rung = tuple[int, Severity, Any, Any]

#: Texts that are longer are remembered by their digest.
_TEXT_CHARS: Final = 64
#: Less than this part of two values is what binary fractions make of their difference.
_ROUNDING: Final = 1e-12
#: No score is higher: what is a thousand million times too much is broken.
_HIGHEST: Final = 1e9
#: A person wants no more digits.
_DIGITS: Final = 10


class Compiled(Struct, frozen=True):
    """What a check's rule is, for those who act on what it says; `levels` are in the rule's own unit."""

    id: str
    version: int
    kind: str
    type: Kind
    labels: Mapping[Severity, str] = {}
    levels: Mapping[Severity, Value] = {}


class Subject(Struct, frozen=True):
    """What a check looks at: readings of a metric, or the statistic `stat` of its windows of size `on`."""

    metric: str
    unit: str = ""
    stat: str = ""
    on: str = ""

    @property
    def name(self) -> str:
        """What it is called in a sentence."""
        return f"{self.metric} ({self.stat} of {self.on})" if self.on else self.metric

    def measured(self, value: Value) -> str:
        """A value with its unit."""
        text = shown(value)
        return f"{text} {self.unit}" if self.unit and not isinstance(value, bool | str) else text


def shown(value: Value) -> str:
    """A value in a sentence."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return repr(value if len(value) <= _TEXT_CHARS else value[:_TEXT_CHARS] + "…")
    return f"{value:.{_DIGITS}g}"


def _is_number(value: Value) -> TypeGuard[float]:
    return value.__class__ is float or value.__class__ is int


class Check:
    """What all checks have. `low` and `high` are its quiet band.

    A value strictly between them, while the check remembers nothing, leaves it with nothing to remember and nothing to
    say. Where `low` is above `high` every value must be looked at.
    """

    __slots__ = ("high", "low", "rule", "subject", "tag")

    def __init__(self, rule: Compiled, subject: Subject, tag: str) -> None:
        self.rule = rule
        self.low = inf
        self.high = -inf
        self.subject = subject
        self.tag = f"{tag}{subject.unit}"

    def step(self, memory: Memory | None, at: int, value: Value) -> tuple[Memory | None, Said]:
        """What a value at a time makes of the memory, and what is said of it."""
        raise NotImplementedError

    def own(self, memory: Memory | None) -> Memory | None:
        """A memory if it is of this kind and unit, else None."""
        return memory if memory is not None and memory[0] == self.tag else None

    def labelled(self, severity: Severity) -> str:
        """A severity as the rule calls it."""
        return self.rule.labels.get(severity, severity)


_COMPARE: Final[Mapping[str, tuple[Callable[[Any, Any], bool], str, str]]] = {
    ">=": (operator.ge, "at or above", "below"),
    ">": (operator.gt, "above", "at or below"),
    "<=": (operator.le, "at or below", "above"),
    "<": (operator.lt, "below", "at or above"),
    "==": (operator.eq, "equal to", "other than"),
    "!=": (operator.ne, "other than", "equal to"),
}


class Level(Check):
    """A value compared with levels; a severity that is reached ends where its level to clear at is passed.

    A reading that is older than one already judged can raise, but not clear. Remembers the severity while there is one.
    """

    __slots__ = ("_beyond", "_bound", "_cleared", "_number", "_reached", "_rungs", "_same")

    def __init__(self, rule: Compiled, subject: Subject, compare: str, rungs: Sequence[Rung], tag: str = "l") -> None:
        super().__init__(rule, subject, tag)
        self._beyond, self._reached, self._cleared = _COMPARE[compare]
        #: The most severe first.
        self._rungs = sorted(rungs, reverse=True, key=operator.itemgetter(0))
        levels = [rung[2] for rung in rungs]
        self._same = levels[0].__class__
        self._number = self._same is float
        self._bound: tuple[float | None, float | None] = (None, None)
        if compare in {">=", ">"}:
            self.low, self.high = -inf, min(levels)
            self._bound = (None, self.high)
        elif compare in {"<=", "<"}:
            self.low, self.high = max(levels), inf
            self._bound = (self.low, None)

    def step(self, memory: Memory | None, at: int, value: Value) -> tuple[Memory | None, Said]:
        """As `Check` has it."""
        if not self._looks_at(value):
            return memory, None
        own = self.own(memory)
        held, last = (own[1], own[2]) if own is not None else (0, at)
        found = self._found(held, value)
        if at < last and (found is None or found[0] <= held):
            return memory, None if found is None else self._signal(found, value)
        if found is None:
            return None, QUIET
        return [self.tag, found[0], max(at, last)], self._signal(found, value)

    def _looks_at(self, value: Value) -> bool:
        return _is_number(value) if self._number else value.__class__ is self._same

    def _found(self, held: int, value: Value) -> Rung | None:
        beyond = self._beyond
        for rung in self._rungs:
            if beyond(value, rung[2]) or (rung[0] <= held and beyond(value, rung[3])):
                return rung
        return None

    def _signal(self, rung: Rung, value: Value, how: str = "") -> Signal:
        _, severity, level, clear = rung
        subject = self.subject
        if self._beyond(value, level):
            what = f"is {self._reached} {subject.measured(level)}"
        else:
            what = f"is not yet {self._cleared} {subject.measured(clear)}"
        message = f"{subject.name} {subject.measured(value)} {what}{how} ({self.labelled(severity)})"
        low, high = self._bound
        return Signal(severity, value, level if self._number else None, message, low=low, high=high)


class Lasting(Level):
    """Levels that must be reached for a time. Remembers since when each has been."""

    __slots__ = ("_for", "_how")

    def __init__(
        self, rule: Compiled, subject: Subject, compare: str, rungs: Sequence[Rung], span: tuple[int, str]
    ) -> None:
        super().__init__(rule, subject, compare, rungs, f"f{len(rungs)}")
        self._for = span[0]
        self._how = f" for {span[1]}"

    def step(self, memory: Memory | None, at: int, value: Value) -> tuple[Memory | None, Said]:
        """As `Check` has it."""
        if not self._looks_at(value):
            return memory, None
        own = self.own(memory)
        if own is not None and at <= own[2]:
            return memory, None
        held, before = (own[1], own[3:]) if own is not None else (0, [None] * len(self._rungs))
        beyond = self._beyond
        since = [
            (at if first is None else first) if beyond(value, rung[2]) else None
            for rung, first in zip(self._rungs, before, strict=True)
        ]
        for rung, first in zip(self._rungs, since, strict=True):
            lasts = first is not None and at - first >= self._for
            if lasts or (rung[0] <= held and beyond(value, rung[3])):
                return [self.tag, rung[0], at, *since], self._signal(rung, value, self._how if lasts else "")
        if any(first is not None for first in since):
            return [self.tag, 0, at, *since], QUIET
        return None, QUIET


class Several(Level):
    """Levels that must be reached by so many of the last readings. Remembers how far each of these went."""

    __slots__ = ("_how", "_least", "_most")

    def __init__(
        self, rule: Compiled, subject: Subject, compare: str, rungs: Sequence[Rung], share: tuple[int, int]
    ) -> None:
        super().__init__(rule, subject, compare, rungs, "n")
        self._least, self._most = share
        self._how = f", {self._least} of the last {self._most} times"

    def step(self, memory: Memory | None, at: int, value: Value) -> tuple[Memory | None, Said]:
        """As `Check` has it."""
        if not self._looks_at(value):
            return memory, None
        own = self.own(memory)
        if own is not None and at <= own[2]:
            return memory, None
        held, before = (own[1], own[3:]) if own is not None else (0, [])
        beyond = self._beyond
        reached = max((rung[0] for rung in self._rungs if beyond(value, rung[2])), default=0)
        kept = max((rung[0] for rung in self._rungs if beyond(value, rung[3])), default=0)
        # Two digits of base four each: the rank it reached, and the one it would keep.
        went = [*before, 4 * reached + kept][-self._most :]
        for rung in self._rungs:
            rank = rung[0]
            if sum(past >> 2 >= rank for past in went) >= self._least:
                return [self.tag, rank, at, *went], self._several(rung, value)
            if rank <= held and sum(past & 3 >= rank for past in went) >= self._least:
                return [self.tag, rank, at, *went], self._several(rung, value)
        while went and went[0] < 4:  # noqa: PLR2004  it reached nothing
            del went[0]
        return ([self.tag, 0, at, *went] if went else None), QUIET

    def _several(self, rung: Rung, value: Value) -> Signal:
        if self._beyond(value, rung[3]):
            return self._signal(rung, value, self._how)
        subject = self.subject
        said = f"{subject.name} was {self._reached} {subject.measured(rung[2])}{self._how}"
        low, high = self._bound
        level = rung[2] if self._number else None
        return Signal(
            rung[1], value, level, f"{said}; now {subject.measured(value)} ({self.labelled(rung[1])})", 0.0, low, high
        )


class Change(Check):
    """How much a value differs from the one before, by itself (`per` 0) or by the time between. Remembers that one."""

    __slots__ = ("_in", "_per", "_rungs", "_sign")

    def __init__(
        self, rule: Compiled, subject: Subject, direction: str, rungs: Sequence[Rung], per: tuple[int, str]
    ) -> None:
        super().__init__(rule, subject, "c")
        self._rungs = sorted(rungs, reverse=True, key=operator.itemgetter(0))
        self._sign = {"up": 1, "down": -1, "both": 0}[direction]
        self._per = per[0]
        self._in = f" in {per[1]}" if per[0] else ""

    def step(self, memory: Memory | None, at: int, value: Value) -> tuple[Memory | None, Said]:
        """As `Check` has it."""
        if not _is_number(value):
            return memory, None
        own = self.own(memory)
        if own is None:
            return [self.tag, at, value], QUIET
        before, was = own[1], own[2]
        if at <= before:
            return memory, None
        memory = [self.tag, at, value]
        factor = self._per / (at - before) if self._per else 1.0
        change = (value - was) * factor
        size = change * self._sign if self._sign else abs(change)
        rounding = _ROUNDING * (abs(value) + abs(was)) * factor
        for rung in self._rungs:
            if size + rounding >= rung[2]:
                return memory, self._signal(rung, was, value, change, size)
        return memory, QUIET

    def _signal(self, rung: Rung, was: Value, value: Value, change: float, size: float) -> Signal:
        subject, level = self.subject, rung[2]
        went = f"{subject.name} went from {shown(was)} to {subject.measured(value)}"
        by = f"{'up' if change > 0 else 'down'} by {subject.measured(abs(change))}{self._in}"
        message = f"{went}: {by} is at or above {subject.measured(level)}{self._in} ({self.labelled(rung[1])})"
        return Signal(rung[1], value, level, message, min(size / level, _HIGHEST))


class Stuck(Check):
    """A value that does not change. Remembers it, and since when."""

    __slots__ = ("_for", "_severity", "_span", "_tolerance")

    def __init__(
        self, rule: Compiled, subject: Subject, severity: Severity, span: tuple[int, str], tolerance: float
    ) -> None:
        super().__init__(rule, subject, "s")
        self._severity = severity
        self._for, self._span = span
        self._tolerance = tolerance

    def step(self, memory: Memory | None, at: int, value: Value) -> tuple[Memory | None, Said]:
        """As `Check` has it."""
        own = self.own(memory)
        if own is not None and at <= own[3]:
            return memory, None
        kept = value
        if isinstance(value, str) and len(value) > _TEXT_CHARS:
            kept = blake2b(value.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        if own is None or not self._equal(own[2], kept):
            return [self.tag, at, kept, at], QUIET
        memory = [self.tag, own[1], own[2], at]
        lasted = at - own[1]
        if lasted < self._for:
            return memory, QUIET
        message = f"{self.subject.name} has been {self.subject.measured(value)} for {self._span}"
        return memory, Signal(
            self._severity,
            value,
            None,
            f"{message} or longer ({self.labelled(self._severity)})",
            lasted / self._for,
        )

    def _equal(self, one: Value, other: Value) -> bool:
        if _is_number(one) and _is_number(other):
            return abs(one - other) <= self._tolerance + _ROUNDING * (abs(one) + abs(other))
        return one.__class__ is other.__class__ and one == other


# -- what learns -------------------------------------------------------------------------------------------------------


class Detector(Struct, frozen=True):
    """A rule of a detector, which says what that signals in its own words."""

    rule: Compiled
    severity: Severity
    subject: Subject

    def says(self, signal: Signal) -> Signal:
        """A detector's signal with the rule's severity and label, and the name of what it is of."""
        if signal.severity is None:
            return signal
        message = f"{self.subject.name} {signal.message} ({self.rule.labels.get(self.severity, self.severity)})"
        return replace(signal, severity=self.severity, message=message)


def ranks(levels: Mapping[Severity, Any], clear: Mapping[Severity, Any]) -> list[Rung]:
    """The levels as checks take them."""
    return [
        (SEVERITIES.index(severity) + 1, severity, level, clear.get(severity, level))
        for severity, level in levels.items()
    ]
