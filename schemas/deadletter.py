"""Dead letters: what could not be decoded or stored, with its original bytes, its place and the reason."""

import hashlib
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from schemas import wire
from schemas.reading import Rejected
from schemas.reasons import Reason
from schemas.record import Record

#: Of a value too large for a letter, this much is kept.
KEPT_BYTES: Final = 64 * 1024
#: What a letter's headers may add to the record it holds.
OVERHEAD_BYTES: Final = 64 * 1024
_ERROR_CHARS: Final = 2_000


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


def source_of(record: Record) -> str | None:
    """The `iotflow-src` header of a record, when it has one."""
    for name, value in record.headers:
        if name == wire.HEADER_SRC and value is not None:
            return value.decode("utf-8", "replace")
    return None


def letter(  # noqa: PLR0913  each is one header of the letter
    record: Record,
    rejected: Rejected,
    *,
    stage: str,
    index: int,
    version: str,
    now_ms: int,
    source: str | None = None,
    attempt: int = 1,
    max_value_bytes: int,
    dialect: str = "",
) -> Letter:
    """Make the letter for reading `index` (0-based) of a record that `stage` could not handle.

    `source` is the `iotflow-src` of a decoded record; without it the letter's place is the record's own. The value is
    the record's as the stage consumed it; one longer than `max_value_bytes` is cut to `KEPT_BYTES`
    and carries its sha256 and length in `iotflow-dlq-sha256` and `iotflow-dlq-length`.
    """
    if source is None:
        place = f"{record.topic}/{record.partition}/{record.offset}/{index}"
    else:  # a decoded record is one reading, unless it is decoded once more
        place = f"{source}/{index}" if index else source
    value = record.value
    headers: list[tuple[str, bytes]] = [
        ("iotflow-dlq-stage", stage.encode()),
        ("iotflow-dlq-reason", rejected.reason.encode()),
        ("iotflow-dlq-error", rejected.error[:_ERROR_CHARS].encode("utf-8", "replace")),
        ("iotflow-dlq-src", place.encode("utf-8", "replace")),
        ("iotflow-dlq-attempt", b"%d" % attempt),
        ("iotflow-dlq-version", version.encode()),
        ("iotflow-dlq-ts", b"%d" % now_ms),
        ("iotflow-orig-topic", record.topic.encode()),
        ("iotflow-orig-partition", b"%d" % record.partition),
        ("iotflow-orig-offset", b"%d" % record.offset),
        ("iotflow-orig-timestamp", b"%d" % record.timestamp),
    ]
    if dialect:
        headers.append(("iotflow-dlq-dialect", dialect.encode()))
    if record.key is not None:
        headers.append(("iotflow-orig-key", record.key[:_ERROR_CHARS]))
    if value is None:
        headers.append(("iotflow-orig-null", b"1"))
    elif len(value) > max_value_bytes:
        headers.append(("iotflow-dlq-sha256", hashlib.sha256(value).hexdigest().encode()))
        headers.append(("iotflow-dlq-length", b"%d" % len(value)))
        value = value[:KEPT_BYTES]
    room = OVERHEAD_BYTES // 2
    for name, original in record.headers:
        room -= len(name) + len(original or b"") + 16
        if room < 0:
            headers.append(("iotflow-dlq-headers-cut", b"1"))
            break
        headers.append((f"iotflow-orig-h-{name}", original or b""))
    return Letter(f"{stage}:{place}", rejected.reason, value, headers, dialect)
