"""`iotflow devices` on a real broker, with what the analysis really writes."""

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from app import kafka, topics
from app.settings import Settings, load
from schemas import latest, rules, wire
from schemas.partition import partition_of
from schemas.reading import Reading
from tables.output import Output
from tables.rules import Rulebook
from tests.lab.analysis import Kept, Raw
from tests.lab.apps import own_topics, unique
from tests.lab.pipeline import PATH, ROOT

PARTITIONS = 4


class Place:
    """Topics of a test's own, the analysis of one process, and the command."""

    def __init__(self, servers: str, **more: str) -> None:
        self.env = {
            "PATH": PATH,
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            **own_topics(unique("devices")),
            "IOTFLOW_PARTITIONS": str(PARTITIONS),
            "COLUMNS": "300",
            **more,
        }
        self.settings: Settings = load(self.env)
        self.kept = Kept(rules=Rulebook(rules.profile("fire")))
        self.partition = self.kept.begin()
        self.folded = 0

    async def create(self) -> None:
        async with kafka.admin(self.settings) as admin:
            await topics.apply(admin, await topics.plan(admin, topics.wanted(self.settings)))

    async def analysed(self, readings: Sequence[Reading], received: datetime) -> None:
        """Readings are received and folded, and what the analysis says of them is sent."""
        ms = int(received.timestamp() * 1000)
        records = [Raw(self.folded + place, wire.write(one), timestamp=ms) for place, one in enumerate(readings)]
        self.folded += len(records)
        said = self.partition.fold(records, ms)
        self.kept.keep(self.partition, self.folded)
        await self.send([*said, *self.kept.said])
        self.kept.said.clear()

    async def send(self, outputs: Sequence[Output]) -> None:
        async with AIOKafkaProducer(**kafka.client_args(self.settings), linger_ms=5) as producer:
            sends = [
                await producer.send(
                    getattr(self.settings.topics, each.topic),
                    each.value,
                    each.key,
                    partition=partition_of(each.device_id, PARTITIONS),
                    headers=list(each.headers),
                )
                for each in outputs
            ]
            await asyncio.gather(*sends)

    async def run(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """`iotflow devices`; what it says on stdout and stderr."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from app.cli import main; main()", "devices", *arguments,
            cwd=ROOT, env=self.env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            output, complaint = await process.communicate()
        assert process.returncode == code, (output, complaint)
        return output.decode(), complaint.decode()

    async def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads((await self.run(*arguments, "--json", code=code))[0])

    async def names(self, *arguments: str) -> list[str]:
        return [each["device"] for each in (await self.json("ls", *arguments))["devices"]]


def said(device: str, at: datetime, channel: str = "", facility: str = "", **values: Any) -> Reading:
    tags = {"facility_id": facility} if facility else {}
    units = {"temperature": "°C"} if "temperature" in values else {}
    return Reading("telemetry", device, at, values, channel, units, tags)


def now() -> datetime:
    """Some time before the hour is over, so that a test is within one."""
    while (seconds := time.time() % 3600) > 3580:
        time.sleep(3600 - seconds)
    return datetime.now(UTC)


@pytest.fixture
async def place(kafka_servers: str) -> Place:
    found = Place(kafka_servers, IOTFLOW_IDLE="600")
    await found.create()
    return found


async def test_devices_are_listed_as_they_stand_now(place: Place) -> None:
    assert (await place.json("ls"))["devices"] == []
    at = now()
    hour = at.replace(minute=0, second=0, microsecond=0)
    long_ago = at - timedelta(days=3)
    await place.analysed([said("old", long_ago, temperature=20.0)], long_ago)
    await place.analysed([said("silent", at - timedelta(hours=2), t=1.0)], at - timedelta(hours=2))
    busy = [said("busy", max(hour, at - timedelta(seconds=5 - n)), "a", facility="plant-1", t=n) for n in range(5)]
    busy += [said("busy", at - timedelta(seconds=1), "b", door="open")]
    await place.analysed(busy, at)
    await place.analysed([said("hot", at, temperature=99.0)], at + timedelta(seconds=1))

    found = await place.json("ls")
    assert found["totals"]["devices"] == 4
    assert (found["totals"]["online"], found["totals"]["offline"], found["totals"]["channels"]) == (2, 2, 5)
    assert found["hour"] == hour.isoformat().replace("+00:00", "Z")
    shown = {each["device"]: each for each in found["devices"]}
    assert list(shown) == ["hot", "busy", "silent", "old"]
    assert [each["online"] for each in shown.values()] == [True, True, False, False]
    assert [each["readings_hour"] for each in shown.values()][2:] == [0, 0]
    assert shown["old"]["readings_day"] == 0
    assert (shown["busy"]["channels"], shown["busy"]["facility"]) == (2, "plant-1")
    assert found["totals"]["readings_hour"] == shown["hot"]["readings_hour"] + shown["busy"]["readings_hour"]
    assert 259_100 < shown["old"]["silent_s"] < 259_400

    assert await place.names("--offline") == ["silent", "old"]
    assert await place.names("--stale", "1d") == ["old"]
    assert await place.names("--sort", "name", "--top", "2") == ["busy", "hot"]
    assert (await place.names("--sort", "count"))[0] == "busy"
    assert await place.names("--facility", "plant-*") == ["busy"]
    assert (await place.json("ls", "--facility", "none"))["totals"]["devices"] == 0

    alarms = {each["device"]: each["open_alarms"] for each in (await place.json("ls", "--alarms"))["devices"]}
    assert alarms == {"hot": 1, "busy": 0, "silent": 0, "old": 0}

    stale = await place.json("stale")
    assert (stale["offline"], [each["device"] for each in stale["devices"]]) == (2, ["old", "silent"])
    assert [each["device"] for each in (await place.json("stale", "--top", "1"))["devices"]] == ["old"]

    table, count = await place.run("ls", "--alarms", "--sort", "name")
    assert table.startswith("4 devices: 2 online, 2 offline; readings: ")
    assert [line.split()[0] for line in table.splitlines()[2:]] == ["busy", "hot", "old", "silent"]
    assert "4 of 4 devices" in count
    table, count = await place.run("stale")
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["old", "silent"]
    assert "2 of 4 devices offline" in count


async def test_the_last_record_of_a_channel_counts_and_an_older_reading_is_none(place: Place) -> None:
    at = now()
    for second in (10, 30, 20):
        moment = at - timedelta(seconds=60 - second)
        await place.analysed([said("d", moment, t=float(second))], moment)
    found = await place.json("show", "d")
    [channel] = found["channels"]
    assert channel["values"] == {"t": 30.0}
    assert channel["first_seen"] <= channel["time"]


async def test_all_that_is_known_of_a_device_is_shown(place: Place) -> None:
    at = now()
    name = "pump|1 [b]"
    first = said(name, at - timedelta(seconds=30), "sensor/1", "F1", temperature=20.0, a=1, b=1, c=1, d=1, e=1)
    await place.analysed([first], at - timedelta(seconds=30))
    then = said(name, at, "sensor/1", "F1", temperature=99.0, door="open", fault=None)
    other = said(name, at, "sensor/2", humidity=50.0)
    await place.analysed([then, other, said("pump", at, temperature=99.0)], at)

    found = await place.json("show", name)
    assert (found["device"], found["online"], found["facility"], found["open_alarms"]) == (name, True, "F1", 1)
    one, two = found["channels"]
    assert (one["channel"], one["values"]) == ("sensor/1", {"temperature": 99.0, "door": "open", "fault": None})
    assert one["units"] == {"temperature": "°C"}
    assert (two["channel"], two["values"]) == ("sensor/2", {"humidity": 50.0})
    [alarm] = found["alarms"]
    assert (alarm["device_id"], alarm["severity"], alarm["state"]) == (name, "EMERGENCY", "ACTIVE")
    assert {each["kind"] for each in found["quality"]} == {"nulls"}
    assert {each["channel"] for each in found["quality"]} == {"sensor/1"}

    shown, _ = await place.run("show", name)
    for word in (name, "online", "F1", "sensor/1", "99.0", "°C", "open", "null", "EMERGENCY", "nulls"):
        assert word in shown
    _, complaint = await place.run("show", "pump|1", code=1)
    assert "no device is known as pump|1; see iotflow devices ls" in complaint


async def test_what_cannot_be_read_is_named_and_hides_nothing(place: Place) -> None:
    at = now()
    await place.analysed([said("d", at, t=1.0), said("e", at, t=1.0)], at)
    broken = latest.key("d", "telemetry", "x")
    gone = latest.key("e", "telemetry", "")
    await place.send([Output("latest", "d", broken, b"{}", []), Output("latest", "e", gone, None, [])])
    found = await place.json("ls", code=1)
    assert [each["device"] for each in found["devices"]] == ["d"]
    assert set(found["refused"]) == {"d|telemetry|x"}
    _, complaint = await place.run("ls", code=1)
    assert "refused: d|telemetry|x: " in complaint
    found = await place.json("show", "d", code=1)
    assert (len(found["channels"]), set(found["refused"])) == (1, {"d|telemetry|x"})
    _, complaint = await place.run("show", "e", code=1)
    assert "no device is known as e" in complaint


async def test_an_event_that_was_sent_twice_is_shown_once_and_only_the_last_ten(place: Place) -> None:
    at = now()
    await place.analysed([said("d", at, t=1.0)], at)
    reports = []
    for hour in range(12):
        reading = Reading("quality", "d", at - timedelta(hours=20 - hour), {"kind": "nulls", "message": str(hour)})
        reports += [Output("quality", "d", b"d", wire.write(reading), [])] * 2
    await place.send([*reports, Output("quality", "d", b"d", b"{", []), Output("quality", "d", b"e", b"{}", [])])
    found = await place.json("show", "d")
    assert [each["message"] for each in found["quality"]] == [str(hour) for hour in range(11, 1, -1)]


async def test_without_the_topic_it_is_said_how_to_make_it(kafka_servers: str) -> None:
    for arguments in (("ls",), ("stale",), ("show", "d")):
        _, complaint = await Place(kafka_servers).run(*arguments, code=1)
        assert "run iotflow topics apply" in complaint
