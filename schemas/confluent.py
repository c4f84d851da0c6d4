"""Confluent's framing: payloads that name their schema, which a schema registry has.

A payload begins with a zero byte and the schema's id, four bytes, the most significant first. Avro follows as it is;
before Protobuf stands which message of the schema's file it is; JSON Schema says nothing that is needed to read JSON.
This module knows schemas and does no I/O: who uses it asks what is `wanted`, and puts it here.
"""

import importlib.util
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from schemas import avro, protobuf
from schemas.avro import SchemaError
from schemas.payload import DEPTH, quoted
from schemas.reading import RejectedError

#: A schema registry counts them in 32 bits with a sign, and says nothing of others.
LARGEST_ID: Final = 2**31 - 1

_FRAME: Final = 5
_PACKAGES: Final = {"fastavro": "fastavro", "google.protobuf": "protobuf"}
#: Enough for any index of a message.
_INDEX_BYTES: Final = 5
_WHY_CHARS: Final = 300


class MissingPackagesError(ValueError):
    """Avro and Protobuf need packages that are not installed; the text says how to install them."""


class Schemas:
    """The schemas that are known, by id, and for good: an id's schema never changes.

    Raises `MissingPackagesError` when made without the extra `codecs`.
    """

    def __init__(self) -> None:
        missing = [package for module, package in _PACKAGES.items() if not _installed(module)]
        if missing:
            raise MissingPackagesError(f"body confluent needs {' and '.join(missing)}: pip install 'iotflow[codecs]'")
        self._known: dict[int, Callable[[bytes], bytes]] = {}
        #: Why those cannot be had that are not known, where it is not that nobody knows them.
        self._lacking: dict[int, str] = {}

    def wanted(self, payload: bytes) -> int | None:
        """The id of a payload's schema where that is not known; None also for a payload without a frame, or an id."""
        if payload[:1] != b"\0" or len(payload) < _FRAME:
            return None
        number = int.from_bytes(payload[1:_FRAME], "big")
        return None if number in self._known or number > LARGEST_ID else number

    def put(self, number: int, kind: str, text: str | bytes, references: Sequence[tuple[str, str]] = ()) -> None:
        """Know a schema: of kind AVRO, PROTOBUF or JSON, its text, and by name those it refers to, each after its own.

        Protobuf's is text as a registry's `format=serialized` has it, or the bytes of a `FileDescriptorSet`. A schema
        that cannot be used is known as such: its payloads are refused with the reason why.
        """
        self._lacking.pop(number, None)
        try:
            self._known[number] = _reader(number, kind, text, references)
        except SchemaError as error:
            self._known[number] = _refusing(number, str(error))

    def lack(self, number: int, why: str) -> None:
        """Say why a schema cannot be had, as a sentence about where it should be; `''` when nobody knows it."""
        if why:
            self._lacking[number] = why
        else:
            self._lacking.pop(number, None)

    def as_json(self, payload: bytes) -> bytes:
        """What stands in a frame, as JSON.

        Raises `RejectedError`: `undecodable` (no frame, no id, or not what its schema says), `unknown_schema`, or what
        else JSON cannot hold.
        """
        if payload[:1] != b"\0" or len(payload) < _FRAME:
            raise RejectedError("undecodable", "the payload does not begin with a zero byte and the id of a schema")
        number = int.from_bytes(payload[1:_FRAME], "big")
        read = self._known.get(number)
        if read is None:
            raise self._refused(number)
        return read(payload[_FRAME:])

    def _refused(self, number: int) -> RejectedError:
        if number > LARGEST_ID:
            return RejectedError("undecodable", f"{number} is no schema's id: the largest is {LARGEST_ID}")
        why = self._lacking.get(number)
        if why is not None:
            return RejectedError("unknown_schema", f"schema {number} cannot be had: {why[:_WHY_CHARS]}")
        return RejectedError("unknown_schema", f"the schema registry does not know schema {number}")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even the package around it is there
        return False


def _refusing(number: int, why: str) -> Callable[[bytes], bytes]:
    def refuse(data: bytes) -> bytes:  # noqa: ARG001
        raise RejectedError("unknown_schema", f"schema {number} cannot be used: {why}")

    return refuse


def _reader(
    number: int, kind: str, text: str | bytes, references: Sequence[tuple[str, str]]
) -> Callable[[bytes], bytes]:
    encode = msgspec.json.encode
    if kind == "JSON":
        return bytes
    if kind == "PROTOBUF":
        messages = protobuf.messages(text, references, name=f"schema-{number}.proto")

        def of_protobuf(data: bytes) -> bytes:
            index, start = _index(data)
            return encode(messages(data[start:], index))

        return of_protobuf
    if kind == "AVRO" and isinstance(text, str):
        read = avro.reader(text, [own for _, own in references])
        return lambda data: encode(read(data))
    raise SchemaError(f"it is of kind {quoted(kind)}; known are AVRO, JSON and PROTOBUF")


def _index(data: bytes) -> tuple[tuple[int, ...], int]:
    """Which message of its file stands in the data, and where it begins; a lone zero is short for the first one."""
    count, at = _varint(data, 0)
    if count == 0:
        return (0,), at
    if not 0 < count <= DEPTH:
        raise RejectedError("undecodable", f"the path to the message's type has {count} steps")
    steps = []
    for _ in range(count):
        step, at = _varint(data, at)
        steps.append(step)
    return tuple(steps), at


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = 0
    for place, byte in enumerate(data[at : at + _INDEX_BYTES]):
        number |= (byte & 127) << 7 * place
        if byte <= 127:  # noqa: PLR2004  the bit above says: more follows
            return (number >> 1) ^ -(number & 1), at + place + 1
    raise RejectedError("undecodable", "the payload does not say which message of its schema it is")
