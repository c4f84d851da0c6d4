"""The registry of data points as an operator lives with it: workers follow its topic, and no restart is needed."""

import asyncio
import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from app import check
from app.registry import feed
from app.telemetry import Telemetry
from deploy.local.ports import choose
from schemas import wire
from schemas.datapoints import DataPoints
from schemas.reading import Reading
from tests.lab.apps import until
from tests.lab.pipeline import ROOT, Pipeline, Process

MAC = "e4fd45f654be"
ID = f"{MAC}/1/1"
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
#: 0x0960 is 2400.
DATA = "09 60"


class Gateway(Pipeline):
    """A pipeline of decode alone, whose raw topic speaks `iot-gateway`, and what its operator and its devices do."""

    def __init__(self, servers: str, folder: Path, **more: str) -> None:
        super().__init__(servers, {}, folder, dialect="iot-gateway", **more)
        self.sent = 0

    async def produce(self, topic: str, key: bytes, value: bytes | None, *headers: tuple[str, bytes]) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.env["KAFKA_BOOTSTRAP_SERVERS"]) as producer:
            await producer.send_and_wait(topic, value, key, headers=list(headers))

    async def say(self) -> datetime:
        """One message as a bridge passes it on whole: its topic is in a header. Its time is told."""
        self.sent += 1
        time = START + timedelta(minutes=self.sent)
        value = json.dumps({"data": DATA, "timestamp": time.isoformat()}).encode()
        await self.produce(
            self.raw, b"any", value, ("original_topic", f"tele/f2-{MAC}/sensor-mode/1/sensor-1".encode())
        )
        return time

    async def readings(self) -> dict[datetime, Reading]:
        records = await check.tail(self.settings, self.settings.topics.decoded)
        return {reading.time: reading for reading in (wire.read(record.value) for record in records)}

    async def becomes(self, time: datetime) -> dict[str, Any] | str:
        """The values of what was said at a time, or why it is a dead letter; waits until it is either."""

        async def outcome() -> Any:
            reading = (await self.readings()).get(time)
            if reading is not None:
                return [reading.values]
            for letter in await self.letters():
                if time.isoformat().encode() in letter.value:
                    return [dict(letter.headers)["iotflow-dlq-reason"].decode()]
            return None

        found: list[Any] = []

        async def settled() -> bool:
            found[:] = await outcome() or []
            return bool(found)

        await until(settled)
        return found[0]

    async def said(self) -> dict[str, Any] | str:
        """What the next message becomes."""
        return await self.becomes(await self.say())

    async def later(self, expected: dict[str, Any] | str) -> None:
        """Wait until messages become this: a change on the registry's topic reaches a worker a moment later."""

        async def so() -> bool:
            return await self.said() == expected

        await until(so)

    async def registry(self, *arguments: str, code: int = 0) -> Any:
        """Run `iotflow registry` with `--json`; its exit code is what it should be."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from app.cli import main; main()", "registry", *arguments, "--json",
            cwd=ROOT, env=self.env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            output, complaint = await process.communicate()
        assert process.returncode == code, (output, complaint)
        return json.loads(output) if output else complaint.decode()

    def file(self, name: str = "registry", *, decimals: int | None = 2, others: int = 0) -> str:
        """A file with an entry for the device, if it has `decimals`, and for other devices."""
        controllers: dict[str, Any] = {}
        if decimals is not None:
            point = {"label": "Temperature", "encoding": "Int16", "decimals": decimals, "unit": "°C"}
            controllers["E4:FD:45:F6:54:BE"] = {"1/1": {"name": "air", "points": [point]}}
        for number in range(others):
            controllers[f"{number:012x}"] = {"2/2": [{"label": "State", "encoding": "Boolean"}]}
        path = self.folder / f"{name}.yaml"
        path.write_text(json.dumps({"controllers": controllers}))
        return str(path)


def entries(worker: Process, source: str) -> float:
    return worker.metrics()[f"iotflow_registry_entries{{source={source},stage=decode}}"]


async def test_what_is_applied_holds_without_a_restart(kafka_servers: str, tmp_path: Path) -> None:
    """Unknown, known, changed, spoiled and removed again, while one worker runs; its letters can be played again."""
    async with Gateway(kafka_servers, tmp_path) as p:
        worker = await p.started("decode")
        first = await p.say()
        assert await p.becomes(first) == "unknown_device"

        assert await p.registry("apply", p.file(), "--dry-run", code=2) == changes(added=[ID])
        assert await p.registry("apply", p.file()) == changes(added=[ID])
        await until(lambda: entries(worker, "topic") == 1)
        assert await p.said() == {"Temperature": 24.0}

        (letter,) = await p.letters()
        given = dict(letter.headers)
        prefix = "iotflow-orig-h-"
        headers = [(name.removeprefix(prefix), value) for name, value in letter.headers if name.startswith(prefix)]
        await p.produce(p.raw, given["iotflow-orig-key"], letter.value, *headers)
        await until(lambda: decoded(p, first))
        reading = (await p.readings())[first]
        assert (reading.device_id, reading.values, reading.units) == (
            f"f2-{MAC}", {"Temperature": 24.0}, {"Temperature": "°C"},
        )  # fmt: skip

        assert await p.registry("apply", p.file(decimals=1)) == changes(changed=[ID])
        await p.later({"Temperature": 240.0})
        assert await p.registry("apply", p.file(decimals=1), "--dry-run") == changes(unchanged=1)
        assert await p.registry("apply", p.file(decimals=1)) == changes(unchanged=1)
        assert len(await check.tail(p.settings, p.settings.topics.registry)) == 2

        await p.produce(p.settings.topics.registry, ID.encode(), b'{"points": [{"label": "x", "encoding": "Int17"}]}')
        await until(lambda: worker.metric("iotflow_registry_refused_total") == 1)
        assert await p.said() == {"Temperature": 240.0}
        assert "Int17" in worker.log

        assert await p.registry("apply", p.file(decimals=None, others=1)) == changes(
            added=["000000000000/2/2"], kept=[ID]
        )
        assert await p.registry("apply", p.file(decimals=None, others=1), "--prune") == changes(
            removed=[ID], unchanged=1
        )
        await p.later("unknown_device")
        assert len(await p.letters()) == 2
        assert await worker.terminate() == 0


async def decoded(p: Gateway, time: datetime) -> bool:
    return time in await p.readings()


def changes(
    *,
    added: Sequence[str] = (),
    changed: Sequence[str] = (),
    removed: Sequence[str] = (),
    kept: Sequence[str] = (),
    unchanged: int = 0,
) -> dict[str, Any]:
    return {
        "added": list(added),
        "changed": list(changed),
        "removed": list(removed),
        "kept": list(kept),
        "unchanged": unchanged,
    }


async def test_a_worker_reads_the_whole_topic_before_it_decodes(kafka_servers: str, tmp_path: Path) -> None:
    """Messages that wait when it starts are decoded by what stands at the end of a long topic."""
    async with Gateway(kafka_servers, tmp_path) as p:
        await p.registry("apply", p.file(decimals=0, others=3000))
        await p.registry("apply", p.file(decimals=2))
        waiting = [await p.say() for _ in range(3)]
        for _ in range(2):
            worker = await p.started("decode")
            assert [await p.becomes(time) for time in waiting] == [{"Temperature": 24.0}] * 3
            assert entries(worker, "topic") == 3001
            assert await worker.terminate() == 0
            waiting = [await p.say() for _ in range(3)]
        assert await p.letters() == []


async def test_the_topic_wins_over_the_file(kafka_servers: str, tmp_path: Path) -> None:
    """And without it the file holds."""
    async with Gateway(kafka_servers, tmp_path) as p:
        worker = await p.started("decode", IOTFLOW_REGISTRY=p.file("own", decimals=0))
        assert entries(worker, "file") == 1
        assert await p.said() == {"Temperature": 2400.0}

        await p.registry("apply", p.file())
        await p.later({"Temperature": 24.0})
        assert (entries(worker, "file"), entries(worker, "topic")) == (0, 1)

        await p.registry("apply", p.file("empty", decimals=None), "--prune")
        await p.later({"Temperature": 2400.0})
        assert await p.letters() == []


async def test_a_wrong_file_ends_the_worker_and_every_mistake_is_named(kafka_servers: str, tmp_path: Path) -> None:
    """It says the file, the places and what is wrong, and exits with 78."""
    file = tmp_path / "wrong.yaml"
    file.write_text('controllers:\n  "nowhere":\n    1/1: []\n  "*":\n    1/2: [{label: a, encoding: Int17}]\n')
    p = Gateway(kafka_servers, tmp_path)
    worker = await p.start("decode", IOTFLOW_REGISTRY=str(file))
    async with asyncio.timeout(30):
        assert await worker.process.wait() == 78
    lines = [line for line in worker.log.splitlines() if f"{file}: controllers." in line]
    assert [word for word in ("nowhere", "1/1", "Int17") if not any(word in line for line in lines)] == []

    said = await p.registry("apply", str(file), code=1)
    assert "Int17" in said


#: A worker whose registry lies where nobody is, while everything else is there.
AWAY = """
from app.broadcast import Broadcast
from app.main import app

topic = app.runtime.settings.topics.registry
app.runtime.parts.feeds = [Broadcast({"bootstrap_servers": "127.0.0.1:1"}, topic, lambda key, value: None)]
"""


async def test_a_worker_that_cannot_read_the_registry_is_not_ready_and_can_be_stopped(
    kafka_servers: str, tmp_path: Path
) -> None:
    """It waits, says for what, does not begin to work, and a stop needs no force."""
    (tmp_path / "away.py").write_text(AWAY)
    port = choose(21_000 + os.getpid() % 1000)
    async with Gateway(kafka_servers, tmp_path) as p:
        await p.say()
        env = {**p.env, "IOTFLOW_STAGE": "decode", "IOTFLOW_WEB_PORT": str(port), "PYTHONPATH": f"{tmp_path}:{ROOT}"}
        with (tmp_path / f"decode-{port}.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "faust", "-A", "away", "-L", "uvloop", "--quiet", "worker",
                cwd=tmp_path, env=env, stdout=log, stderr=log,
            )  # fmt: skip
        worker = Process(p, "decode", port, process)
        p.processes.append(worker)
        await until(lambda: "a topic cannot be read" in worker.log)
        status, page = worker.get("/health/ready")
        assert status == 503
        assert f"the topic {p.settings.topics.registry} has not been read yet" in json.loads(page)["reasons"]
        assert worker.get("/health/live")[0] == 200

        assert await worker.terminate() == 0
        assert "cut short" not in worker.log
        assert "worker failed" not in worker.log
        assert (await p.readings(), await p.letters()) == ({}, [])


async def test_a_feed_tells_how_many_there_are_and_where_from(kafka_servers: str, tmp_path: Path) -> None:
    """Keys in another spelling are refused, so that one pin never has two; a tombstone for such a key is not."""
    async with Gateway(kafka_servers, tmp_path) as p:
        name, value = p.settings.topics.registry, b'[{"label": "State", "encoding": "Boolean"}]'
        for key in (ID.encode(), b"*/1/2", b"E4FD45F654BE/1/3", b"\xff"):
            await p.produce(name, key, value)
        await p.produce(name, b"E4FD45F654BE/1/1", None)
        points, telemetry = DataPoints(), Telemetry("decode")
        following = feed(p.settings, points, telemetry)
        assert 'iotflow_registry_stale{stage="decode"} 1.0' in telemetry.render()[0].decode()
        task = asyncio.create_task(following.run())
        await following.read()
        task.cancel()
        await asyncio.wait({task})

        assert sorted(points.entries()) == ["*/1/2", ID]
        assert following.refused == 2
        text = telemetry.render()[0].decode()
        assert 'iotflow_registry_entries{source="topic",stage="decode"} 2.0' in text
        assert 'iotflow_registry_entries{source="file",stage="decode"} 0.0' in text
        assert 'iotflow_registry_refused_total{stage="decode"} 2.0' in text
        assert 'iotflow_registry_stale{stage="decode"} 0.0' in text
