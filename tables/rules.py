"""The rules in force, compiled: which checks a series has, and between which values none has anything to say.

Pure. A `Book` is made of the rules that hold together and never changes; when rules change there is another (`Rulebook`
holds the latest). Series to which the same rules apply share one `Watch`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import translate
from math import inf
from types import MappingProxyType
from typing import Any, Final

from msgspec import Struct

from schemas import rules as written
from schemas.alarm import Severity
from schemas.rules import READING, SAFETY, Rule, RuleSet, Source
from schemas.units import converter
from tables.checks import (
    Change,
    Check,
    Compiled,
    Detector,
    Lasting,
    Level,
    Several,
    Stuck,
    Subject,
    ranks,
)
from tables.clocks import Clock, Gap, Silent

#: So many combinations of measurement, metric and unit are kept in mind; a fleet has some dozens.
_MOST_KINDS: Final = 50_000
#: No more units are named that a rule cannot be applied in.
_MOST_MISFITS: Final = 100
#: Differences are exact to so many digits: a unit with an offset (°C) takes the others.
_DIGITS: Final = 12


class Learner(Struct, frozen=True):
    """Detectors by name (envelope, surprise, shift) that look at the same values with the same sensitivity.

    Those of one learner share a memory; a series' learners of a window differ in `stat` or `sensitivity`.
    """

    stat: str
    sensitivity: str
    rules: Mapping[str, Detector]


class Watch(Struct, frozen=True):
    """What is looked at in a series.

    When `low < value < high` and no reading check remembers anything of the series, none has anything to say of a
    number. Texts and booleans are looked at by `reading` always. `window` has by a window's name its checks, each
    behind the statistic that it looks at; `detectors` are by `reading` or a window's name. `asks` is whether a check
    asks when it was last received. `ids` are all that it has.
    """

    low: float
    high: float
    reading: tuple[Check, ...]
    window: Mapping[str, tuple[tuple[str, Check], ...]]
    clock: tuple[Clock, ...]
    asks: bool
    detectors: Mapping[str, tuple[Learner, ...]]
    ids: frozenset[str]


def _selector(names: Sequence[str]) -> Callable[[str], bool] | None:
    """Whether a name is one of these, None where any is."""
    if not names:
        return None
    exact = frozenset(name for name in names if not set(name) & set("*?["))
    globs = [translate(name) for name in names if name not in exact]
    if not globs:
        return exact.__contains__
    found = re.compile("|".join(globs)).match
    return lambda name: name in exact or found(name) is not None


class _Entry:
    """A rule with its variants: as it is, and as each of its overrides makes it."""

    def __init__(self, id_: str, rule: Rule) -> None:
        self.id = id_
        self.variants = [rule, *(written.changed(rule, override) for override in rule.overrides)]
        self._measurement = rule.measurement
        self._metric = _selector([rule.metric] if rule.metric else [])
        self._whole = not rule.metric
        self._selectors = [_selector(names) for names in (rule.devices, rule.facilities, rule.channels)]
        self._devices = self._overrides(rule, "devices")
        self._facilities = self._overrides(rule, "facilities")
        #: Whether all series of a metric have it, and alike.
        self.plain = not rule.overrides and self._selectors == [None, None, None]

    def concerns(self, measurement: str, metric: str) -> bool:
        """Whether series of a metric may have it; the metric `''` is a channel as a whole."""
        if self._measurement not in {"", measurement}:
            return False
        if self._whole or not metric:
            return self._whole and not metric
        return self._metric is None or self._metric(metric)

    def variant(self, device_id: str, facility: str, channel: str) -> int:
        """Which variant a series has, -1 for none. The last override that names its device wins, else its facility."""
        for selects, name in zip(self._selectors, (device_id, facility, channel), strict=True):
            if selects is not None and not selects(name):
                return -1
        for overrides, name in ((self._devices, device_id), (self._facilities, facility)):
            for place, selects in overrides:
                if selects(name):
                    return place if self.variants[place].enabled else -1
        return 0 if self.variants[0].enabled else -1

    @staticmethod
    def _overrides(rule: Rule, which: str) -> list[tuple[int, Callable[[str], bool]]]:
        found = []
        for place, override in enumerate(rule.overrides, 1):
            selects = _selector(getattr(override, which))
            if selects is not None:
                found.append((place, selects))
        return found[::-1]


class _Kin(Struct):
    """The rules that series of one measurement, metric and unit may have; the watches made of them, by variant."""

    entries: tuple[_Entry, ...]
    plain: Watch | None
    watches: dict[tuple[int, ...], Watch]


class Book:
    """Rules that hold together. `ids` are those that are not switched off: alarms of others are of the past."""

    def __init__(self, rules: RuleSet) -> None:
        self._entries = [_Entry(id_, rule) for id_, rule in rules.rules.items() if _ever(rule)]
        self.ids = frozenset(entry.id for entry in self._entries)
        self._kin: dict[tuple[str, str, str], _Kin] = {}
        self._shared: dict[tuple[object, ...], Watch] = {}
        #: Why a rule is not applied to readings in a unit, by rule and unit: the first hundred.
        self.misfits: dict[tuple[str, str], str] = {}

    def watch(  # noqa: PLR0913  a series' identity, and what rules select by
        self, measurement: str, device_id: str, channel: str, metric: str, facility: str = "", unit: str = ""
    ) -> Watch:
        """What is looked at in a series, or with the metric `''` in a channel as a whole.

        `unit` is the one its readings say, `''` where they say none. Ask again when it or the facility changes.
        """
        kin = self._kin.get((measurement, metric, unit))
        if kin is None:
            kin = self._kindred(measurement, metric, unit)
        if kin.plain is not None:
            return kin.plain
        chosen = tuple([entry.variant(device_id, facility, channel) for entry in kin.entries])
        found = kin.watches.get(chosen)
        if found is None:
            found = kin.watches[chosen] = self._watch(kin.entries, chosen, metric, unit)
        return found

    def _kindred(self, measurement: str, metric: str, unit: str) -> _Kin:
        entries = tuple(entry for entry in self._entries if entry.concerns(measurement, metric))
        kin = _Kin(entries, None, {})
        if all(entry.plain for entry in entries):
            kin.plain = self._watch(entries, (0,) * len(entries), metric, unit)
        if len(self._kin) >= _MOST_KINDS:
            self._kin.clear()
            self._shared.clear()
        self._kin[measurement, metric, unit] = kin
        return kin

    def _watch(self, entries: Iterable[_Entry], chosen: tuple[int, ...], metric: str, unit: str) -> Watch:
        applied = [(entry, place) for entry, place in zip(entries, chosen, strict=True) if place >= 0]
        key = (metric, unit, tuple((entry.id, place) for entry, place in applied))
        found = self._shared.get(key)
        if found is None:
            parts = _Parts(metric, unit)
            for entry, place in applied:
                try:
                    parts.add(entry.id, entry.variants[place])
                except (ValueError, OverflowError) as error:
                    if len(self.misfits) < _MOST_MISFITS:
                        why = str(error) or "a level is beyond every number in that unit"
                        self.misfits[entry.id, unit] = f"{metric}: {why}"
            found = self._shared[key] = parts.watch()
        return found


def _ever(rule: Rule) -> bool:
    return rule.enabled or any(override.changes.get("enabled") for override in rule.overrides)


# -- compiling ---------------------------------------------------------------------------------------------------------


class _Parts:
    """The checks of one metric in one unit, as they come together."""

    def __init__(self, metric: str, unit: str) -> None:
        self._metric = metric
        self._unit = unit
        self._reading: list[Check] = []
        self._window: dict[str, list[tuple[str, Check]]] = {}
        self._clock: list[Clock] = []
        self._detectors: dict[str, dict[tuple[str, str], dict[str, Detector]]] = {}
        self._ids: set[str] = set()

    def add(self, id_: str, rule: Rule) -> None:
        """Compile a rule. Raises `ValueError` and `OverflowError` for one that cannot be applied in the unit."""
        levels = getattr(rule, "levels", {})
        compiled = Compiled(id_, rule.version, rule.KIND, rule.type, rule.labels, levels)
        if isinstance(rule, written.DetectorRule):
            self._learn(compiled, rule)
        elif isinstance(rule, written.SilentRule):
            self._clock.append(Silent(compiled, Subject(self._metric), rule.severity, _spanned(rule.for_)))
        elif isinstance(rule, written.GapRule):
            every = written.microseconds(rule.every)
            subject = Subject(self._metric)
            self._clock.append(Gap(compiled, subject, rule.severity, rule.missing, _spanned(rule.within), every))
        elif isinstance(rule, written.LevelRule | written.RateRule | written.EdgeRule | written.StuckRule):
            self._look(compiled, rule)
        self._ids.add(id_)

    def watch(self) -> Watch:
        """All of it."""
        low = max((check.low for check in self._reading), default=-inf)
        high = min((check.high for check in self._reading), default=inf)
        detectors = {
            on: tuple(Learner(stat, sensitivity, rules) for (stat, sensitivity), rules in learners.items())
            for on, learners in self._detectors.items()
        }
        return Watch(
            low,
            high,
            tuple(self._reading),
            MappingProxyType({on: tuple(checks) for on, checks in self._window.items()}),
            tuple(self._clock),
            any(not check.counts for check in self._clock),
            MappingProxyType(detectors),
            frozenset(self._ids),
        )

    def _learn(self, compiled: Compiled, rule: written.DetectorRule) -> None:
        stat: str = "" if rule.on == READING else rule.stat or ("max" if self._metric in SAFETY else "mean")
        subject = Subject(self._metric, self._unit, stat, rule.on if stat else "")
        learners = self._detectors.setdefault(rule.on, {})
        # Of two rules of one detector the later holds: the same values are judged once.
        own = learners.setdefault((stat, rule.sensitivity), {})
        own[rule.detector] = Detector(compiled, rule.severity, subject)

    def _look(
        self, compiled: Compiled, rule: written.LevelRule | written.RateRule | written.EdgeRule | written.StuckRule
    ) -> None:
        stat: str = "" if rule.on == READING else rule.stat
        unit = "" if stat == "count" else self._unit or rule.unit
        subject = Subject(self._metric, unit, stat, rule.on if stat else "")
        check = _check(compiled, subject, rule, self._scale(rule.unit, stat, difference=rule.KIND != "level"))
        if stat:
            self._window.setdefault(rule.on, []).append((stat, check))
        else:
            self._reading.append(check)

    def _scale(self, unit: str, stat: str, *, difference: bool) -> Callable[[float], float]:
        """What makes a level in a rule's unit one in the readings'."""
        if not unit or not self._unit or unit == self._unit or stat == "count":
            return float
        convert = converter(unit, self._unit)
        if not difference and stat not in {"stddev", "sum"}:
            return convert
        zero = convert(0.0)
        if zero and stat == "sum" and not difference:
            raise ValueError(f"a sum in {unit} cannot be converted to {self._unit}")
        return lambda level: float(f"{convert(level) - zero:.{_DIGITS}g}")


def _check(
    compiled: Compiled,
    subject: Subject,
    rule: written.LevelRule | written.RateRule | written.EdgeRule | written.StuckRule,
    scale: Callable[[float], float],
) -> Check:
    if isinstance(rule, written.StuckRule):
        return Stuck(compiled, subject, rule.severity, _spanned(rule.for_), scale(rule.tolerance))
    if isinstance(rule, written.LevelRule):
        rungs = ranks(_scaled(rule.levels, scale), _scaled(rule.clear, scale))
        if rule.for_ is not None:
            return Lasting(compiled, subject, rule.compare, rungs, _spanned(rule.for_))
        if rule.of is not None:
            return Several(compiled, subject, rule.compare, rungs, written.share(rule.of))
        return Level(compiled, subject, rule.compare, rungs)
    levels = _scaled(rule.levels, scale)
    if not all(level > 0 for level in levels.values()):
        raise ValueError(f"a change of so little in {rule.unit} cannot be told in {subject.unit}")
    rungs = ranks(levels, {})
    per = _spanned(rule.per) if isinstance(rule, written.RateRule) else (0, "")
    return Change(compiled, subject, rule.direction, rungs, per)


def _scaled(levels: Mapping[Severity, Any], scale: Callable[[float], float]) -> dict[Severity, Any]:
    return {severity: scale(level) if level.__class__ is float else level for severity, level in levels.items()}


def _spanned(text: str) -> tuple[int, str]:
    return written.microseconds(text), text


# -- as they change ----------------------------------------------------------------------------------------------------


class Rulebook:
    """The rules that hold now: those of a profile or file, and over them what the topic says. `book` is its `Book`."""

    def __init__(self, base: RuleSet) -> None:
        self._base = base
        self._topic: dict[str, Rule] = {}
        self._book: Book | None = None

    @property
    def book(self) -> Book:
        """The rules in force, compiled: another one after each change, the same until then."""
        if self._book is None:
            self._book = Book(RuleSet({**self._base.rules, **self._topic}))
        return self._book

    def put(self, id: str, value: bytes | None) -> None:  # noqa: A002
        """Apply a record of the topic: a rule, or None, after which the base's holds again.

        Raises `RulesError` for one that is wrong, and changes nothing.
        """
        if value is None:
            if self._topic.pop(id, None) is None:
                return
        else:
            rule = written.decode(id, value)
            if self._topic.get(id) == rule:
                return
            self._topic[id] = rule
        self._book = None

    def rules(self) -> dict[str, tuple[Rule, Source]]:
        """Every rule that holds, by id, and where it is from; those switched off too."""
        found: dict[str, tuple[Rule, Source]] = {
            id_: (rule, self._base.source(id_)) for id_, rule in self._base.rules.items()
        }
        return {**found, **{id_: (rule, "topic") for id_, rule in sorted(self._topic.items())}}

    def counts(self) -> dict[str, int]:
        """How many rules hold that are not switched off, by where they are from."""
        found: dict[str, int] = {"profile": 0, "file": 0, "topic": 0}
        for rule, source in self.rules().values():
            found[source] += rule.enabled
        return found
