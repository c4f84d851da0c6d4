"""A compacted topic, learned whole by each process that needs it, and followed from then on.

A stage's agent sees only its own partitions. What every process must know (the registry, later rules, control and the
latest readings) is read here by a client without a group from all partitions: to their end first, then as it comes.

The last value of a key counts, and a partition's order. Tombstones are only kept for a while by the broker, and a topic
may be deleted and made again; then it is read from its start, and the keys that are no longer there are forgotten.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import OffsetOutOfRangeError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.types import (
    AbstractType,
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from app.lenient import read_leniently
from app.steady import pace
from schemas.payload import quoted

log = logging.getLogger(__name__)

#: How often the topic itself is looked at: is it still the same one, has it more partitions.
LOOK_S: Final = 5.0
#: Unheard of for longer than this, a tombstone may have come and gone: brokers keep them for a day by default.
GAP_S: Final = 3600.0
_POLL_MS: Final = 200
#: After so many records others on the event loop have their turn.
_AT_ONCE: Final = 500
_FIRST_S: Final = 0.1
_CAP_S: Final = 5.0
#: For all answers to one question together; a broker that is slower than this is away.
_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 5.0

#: No more is logged of why a record is refused.
_WHY_CHARS: Final = 1000

_OTHERS: Final = "its records are not those that were read"

#: A record's value, and where it stands.
_Update = tuple[bytes | None, str]


class Broadcast:
    """One topic. `apply` is told of each key and its new value, None when it has none any more.

    `troubled` says that it cannot be read just now.

    What `apply` raises refuses that record: it is counted in `refused`, logged, and what was known of its key before
    stays, in this process: one that starts later may find the refused record alone. Before `ready` it may be told of
    values that are not a key's last one; afterwards each call is what holds from then on. `after` is called when a
    number of them has been told, and when `ready` or `troubled` has changed. Both must be quick: they are called on the
    event loop.
    """

    def __init__(
        self,
        client_args: Mapping[str, Any],
        topic: str,
        apply: Callable[[bytes, bytes | None], None],
        *,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self.topic = topic
        self.refused = 0
        self.troubled = False
        self._args = client_args
        self._apply = apply
        self._after = after
        self._ready = asyncio.Event()
        #: Of the topic that was read; None where the broker does not tell.
        self._id: bytes | None = None
        #: The next offset of each partition of which a record was read.
        self._next: dict[int, int] = {}
        #: Where each partition ended when reading began, until that is reached.
        self._ends: dict[int, int] | None = {}
        #: The keys that have a value.
        self._keys: set[bytes] = set()
        #: What is read again, by key, until it is whole: as much as the topic holds, and no more. None otherwise.
        self._again: dict[bytes, _Update] | None = None
        self._heard = time.time()

    @property
    def ready(self) -> bool:
        """Whether the topic has been read whole once."""
        return self._ready.is_set()

    async def read(self) -> None:
        """Return when the topic has been read whole; `run` must be running."""
        await self._ready.wait()

    async def run(self) -> None:
        """Read, and follow until cancelled. While the broker is away it waits, and goes on from where it was."""
        delay = _FIRST_S
        while True:
            try:
                async with self._connected() as consumer:
                    await self._begin(consumer)
                    await self._follow(consumer)
            except OffsetOutOfRangeError:
                self._from_the_start(_OTHERS)
            except Exception as error:  # noqa: BLE001  there is no last try
                if not self.troubled:
                    said = f"{type(error).__name__}: {error}"
                    log.warning(
                        "a topic cannot be read; what is known of it is kept",
                        extra={"topic": self.topic, "error": said},
                    )
                    self.troubled = True
                    self._after()
            delay = min(_CAP_S, 2 * delay) if self.troubled else _FIRST_S
            await asyncio.sleep(delay)

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(
            **{"request_timeout_ms": int(_TIMEOUT_S * 1000), **self._args},
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
        )
        pace(consumer._client)  # noqa: SLF001  there is no public way
        try:
            await consumer.start()
            read_leniently(consumer._fetcher)  # noqa: SLF001  there is no public way
            yield consumer
        finally:
            # While a fetch fails, aiokafka's `stop` ends with the cancellation of its own task, before all is closed.
            # Awaited here it would look like ours, and end this task in silence.
            for close in (consumer.stop, consumer._client.close):  # noqa: SLF001  there is no public way
                closing = asyncio.ensure_future(close())
                await asyncio.wait({closing}, timeout=_CLOSE_TIMEOUT_S)
                closing.cancel()
                await asyncio.gather(closing, return_exceptions=True)

    async def _begin(self, consumer: AIOKafkaConsumer) -> None:
        """Go to where reading goes on: to where it was, or to the start."""
        async with asyncio.timeout(_TIMEOUT_S):
            topic = await describe(consumer, self.topic)
            partitions = {number: TopicPartition(self.topic, number) for number in topic.partitions}
            starts = await consumer.beginning_offsets(list(partitions.values()))
            ends = await consumer.end_offsets(list(partitions.values()))
        if topic.id != self._id and self._id is not None and topic.id is not None:
            self._from_the_start("it was deleted and made again")
        elif self._next.keys() - partitions.keys():
            self._from_the_start("it has fewer partitions than it had")
        elif any(not starts[partitions[number]] <= at <= ends[partitions[number]] for number, at in self._next.items()):
            self._from_the_start(_OTHERS)
        elif self._gap:
            self._from_the_start("it was not heard of for too long")
        self._id = topic.id
        self._heard = time.time()
        self._ends = {number: ends[partition] for number, partition in partitions.items()}
        consumer.assign(list(partitions.values()))
        # Asked for all topics, as this has it, a broker that creates topics of its own accord does not create ours.
        consumer._client.set_topics(())  # noqa: SLF001  there is no public way
        for number, partition in partitions.items():
            consumer.seek(partition, self._next.get(number, starts[partition]))

    @property
    def _gap(self) -> bool:
        return time.time() - self._heard > GAP_S

    def _from_the_start(self, why: str) -> None:
        if self._next:
            log.warning("a topic is read from its start again", extra={"topic": self.topic, "reason": why})
        self._next = {}
        self._again = {}

    async def _follow(self, consumer: AIOKafkaConsumer) -> None:
        """Take what comes, until the topic is another one than it was."""
        loop = asyncio.get_running_loop()
        look_at = loop.time() + LOOK_S
        partitions = len(consumer.assignment())
        while True:
            batches = await consumer.getmany(timeout_ms=_POLL_MS, max_records=_AT_ONCE)
            for partition, records in batches.items():
                self._take(partition.partition, records)
            if self._ends is not None and await self._is_read(consumer, self._ends):
                await self._settle()
            if batches:
                self._after()
            if loop.time() < look_at:
                continue
            async with asyncio.timeout(_TIMEOUT_S):
                topic = await describe(consumer, self.topic)
            if topic.id != self._id or len(topic.partitions) != partitions or self._gap:
                await self._begin(consumer)
                partitions = len(topic.partitions)
            self._heard = time.time()
            look_at = loop.time() + LOOK_S

    def _take(self, partition: int, records: Sequence[Any]) -> None:
        for record in records:
            self._next[partition] = record.offset + 1
            where = f"{partition}/{record.offset}"
            if record.key is None:
                self._refuse(None, where, "the record has no key")
            elif self._again is not None:
                self._again[record.key] = (record.value, where)
            else:
                self._tell(record.key, record.value, where)

    def _tell(self, key: bytes, value: bytes | None, where: str) -> None:
        try:
            self._apply(key, value)
        except Exception as error:  # noqa: BLE001  one record must not stop the others, whatever is wrong with it
            self._refuse(key, where, str(error) or type(error).__name__)
            return
        if value is None:
            self._keys.discard(key)
        else:
            self._keys.add(key)

    def _refuse(self, key: bytes | None, where: str, why: str) -> None:
        self.refused += 1
        log.warning(
            "a record is refused; what was known before stays until a restart",
            extra={
                "topic": self.topic,
                "at": where,
                "key": quoted(key.decode("utf-8", "replace") if key is not None else None),
                "error": why if len(why) <= _WHY_CHARS else why[: _WHY_CHARS - 1] + "…",
                "remedy": "write a good value for this key, or none: workers that start now know nothing of it",
            },
        )

    async def _is_read(self, consumer: AIOKafkaConsumer, ends: Mapping[int, int]) -> bool:
        for number, end in ends.items():
            if await consumer.position(TopicPartition(self.topic, number)) < end:
                return False
        return True

    async def _settle(self) -> None:
        """The end is reached. What was read again is told only now, so that no older value is believed in between."""
        self._ends = None
        if self.troubled:
            log.info("a topic is read again", extra={"topic": self.topic})
            self.troubled = False
        again, self._again = self._again, None
        if again is not None:
            gone = dict.fromkeys(self._keys - again.keys(), (None, ""))
            for number, (key, (value, where)) in enumerate(chain(gone.items(), again.items()), 1):
                self._tell(key, value, where)
                if number % _AT_ONCE == 0:
                    await asyncio.sleep(0)
        if not self._ready.is_set():
            log.info("a topic has been read", extra={"topic": self.topic, "keys": len(self._keys)})
            self._ready.set()
        self._after()


# -- what aiokafka does not tell ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Description:
    """A topic as the broker has it now. Its id is another when it was deleted and made again; None before Kafka 2.8."""

    id: bytes | None
    partitions: Sequence[int]


async def describe(consumer: AIOKafkaConsumer, topic: str) -> Description:
    """Ask for a topic, without creating it. Raises what aiokafka raises, `UnknownTopicOrPartitionError` by name."""
    client = consumer._client  # noqa: SLF001  there is no public way to ask for one topic
    response = await client.send(client.get_random_node(), _TopicRequest(topic))
    (found,) = response.to_object()["topics"]
    kind = for_code(found["error_code"])
    if kind is UnknownTopicOrPartitionError:
        raise UnknownTopicOrPartitionError(f"there is no topic {topic}")
    if found["error_code"]:
        raise kind(topic)
    return Description(found.get("topic_id"), sorted(partition["partition"] for partition in found["partitions"]))


class _Uuid(AbstractType[bytes]):  # type: ignore[misc]  # aiokafka has no types
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: Any) -> bytes:
        found: bytes = data.read(16)
        return found


# aiokafka 0.14 ends at version 5 of this request; 10 (KIP-516, Kafka 2.8) is the first with the topic's id.
class _MetadataResponse(Response):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 3
    API_VERSION = 10
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString("utf-8")),
                ("port", Int32),
                ("rack", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString("utf-8")),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", CompactArray(Int32)),
                        ("isr", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_authorized_operations", Int32),
        ("tags", TaggedFields),
    )


class _MetadataStruct(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 3
    API_VERSION = 10
    FLEXIBLE_VERSION = True
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString("utf-8")), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicRequest(Request[MetadataRequest_v5 | _MetadataStruct]):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, request_struct_class: type[Any]) -> Any:
        if request_struct_class is _MetadataStruct:
            return _MetadataStruct([(bytes(16), self._topic, {})], False, False, False, {})
        return request_struct_class([self._topic], False)
