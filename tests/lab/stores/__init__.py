"""What tests do to a store beyond writing to it: one module for each sink, found by the sink's name."""

import contextlib
import importlib
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import psutil
from msgspec.structs import replace

from app.settings import load
from deploy.local.server import Server
from schemas.reading import Reading
from sinks import registry
from sinks.base import Verdict


class StoreLab(ABC):
    """The real server behind one sink; `env` leads to an empty place in it that is the test's own."""

    #: The server's name in the local stack; '' where a store needs none, and the lab makes what is in its place.
    server_name: ClassVar[str]
    #: Changes of the variables, and the verdict that opening the sink then means.
    mistakes: ClassVar[Sequence[tuple[Mapping[str, str], type[Verdict]]]]

    def __init__(self, name: str, server: Any) -> None:
        self.name = name
        self.server: Any = server
        self.env: dict[str, str] = {}

    @property
    def stage(self) -> str:
        """The stage that stores there."""
        return str(registry.load()[self.name].Settings.STAGE)

    @property
    def prefix(self) -> str:
        """What the names of its variables begin with."""
        return str(registry.load()[self.name].Settings.PREFIX)

    def sink(self, types: Mapping[str, str] | None = None, **changes: str) -> Any:
        """A sink of that place, not yet open."""
        settings = load({**self.env, **changes}).sinks[self.name]
        return registry.load()[self.name].Sink(settings, types or {})

    @contextlib.asynccontextmanager
    async def opened(self, types: Mapping[str, str] | None = None) -> AsyncIterator[Any]:
        """A sink of that place, open."""
        sink = self.sink(types)
        await sink.open()
        try:
            yield sink
        finally:
            await sink.close()

    async def apply_schema(self, types: Mapping[str, str] | None = None) -> None:
        """What `iotflow schema apply` does."""
        await registry.load()[self.name].apply_schema(load(self.env).sinks[self.name], types or {})

    @abstractmethod
    async def make(self) -> dict[str, str]:
        """Make an empty place, and give the variables that lead there; the schema is not applied."""

    @abstractmethod
    async def drop(self) -> None:
        """Take it away again."""

    @abstractmethod
    async def refuse(self, readings: Sequence[Reading]) -> None:
        """From now on the server, and nobody before it, refuses these `poisoned`; may store them as `harmless`.

        The schema has been applied.
        """

    @abstractmethod
    def poisoned(self, reading: Reading) -> Reading:
        """The same device and time with what the server was told to refuse, and no other values."""

    @abstractmethod
    async def account(self) -> dict[str, str]:
        """Make an account of the test's own with the rights that a sink needs; the variables that log in as it."""

    @abstractmethod
    def locked_out(self) -> contextlib.AbstractAsyncContextManager[None]:
        """For the block the server knows another secret of that account, and what was connected is cut off."""

    @staticmethod
    def harmless(reading: Reading) -> Reading:
        """The same device and time with what may be stored to make the server refuse the other."""
        return replace(reading, values={"conflict": 1.0})

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The server's processes stand still for the block: connections stay open, and nothing answers."""
        with _stopped(self.server):
            yield


@contextlib.contextmanager
def _stopped(server: Server) -> Iterator[None]:
    roots = [found for part in server.parts if (found := server._process(part).find())]
    processes = [process for root in roots for process in (root, *root.children(recursive=True))]
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def lab_of(name: str) -> type[StoreLab]:
    """The lab of a sink: the class `Lab` of `tests/lab/stores/NAME.py`."""
    return importlib.import_module(f"tests.lab.stores.{name}").Lab  # type: ignore[no-any-return]
