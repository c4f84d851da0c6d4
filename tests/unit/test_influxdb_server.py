"""Building influxd, with tools that are only played: what is missing, what fails, what is interrupted."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy.local import influxdb_build
from deploy.local.files import ServerError, UnavailableError
from deploy.local.influxdb import InfluxDB, Tls
from deploy.local.influxdb_build import TOOLS, Build
from deploy.local.stack import Stack

FROM = 31_900  # away from the ports of a stack that is in use


class Bench:
    """A machine with nothing but a shell, the tools that a test plays, and an empty cache."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bin"
        self.path.mkdir()
        for tool in ("env", "sh", "sleep", "cat"):
            (self.path / tool).symlink_to(str(shutil.which(tool)))
        self.cache = folder / "cache"
        self.heard: list[str] = []
        self.build = Build(self.cache, self.heard.append)
        self.flux = folder / "flux"

    def play(self, tool: str, script: str) -> None:
        """What a tool does from now on."""
        (self.path / tool).write_text(f"#!/bin/sh\n{script}\n")
        (self.path / tool).chmod(0o755)

    def play_all(self) -> None:
        """Tools with which a build succeeds."""
        output = 'while [ "$1" != -o ]; do shift; done; $PKG_CONFIG --libs > "$2"'
        self.play("go", f'case $1 in list) echo "{influxdb_build._FLUX} {self.flux}";; *) {output};; esac')
        self.play("cargo", "echo compiling >&2")
        self.play("cc", "exit 1")

    def hang(self) -> Path:
        """Make `go` hang, together with a child of its own; returns where it writes both pids."""
        pids = self.path.parent / "pids"
        self.play("go", f'sleep 300 & echo "$$ $!" > "{pids}"; wait')
        return pids


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """That machine, for this process."""
    bench = Bench(tmp_path)
    monkeypatch.setenv("PATH", str(bench.path))
    return bench


def alive(pids: Path) -> list[int]:
    """Which of the processes in a file still run."""
    return [
        pid
        for pid in map(int, pids.read_text().split())
        if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.parametrize(
    ("platform", "remedy"),
    [("linux", "apt-get install -y golang-go gcc libc6-dev"), ("darwin", "brew install go gcc")],
)
def test_missing_tools_are_named_with_the_remedy(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, platform: str, remedy: str
) -> None:
    """What is missing, what installs it here, and how to do without."""
    bench.play("cargo", "exit 1")
    monkeypatch.setattr(sys, "platform", platform)

    with pytest.raises(UnavailableError) as error:
        bench.build.run()

    text = str(error.value)
    assert "missing: go, cc." in text
    assert remedy in text
    for word in ("INFLUXDB_URL", "STORES=timescale,iotdb"):
        assert word in text
    assert not bench.cache.exists()


def test_a_stack_goes_on_without_it(bench: Bench, tmp_path: Path) -> None:
    """`up` of everything leaves it out and says why; `up` of it by name is the error."""
    stack = Stack(tmp_path / "stack", bench.cache, servers=[InfluxDB(tmp_path / "influxdb", bench.cache)])
    assert stack.up() == {}
    assert f"missing: {', '.join(TOOLS)}." in stack.absent["influxdb"]
    with pytest.raises(UnavailableError):
        stack.up(["influxdb"])


def test_a_build_leaves_the_binary_and_its_log(bench: Bench) -> None:
    """Each step is told, the build folder is gone, and a second build does nothing."""
    bench.play_all()
    server = InfluxDB(bench.cache / "server", bench.cache)
    assert not server.prepared
    bench.build.run()
    assert server.prepared
    assert [line.split(":")[0] for line in bench.heard[:-1]] == [
        "building it from source, once",
        "fetching Go modules",
        "building libflux",
        "building influxd",
    ]
    assert "compiling" in bench.build.log.read_text()
    assert "libflux.a -ldl -lm" in bench.build.binary.read_text()
    assert not bench.build._folder.exists()
    bench.heard.clear()
    bench.build.run()
    assert bench.heard == []


def test_a_long_step_says_that_it_lives(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a tool says nothing, the elapsed time is told."""
    monkeypatch.setattr(influxdb_build, "_ALIVE_S", 0.1)
    bench.play_all()
    bench.play("cargo", "sleep 0.5")
    bench.build.run()
    assert bench.heard.count("building libflux: 0 s") >= 2


def test_a_failed_step_shows_the_end_of_the_log(bench: Bench) -> None:
    """The error has the step, the tool's last words and the way out; what was built until then is kept."""
    bench.play_all()
    bench.play("cargo", "echo 'error: no space left' >&2; exit 101")
    with pytest.raises(ServerError, match=r"(?s)building libflux failed.*no space left.*set INFLUXDB_URL"):
        bench.build.run()
    assert (bench.build._folder / "modules").exists()
    assert not bench.build.binary.exists()


def test_an_interrupted_build_leaves_nothing_running(bench: Bench) -> None:
    """Ctrl-C ends the tool and its children; the next build can begin at once."""
    bench.play_all()
    pids = bench.hang()
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        with pytest.raises(KeyboardInterrupt):
            bench.build.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(pids.read_text().split()) == 2
    assert alive(pids) == []
    bench.play_all()
    bench.build.run()


@pytest.mark.parametrize("what", ["up", "prepare"])
def test_an_ended_command_leaves_nothing_running(bench: Bench, tmp_path: Path, what: str) -> None:
    """SIGTERM to `iotflow stack up` or `prepare` while it builds ends the build."""
    bench.play_all()
    pids = bench.hang()
    main = "from app.cli import main; main()"
    folder = ["--folder", str(tmp_path / "stack")]
    argv = [sys.executable, "-c", main, "stack", what, "--only", "influxdb", *folder]
    env = {name: value for name, value in os.environ.items() if not name.startswith("INFLUXDB_")}  # noqa: TID251
    with subprocess.Popen(argv, env={**env, "HOME": str(tmp_path)}, stderr=subprocess.PIPE, text=True) as child:
        deadline = time.monotonic() + 30
        while not pids.exists() or not pids.read_text():
            assert child.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 128 + signal.SIGTERM
    assert alive(pids) == []


def test_its_variables_are_known_before_it_is_built(tmp_path: Path) -> None:
    """Port and token are chosen once, the token for its owner's eyes; TLS shows in the URL."""
    server = InfluxDB(tmp_path / "influxdb", tmp_path / "cache", ports={"http": FROM})
    variables = Stack(tmp_path / "stack", tmp_path / "cache", servers=[server]).reserve()
    assert variables == {
        "INFLUXDB_URL": f"http://127.0.0.1:{FROM}",
        "INFLUXDB_TOKEN": server.token(),
        "INFLUXDB_ORG": "iotflow",
        "INFLUXDB_BUCKET": "iotflow",
    }
    assert len(server.token()) > 30
    assert (server.folder / "token").stat().st_mode & 0o777 == 0o600
    assert Stack(tmp_path / "stack", tmp_path / "cache", servers=[server]).reserve() == variables
    assert not server.answers()
    files = Tls(tmp_path / "cert", tmp_path / "key", tmp_path / "ca")
    assert InfluxDB(server.folder, server.cache, tls=files).url == f"https://localhost:{FROM}"
