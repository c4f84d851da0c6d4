"""What a server of the local stack is. A new one is one file with one subclass, and one entry in `stack.SERVERS`."""

import contextlib
import json
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal

from deploy.local import ports as tcp
from deploy.local.files import ServerError, locked, tail, write_private
from deploy.local.process import Command, Detached

_POLL_S: Final = 0.05
_PORTS_LOCK_S: Final = 300.0
_PORT_WAIT_S: Final = 3.0

Progress = Callable[[str], None]
State = Literal["running", "unresponsive", "crashed", "stopped", "external"]


def silent(text: str) -> None:
    """Progress that nobody reads."""
    del text


class NotReadyError(Exception):
    """Raised by `Server.probe`: not yet; the text says what was seen."""


@dataclass(frozen=True)
class Status:
    """How one server is; `external` means the user's own settings name another one, so it is not started."""

    name: str
    state: State
    pid: int | None
    ports: Mapping[str, int]
    log: Path | None


class Server(ABC):
    """One server, with everything it keeps in `folder` and its downloads in `cache`.

    A subclass says how to `prepare`, `configure`, run (`command`), `probe` and reach (`environment`) it; starting,
    stopping, ports and readiness are done here. Calls block; they are not for an event loop that must not wait.
    """

    name: ClassVar[str]
    #: The store, as `STORES` names it, that this server is for; empty when it is for all.
    store: ClassVar[str] = ""
    #: Role to preferred port. All lie below the ports that systems give to outgoing connections.
    preferred: ClassVar[Mapping[str, int]]
    #: Any of these variables in the user's settings means that the user has a server of this kind.
    replaced_by: ClassVar[frozenset[str]]
    #: Processes, in starting order; most servers are one.
    parts: ClassVar[tuple[str, ...]] = ("server",)
    stop_signal: ClassVar[signal.Signals] = signal.SIGTERM
    start_timeout_s: float = 60.0
    stop_timeout_s: float = 20.0

    def __init__(self, folder: Path, cache: Path, *, ports: Mapping[str, int] | None = None) -> None:
        self.folder = folder.absolute()
        self.cache = cache.absolute()
        self.on_progress: Progress = silent
        self._wanted = {**self.preferred, **(ports or {})}
        self._launched = 0.0

    @property
    def prepared(self) -> bool:
        """Whether `prepare` has nothing slow left to do."""
        return True

    @abstractmethod
    def prepare(self) -> None:
        """Bring what is missing into the cache, under a lock of its own; quick when nothing is."""

    def reserve(self) -> None:
        """Choose and keep ports (and passwords, if any), so that `environment` is known before the first start.

        A no-op when it runs; for a caller that holds `port_lock`.
        """
        if not self.running():
            self._choose_ports()

    @abstractmethod
    def configure(self) -> None:
        """Write the configuration for `ports`, make the data, clear what a crash left; called before each start."""

    @abstractmethod
    def command(self, part: str) -> Command:
        """How to run one of `parts`."""

    @abstractmethod
    def probe(self) -> None:
        """Ask the server, in its own protocol, for something only a working one answers.

        Raises `NotReadyError` or `OSError` when it is not there yet.
        """

    @abstractmethod
    def environment(self) -> dict[str, str]:
        """The variables by which iotflow finds this server; known once it has been started, or reserved."""

    @property
    def ports(self) -> dict[str, int]:
        """Role to port as last started or reserved, kept across restarts; empty before the first."""
        try:
            kept = json.loads((self.folder / "ports.json").read_text())
        except (OSError, ValueError):
            return {}
        return {str(role): int(port) for role, port in kept.items()}

    @property
    def log(self) -> Path:
        """The log of the (last) process."""
        return self._process(self.parts[-1]).log

    def start(self) -> None:
        """Start it and wait until it serves; a no-op when it does. After a failure nothing of it runs."""
        if self.running() and self.answers():
            return
        self.prepare()
        with self.port_lock():
            try:
                self.launch()
                self.wait_ready()
            except BaseException:
                self.abort()
                raise

    def stop(self) -> None:
        """Stop it in order, killing what does not stop in time; a no-op when it is not running."""
        for part in reversed(self.parts):
            self._process(part).stop(self.stop_signal, self.stop_timeout_s)

    def kill(self) -> None:
        """End it at once, as a crash would; `start` then brings it back on the same ports and data."""
        for part in reversed(self.parts):
            self._process(part).kill()

    def restart(self) -> None:
        """Stop and start on the same ports and data."""
        self.stop()
        self.start()

    def running(self) -> bool:
        """Whether all its processes live."""
        return all(self._process(part).find() for part in self.parts)

    def answers(self) -> bool:
        """Whether it serves right now."""
        try:
            self.probe()
        except (NotReadyError, OSError):
            return False
        return True

    def status(self) -> Status:
        """How it is now."""
        state: State = "stopped"
        if self.running():
            state = "running" if self.answers() else "unresponsive"
        elif any(self._process(part).crashed for part in self.parts):
            state = "crashed"
        found = [process for part in self.parts if (process := self._process(part).find())]
        return Status(self.name, state, found[-1].pid if found else None, self.ports, self.log)

    def launch(self) -> None:
        """Choose ports and start the processes, without waiting; for a caller that holds `port_lock`."""
        self.stop()
        self.reserve()
        self.configure()
        self.on_progress(f"starting on port {next(iter(self.ports.values()))}")
        self._launched = time.monotonic()
        for part in self.parts:
            self._process(part).start(self.command(part))

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until it serves; raises `ServerError` with the end of its log when it does not."""
        limit = self.start_timeout_s if timeout_s is None else timeout_s
        begun = time.monotonic()
        while True:
            for part in self.parts:
                process = self._process(part)
                if process.find() is None:
                    raise ServerError(f"{self.name}: the process ended while starting.\n{_end_of(process.log)}")
            try:
                self.probe()
            except (NotReadyError, OSError) as error:
                if time.monotonic() - begun > limit:
                    raise ServerError(
                        f"{self.name}: not ready after {limit:.0f} s ({error}).\n{_end_of(self.log)}"
                    ) from error
                time.sleep(_POLL_S)
            else:
                if self._launched:
                    self.on_progress(f"ready after {time.monotonic() - self._launched:.1f} s")
                return

    def abort(self) -> None:
        """Leave nothing running after a failed start; the first error is the one to tell."""
        with contextlib.suppress(ServerError):
            self.stop()

    def port_lock(self) -> contextlib.AbstractContextManager[None]:
        """Held from choosing ports to listening on them, so two stacks never choose the same."""
        return locked(
            self.cache / "ports.lock",
            timeout_s=_PORTS_LOCK_S,
            on_wait=lambda: self.on_progress("waiting for another stack that is starting"),
        )

    def _process(self, part: str) -> Detached:
        return Detached(self.folder / f"{part}.pid", self.folder / f"{part}.log")

    def _choose_ports(self) -> None:
        kept = self.ports
        chosen: dict[str, int] = {}
        for role, preferred in self._wanted.items():
            before = kept.get(role, preferred)
            # Clients know a port that was in use before: a process that was just killed may hold it for a moment.
            patience = _PORT_WAIT_S if role in kept else 0.0
            keep = before not in chosen.values() and tcp.comes_free(before, patience)
            chosen[role] = before if keep else tcp.choose(preferred, chosen.values())
            if chosen[role] != before:
                self.on_progress(f"port {before} is taken, using {chosen[role]}")
        write_private(self.folder / "ports.json", json.dumps(chosen))


def _end_of(log: Path) -> str:
    return f"The end of {log}:\n{tail(log)}"
