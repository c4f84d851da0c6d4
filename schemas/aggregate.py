"""Aggregates: what a series comes to in a window, as a record that is stored like a reading."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Final

from schemas import wire
from schemas.names import joined
from schemas.reading import Reading, Value

MEASUREMENT: Final = "aggregates"
#: Their percentiles, in this order.
PERCENTILES: Final = ("p50", "p95", "p99")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def moment(at: int) -> datetime:
    """Microseconds since the epoch as a time."""
    return _EPOCH + timedelta(microseconds=at)


def aggregate(  # noqa: PLR0913  its identity and what it says
    measurement: str,
    device_id: str,
    channel: str,
    metric: str,
    window: str,
    start: int,
    revision: int,
    numbers: Mapping[str, float],
    *,
    unit: str = "",
    tags: Mapping[str, str] | None = None,
) -> tuple[bytes, bytes]:
    """The record of a window from `start` (µs since the epoch): key and value.

    `numbers` has `count` and what else is known of mean, min, max, stddev, sum, first, last and percentiles; those that
    are not finite are left out. A record with a higher `revision` replaces the others of its key.
    """
    values: dict[str, Value] = {
        "measurement": measurement,
        "metric": metric,
        "window": window,
        "revision": revision,
        **{name: number for name, number in numbers.items() if isfinite(number)},
    }
    place = joined(measurement, channel, metric, window)
    units = dict.fromkeys(numbers.keys() - {"count"}, unit) if unit else {}
    reading = Reading(MEASUREMENT, device_id, moment(start), values, channel=place, units=units, tags=dict(tags or {}))
    return f"{joined(device_id)}|{place}|{start}".encode(), wire.write(reading)
