"""The load that fleets of simulated devices put on their raw topics."""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError
from msgspec import Struct

from app import ledger
from app.fleet import Fleet, Sample
from app.steady import steady
from schemas import dialects
from schemas.partition import partition_of
from schemas.reading import Reading

#: The pace is kept this often, and the sending looks up from generating after this many readings.
_TICK_SECONDS: Final = 0.02
_TICK_READINGS: Final = 1_000
#: After a stall at most this much of the missed load is caught up with.
_DEBT_SECONDS: Final = 1.0
_BATCH_BYTES: Final = 128 * 1024
_STOP_SECONDS: Final = 5.0
#: A topic that was just made may take a moment to be seen.
_TOPIC_SECONDS: Final = 5.0


class NoTopicError(LookupError):
    """The topic to send to does not exist."""


class Plan(Struct, frozen=True):
    """What a fleet sends: `rate` a second, 0 for as fast as possible, until a count, a duration or a stop."""

    topic: str
    rate: float = 0.0
    count: int | None = None
    seconds: float | None = None
    #: How long a stop waits for what the broker has not acknowledged yet.
    patience: float = 10.0


class Summary(Struct):
    """What a fleet, or all of them, did: acknowledged records, of whose good ones some were in a bad order."""

    sent: int = 0
    good: int = 0
    bad: int = 0
    out_of_order: int = 0
    late: int = 0
    unacknowledged: int = 0
    seconds: float = 0.0
    rate: float = 0.0


def total(parts: Sequence[Summary]) -> Summary:
    """What several fleets did at the same time."""
    whole = Summary(seconds=max(part.seconds for part in parts))
    for name in ("sent", "good", "bad", "out_of_order", "late", "unacknowledged"):
        setattr(whole, name, sum(getattr(part, name) for part in parts))
    whole.rate = whole.sent / whole.seconds if whole.seconds else 0.0
    return whole


def divide(count: int, weights: Sequence[float]) -> list[int]:
    """Whole parts of a count, as near to the weights as can be."""
    whole = sum(weights)
    exact = [count * weight / whole for weight in weights]
    parts = [int(part) for part in exact]
    for at in sorted(range(len(parts)), key=lambda at: parts[at] - exact[at])[: count - sum(parts)]:
        parts[at] += 1
    return parts


class _Shared(Struct):
    """What all fleets of a run have in common."""

    producer: Any
    stop: asyncio.Event
    book: ledger.Ledger | None
    on_sent: Callable[[int], None]


class _Load:
    """One fleet: a generator, and a lane for each partition that keeps one batch in flight and the next one ready."""

    def __init__(self, fleet: Fleet, plan: Plan, shared: _Shared, partitions: int) -> None:
        self.summary = Summary()
        self.error: BaseException | None = None
        self._fleet = fleet
        self._plan = plan
        self._shared = shared
        self._producer = shared.producer
        self._headers = [(dialects.HEADER_DIALECT, fleet.dialect.encode())]
        self._lanes: list[asyncio.Queue[tuple[Any, list[Sample]]]] = [asyncio.Queue(1) for _ in range(partitions)]
        self._made = 0
        self._in_flight: set[asyncio.Future[Any]] = set()

    async def run(self) -> None:
        """Send until the plan is done or the run is stopped, then wait for what is outstanding."""
        begin = time.monotonic()
        lanes = [asyncio.create_task(self._drive(partition)) for partition in range(len(self._lanes))]
        ends = [asyncio.create_task(self._generate()), asyncio.create_task(self._shared.stop.wait())]
        try:
            # A lane only ends by failing.
            await asyncio.wait([*ends, *lanes], timeout=self._plan.seconds, return_when=asyncio.FIRST_COMPLETED)
            await _cancel(ends)
            if self.error is None:
                await self._settle()
        finally:
            await _cancel([*ends, *lanes])
            summary = self.summary
            summary.seconds = time.monotonic() - begin
            summary.sent = summary.good + summary.bad
            summary.unacknowledged = self._made - summary.sent
            summary.rate = summary.sent / summary.seconds
        if self.error is not None:
            raise self.error

    async def _generate(self) -> None:
        plan = self._plan
        last = time.monotonic()
        allowed = 0.0
        while plan.count is None or self._made < plan.count:
            now = time.monotonic()
            if plan.rate:
                allowed = min(allowed + (now - last) * plan.rate, max(1.0, plan.rate * _DEBT_SECONDS))
            else:
                allowed = float(_TICK_READINGS)
            last = now
            size = min(int(allowed), _TICK_READINGS)
            if plan.count is not None:
                size = min(size, plan.count - self._made)
            await self._send([self._fleet.sample(datetime.now(UTC)) for _ in range(size)])
            allowed -= size
            # A full tick is behind its pace, or has none: it only lets the lanes work.
            await asyncio.sleep(0.0 if size == _TICK_READINGS else _TICK_SECONDS)

    async def _send(self, samples: Iterable[Sample]) -> None:
        """Hand samples to their partitions' lanes, waiting for those that are full."""
        parts: dict[int, list[Sample]] = {}
        for sample in samples:
            parts.setdefault(partition_of(sample.device_id, len(self._lanes)), []).append(sample)
        # Kafka's own time of a record is when it was sent, whatever the device says.
        now_ms = time.time_ns() // 1_000_000
        for partition, part in parts.items():
            while part:
                batch = self._producer.create_batch()
                size = 0
                for sample in part:
                    key = sample.device_id.encode()
                    headers = self._headers
                    if sample.origin:
                        headers = [*headers, (dialects.HEADER_ORIGIN, sample.origin.encode())]
                    if batch.append(timestamp=now_ms, key=key, value=sample.payload, headers=headers) is None:
                        break
                    size += 1
                await self._lanes[partition].put((batch, part[:size]))
                self._made += size
                part = part[size:]  # noqa: PLW2901  the rest goes into the next batch

    async def _drive(self, partition: int) -> None:
        """Send one partition's batches in order."""
        lane = self._lanes[partition]
        while True:
            batch, samples = await lane.get()
            while self.error is None:
                try:
                    sent = await self._producer.send_batch(batch, self._plan.topic, partition=partition)
                except KafkaTimeoutError:
                    continue  # the broker is away, and the batch before is still waiting for it
                except KafkaError as error:
                    self._fail(error)
                    break
                self._in_flight.add(sent)
                sent.add_done_callback(partial(self._acknowledged, partition, samples))
                break
            lane.task_done()

    def _acknowledged(self, partition: int, samples: list[Sample], sent: asyncio.Future[Any]) -> None:
        self._in_flight.discard(sent)
        if sent.cancelled():
            return
        error = sent.exception()
        if error is not None:
            self._fail(error)
            return
        # -1: the broker has the batch and has forgotten where, which idempotence makes a success.
        first: int = sent.result().offset
        good = sum(isinstance(sample.expected, Reading) for sample in samples)
        summary = self.summary
        summary.good += good
        summary.bad += len(samples) - good
        summary.out_of_order += sum(sample.order == "out_of_order" for sample in samples)
        summary.late += sum(sample.order == "late" for sample in samples)
        if self._shared.book is not None:
            topic = self._plan.topic
            try:
                self._shared.book.write(
                    _entry(topic, partition, first + at if first >= 0 else -1, sample)
                    for at, sample in enumerate(samples)
                )
            except OSError as disk:
                self._fail(disk)
        self._shared.on_sent(len(samples))

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self._shared.stop.set()

    async def _settle(self) -> None:
        async def settled() -> None:
            for lane in self._lanes:
                await lane.join()
            while self._in_flight and self.error is None:
                await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)

        try:
            await asyncio.wait_for(settled(), self._plan.patience)
        except TimeoutError:
            return


async def run(
    fleets: Sequence[tuple[Fleet, Plan]],
    client: Mapping[str, Any],
    *,
    book: ledger.Ledger | None = None,
    stop: asyncio.Event | None = None,
    on_sent: Callable[[int], None] | None = None,
) -> list[Summary]:
    """Send what fleets say, all at once, with a producer made of `client`, until their plans are done or `stop` is set.

    Raises `NoTopicError`, and what the broker refused a batch with, which stops all; an outage is waited for instead.
    """
    producer = AIOKafkaProducer(**client, enable_idempotence=True, max_batch_size=_BATCH_BYTES)
    steady(producer)
    await producer.start()
    shared = _Shared(producer, stop or asyncio.Event(), book, on_sent or (lambda _: None))
    try:
        counts = {plan.topic: await _partitions(producer, plan.topic) for _, plan in fleets}
        loads = [_Load(fleet, plan, shared, counts[plan.topic]) for fleet, plan in fleets]
        for result in await asyncio.gather(*(load.run() for load in loads), return_exceptions=True):
            if result is not None:
                raise result
        return [load.summary for load in loads]
    finally:
        try:
            await asyncio.wait_for(producer.stop(), _STOP_SECONDS)
        except TimeoutError:  # the broker is away: nobody will acknowledge the rest
            await producer.client.close()


async def _partitions(producer: Any, topic: str) -> int:
    try:
        async with asyncio.timeout(_TOPIC_SECONDS):
            return len(await producer.partitions_for(topic))
    except TimeoutError as error:
        raise NoTopicError(f"there is no topic {topic!r}; iotflow topics apply makes it") from error


def _entry(topic: str, partition: int, offset: int, sample: Sample) -> ledger.Entry:
    if isinstance(sample.expected, Reading):
        return ledger.Good(topic, partition, offset, sample.expected, late=sample.order == "late")
    return ledger.bad(sample.expected, topic, partition, offset, sample.payload)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        if not task.done():
            task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
