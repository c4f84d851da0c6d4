"""`iotflow registry` without Kafka: what it says of files, what it would change, and how it fails."""

import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app import compacted, registry
from app.cli import main
from app.compacted import Change, Plan
from app.registry import Held
from schemas.datapoints import encode, parse
from schemas.point import Entry

GOOD = """
controllers:
  "E4:FD:45:F6:54:BE":
    1/1:
      name: air
      points:
        - {label: Temperature, encoding: Int16, decimals: 2, unit: °C}
    1/2: [{label: State, encoding: Boolean}]
  "*":
    2/1: [{label: State, encoding: Boolean}]
"""
AWAY = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}


def run(*arguments: str, env: Mapping[str, str] = AWAY) -> Result:
    return CliRunner().invoke(main, ["registry", *arguments], env=env)


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    """A file with four mistakes."""
    path = tmp_path / "bad.yaml"
    path.write_text(
        'controllers:\n  "nobody": {1/1: [{label: a, encoding: Boolean}]}\n  "*":\n    one: [{label: b, encoding: '
        "Boolean}]\n    1/2: [{label: c, encoding: Int17}]\n    1/3: []\n"
    )
    return str(path)


def test_a_good_file_is_said_to_be_one(good: str) -> None:
    done = run("check", good)
    assert (done.exit_code, done.stderr) == (0, "")
    assert "3 pins" in done.stdout
    assert json.loads(run("check", good, "--json").stdout) == {"ok": True, "entries": 3, "problems": []}


def test_every_mistake_of_a_file_is_a_line(bad: str) -> None:
    done = run("check", bad)
    lines = done.stderr.splitlines()
    assert (done.exit_code, done.stdout) == (1, "")
    assert len(lines) == 4
    assert all(line.startswith(f"{bad}: controllers.") for line in lines)
    for word in (".nobody", ".one", "Int17", ".1/3"):
        assert sum(word in line for line in lines) == 1
    as_json = run("check", bad, "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout) == {"ok": False, "entries": 0, "problems": lines}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"controllers: [", "line 2, column 1"),
        (b"a: 1\na: 2\n", "stands here twice"),
        (b"[1, 2]", "must be an object"),
        (b"\xff\xfe\x00", "is not YAML"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "odd.yaml"
    if content is not None:
        path.write_bytes(content)
    for arguments in (("check",), ("apply",), ("apply", "--dry-run")):
        done = run(*arguments, str(path))
        assert done.exit_code == 1
        assert f"{path}: " in done.stderr
        assert said in done.stderr


def test_nothing_is_asked_of_kafka_for_a_wrong_file(bad: str) -> None:
    done = run("apply", bad)
    assert done.exit_code == 1
    assert "Int17" in done.stderr
    assert "Kafka" not in done.stderr


@pytest.mark.parametrize("arguments", [("apply",), ("apply", "--dry-run"), ("ls",)])
def test_a_broker_that_is_away_is_said(good: str, arguments: tuple[str, ...]) -> None:
    done = run(*arguments, *([good] if arguments[0] == "apply" else []))
    assert done.exit_code == 1
    assert "Kafka at 127.0.0.1:1 (PLAINTEXT) refuses connections" in done.stderr


def test_a_broker_that_is_silent_is_given_up(good: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compacted, "SILENCE_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        done = run("apply", good, env={"KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{server.getsockname()[1]}"})
    assert done.exit_code == 1
    assert "Kafka at 127.0.0.1" in done.stderr


def test_settings_that_are_wrong_are_said(good: str) -> None:
    done = run("apply", good, env={"IOTFLOW_REGISTRY_TOPIC": "a b"})
    assert done.exit_code == 1
    assert "IOTFLOW_REGISTRY_TOPIC" in done.stderr


def test_a_controller_that_is_none_is_said() -> None:
    done = run("ls", "--controller", "nobody")
    assert done.exit_code == 2
    assert "12 hex digits" in done.stderr


def test_the_exit_codes_are_in_the_help() -> None:
    assert "Exits with" in run("apply", "--help").stdout
    assert "Exits with" in run("check", "--help").stdout
    assert "1 when there are such records" in run("ls", "--help").stdout


# -- what would change -------------------------------------------------------------------------------------------------


def entries(**pins: int) -> dict[str, Entry]:
    """Entries by id; the number makes them differ."""
    document: dict[str, Any] = {
        pin.replace("_", "/"): [{"label": "State", "encoding": "Boolean", "offset": offset}]
        for pin, offset in pins.items()
    }
    return parse({"controllers": {"e4fd45f654be": {pin[1:]: points for pin, points in document.items()}}})


def key(pin: str) -> bytes:
    return f"e4fd45f654be/{pin}".encode()


def test_only_what_differs_is_written() -> None:
    wanted = entries(p1_1=0, p1_2=0, p1_3=0)
    there = Held(entries(p1_1=0, p1_2=5, p1_9=0), {})
    changed, added = wanted["e4fd45f654be/1/2"], wanted["e4fd45f654be/1/3"]
    assert registry.plan(wanted, there, prune=False) == Plan(
        [Change("changed", key("1/2"), encode(changed)), Change("added", key("1/3"), encode(added))], [key("1/9")], 1
    )


def test_what_is_only_on_the_topic_goes_when_it_is_pruned() -> None:
    """What nobody can read too: it is no entry, but it stands there."""
    there = Held(entries(p1_1=0, p1_9=0), {b"\xff": "the key is not UTF-8"})
    assert registry.plan(entries(p1_1=0), there, prune=False) == Plan([], [key("1/9"), b"\xff"], 1)
    assert registry.plan(entries(p1_1=0), there, prune=True) == Plan(
        [Change("removed", key("1/9")), Change("removed", b"\xff")], [], 1
    )


def test_a_record_that_is_broken_is_written_again() -> None:
    there = Held({}, {key("1/1"): "is not JSON"})
    wanted = entries(p1_1=0)
    assert registry.plan(wanted, there, prune=True) == Plan(
        [Change("changed", key("1/1"), *map(encode, wanted.values()))], [], 0
    )


def test_an_entry_that_says_its_defaults_is_no_other() -> None:
    wanted = parse({"controllers": {"*": {"1/1": [{"label": "State", "encoding": "Boolean"}]}}})
    spelled = parse({"controllers": {"*": {"J1/01": {"name": "", "points": [
        {"label": "State", "encoding": "boolean", "offset": 0, "length": 1, "order": "BIG"}
    ]}}}})  # fmt: skip
    assert registry.plan(wanted, Held(spelled, {}), prune=True) == Plan([], [], 1)
    assert [encode(entry) for entry in wanted.values()] == [encode(entry) for entry in spelled.values()]
