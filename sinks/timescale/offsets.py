"""The offsets of a group, kept in the transaction of their data: exactly once."""

from collections.abc import Mapping
from typing import Final

import asyncpg

from sinks.base import FencedError, Progress
from sinks.timescale.tables import Column, Table

OFFSETS: Final = Table(
    name="sink_offsets",
    time="updated_at",
    columns=(
        Column("group_id", "text", null=False),
        Column("topic", "text", null=False),
        Column("partition", "integer", null=False),
        Column("next", "bigint", null=False),
        Column("updated_at", "timestamptz", null=False, default="now()"),
    ),
    key=("group_id", "topic", "partition"),
    key_name="sink_offsets_pkey",
    indexes={},
    segment_by=(),
)

_READ: Final = "SELECT topic, partition, next FROM sink_offsets WHERE group_id = $1"
#: In the order of the key, so that two workers which meet here wait for each other and never both at once.
_MOVE: Final = """
WITH given AS (
    SELECT * FROM unnest($2::text[], $3::int[], $4::bigint[], $5::bigint[]) AS g (topic, partition, expected, next)
), locked AS (
    SELECT o.topic, o.partition, g.next FROM sink_offsets o JOIN given g USING (topic, partition)
    WHERE o.group_id = $1 AND o.next = g.expected ORDER BY o.topic, o.partition FOR UPDATE OF o
)
UPDATE sink_offsets o SET next = l.next, updated_at = now() FROM locked l
WHERE o.group_id = $1 AND o.topic = l.topic AND o.partition = l.partition
RETURNING o.topic, o.partition
"""
_BEGIN: Final = """
INSERT INTO sink_offsets (group_id, topic, partition, next)
SELECT $1, * FROM unnest($2::text[], $3::int[], $4::bigint[]) AS g (topic, partition, next) ORDER BY 2, 3
ON CONFLICT DO NOTHING
RETURNING topic, partition
"""


async def offsets(connection: asyncpg.Connection, group: str) -> Mapping[tuple[str, int], int]:
    """The next offset of each partition that the group has one for."""
    return {(row["topic"], row["partition"]): row["next"] for row in await connection.fetch(_READ, group)}


async def move(connection: asyncpg.Connection, group: str, progress: Progress) -> None:
    """Set the offsets, in the transaction at hand. Raises `FencedError` where one is not what it must have been."""
    known = sorted((*place, expected, new) for place, (expected, new) in progress.items() if expected is not None)
    first = sorted((*place, new) for place, (expected, new) in progress.items() if expected is None)
    moved = set()
    if known:
        moved |= {tuple(row) for row in await connection.fetch(_MOVE, group, *zip(*known, strict=True))}
    if first:
        moved |= {tuple(row) for row in await connection.fetch(_BEGIN, group, *zip(*first, strict=True))}
    if lost := sorted(set(progress) - moved):
        named = ", ".join(f"{topic}/{partition}" for topic, partition in lost)
        raise FencedError(f"somebody else of the group {group} went on with {named}")
