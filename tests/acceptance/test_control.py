"""`iotflow flush | stop | resume | delete | status` as an operator uses them, on real workers and real stores."""

import asyncio
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from sinks.base import Selection
from tests.acceptance.test_pipeline import over
from tests.lab.apps import until
from tests.lab.pipeline import ROOT, Pipeline
from tests.lab.stores import StoreLab


async def command(p: Pipeline, *arguments: str, code: int = 0) -> dict[str, Any]:
    """An `iotflow` command with --json, and what it prints; its exit code is what it should be."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from app.cli import main; main()", *arguments, "--json",
        cwd=ROOT, env=p.env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    async with asyncio.timeout(120):
        output, complaint = await process.communicate()
    assert process.returncode == code, (output, complaint)
    found: dict[str, Any] = json.loads(output)
    return found


async def workers(p: Pipeline) -> dict[str, dict[str, Any]]:
    """What the live workers say of themselves, by stage; each stage has one."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from app.cli import main; main()", "status", "--json",
        cwd=ROOT, env=p.env, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    return {each["stage"]: each for each in json.loads(output)["workers"] if each["alive"]}


async def devices(lab: StoreLab) -> dict[str, int]:
    """How many readings are in a store of each device."""
    found: dict[str, int] = {}
    async with lab.opened() as sink:
        async for reading in sink.scan(Selection(measurement="telemetry")):
            found[reading.device_id] = found.get(reading.device_id, 0) + 1
    return found


async def stored(lab: StoreLab) -> int:
    """How many readings are in a store."""
    return sum((await devices(lab)).values())


def said(answers: Mapping[str, Any]) -> list[str]:
    return [each["detail"] for each in answers["answers"]]


async def test_a_flush_stores_what_waits_for_its_batch(kafka_servers: str, lab: StoreLab, tmp_path: Path) -> None:
    """With a batch time of an hour nothing is stored, until a flush is answered: then all of it is."""
    env = over([lab], **{f"{lab.prefix}_BATCH_TIMEOUT": "3600"})
    async with Pipeline(kafka_servers, env, tmp_path) as p:
        await p.started_all()
        sent = await p.simulate(700, bad=0)
        await p.settled(stages=["decode"])

        async def held() -> bool:
            return bool((await workers(p))[lab.stage]["counters"]["held"] == sent["good"])

        await until(held)
        assert await stored(lab) == 0

        assert said(await command(p, "flush", lab.stage)) == [f"all {sent['good']} records that it held are done"]
        assert await stored(lab) == sent["good"]
        assert said(await command(p, "flush", lab.stage)) == ["it held nothing"]
        await p.settled()
        await p.check()


async def test_a_stop_stops_and_a_resume_goes_on(kafka_servers: str, lab: StoreLab, tmp_path: Path) -> None:
    """The store's worker is unready and alive and its lag grows, while decode goes on; nothing is lost in the end."""
    async with Pipeline(kafka_servers, over([lab]), tmp_path) as p:
        started = await p.started_all()
        storing = started[lab.stage]
        await p.simulate(1000)
        await p.settled()
        before = await stored(lab)

        assert (await command(p, "stop", lab.stage))["ok"]
        await p.simulate(3000, seed="2", prefix="later")
        await p.settled(stages=["decode"])
        assert await p.lag(lab.stage) > 2500
        assert await stored(lab) == before
        assert not storing.ready()
        assert storing.get("/health/live")[0] == 200
        assert started["decode"].ready()
        status = await command(p, "status", code=1)
        assert [line.partition(": ")[2] for line in status["problems"]] == ["intake is stopped, as asked"]
        assert (await workers(p))[lab.stage]["intake"] == "stopped"
        (refused,) = said(await command(p, "flush", lab.stage, code=1))
        assert f"iotflow resume {lab.stage}" in refused

        assert said(await command(p, "resume", lab.stage)) == ["intake goes on"]
        await p.settled()
        await p.check()
        await until(storing.ready)
        assert (await workers(p))[lab.stage]["intake"] == "running"
        assert said(await command(p, "resume", lab.stage)) == ["intake was not stopped"]


async def test_every_stage_can_be_stopped_at_once(kafka_servers: str, labs: Sequence[StoreLab], tmp_path: Path) -> None:
    """Decode too: then nothing moves, until all are resumed."""
    async with Pipeline(kafka_servers, over(labs), tmp_path) as p:
        await p.started_all()
        stopped = await command(p, "stop", "--all")
        assert {each["stage"] for each in stopped["answers"]} == {*p.stages}
        await p.simulate(2000)
        await asyncio.sleep(2)
        assert await p.lag("decode") == 2000
        assert {each["intake"] for each in (await workers(p)).values()} == {"stopped"}

        assert (await command(p, "resume", "--all"))["ok"]
        await p.settled()
        await p.check()
        assert (await command(p, "flush", "--all"))["ok"]


async def test_a_stop_ends_with_its_worker(kafka_servers: str, timescale: StoreLab, tmp_path: Path) -> None:
    """A rebalance does not end it; a new worker does not know of it, and takes over where the old one was."""
    async with Pipeline(kafka_servers, over([timescale]), tmp_path) as p:
        first = (await p.started_all())[timescale.stage]
        assert (await command(p, "stop", timescale.stage))["ok"]
        await p.simulate(2000)
        await p.settled(stages=["decode"])
        second = await p.started(timescale.stage)
        await asyncio.sleep(2)
        assert not first.ready()
        assert await p.lag(timescale.stage) > 0
        assert await first.terminate() == 0
        await p.settled()
        await p.check()
        assert second.ready()
        assert (await workers(p)).keys() == {*p.stages}
        assert len((await command(p, "status"))["workers"]) == 2  # the first one said goodbye


async def test_a_deleted_device_is_gone_from_every_store(
    kafka_servers: str, labs: Sequence[StoreLab], tmp_path: Path
) -> None:
    """And nobody else's readings; the workers say who did it, how much it was, and what is still to come."""
    async with Pipeline(kafka_servers, over(labs), tmp_path) as p:
        started = await p.started_all()
        second = await p.started(p.storing[0])
        await p.simulate(3000, devices="12")
        await p.settled()
        before = {lab.name: await devices(lab) for lab in labs}
        gone = sorted(before[labs[0].name])[3]

        deleted = await command(p, "delete", "device", gone, "--yes")
        assert {each["stage"] for each in deleted["answers"]} == {*p.storing}
        mine = [each for each in deleted["answers"] if each["mine"]]
        assert sorted(each["stage"] for each in mine) == sorted(p.storing)
        assert len(deleted["answers"]) == len(mine) + 1  # one store has two workers
        assert all("values deleted" in each["detail"] for each in mine)
        for lab in labs:
            expected = {device: count for device, count in before[lab.name].items() if device != gone}
            assert await devices(lab) == expected
        logs = "".join(worker.log for worker in (*started.values(), second))
        audit = [json.loads(line) for line in logs.splitlines() if "a request was answered" in line]
        assert sorted(each["stage"] for each in audit if each["level"] == "WARNING") == sorted(p.storing)
        assert all(each["device"] == gone and "@" in each["asked_by"] for each in audit)

        again = await command(p, "delete", "device", gone, "--yes")
        assert all(each["detail"].startswith("nothing was stored of it") for each in again["answers"] if each["mine"])

        # Of a store whose workers are gone the rest is done, and the command says whose is not.
        away = p.storing[-1]
        assert await started[away].terminate() == 0
        other = sorted(before[labs[0].name])[4]
        failed = await command(p, "delete", "device", other, "--yes", code=1)
        assert [problem.partition(":")[0] for problem in failed["problems"]] == [away]
        for lab in labs:
            assert (other in await devices(lab)) is (lab.stage == away)


async def test_a_store_that_is_away_is_named_when_a_device_is_deleted(
    kafka_servers: str, lab: StoreLab, tmp_path: Path
) -> None:
    """Nothing is deleted there, and the command does not wait for it for ever."""
    async with Pipeline(kafka_servers, over([lab]), tmp_path) as p:
        worker = (await p.started_all())[lab.stage]
        await p.simulate(300, devices="3")
        await p.settled()
        device = next(iter(await devices(lab)))
        await asyncio.to_thread(lab.server.kill)
        sending = asyncio.create_task(p.simulate(300, seed="2", devices="3", prefix="later"))
        await until(lambda: not worker.ready())
        failed = await command(p, "delete", "device", device, "--yes", "--timeout", "10", code=1)
        assert not failed["ok"]
        assert len(failed["problems"]) == 1
        await asyncio.to_thread(lab.server.start)
        await sending
        await p.settled()
        await p.check()
        assert "values deleted" in said(await command(p, "delete", "device", device, "--yes"))[0]
        assert device not in await devices(lab)


@pytest.mark.parametrize("how", ["resume", "restart"])
async def test_work_goes_on_after_the_ceiling(
    kafka_servers: str, timescale: StoreLab, tmp_path: Path, how: str
) -> None:
    """When most records were refused, intake is stopped until somebody resumes it; no record is lost."""
    ceiling = {"IOTFLOW_CEILING_WINDOW": "500", "IOTFLOW_CEILING_DEVICES": "5", "IOTFLOW_CHUNK_RECORDS": "50"}
    async with Pipeline(kafka_servers, over([timescale], **ceiling), tmp_path) as p:
        decode = (await p.started_all())["decode"]
        await p.simulate(700, bad=1.0)
        await until(lambda: not decode.ready())
        said_ = (await workers(p))["decode"]
        assert said_["health"]["ceiling"]
        assert "most records are refused" in said_["reasons"][0]
        await p.simulate(3000, seed="2", bad=0, prefix="good")
        await asyncio.sleep(2)
        assert await p.lag("decode") >= 3000

        if how == "resume":
            assert said(await command(p, "resume", "decode")) == ["intake goes on"]
        else:
            await decode.kill()
            await p.started("decode")
        await p.settled()
        report = await p.check()
        assert report.letters.expected == 700
