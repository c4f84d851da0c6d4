"""`iotflow alarms` without Kafka: how it is called, how it fails, and how an alarm is found among others."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.alarms import Chosen, by_device, find
from app.cli import main
from schemas.alarm import AlarmError, Record

AWAY = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
EVERY = [("ls",), ("ls", "--by", "device", "--json"), ("show", "abcd"), ("ack", "abcd"), ("resolve", "a||b|c")]
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def run(*arguments: str, env: Mapping[str, str] = AWAY) -> Result:
    return CliRunner().invoke(main, ["alarms", *arguments], env=env)


@pytest.mark.parametrize("arguments", EVERY)
def test_a_broker_that_is_away_is_said(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert "nothing listens there" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", EVERY)
def test_wrong_settings_are_said_by_name(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, env={**AWAY, "IOTFLOW_PARTITIONS": "many"})
    assert done.exit_code == 1
    assert "IOTFLOW_PARTITIONS" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ls", "--all", "--state", "ACTIVE"), "--state or --all"),
        (("ls", "--state", "OPEN"), "OPEN"),
        (("ls", "--severity", "HIGH"), "HIGH"),
        (("ls", "--by", "rule"), "rule"),
        (("show",), "ID|KEY"),
        (("ack", "a", "--by", " "), "--by"),
        (("resolve", "a", "--by", "x" * 513), "--by"),
        (("ack", "a", "--timeout", "0"), "--timeout"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize("name", ["ls", "show", "ack", "resolve"])
def test_help_says_what_the_exit_code_means(name: str) -> None:
    done = run(name, "--help")
    assert done.exit_code == 0
    assert "Exits with 0" in done.stdout
    assert "--json" in done.stdout


# -- among others ------------------------------------------------------------------------------------------------------


def alarm(id_: str, device: str = "d", **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "key": f"{device}||t|{id_}",
        "alarm_id": id_,
        "device_id": device,
        "measurement": "telemetry",
        "channel": "",
        "metric": "t",
        "rule": id_,
        "kind": "HEAT",
        "severity": "WARN",
        "state": "ACTIVE",
        "raised_at": NOON,
        "updated_at": NOON,
    }
    return Record(**{**fields, **changes})


def test_an_alarm_is_found_by_as_much_as_tells_it_from_others() -> None:
    one, other = alarm("aaaa1111"), alarm("aaaa2222")
    for wanted in ("aaaa1111", "aaaa1", "AAAA1", "d||t|aaaa1111"):
        assert find([one, other], wanted) is one
    for wanted, said in (
        ("aaaa", "2 alarms have an id that begins with 'aaaa': aaaa1111, aaaa2222"),
        ("aaa", "no alarm has the key or the id 'aaa'"),  # too short to be meant
        ("d||t|aaaa", "no alarm has"),
        ("", "no alarm has"),
    ):
        with pytest.raises(AlarmError, match=re.escape(said)):
            find([one, other], wanted)


def test_a_key_needs_its_measurement_only_where_two_differ_in_nothing_else() -> None:
    fire, other = alarm("f", key="d||t|hot|fire"), alarm("o", key="d||t|cold|fire")
    assert find([fire, other], "d||t|hot") is fire
    plain, third = alarm("p", key="d||t|hot"), alarm("w", key="d||t|hot|weather")
    assert find([fire, plain], "d||t|hot") is plain
    assert find([fire, third], "d||t|hot|weather") is third
    with pytest.raises(AlarmError, match=r"^2 alarms have a key that begins with 'd\|\|t\|hot': f, w$"):
        find([fire, third], "d||t|hot")
    with pytest.raises(AlarmError, match="no alarm has"):
        find([plain], "d||t")


def test_a_whole_id_is_found_also_where_it_begins_another() -> None:
    one, other = alarm("aaaa"), alarm("aaaa2")
    assert find([other, one], "aaaa") is one


def test_of_many_a_few_are_named() -> None:
    with pytest.raises(AlarmError, match=r"9 alarms .*aaaa4, …$"):
        find([alarm(f"aaaa{number}") for number in range(9)], "aaaa")


def test_of_each_kind_that_is_named_one_must_be_true() -> None:
    found = alarm("x", "EQ[1]", severity="EMERGENCY", state="CLEARED")
    assert Chosen(["EQ[1]"], ["EMERGENCY", "WARN"], ["CLEARED"]).admits(found)
    assert Chosen(states=()).admits(found)
    assert Chosen(["EQ*"], states=()).admits(found)
    for chosen in (Chosen(), Chosen(["eq*"], states=()), Chosen(severities=["WARN"], states=())):
        assert not chosen.admits(found)


def test_a_device_is_as_ill_as_its_worst_open_alarm() -> None:
    earlier = NOON - timedelta(hours=1)
    warn, urgent = alarm("w", raised_at=earlier), alarm("e", severity="EMERGENCY")
    gone, other = alarm("c", severity="EMERGENCY", state="CLEARED", raised_at=earlier - timedelta(1)), alarm("o", "x")
    found = by_device([other, gone, warn, urgent])
    assert [(each.device_id, each.open, each.since, each.worst) for each in found] == [
        ("x", 1, NOON, other),
        ("d", 2, earlier, urgent),
    ]
    assert by_device([gone]) == []
