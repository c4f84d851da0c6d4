"""Noisy devices: what one device may send, measured on the receive times of its own records.

Two limits a device. Its rate is a token bucket: `burst` readings at once, refilled with `rate` a second. A device that
finds it empty is over its budget with all it sends, until its bucket has been full again for `release_ms`; what it
sends meanwhile takes tokens too, so it is what it really sends that decides. Full means: refilled whole, and since then
never less than half, or a device that sends a few readings together would never be released. Its series (measurement,
channel and metric) are counted: a reading with a series beyond the limit is over, one of known series is not; a series
that was not seen for a day, two at most, is forgotten and makes room.

All of it is decided by the records alone, by no clock; what a worker remembers begins anew with the worker. A device
is judged mildly where its records come by two ways of which one lags: each step ahead fills its bucket.
"""

from collections import OrderedDict
from datetime import UTC, datetime
from typing import Final, Literal

from msgspec import Struct

from schemas.quality import quality
from schemas.reading import Reading

#: Why a reading is over its device's budget.
Excess = Literal["rate", "series"]

#: The header of a record of the quarantine that says why it is there.
HEADER_QUARANTINE: Final = "iotflow-quarantine"
#: The older of two partitions' records may be read later. What is older still is of another time: time begins there.
_STEP_MS: Final = 60_000
_KEPT_MS: Final = 24 * 3_600_000
_REPORT_MS: Final = 60_000
#: A device counts as noisy for so long after a reading over its budget was decoded.
_NOISY_MS: Final = 60_000
#: Series remembered of all devices together, at about 80 bytes each; least recently seen devices are forgotten first.
_SERIES_IN_ALL: Final = 500_000
_LAST_MS: Final = 253_402_300_799_999  # of the year 9999


class Limits(Struct, frozen=True):
    """What one device may send, and of how many devices it is remembered."""

    #: Readings a second, above 0.
    rate: float = 100.0
    burst: int = 1000
    series: int = 2000
    devices: int = 100_000
    #: How long a device must have been within its rate again, in milliseconds.
    release_ms: int = 60_000


class Report(Struct, frozen=True):
    """A device is over its budget; `readings` were since its last report, this one included."""

    device_id: str
    excess: Excess
    at_ms: int
    readings: int


class _Noise:
    """What is remembered of a device only once it was over its budget."""

    __slots__ = ("counted", "full_since", "told_ms", "withheld")

    def __init__(self) -> None:
        #: Whether all it sends is over, because of its rate.
        self.withheld = False
        self.full_since: float | None = None
        self.told_ms: int | None = None
        self.counted = 0


class _Device:
    """What is remembered of a device. `debt` is how long its bucket takes to be full; below 0: since when it is."""

    __slots__ = ("clock", "count", "debt", "fresh", "known", "noise", "old", "shapes", "turns")

    def __init__(self, at_ms: int) -> None:
        self.clock = at_ms
        self.debt = 0.0
        self.noise: _Noise | None = None
        #: Hashes of series, and of the sets of series that came together: those of this day, and of the one before.
        self.known: set[int] = set()
        self.old: set[int] | None = None
        #: When that day ends.
        self.turns = at_ms + _KEPT_MS
        #: Series of both days, series of this day, and sets of this day.
        self.count = self.fresh = self.shapes = 0


class Budget:
    """Says of readings in the order in which they are decoded whether they are over their devices' budgets.

    `withholds` is for whoever asks: whether such readings go to the quarantine, or are only counted and reported.
    """

    def __init__(self, limits: Limits | None = None, *, withholds: bool = False) -> None:
        self.limits = limits or Limits()
        self.withholds = withholds
        self._token_ms = 1000.0 / self.limits.rate
        self._empty_ms = self.limits.burst * self._token_ms
        #: The least recently seen first.
        self._devices: OrderedDict[str, _Device] = OrderedDict()
        self._seen = self._devices.move_to_end
        self._hashes = 0
        #: Devices that were over their budgets since `noisy` was last asked, and when it was told of others.
        self._loud: set[str] = set()
        self._noisy: OrderedDict[str, int] = OrderedDict()
        self._reports: list[Report] = []

    def over(self, reading: Reading, at_ms: int) -> Excess | Literal[""]:
        """Why a reading is over its device's budget, `''` when it is not; `at_ms` is when its record was received."""
        device_id = reading.device_id
        device = self._devices.get(device_id)
        if device is None:
            device = self._meet(device_id, at_ms)
        else:
            self._seen(device_id)
        debt = device.debt
        if (elapsed := at_ms - device.clock) > 0:
            device.clock = at_ms
            debt -= elapsed
            if at_ms >= device.turns:
                self._turn(device)
        elif elapsed < -_STEP_MS:
            self._begin(device, at_ms)
        if device.noise is not None and device.noise.withheld and self._still(device, device.noise, debt):
            device.debt = min(self._empty_ms, max(0.0, debt) + self._token_ms)
            return self._exceeded(device_id, device, "rate")
        debt = debt + self._token_ms if debt > 0.0 else self._token_ms
        if debt > self._empty_ms:
            device.debt = self._empty_ms
            return self._exceeded(device_id, device, "rate")
        device.debt = debt
        shape = hash((reading.measurement, reading.channel, *reading.values))
        if shape not in device.known and not self._admits(device, reading, shape):
            return self._exceeded(device_id, device, "series")
        return ""

    def reports(self) -> list[Report]:
        """What is to be reported since this was last asked: each noisy device once a minute of receive time."""
        found, self._reports = self._reports, []
        return found

    def event(self, report: Report) -> tuple[bytes, Reading]:
        """A report as an event of data quality, and its record's key."""
        limits = self.limits
        what = (
            f"sends more than {limits.rate:,g} readings/s, and {limits.burst:,} at once"
            if report.excess == "rate"
            else f"has more than {limits.series:,} series"
        )
        fate = "held back in the quarantine" if self.withholds else "not held back"
        message = f"{what}: {report.readings:,} over its budget since its last report, {fate}"
        at = datetime.fromtimestamp(min(max(0, report.at_ms), _LAST_MS) / 1000, UTC)
        return quality("over_budget", report.device_id, at, message, count=report.readings)

    def noisy(self, now_ms: int) -> int:
        """How many devices were over their budgets in the minute before now, as far as this was asked meanwhile."""
        noisy = self._noisy
        for device_id in self._loud:
            noisy[device_id] = now_ms
            noisy.move_to_end(device_id)
        self._loud.clear()
        while noisy and now_ms - next(iter(noisy.values())) > _NOISY_MS:
            noisy.popitem(last=False)
        return len(noisy)

    def _meet(self, device_id: str, at_ms: int) -> _Device:
        if len(self._devices) >= self.limits.devices:
            self._forget()
        device = self._devices[device_id] = _Device(at_ms)
        return device

    def _forget(self) -> None:
        device_id, device = self._devices.popitem(last=False)
        self._hashes -= len(device.known) + len(device.old or ())
        self._noisy.pop(device_id, None)
        self._loud.discard(device_id)

    @staticmethod
    def _begin(device: _Device, at_ms: int) -> None:
        """Go on in another time, further back, with the bucket as it is."""
        device.clock, device.turns = at_ms, min(device.turns, at_ms + _KEPT_MS)
        if device.noise is not None:
            device.noise.full_since = None

    def _turn(self, device: _Device) -> None:
        """Forget the series of the day before; of both, when the device was silent for a day."""
        self._hashes -= len(device.old or ())
        if device.clock >= device.turns + _KEPT_MS:
            self._hashes -= len(device.known)
            device.old, device.count = None, 0
        else:
            device.old, device.count = device.known, device.fresh
        device.known, device.fresh, device.shapes = set(), 0, 0
        device.turns = device.clock + _KEPT_MS

    def _still(self, device: _Device, noise: _Noise, debt: float) -> bool:
        """Whether a device that was over its rate is so still."""
        if debt <= 0.0:
            if noise.full_since is None:
                noise.full_since = device.clock + debt
        elif debt > self._empty_ms / 2:
            noise.full_since = None
        if noise.full_since is None or device.clock - noise.full_since < self.limits.release_ms:
            return True
        noise.withheld, noise.full_since = False, None
        return False

    def _admits(self, device: _Device, reading: Reading, shape: int) -> bool:
        """Whether there is room for a reading's series; remembers them then."""
        measurement, channel, known, old = reading.measurement, reading.channel, device.known, device.old or ()
        before = len(known)
        # With one metric that is the shape itself: no number for it is kept twice.
        new = {one for metric in reading.values if (one := hash((measurement, channel, metric))) not in known}
        more = sum(one not in old for one in new)
        if more and device.count + more > self.limits.series:
            return False
        known |= new
        device.count += more
        device.fresh += len(new)
        if device.shapes < self.limits.series:  # metrics may come together in more ways than there are metrics
            known.add(shape)
            device.shapes += 1
        self._hashes += len(known) - before
        while self._hashes > _SERIES_IN_ALL and len(self._devices) > 1:
            self._forget()
        return True

    def _exceeded(self, device_id: str, device: _Device, excess: Excess) -> Excess:
        noise = device.noise
        if noise is None:
            noise = device.noise = _Noise()
        if excess == "rate":
            noise.withheld = True
        noise.counted += 1
        at_ms = device.clock
        if noise.told_ms is None or not noise.told_ms - _STEP_MS <= at_ms < noise.told_ms + _REPORT_MS:
            self._reports.append(Report(device_id, excess, at_ms, noise.counted))
            noise.told_ms, noise.counted = at_ms, 0
        self._loud.add(device_id)
        return excess
