"""The devices there are, as the topics have them: last values, when each was heard, its alarms, what is wrong with it.

What a worker knows of a channel it writes with its checkpoints, and no more once it ends. So whether a device is online
is judged here, now, and how many readings it sent is said only of an hour and a day that are not over.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any, Final, Literal

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from msgspec import Struct

from app import kafka, topics
from app.lenient import read_leniently
from app.settings import Settings
from schemas import alarm, latest, wire
from schemas.alarm import AlarmError, Record
from schemas.latest import Latest, Span
from schemas.names import joined, parted
from schemas.partition import partition_of
from schemas.payload import brief
from schemas.quality import MEASUREMENT
from schemas.reading import Reading, RejectedError

#: So many of its last quality events are shown of a device.
EVENTS: Final = 10
#: A broker that says nothing for longer than this is away; all together may take longer.
SILENCE_S: Final = 60.0
HOUR: Final = timedelta(hours=1)
DAY: Final = timedelta(days=1)
_POLL_MS: Final = 500
_SOME: Final = 2000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

Progress = Callable[[int, int], None]
Order = Literal["seen", "count", "name"]


class Present(Struct, frozen=True):
    """By when devices are judged, and after which silence they are offline; `hour` and `day` are those of `at`, UTC."""

    at: datetime
    idle: timedelta

    @property
    def hour(self) -> datetime:
        """When the hour began."""
        return _begin(self.at, HOUR)

    @property
    def day(self) -> datetime:
        """When the day began."""
        return _begin(self.at, DAY)


def present(settings: Settings, at: datetime) -> Present:
    """What holds at a time: a worker says of a device's readings only with its next checkpoint."""
    own = settings.analysis
    return Present(at, timedelta(seconds=own.idle + own.checkpoint))


class Device(Struct, frozen=True, kw_only=True):
    """A device, its channels together.

    `seen` is when the last of its readings was received. `hour` and `day` are how many it sent of this hour and this
    day, by the readings' own times; None where one of its channels is ahead of the clock, so that nobody knows.
    `silent_s` is how long it has said nothing. `alarms` are those that are open, None where nobody looked.
    """

    device_id: str
    facility: str
    online: bool
    first_seen: datetime
    seen: datetime
    silent_s: float
    hour: int | None
    day: int | None
    channels: int
    alarms: int | None = None


class Totals(Struct, frozen=True):
    """Devices counted together; `unknown` are those whose readings cannot be counted, which are in no sum."""

    devices: int
    online: int
    channels: int
    hour: int
    day: int
    unknown: int


class Fleet(Struct):
    """What a topic of last values holds: by device its channels, and by key what is wrong with a record."""

    devices: dict[str, list[Latest]]
    broken: dict[bytes, str]


class Event(Struct, frozen=True):
    """An event of quality: what kind, since when, of which series, and as a sentence."""

    at: datetime
    kind: str
    message: str
    count: int
    measurement: str = ""
    channel: str = ""
    metric: str = ""


class Shown(Struct, frozen=True):
    """All that is known of a device; `events` are the last, the newest first."""

    channels: list[Latest]
    alarms: list[Record]
    events: list[Event]
    broken: dict[bytes, str]


# -- judging -----------------------------------------------------------------------------------------------------------


def device(device_id: str, channels: Sequence[Latest], now: Present, alarms: int | None = None) -> Device:
    """What the channels of a device come to, now."""
    seen = max(each.seen for each in channels)
    # What says so itself is offline in any case: the worker may be less patient than these settings.
    online = any(each.online and now.at - each.seen <= now.idle for each in channels)
    return Device(
        device_id=device_id,
        facility=facility(channels),
        online=online,
        first_seen=min(each.first_seen for each in channels),
        seen=seen,
        silent_s=max(0.0, (now.at - seen).total_seconds()),
        hour=_sum([counted(each.hour, now.hour) for each in channels]),
        day=_sum([counted(each.day, now.day) for each in channels]),
        channels=len(channels),
        alarms=alarms,
    )


def facility(channels: Iterable[Latest]) -> str:
    """The facility that the newest reading of a device names, `''` where none does."""
    named = [each for each in channels if reading_of(each).tags.get("facility_id")]
    return reading_of(max(named, key=lambda each: each.seen)).tags["facility_id"] if named else ""


def reading_of(channel: Latest) -> Reading:
    """The newest reading of a channel that was read."""
    reading = channel.reading
    assert isinstance(reading, Reading)  # noqa: S101  for mypy: `latest.read` has read it
    return reading


def counted(span: Span, begin: datetime) -> int | None:
    """How many readings there were since `begin`, when the present hour or day began.

    A channel counts the hour and the day of its newest reading. Where these are over, there was none since; where they
    have not begun, its clock is ahead, and nobody knows how many were of this one.
    """
    if span.start > begin:
        return None
    return span.count if span.start == begin else 0


def totals(devices: Collection[Device]) -> Totals:
    """Devices counted together."""
    return Totals(
        devices=len(devices),
        online=sum(each.online for each in devices),
        channels=sum(each.channels for each in devices),
        hour=sum(each.hour or 0 for each in devices),
        day=sum(each.day or 0 for each in devices),
        unknown=sum(each.hour is None or each.day is None for each in devices),
    )


def ordered(devices: Iterable[Device], by: Order) -> list[Device]:
    """The last heard first, or those with the most readings of the day, or by name."""
    named = sorted(devices, key=lambda each: each.device_id)
    if by == "seen":
        return sorted(named, key=lambda each: each.seen, reverse=True)
    if by == "count":
        return sorted(named, key=lambda each: (each.day or 0, each.hour or 0), reverse=True)
    return named


def longest_silent(devices: Iterable[Device]) -> list[Device]:
    """Those that are offline, the longest silent first."""
    return sorted([each for each in devices if not each.online], key=lambda each: (each.seen, each.device_id))


def in_facilities(wanted: Sequence[str]) -> Callable[[Device], bool]:
    """Whether a device is of one of these facilities, or of one like them; of any where none is named."""
    return lambda each: not wanted or any(each.facility == one or fnmatchcase(each.facility, one) for one in wanted)


def _begin(at: datetime, length: timedelta) -> datetime:
    return at - (at - _EPOCH) % length


def _sum(counts: Iterable[int | None]) -> int | None:
    total = 0
    for count in counts:
        if count is None:
            return None
        total += count
    return total


# -- reading -----------------------------------------------------------------------------------------------------------


async def fleet(settings: Settings, on_read: Progress | None = None) -> Fleet:
    """Read the topic of last values to its present end.

    Raises what aiokafka raises, `TimeoutError`, and `TopicsError` where there is no topic.
    """
    await _check(settings, settings.topics.latest)
    last = await _last(settings, settings.topics.latest, on_read=on_read)
    return _fleet(last)


async def show(settings: Settings, device_id: str, on_read: Progress | None = None) -> Shown:
    """All that is known of a device: of each topic only the partition is read that has it. Raises as `fleet`."""
    own = settings.topics
    await _check(settings, own.latest, own.alarms, own.quality)
    found = _fleet(_of(device_id, await _last(settings, own.latest, device_id, on_read)))
    alarms, broken = _open(_of(device_id, await _last(settings, own.alarms, device_id, on_read)))
    events = await _events(settings, device_id, on_read)
    channels = sorted(found.devices.get(device_id, []), key=lambda each: (each.measurement, each.channel))
    return Shown(channels, alarms, events, {**found.broken, **broken})


def _fleet(last: Mapping[bytes, bytes]) -> Fleet:
    found = Fleet({}, {})
    for key, value in last.items():
        try:
            channel = latest.read(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, RejectedError) as error:
            found.broken[key] = brief(error)
            continue
        if key != latest.key(channel.device_id, channel.measurement, channel.channel):
            found.broken[key] = "its value is of another channel"
        else:
            found.devices.setdefault(channel.device_id, []).append(channel)
    return found


def _of(device_id: str, last: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """The records whose keys begin with a device, those that cannot be read too."""
    begin = f"{joined(device_id)}|".encode()
    return {key: value for key, value in last.items() if key.startswith(begin)}


def _open(last: Mapping[bytes, bytes]) -> tuple[list[Record], dict[bytes, str]]:
    found: list[Record] = []
    broken: dict[bytes, str] = {}
    for key, value in last.items():
        try:
            record = alarm.read_record(key, value)
        except AlarmError as error:
            broken[key] = str(error)
            continue
        if record.open:
            found.append(record)
    return sorted(found, key=lambda record: (record.raised_at, record.key), reverse=True), broken


async def _events(settings: Settings, device_id: str, on_read: Progress | None) -> list[Event]:
    """The last of a device; one that was sent twice is there once."""
    key = device_id.encode()
    kept: dict[tuple[str, ...], Event] = {}

    def take(record: Any) -> None:
        event = event_of(record.value) if record.key == key else None
        if event is None:
            return
        place = (event.kind, event.measurement, event.channel, event.metric, event.at.isoformat())
        kept.pop(place, None)
        kept[place] = event
        if len(kept) > EVENTS:
            del kept[next(iter(kept))]

    await _read(settings, settings.topics.quality, take, device_id, on_read)
    return list(kept.values())[::-1]


def event_of(value: bytes | None) -> Event | None:
    """The event of quality in a record's value; None where there is none."""
    try:
        reading = wire.read(value)
    except RejectedError:
        return None
    if reading.measurement != MEASUREMENT:
        return None
    said, count = reading.values, reading.values.get("count")
    # KIND|MEASUREMENT|CHANNEL|METRIC
    place = [*parted(reading.channel), "", "", ""]
    return Event(
        at=reading.time,
        kind=str(said.get("kind", "")),
        message=str(said.get("message", "")),
        count=count if isinstance(count, int) else 1,
        measurement=place[1],
        channel=place[2],
        metric=place[3],
    )


async def _check(settings: Settings, *names: str) -> None:
    async with asyncio.timeout(SILENCE_S):
        missing = await topics.missing(settings)
    for name in names:
        if name in missing:
            raise topics.TopicsError(f"there is no topic {name}: run iotflow topics apply")


async def _last(
    settings: Settings, topic: str, device_id: str | None = None, on_read: Progress | None = None
) -> dict[bytes, bytes]:
    """The last value of each key that has one."""
    found: dict[bytes, bytes] = {}

    def take(record: Any) -> None:
        if record.key is None:
            return
        if record.value is None:
            found.pop(record.key, None)
        else:
            found[record.key] = record.value

    await _read(settings, topic, take, device_id, on_read)
    return found


async def _read(
    settings: Settings,
    topic: str,
    take: Callable[[Any], None],
    device_id: str | None = None,
    on_read: Progress | None = None,
) -> None:
    """Hand over the records of a topic, or of a device's partition of it, up to its present end.

    Nothing is kept of them here: a compacted topic has many of a key until it is compacted.
    """
    consumer = AIOKafkaConsumer(**kafka.client_args(settings), auto_offset_reset="earliest", enable_auto_commit=False)
    clock = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(SILENCE_S) as patience:
            await consumer.start()
            read_leniently(consumer._fetcher)  # noqa: SLF001  there is no public way
            await consumer._client._wait_on_metadata(topic)  # noqa: SLF001  aiokafka cannot be asked for one topic
            numbers = sorted(consumer.partitions_for_topic(topic) or ())
            if device_id is not None and numbers:
                numbers = [partition_of(device_id, len(numbers))]
            partitions = [TopicPartition(topic, number) for number in numbers]
            consumer.assign(partitions)
            end = await consumer.end_offsets(partitions)
            at = await consumer.beginning_offsets(partitions)
            for tp in partitions:
                consumer.seek(tp, at[tp])
            total = sum(end[tp] - at[tp] for tp in partitions)
            left = {tp: at[tp] for tp in partitions if at[tp] < end[tp]}
            while left:
                found = await consumer.getmany(*left, timeout_ms=_POLL_MS, max_records=_SOME)
                for records in found.values():
                    for record in records:
                        take(record)
                before = left
                positions = {tp: await consumer.position(tp) for tp in left}
                left = {tp: position for tp, position in positions.items() if position < end[tp]}
                if left != before:
                    patience.reschedule(clock() + SILENCE_S)
                if on_read is not None:
                    on_read(total - sum(end[tp] - position for tp, position in left.items()), total)
    finally:
        await consumer.stop()
