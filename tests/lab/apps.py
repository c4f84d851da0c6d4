"""Small Faust apps in the test's own event loop, on the batch transport or on stock Faust, doing the same work."""

import asyncio
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import faust
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError
from faust.exceptions import ConsumerNotStarted
from faust.streams import _current_event

from app import topics
from app.transport import MAX_POLL_INTERVAL_S, QUEUED_CHUNKS, ChunkSchema

#: Faust loses the order and the counts of acks of its own accord; what is compared is per record.
Handler = Callable[["Lab", Any, Sequence[Any]], Awaitable[None]]

TABLE = "counts"


def unique(name: str) -> str:
    """A name no other test has."""
    return f"{name}-{uuid.uuid4().hex[:8]}"


def own_topics(name: str, dialect: str = "telemetry") -> dict[str, str]:
    """The variables of topics that no other test has; tables' topics are called after the apps."""
    own = (
        *("DEAD_LETTER", "DEAD_LETTER_STATE", "REGISTRY", "RULES", "CONTROL", "STATUS", "STORAGE_METADATA", "SAVED"),
        *("AGGREGATES", "ALARMS", "ANOMALIES", "WARNINGS", "EMERGENCIES", "LATEST", "LATE", "QUALITY", "QUARANTINE"),
    )
    return {
        "KAFKA_RAW_TOPICS": f"{name}-raw:{dialect}",
        "KAFKA_INPUT_TOPIC": f"{name}-decoded",
        "IOTFLOW_APP_PREFIX": name,
        **{f"IOTFLOW_{topic}_TOPIC": f"{name}-{topic.lower()}" for topic in own},
    }


async def ack_all(lab: "Lab", event: Any, records: Sequence[Any]) -> None:
    """The usual handler: done at once."""
    lab.seen.extend(records)
    event.ack()


def paced(seconds: float, every: int) -> Handler:
    """A handler that takes `seconds` for each `every` records, then is done with them."""
    owed: Counter[Lab] = Counter()

    async def handle(lab: "Lab", event: Any, records: Sequence[Any]) -> None:
        owed[lab] += len(records)
        while owed[lab] >= every:
            owed[lab] -= every
            await asyncio.sleep(seconds)
        await ack_all(lab, event, records)

    return handle


def gated(gate: asyncio.Event, inner: Handler = ack_all) -> Handler:
    """A handler that does nothing until the gate opens, as a sink does whose database is away."""

    async def handle(lab: "Lab", event: Any, records: Sequence[Any]) -> None:
        lab.entered += 1
        await gate.wait()
        await inner(lab, event, records)

    return handle


async def hold(lab: "Lab", event: Any, records: Sequence[Any]) -> None:
    """A handler that keeps what it is given and never says that it is done."""
    del records
    lab.held.append(event)


class Lab:
    """One worker. `seen` are the records handled, `held` the events a handler kept, `table` its table, if it has one.

    `tables` gives the app a table of bytes by bytes whose changelog topic must exist (`create_changelog`).
    """

    def __init__(
        self,
        servers: str,
        topic: str,
        group: str,
        folder: Path,
        handler: Handler = ack_all,
        *,
        scheme: str = "iotflow",
        limits: Mapping[str, int] | None = None,
        table: bool = False,
        partitions: int = 4,
        **options: Any,
    ) -> None:
        self.seen: list[Any] = []
        self.held: list[Any] = []
        self.entered = 0
        self.seeks = 0
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
        self.app.transport_limits = dict(limits or {})
        self._stock = scheme == "kafka"
        self._starting: asyncio.Future[None] | None = None
        self.table: Any = None
        if table:
            self.table = self.app.Table(TABLE, key_type=bytes, value_type=bytes, partitions=partitions)
        schema = ChunkSchema() if scheme == "iotflow" else faust.Schema(key_serializer="raw", value_serializer="raw")

        async def agent(stream: Any) -> None:
            async for event in stream.noack().events():
                records = event.value if scheme == "iotflow" else [event.message]
                await handler(self, event, records)

        self.app.agent(self.app.topic(topic, schema=schema), name="agent", concurrency=1)(agent)

    async def __aenter__(self) -> "Lab":
        """Begin to start; a worker is up only when the group has let it in, which is what some tests are about."""
        self.app.finalize()
        self._starting = asyncio.ensure_future(self.app.start())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop(3.0 if self._stock else 12.0)

    async def stop(self, limit: float) -> bool:
        """Stop the worker; says whether it stopped within `limit` seconds, and ends a hanging one all the same."""
        assert self._starting is not None
        await self._starting
        stopping = asyncio.ensure_future(self.app.stop())
        done, _ = await asyncio.wait({stopping}, timeout=limit)
        by_itself = bool(done)
        let_go = time.monotonic() + 15.0
        while not done and time.monotonic() < let_go:
            self.consumer._unacked_messages.clear()
            done, _ = await asyncio.wait({stopping}, timeout=0.1)
        if not done:
            stopping.cancel()
            return False
        await stopping
        return by_itself

    @property
    def consumer(self) -> Any:
        """The app's consumer."""
        return self.app.consumer

    @property
    def running(self) -> bool:
        """Whether the worker has partitions and no rebalance or recovery is under way."""
        return not self.app.rebalancing and bool(self.assigned)

    @property
    def assigned(self) -> set[int]:
        """The partitions of the topic that it has."""
        try:
            assignment = self.consumer.assignment()
        except ConsumerNotStarted:
            return set()
        return {tp.partition for tp in assignment if tp.topic == self.topic}

    @property
    def offsets(self) -> dict[int, list[int]]:
        """What was handled: offsets by partition, in the order of handling."""
        found: dict[int, list[int]] = {}
        for record in self.seen:
            found.setdefault(record.partition, []).append(record.offset)
        return found

    def write(self, event: Any, key: bytes, value: bytes) -> None:
        """Write to the table on behalf of an event, as batch code must: Faust knows no current event there."""
        _current_event.set(weakref.ref(event))
        self.table[key] = value

    async def committed(self) -> dict[int, int]:
        """The group's committed offsets at the broker, by partition."""
        return await committed(self.servers, self.topic, self.group)


def handled(*labs: Lab) -> Counter[tuple[int, int]]:
    """How often each record was handled, by (partition, offset), over all workers."""
    return Counter((record.partition, record.offset) for lab in labs for record in lab.seen)


def slow_seek(lab: Lab, *, before: float = 0.0, after: float = 0.0) -> None:
    """A fault hook: the way to the committed offsets takes long, as with a slow broker."""
    seek = lab.consumer.seek_to_committed

    async def slow() -> Any:
        lab.seeks += 1
        await asyncio.sleep(before)
        found = await seek()
        await asyncio.sleep(after)
        return found

    lab.consumer.seek_to_committed = slow


async def late_fetch(lab: Lab, until_true: Callable[[], bool]) -> None:
    """A fault hook: the next fetch, which has passed Faust's checks, reaches aiokafka only when something is true.

    This is a fetch on its way between the two threads while a rebalance begins, or one that waits inside aiokafka
    for the new assignment; it then returns records of that. Returns when there is such a fetch.
    """
    thread = lab.consumer._thread
    fetch = thread._fetch_records
    caught: list[bool] = []

    async def late(client: Any, active: Any, timeout: float = 0.0, max_records: int | None = None) -> Any:
        if caught:
            return await fetch(client, active, timeout=timeout, max_records=max_records)
        caught.append(True)
        wanted = set(active)
        while not until_true():  # noqa: ASYNC110  what becomes true belongs to another thread
            await asyncio.sleep(0.005)
        deadline = time.monotonic() + 5.0
        found: Any = {}
        while not found and time.monotonic() < deadline:
            found = await client._fetcher.fetched_records(wanted, timeout=0.1, max_records=max_records)
        return found

    thread._fetch_records = late
    await until(lambda: caught)


async def committed(servers: str, topic: str, group: str) -> dict[int, int]:
    """A group's committed offsets at the broker, by partition."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(group)
    except GroupCoordinatorNotAvailableError:  # the broker's first group makes it make a topic
        return {}
    else:
        return {tp.partition: found.offset for tp, found in offsets.items() if tp.topic == topic}
    finally:
        await admin.close()


async def create(servers: str, topic: str, partitions: int = 4, **config: str) -> None:
    """Make a topic."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    try:
        await made(admin, NewTopic(topic, partitions, 1, topic_configs=config))
    finally:
        await admin.close()


async def made(admin: AIOKafkaAdminClient, *new: NewTopic) -> None:
    """Make topics, and return when the broker knows of them: the controller answers a moment before that."""
    await admin.create_topics(new)
    await topics._wait_for_leaders(admin, {topic.name for topic in new}, 30.0)


async def create_changelog(servers: str, group: str, partitions: int = 4) -> None:
    """Make the changelog topic of the table of a group's workers."""
    await create(servers, f"{group}-{TABLE}-changelog", partitions, **{"cleanup.policy": "compact"})


async def fill(servers: str, topic: str, count: int, partitions: int = 4, *, size: int = 40, start: int = 0) -> None:
    """Produce numbered records round robin over the partitions."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, linger_ms=5, max_batch_size=128 * 1024)
    await producer.start()
    try:
        sends = []
        for number in range(start, start + count):
            value = b"%d" % number
            sends.append(await producer.send(topic, value.ljust(size), partition=number % partitions))
        await asyncio.gather(*sends)
    finally:
        await producer.stop()


async def fill_with_gaps(
    servers: str, topic: str, transactions: int, records: int, *, aborted: bool
) -> dict[int, list[int]]:
    """Produce in transactions, of which every third is aborted: their markers take an offset each.

    Returns the offsets that hold data, by partition; those of aborted transactions too if `aborted`.
    """
    producer = AIOKafkaProducer(bootstrap_servers=servers, transactional_id=unique("gaps"))
    await producer.start()
    offsets: dict[int, list[int]] = {}
    try:
        for number in range(transactions):
            await producer.begin_transaction()
            sends = [await producer.send(topic, b"x" * 40, partition=index % 4) for index in range(records)]
            abort = number % 3 == 1
            for metadata in await asyncio.gather(*sends):
                if aborted or not abort:
                    offsets.setdefault(metadata.partition, []).append(metadata.offset)
            await (producer.abort_transaction() if abort else producer.commit_transaction())
    finally:
        await producer.stop()
    return offsets


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


async def until_committed(lab: Lab, ends: Mapping[int, int], seconds: float = 30.0) -> None:
    """Wait until the group's commits are at these offsets."""

    async def at_the_end() -> bool:
        return await lab.committed() == ends

    await until(at_the_end, seconds)
