"""Delivery: from chunks of decoded records to durable rows. The only home of batching, retry, breaker and bisection.

A chunk is acknowledged when each of its records is stored or in the dead-letter topic, and not before. While the
destination is away the batch is kept and no other taken; nothing is dead-lettered for an outage. At a revoke or stop
(`drain`) what cannot be finished in time is let go unacknowledged, and Kafka delivers it again.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from msgspec import Struct

from schemas import wire
from schemas.deadletter import Letter, letter, source_of
from schemas.reading import Reading, Rejected, RejectedError
from schemas.record import Record
from sinks.base import Fatal, PartialWriteError, Prepared, Reject, Retry, Sink, Verdict
from sinks.ceiling import Ceiling
from sinks.contracts import Breaker, Clock, Letters, Options, SystemClock, Telemetry
from sinks.handover import Handover, Held

log = logging.getLogger(__name__)

#: Latencies are sampled: at most this many records of each piece of a batch are looked at.
_SAMPLES = 16
#: Seconds after a fault of our own before all that is held is begun again.
_AFTER_FAULT_S = 1.0
_TIMED_OUT = Retry("no answer in time", smaller=True)
#: Turns of the event loop from the call of a driver to the first byte on its way.
_TURNS_OF_A_WRITE = 2
#: A batch with more letters than this sends them before it goes on.
_LETTERS_AT_ONCE = 500


class _Chunk:
    """A held chunk with how far it was taken into batches, and how many of its records are not settled yet."""

    __slots__ = ("held", "taken", "unsettled")

    def __init__(self, held: Held) -> None:
        self.held = held
        self.taken = 0
        self.unsettled = len(held.records)


class _Piece(Struct, frozen=True):
    chunk: _Chunk
    start: int
    stop: int


class _Part(Struct, frozen=True):
    """Readings in the form the destination takes, each with the record it came from."""

    readings: Sequence[Reading]
    records: Sequence[Record]
    prepared: Prepared[Any]


class _Batch(Struct):
    pieces: list[_Piece]
    part: _Part
    letters: list[Letter]
    device_of_letter: list[str]


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
        clock: Clock | None = None,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.sink = sink
        self.options = options
        self.letters = letters
        self.telemetry = telemetry
        self.ceiling = ceiling or Ceiling()
        self.clock = clock or SystemClock()
        self.jitter = jitter
        self.state = Breaker.CLOSED
        self.remedy = ""
        self._intake: deque[_Chunk] = deque()
        self._queued = 0
        self._held: dict[int, _Chunk] = {}
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._resumed = asyncio.Event()
        self._writing = False
        self._opened = False
        self._failed = False
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
        chunk = _Chunk(held)
        self._held[id(chunk)] = chunk
        self.telemetry.taken(chunk.unsettled)
        self._intake.append(chunk)
        self._queued += chunk.unsettled
        self._wake.set()

    @property
    def ready(self) -> bool:
        """Whether what is put now can be expected to be stored soon."""
        return self._opened and not self._failed and self.state is Breaker.CLOSED and not self.ceiling.tripped

    @property
    def held_records(self) -> int:
        """Records taken over and neither stored nor dead-lettered."""
        return sum(chunk.unsettled for chunk in self._held.values())

    def resume(self) -> None:
        """Go on after the ceiling tripped."""
        self.ceiling.reset()
        self.telemetry.ceiling(False)
        self._resumed.set()

    # -- giving up ---------------------------------------------------------------------------------------------------

    def drain(self, deadline: float) -> None:
        """Finish what is held by `deadline` (of `time.monotonic`), let the rest go; at once when the breaker is open.

        Returns at once. Ends with the first chunk of a later generation.
        """
        self._handover.start(deadline)
        self._wake.set()
        if not self.ready:
            self._handover.end()

    def _release(self) -> None:
        """Let everything go, and end the work on it: a late write could undo a newer one of the next owner."""
        if self._held:
            log.warning("held records let go", extra={"records": self.held_records, "breaker": self.state})
        self._failed = False
        for chunk in list(self._held.values()):
            self._let_go(chunk)
        self._intake.clear()
        self._queued = 0
        self._room.set()
        if self._work is not None:
            self._work.cancel()

    def _let_go(self, chunk: _Chunk) -> None:
        if self._held.pop(id(chunk), None) is not None:
            chunk.held.release()

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
                        # Neither half of the work returns or raises on its own: this is a fault in our code. All that
                        # is held is begun again; when that does not help, the watchdog sees the standstill.
                        log.error("delivery failed", exc_info=self._work.exception())
                        self._failed = True
                        await self.clock.sleep(_AFTER_FAULT_S)
                finally:
                    self._work.cancel()
                    with suppress(asyncio.CancelledError, Exception):
                        await self._work
                # After a release too: the work may have taken some of the next generation before it noticed.
                self._requeue()
        finally:
            self._handover.end()
            await self.sink.close()

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
        ready: asyncio.Queue[_Batch] = asyncio.Queue(maxsize=1)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._collect(ready))
            group.create_task(self._write(ready))

    # -- batches -----------------------------------------------------------------------------------------------------

    async def _collect(self, ready: asyncio.Queue[_Batch]) -> None:
        while True:
            pieces = await self._gather(ready)
            # Preparing keeps the loop busy: first let the write that has just begun reach its socket. Drivers send
            # from tasks of their own, and the server would have nothing to do meanwhile.
            for _ in range(_TURNS_OF_A_WRITE):
                await asyncio.sleep(0)
            await ready.put(self._prepare(pieces))

    async def _gather(self, ready: asyncio.Queue[_Batch]) -> list[_Piece]:
        """The next batch: full, or timed out while the writer has nothing to do.

        `_wake` is set by whatever may change that: a chunk put, a write finished, a drain begun. Three batches exist at
        most: one collected here, one in `ready`, one being written.
        """
        pieces: list[_Piece] = []
        size, first = 0, 0.0
        while True:
            self._wake.clear()
            while self._intake and size < self.options.batch_size:
                chunk = self._intake[0]
                stop = min(len(chunk.held.records), chunk.taken + self.options.batch_size - size)
                pieces.append(_Piece(chunk, chunk.taken, stop))
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
                if self._handover.draining or wait <= 0:
                    if ready.empty() and not self._writing:
                        return pieces
                    wait = None
            with suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._wake.wait()

    def _prepare(self, pieces: list[_Piece]) -> _Batch:
        readings: list[Reading] = []
        records: list[Record] = []
        batch = _Batch(pieces, _Part((), (), Prepared(None, 0, {})), [], [])
        read = wire.read
        for piece in pieces:
            for record in piece.chunk.held.records[piece.start : piece.stop]:
                try:
                    readings.append(read(record.value))
                except Exception as error:  # noqa: BLE001  no record may stop the others, whatever is in it
                    why = error.rejected if isinstance(error, RejectedError) else Rejected("wire", _named(error))
                    self._condemn(batch, record, why, (record.key or b"").decode("utf-8", "replace"))
                else:
                    records.append(record)
        batch.part = self._form(batch, readings, records)
        return batch

    def _form(self, batch: _Batch, readings: Sequence[Reading], records: Sequence[Record]) -> _Part:
        """Prepare readings for the sink; those it has no form for become letters."""
        try:
            prepared = self.sink.prepare(readings)
        except Exception:
            culprits = self._culprits(readings)
            if not culprits:
                raise
            numbers = [index for index in range(len(readings)) if index not in culprits]
            prepared = self.sink.prepare([readings[index] for index in numbers])
            formless = {numbers[index]: why for index, why in prepared.rejected.items()}
            prepared = Prepared(prepared.payload, prepared.rows, {**formless, **culprits})
        if not prepared.rejected:
            return _Part(readings, records, prepared)
        for index, rejected in prepared.rejected.items():
            self._condemn(batch, records[index], rejected, readings[index].device_id)
        kept = [index for index in range(len(readings)) if index not in prepared.rejected]
        readings = [readings[index] for index in kept]
        records = [records[index] for index in kept]
        return _Part(readings, records, Prepared(prepared.payload, prepared.rows, {}))

    def _culprits(self, readings: Sequence[Reading]) -> dict[int, Rejected]:
        """The readings, by index, that a sink fails on alone."""
        found: dict[int, Rejected] = {}
        for index, reading in enumerate(readings):
            try:
                self.sink.prepare([reading])
            except Exception as error:
                log.exception("a sink cannot prepare a reading", extra={"sink": self.sink.name})
                found[index] = Rejected("prepare_failed", f"{type(error).__name__}: {error}")
        return found

    def _condemn(self, batch: _Batch, record: Record, rejected: Rejected, device: str) -> None:
        options = self.options
        batch.letters.append(
            letter(
                record,
                rejected,
                stage=options.stage,
                index=0,
                source=source_of(record),
                version=options.version,
                now_ms=self.clock.wall_ms(),
                max_value_bytes=options.max_letter_bytes,
            )
        )
        batch.device_of_letter.append(device)
        log.warning(
            "reading refused",
            extra={
                "reason": rejected.reason,
                "error": rejected.error,
                "device": device,
                "letter": batch.letters[-1].id,
            },
        )

    # -- writing -----------------------------------------------------------------------------------------------------

    async def _write(self, ready: asyncio.Queue[_Batch]) -> None:
        while True:
            if self.ceiling.tripped:  # also when this work began anew, after a release
                await self._stand_still()
            batch = await self._next(ready)
            self._writing = True
            await self._store(batch)
            await self._bury(batch)
            self._settle(batch)
            self._writing = self._failed = False
            self._wake.set()

    async def _next(self, ready: asyncio.Queue[_Batch]) -> _Batch:
        """The next batch; while there is none and the breaker is open, see whether the destination is back."""
        while self.state is not Breaker.CLOSED:
            with suppress(TimeoutError):
                async with asyncio.timeout(self.options.retry_cap):
                    return await ready.get()
            try:
                await self._in_time(self.sink.probe())
                self._turn(Breaker.CLOSED)
            except Exception as error:  # noqa: BLE001  whatever it is, the sink says what it means
                self._verdict(error)
        return await ready.get()

    async def _store(self, batch: _Batch) -> None:
        """Store a batch whole, or by halves where something in it can never be stored; in order, so the last wins."""
        todo = [batch.part]
        attempt = 0
        if self.state is Breaker.OPEN and batch.part.readings:  # since before a release
            await self._back_off(Retry("the breaker is open"), 1)
        while todo:
            part = todo.pop()
            if not part.readings:
                continue
            outcome = await self._attempt(part)
            match outcome:
                case None:
                    self.ceiling.good(len(part.readings))
                case Retry() | Fatal():
                    attempt += 1
                    halve = isinstance(outcome, Retry) and outcome.smaller and attempt > 1
                    todo += self._smaller(batch, part) if halve else [part]
                    await self._back_off(outcome, attempt)
                    continue
                case Reject(rejected) if len(part.readings) == 1:
                    self._condemn(batch, part.records[0], rejected, part.readings[0].device_id)
                case Reject():
                    todo += self._smaller(batch, part)
                case PartialWriteError(rejected=rejected):
                    todo.append(self._without(batch, part, rejected))
            # It was stored or refused: the destination is there.
            attempt = 0
            self.progress += 1
            self._turn(Breaker.CLOSED)
            if len(batch.letters) >= _LETTERS_AT_ONCE:
                await self._bury(batch)

    def _smaller(self, batch: _Batch, part: _Part) -> list[_Part]:
        """Both halves, the first one last, because that is where the next one is taken from."""
        middle = len(part.readings) // 2
        halves = (slice(middle, None), slice(None, middle)) if middle else (slice(None),)
        return [self._form(batch, part.readings[half], part.records[half]) for half in halves]

    def _without(self, batch: _Batch, part: _Part, rejected: Mapping[int, Rejected]) -> _Part:
        if not rejected or min(rejected) < 0 or max(rejected) >= len(part.readings):
            raise IndexError(f"{self.sink.name} refuses readings that are not in the batch")
        for index, why in rejected.items():
            self._condemn(batch, part.records[index], why, part.readings[index].device_id)
        kept = [index for index in range(len(part.readings)) if index not in rejected]
        return self._form(batch, [part.readings[i] for i in kept], [part.records[i] for i in kept])

    async def _attempt(self, part: _Part) -> Verdict | PartialWriteError | None:
        started = self.clock.monotonic()
        try:
            await self._in_time(self.sink.write(part.prepared.payload))
        except PartialWriteError as error:
            return error
        except Exception as error:  # noqa: BLE001  whatever it is, the sink says what it means
            return self._verdict(error, writing=True)
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

    async def _in_time(self, call: Awaitable[None]) -> None:
        """Wait for the sink, for `write_timeout` at most."""
        try:
            async with asyncio.timeout(self.options.write_timeout):
                await call
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
            log.error("write failed", extra={"sink": self.sink.name, "error": _named(error)})
        return verdict

    async def _bury(self, batch: _Batch) -> None:
        """Send the batch's letters and wait for the broker; only then may its records be acknowledged."""
        if not batch.letters:
            return
        await self.letters.send(batch.letters)
        reasons: dict[str, int] = {}
        for dead, device in zip(batch.letters, batch.device_of_letter, strict=True):
            reasons[dead.reason] = reasons.get(dead.reason, 0) + 1
            if dead.reason != "unknown_device":
                self.ceiling.rejected(device)
        for reason, count in reasons.items():
            self.telemetry.dead(reason, count)
        batch.letters, batch.device_of_letter = [], []

    def _settle(self, batch: _Batch) -> None:
        now_ms = self.clock.wall_ms()
        for piece in batch.pieces:
            chunk = piece.chunk
            count = piece.stop - piece.start
            step = max(1, -(-count // _SAMPLES))
            for index in range(piece.start, piece.stop, step):
                self.telemetry.durable(_age_s(chunk.held.records[index], now_ms), min(step, piece.stop - index))
            chunk.unsettled -= count
            if chunk.unsettled == 0 and self._held.pop(id(chunk), None) is not None:
                chunk.held.ack()

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
        self.telemetry.ceiling(True)
        log.error(
            "the ceiling tripped: most records are refused, so intake is stopped",
            extra={"stage": self.options.stage, "remedy": "see the dead letters; restart the worker to go on"},
        )
        self._resumed.clear()
        await self._resumed.wait()


def _age_s(record: Record, now_ms: int) -> float:
    """How long ago a record was received; 0 where what it says of that is no time: anybody can set a header."""
    try:
        return (now_ms - wire.ingest_ms(record.headers, record.timestamp)) / 1000.0
    except (ValueError, OverflowError):
        return 0.0


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
