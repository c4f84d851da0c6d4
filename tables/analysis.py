"""The stage `analyze` as one pure machine for each partition: records in, what is to be said and kept out.

Each reading is folded once: past the rules that watch its metrics, into its channel's open base window, and into the
channel's last values. When a base window closes, rules and detectors see what it comes to. What a reading itself gives
rise to (`fold` returns it) is said at once. What follows from closed windows is said when the state that it follows
from is kept: a `Snapshot` has both, in that order.

Nothing here knows of Kafka or of a clock. A record that was folded before is known by its position, and one that decode
has sent again by that of its raw record, so that whatever is delivered again changes nothing.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final, Protocol

from msgspec import Struct

from schemas import alarm, dialects, wire
from schemas.alarm import subject_of
from schemas.partition import partition_of
from schemas.payload import NAME_CHARS
from schemas.reading import RESERVED, Reading, RejectedError, Value
from schemas.record import Record
from tables import alarms, channel, output, windows
from tables.alarms import Policy
from tables.channel import Channel, Deep
from tables.detectors import RUN
from tables.judge import ON_READING, Circumstances, Judge, Load
from tables.output import (
    HOUR,
    Change,
    Output,
    closed_window,
    closed_windows,
    deferred,
    numbers,
    report,
    windows_key,
)
from tables.rules import Book
from tables.snapshot import Dirty, Snapshot
from tables.windows import Block, Closed, Moments, Roll, Window

#: Base windows of a channel that are open at once: what is ahead is of no window then.
_OPEN: Final = 64
#: Windows that are over are left open for the next checkpoint no longer than this.
_LEFT_US: Final = 30_000_000
#: Metrics of a channel that are watched: its state must fit in a message.
METRICS: Final = 100
#: More sensors than this without a value are worth an event, as S4 has it.
_MISSING: Final = 3
_MS: Final = 1000
_DAY: Final = 24 * HOUR
_NEVER: Final = 1 << 62
_SOURCED: Final = 3
#: Numbers that a channel keeps one by one until a checkpoint is made for it: some 300 KB.
_HEAVY: Final = 32_768
#: A record of the last values is not larger.
_LATEST_BYTES: Final = 65_536
#: Channels that are looked at in one go.
_AT_ONCE: Final = 500
#: Nothing is received, and nothing is of a time, after the year 9999.
_LAST_MS: Final = 253_402_300_799_999
_LAST: Final = _LAST_MS * _MS + 999
#: What a state can be packed with.
_MOST: Final = 1 << 63
_NUMBERS: Final = frozenset({float, int})


class Config(Struct, frozen=True):
    """How readings are analysed; spans are microseconds.

    `sizes` from the smallest window to the largest, each a multiple of the one before and corrected at least as long.
    """

    sizes: tuple[Window, ...]
    partitions: int
    grace: int = 2_000_000
    idle: int = 60_000_000
    skew: int = 300_000_000
    replay_after: int = HOUR
    replay: bool = False
    escalate: bool = False
    #: After so long without a reading a channel is forgotten.
    forget: int = 30 * _DAY
    #: So many base windows of a channel may be open, some of them over, until the next checkpoint; 0 closes at once.
    left: int = 5
    policy: Policy = Policy()


class Rules(Protocol):
    """The rules in force."""

    @property
    def book(self) -> Book:
        """Compiled: another one after each change."""


class Partition:
    """The channels of one partition. `load` reads an entry of a table: `state`, `windows`, `histograms`."""

    def __init__(self, number: int, config: Config, rules: Rules, load: Load) -> None:
        self.number = number
        self.config = config
        #: What became of readings since this was last emptied.
        self.tally: Counter[str] = Counter()
        self._rules = rules
        self._judge = Judge(rules.book, config.policy, load, escalate=config.escalate)
        self._load = load
        self._fetch = partial(load, "state")
        self._base = config.sizes[0]
        self._channels: dict[tuple[str, str, str], Channel] = {}
        self._dirty = Dirty()
        self._gone: list[Change] = []
        #: The rules by which all channels were last looked at.
        self._looked: Book | None = None
        #: Channels that `expire` is still to look at.
        self._waiting: list[Channel] = []
        self._now = 0

    def __len__(self) -> int:
        return len(self._channels)

    # -- restoring and keeping -----------------------------------------------------------------------------------------

    def restore(self, key: bytes, value: bytes) -> None:
        """Take over an entry of the table `state`. Raises `ValueError` for one of another release."""
        found = channel.restore(key, value, self.config.sizes, self._fetch)
        self._channels[found.place] = found
        found.expected = self._named(found.measurement)
        if found.latest_due:
            self._dirty.refresh(found)
        if found.pending or found.saying:
            self._dirty.touch(found)

    def rewind(self, end: int) -> int:
        """See to it that no record is taken for folded because of a topic that ended beyond `end`, where it ends now.

        How many channels had been further: their topic was made anew.
        """
        ahead = [each for each in self._channels.values() if each.position >= end]
        for each in ahead:
            each.position = -1
            self._dirty.touch(each)
        return len(ahead)

    @property
    def dirty(self) -> int:
        """How many channels have changed since they were last in a snapshot."""
        return len(self._dirty)

    @property
    def full(self) -> bool:
        """Whether as much is kept as may be until the next checkpoint."""
        return self._dirty.full

    @property
    def unsaid(self) -> int:
        """How many channels have something to say."""
        return self._dirty.unsaid

    @property
    def safe(self) -> int:
        """The offset before which all that was folded is in snapshots."""
        return self._dirty.safe

    def waiting(self, before: int = _NEVER) -> int:
        """How many channels are to be kept now: those that offsets before this changed, or with something to say."""
        return sum(1 for _ in self._dirty.due(before))

    def snapshot(self, generation: int, most: int | None = None, before: int = _NEVER) -> Snapshot:
        """What is to be kept and said now, of `most` of the channels that `waiting` counts.

        `generation` is the consumer group's. Several of them, one after another, are one checkpoint: a channel that is
        folded meanwhile is in a later one.
        """
        found = Snapshot(self._dirty, self._gone, self.config.sizes, self._load)
        self._gone = []
        for each in list(islice(self._dirty.due(before), most)):
            if each.over is not None:
                self._roll(each, each.over)  # not closed: it is packed as soon as it is in
            if found.add(each, generation, self._judge.learnt):
                del self._channels[each.place]
        return found

    @property
    def fresh(self) -> int:
        """Of how many channels the last values were not said."""
        return self._dirty.fresh

    def latest(self, most: int) -> list[Output]:
        """The last values, of `most` channels, that were not said yet: for a partition that is read to its end.

        They need not wait for the state: at the end of what there is to read nobody has said later ones.
        """
        return [output.last_values(each) for each in self._dirty.latest(most) if each.latest]

    # -- records -------------------------------------------------------------------------------------------------------

    def fold(self, records: Sequence[Record], now_ms: int) -> list[Output]:
        """Fold records, in order, and return what is to be said at once. Raises nothing for what is in them."""
        said: list[Output] = []
        self._now = now_ms * _MS
        self._judge.book = self._rules.book
        channels = self._channels
        for record in records:
            try:
                reading = wire.read(record.value)
            except RejectedError:
                self.tally["unreadable"] += 1  # the stores make dead letters of them
                continue
            each = channels.get((reading.measurement, reading.device_id, reading.channel)) or self._met(reading)
            if each is None:
                self.tally["foreign"] += 1
            elif record.offset <= each.position or _is_repeat(each, record):
                self.tally["repeated"] += 1
            else:
                each.position = self._dirty.offset = record.offset
                self._reading(each, record, reading, said)
        if records:
            self._dirty.offset = records[-1].offset + 1
        return said

    def _met(self, reading: Reading) -> Channel | None:
        """A channel that is new; None where its device is another partition's, or it is iotflow's own."""
        if reading.measurement in RESERVED or not reading.device_id:
            return None
        if partition_of(reading.device_id, self.config.partitions) != self.number:
            return None
        if max(len(reading.measurement), len(reading.device_id), len(reading.channel)) > 2 * NAME_CHARS:
            return None  # nothing that decode makes
        found = Channel(reading.measurement, reading.device_id, reading.channel, self.config.sizes, self._fetch)
        self._channels[found.place] = found
        found.expected = self._named(reading.measurement)
        return found

    @staticmethod
    def _named(measurement: str) -> int:
        """How many metrics the dialect of that name knows."""
        return len(dialects.policy_of(measurement).metrics) if measurement in dialects.load() else 0

    def _reading(self, each: Channel, record: Record, reading: Reading, said: list[Output]) -> None:
        at = round(reading.time.timestamp() * 1e6)
        received = min(record.timestamp * _MS, self._now)
        if at > _LAST or received > _LAST:
            at, received = min(at, _LAST), min(received, _LAST_MS * _MS)
        believed = min(at, received + self.config.skew)
        each.forgotten = False
        if each.over is not None and self._depends(each, reading, at, each.over):
            self._close(each)
        if each.book is not self._judge.book:
            self._judge.rebook(each, max(believed, each.newest), said)
        if not each.touched:
            self._dirty.touch(each)
        self._count(each, record, reading, received // _MS, at, believed)
        found = reading.values
        if at == believed and self._is_quiet(each, reading):
            values: Mapping[str, float] = found  # type: ignore[assignment]
            raws: Mapping[str, float] = {}
        else:
            self._close(each)
            values, raws = _numbers(found), _numbers(reading.raw)
            facility = reading.tags.get("facility_id", "")
            met = Circumstances(believed, received, self._old(believed, self._now), at, facility)
            values = self._carefully(each, reading, values, raws, met, said)
        if values:
            self._fold(each, record, at, values, raws, said)
        watermark = each.newest - self.config.grace
        if watermark > each.watermark:
            each.watermark = watermark
            if each.blocks and each.blocks[0].start + self._base.size <= watermark:
                self._leave(each, watermark)

    @staticmethod
    def _is_quiet(each: Channel, reading: Reading) -> bool:
        """Whether there is nothing to say of a reading, and nothing to doubt: nearly all are so."""
        if each.busy or reading.raw or each.expected - len(reading.values) > _MISSING:
            return False
        watches, metrics = each.watches, each.metrics
        for metric, value in reading.values.items():
            if value.__class__ is not float or metric not in metrics:
                return False
            watch = watches.get(metric)
            if watch is None or not watch.low < value < watch.high:
                return False
        return True

    def _carefully(  # noqa: PLR0913  a reading and all that it meets
        self,
        each: Channel,
        reading: Reading,
        values: Mapping[str, float],
        raws: Mapping[str, float],
        found: Circumstances,
        said: list[Output],
    ) -> Mapping[str, float]:
        """A reading past the rules; its numbers, less those of metrics that are too many."""
        if not values.keys() <= each.metrics.keys():
            values = self._admit(each, values, found.at, said)
        if "" in each.busy:
            self._judge.heard(each, found, said)
        self._doubt(each, reading, values, found, said)
        for metric, value in reading.values.items():
            if metric not in each.series and (len(each.series) > METRICS or len(metric) > NAME_CHARS):
                continue
            watch = each.watches.get(metric) or self._judge.watch(each, metric)
            x: Any = raws.get(metric, value)
            if metric in values:
                if x.__class__ is int and not -_MOST <= x < _MOST:
                    x = values[metric]
                if metric in each.busy or not watch.low < x < watch.high:
                    self._judge.value(each, metric, watch, x, found, said)
                if ON_READING in watch.detectors:
                    self._judge.learn(each, metric, ON_READING, lambda _, x=x: x, found, said)  # type: ignore[misc]
            elif value is not None and (watch.reading or metric in each.busy) and value.__class__ not in _NUMBERS:
                self._judge.value(each, metric, watch, x, found, said)
        return values

    def _old(self, at: int, now: int) -> bool:
        """Whether something of that time is old news."""
        return self.config.replay or now - at > self.config.replay_after

    def _admit(self, each: Channel, values: Mapping[str, float], at: int, said: list[Output]) -> Mapping[str, float]:
        """Meet metrics that are new; without those that are more than a channel may have."""
        for metric in values:
            if len(each.metrics) < METRICS and len(metric) <= NAME_CHARS:
                each.metrics[metric] = None
        if values.keys() <= each.metrics.keys():
            return values
        said += report(each, "crowded", at, f"more than {METRICS} metrics: the others are in no window")
        return {metric: value for metric, value in values.items() if metric in each.metrics}

    def _count(  # noqa: PLR0913  a reading and its times
        self, each: Channel, record: Record, reading: Reading, received_ms: int, at: int, believed: int
    ) -> None:
        """What is known of the channel as a whole; a time that is too far ahead counts as the one that is believed."""
        each.seen_ms = max(each.seen_ms, received_ms)
        each.first_ms = each.first_ms or received_ms
        if not each.latest_due:
            self._dirty.refresh(each)
        if not each.online:
            each.online = True
            each.look_at = min(each.look_at, each.seen_ms * _MS + self.config.idle)
        counts = each.counts
        if believed >= each.newest:
            each.newest = believed
            value = record.value or b""
            each.latest = value if len(value) <= _LATEST_BYTES else b""
            if reading.tags != each.tags or reading.units != each.units:
                self._describe(each, reading)
            if believed >= counts[0] + HOUR:
                counts[0], counts[1] = believed - believed % HOUR, 0
                if believed >= counts[2] + _DAY:
                    counts[2], counts[3] = believed - believed % _DAY, 0
        if at >= counts[0]:
            counts[1] += 1
        if at >= counts[2]:
            counts[3] += 1

    @staticmethod
    def _describe(each: Channel, reading: Reading) -> None:
        """Keep what a reading says of its channel; which rules it has depends on that."""
        if each.tags.get("facility_id") != reading.tags.get("facility_id") or reading.units != each.units:
            each.watches, each.book = {}, None  # alarms of rules that it has no more end with the next reading
        each.tags, each.units = reading.tags, reading.units

    def _doubt(
        self, each: Channel, reading: Reading, values: Mapping[str, float], found: Circumstances, said: list[Output]
    ) -> None:
        """Events of quality."""
        nulls = [metric for metric, value in reading.values.items() if value is None]
        missing = each.expected - len(reading.values) + len(nulls)
        if missing > _MISSING:
            said += report(each, "missing", found.at, f"{missing} of {each.expected} sensors have no value", missing)
        if nulls and len(values) < len(reading.values):
            said += report(each, "nulls", found.at, f"null: {', '.join(nulls)}", len(nulls))
        ahead = found.measured - found.received
        if ahead > self.config.skew:
            message = f"its time is {ahead / 1e6:.0f} s ahead of when it was received"
            said += report(each, "fast_clock", found.at, message)

    # -- windows -------------------------------------------------------------------------------------------------------

    def _fold(  # noqa: PLR0913  a reading and all that it meets
        self,
        each: Channel,
        record: Record,
        at: int,
        values: Mapping[str, float],
        raws: Mapping[str, float],
        said: list[Output],
    ) -> None:
        """Into the open base window, or into those that are closed."""
        start = at - at % self._base.size
        blocks = each.blocks
        if blocks and blocks[-1].start == start:
            block: Block | None = blocks[-1]
        else:
            block = next((block for block in blocks if block.start == start), None)
        if block is None:
            if self._is_over(each, start):
                self._correct(each, record, at, values, raws, said)
                return
            ahead = at > each.newest or len(blocks) > 2 * _OPEN
            if ahead and (len(blocks) >= _OPEN or each.weight > _HEAVY):  # those that are not ahead are few: they close
                self.tally["ahead"] += 1
                said.append(output.late(each, record, ["ahead"]))
                return
            block = Block(start)
            blocks.append(block)
            blocks.sort(key=lambda other: other.start)
            each.look_at = min(each.look_at, each.seen_ms * _MS + self.config.idle)
        elif at > each.newest and each.weight > 2 * _HEAVY:
            self.tally["ahead"] += 1
            said.append(output.late(each, record, ["ahead"]))
            return
        if len(windows.add(block, at - start, values, raws)) < len(values):
            self.tally["duplicate"] += 1
        each.weight += len(values) + 1
        if each.weight > _HEAVY and (each.saying or each.over is not None):
            self._dirty.heavy = True

    def _is_over(self, each: Channel, start: int) -> bool:
        """Whether the base window that begins there was closed, or is corrected no more."""
        if start + self._base.size + self._base.late <= each.watermark:
            return True
        if start > each.closed:  # nearly always
            return False
        return start in each.looked().windows.archived[0]

    def _correct(  # noqa: PLR0913  as `_fold`
        self,
        each: Channel,
        record: Record,
        at: int,
        values: Mapping[str, float],
        raws: Mapping[str, float],
        said: list[Output],
    ) -> None:
        roll, deep = self._opened(each)
        new, missed = roll.correct(at, values, raws, each.watermark)
        self.tally["corrected" if new else "duplicate"] += 1
        if new:
            for metric in new:
                self._judge.counted(each, metric, at - at % self._base.size, 1)
        if missed:
            self.tally["late"] += 1
            said.append(output.late(each, record, missed))
        each.saying = bool(deep.windows.loose)
        self._dirty.touch(each)
        self._dirty.shut(each)

    def _opened(self, each: Channel) -> tuple[Roll, Deep]:
        deep = each.opened()
        sizes = self.config.sizes

        def fetch(level: int, start: int) -> Closed | None:
            stored = self._load("windows", windows_key(each, sizes[level]))
            packed = closed_windows(stored).get(start) if stored is not None else None
            return None if packed is None else closed_window(packed)

        return Roll(deep.windows, sizes, fetch), deep

    # What a closing window needs takes much more memory than its readings do, and nothing of it is said before the next
    # checkpoint. So a window that is over stays open until then, or until there is something that may depend on it.

    def _leave(self, each: Channel, to: int) -> None:
        """Windows end by `to`: they are to be closed."""
        if each.over is None:
            each.over, each.over_since = to, self._now
            self._dirty.touch(each)
        elif any(each.over < block.start + self._base.size <= to for block in each.blocks):
            each.over = to
        if len(each.blocks) >= self.config.left:
            self._close(each)

    def _depends(self, each: Channel, reading: Reading, at: int, over: int) -> bool:
        """Whether it may matter to a reading, though it be quiet, that windows are still to be closed."""
        if at - at % self._base.size + self._base.size <= max(over, each.watermark):
            return True
        return each.book is not self._judge.book or reading.tags != each.tags or reading.units != each.units

    def _close(self, each: Channel) -> None:
        """Close what is over."""
        if each.over is not None:
            self._roll(each, each.over)
            self._dirty.shut(each)

    def _roll(self, each: Channel, to: int) -> None:
        """Close the windows that end by `to`, smallest first, and let rules and detectors see them; `shut` it then."""
        roll, deep = self._opened(each)
        each.over = None
        said: list[Output] = []
        while each.blocks and each.blocks[0].start + self._base.size <= to:
            block = each.blocks.pop(0)
            each.closed = max(each.closed, block.start)
            self._advance(each, deep, roll, block.start, said)
            series = roll.close(block)
            for metric, moments in series.items():
                self._judge.counted(each, metric, block.start, moments.count)
            if block.start > deep.judged:
                gap = deep.judged >= 0 and block.start - deep.judged > RUN * self._base.size
                self._closed(each, Closed(0, block.start, block, series, {}, []), said, gap=gap)
                deep.judged = block.start
        self._advance(each, deep, roll, to, said)
        roll.prune(min(to, each.watermark))
        each.pending += deferred(said)
        each.saying = bool(deep.windows.loose)
        self._dirty.touch(each)

    def _advance(self, each: Channel, deep: Deep, roll: Roll, to: int, said: list[Output]) -> None:
        known = len(deep.windows.loose)
        roll.advance(to)
        for closed in deep.windows.loose[known:]:
            if closed.version == 1 and closed.block is None:
                self._closed(each, closed, said)

    def _closed(self, each: Channel, closed: Closed, said: list[Output], *, gap: bool = False) -> None:
        """Let rules and detectors that look at windows of this size see one."""
        size = self.config.sizes[closed.level]
        end = closed.start + size.size
        found = Circumstances(end, each.over_since, self._old(end, each.over_since))
        for metric, moments in closed.series.items():
            watch = each.watches.get(metric) or self._judge.watch(each, metric)
            if size.name in watch.detectors:
                value = partial(_measured, closed.block, metric, moments)
                self._judge.learn(each, metric, size.name, value, found, said, gap=gap)
            if size.name in watch.window:
                self._judge.window(each, metric, size.name, numbers(moments), found, said)

    # -- the clock -----------------------------------------------------------------------------------------------------

    @property
    def due(self) -> int:
        """When `expire` may next have something to do (µs)."""
        return min((each.look_at for each in self._channels.values()), default=_NEVER)

    def expire(self, now_ms: int) -> bool:
        """What the time does by now: silent channels' windows close, rules of silence and alarms fall due.

        For a partition that is read to its end: what is silent there is silent. What is to be said waits for the state
        that it follows from. It sees to some channels at a time; True while there are more, to be called again.
        """
        self._now = now = now_ms * _MS
        if not self._waiting:
            book = self._rules.book
            anew, self._judge.book, self._looked = book is not self._looked, book, book
            self._waiting = [each for each in self._channels.values() if anew or each.look_at <= now]
        some, self._waiting = self._waiting[:_AT_ONCE], self._waiting[_AT_ONCE:]
        for each in some:
            if self._channels.get(each.place) is each:  # it may have been forgotten since
                self._look(each, now)
        return bool(self._waiting)

    def _look(self, each: Channel, now: int) -> None:
        if each.over is not None and now - each.over_since < _LEFT_US:
            each.look_at = min(each.look_at, now)
            return
        self._close(each)
        said: list[Output] = []
        if each.book is not self._judge.book:
            self._judge.rebook(each, each.newest, said)
        later = self._judge.look(each, now, 0 if self.config.replay else self.config.replay_after, said)
        idle = each.seen_ms * _MS + self.config.idle
        each.look_at = min(later, idle if now < idle else self._idle(each, now))
        if said:
            each.pending += deferred(said)
            self._dirty.touch(each)

    def _idle(self, each: Channel, now: int) -> int:
        """Close what a silent channel has open that is over, or forget the channel; when to look again."""
        forget = each.seen_ms * _MS + self.config.forget
        if now >= forget:
            self._forget(each)
            return _NEVER
        if each.online:
            each.online = False
            self._dirty.refresh(each)
            self._dirty.touch(each)
        past = now - self.config.grace
        ends = self._ends(each)
        if ends and min(ends) <= past:
            self._leave(each, past)
            if each.over is not None:
                return now  # and then again, when they are closed
            ends = self._ends(each)
        return min([end + self.config.grace for end in ends] + [forget])

    def _forget(self, each: Channel) -> None:
        """Let go of a channel that has not been heard of for very long: its alarms end, its entries go."""
        said: list[Output] = []
        self._judge.withdraw(each, each.newest, said)
        each.pending += deferred(said)
        self._gone += [Change("windows", windows_key(each, size), None) for size in self.config.sizes]
        for source, memories in each.looked().detectors.items():
            for metric in memories:
                self._gone.append(Change("histograms", output.histograms_key(each, source, metric), None))
        each.forgotten = True
        self._dirty.touch(each)

    def _ends(self, each: Channel) -> list[int]:
        """When its open windows end."""
        ends = [block.start + self._base.size for block in each.blocks]
        for size, upper in zip(self.config.sizes, each.looked().windows.uppers, strict=True):
            if upper is not None:
                ends.append(upper.start + size.size)
        return ends

    # -- people --------------------------------------------------------------------------------------------------------

    def acknowledge(self, key: str, by: str, at: int) -> None:
        """Somebody knows of the alarm with this key (`schemas.alarm.Subject.key`). Raises `LookupError`."""
        self._by_hand(key, lambda held: alarms.acknowledge(held, by, at))

    def resolve(self, key: str, by: str, at: int) -> None:
        """Somebody says that an alarm is done. Raises `LookupError`."""
        self._by_hand(key, lambda held: alarms.resolve(held, by, at))

    def _by_hand(self, key: str, change: Callable[[alarm.Alarm], alarms.Outcome]) -> None:
        subject = subject_of(key)
        each = self._channels.get((subject.measurement, subject.device_id, subject.channel))
        if each is None:
            raise LookupError(f"no alarm is known as {key}: see iotflow alarms ls --all")
        self._close(each)
        said: list[Output] = []
        self._judge.by_hand(each, subject, change, said)
        each.pending += deferred(said)
        self._dirty.touch(each)
        each.look_at = 0


def _is_repeat(each: Channel, record: Record) -> bool:
    """Whether decode has sent a reading before: by the place of its raw record, where that is said as decode says it.

    A raw topic that was made anew begins at low offsets again, but what it holds was received later. What was sent
    again on purpose says so in one more header, and is no repeat.
    """
    headers = record.headers
    if len(headers) != _SOURCED or headers[1][0] != wire.HEADER_SRC or headers[2][0] != wire.HEADER_INGEST_MS:
        return False
    source, ingest = headers[1][1], headers[2][1]
    try:
        place, offset, index = source.rsplit(b"/", 2)  # type: ignore[union-attr]
        at, number, received = int(offset), int(index), int(ingest)  # type: ignore[arg-type]
    except (ValueError, AttributeError, TypeError):
        return False
    if not (0 <= at < _MOST and 0 <= number < _MOST and 0 <= received < _MOST):
        return False
    name = place.decode("utf-8", "replace")
    last = each.sources.get(name)
    if last is None:
        each.sources[name] = [at, number, received]
        return False
    if (at < last[0] or (at == last[0] and number <= last[1])) and received <= last[2]:
        return True
    last[0], last[1], last[2] = at, number, max(last[2], received)
    return False


def _measured(block: Block | None, metric: str, moments: Moments, stat: str) -> float | None:
    """What detectors look at of a window: of a base window what was measured, before it was moved into its range."""
    if block is not None and stat == "mean":
        return windows.raw_mean(block, metric, moments)
    if block is not None and stat == "max":
        return windows.raw_high(block, metric, moments)
    return numbers(moments).get(stat)


def _fits(value: int) -> bool:
    """Whether a double holds something like it."""
    return -(1 << 1000) < value < 1 << 1000


def _numbers(values: Mapping[str, Value]) -> dict[str, float]:
    return {
        metric: value if value.__class__ is float else float(value)
        for metric, value in values.items()
        if value.__class__ is float or (value.__class__ is int and _fits(value))
    }


def spans(of: Mapping[str, int], late: Mapping[str, int]) -> Iterator[Window]:
    """The sizes of windows, by name, in order; each is corrected at least as long as the one before."""
    longest = 0
    for name, size in of.items():
        longest = max(longest, late.get(name, 10 * size))
        yield Window(name, size, longest)
