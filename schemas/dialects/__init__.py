"""Dialects: one file each for what devices speak, found by looking, never registered by hand.

A dialect's module has `MATCH`, `decode(payload, meta)` and `EXAMPLES`; where the simulator can speak it, also
`encode(reading)`, the inverse of `decode`; `WALKS`, a `Walk` for each metric of the first example; and `SPOILED`, by
the reason that `decode` must give, the fields that make the first example bad (`msgspec.UNSET` takes one away).
One whose metrics have ranges that may be set has them as `RANGES`, and `decoder(ranges)` that makes another `decode`.
Adding one is adding a file here; its tests are its `EXAMPLES`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from types import ModuleType
from typing import Final

from msgspec import Struct

from schemas.reading import Reading, Rejected, RejectedError
from schemas.wire import Headers

HEADER_DIALECT: Final = "iotflow-dialect"

Decode = Callable[[bytes, "Meta"], Sequence[Reading | Rejected]]


class Meta(Struct, frozen=True):
    """What a decoder may know besides the payload; `received_ms` is the record's own time, since the epoch."""

    topic: str
    key: bytes | None
    headers: Headers
    received_ms: int

    @property
    def received(self) -> datetime:
        """When the record was received, aware UTC. Raises `RejectedError`: whoever produces can set it to anything."""
        try:
            return datetime.fromtimestamp(self.received_ms / 1000, UTC)
        except (ValueError, OverflowError, OSError) as error:
            why = f"the record's own time is {self.received_ms}, which is no epoch in ms"
            raise RejectedError("bad_timestamp", why) from error


class Match(Struct, frozen=True):
    """How a dialect is chosen: by its name, in the `iotflow-dialect` header or else in the settings of the topic."""

    name: str


class Example(Struct, frozen=True):
    """A payload, and what decoding it must give; the reason alone where a `Rejected` is expected."""

    payload: bytes
    gives: Sequence[Reading | str]


class Walk(Struct, frozen=True):
    """How a simulated metric moves: between two values, `step` at most from one reading to the next.

    `odd` is where it is when something is wrong, still inside what `decode` believes.
    """

    low: float
    high: float
    step: float
    odd: tuple[float, float]


@cache
def load() -> Mapping[str, ModuleType]:
    """Every dialect's module by name.

    Raises `RuntimeError` when two claim one name.
    """
    found: dict[str, ModuleType] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        match: Match = module.MATCH
        if match.name in found:
            raise RuntimeError(f"two dialects are called {match.name!r}")
        found[match.name] = module
    return found


def choose(topic: str, headers: Headers, by_topic: Mapping[str, str]) -> str:
    """The name of the dialect for a record: its header's, else its topic's; `''` when nothing says."""
    for name, value in headers:
        if name == HEADER_DIALECT and value is not None:
            return value.decode("utf-8", "replace")
    return by_topic.get(topic, "")
