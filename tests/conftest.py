"""Real servers for every test that asks for one; a session starts each once, when it is first needed."""

import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from deploy.local.files import UnavailableError, default_cache
from deploy.local.kafka import Kafka
from deploy.local.postgres import Postgres
from deploy.local.stack import SERVERS, Stack
from sinks import registry
from tests.lab.certificates import Certificates, make
from tests.lab.stores import StoreLab, lab_of

REQUIRED = bool(os.environ.get("IOTFLOW_REQUIRE_SERVERS"))  # noqa: TID251  the tests' own switch
FOLDER = Path(__file__).parent.parent / ".iotflow" / "test"
#: The tests' servers are this far below the ports of `make run`: above, a system takes ports for outgoing connections,
#: and a server that a test has stopped would not get its own back.
PORTS_BELOW = 10_000


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The local stack, empty, for this session only; none of its servers runs yet. Its logs stay if a test failed."""
    folder, cache = FOLDER / uuid.uuid4().hex[:8], default_cache()
    servers = []
    for server in SERVERS:
        kind: Any = server
        ports = {role: port - PORTS_BELOW for role, port in kind.preferred.items()}
        servers.append(kind(folder / kind.name, cache, ports=ports))
    stack = Stack(folder, cache, servers=servers)
    yield stack
    stack.down()
    if not request.session.testsfailed:
        shutil.rmtree(folder, ignore_errors=True)


def running(stack: Stack, name: str) -> Any:
    """A server of the stack, started if it is not up; where none is required, its absence skips the test.

    None for a store that needs none, whose name is ''.
    """
    if not name:
        return None
    try:
        stack.up([name])
    except UnavailableError as error:
        if REQUIRED:
            raise
        pytest.skip(str(error))
    return stack.servers[name]


@pytest.fixture
def kafka(stack: Stack) -> Kafka:
    """The session's broker."""
    server = running(stack, "kafka")
    assert isinstance(server, Kafka)
    return server


@pytest.fixture
def postgres(stack: Stack) -> Postgres:
    """The session's PostgreSQL."""
    server = running(stack, "postgres")
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


async def place(stack: Stack, name: str) -> StoreLab:
    """An empty place of the test's own in a store."""
    kind = lab_of(name)
    lab = kind(name, running(stack, kind.server_name))
    await lab.make()
    return lab


@pytest.fixture(params=sorted(registry.load()))
async def lab(request: pytest.FixtureRequest, stack: Stack) -> AsyncIterator[StoreLab]:
    """Each store that there is a sink for, one after the other: an empty place in it, without a schema."""
    made = await place(stack, request.param)
    yield made
    running(stack, made.server_name)  # whatever the test did to it
    await made.drop()


@pytest.fixture
async def labs(stack: Stack) -> AsyncIterator[list[StoreLab]]:
    """An empty place in every store at once."""
    made = []
    for name in registry.load():
        with suppress(pytest.skip.Exception):  # the others are worth a test
            made.append(await place(stack, name))
    yield made
    for each in made:
        running(stack, each.server_name)
        await each.drop()


@pytest.fixture
async def timescale(stack: Stack) -> AsyncIterator[Any]:
    """An empty database of the test's own, without a schema."""
    made = await place(stack, "timescale")
    yield made
    running(stack, made.server_name)
    await made.drop()


@pytest.fixture
def database(timescale: StoreLab) -> dict[str, str]:
    """The environment variables that lead to an empty database of the test's own; it is the only store."""
    return {**timescale.env, "STORES": timescale.name}
