"""A chunk in an agent's hands."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from schemas.record import Record


class Held:
    """A chunk that Faust delivered; implements `sinks.handover.Held`."""

    __slots__ = ("_consumer", "_event", "generation", "records")

    def __init__(self, event: Any, consumer: Any) -> None:
        self._event = event
        self._consumer = consumer
        self.records: Sequence[Record] = event.value
        self.generation: int = event.message.generation_id

    def ack(self) -> None:
        """Everything in it is durable: its offsets may be committed."""
        self._event.ack()

    def shed(self) -> None:
        """The records are not needed any more, though they are not durable: the list is empty from now on.

        They do not hold up intake any longer; whoever sheds bounds the number of chunks that it holds.
        """
        self._consumer.shed(self._event.message)
        self._event.value.clear()

    def release(self) -> None:
        """Let go; the broker delivers it again."""
        self._consumer.discard(self._event.message)


async def chunks(stream: Any) -> AsyncIterator[Held]:
    """The chunks of a stream, to be acknowledged by hand; those of an earlier generation are let go.

    `noack().events()` instead of `noack_take`: the transport has done the batching, and a timer on top of it would
    add its period to the latency.
    """
    app = stream.app
    async for event in stream.noack().events():
        held = Held(event, app.consumer)
        if held.generation == app.consumer_generation_id:
            yield held
        else:
            held.release()
