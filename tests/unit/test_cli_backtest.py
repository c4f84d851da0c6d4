"""`iotflow backtest` without Kafka: what it prints, how it exits, and what it says of what it cannot use."""

import json
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app.cli import main
from app.cli.backtest import _span
from schemas import wire
from schemas.reading import Reading
from tests.lab.analysis import reading

AWAY = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "COLUMNS": "200"}
HEAT = {"metric": "temperature", "unit": "°C", "levels": {"WARN": 70, "EMERGENCY": 90}}
READINGS = [
    reading(10 * place, device, temperature=value)
    for device, spike in (("EQ001", 95.0), ("EQ002", 75.0))
    for place, value in enumerate([20.0, 20.0, spike, spike + 1, 20.0])
]


def run(*arguments: str, data: bytes | None = None, **env: str) -> Result:
    return CliRunner().invoke(main, ["backtest", *arguments], input=data, env={**AWAY, **env})


def lines(readings: list[Reading]) -> bytes:
    return b"".join(wire.write(each) + b"\n" for each in readings)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Two devices, each with a spike; as a source."""
    path = tmp_path / "readings.jsonl"
    path.write_bytes(lines(READINGS))
    return f"file:{path}"


def rules(folder: Path, name: str = "rules.yaml", **own: Any) -> str:
    path = folder / name
    path.write_text(json.dumps({"profile": "none", "rules": own}))
    return str(path)


def test_the_difference_as_json(tmp_path: Path, file: str) -> None:
    new = rules(tmp_path, heat=HEAT)
    old = rules(tmp_path, "old.yaml", heat={**HEAT, "levels": {"WARN": 96}})
    done = run(new, "--against", old, "--source", file, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    alarms = found.pop("alarms")
    (summary,) = found.pop("summary")
    assert found == {
        "rules": new,
        "against": old,
        "source": file,
        "from": "2026-11-23T00:00:00+00:00",
        "to": "2026-11-23T00:00:40.000001+00:00",
        "readings": 10,
        "devices": 2,
    }
    assert summary == {
        "rule": "heat",
        "rules": {"alarms": 2, "devices": 2, "seconds": 40.0, "severities": {"EMERGENCY": 1, "WARN": 1}},
        "against": {"alarms": 1, "devices": 1, "seconds": 10.0, "severities": {"WARN": 1}},
        "new": 1,
        "gone": 0,
        "both": 1,
    }
    heat = {"measurement": "telemetry", "channel": "", "metric": "temperature", "rule": "heat"}
    begin = {"from": "2026-11-23T00:00:20Z", "to": "2026-11-23T00:00:40Z"}
    later = {"from": "2026-11-23T00:00:30Z", "to": "2026-11-23T00:00:40Z"}
    said = "temperature {} °C is at or above {} °C ({})"
    was = {"device_id": "EQ001", **heat, "severity": "WARN", **later, "peak": 96.0}
    assert alarms == [
        {
            "verdict": "both",
            "device_id": "EQ001",
            **heat,
            "severity": "EMERGENCY",
            **begin,
            "peak": 96.0,
            "message": said.format(95, 90, "EMERGENCY"),
            "was": [{**was, "message": said.format(96, 96, "WARN")}],
        },
        {
            "verdict": "new",
            "device_id": "EQ002",
            **heat,
            "severity": "WARN",
            **begin,
            "peak": 76.0,
            "message": said.format(75, 70, "WARN"),
            "was": [],
        },
    ]


def test_the_difference_for_people(tmp_path: Path, file: str) -> None:
    done = run(
        rules(tmp_path, heat=HEAT),
        "--against",
        rules(tmp_path, "old.yaml", warm=HEAT),
        "--source",
        file,
        "--limit",
        "3",
    )
    assert (done.exit_code, done.stderr) == (0, "")
    said = [line.split() for line in done.stdout.splitlines() if line]
    assert said[0][:5] == ["10", "readings", "of", "2", "devices"]
    assert [
        "heat",
        "0",
        "→",
        "2",
        "2",
        "0",
        "0",
        "→",
        "2",
        "0s",
        "→",
        "40s",
        "none",
        "→",
        "1",
        "EMERGENCY,",
        "1",
        "WARN",
    ] in said
    assert [line[0] for line in said if line[0] in {"new", "gone", "both"}] == ["new", "new", "gone"]
    assert said[-1][:4] == ["…", "and", "1", "more:"]


def test_no_alarm_is_said(tmp_path: Path, file: str) -> None:
    done = run("none", "--against", rules(tmp_path), "--source", file)
    assert done.exit_code == 0
    assert "no alarm, neither by none nor by" in done.stdout


def test_new_alarms_can_fail(tmp_path: Path, file: str) -> None:
    new = rules(tmp_path, heat=HEAT)
    assert run(new, "--against", "none", "--source", file).exit_code == 0
    assert run(new, "--against", "none", "--source", file, "--fail-on-new").exit_code == 1
    assert run(new, "--against", new, "--source", file, "--fail-on-new").exit_code == 0
    assert run("none", "--against", new, "--source", file, "--fail-on-new").exit_code == 0


def test_some_devices_metrics_and_times(tmp_path: Path, file: str) -> None:
    new = rules(tmp_path, heat=HEAT)

    def found(*options: str) -> list[str]:
        done = run(new, "--against", "none", "--source", file, "--json", *options)
        assert done.exit_code == 0, done.stderr
        return [each["device_id"] for each in json.loads(done.stdout)["alarms"]]

    assert found() == ["EQ001", "EQ002"]
    assert found("--device", "EQ002", "--metric", "temp*") == ["EQ002"]
    assert found("--device", "*1") == ["EQ001"]
    assert found("--metric", "humidity") == []
    assert found("--to", "2026-11-23T00:00:20Z") == []
    assert found("--from", "2026-11-23T00:00:40Z") == []


def test_standard_input(tmp_path: Path) -> None:
    done = run(rules(tmp_path, heat=HEAT), "--against", "none", "--source", "-", "--json", data=lines(READINGS[:5]))
    assert [each["device_id"] for each in json.loads(done.stdout)["alarms"]] == ["EQ001"]


def test_a_picture(tmp_path: Path, file: str) -> None:
    picture = tmp_path / "a.svg"
    done = run(rules(tmp_path, heat=HEAT), "--against", "fire", "--source", file, "--picture", str(picture))
    assert done.exit_code == 0, done.stderr
    names = [name for each in ET.parse(picture).iter() if (name := each.get("id", "")).startswith("alarm-")]  # noqa: S314
    # Fire's own rule is called temperature, and sees one of them.
    assert sorted(names) == ["alarm-against-0-0", "alarm-rules-0-0", "alarm-rules-1-0"]


def test_rules_that_say_nothing_here_are_named(tmp_path: Path, file: str) -> None:
    window = rules(tmp_path, heat={**HEAT, "on": "7m"})
    done = run(window, "--against", "none", "--source", file)
    assert "note: heat: looks at windows of 7m, and IOTFLOW_WINDOWS has: 1m, 5m, 1h, 1d" in done.stderr
    typed = [Reading("telemetry", "d", READINGS[0].time, {"temperature": 20.0}, units={"temperature": "ppm"})]
    done = run(rules(tmp_path, heat=HEAT), "--against", "none", "--source", "-", data=lines(typed))
    assert "note: heat is not applied to temperature: " in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (("no.yaml",), 1, "no.yaml: no such file; a profile is one of"),
        (("fire", "--against", "no.yaml", "--source", "FILE"), 1, "no.yaml: no such file"),
        (("fire", "--source", "FILE"), 1, "--against compares with rules that need no Kafka"),
        (("fire", "--against", "none"), 1, "127.0.0.1:1"),
        (("fire", "--against", "none", "--source", "mongo"), 1, "no source is called 'mongo'; there are: topic, file:"),
        (("fire", "--against", "none", "--source", "file:no.jsonl"), 1, "no.jsonl: no such file"),
        (("fire", "--against", "none", "--source", "FILE", "--device", "none"), 1, "has no such readings"),
        (
            ("fire", "--against", "none", "--source", "FILE", "--to", "2026-11-22T00:00:00Z"),
            1,
            "no such readings before 2026-11-22",
        ),
        (("fire", "--from", "soon"), 2, "'soon'"),
        (("fire", "--from", "1d", "--to", "2d"), 2, "must be before --to"),
        (("fire", "--limit", "-1"), 2, "--limit"),
        (("fire", "--picture", "a.gif"), 1, "ends in .svg or .png"),
        (("fire", "--picture", "no/a.svg"), 1, "no: no such directory"),
    ],
)
def test_what_cannot_be_used(file: str, arguments: tuple[str, ...], code: int, why: str) -> None:
    done = run(*(file if each == "FILE" else each for each in arguments))
    assert done.exit_code == code, done.output
    assert why in done.stderr
    assert done.stdout == ""


def test_wrong_lines_are_named(tmp_path: Path) -> None:
    done = run("fire", "--against", "none", "--source", "-", data=lines(READINGS[:2]) + b"{}\n")
    assert done.exit_code == 1
    assert "standard input: line 3: " in done.stderr


def test_an_interruption_leaves_at_once() -> None:
    """Also from a pipe that says nothing."""
    command = [sys.executable, "-c", "from app.cli import main; main()", "backtest", "fire"]
    with subprocess.Popen(
        [*command, "--against", "none", "--source", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        # More than a pipe holds is taken only by somebody who reads.
        process.stdin.write(lines(READINGS * 200))
        process.stdin.flush()
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
        assert process.stderr is not None
        assert process.stderr.read().decode() == "stopped: nothing is shown\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.6, "1m 0s"), (61, "1m 1s"), (3600, "1h 0m"), (90_061, "1d 1h"), (5, "5s")]
)
def test_spans_of_time(seconds: float, text: str) -> None:
    assert _span(seconds) == text
