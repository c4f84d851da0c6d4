"""Dialects: one file each for what devices speak, found by looking, never registered by hand.

A dialect's module has

- `MATCH`: its name, and how it is chosen;
- `decode(payload, meta)`: a payload to its readings and to why there are none; or, where it can be configured,
  `Options` (a pydantic model) and `decoder(options)`, which makes such a function;
- `POLICY`: what is believed of its values by default (`schemas.policy`); left out, everything is;
- `EXAMPLES`: payloads, good and bad, with what decoding them under its own policy must give. They are its tests. Where
  they need options or a registry to be decoded, it has `EXAMPLE_OPTIONS` (a mapping) and `EXAMPLE_REGISTRY`.

Where the simulator can speak it, also `encode(reading)`, the inverse of `decode`; `WALKS`, a `Walk` for each metric of
the first example; `SPOILED`, by the reason that `decode` must give, what spoils a good payload; where a device's
number changes more of the first example's reading than its id, `template(prefix, number)`, that reading; and, where its
records say an original topic, `origin(reading)`, that topic. Adding a dialect is adding a file here.
"""

import importlib
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from functools import cache
from types import ModuleType
from typing import Any, Final, Protocol
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Struct

from schemas.policy import Outcomes, Policy, finisher
from schemas.reading import RECEIVE_TIME, Reading, RejectedError
from schemas.record import Headers
from schemas.time import parse

HEADER_DIALECT: Final = "iotflow-dialect"
#: Where a record's original topic stands when we say it ourselves; `_ORIGINS` are read.
HEADER_ORIGIN: Final = "original_topic"
#: A topic's dialect that stands for the one whose `Match.origin` the record's original (MQTT) topic is.
AUTO: Final = "auto"

Decode = Callable[[bytes, "Meta"], Outcomes]


class Registry(Protocol):
    """What a dialect may ask the registry of data points."""

    def points(self, controller: str, connector: str, pin: str) -> Any:
        """What is read at a pin of a controller, or None when that is not known."""


class Setup(Struct, frozen=True):
    """What the configuration says to a dialect while it decodes.

    `zone` is what times without one are in. `missing` and `unreadable` say whether the receive time stands in for a
    time that is not there or cannot be read. `unparsable` says whether a text that should be a number becomes null.
    """

    zone: tzinfo | None = None
    missing: bool = False
    unreadable: bool = False
    unparsable: bool = True
    registry: Registry | None = None


class Meta(Struct, frozen=True):
    """What a decoder may know besides the payload; `received_ms` is the record's own time, since the epoch."""

    topic: str
    key: bytes | None
    headers: Headers
    received_ms: int
    setup: Setup = Setup()

    @property
    def received(self) -> datetime:
        """When the record was received, aware UTC. Raises `RejectedError`: whoever produces can set it to anything."""
        if self.received_ms < 0:
            raise RejectedError("bad_timestamp", "the record itself says no time")
        try:
            return datetime.fromtimestamp(self.received_ms / 1000, UTC)
        except (ValueError, OverflowError, OSError) as error:
            why = f"the record's own time is {self.received_ms}, which is no epoch in ms"
            raise RejectedError("bad_timestamp", why) from error

    def time(
        self, value: object, field: str = "timestamp", *, received: datetime | None = None
    ) -> tuple[datetime, list[str]]:
        """The instant that a field says, and the reading's flags: where that is configured, the receive time.

        `received` is when the message was received, where the message itself knows better than its record. Raises
        `RejectedError`: `missing_field` or `bad_timestamp`.
        """
        setup = self.setup
        absent = value is None or value == ""
        try:
            if absent:
                raise RejectedError("missing_field", f"{field} is missing")
            return parse(value, zone=setup.zone, field=field), []
        except RejectedError:
            if setup.missing if absent else setup.unreadable:
                return received or self.received, [RECEIVE_TIME]
            raise

    @property
    def origin(self) -> str:
        """The topic that the message had before it came to Kafka, as bridges from MQTT say it; `''` when unsaid.

        That is in a header, else the record's key, when it looks like a topic.
        """
        for name, value in self.headers:
            if value is not None and name.lower() in _ORIGINS:
                return value.decode("utf-8", "replace")
        if self.key is not None and b"/" in self.key:
            return self.key.decode("utf-8", "replace")
        return ""


_ORIGINS: Final = frozenset(
    {HEADER_ORIGIN, "original-topic", "mqtt-topic", "mqtt_topic", "mqtt.topic", "mqtt.source.topic"}
)


class Match(Struct, frozen=True):
    """How a dialect is chosen: by its name, in the `iotflow-dialect` header or the settings of the topic.

    `topics` are Kafka topics that speak it when the settings name them without a dialect. `origin` is what the
    original topics of its messages look like, for topics that carry several dialects (`auto`).
    """

    name: str
    topics: tuple[str, ...] = ()
    origin: re.Pattern[str] | None = None


class Example(Struct, frozen=True):
    """A payload, and what decoding it must give; the reason alone where a `Rejected` is expected.

    `origin` is the original topic that its record says.
    """

    payload: bytes
    gives: Sequence[Reading | str]
    origin: str = ""


class Walk(Struct, frozen=True):
    """How a simulated metric moves: between two values, `step` at most from one reading to the next.

    `odd` is where it is when something is wrong, still inside what is believed. `digits` behind the point are said.
    """

    low: float
    high: float
    step: float
    odd: tuple[float, float]
    digits: int = 3


def changed(**fields: object) -> Callable[[bytes], bytes]:
    """What spoils a payload that is one JSON object: other fields, or without those that are `msgspec.UNSET`."""

    def spoil(payload: bytes) -> bytes:
        said = msgspec.json.decode(payload, type=dict[str, object]) | fields
        return msgspec.json.encode({field: value for field, value in said.items() if value is not msgspec.UNSET})

    return spoil


def cut(payload: bytes) -> bytes:
    """What spoils any payload that must be whole: half of it."""
    return payload[: len(payload) // 2]


@cache
def load() -> Mapping[str, ModuleType]:
    """Every dialect's module by name.

    Raises `RuntimeError` when two claim one name.
    """
    found: dict[str, ModuleType] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        match: Match = module.MATCH
        if match.name in found:
            raise RuntimeError(f"two dialects are called {match.name!r}")
        found[match.name] = module
    return found


def policy_of(name: str) -> Policy:
    """A dialect's own policy."""
    policy: Policy = getattr(load()[name], "POLICY", None) or Policy()
    return policy


def setup_of(policy: Policy, registry: Registry | None = None) -> Setup:
    """What a policy says to a dialect while it decodes."""
    time = policy.time
    return Setup(
        None if time.zone is None else UTC if time.zone == "UTC" else ZoneInfo(time.zone),
        time.missing == "receive",
        time.unreadable == "receive",
        policy.unparsable == "null",
        registry,
    )


def speaker(name: str, policy: Policy | None = None, options: Mapping[str, Any] | None = None) -> Decode:
    """What decodes a dialect's payloads and applies a policy to them, its own by default.

    Raises `RejectedError` at most, when used. Raises pydantic's `ValidationError` for options that are not the
    dialect's, and `ValueError` for options where it has none.
    """
    module = load()[name]
    if hasattr(module, "Options"):
        decode: Decode = module.decoder(module.Options.model_validate(options or {}))
    elif options:
        raise ValueError(f"the dialect {name} has no options")
    else:
        decode = module.decode
    finish = finisher(policy or policy_of(name))

    def speak(payload: bytes, meta: Meta) -> Outcomes:
        outcomes = decode(payload, meta)
        # Anything lazy is made to fail here; a tuple is what it is.
        return finish(outcomes if outcomes.__class__ is tuple else tuple(outcomes), meta.received_ms)

    return speak


def by_topic(topic: str) -> str:
    """The dialect of a Kafka topic that says itself what is in it; `''` for any other."""
    return next((name for name, module in load().items() if topic in module.MATCH.topics), "")


def by_origin(origin: str) -> str:
    """The dialect of messages with such an original topic; `''` when none claims it."""
    for name, module in load().items():
        pattern = module.MATCH.origin
        if pattern is not None and pattern.fullmatch(origin):
            return name
    return ""
