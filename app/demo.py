"""`make run`: real servers, all stages and a simulated fleet, with a view of what flows and a final check."""

import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from app import check, kafka, lag, stages, supervisor, topics
from app.settings import Settings
from app.telemetry import quantile
from deploy.local.ports import choose
from sinks import registry

_KEEP_RUNS = 5
_LINE_EVERY_S = 5.0
_CATCH_UP_S = 180.0
#: The latencies shown are those of this last while.
_WINDOW_S = 30.0


class Options(Struct, frozen=True):
    """What to run, and for how long (seconds; None until stopped)."""

    folder: Path
    devices: int
    rate: float
    bad: float
    dialect: str
    run_for: float | None


class Worker(Struct):
    """What one worker's metrics say."""

    up: bool = False
    records: float = 0
    readings: float = 0
    rows: float = 0
    letters: float = 0
    lag: float = 0
    buckets: Mapping[float, float] = {}


class Demo:
    """One run. `env` leads to the servers; nothing here reads the environment."""

    def __init__(self, settings: Settings, env: Mapping[str, str], options: Options, console: Console) -> None:
        self.settings = settings
        self.env = env
        self.options = options
        self.console = console
        self.folder = options.folder / time.strftime("%Y%m%d-%H%M%S")
        self.ledger = self.folder / "ledger.jsonl"
        self.names = stages.names(settings)
        self.ports: dict[str, int] = {}
        self.topic = next(iter(settings.topics.raw))
        self.started = time.monotonic()
        self.first_rows_s: float | None = None
        self.seen: dict[str, Worker] = {}
        self.history: dict[str, list[tuple[float, Mapping[float, float]]]] = {}

    async def prepare(self) -> None:
        """Make the topics and the tables."""
        async with kafka.admin(self.settings) as admin:
            await topics.apply(admin, await topics.plan(admin, topics.wanted(self.settings)))
        for name, module in registry.load().items():
            for note in await module.apply_schema(self.settings.sinks[name]):
                self.console.print(f"{name}: {note}", style="dim", soft_wrap=True)
        self.folder.mkdir(parents=True)
        for old in sorted(self.options.folder.iterdir())[:-_KEEP_RUNS]:
            shutil.rmtree(old, ignore_errors=True)
        taken: set[int] = set()
        for name in self.names:
            self.ports[name] = choose(self.settings.port(name), taken)
            taken.add(self.ports[name])

    async def run(self) -> int:
        """Run, show and check; the exit code."""
        await self.prepare()
        since = await check.ends(self.settings, self.settings.topics.dead_letters)
        workers = supervisor.stages(self.names, self.env, self.folder, self.ports)
        stop = asyncio.create_task(supervisor.stopped())
        async with supervisor.Supervisor(workers, grace_s=self.settings.rebalance_timeout):
            simulator = await self._simulator()
            try:
                await self._show(stop, simulator)
            finally:
                sent = await self._end(simulator)
            self.console.print("the fleet has stopped; waiting until everything is stored ...", style="dim")
            caught_up = await self._caught_up()
            await self._look()
        report = await check.compare(self.settings, self.ledger, self.topic, since)
        self._summary(sent, report, caught_up=caught_up)
        return 0 if report.ok and caught_up else 1

    async def _simulator(self) -> asyncio.subprocess.Process:
        options = self.options
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from app.cli import main; main()",
            "simulate",
            *("--topic", self.topic, "--devices", str(options.devices), "--rate", str(options.rate)),
            *("--bad", str(options.bad), "--dialect", options.dialect, "--ledger", str(self.ledger), "--json"),
            env=dict(self.env),
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )

    @staticmethod
    async def _end(simulator: asyncio.subprocess.Process) -> dict[str, Any]:
        if simulator.returncode is None:
            simulator.terminate()
        output, _ = await simulator.communicate()
        return dict(msgspec.json.decode(output)) if output else {}

    async def _show(self, stop: "asyncio.Task[None]", simulator: asyncio.subprocess.Process) -> None:
        ended = asyncio.create_task(simulator.wait())
        deadline = None if self.options.run_for is None else self.started + self.options.run_for
        with self._display() as update:
            while not stop.done() and not ended.done() and (deadline is None or time.monotonic() < deadline):
                await self._look()
                update()
                await asyncio.wait([stop, ended], timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and not stop.done():
            self.console.print("the simulator ended early", style="red")

    @contextlib.contextmanager
    def _display(self) -> Any:
        """A live table on a terminal, else a line now and then."""
        if self.console.is_terminal:
            with Live(console=self.console, refresh_per_second=2) as live:
                yield lambda: live.update(self._table())
            return
        last = 0.0

        def line() -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_EVERY_S:
                last = time.monotonic()
                self.console.print(self._line(), soft_wrap=True)

        yield line

    # -- what the workers say ----------------------------------------------------------------------------------------

    async def _look(self) -> None:
        async with self._client() as get:
            for name in self.names:
                text = await get(f"http://127.0.0.1:{self.ports[name]}/metrics")
                self.seen[name] = _worker(text) if text else Worker()
                self._remember(name)
        if self.first_rows_s is None and any(seen.rows for seen in self.seen.values()):
            self.first_rows_s = time.monotonic() - self.started

    def _remember(self, name: str) -> None:
        """Keep the latency counts of the last while: those of the start would hide how it runs now."""
        history = self.history.setdefault(name, [])
        now = time.monotonic()
        history.append((now, self.seen[name].buckets))
        while len(history) > 1 and history[1][0] <= now - _WINDOW_S:
            history.pop(0)

    def _latencies(self, name: str) -> tuple[str, str, str]:
        """p50, p95 and p99 of the last while for a person; empty where nothing was measured."""
        history = self.history.get(name)
        if not history:
            return "", "", ""
        first, last = history[0][1], history[-1][1]
        if len(history) == 1 or sum(first.values()) > sum(last.values()):  # one look so far, or a restarted worker
            first = {}
        return _quantiles({bound: count - first.get(bound, 0.0) for bound, count in last.items()})

    @staticmethod
    @contextlib.asynccontextmanager
    async def _client() -> AsyncIterator[Callable[[str], Any]]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:

            async def get(url: str) -> str:
                try:
                    async with session.get(url) as answer:
                        return await answer.text()
                except (aiohttp.ClientError, TimeoutError):
                    return ""

            yield get

    async def _caught_up(self) -> bool:
        """Wait until every stage has committed to the end of its topics."""
        args = kafka.client_args(self.settings)
        deadline = time.monotonic() + _CATCH_UP_S
        for name in self.names:
            reads = list(self.settings.topics.raw) if name == stages.DECODE else [self.settings.topics.decoded]
            while True:
                found = await lag.measure(args, self.settings.app_id(name), reads)
                if found and all(each.lag == 0 for each in found.values()):
                    break
                if time.monotonic() > deadline:
                    return False
                await asyncio.sleep(0.5)
        return True

    # -- what a person sees ------------------------------------------------------------------------------------------

    def _table(self) -> Group:
        table = Table(title=f"iotflow, {time.monotonic() - self.started:.0f} s", title_justify="left")
        for column in ("stage", "in", "out", "dead letters", "lag", "p50", "p95", "p99"):
            table.add_column(column, justify="left" if column == "stage" else "right")
        for name in self.names:
            seen = self.seen.get(name, Worker())
            out = f"{seen.rows:,.0f} rows" if name != stages.DECODE else f"{seen.readings:,.0f} readings"
            cells = [f"{seen.records:,.0f}", out, f"{seen.letters:,.0f}", f"{seen.lag:,.0f}", *self._latencies(name)]
            table.add_row(name, *(cells if seen.up else ["starting", *[""] * 6]))
        links = "  ".join(f"{name} http://127.0.0.1:{port}/health/ready" for name, port in self.ports.items())
        return Group(table, links, f"logs and ledger in {self.folder}; Ctrl-C stops and checks")

    def _line(self) -> str:
        parts = [f"{time.monotonic() - self.started:5.0f} s"]
        for name in self.names:
            seen = self.seen.get(name, Worker())
            out = f"{seen.rows:.0f} rows" if name != stages.DECODE else f"{seen.readings:.0f} readings"
            text = f"{seen.records:.0f} in, {out}, {seen.letters:.0f} dead, lag {seen.lag:.0f}"
            p95 = self._latencies(name)[1]
            parts.append(f"{name}: " + (f"{text}{f', p95 {p95}' if p95 else ''}" if seen.up else "starting"))
        return " | ".join(parts)

    def _summary(self, sent: Mapping[str, Any], report: check.Report, *, caught_up: bool) -> None:
        table = Table(title="what was sent, and where it is", title_justify="left")
        for column in ("", "expected", "found", "missing", "different", "unexpected"):
            table.add_column(column, justify="left" if not column else "right")
        findings = {**report.stores, "dead letters": report.letters}
        for name, finding in findings.items():
            held = finding.expected - finding.missing
            cells = (finding.expected, held, finding.missing, finding.different, finding.unexpected)
            table.add_row(name, *(f"{cell:,}" for cell in cells))
        self.console.print(table)
        for name, finding in findings.items():
            for example in finding.examples:
                self.console.print(f"{name}: {example}", style="red", markup=False)
        first = "no rows" if self.first_rows_s is None else f"first rows after {self.first_rows_s:.1f} s"
        latency = " ".join(
            f"{label} {value}"
            for name in self.names
            if name != stages.DECODE
            for label, value in zip(("p50", "p95", "p99"), self._latencies(name), strict=True)
            if value
        )
        lately = f"received to durable (last {_WINDOW_S:.0f} s): {latency or 'unknown'}"
        self.console.print(f"sent {sent.get('sent', 0):,} messages; {first}; {lately}", soft_wrap=True)
        if not caught_up:
            self.console.print(f"the stages did not catch up; see the logs in {self.folder}", style="red")
        good = report.ok and caught_up
        verdict = "every good reading is stored exactly once, every bad one is a dead letter"
        self.console.print(verdict if good else "NOT as sent: see above", style="green" if good else "bold red")


def _worker(text: str) -> Worker:
    """Read one worker's metrics."""
    seen = Worker(up=True)
    buckets: dict[float, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            match sample.name:
                case "iotflow_records_total":
                    seen.records += sample.value
                case "iotflow_readings_total" if sample.labels.get("outcome") == "decoded":
                    seen.readings += sample.value
                case "iotflow_rows_total":
                    seen.rows += sample.value
                case "iotflow_dead_letters_total":
                    seen.letters += sample.value
                case "iotflow_lag_records":
                    seen.lag += sample.value
                case "iotflow_durable_seconds_bucket":
                    buckets[float(sample.labels["le"])] = sample.value
    seen.buckets = buckets
    return seen


def _quantiles(buckets: Mapping[float, float]) -> tuple[str, str, str]:
    bounds = sorted(bound for bound in buckets if bound != float("inf"))
    below = 0.0
    counts: list[float] = []
    for bound in [*bounds, float("inf")]:
        total = buckets.get(bound, below)
        counts.append(total - below)
        below = total
    found = [quantile(bounds, counts, q) if below else None for q in (0.5, 0.95, 0.99)]
    p50, p95, p99 = ("" if value is None else f"{value * 1000:.0f} ms" for value in found)
    return p50, p95, p99
