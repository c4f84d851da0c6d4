"""Workers that are asked something, and who asks them, on a real broker."""

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from app import check, kafka, topics
from app.control import Control, Workers, ask, following
from app.produce import BatchProducer
from app.settings import Settings, load
from deploy.local.kafka import Kafka
from schemas import control
from schemas.control import Answer, NotMineError, RefusedError, Reply, Request, Standing, Status
from tests.lab.apps import own_topics, unique, until
from tests.lab.pipeline import PATH, ROOT

STAGE = "store-timescale"


async def well(request: Request) -> str:
    return f"did {request.action}"


async def never(request: Request) -> str:
    await asyncio.Event().wait()
    return ""


class Worker:
    """One side of control as a worker has it, and what it was asked to do."""

    def __init__(self, settings: Settings, stage: str, perform: Callable[[Request], Awaitable[str]]) -> None:
        self.performed: list[Request] = []
        self.cancelled = 0
        self.standing = Standing(ready=True, assignment={"t": [0]})
        self._perform = perform
        self.producer = BatchProducer(kafka.client_args(settings), max_message_bytes=1_000_000)
        self.control = Control(settings, stage, self.producer, self.perform, self.describe)
        self.name = self.control.worker

    async def perform(self, request: Request) -> str:
        self.performed.append(request)
        try:
            return await self._perform(request)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def describe(self) -> Standing:
        return self.standing


class Place:
    """Topics of a test's own, and the workers on them."""

    def __init__(self, servers: str) -> None:
        name = unique("control")
        self.env = {
            "PATH": PATH,
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            **own_topics(name),
            "STORES": "timescale",
            "COLUMNS": "300",
        }
        self.settings: Settings = load(self.env)

    async def create(self) -> None:
        async with kafka.admin(self.settings) as admin:
            await topics.apply(admin, await topics.plan(admin, topics.wanted(self.settings)))

    @asynccontextmanager
    async def worker(
        self, perform: Callable[[Request], Awaitable[str]] = well, stage: str = STAGE, *, polite: bool = True
    ) -> AsyncIterator[Worker]:
        """A worker that listens; at the end it says goodbye if it is polite."""
        found = Worker(self.settings, stage, perform)
        task = asyncio.create_task(found.control.run())
        try:
            await self.says(found.name, lambda status: status.listening)
            yield found
            assert not task.done()
        finally:
            if polite:
                await found.control.close()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await found.producer.stop()

    async def says(self, worker: str, so: Callable[[Status], bool]) -> None:
        """Wait until what a worker says of itself is so."""
        async with following(self.settings) as workers:
            await until(lambda: worker in workers.now and so(workers.now[worker]))

    async def ask(self, action: control.Action = "flush", stage: str = STAGE, **more: Any) -> list[Reply]:
        return (await ask(self.settings, action, stage, **{"timeout": 20, **more})).replies

    async def write(self, topic: str, *records: tuple[bytes | None, bytes | None]) -> None:
        async with AIOKafkaProducer(**kafka.client_args(self.settings)) as producer:
            for key, value in records:
                await producer.send_and_wait(topic, value, key)

    async def request(self, *requests: Request) -> None:
        """Write requests as they are."""
        await self.write(self.settings.topics.control, *((each.id.encode(), control.encode(each)) for each in requests))

    async def requests(self) -> list[Any]:
        return await check.tail(self.settings, self.settings.topics.control)

    async def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """An `iotflow` command; what it says on stdout and stderr."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from app.cli import main; main()", *arguments,
            cwd=ROOT, env=self.env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            output, complaint = await process.communicate()
        assert process.returncode == code, (output, complaint)
        return output.decode(), complaint.decode()


@pytest.fixture
async def place(kafka_servers: str) -> Place:
    found = Place(kafka_servers)
    await found.create()
    return found


def made(name: str, seconds: float = 30.0, ago: float = 0.0, **changes: Any) -> Request:
    fields: dict[str, Any] = {"action": "flush", "stage": STAGE, **changes}
    asked = control.utcnow() - timedelta(seconds=ago)
    return control.request(name, by="test", now=asked, seconds=seconds, **fields)


def said(replies: list[Reply]) -> dict[str, tuple[bool, str]]:
    return {each.worker: (each.ok, each.answer.detail if each.answer else each.why) for each in replies}


async def test_every_worker_of_the_stage_does_it_and_answers(place: Place) -> None:
    """And no other; each says so on its status, which also has how it stands."""
    async with place.worker() as one, place.worker() as two, place.worker(stage="decode") as other:
        assert said(await place.ask("flush", by="me@here")) == {
            one.name: (True, "did flush"),
            two.name: (True, "did flush"),
        }
        assert [each.by for each in (*one.performed, *two.performed)] == ["me@here"] * 2
        assert other.performed == []

        replies = await place.ask("stop", control.EVERY)
        assert {each.worker for each in replies} == {one.name, two.name, other.name}
        assert all(each.ok for each in replies)
        assert [each.action for each in other.performed] == ["stop"]
        async with following(place.settings) as workers:
            status = workers.now[one.name]
            assert [answer.detail for answer in status.answers] == ["did flush", "did stop"]
            assert (status.stage, status.assignment, status.ready) == (STAGE, {"t": [0]}, True)


async def test_a_device_is_deleted_by_the_one_who_has_it(place: Place) -> None:
    """Only stores are waited for; whose partition it is not says so, and that is no failure."""

    async def others(request: Request) -> str:
        raise NotMineError(f"{request.device} is another's")

    async with place.worker() as one, place.worker(others) as two, place.worker(never, "decode"):
        replies = await place.ask("delete", control.EVERY, device="d")
        assert said(replies) == {one.name: (True, "did delete"), two.name: (True, "d is another's")}
        assert control.problems("delete", replies, [STAGE]) == []
        (problem,) = control.problems("delete", replies, [STAGE, "store-iotdb"])
        assert problem.startswith("store-iotdb: no live worker")


async def test_what_fails_is_said_by_name(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A refusal, a fault and a cancellation of what does it; the worker goes on after each."""
    errors: list[BaseException] = [RefusedError("not now"), KeyError("x"), asyncio.CancelledError(), TimeoutError("y")]

    async def fails(request: Request) -> str:
        raise errors.pop(0)

    async with place.worker(fails) as worker:
        for text in ("not now", "KeyError: 'x'", "what does it was cancelled", "TimeoutError: y"):
            assert said(await place.ask()) == {worker.name: (False, text)}
    assert sum(record.message == "a request failed" for record in caplog.records) == 1


async def test_what_takes_too_long_is_ended_and_answered(place: Place) -> None:
    """After its time nothing is done any more; the answer says why the worker may have been so slow."""
    async with place.worker(never) as worker:
        worker.standing = Standing(ready=False, reasons=["the destination is away"])
        ((ok, why),) = said(await place.ask(timeout=1)).values()
        assert not ok
        assert "not finished in time" in why
        assert "the destination is away" in why
        assert worker.cancelled == 1


async def test_a_worker_that_comes_later_does_nothing_of_it(place: Place) -> None:
    """Neither what was answered already, nor what is still under way; nor is it waited for."""
    gate = asyncio.Event()

    async def gated(request: Request) -> str:
        await gate.wait()
        return "done"

    async with place.worker(gated) as first:
        asking = asyncio.create_task(place.ask())
        await until(lambda: first.performed)
        async with place.worker() as late:
            gate.set()
            assert said(await asking) == {first.name: (True, "done")}
            assert said(await place.ask("stop")) == {first.name: (True, "done"), late.name: (True, "did stop")}
            assert [each.action for each in late.performed] == ["stop"]


async def test_a_request_that_has_expired_is_not_done(place: Place) -> None:
    """It is answered all the same: who asked may have another idea of the time."""
    async with place.worker() as worker:
        await place.request(made("late", seconds=60, ago=90), made("good"))
        await place.says(worker.name, lambda status: len(status.answers) == 2)
        assert [each.id for each in worker.performed] == ["good"]
        async with following(place.settings) as workers:
            late = workers.now[worker.name].answers[0]
        assert (late.id, late.ok) == ("late", False)
        assert "too late" in late.detail


async def test_what_is_no_request_is_ignored(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """And said in the log; what comes after it is done, and what comes twice is done once."""
    good = made("good")
    async with place.worker() as worker:
        await place.write(
            place.settings.topics.control,
            (b"a", b"not JSON"),
            (b"b", control.encode(good)),
            (None, control.encode(good)),
            (b"c", None),
            (b"\xff", b"{}"),
            (b"d", json.dumps({**json.loads(control.encode(made("d"))), "v": 2}).encode()),
        )
        await place.request(good, good)
        await place.request(made("last"))
        await place.says(worker.name, lambda status: bool(status.answers) and status.answers[-1].id == "last")
        assert [each.id for each in worker.performed] == ["good", "last"]
    ignored = [record.__dict__["key"] for record in caplog.records if record.message == "a request is ignored"]
    assert ignored == ["'a'", "'b'", "'\ufffd'", "'d'"]


async def test_a_worker_that_dies_before_it_answers_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed, it falls silent, and is not waited for any longer; then it is dead, and not asked again."""
    monkeypatch.setattr(control, "DEAD_AFTER_S", 6.0)
    monkeypatch.setattr(control, "SAY_EVERY_S", 0.3)
    async with place.worker() as well_off:
        async with place.worker(never, polite=False) as dying:
            asking = asyncio.create_task(place.ask(timeout=120))
            await until(lambda: dying.performed)
        replies = said(await asking)
        assert replies[well_off.name] == (True, "did flush")
        ok, why = replies[dying.name]
        assert not ok
        assert "has not been heard of" in why
        assert said(await place.ask()) == {well_off.name: (True, "did flush")}
        async with following(place.settings) as workers:
            assert workers.now.keys() == {well_off.name, dying.name}
            assert not control.alive(workers.now[dying.name], control.utcnow())


async def test_a_worker_that_stops_before_it_answers_is_named(place: Place) -> None:
    """It says goodbye, so nobody waits; what it was at is given up, and it is known no more."""
    async with place.worker(never) as stopping:
        asking = asyncio.create_task(place.ask(timeout=120))
        await until(lambda: stopping.performed)
    assert stopping.cancelled == 1
    assert said(await asking) == {stopping.name: (False, "stopped before it answered")}
    async with following(place.settings) as workers:
        assert workers.now == {}


async def test_a_worker_that_does_not_answer_is_named(place: Place) -> None:
    """One that is alive and deaf, as far as one can see."""
    status = control.status(
        Standing(ready=True),
        "w",
        STAGE,
        "1",
        started=control.utcnow(),
        now=control.utcnow(),
        listening=True,
        answers=[],
    )
    await place.write(place.settings.topics.status, (b"w", control.encode(status)))
    ((ok, why),) = said(await place.ask(timeout=1)).values()
    assert not ok
    assert "did not answer within 1 s" in why


async def test_nothing_is_sent_where_nobody_is(place: Place) -> None:
    """A worker that begins later must not find it; nor is one asked that does not listen yet."""
    assert await place.ask() == []
    now = control.utcnow()
    young = control.status(Standing(ready=False), "w", STAGE, "1", started=now, now=now, listening=False, answers=[])
    await place.write(place.settings.topics.status, (b"w", control.encode(young)))
    ((ok, why),) = said(await place.ask()).values()
    assert not ok
    assert "does not listen yet" in why
    assert await place.requests() == []


async def test_a_broker_that_restarts_in_the_middle_loses_nothing(place: Place, kafka: Kafka) -> None:
    """The request is done once, and its answer arrives when the broker is back."""
    gate = asyncio.Event()

    async def gated(request: Request) -> str:
        await gate.wait()
        return "done"

    async with place.worker(gated) as worker:
        asking = asyncio.create_task(place.ask(timeout=120))
        await until(lambda: worker.performed)
        await asyncio.to_thread(kafka.stop)
        try:
            gate.set()
            await asyncio.sleep(2)
        finally:
            await asyncio.to_thread(kafka.start)
            await asyncio.to_thread(kafka.wait_ready)
        assert said(await asking) == {worker.name: (True, "done")}
        assert said(await place.ask()) == {worker.name: (True, "done")}
        assert len(worker.performed) == 2


async def test_no_answer_is_lost_among_many(place: Place) -> None:
    """More at once than one status has room for; more than can be at work are refused."""
    many = [made(f"r{number}") for number in range(100)]
    answers: dict[str, Answer] = {}

    async with following(place.settings) as workers, place.worker() as worker:
        gather(workers, worker.name, answers)
        await place.request(*many)
        await until(lambda: len(answers) == len(many))
    assert answers.keys() == {each.id for each in many}


def gather(workers: Workers, name: str, answers: dict[str, Answer]) -> None:
    """Keep every answer that a worker ever gives."""
    feed: Any = workers.feed
    apply = feed._apply

    def seeing(key: bytes, value: bytes | None) -> None:
        apply(key, value)
        if key == name.encode() and value is not None:
            answers.update({answer.id: answer for answer in workers.now[name].answers})

    feed._apply = seeing


async def test_too_many_at_work_are_refused(place: Place) -> None:
    """By an answer, as everything that is not done."""
    gate = asyncio.Event()

    async def gated(request: Request) -> str:
        await gate.wait()
        return "done"

    many = [made(f"r{number}", seconds=120) for number in range(40)]
    answers: dict[str, Answer] = {}
    async with following(place.settings) as workers, place.worker(gated) as worker:
        gather(workers, worker.name, answers)
        await place.request(*many)
        await until(lambda: len(answers) == 8)
        assert all("requests are at work already" in answer.detail for answer in answers.values())
        gate.set()
        await until(lambda: len(answers) == len(many))
        assert len(worker.performed) == sum(answer.ok for answer in answers.values()) == 32


async def test_a_change_is_said_at_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with the next turn, which would be long after this test."""
    monkeypatch.setattr(control, "SAY_EVERY_S", 3600.0)
    async with place.worker() as worker:
        worker.standing = Standing(ready=False, reasons=["x"], intake="stopped")
        await place.says(worker.name, lambda status: (status.ready, status.intake) == (False, "stopped"))
        worker.standing = Standing(ready=True)
        await place.says(worker.name, lambda status: status.ready)


async def test_nothing_disturbs_what_is_beside_it(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """A worker that cannot say how it stands says so once in its log, and goes on when it can."""
    worker = Worker(place.settings, STAGE, well)
    failing = [RuntimeError("describing fails"), None]

    def describe() -> Standing:
        if failing[0] is not None:
            raise failing[0]
        return worker.standing

    worker.control._describe = describe
    task = asyncio.create_task(worker.control.run())
    try:
        await until(lambda: any("it begins again" in record.message for record in caplog.records))
        failing[0] = None
        await place.says(worker.name, lambda status: status.ready)
        assert not task.done()
    finally:
        await worker.control.close()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await worker.producer.stop()


async def test_what_the_long_dead_said_is_taken_away(place: Place) -> None:
    """By whoever asks next; who died lately is kept to be seen."""
    for name, seconds in (("old", 3700), ("late", 600)):
        then = control.utcnow() - timedelta(seconds=seconds)
        status = control.status(
            Standing(ready=True), name, STAGE, "1", started=then, now=then, listening=True, answers=[]
        )
        await place.write(place.settings.topics.status, (name.encode(), control.encode(status)))
    assert await place.ask() == []
    async with following(place.settings) as workers:
        assert workers.now.keys() == {"late"}


async def test_a_status_that_nobody_can_read_is_named(place: Place) -> None:
    await place.write(place.settings.topics.status, (b"w", b"garbage"))
    async with following(place.settings) as workers:
        assert workers.now == {}
        assert workers.broken.keys() == {"w"}
        async with place.worker() as worker:
            assert said(await place.ask()) == {worker.name: (True, "did flush")}
    output, complaint = await place.run("status", "--json", code=1)
    assert json.loads(output)["problems"][-1].startswith("w: what it says cannot be read")
    assert complaint == ""


async def test_missing_topics_are_named(kafka_servers: str) -> None:
    place = Place(kafka_servers)
    _, complaint = await place.run("flush", STAGE, code=1)
    for name in (place.settings.topics.control, place.settings.topics.status, "iotflow topics apply"):
        assert name in complaint


async def test_the_commands_say_who_did_what(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    """As a table and as JSON; who asked is in the worker's log."""
    caplog.set_level(logging.INFO, "app.control")
    async with place.worker() as worker:
        output, complaint = await place.run("flush", STAGE)
        assert (output.split(), complaint) == ([worker.name, "done", "did", "flush"], "")
        for action in ("stop", "resume"):
            found = json.loads((await place.run(action, "--all", "--json"))[0])
            assert found["ok"]
            assert found["answers"] == [
                {
                    "worker": worker.name,
                    "stage": STAGE,
                    "ok": True,
                    "answered": True,
                    "mine": True,
                    "detail": f"did {action}",
                }
            ]
        output, _ = await place.run("delete", "device", "d [1]", "--yes")
        assert "did delete" in output
        assert worker.performed[-1].device == "d [1]"

        output, complaint = await place.run("flush", "decode", "--json", code=1)
        assert json.loads(output)["answers"] == []
        assert complaint == ""
        output, complaint = await place.run("flush", "decode", code=1)
        assert output == ""
        assert complaint.startswith("decode: no live worker")
    audit = [record.__dict__ for record in caplog.records if record.message == "a request was answered"]
    assert [(each["action"], each["device"], each["levelname"]) for each in audit] == [
        ("flush", None, "WARNING"),
        ("stop", None, "WARNING"),
        ("resume", None, "WARNING"),
        ("delete", "d [1]", "WARNING"),
    ]
    assert all(each["asked_by"].endswith(f"@{os.uname().nodename}") for each in audit)


async def test_a_failure_is_an_exit_code_and_a_name(place: Place) -> None:
    async def refuses(request: Request) -> str:
        raise RefusedError("not [now]")

    async with place.worker(refuses) as bad, place.worker() as good:
        output, complaint = await place.run("stop", STAGE, code=1)
        assert sorted(line.split()[1] for line in output.splitlines()) == ["done", "failed"]
        assert complaint == f"{bad.name}: not [now]\n"
        found = json.loads((await place.run("stop", STAGE, "--json", code=1))[0])
        assert not found["ok"]
        assert {each["worker"]: each["ok"] for each in found["answers"]} == {bad.name: False, good.name: True}


async def test_status_shows_every_worker(place: Place) -> None:
    """Ready ones, one that is stopped and one that is dead; the exit code says whether all is well."""
    async with place.worker() as one, place.worker(stage="decode") as two:
        one.standing = Standing(ready=True, assignment={"t": [0, 1, 3]}, counters=control.Counters(lag=1234))
        await place.says(one.name, lambda status: status.counters.lag == 1234)
        output, complaint = await place.run("status")
        assert complaint == ""
        assert "t 0-1,3" in output
        assert "1,234" in output

        two.standing = Standing(ready=False, reasons=["intake is stopped"], intake="stopped")
        await place.says(two.name, lambda status: status.intake == "stopped")
        then = control.utcnow() - timedelta(seconds=60)
        dead = control.status(
            Standing(ready=True), "w", "store-x", "1", started=then, now=then, listening=True, answers=[]
        )
        await place.write(place.settings.topics.status, (b"w", control.encode(dead)))
        output, complaint = await place.run("status", code=1)
        assert "stopped" in output
        assert "dead" in output
        assert f"{two.name}: intake is stopped" in complaint
        assert "store-x: its workers have been silent" in complaint
        found = json.loads((await place.run("status", "--json", code=1))[0])
        assert {each["worker"]: each["alive"] for each in found["workers"]} == {
            one.name: True,
            two.name: True,
            "w": False,
        }
        assert len(found["problems"]) == 2


async def test_status_can_be_watched(place: Place) -> None:
    """An object a line, until it is interrupted."""
    async with place.worker() as worker:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from app.cli import main; main()", "status", "--watch", "--json",
            cwd=ROOT, env=place.env, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            async with asyncio.timeout(60):
                assert json.loads(await process.stdout.readline())["workers"][0]["ready"]
                worker.standing = Standing(ready=False, reasons=["x"])
                while json.loads(await process.stdout.readline())["workers"][0]["ready"]:
                    pass
        finally:
            process.kill()
            await process.wait()
