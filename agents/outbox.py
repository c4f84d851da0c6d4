"""Records on their way to other topics, in the order in which they were posted, each topic by itself.

Posting never waits. One topic's many do not hold up another's few: an alarm does not stand behind ten thousand closed
windows.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Protocol

from schemas.decoding import Item
from schemas.partition import partition_of
from schemas.record import Headers

log = logging.getLogger(__name__)

#: Batches are built of so many at a time; the event loop has other things to do as well.
_WAVE = 1000


class Output(Protocol):
    """A record to produce, to the partition of its device; `topic` is a logical name."""

    @property
    def topic(self) -> str: ...  # noqa: D102
    @property
    def device_id(self) -> str: ...  # noqa: D102
    @property
    def key(self) -> bytes: ...  # noqa: D102
    @property
    def value(self) -> bytes | None: ...  # noqa: D102
    @property
    def headers(self) -> Headers: ...  # noqa: D102


class Sent(Protocol):
    """A batch on its way."""

    @property
    def last_offset(self) -> int | None:
        """Where its last record lies, when it is done; None where the broker did not say."""

    async def done(self) -> None:
        """Wait for the broker; raises when it refuses."""


class Producer(Protocol):
    """What is needed of `app.produce.BatchProducer`."""

    async def send(self, topic: str, partitions: Mapping[int, list[Item]]) -> Sequence[Sent]:
        """Queue batches, in order."""

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has."""


class _Lane:
    """One topic's: what waits, and how many records were posted, given to Kafka's client and acknowledged so far."""

    def __init__(self, topic: str, partitions: int) -> None:
        self.topic = topic
        self.partitions = partitions
        self.waiting: deque[Output] = deque()
        #: Waves at Kafka's client: the number of records given until then, and their batches.
        self.given: asyncio.Queue[tuple[int, Sequence[Sent]]] = asyncio.Queue()
        self.posted = self.handed = self.acknowledged = 0
        self.tasks: list[asyncio.Task[None]] = []
        self.wake = asyncio.Event()


class Outbox:
    """Sends what is posted; `topics` maps logical names to the topics there are.

    `fault` is called with an error after which nothing can be sent any more; `most` is how large a record may be, in
    bytes.
    """

    def __init__(self, topics: Mapping[str, str], fault: Callable[[BaseException], None], *, most: int) -> None:
        self._topics = topics
        self._fault = fault
        self._most = most
        self._producer: Producer | None = None
        self._lanes: dict[str, _Lane] = {}
        self._progress = asyncio.Event()

    async def start(self, producer: Producer) -> None:
        """Learn how many partitions each topic has."""
        self._producer = producer
        for name, topic in self._topics.items():
            self._lanes[name] = _Lane(topic, await producer.partitions(topic))

    def post(self, outputs: Iterable[Output]) -> None:
        """Send records, behind what was posted before to the same topic. Returns at once."""
        for output in outputs:
            lane = self._lanes[output.topic]
            if len(output.key) + len(output.value or b"") > self._most:
                # Only copies of a reading can be: of a late one, whose original the decoded topic and the stores have.
                log.error("a record is too large to be sent", extra={"topic": lane.topic, "device": output.device_id})
                continue
            lane.waiting.append(output)
            lane.posted += 1
            lane.wake.set()
            if not lane.tasks:
                work = (self._send(lane), self._confirm(lane))
                lane.tasks = [asyncio.create_task(self._guarded(each)) for each in work]

    @property
    def backlog(self) -> int:
        """Records posted and not acknowledged."""
        return sum(lane.posted - lane.acknowledged for lane in self._lanes.values())

    @property
    def in_flight(self) -> bool:
        """Whether Kafka's client has any that it was not told to be safe: these cannot be withdrawn."""
        return any(lane.handed > lane.acknowledged for lane in self._lanes.values())

    async def settled(self) -> None:
        """Return when the broker has acknowledged all that was posted before this was called."""
        targets = [(lane, lane.posted) for lane in self._lanes.values()]
        while any(lane.acknowledged < posted for lane, posted in targets):
            self._progress.clear()
            await self._progress.wait()

    def drop(self) -> None:
        """Forget everything; what Kafka's client has may still be sent."""
        for name, lane in self._lanes.items():
            for task in lane.tasks:
                task.cancel()
            self._lanes[name] = _Lane(lane.topic, lane.partitions)

    async def _send(self, lane: _Lane) -> None:
        assert self._producer is not None  # noqa: S101  for mypy: lanes come with it
        while True:
            await lane.wake.wait()
            lane.wake.clear()
            while lane.waiting:
                by_partition: dict[int, list[Item]] = {}
                wave = min(_WAVE, len(lane.waiting))
                for _ in range(wave):
                    one = lane.waiting.popleft()
                    place = partition_of(one.device_id, lane.partitions)
                    by_partition.setdefault(place, []).append(Item(one.key, one.value, list(one.headers)))
                lane.handed += wave
                lane.given.put_nowait((lane.handed, await self._producer.send(lane.topic, by_partition)))
                await asyncio.sleep(0)

    async def _confirm(self, lane: _Lane) -> None:
        while True:
            until, sent = await lane.given.get()
            for batch in sent:
                await batch.done()
            lane.acknowledged = until
            self._progress.set()

    async def _guarded(self, work: Awaitable[None]) -> None:
        try:
            await work
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self._fault(error)  # not our doing: what is posted would wait for ever
        except Exception as error:  # noqa: BLE001  nothing may leave a task unseen
            self._fault(error)
