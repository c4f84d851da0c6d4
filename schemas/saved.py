"""What is said of batches that were stored: an event for each, and a sum of them for an interval.

Pure. The events are `datalake.sensorDataSaved`; the sums are readings of the measurement `storage_metadata`, so that
they are stored like any other.
"""

import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import Struct

from schemas.reading import Reading

#: The measurement of the sums.
STORAGE_METADATA: Final = "storage_metadata"
_NAMESPACE: Final = uuid.UUID("4f0f6f0e-6f0c-5f55-9d1b-0a4f5d3c2b1a")
#: The metrics that an event of a reading carries, as the documents define it.
_METRICS: Final = ("temperature", "humidity", "smoke_density", "co_level", "gas_level")
_ERROR_CHARS: Final = 500
_encode: Final = msgspec.json.Encoder().encode


class Flush(Struct, frozen=True):
    """A batch that is stored, in numbers; `seconds` is from the first attempt to the last one's end."""

    readings: int
    rows: int
    #: Of the records' values, as they came from Kafka.
    size_bytes: int
    #: Readings of it that became dead letters, and attempts that failed, with the last one's words.
    dead: int
    failures: int
    error: str
    #: Of the readings' own times.
    first: datetime
    last: datetime
    started_ms: int
    seconds: float


class Saved(Struct, frozen=True):
    """A flush as it is announced: where, under which name, and when."""

    store: str
    batch_id: str
    flush: Flush
    at_ms: int


def batch_event(saved: Saved) -> bytes:
    """The event of a batch: what it held, and when it was of."""
    flush = saved.flush
    return _encode(
        {
            "version": 1,
            "event_id": str(uuid.uuid5(_NAMESPACE, saved.batch_id)),
            "store": saved.store,
            "batch_id": saved.batch_id,
            "record_count": flush.readings,
            "row_count": flush.rows,
            "size_bytes": flush.size_bytes,
            "error_count": flush.dead,
            "period_start": _text(flush.first),
            "period_end": _text(flush.last),
            "ingested_at": _text(_instant(saved.at_ms)),
            "duration_ms": round(flush.seconds * 1000, 3),
        }
    )


def reading_events(saved: Saved, readings: Sequence[Reading]) -> Iterable[tuple[str, bytes]]:
    """The event of each reading, behind its device; its `event_id` is the same whenever it is stored there again."""
    at = _text(_instant(saved.at_ms))
    for reading in readings:
        place = (saved.store, reading.measurement, reading.device_id, reading.channel, reading.time.isoformat())
        identity = "\0".join(place)
        event: dict[str, Any] = {
            "version": 1,
            "event_id": str(uuid.uuid5(_NAMESPACE, identity)),
            "store": saved.store,
            "batch_id": saved.batch_id,
            "equipment_id": reading.device_id,
            "facility_id": reading.tags.get("facility_id"),
            "equipment_location": reading.tags.get("location"),
            "measured_at": _text(reading.time),
            "ingested_at": at,
        }
        event |= {metric: reading.values[metric] for metric in _METRICS if metric in reading.values}
        yield reading.device_id, _encode(event)


class Sum:
    """What one worker stored in one interval; `reading` is its present state, which later ones replace."""

    def __init__(self, store: str, place: str, worker: str, start_ms: int) -> None:
        self.store = store
        self.place = place
        self.worker = worker
        self.start_ms = start_ms
        self.flushes = self.readings = self.rows = self.size_bytes = self.dead = self.failures = 0
        self.seconds = 0.0
        self.error = ""
        self.first: datetime | None = None
        self.last: datetime | None = None

    def add(self, flush: Flush) -> None:
        """Count a batch."""
        self.flushes += 1
        self.readings += flush.readings
        self.rows += flush.rows
        self.size_bytes += flush.size_bytes
        self.dead += flush.dead
        self.failures += flush.failures
        self.seconds += flush.seconds
        self.error = flush.error or self.error
        self.first = flush.first if self.first is None else min(self.first, flush.first)
        self.last = flush.last if self.last is None else max(self.last, flush.last)

    @property
    def reading(self) -> Reading:
        """The sum as it is stored: `error_count` are dead letters, `success_count` what was stored."""
        return Reading(
            STORAGE_METADATA,
            self.store,
            _instant(self.start_ms),
            {
                "batch_id": f"{self.store}-{self.worker}-{self.start_ms}",
                "storage_type": self.store,
                "storage_path": self.place,
                "flush_type": "interval",
                "period_start": _text(self.first) if self.first else None,
                "period_end": _text(self.last) if self.last else None,
                "record_count": self.readings,
                "row_count": self.rows,
                "size_bytes": self.size_bytes,
                "flush_count": self.flushes,
                "success_count": self.readings,
                "error_count": self.dead,
                "retry_count": self.failures,
                "duration_ms": round(self.seconds * 1000, 3),
                "error_message": self.error[:_ERROR_CHARS] or None,
            },
            channel=self.worker,
            dialect=STORAGE_METADATA,
        )


def _instant(ms: int) -> datetime:
    return datetime.fromtimestamp(ms / 1000, UTC)


def _text(time: datetime) -> str:
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")
