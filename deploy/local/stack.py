"""The local stack: real servers on this machine, started together and found through one env file."""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from deploy.local.files import ServerError, UnavailableError, default_cache, locked, write_env
from deploy.local.influxdb import InfluxDB
from deploy.local.iotdb import IoTDB
from deploy.local.kafka import Kafka
from deploy.local.postgres import Postgres
from deploy.local.server import Progress, Server, Status, silent

#: In starting order.
SERVERS: Final[tuple[Callable[[Path, Path], Server], ...]] = (Kafka, Postgres, IoTDB, InfluxDB)
DEFAULT_FOLDER: Final = Path(".iotflow/stack")

_LOCK_S: Final = 900.0
#: A live process that does not answer for this long is started anew.
_UNRESPONSIVE_S: Final = 10.0


class Stack:
    """The servers of one folder: data, logs, passwords and pid files under it, `<folder>.env` beside it.

    `servers` replaces the usual ones, for ports or settings of one's own.
    """

    def __init__(
        self, folder: Path = DEFAULT_FOLDER, cache: Path | None = None, *, servers: Sequence[Server] | None = None
    ) -> None:
        self.folder = folder.absolute()
        self.cache = cache or default_cache()
        made = servers or [make(self.folder / _name(make), self.cache) for make in SERVERS]
        self.servers: Mapping[str, Server] = {server.name: server for server in made}
        #: Why the last `up` or `prepare` left servers out that cannot be had here.
        self.absent: dict[str, str] = {}

    @property
    def env_file(self) -> Path:
        """Holds the variables of every server that runs, as KEY=value lines; gone when none does."""
        return self.folder.with_name(f"{self.folder.name}.env")

    def up(
        self,
        names: Iterable[str] | None = None,
        *,
        external: Mapping[str, str] | None = None,
        on_progress: Progress = silent,
    ) -> dict[str, str]:
        """Start what does not run yet of `names`, and return the variables that lead to them.

        When None, all that can be had here are meant; the others are left out, and `absent` says why. `external` are
        variables the user has set: a server that they name is not started, and its variables are not returned. If
        anything fails, or this is interrupted, what this call started is stopped again.
        """
        wanted = self._prepared(names, external or {}, on_progress)
        with self._lock(on_progress):
            started: list[Server] = []
            try:
                self._start(wanted, started)
            except BaseException:
                for server in reversed(started):
                    server.abort()
                raise
            finally:
                self._write_env()
        return _variables(wanted)

    def reserve(
        self, names: Iterable[str] | None = None, *, external: Mapping[str, str] | None = None
    ) -> dict[str, str]:
        """The variables that will lead to `names` (all when None), which need not have been started or prepared."""
        wanted = self.chosen(names, external or {})
        for server in wanted:
            with server.port_lock():
                server.reserve()
        return _variables(wanted)

    def prepare(
        self,
        names: Iterable[str] | None = None,
        *,
        external: Mapping[str, str] | None = None,
        on_progress: Progress = silent,
    ) -> None:
        """Fetch and build what `up` of the same would, and start nothing."""
        self._prepared(names, external or {}, on_progress)

    def _prepared(
        self, names: Iterable[str] | None, external: Mapping[str, str], on_progress: Progress
    ) -> list[Server]:
        """Those that can be started. What takes minutes is done here, under no lock that others need."""
        wanted = self.chosen(names, external)
        self.absent = {}
        for server in wanted:
            server.on_progress = _prefixed(server.name, on_progress)
            if server.running():
                continue
            try:
                server.prepare()
            except UnavailableError as error:
                if names is not None:
                    raise
                self.absent[server.name] = str(error)
        return [server for server in wanted if server.name not in self.absent]

    def _start(self, wanted: Sequence[Server], started: list[Server]) -> None:
        down = [server for server in wanted if not _serves(server)]
        if not down:
            return
        with down[0].port_lock():
            # All are launched before any is waited for: they start side by side.
            for server in down:
                started.append(server)
                server.launch()
            for server in down:
                server.wait_ready()

    def down(self, names: Iterable[str] | None = None, *, on_progress: Progress = silent) -> None:
        """Stop `names` (all when None), last started first; what does not stop in time is killed."""
        wanted = self.chosen(names, {})
        if not self.folder.exists():
            return
        with self._lock(on_progress):
            failures = []
            for server in reversed(wanted):
                try:
                    if server.status().pid is not None:
                        on_progress(f"{server.name}: stopping")
                    server.stop()
                except ServerError as error:
                    failures.append(str(error))
            self._write_env()
        if failures:
            raise ServerError("\n".join(failures))

    def status(self, *, external: Mapping[str, str] | None = None) -> list[Status]:
        """How each server is now; changes nothing."""
        return [
            Status(server.name, "external", None, {}, None) if _named(server, external or {}) else server.status()
            for server in self.servers.values()
        ]

    def environment(self) -> dict[str, str]:
        """The variables of every server whose processes live."""
        return _variables(server for server in self.servers.values() if server.running())

    def chosen(self, names: Iterable[str] | None, external: Mapping[str, str]) -> list[Server]:
        """Those of `names` (all when None) that the user has no server for; raises `ServerError` for a wrong name."""
        asked = list(self.servers) if names is None else list(names)
        for name in asked:
            if name not in self.servers:
                raise ServerError(f"no server is called {name!r}; there are: {', '.join(self.servers)}")
        return [server for server in self.servers.values() if server.name in asked and not _named(server, external)]

    def _write_env(self) -> None:
        variables = self.environment()
        if variables:
            write_env(self.env_file, variables)
        else:
            self.env_file.unlink(missing_ok=True)

    def _lock(self, on_progress: Progress) -> contextlib.AbstractContextManager[None]:
        return locked(
            self.folder / "lock",
            timeout_s=_LOCK_S,
            on_wait=lambda: on_progress("waiting: another process is starting or stopping this stack"),
        )


def _name(make: Callable[[Path, Path], Server]) -> str:
    return str(make.name)  # type: ignore[attr-defined]


def _variables(servers: Iterable[Server]) -> dict[str, str]:
    return {name: value for server in servers for name, value in server.environment().items()}


def _prefixed(name: str, on_progress: Progress) -> Progress:
    return lambda text: on_progress(f"{name}: {text}")


def _serves(server: Server) -> bool:
    """Whether it runs and answers; one that is only just starting, or busy, is given a moment."""
    if not server.running():
        return False
    if server.answers():
        return True
    server.on_progress("runs but does not answer; waiting")
    try:
        server.wait_ready(_UNRESPONSIVE_S)
    except ServerError:
        server.on_progress("still no answer; starting it anew")
        return False
    return True


def _named(server: Server, external: Mapping[str, str]) -> bool:
    """Whether the user's variables name a server of this kind that is not this very one."""
    if not any(external.get(name) for name in server.replaced_by):
        return False
    if not server.ports:
        return True
    ours = server.environment()
    foreign = [name for name in server.replaced_by - ours.keys() if external.get(name)]
    # Somebody who sourced the env file has our own variables set.
    return bool(foreign) or any(external.get(name) != value for name, value in ours.items())
