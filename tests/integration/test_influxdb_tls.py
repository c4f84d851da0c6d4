"""InfluxDB over TLS: a proxy of ours in front of it, which may ask for the client's certificate."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiohttp import ClientError

from schemas.reading import Reading
from sinks.base import Fatal, Reject
from tests.lab.certificates import KEY_PASSWORD, Certificates
from tests.lab.stores import StoreLab

pytestmark = pytest.mark.parametrize("lab", ["influxdb"], indirect=True)

Proxy = Callable[..., AbstractAsyncContextManager[str]]


@pytest.fixture
async def proxy(lab: StoreLab, certificates: Certificates) -> Proxy:
    """Makes the URL of a proxy that speaks TLS and leads to the server."""
    await lab.apply_schema()
    target = urlsplit(lab.env["INFLUXDB_URL"])

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(target.hostname, target.port)
        await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))

    @asynccontextmanager
    async def proxy(*, of_clients: bool = False) -> AsyncIterator[str]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates.ca))
        context.load_cert_chain(certificates.server)
        context.verify_mode = ssl.CERT_REQUIRED if of_clients else ssl.CERT_NONE
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
        yield f"https://localhost:{server.sockets[0].getsockname()[1]}"
        server.close()

    return proxy


async def round_trip(sink: Any) -> None:
    """Opens, writes and reads back."""
    reading = Reading("telemetry", "dev-1", datetime(2025, 1, 1, tzinfo=UTC), {"a": 1.0}, dialect="telemetry")
    await sink.open()
    try:
        await sink.write(sink.prepare([reading]).payload)

        assert [reading] == [found async for found in sink.scan()]
    finally:
        await sink.close()


async def test_a_trusted_server_is_let_in(lab: StoreLab, proxy: Proxy, certificates: Certificates) -> None:
    """With the CA named, everything works as without TLS."""
    async with proxy() as url:
        await round_trip(lab.sink(INFLUXDB_URL=url, INFLUXDB_SSL_CA=str(certificates.ca)))


async def test_a_client_certificate_with_a_locked_key(lab: StoreLab, proxy: Proxy, certificates: Certificates) -> None:
    """A proxy that asks for one lets us in with it, and not without it."""
    changes = {"INFLUXDB_SSL_CA": str(certificates.ca)}
    own = {"INFLUXDB_SSL_CERT": str(certificates.client), "INFLUXDB_SSL_KEY": str(certificates.client_key)}
    async with proxy(of_clients=True) as url:
        await round_trip(lab.sink(INFLUXDB_URL=url, **changes, **own, INFLUXDB_SSL_KEY_PASSWORD=KEY_PASSWORD))

        stranger = lab.sink(INFLUXDB_URL=url, **changes)
        with pytest.raises(ClientError) as error:
            await stranger.open()
        assert not isinstance(stranger.classify(error.value), Reject)


@pytest.mark.parametrize("password", ["", "wrong"])
async def test_a_locked_key_without_its_password_is_fatal(
    lab: StoreLab, proxy: Proxy, certificates: Certificates, password: str
) -> None:
    """It is said, and nobody is asked at a terminal that is not there."""
    own = {"INFLUXDB_SSL_CERT": str(certificates.client), "INFLUXDB_SSL_KEY": str(certificates.client_key)}
    async with proxy(of_clients=True) as url:
        sink = lab.sink(INFLUXDB_URL=url, **own, INFLUXDB_SSL_KEY_PASSWORD=password)
        with pytest.raises(ssl.SSLError) as error:
            await sink.open()

    verdict = sink.classify(error.value)
    assert isinstance(verdict, Fatal)
    assert "INFLUXDB_SSL_KEY_PASSWORD" in verdict.remedy


async def test_a_server_of_another_ca_is_refused(lab: StoreLab, proxy: Proxy, certificates: Certificates) -> None:
    """A certificate that the CA did not sign is not trusted, and the remedy says what to set."""
    async with proxy() as url:
        sink = lab.sink(INFLUXDB_URL=url, INFLUXDB_SSL_CA=str(certificates.other_ca))
        with pytest.raises(ssl.SSLError) as error:
            await sink.open()

        verdict = sink.classify(error.value)
        assert isinstance(verdict, Fatal)
        assert "INFLUXDB_SSL_CA" in verdict.remedy

        await round_trip(lab.sink(INFLUXDB_URL=url, INFLUXDB_SSL_VERIFY="false"))
