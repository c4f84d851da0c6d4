"""`iotflow dlq` without Kafka: its options, how it fails, and how letters are printed."""

import json
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from app.cli import _letters, dlq, main
from app.deadletters import Done, Shown, Try, Verdict, readers
from app.settings import load
from schemas.deadletter import Replayed
from schemas.letterstate import Again, Entry, Mark, Plan

AWAY = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "COLUMNS": "200"}
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECRET = "s3cr3t-v4lue"  # noqa: S105  it must not be seen


def run(*arguments: str, env: Mapping[str, str] = AWAY) -> Result:
    return CliRunner().invoke(main, ["dlq", *arguments], env=env)


def entry(id_: str = "decode:raw/3/17/0", **changes: object) -> Entry:
    made = Entry(
        id_, 0, 1, "decode", "bad_type", "telemetry", "sensor-1", "raw", 3, 17, 1_767_323_045_000, 1, "00", 7, True
    )
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("arguments", [("ls",), ("show", "x"), ("stats",), ("replay",), ("drop", "x")])
def test_without_a_broker_it_says_which(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert "127.0.0.1:1" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", [("ls",), ("stats",), ("replay",), ("drop", "x")])
def test_a_wrong_setting_is_named(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, env={"IOTFLOW_PARTITIONS": "none"})
    assert (done.exit_code, "IOTFLOW_PARTITIONS" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ls", "--reason", "bad_mood"), "unknown_device"),
        (("ls", "--since", "yesterday"), "12h, 7d or 2w"),
        (("ls", "--until", "2026-01-02T03:04:05"), "no zone"),
        (("ls", "--state", "lost"), "replayed"),
        (("ls", "--limit", "-1"), "-1"),
        (("stats", "--by", "mood"), "dialect"),
        (("replay", "--rate", "0"), "above 0"),
        (("replay", "--rate", "10/m"), "as 100/s"),
        (("replay", "--rate", "nan"), "above 0"),
        (("replay", "--rate", "inf/s"), "above 0"),
        (("replay", "--max-attempts", "1"), "2"),
        (("drop",), "name an ID"),
        (("drop", "--state", "all"), "name an ID"),
        (("show",), "ID"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_read(arguments: tuple[str, ...], words: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert words in done.stderr


def test_exit_codes_are_in_the_help() -> None:
    for name in ("ls", "show", "stats", "replay", "drop"):
        assert "Exits with 0" in run(name, "--help").stdout
    assert "130 when it was interrupted" in " ".join(run("replay", "--help").stdout.split())


def test_who_reads_what() -> None:
    found = readers(load({"KAFKA_RAW_TOPICS": "a:telemetry,b:fire", "KAFKA_INPUT_TOPIC": "in", "STORES": "influxdb"}))
    # Not the alarms: an older state would become the latest.
    assert found == {"decode": {"a", "b"}, "store-influxdb": {"in", "iotflow.aggregates", "iotflow.quality"}}


def test_nothing_that_a_letter_says_moves_a_cursor_or_shows_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever stands in ids, keys, headers, errors and payloads."""
    odd = f"x\x1b[2J\u202e password={SECRET}"
    held = Replayed(
        "raw",
        3,
        17,
        10**17,
        odd.encode(),
        odd.encode(),
        [("odd\x1b", odd.encode()), ("token", SECRET.encode()), ("n", None)],
        1,
    )
    tries = [Try(1, 10**17, "bad_mood", odd, "x\x1b[2J")]
    mark = Mark("replayed", 1, AT, "00", 1, "x\x1b[2J", "x\u202e")
    shown = Shown(entry(device="x\x1b[2J", dialect="\u202e", reason="bad_mood", mark=mark), tries, [mark], held)
    verdict = Verdict([json.dumps({"note": odd, "api_key": SECRET}).encode()], [("old", odd)])
    found = json.dumps(_letters.letter_object(shown, verdict))
    _letters.print_letter(shown, verdict)
    _letters.print_letter(shown, f"nobody knows\x1b {odd[:3]}")
    _letters.print_list([(entry(device="x\x1b[2J"), odd)])
    _letters.print_replay(Plan([], {}), None, {"cut": ["x\x1b[2J"]}, dry_run=False)
    printed = capsys.readouterr()
    for text in (printed.out, printed.err, _letters.as_json(_letters.letter_object(shown, verdict)), found):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert SECRET not in text
        assert "***" in text or text is printed.err
    assert "a reason that this version does not know" in printed.out


def test_what_was_sent_and_what_was_not(capsys: pytest.CaptureFixture[str]) -> None:
    records = [Again("decode", 2, [entry(), entry("decode:raw/3/17/2")])]
    ids = [f"decode:raw/0/{number}/0" for number in range(9)]
    plan = Plan(records, {"attempts": ids})
    _letters.print_replay(plan, None, plan.skipped, dry_run=True)
    _letters.print_replay(plan, Done(0, 0, 0, {}, stopped=True), {}, dry_run=False)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        "2 letters would be sent again, as 1 record",
        "0 letters sent again, as 0 records",
    ]
    assert printed.err.splitlines() == [
        "9 letters not sent: it has failed as often as --max-attempts allows",
        *[f"  {id_}" for id_ in ids[:5]],
        "stopped; 2 letters left: the same command goes on",
    ]
    found = _letters.replay_object(plan, None, plan.skipped, dry_run=True)
    assert (found["records"], found["letters"], found["skipped"]["attempts"]["letters"]) == (1, 2, 9)
    assert _letters.time_of(10**17) is None


def test_what_another_store_got_is_said_to_stay_open(capsys: pytest.CaptureFixture[str]) -> None:
    plan = Plan([Again("store-file", 2, [entry("store-iotdb:raw/3/17/0", stage="store-iotdb")])], {})
    _letters.print_replay(plan, None, {}, dry_run=True)
    _letters.print_replay(plan, Done(1, 1, 1, {}), {}, dry_run=False)
    _letters.print_replay(plan, Done(0, 0, 0, {}, stopped=True), {}, dry_run=False)
    printed = capsys.readouterr()
    why = "their own store has not got them; replay without --to, or drop them"
    assert printed.out.splitlines() == [
        "1 letter would be sent again, as 1 record",
        f"1 letter would stay open: {why}",
        "1 letter sent again, as 1 record",
        f"1 letter open still: {why}",
        "0 letters sent again, as 0 records",
    ]
    assert printed.err == "stopped; 1 letter left: the same command sends all of them\n"
    assert _letters.replay_object(plan, None, {}, dry_run=True)["kept_open"] == 1
    assert "stays open" in run("replay", "--help").stdout


def test_a_key_that_names_a_secret_is_hidden_wherever_it_is_the_device(capsys: pytest.CaptureFixture[str]) -> None:
    key = f"token={SECRET}"
    held = Replayed("raw", 3, 17, 10**12, key.encode(), b"{}", [], 1)
    shown = Shown(entry(device=key), [Try(1, 10**12, "bad_type", "why", "1")], [], held)
    _letters.print_list([(entry(device=key), "why")])
    _letters.print_letter(shown, None)
    printed = capsys.readouterr().out
    found = _letters.letter_object(shown, None)
    assert found["device"] == found["key"] == "token=***"
    assert printed.count("token=***") == 3
    assert SECRET not in printed


def test_every_command_in_the_documentation_can_be_typed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "dead-letters.md").read_text()
    found = re.findall(r"^iotflow dlq (.+?)(?: *[#|>].*)?$", page, re.MULTILINE)
    assert len(found) > 8
    for line in found:
        name, *arguments = shlex.split(line)
        dlq.command.commands[name].make_context(name, arguments)
