"""CBOR and MessagePack bodies: what they hold becomes the same JSON or is refused; nothing stalls, nothing explodes."""

import itertools
import math
import tracemalloc
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any
from uuid import UUID

import cbor2
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import bodies, dialects
from schemas.dialects import Meta
from schemas.payload import DEPTH
from schemas.reading import RejectedError
from schemas.reasons import REASONS

ENCODE: dict[str, Callable[[Any], bytes]] = {"cbor": cbor2.dumps, "msgpack": msgspec.msgpack.encode}
BOTH = pytest.mark.parametrize("body", ["cbor", "msgpack"])

texts = st.text(st.characters(exclude_categories=["Cs"]))
floats = st.floats(allow_nan=False, allow_infinity=False)
small = st.integers(-(2**63), 2**64 - 1)
values = st.recursive(
    st.none() | st.booleans() | small | floats | texts,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(texts, inner, max_size=6),
    max_leaves=20,
)


def json(body: str, payload: bytes) -> Any:
    """What the JSON that a payload becomes says, its types kept apart."""
    return repr(msgspec.json.decode(bodies.as_json(body, payload)))


def reason(body: str, payload: bytes) -> str:
    """Why a payload is refused."""
    with pytest.raises(RejectedError) as caught:
        bodies.as_json(body, payload)
    assert caught.value.rejected.reason in REASONS
    assert len(caught.value.rejected.error) < 300
    return caught.value.rejected.reason


def check(body: str, payload: bytes) -> None:
    """JSON, or a reason, is all that a payload may give."""
    try:
        made = bodies.as_json(body, payload)
    except RejectedError:
        reason(body, payload)
        return
    msgspec.json.decode(made)


# -- what becomes the same ---------------------------------------------------------------------------------------------


@BOTH
@given(value=values)
@settings(deadline=None)
def test_what_json_holds_stays_the_same(body: str, value: Any) -> None:
    assert json(body, ENCODE[body](value)) == repr(value)


@given(st.integers(-(10**4000), 10**4000) | st.integers(-(2**70), 2**70))
@settings(deadline=None)
def test_integers_of_any_size_stay_integers(value: int) -> None:
    assert json("cbor", cbor2.dumps({"n": value})) == repr({"n": value})


def test_an_integer_that_python_cannot_write_is_too_large() -> None:
    assert json("cbor", cbor2.dumps(10**4299 - 1)) == "9" * 4299
    assert json("cbor", cbor2.dumps(1 - 10**4299)) == "-" + "9" * 4299
    assert reason("cbor", cbor2.dumps(10**4299)) == "too_large"
    assert reason("cbor", cbor2.dumps(-(10**4299))) == "too_large"
    assert reason("cbor", cbor2.dumps([{"n": 1 << 8_000_000}])) == "too_large"


@BOTH
@pytest.mark.parametrize(
    ("value", "text"), [(b"", ""), (b"a", "YQ=="), (b"\xfb\xff\xfe", "+//+"), (b"\0" * 300, "A" * 400)]
)
@pytest.mark.parametrize(
    "within", [lambda x: x, lambda x: {"a": x}, lambda x: {"a": {"b": 1, "c": [x]}}, lambda x: [x, 1.5]]
)
def test_byte_strings_are_base64_text(body: str, value: bytes, text: str, within: Callable[[Any], Any]) -> None:
    assert json(body, ENCODE[body](within(value))) == repr(within(text))


@pytest.mark.parametrize(
    ("payload", "said"),
    [
        ("d6ff00000001", "1970-01-01T00:00:01Z"),
        ("d6ffffffffff", "2106-02-07T06:28:15Z"),
        ("d7ffee6b27fc68e265f0", "2025-10-05T12:34:56.999999Z"),
        ("d7ff00001f3c68e265f0", "2025-10-05T12:34:56.000001Z"),
        ("c70cff000007cf0000000000000005", "1970-01-01T00:00:05.000001Z"),
        ("c70cff3b9ac9ffffffffffffffffff", "1969-12-31T23:59:59.999999Z"),
        ("c8000cff000000010000000000000005", "1970-01-01T00:00:05Z"),
        ("c900000004ff00000001", "1970-01-01T00:00:01Z"),
    ],
)
def test_messagepacks_times_are_cut_to_the_microsecond(payload: str, said: str) -> None:
    assert json("msgpack", bytes.fromhex(payload)) == repr(said)
    assert json("msgpack", b"\x82\xa1t" + bytes.fromhex(payload) + b"\xa1x\x01") == repr({"t": said, "x": 1})


@BOTH
@given(moment=st.datetimes(timezones=st.just(UTC)))
@settings(deadline=None)
def test_times_are_iso_text_in_utc(body: str, moment: datetime) -> None:
    said = msgspec.json.decode(bodies.as_json(body, ENCODE[body]({"a": {"t": [moment]}})))["a"]["t"][0]
    assert said.endswith("Z")
    assert datetime.fromisoformat(said) == moment


def test_cbors_times_in_seconds_and_other_zones_are_iso_text_in_utc() -> None:
    assert json("cbor", bytes.fromhex("c11a514b67b0")) == "'2013-03-21T20:04:00Z'"
    assert json("cbor", bytes.fromhex("c1fb41d452d9ec200000")) == "'2013-03-21T20:04:00.500000Z'"
    there = datetime(2025, 10, 5, 21, 34, 56, tzinfo=timezone(timedelta(hours=9)))
    assert json("cbor", cbor2.dumps(there)) == "'2025-10-05T12:34:56Z'"


@BOTH
def test_of_a_key_that_comes_twice_the_last_counts(body: str) -> None:
    payload = {"cbor": "a3616101616201616102", "msgpack": "83a16101a16201a16102"}[body]
    assert json(body, bytes.fromhex(payload)) == repr({"a": 2, "b": 1})


def test_cbor_may_say_that_it_is_cbor() -> None:
    assert json("cbor", bytes.fromhex("d9d9f7") + cbor2.dumps({"a": [1]})) == "{'a': [1]}"
    assert json("cbor", bytes.fromhex("9f01bf6161f5ffff")) == "[1, {'a': True}]"
    assert json("cbor", bytes.fromhex("7f61616162ff")) == "'ab'"


# -- what is refused ---------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "within", [lambda x: x, lambda x: {"a": x}, lambda x: {"a": {"b": 1, "c": [x]}}, lambda x: [x]]
)
def test_numbers_that_are_not_finite(body: str, value: float, within: Callable[[Any], Any]) -> None:
    assert reason(body, ENCODE[body](within(value))) == "not_finite"


@BOTH
@pytest.mark.parametrize("key", [1, -1, 1.5, True, None, b"a", (1, 2), ("a",)])
@pytest.mark.parametrize("within", [lambda x: x, lambda x: {"a": x}, lambda x: [x]])
def test_keys_that_are_no_text(body: str, key: Any, within: Callable[[Any], Any]) -> None:
    assert reason(body, ENCODE[body](within({key: 1}))) == "bad_type"


@pytest.mark.parametrize(
    "value",
    [
        cbor2.undefined,
        cbor2.CBORSimpleValue(99),
        Decimal("1.5"),
        Fraction(1, 3),
        UUID(int=5),
        {1, 2},
        1 + 2j,
        cbor2.CBORTag(6, 1),
        cbor2.CBORTag(24, b"\x01"),
        {"a": [cbor2.CBORTag(4242, "x")]},
    ],
    ids=repr,
)
def test_what_cbor_has_besides(value: Any) -> None:
    assert reason("cbor", cbor2.dumps(value)) == "bad_type"


def test_every_tag_but_those_of_times_and_integers_is_refused() -> None:
    """Whatever cbor2 knows to make of one, now or in its next version."""
    kept = {0: "2025-10-05T12:34:56Z", 1: 0, 2: b"\x01", 3: b"\x01"}
    for tag in range(70_000):
        inner = [cbor2.dumps(item) for item in ("a", 1, b"a", [1, 2], ["a", 1])]
        if tag in kept:
            bodies.as_json("cbor", cbor2.dumps(cbor2.CBORTag(tag, kept[tag])))
            continue
        head = b"\xda" + tag.to_bytes(4, "big")
        for item in inner[: 5 if tag < 300 else 1]:
            assert reason("cbor", b"\x81" + head + item) in {"bad_type", "undecodable"}


@pytest.mark.parametrize("head", ["d4", "d5", "d6", "d7", "d8", "c7", "c8", "c9"])
def test_messagepacks_extensions(head: str) -> None:
    size = {"c7": b"\x01", "c8": b"\0\x01", "c9": b"\0\0\0\x01"}.get(head, b"")
    held = {"d5": 2, "d6": 4, "d7": 8, "d8": 16}.get(head, 1)
    payload = bytes.fromhex(head) + size + b"\x05" + b"\0" * held
    assert reason("msgpack", payload) == "bad_type"
    assert reason("msgpack", b"\x81\xa1a" + payload) == "bad_type"


@BOTH
@given(value=values, more=st.binary(min_size=1, max_size=8))
@settings(deadline=None)
def test_bytes_behind_the_item(body: str, value: Any, more: bytes) -> None:
    assert reason(body, ENCODE[body](value) + more) == "undecodable"


@BOTH
@given(value=values, data=st.data())
@settings(deadline=None)
def test_a_payload_that_is_cut(body: str, value: Any, data: st.DataObject) -> None:
    payload = ENCODE[body](value)
    assert reason(body, payload[: data.draw(st.integers(0, len(payload) - 1))]) == "undecodable"


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        ("cbor", "62fffe"),
        ("cbor", "63eda080"),
        ("cbor", "a162fffe01"),
        ("cbor", "a1616162fffe"),
        ("msgpack", "a2fffe"),
        ("msgpack", "a3eda080"),
        ("msgpack", "81a2fffe01"),
        ("msgpack", "81a161a2fffe"),
        ("msgpack", "81a16191a2fffe"),
        ("msgpack", "82a16190a162a2fffe"),
        ("cbor", "ff"),
        ("cbor", "1c"),
        ("msgpack", "c1"),
        ("msgpack", "81a161c1"),
        ("cbor", "c06161"),
        ("cbor", "c1f97e00"),
        ("cbor", "c11b7fffffffffffffff"),
        ("cbor", "c0733230313330332d32315432303a30343a3030"),
    ],
)
def test_what_is_not_of_the_encoding(body: str, payload: str) -> None:
    assert reason(body, bytes.fromhex(payload)) == "undecodable"


@pytest.mark.parametrize(
    "payload",
    [
        "c70cff000000007fffffffffffffff",
        "c70cff000000008000000000000000",
        "c70cff0000000000000fffffffffff",
        "c70cff3b9aca000000000000000005",
        "d7ffffffffff00000000",
        "81a161d7ffffffffff00000000",
        "d4ff00",
        "d8ff" + "00" * 16,
        "c700ff",
    ],
)
def test_a_time_that_messagepack_can_say_and_no_calendar_has(payload: str) -> None:
    assert reason("msgpack", bytes.fromhex(payload)) == "bad_timestamp"


@BOTH
@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: {"a": x}])
def test_depth_is_bounded(body: str, wrap: Callable[[Any], Any]) -> None:
    value: Any = 1
    for _ in range(DEPTH):
        value = wrap(value)
    assert json(body, ENCODE[body](value)) == repr(value)
    for _ in range(60):
        value = wrap(value)
        assert reason(body, ENCODE[body](value)) == "too_large"
    head = {"cbor": {list: b"\x81", dict: b"\xa1\x61a"}, "msgpack": {list: b"\x91", dict: b"\x81\xa1a"}}[body]
    assert reason(body, head[type(value)] * 300_000) == "too_large"


# -- what is made to hurt ----------------------------------------------------------------------------------------------


def _colliding(number: int) -> list[list[int]]:
    """Arrays with one hash: Python's of integers and tuples are no secret."""
    same = [5 + (2**61 - 1) * step for step in range(8)]
    return [list(each) for each in itertools.islice(itertools.product(same, repeat=6), number)]


def _map_of(body: str, keys: list[Any]) -> bytes:
    head = {"cbor": b"\xba", "msgpack": b"\xdf"}[body] + len(keys).to_bytes(4, "big")
    return head + b"".join(ENCODE[body](key) + b"\0" for key in keys)


#: The payload that must not take much, and what it must give; `None` where it may be taken as it is.
HOSTILE: dict[str, tuple[str, bytes, str | None]] = {
    "cbor keys that collide": ("cbor", _map_of("cbor", _colliding(20_000)), "bad_type"),
    "cbor integers that collide": ("cbor", _map_of("cbor", [5 + (2**61 - 1) * n for n in range(20_000)]), "bad_type"),
    "cbor elements that collide": ("cbor", b"\xd9\x01\x02" + cbor2.dumps(_colliding(20_000)), "bad_type"),
    "msgpack keys that collide": ("msgpack", _map_of("msgpack", _colliding(20_000)), "bad_type"),
    "msgpack keys that collide inside": ("msgpack", b"\x91" + _map_of("msgpack", _colliding(20_000)), "bad_type"),
    "a cycle": ("cbor", bytes.fromhex("d81c81d81d00"), "bad_type"),
    "references to references": (
        "cbor",
        b"\x98\x1e" + b"\xd8\x1c\x80" + b"".join(b"\xd8\x1c\x82" + b"\xd8\x1d" + bytes([n]) * 2 for n in range(23)),
        "bad_type",
    ),
    "a text that is referred to": (
        "cbor",
        b"\xd9\x01\x00\x9f\x78\xc8" + b"a" * 200 + b"\xd8\x19\0" * 100_000 + b"\xff",
        "bad_type",
    ),
    "a regular expression": ("cbor", b"\xd8\x23" + cbor2.dumps("(((a{1,5000}){1,5000}){1,5000})"), "bad_type"),
    "an e-mail": ("cbor", b"\xd8\x24" + cbor2.dumps("Content-Type: multipart/mixed; boundary=a\n" * 9999), "bad_type"),
    "a bigfloat": ("cbor", bytes.fromhex("c5821a0fffffff01"), "bad_type"),
    "a decimal": ("cbor", bytes.fromhex("c4821a0fffffff01"), "bad_type"),
    "a fraction": ("cbor", b"\xd8\x1e\x82" + cbor2.dumps(3**200_000) + cbor2.dumps(2**300_000), "bad_type"),
    "tags of tags": ("cbor", b"\xc1" * 500_000, "too_large"),
    "endless arrays": ("cbor", b"\x9f" * 500_000, "too_large"),
    **{
        f"cbor says it has {size} more, {head:02x}": ("cbor", bytes([head]) + size + b"\x61a", "undecodable")
        for head, size in itertools.product([0x5B, 0x7B, 0x9B, 0xBB], [b"\x7f" + b"\xff" * 7, b"\0\0\0\1" + b"\0" * 4])
    },
    **{
        f"msgpack says it has more, {head:02x}": ("msgpack", bytes([head]) + b"\xff" * 4 + b"\x01", "undecodable")
        for head in [0xC6, 0xC9, 0xDB, 0xDD]
    },
    "msgpack arrays that say so": ("msgpack", b"\xdd\x0f\xff\xff\xff" * 20, "undecodable"),
    "cbor arrays that say so": ("cbor", b"\x9a\x0f\xff\xff\xff" * 20, "undecodable"),
    "cbor zeros": ("cbor", b"\x9a" + (200_000).to_bytes(4, "big") + b"\0" * 200_000, None),
    "msgpack zeros": ("msgpack", b"\xdd" + (200_000).to_bytes(4, "big") + b"\0" * 200_000, None),
    "cbor empty maps": ("cbor", b"\x9a" + (200_000).to_bytes(4, "big") + b"\xa0" * 200_000, None),
    "msgpack empty maps": ("msgpack", b"\xdd" + (200_000).to_bytes(4, "big") + b"\x80" * 200_000, None),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_payload_takes_neither_time_nor_memory(name: str) -> None:
    """What is bounded is seen at the end: 200 kB of empty maps are 200,000 objects, and nothing here makes more."""
    body, payload, why = HOSTILE[name]
    tracemalloc.start()
    try:
        if why is None:
            bodies.as_json(body, payload)
        else:
            assert reason(body, payload) == why
        assert tracemalloc.get_traced_memory()[1] < 1_000_000 + 250 * len(payload)
    finally:
        tracemalloc.stop()


@BOTH
@given(payload=st.binary())
@settings(deadline=None, max_examples=1000)
def test_any_bytes_give_json_or_a_reason(body: str, payload: bytes) -> None:
    check(body, payload)


@BOTH
@given(value=values, data=st.data())
@settings(deadline=None, max_examples=300)
def test_a_damaged_payload_gives_json_or_a_reason(body: str, value: Any, data: st.DataObject) -> None:
    payload = bytearray(ENCODE[body](value))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    check(body, bytes(payload))


@BOTH
def test_an_error_shows_nothing_of_a_value(body: str) -> None:
    for value in (
        {"api_key": [b"hunter2", math.nan]},
        {"api_key": ["hunter2", math.nan]},
        {1: "hunter2"},
        {b"hunter2": 1},
    ):
        with pytest.raises(RejectedError) as caught:
            bodies.as_json(body, ENCODE[body](value))
        assert "hunter2" not in str(caught.value)
    for payload in (
        b"\xc0" + cbor2.dumps("hunter2"),
        b"\xa1" + cbor2.dumps("api_key") + b"\xc0" + cbor2.dumps("hunter2"),
    ):
        with pytest.raises(RejectedError) as caught:
            bodies.as_json("cbor", payload)
        assert "hunter2" not in str(caught.value)


# -- which encoding it is ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "header", "payload"),
    [
        ("", b"application/cbor", cbor2.dumps({"a": 1})),
        ("json", b" Application/CBOR ; charset=x", cbor2.dumps({"a": 1})),
        ("cbor", b"application/msgpack", msgspec.msgpack.encode({"a": 1})),
        ("cbor", b"application/x-msgpack", msgspec.msgpack.encode({"a": 1})),
        ("", b"application/vnd.msgpack", msgspec.msgpack.encode({"a": 1})),
        ("cbor", b"text/plain", cbor2.dumps({"a": 1})),
        ("cbor", None, cbor2.dumps({"a": 1})),
        ("", b"text/plain", b'{"a":1}'),
    ],
)
def test_a_header_says_the_encoding_over_the_topic(body: str, header: bytes | None, payload: bytes) -> None:
    named = bodies.named([("x", b"application/cbor"), ("Content-Type", header)], body)
    assert bodies.plain(payload, named) == b'{"a":1}'


@pytest.mark.parametrize("header", [b"application/json", b"Application/JSON; charset=utf-8", b"text/plain", None])
def test_a_header_does_not_take_a_frame_away(header: bytes | None) -> None:
    """Proxies say JSON of whatever they are given."""
    assert bodies.named([("content-type", header)], "confluent") == "confluent"
    assert bodies.named([("content-type", b"application/json")], "cbor") == "json"
    assert bodies.named([("content-type", b"application/cbor")], "confluent") == "cbor"


@pytest.mark.parametrize("body", ["", "json"])
def test_json_is_left_as_it_is(body: str) -> None:
    assert bodies.plain(b"\xff anything", body) == b"\xff anything"


def test_a_framed_payload_without_a_registry_is_refused() -> None:
    with pytest.raises(RejectedError) as caught:
        bodies.plain(b"\0\0\0\0\1", "confluent")
    assert caught.value.rejected.reason == "unknown_schema"


@BOTH
@pytest.mark.parametrize("name", ["telemetry", "fire"])
def test_a_dialect_reads_the_same_from_it(body: str, name: str) -> None:
    example = dialects.load()[name].EXAMPLES[0]
    payload = ENCODE[body](msgspec.json.decode(example.payload))
    meta = Meta("raw", None, (), 1_759_622_400_000)
    assert list(dialects.speaker(name)(bodies.plain(payload, body), meta)) == list(example.gives)
