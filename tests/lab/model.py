"""What the reading methods of a sink must give, computed in plain Python from the readings that it holds."""

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, Final

from schemas.reading import Reading, Value
from sinks.base import Bucket, Function, Selection

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


def selected(readings: Iterable[Reading], where: Selection) -> list[Reading]:
    """Those that a selection lets through, in the order of a scan."""
    return sorted(
        (
            each
            for each in readings
            if where.measurement in {None, each.measurement}
            and where.device_id in {None, each.device_id}
            and where.channel in {None, each.channel}
            and (where.start is None or each.time >= where.start)
            and (where.end is None or each.time < where.end)
        ),
        key=lambda each: (each.device_id, each.time, each.channel, each.measurement),
    )


def queried(readings: Iterable[Reading], where: Selection) -> list[Reading]:
    """All pages of a query."""
    return sorted(
        selected(readings, where),
        key=lambda each: ((EPOCH - each.time) // _MICROSECOND, each.device_id, each.channel, each.measurement),
    )


def latest(readings: Iterable[Reading], where: Selection) -> list[Reading]:
    """The newest of each series."""
    newest = {
        (each.device_id, each.channel, each.measurement): each
        for each in sorted(selected(readings, where), key=lambda each: each.time)
    }
    return [newest[series] for series in sorted(newest)]


def values_in(readings: Iterable[Reading]) -> int:
    """How many values there are."""
    return sum(len(each.values) for each in readings)


def _stddev(values: Sequence[Any]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


_NUMERIC: Final[Mapping[str, Callable[[Sequence[Any]], Value]]] = {
    "mean": statistics.fmean,
    "min": min,
    "max": max,
    "sum": sum,
    "stddev": _stddev,
}
_OF_ALL: Final[Mapping[str, Callable[[Sequence[Any]], Value]]] = {
    "count": len,
    "first": lambda values: values[0],
    "last": lambda values: values[-1],
}


def buckets(
    readings: Iterable[Reading],
    where: Selection,
    every: timedelta,
    functions: Sequence[Function],
    metrics: Sequence[str] | None = None,
) -> list[Bucket]:
    """What `aggregate` gives; a bucket of which nothing that was asked can be said is left out."""
    found: dict[tuple[Any, ...], list[Value]] = defaultdict(list)
    for each in selected(readings, where):
        start = EPOCH + (each.time - EPOCH) // every * every
        for metric, value in each.values.items():
            if value is not None and (metrics is None or metric in metrics):
                found[each.device_id, each.channel, each.measurement, metric, start].append(value)
    made = []
    for (device, channel, measurement, metric, start), values in sorted(found.items(), key=lambda item: item[0]):
        if said := _said(values, functions):
            made.append(Bucket(measurement, device, channel, metric, start, said))
    return made


def _said(values: Sequence[Value], functions: Sequence[Function]) -> dict[str, Value]:
    said: dict[str, Value] = {}
    numbers = not any(isinstance(value, bool | str) for value in values)
    for function in functions:
        compute = _OF_ALL.get(function) or (_NUMERIC[function] if numbers else None)
        result = compute(values) if compute else None
        if result is not None:
            said[function] = result
    return said


def check_buckets(expected: Sequence[Bucket], found: Sequence[Bucket]) -> None:
    """The same buckets in the same order: exact but for sums, means and deviations, which may round in their ways."""

    def place(bucket: Bucket) -> tuple[Any, ...]:
        return bucket.device_id, bucket.channel, bucket.measurement, bucket.metric, bucket.start

    assert [place(each) for each in expected] == [place(each) for each in found]
    for wanted, had in zip(expected, found, strict=True):
        assert set(wanted.values) == set(had.values), (wanted, had)
        for function, value in wanted.values.items():
            assert _same(function, value, had.values[function]), (wanted, had)


def _same(function: str, expected: Value, found: Value) -> bool:
    if function in {"mean", "sum", "stddev"}:
        return math.isclose(float(expected or 0), float(found or 0), rel_tol=1e-9, abs_tol=1e-6)
    kinds = {isinstance(value, bool) for value in (expected, found)}
    return expected == found and len(kinds) == 1


def merged(readings: Iterable[Reading]) -> list[Reading]:
    """In the order of a scan; raises `AssertionError` where two are one reading, which no test here wants."""
    ordered = selected(readings, Selection())
    for place, same in groupby(ordered, key=lambda each: (each.device_id, each.time, each.channel, each.measurement)):
        assert len(list(same)) == 1, place
    return ordered
