"""Sample payloads, decoded offline exactly as the decode stage would: what `iotflow decode` does."""

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Struct, UnsetType
from pydantic import TypeAdapter, ValidationError

from app import __version__, yaml
from app.schema_registry import AwayError, Directory
from app.settings import Settings, SettingsError, Topics, variables
from app.settings.sources import Environment
from schemas import datapoints, dialects, wire
from schemas.bodies import CONFLUENT
from schemas.config import explained
from schemas.confluent import Schemas
from schemas.datapoints import DataPoints, RegistryError
from schemas.decoding import Decoder
from schemas.dialects import Registry
from schemas.inputs import Input, Inputs, InputsError, parse
from schemas.reading import Rejected, RejectedError
from schemas.record import Headers

#: A payload, or the text that it is written in, has at most this many bytes.
MAX_BYTES: Final = 64 * 2**20

#: How a payload is written down: as it is, or as text that stands for its bytes.
Form = Literal["plain", "hex", "base64"]

_CHUNK_BYTES: Final = 64 * 1024


class Files(NamedTuple):
    """What is used instead of what the environment names: files of inputs and data points, a directory of schemas."""

    inputs: Path | None = None
    registry: Path | None = None
    schemas: Path | None = None


NO_FILES: Final = Files()


class Configured(NamedTuple):
    """What the environment says about decoding."""

    inputs: Inputs
    registry: Registry | None
    schemas: Path | None
    max_message_bytes: int


class Sample(Struct, frozen=True):
    """A record that no broker has seen."""

    topic: str
    key: bytes | None
    value: bytes
    headers: Headers
    timestamp: int
    partition: int = 0
    offset: int = 0


class Result(Struct):
    """What became of one payload; in JSON, one line of `iotflow decode --json`.

    `line` counts from 1 in its file; `file` is said where there are several. `readings` are wire version 1.
    """

    line: int
    dialect: str
    readings: list[msgspec.Raw]
    errors: list[Rejected]
    file: str | UnsetType = UNSET

    def json(self) -> str:
        """One line of JSON in which nothing can move a terminal's cursor or turn its direction round."""
        return escaped(msgspec.json.encode(self).decode(), _in_json)


class Samples:
    """Decodes payloads as those of one topic, received now or at `received_ms` (since the epoch)."""

    def __init__(
        self,
        said: Configured,
        topic: str,
        *,
        key: bytes | None = None,
        headers: Headers = (),
        received_ms: int | None = None,
    ) -> None:
        """Raises `ValueError` when the topic's dialect or body needs what nobody says."""
        own = said.inputs.topics.get(topic)
        framed = own is not None and own.body == CONFLUENT
        if framed and said.schemas is None:
            raise ValueError(f"{topic} has body {CONFLUENT}: name a directory of schemas; no schema registry is asked")
        self._schemas = Schemas() if framed else None
        self._directory = Directory(said.schemas) if said.schemas is not None else None
        try:
            self._decoder = Decoder(
                said.inputs,
                partitions=1,
                stage="decode",
                version=__version__,
                max_message_bytes=said.max_message_bytes,
                registry=said.registry,
                schemas=self._schemas,
            )
        except ValidationError as error:
            raise ValueError("; ".join(f"options.{line}" for line in explained(error))) from error
        self._sample = Sample(topic, key, b"", headers, 0)
        self._received_ms = received_ms
        self._asked: set[int] = set()

    def decode(self, number: int, text: bytes | None, form: Form = "plain") -> Result:
        """What becomes of a payload in a form; None stands for one that is longer than `MAX_BYTES`.

        Raises `OSError` for a schema that is there and cannot be read.
        """
        try:
            if text is None:
                raise RejectedError("too_large", f"longer than {MAX_BYTES >> 20} MiB")
            value = payload(text, form)
        except RejectedError as error:
            return Result(number, "", [], [error.rejected])
        now_ms = time.time_ns() // 1_000_000 if self._received_ms is None else self._received_ms
        records = [msgspec.structs.replace(self._sample, value=value, timestamp=now_ms)]
        self._learn(self._decoder.wanted(records) - self._asked)
        decoded = self._decoder(records, now_ms)
        values = [item.value for items in decoded.items.values() for item in items if item.value is not None]
        errors = [
            Rejected(letter.reason, dict(letter.headers)["iotflow-dlq-error"].decode()) for letter in decoded.letters
        ]
        dialect = decoded.letters[0].dialect if decoded.letters else wire.read(values[0]).dialect
        return Result(number, dialect, [msgspec.Raw(value) for value in values], errors)

    def _learn(self, numbers: set[int]) -> None:
        self._asked |= numbers
        if self._schemas is None or self._directory is None:
            return
        for number in numbers:
            try:
                found = asyncio.run(self._directory.get(number))
            except AwayError as error:
                raise OSError(str(error)) from error
            if found is not None:
                self._schemas.put(number, *found)


def escaped(text: str, escape: Callable[[str], str] | None = None) -> str:
    """A text with its control characters, and whatever else is not to be seen, as escape sequences."""
    if text.isprintable():
        return text
    escape = escape or _in_text
    return "".join(char if char.isprintable() else escape(char) for char in text)


def _in_text(char: str) -> str:
    return char.encode("unicode_escape").decode()


def _in_json(char: str) -> str:
    # Beyond what is seen as it is, JSON has such characters only in its strings, where an escape means the same.
    return json.dumps(char)[1:-1]


def lines(file: BinaryIO, most: int = MAX_BYTES) -> Iterator[bytes | None]:
    r"""The lines of a file without their `\n` or `\r\n`, one at a time; None for each that is longer than `most`."""
    while line := file.readline(most + 1):
        if len(line) > most and not line.endswith(b"\n"):
            while (rest := file.readline(_CHUNK_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield line.removesuffix(b"\n").removesuffix(b"\r")


def whole(file: BinaryIO, most: int = MAX_BYTES) -> bytes | None:
    """All that a file holds; None when that is more than `most` bytes."""
    content = file.read(most + 1)
    return content if len(content) <= most else None


def payload(text: bytes, form: Form) -> bytes:
    """The payload that a text stands for; white space in hex and base64 means nothing.

    Raises `RejectedError` with reason `undecodable`.
    """
    try:
        if form == "hex":
            return bytes.fromhex(text.decode("ascii"))
        if form == "base64":
            return base64.b64decode(b"".join(text.split()), validate=True)
    except (ValueError, binascii.Error) as error:
        raise RejectedError("undecodable", f"this is not {form}: {error}") from error
    return text


def configured(env: Mapping[str, str], given: Files = NO_FILES) -> Configured:
    """What an environment and the files that are given say about decoding.

    Only the variables that decoding needs are read, so nothing else that is wrong stands in the way. Raises
    `SettingsError` with every problem.
    """
    read = _Reader(env)
    document = read.document("inputs_file", given.inputs)
    registry = read.registry(given.registry)
    schemas = given.schemas or read.value("schema_registry.directory")
    named = document.get("topics") if isinstance(document, dict) else None
    raw = read.value("topics.raw")
    if raw is None:
        raw = {} if named else Topics().raw
    ranges = read.value("ranges")
    max_message_bytes = read.value("topics.max_message_bytes")
    if not read.problems:
        try:
            inputs = parse(document, raw, ranges)
        except InputsError as error:
            read.problems += error.problems
        else:
            return Configured(inputs, registry, schemas, max_message_bytes or Topics().max_message_bytes)
    raise SettingsError(read.problems)


class _Reader:
    """Finds single settings, and collects what is wrong with them."""

    def __init__(self, env: Mapping[str, str]) -> None:
        self._source = Environment(env)
        known = variables.of(Settings)
        for name, part in Settings.PARTS.items():
            known += variables.of(part, f"{name}.")
        self._variables = {each.path: each for each in known}
        self.problems = self._source.problems

    def value(self, path: str) -> Any:
        """A setting's value; None when it is not set, or wrong."""
        variable = self._variables[path]
        found = self._source.find(variable)
        if found is None or found.broken:
            return None
        field = variable.field
        kind: Any = Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation
        try:
            return TypeAdapter(kind).validate_python(found.value)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            own = first["type"] == "value_error"
            why = first["msg"].removeprefix("Value error, ") if own else f"must be {variable.allowed()}"
            self.problems.append(f"{found.source} is {found.shown!r}: {why}")
            return None

    def registry(self, given: Path | None) -> Registry | None:
        """The data points of the YAML file that is given, or that a setting names; None without one."""
        document = self.document("registry_file", given)
        if document is None:
            return None
        points = DataPoints()
        try:
            points.load(datapoints.parse(document))
        except RegistryError as error:
            self.problems += error.problems
        return points

    def document(self, path: str, given: Path | None) -> object:
        """What the YAML file says that is given, or that a setting names; None without one."""
        file: Path | None = given or self.value(path)
        if file is None:
            return None
        try:
            return yaml.read(file)
        except (OSError, ValueError) as error:
            self.problems.append(f"{file}: {error}")
            return None


def chosen(said: Configured, topic: str, dialect: str, *, by_header: bool) -> tuple[Configured, str]:
    """What is said, with `topic` speaking `dialect` if that is named; and the topic that is meant.

    Without a topic the dialect's own settings apply; with neither, the only topic is meant. `by_header` says that the
    records themselves name their dialect. Raises `ValueError` when nothing says which dialect is meant.
    """
    inputs = said.inputs
    if not (topic or dialect or by_header):
        if len(inputs.topics) != 1:
            raise ValueError(f"say --topic or --dialect; {_topics(inputs)}")
        (topic,) = inputs.topics
    own = inputs.topics.get(topic)
    if own is None and not dialect and not by_header:
        dialect = dialects.by_topic(topic)
        if not dialect:
            raise ValueError(f"nothing says which dialect {topic} speaks: say --dialect; {_topics(inputs)}")
    if not dialect or (own is not None and own.dialect == dialect):
        return said, topic
    body = own.body if own is not None else ""
    own = msgspec.structs.replace(inputs.dialects.get(dialect) or Input(dialect), body=body)
    return said._replace(inputs=Inputs({topic: own}, inputs.dialects)), topic


def _topics(inputs: Inputs) -> str:
    return "the topics are: " + ", ".join(f"{topic} ({own.dialect})" for topic, own in inputs.topics.items())


def about() -> dict[str, dict[str, Any]]:
    """Each dialect by its name: what it is, how it is chosen, its policy and its options with their defaults."""
    found = {}
    for name, module in sorted(dialects.load().items()):
        match = module.MATCH
        found[name] = {
            "about": title(module.__doc__ or ""),
            "topics": match.topics,
            "origin": match.origin.pattern if match.origin is not None else None,
            "policy": dialects.policy_of(name).model_dump(mode="json"),
            "options": _defaults(module),
        }
    return found


def title(doc: str) -> str:
    """The first sentence of a dialect's docstring, without the name that it begins with."""
    first = " ".join(doc.partition("\n\n")[0].split())
    return first.partition(" dialect: ")[2] or first


def _defaults(module: Any) -> dict[str, Any]:
    options = getattr(module, "Options", None)
    fields: Mapping[str, Any] = options.model_fields if options is not None else {}
    return {
        name: "required" if field.is_required() else field.get_default(call_default_factory=True)
        for name, field in fields.items()
    }
