"""`iotflow quarantine` without Kafka: its options, how it fails, and what it prints."""

import json
from collections import Counter
from collections.abc import Mapping

import pytest
from click.testing import CliRunner, Result

from app.cli import main, quarantine
from app.quarantine import Done, Held

AWAY = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "COLUMNS": "200"}
T0 = 1_767_323_045_000


def run(*arguments: str, env: Mapping[str, str] = AWAY) -> Result:
    return CliRunner().invoke(main, ["quarantine", *arguments], env=env)


@pytest.mark.parametrize("arguments", [("ls",), ("ls", "--json"), ("replay",), ("replay", "--dry-run")])
def test_without_a_broker_it_says_which(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert "127.0.0.1:1" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [("ls",), ("replay",)])
def test_a_wrong_setting_is_named(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, env={"IOTFLOW_BUDGET": "forbid"})
    assert (done.exit_code, "IOTFLOW_BUDGET" in done.stderr) == (1, True)


def test_an_empty_pattern_is_refused() -> None:
    done = run("replay", "--device", "")
    assert (done.exit_code, "sensor-*" in done.stderr) == (2, True)


def test_its_help_says_what_it_is_about() -> None:
    for words in ("IOTFLOW_BUDGET=quarantine", "ls", "replay"):
        assert words in run("--help").stdout
    for words in ("--device GLOB", "--dry-run", "130"):
        assert words in run("replay", "--help").stdout


FOUND = [
    Held("pump\x1b[2J", 1500, 200, Counter({"rate": 1200, "series": 300}), T0, T0 + 61_000),
    Held("b", 1, 0, Counter({"": 1}), T0, T0),
]


def test_a_list_is_a_table_that_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    quarantine._print_list(FOUND)
    shown = capsys.readouterr()
    head, first, second = shown.out.splitlines()
    assert head.split() == ["device", "readings", "waiting", "reasons", "first", "last"]
    assert "\x1b" not in shown.out
    for words in ("1,500", "200", "rate 1,200, series 300", "2026-01-02T03:04:05.000Z", "2026-01-02T03:05:06.000Z"):
        assert words in first
    assert "none said 1" in second
    assert shown.err == "1,501 readings of 2 devices, 200 waiting\n"


def test_an_empty_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    quarantine._print_list([])
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "0 readings of 0 devices, 0 waiting\n")


def test_a_list_as_json() -> None:
    found = quarantine._list_object(FOUND)
    assert (found["readings"], found["waiting"]) == (1501, 200)
    assert found["devices"][0] == {
        "device": "pump\x1b[2J", "readings": 1500, "waiting": 200, "reasons": {"rate": 1200, "series": 300},
        "first": "2026-01-02T03:04:05.000Z", "last": "2026-01-02T03:05:06.000Z",
    }  # fmt: skip
    assert "\x1b" not in json.dumps(found)


@pytest.mark.parametrize(
    ("done", "dry_run", "out", "err"),
    [
        (Done(Counter(a=2, b=1)), False, "3 readings of 2 devices sent on\n", ""),
        (Done(Counter(a=1), left=2000), True, "1 reading of 1 device would be sent on\n", "2,000 readings of other"),
        (Done(stopped=True), False, "0 readings of 0 devices sent on\n", "stopped: the same command goes on"),
    ],
)
def test_a_replay_says_what_it_did(
    done: Done,
    dry_run: bool,  # noqa: FBT001
    out: str,
    err: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quarantine._print_done(done, dry_run=dry_run)
    shown = capsys.readouterr()
    assert shown.out == out
    assert shown.err.startswith(err)
    assert bool(shown.err) is bool(err)
    assert quarantine._done_object(done, dry_run=dry_run) == {
        "dry_run": dry_run, "readings": done.devices.total(), "devices": dict(done.devices), "left": done.left,
        "stopped": done.stopped,
    }  # fmt: skip
