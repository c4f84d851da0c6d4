"""`iotflow flush | stop | resume | delete | status` without Kafka: how they are called, and how they fail."""

from collections.abc import Mapping

import pytest
from click.testing import CliRunner, Result

from app.cli import main

AWAY = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
EVERY = [
    ("flush", "decode"),
    ("stop", "--all"),
    ("resume", "store-timescale"),
    ("delete", "device", "d", "--yes"),
    ("status",),
    ("status", "--watch", "--json"),
]


def run(*arguments: str, env: Mapping[str, str] = AWAY, answer: str = "") -> Result:
    return CliRunner().invoke(main, arguments, env=env, input=answer)


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


@pytest.mark.parametrize("action", ["flush", "stop", "resume"])
@pytest.mark.parametrize("arguments", [(), ("decode", "--all")])
def test_one_stage_or_all(action: str, arguments: tuple[str, ...]) -> None:
    done = run(action, *arguments)
    assert done.exit_code == 2
    assert "--all" in done.stderr


@pytest.mark.parametrize("action", ["flush", "stop", "resume"])
@pytest.mark.parametrize("stage", ["store-timescail", "analyse", "ingest-mqtt", "api"])
def test_a_stage_that_is_none_is_told_which_there_are(action: str, stage: str) -> None:
    """One that only has a port set aside for it cannot be started either."""
    done = run(action, stage)
    assert done.exit_code == 2
    assert "no stage is called" in done.stderr
    for word in (f"'{stage}'", "decode", "store-timescale", "store-iotdb", "store-influxdb"):
        assert word in done.stderr


@pytest.mark.parametrize("seconds", ["0", "-1", "90000", "soon", "nan"])
def test_a_time_that_is_none(seconds: str) -> None:
    assert run("flush", "decode", "--timeout", seconds).exit_code == 2


def test_nothing_is_deleted_unless_one_says_so() -> None:
    for answer in ("n\n", "\n", ""):
        done = run("delete", "device", "d-1", answer=answer)
        assert done.exit_code == 1
        assert "'d-1'" in done.stderr
        assert "Kafka" not in done.output  # it was not even asked
    assert "nothing listens there" in run("delete", "device", "d-1", answer="y\n").stderr


def test_no_device_is_no_device() -> None:
    assert run("delete", "device", "", "--yes").exit_code == 2
    assert run("delete", "device", "--yes").exit_code == 2


@pytest.mark.parametrize("arguments", [each[: 1 + (each[0] == "delete")] for each in EVERY])
def test_help_says_what_the_exit_code_means(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, "--help")
    assert done.exit_code == 0
    assert "Exits with 0" in done.stdout
    assert "--json" in done.stdout
