"""Wire version 1: how a reading travels on the decoded topic; and the older shapes that may be found there."""

from datetime import UTC
from typing import Final

import msgspec

from schemas.dialects import Meta, decoded, setup_of
from schemas.policy import finisher
from schemas.reading import Reading, RejectedError
from schemas.record import Headers

VERSION: Final = b"1"
HEADER_VERSION: Final = "iotflow-v"
HEADER_SRC: Final = "iotflow-src"
HEADER_INGEST_MS: Final = "iotflow-ingest-ms"
#: Of a record that was sent again: what it says may have been said before, or be older than what was said since.
HEADER_REPLAY: Final = "iotflow-replay"

_MS_DIGITS: Final = 15
_HEADER_V: Final = (HEADER_VERSION, VERSION)

#: A reading to the bytes of its record's value; the inverse of `read`.
write = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Reading).decode
# The dialect's own policy; when a record was received is not known here, so its time is believed.
_OLDER: Final = Meta("", None, (), -1, setup_of(decoded.POLICY))
_finish = finisher(decoded.POLICY)


def headers(source: bytes, ingest_ms: int) -> list[tuple[str, bytes]]:
    """The headers of a decoded record.

    `source` is TOPIC/PARTITION/OFFSET/INDEX of the raw record and of the reading in it; `ingest_ms` is when that
    record was received (epoch, ms).
    """
    return [_HEADER_V, (HEADER_SRC, source), (HEADER_INGEST_MS, b"%d" % ingest_ms)]


def read(value: bytes | None) -> Reading:
    """The reading in a decoded record's value: wire version 1, or, without `v`, a shape of the `decoded` dialect.

    Wire version 1 counts microseconds; what else writes it finer is rounded. Raises `RejectedError` with reason `wire`
    when it is not one.
    """
    if value is None:
        raise RejectedError("wire", "the record has no value")
    try:
        reading = _decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _older(value)
    if not reading.device_id or not reading.measurement or not reading.values or "" in reading.values:
        raise RejectedError("wire", "device_id, measurement, values and the names of metrics must not be empty")
    time = reading.time
    if time.tzinfo is UTC:
        return reading
    if time.tzinfo is None:
        raise RejectedError("wire", "time has no zone")
    try:
        return msgspec.structs.replace(reading, time=time.astimezone(UTC))
    except OverflowError as error:
        raise RejectedError("wire", f"time {time} is outside the calendar in UTC") from error


def _older(value: bytes) -> Reading:
    (outcome,) = _finish(decoded.decode(value, _OLDER), _OLDER.received_ms)
    if isinstance(outcome, Reading):
        return outcome
    shapes = "" if outcome.reason == "wire" else "neither of wire version 1 nor of an older shape: "
    raise RejectedError("wire", shapes + outcome.error)


def ingest_ms(record_headers: Headers, default: int) -> int:
    """The receive time a record's headers carry, or `default`; milliseconds since the epoch."""
    for name, value in record_headers:
        if name == HEADER_INGEST_MS and value is not None and value.isdigit() and len(value) <= _MS_DIGITS:
            return int(value)
    return default
