"""The life of an alarm: one state machine for each subject, which is a series and a rule.

Pure. Whoever has signals steps the alarm with each, and calls `expire` from time to time, at the latest when `due`
says. Every function changes the alarm that it is given in place, and returns it, or None where there is nothing left to
remember; what is worth saying comes as transitions, each with the alarm as it was then. A signal like the last one is
no transition. All times are microseconds since the epoch, and what follows from time alone happens at the time when it
was due, not when it is seen, so that the same signals give the same transitions, with the same ids.

The states, after ISA-18.2 (Management of alarm systems for the process industries) in an operator's words:

- ACTIVE: something is wrong. ACKNOWLEDGED: somebody knows; a worse severity makes it active again, a milder does not.
- CLEARED: nothing is wrong any more. EXPIRED: nothing was heard of it for long. Both end an alarm; the next is new.
- RESOLVED: somebody says that it is done. What is still wrong stays so in silence, until it was right once; but if it
  gets worse, a new alarm is raised.
- FLAPPING: raised more often than `raises` times within `within`. That is said once; then nothing is, but a severity
  that was not said of it before, until it was right or wrong throughout `within`.

What is replayed pages nobody; an alarm that was raised or got worse in a replay, and that the first signal after it
still finds, is `paged` then.
"""

from collections.abc import Iterable
from copy import copy
from typing import Final, Protocol, TypeVar

from msgspec import Struct

from schemas.alarm import NO_FACTS, OPEN, Alarm, Change, Facts, Severity, Signal, State, Transition, rank

__all__ = [
    "Alarm",
    "Outcome",
    "Policy",
    "Transition",
    "acknowledge",
    "due",
    "expire",
    "rebaseline",
    "resolve",
    "step",
    "withdraw",
    "worst",
]

_MINUTE_US: Final = 60_000_000


class Policy(Struct, frozen=True):
    """How patient alarms are; spans are microseconds."""

    #: Raised more often than this within that span, an alarm is flapping.
    raises: int = 5
    within: int = 10 * _MINUTE_US
    #: After so long without any signal an alarm has expired.
    silence: int = 24 * 60 * _MINUTE_US


#: An alarm, or nothing to remember, and what is worth saying.
Outcome = tuple[Alarm | None, list[Transition]]


# -- signals -----------------------------------------------------------------------------------------------------------


def step(  # noqa: PLR0913  a signal and all that it meets
    alarm: Alarm | None,
    signal: Signal,
    at: int,
    policy: Policy,
    replayed: bool,  # noqa: FBT001  a fact about the signal
    facts: Facts = NO_FACTS,
) -> Outcome:
    """What a signal of that time does. One that is older than the last says nothing of now, and does nothing."""
    severity, said = signal.severity, list[Transition]()
    if alarm is not None:
        if at < alarm.seen_at:
            return alarm, said
        alarm, said = expire(alarm, at, policy)
    if alarm is None:
        return (None, said) if severity is None else _raise(None, signal, severity, at, policy, replayed, facts, said)
    alarm.seen_at = at
    alarm.updated_at = max(alarm.updated_at, at)
    if severity is None:
        _right(alarm, at, replayed, said)
        return alarm, said
    worse = rank(severity) - rank(alarm.severity)
    if alarm.state not in OPEN and (not alarm.on or worse > 0):
        return _raise(alarm, signal, severity, at, policy, replayed, facts, said)
    if not alarm.on:
        alarm.on, alarm.turned_at = True, at
    _take(alarm, signal, severity, at, facts)
    if alarm.state in OPEN:
        _wrong(alarm, worse, at, replayed, said)
    return alarm, said


def _raise(  # noqa: PLR0913  as `step`
    before: Alarm | None,
    signal: Signal,
    severity: Severity,
    at: int,
    policy: Policy,
    replayed: bool,  # noqa: FBT001
    facts: Facts,
    said: list[Transition],
) -> Outcome:
    raises = [*(() if before is None else before.raises), at]
    raises = [time for time in raises if at - time < policy.within][-policy.raises - 1 :]
    flapping = len(raises) > policy.raises
    state: State = "FLAPPING" if flapping else "ACTIVE"
    alarm = Alarm(state, severity, at, at, at, at, at, replayed=replayed, worst=severity, raises=raises)
    _take(alarm, signal, severity, at, facts)
    said.append(_said(alarm, "flapping" if flapping else "raised", at))
    return alarm, said


def _take(alarm: Alarm, signal: Signal, severity: Severity, at: int, facts: Facts) -> None:
    alarm.severity, alarm.measured_at, alarm.facts, alarm.message = severity, at, facts, signal.message
    # As doubles, which is what is read back of them.
    alarm.value = float(signal.value) if signal.value.__class__ is int else signal.value
    alarm.threshold = None if signal.threshold is None else float(signal.threshold)
    alarm.score = float(signal.score)
    alarm.low = None if signal.low is None else float(signal.low)
    alarm.high = None if signal.high is None else float(signal.high)


def _right(alarm: Alarm, at: int, replayed: bool, said: list[Transition]) -> None:  # noqa: FBT001
    """Nothing is wrong."""
    if alarm.on:
        alarm.on, alarm.turned_at = False, at
        if alarm.state in {"ACTIVE", "ACKNOWLEDGED"}:
            _end(alarm, "CLEARED", at)
            said.append(_said(alarm, "cleared", at, replayed=replayed))


def _wrong(alarm: Alarm, worse: int, at: int, replayed: bool, said: list[Transition]) -> None:  # noqa: FBT001
    """Something is still wrong, or again; `worse` than before where that is above 0, milder where below."""
    change: Change | None = None
    if alarm.state == "FLAPPING":
        worse = max(0, rank(alarm.severity) - rank(alarm.worst))
    unheard = alarm.replayed and not replayed and not alarm.acknowledged
    alarm.replayed = alarm.replayed and replayed
    if worse > 0:
        change = "escalated"
        alarm.worst, alarm.acknowledged = alarm.severity, False
        alarm.replayed = replayed
        if alarm.state == "ACKNOWLEDGED":
            alarm.state = "ACTIVE"
    elif worse < 0:
        change = "deescalated"
    if unheard:
        change = "paged"  # of what nobody has heard of, nobody wants to hear that it changed
    if change is not None:
        said.append(_said(alarm, change, at, replayed=replayed))


# -- time --------------------------------------------------------------------------------------------------------------


def due(alarm: Alarm, policy: Policy) -> int:
    """When `expire` will have something to do, if no signal comes before."""
    settles, ends = alarm.turned_at + policy.within, alarm.seen_at + policy.silence
    if not alarm.on:
        return settles
    return min(settles, ends) if alarm.state == "FLAPPING" else ends


def expire(alarm: Alarm, now: int, policy: Policy) -> Outcome:
    """What the time does, now: an alarm stops flapping, expires, or is forgotten when it cannot flap any more.

    `now` is on the signals' own clock: of a device whose readings come an hour late, it is an hour ago.
    """
    said = _settle(alarm, now, policy)
    if alarm.on and now >= (end := alarm.seen_at + policy.silence):
        alarm.on, alarm.turned_at = False, end
        if alarm.state in OPEN:
            _end(alarm, "EXPIRED", end)
            said.append(_said(alarm, "expired", end))
    forgotten = not alarm.on and alarm.state not in OPEN and now >= alarm.turned_at + policy.within
    return (None if forgotten else alarm), said


def _settle(alarm: Alarm, now: int, policy: Policy) -> list[Transition]:
    """An alarm that flaps settles when it has been as it is for long enough."""
    at = alarm.turned_at + policy.within
    if alarm.state != "FLAPPING" or now < at:
        return []
    if alarm.on:
        alarm.state = "ACKNOWLEDGED" if alarm.acknowledged else "ACTIVE"
        alarm.updated_at = max(alarm.updated_at, at)
    else:
        _end(alarm, "CLEARED", at)
    return [_said(alarm, "settled", at)]


# -- people, rules and detectors ---------------------------------------------------------------------------------------


def acknowledge(alarm: Alarm, by: str, at: int) -> Outcome:
    """Somebody knows of it. No transition where it is not open, or was acknowledged as severe as it is."""
    if alarm.state not in OPEN or alarm.acknowledged:
        return alarm, []
    alarm.acknowledged, alarm.acknowledged_at, alarm.acknowledged_by = True, at, by
    alarm.updated_at = max(alarm.updated_at, at)
    if alarm.state == "ACTIVE":
        alarm.state = "ACKNOWLEDGED"
    return alarm, [_said(alarm, "acknowledged", at)]


def resolve(alarm: Alarm, by: str, at: int) -> Outcome:
    """Somebody says that it is done. No transition where it is not open."""
    if alarm.state not in OPEN:
        return alarm, []
    alarm.resolved_by = by
    _end(alarm, "RESOLVED", at)
    return alarm, [_said(alarm, "resolved", at)]


def rebaseline(alarm: Alarm, at: int) -> Outcome:
    """Its detector takes the level that it held for long for the normal one from now on."""
    if not alarm.on:
        return alarm, []
    alarm.on, alarm.turned_at = False, at
    alarm.seen_at = max(alarm.seen_at, at)
    if alarm.state in OPEN:
        _end(alarm, "CLEARED", at)
    return alarm, [_said(alarm, "rebaselined", at)]


def withdraw(alarm: Alarm, at: int) -> Outcome:
    """Its rule is gone: what was open is resolved, by nobody, and nothing is left to remember."""
    if alarm.state not in OPEN:
        return None, []
    _end(alarm, "RESOLVED", at)
    return None, [_said(alarm, "resolved", at)]


def _end(alarm: Alarm, state: State, at: int) -> None:
    alarm.state, alarm.ended_at = state, at
    alarm.updated_at = max(alarm.updated_at, at)


def _said(alarm: Alarm, change: Change, at: int, *, replayed: bool = False) -> Transition:
    return Transition(change, at, copy(alarm), alarm.replayed or replayed)


# -- devices -----------------------------------------------------------------------------------------------------------


class Standing(Protocol):
    """What is needed of an alarm, or of its record, to compare it."""

    @property
    def state(self) -> State:
        """Its state."""

    @property
    def severity(self) -> Severity:
        """The last signal's."""


Found = TypeVar("Found", bound=Standing)


def worst(alarms: Iterable[Found]) -> Found | None:
    """The alarm of a whole device ("any metric"): the most severe of its open alarms; None where none is open.

    Of equals it is one that nobody has acknowledged, and of these the first.
    """
    found = [alarm for alarm in alarms if alarm.state in OPEN]
    return max(found, key=lambda alarm: (rank(alarm.severity), alarm.state != "ACKNOWLEDGED"), default=None)
