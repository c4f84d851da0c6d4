"""Small Faust apps in the test's own event loop, on the batch transport or on stock Faust, doing the same work."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import faust
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from app.transport import MAX_POLL_INTERVAL_S, QUEUED_CHUNKS, ChunkSchema

#: Faust loses the order and the counts of acks of its own accord; what is compared is per record.
Handler = Callable[["Lab", Any, Sequence[Any]], Awaitable[None]]


def unique(name: str) -> str:
    """A name no other test has."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


async def ack_all(lab: "Lab", event: Any, records: Sequence[Any]) -> None:
    """The usual handler: done at once."""
    lab.seen.extend(records)
    event.ack()


class Lab:
    """One worker. `seen` are the records handled, `commits` what the broker has for the group."""

    def __init__(
        self,
        servers: str,
        topic: str,
        group: str,
        folder: Path,
        handler: Handler = ack_all,
        *,
        scheme: str = "iotflow",
        limits: dict[str, int] | None = None,
        tables: Callable[[faust.App], None] | None = None,
        **options: Any,
    ) -> None:
        self.seen: list[Any] = []
        self.servers = servers
        self.topic = topic
        self.group = group
        settings: dict[str, Any] = {
            "datadir": folder / unique("data"),
            "autodiscover": False,
            "store": "memory://",
            "broker_commit_interval": 0.3,
            "broker_commit_every": 1_000_000,
            "broker_max_poll_interval": MAX_POLL_INTERVAL_S,
            "broker_session_timeout": 6.0,
            "broker_heartbeat_interval": 0.5,
            "broker_rebalance_timeout": 12.0,
            "consumer_auto_offset_reset": "earliest",
            "stream_buffer_maxsize": QUEUED_CHUNKS if scheme == "iotflow" else 4096,
            "table_standby_replicas": 0,
            "topic_allow_declare": False,
            "topic_disable_leader": True,
            "web_enabled": False,
        }
        self.app = faust.App(group, broker=f"{scheme}://{servers}", **{**settings, **options})
        self.app.transport_limits = limits or {}
        if tables is not None:
            tables(self.app)
        schema = ChunkSchema() if scheme == "iotflow" else faust.Schema(key_type=bytes, value_type=bytes)

        async def agent(stream: Any) -> None:
            async for event in stream.noack().events():
                records = event.value if scheme == "iotflow" else [event.message]
                await handler(self, event, records)

        self.app.agent(self.app.topic(topic, schema=schema), name="agent", concurrency=1)(agent)

    async def __aenter__(self) -> "Lab":
        self.app.finalize()
        await self.app.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.app.stop()

    @property
    def offsets(self) -> dict[int, list[int]]:
        """What was handled: offsets by partition, in the order of handling."""
        found: dict[int, list[int]] = {}
        for record in self.seen:
            found.setdefault(record.partition, []).append(record.offset)
        return found

    async def committed(self) -> dict[int, int]:
        """The group's committed offsets at the broker, by partition."""
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        try:
            offsets = await admin.list_consumer_group_offsets(self.group)
            return {tp.partition: found.offset for tp, found in offsets.items() if tp.topic == self.topic}
        finally:
            await admin.close()


async def create(servers: str, topic: str, partitions: int = 4, **config: str) -> None:
    """Make a topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, partitions, 1, topic_configs=config)])
    finally:
        await admin.close()


async def fill(servers: str, topic: str, count: int, partitions: int = 4, *, size: int = 40, start: int = 0) -> None:
    """Produce numbered records round robin over the partitions."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, linger_ms=5)
    await producer.start()
    try:
        sends = []
        for number in range(start, start + count):
            value = b"%d" % number
            sends.append(await producer.send(topic, value.ljust(size), partition=number % partitions))
        await asyncio.gather(*sends)
    finally:
        await producer.stop()


async def until(what: Callable[[], Any], seconds: float = 30.0) -> None:
    """Wait for a condition (a value, or an awaitable's); fail when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while True:
        result = what()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"not true after {seconds} s: {what}")
        await asyncio.sleep(0.05)
