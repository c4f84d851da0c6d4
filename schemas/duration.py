"""Spans of time and moments as a person types them: `90s`, `15m`, `12h`, `7d`, `2w`, or a time of ISO 8601."""

import re
from datetime import datetime, timedelta
from typing import Final

from schemas import time
from schemas.payload import quoted
from schemas.reading import RejectedError

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_span = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)


def parse(text: str) -> timedelta:
    """The span of a whole number above 0 and its unit: s, m, h, d or w. Raises `ValueError`."""
    found = _span.fullmatch(text)
    if found is None or not int(found[1]):
        raise ValueError(f"{quoted(text)} is no number above 0 with a unit (s, m, h, d, w), as 90s, 12h or 7d")
    try:
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    except OverflowError as error:
        raise ValueError(f"{quoted(text)} is longer than any calendar") from error


def moment(text: str, now: datetime) -> datetime:
    """A moment: a span before `now`, or a time with a zone. Raises `ValueError`."""
    if _span.fullmatch(text) is not None:
        try:
            return now - parse(text)
        except OverflowError as error:
            raise ValueError(f"{quoted(text)} ago is before any calendar") from error
    try:
        return time.parse(text, field="the time")
    except RejectedError as error:
        raise ValueError(f"{error}; a span before now is written 90s, 15m, 12h, 7d or 2w") from error
