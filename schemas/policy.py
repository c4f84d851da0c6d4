"""Policies: what is believed of a dialect's readings, and what becomes of the rest.

A dialect reads a payload's form; what its values mean is decided here, the same way for every dialect: units first,
then bounds, then the time, then the device's name. A dialect's file has its defaults as `POLICY`; the configuration
changes them for a dialect or for one topic.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal
from zoneinfo import ZoneInfo

import msgspec
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from schemas import units
from schemas.payload import quoted
from schemas.reading import CLAMPED, OUT_OF_RANGE, RECEIVE_TIME, Flag, Reading, Rejected, RejectedError

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


class Model(BaseModel):
    """A part of the configuration of inputs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Metric(Model):
    """What is believed of one metric, in `unit` where that is said.

    A value that says another unit is converted; one that says none is taken to be in `said_in`, or else in `unit`.
    """

    low: float | None = None
    high: float | None = None
    outside: Literal["reject", "clamp", "flag"] = "reject"
    unit: str | None = None
    said_in: str | None = None

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
    `ahead` and `behind` are how far a time may lie from when its record was received, and `outside` what becomes of
    one that lies further.
    """

    zone: Zone | None = None
    missing: Literal["reject", "receive"] = "reject"
    unreadable: Literal["reject", "receive"] = "reject"
    ahead: Span | None = 86400.0
    behind: Span | None = None
    outside: Literal["reject", "flag", "receive"] = "reject"


class Names(Model):
    """How a device's id is made the one that is stored: white space around it goes, then its case, then the prefix."""

    strip: bool = False
    case: Literal["keep", "lower", "upper"] = "keep"
    prefix: str = Field("", max_length=64)


class Policy(Model):
    """All of it, for one dialect.

    A reading that loses one of its `required` metrics to its bounds or its unit is refused whole. `unparsable` says
    what a text becomes that should be a number, in the dialects that allow it: null and flagged, or refused.
    """

    metrics: dict[str, Metric] = {}
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
        merged[name] = _merged(under, value) if isinstance(under, dict) and isinstance(value, Mapping) else value
    return merged


def finisher(policy: Policy) -> Callable[[Outcomes, int], Outcomes]:
    """What applies a policy to the outcomes of one payload, received at a time in ms since the epoch.

    A reading that nobody else has seen yet is changed in place.
    """
    bounds = [
        (name, -math.inf if metric.low is None else metric.low, math.inf if metric.high is None else metric.high)
        for name, metric in policy.metrics.items()
        if not (metric.low is None and metric.high is None)
    ]
    ahead, behind = policy.time.ahead, policy.time.behind
    always = policy.device_id != Names() or any(metric.unit is not None for metric in policy.metrics.values())
    slowly = _Slowly(policy)
    second, earliest, latest = -1, _NEVER, _ALWAYS

    def fine(reading: Reading) -> bool:
        get = reading.values.get
        for metric, low, high in bounds:
            # A metric that is not there is inside; None and text cannot be compared.
            if not low <= get(metric, low) <= high:  # type: ignore[operator]
                return False
        return reading.time <= latest and (behind is None or reading.time >= earliest)

    def finish(outcomes: Outcomes, received_ms: int) -> Outcomes:
        nonlocal second, earliest, latest
        if received_ms // 1000 != second:
            second = received_ms // 1000
            earliest, latest = _limits(second, ahead, behind)
        try:
            if not always:
                for outcome in outcomes:
                    if outcome.__class__ is Reading and not fine(outcome):
                        break
                else:
                    return outcomes
        except TypeError:
            pass
        return slowly(outcomes, earliest, latest, received_ms)

    return finish


def _limits(second: int, ahead: float | None, behind: float | None) -> tuple[datetime, datetime]:
    # A record without a time of its own has -1.
    if second < 0:
        return _NEVER, _ALWAYS
    try:
        now = _EPOCH + timedelta(seconds=second)
        return (
            _NEVER if behind is None else now - timedelta(seconds=behind),
            _ALWAYS if ahead is None else now + timedelta(seconds=ahead + 1),
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
        elif time.outside == "receive":
            _flag(reading, RECEIVE_TIME)
            return msgspec.structs.replace(reading, time=_EPOCH + timedelta(milliseconds=received_ms))
        else:
            span, word = (time.ahead, "ahead of") if kind == "future" else (time.behind, "behind")
            return Rejected(
                kind, f"the time {reading.time.isoformat()} lies more than {span:g} s {word} when it was received"
            )
        return reading

    def _named(self, reading: Reading, done: list[Reading | Rejected]) -> None:
        names = self._policy.device_id
        device_id = reading.device_id.strip() if names.strip else reading.device_id
        if names.case != "keep":
            device_id = device_id.lower() if names.case == "lower" else device_id.upper()
        if names.prefix and not device_id.startswith(names.prefix):
            device_id = names.prefix + device_id
        if not device_id.removeprefix(names.prefix):
            done.append(Rejected("missing_field", "the device's id is empty"))
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
        lost = [rejected for name, rejected in refused.items() if name in self._policy.required]
        if lost:
            done.append(lost[0])
            return
        if reading.values:
            done.append(reading)
        done += refused.values()

    @staticmethod
    def _bounded(reading: Reading, name: str, metric: Metric, value: float) -> None:
        low, high = metric.low, metric.high
        # What is not finite has nothing to be clamped to: no store can hold it, and `flaw` says so.
        if not math.isfinite(value) or ((low is None or value >= low) and (high is None or value <= high)):
            return
        if metric.outside == "clamp":
            # Of what was clamped before, the original is the first.
            reading.raw.setdefault(name, value)
            reading.values[name] = low if low is not None and value < low else high
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
                value = reading.values[name] = units.converter(said, unit)(value)
            except ValueError as error:
                raise RejectedError("bad_unit", f"{name}: {error}") from error
        reading.units[name] = unit
        return value


def _flag(reading: Reading, flag: Flag) -> None:
    if flag not in reading.flags:
        reading.flags.append(flag)


def _range(low: float | None, high: float | None) -> str:
    return f"{'' if low is None else f'{low:g}'}..{'' if high is None else f'{high:g}'}"
