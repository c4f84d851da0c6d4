"""Data quality: what is wrong with a device's data, as an event that is stored like a reading."""

from datetime import datetime
from typing import Final, Literal

from schemas import wire
from schemas.names import joined
from schemas.reading import Reading

MEASUREMENT: Final = "quality"
#: `fast_clock`: its time is ahead of ours by more than is let pass. `over_budget`: it sends more than it may.
#: `missing`: more than three of its sensors have no value. `nulls`: values that are null. `crowded`: more metrics than
#: are kept in mind. `silent`, `gap`, `stuck`: what the rules of these kinds find.
Kind = Literal["fast_clock", "over_budget", "missing", "nulls", "crowded", "silent", "gap", "stuck"]


def quality(  # noqa: PLR0913  its fields
    kind: Kind,
    device_id: str,
    at: datetime,
    message: str,
    *,
    measurement: str = "",
    channel: str = "",
    metric: str = "",
    count: int = 1,
    facility: str = "",
) -> tuple[bytes, Reading]:
    """An event, and the key of its record: the device. `message` is a sentence, `count` how often it was so."""
    values: dict[str, str | int] = {"kind": kind, "message": message, "count": count}
    values |= {
        name: text
        for name, text in (("measurement", measurement), ("metric", metric), ("facility_id", facility))
        if text
    }
    place = joined(kind, measurement, channel, metric)
    tags = {"facility_id": facility} if facility else {}
    return device_id.encode(), Reading(MEASUREMENT, device_id, at, {**values}, channel=place, tags=tags)


def written(event: tuple[bytes, Reading]) -> tuple[bytes, bytes]:
    """An event's record: key and value."""
    key, reading = event
    return key, wire.write(reading)
