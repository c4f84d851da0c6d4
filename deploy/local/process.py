"""A server process that outlives whoever started it, known again by its pid file."""

import contextlib
import json
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from deploy.local.files import ServerError, write_private

#: The start time the kernel reports drifts a little when the clock is corrected.
_SAME_START_S: Final = 2.0
_POLL_S: Final = 0.02
_KILL_WAIT_S: Final = 10.0
_HELD_BACK: Final = (signal.SIGINT, signal.SIGTERM)

#: Children of this very process: they must be reaped here, or they stay as zombies.
_children: dict[int, subprocess.Popen[bytes]] = {}


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back Ctrl-C and SIGTERM for the block.

    Between the birth of a process and its pid file they would leave a process that nobody knows. Signals are not
    masked, because a child would inherit the mask; only the main thread handles them, so no other needs this.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {which: signal.signal(which, lambda number, _: held.append(number)) for which in _HELD_BACK}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
        for number in held:
            signal.raise_signal(number)


@dataclass(frozen=True)
class Account:
    """The system user a process runs as."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Command:
    """What to run. `env` is the whole environment: nothing of the user's shell changes how a server behaves."""

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str]
    account: Account | None = None


class Detached:
    """One process in a session of its own, with its pid file and log.

    The pid file holds pid and start time, so a pid that the system gave to another process is never signalled.
    """

    def __init__(self, pid_file: Path, log: Path) -> None:
        self.pid_file = pid_file
        self.log = log

    def start(self, command: Command) -> int:
        """Start it; the log of the start before is kept as `.1`. Returns the pid."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        if self.log.exists():
            self.log.replace(self.log.with_name(f"{self.log.name}.1"))
        account = command.account
        with self.log.open("wb") as out, uninterrupted():
            child = subprocess.Popen(  # noqa: S603  the commands are the servers' own
                command.argv,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=command.cwd,
                env=command.env,
                start_new_session=True,
                user=None if account is None else account.uid,
                group=None if account is None else account.gid,
                extra_groups=None if account is None else [],
            )
            _children[child.pid] = child
            try:
                started = psutil.Process(child.pid).create_time()
                write_private(self.pid_file, json.dumps({"pid": child.pid, "started": started}))
            except BaseException:
                child.kill()
                child.wait()
                raise
        return child.pid

    def find(self) -> psutil.Process | None:
        """The live process this pid file means, or None."""
        try:
            record = json.loads(self.pid_file.read_text())
            pid, started = int(record["pid"]), float(record["started"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        child = _children.get(pid)
        if child is not None and child.poll() is not None:
            del _children[pid]
            child = None
        try:
            process = psutil.Process(pid)
            if abs(process.create_time() - started) > _SAME_START_S:
                return None
            # A killed child looks like a zombie while its threads still hold its ports; until it can be reaped it is
            # there. A zombie of somebody else's may stay for ever, where no init reaps it, and is not.
            return process if child is not None or process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None

    @property
    def crashed(self) -> bool:
        """Whether it was started, not stopped, and is gone."""
        return self.pid_file.exists() and self.find() is None

    def stop(self, how: signal.Signals, timeout_s: float) -> None:
        """Ask it to stop, kill it after `timeout_s`, and forget it. Not running is fine."""
        self._signal(how)
        if not self._gone_within(timeout_s):
            self.kill()
        self.pid_file.unlink(missing_ok=True)

    def kill(self) -> None:
        """End it at once, as a crash would: the pid file stays, so it counts as crashed."""
        self._signal(signal.SIGKILL)
        if not self._gone_within(_KILL_WAIT_S):
            raise ServerError(f"the process of {self.pid_file} does not end, even when killed")

    def _signal(self, which: signal.Signals) -> None:
        process = self.find()
        if process is None:
            return
        try:
            process.send_signal(which)
        except psutil.NoSuchProcess:
            return
        except psutil.AccessDenied as error:
            raise ServerError(f"process {process.pid} ({self.pid_file}) belongs to another user") from error

    def _gone_within(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while self.find() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        return True
