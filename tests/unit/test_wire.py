"""Wire version 1, and the older shapes that `read` takes too."""

import re
from datetime import UTC, datetime, timedelta, timezone

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import wire
from schemas.reading import Reading, RejectedError
from tests.lab import drawn

AT = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
SMALL = b'{"v":1,"measurement":"m","device_id":"d","time":"2025-10-05T12:34:56.123456Z","values":{"t":1.5}}'

readings = drawn.readings(st.text(min_size=1), st.text(), 7_289_654_400_000_000)


@given(reading=readings)
def test_what_is_written_is_read(reading: Reading) -> None:
    again = wire.read(wire.write(reading))
    assert repr(again) == repr(reading)  # repr also tells 1 from 1.0 and True
    assert again == reading
    assert again.time.tzinfo is UTC


def test_empty_members_are_left_out() -> None:
    reading = Reading("m", "d", AT, {"t": 1.5})
    assert wire.write(reading) == SMALL
    assert wire.read(SMALL) == reading


def test_another_zone_becomes_utc() -> None:
    local = Reading("m", "d", AT.astimezone(timezone(timedelta(hours=9))), {"t": 1.5})
    again = wire.read(wire.write(local))
    assert again.time == AT
    assert again.time.tzinfo is UTC


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff",
        SMALL[:-1],
        SMALL.replace(b'"v":1', b'"v":2'),
        SMALL.replace(b'"d"', b"1"),
        SMALL.replace(b'"d"', b'"\xff"'),
        SMALL.replace(b"456Z", b"456"),
        SMALL.replace(b"2025-10-05T12:34:56.123456Z", b"yesterday"),
        SMALL.replace(b"1.5", b"NaN"),
        SMALL.replace(b"1.5", b"[1]"),
        SMALL.replace(b'{"t":1.5}', b"{}"),
        SMALL.replace(b'"d"', b'""'),
    ],
)
def test_anything_else_is_rejected(value: bytes | None) -> None:
    with pytest.raises(RejectedError) as caught:
        wire.read(value)
    assert caught.value.rejected.reason == "wire"


def test_unknown_members_of_a_later_minor_version_are_passed_over() -> None:
    assert wire.read(SMALL[:-1] + b',"later":[1]}') == wire.read(SMALL)


OLDER = {"timestamp": "2025-10-05T12:34:56.123456", "mac_address": "e4fd45f654be", "value": "27.93 °C"}


def test_an_older_shape_is_read() -> None:
    reading = Reading("iot", "f2-e4fd45f654be", AT, {"unknown": 27.93}, units={"unknown": "°C"}, dialect="decoded")
    again = wire.read(msgspec.json.encode(OLDER))
    assert repr(again) == repr(reading)
    assert wire.read(wire.write(again)) == again


def test_an_older_shape_is_believed_whenever_it_is_from() -> None:
    assert wire.read(msgspec.json.encode(OLDER | {"timestamp": "2199-12-31T00:00:00Z"})).time.year == 2199


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"mac_address": None}, "none of mac_address, device_id, deviceid says the device"),
        ({"timestamp": "noon"}, "timestamp is 'noon'"),
        ({"timestamp": None}, "timestamp is missing"),
        ({"value": [1]}, "value is an array"),
        ({"v": 1}, "missing required field `measurement`"),
        ({"v": 2}, "Invalid value 2"),
        ({"v": None}, "Expected `int`"),
    ],
)
def test_the_error_says_what_is_wrong(said: dict[str, object], why: str) -> None:
    with pytest.raises(RejectedError, match=re.escape(why)) as caught:
        wire.read(msgspec.json.encode(OLDER | said))
    assert caught.value.rejected.reason == "wire"


anything = st.recursive(
    drawn.values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
fields = st.sampled_from([*OLDER, "v", "measurement", "device_id", "time", "values", "pin", "topic", "unit", "raw"])


@given(value=st.binary() | st.dictionaries(fields, anything).map(lambda said: msgspec.json.encode(OLDER | said)))
def test_any_record_is_read_or_rejected(value: bytes) -> None:
    rejected = None
    try:
        reading = wire.read(value)
    except RejectedError as error:
        rejected = error.rejected
    if rejected is None:
        assert repr(wire.read(wire.write(reading))) == repr(reading)
    else:
        assert rejected.reason == "wire"
        assert len(rejected.error) < 500


def test_headers() -> None:
    source = b"raw_iot_data/3/17/0"
    headers = wire.headers(source, 1759667696123)
    assert headers == [
        ("iotflow-v", b"1"),
        ("iotflow-src", b"raw_iot_data/3/17/0"),
        ("iotflow-ingest-ms", b"1759667696123"),
    ]
    assert wire.ingest_ms(headers, 5) == 1759667696123


@pytest.mark.parametrize("value", [None, b"", b"-1", b"soon", b"1.5"])
def test_ingest_ms_falls_back(value: bytes | None) -> None:
    assert wire.ingest_ms([("other", b"1"), ("iotflow-ingest-ms", value)], 5) == 5
