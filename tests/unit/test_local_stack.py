"""The pure parts of the local stack: ports, the env file, which process is meant, whose server is used."""

import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import psutil
import pytest
from click.testing import CliRunner

from app.cli.stack import command
from deploy.local import ports
from deploy.local.files import ServerError, UnavailableError, locked, tail, write_env
from deploy.local.kafka import Kafka, Listener, _brokers
from deploy.local.postgres import Postgres
from deploy.local.process import Command, Detached
from deploy.local.server import NotReadyError, Server
from deploy.local.stack import SERVERS, Stack

FROM = 31_800  # away from the ports of a stack that is in use


class Sleeper(Server):
    """A server that is one sleeping process, ready at once."""

    name = "sleeper"
    preferred: ClassVar = {"main": FROM + 50, "other": FROM + 50}
    replaced_by: ClassVar = frozenset({"SLEEPER_HOST", "SLEEPER_URL"})
    start_timeout_s = 0.2
    seconds = "60"
    ready = True
    preparations = 0

    def prepare(self) -> None:
        """Count."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.preparations += 1

    def configure(self) -> None:
        """Nothing to write."""

    def command(self, part: str) -> Command:
        """Sleep."""
        del part
        code = f"import time; print('dozing', flush=True); time.sleep({self.seconds})"
        return Command([sys.executable, "-c", code], self.folder, {})

    def probe(self) -> None:
        """Ready when it is told to be."""
        if not self.ready:
            raise NotReadyError("still dozing")

    def environment(self) -> dict[str, str]:
        """Two variables."""
        return {"SLEEPER_HOST": "127.0.0.1", "SLEEPER_PORT": str(self.ports["main"])}


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Sleeper]:
    """One such server, stopped in the end."""
    server = Sleeper(tmp_path / "stack" / "sleeper", tmp_path / "cache")
    yield server
    server.stop()


@pytest.fixture
def stack(tmp_path: Path, sleeper: Sleeper) -> Stack:
    """A stack of just that one."""
    return Stack(tmp_path / "stack", tmp_path / "cache", servers=[sleeper])


def test_a_taken_port_and_an_avoided_one_are_passed_over() -> None:
    """The first port from the preferred one that is neither listened on nor promised is chosen."""
    with socket.create_server(("127.0.0.1", FROM)):
        assert not ports.is_free(FROM)
        assert ports.choose(FROM, avoid={FROM + 1}) == FROM + 2
    assert ports.choose(FROM) == FROM


def test_a_port_taken_on_every_address_is_taken() -> None:
    """A listener on 0.0.0.0 also holds the loopback port."""
    with socket.create_server(("0.0.0.0", FROM)):  # noqa: S104  the case that is meant
        assert not ports.is_free(FROM)


def test_env_file_is_private_and_reads_back(tmp_path: Path) -> None:
    """KEY=value lines with mode 0600, also when the file was there and open to all."""
    path = tmp_path / "stack.env"
    path.write_text("OLD=1\n")
    path.chmod(0o644)
    write_env(path, {"HOST": "127.0.0.1", "PASSWORD": "a-b_c"})
    assert path.read_text() == "HOST=127.0.0.1\nPASSWORD=a-b_c\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", ["a b", "a\nB=1", "$HOME", "'x'"])
def test_env_file_refuses_what_needs_quotes(tmp_path: Path, value: str) -> None:
    """A value that a shell and an env-file reader would read differently is never written."""
    with pytest.raises(ValueError, match="unquoted"):
        write_env(tmp_path / "stack.env", {"X": value})


def test_lock_is_exclusive_and_says_so(tmp_path: Path) -> None:
    """A second holder is told that it waits, and gives up in the end."""
    waited: list[bool] = []
    with (
        locked(tmp_path / "lock", timeout_s=1, on_wait=lambda: None),
        pytest.raises(ServerError, match="locked by another process"),
        locked(tmp_path / "lock", timeout_s=0, on_wait=lambda: waited.append(True)),
    ):
        pass
    assert waited == [True]
    with locked(tmp_path / "lock", timeout_s=0, on_wait=lambda: waited.append(False)):
        pass
    assert waited == [True]


def test_tail_of_a_log(tmp_path: Path) -> None:
    """The last lines, or a word that there are none."""
    log = tmp_path / "server.log"
    assert tail(log) == "(no log)"
    log.write_text("".join(f"line {number}\n" for number in range(5_000)))
    assert tail(log, 2) == "line 4998\nline 4999"


def test_a_recycled_pid_is_never_signalled(tmp_path: Path) -> None:
    """A pid file whose start time is another process's finds nothing and stops nothing."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        pid_file = tmp_path / "server.pid"
        started = psutil.Process(bystander.pid).create_time()
        pid_file.write_text(json.dumps({"pid": bystander.pid, "started": started - 3_600}))
        process = Detached(pid_file, tmp_path / "log")
        assert process.find() is None
        assert process.crashed
        process.stop(signal.SIGKILL, 1)
        assert bystander.poll() is None
        pid_file.write_text(json.dumps({"pid": bystander.pid, "started": started}))
        assert process.find() == psutil.Process(bystander.pid)
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("text", ["", "12", "{}", "[1]", '{"pid": "x", "started": 1}'])
def test_a_torn_pid_file_means_no_process(tmp_path: Path, text: str) -> None:
    """Whatever stands in a pid file, reading it ends in an answer."""
    (tmp_path / "server.pid").write_text(text)
    assert Detached(tmp_path / "server.pid", tmp_path / "log").find() is None


def test_a_server_lives_in_its_own_session(sleeper: Sleeper) -> None:
    """Ctrl-C in the terminal goes to the terminal's session, which is not the server's."""
    sleeper.start()
    pid = sleeper.status().pid
    assert pid is not None
    assert os.getsid(pid) == pid != os.getsid(0)


def test_life_of_a_server(sleeper: Sleeper) -> None:
    """Stopped, running, crashed, running again on the same ports, stopped."""
    assert sleeper.status().state == "stopped"
    sleeper.start()
    first = sleeper.status()
    assert first.state == "running"
    assert sorted(first.ports.values()) == [FROM + 50, FROM + 51]
    sleeper.start()
    assert sleeper.status() == first
    assert sleeper.preparations == 1
    sleeper.kill()
    assert sleeper.status().state == "crashed"
    sleeper.restart()
    assert sleeper.status().ports == first.ports
    assert sleeper.status().pid != first.pid
    sleeper.ready = False
    assert sleeper.status().state == "unresponsive"
    sleeper.stop()
    assert sleeper.status().state == "stopped"


def test_a_port_that_is_just_being_let_go_is_kept(sleeper: Sleeper) -> None:
    """A restart waits a moment for its old port, because clients know it."""
    sleeper.start()
    port = sleeper.ports["main"]
    sleeper.kill()
    holder = socket.create_server(("127.0.0.1", port))
    threading.Timer(0.4, holder.close).start()
    sleeper.start()
    assert sleeper.ports["main"] == port


def test_a_server_that_never_answers_is_an_error_with_its_log(sleeper: Sleeper) -> None:
    """The error has the reason and the end of the log, and the process is gone."""
    sleeper.ready = False
    with pytest.raises(ServerError, match=r"(?s)not ready after 0 s \(still dozing\).*dozing"):
        sleeper.start()
    assert sleeper.status().state == "stopped"


def test_a_server_that_ends_at_once_is_an_error(sleeper: Sleeper) -> None:
    """A process that ends is not waited for until the time-out."""
    sleeper.start_timeout_s = 60
    sleeper.ready = False
    sleeper.seconds = "0"
    with pytest.raises(ServerError, match="ended while starting"):
        sleeper.start()


def test_up_writes_the_env_file_and_down_removes_it(stack: Stack, sleeper: Sleeper) -> None:
    """The env file names what runs, and only while it runs."""
    heard: list[str] = []
    variables = stack.up(on_progress=heard.append)
    assert variables == sleeper.environment()
    assert stack.env_file.name == "stack.env"
    assert stack.env_file.read_text() == "".join(f"{name}={value}\n" for name, value in variables.items())
    assert f"sleeper: starting on port {FROM + 50}" in heard
    stack.down()
    assert not stack.env_file.exists()
    assert stack.up() == variables


def test_an_interrupted_up_leaves_nothing(stack: Stack, sleeper: Sleeper) -> None:
    """Ctrl-C while waiting for a server stops what this `up` has started."""
    sleeper.ready = False
    sleeper.start_timeout_s = 60

    def interrupt(text: str) -> None:
        if "starting on port" in text:
            signal.setitimer(signal.ITIMER_REAL, 0.2)

    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            stack.up(on_progress=interrupt)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert sleeper.status().state == "stopped"
    assert not stack.env_file.exists()


def test_a_signal_during_the_start_itself_waits_for_the_pid_file(
    sleeper: Sleeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between the birth of a process and its pid file is raised after the file is there."""
    spawn = subprocess.Popen

    def interrupted(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        child = spawn(*args, **options)
        signal.raise_signal(signal.SIGINT)
        return child

    monkeypatch.setattr("deploy.local.process.subprocess.Popen", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sleeper.launch()
    assert sleeper.running()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_failed_up_leaves_what_ran_before(tmp_path: Path, sleeper: Sleeper) -> None:
    """Only what the failing `up` started is stopped; the env file tells of the rest."""

    class Broken(Sleeper):
        name = "broken"
        ready = False

    broken = Broken(tmp_path / "stack" / "broken", tmp_path / "cache")
    stack = Stack(tmp_path / "stack", tmp_path / "cache", servers=[sleeper, broken])
    variables = stack.up(["sleeper"])
    with pytest.raises(ServerError, match="broken: not ready"):
        stack.up()
    assert [one.state for one in stack.status()] == ["running", "stopped"]
    assert all(f"{name}={value}" in stack.env_file.read_text() for name, value in variables.items())


def test_an_unknown_server_is_named(stack: Stack) -> None:
    """A wrong name is an error that lists the right ones."""
    with pytest.raises(ServerError, match="no server is called 'slepper'; there are: sleeper"):
        stack.up(["slepper"])


def test_a_server_that_cannot_be_had_is_left_out(tmp_path: Path, sleeper: Sleeper) -> None:
    """The others start, and why it is absent is told; who asks for it by name gets the error."""

    class Unheard(Sleeper):
        name = "unheard"

        def prepare(self) -> None:
            raise UnavailableError("unheard: nobody has it")

    stack = Stack(tmp_path / "stack", tmp_path / "cache", servers=[Unheard(tmp_path / "unheard", tmp_path), sleeper])
    assert stack.up() == sleeper.environment()
    assert stack.absent == {"unheard": "unheard: nobody has it"}
    assert [one.state for one in stack.status()] == ["stopped", "running"]
    with pytest.raises(UnavailableError, match="nobody has it"):
        stack.up(["unheard"])
    assert sleeper.status().state == "running"


def test_what_is_prepared_keeps_nobody_from_the_stack(stack: Stack, sleeper: Sleeper) -> None:
    """While a server is fetched or built, `down` does not wait, and what runs goes on."""
    heard: list[bool] = []

    def prepare() -> None:
        with locked(stack.folder / "lock", timeout_s=0, on_wait=lambda: heard.append(False)):
            heard.append(True)

    sleeper.prepare = prepare  # type: ignore[method-assign]
    stack.up()
    assert heard == [True]


def test_reserved_variables_are_those_of_the_start(stack: Stack, sleeper: Sleeper) -> None:
    """The port that `reserve` names is the one that the server later has, and nothing was started for it."""
    variables = stack.reserve()
    assert sleeper.status().state == "stopped"
    assert sleeper.preparations == 0
    assert stack.reserve() == variables == stack.up() == stack.reserve()


@pytest.mark.parametrize("variable", ["SLEEPER_HOST", "SLEEPER_URL"])
def test_the_users_own_server_is_used(stack: Stack, sleeper: Sleeper, variable: str) -> None:
    """A server that the user's settings name is neither started nor counted as missing."""
    external = {variable: "db.example"}
    assert stack.up(external=external) == {}
    assert [one.state for one in stack.status(external=external)] == ["external"]
    assert sleeper.status().state == "stopped"
    assert stack.up(external={variable: ""}) == sleeper.environment()


def test_our_own_variables_are_not_somebody_elses_server(stack: Stack, sleeper: Sleeper) -> None:
    """After `source stack.env` the stack is still its own; another port on the same host is not."""
    variables = stack.up()
    assert stack.up(external=variables) == variables
    stack.down()
    assert stack.up(external=variables) == variables
    assert stack.up(external={**variables, "SLEEPER_PORT": "1"}) == {}
    assert stack.up(external={**variables, "SLEEPER_URL": "sleep://db.example"}) == {}


def test_down_of_a_stack_that_never_was_makes_no_folder(tmp_path: Path) -> None:
    """Asking or stopping leaves no trace."""
    stack = Stack(tmp_path / "none", tmp_path / "cache")
    stack.down()
    assert [one.state for one in stack.status()] == ["stopped"] * len(SERVERS)
    assert list(tmp_path.iterdir()) == []


def test_kafka_settings(tmp_path: Path) -> None:
    """More listeners and properties join the ones a single node needs, and the caller's win."""
    kafka = Kafka(
        tmp_path / "kafka",
        tmp_path / "cache",
        ports={"broker": FROM + 60, "controller": FROM + 61},
        listeners=[Listener("SECURE", "SASL_SSL", FROM + 62)],
        properties={"log.retention.ms": "1000", "min.insync.replicas": "2"},
    )
    kafka._choose_ports()
    settings = kafka._settings()
    assert settings["advertised.listeners"] == f"PLAINTEXT://127.0.0.1:{FROM + 60},SECURE://127.0.0.1:{FROM + 62}"
    assert settings["listeners"].split(",")[1] == f"CONTROLLER://127.0.0.1:{FROM + 61}"
    assert settings["listener.security.protocol.map"] == "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SECURE:SASL_SSL"
    assert settings["auto.create.topics.enable"] == "false"
    assert settings["min.insync.replicas"] == "2"
    assert settings["log.retention.ms"] == "1000"


def test_kafka_metadata_is_read() -> None:
    """Brokers are found in a Metadata response, with and without a rack."""
    text = struct.pack(">h", 9) + b"127.0.0.1"
    brokers = struct.pack(">i", 1) + text + struct.pack(">ih", 29_092, -1)
    brokers += struct.pack(">i", 2) + text + struct.pack(">ih", 29_093, 1) + b"r"
    assert _brokers(struct.pack(">iii", 1, 0, 2) + brokers) == [(1, 29_092), (2, 29_093)]


def test_postgres_passwords_are_one_each(tmp_path: Path) -> None:
    """Each user has its own password, read from the file that libpq reads."""
    postgres = Postgres(tmp_path, tmp_path / "cache")
    (tmp_path / "pgpass").write_text("127.0.0.1:*:*:ts_user:one\n127.0.0.1:*:*:postgres:two\n")
    assert (postgres.password(), postgres.password("postgres")) == ("one", "two")
    with pytest.raises(ServerError, match="no password for nobody"):
        postgres.password("nobody")


def test_status_command_on_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 3 and a row for each server when none runs; 1 and one line for a wrong name."""
    for variable in {name for server in SERVERS for name in server.replaced_by}:
        monkeypatch.delenv(variable, raising=False)
    folder = ["--folder", str(tmp_path / "stack")]
    result = CliRunner().invoke(command, ["status", "--json", *folder])
    assert result.exit_code == 3
    assert [one["state"] for one in json.loads(result.stdout)["servers"]] == ["stopped"] * len(SERVERS)
    result = CliRunner().invoke(command, ["status", *folder])
    assert result.exit_code == 3
    assert "kafka" in result.stdout
    result = CliRunner().invoke(command, ["up", "--only", "mongo", *folder])
    assert result.exit_code == 1
    assert "no server is called 'mongo'; there are: kafka, postgres" in result.stderr
