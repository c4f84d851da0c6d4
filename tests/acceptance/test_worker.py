"""How worker processes start, refuse to start, and are kept running."""

import asyncio
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from tests.lab.apps import until
from tests.lab.pipeline import ROOT, Pipeline, Process


@pytest.fixture
def pipeline(kafka_servers: str, database: Mapping[str, str], tmp_path: Path) -> Pipeline:
    """Topics, group and database of this test."""
    return Pipeline(kafka_servers, database, tmp_path)


async def ended(process: Process, seconds: float = 30) -> int:
    """The exit code of a process that ends by itself."""
    async with asyncio.timeout(seconds):
        return await process.process.wait()


async def test_a_data_folder_that_cannot_be_made_ends_the_worker(pipeline: Pipeline) -> None:
    """The worker says which folder and what to set, and exits with 78."""
    (pipeline.folder / "file").touch()
    async with pipeline as p:
        worker = await p.start("decode", IOTFLOW_DATA_DIR=str(p.folder / "file" / "data"))

        assert await ended(worker) == 78
        assert "set IOTFLOW_DATA_DIR" in worker.log


async def test_a_taken_port_ends_the_worker_and_is_named(pipeline: Pipeline) -> None:
    """Two workers cannot have one port; the second says which it is."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        async with pipeline as p:
            worker = await p.start("decode", IOTFLOW_WEB_PORT=str(port))

            assert await ended(worker) == 78
            assert f"port {port}" in worker.log


async def test_missing_topics_end_the_worker_with_the_command_that_makes_them(pipeline: Pipeline) -> None:
    """Topics are never made by using them."""
    worker = await pipeline.start("store-timescale")

    assert await ended(worker) == 78
    assert "iotflow topics apply" in worker.log
    await pipeline.__aexit__(None)


async def test_faust_itself_runs_a_stage(pipeline: Pipeline) -> None:
    """`faust -A app.main worker` with IOTFLOW_STAGE is the same worker; without a stage it says what to set."""
    faust = [sys.executable, "-m", "faust", "-A", "app.main", "worker"]
    env = {**pipeline.env, "IOTFLOW_WEB_PORT": "41990"}
    nothing = await asyncio.create_subprocess_exec(*faust, cwd=ROOT, env=env, stderr=asyncio.subprocess.PIPE)
    _, said = await nothing.communicate()
    assert b"IOTFLOW_STAGE" in said
    assert nothing.returncode == 78

    async with pipeline:
        process = await asyncio.create_subprocess_exec(
            *faust, cwd=ROOT, env={**env, "IOTFLOW_STAGE": "decode"}, stderr=asyncio.subprocess.DEVNULL
        )
        await until(Process(pipeline, "decode", 41990, process).ready, 60)
        process.terminate()
        async with asyncio.timeout(30):
            assert await process.wait() == 0


async def test_up_runs_all_stages_restarts_a_dead_one_and_stops_them_all(pipeline: Pipeline) -> None:
    """Both stages come up; one that is killed comes back; SIGTERM ends everything with 0."""
    async with pipeline as p:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from app.cli import main; main()", "up",
            cwd=ROOT, env=p.env, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        decode, store = Process(p, "decode", 6066, process), Process(p, "store-timescale", 6067, process)
        await until(lambda: decode.ready() and store.ready(), 60)
        workers = psutil.Process(process.pid).children()
        workers[0].kill()
        await until(lambda: not (decode.ready() and store.ready()), 20)
        await until(lambda: decode.ready() and store.ready(), 60)
        await p.simulate(500)
        await p.settled()
        await p.check()
        workers = psutil.Process(process.pid).children()
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(45):
            assert await process.wait() == 0
        assert not any(worker.is_running() for worker in workers)
