"""Logs: the shape of a line, levels, and secrets struck out."""

import json
import logging
import logging.config
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import faust
import pytest
from pydantic import SecretStr

from app import logs
from app.settings import load

Lines = Callable[[], list[dict[str, Any]]]
Set = Callable[..., Lines]


@pytest.fixture
def configured(capsys: pytest.CaptureFixture[str]) -> Iterator[Set]:
    """Configure logging for an environment; gives what reads the lines, and puts logging back afterwards."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    levels = {name: logging.getLogger(name).level for name in [*logs.CHATTER, "app.transport"]}

    def configure(stage: str = "", **env: str) -> Lines:
        logging.config.dictConfig(logs.config(load(env), stage))
        return lambda: [json.loads(line) for line in capsys.readouterr().err.splitlines()]

    yield configure
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_line_is_one_object(configured: Set) -> None:
    """Time, level, logger, message and the extra fields, on one line whatever is in them."""
    lines = configured()
    logging.getLogger("app.x").info(
        "stored\n%d", 3, extra={"rows": 3, "at": datetime(2025, 1, 1, tzinfo=UTC), "ok": None}
    )
    [line] = lines()

    assert datetime.fromisoformat(line.pop("ts")).tzinfo is not None
    assert line == {
        "level": "INFO",
        "logger": "app.x",
        "event": "stored\n3",
        "rows": 3,
        "at": "2025-01-01 00:00:00+00:00",
        "ok": None,
    }


def test_time_is_rfc_3339() -> None:
    """Time is UTC with microseconds, also where they are zero."""
    record = logging.makeLogRecord({"created": 1759667696.0, "msg": "x"})

    assert json.loads(logs.Json().format(record))["ts"] == "2025-10-05T12:34:56.000000Z"


def test_the_stage_is_in_each_line(configured: Set) -> None:
    """A worker's lines say of which stage it is."""
    lines = configured("decode")
    logging.getLogger("app").warning("x")

    assert [line["stage"] for line in lines()] == ["decode"]


@pytest.mark.parametrize("name", ["event", "level", "ts"])
def test_an_extra_field_hides_nothing(configured: Set, name: str) -> None:
    """An extra field with the name of ours stands beside it."""
    lines = configured()
    logging.getLogger("app").info("said", extra={name: "mine"})
    [line] = lines()

    assert (line["event"], line[f"{name}_"]) == ("said", "mine")


def loop() -> list[object]:
    """A list that holds itself."""
    items: list[object] = []
    items.append(items)
    return items


@pytest.mark.parametrize(
    "value",
    [float("nan"), loop(), object(), {1: {2}}, {(1, 2): 3}, "\ud800", b"\xff"],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("env", [{}, {"TIMESCALE_PASSWORD": "s3cr3t"}], ids=["plain", "redacted"])
def test_any_extra_value_makes_a_line(configured: Set, value: object, env: dict[str, str]) -> None:
    """Whatever is logged, the line is JSON that strict readers take."""
    lines = configured(**env)
    logging.getLogger("app").info("x", extra={"value": value})
    [line] = lines()

    assert line["event"] == "x"
    assert "NaN" not in json.dumps(line) or line["value"] == "nan"


def test_a_wrong_log_call_is_only_a_line(configured: Set) -> None:
    """Arguments that do not fit the message do no harm to who logs."""
    lines = configured()
    logging.getLogger("app").info("%d", "x")

    assert [line["event"] for line in lines()] == ["'%d' with ('x',)"]


def fail(text: str) -> None:
    """Raise."""
    raise ValueError(text)


def test_a_traceback_is_a_field(configured: Set) -> None:
    """An exception's traceback is in `exc`."""
    lines = configured()
    try:
        fail("broken")
    except ValueError:
        logging.getLogger("app").exception("failed", stack_info=True)
    [line] = lines()

    assert line["exc"].startswith("Traceback")
    assert line["exc"].endswith("ValueError: broken")
    assert "Stack" in line["stack"]


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, ["app:info", "faust:warning", "aiokafka:warning"]),
        ({"LOG_LEVEL": "debug"}, ["app:debug", "app:info", "faust:warning", "aiokafka:warning"]),
        ({"LOG_LEVEL": "error"}, []),
        (
            {"RUST_LOG": "info,faust=debug"},
            ["app:info", "faust:debug", "faust:info", "faust:warning", "aiokafka:warning"],
        ),
        ({"LOG_LEVEL": "error,app=info"}, ["app:info"]),
    ],
)
def test_levels(configured: Set, env: dict[str, str], said: list[str]) -> None:
    """LOG_LEVEL rules overall and by module; libraries stay quiet until they are named."""
    lines = configured(**env)
    calls = [("app", "debug"), ("app", "info")]
    calls += [
        ("faust", "debug"),
        ("faust", "info"),
        ("faust", "warning"),
        ("aiokafka", "info"),
        ("aiokafka", "warning"),
    ]
    for name, level in calls:
        logging.getLogger(f"{name}.part").log(logging.getLevelNamesMapping()[level.upper()], "x")
    logging.getLogger("app").setLevel(logging.NOTSET)

    assert [f"{line['logger'].split('.')[0]}:{line['level'].lower()}" for line in lines()] == said


SECRETS = {"plain": "s3cr3t", "odd": 's3"c/r 3t', "short": "x1", "hangul": "비밀번호"}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS)
def test_secrets_are_struck_out(configured: Set, secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A secret is in no part of a line: message, arguments, fields at any depth, traceback."""
    configured(TIMESCALE_PASSWORD=secret)
    nested = {"a": [{"b": (secret,)}], secret: 1}
    try:
        fail(f"wrong password {secret!r}")
    except ValueError:
        logging.getLogger("app").exception(
            "as %s", f"{secret}", extra={"url": f"u:{secret}@h", "nested": nested, "hidden": SecretStr(secret)}
        )
    text = capsys.readouterr().err

    assert text.count("***") >= 6
    assert secret not in text
    assert secret not in json.dumps(json.loads(text), ensure_ascii=False)


def test_a_url_and_its_password_are_struck_out(configured: Set) -> None:
    """Both forms of a URL's password go, and so does the URL as a whole."""
    url = "postgres://u:a%2Fb%20c%40d@h/db"
    lines = configured(DATABASE_URL=url)
    logging.getLogger("app").info("%s or %s or %s", url, "a/b c@d", "a%2Fb%20c%40d")

    assert [line["event"] for line in lines()] == ["*** or *** or ***"]


def test_a_short_secret_tears_no_word(configured: Set) -> None:
    """A password of a few letters is struck out as a word, not inside of others."""
    lines = configured(**dict.fromkeys(["TIMESCALE_PASSWORD"], "ts"))
    logging.getLogger("app").info("ts rows in ts_user: lots")

    assert [line["event"] for line in lines()] == ["*** rows in ts_user: lots"]


def test_the_mapping_shows_no_secret() -> None:
    """The configuration itself may be printed."""
    assert "s3cr3t" not in repr(logs.config(load({"TIMESCALE_PASSWORD": "s3cr3t"}), "decode"))


def test_faust_takes_it(configured: Set) -> None:
    """Faust's worker configures logging with the same mapping, twice if it must."""
    lines = configured()
    app = faust.App("logs-test", logging_config=logs.config(load({}), "decode"), web_enabled=False)
    assert app.conf.logging_config is not None
    worker = faust.Worker(app, loglevel="INFO", redirect_stdouts=False, stdout=sys.stdout, stderr=sys.stderr)
    worker._setup_logging()
    worker._setup_logging()
    logging.getLogger("app").info("x")

    assert [line["stage"] for line in lines()] == ["decode"]


def test_what_aiokafka_says_again_and_again_passes_once_in_a_while() -> None:
    now = 0.0
    sparing = logs.Sparing(10.0, lambda: now)

    def said(name: str, line: int = 1) -> logging.LogRecord:
        return logging.LogRecord(name, logging.ERROR, __file__, line, "Unable connect to node %s", (1,), None)

    assert sparing.filter(said("aiokafka.client"))
    assert not any(sparing.filter(said("aiokafka.client")) for _ in range(99))
    assert sparing.filter(said("aiokafka.client", line=2)), "another line is something else"
    assert all(sparing.filter(said("app.lag")) for _ in range(9)), "ours are few"
    now = 10.0
    again = said("aiokafka.client")
    assert sparing.filter(again)
    assert vars(again)["repeated"] == 99
