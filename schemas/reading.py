"""The reading: what one device said at one instant, whatever dialect it said it in."""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Final, Literal

from msgspec import Struct

from schemas.reasons import Reason

Value = bool | int | float | str | None

#: Measurements of iotflow's own, which are stored as readings are and come over topics of their own.
RESERVED: Final = frozenset({"aggregates", "alarms", "quality", "storage_metadata"})
#: The largest integer whose every neighbour a double can also hold.
EXACT_INTEGER: Final = 2**53

Flag = Literal["clamped", "future", "old", "out_of_range", "receive_time", "unparsable"]
CLAMPED: Final = "clamped"
OUT_OF_RANGE: Final = "out_of_range"
RECEIVE_TIME: Final = "receive_time"
UNPARSABLE: Final = "unparsable"

#: What each flag of a reading says about it.
FLAGS: Final[Mapping[Flag, str]] = {
    "clamped": "a value was moved into its range; `raw` has the original",
    "future": "its time lies further ahead of the record's than expected",
    "old": "its time lies further behind the record's than expected",
    "out_of_range": "a value lies outside its range and was kept as it is",
    "receive_time": "its time is when it was received: the device's own was missing, or not to be believed",
    "unparsable": "a value's text could not be read: it is null, and `raw` has the text",
}


class Reading(Struct, frozen=True, omit_defaults=True, tag_field="v", tag=1, gc=False):
    """One device's values at one instant; also, field by field, the JSON of wire version 1.

    `time` is aware UTC with microseconds. The identity of a stored value is (measurement, device_id, channel,
    metric) plus time; `units`, `tags`, `raw` and `flags` are never part of it. `channel` is the address inside the
    device, `''` where it has none. `raw` holds, in the unit that `units` says, the original of each value that was
    moved into its range, and the text of each that could not be read; whoever looks for anomalies looks there first.
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

    `reason` labels a metric; `error` is the sentence for a person: the field, its value shortened, and the rule.
    """

    reason: Reason
    error: str


class RejectedError(ValueError):
    """Raised inside decoding and encoding where a `Rejected` is the answer."""

    def __init__(self, reason: Reason, error: str) -> None:
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
    if reading.measurement in RESERVED:
        return Rejected("reserved", f"measurement {reading.measurement} is iotflow's own: give it another name")
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
