"""Windows: what is summed up of a channel's readings, and when that is said.

Pure. Windows are tumbling, aligned to UTC, and each size is a multiple of the one before. Readings are kept one by one
in the smallest, the base (`Block`); when it closes, what it comes to is merged into the next size, and so on. So a
reading is folded once, whatever the number of sizes; order and repeats within a base window change nothing.

A window closes when the watermark passes its end: the newest time of its channel, less a grace. A channel that is
silent has its windows closed by the clock. A reading of a window that has closed corrects it, with a higher revision,
as long as the watermark is not `late` past its end; what comes later still counts for the larger sizes alone. Closed
windows are `loose` until they are stored apart from the state, and are fetched from there to be corrected.

All times are microseconds since the epoch.
"""

from bisect import insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from math import fsum, isnan, nan, sqrt
from typing import Final

from fastdigest import TDigest
from msgspec import Struct, field

from tables.arrays import Floats, Integers, floats, integers

#: Centroids of a digest: 600 bytes, and percentiles within about a hundredth of the spread.
_CENTROIDS: Final = 32
#: Values of a series that wait for a digest in the second size's window.
_VALUES: Final = 96
_RANKS: Final = (0.5, 0.95, 0.99)
#: So many numbers of a base window are kept one by one; then they are summed up, and repeats among them are not seen.
DENSE: Final = 8192


class Window(Struct, frozen=True):
    """A size of windows: its name, how long it is, and how long after its end it is corrected."""

    name: str
    size: int
    late: int


class Moments(Struct, array_like=True):
    """What a series comes to in a window. `m2` is the sum of squared differences from the mean."""

    count: int
    total: float
    m2: float
    low: float
    high: float
    first_at: int
    first: float
    last_at: int
    last: float
    #: A t-digest, of what is not a base window's.
    digest: bytes = b""
    #: The exact percentiles of a base window.
    ranks: list[float] = []

    @property
    def mean(self) -> float:
        """The arithmetic mean."""
        return self.total / self.count

    @property
    def stddev(self) -> float:
        """Of the sample, as SQL's `stddev`; 0 of a single value."""
        return sqrt(max(0.0, self.m2) / (self.count - 1)) if self.count > 1 else 0.0

    @property
    def percentiles(self) -> list[float]:
        """The 50th, 95th and 99th."""
        if not self.digest:
            return self.ranks
        found = TDigest.from_bytes(self.digest)
        return [float(found.quantile(rank)) for rank in _RANKS]


class Block(Struct, array_like=True):
    """A base window, reading by reading.

    `times` are offsets from `start`, in the order in which they came; `columns` has an array as long for each metric,
    NaN where a reading had no number. `raws` are the originals of values that were moved into their range, by metric
    and place. `dense` is what was summed up already because it was too much to keep.
    """

    start: int
    times: Integers = field(default_factory=integers)
    columns: dict[str, Floats] = {}
    raws: dict[str, dict[int, float]] = {}
    dense: dict[str, Moments] = {}
    last: int = -1


class Closed(Struct, array_like=True):
    """A window that was closed: what each series comes to, and of a base window its readings.

    Stored apart a base window has its readings alone: what they come to follows from them.
    """

    level: int
    start: int
    block: Block | None
    series: dict[str, Moments]
    #: How often each series was said, and those to say again.
    revisions: dict[str, int]
    due: list[str]
    #: Grows with each change.
    version: int = 1


class Upper(Struct, array_like=True):
    """An open window of a larger size. `values` are of base windows, and not in the digests yet."""

    start: int
    series: dict[str, Moments]
    values: dict[str, list[float]] = {}


class Windows(Struct, array_like=True):
    """All windows of a channel but the open base ones. `uppers` and `archived` have a place for each size."""

    uppers: list[Upper | None]
    #: The starts of closed windows that can still be corrected, ascending.
    archived: list[list[int]]
    #: Closed ones that are not stored apart yet.
    loose: list[Closed]


#: Fetches a closed window that was stored apart, by its size's place and start; None where it is gone.
Fetch = Callable[[int, int], Closed | None]


def empty(sizes: int) -> Windows:
    """Of a channel that has said nothing yet."""
    return Windows([None] * sizes, [[] for _ in range(sizes)], [])


# -- numbers -----------------------------------------------------------------------------------------------------------


def summed(block: Block, metric: str) -> Moments | None:
    """What a metric comes to, None when it has no number; the same in whatever order its readings came."""
    dense = block.dense.get(metric)
    column = block.columns.get(metric, ())
    pairs = [(at, x) for at, x in zip(block.times, column, strict=True) if not isnan(x)] if column else []
    if not pairs:
        return dense
    pairs.sort()
    values = [x for _, x in pairs]
    total = _total(values)
    mean = total / len(values)
    ordered = sorted(values)
    found = Moments(
        len(values),
        total,
        _total([(x - mean) * (x - mean) for x in values]),
        ordered[0],
        ordered[-1],
        block.start + pairs[0][0],
        pairs[0][1],
        block.start + pairs[-1][0],
        pairs[-1][1],
        _digested(b"", values) if dense is not None else b"",
        [_percentile(ordered, rank) for rank in _RANKS],
    )
    return found if dense is None else merged(dense, found)


def raw_mean(block: Block, metric: str, moments: Moments) -> float:
    """The mean of what was measured, before values were moved into their range."""
    raws, column = block.raws.get(metric), block.columns.get(metric)
    if not raws or not column:
        return moments.mean
    return moments.mean + _total([raw - column[place] for place, raw in raws.items()]) / moments.count


def raw_high(block: Block, metric: str, moments: Moments) -> float:
    """The highest that was measured."""
    return max([moments.high, *block.raws.get(metric, {}).values()])


def _total(values: Sequence[float]) -> float:
    """The exact sum, rounded once; infinite where no double holds it."""
    try:
        return fsum(values)
    except OverflowError:
        return sum(values)


def _percentile(ordered: Sequence[float], rank: float) -> float:
    """By linear interpolation between the closest ranks, as SQL's `percentile_cont`."""
    at = rank * (len(ordered) - 1)
    below = int(at)
    if below + 1 == len(ordered):
        return ordered[below]
    return ordered[below] + (ordered[below + 1] - ordered[below]) * (at - below)


def merged(one: Moments, other: Moments) -> Moments:
    """Both together.

    The squares as Chan, Golub and LeVeque combine them (Updating Formulae and a Pairwise Algorithm for Computing Sample
    Variances, 1979).
    """
    count = one.count + other.count
    apart = other.mean - one.mean
    first = other if other.first_at < one.first_at else one
    last = other if other.last_at > one.last_at else one
    return Moments(
        count,
        one.total + other.total,
        one.m2 + other.m2 + apart * apart * one.count * other.count / count,
        min(one.low, other.low),
        max(one.high, other.high),
        first.first_at,
        first.first,
        last.last_at,
        last.last,
        _joined(one.digest, other.digest) if one.digest or other.digest else b"",
    )


def _digested(digest: bytes, values: Sequence[float]) -> bytes:
    found = TDigest.from_bytes(digest) if digest else TDigest(max_centroids=_CENTROIDS)
    found.batch_update(values)
    return bytes(found.to_bytes())


def _joined(one: bytes, other: bytes) -> bytes:
    if not one or not other:
        return one or other
    found = TDigest.from_bytes(one)
    found.merge_inplace(TDigest.from_bytes(other))
    return bytes(found.to_bytes())


def _single(at: int, value: float) -> Moments:
    return Moments(1, value, 0.0, value, value, at, value, at, value, _digested(b"", [value]))


# -- a base window -----------------------------------------------------------------------------------------------------


def add(block: Block, offset: int, values: Mapping[str, float], raws: Mapping[str, float]) -> Mapping[str, float]:
    """Add a reading's numbers, and give back those that were new: of one time the first value of a series counts."""
    times, columns = block.times, block.columns
    new = values
    if offset > block.last or offset not in times:
        place = len(times)
        times.append(offset)
        block.last = max(block.last, offset)
        for metric, column in columns.items():
            column.append(values.get(metric, nan))
        if len(columns) != len(values) or columns.keys() != values.keys():
            _widen(block, place, values)
    else:
        place = times.index(offset)
        new = {metric: x for metric, x in values.items() if metric not in columns or isnan(columns[metric][place])}
        _widen(block, place, new)
    for metric in raws:
        if metric in new:
            block.raws.setdefault(metric, {})[place] = raws[metric]
    if len(times) * (len(columns) + 1) >= DENSE:
        condense(block)
    return new


def _widen(block: Block, place: int, values: Mapping[str, float]) -> None:
    for metric, value in values.items():
        column = block.columns.setdefault(metric, floats())
        column.extend([nan] * (len(block.times) - len(column)))
        column[place] = value


def _numbers(block: Block, metric: str) -> Iterator[float]:
    return (x for x in block.columns.get(metric, ()) if not isnan(x))


def condense(block: Block) -> None:
    """Sum up what a block has, so that one very fast device stays bounded."""
    dense = {}
    for metric in {*block.columns, *block.dense}:
        if (moments := summed(block, metric)) is not None:
            values = list(_numbers(block, metric))
            dense[metric] = moments if moments.digest else with_digest(moments, values)
    block.dense = dense
    block.times = integers()
    block.columns = {metric: floats() for metric in block.columns}
    block.raws = {}


def with_digest(moments: Moments, values: Sequence[float]) -> Moments:
    """A base window's moments as a larger one takes them."""
    return Moments(
        moments.count,
        moments.total,
        moments.m2,
        moments.low,
        moments.high,
        moments.first_at,
        moments.first,
        moments.last_at,
        moments.last,
        _digested(b"", values),
    )


# -- closing and correcting --------------------------------------------------------------------------------------------


class Roll:
    """The windows of one channel being rolled on; `sizes` from the smallest to the largest."""

    __slots__ = ("_fetch", "_sizes", "_state")

    def __init__(self, state: Windows, sizes: Sequence[Window], fetch: Fetch) -> None:
        self._state = state
        self._sizes = sizes
        self._fetch = fetch

    def close(self, block: Block) -> dict[str, Moments]:
        """Close a base window, and give back what each series comes to."""
        found = {metric: each for metric in {**block.columns, **block.dense} if (each := summed(block, metric))}
        self._keep(Closed(0, block.start, block, found, dict.fromkeys(found, 1), list(found)))
        if len(self._sizes) > 1:
            self._rise(block, found)
        return found

    def _rise(self, block: Block, found: Mapping[str, Moments]) -> None:
        """Merge a base window into the next size: where it can, its values wait there to be digested together."""
        size = self._sizes[1].size
        start = block.start - block.start % size
        upper = self._state.uppers[1]
        values = {metric: list(_numbers(block, metric)) for metric, each in found.items() if not each.digest}
        if self.closed(1, start) or (upper is not None and upper.start > start):
            series = {
                metric: with_digest(each, values[metric]) if metric in values else each
                for metric, each in found.items()
            }
            self._merge(1, block.start, series)
            return
        self._merge(1, block.start, found)
        upper = self._state.uppers[1]
        assert upper is not None  # noqa: S101  for mypy: there it was merged into
        for metric, more in values.items():
            upper.values.setdefault(metric, []).extend(more)
            if len(upper.values[metric]) >= _VALUES:
                _digest_values(upper)

    def advance(self, to: int) -> None:
        """Close the larger windows that end by `to`; base windows that do must be closed by now."""
        for level in range(1, len(self._sizes)):
            upper = self._state.uppers[level]
            if upper is not None and upper.start + self._sizes[level].size <= to:
                self._close(level, upper)

    def prune(self, watermark: int) -> None:
        """Forget the closed windows that are corrected no more."""
        for size, starts in zip(self._sizes, self._state.archived, strict=True):
            while starts and starts[0] + size.size + size.late <= watermark:
                del starts[0]

    def closed(self, level: int, start: int) -> bool:
        """Whether a window was closed, and can be corrected."""
        return start in self._state.archived[level]

    def correct(
        self, at: int, values: Mapping[str, float], raws: Mapping[str, float], watermark: int
    ) -> tuple[Mapping[str, float], list[str]]:
        """Fold a reading whose base window was closed, or is corrected no more.

        What of it was new, and the names of the sizes that it came too late for.
        """
        missed = []
        new = values
        for level, size in enumerate(self._sizes):
            start = at - at % size.size
            if start + size.size + size.late <= watermark:
                missed.append(size.name)
            elif level == 0:
                closed = self._loose(0, start)
                if closed is None or closed.block is None:
                    missed.append(size.name)
                    continue
                new = add(closed.block, at - start, values, raws)
                if not new:
                    return {}, []
                for metric in new:
                    if (moments := summed(closed.block, metric)) is not None:
                        closed.series[metric] = moments
                self._say_again(closed, new)
            else:
                self._merge(level, at, {metric: _single(at, value) for metric, value in new.items()})
                break
        return new, missed

    def _close(self, level: int, upper: Upper) -> None:
        self._state.uppers[level] = None
        _digest_values(upper)
        series = upper.series
        self._keep(Closed(level, upper.start, None, series, dict.fromkeys(series, 1), list(series)))
        if level + 1 < len(self._sizes):
            self._merge(level + 1, upper.start, series)

    def _merge(self, level: int, at: int, series: Mapping[str, Moments]) -> None:
        """Merge into the window of a size that holds `at`; where that is closed, also into those above it."""
        start = at - at % self._sizes[level].size
        upper = self._state.uppers[level]
        if self.closed(level, start):
            closed = self._loose(level, start)
            if closed is not None:
                _into(closed.series, series)
                self._say_again(closed, series)
            if level + 1 < len(self._sizes):
                self._merge(level + 1, start, series)
        elif upper is not None and upper.start == start:
            _into(upper.series, series)
        elif upper is not None and start < upper.start:
            self._keep(Closed(level, start, None, dict(series), dict.fromkeys(series, 1), list(series)))
            if level + 1 < len(self._sizes):
                self._merge(level + 1, start, series)
        else:
            if upper is not None:
                self._close(level, upper)
            self._state.uppers[level] = Upper(start, {metric: copy(each) for metric, each in series.items()})

    def _keep(self, closed: Closed) -> None:
        insort(self._state.archived[closed.level], closed.start)
        self._state.loose.append(closed)

    def _loose(self, level: int, start: int) -> Closed | None:
        """A closed window, to be changed; None where the table that it was stored in has lost it."""
        for closed in self._state.loose:
            if closed.level == level and closed.start == start:
                return closed
        fetched = self._fetch(level, start)
        if fetched is not None:
            self._state.loose.append(fetched)
        return fetched

    def _say_again(self, closed: Closed, metrics: Mapping[str, object]) -> None:
        closed.version += 1
        for metric in metrics:
            closed.revisions[metric] = closed.revisions.get(metric, 0) + 1
            if metric not in closed.due:
                closed.due.append(metric)


def _digest_values(upper: Upper) -> None:
    for metric, values in upper.values.items():
        moments = upper.series[metric]
        moments.digest = _digested(moments.digest, values)
    upper.values = {}


def _into(series: dict[str, Moments], more: Mapping[str, Moments]) -> None:
    for metric, moments in more.items():
        found = series.get(metric)
        series[metric] = copy(moments) if found is None else merged(found, moments)
