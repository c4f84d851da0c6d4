"""Giving memory back that is free, to the system.

State is made of many small objects among large ones that come and go, and what those leave behind stays with the
process though nothing uses it: about a fifth of its memory where it knows many devices.
"""

import asyncio
import ctypes
from typing import Final

_EVERY_S: Final = 2.0


async def run() -> None:
    """Give back what is free, again and again, until cancelled; where there is no GNU libc, do nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await asyncio.sleep(_EVERY_S)
        trim(0)  # some milliseconds
