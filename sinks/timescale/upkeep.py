"""What is done from time to time: old rows deleted where no policy does it, chunks compressed on demand."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

import asyncpg

from sinks.timescale.catalog import Server, read_server
from sinks.timescale.desired import retention
from sinks.timescale.layout import LayoutError
from sinks.timescale.schema import connected
from sinks.timescale.settings import Settings
from sinks.timescale.tables import NARROW, quoted

#: Rows that one statement deletes.
PIECE: Final = 10_000
#: Held by the one of many workers that deletes.
_LOCK: Final = 0x696F74666C6F78

_KIND: Final = """
SELECT c.relkind::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname = $2
"""
_HYPERTABLES: Final = "SELECT hypertable_name FROM timescaledb_information.hypertables WHERE hypertable_schema = $1"
_DROP: Final = "SELECT drop_chunks($1::text::regclass, $2::timestamptz)"
_CHUNKS: Final = """
SELECT c.hypertable_name AS table, c.chunk_name AS name, format('%I.%I', c.chunk_schema, c.chunk_name) AS chunk,
    h.compression_enabled AS enabled
FROM timescaledb_information.chunks c
JOIN timescaledb_information.hypertables h USING (hypertable_schema, hypertable_name)
WHERE c.hypertable_schema = $1 AND c.hypertable_name = ANY($2::text[]) AND NOT c.is_compressed
    AND c.range_end <= now() - $3::interval
ORDER BY c.hypertable_name, c.range_start
"""


async def maintain(settings: Settings, types: Mapping[str, str] | None = None) -> list[str]:  # noqa: ARG001  as others
    """Delete what is older than the settings keep; what was deleted, for a person.

    Nothing where a policy of TimescaleDB does it, and where another process is at it. Readings are deleted in pieces of
    `PIECE` rows, each for itself, so that it can be broken off at any time and holds nobody up. Raises what the sink's
    classify knows.
    """
    kept = retention(settings)
    async with connected(settings) as connection:
        server = await read_server(connection)
        if not any(kept.values()) or not await connection.fetchval("SELECT pg_try_advisory_lock($1)", _LOCK):
            return []
        await connection.execute("SELECT set_config('search_path', $1, false)", server.search_path)
        hypertables = set()
        if server.extension is not None:
            hypertables = {row[0] for row in await connection.fetch(_HYPERTABLES, server.schema)}
        done = []
        for name, days in kept.items():
            if not days:
                continue
            before = await connection.fetchval("SELECT now() - make_interval(days => $1)", days)
            if name in hypertables and server.policies:
                continue
            if name in hypertables:
                dropped = await connection.fetch(_DROP, quoted(name), before)
                number, what = len(dropped), "chunks"
            elif await connection.fetchval(_KIND, server.schema, name) == "r":
                number, what = await _delete(connection, name, before), "rows"
            else:
                continue
            if number:
                done.append(f"{name}: {number:,} {what} older than {days} d deleted")
        return done


async def _delete(connection: asyncpg.Connection, name: str, before: datetime) -> int:
    """Delete the rows of a plain table from before a time; how many there were."""
    time = quoted(NARROW.time if name == NARROW.name else "ts")
    piece = (
        f"DELETE FROM {quoted(name)} WHERE ctid = ANY(ARRAY("  # noqa: S608  our own names
        f"SELECT ctid FROM {quoted(name)} WHERE {time} < $1 LIMIT {PIECE})) AND {time} < $1"
    )
    total = 0
    while deleted := int((await connection.execute(piece, before)).split()[-1]):
        total += deleted
    return total


async def compress(settings: Settings, older_than: timedelta) -> list[str]:
    """Compress the chunks that end earlier than `older_than` ago; what was done, for a person.

    What is compressed already is left as it is. Raises `LayoutError` where there is nothing that can compress, else
    what the sink's classify knows.
    """
    async with connected(settings) as connection:
        server = await read_server(connection)
        if server.extension is None or not server.policies:
            raise LayoutError(" ".join(server.notes) or "the extension is not there yet: run iotflow schema apply")
        await connection.execute("SELECT set_config('search_path', $1, false)", server.search_path)
        return [
            await _compress(connection, row, server)
            for row in await connection.fetch(_CHUNKS, server.schema, list(retention(settings)), older_than)
        ]


async def _compress(connection: asyncpg.Connection, chunk: Mapping[str, Any], server: Server) -> str:
    if not chunk["enabled"]:
        raise LayoutError(f"compression is not enabled for {chunk['table']}: run iotflow schema apply")
    do = "CALL convert_to_columnstore" if server.columnstore else "SELECT compress_chunk"
    await connection.execute(f"{do}('{chunk['chunk'].replace(chr(39), chr(39) * 2)}'::regclass)")
    function = "chunk_columnstore_stats" if server.columnstore else "chunk_compression_stats"
    row = await connection.fetchrow(
        f"SELECT pg_size_pretty(before_compression_total_bytes), pg_size_pretty(after_compression_total_bytes) "  # noqa: S608
        f"FROM {function}($1::text::regclass) WHERE chunk_name = $2",
        quoted(chunk["table"]),
        chunk["name"],
    )
    return f"{chunk['table']}: {chunk['name']} compressed, {row[0]} -> {row[1]}"
