"""Adding a dialect is one file: nothing else is edited for it to be found, configured, decoded and simulated."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.fleet import Fleet, speakable
from app.settings import load
from schemas import dialects
from schemas.decoding import Decoder
from schemas.reading import Reading
from tests.lab import speech
from tests.unit.test_decoding import Record

_FILE = '''
"""The `pulse` dialect: DEVICE;TIME;COUNT as one line of text."""

import re
from datetime import UTC, datetime

from schemas.dialects import Example, Match, Walk, cut
from schemas.policy import Metric, Policy, Time
from schemas.reading import Reading, Rejected

MATCH = Match("pulse", topics=("pulses",), origin=re.compile(r"pulse/.+"))
POLICY = Policy(metrics={"count": Metric(low=0, high=1000)}, time=Time(zone="UTC"))


def decode(payload, meta):
    try:
        device, time, count = payload.decode("ascii").split(";")
        moment, flags = meta.time(time)
        return (Reading("pulse", device, moment, {"count": float(count)}, dialect="pulse", flags=flags),)
    except ValueError:
        return (Rejected("undecodable", "the payload is not DEVICE;TIME;COUNT"),)


def encode(reading):
    return f"{reading.device_id};{reading.time.isoformat()};{reading.values['count']}".encode()


WALKS = {"count": Walk(0, 100, 1, odd=(500, 900))}
SPOILED = {"undecodable": cut, "out_of_range": lambda payload: payload + b"0000000"}
EXAMPLES = (
    Example(b"p1;2025-10-05 12:00:00;7", [
        Reading("pulse", "p1", datetime(2025, 10, 5, 12, tzinfo=UTC), {"count": 7.0}, dialect="pulse")
    ]),
    Example(b"p1;2025-10-05 12:00:00;7000", ["out_of_range"]),
)
'''


@pytest.fixture
def _added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "pulse.py").write_text(_FILE)
    monkeypatch.setattr(dialects, "__path__", [*dialects.__path__, str(tmp_path)])
    dialects.load.cache_clear()
    yield
    dialects.load.cache_clear()
    speech.speaker.cache_clear()
    sys.modules.pop("schemas.dialects.pulse", None)


@pytest.mark.usefixtures("_added")
def test_one_file_is_a_dialect() -> None:
    settings = load({"KAFKA_RAW_TOPICS": "a:pulse, pulses", "IOTFLOW_RANGES": "pulse.count=0..5000"})
    assert settings.topics.raw == {"a": "pulse", "pulses": "pulse"}
    made = Decoder(settings.inputs, partitions=1, stage="d", version="1", max_message_bytes=10_000)
    (good, bad) = dialects.load()["pulse"].EXAMPLES
    assert made.outcomes(Record(good.payload, topic="a")) == ("pulse", tuple(good.gives))
    _, (wider,) = made.outcomes(Record(bad.payload, topic="pulses"))
    assert wider.reason == "out_of_range"
    assert dialects.by_origin("pulse/1") == "pulse"
    assert "pulse" in speakable()
    sample = Fleet(1, "pulse", 1, bad_share=0.0).sample(good.gives[0].time)
    (reading,) = speech.decode("pulse", sample.payload)
    assert isinstance(reading, Reading)
    assert reading == sample.expected
