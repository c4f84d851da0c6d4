"""The registry of data points: as a process follows it (a file, and over it the compacted topic), and as it is written.

A record's key is the id of a pin as `schemas.datapoints.normalise` has it, letter for letter, so that one pin never has
two keys; its value is the pin's entry, and no value takes the entry away.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

from aiokafka import AIOKafkaProducer
from msgspec import Struct

from app import check, kafka, topics, yaml
from app.broadcast import Broadcast
from app.settings import Settings
from app.telemetry import Telemetry
from schemas import datapoints
from schemas.datapoints import DataPoints, RegistryError
from schemas.payload import quoted
from schemas.point import Entry

#: A broker that says nothing for longer than this is away; all together may take longer.
SILENCE_S: Final = 60.0
#: Changes that are sent together, and acknowledged before the next.
_AT_ONCE: Final = 500
#: Room for the framing of a record, and of the batch that it is alone in.
_FRAME_BYTES: Final = 128
#: As large as the client makes batches of more than one record, when that is not said.
_BATCH_BYTES: Final = 16 * 1024
_STOP_S: Final = 5.0


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


What = Literal["added", "changed", "removed"]


class Change(Struct, frozen=True):
    """A record to write; without an entry, one that takes away what was there."""

    what: What
    key: bytes
    entry: Entry | None = None


class Plan(Struct, frozen=True):
    """What applying a file does. `kept` are keys that are only on the topic, and stay there."""

    changes: Sequence[Change]
    kept: Sequence[bytes]
    unchanged: int


async def held(settings: Settings) -> Held:
    """Read the topic to its present end.

    Raises what aiokafka raises, `TimeoutError`, and `TopicsError` where there is no topic.
    """
    name = settings.topics.registry
    async with asyncio.timeout(SILENCE_S):
        missing = await topics.missing(settings)
    if name in missing:
        raise topics.TopicsError(f"there is no topic {name}: run iotflow topics apply")
    last: dict[bytes, bytes | None] = {}
    for record in await check.tail(settings, name, silence=SILENCE_S):
        if record.key is not None:
            last[record.key] = record.value
    found = Held({}, {})
    for key, value in last.items():
        if value is None:
            continue
        try:
            id_ = _id(key)
            found.entries[id_] = datapoints.decode(id_, value)
        except RegistryError as error:
            found.broken[key] = "; ".join(error.problems)
    return found


def plan(wanted: Mapping[str, Entry], there: Held, *, prune: bool) -> Plan:
    """How to make the topic hold what is wanted, and with `prune` nothing else."""
    changes: list[Change] = []
    for id_, entry in wanted.items():
        key, before = id_.encode(), there.entries.get(id_)
        if before is not None and datapoints.encode(before) == datapoints.encode(entry):
            continue
        changes.append(Change("added" if before is None and key not in there.broken else "changed", key, entry))
    unchanged = len(wanted) - len(changes)
    mine = {id_.encode() for id_ in wanted}
    others = [key for key in (*map(str.encode, there.entries), *there.broken) if key not in mine]
    if prune:
        changes += [Change("removed", key) for key in others]
    return Plan(changes, [] if prune else others, unchanged)


def fit(settings: Settings, changes: Sequence[Change]) -> None:
    """Raise `RegistryError` with the changes that are larger than the topic takes."""
    limit = settings.topics.max_message_bytes
    problems = []
    for change in changes:
        size = len(change.key) + len(_value(change) or b"") + _FRAME_BYTES
        # Where a key already stands, there is room for it without a value.
        if size > limit and change.entry is not None:
            key = quoted(change.key.decode("utf-8", "replace"))
            problems.append(f"{key}: takes {size} bytes, more than IOTFLOW_MAX_MESSAGE_BYTES, {limit}")
    if problems:
        raise RegistryError(problems)


async def write(settings: Settings, changes: Sequence[Change]) -> None:
    """Return when the broker has acknowledged all changes. Raises what aiokafka raises, and `TimeoutError`."""
    topic, limit = settings.topics.registry, settings.topics.max_message_bytes
    producer = AIOKafkaProducer(
        **kafka.client_args(settings),
        enable_idempotence=True,
        acks="all",
        max_batch_size=min(_BATCH_BYTES, limit),
        max_request_size=limit + _FRAME_BYTES,
    )
    try:
        async with asyncio.timeout(SILENCE_S):
            await producer.start()
        for start in range(0, len(changes), _AT_ONCE):
            async with asyncio.timeout(SILENCE_S):
                some = changes[start : start + _AT_ONCE]
                await asyncio.gather(
                    *[await producer.send(topic, key=change.key, value=_value(change)) for change in some]
                )
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await producer.stop()


def _value(change: Change) -> bytes | None:
    return None if change.entry is None else datapoints.encode(change.entry)
