"""What is said of batches that were stored."""

from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec

from schemas import wire
from schemas.reading import Reading
from schemas.saved import Flush, Saved, Sum, batch_event, reading_events

AT = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)
AT_MS = 1_760_000_000_123


def saved(**more: Any) -> Saved:
    """A batch."""
    given = {name: more.pop(name) for name in ("store", "batch_id", "at_ms") if name in more}
    where: dict[str, Any] = {"store": "timescale", "batch_id": "b-1", "at_ms": AT_MS, **given}
    fields: dict[str, Any] = {
        "readings": 3,
        "rows": 9,
        "size_bytes": 400,
        "dead": 1,
        "failures": 0,
        "error": "",
        "first": AT,
        "last": AT + timedelta(seconds=5),
        "started_ms": AT_MS - 250,
        "seconds": 0.25,
    }
    return Saved(flush=Flush(**{**fields, **more}), **where)


def test_a_batch_has_one_event_with_counts_and_period() -> None:
    event = msgspec.json.decode(batch_event(saved()))
    assert event == {
        "version": 1,
        "event_id": event["event_id"],
        "store": "timescale",
        "batch_id": "b-1",
        "record_count": 3,
        "row_count": 9,
        "size_bytes": 400,
        "error_count": 1,
        "period_start": "2025-10-05T12:34:56.000000Z",
        "period_end": "2025-10-05T12:35:01.000000Z",
        "ingested_at": "2025-10-09T08:53:20.123000Z",
        "duration_ms": 250.0,
    }
    assert batch_event(saved()) == batch_event(saved())
    assert event["event_id"] != msgspec.json.decode(batch_event(saved(batch_id="b-2")))["event_id"]


def test_a_reading_has_an_event_whose_id_is_the_same_again() -> None:
    """The documents' fields, a 0.0 among them; nothing for a metric that it has not."""
    reading = Reading(
        "fire", "sensor_001", AT, {"temperature": 0.0, "odd": 1.0}, tags={"facility_id": "f1", "location": "hall"}
    )
    ((device, first),) = reading_events(saved(), [reading])
    ((_, again),) = reading_events(saved(batch_id="other", at_ms=AT_MS + 1), [reading])
    ((_, elsewhere),) = reading_events(saved(store="iotdb"), [reading])
    event = msgspec.json.decode(first)
    assert device == "sensor_001"
    assert event == {
        "version": 1,
        "event_id": msgspec.json.decode(again)["event_id"],
        "store": "timescale",
        "batch_id": "b-1",
        "equipment_id": "sensor_001",
        "facility_id": "f1",
        "equipment_location": "hall",
        "measured_at": "2025-10-05T12:34:56.000000Z",
        "ingested_at": "2025-10-09T08:53:20.123000Z",
        "temperature": 0.0,
    }
    assert msgspec.json.decode(elsewhere)["event_id"] != event["event_id"]


def test_a_sum_adds_up_and_is_a_reading_that_later_ones_replace() -> None:
    """The same identity and time, whatever was added; the widest period; the last error."""
    total = Sum("timescale", "ts_user@db:5432/timeseries", "host-1", AT_MS)
    total.add(saved(error="away", failures=2).flush)
    before = total.reading
    total.add(saved(first=AT - timedelta(days=1), last=AT, readings=7, rows=7, dead=0).flush)
    reading = total.reading
    assert (before.device_id, before.channel, before.time) == (reading.device_id, reading.channel, reading.time)
    assert reading.measurement == "storage_metadata"
    assert reading.values["record_count"] == reading.values["success_count"] == 10
    assert reading.values["row_count"] == 16
    assert reading.values["error_count"] == 1
    assert reading.values["retry_count"] == 2
    assert reading.values["flush_count"] == 2
    assert reading.values["period_start"] == "2025-10-04T12:34:56.000000Z"
    assert reading.values["period_end"] == "2025-10-05T12:35:01.000000Z"
    assert reading.values["duration_ms"] == 500.0
    assert reading.values["error_message"] == "away"
    assert wire.read(wire.write(reading)) == reading
