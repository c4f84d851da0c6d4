"""Real servers for every test that asks for one; a session starts them once, on ports of its own."""

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest

from deploy.local.files import default_cache
from deploy.local.kafka import Kafka
from deploy.local.postgres import DATABASE, USER, Postgres
from deploy.local.stack import Stack
from tests.lab.certificates import Certificates, make

REQUIRED = bool(os.environ.get("IOTFLOW_REQUIRE_SERVERS"))  # noqa: TID251  the tests' own switch
FOLDER = Path(__file__).parent.parent / ".iotflow" / "test"


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Kafka and PostgreSQL, empty, for this session only."""
    folder, cache = FOLDER / uuid.uuid4().hex[:8], default_cache()
    stack = Stack(
        folder,
        cache,
        servers=[
            Kafka(folder / "kafka", cache, ports={"broker": 39092, "controller": 39093}),
            Postgres(folder / "postgres", cache, ports={"sql": 35432}),
        ],
    )
    try:
        stack.up()
    except Exception as error:
        if REQUIRED:
            raise
        pytest.skip(f"the servers did not start: {error}")
    yield stack
    stack.down()


@pytest.fixture(scope="session")
def kafka(stack: Stack) -> Kafka:
    """The session's broker."""
    server = stack.servers["kafka"]
    assert isinstance(server, Kafka)
    return server


@pytest.fixture(scope="session")
def postgres(stack: Stack) -> Postgres:
    """The session's PostgreSQL."""
    server = stack.servers["postgres"]
    assert isinstance(server, Postgres)
    return server


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """A CA, a server and a client certificate, and another CA."""
    return make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def kafka_servers(kafka: Kafka) -> str:
    """`host:port` of the broker."""
    return kafka.bootstrap


@pytest.fixture
async def database(postgres: Postgres) -> AsyncIterator[dict[str, str]]:
    """An empty database of the test's own, as the environment variables that lead to it."""
    name = f"test_{uuid.uuid4().hex[:12]}"
    admin = await asyncpg.connect(postgres.dsn(user="postgres", database=DATABASE))
    await admin.execute(f"CREATE DATABASE {name} OWNER {USER}")
    await admin.close()
    yield {**postgres.environment(), "TIMESCALE_DB": name}
    admin = await asyncpg.connect(postgres.dsn(user="postgres", database=DATABASE))
    await admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
    await admin.close()
