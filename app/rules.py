"""The rules: as a process follows them (a profile or file, and over it the compacted topic), and as they are written.

A record's key is a rule's id, its value the rule as JSON, and no value takes the rule away, after which that of the
file or profile holds again.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

from msgspec import Struct, structs

from app import compacted, kafka, yaml
from app.broadcast import Broadcast
from app.compacted import Change, Plan
from app.settings import Settings
from schemas import rules
from schemas.payload import quoted
from schemas.rules import PROFILES, READING, Rule, RulesError, RuleSet
from tables.rules import Rulebook

#: A spoilt topic has no more of its keys named.
_KEY_CHARS: Final = 100


class Telemetry(Protocol):
    """What is told of the rules that a process follows."""

    def rules(self, by_source: Mapping[str, int], refused: int, *, stale: bool) -> None:
        """How many hold, by where they are from; how many records were refused so far.

        They are stale while their topic cannot be read, and until that was read once.
        """


def from_file(spec: str) -> RuleSet:
    """The rules of a profile, which so is named, or of a YAML file where no profile is called that.

    Raises `RulesError` with everything that is wrong, behind the file's name.
    """
    return structs.replace(rules.profile(spec), said=True) if spec in PROFILES else read(Path(spec))


def read(path: Path) -> RuleSet:
    """The rules of a YAML file. Raises `RulesError` with everything that is wrong, behind the file's name."""
    try:
        return rules.parse(yaml.read(path))
    except RulesError as error:
        raise RulesError([f"{path}: {problem}" for problem in error.problems]) from error
    except FileNotFoundError as error:
        raise RulesError([f"{path}: no such file; a profile is one of: {', '.join(PROFILES)}"]) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RulesError([f"{path}: {why}"]) from error


def unwatched(found: Mapping[str, Rule], windows: Collection[str]) -> list[str]:
    """A line for each rule that looks at a window which is not summed up, and so never says anything."""
    lines = []
    for id_, rule in found.items():
        window = getattr(rule, "on", READING)
        if rule.enabled and window != READING and window not in windows:
            lines.append(f"{id_}: looks at windows of {window}, and IOTFLOW_WINDOWS has: {', '.join(windows)}")
    return lines


def feed(settings: Settings, holder: Rulebook, telemetry: Telemetry | None = None) -> Broadcast:
    """What keeps the rules in force as the topic has them; what is wrong there is refused, and the rest holds."""

    def apply(key: bytes, value: bytes | None) -> None:
        try:
            id_ = _id(key)
        except RulesError:
            if value is None:
                return  # what was never taken in is taken away
            raise
        holder.put(id_, value)

    def after() -> None:
        if telemetry is not None:
            stale = found.troubled or not found.ready
            telemetry.rules(holder.counts(), found.refused, stale=stale)

    found = Broadcast(kafka.client_args(settings), settings.topics.rules, apply, after=after)
    after()
    return found


def _id(key: bytes) -> str:
    try:
        said = key.decode()
    except UnicodeDecodeError as error:
        raise RulesError(["the key is not UTF-8"]) from error
    rules.check_id(said)
    return said


# -- what is on the topic, and changing it -----------------------------------------------------------------------------


class Held(Struct):
    """What the topic holds: rules by id, and by key what is wrong with a record that is refused."""

    rules: dict[str, Rule]
    broken: dict[bytes, str]
    values: dict[bytes, bytes]


async def held(settings: Settings) -> Held:
    """Read the topic to its present end. Raises what `compacted.held` raises."""
    found = Held({}, {}, await compacted.held(settings, settings.topics.rules))
    for key, value in found.values.items():
        try:
            id_ = _id(key)
            found.rules[id_] = rules.decode(id_, value)
        except RulesError as error:
            found.broken[key] = "; ".join(error.problems)
    return found


def plan(wanted: RuleSet, there: Held, *, prune: bool) -> Plan:
    """How to make the topic hold a file's rules, and with `prune` nothing else.

    They are those that it says itself; where it names its profile, that one's too, so that the file holds as it stands
    whatever profile the workers start from.
    """
    some = {id_: rule for id_, rule in wanted.rules.items() if wanted.said or id_ in wanted.own}

    def same(key: bytes, _: bytes, value: bytes) -> bool:
        before = there.rules.get(key.decode("utf-8", "replace"))
        return before is not None and rules.encode(before) == value

    values = {id_.encode(): rules.encode(rule) for id_, rule in some.items()}
    return compacted.plan(values, there.values, prune=prune, same=same)


def unversioned(wanted: RuleSet, there: Held, planned: Plan) -> list[str]:
    """A line for each rule that changes and keeps its version: its alarms before and after look the same."""
    lines = []
    for change in planned.changes:
        id_ = change.key.decode("utf-8", "replace")
        before = there.rules.get(id_)
        if change.what == "changed" and before is not None and wanted.rules[id_].version <= before.version:
            lines.append(f"{id_}: changes without a new version; alarms name it, so make it {before.version + 1}")
    return lines


def fit(settings: Settings, changes: Sequence[Change]) -> None:
    """Raise `RulesError` with the changes that are larger than the topic takes."""
    problems = compacted.too_large(settings, changes)
    if problems:
        raise RulesError(problems)


async def write(settings: Settings, changes: Sequence[Change]) -> None:
    """Return when the broker has acknowledged all changes. Raises what aiokafka raises, and `TimeoutError`."""
    await compacted.write(settings, settings.topics.rules, changes)


def in_force(base: RuleSet, there: Held) -> Rulebook:
    """What a worker that has read the topic goes by."""
    found = Rulebook(base)
    for id_, rule in there.rules.items():
        found.put(id_, rules.encode(rule))
    return found


def name(key: bytes) -> str:
    """A record's key as a person may read it."""
    text = key.decode("utf-8", "backslashreplace")
    return text if text.isprintable() and 0 < len(text) <= _KEY_CHARS else quoted(text)
