"""Each store's driver without us: one module for each sink, found by the sink's name."""

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from schemas.reading import Reading
from sinks.base import SinkSettings
from tests.lab.stores import StoreLab


class Bare(ABC):
    """One connection of the driver, in a process that does nothing else; and how its store is measured."""

    #: So many times the readings of the other stores, for one that takes them faster.
    times: ClassVar[int] = 1
    #: Whether the server is faster once it has worked for a while.
    warm_up: ClassVar[bool] = False
    #: The most that the worker's CPU may cost, in µs a row.
    client_us: ClassVar[float | None] = None
    #: The least share of the bare client's rate that ours should have; None where none was promised.
    ratio: ClassVar[float | None] = 0.85
    #: Whether stock Faust is a contender.
    stock: ClassVar[bool] = False
    #: Whether the sink encodes what the driver could encode itself, so that `insert` is a contender.
    public: ClassVar[bool] = False

    def __init__(self, settings: SinkSettings) -> None:
        self.settings: Any = settings

    @staticmethod
    async def settle(lab: StoreLab) -> None:
        """Bring the server to where every round begins."""
        del lab

    @abstractmethod
    async def open(self) -> None:
        """Connect."""

    @abstractmethod
    async def send(self, payload: Any) -> None:
        """Store what the sink has prepared, by what the driver has for it; as durable as the sink's own write."""

    async def insert(self, readings: Sequence[Reading]) -> None:
        """Store the same as anybody would who has only the driver: values in, all encoding the driver's."""
        raise NotImplementedError


def bare_of(name: str) -> type[Bare] | None:
    """The class `Client` of `tests/bench/stores/NAME.py`; None when there is no such file."""
    path = f"{__name__}.{name}"
    if importlib.util.find_spec(path) is None:
        return None
    return importlib.import_module(path).Client  # type: ignore[no-any-return]
