"""Lag that tells the truth: what a group has not committed yet, asked of the broker by a client of our own.

Faust's own end offsets are those of its last fetch, so they stand still while intake is stopped: just when the lag
grows. The client here is in no group, so asking never disturbs anybody's partitions.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    KafkaError,
    KafkaTimeoutError,
    UnknownTopicOrPartitionError,
)

log = logging.getLogger(__name__)

INTERVAL_S: Final = 5.0
#: For all answers to one question together; a broker that is slower than this is away.
_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True)
class Lag:
    """One partition: where its log ends, what the group committed, and the records in between.

    `lag` counts from the oldest record that is kept where nothing is committed (`committed` is None), and where what
    was committed is older than that: the records in between are gone, and nobody will ever read them.
    """

    end: int
    committed: int | None
    lag: int


class Telemetry(Protocol):
    """Who is told; see `app.telemetry.Telemetry`."""

    def lag(self, by_partition: Mapping[tuple[str, int], int]) -> None:
        """The lag of all partitions that were asked about."""

    def lag_measured(self, *, stale: bool, answers: bool) -> None:
        """Whether what was told last is old, and whether the broker answers at all."""


class Gauge:
    """Asks one cluster about one group. Made by `connect`."""

    def __init__(self, consumer: AIOKafkaConsumer, admin: AIOKafkaAdminClient, group: str) -> None:
        self._consumer = consumer
        self._admin = admin
        self._group = group

    async def partitions(self, topics: Iterable[str]) -> list[TopicPartition]:
        """All partitions of some topics; raises `UnknownTopicOrPartitionError` for a topic that is not there."""
        # aiokafka gives metadata on topics that are not subscribed to only as a side effect of asking for all.
        cluster = await self._consumer._client.fetch_all_metadata()  # noqa: SLF001
        found: list[TopicPartition] = []
        for topic in topics:
            numbers = cluster.partitions_for_topic(topic)
            if not numbers:
                raise UnknownTopicOrPartitionError(f"there is no topic {topic}")
            found += [TopicPartition(topic, number) for number in sorted(numbers)]
        return found

    async def read(self, partitions: Iterable[tuple[str, int]]) -> dict[TopicPartition, Lag]:
        """The lag of each partition. The broker is asked something even when there is none, so it is heard of."""
        wanted = [TopicPartition(*partition) for partition in partitions]
        async with asyncio.timeout(_TIMEOUT_S):
            coordinator = await self._admin.find_coordinator(self._group)
            if not wanted:
                return {}
            # In this order: an end that is asked for first can be behind a commit.
            committed = await self._committed(coordinator, wanted)
            starts = await self._consumer.beginning_offsets(wanted)
            ends = await self._consumer.end_offsets(wanted)
        lags: dict[TopicPartition, Lag] = {}
        for partition in wanted:
            offset, end = committed[partition], ends[partition]
            # A topic that was deleted and made again may end below what was committed.
            lags[partition] = Lag(end, offset, max(0, end - max(offset or 0, starts[partition])))
        return lags

    async def _committed(self, coordinator: int, wanted: list[TopicPartition]) -> dict[TopicPartition, int | None]:
        answer = await self._admin.list_consumer_group_offsets(self._group, coordinator, wanted)
        if missing := [partition for partition in wanted if partition not in answer]:
            # aiokafka drops an error that is about the whole group (a coordinator that moved, or is loading) and
            # answers with no partitions, which would look as if nothing had ever been committed.
            raise GroupCoordinatorNotAvailableError(f"no committed offsets of {missing[0]}")
        return {
            partition: None if answer[partition].offset < 0 else int(answer[partition].offset) for partition in wanted
        }


@asynccontextmanager
async def connect(client_args: Mapping[str, Any], group: str) -> AsyncIterator[Gauge]:
    """Clients to ask with; raises what aiokafka raises when the broker is away."""
    args = {"request_timeout_ms": int(_TIMEOUT_S * 1000), **client_args}
    async with AsyncExitStack() as stack:
        consumer = AIOKafkaConsumer(**args, group_id=None, enable_auto_commit=False)
        stack.push_async_callback(_close, consumer.stop)
        await consumer.start()
        admin = AIOKafkaAdminClient(**args)
        stack.push_async_callback(_close, admin.close)
        await admin.start()
        yield Gauge(consumer, admin, group)


async def measure(client_args: Mapping[str, Any], group: str, topics: Iterable[str]) -> dict[TopicPartition, Lag]:
    """The lag of a group on all partitions of some topics, once."""
    async with connect(client_args, group) as gauge:
        async with asyncio.timeout(_TIMEOUT_S):
            partitions = await gauge.partitions(topics)
        return await gauge.read(partitions)


async def watch(
    client_args: Mapping[str, Any],
    group: str,
    assigned: Callable[[], Iterable[tuple[str, int]]],
    telemetry: Telemetry,
    *,
    interval: float = INTERVAL_S,
) -> None:
    """Tell telemetry the lag of this worker's partitions, until cancelled; a broker that is away only makes it stale.

    `assigned` names the partitions when it is called.
    """
    episode = False
    while True:
        try:
            async with connect(client_args, group) as gauge:
                while True:
                    lags = await gauge.read(assigned())
                    telemetry.lag({tuple(partition): lag.lag for partition, lag in lags.items()})
                    telemetry.lag_measured(stale=False, answers=True)
                    if episode:
                        log.info("lag is measured again", extra={"group": group})
                        episode = False
                    await asyncio.sleep(interval)
        except Exception as error:  # noqa: BLE001  whatever it is, measuring must not end with it
            telemetry.lag_measured(stale=True, answers=not _is_away(error))
            if not episode:
                said = f"{type(error).__name__}: {error}"
                log.warning("lag cannot be measured; the last one is kept", extra={"group": group, "error": said})
                episode = True
        await asyncio.sleep(interval)


def _is_away(error: Exception) -> bool:
    """Whether an error means that nobody answered, rather than that the answer was no."""
    if isinstance(error, OSError | KafkaTimeoutError):
        return True
    return isinstance(error, KafkaError) and bool(error.retriable)


async def _close(close: Callable[[], Any]) -> None:
    # A client whose broker is away may take its time to close, or not be able to.
    with suppress(Exception):
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await close()
