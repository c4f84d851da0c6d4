"""The reading: what one device said at one instant, whatever dialect it said it in."""

import math
from datetime import datetime
from typing import Final

from msgspec import Struct

Value = bool | int | float | str | None

#: The largest integer whose every neighbour a double can also hold.
EXACT_INTEGER: Final = 2**53

#: A flag that a reading may carry: a value of it was moved into its range, and `raw` has the original.
CLAMPED: Final = "clamped"


class Reading(Struct, frozen=True, omit_defaults=True, tag_field="v", tag=1, gc=False):
    """One device's values at one instant; also, field by field, the JSON of wire version 1.

    `time` is aware UTC with microseconds. The identity of a stored value is (measurement, device_id, channel,
    metric) plus time; `units`, `tags`, `raw` and `flags` are never part of it. `channel` is the address inside the
    device, `''` where it has none. `raw` holds the original of each value that a policy changed.
    """

    measurement: str
    device_id: str
    time: datetime
    values: dict[str, Value]
    channel: str = ""
    units: dict[str, str] = {}
    tags: dict[str, str] = {}
    raw: dict[str, Value] = {}
    dialect: str = ""
    flags: list[str] = []


class Rejected(Struct, frozen=True):
    """A payload, or one value of it, that no reading can be made of.

    `reason` is one of a small set of words (it labels a metric); `error` is the sentence for a person.
    """

    reason: str
    error: str


class RejectedError(ValueError):
    """Raised inside decoding and encoding where a `Rejected` is the answer."""

    def __init__(self, reason: str, error: str) -> None:
        super().__init__(error)
        self.rejected = Rejected(reason, error)


def flaw(reading: Reading) -> Rejected | None:
    """What makes a reading impossible to store anywhere without changing it, or None.

    Whether an integer fits is the store's to say: it depends on the type set for the metric.
    """
    if not reading.device_id:
        return Rejected("missing_field", "device_id is empty")
    if not reading.measurement:
        return Rejected("missing_field", "measurement is empty")
    if not reading.values:
        return Rejected("missing_field", "no values")
    if reading.time.tzinfo is None:
        return Rejected("bad_timestamp", "time has no zone")
    for metric, value in reading.values.items():
        if not metric:
            return Rejected("missing_field", "a metric has no name")
        if value.__class__ is float and not math.isfinite(value):
            return Rejected("not_finite", f"{metric} is {value}, which is not a number a store can hold")
    return None
