"""Logs: one JSON object a line on stderr, without secrets."""

import json
import logging
import re
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

from app.settings import Settings

#: Talkative libraries: at WARNING, unless LOG_LEVEL names them.
CHATTER: Final = ("aiokafka", "faust", "mode", "aiohttp.access")
#: A shorter secret is struck out only where it stands alone, or it would tear other words apart.
_SHORT_CHARS: Final = 4
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def config(settings: Settings, stage: str = "") -> dict[str, Any]:
    """A mapping for `logging.config.dictConfig`, and for Faust's `logging_config`.

    A `stage` that is not empty becomes a field of each line.
    """
    redact = Redact(settings.secrets())
    overall, modules = settings.log_levels
    quiet = max(logging.WARNING, logging.getLevelNamesMapping()[overall])
    levels: dict[str, str | int] = {**dict.fromkeys(CHATTER, quiet), **modules}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": Json, "stage": stage}},
        # A factory, so that no secret stands in the mapping itself, which may be printed.
        "filters": {"sparing": {"()": Sparing}, "redact": {"()": lambda: redact}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": "json",
                "filters": ["sparing", "redact"],
            }
        },
        "loggers": {name: {"level": level} for name, level in levels.items()},
        "root": {"level": overall, "handlers": ["stderr"]},
    }


class Json(logging.Formatter):
    """A record as one line of JSON: `ts`, `level`, `logger`, `event`, the fields of `extra`, and `exc`."""

    def __init__(self, stage: str = "") -> None:
        super().__init__()
        self._stage = {"stage": stage} if stage else {}

    def format(self, record: logging.LogRecord) -> str:
        """The line; whatever JSON has no form for is there as text."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "level": record.levelname,
            "logger": record.name,
            "event": _message(record),
            **self._stage,
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line[f"{name}_" if name in line else name] = value
        if exc := _traceback(record):
            line["exc"] = exc
        if record.stack_info:
            line["stack"] = record.stack_info
        try:
            return json.dumps(line, default=str, skipkeys=True, allow_nan=False)
        except ValueError:  # not a number, or a loop
            return json.dumps({name: value if isinstance(value, int) else str(value) for name, value in line.items()})


class Sparing(logging.Filter):
    """Lets what aiokafka says again and again pass once in a while, with how often it was said since (`repeated`).

    While a broker is away each of its clients says so some hundred times a second, and what matters is not seen.
    """

    def __init__(self, every_s: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._every_s = every_s
        self._clock = clock
        #: When a line of this logger was last let pass, and how many were not since then.
        self._said: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record passes."""
        if not record.name.startswith("aiokafka"):
            return True
        place, now = (record.name, record.lineno), self._clock()
        since, kept = self._said.get(place, (-self._every_s, 0))
        if now - since < self._every_s:
            self._said[place] = since, kept + 1
            return False
        if kept:
            record.repeated = kept
        self._said[place] = now, 0
        return True


class Redact(logging.Filter):
    """Strikes secrets out of whatever a record would say: the last line of defence, for text that others made."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__()
        # As they are, as a URL has them, and as repr and JSON have them; the longest first, as one may hold another.
        forms = {form for secret in secrets if secret for form in _forms(secret)}
        patterns = [_pattern(form) for form in sorted(forms, key=len, reverse=True)]
        self._secrets = re.compile("|".join(patterns)) if patterns else None

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, changed where it has to be."""
        if self._secrets is None:
            return True
        record.msg, record.args = self._text(_message(record)), None
        record.exc_text = self._text(_traceback(record)) or None
        if record.stack_info:
            record.stack_info = self._text(record.stack_info)
        for name, value in list(vars(record).items()):
            if name not in _STANDARD:
                setattr(record, name, self._value(value))
        return True

    def _text(self, text: str) -> str:
        return self._secrets.sub("***", text) if self._secrets else text

    def _value(self, value: Any, depth: int = 8) -> Any:
        if value is None or isinstance(value, bool | int | float):
            return value
        if depth and isinstance(value, Mapping):
            return {self._text(str(name)): self._value(item, depth - 1) for name, item in value.items()}
        if depth and isinstance(value, list | tuple | set | frozenset):
            return [self._value(item, depth - 1) for item in value]
        return self._text(str(value))


def _forms(secret: str) -> set[str]:
    return {secret, quote(secret, safe=""), quote(secret), repr(secret)[1:-1], json.dumps(secret)[1:-1]}


def _pattern(form: str) -> str:
    escaped = re.escape(form)
    return escaped if len(form) >= _SHORT_CHARS else rf"(?<!\w){escaped}(?!\w)"


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001  a mistake in a log call must not become one in the work
        return f"{record.msg!r} with {record.args!r}"


def _traceback(record: logging.LogRecord) -> str:
    if record.exc_text is None and record.exc_info and record.exc_info[0] is not None:
        return logging.Formatter().formatException(record.exc_info)
    return record.exc_text or ""
