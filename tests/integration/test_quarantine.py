"""Noisy devices on a real broker: a real decode worker holds back what is too much, and it is sent on by hand."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from app import check, kafka, quarantine, topics
from app.settings import Settings, load
from schemas import wire
from schemas.partition import partition_of
from tests.lab.apps import committed, create, own_topics, unique, until
from tests.lab.pipeline import Pipeline

ROOT = Path(__file__).parents[2]
T0 = (time.time_ns() // 1_000_000_000 - 3600) * 1000
DEVICES = [f"calm-{number:02}" for number in range(20)]
BUDGET = {
    "IOTFLOW_BUDGET": "quarantine",
    "IOTFLOW_BUDGET_RATE": "10",
    "IOTFLOW_BUDGET_BURST": "50",
    "IOTFLOW_BUDGET_SERIES": "7",
    "IOTFLOW_BUDGET_RELEASE": "5",
}


async def produce(settings: Settings, records: Sequence[tuple[str, int | None, bytes, bytes, int, Any]]) -> None:
    """Send (topic, partition, key, value, timestamp, headers), in order."""
    async with AIOKafkaProducer(**kafka.client_args(settings), linger_ms=5) as producer:
        sends = [
            await producer.send(topic, value, key, partition=partition, timestamp_ms=timestamp, headers=headers)
            for topic, partition, key, value, timestamp, headers in records
        ]
        await asyncio.gather(*sends)


async def command(settings: Settings, env: dict[str, str], *arguments: str, code: int = 0) -> Any:
    """Run `iotflow quarantine … --json` as an operator does; what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from app.cli import main; main()", "quarantine", *arguments, "--json",
        cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    assert process.returncode == code, err.decode()
    return json.loads(out)


def source(record: Any) -> bytes:
    """Where its raw record stood."""
    found = dict(record.headers)["iotflow-src"]
    assert isinstance(found, bytes)
    return found


# -- the whole way -----------------------------------------------------------------------------------------------------


class Fleet:
    """Twenty devices that send a reading a second, and one that floods."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.topics = pipeline.settings.topics
        self.sent = 0

    async def send(self, device: str, times: Sequence[int], **more: float) -> None:
        records = []
        for ms in times:
            said = {
                "device_id": device, "timestamp": datetime.fromtimestamp(ms / 1000, UTC),
                "temperature": 1.0, "humidity": 2.0, "battery": 3.0, **more,
            }  # fmt: skip
            key = device.encode()
            records.append((self.pipeline.raw, partition_of(device, 4), key, msgspec.json.encode(said), ms, None))
        await produce(self.pipeline.settings, records)
        self.sent += len(records)

    async def records(self, topic: str) -> list[Any]:
        return await check.tail(self.pipeline.settings, topic)

    async def decoded(self) -> None:
        """Wait until all that was sent stands in one of the two topics."""

        async def all_there() -> bool:
            ends = [await check.ends(self.pipeline.settings, t) for t in (self.topics.decoded, self.topics.quarantine)]
            return sum(sum(end.values()) for end in ends) >= self.sent

        await until(all_there, 60)


@pytest.mark.timeout(180)
async def test_a_flood_is_held_back_alone_and_all_of_it_can_be_sent_on(kafka_servers: str, tmp_path: Path) -> None:
    """Decoded and quarantined are all there is, each once; the others' readings are untouched."""
    async with Pipeline(kafka_servers, {}, tmp_path, **BUDGET) as pipeline:
        fleet = Fleet(pipeline)
        worker = await pipeline.started("decode")
        for device in DEVICES:
            await fleet.send(device, range(T0, T0 + 60_000, 1000))
        await fleet.send("noisy", range(T0, T0 + 20_000, 10))  # 2,000, at 100 a second
        await fleet.send("noisy", [T0 + 40_000], extra=4.0)  # silent for 20 s: released
        for number in range(3):  # five series, then seven, then nine
            await fleet.send("wide", [T0 + number], **{f"x{number}-{more}": 1.0 for more in range(2)})
        await fleet.decoded()

        decoded, held = await fleet.records(fleet.topics.decoded), await fleet.records(fleet.topics.quarantine)
        assert len({source(record) for record in (*decoded, *held)}) == len(decoded) + len(held) == fleet.sent
        assert {record.key for record in held} == {b"noisy", b"wide"}
        for device in DEVICES:
            assert sum(record.key == device.encode() for record in decoded) == 60
        flood = [record for record in held if record.key == b"noisy"]
        # The bucket of 50 lasts until 10 a second and 100 a second are 50 apart.
        assert len(flood) == 2000 - 55
        assert [(dict(one.headers)["iotflow-quarantine"], one.partition) for one in flood] == [
            (b"rate", partition_of("noisy", 4))
        ] * len(flood)
        assert [wire.read(one.value).time for one in flood] == sorted(wire.read(one.value).time for one in flood)
        assert "extra" in [wire.read(one.value) for one in decoded if one.key == b"noisy"][-1].values
        (wide,) = [record for record in held if record.key == b"wide"]
        assert dict(wide.headers)["iotflow-quarantine"] == b"series"

        events = [wire.read(record.value) for record in await fleet.records(fleet.topics.quality)]
        assert sorted((one.device_id, one.values["kind"], one.values["count"]) for one in events) == [
            ("noisy", "over_budget", 1), ("wide", "over_budget", 1),
        ]  # fmt: skip
        assert worker.metric("iotflow_over_budget_total") == len(held)
        assert worker.metrics()["iotflow_readings_total{outcome=quarantined,stage=decode}"] == len(held)

        listed = await command(pipeline.settings, pipeline.env, "ls")
        assert (listed["readings"], listed["waiting"]) == (1946, 1946)
        assert [(one["device"], one["readings"], one["reasons"]) for one in listed["devices"]] == [
            ("noisy", 1945, {"rate": 1945}), ("wide", 1, {"series": 1}),
        ]  # fmt: skip
        assert listed["devices"][0]["last"] == iso(T0 + 19_990)

        dry = await command(pipeline.settings, pipeline.env, "replay", "--dry-run")
        assert (dry["readings"], dry["devices"]) == (1946, {"noisy": 1945, "wide": 1})
        assert len(await fleet.records(fleet.topics.decoded)) == len(decoded)
        done = await command(pipeline.settings, pipeline.env, "replay")
        assert done == {**dry, "dry_run": False}
        after = (await fleet.records(fleet.topics.decoded))[:]
        assert sorted(map(source, after)) == sorted(map(source, (*decoded, *held)))
        again = [record for record in after if record.headers[0][0] == "iotflow-replay"]
        assert [as_said(one) for one in again if one.key == b"noisy"] == [as_sent(one) for one in flood]
        assert {one.partition for one in again if one.key == b"noisy"} == {partition_of("noisy", 4)}
        second = await command(pipeline.settings, pipeline.env, "replay")
        assert (second["readings"], second["left"]) == (0, 0)
        assert len(await fleet.records(fleet.topics.decoded)) == fleet.sent
        assert (await command(pipeline.settings, pipeline.env, "ls"))["waiting"] == 0


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def as_sent(record: Any) -> tuple[Any, ...]:
    return record.key, record.value, (("iotflow-replay", b"1"), *record.headers)


def as_said(record: Any) -> tuple[Any, ...]:
    return record.key, record.value, tuple(record.headers)


@pytest.mark.timeout(120)
async def test_the_default_reports_a_flood_and_holds_nothing_back(kafka_servers: str, tmp_path: Path) -> None:
    async with Pipeline(kafka_servers, {}, tmp_path, IOTFLOW_BUDGET_BURST="50") as pipeline:
        fleet = Fleet(pipeline)
        worker = await pipeline.started("decode")
        await fleet.send("noisy", range(T0, T0 + 1000))
        await fleet.decoded()
        assert len(await fleet.records(fleet.topics.decoded)) == 1000
        assert await fleet.records(fleet.topics.quarantine) == []
        (event,) = await fleet.records(fleet.topics.quality)
        assert (event.key, event.partition) == (b"noisy", partition_of("noisy", 4))
        assert worker.metric("iotflow_noisy_devices") == 1


# -- sending on --------------------------------------------------------------------------------------------------------


class Topic:
    """A quarantine of a test's own, filled by hand."""

    def __init__(self, servers: str) -> None:
        self.name = unique("q")
        self.env = {
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            "PATH": os.environ["PATH"],  # noqa: TID251  what a child process needs
            "IOTFLOW_APP_PREFIX": self.name,
            **own_topics(self.name),
        }
        self.servers = servers
        self.settings = load(self.env)
        self.topics = self.settings.topics

    async def make(self) -> None:
        for topic in (self.topics.quarantine, self.topics.decoded):
            await create(self.servers, topic)

    async def fill(self, *devices: str, start: int = 0) -> None:
        await produce(
            self.settings,
            [
                (
                    self.topics.quarantine, partition_of(device, 4), device.encode(), b"%d" % number, T0,
                    [*wire.headers(b"raw/0/%d/0" % number, T0 + number), ("iotflow-quarantine", b"rate")],
                )
                for number, device in enumerate(devices, start)
            ],
        )  # fmt: skip

    async def replay(self, glob: str = "*", **more: Any) -> quarantine.Done:
        return await quarantine.replay(self.settings, glob, **more)

    async def arrived(self) -> dict[str, list[int]]:
        """What is in the decoded topic, by device, in order."""
        found: dict[str, list[int]] = {}
        for record in await check.tail(self.settings, self.topics.decoded):
            assert [name for name, _ in record.headers] == [
                "iotflow-replay", "iotflow-v", "iotflow-src", "iotflow-ingest-ms", "iotflow-quarantine",
            ]  # fmt: skip
            assert record.partition == partition_of(record.key.decode(), 4)
            found.setdefault(record.key.decode(), []).append(int(record.value))
        return found

    async def waiting(self) -> int:
        return sum(held.waiting for held in await quarantine.survey(self.settings))


@pytest.fixture
async def topic(kafka_servers: str) -> Topic:
    made = Topic(kafka_servers)
    await made.make()
    return made


async def test_some_devices_first_and_the_rest_later_is_each_once(topic: Topic) -> None:
    devices = [f"{kind}-{number % 7}" for number in range(200) for kind in ("pump", "fan")]
    await topic.fill(*devices)
    pumps = await topic.replay("pump-*")
    assert (pumps.devices.total(), len(pumps.devices), pumps.left) == (200, 7, 200)
    assert await topic.waiting() == 200
    assert (await topic.replay("pump-*")).devices == {}
    assert (await topic.replay("*-1")).devices == {"fan-1": 29}
    await topic.fill("pump-0", "fan-1", "pump-1", start=400)
    dry = await topic.replay(dry_run=True)
    assert (dry.devices.total(), dry.left) == (174, 0)
    assert (await topic.replay("pump-1")).devices == {"pump-1": 1}
    rest = await topic.replay()
    assert rest.devices.total() == 173
    assert await topic.waiting() == 0
    sent = await topic.arrived()
    wanted: dict[str, list[int]] = {}
    for number, device in enumerate([*devices, "pump-0", "fan-1", "pump-1"]):
        wanted.setdefault(device, []).append(number)
    assert sent == wanted
    ends = {
        partition: end for partition, end in (await check.ends(topic.settings, topic.topics.quarantine)).items() if end
    }
    found = await committed(topic.servers, topic.topics.quarantine, f"{topic.name}-quarantine")
    assert {partition: found[partition] for partition in ends} == ends


async def test_one_that_is_killed_before_it_says_so_sends_a_portion_again(
    topic: Topic, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the broker has and the group does not know of is sent once more; nothing is left out."""
    await topic.fill(*["a"] * 3500)
    commit = quarantine._commit
    calls: list[int] = []

    async def fails(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KafkaError
        await commit(*arguments)

    monkeypatch.setattr(quarantine, "_commit", fails)
    with pytest.raises(KafkaError):
        await topic.replay()
    monkeypatch.undo()
    before = (await topic.arrived())["a"]
    assert (len(before), await topic.waiting()) == (2000, 2500)
    assert (await topic.replay()).devices == {"a": 2500}
    after = (await topic.arrived())["a"]
    assert after == [*range(2000), *range(1000, 3500)]


async def test_one_that_is_stopped_finishes_what_it_began_and_goes_on_later(topic: Topic) -> None:
    await topic.fill(*["a"] * 3500)
    stop = asyncio.Event()
    read: list[int] = []

    def on_sent(done: int, of: int) -> None:
        assert of == 3500
        read.append(done)
        stop.set()

    first = await topic.replay(stop=stop, on_sent=on_sent)
    assert (first.stopped, first.devices, read) == (True, {"a": 1000}, [1000])
    second = await topic.replay()
    assert (second.stopped, second.devices) == (False, {"a": 2500})
    assert (await topic.arrived())["a"] == list(range(3500))


@pytest.mark.timeout(120)
async def test_an_operator_who_interrupts_it_is_told_and_loses_nothing(topic: Topic) -> None:
    await topic.fill(*[f"d-{number % 3}" for number in range(60_000)])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from app.cli import main; main()", "quarantine", "replay", "--json",
        cwd=ROOT, env=topic.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip

    async def begun() -> bool:
        return any((await check.ends(topic.settings, topic.topics.decoded)).values())

    await until(begun, 60)
    process.send_signal(signal.SIGINT)
    out, err = await process.communicate()
    said = json.loads(out)
    assert (process.returncode, said["stopped"]) == (130, True)
    assert b"finishing what was begun" in err
    rest = await topic.replay()
    assert said["readings"] + rest.devices.total() == 60_000
    arrived = await topic.arrived()
    assert sorted(number for numbers in arrived.values() for number in numbers) == list(range(60_000))


async def test_a_topic_that_is_not_there_is_named(kafka_servers: str) -> None:
    made = Topic(kafka_servers)
    with pytest.raises(topics.TopicsError, match="run iotflow topics apply"):
        await made.replay()


async def test_a_topic_that_was_made_anew_is_sent_from_its_beginning(topic: Topic) -> None:
    await topic.fill(*["a"] * 30)
    await topic.replay()
    admin = AIOKafkaAdminClient(bootstrap_servers=topic.servers)
    await admin.start()
    try:
        await admin.delete_topics([topic.topics.quarantine])

        async def gone() -> bool:
            return topic.topics.quarantine not in await admin.list_topics()

        await until(gone)
    finally:
        await admin.close()
    await create(topic.servers, topic.topics.quarantine)
    await topic.fill(*["a"] * 5, start=100)
    assert (await topic.replay()).devices == {"a": 5}
    assert (await topic.arrived())["a"] == [*range(30), *range(100, 105)]
