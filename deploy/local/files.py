"""Small things on disk: a lock, a file only its owner reads, the end of a log, where downloads are kept."""

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

_POLL_S: Final = 0.1


class ServerError(Exception):
    """A server could not be fetched, started or stopped; the text is for a person."""


class UnavailableError(ServerError):
    """This server cannot be had on this machine; the text says what that would take."""

    #: The exit code of a command that ends with it (EX_UNAVAILABLE of sysexits.h).
    EXIT_CODE: Final = 69


def default_cache() -> Path:
    """Where downloads are kept between stacks: the user's cache folder of this platform."""
    caches = Path("Library", "Caches") if sys.platform == "darwin" else Path(".cache")
    return Path.home() / caches / "iotflow"


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold the lock file `path` for the block; the kernel lets go of it if this process dies.

    `on_wait` is called once if somebody else has it. Raises `ServerError` when it does not come free.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    told = False
    with path.open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    told = True
                    on_wait()
                if time.monotonic() > deadline:
                    raise ServerError(f"{path} has been locked by another process for {timeout_s:.0f} s") from None
            time.sleep(_POLL_S)
        yield


def write_private(path: Path, text: str) -> None:
    """Replace a file in one step, readable by its owner alone from the first byte."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    fresh.replace(path)


def write_env(path: Path, variables: Mapping[str, str]) -> None:
    """Write variables as KEY=value lines that both a shell and an env-file reader take as they stand."""
    for name, value in variables.items():
        if any(character.isspace() or character in "'\"\\$`#;&|<>()" for character in value):
            raise ValueError(f"{name} cannot stand unquoted in an env file")
    write_private(path, "".join(f"{name}={value}\n" for name, value in variables.items()))


def tail(path: Path, lines: int = 15) -> str:
    """The last lines of a log, or a word that there are none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 16_384))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(the log is empty)"
