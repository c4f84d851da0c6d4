"""Files: a directory for each test."""

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

from schemas.reading import Reading
from sinks.base import Fatal
from tests.lab.stores import StoreLab


class Directory:
    """What there is in the place of a server: a directory that can go away, as a mount does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._away = path.with_name("away")

    def kill(self) -> None:
        """It is no longer where it was, with all that is in it."""
        self.path.rename(self._away)

    def start(self) -> None:
        """It is back."""
        self._away.rename(self.path)


class Lab(StoreLab):
    """A directory of the test's own. No server is needed, and there is none that could refuse a reading."""

    server_name = ""
    mistakes = (
        ({"STORAGE_PATH": "/nowhere/at/all"}, Fatal),
        ({"STORAGE_PATH": "/dev/null/file"}, Fatal),
    )

    async def make(self) -> dict[str, str]:
        """A path in an empty directory; batches are those of the other stores, so that tests treat all alike."""
        self._folder = Path(tempfile.mkdtemp(prefix="iotflow-file-"))
        self.server = Directory(self._folder / "storage")
        self.env = {
            "STORAGE_PATH": str(self.server.path),
            "STORAGE_BATCH_SIZE": "5000",
            "STORAGE_BATCH_TIMEOUT": "0.2",
        }
        return self.env

    async def drop(self) -> None:
        """Delete it."""
        shutil.rmtree(self._folder)

    async def refuse(self, readings: Sequence[Reading]) -> None:
        """There is nobody who could: what has a form is written, and a file system does not look at it."""
        del readings
        _refuses_nothing()

    def poisoned(self, reading: Reading) -> Reading:
        """There is none."""
        del reading
        _refuses_nothing()

    async def account(self) -> dict[str, str]:
        """The user that the test runs as, and the rights that it has."""
        return {}

    @asynccontextmanager
    async def locked_out(self) -> AsyncIterator[None]:
        """The directory cannot be written to; root, whom no mode binds, has it mounted for reading."""
        path = self.server.path
        if os.geteuid() != 0:
            modes = {each: each.stat().st_mode for each in (path, *path.rglob("*")) if each.is_dir()}
            for each in modes:
                each.chmod(0o555)
            yield
            for each, mode in modes.items():
                each.chmod(mode)
            return
        try:
            _run("mount", "--bind", path, path)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"root may not mount here, so nothing keeps it from writing: {error.stderr.decode().strip()}")
        try:
            _run("mount", "-o", "remount,bind,ro", path)
            yield
        finally:
            _run("umount", "--lazy", path)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Another worker stands still where all others wait for it: while it draws the number of a batch."""
        with (self.server.path / ".iotflow" / "sequence").open("rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _run(*command: Any) -> None:
    subprocess.run(command, check=True, capture_output=True)


def _refuses_nothing() -> NoReturn:
    pytest.skip("a directory refuses no reading: whatever it does not take, it does not take of any")
