"""IoTDB as others set it up: over TLS, with the compact protocol, counting milliseconds, its first password kept."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.settings import load
from deploy.local.files import default_cache
from deploy.local.iotdb import IoTDB
from schemas.reading import Reading
from sinks import registry
from sinks.base import Fatal, Retry, Selection
from tests.lab.certificates import Certificates

PORTS = {role: 30_700 + number for number, role in enumerate(IoTDB.preferred)}
T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)


@pytest.fixture
async def server(tmp_path: Path, certificates: Certificates) -> AsyncIterator[dict[str, str]]:
    """One that runs, as the variables that lead to it."""
    store = tmp_path / "iotdb.p12"
    export = ["openssl", "pkcs12", "-export", "-in", certificates.server, "-out", store, "-passout", "pass:sesame"]
    subprocess.run(export, check=True, capture_output=True)  # noqa: ASYNC221  nothing else is going on
    properties = {
        "enable_thrift_ssl": "true",
        "key_store_path": str(store),
        "key_store_pwd": "sesame",
        "dn_rpc_thrift_compression_enable": "true",
        "timestamp_precision": "ms",
    }
    made = IoTDB(tmp_path / "iotdb", default_cache(), ports=PORTS, properties=properties, heap_mb=512)
    await asyncio.to_thread(made.prepare)
    try:
        with made.port_lock():
            made.launch()
            env = {
                "IOTDB_HOST": "localhost",
                "IOTDB_PORT": str(made.ports["rpc"]),
                "IOTDB_SSL": "true",
                "IOTDB_SSL_CA": str(certificates.ca),
                "IOTDB_RPC_COMPRESSION": "true",
            }
            await ready(env)
        yield env
    finally:
        made.kill()


async def ready(env: dict[str, str]) -> None:
    """Wait until it takes writes."""
    made = sink(env)
    async with asyncio.timeout(120):
        while True:
            try:
                await module().apply_schema(made.settings)
                await made.open()
                await made.write(made.prepare([Reading("telemetry", "first", T0, {"a": 1.0})]).payload)
                break
            except Exception as error:  # noqa: BLE001  classified
                assert isinstance(made.classify(error), Retry), error  # noqa: PT017
                await asyncio.sleep(0.2)
    await made.close()


def module() -> Any:
    return registry.load()["iotdb"]


def sink(env: dict[str, str], **changes: str) -> Any:
    """A sink of that server, not yet open."""
    found = {name: value for name, value in {**env, **changes}.items() if value}
    return module().Sink(load(found).sinks["iotdb"])


async def test_tls_compact_protocol_and_milliseconds(server: dict[str, str], certificates: Certificates) -> None:
    """Trusted, it stores; not trusted it is Fatal; and what the two sides disagree on is said without storing."""
    instants = [T0, T0 + timedelta(microseconds=1), T0 + timedelta(milliseconds=1)]
    batch = [Reading("telemetry", "d", at, {"n": float(n)}, "c") for n, at in enumerate(instants)]
    made = sink(server)
    await made.open()
    await made.probe()
    await made.write(made.prepare(batch).payload)

    assert [made.kept(batch[1]), made.kept(batch[2])] == [found async for found in made.scan(Selection(device_id="d"))]
    assert [made.kept(batch[2])] == [found async for found in made.scan(Selection(device_id="d", start=instants[1]))]
    assert made.collisions == 1
    notes = (await module().apply_schema(made.settings)).notes
    assert "timestamp_precision=us" in notes[0]
    await made.close()

    wrong = {
        "IOTDB_SSL_CA": (str(certificates.other_ca), Fatal, "IOTDB_SSL_CA"),
        "IOTDB_RPC_COMPRESSION": ("false", Retry, "IOTDB_RPC_COMPRESSION"),
        "IOTDB_PASSWORD": ("wrong-one", Fatal, "IOTDB_PASSWORD"),
    }
    for name, (value, kind, word) in wrong.items():
        made = sink(server, **{name: value})
        with pytest.raises(Exception) as error:  # noqa: PT011  classified below
            await made.open()
        verdict = made.classify(error.value)
        assert isinstance(verdict, kind), (name, verdict)
        assert word in str(verdict)
        assert "wrong-one" not in str(verdict)
    made = sink(server, IOTDB_SSL="", IOTDB_SSL_CA="")
    with pytest.raises(Exception) as error:  # noqa: PT011  classified below
        await made.open()
    assert isinstance(made.classify(error.value), Retry)
    assert "IOTDB_SSL" in str(error.value)
