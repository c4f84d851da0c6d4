"""What a compacted topic holds, and changing it: for commands that keep configuration there."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, Literal

from aiokafka import AIOKafkaProducer
from msgspec import Struct

from app import check, kafka, topics
from app.settings import Settings
from schemas.payload import quoted

#: A broker that says nothing for longer than this is away; all together may take longer.
SILENCE_S: Final = 60.0
#: Changes that are sent together, and acknowledged before the next.
_AT_ONCE: Final = 500
#: Room for the framing of a record, and of the batch that it is alone in.
_FRAME_BYTES: Final = 128
#: As large as the client makes batches of more than one record, when that is not said.
_BATCH_BYTES: Final = 16 * 1024
_STOP_S: Final = 5.0

What = Literal["added", "changed", "removed"]


class Change(Struct, frozen=True):
    """A record to write; without a value, one that takes away what was there."""

    what: What
    key: bytes
    value: bytes | None = None


class Plan(Struct, frozen=True):
    """What makes a topic hold what is wanted. `kept` are keys that are only on the topic, and stay there."""

    changes: Sequence[Change]
    kept: Sequence[bytes]
    unchanged: int


async def held(settings: Settings, topic: str) -> dict[bytes, bytes]:
    """The last value of each key that has one; the topic is read to its present end.

    Raises what aiokafka raises, `TimeoutError`, and `TopicsError` where there is no topic.
    """
    async with asyncio.timeout(SILENCE_S):
        missing = await topics.missing(settings)
    if topic in missing:
        raise topics.TopicsError(f"there is no topic {topic}: run iotflow topics apply")
    found: dict[bytes, bytes] = {}
    for record in await check.tail(settings, topic, silence=SILENCE_S):
        if record.key is None:
            continue
        if record.value is None:
            found.pop(record.key, None)
        else:
            found[record.key] = record.value
    return found


def plan(
    wanted: Mapping[bytes, bytes],
    there: Mapping[bytes, bytes],
    *,
    prune: bool,
    same: Callable[[bytes, bytes, bytes], bool] = lambda _, one, other: one == other,
) -> Plan:
    """How to make a topic hold what is wanted, and with `prune` nothing else; `same(key, …)` compares two values."""
    changes: list[Change] = []
    for key, value in wanted.items():
        before = there.get(key)
        if before is None or not same(key, before, value):
            changes.append(Change("added" if before is None else "changed", key, value))
    unchanged = len(wanted) - len(changes)
    others = [key for key in there if key not in wanted]
    if prune:
        changes += [Change("removed", key) for key in others]
    return Plan(changes, [] if prune else others, unchanged)


def too_large(settings: Settings, changes: Sequence[Change]) -> list[str]:
    """A line for each change that is larger than a topic takes."""
    limit = settings.topics.max_message_bytes
    problems = []
    for change in changes:
        size = len(change.key) + len(change.value or b"") + _FRAME_BYTES
        # Where a key already stands, there is room for it without a value.
        if size > limit and change.value is not None:
            key = quoted(change.key.decode("utf-8", "replace"))
            problems.append(f"{key}: takes {size} bytes, more than IOTFLOW_MAX_MESSAGE_BYTES, {limit}")
    return problems


async def write(settings: Settings, topic: str, changes: Sequence[Change]) -> None:
    """Return when the broker has acknowledged all changes. Raises what aiokafka raises, and `TimeoutError`."""
    limit = settings.topics.max_message_bytes
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
                    *[await producer.send(topic, key=change.key, value=change.value) for change in some]
                )
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await producer.stop()
