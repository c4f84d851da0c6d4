"""Framed payloads: what Avro, Protobuf and JSON Schema say becomes JSON, or is refused."""

import base64
import io
import math
import tracemalloc
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import fastavro
import msgspec
import pytest
from google.protobuf import (
    descriptor_pb2,
    descriptor_pool,
    json_format,
    message_factory,
    timestamp_pb2,
    wrappers_pb2,
)
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import confluent, dialects
from schemas.confluent import MissingPackagesError, Schemas
from schemas.dialects import Meta
from schemas.payload import DEPTH
from schemas.reading import RejectedError
from schemas.reasons import REASONS

FRAME = b"\0\0\0\0\x07"


def text_of(schema: object) -> str:
    return msgspec.json.encode(schema).decode()


def knowing(kind: str, text: str | bytes, references: Any = ()) -> Schemas:
    """Schemas that know one, as number 7."""
    schemas = Schemas()
    schemas.put(7, kind, text, references)
    return schemas


def refused(schemas: Schemas, payload: bytes) -> tuple[str, str]:
    with pytest.raises(RejectedError) as caught:
        schemas.as_json(payload)
    rejected = caught.value.rejected
    assert rejected.reason in REASONS
    assert 0 < len(rejected.error) < 500
    return rejected.reason, rejected.error


def check(schemas: Schemas, payload: bytes) -> None:
    """JSON, or a reason, is all that a payload may give."""
    try:
        made = schemas.as_json(payload)
    except RejectedError:
        refused(schemas, payload)
        return
    msgspec.json.decode(made)


# -- frames ------------------------------------------------------------------------------------------------------------


def test_what_is_wanted_is_the_id_of_an_unknown_schema() -> None:
    schemas = knowing("AVRO", '"string"')
    assert schemas.wanted(b"\0\0\0\0\x07\x02a") is None
    assert schemas.wanted(b"\0\0\0\0\x08") == 8
    assert schemas.wanted(b"\0\x7f\xff\xff\xff") == 2**31 - 1
    for payload in (b"", b"\0", b"\0\0\0\0", b"\1\0\0\0\x08", b'{"a":1}'):
        assert schemas.wanted(payload) is None
        assert refused(schemas, payload)[0] == "undecodable"
    assert refused(schemas, b"\0\0\0\0\x08") == ("unknown_schema", "the schema registry does not know schema 8")


@pytest.mark.parametrize("head", [b"\x80\0\0\0", b"\xff\xff\xff\xff"])
def test_an_id_that_no_registry_can_have_is_not_wanted(head: bytes) -> None:
    schemas = knowing("AVRO", '"string"')
    assert schemas.wanted(b"\0" + head) is None
    reason, error = refused(schemas, b"\0" + head)
    assert reason == "undecodable"
    assert str(int.from_bytes(head, "big")) in error


def test_a_schema_that_cannot_be_had_says_why_until_it_is_there() -> None:
    schemas = knowing("JSON", "{}")
    frame = b"\0\0\0\0\x08"
    schemas.lack(8, "http://x answered 500")
    assert refused(schemas, frame) == ("unknown_schema", "schema 8 cannot be had: http://x answered 500")
    assert schemas.wanted(frame) == 8
    schemas.lack(8, "")
    assert refused(schemas, frame) == ("unknown_schema", "the schema registry does not know schema 8")
    schemas.put(8, "JSON", "{}")
    assert schemas.as_json(frame + b"5") == b"5"


def test_json_stands_behind_the_frame_as_it_is() -> None:
    assert knowing("JSON", '{"type":"object"}').as_json(FRAME + b'{"a": 1}') == b'{"a": 1}'


@pytest.mark.parametrize(
    ("kind", "text", "says"),
    [
        ("XML", "<a/>", "'XML'"),
        ("AVRO", "{", "it is no Avro schema"),
        ("AVRO", "5", "it is no Avro schema"),
        ("AVRO", '{"type":"record"}', "it is no Avro schema"),
        ("AVRO", '"some.Other"', "it is no Avro schema"),
        ("AVRO", b"\0", "'AVRO'"),
        ("AVRO", "[" * 100_000, "it is no Avro schema"),
        ("AVRO", '{"type":"array","items":' * 100 + '"int"' + "}" * 100, "nested deeper"),
        ("AVRO", text_of({"type": "array", "items": "null"}), "takes no room"),
        ("AVRO", text_of({"type": "bytes", "logicalType": "decimal", "precision": 5000}), "5000 digits"),
        ("AVRO", text_of({"type": "bytes", "logicalType": "decimal", "precision": 5, "scale": 10**9}), "decimal"),
        ("AVRO", text_of({"type": "fixed", "name": "F", "size": -1}), "-1 bytes"),
        ("AVRO", text_of({"type": "fixed", "name": "F", "size": "2"}), "'2' bytes"),
        ("PROTOBUF", 'syntax = "proto3"; message A {}', "as text"),
        ("PROTOBUF", b"\xff\xff", "it is no Protobuf schema"),
        ("PROTOBUF", b"", "holds no file"),
        ("PROTOBUF", base64.b64encode(b"\xff\xff").decode(), "it is no Protobuf schema"),
    ],
)
def test_a_schema_that_cannot_be_used_is_known_as_such(kind: str, text: str | bytes, says: str) -> None:
    """It is not asked for again, and whoever reads the letter learns why."""
    schemas = knowing(kind, text)
    assert schemas.wanted(FRAME) is None
    reason, error = refused(schemas, FRAME + b"\0")
    assert reason == "unknown_schema"
    assert error.startswith("schema 7 cannot be used: ")
    assert says in error


@pytest.mark.parametrize(
    ("missing", "packages"),
    [(["fastavro"], "fastavro"), (["google.protobuf"], "protobuf"), (None, "fastavro and protobuf")],
)
def test_without_the_packages_it_says_what_to_install(
    missing: list[str] | None, packages: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib_find = confluent.importlib.util.find_spec
    assert found("fastavro") is not None
    wanted = missing or ["fastavro", "google.protobuf"]
    monkeypatch.setattr(
        confluent.importlib.util, "find_spec", lambda name: None if name in wanted else importlib_find(name)
    )
    with pytest.raises(MissingPackagesError) as caught:
        Schemas()
    assert str(caught.value) == f"body confluent needs {packages}: pip install 'iotflow[codecs]'"


# -- Avro --------------------------------------------------------------------------------------------------------------


def avro(schema: Any, *values: Any) -> list[Any]:
    """What values become that fastavro wrote."""
    schemas = knowing("AVRO", text_of(schema))
    parsed = fastavro.parse_schema(schema)
    made = []
    for value in values:
        stream = io.BytesIO()
        fastavro.schemaless_writer(stream, parsed, value)
        made.append(msgspec.json.decode(schemas.as_json(FRAME + stream.getvalue())))
    return made


def zigzag(number: int) -> bytes:
    number = (number << 1) ^ (number >> 200)
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def logical(kind: str, meaning: str, /, **more: Any) -> dict[str, Any]:
    return {"type": kind, "logicalType": meaning, **more}


NESTED = {
    "type": "record",
    "name": "Outer",
    "namespace": "a.b",
    "fields": [
        {"name": "device", "type": "string"},
        {"name": "at", "type": logical("long", "timestamp-micros")},
        {"name": "inner", "type": {"type": "record", "name": "Inner", "fields": [{"name": "x", "type": "double"}]}},
        {"name": "again", "type": ["null", "Inner"], "default": None},
        {"name": "mode", "type": {"type": "enum", "name": "Mode", "symbols": ["OFF", "ON"]}},
        {"name": "modes", "type": {"type": "map", "values": "a.b.Mode"}},
        {"name": "many", "type": {"type": "array", "items": ["null", "long", "string", "boolean", "float"]}},
    ],
}
inner = st.fixed_dictionaries({"x": st.floats(allow_nan=False, allow_infinity=False)})
long = st.integers(-(2**63), 2**63 - 1)
plain_text = st.text(st.characters(exclude_categories=["Cs"]))
mode = st.sampled_from(["OFF", "ON"])
outer = st.fixed_dictionaries(
    {
        "device": plain_text,
        "at": st.datetimes(timezones=st.just(UTC)),
        "inner": inner,
        "again": st.none() | inner,
        "mode": mode,
        "modes": st.dictionaries(plain_text, mode, max_size=4),
        "many": st.lists(st.none() | long | plain_text | st.booleans(), max_size=6),
    }
)


@given(outer)
@settings(deadline=None)
def test_an_avro_record_becomes_what_was_written(value: dict[str, Any]) -> None:
    (made,) = avro(NESTED, value)
    at = made.pop("at")
    assert at.endswith("Z")
    assert datetime.fromisoformat(at) == value["at"]
    assert repr(made) == repr({name: value[name] for name in made})
    assert {*made, "at"} == {*value}


@given(long, st.integers(-(2**31), 2**31 - 1), st.floats(width=32, allow_nan=False, allow_infinity=False))
@settings(deadline=None)
def test_avros_numbers_are_exact(wide: int, narrow: int, short: float) -> None:
    assert avro("long", wide) == [wide]
    assert avro("int", narrow) == [narrow]
    assert avro("float", short) == [short]


@pytest.mark.parametrize(
    ("schema", "value", "becomes"),
    [
        (
            logical("long", "timestamp-millis"),
            datetime(2025, 10, 5, 12, 34, 56, 789_000, UTC),
            "2025-10-05T12:34:56.789000Z",
        ),
        (logical("long", "timestamp-micros"), datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC), "2025-10-05T12:34:56Z"),
        (logical("long", "timestamp-nanos"), 1_759_667_696_123_456_999, "2025-10-05T12:34:56.123456Z"),
        (logical("long", "timestamp-micros"), -1, "1969-12-31T23:59:59.999999Z"),
        (logical("long", "local-timestamp-millis"), 1_759_667_696_500, "2025-10-05T12:34:56.500000"),
        (logical("long", "local-timestamp-micros"), 1_759_667_696_000_000, "2025-10-05T12:34:56"),
        (logical("int", "date"), date(2025, 10, 5), "2025-10-05"),
        (logical("int", "time-millis"), time(12, 34, 56, 789_000), "12:34:56.789000"),
        (logical("long", "time-micros"), time(23, 59, 59, 1), "23:59:59.000001"),
        (logical("string", "uuid"), UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        (logical("fixed", "uuid", name="U", size=16), b"\0" * 15 + b"\5", "00000000-0000-0000-0000-000000000005"),
        (logical("bytes", "decimal", precision=4, scale=2), Decimal("-12.34"), -12.34),
        (logical("bytes", "decimal", precision=4), Decimal(1234), 1234.0),
        (logical("fixed", "decimal", name="D", size=5, precision=8, scale=3), Decimal("12345.678"), 12345.678),
        (logical("bytes", "decimal", precision=15, scale=15), Decimal("0.123456789012345"), 0.123456789012345),
        (logical("bytes", "decimal", precision=20, scale=2), Decimal("123456789012345678.90"), "123456789012345678.90"),
        (logical("bytes", "decimal", precision=16, scale=2), Decimal("0.10"), "0.10"),
        (logical("long", "of-our-own"), 5, 5),
        (logical("int", "timestamp-millis"), 5, 5),
        ({"type": "int"}, 5, 5),
        (["null", {"type": "record", "name": "E", "fields": []}], {}, {}),
        ("bytes", b"", ""),
        ("bytes", b"\xfb\xff\xfe\0", "+//+AA=="),
        ({"type": "fixed", "name": "F", "size": 2}, b"ab", "YWI="),
        ({"type": "fixed", "name": "F", "size": 0}, b"", ""),
        (logical("fixed", "duration", name="F", size=12), b"\0" * 12, "A" * 16),
        (["null", "bytes"], b"a", "YQ=="),
        ({"type": "array", "items": "bytes"}, [b"a", b""], ["YQ==", ""]),
    ],
    ids=str,
)
def test_avros_logical_types(schema: Any, value: Any, becomes: Any) -> None:
    (made,) = avro(schema, value)
    assert repr(made) == repr(becomes)


@pytest.mark.parametrize(
    ("schema", "data", "reason"),
    [
        ("bytes", b"\x04a", "undecodable"),
        ("bytes", b"\x01", "undecodable"),
        ({"type": "fixed", "name": "F", "size": 2}, b"a", "undecodable"),
        ({"type": "fixed", "name": "F", "size": 2}, b"abc", "undecodable"),
        ("double", b"\0\0\0\0\0\0\xf8\x7f", "not_finite"),
        ("float", b"\0\0\x80\xff", "not_finite"),
        ("double", b"abc", "undecodable"),
        ("float", b"", "undecodable"),
        ("int", b"", "undecodable"),
        ("long", b"\xff", "undecodable"),
        ("int", zigzag(2**31), "undecodable"),
        ("int", zigzag(-(2**31) - 1), "undecodable"),
        ("long", zigzag(2**63), "undecodable"),
        ("long", b"\xff" * 10 + b"\x01", "undecodable"),
        ("long", b"\xff" * 500_000 + b"\x01", "undecodable"),
        ("boolean", b"\x02", "undecodable"),
        ("string", b"\x04\xff\xfe", "undecodable"),
        ("string", b"\x06\xed\xa0\x80", "undecodable"),
        ("string", b"\x04a", "undecodable"),
        ("string", b"\x01", "undecodable"),
        ("string", zigzag(2**40) + b"a", "undecodable"),
        ("null", b"a", "undecodable"),
        ("int", b"\x02\x02", "undecodable"),
        (["null", "int"], zigzag(2), "undecodable"),
        (["null", "int"], zigzag(-1) + b"\x02", "undecodable"),
        ({"type": "enum", "name": "E", "symbols": ["a", "b"]}, zigzag(2), "undecodable"),
        ({"type": "enum", "name": "E", "symbols": ["a", "b"]}, zigzag(-1), "undecodable"),
        ({"type": "array", "items": "int"}, zigzag(2**40) + b"\x02", "undecodable"),
        ({"type": "array", "items": "int"}, zigzag(-(2**62)) + b"\x02\x02", "undecodable"),
        ({"type": "map", "values": "null"}, zigzag(2**40) + b"\x02", "undecodable"),
        ({"type": "map", "values": "int"}, b"\x02\x02\xff\x02\0", "undecodable"),
        (logical("long", "timestamp-millis"), zigzag(2**62), "bad_timestamp"),
        (logical("long", "timestamp-micros"), zigzag(-(2**62)), "bad_timestamp"),
        (logical("int", "date"), zigzag(2**30), "bad_timestamp"),
        (logical("int", "time-millis"), zigzag(86_400_000), "bad_timestamp"),
        (logical("long", "time-micros"), zigzag(-1), "bad_timestamp"),
        (logical("bytes", "decimal", precision=4, scale=2), b"\x04\x27\x10", "out_of_range"),
        (logical("bytes", "decimal", precision=4, scale=2), zigzag(400_000) + b"\x7f" * 400_000, "out_of_range"),
        (logical("fixed", "decimal", name="D", size=2, precision=4), b"\x01", "undecodable"),
        (logical("fixed", "uuid", name="U", size=16), b"\x01", "undecodable"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_avro_bytes_may_not_say(schema: Any, data: bytes, reason: str) -> None:
    assert refused(knowing("AVRO", text_of(schema)), FRAME + data)[0] == reason


TREE = {"type": "record", "name": "Tree", "fields": [{"name": "next", "type": ["null", "Tree"]}]}


def test_a_recursive_schema_is_read_as_deep_as_json_is() -> None:
    """The reader of fastavro itself ends the process at this."""
    schemas = knowing("AVRO", text_of(TREE))
    assert schemas.as_json(FRAME + b"\x02\x02\0") == b'{"next":{"next":{"next":null}}}'
    assert refused(schemas, FRAME + b"\x02" * 200_000 + b"\0")[0] == "too_large"
    lists = {"type": "record", "name": "R", "fields": [{"name": "all", "type": {"type": "array", "items": "R"}}]}
    assert refused(knowing("AVRO", text_of(lists)), FRAME + b"\x02" * 200_000)[0] == "too_large"
    endless = {"type": "record", "name": "R", "fields": [{"name": "again", "type": "R"}]}
    assert refused(knowing("AVRO", text_of(endless)), FRAME)[0] == "too_large"


@pytest.mark.parametrize(
    "items",
    [
        "null",
        {"type": "null"},
        {"type": "record", "name": "R", "fields": []},
        {"type": "record", "name": "R", "fields": [{"name": "a", "type": "null"}]},
        {"type": "fixed", "name": "F", "size": 0},
    ],
    ids=str,
)
def test_an_array_of_nothing_cannot_be_used(items: Any) -> None:
    """Six bytes of payload could be millions of them."""
    assert "takes no room" in refused(knowing("AVRO", text_of({"type": "array", "items": items})), FRAME + b"\0")[1]


def test_blocks_with_their_size_are_read_too() -> None:
    schemas = knowing("AVRO", text_of({"type": "array", "items": "int"}))
    assert schemas.as_json(FRAME + zigzag(-2) + zigzag(2) + b"\x02\x04" + zigzag(1) + b"\x06" + b"\0") == b"[1,2,3]"


def test_a_schema_may_refer_to_others() -> None:
    point = {"type": "record", "name": "geo.Point", "fields": [{"name": "x", "type": "int"}]}
    line = {"type": "record", "name": "geo.Line", "fields": [{"name": "to", "type": "geo.Point"}]}
    schema = {
        "type": "record",
        "name": "T",
        "fields": [{"name": "a", "type": "geo.Line"}, {"name": "b", "type": "geo.Point"}],
    }
    schemas = knowing("AVRO", text_of(schema), [("geo.Point", text_of(point)), ("geo.Line", text_of(line))])
    assert schemas.as_json(FRAME + b"\x02\x04") == b'{"a":{"to":{"x":1}},"b":{"x":2}}'
    assert refused(knowing("AVRO", text_of(schema)), FRAME)[0] == "unknown_schema"


# -- Protobuf ----------------------------------------------------------------------------------------------------------

KINDS = {
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "string": FieldDescriptorProto.TYPE_STRING,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "sint64": FieldDescriptorProto.TYPE_SINT64,
}


def declare(message: DescriptorProto, *fields: str) -> DescriptorProto:
    """Add fields, each `[repeated|optional] TYPE NAME`; a type with a dot is a message, one in capitals an enum."""
    for number, declared in enumerate(fields, len(message.field) + 1):
        *label, kind, name = declared.split()
        field = message.field.add(name=name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
        if "repeated" in label:
            field.label = FieldDescriptorProto.LABEL_REPEATED
        if "optional" in label:
            field.proto3_optional = True
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{name}")
        if kind in KINDS:
            field.type = KINDS[kind]
        else:
            field.type_name = kind
            field.type = FieldDescriptorProto.TYPE_ENUM if kind.isupper() else FieldDescriptorProto.TYPE_MESSAGE
    return message


def map_of(message: DescriptorProto, name: str, key: str, value: str) -> None:
    entry = message.nested_type.add(name=f"{name.title()}Entry")
    declare(entry, f"{key} key", f"{value} value")
    entry.options.map_entry = True
    declare(message, f"repeated .lab.All.{entry.name} {name}")


def file_of_all() -> FileDescriptorProto:
    file = FileDescriptorProto(name="all.proto", package="lab", syntax="proto3")
    file.dependency.extend(["google/protobuf/timestamp.proto", "google/protobuf/wrappers.proto"])
    file.enum_type.add(name="MODE").value.add(name="OFF", number=0)
    file.enum_type[0].value.add(name="ON", number=1)
    whole = declare(
        file.message_type.add(name="All"),
        "string deviceId",
        "double temperature",
        "optional double humidity",
        "int64 pulses",
        "uint64 wide",
        "bool on",
        ".lab.MODE mode",
        "repeated int32 counts",
        ".google.protobuf.Timestamp at",
        ".google.protobuf.DoubleValue wrapped",
        "optional bytes blob",
        ".lab.All inner",
        "repeated .lab.All.Part parts",
        "float short_one",
        ".google.protobuf.BytesValue packed",
        "repeated bytes blobs",
    )
    whole.field[6].type = FieldDescriptorProto.TYPE_ENUM
    part = declare(whole.nested_type.add(name="Part"), "int32 x", "string note")
    declare(part.nested_type.add(name="Deeper"), "int32 y")
    map_of(whole, "labels", "string", "string")
    map_of(whole, "numbers", "int32", "double")
    map_of(whole, "flags", "bool", ".lab.All.Part")
    declare(file.message_type.add(name="Second"), "string name")
    return file


ALL = file_of_all()


def built(*files: FileDescriptorProto) -> Callable[[str], Any]:
    pool = descriptor_pool.DescriptorPool()
    for module in (timestamp_pb2, wrappers_pb2):
        pool.Add(FileDescriptorProto.FromString(module.DESCRIPTOR.serialized_pb))
    for file in files:
        pool.Add(file)
    return lambda name: message_factory.GetMessageClass(pool.FindMessageTypeByName(name))


def serialized(file: FileDescriptorProto) -> str:
    """As a registry gives it: without a name of its own that means anything."""
    nameless = FileDescriptorProto.FromString(file.SerializeToString())
    nameless.name = "default"
    return base64.b64encode(nameless.SerializeToString()).decode()


MESSAGE = built(ALL)
PROTO = knowing("PROTOBUF", serialized(ALL))
EMPTY = {
    "deviceId": "",
    "temperature": 0.0,
    "pulses": 0,
    "wide": 0,
    "on": False,
    "mode": "OFF",
    "counts": [],
    "parts": [],
    "short_one": 0.0,
    "blobs": [],
    "labels": {},
    "numbers": {},
    "flags": {},
}


def proto(message: Any, index: bytes = b"\0") -> Any:
    return msgspec.json.decode(PROTO.as_json(FRAME + index + message.SerializeToString()))


def test_a_message_becomes_what_was_set() -> None:
    message = MESSAGE("lab.All")(
        deviceId="d",
        temperature=23.5,
        humidity=0.0,
        pulses=-(2**63),
        wide=2**64 - 1,
        on=True,
        mode=1,
        counts=[1, 0, -1],
        parts=[{"x": 1}, {}],
        labels={"a": "b"},
        numbers={-5: 1.5},
        flags={True: {"note": "n"}},
        short_one=0.5,
    )
    message.at.FromJsonString("2025-10-05T12:34:56.123456789Z")
    message.wrapped.value = 0.0
    message.inner.deviceId = "i"
    assert proto(message) == {
        "deviceId": "d",
        "temperature": 23.5,
        "humidity": 0.0,
        "pulses": -(2**63),
        "wide": 2**64 - 1,
        "on": True,
        "mode": "ON",
        "counts": [1, 0, -1],
        "at": "2025-10-05T12:34:56.123456Z",
        "wrapped": 0.0,
        "inner": {**EMPTY, "deviceId": "i"},
        "parts": [{"x": 1, "note": ""}, {"x": 0, "note": ""}],
        "labels": {"a": "b"},
        "numbers": {"-5": 1.5},
        "flags": {"true": {"x": 0, "note": "n"}},
        "short_one": 0.5,
        "blobs": [],
    }


def test_what_is_not_set_is_left_out_only_where_that_can_be_told() -> None:
    """A proto3 field of 0 is not on the wire, and 0 degrees are a measurement."""
    assert proto(MESSAGE("lab.All")()) == EMPTY


def test_an_enum_may_have_a_value_without_a_name() -> None:
    assert proto(MESSAGE("lab.All")(mode=5))["mode"] == 5


@pytest.mark.parametrize(
    ("index", "name", "field"),
    [
        (b"\0", "lab.All", "deviceId"),
        (b"\x02\0", "lab.All", "deviceId"),
        (b"\x02\x02", "lab.Second", "name"),
        (b"\x04\0\0", "lab.All.Part", "note"),
    ],
)
def test_the_index_says_which_message_it_is(index: bytes, name: str, field: str) -> None:
    assert proto(MESSAGE(name)(**{field: "x"}), index)[field] == "x"


def test_the_index_may_name_what_is_nested_twice() -> None:
    assert proto(MESSAGE("lab.All.Part.Deeper")(y=3), b"\x06\0\0\0") == {"y": 3}


@pytest.mark.parametrize(
    "index",
    [b"", b"\x80", b"\xff" * 10, b"\x01", b"\x02", b"\x02\x04", b"\x02\x01", b"\x04\0\x0a", b"\xd0\x0f" + b"\0" * 1000],
)
def test_an_index_that_names_no_message(index: bytes) -> None:
    assert refused(PROTO, FRAME + index)[0] == "undecodable"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["temperature", "humidity", "short_one", "wrapped"])
def test_a_messages_numbers_must_be_finite(field: str, value: float) -> None:
    message = MESSAGE("lab.All")()
    if field == "wrapped":
        message.wrapped.value = value
    else:
        setattr(message, field, value)
    assert refused(PROTO, FRAME + b"\0" + message.SerializeToString())[0] == "not_finite"


@pytest.mark.parametrize(("seconds", "nanos"), [(0, -1), (0, 10**9), (2**62, 0), (-(2**62), 0), (-62_135_596_801, 0)])
def test_a_timestamp_that_is_none(seconds: int, nanos: int) -> None:
    message = MESSAGE("lab.All")()
    message.at.seconds, message.at.nanos = seconds, nanos
    assert refused(PROTO, FRAME + b"\0" + message.SerializeToString())[0] == "bad_timestamp"


def test_bytes_are_what_protobufs_own_json_has() -> None:
    for blob in (b"", b"a", b"\xfb\xff\xfe"):
        message = MESSAGE("lab.All")(blob=blob, packed={"value": blob}, blobs=[blob, b""])
        said = proto(message)
        own = json_format.MessageToDict(message)
        assert (said["blob"], said["packed"], said["blobs"]) == (own["blob"], own["packed"], own["blobs"])


@pytest.mark.parametrize(
    "data", [b"\x0a", b"\x0a\x02\xff\xfe", b"\x0f", b"\x0a\xff\xff\xff\xff\x0f", b"\0", b"\x62\x01"]
)
def test_bytes_that_are_no_message(data: bytes) -> None:
    assert refused(PROTO, FRAME + b"\0" + data)[0] == "undecodable"


def test_a_messages_depth_is_bounded() -> None:
    message = MESSAGE("lab.All")()
    for _ in range(DEPTH - 1):
        outer_ = MESSAGE("lab.All")()
        outer_.inner.CopyFrom(message)
        message = outer_
    proto(message)
    for _ in range(40):
        outer_ = MESSAGE("lab.All")()
        outer_.inner.CopyFrom(message)
        message = outer_
        assert refused(PROTO, FRAME + b"\0" + message.SerializeToString())[0] == "too_large"
    hostile = b""
    for _ in range(300):
        hostile = b"\x62" + bytes([len(hostile) & 127 | 128, len(hostile) >> 7]) + hostile
    assert refused(PROTO, FRAME + b"\0" + hostile)[0] in {"too_large", "undecodable"}


def test_a_schema_of_many_fields_does_not_multiply_a_payload() -> None:
    """A message of two bytes has all of its fields' defaults."""
    file = FileDescriptorProto(name="wide.proto", syntax="proto3")
    declare(file.message_type.add(name="Top"), "repeated .Wide all")
    declare(file.message_type.add(name="Wide"), *(f"double f{number}" for number in range(300)))
    schemas = knowing("PROTOBUF", serialized(file))
    assert len(msgspec.json.decode(schemas.as_json(FRAME + b"\0" + b"\x0a\0"))["all"][0]) == 300
    payload = FRAME + b"\0" + b"\x0a\0" * 100_000
    tracemalloc.start()
    try:
        assert refused(schemas, payload)[0] == "too_large"
        assert tracemalloc.get_traced_memory()[1] < 250 * len(payload)
    finally:
        tracemalloc.stop()


def test_a_file_may_import_others_in_any_order() -> None:
    base = FileDescriptorProto(name="lab/base.proto", package="base", syntax="proto3")
    declare(base.message_type.add(name="Point"), "int32 x")
    middle = FileDescriptorProto(name="lab/middle.proto", package="mid", syntax="proto3", dependency=["lab/base.proto"])
    declare(middle.message_type.add(name="Line"), ".base.Point to")
    top = FileDescriptorProto(name="top.proto", syntax="proto3", dependency=["lab/middle.proto"])
    declare(top.message_type.add(name="Top"), ".mid.Line line", ".google.protobuf.Timestamp at")
    top.dependency.append("google/protobuf/timestamp.proto")
    payload = FRAME + b"\0" + bytes.fromhex("0a040a020805")
    wanted = {"line": {"to": {"x": 5}}}
    references = [("lab/middle.proto", serialized(middle)), ("lab/base.proto", serialized(base))]
    of_registry = knowing("PROTOBUF", serialized(top), references)
    assert msgspec.json.decode(of_registry.as_json(payload)) == wanted
    with_time = FileDescriptorProto.FromString(timestamp_pb2.DESCRIPTOR.serialized_pb)
    files = descriptor_pb2.FileDescriptorSet(file=[base, with_time, middle, top])
    of_file = knowing("PROTOBUF", files.SerializeToString())
    assert msgspec.json.decode(of_file.as_json(payload)) == wanted
    assert "'lab/middle.proto'" in refused(knowing("PROTOBUF", serialized(top)), payload)[1]


# -- any bytes ---------------------------------------------------------------------------------------------------------


@given(st.binary())
@settings(deadline=None, max_examples=500)
def test_any_bytes_give_json_or_a_reason(data: bytes) -> None:
    schemas = knowing("AVRO", text_of(NESTED))
    check(schemas, data)
    check(schemas, FRAME + data)
    check(PROTO, FRAME + data)
    check(PROTO, FRAME + b"\0" + data)


@given(value=outer, data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_damaged_record_gives_json_or_a_reason(value: dict[str, Any], data: st.DataObject) -> None:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(NESTED), value)
    message = MESSAGE("lab.All")(deviceId=value["device"], temperature=value["inner"]["x"], labels=value["modes"])
    for schemas, whole in (
        (knowing("AVRO", text_of(NESTED)), FRAME + stream.getvalue()),
        (PROTO, FRAME + b"\0" + message.SerializeToString()),
    ):
        payload = bytearray(whole)
        at = data.draw(st.integers(0, len(payload) - 1))
        payload[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
        check(schemas, bytes(payload))


@given(value=outer, more=st.binary(min_size=1, max_size=4))
@settings(deadline=None)
def test_an_avro_record_that_is_cut_or_followed(value: dict[str, Any], more: bytes) -> None:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(NESTED), value)
    schemas = knowing("AVRO", text_of(NESTED))
    payload = FRAME + stream.getvalue()
    assert refused(schemas, payload + more)[0] == "undecodable"
    assert refused(schemas, payload[:-1])[0] == "undecodable"


@pytest.mark.parametrize("name", ["telemetry"])
def test_a_dialect_reads_the_same_from_it(name: str) -> None:
    example = dialects.load()[name].EXAMPLES[0]
    said = msgspec.json.decode(example.payload)
    fields = [
        {"name": field, "type": "double" if isinstance(held, float) else "string"} for field, held in said.items()
    ]
    schema = {"type": "record", "name": "T", "fields": fields}
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), said)
    payload = knowing("AVRO", text_of(schema)).as_json(FRAME + stream.getvalue())
    assert list(dialects.speaker(name)(payload, Meta("raw", None, (), 1_759_622_400_000))) == list(example.gives)
