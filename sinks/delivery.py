"""Delivery: from chunks of decoded records to durable rows. The only home of batching, retry, breaker and bisection.

A chunk is acknowledged when each of its records is stored or in the dead-letter topic, and not before. While the
destination is away the batch is kept and no other taken; nothing is dead-lettered for an outage. At a revoke or stop
(`drain`) what cannot be finished in time is let go unacknowledged, and Kafka delivers it again.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from operator import attrgetter
from typing import Any, TypeVar

from schemas import wire
from schemas.reading import RESERVED
from schemas.record import Record
from schemas.saved import Flush
from sinks.base import Fatal, FencedError, PartialWriteError, Progress, Reject, Retry, Sink, Verdict
from sinks.batch import Batch, Chunk, Former, Part, Piece, named
from sinks.ceiling import Ceiling
from sinks.contracts import Books, Breaker, Clock, Letters, Options, SystemClock, Telemetry
from sinks.handover import Handover, Held

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Latencies are sampled: at most this many records of each piece of a batch are looked at.
_SAMPLES = 16
#: Seconds after a fault of our own before all that is held is begun again.
_AFTER_FAULT_S = 1.0
_TIMED_OUT = Retry("no answer in time", smaller=True)
#: Turns of the event loop from the call of a driver to the first byte on its way.
_TURNS_OF_A_WRITE = 2
#: So many such faults in a row, without an acknowledgement between them, end the process.
_FAULTS = 5
#: A batch with more letters than this sends them before it goes on.
_LETTERS_AT_ONCE = 500
#: Batches that are stored and wait for the books.
_UNBOOKED = 4
_time = attrgetter("time")


class Delivery:
    """Feeds one sink. `put` chunks, `run` it as a task, `drain` it when partitions are given up."""

    def __init__(  # noqa: PLR0913  the collaborators, each replaceable in a test
        self,
        sink: Sink[Any],
        options: Options,
        letters: Letters,
        telemetry: Telemetry,
        *,
        ceiling: Ceiling | None = None,
        books: Books | None = None,
        fault: Callable[[BaseException], None] | None = None,
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.sink = sink
        self.options = options
        self.letters = letters
        self.telemetry = telemetry
        self.ceiling = ceiling or Ceiling()
        self.books = books
        #: Told of an error after which this process must not go on.
        self.fault = fault
        self.clock = clock or SystemClock()
        self.jitter = jitter
        self.state = Breaker.CLOSED
        self.remedy = ""
        self._former = Former(sink, options, telemetry, self.clock)
        self._intake: deque[Chunk] = deque()
        self._queued = 0
        self._held: dict[int, Chunk] = {}
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._resumed = asyncio.Event()
        #: Intake was stopped by somebody, until `resume`.
        self.stopped = False
        self._flushes = 0
        self._settled = asyncio.Event()
        #: Held by whoever calls the sink.
        self._turn_of_sink = asyncio.Lock()
        #: By partition, the offset that the destination has as its next, where it keeps them.
        self._next: dict[tuple[str, int], int | None] = {}
        self._writing = False
        self._opened = False
        #: What went wrong in the work itself since the last acknowledgement, and how often.
        self.failing = ""
        self._faults = 0
        self._work: asyncio.Task[None] | None = None
        self._handover = Handover(self._release)
        #: Grows with every write that was answered: a batch that takes long is at work all the same.
        self.progress = 0

    # -- the agent's side --------------------------------------------------------------------------------------------

    async def put(self, held: Held) -> None:
        """Take a chunk over; waits while two batches are queued already. One of an ended generation is released."""
        self._handover.meet(held)
        try:
            while self._queued >= 2 * self.options.batch_size and not self._handover.released:
                self._room.clear()
                await self._room.wait()
        except asyncio.CancelledError:
            held.release()
            raise
        if self._handover.refuses(held):
            held.release()
            return
        chunk = Chunk(held)
        self._held[id(chunk)] = chunk
        self.telemetry.taken(chunk.unsettled)
        self._intake.append(chunk)
        self._queued += chunk.unsettled
        self._wake.set()

    @property
    def ready(self) -> bool:
        """Whether what is put now can be expected to be stored soon."""
        return (
            self._opened
            and not self.failing
            and self.state is Breaker.CLOSED
            and not self.ceiling.tripped
            and not self.stopped
        )

    @property
    def held_records(self) -> int:
        """Records taken over and neither stored nor dead-lettered."""
        return sum(chunk.unsettled for chunk in self._held.values())

    # -- being asked -------------------------------------------------------------------------------------------------

    def stop_intake(self) -> None:
        """Store no more until `resume`; the batch that is being written is finished. Ends with the process."""
        self.stopped = True
        self.telemetry.stopped(True)
        log.warning("intake is stopped, as asked", extra={"sink": self.sink.name})

    def resume(self) -> None:
        """Go on after `stop_intake`, or after the ceiling tripped."""
        self.stopped = False
        self.telemetry.stopped(False)
        self.ceiling.reset()
        self.telemetry.ceiling(False)
        self._resumed.set()
        self._wake.set()

    async def flush(self) -> int:
        """Store at once what is held now; the number of its records, when all of them are acknowledged or let go."""
        held = list(self._held.values())
        records = sum(chunk.unsettled for chunk in held)
        self._flushes += 1
        self._wake.set()
        try:
            while any(self._held.get(id(chunk)) is chunk for chunk in held):
                self._settled.clear()
                await self._settled.wait()
        finally:
            self._flushes -= 1
        return records

    async def call(self, work: Callable[[Sink[Any]], Awaitable[Result]]) -> Result:
        """Do something else with the sink, between two batches; raises what it raises. Waits out an outage."""
        async with self._turn_of_sink:
            return await work(self.sink)

    async def positions(self, assigned: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """The next offsets of partitions as the destination has them, which what is taken from now on goes by.

        Waits for a destination that is away: without it nobody knows where to begin.
        """
        attempt = 0
        while True:
            try:
                async with self._turn_of_sink:
                    kept = await self._in_time(self._offsets())
                self._turn(Breaker.CLOSED)
                break
            except Exception as error:  # noqa: BLE001  whatever it is, the sink says what it means
                attempt += 1
                log.warning("the destination's offsets cannot be had", extra={"error": named(error)})
                verdict = self._verdict(error)
                self._turn(Breaker.OPEN)
                await self.clock.sleep(self._pause(verdict, attempt))
        self._next = {partition: kept.get(partition) for partition in assigned}
        return {partition: kept[partition] for partition in assigned if partition in kept}

    async def _offsets(self) -> Mapping[tuple[str, int], int]:
        sink: Any = self.sink
        found: Mapping[tuple[str, int], int] = await sink.offsets(self.options.exactly_once)
        return found

    # -- giving up ---------------------------------------------------------------------------------------------------

    def drain(self, deadline: float) -> None:
        """Finish what is held by `deadline` (of `time.monotonic`), let the rest go; at once when nothing is stored.

        Returns at once. Ends with the first chunk of a later generation.
        """
        self._handover.start(deadline)
        self._wake.set()
        at_work = self._writing and self.state is Breaker.CLOSED and not self.failing
        if not self.ready and not at_work:
            self._handover.end()

    def _release(self) -> None:
        """Let everything go, and end the work on it: a late write could undo a newer one of the next owner."""
        if self._held:
            log.warning("held records let go", extra={"records": self.held_records, "breaker": self.state})
        for chunk in list(self._held.values()):
            self._let_go(chunk)
        self._intake.clear()
        self._queued = 0
        self._room.set()
        if self._work is not None:
            self._work.cancel()

    def _let_go(self, chunk: Chunk) -> None:
        if self._held.pop(id(chunk), None) is not None:
            chunk.held.release()
            self._settled.set()

    # -- the task ----------------------------------------------------------------------------------------------------

    async def start(self, producer: object) -> None:
        """Nothing to prepare: the sink is opened, and waited for, by `run`."""

    async def run(self) -> None:
        """Deliver until cancelled; nothing else ends it."""
        try:
            while True:
                self._work = asyncio.create_task(self._deliver(), name=f"deliver-{self.sink.name}")
                try:
                    await asyncio.wait([self._work])
                    if not self._work.cancelled():
                        await self._failed(self._work.exception())
                finally:
                    self._work.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await self._work
                # After a release too: the work may have taken some of the next generation before it noticed.
                self._requeue()
        finally:
            self._handover.end()
            await self.sink.close()

    async def _failed(self, error: BaseException | None) -> None:
        """None of the work returns or raises on its own: a fault in our code, or Kafka refuses what is said of a batch.

        All that is held is begun again; when that does not help, this process must not store the same for ever.
        """
        log.error("delivery failed", exc_info=error)
        self._faults += 1
        self.failing = named(_cause(error))
        if self._faults >= _FAULTS and self.fault is not None and error is not None:
            self.fault(error)
        await self.clock.sleep(_AFTER_FAULT_S)

    def _requeue(self) -> None:
        """Begin again with all that is held, in order: writing twice is harmless, losing is not."""
        self._intake = deque(self._held.values())
        for chunk in self._intake:
            chunk.taken = 0
            chunk.unsettled = len(chunk.held.records)
        self._queued = sum(chunk.unsettled for chunk in self._intake)
        self._wake.set()

    async def _deliver(self) -> None:
        self._writing = False
        await self._open()
        ready: asyncio.Queue[Batch] = asyncio.Queue(maxsize=1)
        stored: asyncio.Queue[Batch] = asyncio.Queue(maxsize=_UNBOOKED)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._collect(ready))
            group.create_task(self._write(ready, stored))
            group.create_task(self._acknowledge(stored))

    # -- batches -----------------------------------------------------------------------------------------------------

    async def _collect(self, ready: asyncio.Queue[Batch]) -> None:
        while True:
            pieces = await self._gather(ready)
            # Preparing keeps the loop busy: first let the write that has just begun reach its socket. Drivers send
            # from tasks of their own, and the server would have nothing to do meanwhile.
            for _ in range(_TURNS_OF_A_WRITE):
                await asyncio.sleep(0)
            await ready.put(await self._former.batch(pieces))

    async def _gather(self, ready: asyncio.Queue[Batch]) -> list[Piece]:
        """The next batch: full, or timed out while the writer has nothing to do.

        `_wake` is set by whatever may change that: a chunk put, a write finished, a drain begun. Three batches exist at
        most: one collected here, one in `ready`, one being written.
        """
        pieces: list[Piece] = []
        size, first = 0, 0.0
        while True:
            self._wake.clear()
            while self._intake and size < self.options.batch_size:
                chunk = self._intake[0]
                stop = min(len(chunk.held.records), chunk.taken + self.options.batch_size - size)
                pieces.append(Piece(chunk, chunk.taken, stop))
                first = first or self.clock.monotonic()
                size += stop - chunk.taken
                self._queued -= stop - chunk.taken
                chunk.taken = stop
                if stop == len(chunk.held.records):
                    self._intake.popleft()
            self._room.set()
            if size >= self.options.batch_size:
                return pieces
            wait: float | None = None
            if pieces:
                wait = first + self.options.batch_timeout - self.clock.monotonic()
                if self._handover.draining or self._flushes or wait <= 0:
                    if ready.empty() and not self._writing:
                        return pieces
                    wait = None
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    # -- writing -----------------------------------------------------------------------------------------------------

    async def _write(self, ready: asyncio.Queue[Batch], stored: asyncio.Queue[Batch]) -> None:
        while True:
            await self._stand_still()  # also when this work began anew, after a release
            batch = await self._take(ready)
            await self._stand_still()  # intake may have been stopped meanwhile
            self._writing = True
            batch.started_ms, batch.started = self.clock.wall_ms(), self.clock.monotonic()
            async with self._turn_of_sink:
                await self._store(batch)
            await self._bury(batch)
            batch.finished = self.clock.monotonic()
            self._observe(batch)
            await stored.put(batch)
            self._writing = False
            self._wake.set()

    async def _take(self, ready: asyncio.Queue[Batch]) -> Batch:
        """The next batch; while there is none and the breaker is open, see whether the destination is back."""
        while self.state is not Breaker.CLOSED:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.options.retry_cap):
                    return await ready.get()
            await self._probe()
        return await ready.get()

    async def _probe(self) -> None:
        """See whether the destination is back."""
        try:
            async with self._turn_of_sink:
                await self._in_time(self.sink.probe())
            self._turn(Breaker.CLOSED)
        except Exception as error:  # noqa: BLE001  whatever it is, the sink says what it means
            self._verdict(error)

    async def _store(self, batch: Batch) -> None:
        """Store a batch whole, or by halves where something in it can never be stored; in order, so the last wins."""
        todo = [batch.part]
        attempt = 0
        progress = self._progress(batch) if self.options.exactly_once else {}
        if self.state is Breaker.OPEN and (batch.part.readings or progress):  # since before a release
            await self._back_off(Retry("the breaker is open"), 1)
        while todo or progress:
            # The offsets move with the last of the data, even if nothing is left of it, and never before the letters.
            part = todo.pop() if todo else self._former.form(batch, (), ())
            last = not todo and bool(progress)
            if not part.readings and not last:
                continue
            if last:
                await self._bury(batch)
            outcome = await self._attempt(part, progress if last else _held(progress), progress)
            if isinstance(outcome, Retry | Fatal):
                attempt += 1
                batch.failures += 1
                batch.error = outcome.why if isinstance(outcome, Retry) else outcome.remedy
                halve = isinstance(outcome, Retry) and outcome.smaller and attempt > 1
                todo += self._former.smaller(batch, part) if halve else [part]
                await self._back_off(outcome, attempt)
                continue
            # It was stored or refused: the destination is there.
            attempt = 0
            self.progress += 1
            self._turn(Breaker.CLOSED)
            if outcome is not None:
                todo += self._former.apart(batch, part, outcome)
            else:
                self._count(batch, part, progress if last else {})
                progress = {} if last else progress
            if len(batch.letters) >= _LETTERS_AT_ONCE:
                await self._bury(batch)

    def _count(self, batch: Batch, part: Part, progress: Progress) -> None:
        """Take note of what was stored."""
        self.ceiling.good(len(part.readings))
        batch.stored.append(part)
        self._next |= {partition: after for partition, (_, after) in progress.items()}

    def _progress(self, batch: Batch) -> Progress:
        """How far a batch brings each of its partitions."""
        found: dict[tuple[str, int], tuple[int | None, int]] = {}
        for piece in batch.pieces:
            if piece.start == piece.stop:
                continue
            final = piece.chunk.held.records[piece.stop - 1]
            partition = final.topic, final.partition
            known = self._next.get(partition)
            # Never back: after a fault of ours a batch may be cut otherwise than it was before.
            found[partition] = known, max(final.offset + 1, known or 0)
        return found

    async def _attempt(self, part: Part, move: Progress, goal: Progress) -> Verdict | PartialWriteError | None:
        """Write, and move the offsets; `goal` is where the whole batch will have moved them."""
        started = self.clock.monotonic()
        sink: Any = self.sink
        payload = part.prepared.payload
        try:
            await self._in_time(
                sink.write_at(payload, self.options.exactly_once, move) if move else sink.write(payload)
            )
        except PartialWriteError as error:
            return error
        except FencedError as error:
            return await self._fenced(error, goal)
        except Exception as error:  # noqa: BLE001  whatever it is, the sink says what it means
            return self._verdict(error, writing=True)
        if not part.readings:
            return None
        seconds = self.clock.monotonic() - started
        self.telemetry.stored(len(part.readings), part.prepared.rows, seconds, self.options.batch_size)
        log.info(
            "batch stored",
            extra={
                "sink": self.sink.name,
                "readings": len(part.readings),
                "rows": part.prepared.rows,
                "seconds": round(seconds, 4),
            },
        )
        return None

    async def _fenced(self, error: FencedError, goal: Progress) -> Verdict | None:
        """What follows from offsets that were not where they should have been."""
        try:
            kept = await self._in_time(self._offsets())
        except Exception as trouble:  # noqa: BLE001  whatever it is, the sink says what it means
            return self._verdict(trouble)
        if all(kept.get(partition) == after for partition, (_, after) in goal.items()):
            return None  # an earlier attempt of ours, whose answer was lost: its data are with its offsets
        # Somebody else has gone on with a partition that this process believes to be its own: nothing that it holds is
        # worth anything any more, and its next life begins where the destination says.
        if self.fault is not None:
            self.fault(error)
        await asyncio.Event().wait()
        return None

    async def _in_time(self, call: Awaitable[Result]) -> Result:
        """Wait for the sink, for `write_timeout` at most."""
        try:
            async with asyncio.timeout(self.options.write_timeout):
                return await call
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # Nobody cancelled us: passed on, it would end this half of the work without a trace.
            raise ConnectionError("the driver cancelled its own work") from error

    def _verdict(self, error: Exception, *, writing: bool = False) -> Verdict:
        # Time that ran out says nothing about the data, whatever the sink thinks of it.
        verdict = _TIMED_OUT if isinstance(error, TimeoutError) else self.sink.classify(error)
        self.telemetry.failed(type(verdict).__name__.lower())
        if not (writing and isinstance(verdict, Reject)):
            log.error("write failed", extra={"sink": self.sink.name, "error": named(error)})
        return verdict

    async def _bury(self, batch: Batch) -> None:
        """Send the batch's letters and wait for the broker; only then may its records be acknowledged."""
        if not batch.letters:
            return
        await self.letters.send(batch.letters)
        batch.dead += len(batch.letters)
        reasons: dict[str, int] = {}
        for dead, device in zip(batch.letters, batch.device_of_letter, strict=True):
            reasons[dead.reason] = reasons.get(dead.reason, 0) + 1
            if dead.reason != "unknown_device":
                self.ceiling.rejected(device)
        for reason, count in reasons.items():
            self.telemetry.dead(reason, count)
        batch.letters, batch.device_of_letter = [], []

    def _observe(self, batch: Batch) -> None:
        """Tell how long it took until the batch was durable, by samples, each of which stands for those behind it."""
        now_ms = self.clock.wall_ms()
        for piece in batch.pieces:
            step = max(1, -(-(piece.stop - piece.start) // _SAMPLES))
            for index in range(piece.start, piece.stop, step):
                self.telemetry.durable(_age_s(piece.chunk.held.records[index], now_ms), min(step, piece.stop - index))
        for part in batch.stored:
            step = max(1, -(-len(part.readings) // _SAMPLES))
            for index in range(0, len(part.readings), step):
                reading = part.readings[index]
                if reading.measurement in RESERVED:
                    continue  # a window's time is its start: how old it is says nothing about what is late
                age = now_ms / 1000.0 - reading.time.timestamp()
                self.telemetry.fresh(max(0.0, age), min(step, len(part.readings) - index))

    async def _acknowledge(self, stored: asyncio.Queue[Batch]) -> None:
        """Acknowledge batches, each when it is in the books."""
        while True:
            batch = await stored.get()
            if self.books is not None:
                await self._book(self.books, batch)
            for piece in batch.pieces:
                chunk = piece.chunk
                chunk.unsettled -= piece.stop - piece.start
                if chunk.unsettled == 0 and self._held.pop(id(chunk), None) is not None:
                    chunk.held.ack()
            self.failing, self._faults = "", 0
            self._settled.set()

    @staticmethod
    async def _book(books: Books, batch: Batch) -> None:
        """Put what devices said into the books, and nothing of iotflow's own, the books among it."""
        readings = [reading for part in batch.stored for reading in part.readings]
        records = [record for part in batch.stored for record in part.records]
        rows = sum(part.prepared.rows for part in batch.stored)
        if batch.own:
            both = [pair for pair in zip(readings, records, strict=True) if pair[0].measurement not in RESERVED]
            rows = max(0, rows - (len(readings) - len(both)))  # a row each
            readings, records = [reading for reading, _ in both], [record for _, record in both]
        if not readings:
            return
        flush = Flush(
            readings=len(readings),
            rows=rows,
            size_bytes=sum(len(record.value or b"") for record in records),
            dead=batch.dead,
            failures=batch.failures,
            error=batch.error,
            first=min(map(_time, readings)),
            last=max(map(_time, readings)),
            started_ms=batch.started_ms,
            seconds=batch.finished - batch.started,
        )
        await books.saved(flush, readings)

    # -- when the destination is away --------------------------------------------------------------------------------

    async def _open(self) -> None:
        attempt = 0
        while not self._opened:
            try:
                await self._in_time(self.sink.open())
                self._opened = True
                self._turn(Breaker.CLOSED)
            except Exception as error:  # noqa: BLE001  whatever it is, the sink says what it means
                attempt += 1
                await self._back_off(self._verdict(error), attempt, probe=False)

    async def _back_off(self, verdict: Verdict, attempt: int, *, probe: bool = True) -> None:
        """Wait before the next attempt; with the breaker open, until a probe succeeds. There is no last try."""
        if attempt >= self.options.breaker_after or not probe or self.state is Breaker.HALF_OPEN:
            self._turn(Breaker.OPEN)
        while True:
            if isinstance(verdict, Fatal):
                if verdict.remedy != self.remedy:
                    log.error("storing needs a person", extra={"sink": self.sink.name, "remedy": verdict.remedy})
                self.remedy = verdict.remedy
                self._turn(Breaker.OPEN)
            await self.clock.sleep(self._pause(verdict, attempt))
            if self.state is Breaker.CLOSED or not probe:
                return
            try:
                await self._in_time(self.sink.probe())
            except Exception as error:  # noqa: BLE001  whatever it is, the sink says what it means
                verdict = self._verdict(error)
                attempt += 1
            else:
                self._turn(Breaker.HALF_OPEN)
                return

    def _pause(self, verdict: Verdict, attempt: int) -> float:
        options = self.options
        own = min(options.retry_cap, options.retry_first * 2.0 ** min(attempt - 1, 16)) * (0.5 + self.jitter() / 2)
        # Never sooner than the destination asked for, nor at the moment at which everybody else comes back.
        return own + (verdict.after_s or 0.0) if isinstance(verdict, Retry) else own

    def _turn(self, state: Breaker) -> None:
        if state is self.state:
            return
        self.state = state
        self.telemetry.breaker(state)
        if state is Breaker.CLOSED:
            self.remedy = ""
        level = logging.WARNING if state is Breaker.OPEN else logging.INFO
        log.log(level, "breaker", extra={"sink": self.sink.name, "state": state})
        if state is Breaker.OPEN and self._handover.draining:
            # Not from here: this runs inside the task that a release cancels.
            asyncio.get_running_loop().call_soon(self._handover.end)

    async def _stand_still(self) -> None:
        """Wait until nothing says that no more may be stored."""
        if (self.ceiling.tripped or self.stopped) and self._handover.draining and not self._handover.released:
            # Not from here: this runs inside the task that a release cancels.
            asyncio.get_running_loop().call_soon(self._handover.end)
        if self.ceiling.tripped:
            self.telemetry.ceiling(True)
            remedy = f"see the dead letters (iotflow dlq stats); iotflow resume {self.options.stage} to go on"
            log.error(
                "the ceiling tripped: most records are refused, so intake is stopped",
                extra={"stage": self.options.stage, "remedy": remedy},
            )
        while self.ceiling.tripped or self.stopped:
            self._resumed.clear()
            if self.state is Breaker.CLOSED:
                await self._resumed.wait()
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self.options.retry_cap):
                        await self._resumed.wait()
                await self._probe()


def _held(progress: Progress) -> Progress:
    """The same partitions, not moved: what is not the last of a batch is fenced by that."""
    return {partition: (known, known) for partition, (known, _) in progress.items() if known is not None}


def _cause(error: BaseException | None) -> BaseException:
    """The first error of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error or RuntimeError("the work ended")


def _age_s(record: Record, now_ms: int) -> float:
    """How long ago a record was received; 0 where what it says of that is no time: anybody can set a header."""
    try:
        return (now_ms - wire.ingest_ms(record.headers, record.timestamp)) / 1000.0
    except (ValueError, OverflowError):
        return 0.0
