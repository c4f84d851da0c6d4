"""`iotflow registry apply` and `ls` on a real broker."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from click.testing import CliRunner, Result

from app import check, kafka, topics
from app.cli import main
from app.settings import Settings, load
from tests.acceptance.test_odd_headers import send_odd
from tests.lab.apps import unique

MAC, OTHER = "e4fd45f654be", "000000000001"


class Command:
    """`iotflow registry` on topics of the test's own."""

    def __init__(self, servers: str, folder: Path, **more: str) -> None:
        name = unique("registry")
        self.env = {
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            "KAFKA_RAW_TOPICS": f"{name}-raw:iot-gateway",
            "KAFKA_INPUT_TOPIC": f"{name}-in",
            "IOTFLOW_DEAD_LETTER_TOPIC": f"{name}-dead",
            "IOTFLOW_REGISTRY_TOPIC": name,
            "COLUMNS": "200",
            **more,
        }
        self.settings: Settings = load(self.env)
        self.folder = folder

    def __call__(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["registry", *arguments], env=self.env)

    def json(self, *arguments: str, code: int = 0) -> Any:
        done = self(*arguments, "--json")
        assert done.exit_code == code, done.output
        return json.loads(done.stdout)

    def file(self, **controllers: dict[str, int]) -> str:
        """A file with an entry for each pin; the number makes them differ."""
        said = {
            controller.removeprefix("c"): {
                pin: {"name": "a [b]", "points": [{"label": "Temperature", "encoding": "Int16", "offset": offset}]}
                for pin, offset in pins.items()
            }
            for controller, pins in controllers.items()
        }
        path = self.folder / "registry.yaml"
        path.write_text(json.dumps({"controllers": said}))
        return str(path)

    def create(self) -> None:
        async def run() -> None:
            async with kafka.admin(self.settings) as admin:
                await topics.apply(admin, await topics.plan(admin, topics.wanted(self.settings)))

        asyncio.run(run())

    def write(self, key: bytes, value: bytes | None) -> None:
        async def run() -> None:
            async with AIOKafkaProducer(**kafka.client_args(self.settings)) as producer:
                await producer.send_and_wait(self.settings.topics.registry, value, key)

        asyncio.run(run())

    def records(self) -> list[tuple[bytes, bytes | None]]:
        found = asyncio.run(check.tail(self.settings, self.settings.topics.registry))
        return [(record.key, record.value) for record in found]


@pytest.fixture
def command(kafka_servers: str, tmp_path: Path) -> Command:
    found = Command(kafka_servers, tmp_path)
    found.create()
    return found


def test_what_is_applied_is_listed_and_can_be_applied_again(command: Command) -> None:
    file = command.file(**{f"c{MAC}": {"1/1": 0, "1/2": 2}, f"c{OTHER}": {"1/1": 0}, "*": {"3/4": 0}})
    command.json("apply", file)
    listed = command.json("ls")
    assert {controller: sorted(pins) for controller, pins in listed["controllers"].items()} == {
        "*": ["3/4"],
        OTHER: ["1/1"],
        MAC: ["1/1", "1/2"],
    }
    again = command.folder / "again.json"
    again.write_text(json.dumps(listed))
    assert command.json("apply", str(again), "--prune")["unchanged"] == 4

    assert list(command.json("ls", "--controller", "F2-E4:FD:45:F6:54:BE")["controllers"]) == [MAC]
    assert list(command.json("ls", "--controller", "*")["controllers"]) == ["*"]
    assert command.json("ls", "--controller", "000000000002") == {"controllers": {}}


def test_tables_for_people(command: Command) -> None:
    """Brackets are no markup, and every change has its row."""
    planned = command("apply", command.file(**{f"c{MAC}": {"1/1": 0, "1/2": 2}}), "--dry-run")
    assert planned.exit_code == 2
    rows = [line.split() for line in planned.stdout.splitlines()]
    assert [f"{MAC}/1/1", "add", "a", "[b]:", "Temperature", "(Int16@0/2)"] in rows
    counts = "2 to add, 0 to change, 0 to remove, 0 unchanged, 0 only on the topic"
    assert planned.stdout.splitlines()[-1] == counts
    assert command.records() == []

    command("apply", command.file(**{f"c{MAC}": {"1/1": 0, "1/2": 2}}))
    done = command("apply", command.file(**{f"c{MAC}": {"1/1": 1, "1/3": 0}}))
    assert done.exit_code == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:]] == [
        [f"{MAC}/1/1", "changed"],
        [f"{MAC}/1/3", "added"],
        ["1", "added,"],
    ]
    assert done.stdout.splitlines()[-1] == "1 added, 1 changed, 0 removed, 0 unchanged, 1 only on the topic"
    pruned = command("apply", command.file(**{f"c{MAC}": {"1/1": 1, "1/3": 0}}), "--prune")
    assert [line.split()[:2] for line in pruned.stdout.splitlines()[1:]] == [
        [f"{MAC}/1/2", "removed"],
        ["0", "added,"],
    ]
    assert pruned.stdout.splitlines()[-1] == "0 added, 0 changed, 1 removed, 2 unchanged, 0 only on the topic"
    assert command.records()[-1] == (f"{MAC}/1/2".encode(), None)

    listed = command("ls")
    assert [line.split()[:4] for line in listed.stdout.splitlines()] == [
        ["controller", "pin", "name", "data"],
        [MAC, "1/1", "a", "[b]"],
        [MAC, "1/3", "a", "[b]"],
    ]


def test_what_no_worker_takes_is_named_and_can_be_pruned(command: Command) -> None:
    file = command.file(**{f"c{MAC}": {"1/1": 0}})
    command("apply", file)
    command.write(f"{MAC}/1/2".encode(), b"{")
    command.write(b"\xff\x1b", b"[]")
    command.write(b"E4FD45F654BE/1/1", b"[]")
    command.write(b"", b"[]")
    command.write(b"x" * 10_000, b"[]")
    listed = command("ls")
    assert listed.exit_code == 1
    assert max(map(len, listed.stderr.splitlines())) < 300
    assert [line.split(":")[:2] for line in listed.stderr.splitlines()] == [
        ["refused", f" {MAC}/1/2"],
        ["refused", r" '\\xff\x1b'"],
        ["refused", " E4FD45F654BE/1/1"],
        ["refused", " ''"],
        ["refused", f" '{'x' * 58}…"],
    ]
    assert list(command.json("ls", code=1)["controllers"][MAC]) == ["1/1"]

    assert len(command.json("apply", file)["kept"]) == 5
    assert len(command.json("apply", file, "--prune")["removed"]) == 5
    done = command("ls")
    assert (done.exit_code, done.stderr) == (0, "")
    assert command.json("apply", file, "--prune") == {
        "added": [], "changed": [], "removed": [], "kept": [], "unchanged": 1,
    }  # fmt: skip


def test_header_names_that_are_not_utf8_are_passed(command: Command) -> None:
    file, servers = command.file(**{f"c{MAC}": {"1/1": 0}}), command.env["KAFKA_BOOTSTRAP_SERVERS"]
    command.json("apply", file)
    key, value = command.records()[0]
    assert value is not None
    asyncio.run(send_odd(servers, command.settings.topics.registry, 0, [value], 0, key=key))
    assert list(command.json("ls")["controllers"]) == [MAC]
    assert command.json("apply", file)["unchanged"] == 1


def test_nothing_is_written_when_an_entry_is_larger_than_the_topic_takes(kafka_servers: str, tmp_path: Path) -> None:
    """The largest one that is let through is taken, by a topic that takes no more than the settings say."""
    command = Command(kafka_servers, tmp_path, IOTFLOW_MAX_MESSAGE_BYTES="1024")
    command.create()
    file = command.folder / "large.yaml"

    def pins(size: int) -> str:
        points = [{"label": f"x{number}", "unit": "", "encoding": "Int8"} for number in range(2)]
        large = [*points, *({"label": "y" * 100 + str(n), "encoding": "Int8"} for n in range(5)),
                 {"label": "z" * size, "encoding": "Int8"}]  # fmt: skip
        file.write_text(json.dumps({"controllers": {"*": {"1/1": points, "1/2": large, "1/3": points}}}))
        return str(file)

    written = 0
    for size in range(1, 200, 9):
        done = command("apply", pins(size))
        if done.exit_code:
            assert "'*/1/2': takes " in done.stderr
            assert "IOTFLOW_MAX_MESSAGE_BYTES, 1024" in done.stderr
            assert command("apply", pins(size), "--dry-run").exit_code == 1
            break
        written = size
    assert written
    assert done.exit_code == 1
    count = len(command.records())
    file.write_text(file.read_text().replace("*", MAC))
    assert command("apply", str(file)).exit_code == 1
    assert len(command.records()) == count


def test_without_the_topic_it_says_how_to_make_it(kafka_servers: str, tmp_path: Path) -> None:
    command = Command(kafka_servers, tmp_path)
    for arguments in (("ls",), ("apply", command.file(**{"*": {"1/1": 0}}))):
        done = command(*arguments)
        assert done.exit_code == 1
        assert "iotflow topics apply" in done.stderr
