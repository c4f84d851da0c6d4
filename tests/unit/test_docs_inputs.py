"""`docs/inputs.md` holds to the code: what there is stands in it, and its YAML means something."""

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner
from pydantic import BaseModel

from app import yaml
from app.cli import main
from app.settings import discover, variables
from schemas import bodies, datapoints, dialects, inputs, point
from schemas.point import Point
from schemas.policy import Metric, Names, Policy, Time
from schemas.reading import FLAGS, Reading
from schemas.reasons import REASONS

PAGE = Path(__file__).parent.parent.parent / "docs" / "inputs.md"
TEXT = PAGE.read_text("utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = [
    line.partition("#")[0].split() for line in TEXT.splitlines() if line.startswith("iotflow ") and " decode " in line
]


def rows(heading: str) -> dict[str, str]:
    """The table below a heading: its first column to its second, without the names of the columns."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^\| `([^`]+)` \| (.+) \|$", section, re.MULTILINE)
    assert found
    assert len(found) == len(dict(found))
    return dict(found)


def test_every_dialect_of_the_page_is_one() -> None:
    """Not the other way round: a dialect is one file, and `iotflow decode --dialects` lists it at once."""
    assert len(rows("Dialects")) > 1
    assert rows("Dialects").keys() <= dialects.load().keys()


def test_every_reason_and_flag_is_explained_as_the_code_does() -> None:
    assert rows("Why something is refused") == REASONS
    assert rows("Flags") == FLAGS


@pytest.fixture
def documents(tmp_path: Path) -> list[Any]:
    found = []
    for number, block in enumerate(BLOCKS):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        found.append(yaml.read(file))
    return found


def test_every_block_can_be_used(documents: list[Any]) -> None:
    of_inputs = [document for document in documents if not isinstance(document, dict) or "controllers" not in document]
    of_registry = [document for document in documents if document not in of_inputs]
    assert of_inputs
    assert of_registry
    for document in of_inputs:
        assert inputs.parse(document, {}).topics
    for document in of_registry:
        assert datapoints.parse(document)


@pytest.mark.parametrize("model", [Policy, Metric, Time, Names, Point], ids=lambda model: model.__name__)
def test_every_member_is_shown(model: type[BaseModel]) -> None:
    shown = "\n".join(BLOCKS)
    assert [name for name in model.model_fields if not re.search(rf"\b{name}:", shown)] == []


def test_every_option_has_a_line() -> None:
    section = TEXT.partition("\n### Options\n")[2].partition("\n## ")[0]
    said: dict[str, set[str]] = {}
    name = ""
    for first, option in re.findall(r"^\| (?:`([^`]+)`)? ?\| `([^`]+)` \|", section, re.MULTILINE):
        name = first or name
        said.setdefault(name, set()).add(option)
    assert said
    assert said == {name: set(dialects.load()[name].Options.model_fields) for name in said}


def test_the_json_example_is_decoded(documents: list[Any]) -> None:
    topic = inputs.parse(documents[0], {}).topics["plant.presses"]
    payload = re.search(r'\{"site".*\}$', TEXT, re.MULTILINE)
    assert payload is not None
    speak = dialects.speaker(topic.dialect, topic.policy, topic.options)
    (reading,) = speak(payload[0].encode(), dialects.Meta("plant.presses", None, (), 1_759_667_700_000))
    assert isinstance(reading, Reading)
    assert (reading.measurement, reading.device_id, reading.tags) == ("press", "p7", {"site": "Ulm"})
    assert (reading.values, reading.units) == ({"force": 27.5}, {"force": "kN"})


def test_every_encoding_and_body_is_named() -> None:
    for name in [*get_args(point.Encoding), *filter(None, get_args(inputs.Body))]:
        assert re.search(rf"\b{name}\b", TEXT)
    for name in bodies.CONTENT_TYPES:
        assert name.decode() in TEXT


def test_every_header_and_topic_that_says_a_dialect_is_named() -> None:
    topics = [topic for module in dialects.load().values() for topic in module.MATCH.topics]
    for name in [dialects.HEADER_DIALECT, *dialects._ORIGINS, *topics]:
        assert f"`{name}`" in TEXT


def test_every_variable_is_one() -> None:
    known = {form for variable in variables.every(discover()) for form in variable.forms()}
    named = set(re.findall(r"\b(?:KAFKA|IOTFLOW|SCHEMA)_[A-Z_]+\b", TEXT))
    assert {"IOTFLOW_INPUTS", "IOTFLOW_REGISTRY", "KAFKA_RAW_TOPICS"} <= named <= known


def test_its_commands_are_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert COMMANDS
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inputs.yaml").write_text(BLOCKS[0])
    for name in ("samples.jsonl", "export.lp", "payload.bin"):
        (tmp_path / name).write_bytes(b"")
    for command in COMMANDS:
        words = command[1 : command.index("<")] if "<" in command else command[1:]
        done = CliRunner().invoke(main, words)
        # An empty file is no payload, or with --whole one that is refused; a usage error is 2.
        assert done.exit_code == int("--whole" in words), done.output
