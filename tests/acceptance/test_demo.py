"""`iotflow demo` as `make run` starts it, in a folder and with a cache of its own."""

import asyncio
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from deploy.local.files import default_cache
from tests.lab.apps import until
from tests.lab.pipeline import ROOT


class Demo:
    """One run. Its cache has what the session's servers run from but InfluxDB, which it has no tools to build."""

    def __init__(self, folder: Path, *options: str, **env: str) -> None:
        self.folder = folder
        self.output = folder / "output"
        cache = folder / "home" / ".cache" / "iotflow"
        cache.mkdir(parents=True)
        for jars in default_cache().glob("*-*"):
            if not jars.name.startswith("influxdb"):
                (cache / jars.name).symlink_to(jars)
        self._command = [sys.executable, "-c", "from app.cli import main; main()", "demo", "--devices", "20", *options]
        self._env = {
            "HOME": str(folder / "home"),
            "PATH": str(folder / "no-tools"),
            "PYTHONPATH": str(ROOT),
            "COLUMNS": "200",
            **env,
        }
        self.process: asyncio.subprocess.Process | None = None

    async def start(self) -> asyncio.subprocess.Process:
        """Begin."""
        with self.output.open("wb") as output:
            self.process = await asyncio.create_subprocess_exec(
                *self._command, cwd=self.folder, env=self._env, stdout=output, stderr=output
            )
        return self.process

    @property
    def said(self) -> str:
        """What it wrote so far."""
        return self.output.read_text()

    def left(self) -> list[str]:
        """The processes that still run in its folder."""
        found = []
        for process in psutil.process_iter():
            try:
                if Path(process.cwd()).is_relative_to(self.folder) and process.pid != os.getpid():
                    found.append(" ".join(process.cmdline()))
            except psutil.Error:
                continue
        return found


@pytest.mark.timeout(180)
async def test_a_store_whose_server_cannot_be_had_is_left_out_with_the_remedy(
    tmp_path: Path, kafka_servers: str
) -> None:
    """Without go and cargo there is no InfluxDB here: the run says so, and is good for the others."""
    demo = Demo(tmp_path, "--run-for", "12", STORES="timescale,influxdb")
    code = await (await demo.start()).wait()

    assert code == 0, demo.said
    assert "influxdb: its server is fetched or built while the others already run" in demo.said
    assert "influxdb was left out. influxdb: building it needs go" in demo.said
    assert "missing: go, cargo" in demo.said
    assert "every good reading is stored exactly once, every bad one is a dead letter" in demo.said
    assert "timescale: received to durable" in demo.said
    assert not demo.left()


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_a_run_that_is_ended_checks_and_leaves_nothing_behind(
    tmp_path: Path, kafka_servers: str, how: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM stop the fleets, wait until all is stored, compare, and end every process."""
    demo = Demo(tmp_path, STORES="timescale")
    process = await demo.start()
    await until(lambda: "rows, 0 dead, lag 0, p50" in demo.said, 90)
    process.send_signal(how)
    code = await process.wait()

    assert code == 0, demo.said
    assert "every good reading is stored exactly once, every bad one is a dead letter" in demo.said
    assert not demo.left()
