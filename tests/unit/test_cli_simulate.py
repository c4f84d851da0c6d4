"""`iotflow simulate`: its options, and what it says when something is wrong."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from click.testing import CliRunner, Result

from app import kafka, simulate
from app.cli import main
from app.fleet import Disorder, Fleet
from app.ledger import Ledger
from app.simulate import NoTopicError, Plan, Summary


class Calls(list[tuple[Fleet, Plan]]):
    """What `simulate.run` was called with; `error` is raised by the next call."""

    error: Exception | None = None
    summary = Summary(sent=99, good=98, bad=1, unacknowledged=2, seconds=3.0, rate=33.0)
    book: Ledger | None = None

    async def run(self, fleets: Sequence[tuple[Fleet, Plan]], client: Any, **options: Any) -> list[Summary]:
        """Stand in for `simulate.run`."""
        assert isinstance(options["stop"], asyncio.Event)
        assert client["bootstrap_servers"]
        self += fleets
        self.book = options["book"]
        if self.error is not None:
            raise self.error
        return [self.summary for _ in fleets]

    @property
    def plans(self) -> list[Plan]:
        """How much each fleet sends."""
        return [plan for _, plan in self]


FIELDS = {
    "sent": 99,
    "good": 98,
    "bad": 1,
    "out_of_order": 0,
    "late": 0,
    "unacknowledged": 2,
    "seconds": 3.0,
    "rate": 33.0,
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls()

    async def probe(_: object) -> None:
        """Say that Kafka is there."""

    monkeypatch.setattr(simulate, "run", found.run)
    monkeypatch.setattr(kafka, "probe", probe)
    return found


def invoke(*options: str, **env: str) -> Result:
    return CliRunner().invoke(main, ["simulate", *options], env=env)


def test_the_documents_defaults(calls: Calls) -> None:
    done = invoke()
    assert done.exit_code == 0, done.output
    ((fleet, plan),) = calls
    assert (fleet.dialect, fleet.devices, fleet.prefix) == ("telemetry", 10, "sensor")
    assert plan == Plan("raw_iot_data", 10.0)
    assert calls.book is None
    assert "99 readings to raw_iot_data in 3.0 s (33/s): 98 good, 1 bad" in done.stdout
    assert "2 more were not acknowledged" in done.stderr


def test_the_documents_names(calls: Calls) -> None:
    assert invoke(NUM_DEVICES="100", PUBLISH_INTERVAL_MS="100").exit_code == 0
    assert calls.plans[0].rate == 1_000.0


def test_options_and_json(calls: Calls, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    words = f"--rate 0 --dialect fire --duration 60 --count 5 --topic other --ledger {path} --json"
    done = invoke(*words.split(), NUM_DEVICES="100")
    assert done.exit_code == 0, done.output
    ((fleet, plan),) = calls
    assert fleet.dialect == "fire"
    assert plan == Plan("other", 0.0, 5, 60.0)
    assert isinstance(calls.book, Ledger)
    assert path.exists()
    assert json.loads(done.stdout) == {
        **FIELDS,
        "fleets": [{"dialect": "fire", "devices": 100, "prefix": "sensor", "topic": "other", **FIELDS}],
    }


def test_the_topic_that_speaks_the_dialect_is_chosen(calls: Calls) -> None:
    assert invoke("--dialect", "fire", KAFKA_RAW_TOPICS="a:telemetry,b:fire").exit_code == 0
    assert calls.plans[0].topic == "b"


def test_several_fleets(calls: Calls) -> None:
    words = "--rate 1200 --count 11 --duration 5 --fleet telemetry:100 --fleet fire,prefix=hall-b,interval-ms=500"
    done = invoke(*words.split(), NUM_DEVICES="10", KAFKA_RAW_TOPICS="a:telemetry,b:fire")
    assert done.exit_code == 0, done.output
    assert [(fleet.dialect, fleet.devices, fleet.prefix) for fleet, _ in calls] == [
        ("telemetry", 100, "telemetry"),
        ("fire", 10, "hall-b"),
    ]
    # A hundred a second and twenty a second, so five to one.
    assert calls.plans == [Plan("a", pytest.approx(1000.0), 9, 5.0), Plan("b", pytest.approx(200.0), 2, 5.0)]
    assert done.stdout.splitlines() == [
        "telemetry: 99 readings to a in 3.0 s (33/s): 98 good, 1 bad",
        "hall-b: 99 readings to b in 3.0 s (33/s): 98 good, 1 bad",
        "198 readings to a, b in 3.0 s (66/s): 196 good, 2 bad",
    ]
    assert "4 more were not acknowledged" in done.stderr


def test_several_fleets_as_json(calls: Calls) -> None:
    done = invoke("--fleet", "telemetry:2,topic=x", "--fleet", "fire:3,topic=y", "--json")
    said = json.loads(done.stdout)
    assert said["sent"] == 198
    assert [(fleet["prefix"], fleet["topic"], fleet["devices"], fleet["sent"]) for fleet in said["fleets"]] == [
        ("telemetry", "x", 2, 99),
        ("fire", "y", 3, 99),
    ]


def test_fleets_have_a_pace_of_their_own(calls: Calls) -> None:
    assert invoke("--fleet", "telemetry:100", "--fleet", "fire:20,interval-ms=100").exit_code == 0
    assert [plan.rate for plan in calls.plans] == [100.0, 200.0]


def test_fleets_and_shares_in_the_environment(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[dict[str, Any]] = []

    def fleet(*_: Any, **options: Any) -> Fleet:
        made.append(options)
        return Fleet(1, "telemetry", 1)

    monkeypatch.setattr("app.fleet.Fleet", fleet)
    done = invoke(
        "--dialect", "fire",  # as somebody else's command line has it
        SIMULATE_FLEETS="telemetry:2 fire:3", SIMULATE_BAD="0.02", SIMULATE_OUTLIERS="0.05",
        SIMULATE_LOW_BATTERY="0.03", SIMULATE_OUT_OF_ORDER="0.04", SIMULATE_LATE="0.01", SIMULATE_LATE_BY="120",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert [options["prefix"] for options in made] == ["telemetry", "fire"]
    assert made[0]["odd"] == {"temperature": 0.05, "humidity": 0.05, "battery": 0.03}
    assert made[1]["odd"].keys() >= {"smoke_density", "co_level", "gas_level"}
    assert {options["bad_share"] for options in made} == {0.02}
    assert {options["disorder"] for options in made} == {Disorder(0.04, 0.01, 120.0)}


def test_disorder_is_said(calls: Calls) -> None:
    calls.summary = Summary(sent=99, good=98, bad=1, out_of_order=5, late=1, seconds=3.0, rate=33.0)
    assert "98 good (5 out of order and 1 late), 1 bad" in invoke().stdout


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--fleet klingon:1", "cannot speak 'klingon'"),
        ("--fleet telemetry:0", "'telemetry:0' is not DIALECT[:DEVICES]"),
        ("--fleet telemetry:", "is no number of 1 or more"),
        ("--fleet telemetry:5,interval-ms=x", "'x' is no number of 1 or more"),
        ("--fleet telemetry:5,colour=red", "'colour' is none of its keys: topic, prefix, interval-ms"),
        ("--fleet telemetry:5,topic=", "a name is empty"),
        ("--fleet telemetry:5 --fleet telemetry:6", "two fleets have devices telemetry-"),
        ("--fleet telemetry:5 --fleet fire:6 --prefix x", "two fleets have devices x-"),
        ("--fleet telemetry:5 --dialect fire", "leave --dialect out"),
        ("--out-of-order 0.4", "are too much"),
    ],
)
def test_what_cannot_be_is_a_usage_error(calls: Calls, words: str, sentence: str) -> None:
    done = invoke(*words.split())
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())
    assert not calls


def test_an_unknown_dialect_is_a_usage_error(calls: Calls) -> None:
    done = invoke("--dialect", "klingon")
    assert done.exit_code == 2
    assert "cannot speak 'klingon', only decoded, fire" in done.stderr
    assert not calls


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (NoTopicError("there is no topic 'x'"), "there is no topic 'x'"),
        (KafkaConnectionError("gone"), "cannot be reached"),
    ],
)
def test_a_failure_is_a_sentence(calls: Calls, error: Exception, sentence: str) -> None:
    calls.error = error
    done = invoke()
    assert done.exit_code == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.output
