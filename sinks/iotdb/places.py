"""What is remembered of the IoTDB devices that were written to: their paths, and the types that are stored there."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from weakref import ref

from schemas.reading import Rejected
from sinks.iotdb.mapping import Columns, name_of, nodes_of
from sinks.iotdb.rpc import TYPES

#: Seconds that a type is believed without asking the server: somebody may have deleted the series since.
TRUSTED_S: Final = 60.0


class Place:
    """An IoTDB device. The columns last stored there are held weakly: how many there are is bounded elsewhere."""

    __slots__ = ("path", "since", "stored")

    def __init__(self, path: str) -> None:
        self.path = path
        #: What `Columns.itself` is of the columns last stored; None where nothing is known.
        self.stored: ref[Columns] | None = None
        #: When they were stored or asked for, on the sink's clock.
        self.since = 0.0

    def clash(self, columns: Columns) -> "Clash | None":
        """The first series of which another type is stored."""
        known = self.stored and self.stored()
        return clash(known, columns) if known else None

    def learn(self, columns: Columns, now: float) -> None:
        """These columns have been stored."""
        self.stored, self.since = columns.itself, now


#: A series' node, the type stored and the type given, as the driver numbers them.
Clash = tuple[str, int, int]


@lru_cache(maxsize=512)
def clash(stored: Columns, given: Columns) -> Clash | None:
    """The first series that two sets of columns have with different types."""
    kinds = dict(zip(stored.nodes, stored.kinds, strict=True))
    for node, kind in zip(given.nodes, given.kinds, strict=True):
        if kinds.get(node, kind) != kind:
            return node, kinds[node], kind
    return None


def refusal(path: str, found: Clash) -> Rejected:
    """What the dead letter says."""
    node, stored, given = found
    metric = name_of(nodes_of(node)[0])
    return Rejected(
        "type_conflict",
        f"{metric} is {TYPES[given]} here and {TYPES[stored]} in {path}: name it otherwise, "
        "or delete what is stored there and replay this",
    )


def confirmed(found: Clash, live: Mapping[str, str]) -> bool:
    """Whether the server has the type that is remembered; `live` has the names of types by nodes without back-ticks."""
    node, stored, _ = found
    return live.get(nodes_of(node)[0]) == TYPES[stored]
