"""A compressed file, written, flushed to disk and renamed: what the standard library has for it."""

import gzip
import os
from pathlib import Path
from typing import Any

from tests.bench.stores import Bare


class Client(Bare):
    """It blocks, which disturbs nobody here."""

    ratio = None  # an archive is asked for less than a database

    async def open(self) -> None:
        """Make the day's directory, where the sink looks for files."""
        self._folder = Path(self.settings.path) / "2025" / "01" / "01"
        self._folder.mkdir(parents=True, exist_ok=True)
        self._number = 0

    async def send(self, payload: Any) -> None:
        """One file with the sink's lines."""
        self._number += 1
        name = f"20250101T{self._number:012d}Z-{os.getpid():06x}.jsonl.gz"
        head = (
            b'{"batch_id":"%d","uploaded_at":"2025-01-01T00:00:00Z","record_count":%d,"storage_type":"production",'
            b'"period_start":"2000-01-01T00:00:00Z","period_end":"2100-01-01T00:00:00Z"}\n'
        ) % (self._number, payload.count)
        part = self._folder / f".{name}"
        with part.open("wb") as file:
            if self.settings.gzip:
                with gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
                    packed.write(head)
                    packed.write(payload.body)
            else:
                file.write(head)
                file.write(payload.body)
            file.flush()
            os.fsync(file.fileno())
        part.rename(self._folder / name)
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
