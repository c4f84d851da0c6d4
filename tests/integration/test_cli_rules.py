"""`iotflow rules` on a real broker, and rules that are followed there."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from click.testing import CliRunner, Result

from app import compacted, kafka, rules, topics
from app.cli import main
from app.settings import Settings, load
from schemas.rules import profile
from tables.rules import Book, Rulebook
from tests.lab.apps import own_topics, unique, until

HEAT = {"metric": "temperature", "unit": "°C", "levels": {"WARN": 60, "EMERGENCY": 70}}


class Command:
    """`iotflow rules` on topics of the test's own."""

    def __init__(self, servers: str, folder: Path) -> None:
        name = unique("rules")
        self.env = {
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            "KAFKA_RAW_TOPICS": f"{name}-raw:fire",
            "KAFKA_INPUT_TOPIC": f"{name}-in",
            **own_topics(name),
            "COLUMNS": "200",
        }
        self.settings: Settings = load(self.env)
        self.folder = folder

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["rules", *arguments], env=self.env)

    def json(self, *arguments: str, code: int = 0) -> Any:
        done = self(*arguments, "--json")
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    def file(self, **document: Any) -> str:
        path = self.folder / "rules.yaml"
        path.write_text(json.dumps(document))
        return str(path)

    async def create(self) -> None:
        async with kafka.admin(self.settings) as admin:
            await topics.apply(admin, await topics.plan(admin, topics.wanted(self.settings)))

    async def write(self, key: bytes, value: bytes | None) -> None:
        async with AIOKafkaProducer(**kafka.client_args(self.settings)) as producer:
            await producer.send_and_wait(self.settings.topics.rules, value, key)

    def records(self) -> dict[bytes, bytes]:
        return asyncio.run(compacted.held(self.settings, self.settings.topics.rules))


@pytest.fixture
def command(kafka_servers: str, tmp_path: Path) -> Command:
    return Command(kafka_servers, tmp_path)


@pytest.fixture
def made(command: Command) -> Command:
    asyncio.run(command.create())
    return command


def test_what_is_applied_is_in_force(made: Command) -> None:
    file = made.file(rules={"temperature": HEAT, "oven": {**HEAT, "devices": ["oven-*"]}})
    planned = made.json("apply", file, "--dry-run", code=2)
    assert planned == {
        "added": ["temperature", "oven"],
        "changed": [],
        "removed": [],
        "kept": [],
        "unchanged": 0,
    }
    assert made.records() == {}
    made.json("apply", file)
    assert made.json("apply", file)["unchanged"] == 2

    found = made.json("ls")
    assert {id_ for id_, rule in found.items() if rule["source"] == "topic"} == {"temperature", "oven"}
    assert found.keys() == profile("fire").rules.keys() | {"oven"}
    assert made.json("show", "temperature") == {
        "id": "temperature",
        "source": "topic",
        "kind": "level",
        **HEAT,
        "levels": {"WARN": 60.0, "EMERGENCY": 70.0},
    }
    # What is shown can be applied again.
    again = made.folder / "again.yaml"
    again.write_text(made("show", "oven").stdout)
    assert made.json("apply", str(again)) == {
        "added": [],
        "changed": [],
        "removed": [],
        "kept": ["temperature"],
        "unchanged": 1,
    }
    assert made.json("apply", str(again), "--prune")["removed"] == ["temperature"]
    assert made.json("rm", "oven")["removed"] == ["oven"]
    assert made.records() == {}
    gone = made("rm", "oven")
    assert (gone.exit_code, gone.stderr.strip()) == (
        1,
        "Error: no rule on the topic is called oven; see iotflow rules ls",
    )
    assert made.json("show", "temperature")["source"] == "profile"
    assert "no rule is called nobody; there are: co, envelope" in made("show", "nobody").stderr


def test_tables_for_people(made: Command) -> None:
    file = made.file(
        rules={"oven": HEAT, "smoke": {"metric": "smoke_density", "levels": {"WARN": 1}, "enabled": False}}
    )
    done = made("apply", file)
    assert done.exit_code == 0
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    assert ["oven", "added", "temperature: >= 60 °C WARN 70 °C EMERGENCY"] in rows
    assert done.stdout.splitlines()[-1] == "2 added, 0 changed, 0 removed, 0 unchanged, 0 only on the topic"
    listed = [line.split(maxsplit=4) for line in made("ls").stdout.splitlines()]
    assert {row[0] for row in listed} == {"rule", "oven", *profile("fire").rules}  # without a terminal nothing folds
    assert ["smoke", "topic", "1", "CUSTOM", "switched off"] in [[part.strip() for part in row] for row in listed]
    changed = made("apply", made.file(rules={"oven": {**HEAT, "for": "30s"}}))
    assert "oven: changes without a new version; alarms name it, so make it 2" in changed.stderr


def test_records_that_no_worker_takes_are_named(made: Command) -> None:
    asyncio.run(made.write(b"bad", b"{"))
    asyncio.run(made.write(b"a/b", b"{}"))
    asyncio.run(made.write(b"gone", b"{"))
    asyncio.run(made.write(b"gone", None))
    done = made("ls")
    assert done.exit_code == 1
    refused = [line for line in done.stderr.splitlines() if line.startswith("refused: ")]
    assert [line.split(": ")[1] for line in refused] == ["bad", "a/b"]
    assert made.json("apply", made.file(rules={"bad": HEAT}), "--prune") == {
        "added": [],
        "changed": ["bad"],
        "removed": ["a/b"],
        "kept": [],
        "unchanged": 0,
    }
    assert made("ls").exit_code == 0


def test_without_the_topic(command: Command) -> None:
    done = command("ls")
    assert done.exit_code == 1
    assert f"there is no topic {command.settings.topics.rules}: run iotflow topics apply" in done.stderr


class Told:
    """What a worker would export."""

    def __init__(self) -> None:
        self.now: tuple[dict[str, int], int, bool] = ({}, 0, True)

    def rules(self, by_source: Mapping[str, int], refused: int, *, stale: bool) -> None:
        self.now = (dict(by_source), refused, stale)


async def test_rules_change_without_a_restart(command: Command) -> None:
    await command.create()
    await command.write(b"oven", b'{"metric":"temperature","levels":{"WARN":300}}')
    holder, told = Rulebook(profile("fire")), Told()
    feed = rules.feed(command.settings, holder, told)
    assert told.now == ({"profile": 10, "file": 0, "topic": 0}, 0, True)
    following = asyncio.create_task(feed.run())
    try:
        async with asyncio.timeout(30):
            await feed.read()
        assert told.now == ({"profile": 10, "file": 0, "topic": 1}, 0, False)
        before = holder.book
        assert "oven" in before.ids

        def high(book: Book) -> float:
            return book.watch("fire", "d", "", "temperature").high

        await command.write(b"temperature", b'{"metric":"temperature","levels":{"WARN":50}}')
        await until(lambda: high(holder.book) == 50)
        # A bad record is refused and counted, and the rest holds; so does what it would have replaced.
        await command.write(b"temperature", b'{"metric":"temperature"}')
        await command.write(b"a/b", b"{}")
        await command.write(b"a/b", None)
        await command.write(b"oven", None)
        await until(lambda: "oven" not in holder.book.ids)
        assert high(holder.book) == 50
        await until(lambda: told.now[1] == 2)
        await command.write(b"temperature", None)
        await until(lambda: high(holder.book) == 80)
        assert before.ids - holder.book.ids == {"oven"}
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
