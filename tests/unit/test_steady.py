"""That a steady producer asks calmly and never gives a batch up."""

import asyncio
import math
import time
from typing import Any

from aiokafka import AIOKafkaProducer

from app import steady


async def test_what_it_changes_is_what_aiokafka_uses() -> None:
    producer = AIOKafkaProducer(bootstrap_servers="127.0.0.1:1")
    try:
        assert 0 < producer._message_accumulator._batch_ttl < math.inf
        assert asyncio.iscoroutinefunction(producer.client._metadata_update)
        steady.steady(producer)
        assert producer._message_accumulator._batch_ttl == math.inf
    finally:
        await producer.stop()


async def test_questions_are_apart_and_answers_pass_through() -> None:
    class Part:
        _batch_ttl = 40.0

        def __init__(self) -> None:
            self.times: list[float] = []

        async def _metadata_update(self, cluster: str, topics: list[str]) -> tuple[str, list[str]]:
            self.times.append(time.monotonic())
            return cluster, topics

    class Producer:
        client: Any = Part()
        _message_accumulator = Part()

    steady.steady(Producer)
    for _ in range(3):
        assert await Producer.client._metadata_update("cluster", ["raw"]) == ("cluster", ["raw"])
    first, second, third = Producer.client.times
    assert min(second - first, third - second) >= 0.099
