"""The ledger: what a broker acknowledged of a simulator's load, so that a check can ask the stores for all of it.

A JSON line for each record (offset -1 where the broker did not say), written after its acknowledgement and in one
piece with its neighbours, so that a kill loses the last moments at most and leaves at most one torn line, at the end.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

import msgspec
from msgspec import Struct

from schemas.reading import Reading

_NAMES: Final = {"topic": "t", "partition": "p", "offset": "o", "reading": "r"}


class Good(Struct, frozen=True, tag="good", tag_field="k", rename=_NAMES, omit_defaults=True):
    """A record that is in a raw topic, and the reading that must come of it, even if it is of long before."""

    topic: str
    partition: int
    offset: int
    reading: Reading
    late: bool = False


class Bad(Struct, frozen=True, tag="bad", tag_field="k", rename=_NAMES):
    """A record that is in a raw topic, and the reason why no reading may come of it; a dead letter must."""

    why: str
    topic: str
    partition: int
    offset: int
    sha256: str
    payload_b64: bytes


Entry = Good | Bad

_encode_lines = msgspec.json.Encoder().encode_lines
_decode: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Good | Bad)


def bad(why: str, topic: str, partition: int, offset: int, payload: bytes) -> Bad:
    """The entry of a payload that must be rejected."""
    return Bad(why, topic, partition, offset, hashlib.sha256(payload).hexdigest(), payload)


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


def read(path: Path, topic: str | None = None) -> Iterator[Entry]:
    """Every entry of a ledger, or every one of a topic, without a torn last line.

    Raises `msgspec.DecodeError` for any other line that is not an entry.
    """
    with path.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                return
            entry = _decode.decode(line)
            if topic in (None, entry.topic):
                yield entry


def readings(path: Path, topic: str | None = None) -> Iterator[Reading]:
    """What the stores must hold."""
    return (entry.reading for entry in read(path, topic) if isinstance(entry, Good))


def rejects(path: Path, topic: str | None = None) -> Iterator[Bad]:
    """What the dead letters must hold."""
    return (entry for entry in read(path, topic) if isinstance(entry, Bad))


def begin(path: Path, topic: str | None = None) -> datetime | None:
    """The time of the first reading that was not late: until then the stores may hold what an earlier run sent."""
    entries = (entry for entry in read(path, topic) if isinstance(entry, Good) and not entry.late)
    return min((entry.reading.time for entry in entries), default=None)


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
