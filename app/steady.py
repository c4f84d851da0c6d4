"""An idempotent aiokafka producer through an outage: two things that aiokafka 0.14 gets wrong there."""

import asyncio
import math
import time
from typing import Any, Final

_PAUSE_SECONDS: Final = 0.1


def steady(producer: Any) -> None:
    """Make a producer that was not started yet wait for its broker calmly, and for as long as it takes.

    A broker that stops in good order says that its partitions have no leader. As long as that is the last word,
    aiokafka asks for the leader again at once, thousands of times a second; and a batch that has waited for it longer
    than the request time-out is dropped although it has a sequence number, so that the broker refuses every later one
    with `OutOfOrderSequenceNumber`.
    """
    producer._message_accumulator._batch_ttl = math.inf  # noqa: SLF001  there is no public way to any of these
    client = producer.client
    ask = client._metadata_update  # noqa: SLF001
    last = -math.inf

    async def paced(*args: Any) -> bool:
        nonlocal last
        pause = last + _PAUSE_SECONDS - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        last = time.monotonic()
        found: bool = await ask(*args)
        return found

    client._metadata_update = paced  # noqa: SLF001
