"""An aiokafka client through an outage: three things that aiokafka 0.14 gets wrong there."""

import asyncio
import math
import time
from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from aiokafka import errors
from aiokafka.conn import AIOKafkaConnection, CloseReason

_PAUSE_SECONDS: Final = 0.1


def steady(producer: Any) -> None:
    """Make an idempotent producer that was not started yet wait for its broker calmly, and for as long as it takes.

    A batch that has waited for its partition's leader longer than the request time-out is dropped by aiokafka although
    it has a sequence number, so that the broker refuses every later one with `OutOfOrderSequenceNumber`.
    """
    producer._message_accumulator._batch_ttl = math.inf  # noqa: SLF001  there is no public way to any of these
    pace(producer.client)


def pace(client: Any) -> None:
    """Make a client that was not started yet ask for its partitions' leaders calmly.

    A broker that stops in good order says that its partitions have no leader, and one that was asked for a topic that
    is gone says the same. As long as that is the last word, aiokafka asks again at once, thousands of times a second.
    """
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


def hang_up() -> None:
    """Make every connection of this process, on uvloop too, say that it is broken when its socket is closed already.

    uvloop raises a `RuntimeError` then, and aiokafka looks for an `OSError` alone: what was asked ends with an error
    that nobody tries again after, and Faust's consumer with it (aiokafka's issue 1038). Calling this again is harmless.
    """
    for name in ("send", "_send_sasl_token"):
        stock = getattr(AIOKafkaConnection, name)
        if not hasattr(stock, "__wrapped__"):
            setattr(AIOKafkaConnection, name, _hanging_up(stock))


def _hanging_up(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    def sending(connection: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return send(connection, *args, **kwargs)
        except errors.KafkaError:
            raise
        except RuntimeError as error:
            connection.close(reason=CloseReason.CONNECTION_BROKEN)
            raise errors.KafkaConnectionError(f"{connection.host}:{connection.port}: {error}") from error

    return sending
