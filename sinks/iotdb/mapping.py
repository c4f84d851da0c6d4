"""How a reading is said in Apache IoTDB's tree: the paths of devices and series, and rows in the server's bytes."""

import math
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple
from weakref import ref

from msgspec.structs import replace

from schemas.reading import EXACT_INTEGER, Reading
from sinks.base import out_of_type, unfit, value_type, without_nulls
from sinks.iotdb.rpc import BOOLEAN, DOUBLE, FLOAT, FORMAT, INT32, INT64, LENGTH, TEXT
from sinks.meta import META, meta_text

#: Before the name of a measurement, which so cannot be taken for a metric.
_MEASUREMENT: Final = "@"
_NO_CHANNEL: Final = "_"
#: Before a name that is escaped, because the server does not take it or it means something else where it stands.
_ESCAPED: Final = "="
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n"})
_UNESCAPES: Final = {"\\\\": "\\", "\\t": "\t", "\\n": "\n"}
#: What the server refuses even between back-ticks, or takes and then fails on (root). It compares without case as Java
#: does, so with the Turkish i's.
_REFUSED: Final = re.compile(r".*[\t\n].*|t[i\u0130\u0131]me(?:stamp)?|root", re.IGNORECASE | re.DOTALL)
_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NODE: Final = re.compile(r"`((?:[^`]|``)*)`|([^.`]+)")
_BY_NAME: Final = {"INT32": INT32, "INT64": INT64, "FLOAT": FLOAT}
_BY_CLASS: Final[Mapping[type, int]] = {float: DOUBLE, int: DOUBLE, bool: BOOLEAN, str: TEXT}
#: Sets of metrics and types that are remembered; a hostile one may be large.
_COMBINATIONS: Final = 512
_TYPE_AND_LENGTH: Final = struct.Struct(">Bi")
_MAX_FLOAT: Final = struct.unpack(">f", b"\x7f\x7f\xff\xff")[0]


def _escaped(name: str, *, taken: bool = False) -> str:
    """A name that stands for itself and nothing else; `taken` when it means something else as it is."""
    if taken or name.startswith(_ESCAPED) or _REFUSED.fullmatch(name):
        return _ESCAPED + name.translate(_ESCAPES)
    return name


def _if_odd(node: str) -> str:
    return node if _PLAIN.fullmatch(node) else ticked(node)


def name_of(node: str) -> str:
    """The name that a node, without back-ticks, was made from."""
    if not node.startswith(_ESCAPED):
        return node
    return re.sub(r"\\.", lambda found: _UNESCAPES.get(found[0], found[0]), node[1:])


def device_path(device: str, measurement: str, channel: str, default_measurement: str) -> str:
    """The path, below the database, of the IoTDB device for a device, measurement and channel."""
    if measurement == default_measurement and not channel:
        return _if_odd(_escaped(device))
    # The sign before a measurement stays outside of its escape, where no metric's node has it.
    last = _escaped(channel, taken=channel == _NO_CHANNEL) if channel else _NO_CHANNEL
    return ".".join(map(_if_odd, (_escaped(device), _MEASUREMENT + _escaped(measurement), last)))


def series_node(metric: str) -> str:
    """The last node of the path of a metric's series."""
    return _if_odd(_escaped(metric, taken=metric.startswith(_MEASUREMENT) or metric == META))


def quoted(path: str) -> str:
    """A path as statements take it, where more words are reserved than in requests."""
    return written(nodes_of(path))


def written(nodes: Sequence[str]) -> str:
    """Nodes as a path that statements take."""
    return ".".join([nodes[0], *map(ticked, nodes[1:])])


def shown(nodes: Sequence[str]) -> str:
    """Nodes as a path that a person reads."""
    return ".".join(map(_if_odd, nodes))


def ticked(node: str) -> str:
    """A node between back-ticks."""
    return f"`{node.replace('`', '``')}`"


def nodes_of(path: str) -> list[str]:
    """A path's nodes, without their back-ticks."""
    return [plain or odd.replace("``", "`") for odd, plain in _NODE.findall(path)]


def identity_of(nodes: Sequence[str], default_measurement: str) -> tuple[str, str, str] | None:
    """Device, channel and measurement of an IoTDB device, by its nodes below the database; None if it is not ours."""
    match nodes:
        case [device]:
            return name_of(device), "", default_measurement
        case [device, measurement, channel] if measurement.startswith(_MEASUREMENT):
            return name_of(device), "" if channel == _NO_CHANNEL else name_of(channel), name_of(measurement[1:])
    return None


class Columns:
    """The series that a row has values of; one object for each combination, so that its rows can be gathered by it."""

    __slots__ = ("__weakref__", "_numbers", "_text_last", "_types", "itself", "kinds", "nodes")

    def __init__(self, nodes: Sequence[str], kinds: Sequence[int]) -> None:
        self.nodes = list(nodes)
        self.kinds = list(kinds)
        #: For whoever remembers these columns and must not keep them.
        self.itself = ref(self)
        # Nearly all rows are numbers, with `_meta` behind them or without: one call packs them.
        self._text_last = self.kinds[-1:] == [TEXT]
        numbers = self.kinds[:-1] if self._text_last else self.kinds
        self._types: list[Any] = [cell for kind in numbers for cell in (kind, None)]
        self._numbers = (
            None if TEXT in numbers else struct.Struct(">" + "".join(f"B{FORMAT[kind]}" for kind in numbers))
        )

    def record(self, values: Sequence[Any]) -> bytes:
        """One row as a record has it: each value behind its type."""
        if self._numbers is None:
            return b"".join([_CELL[kind](value) for kind, value in zip(self.kinds, values, strict=True)])
        cells = self._types[:]
        if not self._text_last:
            cells[1::2] = values
            return self._numbers.pack(*cells)
        cells[1::2] = values[:-1]
        return self._numbers.pack(*cells) + _text_cell(values[-1])

    def tablet(self, rows: Sequence[Sequence[Any]]) -> bytes:
        """Rows as a tablet has them: column by column."""
        return b"".join(
            b"".join(map(_text, column)) if kind == TEXT else struct.pack(f">{len(rows)}{FORMAT[kind]}", *column)
            for kind, column in zip(self.kinds, zip(*rows, strict=True), strict=True)
        )


Row = tuple[Columns, Sequence[Any]]


def _text(value: str) -> bytes:
    data = value.encode()
    return LENGTH.pack(len(data)) + data


def _text_cell(value: str) -> bytes:
    data = value.encode()
    return _TYPE_AND_LENGTH.pack(TEXT, len(data)) + data


#: A value behind its type, by the type.
_CELL: Final[Sequence[Callable[[Any], bytes]]] = (
    *(partial(struct.Struct(f">B{letter}").pack, kind) for kind, letter in enumerate(FORMAT)),
    _text_cell,
)


@lru_cache(maxsize=_COMBINATIONS)
def columns_of(nodes: tuple[str, ...], kinds: tuple[int, ...]) -> Columns:
    """The one object for a combination of series and their types."""
    return Columns(nodes, kinds)


def merged(older: Row, newer: Row) -> Row:
    """Two rows of one IoTDB device and time as one; the newer's values win."""
    cells = {
        node: (kind, value)
        for columns, values in (older, newer)
        for node, kind, value in zip(columns.nodes, columns.kinds, values, strict=True)
    }
    return columns_of(tuple(cells), tuple(kind for kind, _ in cells.values())), [value for _, value in cells.values()]


class _Plan(NamedTuple):
    """What rows are made of for readings with certain metrics and classes of values."""

    columns: Columns
    #: The metrics that are not null, with their types.
    metrics: tuple[tuple[str, int], ...]
    #: All values are floats to be stored as doubles: their sum tells whether all are finite.
    floats: bool


class Rows:
    """Makes rows of readings. `types` maps `metric` or `measurement.metric` to INT32, INT64 or FLOAT."""

    def __init__(self, types: Mapping[str, str]) -> None:
        self._types = types
        self._plan = lru_cache(maxsize=_COMBINATIONS)(self._new_plan)

    def row(self, reading: Reading) -> Row | None:
        """None where there is nothing to say. Raises `RejectedError` where a type cannot hold its value."""
        values = reading.values
        text = meta_text(reading)
        cells: list[Any] = list(values.values())
        measurement = reading.measurement if self._types else ""
        plan = self._plan(measurement, tuple(values), tuple(map(type, cells)), *((META,) if text else ()))
        if not plan.floats or not math.isfinite(sum(cells)):
            for metric, kind in plan.metrics:
                _check(metric, values[metric], kind)
            cells = [values[metric] for metric, _ in plan.metrics]
        if text:
            cells.append(text)
        return (plan.columns, cells) if cells else None

    def kept(self, reading: Reading) -> Reading | None:
        """What of a reading the rows give back: no nulls, and a FLOAT's value; None where there is no row."""
        row = self.row(reading)
        if row is None:
            return None
        kinds = dict(zip(row[0].nodes, row[0].kinds, strict=True))
        floats = {name for name in reading.values if kinds.get(series_node(name)) == FLOAT}
        values = {name: single(value) if name in floats else value for name, value in reading.values.items()}
        return without_nulls(replace(reading, values=values))

    def _new_plan(self, measurement: str, names: tuple[str, ...], classes: tuple[type, ...], *also: str) -> _Plan:
        given = [(name, kind) for name, kind in zip(names, classes, strict=True) if kind is not type(None)]
        metrics = tuple((name, self._kind(measurement, name, kind)) for name, kind in given)
        nodes = (*(series_node(name) for name, _ in metrics), *also)
        kinds = (*(kind for _, kind in metrics), *(TEXT for _ in also))
        floats = set(classes) == {float} and {kind for _, kind in metrics} == {DOUBLE}
        return _Plan(columns_of(nodes, kinds), metrics, floats)

    def _kind(self, measurement: str, metric: str, kind: type) -> int:
        name = value_type(self._types, measurement, metric)
        return _BY_CLASS[kind] if name is None else _BY_NAME.get(name, _BY_CLASS[kind])


def _check(metric: str, value: Any, kind: int) -> None:
    """Raises `RejectedError` where the type cannot hold the value."""
    if kind in {INT32, INT64}:
        name = "INT32" if kind == INT32 else "INT64"
        if out_of_type(name, value):
            raise unfit(metric, value, name)
    elif kind == FLOAT:
        if value.__class__ not in {float, int} or not abs(value) <= _MAX_FLOAT:
            raise unfit(metric, value, "FLOAT")
    elif kind == DOUBLE and value.__class__ is float:
        if not math.isfinite(value):
            raise unfit(metric, value)
    elif kind == DOUBLE and not -EXACT_INTEGER <= value <= EXACT_INTEGER:
        raise unfit(metric, value)


def single(value: Any) -> Any:
    """A number as a FLOAT holds it; None stays."""
    return value if value is None else struct.unpack(">f", struct.pack(">f", value))[0]
