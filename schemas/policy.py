"""Policies: what is believed of a dialect's readings, and what becomes of the rest.

A dialect reads a payload's form; what its values mean is decided here, the same way for every dialect: units first,
then bounds, then the time, then the device's name. A dialect's file has its defaults as `POLICY`; the configuration
changes them for a dialect or for one topic.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from schemas import units
from schemas.config import Model
from schemas.payload import NAME_CHARS, quoted
from schemas.reading import CLAMPED, OUT_OF_RANGE, RECEIVE_TIME, Flag, Reading, Rejected, RejectedError, Value

Outcomes = Sequence[Reading | Rejected]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ALWAYS: Final = datetime.max.replace(tzinfo=UTC)
_NEVER: Final = datetime.min.replace(tzinfo=UTC)
_SPAN: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)", re.ASCII)
_SECONDS: Final = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _span(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    found = _SPAN.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"must be a span of time as 90s, 15m, 1h, 7d or 2w, not {value!r}")
    return float(found[1]) * _SECONDS[found[2]]


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, KeyError):
        raise ValueError(f"must be a zone of the IANA database as Europe/Berlin, not {name!r}") from None
    return name


#: A span of time in seconds, also as `15m`.
Span = Annotated[float, BeforeValidator(_span), Field(gt=0, le=100 * 366 * 86400)]
Zone = Annotated[str, AfterValidator(_zone)]


class Metric(Model):
    """What is believed of one metric, in `unit` where that is said.

    A value that says another unit is converted; one that says none is taken to be in `said_in`, or else in `unit`.
    """

    low: float | None = None
    high: float | None = None
    outside: Literal["reject", "clamp", "flag"] = "reject"
    unit: str | None = None
    said_in: str | None = None

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and the highest value, infinite where there is none."""
        return -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high

    @model_validator(mode="after")
    def _agree(self) -> "Metric":
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise ValueError(f"the range {self.low:g}..{self.high:g} is empty")
        if self.said_in is not None and self.unit is None:
            raise ValueError("said_in needs unit: what to convert to")
        if self.unit is not None:
            units.converter(self.said_in or self.unit, self.unit)
        return self


class Time(Model):
    """What is believed of a reading's time.

    `zone` is what a time without one is in; without it such a time is refused. A device that says no time gets the
    time at which its record was received where `missing` says so; one that cannot be read likewise by `unreadable`.
    `ahead` and `behind` are how far a time may lie from when its record was received; nothing was measured before
    `since`, where clocks begin that were never set, and where seconds end up that are taken for nanoseconds. `outside`
    says what becomes of a time that lies further.
    """

    zone: Zone | None = None
    missing: Literal["reject", "receive"] = "reject"
    unreadable: Literal["reject", "receive"] = "reject"
    ahead: Span | None = 86400.0
    behind: Span | None = None
    since: date | None = date(2000, 1, 1)
    outside: Literal["reject", "flag", "receive"] = "reject"


def _cased(text: str, case: str) -> str:
    return text if case == "keep" else text.lower() if case == "lower" else text.upper()


class Names(Model):
    """How a device's id is made the one that is stored: white space around it goes, then its case, then the prefix."""

    strip: bool = False
    case: Literal["keep", "lower", "upper"] = "keep"
    prefix: str = Field("", max_length=64)

    @model_validator(mode="after")
    def _agree(self) -> "Names":
        if _cased(self.prefix, self.case) != self.prefix:
            raise ValueError(f"the prefix {quoted(self.prefix)} is not in {self.case} case, which every id is put in")
        return self


class Policy(Model):
    """All of it, for one dialect.

    A reading in which one of the `required` metrics has no value, or had one that is refused, is refused whole.
    `unparsable` says what a text becomes that should be a number, in the dialects that allow it: null and flagged, or
    refused.
    """

    metrics: dict[str, Metric] = Field(default_factory=dict)
    required: tuple[str, ...] = ()
    unparsable: Literal["null", "reject"] = "null"
    time: Time = Time()
    device_id: Names = Names()

    def changed(self, by: Mapping[str, Any]) -> "Policy":
        """This policy with what a mapping says instead, member by member. Raises pydantic's `ValidationError`."""
        return Policy.model_validate(_merged(self.model_dump(), by))


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for name, value in above.items():
        under = merged.get(name)
        if value is None and isinstance(under, dict):
            del merged[name]  # as a metric of the defaults
            continue
        merged[name] = _merged(under, value) if isinstance(under, dict) and isinstance(value, Mapping) else value
    return merged


def finisher(policy: Policy) -> Callable[[Outcomes, int], Outcomes]:
    """What applies a policy to the outcomes of one payload, received at a time in ms since the epoch.

    A reading that nobody else has seen yet is changed in place.
    """
    since = policy.time.since
    floor = _NEVER if since is None else datetime(since.year, since.month, since.day, tzinfo=UTC)
    changes = policy.device_id != Names() or any(metric.unit is not None for metric in policy.metrics.values())
    complete, slowly = _inspection(policy), _Slowly(policy)
    second, earliest, latest = -1, floor, _ALWAYS

    def finish(outcomes: Outcomes, received_ms: int) -> Outcomes:
        nonlocal second, earliest, latest
        if received_ms // 1000 != second:
            second = received_ms // 1000
            earliest, latest = _limits(second, policy.time)
            earliest = max(earliest, floor)
        if not changes:
            for outcome in outcomes:
                if outcome.__class__ is Reading and not (
                    earliest <= outcome.time <= latest and complete(outcome.values)
                ):
                    break
            else:
                return outcomes
        return slowly(outcomes, earliest, latest, received_ms)

    return finish


def _inspection(policy: Policy) -> Callable[[Mapping[str, Value]], bool]:
    """What says whether values are such that the policy changes nothing; it may say no where it does not."""
    bounds = [
        (name, low, high, None if name in policy.required else low)
        for name, metric in policy.metrics.items()
        for low, high in [metric.bounds]
        if low > -math.inf or high < math.inf
    ]
    bounded = {name for name, *_ in bounds}
    needed = [name for name in policy.required if name not in bounded]

    def complete(values: Mapping[str, Value]) -> bool:
        get = values.get
        try:
            for metric, low, high, absent in bounds:
                # What is not there is inside, or None where it is required; None and text cannot be compared.
                if not low <= get(metric, absent) <= high:  # type: ignore[operator]
                    return False
        except TypeError:
            return False
        return not needed or all(get(metric) is not None for metric in needed)

    return complete


def _limits(second: int, time: Time) -> tuple[datetime, datetime]:
    """How early and how late a reading of a record received then may be."""
    # A record without a time of its own has -1.
    if second < 0:
        return _NEVER, _ALWAYS
    try:
        now = _EPOCH + timedelta(seconds=second)
        return (
            _NEVER if time.behind is None else now - timedelta(seconds=time.behind),
            _ALWAYS if time.ahead is None else now + timedelta(seconds=time.ahead + 1),
        )
    except OverflowError:
        return _NEVER, _ALWAYS


class _Slowly:
    """The careful way, for the payloads where something is to be changed."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._units = {
            name: (metric.unit, metric.said_in or metric.unit)
            for name, metric in policy.metrics.items()
            if metric.unit is not None
        }

    def __call__(self, outcomes: Outcomes, earliest: datetime, latest: datetime, received_ms: int) -> Outcomes:
        done: list[Reading | Rejected] = []
        for outcome in outcomes:
            if isinstance(outcome, Rejected):
                done.append(outcome)
                continue
            reading: Reading | Rejected = self._timed(outcome, earliest, latest, received_ms)
            if isinstance(reading, Reading):
                self._named(reading, done)
            else:
                done.append(reading)
        return done

    def _timed(self, reading: Reading, earliest: datetime, latest: datetime, received_ms: int) -> Reading | Rejected:
        if earliest <= reading.time <= latest:
            return reading
        kind: Literal["future", "old"] = "future" if reading.time > latest else "old"
        time = self._policy.time
        if time.outside == "flag":
            _flag(reading, kind)
            return reading
        if time.outside == "receive" and received_ms >= 0:
            _flag(reading, RECEIVE_TIME)
            return msgspec.structs.replace(reading, time=_EPOCH + timedelta(milliseconds=received_ms))
        said = f"the time {reading.time.isoformat()} lies"
        if kind == "future":
            return Rejected(kind, f"{said} more than {time.ahead:g} s ahead of when it was received")
        if time.since is not None and reading.time.date() < time.since:
            return Rejected(
                kind, f"{said} before {time.since}: is the clock set, and is it counted in the unit expected?"
            )
        return Rejected(kind, f"{said} more than {time.behind:g} s behind when it was received")

    def _named(self, reading: Reading, done: list[Reading | Rejected]) -> None:
        names = self._policy.device_id
        device_id = _cased(reading.device_id.strip() if names.strip else reading.device_id, names.case)
        if names.prefix and not device_id.startswith(names.prefix):
            device_id = names.prefix + device_id
        if not device_id.removeprefix(names.prefix):
            done.append(Rejected("missing_field", "the device's id is empty"))
            return
        if len(device_id) > NAME_CHARS:
            done.append(Rejected("too_large", f"the device's id has {len(device_id)} characters with its prefix"))
            return
        if device_id != reading.device_id:
            reading = msgspec.structs.replace(reading, device_id=device_id)
        self._measured(reading, done)

    def _measured(self, reading: Reading, done: list[Reading | Rejected]) -> None:
        refused: dict[str, Rejected] = {}
        for name, metric in self._policy.metrics.items():
            value = reading.values.get(name)
            if value is None or isinstance(value, bool | str):
                continue
            try:
                if metric.unit is not None:
                    value = self._converted(reading, name, value)
                self._bounded(reading, name, metric, value)
            except RejectedError as error:
                refused[name] = error.rejected
                del reading.values[name]
                reading.units.pop(name, None)
                reading.raw.pop(name, None)
        for name in self._policy.required:
            if reading.values.get(name) is None:
                done.append(refused.get(name) or Rejected("missing_field", f"{name} is required and has no value"))
                return
        if reading.values:
            done.append(reading)
        done += refused.values()

    @staticmethod
    def _bounded(reading: Reading, name: str, metric: Metric, value: float) -> None:
        low, high = metric.bounds
        # NaN and infinity have nothing to be clamped to: no store can hold them, and `flaw` says so.
        if low <= value <= high or (value.__class__ is float and not math.isfinite(value)):
            return
        if metric.outside == "clamp":
            # Of what was clamped before, the original is the first.
            reading.raw.setdefault(name, value)
            reading.values[name] = low if value < low else high
            _flag(reading, CLAMPED)
        elif metric.outside == "flag":
            _flag(reading, OUT_OF_RANGE)
        else:
            raise RejectedError("out_of_range", f"{name} is {quoted(value)}, outside {_range(low, high)}")

    def _converted(self, reading: Reading, name: str, value: float) -> float:
        unit, said_in = self._units[name]
        said = reading.units.get(name) or said_in
        if said != unit:
            try:
                convert = units.converter(said, unit)
                value = reading.values[name] = convert(value)
            except ValueError as error:
                raise RejectedError("bad_unit", f"{name}: {error}") from error
            except OverflowError as error:
                raise RejectedError("out_of_range", f"{name} is larger than any double in {unit}") from error
            original = reading.raw.get(name)
            if original.__class__ is float or original.__class__ is int:
                reading.raw[name] = convert(original)
        reading.units[name] = unit
        return value


def _flag(reading: Reading, flag: Flag) -> None:
    if flag not in reading.flags:
        reading.flags.append(flag)


def _range(low: float, high: float) -> str:
    return f"{'' if low == -math.inf else f'{low:g}'}..{'' if high == math.inf else f'{high:g}'}"
