"""What a checkpoint is made of: which channels are due, what is kept and said of them, and when it may be let go of."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Final, NamedTuple

from tables import channel, output, windows
from tables.channel import Channel, Deep
from tables.histograms import Histograms
from tables.judge import Load
from tables.output import Change, Output, closed_window, closed_windows, packed_windows, windows_key
from tables.windows import Window

#: Channels of which what a closing window needs is in memory until the next checkpoint: some 7 KB each.
_CLOSED: Final = 500
#: Base windows that can be corrected are kept reading by reading up to so much.
_ENTRY_BYTES: Final = 400_000
_NEVER: Final = 1 << 62

#: Histograms of a channel that are to be stored anew, with what they look at and the metric.
Learnt = Callable[[Channel, Deep], Iterable[tuple[str, str, Histograms]]]


class Dirty:
    """The channels that have changed since they were last in a snapshot."""

    def __init__(self) -> None:
        #: The offset of the record at hand; between chunks, the one behind the last.
        self.offset = 0
        #: A channel keeps as many numbers as may be kept until the next checkpoint.
        self.heavy = False
        #: The one that changed first in front: from which offset on.
        self._touched: dict[Channel, int] = {}
        #: Those of them that have something to say, once their state is kept.
        self._saying: dict[Channel, None] = {}
        #: Those of them that keep in memory what only a closing window needs.
        self._large: dict[Channel, None] = {}
        #: Those of which the last values have not been said.
        self._fresh: dict[Channel, None] = {}

    def __len__(self) -> int:
        return len(self._touched)

    @property
    def full(self) -> bool:
        """Whether as much is kept in memory as may be until the next checkpoint."""
        return self.heavy or len(self._large) >= _CLOSED

    @property
    def unsaid(self) -> int:
        """How many have something to say."""
        return len(self._saying)

    @property
    def fresh(self) -> int:
        """Of how many the last values were not said."""
        return len(self._fresh)

    @property
    def safe(self) -> int:
        """The offset before which nothing has changed any of them."""
        return next(iter(self._touched.values()), _NEVER)

    def due(self, before: int) -> Iterator[Channel]:
        """Those that changed before an offset, the first first, then the others that have something to say."""
        for each, since in self._touched.items():
            if since >= before:
                break
            yield each
        yield from (each for each in self._saying if self._touched[each] >= before)

    def touch(self, each: Channel) -> None:
        """It belongs into a snapshot: into the next one, if it has something to say."""
        if not each.touched:
            each.touched = True
            self._touched[each] = self.offset
        if each.pending or each.saying or each.forgotten or each.over is not None:
            self._saying[each] = None

    def refresh(self, each: Channel) -> None:
        """Its last values are others now."""
        each.latest_due = True
        self._fresh[each] = None

    def shut(self, each: Channel) -> None:
        """Pack what was opened of it, to be kept in memory until its snapshot is kept."""
        each.shut()
        if each in self._saying:  # or it would wait for no checkpoint
            self._large[each] = None

    def take(self, each: Channel) -> None:
        """It is in a snapshot."""
        del self._touched[each]
        self._saying.pop(each, None)
        self._fresh.pop(each, None)
        each.touched = False

    def latest(self, most: int) -> list[Channel]:
        """Take `most` of those of which the last values were not said."""
        some = list(islice(self._fresh, most))
        for each in some:
            del self._fresh[each]
            each.latest_due = False
        return some

    def let_go(self, each: Channel, settled: channel.Logs | None) -> None:
        """It keeps no more in memory than each reading needs: the table has the rest."""
        each.let_go(settled)
        each.saying = False
        self._large.pop(each, None)

    def hush(self, each: Channel) -> None:
        """It has nothing to say any more, though it may have changed."""
        self._saying.pop(each, None)
        self._large.pop(each, None)


class _Kept(NamedTuple):
    """What a snapshot has of a channel, to be let go of when it is kept and said."""

    channel: Channel
    packed: bytes | None
    pending: int
    #: Closed windows by size, start and version.
    said: set[tuple[int, int, int]]
    logs: channel.Logs


class Snapshot:
    """What is to be kept, and then said: `states`, then `outputs`, then `side`; and when all that is done, `done`.

    `side` is of the tables beside the state: what they are to keep once the outputs are said.
    """

    def __init__(self, dirty: Dirty, side: list[Change], sizes: Sequence[Window], load: Load) -> None:
        self._dirty = dirty
        self._sizes = sizes
        self._load = load
        self.states: list[tuple[bytes, bytes | None]] = []
        self.outputs: list[Output] = []
        self.side = side
        self._kept: list[_Kept] = []

    def add(self, each: Channel, generation: int, learnt: Learnt) -> bool:
        """Take a channel in, of which nothing is over; whether that is the end of it, since it was forgotten.

        `generation` is the consumer group's.
        """
        said: set[tuple[int, int, int]] = set()
        logs: channel.Logs = []
        self._dirty.take(each)
        self.outputs += output.pending(each)
        if each.saying:
            deep = each.opened()
            for closed in deep.windows.loose:
                self.outputs += output.aggregates(each, self._sizes[closed.level], closed)
                said.add((closed.level, closed.start, closed.version))
            self.side += _archive(each, deep, self._sizes, self._load)
            for source, metric, histograms in learnt(each, deep):
                self.side.append(Change("histograms", output.histograms_key(each, source, metric), histograms.pack()))
                logs.append((source, metric, histograms.n))
        each.shut()
        if each.latest_due and each.latest:
            self.outputs.append(output.last_values(each))
        if each.forgotten and not each.pending and not said:
            self.states.append((each.key, None))
            self._dirty.hush(each)
            return True
        self.states.append((each.key, each.pack(generation, self._sizes)))
        each.latest_due = False
        self._kept.append(_Kept(each, each.packed, len(each.pending), said, logs))
        return False

    def done(self) -> None:
        """All of it is kept and said: what was only held for that is let go of."""
        for each, packed, pending, said, logs in self._kept:
            del each.pending[:pending]
            if each.packed is packed and each.deep is None:
                self._dirty.let_go(each, logs if said else None)
            elif said:  # it has gone on meanwhile
                deep = each.opened()
                channel.settle(deep, said, logs)
                each.saying = bool(deep.windows.loose)
            if said:
                _weigh(each)
                each.shut()
            if not each.saying and not each.pending and each.over is None:
                self._dirty.hush(each)
            if each.forgotten:
                self._dirty.touch(each)  # now that nothing of it waits any more
        self._dirty.heavy = False


def _archive(each: Channel, deep: Deep, sizes: Sequence[Window], load: Load) -> Iterator[Change]:
    """The entries of the table `windows` with those that are let go of, and without those that are too old."""
    fresh: dict[int, dict[int, bytes]] = {}
    for closed in deep.windows.loose:
        fresh.setdefault(closed.level, {})[closed.start] = output.archived(closed)
    for level, entries in fresh.items():
        key = windows_key(each, sizes[level])
        stored = load("windows", key)
        known = {**closed_windows(stored), **entries} if stored is not None else entries
        starts = set(deep.windows.archived[level])
        left = {start: packed for start, packed in known.items() if start in starts}
        if level == 0:
            _fit(left)
        yield Change("windows", key, packed_windows(left) if left else None)


def _fit(entries: dict[int, bytes]) -> None:
    """Sum the oldest base windows of an entry up, so that it fits in a message; repeats in these are not seen."""
    size = sum(map(len, entries.values()))
    for start in sorted(entries):
        if size <= _ENTRY_BYTES:
            return
        closed = closed_window(entries[start])
        if closed.block is not None and closed.block.times:
            windows.condense(closed.block)
            size -= len(entries[start])
            entries[start] = output.archived(closed)
            size += len(entries[start])


def _weigh(each: Channel) -> None:
    """Count the numbers that a channel keeps one by one."""
    blocks = [*each.blocks]
    if each.saying:
        blocks += [closed.block for closed in each.looked().windows.loose if closed.block is not None]
    each.weight = sum(len(block.times) * (len(block.columns) + 1) for block in blocks)
