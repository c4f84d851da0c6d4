"""`iotflow backtest` on a real broker and real stores: the same alarms from every source, and the rules in force."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from click.testing import CliRunner, Result
from msgspec.structs import replace

from app import kafka, past, topics
from app.cli import main
from app.past import Wanted
from app.settings import Settings, load
from schemas import wire
from schemas.reading import Reading
from tests.lab.apps import own_topics, unique
from tests.lab.stores import StoreLab
from tests.lab.stores.file import Lab as FileLab

HEAT = {"metric": "temperature", "unit": "°C", "levels": {"WARN": 70, "EMERGENCY": 90}}
OFFLINE = {"kind": "silent", "for": "15m"}
#: Whenever the tests were collected: nothing here depends on what the clock says later.
NOW = datetime.now(UTC).replace(microsecond=0)
LATELY = ("--from", (NOW - timedelta(hours=2)).isoformat(), "--to", NOW.isoformat())


def reading(minutes_ago: float, device: str, value: float) -> Reading:
    return Reading("telemetry", device, NOW - timedelta(minutes=minutes_ago), {"temperature": value})


def spiked(device: str, minutes_ago: float, peak: float) -> list[Reading]:
    """Twenty minutes, a reading every ten seconds, with a spike in the middle."""
    values = [20.0] * 50 + [peak] * 6 + [20.0] * 64
    return [reading(minutes_ago - place / 6, device, value) for place, value in enumerate(values)]


READINGS = [*spiked("EQ001", 60, 95.0), *spiked("EQ002", 50, 75.0), *spiked("EQ003", 40, 60.0)]
OLDER = spiked("EQ001", 3 * 24 * 60, 99.0)


class Command:
    """`iotflow backtest` on topics of the test's own."""

    def __init__(self, servers: str, folder: Path) -> None:
        self.env = {"KAFKA_BOOTSTRAP_SERVERS": servers, **own_topics(unique("backtest")), "IOTFLOW_RULES": "none"}
        self.settings: Settings = load(self.env)
        self.folder = folder

    def __call__(self, *arguments: str, **env: str) -> Result:
        return CliRunner().invoke(main, arguments, env={**self.env, **env})

    def json(self, *arguments: str, **env: str) -> Any:
        done = self("backtest", *arguments, "--json", **env)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    def file(self, name: str = "rules.yaml", **own: Any) -> str:
        path = self.folder / name
        path.write_text(json.dumps({"profile": "none", "rules": own}))
        return str(path)

    async def create(self) -> None:
        async with kafka.admin(self.settings) as admin:
            await topics.apply(admin, await topics.plan(admin, topics.wanted(self.settings)))

    async def produce(self, records: Sequence[tuple[Reading, datetime]]) -> None:
        """Readings on the decoded topic, each as it was received; and what is none."""
        topic = self.settings.topics.decoded
        async with AIOKafkaProducer(**kafka.client_args(self.settings), linger_ms=5) as producer:
            sent = [
                await producer.send(topic, wire.write(each), each.device_id.encode(), timestamp_ms=_ms(received))
                for each, received in records
            ]
            sent.append(await producer.send(topic, b"no reading", b"EQ001", timestamp_ms=_ms(NOW)))
            await asyncio.gather(*sent)


def _ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


@pytest.fixture
def command(kafka_servers: str, tmp_path: Path) -> Command:
    made = Command(kafka_servers, tmp_path)
    asyncio.run(made.create())
    return made


def alarms(found: Any) -> list[tuple[str, str, str, str]]:
    return [(each["verdict"], each["device_id"], each["rule"], each["severity"]) for each in found["alarms"]]


def test_the_topic_and_the_rules_in_force(command: Command) -> None:
    late = reading(39, "EQ004", 91.0)
    records = [*((each, each.time) for each in [*OLDER, *READINGS]), (late, NOW - timedelta(minutes=1))]
    asyncio.run(command.produce(records))
    old = command.file("old.yaml", heat={**HEAT, "levels": {"WARN": 90}}, offline=OFFLINE)
    assert command("rules", "apply", old).exit_code == 0

    new = command.file(heat=HEAT)
    done = command("backtest", new, *LATELY, "--json")
    assert done.exit_code == 0, done.output
    assert done.stderr == "note: 1 records of the topic are no readings\n"
    found = json.loads(done.stdout)
    assert (found["readings"], found["devices"], found["against"]) == (361, 4, "the rules in force")
    assert sorted(alarms(found)) == [
        ("both", "EQ001", "heat", "EMERGENCY"),
        ("both", "EQ004", "heat", "EMERGENCY"),
        ("gone", "EQ001", "offline", "WARN"),
        ("gone", "EQ002", "offline", "WARN"),
        ("gone", "EQ003", "offline", "WARN"),
        ("gone", "EQ004", "offline", "WARN"),
        ("new", "EQ002", "heat", "WARN"),
    ]
    (first,) = [each for each in found["alarms"] if (each["device_id"], each["rule"]) == ("EQ001", "heat")]
    assert datetime.fromisoformat(first["from"]) == NOW - timedelta(minutes=60 - 50 / 6)
    assert first["peak"] == 95.0
    assert command("backtest", new, *LATELY, "--fail-on-new").exit_code == 1
    # Nothing was produced, and nothing committed: the same again.
    assert json.loads(command("backtest", new, *LATELY, "--json").stdout)["alarms"] == found["alarms"]

    days = timedelta(days=1)
    span = ("--from", (NOW - 4 * days).isoformat(), "--to", (NOW - 2 * days).isoformat())
    ago = command.json(new, *span, "--metric", "temperature")
    assert (ago["readings"], alarms(ago)) == (120, [("both", "EQ001", "heat", "EMERGENCY")])


async def test_of_the_topic_no_more_is_read_than_was_received_then(command: Command) -> None:
    await command.produce([(each, each.time) for each in [*OLDER, *READINGS]])
    read: list[Any] = []
    told: list[tuple[str, int, int]] = []
    wanted = Wanted(NOW - timedelta(hours=2), NOW)
    await past._received(
        command.settings, command.settings.topics.decoded, wanted, read.append, lambda *said: told.append(said)
    )
    assert len(read) == len(READINGS) + 1
    assert told[-1] == ("reading", len(read), len(read))

    read.clear()
    days = timedelta(days=1)
    wanted = Wanted(NOW - 4 * days, NOW - 2 * days)
    await past._received(command.settings, command.settings.topics.decoded, wanted, read.append, lambda *_: None)
    assert len(read) == len(OLDER)


def test_a_topic_without_readings(command: Command) -> None:
    done = command("backtest", "fire", "--against", "none")
    assert done.exit_code == 1
    assert "topic has no such readings from" in done.stderr


def test_a_topic_that_is_not_there(kafka_servers: str, tmp_path: Path) -> None:
    done = Command(kafka_servers, tmp_path)("backtest", "fire", "--against", "none")
    assert done.exit_code == 1
    assert "there is no topic" in done.stderr
    assert "iotflow topics apply" in done.stderr


def stored(lab: StoreLab) -> None:
    async def work() -> None:
        await lab.apply_schema()
        async with lab.opened() as sink:
            await sink.write(sink.prepare([*OLDER, *READINGS]).payload)

    asyncio.run(work())


def test_every_source_gives_the_same(command: Command, timescale: Any, tmp_path: Path) -> None:
    asyncio.run(command.produce([(each, each.time) for each in [*OLDER, *READINGS[::-1]]]))
    stored(timescale)
    archive = FileLab("file", None)
    asyncio.run(archive.make())
    stored(archive)
    lines = tmp_path / "readings.jsonl"
    lines.write_bytes(b"".join(wire.write(replace(each)) + b"\n" for each in [*READINGS, *OLDER]))

    rules = command.file(heat=HEAT, offline=OFFLINE, minute={**HEAT, "on": "1m", "levels": {"INFO": 30}})
    found = {}
    for source in ("topic", "timescale", "file", f"file:{archive.env['STORAGE_PATH']}", f"file:{lines}"):
        said = command.json(rules, "--against", "none", *LATELY, "--source", source, **timescale.env, **archive.env)
        found[source] = (said["readings"], said["devices"], said["summary"], said["alarms"])
    asyncio.run(archive.drop())
    first = found["topic"]
    assert first[:2] == (360, 3)
    assert {each["rule"] for each in first[3]} == {"heat", "offline", "minute"}
    for source, other in found.items():
        assert other == first, source


def test_a_device_of_a_store_that_is_away(command: Command, timescale: Any) -> None:
    stored(timescale)
    options = ("--against", "none", *LATELY, "--source", "timescale")
    found = command.json(command.file(heat=HEAT), *options, "--device", "EQ002", **timescale.env)
    assert (found["readings"], alarms(found)) == (120, [("new", "EQ002", "heat", "WARN")])
    done = command("backtest", "fire", *options, **{**timescale.env, "TIMESCALE_PASSWORD": "wrong"})
    assert done.exit_code == 1
    assert "Error: timescale: " in done.stderr
    assert "TIMESCALE_PASSWORD" in done.stderr
