"""`iotflow config`: what it prints, where, and with which exit status."""

import json
import re
from pathlib import Path

from click.testing import CliRunner, Result

from app.cli.config import command
from app.settings import discover, variables

PASSWORD = {"TIMESCALE_PASSWORD": "s3cr3t"}


def run(*args: str, **env: str) -> Result:
    """Run the command in an environment of its own."""
    return CliRunner().invoke(command, args, obj=env)


def test_check_is_content() -> None:
    """Usable settings print ok and the notices, with status 0."""
    result = run("check", REDIS_URL="redis://x")

    assert result.exit_code == 0
    assert result.stdout.splitlines()[0] == "ok"
    assert "notice: REDIS_URL is ignored" in result.stdout
    assert result.stderr == ""


def test_check_says_all_problems() -> None:
    """Every problem is a line on stderr, with status 2."""
    result = run("check", BATCH_SIZE="x", KAFKA_BROKERS="y", **PASSWORD)

    assert result.exit_code == 2
    assert [line.split(" ")[0] for line in result.stderr.splitlines()] == ["KAFKA_BROKERS", "BATCH_SIZE"]
    assert result.stdout == ""


def test_check_as_json() -> None:
    """With --json there is one object on stdout either way, and the same status."""
    good, bad = run("check", "--json", REDIS_URL="x"), run("check", "--json", BATCH_SIZE="x")

    assert (good.exit_code, bad.exit_code) == (0, 2)
    assert json.loads(good.stdout)["ok"] is True
    assert len(json.loads(good.stdout)["notices"]) == 1
    assert json.loads(bad.stdout)["ok"] is False
    assert len(json.loads(bad.stdout)["problems"]) == 1


def test_check_looks_into_the_registrys_file_and_for_the_schemas(tmp_path: Path) -> None:
    """What would end a worker at its start is said here, each a line; a directory of schemas is enough."""
    registry, inputs = tmp_path / "registry.yaml", tmp_path / "inputs.yaml"
    registry.write_text('controllers: {"nowhere": {1/1: []}}')
    inputs.write_text("topics: {plant: {dialect: telemetry, body: confluent}}")
    env = {"IOTFLOW_REGISTRY": str(registry), "IOTFLOW_INPUTS": str(inputs)}
    result = run("check", **env)

    assert (result.exit_code, result.stdout) == (2, "")
    first, second, third = result.stderr.splitlines()
    assert first.startswith(f"{registry}: controllers.nowhere: ")
    assert second.startswith(f"{registry}: controllers.nowhere.1/1.points: ")
    assert "SCHEMA_REGISTRY_URL or SCHEMA_REGISTRY_DIR" in third

    registry.write_text('controllers: {"*": {1/1: [{label: a, encoding: Int8}]}}')
    result = run("check", **env, SCHEMA_REGISTRY_DIR=str(tmp_path))
    assert (result.exit_code, result.stdout.splitlines()[0]) == (0, "ok")


def test_show_says_where_values_come_from() -> None:
    """Each setting is a row with its value and its source; a secret is ***."""
    result = run("show", DATABASE_URL="postgres://u:s3cr3t@h:1/d", BATCH_TIMEOUT_MS="50", KAFKA_RAW_TOPICS="t:fire")
    rows = [re.split(r"  +", line) for line in result.stdout.splitlines()]

    assert result.exit_code == 0
    assert rows[0] == ["SETTING", "VALUE", "FROM"]
    assert ["sinks.timescale.host", "h", "DATABASE_URL"] in rows
    assert ["sinks.timescale.password", "***", "DATABASE_URL"] in rows
    assert ["sinks.timescale.batch_timeout", "0.05", "BATCH_TIMEOUT_MS"] in rows
    assert ["topics.raw", '{"t": "fire"}', "KAFKA_RAW_TOPICS"] in rows
    assert ["kafka.sasl_password", "-", "default"] in rows
    assert "s3cr3t" not in result.output


def test_show_as_json() -> None:
    """With --json the same comes as one object."""
    shown = json.loads(run("show", "--json", **PASSWORD).stdout)

    assert shown["sinks.timescale.password"] == {"value": "***", "source": "TIMESCALE_PASSWORD"}
    assert shown["channel_size"] == {"value": 50_000, "source": "default"}


def test_show_needs_usable_settings() -> None:
    """Problems are printed instead of a table, with status 2."""
    result = run("show", BATCH_SIZE="x")

    assert result.exit_code == 2
    assert result.stderr.startswith("BATCH_SIZE is 'x'")
    assert result.stdout == ""


def test_docs_have_every_variable() -> None:
    """The Markdown table names every variable there is, with as many cells in each row as in the head."""
    lines = run("docs").stdout.splitlines()
    named = set(re.findall(r"`([A-Z_]+)`", "\n".join(line.split("|")[1] for line in lines)))
    known = {name for variable in variables.every(discover()) for name in variable.names}

    assert {line.count(" | ") for line in lines} == {3}
    assert lines[1] == "| --- | --- | --- | --- |"
    assert known | {"DATABASE_URL", "POSTGRES_URL", "IOTFLOW_ENV_FILE", "IOTFLOW_GROUP_DECODE", "REDIS_URL"} <= named
    assert any("`KAFKA_RAW_TOPICS` | `raw_iot_data:telemetry`" in line for line in lines)


def test_docs_show_lists_as_they_are_written() -> None:
    """Names separated by commas, and nothing where there are none."""
    assert not [line for line in run("docs").stdout.splitlines() if "`(" in line]
    (tags,) = [line for line in run("docs").stdout.splitlines() if line.startswith("| `INFLUXDB_TAGS`")]
    assert tags.startswith("| `INFLUXDB_TAGS` |  | ")
    for variable in variables.every(discover()):
        default = variable.field.get_default()
        if isinstance(default, tuple) and default:
            assert f"| `{variable.names[0]}`" in run("docs").stdout
            assert f"| `{','.join(default)}` |" in run("docs").stdout


def test_check_looks_into_the_list_of_buckets(tmp_path: Path) -> None:
    """What would end `iotflow schema` is said here."""
    path = tmp_path / "buckets.json"
    path.write_text('[{"name": "a", "retention": 5}]')
    result = run("check", INFLUXDB_BUCKETS=str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"INFLUXDB_BUCKETS: {path} must be a list of buckets with `name`: 0.retention: ")

    path.write_text('[{"name": "a"}, {"name": "a"}]')
    assert "names bucket 'a' twice" in run("check", INFLUXDB_BUCKETS=str(path)).stderr
    path.write_text('[{"name": "a"')
    (line,) = run("check", INFLUXDB_BUCKETS=str(path)).stderr.splitlines()
    assert line.startswith(f"INFLUXDB_BUCKETS: {path} cannot be read as JSON or YAML: ")
    path.write_text('[{"name": "a", "retention_days": 5}]')
    assert run("check", INFLUXDB_BUCKETS=str(path)).exit_code == 0


def test_docs_need_no_settings() -> None:
    """The table is the same whatever the environment says."""
    assert run("docs").stdout == run("docs", BATCH_SIZE="x").stdout
