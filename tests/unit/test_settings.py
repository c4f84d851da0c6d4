"""Settings: which variable wins, what is refused and how that is said, and that nothing says a secret."""

import itertools
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import SecretStr

from app.settings import Settings, SettingsError, discover, load, variables
from app.settings.sources import parse_url, read_env_file
from sinks.timescale import Settings as Timescale

SECRET = "s3cr3t/p@ss"  # noqa: S105  nobody's
URL = "postgres://urluser:s3cr3t%2Fp%40ss@urlhost:6001/urldb?sslmode=require"


def problems(env: Mapping[str, str]) -> list[str]:
    """What is wrong with an environment."""
    with pytest.raises(SettingsError) as raised:
        load(env)
    assert str(raised.value) == "\n".join(raised.value.problems)
    return raised.value.problems


def timescale(env: Mapping[str, str]) -> Timescale:
    """The settings of the TimescaleDB store."""
    found = load(env).sinks["timescale"]
    assert isinstance(found, Timescale)
    return found


def test_nothing_set_is_enough() -> None:
    """An empty environment gives the defaults of the design."""
    settings = load({})

    assert settings.kafka.bootstrap_servers == "localhost:9092"
    assert settings.topics.raw == {"raw_iot_data": "telemetry"}
    assert (settings.topics.decoded, settings.topics.decode_output) == ("decoded_iot_data", "decoded_iot_data")
    assert (settings.channel_size, settings.max_inflight_bytes) == (50_000, 64 * 2**20)
    assert (settings.chunk_records, settings.chunk_bytes, settings.fetch_bytes) == (1000, 256 * 1024, 2**20)
    assert (settings.ceiling.window, settings.ceiling.devices, settings.ceiling.ratio) == (10_000, 20, 0.5)
    assert (settings.retry.first, settings.retry.cap) == (0.1, 5.0)
    assert (settings.session_timeout, settings.heartbeat_interval, settings.rebalance_timeout) == (30.0, 3.0, 60.0)
    assert timescale({}) == Timescale.model_validate({})
    assert timescale({}).password is None
    assert {item["source"] for item in settings.public().values()} == {"default"}
    assert not settings.notices


#: The places a value can come from, first wins; each with what it makes of the field.
PLACES: dict[str, list[tuple[str, str, Any]]] = {
    "host": [
        ("TIMESCALE_HOST", "own", "own"),
        ("POSTGRES_HOST", "general", "general"),
        ("DATABASE_URL", "postgres://first/", "first"),
        ("POSTGRES_URL", "postgresql://second/", "second"),
    ],
    "port": [
        ("TIMESCALE_PORT", "1", 1),
        ("POSTGRES_PORT", "2", 2),
        ("DATABASE_URL", "postgres://h:3/", 3),
        ("POSTGRES_URL", "postgres://h:4/", 4),
    ],
    "db": [
        ("TIMESCALE_DB", "own", "own"),
        ("POSTGRES_DB", "general", "general"),
        ("DATABASE_URL", "postgres:///first", "first"),
        ("POSTGRES_URL", "postgres:///second", "second"),
    ],
    "user": [
        ("TIMESCALE_USER", "own", "own"),
        ("POSTGRES_USER", "general", "general"),
        ("DATABASE_URL", "postgres://first@h", "first"),
        ("POSTGRES_URL", "postgres://second@h", "second"),
    ],
    "password": [
        ("TIMESCALE_PASSWORD", "own", SecretStr("own")),
        ("POSTGRES_PASSWORD", "general", SecretStr("general")),
        ("DATABASE_URL", "postgres://u:first@h", SecretStr("first")),
        ("POSTGRES_URL", "postgres://u:second@h", SecretStr("second")),
    ],
    "sslmode": [
        ("TIMESCALE_SSLMODE", "disable", "disable"),
        ("DATABASE_URL", "postgres://h?sslmode=require", "require"),
        ("POSTGRES_URL", "postgres://h?sslmode=verify-ca", "verify-ca"),
    ],
    "batch_size": [("TIMESCALE_BATCH_SIZE", "7", 7), ("BATCH_SIZE", "100", 100)],
    "batch_timeout": [
        ("TIMESCALE_BATCH_TIMEOUT", "2", 2.0),
        ("BATCH_TIMEOUT", "5", 5.0),
    ],
    "batch_timeout ms": [
        ("TIMESCALE_BATCH_TIMEOUT_MS", "30", 0.03),
        ("BATCH_TIMEOUT_MS", "50", 0.05),
    ],
    "batch_timeout mixed": [
        ("TIMESCALE_BATCH_TIMEOUT_MS", "30", 0.03),
        ("BATCH_TIMEOUT", "5", 5.0),
    ],
    "write_timeout": [("TIMESCALE_WRITE_TIMEOUT", "3", 3.0)],
    "pool_max": [("TIMESCALE_POOL_MAX", "9", 9)],
}


def combinations() -> Iterator[Any]:
    """Every choice of places to set a field in."""
    for case, places in PLACES.items():
        for count in range(len(places) + 1):
            for chosen in itertools.combinations(places, count):
                names = "+".join(name for name, _, _ in chosen)
                yield pytest.param(case.partition(" ")[0], list(chosen), id=f"{case}:{names or 'default'}")


@pytest.mark.parametrize(("field", "chosen"), list(combinations()))
def test_the_first_place_wins(field: str, chosen: list[tuple[str, str, Any]]) -> None:
    """Own prefix, general name, URL, default; whatever of them is set, and the rest may be empty."""
    everywhere = {name: "" for places in PLACES.values() for name, _, _ in places}
    settings = load(everywhere | {name: text for name, text, _ in chosen})
    expected, source = (chosen[0][2], chosen[0][0]) if chosen else (Timescale.model_fields[field].default, "default")

    assert getattr(settings.sinks["timescale"], field) == expected
    assert settings.public()[f"sinks.timescale.{field}"]["source"] == source


@pytest.mark.parametrize(
    ("path", "env", "expected"),
    [
        ("kafka.bootstrap_servers", {"KAFKA_BROKERS": "b:1"}, "b:1"),
        ("kafka.bootstrap_servers", {"KAFKA_BROKERS": "b:1", "KAFKA_BOOTSTRAP_SERVERS": "a:1, c:2"}, "a:1,c:2"),
        ("kafka.bootstrap_servers", {"KAFKA_BROKERS": "[::1]:9092"}, "[::1]:9092"),
        ("kafka.security_protocol", {"KAFKA_SECURITY_PROTOCOL": "ssl"}, "SSL"),
        ("channel_size", {"CHANNEL_CAPACITY": "2"}, 2),
        ("channel_size", {"CHANNEL_CAPACITY": "2", "CHANNEL_SIZE": "1"}, 1),
        ("max_inflight_bytes", {"IOTFLOW_MAX_INFLIGHT_BYTES": "1MiB"}, 2**20),
        ("max_inflight_bytes", {"IOTFLOW_MAX_INFLIGHT_BYTES": "1 gb"}, 10**9),
        ("max_inflight_bytes", {"IOTFLOW_MAX_INFLIGHT_BYTES": "70000"}, 70_000),
        ("chunk_bytes", {"IOTFLOW_CHUNK_BYTES": "2k"}, 2000),
        ("topics.raw", {"KAFKA_RAW_TOPICS": "a:telemetry, b:fire"}, {"a": "telemetry", "b": "fire"}),
        ("topics.decode_output", {"KAFKA_INPUT_TOPIC": "x"}, "x"),
        ("topics.decode_output", {"KAFKA_INPUT_TOPIC": "x", "KAFKA_OUTPUT_TOPIC": "y"}, "y"),
        ("types", {"IOTFLOW_VALUE_TYPES": "m.counter=int64,total=INT32"}, {"m.counter": "INT64", "total": "INT32"}),
        ("log_level", {"RUST_LOG": "warn"}, "WARNING"),
        ("log_level", {"RUST_LOG": "warn", "LOG_LEVEL": "debug"}, "DEBUG"),
        ("log_level", {"RUST_LOG": "info,app::transport=debug"}, "INFO,app.transport=DEBUG"),
        ("log_level", {"LOG_LEVEL": "faust=trace"}, "INFO,faust=DEBUG"),
        ("commit_interval", {"IOTFLOW_COMMIT_INTERVAL_MS": "250"}, 0.25),
        ("retry.first", {"IOTFLOW_RETRY_FIRST": "0.5"}, 0.5),
        ("http_addr", {"HTTP_ADDR": ":8080"}, "0.0.0.0:8080"),
        ("data_dir", {"IOTFLOW_DATA_DIR": "/var/x"}, "/var/x"),
        (
            "group_ids.store-timescale",
            {"IOTFLOW_GROUP_STORE_TIMESCALE": "timescale_sink_group"},
            "timescale_sink_group",
        ),
        ("group_ids.decode", {"IOTFLOW_APP_PREFIX": "plant"}, "plant-decode"),
    ],
)
def test_each_variable_is_understood(path: str, env: dict[str, str], expected: object) -> None:
    """What is written in a variable, in each form it may have, is what the setting becomes."""
    assert load(env).public()[path]["value"] == expected


def test_a_url_fills_in_what_is_missing() -> None:
    """Each part of the URL counts where nothing else says it, percent-decoded."""
    found = timescale({"DATABASE_URL": URL, "POSTGRES_HOST": "general", "TIMESCALE_PORT": "1"})

    assert (found.host, found.port, found.db, found.user, found.sslmode) == (
        "general",
        1,
        "urldb",
        "urluser",
        "require",
    )
    assert found.password == SecretStr(SECRET)


def test_two_urls_are_never_mixed() -> None:
    """The password of one URL is not sent to the host of another, and the unused one is mentioned."""
    settings = load({"DATABASE_URL": "postgres://first/db", "POSTGRES_URL": URL})

    assert timescale({"DATABASE_URL": "postgres://first/db", "POSTGRES_URL": URL}).password is None
    assert settings.notices == ["POSTGRES_URL is not used: DATABASE_URL is set"]


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("postgres://u:p@h:1/d", {"user": "u", "password": "p", "host": "h", "port": "1", "db": "d"}),
        ("postgresql://H.example/d", {"host": "H.example", "db": "d"}),
        ("postgres://u:a%23b%3A%25@h", {"user": "u", "password": "a#b:%", "host": "h"}),
        ("postgres://[::1]:5433/d", {"host": "::1", "port": "5433", "db": "d"}),
        ("postgres:///d?host=/run/pg&user=u", {"db": "d", "host": "/run/pg", "user": "u"}),
        ("postgres://%2Frun%2Fpg/d", {"host": "/run/pg", "db": "d"}),
        (
            "postgres://h?sslrootcert=/ca&sslcert=/c&sslkey=/k",
            {"host": "h", "ssl_ca": "/ca", "ssl_cert": "/c", "ssl_key": "/k"},
        ),
    ],
)
def test_url_forms(url: str, parts: dict[str, str]) -> None:
    """Every form of PostgreSQL's URLs is taken apart."""
    assert parse_url(url) == (parts, [])


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://u:{SECRET}@h/d",
        "postgres://u:s3cr3t#x@h/d",
        "postgres://u:s3cr3t/x@h/d",
        "postgres://u:s3cr3t?x@h/d",
        "postgres://u:s3cr3t@x@h/d",
        "postgres://u:s3cr3t",
        "postgres://[s3cr3t/d",
        "postgres:s3cr3t",
        "s3cr3t",
    ],
)
def test_a_wrong_url_is_refused_unseen(url: str) -> None:
    """A URL that is none, or whose password was not percent-encoded, is refused without repeating a part of it."""
    [line] = problems({"DATABASE_URL": url})

    assert line.startswith("DATABASE_URL ")
    assert "percent-encoded" in line
    assert "s3cr3t" not in line


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"BATCH_SIZE": "10k"}, "BATCH_SIZE is '10k': must be a whole number at least 1 and at most 1000000"),
        ({"TIMESCALE_BATCH_SIZE": "0", "BATCH_SIZE": "5"}, "TIMESCALE_BATCH_SIZE is '0': must be a whole number"),
        ({"BATCH_TIMEOUT_MS": "0"}, "BATCH_TIMEOUT_MS is '0': must be a number of seconds above 0"),
        ({"BATCH_TIMEOUT_MS": "soon"}, "BATCH_TIMEOUT_MS is 'soon': must be a number of milliseconds"),
        ({"BATCH_TIMEOUT": "nan"}, "BATCH_TIMEOUT is 'nan': must be a number of seconds above 0"),
        (
            {"BATCH_TIMEOUT": "1", "BATCH_TIMEOUT_MS": "1000"},
            "BATCH_TIMEOUT and BATCH_TIMEOUT_MS are both set; keep one",
        ),
        (
            {"DATABASE_URL": "postgres://h:99999/"},
            "DATABASE_URL (port): must be a whole number at least 1 and at most 65535",
        ),
        ({"TIMESCALE_PORT": "tcp://10.0.0.1:5432"}, "TIMESCALE_PORT is 'tcp://10.0.0.1:5432': must be a whole number"),
        ({"TIMESCALE_POOL_MIN": "5"}, "TIMESCALE_POOL_MAX (2) must be at least TIMESCALE_POOL_MIN (5)"),
        (
            {"TIMESCALE_SSLMODE": "yes"},
            "TIMESCALE_SSLMODE is 'yes': must be one of disable, prefer, require, verify-ca",
        ),
        ({"TIMESCALE_SSL_CA": "/nowhere"}, "TIMESCALE_SSL_CA is '/nowhere': must be the path of a file that exists"),
        ({"IOTFLOW_STAGE": "stre"}, "IOTFLOW_STAGE is 'stre', which is no stage; stages: analyze, api, decode"),
        ({"IOTFLOW_APP_PREFIX": "a b"}, "IOTFLOW_APP_PREFIX is 'a b': must be 1 to 249 letters"),
        ({"IOTFLOW_GROUP_DECODE": "a b"}, "IOTFLOW_GROUP_DECODE is 'a b': must be 1 to 249 letters"),
        ({"IOTFLOW_GROUP_DECODE": "iotflow-api"}, "IOTFLOW_GROUP_API and IOTFLOW_GROUP_DECODE make both stages the"),
        ({"KAFKA_BROKERS": "kafka"}, "KAFKA_BROKERS is 'kafka': must be HOST:PORT"),
        ({"KAFKA_BROKERS": "kafka:99999"}, "KAFKA_BROKERS is 'kafka:99999': must be HOST:PORT"),
        ({"KAFKA_RAW_TOPICS": "a:b"}, "KAFKA_RAW_TOPICS is 'a:b': topic 'a' has an unknown dialect 'b'; known: "),
        ({"KAFKA_RAW_TOPICS": "a"}, "KAFKA_RAW_TOPICS: topics.a: nothing says which dialect it speaks"),
        ({"KAFKA_RAW_TOPICS": "a:fire,a:telemetry"}, "KAFKA_RAW_TOPICS is 'a:fire,a:telemetry': names 'a' twice"),
        ({"KAFKA_INPUT_TOPIC": "raw_iot_data"}, "KAFKA_RAW_TOPICS and KAFKA_INPUT_TOPIC both name 'raw_iot_data'"),
        ({"KAFKA_OUTPUT_TOPIC": "raw_iot_data"}, "KAFKA_RAW_TOPICS and KAFKA_OUTPUT_TOPIC both name 'raw_iot_data'"),
        ({"KAFKA_INPUT_TOPIC": "a b"}, "KAFKA_INPUT_TOPIC is 'a b': must be 1 to 249 letters"),
        ({"IOTFLOW_DEAD_LETTER_TOPIC": "raw_iot_data"}, "IOTFLOW_DEAD_LETTER_TOPIC and KAFKA_RAW_TOPICS both name"),
        (
            {"IOTFLOW_DEAD_LETTER_TOPIC": "decoded_iot_data"},
            "IOTFLOW_DEAD_LETTER_TOPIC and KAFKA_INPUT_TOPIC both name",
        ),
        (
            {"IOTFLOW_VALUE_TYPES": "a=INT8"},
            "IOTFLOW_VALUE_TYPES is 'a=INT8': 'a' has an unknown type 'INT8'; allowed: ",
        ),
        (
            {"IOTFLOW_CHUNK_BYTES": "many"},
            "IOTFLOW_CHUNK_BYTES is 'many': must be a number of bytes, as 67108864 or 64M",
        ),
        ({"IOTFLOW_CEILING_RATIO": "2"}, "IOTFLOW_CEILING_RATIO is '2': must be a number above 0 and at most 1"),
        ({"IOTFLOW_RETRY_FIRST": "9"}, "IOTFLOW_RETRY_CAP (5.0 s) must be at least IOTFLOW_RETRY_FIRST (9.0 s)"),
        ({"RUST_LOG": "loud"}, "RUST_LOG is 'loud': 'loud' is not LEVEL or MODULE=LEVEL; levels: trace, debug, info"),
        ({"HTTP_ADDR": "8080"}, "HTTP_ADDR is '8080': must be HOST:PORT"),
        ({"IOTFLOW_ENV_FILE": "/nowhere"}, "IOTFLOW_ENV_FILE: /nowhere cannot be read (No such file or directory)"),
        (
            {"KAFKA_SASL_USERNAME": "u"},
            "KAFKA_SASL_USERNAME is set, but KAFKA_SECURITY_PROTOCOL PLAINTEXT does not use it",
        ),
        (
            {"KAFKA_SECURITY_PROTOCOL": "TLS"},
            "KAFKA_SECURITY_PROTOCOL is 'TLS': must be one of PLAINTEXT, SSL, SASL_PLAIN",
        ),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL"},
            "KAFKA_SASL_MECHANISM is not set, but KAFKA_SECURITY_PROTOCOL is SASL_SSL",
        ),
        ({"KAFKA_SSL_KEY_PASSWORD": "x"}, "KAFKA_SSL_KEY_PASSWORD is set, but KAFKA_SECURITY_PROTOCOL PLAINTEXT"),
        (
            {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CERT": __file__},
            "KAFKA_SSL_CERT and KAFKA_SSL_KEY go together",
        ),
    ],
)
def test_each_mistake_is_named(env: dict[str, str], line: str) -> None:
    """One mistake gives one line: the variable as it was set, and what it has to be."""
    [found] = problems(env)

    assert found.startswith(line)


@pytest.mark.parametrize(
    ("mechanism", "missing"),
    [
        ("plain", ["KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"]),
        ("SCRAM-SHA-512", ["KAFKA_SASL_USERNAME", "KAFKA_SASL_PASSWORD"]),
        (
            "OAUTHBEARER",
            ["KAFKA_SASL_OAUTH_TOKEN_URL", "KAFKA_SASL_OAUTH_CLIENT_ID", "KAFKA_SASL_OAUTH_CLIENT_SECRET"],
        ),
    ],
)
def test_a_log_in_needs_its_credentials(mechanism: str, missing: list[str]) -> None:
    """Each SASL mechanism asks for what it needs, all of it at once, and is content with that."""
    env = {"KAFKA_SECURITY_PROTOCOL": "SASL_SSL", "KAFKA_SASL_MECHANISM": mechanism}

    assert [line.partition(" ")[0] for line in problems(env)] == missing
    complete = env | dict.fromkeys(missing, "x") | {name: "https://sso/token" for name in missing if "URL" in name}
    assert load(complete).kafka.sasl_mechanism == mechanism.upper()


@pytest.mark.parametrize("url", ["ftp://sso/token", "https://u:s3cr3t@sso/token", "https://", "http://[", "s3cr3t"])
def test_a_token_url_has_no_log_in(url: str) -> None:
    """The OAuth token's URL is http or https and has no credentials, which would be shown."""
    env = {
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "OAUTHBEARER",
        "KAFKA_SASL_OAUTH_TOKEN_URL": url,
        "KAFKA_SASL_OAUTH_CLIENT_ID": "id",
        "KAFKA_SASL_OAUTH_CLIENT_SECRET": "s3cr3t",
    }
    [line] = problems(env)

    assert line.startswith("KAFKA_SASL_OAUTH_TOKEN_URL")
    assert "s3cr3t" not in line


def test_everything_wrong_is_said_at_once() -> None:
    """Mistakes in all parts come together, and what only follows from one of them is left out."""
    lines = problems(
        {
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": "magic",
            "KAFKA_BROKERS": "x",
            "KAFKA_INPUT_TOPIC": "no topic",
            "TIMESCALE_PORT": "zero",
            "TIMESCALE_POOL_MIN": "5",
            "IOTFLOW_STAGE": "store-timescale",
            "IOTFLOW_CEILING_RATIO": "2",
            "IOTFLOW_RETRY_FIRST": "9",
            "IOTFLOW_GROUP_DECODE": "a b",
            "LOG_LEVEL": "loud",
            "DATABASE_URL": "x",
            "BATCH_TIMEOUT": "1",
            "BATCH_TIMEOUT_MS": "1",
        }
    )

    assert sorted(line.split(" ")[0] for line in lines) == [
        "BATCH_TIMEOUT",
        "DATABASE_URL",
        "IOTFLOW_CEILING_RATIO",
        "IOTFLOW_GROUP_DECODE",
        "IOTFLOW_RETRY_CAP",
        "KAFKA_BROKERS",
        "KAFKA_INPUT_TOPIC",
        "KAFKA_SASL_MECHANISM",
        "LOG_LEVEL",
        "TIMESCALE_POOL_MAX",
        "TIMESCALE_PORT",
    ]


@pytest.mark.parametrize("name", ["TIMESCALE_PASSWORD", "POSTGRES_PASSWORD", "DATABASE_URL"])
@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_may_be_a_file(tmp_path: Path, name: str, end: str) -> None:
    """`NAME_FILE` stands for `NAME`, without the line end that editors add."""
    path = tmp_path / "secret"
    path.write_text((URL if name == "DATABASE_URL" else SECRET) + end, newline="")
    settings = load({f"{name}_FILE": str(path)})
    found = settings.sinks["timescale"]

    assert getattr(found, "password") == SecretStr(SECRET)  # noqa: B009  a sink's own field
    assert settings.public()["sinks.timescale.password"] == {"value": "***", "source": f"{name}_FILE"}


def test_a_secret_and_its_file_are_one_too_many(tmp_path: Path) -> None:
    """Both forms of a name are refused, though a name of higher precedence makes them harmless."""
    (tmp_path / "secret").write_text("s3cr3t")
    both = {"POSTGRES_PASSWORD": "s3cr3t", "POSTGRES_PASSWORD_FILE": str(tmp_path / "secret")}

    assert problems(both) == ["POSTGRES_PASSWORD and POSTGRES_PASSWORD_FILE are both set; keep one of them"]
    assert timescale(both | {"TIMESCALE_PASSWORD": "own"}).password == SecretStr("own")


@pytest.mark.parametrize(
    ("content", "flaw"),
    [(None, "cannot be read (No such file or directory)"), (b"\n", "is empty"), (b"\xff", "is not UTF-8")],
)
def test_an_unreadable_secret_is_named(tmp_path: Path, content: bytes | None, flaw: str) -> None:
    """A secret's file that is missing, empty or binary is named; nothing else takes the secret's place."""
    path = tmp_path / "secret"
    if content is not None:
        path.write_bytes(content)
    env = {
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "u",
        "KAFKA_SASL_PASSWORD_FILE": str(path),
    }
    [line] = problems(env)

    assert line.startswith(f"KAFKA_SASL_PASSWORD_FILE: {path} {flaw}")


def test_the_env_file_fills_in(tmp_path: Path) -> None:
    """`IOTFLOW_ENV_FILE` adds variables, the real environment wins, and the source says which it was."""
    path = tmp_path / "stack.env"
    path.write_text("TIMESCALE_PORT=1\nBATCH_TIMEOUT=5\nTIMESCALE_HOST=file\nTIMESCALE_USER=file\nLOG_LEVEL=\n")
    env = {"IOTFLOW_ENV_FILE": str(path), "TIMESCALE_HOST": "real", "TIMESCALE_USER": "", "BATCH_TIMEOUT_MS": "50"}
    shown = load(env).public()

    assert shown["sinks.timescale.port"] == {"value": 1, "source": f"TIMESCALE_PORT in {path}"}
    assert shown["sinks.timescale.host"] == {"value": "real", "source": "TIMESCALE_HOST"}
    assert shown["sinks.timescale.user"] == {"value": "file", "source": f"TIMESCALE_USER in {path}"}
    assert shown["sinks.timescale.batch_timeout"] == {"value": 0.05, "source": "BATCH_TIMEOUT_MS"}


def test_env_file_lines(tmp_path: Path) -> None:
    """The documents' block of variables can be pasted into the env file as it stands, and shells' habits work."""
    path = tmp_path / "env"
    path.write_text(
        "# settings\n\nBATCH_SIZE=100                           # Batch size for inserts\nexport A = b c \n"
        "B='x # y' # z\nC=\"q\"\nD=a#b=c\nE= # nothing\n"
    )

    assert read_env_file(path) == {"BATCH_SIZE": "100", "A": "b c", "B": "x # y", "C": "q", "D": "a#b=c", "E": ""}


@pytest.mark.parametrize("content", [b"A=1\ns3cr3t\n", b"A=1\nB='s3cr3t\n", b"A=1\ns3 cr3t=1\n", b"\xff"])
def test_a_broken_env_file_is_named(tmp_path: Path, content: bytes) -> None:
    """A line that is no KEY=value is given by its number, never by what stands in it."""
    path = tmp_path / "env"
    path.write_bytes(content)
    [line] = problems({"IOTFLOW_ENV_FILE": str(path)})

    assert line.startswith(f"IOTFLOW_ENV_FILE: {path}")
    assert "line 2" in line or "UTF-8" in line
    assert "cr3t" not in line


def test_a_value_from_the_env_file_is_blamed_there(tmp_path: Path) -> None:
    """A mistake in the env file says so, for the variable is not in the environment."""
    path = tmp_path / "env"
    path.write_text("BATCH_SIZE=x\n")
    [line] = problems({"IOTFLOW_ENV_FILE": str(path)})

    assert line.startswith(f"BATCH_SIZE in {path} is 'x'")


@pytest.mark.parametrize(
    ("env", "notice"),
    [
        (
            {"REDIS_URL": "redis://:s3cr3t@h"},
            "REDIS_URL is ignored: iotflow keeps its books in Kafka and needs no Redis",
        ),
        ({"TIMESCALE_HOTS": "s3cr3t"}, "TIMESCALE_HOTS is not known; did you mean TIMESCALE_HOST?"),
        (
            {"TIMESCALE_PASWORD_FILE": "s3cr3t"},
            "TIMESCALE_PASWORD_FILE is not known; did you mean TIMESCALE_PASSWORD_FILE?",
        ),
        ({"IOTFLOW_GROUP_DECODER": "x"}, "IOTFLOW_GROUP_DECODER is not known; did you mean IOTFLOW_GROUP_DECODE?"),
        ({"IOTFLOW_QQQ": "x"}, "IOTFLOW_QQQ is not known"),
        (
            {"DATABASE_URL": "postgres://h?application_name=s3cr3t"},
            "DATABASE_URL has parameters that are ignored: application_name",
        ),
    ],
)
def test_notices(env: dict[str, str], notice: str) -> None:
    """What has no effect is mentioned, with the name that was probably meant and never with a value."""
    assert load(env).notices == [notice]


def test_the_interval_of_the_books_goes_by_the_documents_name() -> None:
    """It is honoured, so nobody says that it is ignored."""
    found = load({"REDIS_FLUSH_INTERVAL_SECONDS": "7"})

    assert (found.books_interval, found.notices) == (7.0, [])


def test_known_names_give_no_notice(tmp_path: Path) -> None:
    """Every form of every variable of ours counts as known."""
    (tmp_path / "env").touch()
    names = ["IOTFLOW_COMMIT_INTERVAL_MS", "TIMESCALE_WRITE_TIMEOUT_MS"]

    assert not load(dict.fromkeys(names, "100") | {"IOTFLOW_ENV_FILE": str(tmp_path / "env")}).notices


def test_no_view_has_a_secret(tmp_path: Path) -> None:
    """Repr, str, JSON and the public view of the settings have no secret, used or unused, and no URL's password."""
    (tmp_path / "key").write_text("f1l3s3cr3t")
    settings = load(
        {
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": "PLAIN",
            "KAFKA_SASL_USERNAME": "u",
            "KAFKA_SASL_PASSWORD": "k4fk4s3cr3t",
            "KAFKA_SSL_CERT": str(tmp_path / "key"),
            "KAFKA_SSL_KEY": str(tmp_path / "key"),
            "KAFKA_SSL_KEY_PASSWORD_FILE": str(tmp_path / "key"),
            "TIMESCALE_PASSWORD": "own-s3cr3t",
            "POSTGRES_PASSWORD": "unused-s3cr3t",
            "DATABASE_URL": URL,
            "SCHEMA_REGISTRY_URL": "https://schemas",
            "SCHEMA_REGISTRY_USER": "reader",
            "SCHEMA_REGISTRY_PASSWORD": "schemas-s3cr3t",
        }
    )
    views = [
        repr(settings),
        str(settings),
        settings.model_dump_json(),
        str(settings.model_dump()),
        json.dumps(settings.public()),
        "\n".join(settings.notices),
    ]

    assert not [view for view in views if "s3cr3t" in view]
    said = {"k4fk4s3cr3t", "f1l3s3cr3t", "own-s3cr3t", "unused-s3cr3t", "schemas-s3cr3t", SECRET, URL}
    assert said == settings.secrets()
    assert settings.public()["kafka.sasl_oauth_client_secret"]["value"] is None


def test_no_error_has_a_secret() -> None:
    """A secret is in no error, not even when it strayed into a variable that is no secret."""
    lines = problems(
        {
            "KAFKA_SASL_PASSWORD": "s3cr3t",
            "TIMESCALE_PASSWORD": "s3cr3t",
            "TIMESCALE_PORT": "s3cr3t",
            "KAFKA_SASL_USERNAME": "s3cr3t",
            "TIMESCALE_POOL_MAX": "postgres://u:0th3r@h",
            "KAFKA_SASL_MECHANISM": "s3cr3t",
            "KAFKA_RAW_TOPICS": "s3cr3t",
            "IOTFLOW_STAGE": "s3cr3t",
            "LOG_LEVEL": "s3cr3t",
            "DATABASE_URL": "postgres://u:s3cr3t@h:port/",
        }
    )

    assert len(lines) >= 5
    assert not [line for line in lines if "s3cr3t" in line or "0th3r" in line]


def test_settings_do_not_change() -> None:
    """What was checked stays as it is, and another process can be handed it."""
    settings = load({"TIMESCALE_PASSWORD": "x"})

    with pytest.raises(ValueError, match="frozen"):
        settings.stage = "decode"
    with pytest.raises(ValueError, match="frozen"):
        settings.kafka.bootstrap_servers = "x:1"
    assert pickle.loads(pickle.dumps(settings)).secrets() == {"x"}  # noqa: S301  our own bytes


def test_ports_and_addresses() -> None:
    """Each stage has the design's port; IOTFLOW_WEB_PORT moves it, HTTP_ADDR that of the api."""
    settings = load({})
    moved = load({"IOTFLOW_WEB_PORT": "7000", "HTTP_ADDR": "127.0.0.1:81", "IOTFLOW_WEB_BIND": "::"})
    stages = ["decode", "store-timescale", "analyze", "ingest-mqtt", "ingest-poll", "api"]

    assert [settings.port(stage) for stage in stages] == [6066, 6067, 6071, 6072, 6073, 8080]
    assert [moved.port(stage) for stage in stages] == [7000, 7000, 7000, 7000, 7000, 81]
    assert (moved.bind("api"), moved.bind("decode"), settings.bind("api")) == ("127.0.0.1", "::", "0.0.0.0")  # noqa: S104  the design's
    with pytest.raises(ValueError, match="no stage is called 'x'; stages: analyze, api"):
        settings.port("x")


def test_app_ids() -> None:
    """App ids are PREFIX-STAGE unless a stage has its own."""
    settings = load({"IOTFLOW_APP_PREFIX": "p", "IOTFLOW_GROUP_STORE_TIMESCALE": "timescale_sink_group"})

    assert settings.app_id("store-timescale") == "timescale_sink_group"
    assert settings.app_id("decode") == "p-decode"


def test_settings_made_by_hand_read_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """`Settings()` is the defaults whatever the process's environment says; only `load` looks there."""
    monkeypatch.setenv("IOTFLOW_STAGE", "decode")
    monkeypatch.setenv("stage", "decode")

    assert Settings().stage == ""
    assert Settings(stage="api").stage == "api"
    assert load().stage == "decode"


def package(folder: Path, **modules: str) -> ModuleType:
    """A package made of source text."""
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source)
    made = ModuleType(folder.name)
    made.__path__ = [str(folder)]
    return made


def test_sinks_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module with a `Settings` is a sink; one without is not."""
    folder = tmp_path / "found_sinks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    source = (
        "from sinks.base import SinkSettings\n"
        "class Settings(SinkSettings):\n    PREFIX, STAGE, PORT = 'ACME', 'store-acme', 1\n"
    )
    sinks = discover(package(folder, acme=source, helper="Settings = 1", other=""))

    assert list(sinks) == ["acme"]
    assert ("ACME_BATCH_SIZE", "BATCH_SIZE") in [variable.names for variable in variables.of(sinks["acme"])]


def test_a_sink_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module whose import fails is in the error."""
    folder = tmp_path / "broken_sinks"
    folder.mkdir()
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(SettingsError, match=r"broken_sinks\.acme cannot be imported: .*no_such_driver"):
        discover(package(folder, acme="import no_such_driver"))


def test_stores_are_every_database_or_those_that_are_named() -> None:
    """STORES chooses; a name that is no store is said with those there are."""
    everything = load({})
    assert tuple(name for name, sink in everything.sinks.items() if sink.DEFAULT) == everything.stores
    assert {"timescale", "iotdb", "influxdb"} <= set(everything.stores)
    assert ("timescale",) == load({"STORES": " timescale, timescale "}).stores
    with pytest.raises(SettingsError, match=r"STORES names 'oracle', which is no store; there are: .*timescale"):
        load({"STORES": "timescale,oracle"})
    with pytest.raises(SettingsError, match="STORES is ',': must name a store"):
        load({"STORES": ","})
