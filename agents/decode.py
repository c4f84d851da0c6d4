"""The decode stage: raw chunks to the decoded topic and the dead letters."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from agents.held import chunks
from schemas.decoding import Decoded, Decoder, Item
from schemas.partition import partition_of_key
from schemas.quality import written
from sinks.ceiling import Ceiling
from sinks.contracts import Breaker, Letters
from sinks.handover import Handover, Held

log = logging.getLogger(__name__)

#: Chunks at once: one is decoded while the broker acknowledges the others.
_IN_FLIGHT = 3


class Sent(Protocol):
    """A batch on its way."""

    async def done(self) -> None:
        """Wait for the broker; raises when it refuses."""


class Producer(Protocol):
    """What forwarding needs of `app.produce.BatchProducer`."""

    async def send(self, topic: str, partitions: Mapping[int, list[Item]]) -> Sequence[Sent]:
        """Queue batches, in order."""

    async def partitions(self, topic: str) -> int:
        """How many partitions a topic has."""


class Telemetry(Protocol):
    """What forwarding tells of itself, per chunk."""

    def decoded(self, records: int, readings: int, rejected: int) -> None:
        """A chunk was decoded, produced and acknowledged; `rejected` counts letters."""

    def dead(self, reason: str, letters: int, dialect: str = "") -> None:
        """Letters were sent."""

    def flagged(self, dialect: str, flag: str, readings: int) -> None:
        """Readings were decoded that have a flag."""

    def over_budget(self, by_excess: Mapping[str, int], withheld: int, devices: int) -> None:
        """Readings were over budget, by why; so many were sent to the quarantine. So many devices are noisy now."""

    def ceiling(self, tripped: bool) -> None:  # noqa: FBT001  a gauge's value
        """The ceiling tripped or was reset."""

    def stopped(self, stopped: bool) -> None:  # noqa: FBT001  a gauge's value
        """Intake was stopped, or goes on."""


class CannotWithdrawError(RuntimeError):
    """Batches are queued at Kafka's client that must not be sent any more."""


class Forwarder:
    """Decodes chunks and produces what they give; a chunk is acknowledged when the broker has all of it.

    `fault` is called with an error after which this process cannot go on (nothing is acknowledged by then). `fetch`
    makes the decoder know schemas that it does not know yet; it takes as long as their registry is away. With a budget,
    reports of devices that are over it go to the topic `quality`, and their readings, where it withholds them, to the
    topic `quarantine`.
    """

    def __init__(  # noqa: PLR0913  the collaborators, each replaceable in a test
        self,
        decoder: Decoder,
        topic: str,
        producer: Producer,
        letters: Letters,
        telemetry: Telemetry,
        fault: Callable[[BaseException], None],
        *,
        ceiling: Ceiling | None = None,
        fetch: Callable[[set[int]], Awaitable[None]] | None = None,
        quality: str = "",
        quarantine: str = "",
    ) -> None:
        self.decoder = decoder
        self.topic = topic
        self.producer = producer
        self.letters = letters
        self.telemetry = telemetry
        self.fault = fault
        self.ceiling = ceiling or Ceiling()
        self.quality = quality
        self.quarantine = quarantine
        #: How many partitions those topics have.
        self._counts: dict[str, int] = {}
        self._fetch = fetch
        self._fetching = False
        self._slots = asyncio.Semaphore(_IN_FLIGHT)
        self._turn = asyncio.Lock()
        self._tasks: dict[asyncio.Task[bool], Held] = {}
        #: Intake was stopped by somebody, until `resume`.
        self.stopped = False
        self._resumed = asyncio.Event()
        self._sending = 0
        self._handover = Handover(self._release)

    async def start(self, producer: Producer) -> None:
        """Learn how many partitions the topics really have."""
        self.decoder.partitions = await producer.partitions(self.topic)
        if (budget := self.decoder.budget) is not None:
            for topic in (self.quality, self.quarantine) if budget.withholds else (self.quality,):
                self._counts[topic] = await producer.partitions(topic)

    async def run(self) -> None:
        """Nothing to do beside the chunks: each is a task of its own."""
        await asyncio.Event().wait()

    async def put(self, held: Held) -> None:
        """Take a chunk over; waits while enough of them are in flight."""
        self._handover.meet(held)
        try:
            await self._slots.acquire()
        except asyncio.CancelledError:
            held.release()
            raise
        if self._handover.refuses(held):
            self._slots.release()
            held.release()
            return
        task = asyncio.create_task(self._forward(held))
        self._tasks[task] = held
        task.add_done_callback(partial(self._done, held))

    def _done(self, held: Held, task: asyncio.Task[bool]) -> None:
        # Not in `_forward` itself: a task that is cancelled before its first step runs none of its code.
        del self._tasks[task]
        if task.cancelled() or not task.result():
            held.release()
        self._slots.release()
        if self._handover.draining and not self._handover.released:
            self._hurry()

    @property
    def ready(self) -> bool:
        """Whether what is put now will be handled."""
        return not self.ceiling.tripped and not self.stopped and not self._fetching

    #: What is away while `state` is open: a registry, or a directory.
    waits_for = "the source of schemas"

    @property
    def state(self) -> Breaker:
        """Open while schemas cannot be had: a standstill that no restart would end."""
        return Breaker.OPEN if self._fetching else Breaker.CLOSED

    def drain(self, deadline: float) -> None:
        """Finish what is held by `deadline` (of `time.monotonic`) and let the rest go. Returns at once."""
        self._handover.start(deadline)
        self._hurry()

    def stop_intake(self) -> None:
        """Decode no more until `resume`; what Kafka was given is finished. Ends with the process."""
        self.stopped = True
        self.telemetry.stopped(True)
        log.warning("intake is stopped, as asked")

    def resume(self) -> None:
        """Go on after `stop_intake`, or after the ceiling tripped."""
        self.stopped = False
        self.telemetry.stopped(False)
        self.ceiling.reset()
        self.telemetry.ceiling(False)
        self._resumed.set()

    async def flush(self) -> int:
        """The number of records held now, when each of them is acknowledged or let go."""
        held = dict(self._tasks)
        if held:
            await asyncio.wait(held)
        return sum(len(chunk.records) for chunk in held.values())

    def _hurry(self) -> None:
        """Let go at once when all that is held waits; what Kafka was given has the time it was given."""
        if (self._fetching or self.ceiling.tripped or self.stopped) and not self._sending:
            self._handover.start(time.monotonic())

    def _release(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._sending:
            # What the client has queued cannot be taken back. Sent later, it could stand behind what the next owner of
            # the partition sends, and an older value would win. So this process must not live to send it.
            self.fault(CannotWithdrawError("partitions were taken away while Kafka did not answer"))

    async def _forward(self, held: Held) -> bool:
        """Whether it was acknowledged."""
        settled = sending = False
        try:
            # In turn, so that a device's readings stay in the order in which they were received.
            async with self._turn:
                while self.ceiling.tripped or self.stopped:  # until resumed, or drained
                    self._resumed.clear()
                    await self._resumed.wait()
                if self._fetch is not None and (wanted := self.decoder.wanted(held.records)):
                    self._fetching = True
                    try:
                        await self._fetch(wanted)
                    finally:
                        self._fetching = False
                decoded = self.decoder(held.records, time.time_ns() // 1_000_000)
                self._sending += 1
                sending = True
                sent = await self._send(decoded)
            for batch in sent:
                await batch.done()
            await self.letters.send(decoded.letters)
            held.ack()
            settled = True
            self._count(held, decoded)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            self.fault(error)  # not our doing: let go in silence, it would hold its partition's commits for ever
        except Exception as error:  # noqa: BLE001  nothing may leave a task unseen
            self.fault(error)
        finally:
            self._sending -= sending
        return settled

    async def _send(self, decoded: Decoded) -> list[Sent]:
        """Queue all that the broker is to have of a chunk but its letters."""
        sent = list(await self.producer.send(self.topic, decoded.items))
        if decoded.withheld:
            sent += await self._send_keyed(self.quarantine, decoded.withheld)
        if (budget := self.decoder.budget) is not None and decoded.reports:
            events = (written(budget.event(report)) for report in decoded.reports)
            sent += await self._send_keyed(self.quality, [Item(key, value, []) for key, value in events])
        return sent

    async def _send_keyed(self, topic: str, items: Sequence[Item]) -> Sequence[Sent]:
        """Queue records whose keys are devices."""
        partitions: dict[int, list[Item]] = {}
        for item in items:
            partitions.setdefault(partition_of_key(item.key or b"", self._counts[topic]), []).append(item)
        return await self.producer.send(topic, partitions)

    def _count(self, held: Held, decoded: Decoded) -> None:
        self.telemetry.decoded(len(held.records), decoded.readings, len(decoded.letters))
        self.ceiling.good(decoded.good)
        reasons: dict[tuple[str, str], int] = {}
        for dead in decoded.letters:
            reasons[dead.reason, dead.dialect] = reasons.get((dead.reason, dead.dialect), 0) + 1
        for device in decoded.fruitless:
            self.ceiling.rejected(device)
        for (reason, dialect), count in reasons.items():
            self.telemetry.dead(reason, count, dialect)
        for (dialect, flag), count in decoded.flags.items():
            self.telemetry.flagged(dialect, flag, count)
        if self.decoder.budget is not None:
            self.telemetry.over_budget(decoded.over, len(decoded.withheld), decoded.noisy)
        for report in decoded.reports:
            log.warning(
                "a device is over its budget",
                extra={"device": report.device_id, "reason": report.excess, "readings": report.readings},
            )
        if self.ceiling.tripped:
            self.telemetry.ceiling(True)
            log.error(
                "the ceiling tripped: most records are refused, so intake is stopped",
                extra={"remedy": "see the dead letters (iotflow dlq stats); iotflow resume decode to go on"},
            )


def decode(forwarder: Forwarder) -> Callable[[Any], Awaitable[None]]:
    """The agent that feeds the forwarder."""

    async def agent(stream: Any) -> None:
        async for held in chunks(stream):
            await forwarder.put(held)

    return agent
