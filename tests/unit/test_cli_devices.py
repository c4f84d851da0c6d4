"""`iotflow devices` without Kafka: its options, how it fails, and what it prints."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner, Result

from app.cli import devices as cli
from app.cli import main
from app.devices import Event, Present, Shown, device, event_of, totals
from schemas import wire
from schemas.alarm import Record
from schemas.latest import Latest, Span
from schemas.quality import quality, written
from schemas.reading import Reading

AWAY = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
EVERY = [("ls",), ("ls", "--alarms", "--json"), ("stale",), ("show", "d"), ("show", "d", "--json")]
NOW = datetime(2026, 11, 23, 9, 40, tzinfo=UTC)
HERE = Present(NOW, timedelta(seconds=60))


def run(*arguments: str, env: Mapping[str, str] = AWAY) -> Result:
    return CliRunner().invoke(main, ["devices", *arguments], env=env)


@pytest.mark.parametrize("arguments", EVERY)
def test_a_broker_that_is_away_is_said(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert "nothing listens there" in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("arguments", EVERY)
def test_wrong_settings_are_said_by_name(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, env={**AWAY, "IOTFLOW_IDLE": "never"})
    assert done.exit_code == 1
    assert "IOTFLOW_IDLE" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("ls", "--stale", "soon"), "'soon' is no number above 0 with a unit"),
        (("ls", "--stale", "0s"), "--stale"),
        (("ls", "--sort", "size"), "size"),
        (("ls", "--top", "0"), "--top"),
        (("ls", "--facility", ""), "plant-*"),
        (("stale", "--top", "few"), "few"),
        (("show",), "DEVICE"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments: tuple[str, ...], said: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize("name", ["ls", "stale", "show"])
def test_help_says_what_the_exit_code_means(name: str) -> None:
    done = run(name, "--help")
    assert done.exit_code == 0
    assert "Exits with 0" in done.stdout
    assert "--json" in done.stdout


# -- what is printed ---------------------------------------------------------------------------------------------------


def channel(name: str = "pump\x1b[2J", silent: float = 0.0, ahead: int = 0, **values: object) -> Latest:
    seen = NOW - timedelta(seconds=silent)
    reading = Reading(
        "fire",
        name,
        seen,
        {"t": 80.0, "door": "open", "gone": None, "api_key": "hush", **values},  # type: ignore[dict-item]
        "sensor/[1]",
        {"t": "°C"},
        {"facility_id": "[b]F1", "token": "hush"},
        {"t": 130.5, "password": "hush"},
    )
    return Latest(
        device_id=name,
        measurement="fire",
        channel="sensor/[1]",
        first_seen=NOW - timedelta(days=2),
        seen=seen,
        online=True,
        hour=Span(NOW.replace(minute=0) + timedelta(hours=ahead), 1234),
        day=Span(NOW.replace(hour=0, minute=0), 56789),
        reading=reading,
    )


ALARM = Record(
    key="pump||t|heat",
    alarm_id="abcdef0123456789",
    device_id="pump",
    measurement="fire",
    channel="",
    metric="t",
    rule="heat",
    kind="HEAT",
    severity="WARN",
    state="ACTIVE",
    raised_at=NOW,
    updated_at=NOW,
    message="too [hot]\x1b[2J",
)
EVENT = Event(NOW, "nulls", "null: gone, [t]", 2, "fire", "sensor/[1]")


def test_devices_are_a_table_that_moves_no_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        device("pump\x1b[2J", [channel()], HERE, 2),
        device("far", [channel("far", 7300, ahead=1)], HERE, 0),
    ]
    cli._print_totals(totals(found), HERE)
    cli._table(found, HERE, with_alarms=True)
    shown = capsys.readouterr()
    total, head, first, second = shown.out.splitlines()
    assert total == "2 devices: 1 online, 1 offline; readings: 1,234 since 09:00 UTC, 113,578 today"
    assert head.split()[6:] == ["since", "09:00", "today", "channels", "first", "seen", "alarms"]
    assert "\x1b" not in shown.out
    for words in ("pump\\x1b[2J", "[b]F1", "online", "0 s", "2026-11-23 09:40:00Z", "1,234", "56,789"):
        assert words in first
    assert first.split()[-1] == "2"
    for words in ("far", "offline", "2 h", " ? "):
        assert words in second
    assert "1 device with clocks ahead" in shown.err


def test_alarms_are_shown_only_where_somebody_looked(capsys: pytest.CaptureFixture[str]) -> None:
    found = device("d", [channel("d")], HERE)
    cli._table([found], HERE, with_alarms=False)
    assert "alarms" not in capsys.readouterr().out
    assert "open_alarms" not in cli._as_object(found)
    assert cli._as_object(device("d", [channel("d")], HERE, 0))["open_alarms"] == 0


def test_nobody_is_a_line_and_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    cli._print_totals(totals([]), HERE)
    cli._table([], HERE, with_alarms=False)
    cli._say_quiet([], HERE)
    shown = capsys.readouterr()
    assert shown.out.splitlines() == ["0 devices: 0 online, 0 offline; readings: 0 since 09:00 UTC, 0 today"]
    assert shown.err == ""


def test_where_nobody_is_heard_it_is_asked_who_listens(capsys: pytest.CaptureFixture[str]) -> None:
    one, other = device("a", [channel("a", 61)], HERE), device("b", [channel("b", 7300)], HERE)
    cli._say_quiet([one, other], HERE)
    assert "nothing was heard of any of them for 1 m: does analyze run?" in capsys.readouterr().err
    cli._say_quiet([other, device("c", [channel("c", 60)], HERE)], HERE)
    assert capsys.readouterr().err == ""


def test_a_device_is_shown_with_all_that_is_known_and_nothing_secret(capsys: pytest.CaptureFixture[str]) -> None:
    known = Shown([channel(said="token=hush")], [ALARM], [EVENT], {})
    about = device("[b]pump\x1b[2J", known.channels, HERE, 1)
    cli._print_device(about, known, HERE)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "hush" not in shown
    for words in ("[b]pump\\x1b[2J", "[b]F1", "1,234 since 09:00 UTC, 56,789 today", "sensor/[1]", "it said 130.5"):
        assert words in shown
    values = {line.split()[2]: line.split()[3] for line in shown.splitlines() if line.startswith("fire")}
    assert values == {"t": "80.0", "door": "open", "gone": "null", "api_key": "***", "said": "token=***"}
    for words in ("abcdef01 ", "too [hot]\\x1b[2J", "WARN", "nulls", "null: gone, [t]"):
        assert words in shown

    said = cli._whole_object(about, known, HERE)
    assert "hush" not in json.dumps(said, default=str)
    assert (said["readings_hour"], said["open_alarms"], said["online"]) == (1234, 1, True)
    assert (said["hour"], said["day"]) == (NOW.replace(minute=0), NOW.replace(hour=0, minute=0))
    [one] = said["channels"]
    assert (one["values"]["t"], one["values"]["gone"], one["raw"]) == (80.0, None, {"t": 130.5, "password": "***"})
    assert one["tags"] == {"facility_id": "[b]F1", "token": "***"}
    assert said["alarms"][0]["key"] == ALARM.key
    assert said["quality"][0]["message"] == EVENT.message


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.9, "0 s"), (59.9, "59 s"), (60, "1 m"), (3599, "59 m"), (3600, "1 h"), (86_399, "23 h"), (10**9, "11,574 d")],
)
def test_a_silence_in_its_largest_unit(seconds: float, said: str) -> None:
    assert cli._ago(seconds) == said


def test_an_event_of_quality_is_read_with_its_series() -> None:
    key, value = written(
        quality("nulls", "d", NOW, "null: t", measurement="fire", channel="a|b", metric="t", count=3, facility="F")
    )
    assert key == b"d"
    assert event_of(value) == Event(NOW, "nulls", "null: t", 3, "fire", "a|b", "t")
    assert event_of(wire.write(Reading("fire", "d", NOW, {"t": 1.0}))) is None
    assert event_of(b"{") is None
    assert event_of(None) is None
