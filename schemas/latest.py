"""The last values of a channel, as a record of a compacted topic."""

from datetime import datetime
from typing import Final, Literal

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from schemas import wire
from schemas.names import joined
from schemas.reading import Reading


class Span(Struct, frozen=True):
    """How many readings there were in the hour or day from `start`."""

    start: datetime
    count: int


class Latest(Struct, frozen=True, kw_only=True):
    """What is known of a channel: its newest reading, when it was first and last heard, and how much it says.

    `online` is false when it was silent for longer than `IOTFLOW_IDLE`; who reads it long after `seen` must judge for
    himself, since a channel says nothing of its worker's end.
    """

    v: Literal[1] = 1
    device_id: str
    measurement: str
    channel: str = ""
    first_seen: datetime
    seen: datetime
    online: bool
    hour: Span
    day: Span
    reading: msgspec.Raw | Reading


class _Read(Latest, frozen=True, kw_only=True):
    reading: msgspec.Raw


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Read).decode


def key(device_id: str, measurement: str, channel: str) -> bytes:
    """The key of a channel's record."""
    return joined(device_id, measurement, channel).encode()


def written(latest: Latest) -> bytes:
    """A record's value."""
    return _encode(latest)


def read(value: bytes) -> Latest:
    """What a record says, its reading in any shape that `wire.read` knows.

    Raises msgspec's errors and `RejectedError`.
    """
    found: _Read = _decode(value)
    return Latest(**{**asdict(found), "reading": wire.read(bytes(found.reading))})
