"""Times as a server counts them, in ms, us or ns since the epoch."""

from datetime import UTC, datetime, timedelta
from typing import Final

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
LIMIT: Final = 2**63
#: Microseconds in the server's unit; a nanosecond is less.
_MICROS: Final = {"ms": 1000, "us": 1}
_MICROSECOND: Final = timedelta(microseconds=1)


def micros(time: datetime) -> int:
    """Microseconds since the epoch."""
    since = time - EPOCH
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


def counted(micros: int, precision: str) -> int:
    """Microseconds as the server counts them; what is less than its unit is cut off."""
    return micros * 1000 if precision == "ns" else micros // _MICROS[precision]


def bound(time: datetime, precision: str) -> int:
    """The first instant of the server that is not before a time."""
    return -counted(-micros(time), precision)


def instant(at: int, precision: str) -> datetime:
    """A time that the server counted."""
    return EPOCH + timedelta(microseconds=at // 1000 if precision == "ns" else at * _MICROS[precision])


def width(every: timedelta, precision: str) -> int:
    """A span in the server's unit. Raises `ValueError` where it has no such span."""
    span = every // _MICROSECOND
    if span <= 0:
        raise ValueError(f"a span of {every} does not last: give one above 0")
    if precision == "ms" and span % 1000:
        raise ValueError(f"a span of {every} cannot be asked of a server that counts milliseconds")
    units = counted(span, precision)
    if units >= LIMIT:
        raise ValueError(f"a span of {every} is more than the server can count")
    return units
