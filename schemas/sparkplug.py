"""Sparkplug B payloads: their Protobuf messages, and what their types of values become.

The numbers are those of the Sparkplug specification, version 3.0.0, section 6.4. Only fields that are read or written
are described: a parser passes over the others, however deep they nest.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from math import isfinite
from typing import Any, Final

from schemas.payload import quoted
from schemas.reading import RejectedError, Value

#: The types of values by their numbers.
TYPES: Final = (
    *("Unknown", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64", "Float", "Double"),
    *("Boolean", "String", "DateTime", "Text", "UUID", "DataSet", "Bytes", "File", "Template", "PropertySet"),
    *("PropertySetList", "Int8Array", "Int16Array", "Int32Array", "Int64Array", "UInt8Array", "UInt16Array"),
    *("UInt32Array", "UInt64Array", "FloatArray", "DoubleArray", "BooleanArray", "StringArray", "DateTimeArray"),
)
UNKNOWN, INT8, INT16, INT32, INT64, UINT8, UINT16, UINT32, UINT64 = range(9)
FLOAT, DOUBLE, BOOLEAN, STRING, DATETIME, TEXT, UUID = range(9, 16)

_PACKAGE: Final = "org.eclipse.tahu.protobuf"
#: By message, its fields: number, type, and whether it repeats or is one of the message's values. A type with a
#: capital letter is a message.
_MESSAGES: Final[Mapping[str, Mapping[str, tuple[int, str, str]]]] = {
    "Payload": {
        "timestamp": (1, "uint64", ""),
        "metrics": (2, "Metric", "repeated"),
        "seq": (3, "uint64", ""),
        "uuid": (4, "string", ""),
        "body": (5, "bytes", ""),
    },
    "Metric": {
        "name": (1, "string", ""),
        "alias": (2, "uint64", ""),
        "timestamp": (3, "uint64", ""),
        "datatype": (4, "uint32", ""),
        "is_historical": (5, "bool", ""),
        "is_transient": (6, "bool", ""),
        "is_null": (7, "bool", ""),
        "properties": (9, "PropertySet", ""),
        "int_value": (10, "uint32", "value"),
        "long_value": (11, "uint64", "value"),
        "float_value": (12, "float", "value"),
        "double_value": (13, "double", "value"),
        "boolean_value": (14, "bool", "value"),
        "string_value": (15, "string", "value"),
        "bytes_value": (16, "bytes", "value"),
        "dataset_value": (17, "DataSet", "value"),
        "template_value": (18, "Template", "value"),
    },
    "PropertySet": {"keys": (1, "string", "repeated"), "values": (2, "PropertyValue", "repeated")},
    "PropertyValue": {
        "type": (1, "uint32", ""),
        "is_null": (2, "bool", ""),
        "int_value": (3, "uint32", "value"),
        "long_value": (4, "uint64", "value"),
        "string_value": (8, "string", "value"),
    },
    "DataSet": {},
    "Template": {"is_definition": (5, "bool", "")},
}

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SIGNED: Final = {INT8: 8, INT16: 16, INT32: 32, INT64: 64}
_UNSIGNED: Final = {UINT8: 8, UINT16: 16, UINT32: 32, UINT64: 64}
_INTEGERS: Final = frozenset({"int_value", "long_value"})
_FLOATS: Final = frozenset({"float_value", "double_value"})
_INT64_ABOVE: Final = 2**63


@cache
def payload_type() -> Any:
    """The Protobuf class of a payload, with those of its parts as its `metrics` and so on make them.

    Raises `RejectedError` when protobuf is not installed.
    """
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message_factory  # noqa: PLC0415  an extra
    except ImportError as error:
        raise RejectedError(
            "unknown_dialect",
            "the dialect sparkplug-b needs protobuf, which is not installed: pip install 'iotflow[codecs]'",
        ) from error
    of_field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="sparkplug_b.proto", package=_PACKAGE, syntax="proto2")
    payload = file.message_type.add()
    for name, fields in _MESSAGES.items():
        message = payload if name == "Payload" else payload.nested_type.add()
        message.name = name
        for field, (number, kind, how) in fields.items():
            made = message.field.add(name=field, number=number)
            made.label = of_field.LABEL_REPEATED if how == "repeated" else of_field.LABEL_OPTIONAL
            if kind[0].isupper():
                made.type, made.type_name = of_field.TYPE_MESSAGE, f".{_PACKAGE}.Payload.{kind}"
            else:
                made.type = of_field.Type.Value(f"TYPE_{kind.upper()}")
            if how == "value":
                if not message.oneof_decl:
                    message.oneof_decl.add(name="value")
                made.oneof_index = 0
    # A pool of its own: another package in the process may describe the same messages.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Payload"))


def decode_error() -> type[Exception]:
    """What parsing raises for bytes that are no payload."""
    from google.protobuf.message import DecodeError  # noqa: PLC0415  an extra

    return DecodeError


def scalar(datatype: int, field: str | None, metric: Any) -> Value:
    """The value of a metric of a type, in the field that its `value` is.

    Raises `RejectedError` with an error about the metric, which it does not name: `bad_type` (no single value, or not
    of its type), `missing_field`, `not_finite`, `out_of_range`, `undecodable`, and `unknown_alias` for an integer
    without a type, which is signed, unsigned or a time.
    """
    read = _READERS.get(datatype)
    if read is None:
        kind = TYPES[datatype] if datatype < len(TYPES) else f"datatype {datatype}"
        raise RejectedError("bad_type", f"is of type {kind}, which is no single value")
    if metric.is_null:
        return None
    if field is None:
        raise RejectedError("missing_field", "has no value and is not null")
    return read(field, getattr(metric, field))


def write(metric: Any, value: Value) -> None:
    """Give a metric a type and a value that `scalar` reads as this one."""
    if value is None:
        metric.datatype, metric.is_null = STRING, True
    elif isinstance(value, bool):
        metric.datatype, metric.boolean_value = BOOLEAN, value
    elif isinstance(value, float):
        metric.datatype, metric.double_value = DOUBLE, value
    elif isinstance(value, str):
        metric.datatype, metric.string_value = STRING, value
    elif value < _INT64_ABOVE:
        metric.datatype, metric.long_value = INT64, value % 2**64
    else:
        metric.datatype, metric.long_value = UINT64, value


def _mismatch(kind: str, field: str) -> RejectedError:
    return RejectedError("bad_type", f"is of type {kind}, and its value is a {field}")


def _float(field: str, value: float) -> Value:
    if field not in _FLOATS:
        raise _mismatch("Float or Double", field)
    if not isfinite(value):
        raise RejectedError("not_finite", f"is {value}, which is not a number a store can hold")
    return value


def _boolean(field: str, value: bool) -> Value:  # noqa: FBT001  it is the value
    if field != "boolean_value":
        raise _mismatch("Boolean", field)
    return value


def _text(field: str, value: str | bytes) -> Value:
    if field != "string_value":
        raise _mismatch("String, Text or UUID", field)
    if isinstance(value, bytes):
        raise RejectedError("undecodable", "is text that is not UTF-8")
    return value


def _datetime(field: str, value: int) -> Value:
    if field not in _INTEGERS:
        raise _mismatch("DateTime", field)
    try:
        moment = _EPOCH + timedelta(milliseconds=value)
    except OverflowError as error:
        why = f"is a DateTime of {quoted(value)} ms since 1970, which is outside the calendar"
        raise RejectedError("out_of_range", why) from error
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _signed(kind: str, bits: int) -> Callable[[str, int], Value]:
    half = 2 ** (bits - 1)

    def read(field: str, value: int) -> Value:
        if field not in _INTEGERS:
            raise _mismatch(kind, field)
        if value < half:
            return value
        # A negative number comes in as many bits as its type has, or in all those of the field: clients differ.
        for width in (bits, 32, 64):
            if (1 << width) - half <= value < (1 << width):
                return value - (1 << width)
        raise RejectedError("out_of_range", f"is {value}, which is more than an {kind} holds")

    return read


def _unsigned(kind: str, bits: int) -> Callable[[str, int], Value]:
    def read(field: str, value: int) -> Value:
        if field not in _INTEGERS:
            raise _mismatch(kind, field)
        if value < 2**bits:
            return value
        raise RejectedError("out_of_range", f"is {value}, which is more than a {kind} holds")

    return read


def _untyped(field: str, value: Any) -> Value:
    if field in _INTEGERS:
        raise RejectedError("unknown_alias", "is an integer whose type only its birth says, and none has passed yet")
    if field in _FLOATS:
        return _float(field, value)
    if field == "string_value":
        return _text(field, value)
    if field == "boolean_value":
        return _boolean(field, value)
    raise RejectedError("bad_type", f"is a {field}, which is no single value")


_READERS: Final[Mapping[int, Callable[[str, Any], Value]]] = {
    UNKNOWN: _untyped,
    **{kind: _signed(TYPES[kind], bits) for kind, bits in _SIGNED.items()},
    **{kind: _unsigned(TYPES[kind], bits) for kind, bits in _UNSIGNED.items()},
    FLOAT: _float,
    DOUBLE: _float,
    BOOLEAN: _boolean,
    STRING: _text,
    DATETIME: _datetime,
    TEXT: _text,
    UUID: _text,
}
