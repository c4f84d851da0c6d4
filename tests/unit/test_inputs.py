"""Inputs: what the file says about topics and dialects, and what is wrong with it."""

from pathlib import Path
from typing import Any

import pytest

from app import yaml
from app.settings import SettingsError, load
from schemas.inputs import Input, Inputs, InputsError, parse


def problems(document: object, **raw: str) -> list[str]:
    with pytest.raises(InputsError) as caught:
        parse(document, raw)
    return list(caught.value.problems)


def of(document: object, topic: str = "t", **raw: str) -> Input:
    return parse(document, raw).topics[topic]


def test_no_file_is_the_topics_alone() -> None:
    found = parse(None, {"t": "fire"})
    assert isinstance(found, Inputs)
    assert found.topics["t"].dialect == "fire"
    assert not found.dialects


@pytest.mark.parametrize("topic", ["datalake.sensorData", "dataLake.sensorData"])
def test_the_documents_topics_say_themselves_what_they_hold(topic: str) -> None:
    assert of(None, topic, **{topic: ""}).dialect == "fire"


def test_a_topic_wins_over_its_dialect_and_that_over_the_dialects_own_file() -> None:
    document = {
        "dialects": {"fire": {"policy": {"metrics": {"humidity": {"high": 90}, "temperature": {"high": 80}}}}},
        "topics": {"t": {"dialect": "fire", "policy": {"metrics": {"temperature": {"outside": "flag"}}}}},
    }
    policy = of(document).policy
    assert policy is not None
    assert (policy.metrics["temperature"].high, policy.metrics["temperature"].outside) == (80, "flag")
    assert (policy.metrics["humidity"].high, policy.metrics["humidity"].outside) == (90, "clamp")
    assert policy.metrics["co_level"].high == 999.999


def test_a_dialects_policy_needs_none_of_its_options() -> None:
    options = {"device": "id", "time": "ts", "fields": "*"}
    document = {
        "dialects": {"json": {"policy": {"metrics": {"x": {"low": 0}}}}},
        "topics": {"t": {"dialect": "json", "options": options}},
    }
    policy = of(document).policy
    assert policy is not None
    assert policy.metrics["x"].low == 0


def test_ranges_of_the_environment_win_over_the_file_for_a_dialect() -> None:
    document = {"dialects": {"telemetry": {"policy": {"metrics": {"temperature": {"high": 80}}}}}}
    policy = parse(document, {"t": "telemetry"}, {"telemetry": {"temperature": (-20.0, 50.0)}}).topics["t"].policy
    assert policy is not None
    assert (policy.metrics["temperature"].low, policy.metrics["temperature"].high) == (-20, 50)


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ([], ["Input should be a valid dictionary or instance of _File"]),
        ({"topic": {}}, ["topic: is not known here"]),
        ({"topics": {"t": {}}}, ["topics.t: nothing says which dialect it speaks; there are: "]),
        ({"topics": {"t": {"dialect": "klingon"}}}, ["topics.t: no dialect is called 'klingon'; there are: "]),
        ({"dialects": {"klingon": {}}}, ["dialects.klingon: no dialect is called that; there are: "]),
        (
            {"topics": {"t": {"dialect": "fire", "options": {"a": 1}}}},
            ["topics.t: the dialect fire has no options"],
        ),
        (
            {"topics": {"t": {"dialect": "auto", "policy": {"required": ["x"]}}}},
            ["topics.t: say policy and options of its dialects"],
        ),
        (
            {
                "dialects": {"fire": {"policy": {"metrics": {"temperature": {"low": 200}}}}},
                "topics": {"t": {"dialect": "telemetry", "policy": {"time": {"zone": "Mars", "ahead": "x"}}}},
            },
            [
                "dialects.fire.policy.metrics.temperature: the range 200..100 is empty",
                "topics.t.policy.time.zone: must be a zone of the IANA database as Europe/Berlin, not 'Mars'",
                "topics.t.policy.time.ahead: must be a span of time as 90s, 15m, 1h, 7d or 2w, not 'x'",
            ],
        ),
    ],
)
def test_everything_that_is_wrong_is_named(document: Any, says: list[str]) -> None:
    found = problems(document)
    assert len(found) == len(says)
    for line, start in zip(found, says, strict=True):
        assert line.startswith(start)


def test_a_topic_with_two_dialects_is_a_mistake() -> None:
    (line,) = problems({"topics": {"t": {"dialect": "fire"}}}, t="telemetry")
    assert line == "topics.t: speaks fire here and telemetry in KAFKA_RAW_TOPICS; say it once"


# -- through the settings ----------------------------------------------------------------------------------------------


def settings(tmp_path: Path, text: str, **env: str) -> Any:
    path = tmp_path / "inputs.yaml"
    path.write_text(text)
    return load({"IOTFLOW_INPUTS": str(path), **env})


def test_the_files_topics_are_read_instead_of_the_default(tmp_path: Path) -> None:
    found = settings(tmp_path, "topics:\n  factory: {dialect: fire}\n  other: {dialect: telemetry}\n")
    assert found.topics.raw == {"factory": "fire", "other": "telemetry"}
    assert found.inputs.topics.keys() == {"factory", "other"}


def test_the_files_topics_are_read_besides_those_of_the_environment(tmp_path: Path) -> None:
    found = settings(tmp_path, "topics:\n  factory: {dialect: fire}\n", KAFKA_RAW_TOPICS="raw:telemetry")
    assert found.topics.raw == {"factory": "fire", "raw": "telemetry"}


def test_a_file_without_topics_changes_dialects_alone(tmp_path: Path) -> None:
    found = settings(tmp_path, "dialects:\n  telemetry: {policy: {metrics: {temperature: {high: 60}}}}\n")
    assert found.topics.raw == {"raw_iot_data": "telemetry"}
    assert found.inputs.topics["raw_iot_data"].policy.metrics["temperature"].high == 60


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("topics: [", "line 2, column"),
        ("topics:\n  a: {dialect: fire}\n  a: {dialect: fire}\n", "line 3, column 3: 'a' stands here twice"),
        ("topics:\n  a: {dialect: klingon}\n", "topics.a: no dialect is called 'klingon'"),
        ("topics:\n  decoded_iot_data: {dialect: fire}\n", "both name 'decoded_iot_data'"),
        ("topics:\n  a b: {dialect: fire}\n", "1 to 249 letters"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(SettingsError) as caught:
        settings(tmp_path, text)
    assert says in str(caught.value)
    assert "IOTFLOW_INPUTS" in str(caught.value)


def test_a_file_that_is_not_there_is_said_once() -> None:
    with pytest.raises(SettingsError) as caught:
        load({"IOTFLOW_INPUTS": "/nowhere.yaml"})
    assert caught.value.problems == ["IOTFLOW_INPUTS is '/nowhere.yaml': must be the path of a file that exists"]


def test_a_topic_cannot_speak_what_nobody_has_said() -> None:
    with pytest.raises(SettingsError, match=r"topic 'foo' has an unknown dialect '\?'"):
        load({"KAFKA_RAW_TOPICS": "foo:?"})


def test_yaml_that_is_no_yaml(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xff\xff\xff")
    with pytest.raises(ValueError, match=r"is not YAML|line"):
        yaml.read(path)
    path.write_bytes(b"")
    assert yaml.read(path) is None
