"""Dead letters: what could not be decoded or stored, with its original bytes, its place and the reason; the way back.

A record that a letter is replayed as begins with a block of headers of our own (`replay_headers`), the target first:
looking at one header tells it from every other record. Behind them stand its original ones. `replayed` is the inverse:
the record as it first was. Anybody may send such a block. It decides nothing but which stage takes the record, what its
letters are called, how many attempts they count and when it was received, and that only of the sender's own record: a
place is believed where it lies before the record itself in its own partition, and `schemas.letterstate` keeps letters
of one id apart that hold different records.
"""

import hashlib
import re
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from schemas import wire
from schemas.reading import Rejected
from schemas.reasons import Reason
from schemas.record import Headers, Record

#: Of a value too large for a letter, this much is kept.
KEPT_BYTES: Final = 64 * 1024
#: What a letter's headers may add to the record it holds.
OVERHEAD_BYTES: Final = 64 * 1024
_ERROR_CHARS: Final = 2_000
_KEY_BYTES: Final = 2_000

#: The first header of a record that only one stage is to take: its name.
HEADER_TARGET: Final = "iotflow-target"
HEADER_ID: Final = "iotflow-dlq-id"
HEADER_ATTEMPT: Final = "iotflow-dlq-attempt"
HEADER_SRC: Final = "iotflow-dlq-src"
HEADER_TIMESTAMP: Final = "iotflow-orig-timestamp"
#: What an original header's name begins with in a letter; the second for one without a value.
PREFIX_HEADER: Final = "iotflow-orig-h-"
PREFIX_NULL_HEADER: Final = "iotflow-orig-n-"
#: A letter with any of these does not hold its record whole.
HEADER_SHA256: Final = "iotflow-dlq-sha256"
HEADER_KEY_CUT: Final = "iotflow-dlq-key-cut"
HEADER_HEADERS_CUT: Final = "iotflow-dlq-headers-cut"

_BLOCK: Final = (HEADER_TARGET, HEADER_SRC, HEADER_ATTEMPT, HEADER_TIMESTAMP, HEADER_ID)
_place = re.compile(rb"([A-Za-z0-9._-]{1,249})/(\d{1,9})/(\d{1,18})", re.ASCII)
_attempt = re.compile(rb"\d{1,6}", re.ASCII)
_timestamp = re.compile(rb"-?\d{1,15}", re.ASCII)


class Letter(Struct, frozen=True):
    """One failed reading, or one undecodable record, as it is sent to the dead-letter topic.

    `id` is the same each time the same failure is met again, so a repeat is the same letter.
    """

    id: str
    reason: Reason
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    #: Of the payload that could not be decoded; `''` where that is not known, or not why it is here.
    dialect: str = ""

    @property
    def key(self) -> bytes:
        """The record key: the letter's id."""
        return self.id.encode()


class Replayed(Struct, frozen=True):
    """A record that was sent again, as it first was (`schemas.record.Record`); `attempt` counts from 1, its first."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    attempt: int


def source_of(record: Record) -> str | None:
    """The `iotflow-src` header of a record, when it has one."""
    for name, value in record.headers:
        if name == wire.HEADER_SRC and value is not None:
            return value.decode("utf-8", "replace")
    return None


def target_of(headers: Headers) -> str | None:
    """The only stage that is to take a record with these headers; None when all are. Looks at the first header only."""
    if not headers or headers[0][0] != HEADER_TARGET:
        return None
    return (headers[0][1] or b"").decode("utf-8", "replace")


def replay_headers(  # noqa: PLR0913  each is one of the headers
    target: str, topic: str, partition: int, offset: int, *, attempt: int, timestamp: int, ids: Sequence[str]
) -> list[tuple[str, bytes | None]]:
    """The block that a replayed record begins with: who takes it, where and when it first was, and of which letters."""
    return [
        (HEADER_TARGET, target.encode()),
        (HEADER_SRC, b"%s/%d/%d" % (topic.encode(), partition, offset)),
        (HEADER_ATTEMPT, b"%d" % attempt),
        (HEADER_TIMESTAMP, b"%d" % timestamp),
        (HEADER_ID, ",".join(ids).encode("utf-8", "replace")),
    ]


def replayed(record: Record) -> Replayed | None:
    """A record that was sent again as it first was; None for every other record.

    Its place is the record's own where the one that is said does not lie before it in its partition.
    """
    headers = record.headers
    if tuple(name for name, _ in headers[: len(_BLOCK)]) != _BLOCK:
        return None
    _, said, attempt, timestamp, _ = (value or b"" for _, value in headers[: len(_BLOCK)])
    place = _place.fullmatch(said)
    if place is None or _attempt.fullmatch(attempt) is None or _timestamp.fullmatch(timestamp) is None:
        return None
    offset = int(place[3])
    same = place[1] == record.topic.encode() and int(place[2]) == record.partition and offset < record.offset
    return Replayed(
        record.topic,
        record.partition,
        offset if same else record.offset,
        int(timestamp),
        record.key,
        record.value,
        headers[len(_BLOCK) :],
        max(1, int(attempt)),
    )


def letter(  # noqa: PLR0913  each is one header of the letter
    record: Record,
    rejected: Rejected,
    *,
    stage: str,
    index: int,
    version: str,
    now_ms: int,
    source: str | None = None,
    max_value_bytes: int,
    dialect: str = "",
) -> Letter:
    """Make the letter for reading `index` (0-based) of a record that `stage` could not handle.

    `source` is the `iotflow-src` of a decoded record; without it the letter's place is the record's own. A record that
    was sent again makes the letter that it first made, with its attempt. The value is the record's as the stage
    consumed it; one longer than `max_value_bytes` is cut to `KEPT_BYTES` and carries its sha256 and length in
    `iotflow-dlq-sha256` and `iotflow-dlq-length`.
    """
    again = record if isinstance(record, Replayed) else replayed(record)
    attempt = 1
    if again is not None:
        record, attempt = again, again.attempt
    if source is None:
        place = f"{record.topic}/{record.partition}/{record.offset}/{index}"
    else:  # a decoded record is one reading, unless it is decoded once more
        place = f"{source}/{index}" if index else source
    value = record.value
    headers: list[tuple[str, bytes]] = [
        ("iotflow-dlq-stage", stage.encode()),
        ("iotflow-dlq-reason", rejected.reason.encode()),
        ("iotflow-dlq-error", rejected.error[:_ERROR_CHARS].encode("utf-8", "replace")),
        (HEADER_SRC, place.encode("utf-8", "replace")),
        (HEADER_ATTEMPT, b"%d" % attempt),
        ("iotflow-dlq-version", version.encode()),
        ("iotflow-dlq-ts", b"%d" % now_ms),
        ("iotflow-orig-topic", record.topic.encode()),
        ("iotflow-orig-partition", b"%d" % record.partition),
        ("iotflow-orig-offset", b"%d" % record.offset),
        (HEADER_TIMESTAMP, b"%d" % record.timestamp),
    ]
    if dialect:
        headers.append(("iotflow-dlq-dialect", dialect.encode()))
    if record.key is not None:
        headers.append(("iotflow-orig-key", record.key[:_KEY_BYTES]))
        if len(record.key) > _KEY_BYTES:
            headers.append((HEADER_KEY_CUT, b"1"))
    if value is None:
        headers.append(("iotflow-orig-null", b"1"))
    elif len(value) > max_value_bytes:
        headers.append((HEADER_SHA256, hashlib.sha256(value).hexdigest().encode()))
        headers.append(("iotflow-dlq-length", b"%d" % len(value)))
        value = value[:KEPT_BYTES]
    room = OVERHEAD_BYTES // 2
    for name, original in record.headers:
        room -= len(name) + len(original or b"") + 16
        if room < 0:
            headers.append((HEADER_HEADERS_CUT, b"1"))
            break
        prefix = PREFIX_HEADER if original is not None else PREFIX_NULL_HEADER
        headers.append((f"{prefix}{name}", original or b""))
    return Letter(f"{stage}:{place}", rejected.reason, value, headers, dialect)
