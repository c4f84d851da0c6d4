"""Device times: the one place where what a device calls a time becomes aware UTC with microseconds."""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from math import isfinite

from schemas.payload import quoted
from schemas.reading import RejectedError

#: The first and the last year that a device may say it is.
FIRST_YEAR = 1970
LAST_YEAR = 2200

# What a number counts follows from its size: below the first limit seconds, then ms, µs, and ns without a limit.
# Up to LAST_YEAR no two of them meet, but for ms, µs and ns from before March 1973.
_SECONDS_BELOW = 10**11
_MS_BELOW = 10**14
_US_BELOW = 10**17

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_from_iso = datetime.fromisoformat
_loose = re.compile(
    r"(\d{4})([-/.]?)(\d\d)\2(\d\d)[Tt _](\d\d:?\d\d[\d:.,]*) ?([Zz]|UTC|GMT|[+-]\d\d(?::?\d\d)?)?", re.ASCII
)
# Fewer digits could be a day, as 20251005, and would be taken for a second of 1970.
_count = re.compile(r"\d{9,20}(?:\.\d{1,12})?", re.ASCII)


def parse(value: object, *, zone: tzinfo | None = None, field: str = "timestamp") -> datetime:
    """The instant that a device's time names: ISO 8601 text, or a number since 1970 in s, ms, µs or ns by its size.

    The year comes first; between the parts of a day may stand `-`, `/`, `.` or nothing, before the clock `T`, a space
    or `_`. A number may be text of nine digits or more. Anything finer than a microsecond is cut off, not rounded.
    Text without a zone is in `zone`: of a local time that a clock shows twice it is the first, and one that it skips
    is read as if it had not. Raises `RejectedError` with reason `bad_timestamp` for anything else, and outside
    `FIRST_YEAR`..`LAST_YEAR`; never makes a time up.
    """
    try:
        if value.__class__ is str:
            moment = _text(value)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            moment = _number(value)
        else:
            raise RejectedError("bad_timestamp", f"{field} is {quoted(value)}, not a time")
        own = moment.tzinfo
        if own is not UTC:
            if own is not None:
                moment = moment.astimezone(UTC)
            elif zone is not None:
                moment = moment.replace(tzinfo=zone).astimezone(UTC)
            else:
                raise RejectedError("bad_timestamp", f"{field} is {quoted(value)}, which has no zone")
    except (ValueError, OverflowError) as error:
        if isinstance(error, RejectedError):
            raise
        raise RejectedError(
            "bad_timestamp", f"{field} is {quoted(value)}, neither ISO 8601 nor a number of s, ms, µs or ns since 1970"
        ) from error
    if FIRST_YEAR <= moment.year <= LAST_YEAR:
        return moment
    raise RejectedError("bad_timestamp", f"{field} is {quoted(value)}, outside the years {FIRST_YEAR}..{LAST_YEAR}")


def _text(text: str) -> datetime:
    # Python's parser takes any character between date and time, a date alone, which is not an instant, and 12.5 for
    # half a second past noon.
    if text[10:11] in {"T", " "} and text[13:14] != ".":
        try:
            return _from_iso(text)
        except ValueError:
            pass  # what RFC 3339 also allows is seen to below
    found = _loose.fullmatch(text)
    if found is None:
        if _count.fullmatch(text) is None:
            raise ValueError
        return _number(Decimal(text))
    year, _, month, day, clock, zone = found.groups()
    zone = "Z" if zone in {"UTC", "GMT"} else (zone or "").upper()
    return _from_iso(f"{year}-{month}-{day}T{clock}{zone}")


def _number(value: float | Decimal) -> datetime:
    if not isfinite(value) or value < 0:
        raise ValueError
    # A float's shortest decimal is what the device wrote; its binary value may lie just below the microsecond meant.
    exact = Decimal(repr(value)) if isinstance(value, float) else value
    if value < _SECONDS_BELOW:
        micros = int(exact * 1_000_000)
    elif value < _MS_BELOW:
        micros = int(exact * 1_000)
    elif value < _US_BELOW:
        micros = int(exact)
    else:
        micros = int(exact) // 1_000
    return _EPOCH + timedelta(microseconds=micros)
