"""Dead letters as an operator works them: once the cause is mended, every store is as if nothing had ever failed."""

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from app import check
from schemas import datapoints, wire
from schemas.datapoints import DataPoints, encode
from schemas.dialects import Meta, policy_of, setup_of, speaker
from schemas.partition import partition_of
from schemas.reading import Reading
from sinks import registry
from sinks.base import Selection
from tests.lab.apps import until
from tests.lab.pipeline import ROOT, Pipeline
from tests.lab.stores import StoreLab

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
Sent = list[tuple[str, bytes]]


def over(labs: Sequence[StoreLab]) -> dict[str, str]:
    """The variables of a pipeline that stores to these."""
    merged = {name: value for lab in labs for name, value in lab.env.items()}
    return {**merged, "STORES": ",".join(lab.name for lab in labs)}


class Plant(Pipeline):
    """A pipeline of controllers whose pins a registry explains, or not yet."""

    def __init__(self, servers: str, stores: Mapping[str, str], folder: Path) -> None:
        super().__init__(servers, stores, folder, dialect="iot-gateway")

    def file(self, controllers: Sequence[int]) -> Path:
        """A registry of these controllers."""
        point = {"label": "Temperature", "encoding": "Int16", "decimals": 2, "unit": "°C"}
        path = self.folder / "registry.yaml"
        path.write_text(json.dumps({"controllers": {f"{each:012x}": {"1/1": [point]} for each in controllers}}))
        return path

    async def say(self, said: Sequence[tuple[int, int, int]]) -> list[Reading]:
        """Each controller says a value at a minute; what that means to whoever knows them all."""
        points = DataPoints()
        file = json.loads(self.file(sorted({controller for controller, _, _ in said})).read_text())
        for id_, entry in datapoints.parse(file).items():
            points.put(id_, encode(entry))
        setup = setup_of(policy_of("iot-gateway"), points)
        speak = speaker("iot-gateway")
        readings: list[Reading] = []
        async with AIOKafkaProducer(
            bootstrap_servers=self.env["KAFKA_BOOTSTRAP_SERVERS"], linger_ms=5, max_batch_size=128 * 1024
        ) as producer:
            sends = []
            for controller, minute, value in said:
                moment = (START + timedelta(minutes=minute)).isoformat()
                payload = json.dumps({"data": value.to_bytes(2).hex(" "), "timestamp": moment}).encode()
                headers = [("original_topic", f"tele/f2-{controller:012x}/sensor-mode/1/sensor-1".encode())]
                key = f"{controller:012x}".encode()
                sends.append(await producer.send(self.raw, payload, key, headers=headers))
                (reading,) = speak(payload, Meta(self.raw, key, headers, time.time_ns() // 1_000_000, setup))
                assert isinstance(reading, Reading)
                readings.append(reading)
            await asyncio.gather(*sends)
        return readings

    async def dlq(self, *arguments: str, code: int = 0) -> Any:
        """`iotflow dlq` to its end."""
        process = await self.start_dlq(*arguments)
        output, complaint = await process.communicate()
        assert process.returncode == code, (output, complaint)
        return [json.loads(line) for line in output.splitlines()] if arguments[0] == "ls" else json.loads(output)

    async def start_dlq(self, *arguments: str) -> asyncio.subprocess.Process:
        """Begin `iotflow dlq`."""
        return await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from app.cli import main; main()", "dlq", *arguments, "--json",
            cwd=ROOT, env=self.env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def holds(self, readings: Sequence[Reading]) -> None:
        """Every store holds exactly what it would of these, said in this order: of one place the last one counts."""
        for name in self.settings.stores:
            sink = registry.load()[name].Sink(self.settings.sinks[name], self.settings.types)
            await sink.open()
            try:
                wanted = {place(kept): kept for each in readings if (kept := sink.kept(each)) is not None}
                stored = [
                    reading
                    for measurement in sorted({each.measurement for each in readings})  # bookkeeping has its own
                    async for reading in sink.scan(Selection(measurement=measurement))
                ]
            finally:
                await sink.close()
            found = {place(reading): reading for reading in stored}
            assert len(stored) == len(found), name
            assert found.keys() == wanted.keys(), name
            assert [each for at, each in found.items() if each != wanted[at]] == [], name


def place(reading: Reading) -> tuple[Any, ...]:
    return reading.measurement, reading.device_id, reading.channel, reading.time


async def test_unknown_devices_are_stored_once_somebody_has_explained_them(
    kafka_servers: str, labs: list[StoreLab], tmp_path: Path
) -> None:
    """Their letters are sent again by one who is killed half-way and begins anew; corrections stay the last word."""
    async with Plant(kafka_servers, over(labs), tmp_path) as p:
        workers = await p.started_all()
        await p.run("registry", "apply", str(p.file(range(5))), "--json")
        await until(lambda: workers["decode"].metric("iotflow_registry_entries") == 5)
        said = [(controller, minute, 100 * controller + minute) for minute in range(60) for controller in range(10)]
        said += [(controller, minute, 7777) for minute in range(0, 60, 7) for controller in range(3, 8)]
        readings = await p.say(said)
        await p.settled()
        unknown = [each for each in said if each[0] >= 5]
        listed = await p.dlq("ls", "--limit", "0")
        assert {each["reason"] for each in listed} == {"unknown_device"}
        assert len(listed) == len(unknown)
        assert len(await p.dlq("ls", "--device", f"{5:012x}", "--limit", "0")) == sum(each[0] == 5 for each in said)

        await p.run("registry", "apply", str(p.file(range(10))), "--json")
        await until(lambda: workers["decode"].metric("iotflow_registry_entries") == 10)
        killed = await p.start_dlq("replay", "--rate", "50/s")
        await until(lambda: sent_again(p, 51), 60)  # so the first fifty are marked
        killed.send_signal(signal.SIGKILL)
        await killed.communicate()
        left = len(await p.dlq("ls", "--limit", "0"))
        assert 0 < left < len(unknown)
        assert (await p.dlq("replay"))["letters"] == left
        await p.settled()

        await p.holds(readings)
        assert await p.dlq("ls") == []
        assert len(await p.letters()) == len(unknown)


async def sent_again(p: Pipeline, count: int) -> bool:
    records = await check.tail(p.settings, p.raw)
    return sum(bool(record.headers) and record.headers[0][0] == "iotflow-target" for record in records) >= count


async def test_what_fails_again_and_again_comes_to_an_end(kafka_servers: str, tmp_path: Path) -> None:
    """A letter that is sent again before its cause is mended is the same letter, open, and one attempt older."""
    async with Plant(kafka_servers, {}, tmp_path) as p:
        worker = await p.started("decode")
        await p.say([(1, minute, 5) for minute in range(3)])
        for attempt in range(1, 4):
            await p.settled(stages=["decode"])
            listed = await p.dlq("ls")
            assert len(listed) == 3
            assert {(each["attempt"], each["replays"]) for each in listed} == {(attempt, attempt - 1)}
            if attempt < 3:
                assert (await p.dlq("replay", "--max-attempts", "3"))["letters"] == 3
        left = await p.dlq("replay", "--max-attempts", "3", code=3)
        assert (left["records"], left["skipped"]["attempts"]["letters"]) == (0, 3)
        assert worker.metric("iotflow_dead_letters_total") == 9


async def test_what_one_store_refused_is_sent_to_it_alone(
    kafka_servers: str, labs: list[StoreLab], tmp_path: Path
) -> None:
    """One store refuses what the others take; once it is mended, it alone takes what is sent again."""
    refusing: Any = next(lab for lab in labs if lab.name == "timescale")
    async with Plant(kafka_servers, over(labs), tmp_path) as p:
        readings = [
            Reading("plain", f"device-{number % 10}", START + timedelta(seconds=number), {"state": "ok"})
            for number in range(200)
        ]
        bad = [refusing.poisoned(each) for each in readings[::10]]
        readings = [bad[number // 10] if number % 10 == 0 else each for number, each in enumerate(readings)]
        await refusing.refuse(readings)
        workers = await p.started_all(p.storing)
        await store(p, readings)
        await p.settled(stages=p.storing)
        listed = await p.dlq("ls", "--stage", refusing.stage)
        assert len(listed) == len(bad) == len(await p.dlq("ls"))

        connection = await refusing.connect()
        found = await connection.fetch(
            "SELECT conname, conrelid::regclass::text AS name FROM pg_constraint "
            "WHERE contype = 'c' AND pg_get_constraintdef(oid) LIKE '%poison%'"
        )
        for each in found:
            await connection.execute(f'ALTER TABLE {each["name"]} DROP CONSTRAINT "{each["conname"]}"')
        await connection.close()
        assert (await p.dlq("replay"))["letters"] == len(bad)
        await p.settled(stages=p.storing)

        await p.holds(readings)
        skipped = {stage: worker.metric("iotflow_skipped_total") for stage, worker in workers.items()}
        assert skipped == {stage: 0 if stage == refusing.stage else len(bad) for stage in p.storing}
        assert await p.dlq("ls") == []


async def store(p: Pipeline, readings: Sequence[Reading]) -> None:
    """Put readings on the decoded topic, as decode does."""
    count = p.settings.topics.partitions
    async with AIOKafkaProducer(bootstrap_servers=p.env["KAFKA_BOOTSTRAP_SERVERS"]) as producer:
        for number, each in enumerate(readings):
            await producer.send_and_wait(
                p.settings.topics.decoded, wire.write(each), each.device_id.encode(),
                partition=partition_of(each.device_id, count),
                headers=wire.headers(b"raw/0/%d/0" % number, time.time_ns() // 1_000_000),
            )  # fmt: skip


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_a_hundred_thousand_letters(kafka_servers: str, labs: list[StoreLab], tmp_path: Path) -> None:
    """All of it refused, explained, and sent again: every store equals one that never failed."""
    async with Plant(kafka_servers, over(labs), tmp_path) as p:
        workers = await p.started_all()
        readings = await p.say(
            [(controller, minute, minute % 9000) for minute in range(500) for controller in range(200)]
        )
        await p.settled(300)
        await p.run("registry", "apply", str(p.file(range(200))), "--json")
        await until(lambda: workers["decode"].metric("iotflow_registry_entries") == 200)
        started, used = time.monotonic(), os.times()
        done = await p.dlq("replay")
        seconds, now = time.monotonic() - started, os.times()
        assert (done["letters"], done["records"]) == (100_000, 100_000)
        cpu = now.children_user + now.children_system - used.children_user - used.children_system
        print(f"100,000 letters sent again in {seconds:.1f} s, {cpu:.1f} s of CPU")
        await p.settled(300)
        print(f"and all is stored after {time.monotonic() - started:.1f} s")

        await p.holds(readings)
        assert await p.dlq("ls") == []
