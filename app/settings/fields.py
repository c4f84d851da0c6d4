"""How the text of a variable becomes the value of a field, and what is said when it cannot."""

import re
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field

from schemas import dialects, duration

VALUE_TYPES: Final = ("INT32", "INT64", "FLOAT", "DOUBLE")

_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,249}")
_SERVER: Final = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/@,\[\]]+):([0-9]{1,5})")
_UNSAID: Final = "\0"
_SIZE: Final = re.compile(r"([0-9]+)\s*([kKmMgG]?)(i?)[bB]?")
_POWERS: Final = {"": 0, "k": 1, "m": 2, "g": 3}
# Rust's words beside Python's: the documents set RUST_LOG.
_LEVELS: Final[Mapping[str, str]] = {
    "TRACE": "DEBUG",
    "DEBUG": "DEBUG",
    "INFO": "INFO",
    "WARN": "WARNING",
    "WARNING": "WARNING",
    "ERROR": "ERROR",
    "CRITICAL": "CRITICAL",
    "OFF": "CRITICAL",
}


def setting(default: Any, *names: str, text: str, unit: str = "", **constraints: Any) -> Any:
    """Make a field: its variables in order of precedence, its unit (`s` also accepts `_MS` names) and its meaning."""
    alias = AliasChoices(names[0], *names[1:])
    return Field(default, validation_alias=alias, description=text, json_schema_extra={"unit": unit}, **constraints)


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


def _size(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value.strip())
    if match is None:
        raise ValueError(
            "must be a number of bytes, as 67108864 or 64MiB (KiB, MiB, GiB; kB, MB, GB are powers of 1000)"
        )
    number, power, binary = match.groups()
    return int(number) * (1024 if binary else 1000) ** _POWERS[power.lower()]


def _name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("must be 1 to 249 letters, digits, '.', '_' or '-'")
    return value


def _servers(value: str) -> str:
    servers = [server.strip() for server in value.split(",") if server.strip()]
    for server in servers:
        match = _SERVER.fullmatch(server)
        if match is None or not 0 < int(match[2]) <= 65535:  # noqa: PLR2004  the last port there is
            raise ValueError("must be HOST:PORT, several separated by commas")
    return ",".join(servers)


def _pairs(value: Any, separator: str, form: str) -> Iterator[tuple[str, str]]:
    for part in filter(None, (part.strip() for part in value.split(","))):
        name, found, meaning = part.partition(separator)
        if not (found and name.strip() and meaning.strip()):
            raise ValueError(f"must be {form}, several separated by commas; not {part!r}")
        yield name.strip(), meaning.strip()


def _unique(pairs: Iterator[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, meaning in pairs:
        if found.setdefault(name, meaning) != meaning:
            raise ValueError(f"names {name!r} twice, as {found[name]!r} and {meaning!r}: keep one")
    return found


def raw_topics(value: Any) -> Any:
    """Topics and their dialects, from text or as they are; `''` for one that the file of inputs must say.

    Raises `ValueError`.
    """
    if isinstance(value, str):
        # A topic that says itself what is in it, as datalake.sensorData, needs no dialect; nor one of IOTFLOW_INPUTS.
        parts = [part.strip() for part in value.split(",") if part.strip()]
        named = (part if ":" in part else f"{part}:{dialects.by_topic(part) or _UNSAID}" for part in parts)
        value = _unique(_pairs(",".join(named), ":", "TOPIC:DIALECT"))
    known = [*sorted(dialects.load()), dialects.AUTO]
    topics: dict[str, str] = {}
    for topic, dialect in value.items():
        if not _NAME.fullmatch(topic):
            raise ValueError(f"topic {topic!r} must be 1 to 249 letters, digits, '.', '_' or '-'")
        topics[topic] = "" if dialect == _UNSAID else dialect
        if topics[topic] and dialect not in known:
            raise ValueError(f"topic {topic!r} has an unknown dialect {dialect!r}; known: {', '.join(known)}")
    return topics


def _value_types(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    types = {name: kind.upper() for name, kind in _unique(_pairs(value, "=", "MEASUREMENT.METRIC=TYPE")).items()}
    for name, kind in types.items():
        if kind not in VALUE_TYPES:
            raise ValueError(f"{name!r} has an unknown type {kind!r}; allowed: {', '.join(VALUE_TYPES)}")
    return types


def _stores(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    stores = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    if not stores:
        raise ValueError("must name a store: NAME,NAME")
    return stores


def _ranges(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    form = "DIALECT.METRIC=LOW..HIGH"
    known = {name: dialects.policy_of(name).metrics for name in dialects.load()}
    ranges: dict[str, dict[str, tuple[float, float]]] = {}
    for name, text in _unique(_pairs(value, "=", form)).items():
        dialect, _, metric = name.partition(".")
        if not metric or dialect not in known or (known[dialect] and metric not in known[dialect]):
            allowed = ", ".join(f"{other}.{each}" for other, metrics in known.items() for each in metrics)
            raise ValueError(f"{name!r} has no range that can be set; there are: {allowed}")
        try:
            low, high = (float(bound) for bound in text.split(".."))
        except ValueError:
            raise ValueError(f"must be {form}, as telemetry.temperature=-20..50; not {name}={text}") from None
        if not low < high:
            raise ValueError(f"the range of {name} is empty: {text}")
        ranges.setdefault(dialect, {})[metric] = (low, high)
    return ranges


def _windows(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    names = tuple(name.strip() for name in value.split(",") if name.strip())
    if not names:
        raise ValueError("must name a window: 1m,5m,1h,1d")
    shorter = None
    for name in names:
        span = duration.parse(name)
        if shorter is not None and (span <= duration.parse(shorter) or span % duration.parse(shorter)):
            raise ValueError(f"window {name} is no multiple of {shorter}, the one before it")
        shorter = name
    if timedelta(days=1) % duration.parse(names[-1]):
        raise ValueError(f"a day is no multiple of the window {names[-1]}")
    return names


def _lateness(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    late = _unique(_pairs(value, "=", "WINDOW=SPAN"))
    for span in (*late, *late.values()):
        duration.parse(span)
    return late


def parse_levels(text: str) -> tuple[str, dict[str, str]]:
    """The overall level and each module's own; raises `ValueError` naming what is neither."""
    root, modules = "INFO", dict[str, str]()
    for part in filter(None, (part.strip() for part in text.split(","))):
        module, found, level = part.rpartition("=")
        word = _LEVELS.get(level.strip().upper())
        if word is None or (found and not module.strip()):
            raise ValueError(f"{part!r} is not LEVEL or MODULE=LEVEL; levels: {', '.join(_LEVELS).lower()}")
        if found:
            modules[module.strip().replace("::", ".")] = word
        else:
            root = word
    return root, modules


def _log_level(value: str) -> str:
    root, modules = parse_levels(value)
    return ",".join([root, *(f"{module}={level}" for module, level in modules.items())])


def _token_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and not {"@", ","} & {*parts.netloc}
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be an http or https URL without a user or password in it")
    return value


def _address(value: str) -> str:
    host, found, port = value.rpartition(":")
    if not (found and port.isdecimal() and 0 < int(port) <= 65535):  # noqa: PLR2004  the last port there is
        raise ValueError("must be HOST:PORT, as 0.0.0.0:8080")
    return f"{host or '0.0.0.0'}:{port}"  # noqa: S104  Go's ':8080' means every interface


#: What each reads, from the text of a variable; anything that is not text is taken as it is.
Size = Annotated[int, BeforeValidator(_size)]
Name = Annotated[str, AfterValidator(_name)]
Servers = Annotated[str, AfterValidator(_servers)]
RawTopics = Annotated[dict[str, str], BeforeValidator(raw_topics)]
Ranges = Annotated[dict[str, dict[str, tuple[float, float]]], BeforeValidator(_ranges)]
Windows = Annotated[tuple[str, ...], BeforeValidator(_windows)]
Lateness = Annotated[dict[str, str], BeforeValidator(_lateness)]
Stores = Annotated[tuple[str, ...], BeforeValidator(_stores)]
ValueTypes = Annotated[dict[str, str], BeforeValidator(_value_types)]
LogLevel = Annotated[str, AfterValidator(_log_level)]
TokenUrl = Annotated[str, AfterValidator(_token_url)]
Address = Annotated[str, AfterValidator(_address)]
Protocol = Annotated[Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"], BeforeValidator(_upper)]
Mechanism = Annotated[Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"], BeforeValidator(_upper)]
MECHANISMS: Final[tuple[str, ...]] = get_args(get_args(Mechanism)[0])
