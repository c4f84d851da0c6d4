"""Inputs: which dialect each raw topic speaks, and what is believed of it.

The configuration is one mapping (a YAML file in practice) of two parts: `dialects`, what is said of a dialect wherever
it is spoken, and `topics`, what is said of one topic. What a topic says wins over what its dialect says, which wins
over the dialect's own file.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from msgspec import Struct
from pydantic import Field, ValidationError

from schemas import dialects
from schemas.config import Model, explained
from schemas.policy import Policy

#: How a topic's payloads are encoded where their records do not say it in a `content-type` header.
Body = Literal["", "json", "cbor", "msgpack", "confluent"]


class Input(Struct, frozen=True):
    """One topic, or one dialect that a record's header asks for."""

    dialect: str
    policy: Policy | None = None
    options: Mapping[str, Any] = {}
    body: Body = ""


class Inputs(Struct, frozen=True):
    """Every topic by its name, and by its name every dialect of which something is said."""

    topics: Mapping[str, Input]
    dialects: Mapping[str, Input] = {}


class InputsError(ValueError):
    """The configuration of inputs is wrong; `problems` has a line for each thing to correct."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class _Dialect(Model):
    policy: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)


class _Topic(_Dialect):
    dialect: str = ""
    body: Body = ""


#: A dialect wherever it is spoken.
_ANY: Final = _Topic()


class _File(Model):
    dialects: dict[str, _Dialect] = Field(default_factory=dict)
    topics: dict[str, _Topic] = Field(default_factory=dict)


def parse(
    document: object, raw: Mapping[str, str], ranges: Mapping[str, Mapping[str, tuple[float, float]]] | None = None
) -> Inputs:
    """The inputs that a document describes, and the topics of `raw`, which name their dialects or nothing.

    `ranges` are low and high by dialect and metric; they win over the document's for a dialect. Raises `InputsError`
    with every problem.
    """
    try:
        file = _File.model_validate({} if document is None else document)
    except ValidationError as error:
        raise InputsError(explained(error)) from error
    return _Compiler(file, raw, ranges or {}).inputs()


class _Compiler:
    """Puts the parts together, and collects what is wrong with them."""

    def __init__(
        self, file: _File, raw: Mapping[str, str], ranges: Mapping[str, Mapping[str, tuple[float, float]]]
    ) -> None:
        self._file = file
        self._raw = raw
        self._problems: list[str] = []
        #: What is changed of each dialect's policy, wherever it is spoken.
        self._changes: dict[str, list[Mapping[str, Any]]] = {name: [own.policy] for name, own in file.dialects.items()}
        for name, metrics in ranges.items():
            bounds = {metric: {"low": low, "high": high} for metric, (low, high) in metrics.items()}
            self._changes.setdefault(name, []).append({"metrics": bounds})

    def inputs(self) -> Inputs:
        """All of it. Raises `InputsError`."""
        spoken = {name: self._dialect(name) for name in self._changes}
        topics = {topic: self._topic(topic) for topic in dict.fromkeys([*self._raw, *self._file.topics])}
        if self._problems:
            raise InputsError(self._problems)
        return Inputs(
            {topic: own for topic, own in topics.items() if own is not None},
            {name: own for name, own in spoken.items() if own is not None},
        )

    def _dialect(self, name: str) -> Input | None:
        where = f"dialects.{name}"
        if name not in dialects.load():
            self._problems.append(f"{where}: no dialect is called that; there are: {_known()}")
            return None
        return self._made(where, name, _ANY)

    def _topic(self, topic: str) -> Input | None:
        where = f"topics.{topic}"
        own, outside = self._file.topics.get(topic) or _Topic(), self._raw.get(topic)
        if outside and own.dialect and outside != own.dialect:
            self._problems.append(f"{where}: speaks {own.dialect} here and {outside} in KAFKA_RAW_TOPICS; say it once")
            return None
        name = outside or own.dialect or dialects.by_topic(topic)
        if name == dialects.AUTO:
            if own.policy or own.options:
                self._problems.append(f"{where}: say policy and options of its dialects, under `dialects`")
            return Input(name, body=own.body)
        if name not in dialects.load():
            what = f"no dialect is called {name!r}" if name else "nothing says which dialect it speaks"
            self._problems.append(f"{where}: {what}; there are: {_known()}, {dialects.AUTO}")
            return None
        return self._made(where, name, own)

    def _made(self, where: str, name: str, own: _Topic) -> Input | None:
        below = self._file.dialects.get(name)
        options = {**(below.options if below else {}), **own.options}
        try:
            policy = dialects.policy_of(name)
            for change in (*self._changes.get(name, ()), own.policy):
                policy = policy.changed(change)
        except ValidationError as error:
            self._problems += [f"{where}.policy.{line}" for line in explained(error)]
            return None
        if own is _ANY and not options:
            return Input(name, policy)  # what it must be told, its topics may say
        try:
            dialects.speaker(name, policy, options)
        except ValidationError as error:
            self._problems += [f"{where}.options.{line}" for line in explained(error)]
            return None
        except ValueError as error:
            self._problems.append(f"{where}: {error}")
            return None
        return Input(name, policy, options, own.body)


def _known() -> str:
    return ", ".join(sorted(dialects.load()))
