"""What readers are given of an archive: each reading once, in order, and what is computed of them.

An archive is in the order in which it was written. It is put in order by sorting runs of it, which are kept in
temporary files (in TMPDIR) when they are more than one, and merging them: memory is bounded by a run, disk by what is
selected.
"""

import heapq
import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from functools import reduce
from itertools import groupby
from typing import IO, Any, Final

import msgspec
from msgspec.structs import replace

from schemas.reading import Reading, Value
from sinks.base import Bucket, Function

#: A run ends at so many readings, or so many bytes of their lines.
RUN_READINGS: Final = 50_000
RUN_BYTES: Final = 32 * 2**20
#: So many runs are merged into one.
FAN_IN: Final = 32

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Reading).decode


def _place(reading: Reading) -> tuple[str, datetime, str, str]:
    return reading.device_id, reading.time, reading.channel, reading.measurement


def together(older: Reading, newer: Reading) -> Reading:
    """What two readings of one place and time say: the newer one wins, value by value."""
    left = older.values.keys() - newer.values.keys()
    if not left:
        return newer
    return replace(
        newer,
        values={**older.values, **newer.values},
        units={**{metric: unit for metric, unit in older.units.items() if metric in left}, **newer.units},
        raw={**{metric: value for metric, value in older.raw.items() if metric in left}, **newer.raw},
        tags={**older.tags, **newer.tags},
        flags=list(dict.fromkeys([*older.flags, *newer.flags])),
    )


# -- order -------------------------------------------------------------------------------------------------------------


class _Runs:
    """Sorted runs in temporary files. `levels[n]` has those that n merges made, each level older than the one below."""

    def __init__(self) -> None:
        self.levels: list[list[IO[bytes]]] = []

    def add(self, readings: Iterable[Reading], level: int = 0) -> None:
        """Keep a run that is later than all of its level."""
        if level == len(self.levels):
            self.levels.append([])
        runs = self.levels[level]
        runs.append(_spilled(readings))
        if len(runs) == FAN_IN:
            self.add(_merged(map(_again, runs)), level + 1)
            self._drop(runs)

    def __iter__(self) -> Iterator[Iterator[Reading]]:
        """Each run, the oldest first."""
        return (_again(run) for level in reversed(self.levels) for run in level)

    def close(self) -> None:
        """Take the files away."""
        for level in self.levels:
            self._drop(level)

    @staticmethod
    def _drop(runs: list[IO[bytes]]) -> None:
        for run in runs:
            run.close()
        runs.clear()


def _spilled(readings: Iterable[Reading]) -> IO[bytes]:
    file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  it is closed when its run has been merged
    file.writelines(_encode(reading) + b"\n" for reading in readings)
    return file


def _again(file: IO[bytes]) -> Iterator[Reading]:
    file.seek(0)
    return map(_decode, file)


def _merged(runs: Iterable[Iterable[Reading]]) -> Iterator[Reading]:
    """Sorted runs as one, the oldest run given first; each place once."""
    return _once(heapq.merge(*runs, key=_place))


def _once(readings: Iterable[Reading]) -> Iterator[Reading]:
    for _, same in groupby(readings, key=_place):
        yield reduce(together, same)


def in_order(readings: Iterable[tuple[Reading, int]]) -> Iterator[Reading]:
    """Readings with the length of their lines, given in the order in which they were written, in that of a scan."""
    runs = _Runs()
    try:
        run: list[Reading] = []
        size = 0
        for reading, length in readings:
            run.append(reading)
            size += length
            if len(run) >= RUN_READINGS or size >= RUN_BYTES:
                runs.add(_once(sorted(run, key=_place)))
                run.clear()
                size = 0
        run.sort(key=_place)
        yield from _merged([*runs, run])
    finally:
        runs.close()


# -- answers, from readings in the order of a scan ---------------------------------------------------------------------


def page(readings: Iterable[Reading], limit: int, offset: int) -> list[Reading]:
    """A page, newest first; so many readings are held as lie in front of its end."""
    return heapq.nsmallest(limit + offset, readings, key=_newest_first)[offset:]


def _newest_first(reading: Reading) -> tuple[int, str, str, str]:
    return (_EPOCH - reading.time) // _MICROSECOND, reading.device_id, reading.channel, reading.measurement


def latest(readings: Iterable[Reading]) -> list[Reading]:
    """The newest of each (device, channel, measurement)."""
    found: list[Reading] = []
    for _, of_device in groupby(readings, key=lambda reading: reading.device_id):
        newest = {(reading.channel, reading.measurement): reading for reading in of_device}
        found += [newest[series] for series in sorted(newest)]
    return found


def count(readings: Iterable[Reading], *, whole: bool) -> int:
    """How many values there are, or how many `whole` readings."""
    return sum(1 if whole else len(reading.values) for reading in readings)


def buckets(
    readings: Iterable[Reading], every: timedelta, functions: Sequence[Function], metrics: Sequence[str] | None
) -> list[Bucket]:
    """What each metric did in each span; the buckets of a device are held at a time, besides what is given."""
    found: list[Bucket] = []
    wanted = None if metrics is None else frozenset(metrics)
    for device, of_device in groupby(readings, key=lambda reading: reading.device_id):
        sums: dict[tuple[str, str, str, datetime], _Sum] = {}
        for reading in of_device:
            start = _EPOCH + (reading.time - _EPOCH) // every * every
            for metric, value in reading.values.items():
                if value is not None and (wanted is None or metric in wanted):
                    series = (reading.channel, reading.measurement, metric, start)
                    (sums.get(series) or sums.setdefault(series, _Sum())).add(value)
        for series in sorted(sums):
            if said := sums[series].said(functions):
                channel, measurement, metric, start = series
                found.append(Bucket(measurement, device, channel, metric, start, said))
    return found


class _Sum:
    """Values of one bucket, in the order of their times; mean and deviation by Welford's method."""

    __slots__ = ("_count", "_first", "_last", "_max", "_mean", "_min", "_numbers", "_squares", "_total")

    def __init__(self) -> None:
        self._count = 0
        self._numbers = True
        self._first: Any = None
        self._last: Any = None
        self._min: Any = None
        self._max: Any = None
        self._total: Any = 0
        self._mean = 0.0
        self._squares = 0.0

    def add(self, value: Any) -> None:
        """Take a value in."""
        self._count += 1
        self._last = value
        if self._count == 1:
            self._first = self._min = self._max = value
        self._numbers = self._numbers and not isinstance(value, bool | str)
        if self._numbers:
            self._min, self._max = min(self._min, value), max(self._max, value)
            self._total += value
            step = value - self._mean
            self._mean += step / self._count
            self._squares += step * (value - self._mean)

    def said(self, functions: Sequence[Function]) -> dict[str, Value]:
        """What can be said of them."""
        values: dict[str, Value] = {"count": self._count, "first": self._first, "last": self._last}
        if self._numbers:
            values |= {"mean": self._mean, "min": self._min, "max": self._max, "sum": self._total}
            if self._count > 1:
                values["stddev"] = math.sqrt(self._squares / (self._count - 1))
        return {function: values[function] for function in functions if function in values}
