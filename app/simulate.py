"""A fleet of simulated devices, and the load that it puts on a raw topic."""

import asyncio
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from types import ModuleType
from typing import Any, Final, NamedTuple

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, KafkaTimeoutError
from msgspec import Struct

from app import ledger
from app.steady import steady
from schemas import dialects
from schemas.partition import partition_of
from schemas.reading import Reading, Value

_MICROSECOND: Final = timedelta(microseconds=1)
_DIGITS: Final = 3
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


class Sample(NamedTuple):
    """One record to send; `expected` is the reading it must become, or the reason why it must be rejected."""

    device_id: str
    payload: bytes
    expected: Reading | str


class Fleet:
    """Devices that speak one dialect, taking turns; the same seed and times give the same samples.

    `bad_share` of all samples are ones that `decode` must reject as a whole; `odd` is, by metric, the share of unusual
    values that are still right. Raises `ValueError` for a dialect that the simulator cannot speak.
    """

    def __init__(  # noqa: PLR0913  each is an option of the command
        self,
        devices: int,
        dialect: str,
        seed: int,
        *,
        bad_share: float = 0.01,
        odd: Mapping[str, float] | None = None,
        prefix: str = "sensor",
    ) -> None:
        if dialect not in speakable():
            raise ValueError(f"the simulator cannot speak {dialect!r}, only {', '.join(speakable())}")
        self.dialect = dialect
        self._module: ModuleType = dialects.load()[dialect]
        self._template: Reading = self._module.EXAMPLES[0].gives[0]
        self._walks: dict[str, dialects.Walk] = dict(self._module.WALKS)
        self._spoiled: Mapping[str, Mapping[str, object]] = self._module.SPOILED
        self._kinds = ("not_json", *self._spoiled)
        self._bad_share = bad_share
        self._odd = {metric: share for metric, share in (odd or {}).items() if metric in self._walks}
        self._random = random.Random(seed)  # noqa: S311  a repeatable load, no secret
        self._ids = [f"{prefix}-{number:03d}" for number in range(1, devices + 1)]
        self._state = [
            {metric: self._random.uniform(walk.low, walk.high) for metric, walk in self._walks.items()}
            for _ in self._ids
        ]
        self._last = [datetime.min.replace(tzinfo=UTC)] * devices
        self._turn = 0

    def sample(self, now: datetime) -> Sample:
        """What the next device says at an instant; its times strictly increase even when the clock does not."""
        turn = self._turn
        self._turn = (turn + 1) % len(self._ids)
        at = self._last[turn] = max(now, self._last[turn] + _MICROSECOND)
        device_id = self._ids[turn]
        reading = msgspec.structs.replace(
            self._template, device_id=device_id, time=at, values=self._step(self._state[turn])
        )
        payload: bytes = self._module.encode(reading)
        if self._random.random() >= self._bad_share:
            return Sample(device_id, payload, reading)
        kind = self._random.choice(self._kinds)
        return Sample(device_id, self._spoil(payload, kind), kind)

    def _step(self, state: dict[str, float]) -> dict[str, Value]:
        draw = self._random.random
        values: dict[str, Value] = {}
        for metric, walk in self._walks.items():
            value = state[metric] + (2.0 * draw() - 1.0) * walk.step
            state[metric] = value = min(max(value, walk.low), walk.high)
            if metric in self._odd and draw() < self._odd[metric]:
                low, high = walk.odd
                value = low + (high - low) * draw()
            values[metric] = round(value, _DIGITS)
        return values

    def _spoil(self, payload: bytes, kind: str) -> bytes:
        if kind == "not_json":
            return payload[: len(payload) // 2]
        said = msgspec.json.decode(payload, type=dict[str, object]) | dict(self._spoiled[kind])
        return msgspec.json.encode({field: value for field, value in said.items() if value is not msgspec.UNSET})


def speakable() -> Sequence[str]:
    """The dialects that the simulator can speak."""
    return [name for name, module in dialects.load().items() if hasattr(module, "encode")]


class Plan(Struct, frozen=True):
    """How much to send: `rate` a second in total, 0 for as fast as possible, until a count, a duration or a stop."""

    topic: str
    rate: float = 0.0
    count: int | None = None
    seconds: float | None = None
    #: How long a stop waits for what the broker has not acknowledged yet.
    patience: float = 10.0


class Summary(Struct):
    """What a run did; `sent` and its parts count acknowledged records only."""

    sent: int = 0
    good: int = 0
    bad: int = 0
    unacknowledged: int = 0
    seconds: float = 0.0
    rate: float = 0.0


class _Load:
    """One run: a generator, and a lane for each partition that keeps one batch in flight and the next one ready."""

    def __init__(self, fleet: Fleet, plan: Plan, producer: Any, partitions: int, book: ledger.Ledger | None) -> None:
        self.summary = Summary()
        self.stop = asyncio.Event()
        self.error: BaseException | None = None
        self.on_sent: Callable[[int], None] = lambda _: None
        self._fleet = fleet
        self._plan = plan
        self._producer = producer
        self._headers = [(dialects.HEADER_DIALECT, fleet.dialect.encode())]
        self._lanes: list[asyncio.Queue[tuple[Any, list[Sample]]]] = [asyncio.Queue(1) for _ in range(partitions)]
        self._book = book
        self._made = 0
        self._in_flight: set[asyncio.Future[Any]] = set()

    async def run(self) -> None:
        """Send until the plan is done or `stop` is set, then wait for what is outstanding."""
        begin = time.monotonic()
        lanes = [asyncio.create_task(self._drive(partition)) for partition in range(len(self._lanes))]
        ends = [asyncio.create_task(self._generate()), asyncio.create_task(self.stop.wait())]
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
                    if batch.append(timestamp=now_ms, key=key, value=sample.payload, headers=self._headers) is None:
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
        self.summary.good += good
        self.summary.bad += len(samples) - good
        if self._book is not None:
            try:
                self._book.write(
                    _entry(partition, first + at if first >= 0 else -1, sample) for at, sample in enumerate(samples)
                )
            except OSError as disk:
                self._fail(disk)
        self.on_sent(len(samples))

    def _fail(self, error: BaseException) -> None:
        self.error = self.error or error
        self.stop.set()

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


async def run(  # noqa: PLR0913  the last three are for whoever watches
    fleet: Fleet,
    plan: Plan,
    client: Mapping[str, Any],
    *,
    book: ledger.Ledger | None = None,
    stop: asyncio.Event | None = None,
    on_sent: Callable[[int], None] | None = None,
) -> Summary:
    """Send a fleet's samples to a topic with a producer made of `client`, until the plan is done or `stop` is set.

    Raises `NoTopicError`, and what the broker refused a batch with; an outage is waited for instead.
    """
    producer = AIOKafkaProducer(**client, enable_idempotence=True, max_batch_size=_BATCH_BYTES)
    steady(producer)
    await producer.start()
    try:
        partitions = await _partitions(producer, plan.topic)
        load = _Load(fleet, plan, producer, partitions, book)
        if stop is not None:
            load.stop = stop
        if on_sent is not None:
            load.on_sent = on_sent
        await load.run()
        return load.summary
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


def _entry(partition: int, offset: int, sample: Sample) -> ledger.Entry:
    if isinstance(sample.expected, Reading):
        return ledger.Good(partition, offset, sample.expected)
    return ledger.bad(sample.expected, partition, offset, sample.payload)


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        if not task.done():
            task.cancel()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, Exception):
            raise result
