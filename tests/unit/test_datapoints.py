"""The registry of data points: what its entries say, what is wrong with them, and what they make of bytes."""

import json
import math
import re
import struct
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import yaml
from schemas import datapoints
from schemas.datapoints import DataPoints, RegistryError, parse
from schemas.dialects.iot_gateway import EXAMPLE_REGISTRY
from schemas.extract import Extractor, extractors, octets, pack
from schemas.point import Entry, Point
from schemas.reading import Rejected, RejectedError, Value

EXAMPLE = Path("deploy/registry.example.yaml")
INTEGERS = {"Int8": "b", "Int16": "h", "Int32": "i", "Uint8": "B", "Uint16": "H", "Uint32": "I"}
ENVIRONMENT = [
    {"label": "Temperature", "encoding": "Int16", "decimals": 2, "unit": "°C"},
    {"label": "Humidity", "encoding": "Uint16", "offset": 2, "decimals": 2, "unit": "%"},
]


def point(encoding: str, **members: Any) -> Extractor:
    return extractors(Entry(points=(Point.model_validate({"label": "x", "encoding": encoding, **members}),)))[0]


def read(extractor: Extractor, data: bytes) -> Value:
    return extractor.read(data.hex(), data)


def outcome(extractor: Extractor, text: str) -> Value | Rejected:
    try:
        return extractor.read(text, octets(text))
    except RejectedError as error:
        return error.rejected


def one(**members: Any) -> object:
    return {"controllers": {"*": {"1/1": [{"label": "x", **members}]}}}


def problems(document: object) -> list[str]:
    with pytest.raises(RegistryError) as caught:
        parse(document)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


# -- bytes to values ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", INTEGERS)
@pytest.mark.parametrize("order", ["big", "little"])
@given(data=st.data())
def test_integers_are_what_struct_says(encoding: str, order: str, data: st.DataObject) -> None:
    form = struct.Struct((">" if order == "big" else "<") + INTEGERS[encoding])
    raw = data.draw(st.binary(min_size=form.size, max_size=form.size))
    offset = data.draw(st.integers(0, 20))
    decimals = data.draw(st.integers(0, 12))
    extractor = point(encoding, order=order, offset=offset, decimals=decimals)
    value = read(extractor, bytes(offset) + raw + b"\x55")
    assert isinstance(value, float)
    assert value == float(Decimal(form.unpack(raw)[0]).scaleb(-decimals))
    assert extractor.write(value) == raw


@pytest.mark.parametrize("order", ["big", "little"])
@given(value=st.floats(width=32, allow_nan=False, allow_infinity=False))
def test_floats_are_what_struct_says(order: str, value: float) -> None:
    raw = struct.pack(">f" if order == "big" else "<f", value)
    extractor = point("Float32", order=order, offset=3)
    assert str(read(extractor, b"abc" + raw)) == str(value)
    assert extractor.write(value) == raw


@pytest.mark.parametrize("order", ["big", "little"])
@pytest.mark.parametrize("encoding", [*INTEGERS, "Float32", "ScaledHex"])
@given(
    raw=st.binary(min_size=6, max_size=6),
    decimals=st.integers(0, 12),
    scale=st.floats(1e-12, 1e12) | st.floats(-1e12, -1e-12),
)
def test_every_number_can_be_said_again(encoding: str, order: str, raw: bytes, decimals: int, scale: float) -> None:
    length = 6 if encoding == "ScaledHex" else None
    extractor = point(encoding, order=order, decimals=decimals, scale=scale, length=length)
    value = outcome(extractor, raw.hex())
    if isinstance(value, Rejected):
        assert (encoding, value.reason) == ("Float32", "not_finite")
        return
    again = extractor.write(value)
    assert again == raw[: len(again)]
    assert repr(read(extractor, again)) == repr(value)


@pytest.mark.parametrize("order", ["big", "little"])
@given(number=st.integers(0, 2**48 - 1))
def test_a_scaled_hex_of_any_length_is_all_the_rest(order: str, number: int) -> None:
    extractor = point("ScaledHex", order=order, scale=0.1, offset=2)
    said = extractor.write(number / 10)
    assert len(said) == max(1, math.ceil(number.bit_length() / 8))
    assert read(extractor, b"\x01\x02" + said) == number / 10


@pytest.mark.parametrize("text", ["0x12A", "12A", "012a", "01 2A", "1 2 A", "0X00000000012A", "00000000000000000012A"])
def test_the_documents_scaled_hex(text: str) -> None:
    assert point("ScaledHex", scale=0.1).read(text, octets(text)) == 29.8


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({}, "01000000000000"),
        ({}, "no"),
        ({}, "0x"),
        ({"offset": 1}, "12"),
        ({"offset": 1}, "12A"),
        ({"order": "little"}, "12A"),
        ({"length": 2}, "12A"),
    ],
)
def test_a_scaled_hex_that_is_none(members: dict[str, Any], text: str) -> None:
    with pytest.raises(RejectedError) as caught:
        point("ScaledHex", **members).read(text, octets(text))
    assert caught.value.rejected.reason == "unparsable"


@given(raw=st.binary(min_size=1, max_size=8), order=st.sampled_from(["big", "little"]))
def test_a_boolean_is_false_where_all_is_zero(raw: bytes, order: str) -> None:
    extractor = point("Boolean", length=len(raw), order=order)
    value = read(extractor, raw)
    assert value is any(raw)
    again = extractor.write(value)
    assert len(again) == len(raw)
    assert read(extractor, again) is value


@given(
    table=st.dictionaries(st.integers(0, 2**16 - 1), st.text("abc", min_size=1), min_size=1)
    | st.dictionaries(st.integers(0, 2**16 - 1), st.booleans(), min_size=1),
    order=st.sampled_from(["big", "little"]),
    raw=st.integers(0, 2**16 - 1),
)
def test_a_map_gives_what_is_in_it(table: dict[int, bool | str], order: Any, raw: int) -> None:
    extractor = point("BooleanMap", length=2, order=order, map={hex(key): value for key, value in table.items()})
    for number, value in table.items():
        for said in (number.to_bytes(2, order), extractor.write(value)):
            assert repr(read(extractor, said)) == repr(value)
    if raw not in table:
        with pytest.raises(RejectedError, match=f"x is {raw}, which is not in its map"):
            read(extractor, raw.to_bytes(2, order))


def test_a_map_cannot_say_what_is_not_in_it() -> None:
    with pytest.raises(ValueError, match="'ajar', which is not in its map"):
        point("BooleanMap", map={0: "closed"}).write("ajar")


@given(text=st.text(max_size=20).map(lambda text: text.rstrip("\0")))
def test_text_in_bytes(text: str) -> None:
    raw = text.encode()
    fixed, rest = point("RawString", offset=1, length=max(1, len(raw)) + 3), point("RawString", offset=1)
    assert read(fixed, b"!" + raw.ljust(max(1, len(raw)) + 3, b"\0") + b"more") == text
    for extractor in (fixed, rest):
        assert read(extractor, b"!" + extractor.write(text)) == text


def test_text_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="5 bytes, more than 4"):
        point("RawString", length=4).write("fünf")


@given(text=st.text())
def test_the_text_itself(text: str) -> None:
    assert point("RawString").read(text, octets(text)) == text


@pytest.mark.parametrize(
    ("encoding", "members", "data", "why"),
    [
        ("Int16", {"offset": 3}, b"1234", "x is bytes 4..5 of the data, which has 4 bytes"),
        ("Float32", {}, b"1", "x is bytes 1..4 of the data, which has 1 byte"),
        ("Float32", {}, bytes.fromhex("7FC00000"), "x is nan, which is not a number that can be stored"),
        ("Float32", {"order": "little"}, bytes.fromhex("000080FF"), "x is -inf, which is not a number"),
        ("Boolean", {"offset": 1}, b"1", "x is bytes 2..2 of the data"),
        ("RawString", {"length": 2}, b"1", "x is bytes 1..2 of the data"),
        ("RawString", {"offset": 1}, b"1", "x is what follows byte 1 of the data, which has 1 byte"),
        ("RawString", {"length": 2}, b"\xff\xff", "x is not text in UTF-8"),
        ("Int8", {}, None, "x is in the data, '1 g', which is no whole hex bytes"),
    ],
)
def test_what_cannot_be_read(encoding: str, members: dict[str, Any], data: bytes | None, why: str) -> None:
    with pytest.raises(RejectedError, match=why) as caught:
        point(encoding, **members).read("1 g", data)
    assert caught.value.rejected.reason == ("not_finite" if "number" in why else "unparsable")


@given(
    text=st.text() | st.text("0123456789abcdefABCDEFx ") | st.binary().map(bytes.hex),
    pin=st.sampled_from(sorted(EXAMPLE_REGISTRY.entries())),
)
def test_any_text_gives_values_or_is_refused(text: str, pin: str) -> None:
    for extractor in EXAMPLE_REGISTRY.points(*pin.split("/")) or ():
        value = outcome(extractor, text)
        if isinstance(value, Rejected):
            assert value.reason in {"unparsable", "not_finite"}
            assert len(value.error) < 200
        else:
            assert isinstance(value, float | bool | str)


@given(st.binary(min_size=24, max_size=24), st.sampled_from(sorted(EXAMPLE_REGISTRY.entries())))
def test_what_is_packed_is_what_was_read(data: bytes, pin: str) -> None:
    points = EXAMPLE_REGISTRY.points(*pin.split("/"))
    assert points is not None
    found = {extractor.label: outcome(extractor, data.hex()) for extractor in points}
    values = {label: value for label, value in found.items() if not isinstance(value, Rejected)}
    text = pack(points, values)
    assert {label: repr(outcome(extractor, text)) for extractor in points if (label := extractor.label) in values} == {
        label: repr(value) for label, value in values.items()
    }


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("01 03 0c", b"\x01\x03\x0c"),
        (" 0x0103\n", b"\x01\x03"),
        ("0X0 1 0 3", b"\x01\x03"),
        ("", b""),
        ("0x", b""),
        ("012", None),
        ("0x0x01", None),
        ("\u0660\u0661", None),
        ("-1", None),
    ],
)
def test_hex_as_it_is_written(text: str, data: bytes | None) -> None:
    assert octets(text) == data


# -- entries -----------------------------------------------------------------------------------------------------------


def test_the_example_file_is_the_dialects_registry() -> None:
    said = parse(yaml.read(EXAMPLE))
    assert said == {id_: entry for id_, (entry, _) in EXAMPLE_REGISTRY.entries().items()}
    assert said.keys() >= {"*/1/1", "*/1/2"}
    assert {entry.name for entry in said.values()} >= {"Environmental Sensor", "Power Monitor"}


def test_the_examples_show_every_encoding() -> None:
    shown = {point.encoding for entry in parse(yaml.read(EXAMPLE)).values() for point in entry.points}
    assert shown == {*INTEGERS, "Float32", "Boolean", "BooleanMap", "ScaledHex", "RawString"}


@pytest.mark.parametrize(
    "controller",
    [
        "e4fd45f654be",
        "E4FD45F654BE",
        "E4:FD:45:F6:54:BE",
        "e4-fd-45-f6-54-be",
        "F2-e4fd.45f6.54be",
        "e4 fd 45 f6 54 be",
    ],
)
@pytest.mark.parametrize("pin", ["1/3", "J1/3", "01/03", "j1/3"])
def test_ids_have_one_form(controller: str, pin: str) -> None:
    assert datapoints.normalise(f"{controller}/{pin}") == "e4fd45f654be/1/3"
    assert set(parse({"controllers": {controller: {pin: ENVIRONMENT}}})) == {"e4fd45f654be/1/3"}


def test_an_address_may_begin_like_the_prefix() -> None:
    assert datapoints.normalise("f2-e4-fd-45-f6-54/1/1") == "f2e4fd45f654/1/1"


@pytest.mark.parametrize(
    "id_",
    [
        "",
        "*",
        "*/1",
        "*/1/1/1",
        "*/1/100",
        "*/a/1",
        "*/1/ㅁ",
        "*/1/-1",
        "e4fd45f654b/1/1",
        "g4fd45f654be/1/1",
        "e4:fd-45:f6:54:be/1/1",
        "//",
    ],
)
def test_what_is_no_id(id_: str) -> None:
    with pytest.raises(RegistryError):
        datapoints.normalise(id_)
    with pytest.raises(RegistryError):
        datapoints.decode(id_, datapoints.encode(Entry(points=(Point(label="x", encoding="Int8"),))))


def test_an_id_is_wrong_in_both_parts() -> None:
    with pytest.raises(RegistryError) as caught:
        datapoints.normalise("gateway/1")
    assert len(caught.value.problems) == 2


def test_an_entry_is_a_list_or_more() -> None:
    (bare,) = parse({"controllers": {"*": {"1/1": ENVIRONMENT}}}).values()
    (named,) = parse({"controllers": {"*": {"1/1": {"name": " Hall ", "points": ENVIRONMENT}}}}).values()
    assert bare.points == named.points
    assert (bare.name, named.name) == ("", "Hall")


def test_the_documents_names_are_understood() -> None:
    old = {"Label": "T", "Offset": 2, "Length": 2, "DataEncoding": "INT16", "Decimals": 2, "Append": " °C "}
    new = {"label": "T", "offset": 2, "encoding": "Int16", "decimals": 2, "unit": "°C"}
    assert Point.model_validate(old) == Point.model_validate(new)
    assert Point.model_validate({"label": "T", "encoding": "scaledhex", "scaling_factor": 0.1}).scale == 0.1


@pytest.mark.parametrize("document", [None, {}, {"controllers": None}, {"controllers": {}}])
def test_an_empty_file_has_no_entries(document: object) -> None:
    assert parse(document) == {}


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"encoding": "Int16", "length": 3}, "length: Int16 has 2 bytes, not 3"),
        ({"encoding": "Uint8", "length": 0}, "length: Uint8 has 1 byte, not 0"),
        ({"encoding": "ScaledHex", "length": 7}, "length: ScaledHex has 1..6 bytes, not 7"),
        ({"encoding": "Boolean", "length": 9}, "length: Boolean has 1..8 bytes, not 9"),
        ({"encoding": "RawString", "length": 1, "offset": 1024}, "offset: Input should be less than 1024"),
        ({"encoding": "Int32", "offset": 1021}, "length: ends at byte 1025, behind the last one, 1024"),
        ({"encoding": "Int16", "offset": -1}, "offset: Input should be greater than or equal to 0"),
        ({"encoding": "Int16", "offset": "2"}, "offset: Input should be a valid integer"),
        ({"encoding": "Int16", "offset": True}, "offset: Input should be a valid integer"),
        ({"encoding": "Int16", "order": "middle"}, "order: Input should be 'big' or 'little'"),
        ({"encoding": "RawString", "order": "Little"}, "order: RawString has no order of bytes"),
        ({"encoding": "Boolean", "decimals": 1}, "decimals: Boolean makes no number, so it has no decimals"),
        ({"encoding": "RawString", "scale": 2}, "scale: RawString makes no number, so it has no scale"),
        ({"encoding": "Int8", "decimals": 13}, "decimals: Input should be less than or equal to 12"),
        ({"encoding": "Int8", "scale": 0}, "scale: must be 1e-12..1e+12 or as much below zero, not 0"),
        ({"encoding": "Int8", "scale": math.inf}, "scale: Input should be a finite number"),
        ({"encoding": "Int8", "scale": "2"}, "scale: Input should be a valid number"),
        ({"encoding": "BooleanMap"}, "map: BooleanMap needs it: what each number means, as {0: closed, 1: open}"),
        ({"encoding": "Boolean", "map": {0: "a"}}, "map: Boolean has no map, only BooleanMap"),
        ({"encoding": "BooleanMap", "map": {256: "a"}}, "map: has 256, which 1 byte cannot hold"),
        ({"encoding": "BooleanMap", "map": {-1: "a"}}, "map: has -1, which 1 byte cannot hold"),
        ({"encoding": "BooleanMap", "map": {0: "a", 1: True}}, "map: has texts and booleans; a metric is one or"),
        ({"encoding": "BooleanMap", "map": {0: 1}}, "map.0: must be a text of 1..256 characters or a boolean, not 1"),
        ({"encoding": "BooleanMap", "map": {1: "a", "0x1": "b"}}, "map: '0x1' stands there twice"),
        ({"encoding": "BooleanMap", "map": {"a": "a", None: "b"}}, "map: 'a' is no number as 1 or 0x01; null is no"),
        ({"encoding": "BooleanMap", "map": "on"}, "map: Input should be a valid dictionary"),
        ({"encoding": "Int64"}, "encoding: must be one of Int8, Int16, Int32, Uint8, "),
        ({"encoding": 16}, "encoding: must be one of Int8"),
        ({}, "encoding: Field required"),
        ({"encoding": "Int8", "label": " "}, "label: String should have at least 1 character"),
        ({"encoding": "Int8", "label": "a\nb"}, "label: has characters that cannot be shown: 'a\\nb'"),
        ({"encoding": "Int8", "label": 1}, "label: Input should be a valid string"),
        ({"encoding": "Int8", "unit": "x" * 65}, "unit: String should have at most 64 characters"),
        ({"encoding": "Int8", "digits": 1}, "digits: is not known here"),
    ],
)
def test_what_is_wrong_with_a_point_is_said(members: dict[str, Any], why: str) -> None:
    (line,) = problems(one(**members))
    assert line.startswith(f"controllers.*.1/1.points.0.{why}")


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ([], ".points: a pin has 1..64 data points, not 0"),
        ([{"label": f"x{number}", "encoding": "Int8"} for number in range(65)], ".points: a pin has 1..64 data poi"),
        ({"name": "x"}, ".points: Field required"),
        ({"points": ENVIRONMENT, "pins": 1}, ".pins: is not known here"),
        ({"points": ENVIRONMENT, "name": 3}, ".name: Input should be a valid string"),
        (ENVIRONMENT * 2, ".points: two data points are called 'Temperature' and two 'Humidity'"),
        ([3], ".points.0: must be an object with a label and an encoding, not 3"),
        ("Int16", ": must be an object with points, or the list of them, not 'Int16'"),
        (None, ": must be an object with points, or the list of them, not null"),
        ([{"label": "x", "encoding": "Int8", "DataEncoding": "Int8"}], ".points.0: says encoding twice, also as Data"),
    ],
)
def test_what_is_wrong_with_an_entry_is_said(entry: object, why: str) -> None:
    (line,) = problems({"controllers": {"*": {"1/1": entry}}})
    assert line.startswith(f"controllers.*.1/1{why}")


def test_every_problem_is_named_at_once() -> None:
    fine = [{"label": "x", "encoding": "Int8"}]
    document = {
        "controllers": {
            "e4fd45f654be": {
                "1/1": [{"label": "T", "encoding": "Int16", "length": 3}, {"label": "T", "encoding": "Int7"}],
                "J1/01": fine,
                "sensor-1": fine,
            },
            "E4:FD:45:F6:54:BE": {"2/1": fine},
            17: {"1/1": [{"label": "x", "encoding": "Int8", "length": 2}]},
            "*": {},
        },
        "devices": {},
    }
    assert problems(document) == [
        "devices: is not known here, only controllers",
        "controllers.e4fd45f654be.1/1.points.0.length: Int16 has 2 bytes, not 3",
        "controllers.e4fd45f654be.1/1.points.1.encoding: must be one of Int8, Int16, Int32, Uint8, Uint16, Uint32, "
        "Float32, Boolean, BooleanMap, ScaledHex, RawString, not 'Int7'",
        "controllers.e4fd45f654be.1/1.points: two data points are called 'T'",
        "controllers.e4fd45f654be.J1/01: is the pin 1/1, which is there already as 1/1",
        "controllers.e4fd45f654be.sensor-1: a pin is CONNECTOR/PIN, two numbers of 0..99, as 1/3, not 'sensor-1'",
        "controllers.E4:FD:45:F6:54:BE: is the controller e4fd45f654be, which is there already as e4fd45f654be",
        "controllers.17: a controller is written in quotes, lest YAML takes it for a number: 17",
        "controllers.17.1/1.points.0.length: Int8 has 1 byte, not 2",
        "controllers.*: must have a member CONNECTOR/PIN for each pin, as 1/1",
    ]


@pytest.mark.parametrize("document", [[], "x", 3, {"controllers": []}, {"controllers": "x"}])
def test_a_file_of_another_form(document: object) -> None:
    assert len(problems(document)) == 1


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([*INTEGERS, "BooleanMap"])
)
members = st.sampled_from(
    ["label", "encoding", "offset", "length", "order", "decimals", "scale", "unit", "map", "Label"]
)
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(members | scalars, inner),
    max_leaves=10,
)


def explained(function: Any, *arguments: Any) -> Any:
    """What a function gives, or the problems that it names."""
    try:
        return function(*arguments)
    except RegistryError as error:
        return error.problems


@given(anything, st.dictionaries(members, anything))
def test_any_document_is_read_or_explained(document: object, said: dict[str, object]) -> None:
    for whole in (document, {"controllers": document}, {"controllers": {"*": {"1/1": document}}}, one(**said)):
        found = explained(parse, whole)
        if isinstance(found, dict):
            assert all(isinstance(entry, Entry) for entry in found.values())
        else:
            assert found
            assert all(found)


@given(st.binary() | anything.map(lambda value: json.dumps(value, default=str, skipkeys=True).encode()))
def test_any_record_is_read_or_explained(value: bytes) -> None:
    found = explained(datapoints.decode, "*/1/1", value)
    if isinstance(found, Entry):
        assert datapoints.decode("*/1/1", datapoints.encode(found)) == found
    else:
        assert found
        assert all(line.startswith("*/1/1") for line in found)


def test_a_record_is_explained_like_a_file() -> None:
    with pytest.raises(RegistryError) as caught:
        datapoints.decode("*/1/1", b'{"points":[{"label":"x","encoding":"Int16","length":3}],"more":1}')
    assert caught.value.problems == ["*/1/1.points.0.length: Int16 has 2 bytes, not 3", "*/1/1.more: is not known here"]


@pytest.mark.parametrize("value", [b"", b"{", b"\xff", b"[" * 60_000])
def test_a_record_that_is_not_json(value: bytes) -> None:
    with pytest.raises(RegistryError, match="the value is not JSON"):
        datapoints.decode("*/1/1", value)


@pytest.mark.parametrize(
    ("said", "most"),
    [
        ([{"label": f"a{number}"} for number in range(3000)], 1),
        ([{"label": "same", "encoding": "Int8"}] * 1000, 1),
        ([{str(number): 0 for number in range(100)}] * 64, 21),
        ({str(number): 0 for number in range(5000)}, 21),
        ([{"x" * 60_000: 0}], 3),
        ([{"label": "a", "encoding": "BooleanMap", "map": {f"x{number}": 0 for number in range(5000)}}], 1),
        ([{"label": "a", "encoding": "BooleanMap", "map": {str(number): 0 for number in range(5000)}}], 21),
    ],
)
def test_very_much_that_is_wrong_is_said_in_short(said: object, most: int) -> None:
    value = json.dumps(said, separators=(",", ":")).encode()
    assert len(value) < datapoints.MAX_VALUE_BYTES
    found = explained(datapoints.decode, "*/1/1", value)
    assert 1 <= len(found) <= most
    assert all(line.startswith("*/1/1") and len(line) <= 400 for line in found)
    if most > 20:
        assert re.fullmatch(r"\*/1/1: and [0-9]{4} more", found[-1])


def test_a_value_that_is_too_large_is_not_looked_at() -> None:
    """In a file likewise: nobody would take the record that is made of it."""
    most = datapoints.MAX_VALUE_BYTES
    value = record("x") + b" " * (most - len(record("x")))
    assert datapoints.decode("*/1/1", value) == datapoints.decode("*/1/1", record("x"))
    for wrong in (value + b" ", b"no" * most):
        (problem,) = explained(datapoints.decode, "*/1/1", wrong)
        assert problem == f"*/1/1: the record's value has {len(wrong)} bytes, more than {most}"
    (problem,) = problems(one(encoding="BooleanMap", length=8, map=dict.fromkeys(range(300), "x" * 256)))
    assert problem.startswith("controllers.*.1/1: the record's value has ")


def test_long_names_are_shortened_where_they_are_shown() -> None:
    fine = [{"label": "x", "encoding": "Int8"}]
    long = "x" * 100_000
    for document in ({long: 1}, {"controllers": {long: {long: fine}}}, {"controllers": {"*": {"": fine, "/" * 9: []}}}):
        assert all(len(problem) < 300 for problem in problems(document))


def test_records_say_all_of_an_entry() -> None:
    for id_, (entry, _) in EXAMPLE_REGISTRY.entries().items():
        assert datapoints.decode(id_, datapoints.encode(entry)) == entry
    full = {
        "label": "x", "encoding": "ScaledHex", "offset": 2, "length": 3, "order": "little", "decimals": 1, "scale": 0.5,
        "unit": "m",
    }  # fmt: skip
    entry = Entry.model_validate({"name": "n", "points": [full]})
    assert json.loads(datapoints.encode(entry)) == {"name": "n", "points": [full]}


# -- the registry ------------------------------------------------------------------------------------------------------


def entries(**labels: str) -> dict[str, Entry]:
    """Entries of one point, by ids with `_` for `/` and a label for each."""
    said = {
        ("*" if id_.startswith("any") else "e4fd45f654be") + id_[id_.index("_") :].replace("_", "/"): label
        for id_, label in labels.items()
    }
    return {id_: Entry(points=(Point(label=label, encoding="Int8"),)) for id_, label in said.items()}


def labels(registry: DataPoints, controller: str, connector: str, pin: str) -> list[str] | None:
    points = registry.points(controller, connector, pin)
    return None if points is None else [point.label for point in points]


def record(label: str) -> bytes:
    return json.dumps({"points": [{"label": label, "encoding": "Int8"}]}).encode()


def test_an_exact_controller_wins() -> None:
    registry = DataPoints()
    assert registry.points("e4fd45f654be", "1", "1") is None
    registry.load(entries(any_1_1="all", mac_1_1="own", any_1_2="two"))
    assert labels(registry, "e4fd45f654be", "1", "1") == ["own"]
    assert labels(registry, "e4fd45f654be", "1", "2") == ["two"]
    assert labels(registry, "000000000000", "1", "1") == ["all"]
    assert labels(registry, "e4fd45f654be", "2", "1") is None
    assert len(registry) == 3
    registry.put("*/1/1", record("topic"))
    assert labels(registry, "e4fd45f654be", "1", "1") == ["own"]
    assert labels(registry, "000000000000", "1", "1") == ["topic"]


def test_the_topic_wins_until_it_takes_back() -> None:
    registry = DataPoints()
    registry.put("E4:FD:45:F6:54:BE/J1/1", record("topic"))
    registry.load(entries(mac_1_1="file", mac_1_2="file"))
    assert labels(registry, "e4fd45f654be", "1", "1") == ["topic"]
    assert {id_: source for id_, (_, source) in registry.entries().items()} == {
        "e4fd45f654be/1/1": "topic",
        "e4fd45f654be/1/2": "file",
    }
    assert registry.counts() == {"file": 1, "topic": 1}
    registry.put("e4fd45f654be/1/1", record("newer"))
    assert labels(registry, "e4fd45f654be", "1", "1") == ["newer"]
    registry.put("e4fd45f654be/1/1", None)
    assert labels(registry, "e4fd45f654be", "1", "1") == ["file"]
    registry.put("e4fd45f654be/1/1", None)
    assert len(registry) == len(registry.entries()) == 2
    assert registry.counts() == {"file": 2, "topic": 0}


def test_a_new_file_replaces_the_old_one() -> None:
    registry = DataPoints()
    registry.load(entries(mac_1_1="old", mac_1_2="old"))
    registry.put("*/3/3", record("topic"))
    registry.load(entries(mac_1_2="new", mac_1_3="new"))
    assert labels(registry, "e4fd45f654be", "1", "1") is None
    assert labels(registry, "e4fd45f654be", "1", "2") == ["new"]
    assert labels(registry, "e4fd45f654be", "1", "3") == ["new"]
    assert labels(registry, "e4fd45f654be", "3", "3") == ["topic"]
    assert len(registry) == 3
    assert registry.counts() == {"file": 2, "topic": 1}


@pytest.mark.parametrize(
    ("id_", "value"), [("*/1/1", b"{}"), ("*/1/1", b"no"), ("*/1", record("x")), ("*/1", None), ("", None)]
)
def test_a_wrong_record_changes_nothing(id_: str, value: bytes | None) -> None:
    registry = DataPoints()
    registry.put("*/1/1", record("before"))
    before = registry.entries()
    with pytest.raises(RegistryError):
        registry.put(id_, value)
    assert registry.entries() == before
    assert labels(registry, "e4fd45f654be", "1", "1") == ["before"]


def test_a_wrong_file_changes_nothing() -> None:
    registry = DataPoints()
    registry.load(entries(mac_1_1="before"))
    with pytest.raises(RegistryError):
        registry.load(
            {"*/1/1": registry.entries()["e4fd45f654be/1/1"][0], "nowhere": Entry.model_validate(ENVIRONMENT)}
        )
    assert set(registry.entries()) == {"e4fd45f654be/1/1"}
