"""`iotflow alarms` on a real broker, and two workers that have alarms between them."""

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app import check, kafka, topics
from app.control import Control, following
from app.produce import BatchProducer
from app.settings import Settings, load
from app.steering import Steering, Worker
from schemas import wire
from schemas.alarm import Alarm, Facts, Severity, Signal, Subject, Transition, headers, record, subject_of
from schemas.control import ANALYZE, Request, Standing
from schemas.decoding import Item
from schemas.partition import partition_of
from tables import alarms
from tests.lab.apps import own_topics, unique, until
from tests.lab.pipeline import PATH, ROOT

T0 = 1_760_000_000_000_000
PARTITIONS = 4
#: A device in each half of the partitions.
LOW = next(f"EQ{n:03}" for n in range(100) if partition_of(f"EQ{n:03}", PARTITIONS) < 2)
HIGH = next(f"EQ{n:03}" for n in range(100) if partition_of(f"EQ{n:03}", PARTITIONS) >= 2)
SMOKE = Subject("fire", LOW, "", "smoke_density", "fire-smoke")
HEAT = Subject("fire", LOW, "", "temperature", "fire-heat")
OTHER = Subject("telemetry", HIGH, "sensor-mode/1/3", "Temperature", "too [hot]|now")


class Holder:
    """A worker with the alarms of the devices of its partitions: what the stage does when it is asked, and no more."""

    def __init__(self, place: "Place", owned: set[int]) -> None:
        self.place = place
        self.stage = ANALYZE
        self.settings = place.settings
        self.producer = BatchProducer(kafka.client_args(place.settings), max_message_bytes=1_000_000)
        self.parts = SimpleNamespace(work=self)
        self.alarms: dict[str, Alarm] = {}
        self.asked: list[Request] = []
        self._owned = {(place.settings.topics.decoded, partition) for partition in owned}
        steering = Steering(cast("Worker", self))
        self._steering = steering
        self.control = Control(place.settings, ANALYZE, self.producer, self._perform, lambda: Standing(ready=True))

    def assigned(self) -> set[tuple[str, int]]:
        return self._owned

    async def _perform(self, request: Request) -> str:
        self.asked.append(request)
        return await self._steering.perform(request)

    async def signal(self, subject: Subject, severity: Severity | None, at: int = T0, **more: Any) -> None:
        signal = Signal(severity, 600, 500, f"{subject.metric} is too high")
        facts = Facts("SMOKE", 2, unit="ppm", facility_id="FAC001", **more)
        found = alarms.step(self.alarms.get(subject.key), signal, at, alarms.Policy(), replayed=False, facts=facts)
        await self._keep(subject, found)

    async def acknowledge(self, key: str, by: str, at_us: int) -> str:
        return await self._keep(subject_of(key), alarms.acknowledge(self._there(key), by, at_us))

    async def resolve(self, key: str, by: str, at_us: int) -> str:
        return await self._keep(subject_of(key), alarms.resolve(self._there(key), by, at_us))

    def _there(self, key: str) -> Alarm:
        if key not in self.alarms:
            raise LookupError(f"no alarm {key}")
        return self.alarms[key]

    async def _keep(self, subject: Subject, outcome: alarms.Outcome) -> str:
        alarm, said = outcome
        if alarm is not None:
            self.alarms[subject.key] = alarm
        for each in said:
            await self.place.produce(self.producer, subject, each)
        return f"it is {said[-1].change}" if said else "nothing changed"


class Place:
    """Topics of a test's own, and the command on them."""

    def __init__(self, servers: str) -> None:
        self.env = {
            "PATH": PATH,
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            **own_topics(unique("alarms")),
            "IOTFLOW_PARTITIONS": str(PARTITIONS),
            "COLUMNS": "300",
        }
        self.settings: Settings = load(self.env)

    async def create(self) -> None:
        async with kafka.admin(self.settings) as admin:
            await topics.apply(admin, await topics.plan(admin, topics.wanted(self.settings)))

    async def produce(self, producer: BatchProducer, subject: Subject, said: Transition) -> None:
        key, reading = record(subject, said.alarm)
        await self.write(producer, key, wire.write(reading), subject.device_id, headers(subject, said))

    async def write(
        self, producer: BatchProducer, key: bytes, value: bytes | None, device: str, more: Any = ()
    ) -> None:
        partition = partition_of(device, PARTITIONS)
        for sent in await producer.send(self.settings.topics.alarms, {partition: [Item(key, value, list(more))]}):
            await sent.done()

    @asynccontextmanager
    async def holder(self, *owned: int) -> AsyncIterator[Holder]:
        found = Holder(self, set(owned))
        task = asyncio.create_task(found.control.run())
        try:
            async with following(self.settings) as workers:
                name = found.control.worker
                await until(lambda: name in workers.now and workers.now[name].listening)
            yield found
            assert not task.done()
        finally:
            await found.control.close()
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await found.producer.stop()

    async def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """`iotflow alarms`; what it says on stdout and stderr."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from app.cli import main; main()", "alarms", *arguments,
            cwd=ROOT, env=self.env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            output, complaint = await process.communicate()
        assert process.returncode == code, (output, complaint)
        return output.decode(), complaint.decode()

    async def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads((await self.run(*arguments, "--json", code=code))[0])

    async def keys(self, *arguments: str) -> list[str]:
        return [alarm["key"] for alarm in (await self.json("ls", *arguments))["alarms"]]


@pytest.fixture
async def place(kafka_servers: str) -> Place:
    found = Place(kafka_servers)
    await found.create()
    return found


async def test_open_alarms_are_listed_the_newest_first(place: Place) -> None:
    assert await place.keys() == []
    async with place.holder(0, 1, 2, 3) as holder:
        await holder.signal(SMOKE, "WARN")
        await holder.signal(OTHER, "WARN", T0 + 2, label="HIGH", location="[b]hall[/b]")
        await holder.signal(HEAT, "EMERGENCY", T0 + 1)
        await holder.signal(SMOKE, "EMERGENCY", T0 + 3)
        assert await place.keys() == [OTHER.key, HEAT.key, SMOKE.key]
        await holder.signal(HEAT, None, T0 + 4)

    assert await place.keys() == [OTHER.key, SMOKE.key]
    assert await place.keys("--all") == [OTHER.key, HEAT.key, SMOKE.key]
    assert await place.keys("--state", "cleared") == [HEAT.key]
    assert await place.keys("--severity", "WARN") == [OTHER.key]
    assert await place.keys("--severity", "warn", "--severity", "EMERGENCY") == [OTHER.key, SMOKE.key]
    assert await place.keys("--device", LOW, "--all") == [HEAT.key, SMOKE.key]
    assert await place.keys("--device", "EQ0*") == [OTHER.key, SMOKE.key]
    assert await place.keys("--device", "nobody") == []

    shown, count = await place.run("ls")
    assert "2 of 3 alarms" in count
    first, second = shown.splitlines()[1:]
    for word in ("HIGH", "ACTIVE", HIGH, "sensor-mode/1/3 Temperature", "too [hot]|now", "2025-10-09 08:53:20Z"):
        assert word in first
    for word in ("EMERGENCY", LOW, "smoke_density", "fire-smoke", "smoke_density is too high"):
        assert word in second


async def test_a_devices_worst_alarm_stands_for_it(place: Place) -> None:
    async with place.holder(0, 1, 2, 3) as holder:
        await holder.signal(SMOKE, "WARN", T0)
        await holder.signal(HEAT, "EMERGENCY", T0 + 1)
        await holder.signal(OTHER, "INFO", T0 + 2)
    found = (await place.json("ls", "--by", "device"))["devices"]
    assert [(each["device_id"], each["open"], each["worst"]["key"]) for each in found] == [
        (HIGH, 1, OTHER.key),
        (LOW, 2, HEAT.key),
    ]
    assert found[1]["since"] == "2025-10-09T08:53:20Z"
    shown, count = await place.run("ls", "--by", "device", "--severity", "EMERGENCY")
    assert LOW in shown
    assert HIGH not in shown
    assert "1 device with open alarms" in count


async def test_an_alarm_is_shown_by_its_key_its_id_and_the_ids_beginning(place: Place) -> None:
    async with place.holder(0, 1, 2, 3) as holder:
        await holder.signal(OTHER, "WARN", label="HIGH", location="[b]hall[/b]")
        await holder.signal(SMOKE, "WARN")
    found = await place.json("show", OTHER.key)
    assert (found["key"], found["rule"], found["channel"]) == (OTHER.key, "too [hot]|now", "sensor-mode/1/3")
    assert (found["value"], found["threshold"], found["unit"], found["kind"]) == (600.0, 500.0, "ppm", "SMOKE")
    assert (found["state"], found["raised_at"], found["acknowledged_at"]) == ("ACTIVE", "2025-10-09T08:53:20Z", None)
    for name in (found["alarm_id"], found["alarm_id"][:8], found["alarm_id"][:8].upper()):
        assert await place.json("show", name) == found
    shown, _ = await place.run("show", OTHER.key)
    for word in ("too [hot]|now", "[b]hall[/b]", "Temperature is too high", "WARN"):
        assert word in shown
    _, complaint = await place.run("show", "nothing", code=1)
    assert "no alarm has the key or the id 'nothing'" in complaint


async def test_who_has_the_device_acknowledges_and_resolves(place: Place) -> None:
    async with place.holder(0, 1) as low, place.holder(2, 3) as high:
        await low.signal(SMOKE, "WARN")
        await high.signal(OTHER, "WARN")
        done = await place.json("ack", SMOKE.key, "--by", "ann")
        assert done["ok"]
        assert {answer["worker"]: (answer["mine"], answer["detail"]) for answer in done["answers"]} == {
            low.control.worker: (True, "it is acknowledged"),
            high.control.worker: (
                False,
                f"the device is in partition {partition_of(LOW, PARTITIONS)}, which another worker has",
            ),
        }
        shown = await place.json("show", SMOKE.key)
        asked = low.asked[0]
        assert (shown["state"], shown["acknowledged_by"]) == ("ACKNOWLEDGED", "ann")
        assert shown["acknowledged_at"] == asked.asked_at.isoformat().replace("+00:00", "Z")
        shown, _ = await place.run("ls", "--device", LOW)
        assert "ACKNOWLEDGED by ann" in shown

        other = await place.json("show", OTHER.key)
        output, _ = await place.run("resolve", other["alarm_id"][:8])
        assert "it is resolved" in output
        shown = await place.json("show", OTHER.key)
        assert (shown["state"], shown["resolved_by"]) == ("RESOLVED", high.asked[-1].by)
        assert "@" in shown["resolved_by"]
        assert await place.keys() == [SMOKE.key]


async def test_what_cannot_be_done_is_said(place: Place) -> None:
    async with place.holder(0, 1) as holder:
        await holder.signal(SMOKE, "WARN")
        await holder.signal(OTHER, "WARN")  # of a partition that it does not have
        _, complaint = await place.run("ack", OTHER.key, code=1)
        assert "analyze: no live worker has the device's partition just now" in complaint
        holder.alarms.clear()
        _, complaint = await place.run("resolve", SMOKE.key, code=1)
        assert f"no alarm {SMOKE.key}" in complaint
        asked = len(holder.asked)
        _, complaint = await place.run("ack", "nothing", code=1)
        assert "no alarm has the key or the id 'nothing'" in complaint
        assert len(holder.asked) == asked
    _, complaint = await place.run("ack", SMOKE.key, code=1)
    assert "start one with iotflow worker analyze" in complaint


async def test_what_is_no_alarm_is_named_and_hides_nothing(place: Place) -> None:
    """A record that is taken away is none; the same key is read again when it is an alarm."""
    async with place.holder(0, 1, 2, 3) as holder:
        await holder.signal(SMOKE, "WARN")
        await holder.signal(HEAT, "WARN")
        await place.write(holder.producer, HEAT.key.encode(), None, LOW)
        await place.write(holder.producer, b"x|y", b"{}", "x")
        _, complaint = await place.run("ls", code=1)
        assert "refused: x|y: 'x|y' is no alarm's key" in complaint
        found = await place.json("ls", "--all", code=1)
        assert [alarm["key"] for alarm in found["alarms"]] == [SMOKE.key]
        assert set(found["refused"]) == {"x|y"}
        assert set((await place.json("ls", "--by", "device", code=1))["refused"]) == {"x|y"}
        await holder.signal(HEAT, "EMERGENCY", T0 + 1)
        assert (await place.json("show", HEAT.key))["severity"] == "EMERGENCY"


async def test_each_change_is_told_with_an_id_of_its_own(place: Place) -> None:
    async with place.holder(0, 1, 2, 3) as holder:
        for at, severity in enumerate(("WARN", "EMERGENCY", None)):
            await holder.signal(SMOKE, cast("Severity | None", severity), T0 + at)
    records = await check.tail(place.settings, place.settings.topics.alarms)
    told = [dict(record.headers) for record in records]
    assert [each["iotflow-change"] for each in told] == [b"raised", b"escalated", b"cleared"]
    assert len({each["iotflow-event-id"] for each in told}) == 3
    assert all(wire.read(record.value).measurement == "alarms" for record in records)


async def test_without_the_topic_it_is_said_how_to_make_it(kafka_servers: str) -> None:
    _, complaint = await Place(kafka_servers).run("ls", code=1)
    assert "run iotflow topics apply" in complaint
