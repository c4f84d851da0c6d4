"""The whole pipeline as an operator runs it: worker processes on topics, a group and a database of the test's own."""

import asyncio
import json
import os
import signal
import sys
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from app import check, kafka, lag, stages, topics
from app.settings import Settings, load
from app.supervisor import worker_command
from deploy.local.ports import choose
from sinks import registry
from tests.lab.apps import own_topics, unique, until

#: Below the ports of outgoing connections; another test session on this machine looks elsewhere.
_PORTS = 20_000 + os.getpid() % 40 * 100
#: Ports of workers that may not listen yet, of all pipelines.
_TAKEN: set[int] = set()
ROOT = Path(__file__).parents[2]
PATH = os.environ["PATH"]  # noqa: TID251  what a child process needs to run at all


class Process:
    """A worker process, and what can be asked of it."""

    def __init__(self, pipeline: "Pipeline", stage: str, port: int, process: asyncio.subprocess.Process) -> None:
        self.pipeline = pipeline
        self.stage = stage
        self.port = port
        self.process = process

    async def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        await self.process.wait()

    async def terminate(self, seconds: float = 40.0) -> int:
        """SIGTERM, and the exit code; fails when it takes too long."""
        self.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(seconds):
            return await self.process.wait()

    def get(self, path: str) -> tuple[int, str]:
        """Status and body of a page."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""

    def ready(self) -> bool:
        """Whether its readiness page says so."""
        return self.get("/health/ready")[0] == 200

    def metrics(self) -> dict[str, float]:
        """Every sample, as name{labels}."""
        found: dict[str, float] = {}
        for family in text_string_to_metric_families(self.get("/metrics")[1]):
            for sample in family.samples:
                labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
                found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return found

    def metric(self, name: str) -> float:
        """A metric summed over its labels."""
        return sum(value for sample, value in self.metrics().items() if sample.partition("{")[0] == name)

    @property
    def log(self) -> str:
        """What it wrote."""
        return (self.pipeline.folder / f"{self.stage}-{self.port}.log").read_text()


class Pipeline:
    """Topics and groups of one test, and the stores that `stores` leads to (their variables, with `STORES`), if any."""

    def __init__(
        self, servers: str, stores: Mapping[str, str], folder: Path, *, dialect: str = "telemetry", **more: str
    ) -> None:
        name = unique("p")
        self.folder = folder
        self.raw = f"{name}-raw"
        self.env = {
            "PATH": PATH,
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            **own_topics(name, dialect),
            "IOTFLOW_APP_PREFIX": name,
            "IOTFLOW_DATA_DIR": str(folder / "data"),
            "IOTFLOW_WEB_BIND": "127.0.0.1",
            "IOTFLOW_SESSION_TIMEOUT": "6",
            "IOTFLOW_REBALANCE_TIMEOUT": "15",
            **stores,
            **more,
        }
        self.settings: Settings = load(self.env)
        self.processes: list[Process] = []
        self._stores = bool(stores)

    async def __aenter__(self) -> "Pipeline":
        async with kafka.admin(self.settings) as admin:
            await topics.apply(admin, await topics.plan(admin, topics.wanted(self.settings)))
        for name in self.settings.stores if self._stores else ():
            await registry.load()[name].apply_schema(self.settings.sinks[name], self.settings.types)
        return self

    async def __aexit__(self, kind: type | None, *_: object) -> None:
        for process in self.processes:
            if process.process.returncode is None:
                process.process.kill()
                await process.process.wait()
            _TAKEN.discard(process.port)
            if kind is not None:
                sys.stderr.write(f"--- {process.stage} {process.port}\n{process.log[-6000:]}\n")

    @property
    def stages(self) -> list[str]:
        """Decode and the stores'; whoever wants analyze starts it."""
        return [name for name in stages.names(self.settings) if name != stages.ANALYZE]

    @property
    def storing(self) -> list[str]:
        """The stores' stages."""
        return self.stages[1:]

    async def started_all(self, names: Sequence[str] | None = None) -> dict[str, Process]:
        """Start a worker of each stage, side by side, and wait until all are ready."""
        names = self.stages if names is None else names
        return dict(zip(names, await asyncio.gather(*(self.started(name) for name in names)), strict=True))

    async def start(self, stage: str, command: Sequence[str] = (), **more: str) -> Process:
        """Start a worker, or what stands in for one; does not wait for it to be ready.

        On the port of one that has ended (`IOTFLOW_WEB_PORT`) it has that one's folder, and goes on with its log.
        """
        port = int(more.get("IOTFLOW_WEB_PORT", 0)) or choose(_PORTS, _TAKEN)
        _TAKEN.add(port)
        env = {**self.env, "IOTFLOW_STAGE": stage, "IOTFLOW_WEB_PORT": str(port), **more}
        with (self.folder / f"{stage}-{port}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(command or worker_command()), cwd=ROOT, env=env, stdout=log, stderr=log
            )
        started = Process(self, stage, port, process)
        self.processes.append(started)
        return started

    async def started(self, stage: str, **more: str) -> Process:
        """Start a worker and wait until it is ready."""
        process = await self.start(stage, **more)
        await until(process.ready, 60)
        return process

    async def run(self, *arguments: str) -> dict[str, Any]:
        """Run an `iotflow` command to its end; its JSON."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from app.cli import main; main()", *arguments,
            cwd=ROOT, env=self.env, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:  # the test was given up: a simulator would wait for its broker for ever
                process.kill()
        assert process.returncode == 0, output
        return json.loads(output)

    def ledger(self, name: str = "ledger") -> Path:
        """Where what was sent is recorded."""
        return self.folder / f"{name}.jsonl"

    async def simulate(self, count: int, rate: float = 0, bad: float = 0.01, **more: str) -> dict[str, Any]:
        """Send `count` messages, a share of them bad, at `rate` a second (0 = as fast as can be)."""
        options = {"devices": "50", "seed": "1", **more}
        flags = [text for name, value in options.items() for text in (f"--{name}", value)]
        return await self.run(
            "simulate", "--topic", self.raw, "--count", str(count), "--rate", str(rate), "--bad", str(bad),
            "--ledger", str(self.ledger()), "--json", *flags,
        )  # fmt: skip

    async def settled(self, seconds: float = 90.0, stages: Sequence[str] | None = None) -> None:
        """Wait until every stage (all by default) has committed to the end of its topics."""
        args = kafka.client_args(self.settings)
        deadline = time.monotonic() + seconds
        for stage in self.stages if stages is None else stages:
            topics = list(self.settings.topics.raw) if stage == "decode" else [self.settings.topics.decoded]
            while True:
                found = await lag.measure(args, self.settings.app_id(stage), topics)
                if found and all(each.lag == 0 for each in found.values()):
                    break
                await self._revive()
                assert time.monotonic() < deadline, f"{stage} does not catch up: {found}"
                await asyncio.sleep(0.3)

    async def lag(self, stage: str) -> int:
        """How many records a store's stage has not committed yet, as the broker knows it."""
        topics = list(self.settings.topics.raw) if stage == "decode" else [self.settings.topics.decoded]
        found = await lag.measure(kafka.client_args(self.settings), self.settings.app_id(stage), topics)
        return sum(each.lag for each in found.values())

    async def _revive(self) -> None:
        """What a supervisor does: a worker whose watchdog has ended it is started again."""
        for process in list(self.processes):
            if process.process.returncode == 70:
                self.processes.remove(process)
                await self.start(process.stage)

    async def check(self) -> check.Report:
        """Compare the ledger with every store and the dead letters; fails when anything differs."""
        report = await check.compare(self.settings, self.ledger(), self.raw)
        assert report.ok, report
        return report

    async def letters(self) -> list[Any]:
        """All dead letters."""
        return await check.tail(self.settings, self.settings.topics.dead_letters)
