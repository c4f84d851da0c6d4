"""Reading back from Apache IoTDB: IoTDB devices are found by their paths, and their rows merged in the order asked.

What is held at a time is the names of the devices, and a page of rows of each device that is being merged.
"""

import heapq
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

from schemas.reading import Reading, Value
from sinks.base import EVERYTHING, Bucket, Function, Selection, device_of, span_of
from sinks.iotdb.mapping import device_path, identity_of, name_of, nodes_of, quoted, series_node, single, ticked
from sinks.iotdb.rpc import Link, StatusError
from sinks.iotdb.settings import Settings
from sinks.iotdb.times import LIMIT, bound, instant, width
from sinks.meta import META, apply_meta

#: Device, channel and measurement.
Identity = tuple[str, str, str]

#: Devices of one query: the memory that the server has for one would not do for all.
_AT_ONCE: Final = 200
#: Rows of the pages of a scan together, and of each at least.
_PAGE: Final = 5000
_LEAST: Final = 64
#: Spans and metrics of one query for an aggregate.
_SPANS: Final = 10_000
_METRICS: Final = 50
_FUNCTIONS: Final[Mapping[Function, str]] = {
    "count": "count",
    "mean": "avg",
    "min": "min_value",
    "max": "max_value",
    "sum": "sum",
    "first": "first_value",
    "last": "last_value",
    "stddev": "stddev_samp",
}
_OF_ALL_TYPES: Final = frozenset({"count", "first", "last"})
_NUMBERS: Final = frozenset({"INT32", "INT64", "FLOAT", "DOUBLE"})
#: What the server says to a deletion of what somebody else has just deleted.
_NOT_THERE: Final = 508
#: How values of its types are read that come as texts.
_OF_TEXT: Final[Mapping[str, Callable[[str], Value]]] = {
    "BOOLEAN": lambda text: text == "true",
    "INT32": int,
    "INT64": int,
    "FLOAT": lambda text: single(float(text)),
    "DOUBLE": float,
    "TEXT": str,
}


class _Span(NamedTuple):
    """Instants of the server, the last one excluded; None has no end."""

    since: int | None
    until: int | None

    @property
    def empty(self) -> bool:
        return self.since is not None and self.until is not None and self.since >= self.until

    def where(self) -> str:
        """The condition as a statement has it, '' where there is none."""
        conditions = [f"time >= {self.since}"] if self.since is not None else []
        conditions += [f"time < {self.until}"] if self.until is not None else []
        return f" WHERE {' AND '.join(conditions)}" if conditions else ""


class Reader(ABC):
    """`sinks.base.Readable`, for a sink that has a connection."""

    settings: Settings
    _precision: str

    @abstractmethod
    def _connected(self) -> Link: ...

    @abstractmethod
    def _forget(self) -> None:
        """What is remembered of what is stored may be so no longer."""

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of any statement, without their time."""
        _, rows = await self._connected().execute(statement)
        return [row[1:] for row in rows]

    def _path(self, device: str, measurement: str, channel: str) -> str:
        path = device_path(device, measurement, channel, self.settings.default_measurement)
        return f"{self.settings.database}.{path}"

    def _quoted(self, identity: Identity) -> str:
        device, channel, measurement = identity
        return quoted(self._path(device, measurement, channel))

    def _span(self, where: Selection) -> _Span:
        since, until = (None if time is None else bound(time, self._precision) for time in (where.start, where.end))
        return _Span(since, until)

    async def _identities(self, where: Selection) -> list[Identity]:
        """What is selected, in order."""
        settings = self.settings
        depth = settings.database.count(".") + 1
        patterns = [f"{settings.database}.**"]
        if where.device_id is not None:
            device = self._quoted((where.device_id, "", settings.default_measurement))
            patterns = [device, f"{device}.*.*"]
        found = []
        for pattern in patterns:
            _, rows = await self._connected().execute(f"SHOW DEVICES {pattern}")
            for _, path, *_ in rows:
                identity = identity_of(nodes_of(path)[depth:], settings.default_measurement)
                if identity and _selected(identity, where):
                    found.append(identity)
        return sorted(found)

    async def scan(self, where: Selection = EVERYTHING) -> AsyncIterator[Reading]:
        """Every stored reading in (device, time, channel, measurement) order; `start` inclusive, `end` exclusive."""
        span = self._span(where)
        if span.empty:
            return
        for _, group in groupby(await self._identities(where), key=itemgetter(0)):
            identities = list(group)
            page = max(_PAGE // len(identities), _LEAST)
            async for reading in _merged((-LIMIT, _Series(self, identity, span, page)) for identity in identities):
                yield reading

    async def query(self, where: Selection = EVERYTHING, *, limit: int = 100, offset: int = 0) -> list[Reading]:
        """A page of readings, newest first, those of one instant in (device, channel, measurement) order."""
        span = self._span(where)
        if limit <= 0 or span.empty:
            return []
        identities = await self._identities(where)
        if len(identities) == 1:
            series = _Series(self, identities[0], span, min(limit, _PAGE), newest=True, skip=offset)
            return [reading async for reading in _first(limit, series)]
        newest = {identity: max(at for at, _, _ in cells) for identity, cells in await self._last(identities, span)}
        # A device is looked at only when all that is newer than its newest row has been taken.
        all_series = [(-at, _Series(self, identity, span, _LEAST, newest=True)) for identity, at in newest.items()]
        found: list[Reading] = []
        async for reading in _merged(all_series):
            if offset > 0:
                offset -= 1
                continue
            found.append(reading)
            if len(found) >= limit:
                break
        return found

    async def latest(self, where: Selection) -> list[Reading]:
        """The newest reading of each (device, channel, measurement), in that order."""
        span = self._span(where)
        if span.empty:
            return []
        found = []
        for identity, cells in await self._last(await self._identities(where), span):
            newest = max(at for at, _, _ in cells)
            row = {node: value for at, node, value in cells if at == newest}
            found.append((identity, self._reading(identity, newest, row)))
        return [reading for _, reading in sorted(found, key=itemgetter(0))]

    async def _last(
        self, identities: Sequence[Identity], span: _Span
    ) -> list[tuple[Identity, list[tuple[int, str, Value]]]]:
        """The last value of each series with its time, by what it belongs to."""
        found: list[tuple[Identity, list[tuple[int, str, Value]]]] = []
        for some in _portions(identities, _AT_ONCE):
            places = {tuple(nodes_of(self._quoted(identity))): identity for identity in some}
            cells: dict[Identity, list[tuple[int, str, Value]]] = defaultdict(list)
            paths = ", ".join(map(self._quoted, some))
            _, rows = await self._connected().execute(f"SELECT LAST * FROM {paths}{span.where()}")  # noqa: S608
            for at, path, text, kind in rows:
                *device, node = nodes_of(path)
                cells[places[tuple(device)]].append((at, node, _OF_TEXT[kind](text)))
            found += cells.items()
        return found

    async def count(self, where: Selection = EVERYTHING, *, readings: bool = False) -> int:
        """How many values are stored; with `readings`, how many readings."""
        span = self._span(where)
        if span.empty:
            return 0
        what = "count_time(*)" if readings else "count(*)"
        total = 0
        for some in _portions(await self._identities(where), _AT_ONCE):
            paths = ", ".join(map(self._quoted, some))
            statement = f"SELECT {what} FROM {paths}{span.where()} ALIGN BY DEVICE"  # noqa: S608
            names, rows = await self._connected().execute(statement)
            counted = [place for place, name in enumerate(names, 1) if name not in {"Device", f"count({META})"}]
            total += sum(row[place] or 0 for row in rows for place in counted)
        return total

    async def aggregate(
        self,
        where: Selection,
        every: timedelta,
        functions: Sequence[Function] = ("count", "mean", "min", "max"),
        metrics: Sequence[str] | None = None,
    ) -> list[Bucket]:
        """Buckets that hold a value, in (device, channel, measurement, metric, start) order; nulls do not count.

        Raises `ValueError` where `start` or `end` is missing, or `every` is no span of the server's time.
        """
        span_of(where, every, functions)
        each, span = width(every, self._precision), self._span(where)
        if span.empty:
            return []
        found: list[Bucket] = []
        for identity in await self._identities(where):
            types = await self._types_of(self._quoted(identity))
            types.pop(META, None)
            if metrics is not None:
                wanted = {node for metric in metrics for node in nodes_of(series_node(metric))}
                types = {node: kind for node, kind in types.items() if node in wanted}
            of_it: list[Bucket] = []
            for some in _portions(sorted(types), _METRICS):
                calls = [
                    (node, function)
                    for node in some
                    for function in functions
                    if types[node] in _NUMBERS or function in _OF_ALL_TYPES
                ]
                of_it += [bucket async for bucket in self._buckets(identity, span, each, calls)]
            found += sorted(of_it, key=lambda bucket: (bucket.metric, bucket.start))
        return found

    async def _buckets(
        self, identity: Identity, span: _Span, each: int, calls: Sequence[tuple[str, Function]]
    ) -> AsyncIterator[Bucket]:
        """Buckets of some metrics of an IoTDB device, by time; stretches without a value are skipped."""
        path, nodes = self._quoted(identity), list(dict.fromkeys(node for node, _ in calls))
        if not calls:
            return
        device, channel, measurement = identity
        columns = ", ".join(map(ticked, nodes))
        some = ", ".join(f"{_FUNCTIONS[function]}({ticked(node)})" for node, function in calls)
        having = " OR ".join(f"count({ticked(node)}) > 0" for node in nodes)
        link, since, until = self._connected(), span.since, span.until
        while since is not None and until is not None and since < until:
            left = _Span(since, until).where()
            _, rows = await link.execute(f"SELECT {columns} FROM {path}{left} LIMIT 1")  # noqa: S608
            first = next(rows, None)
            if first is None:
                return
            start = first[0] // each * each
            stop = min(start + _SPANS * each, -(-until // each) * each, LIMIT - 1)
            group = f"GROUP BY ([{max(start, 1 - LIMIT)}, {stop}), {each}{self._precision})"
            _, rows = await link.execute(f"SELECT {some} FROM {path}{left} {group} HAVING {having}")  # noqa: S608
            for at, *results in rows:
                said: dict[str, dict[str, Value]] = defaultdict(dict)
                for (node, function), result in zip(calls, results, strict=True):
                    if result is not None and (function != "count" or result):
                        said[node][function] = result
                for node, values in said.items():
                    time = instant(at, self._precision)
                    yield Bucket(measurement, device, channel, name_of(node), time, values)
            since = stop

    async def delete(self, where: Selection) -> None:
        """Delete what is selected of a device; without a span its series go too, so their types may be others then.

        That nothing is there is no error. Raises `ValueError` where no device is named.
        """
        device_of(where)
        span = self._span(where)
        if span.empty:
            return
        for some in _portions(await self._identities(where), _AT_ONCE):
            series = ", ".join(f"{self._quoted(identity)}.*" for identity in some)
            if span.where():
                await self.execute(f"DELETE FROM {series}{span.where()}")  # noqa: S608
                continue
            try:
                await self.execute(f"DELETE TIMESERIES {series}")
            except StatusError as error:
                if error.codes != {_NOT_THERE}:
                    raise
        self._forget()

    async def _types_of(self, path: str) -> dict[str, str]:
        """The types of an IoTDB device's series, by their nodes without back-ticks."""
        names, rows = await self._connected().execute(f"SHOW TIMESERIES {quoted(path)}.*")
        place = names.index("DataType") + 1
        return {nodes_of(row[1])[-1]: row[place] for row in rows}

    def _reading(self, identity: Identity, at: int, row: dict[str, Any]) -> Reading:
        """A reading of a row's cells by their nodes."""
        device, channel, measurement = identity
        said = apply_meta(row.pop(META, ""), measurement)
        values = {name_of(node): cell for node, cell in row.items()}
        return Reading(measurement, device, instant(at, self._precision), values, channel, **said)

    async def rows(
        self, identity: Identity, span: _Span, *, limit: int, offset: int = 0, newest: bool = False
    ) -> list[tuple[int, Reading]]:
        """A page of an IoTDB device's rows by time, each with it as the server counts it."""
        order = " ORDER BY TIME DESC" if newest else ""
        skip = f" OFFSET {offset}" if offset else ""
        path = self._quoted(identity)
        statement = f"SELECT * FROM {path}{span.where()}{order} LIMIT {limit}{skip}"  # noqa: S608  it is quoted
        names, rows = await self._connected().execute(statement)
        nodes = [nodes_of(name)[-1] for name in names]
        found = []
        for at, *cells in rows:
            row = {node: cell for node, cell in zip(nodes, cells, strict=True) if cell is not None}
            found.append((at, self._reading(identity, at, row)))
        return found


class _Series:
    """The readings of one IoTDB device by time, page by page: no query stays open on the server between pages."""

    def __init__(  # noqa: PLR0913  each is an option of its own
        self, reader: Reader, identity: Identity, span: _Span, page: int, *, newest: bool = False, skip: int = 0
    ) -> None:
        self.identity, self.newest = identity, newest
        self._reader, self._span, self._limit, self._skip = reader, span, page, skip
        self._page: Iterator[tuple[int, Reading]] = iter(())
        self._more = True

    async def next(self) -> tuple[int, Reading] | None:
        """The next one with its place in the order, None behind the last."""
        found = next(self._page, None)
        if found is None and self._more:
            await self._turn()
            found = next(self._page, None)
        return found and (-found[0] if self.newest else found[0], found[1])

    async def _turn(self) -> None:
        rows = await self._reader.rows(
            self.identity, self._span, limit=self._limit, offset=self._skip, newest=self.newest
        )
        self._more = len(rows) == self._limit
        self._page, self._skip = iter(rows), 0
        self._limit = min(self._limit * 2, _PAGE) if self.newest else self._limit
        if rows:
            at = rows[-1][0]
            self._span = self._span._replace(until=at) if self.newest else self._span._replace(since=at + 1)


async def _merged(beginnings: Iterable[tuple[int, _Series]]) -> AsyncIterator[Reading]:
    """The readings of several series as one; each comes with a place in the order that none of its own is before."""
    heap: list[tuple[int, Identity, _Series, Reading | None]] = [
        (at, series.identity, series, None) for at, series in beginnings
    ]
    heapq.heapify(heap)
    while heap:
        _, identity, series, reading = heapq.heappop(heap)
        if reading is not None:
            yield reading
        following = await series.next()
        if following is not None:
            heapq.heappush(heap, (following[0], identity, series, following[1]))


async def _first(limit: int, series: _Series) -> AsyncIterator[Reading]:
    for _ in range(limit):
        found = await series.next()
        if found is None:
            return
        yield found[1]


def _selected(identity: Identity, where: Selection) -> bool:
    asked = where.device_id, where.channel, where.measurement
    return all(wanted in {None, had} for wanted, had in zip(asked, identity, strict=True))


def _portions(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
