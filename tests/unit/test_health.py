"""When a worker is ready, and when the watchdog ends it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from aiohttp.test_utils import TestClient, TestServer

from app import __version__, health
from app.health import Snapshot, Watchdog, readiness
from app.telemetry import READY, SINK_UP, Telemetry
from sinks.ceiling import Ceiling
from sinks.contracts import Breaker

GOOD = Snapshot()
OPEN = {"breaker": Breaker.OPEN, "taking": False}


@pytest.mark.parametrize(
    ("change", "reasons"),
    [
        ({}, []),
        ({"partitions": 0}, []),
        ({"lag": 1_000_000, "held": 50_000}, []),
        ({"draining": False}, []),
        ({"broker_answers": False}, []),
        ({"partitions": None, "generation": -1, "recovered": False}, ["no partitions have been assigned yet"]),
        ({"generation": -1}, ["not in the consumer group"]),
        ({"rebalancing": True}, ["rebalancing"]),
        ({"recovered": False}, ["state is not restored yet"]),
        ({"rebalancing": True, "recovered": False}, ["rebalancing", "state is not restored yet"]),
        ({"frozen": ("raw/1", "raw/3")}, ["commits stand still: raw/1, raw/3"]),
        (OPEN, ["the destination is away"]),
        ({**OPEN, "breaker": Breaker.HALF_OPEN}, ["the destination is away"]),
        ({**OPEN, "remedy": "wrong password"}, ["storing needs a person"]),
        ({"taking": False}, ["the destination has not been reached yet"]),
        ({"ceiling": True, "taking": False}, ["most records are refused, so intake is stopped"]),
        ({"stopping": True}, ["stopping"]),
        ({"unread": ("registry",)}, ["the topic registry has not been read yet"]),
        ({"stopping": True, "rebalancing": True, **OPEN}, ["stopping", "rebalancing", "the destination is away"]),
    ],
)
def test_readiness(change: dict[str, Any], reasons: list[str]) -> None:
    assert readiness(replace(GOOD, **change)) == reasons


class Trial:
    """A watchdog with a group time-out of 60 s and a clock that we turn, looking every 5 s."""

    def __init__(self) -> None:
        self.time = 1000.0
        self.dog = Watchdog(60.0, standstill=300.0, clock=lambda: self.time)

    def bites_after(self, now: Callable[[int], Snapshot], seconds: int = 3600) -> int | None:
        """After how many seconds there is a verdict, `now` being a function of them; None when there is none."""
        for elapsed in range(0, seconds, 5):
            if self.dog.look(now(elapsed)):
                return elapsed
            self.time += 5
        return None


@pytest.mark.parametrize(
    ("change", "seconds", "said"),
    [
        ({"generation": -1}, 120, "no generation of the consumer group for 120 s"),
        ({"generation": -1, "partitions": None, "recovered": False}, 120, "no generation of the consumer group"),
        ({"rebalancing": True}, 120, "a rebalance or recovery without progress for 120 s"),
        ({"recovered": False}, 120, "a rebalance or recovery without progress"),
        ({"draining": False}, 15, "the loop that takes records ended 15 s ago"),
        ({"draining": False, **OPEN}, 15, "the loop that takes records ended"),
        ({"draining": False, "broker_answers": False}, 15, "the loop that takes records ended"),
        ({"frozen": ("raw/1",)}, 0, "records were handed out and never acknowledged: raw/1"),
        ({"held": 1}, 300, "records wait (1 taken in, lag 0) and none was committed for 300 s"),
        ({"lag": 5000}, 300, "records wait (0 taken in, lag 5000)"),
        ({"stopping": True}, 120, "stopping has taken 120 s"),
        ({"stopping": True, "held": 5, "broker_answers": False}, 120, "stopping has taken 120 s"),
    ],
)
def test_the_watchdog_ends_a_worker_that_does_nothing(change: dict[str, Any], seconds: int, said: str) -> None:
    trial = Trial()
    assert trial.bites_after(lambda _: replace(GOOD, **change)) == seconds
    assert trial.dog.verdict.startswith(said)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"partitions": 0},
        {"partitions": 0, "lag": 0},
        {**OPEN, "held": 50_000, "lag": 1_000_000},
        {**OPEN, "breaker": Breaker.HALF_OPEN, "held": 50_000, "lag": 1_000_000},
        {**OPEN, "held": 50_000, "remedy": "wrong password"},
        {"ceiling": True, "taking": False, "held": 50_000, "lag": 1_000_000},
        {"lag": 3, "partitions": 4},
        {"broker_answers": False, "generation": -1},
        {"broker_answers": False, "rebalancing": True},
        {"broker_answers": False, "held": 50_000, "lag": 1_000_000},
    ],
)
def test_the_watchdog_bears_with_outages_and_idleness(change: dict[str, Any]) -> None:
    assert Trial().bites_after(lambda _: replace(GOOD, **change)) is None


@pytest.mark.parametrize(
    "now",
    [
        pytest.param(lambda s: replace(GOOD, held=9, lag=9000, committed=s // 200), id="slow but steady"),
        pytest.param(lambda s: replace(GOOD, rebalancing=True, recovery_position=s // 100), id="a long recovery"),
        pytest.param(lambda s: replace(GOOD, rebalancing=True, generation=s // 100), id="many joins"),
        pytest.param(lambda s: replace(GOOD, rebalancing=s % 200 < 100), id="rebalances that end"),
        pytest.param(lambda s: replace(GOOD, generation=-1 if s % 200 < 100 else 4), id="left and came back"),
        pytest.param(lambda s: replace(GOOD, draining=s % 20 < 10), id="drain loop begins again"),
        pytest.param(lambda s: replace(GOOD, held=9 if s % 250 < 200 else 0), id="work in between"),
        pytest.param(
            lambda s: replace(GOOD, held=9, breaker=Breaker.OPEN if s % 250 == 0 else Breaker.CLOSED), id="probing"
        ),
    ],
)
def test_the_watchdog_starts_anew_with_any_progress(now: Callable[[int], Snapshot]) -> None:
    assert Trial().bites_after(now) is None


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    trial = Trial()
    rebalance = replace(GOOD, rebalancing=True)
    trial.dog.look(rebalance)
    trial.time += 100_000
    assert trial.dog.look(rebalance) == ""
    assert trial.bites_after(lambda _: rebalance) == 120 - 15


def test_a_verdict_stays() -> None:
    trial = Trial()
    verdict = trial.dog.look(replace(GOOD, frozen=("raw/1",)))
    assert trial.dog.look(GOOD) == verdict


# -- a worker, as Faust has it -----------------------------------------------------------------------------------------


class Worker:
    """What `health.View` asks for, with a Faust app that is not started."""

    def __init__(self, folder: Path, stage: str = "store-timescale") -> None:
        self.app = faust.App(f"health-{stage}", broker="iotflow://127.0.0.1:1", datadir=folder, autodiscover=False)
        self.stage = stage
        self.telemetry = Telemetry(stage, "timescale")
        self.work = SimpleNamespace(ceiling=Ceiling(), ready=True, state=Breaker.CLOSED, remedy="")
        self.parts: Any = SimpleNamespace(work=self.work, feeds=[])
        self.watchdog = Watchdog(60.0)
        self.coordinator = SimpleNamespace(generation=3, _coordination_task=asyncio.get_running_loop().create_future())

    def assigned(self) -> set[tuple[str, int]]:
        return {("decoded", 0), ("decoded", 1)}

    def join(self) -> None:
        """As after an assignment."""
        app: Any = self.app
        app._assignment = set()
        app.consumer._thread._consumer = SimpleNamespace(_coordinator=self.coordinator)
        app.tables.recovery.completed.set()
        app._fetcher._started.set()


@pytest.fixture
async def worker(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Worker]:
    worker = Worker(tmp_path, getattr(request, "param", "store-timescale"))
    yield worker
    consumer: Any = worker.app.consumer
    consumer._thread.thread_loop.close()  # made with the thread, closed by it only once it was started


@pytest.fixture
async def web(worker: Worker) -> AsyncIterator[TestClient[Any, Any]]:
    health.register(worker.app, worker)
    app: Any = worker.app
    async with TestClient(TestServer(app.web.web_app)) as client:
        yield client


async def get(client: TestClient[Any, Any], path: str) -> tuple[int, dict[str, Any]]:
    async with client.get(path) as response:
        assert response.content_type == "application/json"
        return response.status, await response.json()


async def test_a_worker_before_it_joined(worker: Worker) -> None:
    now = health.snapshot(worker)
    assert now == Snapshot(generation=-1, partitions=None, recovered=False, draining=False, broker_answers=False)


async def test_a_worker_that_joined(worker: Worker) -> None:
    worker.join()
    worker.telemetry.lag_measured(stale=False, answers=True)
    worker.telemetry.lag({("decoded", 0): 5, ("decoded", 1): 6})
    assert health.snapshot(worker) == Snapshot(generation=3, partitions=2, lag=11)


async def test_a_lag_that_is_old_does_not_count(worker: Worker) -> None:
    worker.join()
    worker.telemetry.lag({("decoded", 0): 5})
    worker.telemetry.lag_measured(stale=True, answers=True)
    assert health.snapshot(worker).lag == 0


async def test_nobody_rejoins_when_the_coordination_task_is_done(worker: Worker) -> None:
    worker.join()
    worker.coordinator._coordination_task.set_result(None)
    assert health.snapshot(worker).generation == -1


@pytest.mark.parametrize("how", ["_shutdown", "_stopped", "_crashed"])
async def test_the_drain_loop_is_dead_however_it_ended(worker: Worker, how: str) -> None:
    worker.join()
    assert health.drains(worker.app)
    fetcher: Any = worker.app._fetcher
    getattr(fetcher, how).set()
    assert not health.drains(worker.app)
    fetcher.service_reset()
    assert not health.drains(worker.app)


async def test_a_task_that_returns_ends_the_drain_loop(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    async def drained(_: object) -> None:
        await asyncio.sleep(0.05)

    app: Any = worker.app
    monkeypatch.setattr(app.consumer, "_drain_messages", drained)
    await app._fetcher.start()
    assert health.drains(app)
    await asyncio.sleep(0.2)
    assert not health.drains(app)
    await app._fetcher.stop()


async def test_pages_of_a_worker_that_works(worker: Worker, web: TestClient[Any, Any]) -> None:
    worker.join()
    assert await get(web, "/health/live") == (
        200,
        {"status": "live", "stage": "store-timescale", "version": __version__},
    )
    assert await get(web, "/health/ready") == (
        200,
        {
            "ready": True,
            "reasons": [],
            "stage": "store-timescale",
            "version": __version__,
            "partitions": 2,
            "breaker": "closed",
        },
    )
    async with web.get("/metrics") as response:
        assert response.status == 200
        assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        text = await response.text()
    assert 'iotflow_ready{stage="store-timescale"} 1.0' in text
    assert 'sink_up{sink="timescale"} 1.0' in text
    assert 'iotflow_group_generation{stage="store-timescale"} 3.0' in text


async def test_pages_of_a_worker_whose_database_is_away(worker: Worker, web: TestClient[Any, Any]) -> None:
    worker.join()
    worker.work.ready, worker.work.state, worker.work.remedy = False, Breaker.OPEN, "the password is wrong"
    assert (await get(web, "/health/live"))[0] == 200
    status, body = await get(web, "/health/ready")
    assert status == 503
    assert not body["ready"]
    assert body["reasons"] == ["storing needs a person"]
    assert body["breaker"] == "open"
    assert body["remedy"] == "the password is wrong"
    assert worker.telemetry.value(READY) == 0
    assert worker.telemetry.value(SINK_UP) == 0


async def test_pages_of_a_worker_that_is_given_up(worker: Worker, web: TestClient[Any, Any]) -> None:
    worker.join()
    worker.watchdog.look(replace(GOOD, frozen=("decoded/1",)))
    status, body = await get(web, "/health/live")
    assert (status, body["status"]) == (503, "dead")
    assert "decoded/1" in body["fault"]
    status, body = await get(web, "/health/ready")
    assert status == 503
    assert len(body["reasons"]) == 1


async def test_a_topic_that_is_not_read_yet_is_named(worker: Worker) -> None:
    worker.join()
    worker.parts.feeds = [SimpleNamespace(topic="rules", ready=False), SimpleNamespace(topic="registry", ready=True)]
    assert readiness(health.refresh(worker)) == ["the topic rules has not been read yet"]
    assert worker.telemetry.value(READY) == 0


@pytest.mark.parametrize("worker", ["decode"], indirect=True)
async def test_a_decode_worker_has_no_breaker(worker: Worker) -> None:
    worker.join()
    worker.parts = SimpleNamespace(work=SimpleNamespace(ceiling=Ceiling(), ready=True), feeds=[])
    assert health.refresh(worker).breaker is Breaker.CLOSED
    assert worker.telemetry.value(READY) == 1


async def test_watching_says_what_is_wrong_and_leaves(worker: Worker, caplog: pytest.LogCaptureFixture) -> None:
    worker.join()
    left: list[str] = []
    task = asyncio.create_task(health.watch(worker, lambda: left.append("gone"), interval=0.01))
    await asyncio.sleep(0.1)
    assert worker.telemetry.value(READY) == 1
    assert not left
    worker.watchdog = Watchdog(60.0, clock=count(0, 5).__next__)
    fetcher: Any = worker.app._fetcher
    fetcher._shutdown.set()
    with caplog.at_level(logging.CRITICAL, "app.health"):
        async with asyncio.timeout(5):
            await task
    assert left == ["gone"]
    assert worker.telemetry.value(READY) == 0
    assert caplog.records[-1].fault.startswith("the loop that takes records ended")  # type: ignore[attr-defined]


@pytest.mark.parametrize(("answers", "fault"), [(True, True), (False, False)])
def test_a_commit_that_hangs_is_a_fault_only_while_the_broker_answers(*, answers: bool, fault: bool) -> None:
    """One commit under way for twice the rebalance time-out ends the worker; a new one counts anew."""
    times = iter(float(number) for number in range(0, 1000, 5))
    dog = Watchdog(15, clock=lambda: next(times))
    for since in (1.0, 1.0, 1.0, 2.0, 2.0, 2.0):
        assert not dog.look(Snapshot(committing_since=since, broker_answers=answers))
    for _ in range(8):
        dog.look(Snapshot(committing_since=2.0, broker_answers=answers))
    assert fault is ("commit" in dog.verdict)
