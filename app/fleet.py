"""What a fleet of simulated devices says: good readings, bad payloads, and good readings that come in a bad order."""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Final, Literal, NamedTuple

import msgspec
from msgspec import Struct

from schemas import dialects
from schemas.reading import Reading, Value

_MICROSECOND: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
#: A reading that comes out of order comes after one to this many later ones of its device.
_OVERTAKEN: Final = 3
#: A late reading is at least this late, or half of what it may be at most.
_LATE_FROM_S: Final = 60.0
#: Steps of this part of a range spread evenly over it.
_GOLDEN: Final = 0.6180339887498949

Order = Literal["", "out_of_order", "late"]


class Sample(NamedTuple):
    """One record to send; `expected` is the reading it must become, or the reason why it must be rejected.

    `order` says why its time is not after those of its device before it; the reading is good all the same. `origin` is
    the original topic that its record says.
    """

    device_id: str
    payload: bytes
    expected: Reading | str
    order: Order = ""
    origin: str = ""


class Disorder(Struct, frozen=True):
    """The shares of all samples that come after later ones of their device, and that are up to `late_by_s` late."""

    out_of_order: float = 0.0
    late: float = 0.0
    late_by_s: float = 3600.0


class _Held(Struct):
    """A sample that waits for later ones of its device to go first."""

    sample: Sample
    overtakers: int


class Fleet:
    """Devices that speak one dialect, taking turns; the same seed and times give the same samples.

    `bad_share` of all samples are ones that `decode` must reject as a whole; `odd` is, by metric, the share of unusual
    values that are still right. No two samples of a device have the same time, whatever the clock does. Raises
    `ValueError` for a dialect that the simulator cannot speak, and for shares that cannot all be.
    """

    def __init__(  # noqa: PLR0913  each is an option of the command
        self,
        devices: int,
        dialect: str,
        seed: int,
        *,
        bad_share: float = 0.01,
        odd: Mapping[str, float] | None = None,
        prefix: str = "sensor",
        disorder: Disorder | None = None,
    ) -> None:
        if dialect not in speakable():
            raise ValueError(f"the simulator cannot speak {dialect!r}, only {', '.join(speakable())}")
        self.dialect = dialect
        self.devices = devices
        self.prefix = prefix
        self._module: ModuleType = dialects.load()[dialect]
        self._walks: dict[str, dialects.Walk] = dict(self._module.WALKS)
        self._spoiled: Mapping[str, Callable[[bytes], bytes]] = self._module.SPOILED
        self._kinds = tuple(self._spoiled)
        self._origin: Callable[[Reading], str] = getattr(self._module, "origin", lambda _: "")
        self._bad_share = bad_share
        self._odd = {metric: share for metric, share in (odd or {}).items() if metric in self._walks}
        self._random = random.Random(seed)  # noqa: S311  a repeatable load, no secret
        template: Callable[[str, int], Reading] = getattr(self._module, "template", self._renamed)
        self._templates = [template(prefix, number) for number in range(1, devices + 1)]
        self._state = [
            {metric: self._random.uniform(walk.low, walk.high) for metric, walk in self._walks.items()}
            for _ in self._templates
        ]
        self._last = [_NEVER] * devices
        self._turn = 0
        disorder = disorder or Disorder()
        self._late_share, self._hold_share = _chances(bad_share, disorder)
        self._lateness = _Lateness(devices, disorder.late_by_s) if disorder.late else None
        self._held: dict[int, _Held] = {}

    def sample(self, now: datetime) -> Sample:
        """What the next device says at an instant; but for disorder, a device's times strictly increase."""
        while True:
            turn = self._turn
            self._turn = (turn + 1) % self.devices
            if not self._hold_share:
                return self._say(turn, now)
            held = self._held.get(turn)
            if held is not None and not held.overtakers:
                return self._held.pop(turn).sample
            sample = self._say(turn, now)
            if sample.order or isinstance(sample.expected, str):
                return sample
            if held is not None:
                held.overtakers -= 1
            elif self._random.random() < self._hold_share:
                late = sample._replace(order="out_of_order")
                self._held[turn] = _Held(late, self._random.randint(1, _OVERTAKEN))
                continue
            return sample

    def _say(self, turn: int, now: datetime) -> Sample:
        draw = self._random.random
        order: Order = ""
        at = self._last[turn] = self._next(turn, now)
        template = self._templates[turn]
        device_id = template.device_id
        values = self._step(self._state[turn])
        bad = draw() < self._bad_share
        if self._lateness is not None and not bad and draw() < self._late_share:
            order, at = "late", self._lateness.before(turn, at)
        reading = msgspec.structs.replace(template, time=at, values=values)
        payload: bytes = self._module.encode(reading)
        origin = self._origin(reading)
        if not bad:
            return Sample(device_id, payload, reading, order, origin)
        kind = self._random.choice(self._kinds)
        return Sample(device_id, self._spoiled[kind](payload), kind, origin=origin)

    def _renamed(self, prefix: str, number: int) -> Reading:
        first: Reading = self._module.EXAMPLES[0].gives[0]
        return msgspec.structs.replace(first, device_id=f"{prefix}-{number:03d}")

    def _next(self, turn: int, now: datetime) -> datetime:
        if self._lateness is None:
            return max(now, self._last[turn] + _MICROSECOND)
        # Late readings have the odd microseconds for themselves.
        return max(now - timedelta(microseconds=now.microsecond % 2), self._last[turn] + 2 * _MICROSECOND)

    def _step(self, state: dict[str, float]) -> dict[str, Value]:
        draw = self._random.random
        values: dict[str, Value] = {}
        for metric, walk in self._walks.items():
            value = state[metric] + (2.0 * draw() - 1.0) * walk.step
            state[metric] = value = min(max(value, walk.low), walk.high)
            if metric in self._odd and draw() < self._odd[metric]:
                low, high = walk.odd
                value = low + (high - low) * draw()
            values[metric] = round(value, walk.digits)
        return values


class _Lateness:
    """Times that lie behind a device's own and are all different, without a memory of those that were.

    What may be late is a window that ends a minute ago and moves with the device's time, which is always even. Each
    late reading gets the one odd microsecond of the window that has the next remainder, modulo the window's length, of
    a sequence that has all remainders before it repeats: by then the window has moved on by more than its length.
    """

    def __init__(self, devices: int, late_by_s: float) -> None:
        least = min(_LATE_FROM_S, late_by_s / 2)
        self._least = timedelta(microseconds=int(least * 500_000) * 2)
        #: How many odd microseconds a window has.
        self._room = int((late_by_s - least) * 500_000)
        self._stride = int(self._room * _GOLDEN)
        while math.gcd(self._stride, self._room) != 1:
            self._stride += 1
        self._slots: list[int | None] = [None] * devices

    def before(self, device: int, at: datetime) -> datetime:
        """A time for what a device says late at `at`, its time otherwise."""
        newest = (at - self._least - _EPOCH) // _MICROSECOND // 2 - 1
        slot = self._slots[device]
        # Begun at a time of its own, so that the runs of one seed do not fall on each other.
        slot = self._slots[device] = newest if slot is None else newest - (newest - slot - self._stride) % self._room
        return _EPOCH + (2 * slot + 1) * _MICROSECOND


def _chances(bad_share: float, disorder: Disorder) -> tuple[float, float]:
    """How likely a sample that is not bad is late, and how likely one that is neither is held back.

    While a device's sample is held back no other one is: what a share lacks by that is made up for.
    """
    good = 1.0 - bad_share
    prompt = good - disorder.late
    waiting = (1 + _OVERTAKEN) / 2 * disorder.out_of_order
    if (disorder.late and prompt < 0) or (disorder.out_of_order and prompt < disorder.out_of_order + waiting):
        raise ValueError(
            f"{bad_share:.0%} bad, {disorder.late:.0%} late and {disorder.out_of_order:.0%} out of order are too much: "
            f"each reading out of order needs {(1 + _OVERTAKEN) // 2} in order"
        )
    late = disorder.late / good if disorder.late else 0.0
    return late, disorder.out_of_order / (prompt - waiting) if disorder.out_of_order else 0.0


def speakable() -> Sequence[str]:
    """The dialects that the simulator can speak."""
    return [name for name, module in dialects.load().items() if hasattr(module, "encode")]
