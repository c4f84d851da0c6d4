"""The TTLs that a server has: rules for a device, or for all below a node; the closest one holds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from msgspec import Struct

from sinks.iotdb.mapping import nodes_of
from sinks.iotdb.rpc import Link

#: The end of a path that means all below.
_BELOW: Final = ".**"

Nodes = tuple[str, ...]


class Rules(Struct, frozen=True):
    """Milliseconds, None for ever, by the nodes of a path."""

    #: For an IoTDB device itself.
    devices: Mapping[Nodes, int | None]
    #: For all that is below a node.
    below: Mapping[Nodes, int | None]
    #: Older servers have TTLs for databases only.
    by_device: bool = True

    def of(self, nodes: Sequence[str]) -> int | None:
        """The TTL of an IoTDB device."""
        path = tuple(nodes)
        return self.devices[path] if path in self.devices else self.of_all_below(path[:-1])

    def of_all_below(self, nodes: Sequence[str]) -> int | None:
        """The TTL of what is below a node and has no rule that is closer."""
        path = tuple(nodes)
        return next((self.below[path[:size]] for size in range(len(path), 0, -1) if path[:size] in self.below), None)


async def rules_of(link: Link) -> Rules:
    """Ask the server; any user may."""
    names, rows = await link.execute("SHOW ALL TTL")
    return read_rules(names, (row[1:] for row in rows))


def read_rules(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> Rules:
    """What the server's answer says."""
    by_device = "Device" in names
    devices: dict[Nodes, int | None] = {}
    below: dict[Nodes, int | None] = {}
    for path, ttl in rows:
        ttl_ms = int(ttl) if str(ttl).isdecimal() else None
        if by_device and not path.endswith(_BELOW):
            devices[tuple(nodes_of(path))] = ttl_ms
        else:
            below[tuple(nodes_of(path.removesuffix(_BELOW)))] = ttl_ms
    return Rules(devices, below, by_device)


def worded(ttl_ms: int | None) -> str:
    """A TTL for a person."""
    if ttl_ms is None:
        return "for ever"
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if ttl_ms % length == 0:
            return f"{ttl_ms // length} {unit}"
    return f"{ttl_ms} ms"
