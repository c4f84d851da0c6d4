"""Batches: pieces of chunks in the form that a destination takes, and letters for what has none.

No I/O: delivery forms a batch while it writes another.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from msgspec import Struct

from schemas import wire
from schemas.deadletter import HEADER_TARGET, Letter, letter, source_of, target_of
from schemas.reading import RESERVED, Reading, Rejected, RejectedError
from schemas.record import Record
from sinks.base import PartialWriteError, Prepared, Reject, Sink
from sinks.contracts import Clock, Options, Telemetry
from sinks.handover import Held

log = logging.getLogger(__name__)

#: Records that are read without a pause, about a millisecond of them.
_AT_ONCE = 250


class Chunk:
    """A held chunk with how far it was taken into batches, and how many of its records are not settled yet."""

    __slots__ = ("held", "taken", "unsettled")

    def __init__(self, held: Held) -> None:
        self.held = held
        self.taken = 0
        self.unsettled = len(held.records)


class Piece(Struct, frozen=True):
    """Consecutive records of a chunk."""

    chunk: Chunk
    start: int
    stop: int


class Part(Struct, frozen=True):
    """Readings in the form the destination takes, each with the record it came from."""

    readings: Sequence[Reading]
    records: Sequence[Record]
    prepared: Prepared[Any]


class Batch(Struct):
    """What is stored together, and acknowledged when all of it is stored or buried; times in seconds."""

    pieces: list[Piece]
    part: Part
    letters: list[Letter]
    device_of_letter: list[str]
    #: How many of its readings are of reserved measurements.
    own: int = 0
    #: What came of it: the parts that are stored, how many letters there were, and what failed on the way.
    stored: list[Part] = []
    dead: int = 0
    failures: int = 0
    error: str = ""
    started_ms: int = 0
    started: float = 0.0
    finished: float = 0.0


class Former:
    """Makes batches of pieces of chunks, and parts of batches; what has no form becomes a letter of its batch."""

    def __init__(self, sink: Sink[Any], options: Options, telemetry: Telemetry, clock: Clock) -> None:
        self._sink = sink
        self._options = options
        self._telemetry = telemetry
        self._clock = clock

    async def batch(self, pieces: list[Piece]) -> Batch:
        """A batch of what the pieces hold, in the form that the sink takes.

        Others on the event loop have their turns meanwhile: a write takes several exchanges with its server, which
        would have nothing to do between them.
        """
        readings: list[Reading] = []
        records: list[Record] = []
        batch = Batch(pieces, Part((), (), Prepared(None, 0, {})), [], [])
        read = wire.read
        stage, open_topic = self._options.stage, self._options.open_topic
        skipped = own = 0
        for number, record in enumerate(chain.from_iterable(map(_records, pieces))):
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)
            headers = record.headers
            if headers and headers[0][0] == HEADER_TARGET and target_of(headers) != stage:
                skipped += 1
                continue
            value = record.value
            if value is None and record.topic != open_topic:
                skipped += 1  # a tombstone: compaction lets go of a key, and what is stored of it stays
                continue
            try:
                reading = read(value)
                if reading.measurement in RESERVED:
                    if record.topic == open_topic:
                        raise RejectedError("reserved", f"measurement {reading.measurement} is iotflow's own")
                    own += 1
                readings.append(reading)
            except Exception as error:  # noqa: BLE001  no record may stop the others, whatever is in it
                why = error.rejected if isinstance(error, RejectedError) else Rejected("wire", named(error))
                self._condemn(batch, record, why, (record.key or b"").decode("utf-8", "replace"))
            else:
                records.append(record)
        if skipped:
            self._telemetry.skipped(skipped)
        batch.own = own
        batch.part = self.form(batch, readings, records)
        return batch

    def form(self, batch: Batch, readings: Sequence[Reading], records: Sequence[Record]) -> Part:
        """Prepare readings for the sink; those it has no form for become letters."""
        try:
            prepared = self._sink.prepare(readings)
        except Exception:
            culprits = self._culprits(readings)
            if not culprits:
                raise
            numbers = [index for index in range(len(readings)) if index not in culprits]
            prepared = self._sink.prepare([readings[index] for index in numbers])
            formless = {numbers[index]: why for index, why in prepared.rejected.items()}
            prepared = Prepared(prepared.payload, prepared.rows, {**formless, **culprits})
        if not prepared.rejected:
            return Part(readings, records, prepared)
        for index, rejected in prepared.rejected.items():
            self._condemn(batch, records[index], rejected, readings[index].device_id)
        kept = [index for index in range(len(readings)) if index not in prepared.rejected]
        readings = [readings[index] for index in kept]
        records = [records[index] for index in kept]
        return Part(readings, records, Prepared(prepared.payload, prepared.rows, {}))

    def _culprits(self, readings: Sequence[Reading]) -> dict[int, Rejected]:
        """The readings, by index, that a sink fails on alone."""
        found: dict[int, Rejected] = {}
        for index, reading in enumerate(readings):
            try:
                self._sink.prepare([reading])
            except Exception as error:
                log.exception("a sink cannot prepare a reading", extra={"sink": self._sink.name})
                found[index] = Rejected("prepare_failed", f"{type(error).__name__}: {error}")
        return found

    def _condemn(self, batch: Batch, record: Record, rejected: Rejected, device: str) -> None:
        options = self._options
        batch.letters.append(
            letter(
                record,
                rejected,
                stage=options.stage,
                index=0,
                source=source_of(record),
                version=options.version,
                now_ms=self._clock.wall_ms(),
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

    def apart(self, batch: Batch, part: Part, refusal: Reject | PartialWriteError) -> list[Part]:
        """What is left to store of a part that was refused, the first of it last."""
        if isinstance(refusal, PartialWriteError):
            return [self._without(batch, part, refusal.rejected)]
        if len(part.readings) > 1:
            return self.smaller(batch, part)
        self._condemn(batch, part.records[0], refusal.rejected, part.readings[0].device_id)
        return []

    def smaller(self, batch: Batch, part: Part) -> list[Part]:
        """Both halves, the first one last, because that is where the next one is taken from."""
        middle = len(part.readings) // 2
        halves = (slice(middle, None), slice(None, middle)) if middle else (slice(None),)
        return [self.form(batch, part.readings[half], part.records[half]) for half in halves]

    def _without(self, batch: Batch, part: Part, rejected: Mapping[int, Rejected]) -> Part:
        if not rejected or min(rejected) < 0 or max(rejected) >= len(part.readings):
            raise IndexError(f"{self._sink.name} refuses readings that are not in the batch")
        for index, why in rejected.items():
            self._condemn(batch, part.records[index], why, part.readings[index].device_id)
        kept = [index for index in range(len(part.readings)) if index not in rejected]
        return self.form(batch, [part.readings[i] for i in kept], [part.records[i] for i in kept])


def _records(piece: Piece) -> Sequence[Record]:
    return piece.chunk.held.records[piece.start : piece.stop]


def named(error: BaseException) -> str:
    """An error for a log or a letter."""
    return f"{type(error).__name__}: {error}"
