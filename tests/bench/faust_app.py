"""Faust contenders, for `faust -A tests.bench.faust_app worker`: ours for consuming, stock Faust for all parts.

All of them have the product's own Faust settings. Stock Faust differs in its transport (`kafka://`), its buffer, which
counts messages there and chunks with us, and a producer that is allowed to batch; its web server is off.
"""

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faust
import msgspec

from agents.held import chunks
from app import produce
from app.build import app_options, transport_limits
from app.transport import ChunkSchema
from schemas import wire
from schemas.partition import partition_of
from schemas.reading import Reading
from sinks import registry
from tests.bench.spec import BATCH, Raw, Spec, given

TAKE = 1000
WITHIN_S = 0.5
_BYTES: Mapping[str, Any] = {
    "key_type": bytes,
    "value_type": bytes,
    "key_serializer": "raw",
    "value_serializer": "raw",
}


def record(message: Any) -> Raw:
    """The record that a stock Faust message was."""
    return Raw(
        message.topic,
        message.partition,
        message.offset,
        round(message.timestamp * 1000),
        message.key,
        message.value,
        message.headers,
    )


def make(spec: Spec) -> faust.App:
    """The app of a contender."""
    settings = spec.settings()
    stage = registry.load()[spec.store].Settings.STAGE if spec.store else "decode"
    ours = spec.kind.startswith("ours")
    options = app_options(stage, settings) | {
        "id": spec.group,
        "datadir": Path(spec.folder) / "data",
        "web_enabled": False,
    }
    if not ours:
        options |= {
            "broker": f"kafka://{spec.servers}",
            "stream_buffer_maxsize": 4096,
            "producer_linger": 0.005,
            "producer_max_batch_size": produce.BATCH_BYTES,
        }
    made = faust.App(**options)
    made.transport_limits = transport_limits(settings)
    # Without "raw" Faust parses each value as JSON, and a value that is none ends its agent without a word.
    schema = ChunkSchema() if ours else faust.Schema(**_BYTES)
    made.agent(made.topic(spec.topic, schema=schema), name="contender", concurrency=1)(_AGENTS[spec.kind](made, spec))

    async def ready() -> None:
        while not _flows(made, spec.topic):  # noqa: ASYNC110  Faust tells nobody
            await asyncio.sleep(0.05)
        spec.ready.touch()

    made.task(ready)
    return made


def _flows(made: faust.App, topic: str) -> bool:
    try:
        found = {tp.partition for tp in made.consumer.assignment() if tp.topic == topic}
    except Exception:  # noqa: BLE001  Faust raises its own error before the consumer thread has started
        return False
    return bool(found) and not made.rebalancing


def ours_consume(made: faust.App, spec: Spec) -> Any:
    """Chunks of the batch transport, each record decoded."""
    del made, spec
    decode = msgspec.json.decode

    async def agent(stream: Any) -> None:
        async for held in chunks(stream):
            for each in held.records:
                decode(each.value)
            held.ack()

    return agent


def ours_read(made: faust.App, spec: Spec) -> Any:
    """Chunks of the batch transport, each record read as the stages behind decode read it, and no more."""
    del made

    async def agent(stream: Any) -> None:
        async for held in chunks(stream):
            for each in held.records:
                wire.read(each.value)
            spec.stored(len(held.records), len(held.records))
            held.ack()

    return agent


def stock_consume(made: faust.App, spec: Spec) -> Any:
    """Batches of `noack_take`, each record decoded."""
    del made, spec
    decode = msgspec.json.decode

    async def agent(stream: Any) -> None:
        async for events in stream.noack_take(TAKE, within=WITHIN_S):
            for event in events:
                decode(event.value)
            for event in events:
                event.ack()

    return agent


def stock_decode(made: faust.App, spec: Spec) -> Any:
    """The decode stage as one writes it on stock Faust: decode, send, gather, dead letters, acks."""
    decoder = spec.decoder()
    out = made.topic(spec.decoded, **_BYTES)
    dead = made.topic(spec.dead, **_BYTES)

    async def agent(stream: Any) -> None:
        made.producer.buffer.max_messages = 10_000  # or it warns for each message above 100
        async for events in stream.noack_take(TAKE, within=WITHIN_S):
            decoded = decoder([record(event.message) for event in events], time.time_ns() // 1_000_000)
            sent = []
            for partition, items in decoded.items.items():
                for key, value, headers in items:
                    sent.append(await out.send(key=key, value=value, headers=headers, partition=partition))
            for each in decoded.letters:
                partition = partition_of(each.id, spec.partitions)
                sent.append(
                    await dead.send(key=each.key, value=each.value, headers=list(each.headers), partition=partition)
                )
            await asyncio.gather(*sent)
            for event in events:
                event.ack()

    return agent


def stock_store(made: faust.App, spec: Spec) -> Any:
    """The same sink, written once for each batch of `noack_take`."""
    del made
    sink = registry.load()[spec.store].Sink(spec.settings().sinks[spec.store])
    opened = False

    async def agent(stream: Any) -> None:
        nonlocal opened
        if not opened:
            await sink.open()
            opened = True
        async for events in stream.noack_take(BATCH, within=WITHIN_S):
            readings: list[Reading] = [wire.read(event.value) for event in events]
            prepared = sink.prepare(readings)
            await sink.write(prepared.payload)
            spec.stored(prepared.rows, len(readings))
            for event in events:
                event.ack()

    return agent


_AGENTS = {
    "ours-consume": ours_consume,
    "ours-read": ours_read,
    "stock-consume": stock_consume,
    "stock-decode": stock_decode,
    "stock-store": stock_store,
}

app = make(given())
