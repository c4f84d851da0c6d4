"""`iotflow simulate`: its options, and what it says when something is wrong."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError
from click.testing import CliRunner, Result

from app import kafka, simulate
from app.cli import main
from app.ledger import Ledger
from app.simulate import Fleet, NoTopicError, Plan, Summary


class Calls(list[tuple[Fleet, Plan, Any]]):
    """What `simulate.run` was called with; `error` is raised by the next call."""

    error: Exception | None = None

    async def run(self, fleet: Fleet, plan: Plan, client: Any, **options: Any) -> Summary:
        """Stand in for `simulate.run`."""
        assert isinstance(options["stop"], asyncio.Event)
        assert client["bootstrap_servers"]
        self.append((fleet, plan, options["book"]))
        if self.error is not None:
            raise self.error
        return Summary(sent=99, good=98, bad=1, unacknowledged=2, seconds=3.0, rate=33.0)


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
    ((fleet, plan, book),) = calls
    assert fleet.dialect == "telemetry"
    assert plan == Plan("raw_iot_data", 10.0)
    assert book is None
    assert "99 readings to raw_iot_data in 3.0 s (33/s): 98 good, 1 bad" in done.stdout
    assert "2 more were not acknowledged" in done.stderr


def test_the_documents_names(calls: Calls) -> None:
    assert invoke(NUM_DEVICES="100", PUBLISH_INTERVAL_MS="100").exit_code == 0
    assert calls[0][1].rate == 1_000.0


def test_options_and_json(calls: Calls, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    words = f"--rate 0 --dialect fire --duration 60 --count 5 --topic other --ledger {path} --json"
    done = invoke(*words.split(), NUM_DEVICES="100")
    assert done.exit_code == 0, done.output
    ((fleet, plan, book),) = calls
    assert fleet.dialect == "fire"
    assert plan == Plan("other", 0.0, 5, 60.0)
    assert isinstance(book, Ledger)
    assert path.exists()
    assert json.loads(done.stdout) == {
        "sent": 99,
        "good": 98,
        "bad": 1,
        "unacknowledged": 2,
        "seconds": 3.0,
        "rate": 33.0,
    }


def test_the_topic_that_speaks_the_dialect_is_chosen(calls: Calls) -> None:
    assert invoke("--dialect", "fire", KAFKA_RAW_TOPICS="a:telemetry,b:fire").exit_code == 0
    assert calls[0][1].topic == "b"


def test_an_unknown_dialect_is_a_usage_error(calls: Calls) -> None:
    done = invoke("--dialect", "klingon")
    assert done.exit_code == 2
    assert "cannot speak 'klingon', only fire, telemetry" in done.stderr
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
