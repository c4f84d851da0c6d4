"""The registry of data points: as a process follows it (a file, and over it the compacted topic), and as it is written.

A record's key is the id of a pin as `schemas.datapoints.normalise` has it, letter for letter, so that one pin never has
two keys; its value is the pin's entry, and no value takes the entry away.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from msgspec import Struct

from app import compacted, kafka, yaml
from app.broadcast import Broadcast
from app.compacted import Change, Plan
from app.settings import Settings
from app.telemetry import Telemetry
from schemas import datapoints
from schemas.datapoints import DataPoints, RegistryError
from schemas.payload import quoted
from schemas.point import Entry


def read(path: Path) -> dict[str, Entry]:
    """What a YAML file says, by id. Raises `RegistryError` with everything that is wrong, behind the file's name."""
    try:
        return datapoints.parse(yaml.read(path))
    except RegistryError as error:
        raise RegistryError([f"{path}: {problem}" for problem in error.problems]) from error
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RegistryError([f"{path}: {why}"]) from error


def from_file(path: Path | None) -> DataPoints:
    """The data points of a file; none without one. Raises `RegistryError`."""
    points = DataPoints()
    if path is not None:
        points.load(read(path))
    return points


def feed(settings: Settings, points: DataPoints, telemetry: Telemetry) -> Broadcast:
    """What keeps data points as the topic has them."""

    def apply(key: bytes, value: bytes | None) -> None:
        try:
            id_ = _id(key)
        except RegistryError:
            if value is None:
                return  # what was never taken in is taken away
            raise
        points.put(id_, value)

    def after() -> None:
        telemetry.registry(points.counts(), found.refused, stale=found.troubled or not found.ready)

    found = Broadcast(kafka.client_args(settings), settings.topics.registry, apply, after=after)
    after()
    return found


def _id(key: bytes) -> str:
    try:
        said = key.decode()
    except UnicodeDecodeError as error:
        raise RegistryError(["the key is not UTF-8"]) from error
    canonical = datapoints.normalise(said)
    if canonical != said:
        raise RegistryError([f"the key is {quoted(said)}, and must be {quoted(canonical)}"])
    return said


# -- what is on the topic, and changing it -----------------------------------------------------------------------------


class Held(Struct):
    """What the topic holds: the last value of each key, as an entry by its id, or by its key as what is wrong."""

    entries: dict[str, Entry]
    broken: dict[bytes, str]


async def held(settings: Settings) -> Held:
    """Read the topic to its present end.

    Raises what aiokafka raises, `TimeoutError`, and `TopicsError` where there is no topic.
    """
    found = Held({}, {})
    for key, value in (await compacted.held(settings, settings.topics.registry)).items():
        try:
            id_ = _id(key)
            found.entries[id_] = datapoints.decode(id_, value)
        except RegistryError as error:
            found.broken[key] = "; ".join(error.problems)
    return found


def plan(wanted: Mapping[str, Entry], there: Held, *, prune: bool) -> Plan:
    """How to make the topic hold what is wanted, and with `prune` nothing else."""
    return compacted.plan(_values(wanted), {**_values(there.entries), **dict.fromkeys(there.broken, b"")}, prune=prune)


def _values(entries: Mapping[str, Entry]) -> dict[bytes, bytes]:
    """Entries as they stand on the topic, whatever it says in which order."""
    return {id_.encode(): datapoints.encode(entry) for id_, entry in entries.items()}


def fit(settings: Settings, changes: Sequence[Change]) -> None:
    """Raise `RegistryError` with the changes that are larger than the topic takes."""
    if problems := compacted.too_large(settings, changes):
        raise RegistryError(problems)


async def write(settings: Settings, changes: Sequence[Change]) -> None:
    """Return when the broker has acknowledged all changes. Raises what aiokafka raises, and `TimeoutError`."""
    await compacted.write(settings, settings.topics.registry, changes)
