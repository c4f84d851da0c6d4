"""Rules: what is an anomaly, as a person writes it down in YAML, and as it stands on the topic `iotflow.rules`.

A file names the profile that it starts from and says more rules, or others of the same id. It is read into models that
know nothing of readings; `tables.rules` makes checks of them. A rule of the topic is one JSON object, its key the id.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from itertools import pairwise
from math import isfinite
from typing import Annotated, Any, ClassVar, Final, Literal

import msgspec
import yaml
from msgspec import Struct
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, PlainValidator, StrictFloat, ValidationError

from schemas import duration
from schemas.alarm import SEVERITIES, Kind, Severity
from schemas.config import Model, explained
from schemas.payload import brief, quoted
from schemas.point import named

#: What a file can start from; `none` has no rules.
PROFILES: Final = ("fire", "display", "fraction", "none")
#: What a file starts from that does not say.
DEFAULT_PROFILE: Final = "fire"
#: Selects every metric; without a metric, a rule looks at a channel as a whole.
ANY: Final = "*"
#: What a rule looks at that looks at no window.
READING: Final = "reading"
#: Detectors look at a window's highest value of these, not at its mean: one hot minute must not be averaged away.
SAFETY: Final = frozenset({"smoke_density", "co_level", "gas_level", "temperature"})
#: No rule is larger on the topic: a thousand overrides are room enough.
MAX_VALUE_BYTES: Final = 64 * 1024

Stat = Literal["mean", "min", "max", "stddev", "sum", "first", "last", "count", "p50", "p95", "p99"]
Compare = Literal[">=", ">", "<=", "<", "==", "!="]
#: Comparisons of numbers alone.
ORDERED: Final = frozenset({">=", ">", "<=", "<"})
#: Rules of the topic win over the file's, which win over its profile's.
Source = Literal["profile", "file", "topic"]

_id = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", re.ASCII)
_share = re.compile(r"([0-9]{1,3}) of ([0-9]{1,3})", re.ASCII)
_TEXT_CHARS: Final = 200
#: More readings than these are not remembered for one rule.
_MOST_READINGS: Final = 100
_HOUR_US: Final = 3_600_000_000


class RulesError(ValueError):
    """Rules are wrong; `problems` has a line for each thing to correct."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def microseconds(span: str) -> int:
    """A span of time as `schemas.duration` reads it. Raises `ValueError`."""
    found = duration.parse(span)
    return (found.days * 86_400 + found.seconds) * 1_000_000


def share(text: str) -> tuple[int, int]:
    """The two numbers of `3 of 5`. Raises `ValueError`."""
    found = _share.fullmatch(text)
    least, most = (int(found[1]), int(found[2])) if found is not None else (0, 0)
    if not 1 <= least <= most <= _MOST_READINGS:
        raise ValueError(f"{quoted(text)} is not as `3 of 5`: so many of the last so many, at most {_MOST_READINGS}")
    return least, most


def _span(text: str) -> str:
    microseconds(text)
    return text


def _counted(text: str) -> str:
    share(text)
    return text


def _place(text: str) -> str:
    return text if text == READING else _span(text)


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _level(value: object) -> float | bool | str:
    if isinstance(value, bool) or (isinstance(value, str) and len(value) <= _TEXT_CHARS):
        return value
    if isinstance(value, int | float) and abs(value) < 1e300 and isfinite(value):  # noqa: PLR2004  what a double holds
        return float(value)
    raise ValueError(f"must be a number, a text of at most {_TEXT_CHARS} characters, or a boolean")


Text = Annotated[str, Field(max_length=_TEXT_CHARS)]
_Name = Annotated[str, Field(min_length=1, max_length=_TEXT_CHARS)]
#: Names as they are, or with `*`, `?` and `[…]` for many; one alone need not be a list.
Names = Annotated[tuple[_Name, ...], BeforeValidator(_listed)]
Span = Annotated[str, AfterValidator(_span)]
Place = Annotated[str, AfterValidator(_place)]
Level = Annotated[float | bool | str, PlainValidator(_level)]
_Above = Annotated[StrictFloat, Field(gt=0)]


class Override(Model):
    """What a rule says otherwise of some devices, or of some facilities; everything else in it is what it changes."""

    model_config = ConfigDict(extra="allow")

    devices: Names = ()
    facilities: Names = ()

    @property
    def changes(self) -> Mapping[str, Any]:
        """The members of the rule that it replaces, as they were written."""
        return self.model_extra or {}


class Rule(Model):
    """What all rules have. Empty selectors select everything."""

    KIND: ClassVar[str]
    #: What an override can change.
    TUNABLE: ClassVar[frozenset[str]]

    version: int = Field(1, ge=1, le=2**31 - 1)
    enabled: bool = True
    measurement: Text = ""
    metric: Text = ""
    unit: Text = ""
    type: Kind = "CUSTOM"
    devices: Names = ()
    facilities: Names = ()
    channels: Names = ()
    labels: Mapping[Severity, _Name] = Field(default_factory=dict)
    overrides: tuple[Override, ...] = ()

    def flaws(self) -> Iterator[str]:
        """What is wrong with its members together."""
        if not self.metric:
            yield f"metric: is missing: the name of one, or {ANY} for any"


class LevelRule(Rule):
    """A value, or a window's, compared with a level for each severity.

    `clear` are the levels from which on the severity is over: hysteresis. With `for` a level must be reached for so
    long, with `of` by so many of the last readings.
    """

    KIND = "level"
    TUNABLE = frozenset({"enabled", "levels", "clear", "for", "of"})

    compare: Compare = ">="
    levels: dict[Severity, Level] = Field(min_length=1)
    clear: dict[Severity, Level] = Field(default_factory=dict)
    for_: Span | None = Field(None, alias="for")
    of: Annotated[str, AfterValidator(_counted)] | None = None
    on: Place = READING
    stat: Stat = "mean"

    def flaws(self) -> Iterator[str]:
        """As `Rule` has it."""
        yield from super().flaws()
        if self.for_ is not None and self.of is not None:
            yield "for, of: say one of them"
        yield from _stat_flaws(self.on, self.stat, said="stat" in self.model_fields_set)
        if self.compare in ORDERED:
            yield from self._ordered()
            return
        if len({level.__class__ for level in self.levels.values()}) > 1:
            yield "levels: must be all numbers, all texts, or all booleans"
        if self.clear:
            yield f"clear: has no meaning with {self.compare}: another value is another value"

    def _ordered(self) -> Iterator[str]:
        for name, levels in (("levels", self.levels), ("clear", self.clear)):
            for severity, level in levels.items():
                if level.__class__ is not float:
                    yield f"{name}.{severity}: must be a number with {self.compare}"
        upwards = self.compare in {">=", ">"}
        found = [(severity, self.levels[severity]) for severity in SEVERITIES if severity in self.levels]
        for (low, less), (high, more) in pairwise(found):
            if less.__class__ is more.__class__ is float and not (less < more if upwards else less > more):
                yield f"levels.{high}: must be {'above' if upwards else 'below'} that of {low}"
        for severity, level in self.clear.items():
            raised = self.levels.get(severity)
            if raised is None:
                yield f"clear.{severity}: there is no such level"
            elif level.__class__ is raised.__class__ is float and not (level <= raised if upwards else level >= raised):
                yield f"clear.{severity}: must not be {'above' if upwards else 'below'} its level"


class RateRule(Rule):
    """How fast a value changes, from one reading (or window) to the next: at least so much `per` span."""

    KIND = "rate"
    TUNABLE = frozenset({"enabled", "levels", "per"})

    levels: dict[Severity, _Above] = Field(min_length=1)
    per: Span = "1s"
    direction: Literal["up", "down", "both"] = "both"
    on: Place = READING
    stat: Stat = "mean"

    def flaws(self) -> Iterator[str]:
        """As `Rule` has it."""
        yield from super().flaws()
        yield from _stat_flaws(self.on, self.stat, said="stat" in self.model_fields_set)
        yield from _rising(self.levels)


class EdgeRule(Rule):
    """A step of at least so much from one reading (or window) to the next, however far apart: a load switched."""

    KIND = "edge"
    TUNABLE = frozenset({"enabled", "levels"})

    type: Kind = "POWER"
    levels: dict[Severity, _Above] = Field(min_length=1)
    direction: Literal["up", "down", "both"] = "both"
    on: Place = READING
    stat: Stat = "mean"

    def flaws(self) -> Iterator[str]:
        """As `Rule` has it."""
        yield from super().flaws()
        yield from _stat_flaws(self.on, self.stat, said="stat" in self.model_fields_set)
        yield from _rising(self.levels)


class StuckRule(Rule):
    """The same value, give or take `tolerance`, for so long."""

    KIND = "stuck"
    TUNABLE = frozenset({"enabled", "for", "tolerance", "severity"})

    for_: Span = Field(alias="for")
    tolerance: StrictFloat = Field(0.0, ge=0)
    severity: Severity = "WARN"
    on: Place = READING
    stat: Stat = "mean"

    def flaws(self) -> Iterator[str]:
        """As `Rule` has it."""
        yield from super().flaws()
        yield from _stat_flaws(self.on, self.stat, said="stat" in self.model_fields_set)


class SilentRule(Rule):
    """No reading for so long; without a metric, none of the channel at all."""

    KIND = "silent"
    TUNABLE = frozenset({"enabled", "for", "severity"})

    type: Kind = "COMM"
    for_: Span = Field(alias="for")
    severity: Severity = "WARN"

    def flaws(self) -> Iterator[str]:
        """As `Rule` has it, but for the metric."""
        yield from ()


class GapRule(Rule):
    """More than the share `missing` of the readings `within` a span have not come, where one comes `every` so often."""

    KIND = "gap"
    TUNABLE = frozenset({"enabled", "missing", "within", "every", "severity"})

    type: Kind = "COMM"
    missing: StrictFloat = Field(0.3, ge=0, lt=1)
    within: Span = "6h"
    every: Span = "30m"
    severity: Severity = "WARN"

    def flaws(self) -> Iterator[str]:
        """As `Rule` has it."""
        yield from super().flaws()
        within, every = microseconds(self.within), microseconds(self.every)
        if within < _HOUR_US:
            yield "within: must be 1h at least; for less there is the kind silent"
        if within < 2 * every:
            yield f"within: must be twice `every`, {self.every}, at least"


class DetectorRule(Rule):
    """What a detector says that learns what is normal."""

    KIND = "detector"
    TUNABLE = frozenset({"enabled", "sensitivity", "severity"})

    detector: Literal["envelope", "surprise", "shift"]
    sensitivity: Literal["default", "nab"] = "default"
    severity: Severity = "WARN"
    on: Place = "1m"
    #: None is the highest value of what is a matter of safety (`SAFETY`), and the mean of everything else.
    stat: Stat | None = None

    def flaws(self) -> Iterator[str]:
        """As `Rule` has it."""
        yield from super().flaws()
        yield from _stat_flaws(self.on, self.stat, said=self.stat is not None)


KINDS: Final[Mapping[str, type[Rule]]] = {
    model.KIND: model for model in (LevelRule, RateRule, StuckRule, EdgeRule, SilentRule, GapRule, DetectorRule)
}


def _stat_flaws(on: str, stat: str | None, *, said: bool) -> Iterator[str]:
    if said and on == READING:
        yield f"stat: {stat} is a window's: say which with `on`, as 5m"


def _rising(levels: Mapping[Severity, float]) -> Iterator[str]:
    found = [(severity, levels[severity]) for severity in SEVERITIES if severity in levels]
    for (low, less), (high, more) in pairwise(found):
        if less >= more:
            yield f"levels.{high}: must be above that of {low}"


def changed(rule: Rule, override: Override) -> Rule:
    """The rule as it is where this one of its overrides holds. Levels replace all levels, those to clear at too."""
    said = rule.model_dump(by_alias=True, exclude_unset=True, exclude={"overrides"})
    if "levels" in override.changes:
        said.pop("clear", None)
    return type(rule).model_validate({**said, **override.changes})


# -- files -------------------------------------------------------------------------------------------------------------


class RuleSet(Struct, frozen=True):
    """Rules by id, also those that are switched off.

    `own` are those of the file; the others are the profile's. `said` is whether the file named its profile.
    """

    rules: Mapping[str, Rule]
    profile: str = DEFAULT_PROFILE
    own: frozenset[str] = frozenset()
    said: bool = False

    def source(self, id: str) -> Source:  # noqa: A002  what it is called everywhere
        """Where one of its rules is from."""
        return "file" if id in self.own else "profile"


class _File(Model):
    profile: Literal["fire", "display", "fraction", "none"] | None = None
    rules: dict[str, Any] = Field(default_factory=dict)


def parse(document: object) -> RuleSet:
    """The rules that the content of a YAML file describes: `{"profile": NAME, "rules": {ID: {…}}}`.

    Raises `RulesError` with every problem and its place.
    """
    if not isinstance(document, Mapping | None):
        raise RulesError([f"must be an object with the members profile and rules, not {quoted(document)}"])
    problems: list[str] = []
    own: dict[str, Rule] = {}
    said = {} if document is None else dict(document)
    try:
        file = _File.model_validate(said)
    except ValidationError as error:
        problems += explained(error)
        file = _File(rules=said["rules"] if isinstance(said.get("rules"), dict) else {})
    for id_, body in file.rules.items():
        try:
            own[id_] = _rule(id_, body)
        except RulesError as error:
            problems += [f"rules.{line}" for line in error.problems]
    if problems:
        raise RulesError(problems)
    base = profile(file.profile or DEFAULT_PROFILE)
    return RuleSet({**base.rules, **own}, base.profile, frozenset(own), file.profile is not None)


@cache
def profile(name: str) -> RuleSet:
    """The rules of a profile. Raises `ValueError` when none is called that."""
    if name not in PROFILES:
        raise ValueError(f"no profile is called {quoted(name)}; there are: {', '.join(PROFILES)}")
    if name == "none":
        return RuleSet({}, name)
    text = (resources.files("schemas.profiles") / f"{name}.yaml").read_text(encoding="utf-8")
    rules = {id_: _rule(id_, body) for id_, body in yaml.safe_load(text)["rules"].items()}
    return RuleSet(rules, name)


def check_id(id: str) -> None:  # noqa: A002
    """Raise `RulesError` for what cannot be a rule's id."""
    if _id.fullmatch(id) is None:
        raise RulesError([f"{quoted(id)}: an id is up to 100 letters, digits and . _ - after a letter or digit"])


def _rule(id_: str, body: object) -> Rule:
    check_id(id_)
    if not isinstance(body, Mapping):
        raise RulesError([f"{id_}: must be an object, as {{metric: temperature, levels: {{WARN: 80}}}}"])
    # YAML 1.1 takes the word on for true, also where it is a member's name.
    said = {"on" if name is True else name: value for name, value in body.items()}
    kind = said.pop("kind", "level")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        raise RulesError([f"{id_}.kind: no kind is called {quoted(kind)}; there are: {', '.join(KINDS)}"])
    rule, problems = _made(id_, lambda: model.model_validate(said))
    if rule is not None:
        for place, override in enumerate(rule.overrides):
            problems += _override_flaws(f"{id_}.overrides.{place}", rule, override)
        size = len(encode(rule))
        if size > MAX_VALUE_BYTES:
            problems.append(f"{id_}: has {size} bytes as JSON, more than {MAX_VALUE_BYTES}")
    if problems or rule is None:
        raise RulesError(named(problems))
    return rule


def _made(where: str, make: Callable[[], Rule]) -> tuple[Rule | None, list[str]]:
    try:
        rule = make()
    except ValidationError as error:
        return None, [f"{where}.{line}" for line in explained(error)]
    return rule, [f"{where}.{line}" for line in rule.flaws()]


def _override_flaws(where: str, rule: Rule, override: Override) -> list[str]:
    problems = []
    if bool(override.devices) is bool(override.facilities):
        problems.append(f"{where}: must name devices or facilities, one of them")
    others = [name for name in override.changes if name not in rule.TUNABLE]
    if others:
        known = ", ".join(sorted(rule.TUNABLE))
        problems += [f"{where}.{name}: cannot be overridden; what can is: {known}" for name in map(str, others)]
    elif not override.changes:
        problems.append(f"{where}: changes nothing")
    elif "clear" in override.changes and "levels" not in override.changes:
        problems.append(f"{where}.clear: say the levels with it")
    else:
        before = set(rule.flaws())
        _, found = _made("", lambda: changed(rule, override))
        problems += [f"{where}{line}" for line in found if line.removeprefix(".") not in before]
    return problems


# -- records of the topic ----------------------------------------------------------------------------------------------


def as_object(rule: Rule) -> dict[str, Any]:
    """A rule as it is written, less what goes without saying."""
    return {"kind": rule.KIND, **rule.model_dump(by_alias=True, exclude_defaults=True, mode="json")}


def encode(rule: Rule) -> bytes:
    """The value of a rule's record in the topic; its key is the rule's id."""
    return msgspec.json.encode(as_object(rule))


def decode(id: str, value: bytes) -> Rule:  # noqa: A002
    """The rule in a record's value. Raises `RulesError` with its problems, that of a wrong id too."""
    check_id(id)
    if len(value) > MAX_VALUE_BYTES:
        raise RulesError([f"{id}: the record's value has {len(value)} bytes, more than {MAX_VALUE_BYTES}"])
    try:
        said = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RulesError([f"{id}: the value is not JSON: {brief(error)}"]) from error
    return _rule(id, said)
