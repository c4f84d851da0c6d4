"""What a store needs done from time to time and has no scheduler for, as dropping rows past their retention."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

log = logging.getLogger(__name__)

_EVERY_S: Final = 3600.0
#: Not at once: workers that start together, or again and again, must not all begin with it.
_FIRST_S: Final = (60.0, 300.0)


class Maintenance:
    """Does `work` every hour; it says what it did. A failure is logged, and the next hour comes."""

    def __init__(self, work: Callable[[], Awaitable[Sequence[str]]]) -> None:
        self._work = work

    async def run(self) -> None:
        """Until cancelled."""
        await asyncio.sleep(random.uniform(*_FIRST_S))  # noqa: S311  to spread it
        while True:
            try:
                for note in await self._work():
                    log.info("maintenance", extra={"done": note})
            except Exception as error:  # noqa: BLE001  the store may be away
                log.warning("maintenance failed", extra={"error": f"{type(error).__name__}: {error}"})
            await asyncio.sleep(_EVERY_S)

    async def close(self) -> None:
        """Nothing is left to do."""
