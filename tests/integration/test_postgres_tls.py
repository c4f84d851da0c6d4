"""PostgreSQL over TLS. The packaged server has none, so a proxy of ours answers the request for it in front of it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import pytest

from app.settings import load
from sinks import registry
from sinks.base import Fatal
from tests.lab.certificates import Certificates


@pytest.fixture
async def tls_port(database: Mapping[str, str], certificates: Certificates) -> AsyncIterator[int]:
    """A port on localhost that speaks TLS and leads to the server."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.ca))
    context.load_cert_chain(certificates.server)

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # SSLRequest
        writer.write(b"S")
        try:
            await writer.start_tls(context)
        except (ConnectionError, ssl.SSLError):
            writer.close()
            return
        there = await asyncio.open_connection(database["TIMESCALE_HOST"], int(database["TIMESCALE_PORT"]))
        await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


def sink(database: Mapping[str, str], port: int, **more: str) -> Any:
    """The sink through the proxy."""
    module = registry.load()["timescale"]
    env = {**database, "TIMESCALE_HOST": "localhost", "TIMESCALE_PORT": str(port), **more}
    return module.Sink(load(env).sinks["timescale"])


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_trusted_server_is_let_in(
    database: Mapping[str, str], tls_port: int, certificates: Certificates, mode: str
) -> None:
    """With the CA named, every mode that demands TLS connects: to make the schema, and to write."""
    made = sink(database, tls_port, TIMESCALE_SSLMODE=mode, TIMESCALE_SSL_CA=str(certificates.ca))
    await registry.load()["timescale"].apply_schema(made.settings)
    await made.open()
    await made.probe()
    await made.close()


async def test_a_server_of_another_ca_is_refused(
    database: Mapping[str, str], tls_port: int, certificates: Certificates
) -> None:
    """verify-full does not talk to a server whose certificate the CA did not sign, and says what to set."""
    made = sink(database, tls_port, TIMESCALE_SSLMODE="verify-full", TIMESCALE_SSL_CA=str(certificates.other_ca))

    with pytest.raises(ssl.SSLError) as error:
        await made.open()

    verdict = made.classify(error.value)
    assert isinstance(verdict, Fatal)
    assert "TIMESCALE_SSL_CA" in verdict.remedy


async def test_a_server_without_tls_is_refused_when_tls_is_demanded(database: Mapping[str, str]) -> None:
    """sslmode=require never falls back to plain text."""
    made = sink(database, int(database["TIMESCALE_PORT"]), TIMESCALE_SSLMODE="require")

    with pytest.raises(ConnectionError):
        await made.open()
