"""Protobuf: what a schema says of a message's bytes, made values that JSON can hold.

What becomes of what: fields have the names of the .proto, integers of any size and enums' unknown values are integers,
enums their names, a `Timestamp` is ISO 8601 text in UTC to the microsecond, a wrapper (`DoubleValue`, …) its value, a
map's key its text, bytes base64 text, as Protobuf's own JSON has them. NaN and Infinity are refused. A field that can
say whether it is set (`optional`, a message, one of a `oneof`, anything of proto2) is left out when it is not. One that
cannot is always there, with its default when nothing was sent: a sensor that measures 0 sends nothing, and that is a
measurement. Fields that the schema does not know are ignored, as Protobuf has it.
"""

import base64
import binascii
import importlib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import TYPE_CHECKING, Any, Final

from schemas.avro import SchemaError
from schemas.payload import DEPTH, quoted
from schemas.reading import RejectedError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, FieldDescriptor
    from google.protobuf.descriptor_pb2 import FileDescriptorProto
    from google.protobuf.descriptor_pool import DescriptorPool

#: Makes a field's value what JSON holds; nested at most so deep, and counted.
_Convert = Callable[[Any, int, list[int]], Any]

_OWN: Final = "google/protobuf/"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_NANOS: Final = 1_000_000_000
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in ("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes")
)
#: Values that any message may have, and how many more for each byte: an empty message of two bytes can have a hundred
#: fields with defaults, and a payload half a million of those.
_VALUES: Final = 1000
_VALUES_PER_BYTE: Final = 4


class Messages:
    """Reads the messages of one file."""

    def __init__(self, pool: "DescriptorPool", file: "FileDescriptorProto") -> None:
        self._pool = pool
        self._file = file
        self._readers: dict[tuple[int, ...], Callable[[bytes], Any]] = {}

    def __call__(self, data: bytes, index: tuple[int, ...]) -> Any:
        """The message in `data`; `index` says its type: which of the file, which nested in that, and so on.

        Raises `RejectedError`: `undecodable`, `too_large`, `not_finite` or `bad_timestamp`.
        """
        read = self._readers.get(index)
        if read is None:
            read = self._readers[index] = _reader(self._pool.FindMessageTypeByName(self._name(index)))
        return read(data)

    def _name(self, index: tuple[int, ...]) -> str:
        names = [self._file.package] if self._file.package else []
        types: Sequence[Any] = self._file.message_type
        for step in index:
            if not 0 <= step < len(types):
                raise RejectedError("undecodable", f"the schema has no message {'/'.join(map(str, index))}")
            names.append(types[step].name)
            types = types[step].nested_type
        return ".".join(names)


def messages(text: str | bytes, references: Sequence[tuple[str, str]] = (), *, name: str = "schema.proto") -> Messages:
    """What reads the messages of a file.

    That is the last one of a serialized `FileDescriptorSet`, which must hold all that it imports, or, as text, what a
    schema registry gives as `format=serialized`, where `references` are the files that it imports by their names.
    Raises `SchemaError`, and `ImportError` without protobuf.
    """
    from google.protobuf import descriptor_pb2, descriptor_pool  # noqa: PLC0415  an extra

    try:
        if isinstance(text, bytes):
            files = list(descriptor_pb2.FileDescriptorSet.FromString(text).file)
        else:
            files = []
            for own, serialized in (*references, (name, text)):
                file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(serialized, validate=True))
                file.name = own
                files.append(file)
        pool = descriptor_pool.DescriptorPool()
        known = {file.name: file for file in files}
        for file in files:
            _add(pool, file, known, set())
    except binascii.Error as error:
        raise SchemaError("the registry gave it as text, not in the form `serialized` that was asked for") from error
    except SchemaError:
        raise
    except Exception as error:  # protobuf's own errors share no class
        raise SchemaError(f"it is no Protobuf schema: {type(error).__name__}: {str(error)[:200]}") from error
    if not files:
        raise SchemaError("it holds no file")
    return Messages(pool, files[-1])


def _add(
    pool: "DescriptorPool", file: "FileDescriptorProto", known: Mapping[str, "FileDescriptorProto"], done: set[str]
) -> None:
    """Add a file after those that it imports."""
    if file.name in done:
        return
    done.add(file.name)
    for needed in file.dependency:
        if needed in known:
            _add(pool, known[needed], known, done)
        elif needed.startswith(_OWN):
            _add_own(pool, needed)
        else:
            raise SchemaError(f"it imports {quoted(needed)}, which the registry does not give with it")
    pool.Add(file)


def _add_own(pool: "DescriptorPool", needed: str) -> None:
    from google.protobuf import descriptor_pb2  # noqa: PLC0415  an extra

    module = importlib.import_module(needed.removesuffix(".proto").replace("/", ".") + "_pb2")
    pool.Add(descriptor_pb2.FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb))


def _reader(descriptor: "Descriptor") -> Callable[[bytes], Any]:
    from google.protobuf import message, message_factory  # noqa: PLC0415  an extra

    kind = message_factory.GetMessageClass(descriptor)
    convert = _Plans().message(descriptor)

    def read(data: bytes) -> Any:
        try:
            found = kind.FromString(data)
            return convert(found, DEPTH, [_VALUES + _VALUES_PER_BYTE * len(data)])
        except (message.DecodeError, UnicodeDecodeError) as error:
            raise RejectedError(
                "undecodable", f"the payload is no {descriptor.full_name}: {str(error)[:120]}"
            ) from error

    return read


class _Plans:
    """How each type of message is converted; made once, since a type may hold itself."""

    def __init__(self) -> None:
        self._made: dict[str, _Convert] = {}

    def message(self, descriptor: "Descriptor") -> _Convert:
        name = descriptor.full_name
        if name == "google.protobuf.Timestamp":
            return _timestamp
        if name in _WRAPPERS:
            own = self._single(descriptor.fields_by_name["value"])
            return lambda value, depth, left: own(value.value, depth, left)
        if name not in self._made:
            fields: list[tuple[str, bool, _Convert]] = []
            self._made[name] = _message(fields)
            fields += [(field.name, field.has_presence, self._field(field)) for field in descriptor.fields]
        return self._made[name]

    def _field(self, field: "FieldDescriptor") -> _Convert:
        if not field.is_repeated:
            return self._single(field)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            # Of a map of messages, only iterating over the keys creates none.
            own = self._single(entry.fields_by_name["value"])

            def mapped(value: Any, depth: int, left: list[int]) -> Any:
                _spend(left, len(value))
                return {_key(key): own(value[key], depth - 1, left) for key in value}

            return mapped
        one = self._single(field)

        def repeated(value: Any, depth: int, left: list[int]) -> Any:
            _spend(left, len(value))
            return [one(item, depth - 1, left) for item in value]

        return repeated

    def _single(self, field: "FieldDescriptor") -> _Convert:
        if field.message_type is not None:
            return self.message(field.message_type)
        if field.enum_type is not None:
            names = {number: value.name for number, value in field.enum_type.values_by_number.items()}
            return lambda value, depth, left: names.get(value, value)  # noqa: ARG005
        if field.type == field.TYPE_BYTES:
            return lambda value, depth, left: base64.b64encode(value).decode()  # noqa: ARG005
        if field.type in {field.TYPE_DOUBLE, field.TYPE_FLOAT}:
            return _floating(field.name)
        return lambda value, depth, left: value  # noqa: ARG005


def _spend(left: list[int], values: int) -> None:
    left[0] -= values
    if left[0] < 0:
        raise RejectedError("too_large", "the message has many times more values than bytes")


def _key(key: object) -> str:
    return key if isinstance(key, str) else str(key).lower()  # true and false, as JSON has them


def _message(fields: Sequence[tuple[str, bool, _Convert]]) -> _Convert:
    def convert(value: Any, depth: int, left: list[int]) -> Any:
        if depth == 0:
            raise RejectedError("too_large", f"the message is nested deeper than {DEPTH}")
        _spend(left, len(fields))
        found = {}
        for name, optional, inner in fields:
            if not optional or value.HasField(name):
                found[name] = inner(getattr(value, name), depth - 1, left)
        return found

    return convert


def _floating(name: str) -> _Convert:
    def convert(value: Any, depth: int, left: list[int]) -> Any:  # noqa: ARG001
        if not isfinite(value):
            raise RejectedError("not_finite", f"{quoted(name)} is {value}, which is no number")
        return value

    return convert


def _timestamp(value: Any, depth: int, left: list[int]) -> str:  # noqa: ARG001
    if not 0 <= value.nanos < _NANOS:
        raise RejectedError("bad_timestamp", f"a Timestamp has {value.nanos} ns, which is no part of a second")
    try:
        moment = _EPOCH + timedelta(seconds=value.seconds, microseconds=value.nanos // 1000)
    except OverflowError as error:
        raise RejectedError("bad_timestamp", "a Timestamp is outside the calendar") from error
    return moment.isoformat()[:-6] + "Z"
