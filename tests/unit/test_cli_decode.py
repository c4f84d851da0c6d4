"""`iotflow decode`: what it prints for payloads, and what it says when it cannot try."""

import base64
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from app import samples
from app.cli import decode as cli
from app.cli import main
from schemas import dialects, wire
from schemas.reading import FLAGS, RejectedError
from schemas.reasons import REASONS

GOOD = (
    b'{"device_id":"sensor-001","timestamp":"2025-10-05T12:34:56Z","temperature":23.5,"humidity":65.2,"battery":87.3}'
)
READING = {
    "v": 1,
    "measurement": "telemetry",
    "device_id": "sensor-001",
    "time": "2025-10-05T12:34:56Z",
    "values": {"temperature": 23.5, "humidity": 65.2, "battery": 87.3},
    "dialect": "telemetry",
}
HOT = GOOD.replace(b"23.5", b"999")
FIRE = b'{"equipment_id":"EQ001","measured_at":"2024-01-01T12:00:00","temperature":120.5}'


SAMPLES = samples.Samples(samples.configured({}), "raw_iot_data", received_ms=1_759_622_400_000)


def invoke(*options: str, payload: bytes = b"", **env: str) -> Result:
    return CliRunner().invoke(main, ["decode", *options], input=payload, env=env)


def decoded(*options: str, payload: bytes, **env: str) -> list[dict[str, Any]]:
    done = invoke("--json", *options, "-", payload=payload, **env)
    assert done.exit_code in {0, 1}, done.output
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def reasons(line: dict[str, Any]) -> list[str]:
    return [error["reason"] for error in line["errors"]]


def test_a_line_of_json_for_each_line() -> None:
    done = invoke("--json", "-", payload=GOOD + b"\n\n" + HOT + b"\r\n" + GOOD)
    assert done.exit_code == 1
    first, empty, hot, last = (json.loads(line) for line in done.stdout.splitlines())
    assert first == {"line": 1, "dialect": "telemetry", "readings": [READING], "errors": []}
    assert (empty["line"], empty["readings"], reasons(empty)) == (2, [], ["not_json"])
    assert hot == {
        "line": 3,
        "dialect": "telemetry",
        "readings": [],
        "errors": [{"reason": "out_of_range", "error": "temperature is 999.0, outside -50..100"}],
    }
    assert last == {**first, "line": 4}


def test_what_was_decoded_whole_exits_with_0() -> None:
    done = invoke("--json", "-", payload=GOOD + b"\n")
    assert done.exit_code == 0
    assert invoke("-", payload=GOOD).exit_code == 0


def test_nothing_is_nothing() -> None:
    done = invoke("--json", "-")
    assert (done.exit_code, done.output) == (0, "")
    assert "0 lines: 0 readings, 0 refused" in invoke("-").stderr


@pytest.mark.parametrize("name", [*sorted(dialects.load().keys() - {"json"}), dialects.AUTO])
@given(lines=st.lists(st.binary().filter(lambda line: b"\n" not in line) | st.just(GOOD)))
@settings(deadline=None, max_examples=30)
def test_any_lines_give_as_many(name: str, lines: list[bytes]) -> None:
    found = decoded("--dialect", name, payload=b"".join(line + b"\n" for line in lines))
    assert [line["line"] for line in found] == list(range(1, len(lines) + 1))
    for line in found:
        assert line["readings"] or line["errors"]
        assert set(reasons(line)) <= REASONS.keys()
        for reading in line["readings"]:
            wire.read(msgspec.json.encode(reading))


@pytest.mark.parametrize("name", dialects.load())
def test_every_dialects_first_example(name: str, tmp_path: Path) -> None:
    module = dialects.load()[name]
    example = module.EXAMPLES[0]
    inputs, registry = tmp_path / "inputs.yaml", tmp_path / "registry.yaml"
    options = getattr(module, "EXAMPLE_OPTIONS", {})
    inputs.write_text(json.dumps({"topics": {"t": {"dialect": name, "options": options}}}))
    controllers: dict[str, dict[str, Any]] = {}
    if (points := getattr(module, "EXAMPLE_REGISTRY", None)) is not None:
        for pin, (entry, _) in points.entries().items():
            controller, _, place = pin.partition("/")
            controllers.setdefault(controller, {})[place] = entry.model_dump(exclude_defaults=True)
    registry.write_text(json.dumps({"controllers": controllers}))
    done = invoke(
        "--json", "--base64", "--inputs", str(inputs), "--registry", str(registry),
        "--received", "2025-10-05T00:00:00Z", "--key", "key",
        *(["--origin", example.origin] if example.origin else []), "-",
        payload=base64.b64encode(example.payload),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["dialect"] == name
    assert [wire.read(msgspec.json.encode(reading)) for reading in found["readings"]] == list(example.gives)


def test_a_part_may_be_refused() -> None:
    (line,) = decoded(payload=GOOD[:-1] + b',"gps":{"lat":1.5}}')
    assert line["readings"] == [READING]
    assert reasons(line) == ["bad_type"]


def test_the_dialect_may_be_said() -> None:
    (line,) = decoded("--dialect", "fire", payload=FIRE)
    assert line["dialect"] == "fire"
    assert line["readings"][0]["raw"] == {"temperature": 120.5}
    assert line["readings"][0]["flags"] == ["clamped"]


def test_the_topic_says_the_dialect() -> None:
    env = {"KAFKA_RAW_TOPICS": "a:telemetry,b:fire"}
    assert decoded("--topic", "b", payload=FIRE, **env)[0]["dialect"] == "fire"
    assert decoded("--topic", "a", payload=GOOD, **env)[0]["readings"] == [READING]
    # A dialect that is said counts over the topic's, and so does the header of the records.
    assert decoded("--topic", "a", "--dialect", "fire", payload=FIRE, **env)[0]["dialect"] == "fire"
    assert decoded("--topic", "a", "--header", "iotflow-dialect=fire", payload=FIRE, **env)[0]["dialect"] == "fire"
    assert decoded("--header", "iotflow-dialect=fire", payload=FIRE, **env)[0]["dialect"] == "fire"
    # A topic that says itself what is in it need not be among the settings'.
    assert decoded("--topic", "datalake.sensorData", payload=FIRE, **env)[0]["dialect"] == "fire"


def test_the_original_topic_says_the_dialect() -> None:
    (line,) = decoded("--dialect", "auto", "--origin", "telemetry/sensor-001", payload=GOOD)
    assert line["readings"] == [READING]
    (line,) = decoded("--dialect", "auto", "--key", "telemetry/sensor-001", payload=GOOD)
    assert line["readings"] == [READING]
    (line,) = decoded("--dialect", "auto", payload=GOOD)
    assert (line["dialect"], reasons(line)) == ("", ["unknown_dialect"])


def test_settings_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "inputs.yaml"
    file.write_text(
        "dialects: {telemetry: {policy: {metrics: {temperature: {high: 20}}}}}\n"
        "topics: {hot: {dialect: telemetry, policy: {metrics: {temperature: {high: 2000}}}}, auto: {dialect: auto}}"
    )
    payload = GOOD + b"\n" + HOT
    with_file = ("--inputs", str(file))
    assert [reasons(line) for line in decoded(*with_file, "--topic", "hot", payload=payload)] == [[], []]
    assert [reasons(line) for line in decoded(*with_file, "--dialect", "telemetry", payload=payload)] == [
        ["out_of_range"],
        ["out_of_range"],
    ]
    # The same by the environment, whatever else is wrong there.
    env = {"IOTFLOW_INPUTS": str(file), "IOTFLOW_PARTITIONS": "many", "KAFKA_SASL_USERNAME": "x"}
    assert [reasons(line) for line in decoded("--topic", "hot", payload=payload, **env)] == [[], []]


def test_settings_of_the_environment(tmp_path: Path) -> None:
    assert reasons(decoded(payload=GOOD, IOTFLOW_RANGES="telemetry.temperature=0..20")[0]) == ["out_of_range"]
    assert reasons(decoded(payload=GOOD, IOTFLOW_MAX_MESSAGE_BYTES="1100")[0]) == ["too_large"]
    file = tmp_path / "env"
    file.write_text("KAFKA_RAW_TOPICS=b:fire\nIOTFLOW_PARTITIONS=many\n")
    assert decoded(payload=FIRE, IOTFLOW_ENV_FILE=str(file))[0]["dialect"] == "fire"
    # This topic is what the stores read unless they are told otherwise, which is no matter here.
    assert decoded(payload=FIRE, KAFKA_RAW_TOPICS="decoded_iot_data:fire")[0]["dialect"] == "fire"


def framed(number: int, payload: bytes) -> bytes:
    return (b"\0" + number.to_bytes(4, "big") + payload).hex().encode()


def test_schemas_of_a_directory(tmp_path: Path) -> None:
    inputs, schemas = tmp_path / "inputs.yaml", tmp_path / "schemas"
    inputs.write_text("topics: {t: {dialect: telemetry, body: confluent}}")
    schemas.mkdir()
    (schemas / "7.json").write_text('{"type": "object"}')
    lines = b"\n".join([framed(7, GOOD), framed(8, GOOD), framed(8, GOOD), b"00"])
    options = ("--inputs", str(inputs), "--hex")
    found = decoded(*options, "--schemas", str(schemas), payload=lines)
    assert found[0]["readings"] == [READING]
    assert [reasons(line) for line in found[1:]] == [["unknown_schema"], ["unknown_schema"], ["undecodable"]]
    assert decoded(*options, payload=lines, SCHEMA_REGISTRY_DIR=str(schemas)) == found
    # No server is asked, so none can be left out either.
    done = invoke(*options, "-", payload=lines, SCHEMA_REGISTRY_URL="http://127.0.0.1:9")
    assert done.exit_code == 2
    assert "t has body confluent: name a directory of schemas" in done.stderr
    (schemas / "8.json").mkdir()
    done = invoke("--json", *options, "--schemas", str(schemas), "-", payload=lines)
    assert (done.exit_code, len(done.stdout.splitlines())) == (2, 1)
    assert "8.json cannot be read" in done.stderr


def test_bodies_by_content_type() -> None:
    text = msgspec.msgpack.encode(json.loads(GOOD)).hex().encode()
    (line,) = decoded("--hex", "--content-type", "application/msgpack", payload=text)
    assert line["readings"] == [READING]
    assert reasons(decoded("--hex", payload=text)[0]) == ["not_json"]


def test_the_time_of_receipt() -> None:
    assert decoded("--received", "2025-10-05T12:00:00Z", payload=GOOD)[0]["readings"] == [READING]
    assert reasons(decoded("--received", "2025-10-01T12:00:00Z", payload=GOOD)[0]) == ["future"]
    assert reasons(decoded("--received", "1759000000", payload=GOOD)[0]) == ["future"]
    assert reasons(decoded(payload=GOOD.replace(b"2025", b"2190"))[0]) == ["future"]


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--hex", GOOD.hex().encode()),
        ("--hex", GOOD.hex(" ").upper().encode()),
        ("--base64", base64.b64encode(GOOD)),
    ],
)
def test_binary_payloads_as_text(option: str, text: bytes) -> None:
    good, bad, odd = decoded(option, payload=text + b"\n!\n\xff")
    assert good["readings"] == [READING]
    assert reasons(bad) == reasons(odd) == ["undecodable"]


def test_whole_files(tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    one.write_bytes(GOOD.replace(b",", b",\n"))
    two.write_bytes(HOT)
    done = invoke("--json", "--whole", str(one), str(two))
    assert done.exit_code == 1
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first == {"line": 1, "dialect": "telemetry", "readings": [READING], "errors": [], "file": str(one)}
    assert (second["file"], reasons(second)) == (str(two), ["out_of_range"])
    one.write_bytes(base64.encodebytes(GOOD))
    assert json.loads(invoke("--json", "--whole", "--base64", str(one)).stdout)["readings"] == [READING]


def test_several_files_are_read_by_line(tmp_path: Path) -> None:
    one, two = tmp_path / "one [x].jsonl", tmp_path / "two.jsonl"
    one.write_bytes(GOOD + b"\n" + GOOD)
    two.write_bytes(HOT)
    found = [json.loads(line) for line in invoke("--json", str(one), str(two)).stdout.splitlines()]
    assert [(line["file"], line["line"]) for line in found] == [(str(one), 1), (str(one), 2), (str(two), 1)]
    table = invoke(str(one), str(two)).stdout
    assert f"{one}:2 " in table
    assert f"{two}:1 " in table


def test_the_table() -> None:
    payload = b"\n".join([GOOD, HOT, GOOD[:-1] + b',"channel":"probe/2","state":"open","rssi":null}', b"{}"])
    done = invoke("-", payload=payload)
    assert done.exit_code == 1
    header, first, hot, third, empty = (line.rstrip() for line in done.stdout.splitlines())
    assert header.split() == ["line", "device", "channel", "time", "values", "flags"]
    assert first.split() == [
        "1", "sensor-001", "2025-10-05T12:34:56Z", "temperature=23.5", "humidity=65.2", "battery=87.3"
    ]  # fmt: skip
    assert hot == (f"2     out_of_range: temperature is 999.0, outside -50..100 ({REASONS['out_of_range']})")
    assert "probe/2" in third
    assert third.endswith("state='open'  rssi=null")
    assert empty == f"4     missing_field: device_id is missing ({REASONS['missing_field']})"
    assert done.stderr == "4 lines: 2 readings, 2 refused (out_of_range 1, missing_field 1)\n"


def test_the_table_says_what_was_changed(tmp_path: Path) -> None:
    file = tmp_path / "inputs.yaml"
    file.write_text(
        "topics: {t: {dialect: fire, policy: {metrics: {temperature: {unit: °F, said_in: °C, high: 200}}}}}"
    )
    done = invoke("--inputs", str(file), "-", payload=FIRE)
    row = done.stdout.splitlines()[1].rstrip()
    assert row.endswith("temperature=200.0 °F (said 248.9)  clamped")


def test_nothing_of_a_payload_reaches_the_terminal_as_a_command() -> None:
    evil = "\x1b[31m\x07\r\b\x7f\x9b\u202e\u2028[red]"
    fields = json.loads(GOOD) | {"device_id": "d" + evil, "channel": "c" + evil, "m" + evil: "v" + evil, evil: [1]}
    payload = json.dumps(fields).encode() + b"\n" + json.dumps(fields | {"timestamp": evil}).encode()
    for options in ((), ("--json",)):
        done = invoke(*options, "-", payload=payload)
        for text in (done.stdout, done.stderr):
            assert all(line.isprintable() for line in text.split("\n"))
        assert "[red]" in done.stdout
    # And the JSON says the same all the same.
    assert json.loads(done.stdout.splitlines()[0])["readings"][0]["device_id"] == "d" + evil


def test_columns_only_widen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_BLOCK", 1)
    names = [b"sensor-with-a-long-name", b"s", b"sensor"]
    file = tmp_path / "x.jsonl"
    file.write_bytes(b"\n".join(GOOD.replace(b"sensor-001", name) for name in names))
    header, *rows = invoke(str(file)).stdout.splitlines()
    assert len(rows) == 3
    assert {row.index("2025-10-05") for row in rows} == {header.index("time")}


def test_reasons_are_listed() -> None:
    done = invoke("--reasons")
    assert done.exit_code == 0
    for name, meaning in [*REASONS.items(), *FLAGS.items()]:
        assert any(line.split()[:1] == [name] and meaning in line for line in done.stdout.splitlines())
    assert json.loads(invoke("--reasons", "--json").stdout) == {"reasons": dict(REASONS), "flags": dict(FLAGS)}


def test_dialects_are_listed() -> None:
    done = invoke("--dialects")
    assert done.exit_code == 0
    assert "temperature: -50..100, outside: clamp" in done.stdout
    assert "required: temperature, humidity, battery" in done.stdout
    assert {line.split()[0] for line in done.stdout.splitlines()} >= dialects.load().keys()
    found = json.loads(invoke("--dialects", "--json").stdout)
    assert found.keys() == dialects.load().keys()
    assert found["fire"]["topics"] == ["datalake.sensorData", "dataLake.sensorData"]
    assert found["telemetry"]["policy"]["metrics"]["battery"]["high"] == 100.0
    for name, module in dialects.load().items():
        assert found[name]["about"]
        assert found[name]["options"].keys() == getattr(getattr(module, "Options", None), "model_fields", {}).keys()


def test_help_lists_the_dialects() -> None:
    help_ = " ".join(invoke("--help").stdout.split())
    for name in dialects.load():
        assert name in help_


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ((), "name a FILE"),
        (("/no/such/file",), "does not exist"),
        (("--hex", "--base64", "-"), "exclude each other"),
        (("--dialect", "json", "-"), "options.device: Field required"),
        (("--dialect", "klingon", "-"), "no dialect is called 'klingon'; there are:"),
        (("--topic", "other", "-"), "nothing says which dialect other speaks"),
        (("--topic", "a\x1b[1m", "-"), "no topic's name"),
        (("--header", "novalue", "-"), "'novalue' is not NAME=VALUE"),
        (("--received", "yesterday", "-"), "neither ISO 8601 nor"),
        (("--received", "2025-10-05T12:00:00", "-"), "no zone"),
        (("--inputs", "/no/such/file", "-"), "does not exist"),
        (("--registry", "/no/such/file", "-"), "does not exist"),
    ],
)
def test_what_cannot_be_is_a_usage_error(options: tuple[str, ...], sentence: str) -> None:
    done = invoke(*options, payload=GOOD)
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        ({"KAFKA_RAW_TOPICS": "a:fire,b:telemetry"}, "say --topic or --dialect; the topics are: a (fire), b"),
        ({"KAFKA_RAW_TOPICS": "a:klingon"}, "unknown dialect 'klingon'"),
        ({"KAFKA_RAW_TOPICS": "a"}, "topics.a: nothing says which dialect it speaks"),
        ({"IOTFLOW_INPUTS": "/no/such/file"}, "IOTFLOW_INPUTS is '/no/such/file': must be the path of a file"),
        ({"IOTFLOW_RANGES": "telemetry.temperature=5..1"}, "the range of telemetry.temperature is empty"),
        ({"IOTFLOW_MAX_MESSAGE_BYTES": "1"}, "must be a whole number of bytes"),
        ({"IOTFLOW_ENV_FILE": "/no/such/file"}, "IOTFLOW_ENV_FILE: /no/such/file cannot be read"),
    ],
)
def test_broken_settings_are_usage_errors(env: dict[str, str], sentence: str) -> None:
    done = invoke("-", payload=GOOD, **env)
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("topics: [1]", "topics"),
        ("topics: {t: {dialect: klingon}}", "no dialect is called 'klingon'"),
        ("topics: {t: {dialect: fire, policy: {metrics: {temperature: {low: x}}}}}", "metrics.temperature.low"),
        ("a: [", "column 1"),
    ],
)
def test_every_problem_of_a_file_is_said(text: str, sentence: str, tmp_path: Path) -> None:
    file = tmp_path / "inputs.yaml"
    file.write_text(text)
    done = invoke("--inputs", str(file), "-", payload=GOOD)
    assert done.exit_code == 2
    assert sentence in done.stderr


def test_a_long_line_is_one_line() -> None:
    file = io.BytesIO(b"12345\n123456\n1234567890\n\n123456")
    assert list(samples.lines(file, 5)) == [b"12345", None, None, b"", None]


@given(content=st.binary(max_size=40), most=st.integers(1, 10))
def test_lines_are_what_splitting_gives(content: bytes, most: int) -> None:
    expected = content.split(b"\n")
    if not expected[-1]:
        del expected[-1]
    found = list(samples.lines(io.BytesIO(content), most))
    assert len(found) == len(expected)
    for line, whole in zip(found, expected, strict=True):
        assert line is None if len(whole) > most else line == whole.removesuffix(b"\r")


def test_what_is_too_long_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert samples.whole(io.BytesIO(b"12345"), 5) == b"12345"
    assert samples.whole(io.BytesIO(b"123456"), 5) is None
    file = tmp_path / "endless"
    with file.open("wb") as sparse:
        sparse.truncate(samples.MAX_BYTES + 1)
        sparse.seek(0, io.SEEK_END)
        sparse.write(b"\n" + GOOD)
    done = invoke("--json", str(file))
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    assert first == {
        "line": 1, "dialect": "", "readings": [],
        "errors": [{"reason": "too_large", "error": "longer than 64 MiB"}],
    }  # fmt: skip
    assert second["readings"] == [READING]


@pytest.mark.parametrize("form", ["hex", "base64"])
@given(text=st.binary())
def test_any_text_is_a_payload_or_undecodable(form: samples.Form, text: bytes) -> None:
    result = SAMPLES.decode(1, text, form)
    try:
        payload = samples.payload(text, form)
    except RejectedError:
        assert [error.reason for error in result.errors] == ["undecodable"]
    else:
        assert result == SAMPLES.decode(1, payload)


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_escaped_text_is_printable(text: str) -> None:
    assert samples.escaped(text).isprintable()
    assert json.loads(samples.Result(1, text, [], []).json())["dialect"] == text
    assert samples.Result(1, text, [], []).json().isprintable()


def command(*options: str) -> list[str]:
    return [sys.executable, "-c", "from app.cli import main; main()", "decode", *options]


@pytest.fixture
def endless(tmp_path: Path) -> Path:
    file = tmp_path / "many.jsonl"
    file.write_bytes((GOOD + b"\n" + HOT + b"\n") * 20_000)
    return file


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_reader_that_goes_away_is_no_trouble(options: tuple[str, ...], endless: Path) -> None:
    with subprocess.Popen(command(*options, str(endless)), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 1


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_pipe_is_answered_line_by_line(options: tuple[str, ...]) -> None:
    with subprocess.Popen(
        command(*options, "-"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for number in (1, 2):
            process.stdin.write(GOOD + b"\n")
            process.stdin.flush()
            if number == 1 and not options:
                assert b"device" in process.stdout.readline()
            assert str(number).encode() in process.stdout.readline()
        process.stdin.close()
        assert process.wait() == 0


def test_a_large_file_is_not_read_whole(endless: Path) -> None:
    seen = Counter[str]()

    class Watched(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            seen["read"] += 1
            return super().read(size)

    found: Iterator[bytes | None] = samples.lines(Watched(endless.read_bytes()))
    assert next(found) == GOOD
    assert next(found) == HOT
    assert not seen
