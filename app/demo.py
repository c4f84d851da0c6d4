"""`make run`: real servers, all stages and simulated fleets, with a view of what flows and a final check."""

import asyncio
import contextlib
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Struct
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from app import check, kafka, lag, stages, supervisor, topics
from app.settings import Settings
from app.watch import WINDOW_S, Watch
from deploy.local.files import UnavailableError
from deploy.local.ports import choose
from sinks import registry

_KEEP_RUNS: Final = 5
_LINE_EVERY_S: Final = 5.0
_CATCH_UP_S: Final = 180.0
_IOTFLOW: Final = (sys.executable, "-c", "from app.cli import main; main()")


class Options(Struct, frozen=True):
    """What to run, and for how long (seconds; None until stopped).

    `load` are the options of `iotflow simulate` that make the load. `coming` are the local servers that are still to
    be fetched or built, with the store each is for.
    """

    folder: Path
    load: Sequence[str]
    run_for: float | None
    #: The user's own variables, by which a server is told from one that the user has.
    own: Mapping[str, str] = {}
    coming: Mapping[str, str] = {}


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
        self.watch = Watch({})
        self.started = time.monotonic()
        self.first_rows_s: float | None = None
        #: Why stores were left out, by name.
        self.absent: dict[str, str] = {}
        #: Whether one of those could be had here, and failed.
        self.faulty = False

    async def prepare(self) -> None:
        """Make the topics and, where the server is there, the tables."""
        async with kafka.admin(self.settings) as admin:
            await topics.apply(admin, await topics.plan(admin, topics.wanted(self.settings)))
        for store in self.settings.stores:
            if store not in self.options.coming.values() and (flaw := await self._apply_schema(store)):
                # A server of the user's own that is away: its stage waits for it like any other.
                self.console.print(f"{store}: {flaw}", style="yellow", soft_wrap=True, markup=False)
        self.folder.mkdir(parents=True)
        for old in sorted(self.options.folder.iterdir())[:-_KEEP_RUNS]:
            shutil.rmtree(old, ignore_errors=True)
        ports: dict[str, int] = {}
        for name in self.names:
            ports[name] = choose(self.settings.port(name), ports.values())
        self.watch = Watch(ports)

    async def _apply_schema(self, store: str) -> str:
        """Make a store's tables; what went wrong, in words that help, or ''."""
        module, settings = registry.load()[store], self.settings.sinks[store]
        try:
            done = await module.apply_schema(settings, self.settings.types)
        except Exception as error:  # noqa: BLE001  the sink says what it means
            verdict = module.Sink(settings).classify(error)
            return getattr(verdict, "remedy", "") or f"{type(error).__name__}: {error}"
        for note in done.notes:
            self.console.print(f"{store}: {note}", style="dim", soft_wrap=True, markup=False)
        return ""

    async def run(self) -> int:
        """Run, show and check; the exit code."""
        await self.prepare()
        since = await check.ends(self.settings, self.settings.topics.dead_letters)
        workers = supervisor.stages(self.names, self.env, self.folder, self.watch.ports)
        stop = asyncio.create_task(supervisor.stopped())
        async with supervisor.Supervisor(workers, grace_s=self.settings.rebalance_timeout) as running:
            coming = [
                asyncio.create_task(self._arrive(server, store, running))
                for server, store in self.options.coming.items()
            ]
            try:
                sent = await self._load(stop)
                if not all(task.done() for task in coming):
                    self.console.print(
                        "the fleets have stopped; waiting for servers that are still coming", style="dim"
                    )
                    await self._show(stop, asyncio.gather(*coming))
            finally:
                for task in coming:
                    task.cancel()
                await asyncio.gather(*coming)
            self.console.print("waiting until everything is stored ...", style="dim")
            # Whoever has asked for the end already has to ask once more to end this, too.
            patience = asyncio.create_task(supervisor.stopped()) if stop.done() else stop
            caught_up = await self._caught_up(patience)
            await self._look()
        self.faulty |= not sent.get("sent")
        self.ledger.touch()  # the simulator may not have come as far
        report = await check.compare(self.settings, self.ledger, since=since)
        good = report.ok and caught_up and not self.faulty
        self._summary(sent, report, good=good, caught_up=caught_up)
        return 0 if good else 1

    async def _load(self, stop: "asyncio.Future[None]") -> dict[str, Any]:
        """Let the fleets send until it is time; what they say they have sent."""
        complaints = self.folder / "simulate.log"
        with complaints.open("wb") as file:  # not the terminal, which the view has
            simulator = await asyncio.create_subprocess_exec(
                *(*_IOTFLOW, "simulate", *self.options.load, "--ledger", str(self.ledger), "--json"),
                env=dict(self.env),
                stdout=asyncio.subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )
        output = asyncio.create_task(simulator.communicate())
        deadline = None if self.options.run_for is None else self.started + self.options.run_for
        try:
            await self._show(stop, output, deadline)
        finally:
            if simulator.returncode is None:
                simulator.terminate()
            elif not stop.done():
                self.faulty = True
                self.console.print(f"the simulator ended early; see {complaints}", style="red", soft_wrap=True)
            said, _ = await output
        return dict(msgspec.json.decode(said)) if said else {}

    async def _arrive(self, server: str, store: str, running: supervisor.Supervisor) -> None:
        """Bring up a server that takes its time; where it cannot be had, its store is left out."""
        stage = self.settings.sinks[store].STAGE
        process = await asyncio.create_subprocess_exec(
            *(*_IOTFLOW, "stack", "up", "--only", server),
            env=dict(self.options.own),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        said: list[str] = []
        try:
            assert process.stderr is not None  # noqa: S101  it was asked for
            async for line in process.stderr:
                said.append(line.decode(errors="replace").rstrip())
                self.watch.notes[stage] = said[-1].removeprefix(f"{server}: ")
            code = await process.wait()
            flaw = (
                "\n".join(line.removeprefix("Error: ") for line in said[-20:])
                if code
                else await self._apply_schema(store)
            )
            if not flaw:
                return
            self.faulty |= code != UnavailableError.EXIT_CODE
            reason = flaw
        except asyncio.CancelledError:
            # The end of the run, which is no fault: what is built so far is kept.
            if process.returncode is None:
                process.terminate()
                await process.wait()
            reason = f"{server}: was still coming when the run was stopped; the next run goes on from there"
        finally:
            self.watch.notes.pop(stage, None)
        self.absent[store] = reason
        self.names.remove(stage)
        del self.watch.ports[stage]
        left = tuple(name for name in self.settings.stores if name != store)
        self.settings = self.settings.model_copy(update={"stores": left})
        self.console.print(f"{store} is left out. {reason}", style="yellow", soft_wrap=True, markup=False)
        await running.stop(stage)

    async def _show(
        self, stop: "asyncio.Future[None]", ended: "asyncio.Future[Any]", deadline: float | None = None
    ) -> None:
        """Show what flows until one of the two is done, or `deadline` (of `time.monotonic`)."""
        with self._display() as update:
            while not stop.done() and not ended.done() and (deadline is None or time.monotonic() < deadline):
                await self._look()
                update()
                await asyncio.wait([stop, ended], timeout=1.0, return_when=asyncio.FIRST_COMPLETED)

    async def _look(self) -> None:
        await self.watch.look()
        if self.first_rows_s is None and any(seen.rows for seen in self.watch.seen.values()):
            self.first_rows_s = time.monotonic() - self.started

    @contextlib.contextmanager
    def _display(self) -> Iterator[Any]:
        """A live table on a terminal, else a line now and then."""
        if self.console.is_terminal:
            with Live(console=self.console, refresh_per_second=2) as live:
                yield lambda: live.update(self._view())
            return
        last = 0.0

        def line() -> None:
            nonlocal last
            if time.monotonic() - last >= _LINE_EVERY_S:
                last = time.monotonic()
                seconds = time.monotonic() - self.started
                self.console.print(f"{seconds:5.0f} s | {self.watch.line()}", soft_wrap=True, markup=False)

        yield line

    def _view(self) -> Group:
        seconds = time.monotonic() - self.started
        links = "  ".join(f"{name} http://127.0.0.1:{port}/health/ready" for name, port in self.watch.ports.items())
        return Group(
            self.watch.table(f"iotflow, {seconds:.0f} s; p50, p95, p99: received to durable, last {WINDOW_S:.0f} s"),
            links,
            f"logs and ledger in {self.folder}; Ctrl-C stops and checks",
        )

    async def _caught_up(self, stop: "asyncio.Future[None]") -> bool:
        """Wait until every stage has committed to the end of its topics, or somebody has had enough."""
        args = kafka.client_args(self.settings)
        deadline = time.monotonic() + _CATCH_UP_S
        for name in self.names:
            while True:
                found = await lag.measure(args, self.settings.app_id(name), stages.reads(name, self.settings))
                if found and all(each.lag == 0 for each in found.values()):
                    break
                if stop.done() or time.monotonic() > deadline:
                    return False
                await asyncio.sleep(0.5)
        return True

    def _summary(self, sent: Mapping[str, Any], report: check.Report, *, good: bool, caught_up: bool) -> None:
        findings = {**report.stores, "dead letters": report.letters}
        self.console.print(_table(findings))
        for name, finding in findings.items():
            self._remark(name, finding)
        for name, why in report.unreachable.items():
            self.console.print(f"{name} could not be looked into: {why}", style="red", soft_wrap=True, markup=False)
        for name, reason in self.absent.items():
            self.console.print(f"{name} was left out. {reason}", style="yellow", soft_wrap=True, markup=False)
        first = "no rows" if self.first_rows_s is None else f"first rows after {self.first_rows_s:.1f} s"
        self.console.print(f"sent {sent.get('sent', 0):,} messages; {first}", soft_wrap=True)
        for name in report.stores:
            p50, p95, p99 = self.watch.latencies(self.settings.sinks[name].STAGE)
            lately = f"p50 {p50}, p95 {p95}, p99 {p99}" if p50 else "unknown"
            self.console.print(f"{name}: received to durable in the last {WINDOW_S:.0f} s: {lately}", soft_wrap=True)
        said = self.watch.seen[stages.ANALYZE].said if stages.ANALYZE in self.watch.seen else {}
        counts = f"{said.get('aggregates', 0):,.0f} windows, {said.get('anomalies', 0):,.0f} anomalous values"
        self.console.print(f"analyze: {counts}, {said.get('alarms', 0):,.0f} changes of alarms", soft_wrap=True)
        if not caught_up:
            self.console.print(f"the stages did not catch up; see the logs in {self.folder}", style="red")
        verdict = "every good reading is stored exactly once, every bad one is a dead letter"
        self.console.print(verdict if good else "NOT as sent: see above", style="green" if good else "bold red")

    def _remark(self, name: str, finding: check.Finding) -> None:
        for example in finding.examples:
            self.console.print(f"{name}: {example}", style="red", markup=False)
        if finding.repeated:
            self.console.print(f"{name}: {finding.repeated:,} were sent again, under the same id")
        if finding.together:
            self.console.print(f"{name}: {finding.together:,} fell on the same instant as another", style="yellow")


def _table(findings: Mapping[str, check.Finding]) -> Table:
    table = Table(title="what was sent, and where it is", title_justify="left")
    for column in ("", "expected", "found", "missing", "different", "unexpected"):
        table.add_column(column, justify="left" if not column else "right")
    for name, finding in findings.items():
        held = finding.expected - finding.missing
        cells = (finding.expected, held, finding.missing, finding.different, finding.unexpected)
        table.add_row(name, *(f"{cell:,}" for cell in cells))
    return table
