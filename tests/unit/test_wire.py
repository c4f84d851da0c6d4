"""Wire version 1."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import wire
from schemas.reading import Reading, RejectedError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AT = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
SMALL = b'{"v":1,"measurement":"m","device_id":"d","time":"2025-10-05T12:34:56.123456Z","values":{"t":1.5}}'

names = st.text(min_size=1)
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
readings = st.builds(
    Reading,
    measurement=names,
    device_id=names,
    time=st.integers(0, 7_289_654_400_000_000).map(lambda micros: EPOCH + timedelta(microseconds=micros)),
    values=st.dictionaries(names, values, min_size=1),
    channel=st.text(),
    units=st.dictionaries(names, st.text()),
    tags=st.dictionaries(names, st.text()),
    raw=st.dictionaries(names, values),
    dialect=st.text(),
    flags=st.lists(st.text()),
)


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
