"""The ledger: what a broker acknowledged of a simulator's load, so that a check can ask the stores for all of it.

A JSON line for each record (offset -1 where the broker did not say), written after its acknowledgement and in one
piece with its neighbours, so that a kill loses the last moments at most and leaves at most one torn line, at the end.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgspec
from msgspec import Struct

from schemas.reading import Reading


class Good(Struct, frozen=True, tag="good", tag_field="k", rename={"partition": "p", "offset": "o", "reading": "r"}):
    """A record that is in the raw topic, and the reading that must come of it."""

    partition: int
    offset: int
    reading: Reading


class Bad(Struct, frozen=True, tag="bad", tag_field="k", rename={"partition": "p", "offset": "o"}):
    """A record that is in the raw topic, and the reason why no reading may come of it; a dead letter must."""

    why: str
    partition: int
    offset: int
    sha256: str
    payload_b64: bytes


Entry = Good | Bad

_encode_lines = msgspec.json.Encoder().encode_lines
_decode: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Good | Bad)


def bad(why: str, partition: int, offset: int, payload: bytes) -> Bad:
    """The entry of a payload that must be rejected."""
    return Bad(why, partition, offset, hashlib.sha256(payload).hexdigest(), payload)


class Ledger:
    """Appends to a ledger's file; a torn line that a killed process left at its end is removed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # No buffer: what `write` was given survives this process.
        self._file = self._path.open("ab", buffering=0)
        os.truncate(self._path, _whole(self._path))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, entries: Iterable[Entry]) -> None:
        """Write entries that the broker has acknowledged."""
        assert self._file is not None, "a ledger is written inside its with block"  # noqa: S101  a caller's bug
        left = memoryview(_encode_lines(list(entries)))
        while left:
            left = left[self._file.write(left) :]


def read(path: Path) -> Iterator[Entry]:
    """Every entry of a ledger, without a torn last line.

    Raises `msgspec.DecodeError` for any other line that is not an entry.
    """
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            yield _decode.decode(line)


def readings(path: Path) -> Iterator[Reading]:
    """What the stores must hold."""
    return (entry.reading for entry in read(path) if isinstance(entry, Good))


def rejects(path: Path) -> Iterator[Bad]:
    """What the dead letters must hold."""
    return (entry for entry in read(path) if isinstance(entry, Bad))


def _whole(path: Path) -> int:
    """The length of a file up to the end of its last complete line."""
    step = 64 * 1024
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - step)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
