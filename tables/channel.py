"""What is kept of one channel of a device: in memory, and packed as a value of the table `state`.

What each reading needs is in memory. What is needed when a window closes, half of it all, is fetched from the table
then, and is in memory until the table has what became of it.

A value is a header of fixed size (format, generation of the group, position) and msgpack. By its header recovery knows
which of two values is the newer. Restoring gives back what was packed, bit for bit.
"""

import struct
from collections.abc import Callable, Collection, Sequence
from sys import intern
from typing import Any, Final

import msgspec
from msgspec import Raw, Struct

from schemas.alarm import Alarm
from schemas.names import joined, parted
from tables import arrays, windows
from tables.detectors import Memory, trim
from tables.histograms import Histograms
from tables.rules import Watch
from tables.windows import Block, Window, Windows

#: Topic, key, value and headers of a record to be produced when the changelog has the state.
Pending = tuple[str, bytes, bytes | None, list[tuple[str, bytes | None]]]
#: Reads a channel's value from the table.
Fetch = Callable[[bytes], bytes | None]
#: Histograms that were stored apart, by source and metric, with their number of updates.
Logs = list[tuple[str, str, int]]

#: A change takes two releases: first one that reads both and writes the old, then one that writes the new.
FORMAT: Final = 2
#: What a value begins with: format, generation of the group, position in the source.
HEADER: Final = struct.Struct(">BQQ")
#: Most are busy with nothing: an empty set of their own would be 216 bytes each.
NONE: Final[frozenset[str]] = frozenset()
_LONG_AGO: Final = -(1 << 62)


class Series(Struct, array_like=True):
    """What is kept of one metric; of the channel as a whole, by the name ''."""

    unit: str = ""
    #: What checks remember, by rule.
    memories: dict[str, list[Any]] = {}
    alarms: dict[str, Alarm] = {}
    #: What checks remember that count readings, by rule.
    counts: dict[str, list[Any]] = {}
    #: When it was last received, where a check asks that (µs).
    heard: int = 0


class Deep(Struct, array_like=True):
    """What is needed when a window closes, and not for each reading: packed in between."""

    windows: Windows
    #: By what they look at, a window's name or `reading`, and by metric.
    detectors: dict[str, dict[str, Memory]]
    #: The start of the last base window that detectors and rules have seen.
    judged: int = -1


class _DeepAlone(Struct, array_like=True):
    """The beginning of `_Saved`, to be read without the rest."""

    sources: Raw
    first_ms: int
    seen_ms: int
    newest: int
    watermark: int
    blocks: Raw
    deep: bytes


class _Saved(Struct, array_like=True):
    sources: dict[str, list[int]]
    first_ms: int
    seen_ms: int
    newest: int
    watermark: int
    blocks: list[Block]
    deep: bytes
    series: dict[str, Series]
    latest: bytes
    latest_due: bool
    online: bool
    counts: list[int]
    tags: dict[str, str]
    units: dict[str, str]
    pending: list[Pending]
    #: When each kind of quality event was last sent, by its hour.
    reported: dict[str, int]
    metrics: list[str]
    #: The sizes of windows that it has (µs).
    sizes: list[int]


_saved: Final = arrays.decoder(_Saved)
_deep_alone: Final = msgspec.msgpack.Decoder(_DeepAlone).decode
_deep: Final = arrays.decoder(Deep)


def header(generation: int, position: int) -> bytes:
    """What a value begins with."""
    return HEADER.pack(FORMAT, generation, position)


def key_of(measurement: str, device_id: str, channel: str) -> bytes:
    """A channel's key, in the table and in those beside it."""
    return joined(device_id, measurement, channel).encode()


class Channel:
    """One channel. Plain attributes, since each reading needs them; `pack` and `restore` know which are kept."""

    __slots__ = (
        "blocks",
        "book",
        "busy",
        "closed",
        "counts",
        "deep",
        "device_id",
        "expected",
        "fetch",
        "first_ms",
        "forgotten",
        "histograms",
        "key",
        "latest",
        "latest_due",
        "look_at",
        "measurement",
        "metrics",
        "name",
        "newest",
        "online",
        "over",
        "over_since",
        "packed",
        "pending",
        "position",
        "reported",
        "saying",
        "seen_ms",
        "series",
        "settled",
        "sources",
        "tags",
        "touched",
        "units",
        "watches",
        "watermark",
        "weight",
    )

    def __init__(self, measurement: str, device_id: str, name: str, sizes: Sequence[Window], fetch: Fetch) -> None:
        self.measurement = intern(measurement)
        self.device_id = device_id
        self.name = name
        self.key = key_of(measurement, device_id, name)
        self.position = -1
        #: Of each partition of raw records: the highest offset, the index in it, and the latest receipt (ms).
        self.sources: dict[str, list[int]] = {}
        self.first_ms = self.seen_ms = 0
        #: The newest time of its readings that is to be believed, and up to where windows are closed (µs).
        self.newest = self.watermark = _LONG_AGO
        self.blocks: list[Block] = []
        #: None while it is as the table has it.
        self.packed: bytes | None = arrays.encode(Deep(windows.empty(len(sizes)), {}))
        self.deep: Deep | None = None
        self.fetch = fetch
        #: What the table has of it as still to be said was said: these histograms were stored, None if nothing was.
        self.settled: Logs | None = None
        self.series: dict[str, Series] = {}
        self.latest = b""
        self.latest_due = False
        self.online = True
        #: The hour and the day of the newest reading (µs), each with its count.
        self.counts = [0, 0, 0, 0]
        self.tags: dict[str, str] = {}
        self.units: dict[str, str] = {}
        self.pending: list[Pending] = []
        self.reported: dict[str, int] = {}
        #: Metrics that had a number, in the order in which they came.
        self.metrics: dict[str, None] = {}
        # What follows is not packed.
        self.watches: dict[str, Watch] = {}
        #: Metrics of which a check or an alarm remembers something.
        self.busy: frozenset[str] = NONE
        self.book: Any = None
        self.expected = 0
        #: The start of the newest base window that was closed (µs).
        self.closed = _LONG_AGO
        #: Windows that end by then are to be closed (µs), None if there are none; and since when that is so.
        self.over: int | None = None
        self.over_since = 0
        self.histograms: dict[tuple[str, str], Histograms] = {}
        #: When the clock next matters for it (µs).
        self.look_at = 0
        self.touched = False
        self.forgotten = False
        #: It has closed windows that are not stored apart yet.
        self.saying = False
        #: The numbers that it keeps one by one.
        self.weight = 0

    def looked(self) -> Deep:
        """Its windows and detectors, only to be looked at."""
        return self.deep if self.deep is not None else _deep(self._packed())

    def opened(self) -> Deep:
        """Its windows and detectors, to work on; `shut` packs them again."""
        if self.deep is None:
            self.deep = _deep(self._packed())
        return self.deep

    def shut(self) -> None:
        """Pack what `opened` gave."""
        if self.deep is not None:
            self.packed = arrays.encode(self.deep)
            self.deep = None

    def _packed(self) -> bytes:
        if self.packed is not None:
            return self.packed
        value = self.fetch(self.key)
        if value is None:
            raise LookupError(f"the table has lost the state of {self.key!r}")
        packed = _deep_alone(value[HEADER.size :]).deep
        if self.settled is None:
            return packed
        deep = _deep(packed)
        settle(deep, None, self.settled)
        return arrays.encode(deep)

    def let_go(self, settled: Logs | None) -> None:
        """The table has it, and what that says is still to be said was said: see `settled`."""
        self.packed, self.settled = None, settled

    def pack(self, generation: int, sizes: Sequence[Window]) -> bytes:
        """Its value in the table."""
        if self.deep is not None:
            self.packed = arrays.encode(self.deep)
        self.packed = self._packed()
        saved = _Saved(
            self.sources,
            self.first_ms,
            self.seen_ms,
            self.newest,
            self.watermark,
            self.blocks,
            self.packed,
            self.series,
            self.latest,
            self.latest_due,
            self.online,
            self.counts,
            self.tags,
            self.units,
            self.pending,
            self.reported,
            list(self.metrics),
            [size.size for size in sizes],
        )
        return header(max(0, generation), self.position + 1) + arrays.encode(saved)

    @property
    def place(self) -> tuple[str, str, str]:
        """By what it is found: measurement, device and channel."""
        return self.measurement, self.device_id, self.name

    def identity(self, metric: str) -> tuple[str, str, str, str]:
        """The identity of one of its series."""
        return self.measurement, self.device_id, self.name, metric


def settle(deep: Deep, said: Collection[tuple[int, int, int]] | None, logs: Logs) -> None:
    """Let go of closed windows that were said and stored apart, and of what stored histograms have counted.

    Windows are named by size, start and version; None for all.
    """
    deep.windows.loose = [
        closed
        for closed in deep.windows.loose
        if said is not None and (closed.level, closed.start, closed.version) not in said
    ]
    for source, metric, updates in logs:
        trim(deep.detectors[source][metric], updates)


def restore(key: bytes, value: bytes, sizes: Sequence[Window], fetch: Fetch) -> Channel:
    """The channel that was packed; where other sizes are set by now, with no windows.

    Raises `ValueError` for a format of another release.
    """
    version, _, position = HEADER.unpack_from(value)
    if version != FORMAT:
        raise ValueError(f"state of format {version}; this release reads {FORMAT}: was it written by another one?")
    device_id, measurement, name = parted(key.decode())
    saved = _saved(value[HEADER.size :])
    found = Channel(measurement, device_id, name, sizes, fetch)
    found.position = position - 1
    found.sources = saved.sources
    found.first_ms, found.seen_ms = saved.first_ms, saved.seen_ms
    found.newest, found.watermark = saved.newest, saved.watermark
    _fit(found, saved, sizes)
    found.series = saved.series
    found.latest, found.latest_due = saved.latest, saved.latest_due
    found.online = saved.online
    found.counts = saved.counts
    found.tags = saved.tags
    found.units = saved.units
    found.pending = saved.pending
    found.reported = saved.reported
    found.metrics = dict.fromkeys(map(intern, saved.metrics))
    found.busy = (
        frozenset(metric for metric, series in found.series.items() if series.memories or series.alarms) or NONE
    )
    known = found.looked().windows
    found.closed = known.archived[0][-1] if known.archived[0] else _LONG_AGO
    found.saying = bool(known.loose)
    if found.packed is saved.deep:
        found.let_go(None)
    return found


def _fit(found: Channel, saved: _Saved, sizes: Sequence[Window]) -> None:
    """Take windows over, also where other sizes are set by now.

    Those of a size that is still there go on; new larger sizes begin now. With another base nothing can go on: of what
    is older than its newest reading no base window is said, since one may have been, with other content.
    """
    wanted = [size.size for size in sizes]
    if saved.sizes == wanted:
        found.blocks, found.packed = saved.blocks, saved.deep
        return
    deep = _deep(saved.deep)
    state = windows.empty(len(sizes))
    if saved.sizes[0] == wanted[0]:
        found.blocks = saved.blocks
        places = {place: wanted.index(size) for place, size in enumerate(saved.sizes) if size in wanted}
        for place, now in places.items():
            state.uppers[now] = deep.windows.uppers[place]
            state.archived[now] = deep.windows.archived[place]
        for closed in deep.windows.loose:
            if closed.level in places:
                closed.level = places[closed.level]
                state.loose.append(closed)
    else:
        found.watermark = max(found.watermark, found.newest + sizes[0].late)
        deep.judged = -1
    deep.windows = state
    found.packed = arrays.encode(deep)
