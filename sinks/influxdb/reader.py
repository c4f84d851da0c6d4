"""Reading back from InfluxDB 2, by InfluxQL: Flux answers with CSV, which alters line breaks in texts.

A measurement is read from the bucket that it goes to (`Settings.bucket_of`). Where a field's type differs between
shards, the values of each type are read.
"""

import heapq
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from schemas.reading import Reading, Value
from sinks.base import EVERYTHING, Bucket, Function, Selection, device_of, span_of
from sinks.influxdb.fields import readable
from sinks.influxdb.lines import CHANNEL, DEVICE, EPOCH, MICROSECOND, original, stored
from sinks.influxdb.server import Link
from sinks.meta import META, apply_meta

#: The instants that InfluxDB can hold, in nanoseconds.
_FIRST: Final = -(2**63) + 2
_END: Final = 2**63 - 1
#: Statements of one request, and fields of one statement that computes.
_STATEMENTS: Final = 100
_COMPUTED: Final = 100
#: Rows of all series that a page of a scan has about, and rows that it has at least of each.
_PAGE: Final = 10_000
_LEAST: Final = 100
_HEADERS: Final = (("Content-Type", "application/x-www-form-urlencoded"), ("Accept", "application/x-msgpack"))
_OF_TEXTS: Final[frozenset[Function]] = frozenset({"count", "first", "last"})
_NUMBERS: Final = frozenset({"float", "integer", "unsigned"})

Item = TypeVar("Item")


class UnreadableError(ConnectionError):
    """The server does not let a bucket be read, or not now; has its words."""


class _Table(Struct, frozen=True):
    """A measurement, by its stored name, in a bucket."""

    bucket: str
    name: str
    fields: Sequence[tuple[str, str]]

    @property
    def columns(self) -> str:
        """What selects every field, in order, under names that no tag has."""
        return ", ".join(f'{_typed(name, kind)} AS "_{place}"' for place, (name, kind) in enumerate(self.fields))


class Reader(Link):
    """`sinks.base.Readable` for InfluxDB 2."""

    async def scan(self, where: Selection = EVERYTHING) -> AsyncIterator[Reading]:
        """Every stored reading in (device, time, channel, measurement) order, device by device, in pages."""
        if _is_empty(where):
            return
        tables = {(table.bucket, table.name): table for table in await self._tables(where)}
        for device, places in (await self._devices(where)).items():
            async for page in self._pages([tables[place] for place in places if place in tables], device, where):
                for reading in heapq.merge(*page, key=attrgetter("time", "channel", "measurement")):
                    yield reading

    async def query(self, where: Selection = EVERYTHING, *, limit: int = 100, offset: int = 0) -> list[Reading]:
        """A page of readings, newest first, those of one instant in (device, channel, measurement) order."""
        last = offset + limit
        if limit <= 0 or _is_empty(where):
            return []
        tables = await self._tables(where)
        newest: list[Reading] = []
        cut: dict[datetime, list[_Table]] = defaultdict(list)
        for table, series in await self._rows(tables, where, f"ORDER BY time DESC LIMIT {last}"):
            found = list(_readings(table, series))
            newest += found
            if len(found) == last:
                cut[found[-1].time].append(table)
        newest.sort(key=_newest_first)
        if len(newest) > last:
            del newest[last:]
        # Of the last instant of all there may be more, in any order.
        end = newest[-1].time if newest else EPOCH
        if cut[end]:
            at_end = msgspec.structs.replace(where, start=end, end=end + MICROSECOND)
            newest = [found for found in newest if found.time > end]
            for table, series in await self._rows(tables, at_end, ""):
                newest += _readings(table, series)
            newest.sort(key=_newest_first)
        return newest[offset:last]

    async def latest(self, where: Selection) -> list[Reading]:
        """The newest reading of each (device, channel, measurement), in that order."""
        if _is_empty(where):
            return []
        newest: dict[tuple[str, str, str], Reading] = {}
        rows = await self._rows(await self._tables(where), where, "GROUP BY * ORDER BY time DESC LIMIT 1", tags=False)
        for table, series in rows:
            for found in _readings(table, series):
                place = (found.device_id, found.channel, found.measurement)
                if place not in newest or found.time >= newest[place].time:
                    newest[place] = found
        return [newest[place] for place in sorted(newest)]

    async def count(self, where: Selection = EVERYTHING, *, readings: bool = False) -> int:
        """How many values are stored; with `readings`, how many readings, which are all read for it."""
        total = 0
        if _is_empty(where):
            return total
        if readings:
            async for _ in self.scan(where):
                total += 1
            return total
        for table in await self._tables(where):
            counts = [f"count({_typed(*field)})" for field in table.fields if field[0] != META]
            queries = [
                f"SELECT {', '.join(some)} FROM {_quoted(table.name)} {_clause(where)}"  # noqa: S608  quoted
                for some in _batched(counts, _COMPUTED)
            ]
            for series in await self._select(table.bucket, queries, where):
                total += sum(count or 0 for row in series["values"] for count in row[1:])
        return total

    async def aggregate(
        self,
        where: Selection,
        every: timedelta,
        functions: Sequence[Function] = ("count", "mean", "min", "max"),
        metrics: Sequence[str] | None = None,
    ) -> list[Bucket]:
        """Buckets that hold a value, in (device, channel, measurement, metric, start) order; nulls do not count."""
        span_of(where, every, functions)
        if _is_empty(where):
            return []
        buckets: dict[tuple[str, str, str, str, int], dict[str, Value]] = {}
        group = f"GROUP BY time({every // MICROSECOND}u), {_quoted(DEVICE)}, {_quoted(CHANNEL)} fill(none)"
        for table in await self._tables(where):
            wanted = [
                field
                for field in table.fields
                if field[0] != META and (metrics is None or original(field[0]) in metrics)
            ]
            for fields in _batched(wanted, _COMPUTED):
                asked = [(field, name) for field in fields for name in functions if _computes(name, field[1])]
                if not asked:
                    continue
                columns = ", ".join(f"{name}({_typed(*field)})" for field, name in asked)
                query = f"SELECT {columns} FROM {_quoted(table.name)} {_clause(where)} {group}"  # noqa: S608  quoted
                for series in await self._select(table.bucket, [query], where):
                    _collect(buckets, series, asked)
        return [
            Bucket(measurement, device, channel, metric, _time(start), values)
            for (device, channel, measurement, metric, start), values in sorted(buckets.items(), key=lambda one: one[0])
        ]

    async def delete(self, where: Selection) -> None:
        """Delete what is selected of a device, in every bucket; that nothing is there is no error."""
        device_of(where)
        if _is_empty(where):
            return
        for bucket in self.settings.stores:
            found = await self._select(bucket, [f"{_DEVICES} WHERE {DEVICE} = $device"], where)
            names = [series["name"] for series in found if where.measurement in {None, original(series["name"])}]
            queries = [f"DELETE FROM {_quoted(name)} {_clause(where)}" for name in names]  # noqa: S608  quoted
            await self._select(bucket, queries, where)

    async def field_types(self) -> list[tuple[str, str, str]]:
        """Each measurement's fields and their types, by stored names, in the bucket that it is written to."""
        return [
            (series["name"], field, kind)
            for bucket in self.settings.stores
            for series in await self._select(bucket, [_FIELDS])
            if self.settings.bucket_of(original(series["name"])) == bucket
            for field, kind in series["values"]
        ]

    async def strangers(self) -> list[tuple[str, str, str | None]]:
        """Bucket and name of what stands among our measurements and is read by nobody.

        The third is the bucket that the measurement goes to, None for one whose points have no device.
        """
        found: list[tuple[str, str, str | None]] = []
        for bucket in self.settings.stores:
            ours = {series["name"] for series in await self._select(bucket, [_DEVICES])}
            for series in await self._select(bucket, ["SHOW MEASUREMENTS"]):
                for (name,) in series["values"]:
                    goes_to = self.settings.bucket_of(original(name))
                    if name not in ours:
                        found.append((bucket, original(name), None))
                    elif goes_to != bucket:
                        found.append((bucket, original(name), goes_to))
        return found

    # -- what the methods share ----------------------------------------------------------------------------------------

    async def _tables(self, where: Selection) -> list[_Table]:
        """The measurements selected, with their fields."""
        settings, one = self.settings, where.measurement
        query = _FIELDS if one is None else f"{_FIELDS} FROM {_quoted(stored(one))}"
        tables = []
        for bucket in settings.stores if one is None else [settings.bucket_of(one)]:
            for series in await self._select(bucket, [query]):
                if settings.bucket_of(original(series["name"])) == bucket:
                    kinds: dict[str, list[str]] = defaultdict(list)
                    for field, kind in series["values"]:
                        kinds[field].append(kind)
                    fields = [(field, kind) for field, found in kinds.items() for kind in readable(found)]
                    tables.append(_Table(bucket, series["name"], fields))
        return tables

    async def _devices(self, where: Selection) -> dict[str, list[tuple[str, str]]]:
        """The stored names of the devices selected, in order, and the buckets and measurements of each."""
        places: dict[str, list[tuple[str, str]]] = defaultdict(list)
        query = _DEVICES if where.device_id is None else f"{_DEVICES} WHERE {DEVICE} = $device"
        for bucket in self.settings.stores:
            for series in await self._select(bucket, [query], where):
                for _, device in series["values"]:
                    places[device].append((bucket, series["name"]))
        return {device: places[device] for device in sorted(places, key=original)}

    async def _rows(
        self, tables: Sequence[_Table], where: Selection, rest: str, *, tags: bool = True
    ) -> list[tuple[_Table, Mapping[str, Any]]]:
        """What is selected of each table, `rest` being the end of the statement; with `tags` they are columns."""
        found: list[tuple[_Table, Mapping[str, Any]]] = []
        for bucket in self.settings.stores:
            of_name = {table.name: table for table in tables if table.bucket == bucket}
            queries = [
                f"SELECT {table.columns}{', *::tag' if tags else ''} FROM {_quoted(name)} {_clause(where)} {rest}"  # noqa: S608
                for name, table in of_name.items()
            ]
            found += [(of_name[series["name"]], series) for series in await self._select(bucket, queries, where)]
        return found

    async def _pages(
        self, tables: Sequence[_Table], device: str, where: Selection
    ) -> AsyncIterator[list[list[Reading]]]:
        """A device's readings, a list for each series, of one span of time after the other.

        A series ends its page at the row that the limit cut it at, and then all series do. The next span is asked
        for twice as long as that one was, so that dense series do not make sparse ones be read again and again.
        """
        since, end = _nanoseconds(where.start, _FIRST), _nanoseconds(where.end, _END)
        narrowed = msgspec.structs.replace(where, device_id=original(device))
        span, limit = _END - _FIRST, _LEAST
        while since < end:
            until = min(end, since + span)
            rest = f"AND time >= {since} AND time < {until} GROUP BY * LIMIT {limit}"
            found = await self._rows(tables, msgspec.structs.replace(narrowed, start=None, end=None), rest, tags=False)
            cut = [series["values"][-1][0] + 1 for _, series in found if len(series["values"]) == limit]
            until = min([until, *cut])
            yield [list(_readings(table, series, until)) for table, series in found]
            span = (until - since) * 2 if found else _END - _FIRST
            limit = max(_LEAST, _PAGE // max(1, len(found)))
            since = until

    async def _select(self, bucket: str, queries: Sequence[str], where: Selection = EVERYTHING) -> list[dict[str, Any]]:
        """The series that InfluxQL statements answer with, which may name `$device` and `$channel`."""
        if self.settings.version == "3":
            raise NotImplementedError("iotflow cannot read from InfluxDB 3 yet: ask it with its own SQL")
        parameters = {} if where.device_id is None else {"device": stored(where.device_id)}
        if where.channel is not None:
            parameters["channel"] = stored(where.channel) if where.channel else ""  # no channel is no tag
        form = [("db", bucket), ("epoch", "ns"), ("params", msgspec.json.encode(parameters).decode())]
        found: list[dict[str, Any]] = []
        for some in _batched(queries, _STATEMENTS):
            _, answer = await self.ask("POST", "/query", headers=_HEADERS, form=[("q", ";".join(some)), *form])
            for result in msgspec.msgpack.decode(answer)["results"]:
                if "error" in result:
                    raise UnreadableError(f"{bucket} cannot be read: {result['error']}")
                found += result.get("series", ())
        return found


_FIELDS: Final = "SHOW FIELD KEYS"
_DEVICES: Final = f'SHOW TAG VALUES WITH KEY = "{DEVICE}"'


def _batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _typed(name: str, kind: str) -> str:
    return f"{_quoted(name)}::{kind}"


def _clause(where: Selection) -> str:
    """What narrows a statement to a selection of what has a device, its measurement apart."""
    device = f"{_quoted(DEVICE)}::tag"
    parts = [f"{device} = $device" if where.device_id is not None else f"{device} != ''"]
    if where.channel is not None:
        parts.append(f"{_quoted(CHANNEL)}::tag = $channel")
    if where.start is not None:
        parts.append(f"time >= {_nanoseconds(where.start, _FIRST)}")
    if where.end is not None:
        parts.append(f"time < {_nanoseconds(where.end, _END)}")
    return f"WHERE {' AND '.join(parts)}"


def _is_empty(where: Selection) -> bool:
    return where.start is not None and where.end is not None and where.start >= where.end


def _nanoseconds(time: datetime | None, otherwise: int) -> int:
    if time is None:
        return otherwise
    return max(_FIRST, min((time - EPOCH) // MICROSECOND * 1000, _END))


def _time(nanoseconds: int) -> datetime:
    return EPOCH + timedelta(microseconds=nanoseconds // 1000)


def _newest_first(reading: Reading) -> tuple[timedelta, str, str, str]:
    return EPOCH - reading.time, reading.device_id, reading.channel, reading.measurement


def _readings(table: _Table, series: Mapping[str, Any], until: int = _END) -> Iterator[Reading]:
    """The readings that the points of one series before an instant were made from; its tags may be columns."""
    measurement = original(table.name)
    metrics = [None if name == META else original(name) for name, _ in table.fields]
    names = series["columns"][1 + len(metrics) :]
    given = series.get("tags") or {}
    for row in series["values"]:
        if row[0] >= until:
            return
        text = ""
        found: dict[str, Value] = {}
        for metric, value in zip(metrics, row[1 : 1 + len(metrics)], strict=True):
            if value is None:
                continue
            if metric is None:
                text = value
            else:
                found[metric] = value
        stored_tags = {**given, **dict(zip(names, row[1 + len(metrics) :], strict=True))}
        tags = {name: original(value) for name, value in stored_tags.items() if value}
        device, channel = tags.pop(DEVICE), tags.pop(CHANNEL, "")
        said = apply_meta(text, measurement)
        said["tags"] = {**tags, **said["tags"]}
        yield Reading(measurement, device, _time(row[0]), found, channel, **said)


def _computes(function: Function, kind: str) -> bool:
    return kind in _NUMBERS or function in _OF_TEXTS


def _collect(
    buckets: dict[tuple[str, str, str, str, int], dict[str, Value]],
    series: Mapping[str, Any],
    asked: Sequence[tuple[tuple[str, str], Function]],
) -> None:
    """Add what a statement answered. Of a metric with numbers and others in one bucket, it is the numbers'."""
    tags = series["tags"]
    place = (original(tags[DEVICE]), original(tags.get(CHANNEL) or ""), original(series["name"]))
    for start, *values in series["values"]:
        of_field: dict[tuple[str, str], dict[str, Value]] = defaultdict(dict)
        for (field, function), value in zip(asked, values, strict=True):
            if value is not None:
                of_field[field][function] = value
        for (name, _), said in of_field.items():
            there = buckets.setdefault((*place, original(name), start), said)
            if there is not said and "count" in said:
                there["count"] = int(there.get("count") or 0) + int(said["count"] or 0)
