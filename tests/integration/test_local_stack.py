"""The local stack on the real servers, in folders and on ports of its own."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaConnectionError
from click.testing import CliRunner

from app.cli.stack import command
from deploy.local.files import ServerError, default_cache
from deploy.local.kafka import Kafka, Listener
from deploy.local.postgres import Postgres
from deploy.local.stack import SERVERS, Stack

KAFKA_PORTS = {"broker": 30_092, "controller": 30_093}
SQL_PORTS = {"sql": 26_432}
TOPIC = TopicPartition("stack-test", 0)


def make(folder: Path) -> Stack:
    """The usual two servers, on this module's ports."""
    cache = default_cache()
    kafka = Kafka(folder / "kafka", cache, ports=KAFKA_PORTS, heap_mb=256)
    return Stack(folder, cache, servers=[kafka, Postgres(folder / "postgres", cache, ports=SQL_PORTS)])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One stack for the tests that leave it whole."""
    stack = make(tmp_path_factory.mktemp("shared") / "stack")
    yield stack
    stack.down()


@pytest.fixture
def stack(shared: Stack) -> Stack:
    """A stack that is up, whatever the test before did to it."""
    shared.up()
    return shared


@pytest.fixture
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own servers play no part."""
    for variable in {name for server in SERVERS for name in server.replaced_by}:
        monkeypatch.delenv(variable, raising=False)


def pids(stack: Stack) -> dict[str, int | None]:
    """Server to process."""
    return {one.name: one.pid for one in stack.status()}


def inside(folder: Path) -> list[psutil.Process]:
    """Every live process that works inside a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


async def connect(variables: dict[str, str], **changes: str) -> asyncpg.Connection:
    """Connect as the variables say, but for `changes`."""
    return await asyncpg.connect(
        host=variables["TIMESCALE_HOST"],
        port=int(variables["TIMESCALE_PORT"]),
        **{
            "database": variables["TIMESCALE_DB"],
            "user": variables["TIMESCALE_USER"],
            "password": variables["TIMESCALE_PASSWORD"],
            **changes,
        },
    )


async def produce(bootstrap: str, value: bytes, **security: str) -> int:
    """Produce one record, making its topic; returns its offset."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap, **security)
    try:
        await admin.start()
        await admin.create_topics([NewTopic(TOPIC.topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, enable_idempotence=True, **security)
    await producer.start()
    try:
        return int((await producer.send_and_wait(TOPIC.topic, value, partition=0)).offset)
    finally:
        await producer.stop()


async def consume(bootstrap: str, offset: int) -> bytes | None:
    """The value of the record at an offset."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap)
    await consumer.start()
    try:
        consumer.assign([TOPIC])
        consumer.seek(TOPIC, offset)
        async with asyncio.timeout(20):
            record = await consumer.getone()
        return record.value
    finally:
        await consumer.stop()


async def test_a_record_goes_through_kafka(stack: Stack) -> None:
    """What is produced to the broker that `up` names is consumed from it."""
    bootstrap = stack.up()["KAFKA_BOOTSTRAP_SERVERS"]
    assert await consume(bootstrap, await produce(bootstrap, b"hello")) == b"hello"


async def test_postgres_takes_its_user_and_nobody_else(stack: Stack) -> None:
    """The user owns its database without being superuser, durably; a wrong password is refused."""
    variables = stack.up()
    connection = await connect(variables)
    try:
        assert await connection.fetchval("SELECT usesuper FROM pg_user WHERE usename = current_user") is False
        assert await connection.fetchval("SHOW fsync") == "on"
        assert await connection.fetchval("SHOW synchronous_commit") == "on"
        await connection.execute("CREATE SCHEMA IF NOT EXISTS mine")
    finally:
        await connection.close()
    for wrong in ({"password": "wrong"}, {"user": "postgres"}):
        with pytest.raises(asyncpg.InvalidPasswordError):
            await connect(variables, **wrong)


def test_up_again_is_a_no_op(stack: Stack) -> None:
    """A second `up` returns the same variables, starts no process and writes the same file."""
    before, variables, text = pids(stack), stack.up(), stack.env_file.read_text()
    assert stack.up() == variables
    assert pids(stack) == before
    assert stack.env_file.read_text() == text
    assert all(f"{name}={value}\n" in text for name, value in variables.items())


async def test_a_restart_keeps_data_ports_and_passwords(stack: Stack) -> None:
    """After `down` and `up` the record and the row are there, under the same variables."""
    variables = stack.up()
    offset = await produce(variables["KAFKA_BOOTSTRAP_SERVERS"], b"kept")
    connection = await connect(variables)
    await connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    await connection.close()
    await asyncio.to_thread(stack.down)
    assert not stack.env_file.exists()
    assert await asyncio.to_thread(stack.up) == variables
    assert await consume(variables["KAFKA_BOOTSTRAP_SERVERS"], offset) == b"kept"
    connection = await connect(variables)
    assert await connection.fetchval("SELECT answer FROM kept") == 42
    await connection.close()


@pytest.mark.parametrize("name", ["kafka", "postgres"])
def test_a_killed_server_shows_and_is_repaired(stack: Stack, name: str) -> None:
    """A kill -9 shows as crashed; the next `up` starts that server on its ports and leaves the other alone."""
    variables, before = stack.up(), pids(stack)
    victim = before[name]
    assert victim is not None
    psutil.Process(victim).kill()
    psutil.wait_procs([psutil.Process(victim)] if psutil.pid_exists(victim) else [], timeout=5)
    states = {one.name: one.state for one in stack.status()}
    assert states == {"kafka": "running", "postgres": "running", name: "crashed"}
    assert stack.up() == variables
    after = pids(stack)
    assert after.pop(name) != before.pop(name)
    assert after == before


async def test_committed_rows_survive_a_kill(stack: Stack) -> None:
    """A row that was committed is there after kill -9 and `start` with sessions open."""
    variables = stack.up()
    connection = await connect(variables)
    await connection.execute("CREATE TABLE survivors AS SELECT 7 AS n")
    postgres = stack.servers["postgres"]
    await asyncio.to_thread(postgres.kill)
    await asyncio.to_thread(postgres.start)
    connection.terminate()
    connection = await connect(variables)
    assert await connection.fetchval("SELECT n FROM survivors") == 7
    await connection.close()


def test_two_ups_at_once_start_one_stack(stack: Stack) -> None:
    """Two processes' `up` end with the same variables and one set of servers."""
    stack.down()
    found: list[dict[str, str]] = []
    threads = [threading.Thread(target=lambda: found.append(make(stack.folder).up())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1] == stack.up()
    assert len(inside(stack.folder / "kafka")) == 1


def test_down_leaves_no_process(stack: Stack) -> None:
    """After `down` nothing works in the stack's folder any more, and a second `down` is fine."""
    assert len(inside(stack.folder)) > 2
    stack.down()
    assert inside(stack.folder) == []
    assert [one.state for one in stack.status()] == ["stopped", "stopped"]
    stack.down()


def test_a_taken_port_gives_the_next(tmp_path: Path) -> None:
    """A port somebody listens on is left to them."""
    postgres = Postgres(tmp_path / "postgres", default_cache(), ports={"sql": 26_500})
    heard: list[str] = []
    with socket.create_server(("127.0.0.1", 26_500)):
        variables = Stack(tmp_path, servers=[postgres]).up(on_progress=heard.append)
        try:
            assert variables["TIMESCALE_PORT"] == "26501"
            assert "postgres: port 26500 is taken, using 26501" in heard
        finally:
            postgres.stop()


def test_a_failed_up_leaves_nothing_and_shows_the_log(tmp_path: Path) -> None:
    """One server that cannot start: its log is in the error, and the others are stopped again."""
    cache = default_cache()
    kafka = Kafka(tmp_path / "kafka", cache, ports=KAFKA_PORTS)
    postgres = Postgres(tmp_path / "postgres", cache, ports=SQL_PORTS, settings={"shared_buffers": "plenty"})
    stack = Stack(tmp_path, cache, servers=[kafka, postgres])
    with pytest.raises(ServerError, match=r'(?s)postgres: the process ended.*"shared_buffers": "plenty"'):
        stack.up()
    assert inside(tmp_path) == []
    assert [one.state for one in stack.status()] == ["stopped", "stopped"]
    assert not stack.env_file.exists()


async def test_kafka_with_a_listener_that_asks_for_a_password(tmp_path: Path) -> None:
    """A SCRAM listener beside the plain one takes the right password and refuses a wrong one."""
    kafka = Kafka(
        tmp_path / "kafka",
        default_cache(),
        ports={"broker": 30_192, "controller": 30_193},
        listeners=[Listener("SECURE", "SASL_PLAINTEXT", 30_194)],
        scram={"device": "secret"},
        properties={
            "listener.name.secure.sasl.enabled.mechanisms": "SCRAM-SHA-256",
            "listener.name.secure.scram-sha-256.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            ),
        },
        heap_mb=256,
    )
    await asyncio.to_thread(kafka.start)
    try:
        secure = f"127.0.0.1:{kafka.ports['SECURE']}"
        login = {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "SCRAM-SHA-256",
            "sasl_plain_username": "device",
            "sasl_plain_password": "secret",
        }
        offset = await produce(secure, b"signed in", **login)
        assert await consume(kafka.bootstrap, offset) == b"signed in"
        with pytest.raises(KafkaConnectionError):
            await produce(secure, b"no", **{**login, "sasl_plain_password": "wrong"})
    finally:
        await asyncio.to_thread(kafka.stop)


@pytest.mark.usefixtures("no_settings")
def test_the_command_from_up_to_down(tmp_path: Path) -> None:
    """`up`, `status` and `down` say what they did, in words and in JSON, with their exit codes."""
    folder = ["--folder", str(tmp_path / "stack")]
    run = CliRunner().invoke
    try:
        result = run(command, ["up", "--only", "postgres", "--json", *folder])
        assert result.exit_code == 0, result.output
        answer = json.loads(result.stdout)
        assert [one["name"] for one in answer["servers"] if one["state"] == "running"] == ["postgres"]
        assert Path(answer["env_file"]).read_text().splitlines() == [
            f"{name}={value}" for name, value in answer["variables"].items()
        ]
        assert run(command, ["status", *folder]).exit_code == 3
        with pytest.MonkeyPatch.context() as patch:
            for server in SERVERS:
                if server is not Postgres:
                    patch.setenv(min(server.replaced_by), "server.example")
            result = run(command, ["status", *folder])
            assert result.exit_code == 0
            assert "external" in result.stdout
            assert run(command, ["up", *folder]).exit_code == 0
    finally:
        result = run(command, ["down", *folder])
    assert result.exit_code == 0
    assert "postgres: stopping" in result.stderr
    assert inside(tmp_path) == []


@pytest.mark.usefixtures("no_settings")
def test_up_ended_from_outside_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM to `iotflow stack up` while Kafka starts stops Kafka too."""
    folder = tmp_path / "stack"
    main = "from app.cli import main; main()"
    argv = [sys.executable, "-c", main, "stack", "up", "--only", "kafka", "--folder", str(folder)]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if "starting on port" in line:
                break
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 128 + signal.SIGTERM
    assert inside(folder) == []
    assert not folder.with_name("stack.env").exists()
