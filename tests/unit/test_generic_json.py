"""The generic JSON dialect: paths, options, every kind of part, and how few letters a bad payload makes."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import inputs
from schemas.decoding import Decoder
from schemas.dialects import Meta, Setup, generic
from schemas.dialects.generic import EVERY, path
from schemas.payload import is_secret
from schemas.reading import RECEIVE_TIME, UNPARSABLE, Reading, Rejected

RECEIVED_MS = 1_759_667_700_000
RECEIVED = datetime(2025, 10, 5, 12, 35, tzinfo=UTC)
AT = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)
TS = "2025-10-05T12:34:56Z"
BASE = {"device": "id", "time": "ts", "fields": "*"}
HEADERS: list[tuple[str, bytes | None]] = [("site", b"ulm"), ("site", b"x"), ("bad", b"\xff"), ("nil", None)]
META = Meta("raw", b"tele/f2/sensor", HEADERS, RECEIVED_MS)


def decode(said: object, options: Mapping[str, Any] = BASE, meta: Meta = META) -> list[Reading | Rejected]:
    payload = said if isinstance(said, bytes) else json.dumps(said).encode()
    return list(generic.decoder(generic.Options.model_validate(options))(payload, meta))


def one(said: object, options: Mapping[str, Any] = BASE, meta: Meta = META) -> Reading:
    (reading,) = decode(said, options, meta)
    assert isinstance(reading, Reading), reading
    return reading


def why(said: object, options: Mapping[str, Any] = BASE, meta: Meta = META) -> Rejected:
    (rejected,) = decode(said, options, meta)
    assert isinstance(rejected, Rejected), rejected
    return rejected


# -- paths -------------------------------------------------------------------------------------------------------------

TREE = {
    "a": {"b": [{"c": 1}, {"c": 2}], "b.c": 3, "": 4, 'q"\\': 5},
    "@timestamp": 6,
    "$x": 7,
    "temp°": 8,
    "n": None,
    "list": [[1, 2], [3]],
}


@pytest.mark.parametrize(
    ("written", "found"),
    [
        ("a.b[0].c", 1),
        ("a.b[-1].c", 2),
        ('a."b.c"', 3),
        ('a.""', 4),
        (r'a."q\"\\"', 5),
        ("@timestamp", 6),
        ('"$x"', 7),
        ("temp°", 8),
        ("n", None),
        ("list[0][1]", 2),
        ('"list"[1][0]', 3),
        ("$.a.b[1].c", 2),
        ("@.a.b[1].c", 2),
        ("@", TREE),
        ("$", TREE),
        ("$topic", "raw"),
        ("$key", "tele/f2/sensor"),
        ("$origin", "tele/f2/sensor"),
        ("$origin[0]", "tele"),
        ("$origin[-1]", "sensor"),
        ("$header.site", "ulm"),
        ("$origin[3]", msgspec.UNSET),
        ("$header.nil", msgspec.UNSET),
        ("$header.none", msgspec.UNSET),
        ("a.b[2].c", msgspec.UNSET),
        ("a.b[-3]", msgspec.UNSET),
        ("a.b.c", msgspec.UNSET),
        ("a[0]", msgspec.UNSET),
        ("n.x", msgspec.UNSET),
        ("$.x", msgspec.UNSET),
        ("[0]", msgspec.UNSET),
    ],
)
def test_where_a_path_leads(written: str, found: object) -> None:
    assert path(written).find(TREE, TREE, META) == found


def test_an_element_and_the_payload_are_two_beginnings() -> None:
    assert path("a").find({"a": 1}, {"a": 2}, META) == 1
    assert path("$.a").find({"a": 1}, {"a": 2}, META) == 2
    assert path("[1]").find([3, 4], {}, META) == 4
    assert path("$[0][1]").find({}, [[5, 6]], META) == 6


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ("", "must not be empty"),
        ("a..b", "character 3: here must be a name"),
        ("a.", "character 3: here must be a name"),
        (".a", "character 1: here must be a name"),
        ("a b", "character 2: between two names stands a dot"),
        ("a[b]", "character 2: in brackets stands a whole number"),
        ("a[", "character 2: in brackets stands a whole number"),
        ("a[0]b", "character 5: between two names stands a dot"),
        ("a]", "character 2: between two names stands a dot"),
        ('a."b', "character 3: the quote that ends the name is missing"),
        ('"a"b', "character 4: between two names stands a dot"),
        ("a.b.[0]", "character 5: here must be a name"),
        ("$.", "character 3: here must be a name"),
        ("$$", "is nothing of a record's"),
        ("$keys", "is nothing of a record's"),
        ("$header.", "is nothing of a record's"),
        ("$origin[x]", "is nothing of a record's"),
        ("$topic[0]", "is nothing of a record's"),
        ("auth.token", "'token' is the name of a secret"),
        ("$header.X-Api-Key", "is the name of a secret"),
        ("a" * 257, "at most 256 characters"),
    ],
)
def test_a_wrong_path_says_where_it_is_wrong(written: str, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        path(written)
    with pytest.raises(ValidationError) as refused:
        generic.Options.model_validate({"device": written, "fields": "*"})
    assert error in str(refused.value)


steps = st.lists(
    st.text(max_size=5).filter(lambda name: not is_secret(name)) | st.integers(-3, 3), min_size=1, max_size=4
)


@given(steps=steps, prefix=st.sampled_from(["@", "$"]), value=st.integers())
def test_a_quoted_path_leads_anywhere(steps: list[str | int], prefix: str, value: int) -> None:
    written, tree = prefix, value  # type: Any, Any
    for step in steps:
        quoted = str(step).replace("\\", "\\\\").replace('"', '\\"')
        written += f'."{quoted}"' if isinstance(step, str) else f"[{step}]"
    for step in reversed(steps):
        tree = {step: tree} if isinstance(step, str) else [tree] * 3
    if all(step != 3 for step in steps):
        assert path(written).find(tree, tree, META) == value


@given(written=st.text(st.sampled_from('ab.[]01-"\\$@ ') | st.characters(), max_size=20))
@settings(max_examples=500)
def test_any_text_is_a_path_or_says_why_not(written: str) -> None:
    try:
        found = path(written)
    except ValueError as error:
        why_not = str(error)
    else:
        why_not = ""
        found.find(TREE, TREE, META)
    assert why_not or path(written).text == written


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"device": None},
        {"fields": {}},
        {"fields": {"": "a"}},
        {"fields": {"token": "a"}},
        {"fields": {"x": ""}},
        {"fields": ["a"]},
        {"tags": {"api_key": "a"}},
        {"tags": "a b"},
        {"each": "items["},
        {"measurement": ""},
        {"measurement": "$nothing"},
        {"numbers": "guess"},
        {"unit": {}},
        {"fields": {"x": "a"}, "units": {"y": "m"}},
        {"units": {"y": "$."}},
    ],
)
def test_wrong_options_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        generic.Options.model_validate(BASE | changes)


def test_only_the_device_and_the_fields_must_be_said() -> None:
    assert one(
        {"id": "d", "x": 1}, {"device": "id", "fields": "*"}, msgspec.structs.replace(META, setup=Setup(missing=True))
    )
    for missing in ("device", "fields"):
        with pytest.raises(ValidationError, match="Field required"):
            generic.Options.model_validate({name: said for name, said in BASE.items() if name != missing})


# -- parts -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "device"),
    [
        ("d-1", "d-1"),
        ("1", "1"),
        ("device_1", "device_1"),
        (1, "device_1"),
        (0, "device_0"),
        (2**70, f"device_{2**70}"),
        ("ü/ä b", "ü/ä b"),
    ],
)
def test_a_device_is_text_or_an_integer(said: object, device: str) -> None:
    assert one({"id": said, "ts": TS, "x": 1}).device_id == device


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (None, "missing_field"),
        ("", "missing_field"),
        (1.0, "bad_type"),
        (True, "bad_type"),
        ([], "bad_type"),
        ({"id": 1}, "bad_type"),
        ("d" * 257, "too_large"),
        (10**300, "too_large"),
    ],
)
def test_a_device_is_nothing_else(said: object, reason: str) -> None:
    rejected = why({"id": said, "ts": TS, "x": 1})
    assert rejected.reason == reason
    assert rejected.error.startswith("id ")
    for name in ("channel", "measurement"):
        options = BASE | {name: "@.other"}
        if name == "channel" and reason == "missing_field":
            assert one({"id": "d", "ts": TS, "x": 1, "other": said}, options).channel == ""
        else:
            assert why({"id": "d", "ts": TS, "x": 1, "other": said}, options).reason == reason


def test_a_negative_number_is_no_device_but_a_channel() -> None:
    assert why({"id": -5, "ts": TS, "x": 1}).reason == "bad_type"
    assert one({"id": "d", "ts": TS, "x": 1, "slot": -5}, BASE | {"channel": "slot"}).channel == "-5"


def test_a_measurement_is_a_text_or_a_path() -> None:
    said = {"id": "d", "ts": TS, "x": 1, "kind": "pump"}
    assert one(said).measurement == "telemetry"
    assert one(said, BASE | {"measurement": "kind"}).measurement == "kind"
    assert one(said, BASE | {"measurement": "@.kind"}).measurement == "pump"
    assert one(said, BASE | {"measurement": "$.kind"}).measurement == "pump"
    assert one(said, BASE | {"measurement": "$origin[0]"}).measurement == "tele"
    assert one(said, BASE | {"measurement": "$"}).measurement == "$"


def test_the_record_names_the_device() -> None:
    assert one({"ts": TS, "x": 1}, BASE | {"device": "$origin[1]"}).device_id == "f2"
    assert one({"ts": TS, "x": 1}, BASE | {"device": "$key"}).device_id == "tele/f2/sensor"
    assert one({"ts": TS, "x": 1}, BASE | {"device": "$header.site"}).device_id == "ulm"
    assert why({"ts": TS, "x": 1}, BASE | {"device": "$header.bad"}).reason == "bad_type"
    keyless = msgspec.structs.replace(META, key=None)
    assert why({"ts": TS, "x": 1}, BASE | {"device": "$key"}, keyless).reason == "missing_field"
    assert why({"ts": TS, "x": 1}, BASE | {"device": "$origin[1]"}, keyless).reason == "missing_field"


def test_time_follows_the_policy() -> None:
    lenient = msgspec.structs.replace(META, setup=Setup(missing=True, unreadable=True))
    for said, reason in (({}, "missing_field"), ({"ts": None}, "missing_field"), ({"ts": "noon"}, "bad_timestamp")):
        whole = {"id": "d", "x": 1} | said
        assert why(whole).reason == reason
        reading = one(whole, BASE, lenient)
        assert (reading.time, reading.flags) == (RECEIVED, [RECEIVE_TIME])
    without = {"device": "id", "fields": {"x": "x"}}
    assert why({"id": "d", "x": 1}, without).reason == "missing_field"
    assert one({"id": "d", "x": 1}, without, lenient).flags == [RECEIVE_TIME]
    assert one({"id": "d", "x": 1, "ts": 1759667696}).time == AT


@pytest.mark.parametrize("value", [1, 1.0, -0.0, 2**53 + 1, 10**30, "text", "27.93 °C", True, False, None, ""])
def test_a_value_stays_what_it_is(value: object) -> None:
    assert repr(one({"id": "d", "ts": TS, "x": value}).values) == repr({"x": value})
    assert repr(one({"id": "d", "ts": TS, "a": [{"b": value}]}, BASE | {"fields": {"x": "a[0].b"}}).values) == repr(
        {"x": value}
    )


def test_every_scalar_that_nothing_else_uses() -> None:
    options = BASE | {
        "channel": "slot",
        "tags": {"line": "line", "site": "$.site", "deep": "meta.x"},
        "units": {"t": "@.unit"},
        "measurement": "@.kind",
    }
    said = {"id": "d", "ts": TS, "slot": 1, "line": 2, "site": 3, "unit": "K", "kind": "k", "meta": {"x": 1}}
    reading = one(said | {"t": 4, "u": "v", "list": [1], "object": {"a": 1}}, options)
    assert reading.values == {"t": 4, "u": "v"}
    assert reading.units == {"t": "K"}
    assert reading.tags == {"line": "2", "site": "3", "deep": "1"}


def test_every_scalar_of_an_object() -> None:
    options = BASE | {"fields": "data", "device": "data.id", "tags": "meta"}
    said = {"ts": TS, "top": 1, "data": {"id": "d", "a": 1, "b": True, "c": [1]}, "meta": {"s": "x", "n": 1, "z": None}}
    reading = one(said, options)
    assert reading.values == {"a": 1, "b": True}
    assert reading.tags == {"s": "x", "n": "1"}
    both = one(said, options | {"fields": {EVERY: "data", "first": "data.c[0]"}})
    assert both.values == {"a": 1, "b": True, "first": 1}


@pytest.mark.parametrize("fields", [{"a": "data.a", "b": "data.b"}, "data"])
def test_what_is_not_there_is_left_out_and_nothing_at_all_is_refused(fields: object) -> None:
    options = BASE | {"fields": fields}
    assert one({"id": "d", "ts": TS, "data": {"b": 1}}, options).values == {"b": 1}
    for rest in ({}, {"data": {}}, {"data": None}):
        assert why({"id": "d", "ts": TS} | rest, options) == Rejected("missing_field", "none of its fields is there")


def test_a_value_of_the_wrong_kind_rejects_itself() -> None:
    options = BASE | {"fields": {"a": "a", "b": "b"}, "tags": "meta"}
    reading, first, second = decode({"id": "d", "ts": TS, "a": [1], "b": 2, "meta": 5}, options)
    assert isinstance(reading, Reading)
    assert reading.values == {"b": 2}
    assert first == Rejected("bad_type", "a is an array, not a number, text, boolean or null")
    assert second == Rejected("bad_type", "meta is 5, not an object")


def test_tags_are_texts() -> None:
    deep = json.loads("[" * 40 + "]" * 40)
    options = BASE | {"fields": {"x": "x"}, "tags": {"a": "a", "b": "b", "c": "c", "d": "d", "e": "e"}}
    said = {"id": "d", "ts": TS, "x": 1, "a": 1.5, "b": True, "c": {"k": [1], "token": "hidden"}, "d": None, "e": deep}
    reading, rejected = decode(said, options)
    assert isinstance(reading, Reading)
    assert reading.tags == {"a": "1.5", "b": "true", "c": '{"k":[1]}'}
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "too_large"


def test_units() -> None:
    options = BASE | {"fields": "data", "units": {"a": "°C", "b": "$.unit", "c": "$", "d": "%", "e": "V"}}
    reading = one(
        {"id": "d", "ts": TS, "unit": "bar", "data": {"a": 1, "b": 2.5, "c": 3, "d": "x", "e": True}}, options
    )
    assert reading.units == {"a": "°C", "b": "bar", "c": "$"}
    for unit in (None, ""):
        assert one({"id": "d", "ts": TS, "unit": unit, "data": {"b": 1}}, options).units == {}
    for unit in (5, ["bar"], "x" * 257):
        assert why({"id": "d", "ts": TS, "unit": unit, "data": {"b": 1}}, options).reason == "bad_unit"


def test_texts_that_should_be_numbers() -> None:
    options = BASE | {"numbers": "parse", "units": {"a": "K", "b": "bar"}}
    said = {"id": "d", "ts": TS, "a": "27.93 °C", "b": " -1e3 ", "c": "high", "d": True, "e": 1, "f": ""}
    reading = one(said, options)
    assert repr(reading.values) == repr({"a": 27.93, "b": -1000.0, "c": None, "d": True, "e": 1, "f": None})
    assert reading.units == {"a": "°C", "b": "bar"}
    assert reading.raw == {"c": "high", "f": ""}
    assert reading.flags == [UNPARSABLE]
    strict = msgspec.structs.replace(META, setup=Setup(unparsable=False))
    kept, *refused = decode(said, options, strict)
    assert isinstance(kept, Reading)
    assert kept.values.keys() == {"a", "b", "d", "e"}
    assert not kept.flags
    assert [outcome.reason for outcome in refused if isinstance(outcome, Rejected)] == ["unparsable"] * 2
    assert why({"id": "d", "ts": TS, "a": "1e999"}, options).reason == "out_of_range"


@pytest.mark.parametrize("fields", ["*", {"x": "x"}, {EVERY: "deep", "x": "x"}])
@pytest.mark.parametrize("tags", [{}, "*", "deep", {"a": "deep"}])
def test_secrets_go_nowhere(fields: object, tags: object) -> None:
    hidden = "hunter2"
    said = {
        "id": "d",
        "ts": TS,
        "x": 1,
        "api_key": hidden,
        "deep": {"y": 1, "Password": hidden, "z": [{"token": hidden}]},
    }
    for changed in (said, said | {"id": {"secret": hidden}}, said | {"x": {"secret": hidden}}):
        assert hidden not in repr(decode(changed, BASE | {"fields": fields, "tags": tags}))


def test_readings_share_nothing() -> None:
    options = {
        "device": "id",
        "time": "$.ts",
        "fields": "*",
        "each": "items",
        "units": {"x": "V"},
        "tags": {"s": "$.s"},
    }
    first, second = decode({"ts": TS, "s": "u", "items": [{"id": 1, "x": 1}, {"id": 2, "x": 1}]}, options)
    for name in ("values", "units", "tags", "raw", "flags"):
        assert getattr(first, name) is not getattr(second, name)


# -- each --------------------------------------------------------------------------------------------------------------

EACH = {"device": "id", "time": "$.ts", "fields": "*", "each": "batch.items"}


def test_each_element_is_a_reading_and_a_bad_one_rejects_itself() -> None:
    items = [{"id": "a", "x": 1}, {"x": 2}, 5, {"id": "c", "x": 3, "site": "s"}]
    first, last, *refused = decode(
        {"ts": TS, "site": "Ulm", "batch": {"items": items}}, EACH | {"tags": {"site": "$.site"}}
    )
    assert isinstance(first, Reading)
    assert isinstance(last, Reading)
    assert (first.device_id, first.values, first.time) == ("a", {"x": 1}, AT)
    # The element's own `site` is not the payload's, which is used elsewhere.
    assert (last.values, last.tags) == ({"x": 3, "site": "s"}, {"site": "Ulm"})
    assert [outcome.error.partition(":")[0] for outcome in refused if isinstance(outcome, Rejected)] == [
        "batch.items[1]",
        "batch.items[2]",
    ]


def test_the_payload_may_be_the_array() -> None:
    options = {"device": "[0]", "time": "[1]", "fields": {"x": "[2]"}, "each": "$"}
    readings = decode([["a", TS, 1], ["b", TS, 2]], options)
    assert [(reading.device_id, reading.values) for reading in readings if isinstance(reading, Reading)] == [
        ("a", {"x": 1}),
        ("b", {"x": 2}),
    ]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "missing_field"),
        ({"batch": {"items": None}}, "missing_field"),
        ({"batch": {"items": {}}}, "bad_type"),
        ({"batch": {"items": "x"}}, "bad_type"),
        ({"batch": {"items": []}}, "empty"),
        ([], "missing_field"),
        ("x", "missing_field"),
        (b"{", "not_json"),
    ],
)
def test_an_array_that_is_none(said: object, reason: str) -> None:
    assert why(said, EACH).reason == reason


def test_thousands_of_bad_elements_are_a_few_letters() -> None:
    items = [{"id": "a", "x": 1}, *[{"x": 2}] * 5_000]
    reading, *refused = decode({"ts": TS, "batch": {"items": items}}, EACH)
    assert isinstance(reading, Reading)
    assert len(refused) == 6
    last = refused[-1]
    assert isinstance(last, Rejected)
    assert last.error.startswith("4995 more are refused, the last: batch.items[5000]: ")
    assert why({"ts": TS, "batch": {"items": items[1:]}}, EACH).error.endswith("; and 4999 more are refused")


def test_many_bad_parts_of_one_element_are_a_few_letters() -> None:
    options = BASE | {"fields": {f"f{number}": f"f{number}" for number in range(100)} | {"x": "x"}}
    said = {"id": "d", "ts": TS, "x": 1} | {f"f{number}": [] for number in range(100)}
    assert len(decode(said, options)) == 7


# -- anything ----------------------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=8,
)
written = st.sampled_from(["id", "ts", "a", "a.b", "a[0]", "@", "$", "$.a", "[0]", "$key", "$origin[1]", "$header.bad"])


@given(
    said=st.fixed_dictionaries({}, optional={"id": values, "ts": values, "a": values, "b": values}) | values,
    options=st.fixed_dictionaries(
        {
            "device": written,
            "fields": written | st.just("*") | st.dictionaries(st.just("*") | st.text(max_size=3), written),
        },
        optional={
            "time": written,
            "channel": written,
            "measurement": st.sampled_from(["m", "$.a", "@.a"]),
            "tags": written | st.dictionaries(st.text(max_size=3), written),
            "each": written,
            "numbers": st.sampled_from(["strict", "parse"]),
        },
    ),
)
@settings(deadline=None, max_examples=1_000)
def test_any_options_and_any_payload_give_an_answer(said: object, options: dict[str, Any]) -> None:
    try:
        speak = generic.decoder(generic.Options.model_validate(options))
    except ValidationError:
        return
    lenient = msgspec.structs.replace(META, setup=Setup(missing=True, unreadable=True))
    outcomes = speak(json.dumps(said).encode(), lenient)
    assert outcomes
    for outcome in outcomes:
        if isinstance(outcome, Reading):
            assert outcome.device_id
            assert outcome.measurement
            assert outcome.values
            assert "" not in outcome.values
            assert all(type(value) in {int, float, str, bool, type(None)} for value in outcome.values.values())
            assert all(type(value) is str for value in (*outcome.tags.values(), *outcome.units.values()))
        else:
            assert isinstance(outcome, Rejected)
            assert len(outcome.error) < 1_000


# -- as the stage uses it ----------------------------------------------------------------------------------------------


@dataclass
class Record:
    """A raw record."""

    value: bytes | None
    topic: str
    headers: Sequence[tuple[str, bytes | None]] = ()
    key: bytes | None = None
    offset: int = 7
    partition: int = 0
    timestamp: int = RECEIVED_MS


def stage(document: object) -> Decoder:
    return Decoder(inputs.parse(document, {}), partitions=1, stage="decode", version="1", max_message_bytes=1 << 20)


def test_topics_have_their_own_options_and_policies() -> None:
    made = stage(
        {
            "topics": {
                "factory": {
                    "dialect": "json",
                    "options": {
                        "device": "machine",
                        "time": "at",
                        "fields": "data",
                        "units": {"temperature": "$.unit"},
                        "numbers": "parse",
                    },
                    "policy": {
                        "metrics": {"temperature": {"unit": "°C", "low": -20, "high": 120}},
                        "device_id": {"prefix": "hall-"},
                    },
                },
                "meters": {
                    "dialect": "json",
                    "options": {"device": "$origin[1]", "fields": {"kwh": "[0]"}},
                    "policy": {"time": {"missing": "receive"}},
                },
            },
        }
    )
    factory = b'{"machine":1,"at":"2025-10-05T12:34:56Z","unit":"%s","data":{"temperature":%s,"mode":"auto"}}'
    dialect, (reading,) = made.outcomes(Record(factory % (b"K", b"300.15"), "factory"))
    assert dialect == "json"
    assert (reading.device_id, reading.time) == ("hall-device_1", AT)
    assert reading.values == {"temperature": 27.0, "mode": None}
    assert reading.units == {"temperature": "°C"}
    assert reading.raw == {"mode": "auto"}
    _, outcomes = made.outcomes(Record(factory % ("°C".encode(), b'"130 \xc2\xb0C"'), "factory"))
    assert [outcome.reason for outcome in outcomes if isinstance(outcome, Rejected)] == ["out_of_range"]
    _, (reading,) = made.outcomes(Record(b"[12.5]", "meters", [("mqtt-topic", b"meters/m-7")]))
    assert (reading.device_id, reading.values, reading.flags) == ("m-7", {"kwh": 12.5}, [RECEIVE_TIME])


def test_wrong_options_name_their_place_and_character() -> None:
    document = {"topics": {"factory": {"dialect": "json", "options": {"device": "a..b", "fields": {"x": "y["}}}}}
    with pytest.raises(inputs.InputsError) as caught:
        inputs.parse(document, {})
    first, second = caught.value.problems
    assert first.startswith("topics.factory.options.device: character 3: ")
    assert second.startswith("topics.factory.options.fields.x: character 2: ")


def test_without_options_the_topic_says_what_is_missing() -> None:
    with pytest.raises(inputs.InputsError, match=r"topics\.factory\.options\.device: Field required"):
        inputs.parse({"topics": {"factory": {"dialect": "json"}}}, {})
