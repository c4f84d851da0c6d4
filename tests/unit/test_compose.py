"""The servers of deploy/compose.yaml, as far as their format's schema cannot tell; `make check` asks that one."""

import re
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from app.settings import load
from app.settings.sources import read_env_file

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "deploy/compose.yaml"
EXAMPLE = ROOT / "deploy/env.example"
SECRET = "0123456789abcdef"  # noqa: S105  of no server
#: ${NAME}, ${NAME:-default} and ${NAME:?message}; `$$` is a dollar for the container's shell.
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+)(?::([-?])([^}]*))?\}")

SERVICES: dict[str, dict[str, Any]] = YAML(typ="safe").load(COMPOSE)["services"]
VOLUMES: dict[str, Any] = YAML(typ="safe").load(COMPOSE)["volumes"]
VARIABLES = {name: (kind, text) for name, kind, text in VARIABLE.findall(COMPOSE.read_text())}

each_service = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES.keys())


def test_the_servers_are_there() -> None:
    assert SERVICES.keys() == {"kafka", "timescale", "iotdb", "influxdb"}


@each_service
def test_an_image_is_pinned(service: dict[str, Any]) -> None:
    assert re.fullmatch(r"[a-z]+(/[a-z]+)?:\d+\.\d+\.\d+(-(pg\d+|standalone))?", service["image"])


@each_service
def test_a_service_is_watched_and_bounded(service: dict[str, Any]) -> None:
    assert service["healthcheck"].keys() >= {"test", "interval", "timeout", "retries", "start_period"}
    assert re.fullmatch(r"\d+[mg]", service["mem_limit"])
    assert service["restart"] == "unless-stopped"


@each_service
def test_a_port_is_for_this_machine_alone(service: dict[str, Any]) -> None:
    assert service["ports"]
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])


@each_service
def test_data_is_in_a_named_volume(service: dict[str, Any]) -> None:
    assert service["volumes"]
    assert all(volume.partition(":")[0] in VOLUMES for volume in service["volumes"])


def test_no_volume_is_left_over() -> None:
    used = {volume.partition(":")[0] for service in SERVICES.values() for volume in service["volumes"]}
    assert used == VOLUMES.keys()


def test_a_secret_has_no_value_and_must_be_given() -> None:
    example = read_env_file(EXAMPLE)
    secrets = {name for name in VARIABLES if re.search("PASSWORD|TOKEN", name)}
    assert secrets == {"TIMESCALE_PASSWORD", "DOCKER_INFLUXDB_INIT_PASSWORD", "INFLUXDB_TOKEN"}
    assert all(VARIABLES[name][0] == "?" for name in secrets)
    assert not any(value for name, value in example.items() if re.search("PASSWORD|TOKEN", name))
    for service in SERVICES.values():
        for name, value in service["environment"].items():
            assert not re.search("PASSWORD|TOKEN", name) or VARIABLE.fullmatch(value), name


def test_the_example_has_every_variable_with_what_is_used_without_it() -> None:
    example = read_env_file(EXAMPLE)
    assert VARIABLES.keys() <= example.keys()
    assert all(example[name] == text for name, (kind, text) in VARIABLES.items() if kind == "-")


def test_iotflow_takes_the_example(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(re.sub(r"(?m)^(\w*(?:PASSWORD|TOKEN))=$", rf"\1={SECRET}", EXAMPLE.read_text()))
    settings = load({"IOTFLOW_ENV_FILE": str(file)})
    assert settings.notices == []
    assert settings.kafka.bootstrap_servers == "localhost:9092"
    assert set(settings.stores) == {"timescale", "iotdb", "influxdb"}
    for path in ("timescale.password", "iotdb.password", "influxdb.token"):
        sink, _, field = path.partition(".")
        assert getattr(settings.sinks[sink], field).get_secret_value() == SECRET


def test_what_the_example_becomes_is_not_committed() -> None:
    assert "deploy/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_the_addresses_of_the_example_are_published() -> None:
    example = read_env_file(EXAMPLE)
    published = {
        name: VARIABLE.sub(lambda found: example[found[1]], service["ports"][0]).split(":")[1]
        for name, service in SERVICES.items()
    }
    assert published == {
        "kafka": example["KAFKA_BOOTSTRAP_SERVERS"].rpartition(":")[2],
        "timescale": example["TIMESCALE_PORT"],
        "iotdb": example["IOTDB_PORT"],
        "influxdb": example["INFLUXDB_URL"].rpartition(":")[2],
    }


def test_iotdb_has_microseconds_and_kafka_makes_no_topics() -> None:
    assert SERVICES["iotdb"]["environment"]["timestamp_precision"] == "us"
    assert SERVICES["kafka"]["environment"]["KAFKA_AUTO_CREATE_TOPICS_ENABLE"] == "false"
