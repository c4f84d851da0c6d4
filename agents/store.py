"""The store stages: decoded chunks to delivery."""

from collections.abc import Awaitable, Callable
from typing import Any

from agents.held import chunks
from sinks.delivery import Delivery


def store(delivery: Delivery) -> Callable[[Any], Awaitable[None]]:
    """The agent that feeds a sink's delivery."""

    async def agent(stream: Any) -> None:
        async for held in chunks(stream):
            await delivery.put(held)

    return agent
