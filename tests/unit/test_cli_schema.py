"""`iotflow schema expire` and `compress`: spans of time, and stores that need neither."""

from datetime import timedelta

import click
import pytest
from click.testing import CliRunner

from app.cli.schema import _Span, command


@pytest.mark.parametrize(
    ("text", "span"),
    [("7d", timedelta(days=7)), ("12h", timedelta(hours=12)), ("30min", timedelta(minutes=30))],
)
def test_a_span_is_a_number_and_its_unit(text: str, span: timedelta) -> None:
    assert _Span().convert(text, None, None) == span


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "0d", "1.5h", "7 days", "9999999999999d"])
def test_what_is_no_span_is_said(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"span|long"):
        _Span().convert(text, None, None)


@pytest.mark.parametrize("arguments", [["expire"], ["compress", "--older-than", "7d"]])
def test_a_store_that_needs_nothing_by_hand(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    monkeypatch.setenv("STORES", "influxdb")
    done = CliRunner().invoke(command, arguments)
    assert done.exit_code == 0, done.output
    assert "no store here needs it" in done.output
    named = CliRunner().invoke(command, [*arguments, "--store", "influxdb"])
    assert named.exit_code == 1
    assert "by hand in this store" in named.output


def test_a_server_that_cannot_be_reached_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORES", "timescale")
    monkeypatch.setenv("TIMESCALE_PORT", "1")
    monkeypatch.setenv("TIMESCALE_RETENTION_DAYS", "30")
    done = CliRunner().invoke(command, ["expire"])
    assert done.exit_code == 1
    assert "timescale: cannot be reached at ts_user@localhost:1/timeseries (" in done.output
    assert "check that it runs, and TIMESCALE_HOST, TIMESCALE_PORT" in done.output


@pytest.mark.parametrize(
    ("store", "settings", "names"),
    [
        ("influxdb", {"INFLUXDB_URL": "http://localhost:1", "INFLUXDB_TOKEN": "t"}, "INFLUXDB_URL"),
        ("iotdb", {"IOTDB_HOST": "localhost", "IOTDB_PORT": "1"}, "IOTDB_HOST, IOTDB_PORT"),
    ],
)
def test_any_store_that_cannot_be_reached_names_its_settings(
    monkeypatch: pytest.MonkeyPatch, store: str, settings: dict[str, str], names: str
) -> None:
    monkeypatch.setenv("STORES", store)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(command, ["plan"])
    assert done.exit_code == 1
    assert f"{store}: cannot be reached at" in done.output
    assert names in done.output
