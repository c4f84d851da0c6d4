"""What rules and detectors make of a channel's values: signals, alarms, and the records that say so."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, Final

from msgspec import Struct
from msgspec.structs import replace

from schemas import alarm, quality, wire
from schemas.alarm import Facts, Signal, Subject, Transition, rank
from tables import alarms
from tables.alarms import Policy
from tables.channel import NONE, Channel, Deep, Series
from tables.checks import Check, Detector
from tables.clocks import Clock
from tables.detectors import PROFILES, VERSION, Memory, replay, step
from tables.histograms import Histograms
from tables.output import HEADER_REPLAYED, Output, deferred, histograms_key, report
from tables.rules import Book, Learner, Watch

#: Reads an entry of a table.
Load = Callable[[str, bytes], bytes | None]

#: What looks at readings themselves instead of windows.
ON_READING: Final = "reading"
#: Kinds of rules that doubt the data: what they find is an event of quality too.
_QUALITY: Final[Mapping[str, quality.Kind]] = {"silent": "silent", "gap": "gap", "stuck": "stuck"}
#: So many bytes of a series' log of updates are kept in the state before its histograms are stored anew. Those of
#: windows are fetched for each, and brought up to date by the log.
_LOG_OF_READINGS: Final = 240
_LOG_OF_WINDOWS: Final = 16
_TEXT_CHARS: Final = 200
_MS: Final = 1000
_NEVER: Final = 1 << 62


class Circumstances(Struct, frozen=True):
    """Of a value: its time and when it was received (µs), and whether it is old news, which pages nobody.

    `at` is no further ahead of its receipt than is believed: an alarm that began in the future could not end before it.
    """

    at: int
    received: int
    replayed: bool
    #: A reading's time as it says it, and its facility.
    measured: int = 0
    facility: str = ""


class Judge:
    """Judges by the rules of `book`, which may be replaced; what it says goes to the list that it is given."""

    def __init__(self, book: Book, policy: Policy, load: Load, *, escalate: bool) -> None:
        self.book = book
        self._policy = policy
        self._load = load
        self._escalate = escalate

    # -- rules ---------------------------------------------------------------------------------------------------------

    def watch(self, each: Channel, metric: str) -> Watch:
        """What is looked at in a series; found anew where it is not known yet."""
        unit = each.units.get(metric, "")
        series = each.series.get(metric)
        if series is None:
            series = each.series[metric] = Series(unit)
        series.unit = unit or series.unit
        facility = each.tags.get("facility_id", "")
        found = self.book.watch(each.measurement, each.device_id, each.name, metric, facility, series.unit)
        if not found.asks:
            series.heard = 0  # it goes on without being told
        elif metric and not series.heard:
            series.heard = each.seen_ms * _MS  # silence is counted from when somebody first asks
        each.watches[metric] = found
        self._settle(each, metric, series)
        return found

    def rebook(self, each: Channel, at: int, said: list[Output]) -> None:
        """Rules have changed: alarms of those that a series has no more end."""
        each.book = self.book
        each.watches = {}
        each.look_at = 0
        for metric, series in each.series.items():
            ids = self.watch(each, metric).ids
            self._withdraw(each, metric, series.alarms.keys() - ids, at, said)
            for memories in (series.memories, series.counts):
                for rule in memories.keys() - ids:
                    del memories[rule]
            self._settle(each, metric, series)

    def withdraw(self, each: Channel, at: int, said: list[Output]) -> None:
        """All alarms of a channel end."""
        for metric, series in each.series.items():
            self._withdraw(each, metric, list(series.alarms), at, said)

    def _withdraw(self, each: Channel, metric: str, rules: Iterable[str], at: int, said: list[Output]) -> None:
        for rule in rules:
            _, transitions = alarms.withdraw(each.series[metric].alarms.pop(rule), at)
            self._say(each, metric, rule, transitions, said)

    @staticmethod
    def _settle(each: Channel, metric: str, series: Series) -> None:
        """Whether every reading of a series must be looked at."""
        watch = each.watches.get(metric)
        heeded = watch is not None and ((metric and watch.asks) or ON_READING in watch.detectors)
        if bool(series.memories or series.alarms or heeded) != (metric in each.busy):
            each.busy = (each.busy ^ {metric}) or NONE

    def value(  # noqa: PLR0913  a value and all that it meets
        self, each: Channel, metric: str, watch: Watch, value: Any, found: Circumstances, said: list[Output]
    ) -> None:
        """A reading's value, past the rules that look at readings; an anomalous one is an event, whatever its alarm."""
        series = each.series[metric]
        if watch.asks:
            series.heard = found.received
        worst: tuple[int, Check, Signal] | None = None
        for check in watch.reading:
            signal = self._step(series.memories, check, found.at, value)
            if signal is None:
                continue
            if signal.severity is not None and (worst is None or rank(signal.severity) > worst[0]):
                worst = rank(signal.severity), check, signal
            self._signal(each, metric, check, signal, found, said)
        self._heard(each, metric, watch, found, said)
        self._settle(each, metric, series)
        if worst is not None:
            _, check, signal = worst
            key, event = alarm.anomaly_event(
                Subject(*each.identity(metric), check.rule.id),
                signal,
                measured_at=found.measured,
                detected_at=found.received,
                facility_id=found.facility,
            )
            headers = [(HEADER_REPLAYED, b"1")] if found.replayed else []
            said.append(Output("anomalies", each.device_id, key, event, headers))

    def heard(self, each: Channel, found: Circumstances, said: list[Output]) -> None:
        """A reading came: an end to the silence of the channel as a whole."""
        self._heard(each, "", each.watches.get("") or self.watch(each, ""), found, said)
        self._settle(each, "", each.series[""])

    def _heard(self, each: Channel, metric: str, watch: Watch, found: Circumstances, said: list[Output]) -> None:
        # Silence is by the clock of who receives, also where a device's own is behind.
        found = replace(found, at=found.received)
        series = each.series[metric]
        for check in watch.clock:
            if not check.counts and check.rule.id in series.memories:
                signal = self._step(series.memories, check, found.received, 1)
                if signal is not None:
                    self._signal(each, metric, check, signal, found, said)

    def counted(self, each: Channel, metric: str, start: int, count: int) -> None:
        """So many readings were in a base window that were not counted before."""
        watch = each.watches.get(metric) or self.watch(each, metric)
        for check in watch.clock:
            if check.counts:
                self._step(each.series[metric].counts, check, start, count)

    def window(  # noqa: PLR0913  a window and all that it meets
        self,
        each: Channel,
        metric: str,
        name: str,
        numbers: Mapping[str, float],
        found: Circumstances,
        said: list[Output],
    ) -> None:
        """What a series comes to in a window, past the rules that look at those of this name."""
        watch = each.watches.get(metric) or self.watch(each, metric)
        series = each.series[metric]
        for stat, check in watch.window.get(name, ()):
            if stat in numbers:
                signal = self._step(series.memories, check, found.at, numbers[stat])
                if signal is not None:
                    self._signal(each, metric, check, signal, found, said)
        self._settle(each, metric, series)

    @staticmethod
    def _step(memories: dict[str, list[Any]], check: Check, at: int, value: Any) -> Signal | None:
        return _remembered(memories, check, check.step(memories.get(check.rule.id), at, value))

    # -- detectors -----------------------------------------------------------------------------------------------------

    def learn(  # noqa: PLR0913  a value and all that it meets
        self,
        each: Channel,
        metric: str,
        source: str,
        values: Callable[[str], float | None],
        found: Circumstances,
        said: list[Output],
        *,
        gap: bool = False,
    ) -> None:
        """Let detectors judge a value of a window, or of a reading, and learn from it; `values` has it by its name."""
        watch = each.watches.get(metric) or self.watch(each, metric)
        for learner in watch.detectors.get(source, ()):
            value = values(learner.stat)
            if value is not None and isfinite(value):
                place = f"{source}|{learner.stat}|{learner.sensitivity}"
                self._learn(each, each.opened(), metric, place, learner, value, found, said, gap=gap)

    def _learn(  # noqa: PLR0913  as `learn`
        self,
        each: Channel,
        deep: Deep,
        metric: str,
        source: str,
        learner: Learner,
        value: float,
        found: Circumstances,
        said: list[Output],
        *,
        gap: bool,
    ) -> None:
        memories = deep.detectors.setdefault(source, {})
        memory = memories.setdefault(metric, Memory())
        histograms = each.histograms.get((source, metric))
        if histograms is None:
            histograms = self._histograms(each, source, metric, memory)
            memory = memories[metric]
            if source.startswith(ON_READING):  # for the next reading; a window that closes fetches them again
                each.histograms[source, metric] = histograms
        findings = step(memory, histograms, found.at, value, PROFILES[learner.sensitivity], gap=gap)
        series = each.series[metric]
        for name, detector in learner.rules.items():
            signal: Signal = getattr(findings, name)
            given_up = findings.rebaselined and name == "shift"
            self._signal(each, metric, detector, detector.says(signal), found, said, given_up=given_up)
        self._settle(each, metric, series)

    def learnt(self, each: Channel, deep: Deep) -> Iterator[tuple[str, str, Histograms]]:
        """Histograms that are to be stored anew, with what they look at and the metric."""
        for source, memories in deep.detectors.items():
            most = _LOG_OF_READINGS if source.startswith(ON_READING) else _LOG_OF_WINDOWS
            for metric, memory in memories.items():
                if len(memory.log) >= most:
                    found = each.histograms.get((source, metric)) or self._histograms(each, source, metric, memory)
                    yield source, metric, found

    def _histograms(self, each: Channel, source: str, metric: str, memory: Memory) -> Histograms:
        stored = self._load("histograms", histograms_key(each, source, metric))
        found = Histograms() if stored is None else Histograms.unpack(stored)
        try:
            replay(memory, found)
        except ValueError:  # one of the tables was lost or made anew: what is learnt begins again
            each.opened().detectors[source][metric] = Memory()
            found = Histograms()
        return found

    # -- the clock -----------------------------------------------------------------------------------------------------

    def look(self, each: Channel, now: int, replay_after: int, said: list[Output]) -> int:
        """Rules of silence, and alarms, by now; when to look again."""
        later = [_NEVER]
        for metric in [*each.series, *({""} - each.series.keys())]:
            watch = each.watches.get(metric) or self.watch(each, metric)
            later += [self._due(each, metric, check, now, replay_after, said) for check in watch.clock]
            later.append(self._expire(each, metric, now, said))
            self._settle(each, metric, each.series[metric])
        return min(later)

    def _due(  # noqa: PLR0913  a check and all that it meets
        self, each: Channel, metric: str, check: Clock, now: int, replay_after: int, said: list[Output]
    ) -> int:
        series, rule = each.series[metric], check.rule.id
        memories = series.counts if check.counts else series.memories
        last = each.newest if check.counts else series.heard or each.seen_ms * _MS
        due = check.due(memories.get(rule), last)
        if due is not None and due <= now:
            signal = _remembered(memories, check, check.expire(memories.get(rule), last, now))
            if signal is not None:
                # How much is missing is judged now, silence is as old as it is.
                found = (
                    Circumstances(now, now, replay_after <= 0)
                    if check.counts
                    else Circumstances(due, now, now - due > replay_after)
                )
                self._signal(each, metric, check, signal, found, said)
            due = check.due(memories.get(rule), last)
        return _NEVER if due is None else max(now + _MS, due)

    def _expire(self, each: Channel, metric: str, now: int, said: list[Output]) -> int:
        held = each.series[metric].alarms
        later = _NEVER
        # Alarms live by the device's own time, which may be behind.
        behind = max(0, each.seen_ms * _MS - each.newest)
        # What the clock found is so until a reading comes: it does not expire.
        lasting = {check.rule.id for check in (each.watches.get(metric) or self.watch(each, metric)).clock}
        for rule, standing in list(held.items()):
            after: alarm.Alarm | None = standing
            if rule in lasting and standing.on and standing.state != "FLAPPING":
                continue
            if alarms.due(standing, self._policy) + behind <= now:
                after, transitions = alarms.expire(standing, now - behind, self._policy)
                self._say(each, metric, rule, transitions, said)
            if after is None:
                del held[rule]
            else:
                later = min(later, max(now + _MS, alarms.due(after, self._policy) + behind))
        return later

    # -- people --------------------------------------------------------------------------------------------------------

    def by_hand(
        self, each: Channel, subject: Subject, change: Callable[[alarm.Alarm], alarms.Outcome], said: list[Output]
    ) -> None:
        """Somebody acknowledges or resolves an alarm. Raises `LookupError`."""
        series = each.series.get(subject.metric)
        held = series.alarms.get(subject.rule) if series is not None else None
        if held is None:
            raise LookupError(f"no alarm is known as {subject.key}: see iotflow alarms ls --all")
        _, transitions = change(held)
        if not transitions:
            raise LookupError(f"nothing to do: the alarm is {held.state}")
        self._say(each, subject.metric, subject.rule, transitions, said)

    # -- alarms --------------------------------------------------------------------------------------------------------

    def _signal(  # noqa: PLR0913  a signal and all that it meets
        self,
        each: Channel,
        metric: str,
        check: Check | Detector,
        signal: Signal,
        found: Circumstances,
        said: list[Output],
        *,
        given_up: bool = False,
    ) -> None:
        """What a signal does to its alarm."""
        rule = check.rule
        held = each.series[metric].alarms
        before = held.get(rule.id)
        if isinstance(signal.value, str) and len(signal.value) > _TEXT_CHARS:
            signal = replace(signal, value=signal.value[:_TEXT_CHARS])
        if before is None and signal.severity is None:
            return
        if given_up and before is not None:
            after, transitions = alarms.rebaseline(before, found.at)
        else:
            facts = _facts(each, metric, check, signal)
            after, transitions = alarms.step(before, signal, found.at, self._policy, found.replayed, facts)
        if after is None:
            held.pop(rule.id, None)
        else:
            held[rule.id] = after
            each.look_at = min(each.look_at, alarms.due(after, self._policy))
        self._say(each, metric, rule.id, transitions, said)
        kind = _QUALITY.get(rule.kind)
        if kind is not None and any(transition.change == "raised" for transition in transitions):
            said += report(each, kind, found.at, signal.message, metric=metric)

    def _say(
        self, each: Channel, metric: str, rule: str, transitions: Sequence[Transition], said: list[Output]
    ) -> None:
        """The records of an alarm's changes; behind those that wait, since a key's last one counts."""
        outputs: list[Output] = []
        subject = Subject(*each.identity(metric), rule)
        for transition in transitions:
            key, reading = alarm.record(subject, transition.alarm)
            headers = alarm.headers(subject, transition)
            outputs.append(Output("alarms", each.device_id, key, wire.write(reading), headers))
            told = alarm.escalation(subject, transition) if self._escalate else None
            if told is not None:
                topic, key, event = told
                outputs.append(Output(topic, each.device_id, key, event, []))
        if each.pending:
            each.pending += deferred(outputs)
        else:
            said += outputs


def _remembered(
    memories: dict[str, list[Any]], check: Check, found: tuple[list[Any] | None, Signal | None]
) -> Signal | None:
    """Keep what a check remembers from now on, and give back what it says."""
    memory, signal = found
    if memory is None:
        memories.pop(check.rule.id, None)
    else:
        memories[check.rule.id] = memory
    return signal


def _facts(each: Channel, metric: str, check: Check | Detector, signal: Signal) -> Facts:
    rule = check.rule
    return Facts(
        rule.type,
        rule.version,
        VERSION if rule.kind == "detector" else 0,
        each.series[metric].unit or check.subject.unit,
        rule.labels.get(signal.severity, "") if signal.severity is not None else "",
        each.tags.get("facility_id", ""),
        each.tags.get("location", ""),
    )
