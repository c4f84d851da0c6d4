"""Rules tried on past readings: the alarms that they would have raised, beside those of other rules.

Each device goes through the pure analysis by itself, twice, with its readings' own times for a clock. Nothing is
produced anywhere, and nothing is kept but the alarms.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Final, Literal

import msgspec
from msgspec import Struct

from app import analysis
from app.past import Past, Progress
from app.settings import Settings
from schemas import alarm, wire
from schemas.alarm import Severity, rank
from schemas.reading import Reading
from schemas.record import Headers
from schemas.rules import READING, DetectorRule, LevelRule, Rule
from tables.analysis import Config, Partition
from tables.output import Change, Output
from tables.rules import Rulebook

#: Readings of a device between two snapshots, which say what has waited.
_CHUNK: Final = 500
_NEVER: Final = 1 << 62
_SECOND_MS: Final = 1000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
#: Statistics of a window that are not in the metric's own unit.
_OTHER_UNITS: Final = frozenset({"count", "stddev", "sum"})
#: Parts of the time that a picture tells apart, each by its least and its greatest value.
_BINS: Final = 600

_start: Final = attrgetter("start")
#: A series: device, measurement, channel, metric.
Series = tuple[str, str, str, str]


class Raised(Struct, kw_only=True):
    """An alarm that was raised.

    `severity` is the highest that it reached and `message` what was said then. `peak` is the value furthest out that
    its rule judged: of rules that look at readings each value while it was open, of others those at the alarm's
    changes. `threshold`, `low` and `high` are in the metric's own unit, None where the rule judges something else.
    """

    device_id: str
    measurement: str
    channel: str
    metric: str
    rule: str
    severity: Severity
    start: datetime
    #: None where it was still open at the end.
    end: datetime | None = None
    peak: float | None = None
    message: str = ""
    unit: str = ""
    threshold: float | None = None
    low: float | None = None
    high: float | None = None
    #: Whether it is the worse the lower the value is.
    falling: bool = False

    @property
    def series(self) -> Series:
        """What it is of."""
        return self.device_id, self.measurement, self.channel, self.metric


class Compared(Struct, frozen=True):
    """An alarm of the rules, with those of the others that overlap it (`both`), or without such (`new`).

    One of the others that none of the rules' overlaps is `gone`. Alarms are compared that have one series and rule id.
    """

    verdict: Literal["new", "gone", "both"]
    alarm: Raised
    was: Sequence[Raised] = ()


class Count(Struct):
    """Alarms of a rule; `seconds` is how long they were open, all together."""

    alarms: int = 0
    devices: int = 0
    seconds: float = 0.0
    severities: dict[Severity, int] = {}


class Summary(Struct):
    """What came of one rule id: by the rules, by the others, and how many alarms only one of them raised."""

    rule: str
    rules: Count
    against: Count
    new: int
    gone: int
    both: int


class Panel(Struct, frozen=True):
    """A series to be drawn: its values, thinned out, and its alarms by the rules and by the others."""

    series: Series
    points: Sequence[tuple[datetime, float]]
    rules: Sequence[Raised]
    against: Sequence[Raised]


class Outcome(Struct):
    """What a backtest found; `panels` are of the series with the most alarms."""

    start: datetime
    end: datetime
    readings: int = 0
    devices: int = 0
    found: list[Compared] = []
    panels: list[Panel] = []

    @property
    def new(self) -> int:
        """Alarms that the others would not have raised."""
        return sum(each.verdict == "new" for each in self.found)

    def summaries(self) -> list[Summary]:
        """What came of each rule that raised an alarm."""
        by_rule: dict[str, list[Compared]] = {}
        for each in self.found:
            by_rule.setdefault(each.alarm.rule, []).append(each)
        return [
            Summary(
                rule,
                self._count(each.alarm for each in found if each.verdict != "gone"),
                self._count(_others(found)),
                *(sum(each.verdict == verdict for each in found) for verdict in ("new", "gone", "both")),
            )
            for rule, found in sorted(by_rule.items())
        ]

    def _count(self, alarms: Iterable[Raised]) -> Count:
        found, devices = Count(), set()
        for each in alarms:
            found.alarms += 1
            found.seconds += ((each.end or self.end) - each.start).total_seconds()
            found.severities[each.severity] = found.severities.get(each.severity, 0) + 1
            devices.add(each.device_id)
        found.devices = len(devices)
        return found


def _others(found: Iterable[Compared]) -> Iterator[Raised]:
    """The others' alarms, each once: one may overlap several of the rules'."""
    seen: set[int] = set()
    for each in found:
        for other in [each.alarm] if each.verdict == "gone" else each.was:
            if id(other) not in seen:
                seen.add(id(other))
                yield other


async def run(  # noqa: PLR0913  each is one knob of it
    settings: Settings,
    past: Past,
    rules: Rulebook,
    against: Rulebook,
    *,
    admits: Callable[[str], bool] = lambda _: True,
    panels: int = 0,
    tell: Progress = lambda *_: None,
) -> Outcome:
    """Try `rules`, and `against` to compare with, on past readings; of metrics that `admits` names.

    `panels` of the series with the most alarms are kept to be drawn. Raises what reading the past raises.
    """
    # With past times for a clock nothing is old news; windows close at once, since its clock jumps to what is due.
    config = msgspec.structs.replace(
        analysis.config(settings, 1), replay=False, replay_after=_NEVER, escalate=False, left=0
    )
    found = Outcome(past.start, past.end)
    device: _Device | None = None

    def close() -> None:
        if device is not None:
            compared = [each for each in device.close() if admits(each.alarm.metric)]
            found.found += compared
            found.panels = _most([*found.panels, *device.panels(compared)], panels)

    async for page in past.pages:
        for reading in page:
            if device is None or device.id != reading.device_id:
                close()
                device = _Device(reading.device_id, config, (rules, against), past, drawn=panels > 0)
                found.devices += 1
            device.take(reading)
        found.readings += len(page)
        tell("analysing", found.readings, past.total)
        await asyncio.sleep(0)  # whoever interrupts it is heard
    close()
    found.found.sort(key=lambda each: (each.alarm.start, each.alarm.series, each.alarm.rule))
    return found


def compare(rules: Iterable[Raised], against: Iterable[Raised], end: datetime) -> Iterator[Compared]:
    """Alarms beside those that they overlap; what is still open lasts until `end`.

    Both are by time, and of one series and rule an alarm begins when the one before has ended.
    """
    others: dict[tuple[Series, str], list[Raised]] = {}
    for each in against:
        others.setdefault((each.series, each.rule), []).append(each)
    matched: set[int] = set()
    for each in rules:
        same = others.get((each.series, each.rule), [])
        first = bisect_left(same, each.start, key=lambda other: other.end or end)
        was = same[first : bisect_right(same, each.end or end, key=_start)]
        matched.update(map(id, was))
        yield Compared("both" if was else "new", each, was)
    for same in others.values():
        for other in same:
            if id(other) not in matched:
                yield Compared("gone", other)


# -- one device --------------------------------------------------------------------------------------------------------


class _Record(Struct, frozen=True, gc=False):
    """A record that was received when its reading is of."""

    offset: int
    timestamp: int
    value: bytes
    topic: str = ""
    partition: int = 0
    key: bytes | None = None
    headers: Headers = ()


class _Device:
    """The readings of one device, under the rules and under the others."""

    def __init__(self, id_: str, config: Config, books: tuple[Rulebook, Rulebook], past: Past, *, drawn: bool) -> None:
        self.id = id_
        self._past = past
        self._trials = [_Trial(config, book) for book in books]
        self._drawn = drawn
        self._traces: dict[Series, _Trace] = {}
        self._count = 0

    def take(self, reading: Reading) -> None:
        """The next reading."""
        # Not before the reading's time, of which Kafka knows milliseconds.
        record = _Record(self._count, _ceil_ms(_micros(reading.time)), wire.write(reading))
        self._count += 1
        for trial in self._trials:
            trial.take(record, reading)
        if self._drawn:
            self._trace(reading)

    def close(self) -> list[Compared]:
        """There is no more; what the time does until the end."""
        rules, against = (trial.close(_micros(self._past.end) // _SECOND_MS) for trial in self._trials)
        return list(compare(rules, against, self._past.end))

    def panels(self, found: Sequence[Compared]) -> Iterator[Panel]:
        """What there is to be drawn of alarms."""
        if not self._drawn:
            return

        def series(each: Compared) -> Series:
            return each.alarm.series

        for name, same in groupby(sorted(found, key=series), key=series):
            alarms = list(same)
            own = [each.alarm for each in alarms if each.verdict != "gone"]
            trace = self._traces.get(name)
            yield Panel(name, [] if trace is None else trace.points(), own, list(_others(alarms)))

    def _trace(self, reading: Reading) -> None:
        place = (reading.device_id, reading.measurement, reading.channel)
        for metric in reading.values:
            value = _number(reading, metric)
            if value is not None:
                series = (*place, metric)
                trace = self._traces.get(series)
                if trace is None:
                    trace = self._traces[series] = _Trace(self._past.start, self._past.end)
                trace.add(reading.time, value)


class _Trial:
    """One device under one set of rules."""

    def __init__(self, config: Config, book: Rulebook) -> None:
        self._side: dict[tuple[str, bytes], bytes] = {}
        self._partition = Partition(0, config, book, lambda table, key: self._side.get((table, key)))
        self._rules = {id_: rule for id_, (rule, _) in book.rules().items()}
        self._said: list[Output] = []
        self._chunk: list[Reading] = []
        self._raised: dict[str, Raised] = {}
        #: Alarms whose rules look at readings and that were open in this chunk.
        self._watched: dict[str, Raised] = {}
        self._clock_ms = 0

    def take(self, record: _Record, reading: Reading) -> None:
        """The next reading, after what the time did until then."""
        if record.timestamp >= self._clock_ms + _SECOND_MS:  # as often as the stage looks
            self._pass(record.timestamp)
        self._said += self._partition.fold([record], record.timestamp)
        self._chunk.append(reading)
        if len(self._chunk) >= _CHUNK:
            self._keep()

    def close(self, end_ms: int) -> list[Raised]:
        """The alarms, when the time has passed until the end."""
        self._pass(end_ms)
        self._keep()
        return sorted(self._raised.values(), key=_start)

    def _pass(self, to_ms: int) -> None:
        """What the time does before a moment."""
        while (due_ms := max(self._clock_ms, _ceil_ms(self._partition.due))) < to_ms:
            while self._partition.expire(due_ms):
                pass
            self._clock_ms = due_ms + 1
        self._clock_ms = to_ms

    def _keep(self) -> None:
        snapshot = self._partition.snapshot(0)
        states = (Change("state", key, value) for key, value in snapshot.states)
        for change in [*states, *snapshot.side]:
            if change.value is None:
                self._side.pop((change.table, change.key), None)
            else:
                self._side[change.table, change.key] = change.value
        for output in [*self._said, *snapshot.outputs]:
            if output.topic == "alarms" and output.value is not None:
                self._note(alarm.read_record(output.key, output.value))
        snapshot.done()
        self._said.clear()
        for key, each in list(self._watched.items()):
            self._look(each)
            if each.end is not None:
                del self._watched[key]
        self._chunk.clear()

    def _note(self, record: alarm.Record) -> None:
        """An alarm was raised, or changed."""
        rule = self._rules[record.rule]
        found = self._raised.get(record.alarm_id)
        if found is None:
            found = self._raised[record.alarm_id] = Raised(
                device_id=record.device_id,
                measurement=record.measurement,
                channel=record.channel,
                metric=record.metric,
                rule=record.rule,
                severity=record.severity,
                start=record.raised_at,
                unit=record.unit or "",
            )
            self._worse(found, record, rule)
            found.falling = _falls(record)
            if isinstance(rule, LevelRule) and rule.on == READING:
                self._watched[record.alarm_id] = found
        elif rank(record.severity) > rank(found.severity):
            self._worse(found, record, rule)
        _reach(found, record.value)
        found.end = None if record.open else record.resolved_at

    @staticmethod
    def _worse(found: Raised, record: alarm.Record, rule: Rule) -> None:
        found.severity, found.message = record.severity, record.message
        if isinstance(rule, DetectorRule) or (
            isinstance(rule, LevelRule) and (rule.on == READING or rule.stat not in _OTHER_UNITS)
        ):
            found.threshold, found.low, found.high = record.threshold, record.expected_low, record.expected_high

    def _look(self, found: Raised) -> None:
        """How far the readings of this chunk went while the alarm was open."""
        for reading in self._chunk:
            if (
                reading.channel == found.channel
                and reading.measurement == found.measurement
                and found.metric in reading.values
                and found.start <= reading.time
                and (found.end is None or reading.time <= found.end)
            ):
                _reach(found, _number(reading, found.metric))


def _reach(found: Raised, value: float | None) -> None:
    """A value was met."""
    if value is not None:
        further = min if found.falling else max
        found.peak = value if found.peak is None else further(found.peak, value)


def _falls(record: alarm.Record) -> bool:
    """Whether the value that an alarm was raised at is too low."""
    value, low, high = record.value or 0.0, record.expected_low, record.expected_high
    if record.threshold is not None:
        return value < record.threshold
    return low is not None and high is not None and value < (low + high) / 2


def _number(reading: Reading, metric: str) -> float | None:
    """A value as it was measured, if it is a number."""
    value = reading.raw.get(metric, reading.values[metric])
    if value.__class__ is float or value.__class__ is int:
        try:
            return float(value)
        except OverflowError:
            return None
    return None


def _micros(moment: datetime) -> int:
    return (moment - _EPOCH) // _MICROSECOND


def _ceil_ms(micros: int) -> int:
    return -(-micros // 1000)


# -- pictures ----------------------------------------------------------------------------------------------------------


class _Trace:
    """Values of a series in bounded room: of each part of the time the first that was least, and greatest."""

    def __init__(self, start: datetime, end: datetime) -> None:
        self._start = start
        self._width = max((end - start) / _BINS, _MICROSECOND)
        self._bins: dict[int, tuple[tuple[float, datetime], tuple[float, datetime]]] = {}

    def add(self, time: datetime, value: float) -> None:
        """Take a value in."""
        place = (time - self._start) // self._width
        held = self._bins.get(place)
        if held is None:
            self._bins[place] = ((value, time), (value, time))
        elif value < held[0][0]:
            self._bins[place] = ((value, time), held[1])
        elif value > held[1][0]:
            self._bins[place] = (held[0], (value, time))

    def points(self) -> list[tuple[datetime, float]]:
        """Them by time."""
        found = {(time, value) for held in self._bins.values() for value, time in held}
        return sorted(found)


def _most(panels: Sequence[Panel], count: int) -> list[Panel]:
    """Those with the most alarms; of equals the first."""
    return sorted(panels, key=lambda panel: (-len(panel.rules) - len(panel.against), panel.series))[:count]
