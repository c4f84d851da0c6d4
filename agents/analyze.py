"""The analyze stage: decoded chunks are folded into state, and a checkpoint makes that state, and what it gave, safe.

A checkpoint keeps the states that have something to say, or that changed a while ago: most change with each reading
of a device, and are kept again and again otherwise. A chunk is acknowledged by the first checkpoint after which all
states are kept that it has changed. The steps, each for all partitions before the next begins; the first four are gone
through again and again, for some hundred states at a time:

1. `outputs`: what was sent at once (alarms, events) while the chunks were folded is acknowledged by the broker;
2. `state`: the changelog has these states, and with them what is still to be sent (closed windows);
3. `emitted`: that is sent and acknowledged;
4. `side`: the other tables have what the state has let go of;
5. `acked`: the chunks of which nothing is left to be kept are acknowledged, in order.

Whatever happens between two of them, the next owner finds a state from which it repeats, word for word, what may not
have arrived. Folding goes on meanwhile: what is written was packed at the beginning.

A partition's state belongs to one generation of the group. At the next it is read again from the table, also where
no record comes: windows that close by the clock, and outputs that are still pending, need it.
"""

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Literal, Protocol

from msgspec import Struct

from agents.decode import CannotWithdrawError
from agents.held import chunks
from agents.outbox import Outbox, Output, Producer
from schemas.alarm import subject_of
from schemas.partition import partition_of
from schemas.record import Record
from sinks import handover
from sinks.ceiling import Ceiling

log = logging.getLogger(__name__)

#: The table that holds the states; the others are a partition's own affair.
STATE: Final = "state"
#: How often partitions look at the clock.
_TICK_S: Final = 1.0
#: The event loop has other things to do between so many states that are restored.
_SLICE: Final = 200
#: Before this offset is everything.
_ALL: Final = 1 << 62
#: States that are written in one round of a checkpoint, and last values that are said in one go.
_ROUND: Final = 250

Entry = tuple[bytes, bytes | None]
Load = Callable[[str, bytes], bytes | None]


class Held(handover.Held, Protocol):
    """A chunk that need not keep its records until it is acknowledged."""

    def shed(self) -> None:
        """The records are not needed any more."""


class Table(Protocol):
    """What is needed of `tables.binding.Table`."""

    @property
    def changelog(self) -> str:
        """Its changelog's topic."""

    def load(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """All entries of a partition."""

    def get(self, partition: int, key: bytes) -> bytes | None:
        """The value of a key."""

    async def write(self, partition: int, items: Sequence[Entry], producer: Producer, *, anew: bool = False) -> None:
        """Write entries; returns when the changelog has them, and the store. `anew` makes them win over higher ones."""


class Snapshot(Protocol):
    """What a partition has to make safe; bytes, so that folding can go on."""

    @property
    def states(self) -> Sequence[Entry]:
        """For the table of states; without a value a state goes."""

    @property
    def outputs(self) -> Sequence[Output]:
        """To be sent once the states are safe."""

    @property
    def side(self) -> Sequence[tuple[str, bytes, bytes | None]]:
        """Table, key and value of what other tables keep, once the outputs are safe."""

    def done(self) -> None:
        """All of it is safe."""


class Partition(Protocol):
    """The pure part: all that is known of one partition's devices (`tables.analysis.Partition`)."""

    def restore(self, key: bytes, value: bytes) -> None:
        """Take a state over; for each there is, before the first fold."""

    def rewind(self, end: int) -> int:
        """The source ends here: states that say more of it was folded say so no more; how many there were."""

    def fold(self, records: Sequence[Record], now_ms: int) -> Sequence[Output]:
        """Take records in; what is to be sent at once."""

    def expire(self, now_ms: int) -> bool:
        """Take the clock in, of some states at a time; True while there are more."""

    def waiting(self, before: int) -> int:
        """How many states are to be kept now: those changed by offsets before this, and those with something to say."""

    def snapshot(self, generation: int, most: int, before: int) -> Snapshot:
        """Some of those that `waiting` counts."""

    @property
    def unsaid(self) -> int:
        """How many states have something to say."""

    @property
    def safe(self) -> int:
        """The offset before which all that was folded was in snapshots."""

    @property
    def fresh(self) -> int:
        """Of how many channels the last values were not said."""

    def latest(self, most: int) -> Sequence[Output]:
        """The last values of some of those; for a partition that is read to its end."""

    def acknowledge(self, key: str, by: str, at: int) -> None:
        """Somebody knows of an alarm. Raises `LookupError`."""

    def resolve(self, key: str, by: str, at: int) -> None:
        """Somebody says that an alarm is done; as `acknowledge`."""

    @property
    def full(self) -> bool:
        """Whether a state is as large as it may be: nothing is folded until a checkpoint was made."""

    @property
    def dirty(self) -> int:
        """How many states have changed since the last snapshot."""

    @property
    def tally(self) -> Counter[str]:
        """What became of readings, where it was not the usual; emptied by who reads it."""

    def __len__(self) -> int:
        """Of how many channels state is kept."""


class Source(Protocol):
    """What is known of the topic that is read."""

    def caught_up(self, partition: int) -> bool:
        """Asked once a second: whether all of a partition has been read. Only then its clock is the wall's."""

    async def ends(self, partitions: Collection[int]) -> Mapping[int, int]:
        """Where partitions' logs end now; however long it takes to learn."""


class Telemetry(Protocol):
    """Who is told."""

    def stopped(self, stopped: bool) -> None:  # noqa: FBT001  a gauge's value
        """Intake was stopped, or goes on."""

    def analysed(self, records: int, by_outcome: Mapping[str, int]) -> None:
        """Records were folded; of their readings so many had another outcome than usual."""

    def said(self, by_topic: Mapping[str, int]) -> None:
        """Records were handed over to be sent, by logical name."""

    def checkpoint(self, seconds: float, states: int) -> None:
        """A checkpoint was made, of so many states."""

    def channels(self, channels: int) -> None:
        """Of so many channels state is kept."""


class Limits(Struct, frozen=True, kw_only=True):
    """When a checkpoint is made before its time, and when folding waits for one."""

    #: Seconds between checkpoints.
    every: float = 5.0
    #: Seconds after which a state that has changed is kept at the latest.
    age: float = 30.0
    #: A checkpoint is made when so many states of a partition have something to say, which they keep until then.
    unsaid: int = 1_000
    #: A checkpoint of everything is made at so many chunks or records that are not acknowledged.
    chunks: int = 16_000
    records: int = 500_000
    #: Nothing is folded while so many chunks wait, or so many outputs for the broker.
    most_chunks: int = 32_000
    most_outputs: int = 100_000


class _Owned:
    """A partition that is ours, and its chunks that are not acknowledged, with their last offsets and sizes."""

    __slots__ = ("anew", "current", "held", "marks", "next", "number", "part")

    def __init__(self, number: int, part: Partition, *, anew: bool) -> None:
        self.number = number
        self.part = part
        #: Positions begin again, and no checkpoint has said so yet.
        self.anew = anew
        self.held: deque[tuple[Held, int, int]] = deque()
        #: It is read to its end, when that was last asked.
        self.current = False
        #: The offset behind what was folded, and what that was when checkpoints began: the first a while ago, the last
        #: not long.
        self.next = 0
        self.marks: deque[tuple[float, int]] = deque([(-math.inf, 0)])


def _nowhere(step: str) -> None:
    """Nobody wants to be told of the steps."""
    del step


class Analyzer:
    """Folds chunks into the partitions' states, sends what they give, and makes checkpoints.

    `maker` makes, given how many partitions the `source` topic has, what makes the pure part of one of them, from its
    number and a way to read its side tables. `fault` is called with an
    error after which this process cannot go on; nothing is acknowledged by then. `at` is told of each step, for tests
    that kill the process there.
    """

    def __init__(  # noqa: PLR0913  the collaborators, each replaceable in a test
        self,
        tables: Mapping[str, Table],
        source: str,
        maker: Callable[[int], Callable[[int, Load], Partition]],
        topics: Mapping[str, str],
        telemetry: Telemetry,
        fault: Callable[[BaseException], None],
        *,
        limits: Limits | None = None,
        ceiling: Ceiling | None = None,
        max_bytes: int = 1_000_000,
        clock: Callable[[], float] = time.time,
        at: Callable[[str], None] = _nowhere,
    ) -> None:
        self.ceiling = ceiling or Ceiling()
        self.at = at
        #: Intake was stopped by somebody, until `resume`.
        self.stopped = False
        self._tables = tables
        self._topic = source
        self._maker = maker
        self._make: Callable[[int, Load], Partition] | None = None
        self._telemetry = telemetry
        self._fault = fault
        self._limits = limits or Limits()
        self._clock = clock
        self._outbox = Outbox(topics, fault, most=max_bytes)
        self._producer: Producer | None = None
        #: `parked` owns nothing, `loading` reads its state, `draining` finishes what it has and takes no more.
        self._phase: Literal["parked", "loading", "working", "draining"] = "parked"
        self._generation = -1
        self._source: Source | None = None
        self._owned: dict[int, _Owned] = {}
        self._chunks = self._records = 0
        self._loading: asyncio.Task[None] | None = None
        self._saving: asyncio.Task[None] | None = None
        #: Writes to tables that Kafka's client may have begun.
        self._writing = 0
        #: Checkpoints begun and finished.
        self._begun = self._ended = 0
        self._partitions = 0
        self._due = asyncio.Event()
        #: The next checkpoint is of everything.
        self._whole = False
        self._changed = asyncio.Event()
        self._deadline: asyncio.TimerHandle | None = None

    # -- what the stage's runtime asks -----------------------------------------------------------------------------

    async def start(self, producer: Producer) -> None:
        """Learn how many partitions the topics really have."""
        self._producer = producer
        partitions = await producer.partitions(self._topic)
        for table in self._tables.values():
            if await producer.partitions(table.changelog) != partitions:
                wrong = f"{table.changelog} must have as many partitions as {self._topic} ({partitions})"
                self._fault(RuntimeError(f"{wrong}: see iotflow topics plan"))
        self._make = self._maker(partitions)
        self._partitions = partitions
        await self._outbox.start(producer)

    async def run(self) -> None:
        """Make checkpoints and look at the clock, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._checkpoints())
            group.create_task(self._ticks())

    @property
    def ready(self) -> bool:
        """Whether what is put now will be handled."""
        return not self.ceiling.tripped and not self.stopped

    @property
    def busy(self) -> bool:
        """Whether something is still to be finished of what was taken before a drain."""
        return self._phase == "draining"

    def stop_intake(self) -> None:
        """Fold no more until `resume`; what was folded is made safe. Ends with the process."""
        self.stopped = True
        self._telemetry.stopped(True)
        log.warning("intake is stopped, as asked")

    def resume(self) -> None:
        """Go on after `stop_intake`."""
        self.stopped = False
        self._telemetry.stopped(False)
        self.ceiling.reset()
        self._tell()

    async def flush(self) -> int:
        """The number of records held now, when a checkpoint has made them safe, or they were let go."""
        records = self._records
        self._whole = True
        await self._next()
        return records

    async def _next(self) -> None:
        """Return when a checkpoint has been made that began after this was called, or all was let go."""
        generation, wanted = self._generation, self._begun + 1
        self._due.set()
        while self._ended < wanted and self._generation == generation and self._phase in {"working", "draining"}:
            await self._change()

    async def acknowledge(self, key: str, by: str, at_us: int) -> str:
        """Somebody knows of the alarm of this key. Returns when that is safe; raises `LookupError`."""
        self._having(key).acknowledge(key, by, at_us)
        await self._kept()
        return "acknowledged"

    async def resolve(self, key: str, by: str, at_us: int) -> str:
        """Somebody says that the alarm of this key is done; as `acknowledge`."""
        self._having(key).resolve(key, by, at_us)
        await self._kept()
        return "resolved"

    async def _kept(self) -> None:
        generation = self._generation
        await self._next()
        if self._generation != generation or self._phase == "parked":
            raise LookupError("the partition was given up meanwhile, and with it this: ask again in a moment")

    def _having(self, key: str) -> Partition:
        owned = self._owned.get(partition_of(subject_of(key).device_id, self._partitions))
        if owned is None or self._phase != "working":
            raise LookupError("the device's state is not at hand just now: ask again in a moment")
        return owned.part

    # -- whose partitions are ----------------------------------------------------------------------------------------

    def begin(self, generation: int, partitions: Collection[int], source: Source) -> None:
        """A rebalance is over and the tables are restored: read the state of these partitions.

        To be called before a chunk of the generation comes.
        """
        self._let_go()
        self._generation = generation
        self._source = source
        self._phase = "loading"
        self._loading = asyncio.create_task(self._load(sorted(partitions), source))

    async def _load(self, partitions: Sequence[int], source: Source) -> None:
        assert self._make is not None  # noqa: S101  for mypy: the work was started
        try:
            began, states = time.monotonic(), 0
            ends = await source.ends(partitions)
            for number in partitions:
                part = self._make(number, partial(self._read, number))
                for key, value in self._tables[STATE].load(number):
                    part.restore(key, value)
                    states += 1
                    if states % _SLICE == 0:
                        await asyncio.sleep(0)
                lost = part.rewind(ends[number])
                if lost:
                    log.warning(
                        "the topic ends before what was folded of it: it was made anew, and is read as new",
                        extra={"partition": number, "states": lost},
                    )
                self._owned[number] = _Owned(number, part, anew=bool(lost))
        except Exception as error:  # noqa: BLE001  nothing may leave a task unseen
            self._fault(error)
            return
        seconds = round(time.monotonic() - began, 3)
        log.info("state is restored", extra={"partitions": list(partitions), "states": states, "seconds": seconds})
        self._phase = "working"
        self._due.set()  # what is pending in the states was perhaps never sent
        self._tell()

    def _read(self, number: int, table: str, key: bytes) -> bytes | None:
        return self._tables[table].get(number, key)

    def drain(self, deadline: float) -> None:
        """Finish what is held by `deadline` (of `time.monotonic`) and let the rest go. Returns at once."""
        if self._phase in {"parked", "loading"}:
            self._let_go()
            return
        self._phase = "draining"
        self._due.set()
        self._tell()
        self._stop_timer()
        seconds = max(0.0, deadline - time.monotonic())
        self._deadline = asyncio.get_running_loop().call_later(seconds, self._let_go)

    def _let_go(self) -> None:
        """Own nothing any more. What Kafka's client has cannot be taken back: then this process must end."""
        stuck = self._writing > 0 or self._outbox.in_flight
        self._phase = "parked"
        self._stop_timer()
        for task in (self._loading, self._saving):
            if task is not None:
                task.cancel()
        self._outbox.drop()
        for owned in self._owned.values():
            for held, _, _ in owned.held:
                held.release()
        self._owned.clear()
        self._chunks = self._records = 0
        self._tell()
        if stuck:
            # Sent later, a state could stand behind that of the next owner in the changelog, an alarm behind a later
            # one of the same key.
            self._fault(CannotWithdrawError("partitions were taken away while Kafka did not answer"))

    def _stop_timer(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    # -- folding -----------------------------------------------------------------------------------------------------

    async def put(self, held: Held) -> None:
        """Fold a chunk; waits while state is read, intake is stopped, or too much waits for a checkpoint."""
        try:
            while held.generation == self._generation and (self._phase == "loading" or self._must_wait()):
                await self._change()
        except asyncio.CancelledError:
            held.release()
            raise
        if held.generation != self._generation or self._phase != "working":
            held.release()
            return
        try:
            self._fold(held)
        except Exception as error:  # noqa: BLE001  no exception may leave an agent
            self._fault(error)
            self._let_go()  # no checkpoint may acknowledge it
        await asyncio.sleep(0)  # the queue may be full of chunks, and what they give is to be sent at once

    def _must_wait(self) -> bool:
        if self._phase != "working":
            return False
        if any(owned.part.full for owned in self._owned.values()):
            return True
        if self._chunks >= self._limits.most_chunks or self._outbox.backlog >= self._limits.most_outputs:
            return True
        return self.stopped or self.ceiling.tripped

    def _fold(self, held: Held) -> None:
        owned = self._owned[held.records[0].partition]
        records = len(held.records)
        last = held.records[-1].offset
        owned.held.append((held, last, records))
        owned.next = last + 1
        self._chunks += 1
        self._records += records
        outputs = owned.part.fold(held.records, self._now_ms())
        held.shed()
        self._post(outputs)
        self._telemetry.analysed(records, owned.part.tally)
        owned.part.tally.clear()
        self.at("folded")
        self._hurry(owned)

    def _hurry(self, owned: _Owned) -> None:
        """See to it that a checkpoint is made before its time, if one is needed and none is under way."""
        if owned.part.full or (self._saving is None and (self._is_much() or owned.part.unsaid >= self._limits.unsaid)):
            self._due.set()

    def _is_much(self) -> bool:
        """Whether so much is not acknowledged that the next checkpoint is of everything."""
        return self._chunks >= self._limits.chunks or self._records >= self._limits.records

    def _post(self, outputs: Sequence[Output]) -> None:
        if outputs:
            self._telemetry.said(Counter([output.topic for output in outputs]))
            self._outbox.post(outputs)

    def _dirty(self) -> int:
        return sum(owned.part.dirty for owned in self._owned.values())

    async def _ticks(self) -> None:
        while True:
            await asyncio.sleep(_TICK_S)
            for owned in list(self._owned.values()):
                if self._phase != "working" or self._must_wait() or self._owned.get(owned.number) is not owned:
                    owned.current = False
                    continue
                owned.current = self._source is not None and self._source.caught_up(owned.number)
                more = owned.current
                while more and self._owned.get(owned.number) is owned:
                    more = owned.part.expire(self._now_ms())
                    self._hurry(owned)
                    await asyncio.sleep(0)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    # -- checkpoints -------------------------------------------------------------------------------------------------

    async def _checkpoints(self) -> None:
        while True:
            await self._until_due()
            if self._phase not in {"working", "draining"}:
                continue
            self._begun += 1
            saving = self._saving = asyncio.create_task(self._checkpoint())
            try:
                await asyncio.wait({saving})
            finally:
                self._saving = None
                saving.cancel()
            if not saving.cancelled():
                saving.result()
                self._ended = self._begun
                if self._phase == "draining" and self._dirty():
                    self._due.set()  # states that no longer have to send anything: or the next owner sends it again
                elif self._phase == "draining" and not self._due.is_set():
                    self._let_go()
                elif self._is_much():
                    self._due.set()
            elif self._phase in {"working", "draining"}:
                raise RuntimeError("Kafka's client was closed while a checkpoint was made")
            self._tell()

    async def _until_due(self) -> None:
        try:
            async with asyncio.timeout(self._limits.every):
                await self._due.wait()
        except TimeoutError:
            pass
        self._due.clear()

    async def _checkpoint(self) -> None:
        began = time.monotonic()
        whole = self._whole or self._phase == "draining" or self._is_much()
        self._whole = False
        owners = list(self._owned.values())
        held = {owned.number: len(owned.held) for owned in owners}
        before = {owned.number: self._before(owned, whole=whole) for owned in owners}
        left = {owned.number: owned.part.waiting(before[owned.number]) for owned in owners}
        states = 0
        # In rounds, so that memory is bounded and an alarm need not wait for ten thousand states. What is folded in
        # between is in a later checkpoint.
        while True:
            taken: list[tuple[_Owned, Snapshot]] = []
            # Where time is short rounds are longer.
            share = _ROUND // (1 if self._phase == "draining" else max(1, sum(map(bool, left.values()))))
            for owned in owners:
                most = min(max(1, share), left[owned.number])
                taken.append((owned, owned.part.snapshot(self._generation, most, before[owned.number])))
                left[owned.number] -= most
                await asyncio.sleep(0)
            states += sum(len(snapshot.states) for _, snapshot in taken)
            await self._keep(taken)
            self._tell()  # there may be room for more
            if not any(left.values()):
                break
        for owned in owners:
            owned.anew = False
            self._acknowledge(owned, held[owned.number])
        self._telemetry.checkpoint(time.monotonic() - began, states)
        self._telemetry.channels(sum(len(owned.part) for owned in owners))
        self.at("acked")
        for owned in owners:
            await self._say_latest(owned)

    def _before(self, owned: _Owned, *, whole: bool) -> int:
        """The offset before which what changed is old enough to be kept: any, where there is nothing else to do.

        By the time that has passed, not by the wall's clock, which may be set.
        """
        now, marks = asyncio.get_running_loop().time(), owned.marks
        rests = marks[-1][1] == owned.next
        marks.append((now, owned.next))
        while len(marks) > 1 and marks[1][0] <= now - self._limits.age:
            marks.popleft()
        if whole or rests or owned.anew:  # positions that begin again must be in the changelog before one is higher
            return _ALL
        return marks[0][1]

    def _acknowledge(self, owned: _Owned, most: int) -> None:
        """Acknowledge the chunks that have changed nothing that is not kept, of the `most` oldest.

        Not of later ones: what they gave may still be on its way.
        """
        safe = owned.part.safe
        for _ in range(most):
            held, last, records = owned.held[0]
            if last >= safe:
                break
            owned.held.popleft()
            held.ack()
            self._chunks -= 1
            self._records -= records

    async def _say_latest(self, owned: _Owned) -> None:
        """The last values that are not said by now; what comes meanwhile can wait for the next checkpoint."""
        left = owned.part.fresh
        # Not once the partition is given up: what is still on its way then ends the process.
        while left > 0 and self._phase == "working" and owned.current:
            self._post(owned.part.latest(min(_ROUND, left)))
            left -= _ROUND
            await self._outbox.settled()

    async def _keep(self, taken: Sequence[tuple[_Owned, Snapshot]]) -> None:
        """One round: a snapshot of each partition, each step for all of them before the next."""
        await self._outbox.settled()
        self.at("outputs")
        for owned, snapshot in taken:
            await self._write(STATE, owned.number, snapshot.states, anew=owned.anew)
        self.at("state")
        for _, snapshot in taken:
            self._post(snapshot.outputs)
        await self._outbox.settled()
        self.at("emitted")
        for owned, snapshot in taken:
            await self._write_sides(owned.number, snapshot)
        self.at("side")
        for _, snapshot in taken:
            snapshot.done()

    async def _write_sides(self, number: int, snapshot: Snapshot) -> None:
        by_table: dict[str, list[Entry]] = {}
        for table, key, value in snapshot.side:
            by_table.setdefault(table, []).append((key, value))
        for table, entries in by_table.items():
            await self._write(table, number, entries)

    async def _write(self, table: str, number: int, entries: Sequence[Entry], *, anew: bool = False) -> None:
        assert self._producer is not None  # noqa: S101  for mypy: the work was started
        self._writing += 1
        try:
            await self._tables[table].write(number, entries, self._producer, anew=anew)
        finally:
            self._writing -= 1

    # -- waiting for each other --------------------------------------------------------------------------------------

    def _tell(self) -> None:
        """Wake who waits for a change."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def _change(self) -> None:
        await self._changed.wait()


def analyze(analyzer: Analyzer) -> Callable[[Any], Any]:
    """The agent that feeds the analyzer."""

    async def agent(stream: Any) -> None:
        async for held in chunks(stream):
            await analyzer.put(held)

    return agent
