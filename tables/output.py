"""What the analysis says and keeps: records to produce, by the topic's field of `Topics`, and entries of tables."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import msgspec

from schemas import aggregate, latest, quality, wire
from schemas.aggregate import moment
from schemas.names import joined
from schemas.record import Headers, Record
from tables import arrays
from tables.channel import Channel, Pending
from tables.windows import Closed, Moments, Window

#: On a late record: the windows that it came too late for.
HEADER_LATE: Final = "iotflow-late"
#: On an event of a reading that is old news.
HEADER_REPLAYED: Final = "iotflow-replayed"
HOUR: Final = 3_600_000_000
_MS: Final = 1000
#: Of a device's tags, those that what is said of it has too.
_TAGS: Final = ("facility_id", "location")
_VERSION_HEADERS: Final = [(wire.HEADER_VERSION, wire.VERSION)]
#: A closed window as `archived` wrote it.
closed_window: Final = arrays.decoder(Closed)
#: An entry of the table `windows`: the closed windows of one size that can still be corrected, by their starts. In one
#: entry, since what recovery takes is as long as there are entries.
closed_windows: Final = msgspec.msgpack.Decoder(dict[int, bytes]).decode
packed_windows: Final = arrays.encode


class Output(NamedTuple):
    """A record to produce, to the partition of its device; `topic` is a field of `Topics`."""

    topic: str
    device_id: str
    key: bytes
    value: bytes | None
    headers: Headers


class Change(NamedTuple):
    """An entry of a table beside the state; without a value it goes."""

    table: str
    key: bytes
    value: bytes | None


def deferred(outputs: Sequence[Output]) -> list[Pending]:
    """Outputs as a state keeps them until it is kept itself."""
    return [(output.topic, output.key, output.value, list(output.headers)) for output in outputs]


def pending(each: Channel) -> Iterator[Output]:
    """The outputs that a state has kept."""
    for topic, key, value, headers in each.pending:
        yield Output(topic, each.device_id, key, value, headers)


def numbers(moments: Moments) -> dict[str, float]:
    """What is said of a window, by the names of `schemas.aggregate`."""
    return {
        "count": moments.count,
        "mean": moments.mean,
        "min": moments.low,
        "max": moments.high,
        "stddev": moments.stddev,
        "sum": moments.total,
        "first": moments.first,
        "last": moments.last,
        **dict(zip(aggregate.PERCENTILES, moments.percentiles, strict=False)),
    }


def aggregates(each: Channel, size: Window, closed: Closed) -> Iterator[Output]:
    """What is to be said of a closed window: a record for each metric that has changed."""
    for metric in closed.due:
        moments = closed.series.get(metric)
        if moments is not None:
            key, value = aggregate.aggregate(
                *each.identity(metric),
                size.name,
                closed.start,
                closed.revisions[metric],
                numbers(moments),
                unit=each.series[metric].unit if metric in each.series else "",
                tags={name: each.tags[name] for name in _TAGS if name in each.tags},
            )
            yield Output("aggregates", each.device_id, key, value, _VERSION_HEADERS)


def windows_key(each: Channel, size: Window) -> bytes:
    """The key of a channel's closed windows of a size in their table."""
    return each.key + f"|{size.size}".encode()


def histograms_key(each: Channel, source: str, metric: str) -> bytes:
    """The key of a series' histograms in their table."""
    return each.key + f"|{joined(source, metric)}".encode()


def archived(closed: Closed) -> bytes:
    """A closed window to be stored apart, once it is said."""
    return arrays.encode(
        msgspec.structs.replace(closed, due=[], series={} if closed.block is not None else closed.series)
    )


def late(each: Channel, record: Record, missed: Sequence[str]) -> Output:
    """A record whose reading came too late for some windows, or is ahead of all."""
    headers = [*record.headers, (HEADER_LATE, ",".join(missed).encode())]
    return Output("late", each.device_id, each.device_id.encode(), record.value, headers)


def report(  # noqa: PLR0913  what an event says
    each: Channel, kind: quality.Kind, at: int, message: str, count: int = 1, metric: str = ""
) -> Iterator[Output]:
    """An event of quality, at most one of a kind and metric in an hour of the channel's time."""
    what = f"{kind} {metric}" if metric else kind
    if each.reported.get(what, -1) >= at // HOUR:
        return
    each.reported[what] = at // HOUR
    key, value = quality.written(
        quality.quality(
            kind,
            each.device_id,
            moment(at),
            message,
            measurement=each.measurement,
            channel=each.name,
            metric=metric,
            count=count,
            facility=each.tags.get("facility_id", ""),
        )
    )
    yield Output("quality", each.device_id, key, value, _VERSION_HEADERS)


def last_values(each: Channel) -> Output:
    """What is known of a channel now."""
    hour, hourly, day, daily = each.counts
    found = latest.Latest(
        device_id=each.device_id,
        measurement=each.measurement,
        channel=each.name,
        first_seen=moment(each.first_ms * _MS),
        seen=moment(each.seen_ms * _MS),
        online=each.online,
        hour=latest.Span(moment(hour), hourly),
        day=latest.Span(moment(day), daily),
        reading=msgspec.Raw(each.latest),
    )
    key = latest.key(each.device_id, each.measurement, each.name)
    return Output("latest", each.device_id, key, latest.written(found), [])
