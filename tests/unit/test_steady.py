"""That a steady producer asks calmly and never gives a batch up, and that a closed socket is a broken connection."""

import asyncio
import math
import time
from typing import Any

import pytest
import uvloop
from aiokafka import AIOKafkaProducer
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import KafkaConnectionError, KafkaError
from aiokafka.protocol.metadata import MetadataRequest

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


async def on_a_closed_socket(connections: list[Any], method: str, *args: Any) -> None:
    """Use a connection whose socket went away before the connection has heard of it."""
    async with await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0) as server:
        connection = AIOKafkaConnection(*server.sockets[0].getsockname())
        connections.append(connection)
        connection._versions = {MetadataRequest.API_KEY: (0, 1)}
        connection._reader, connection._writer = await asyncio.open_connection(connection.host, connection.port)
        connection._read_task = asyncio.create_task(asyncio.sleep(60))  # what would hear of it, a moment later
        connection._writer.transport.abort()
        await asyncio.sleep(0.05)
        await getattr(connection, method)(*args)


STOCK = {name: getattr(AIOKafkaConnection, name) for name in ("send", "_send_sasl_token")}


@pytest.mark.parametrize(("method", "args"), [("send", [MetadataRequest([])]), ("_send_sasl_token", [b"token"])])
def test_a_closed_socket_is_a_broken_connection(monkeypatch: pytest.MonkeyPatch, method: str, args: list[Any]) -> None:
    """Without the cure uvloop's own error would show; when it does not any more, the cure can go."""
    for name, stock in STOCK.items():
        monkeypatch.setattr(AIOKafkaConnection, name, stock)
    connections: list[Any] = []
    with pytest.raises(RuntimeError, match="the handler is closed") as found:
        uvloop.run(on_a_closed_socket(connections, method, *args))
    assert not isinstance(found.value, KafkaError)

    steady.hang_up()
    steady.hang_up()
    with pytest.raises(KafkaConnectionError, match="the handler is closed"):
        uvloop.run(on_a_closed_socket(connections, method, *args))
    assert [connection._writer is None for connection in connections] == [False, True]
