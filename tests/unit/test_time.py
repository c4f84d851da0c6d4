"""Device times: what is a time, what is not, and that none is rounded or made up."""

from datetime import UTC, datetime, timedelta, timezone
from fractions import Fraction
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import time
from schemas.reading import RejectedError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
AT = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)
LAST = datetime(2200, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)
SECONDS = 1_759_667_696


def between(first: datetime, last: datetime) -> st.SearchStrategy[datetime]:
    return st.integers(micros(first), micros(last)).map(lambda count: EPOCH + timedelta(microseconds=count))


def micros(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(microseconds=1)


moments = between(EPOCH, LAST)
inside = between(EPOCH + timedelta(days=1), LAST - timedelta(days=1))
# Before this, a number of ms, µs or ns is smaller than the largest of the coarser unit.
later = between(datetime(1973, 3, 4, tzinfo=UTC), LAST)
offsets = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2025-10-05T12:34:56Z", AT),
        ("2025-10-05 12:34:56Z", AT),
        ("2025-10-05t12:34:56z", AT),
        ("2025-10-05T12:34:56+00:00", AT),
        ("2025-10-05T12:34:56-00:00", AT),
        ("2025-10-05T21:34:56+09:00", AT),
        ("2025-10-05T21:34:56+0900", AT),
        ("2025-10-05T21:34:56+09", AT),
        ("2025-10-05 21:34:56 +09:00", AT),
        ("2025-10-05T07:04:56-05:30", AT),
        ("2025-10-05T12:34Z", AT.replace(second=0)),
        ("2025-10-05T12:34:56.5Z", AT.replace(microsecond=500_000)),
        ("2025-10-05T12:34:56,5Z", AT.replace(microsecond=500_000)),
        ("2025-10-05T12:34:56.123456Z", AT.replace(microsecond=123_456)),
        ("2025-10-05T12:34:56.1234569Z", AT.replace(microsecond=123_456)),
        ("2025-10-05T12:34:56.999999999Z", AT.replace(microsecond=999_999)),
        ("2025-10-05t21:34:56.9999999 +09:00", AT.replace(microsecond=999_999)),
        ("1970-01-01T00:00:00Z", EPOCH),
        ("2200-12-31T23:59:59.9999999Z", datetime(2200, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        (0, EPOCH),
        (SECONDS, AT),
        ("2025/10/05 12:34:56Z", AT),
        ("2025.10.05_12:34:56Z", AT),
        ("20251005T123456Z", AT),
        ("20251005 123456,5 +0000", AT.replace(microsecond=500_000)),
        ("2025-10-05 12:34:56 UTC", AT),
        ("2025-10-05 12:34:56 GMT", AT),
        ("2025-10-05 14:34:56 +02", AT),
        ("1759667696", AT),
        ("1759667696.5", AT.replace(microsecond=500_000)),
        ("1759667696123", AT.replace(microsecond=123_000)),
        ("1759667696123456", AT.replace(microsecond=123_456)),
        ("1759667696123456789", AT.replace(microsecond=123_456)),
        (float(SECONDS), AT),
        (SECONDS + 0.5, AT.replace(microsecond=500_000)),
        (1684681990.5434, datetime(2023, 5, 21, 15, 13, 10, 543_400, tzinfo=UTC)),
        (SECONDS * 1_000 + 7, AT.replace(microsecond=7_000)),
        (SECONDS * 1_000 + 7.25, AT.replace(microsecond=7_250)),
        (SECONDS * 1_000_000 + 7, AT.replace(microsecond=7)),
        (SECONDS * 1_000_000_000 + 7_999, AT.replace(microsecond=7)),
    ],
)
def test_parse(value: object, expected: datetime) -> None:
    moment = time.parse(value)
    assert moment == expected
    assert moment.tzinfo is UTC


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        [],
        {"seconds": 1},
        b"2025-10-05T12:34:56Z",
        "",
        "now",
        "12:34:56Z",
        "2025-10-05",
        "2025-10-05Z",
        "20251005",
        "17596676",
        "2025-10-05T12.5Z",
        "2025-10/05T12:34:56Z",
        "2025-10-05X12:34:56Z",
        "2025-10-05T12:34:56",
        "2025-10-05 12:34:56",
        "2025-10-05T12:34:60Z",
        "2025-10-05T25:00:00Z",
        "2025-13-05T12:34:56Z",
        "2025-02-29T12:34:56Z",
        "2025-10-05T12:34:56Z ",
        " 2025-10-05T12:34:56Z",
        "2025-10-05T12:34:56+25:00",
        "\uff12025-10-05T12:34:56Z",
        "2025-10-05T12:34:56\ud800",
        "1969-12-31T23:59:59.999999Z",
        "1970-01-01T00:00:00+00:01",
        "2201-01-01T00:00:00Z",
        "0001-01-01T00:00:00+23:00",
        "9999-12-31T23:59:59-23:00",
        -1,
        -1e-9,
        7_300_000_000,
        99_999_999_999,
        10**19,
        10**400,
        1e300,
        float("nan"),
        float("inf"),
        float("-inf"),
    ],
)
def test_anything_else_is_rejected(value: object) -> None:
    with pytest.raises(RejectedError) as caught:
        time.parse(value)
    assert caught.value.rejected.reason == "bad_timestamp"
    assert caught.value.rejected.error.startswith("timestamp is ")


def test_naive_is_utc_only_where_it_is_said() -> None:
    assert time.parse("2025-10-05 12:34:56", zone=UTC) == AT
    assert time.parse("2025-10-05T21:34:56+09:00", zone=UTC) == AT
    with pytest.raises(RejectedError, match="measured_at is '2025-10-05 12:34:56', which has no zone"):
        time.parse("2025-10-05 12:34:56", field="measured_at")


def test_years_are_settable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "FIRST_YEAR", 2020)
    monkeypatch.setattr(time, "LAST_YEAR", 2024)
    with pytest.raises(RejectedError, match=r"2020\.\.2024"):
        time.parse("2025-10-05T12:34:56Z")
    with pytest.raises(RejectedError):
        time.parse("2019-12-31T23:59:59Z")
    assert time.parse("2020-01-01T00:00:00Z").year == 2020


@given(moment=moments, separator=st.sampled_from("T "))
def test_iso_text_comes_back(moment: datetime, separator: str) -> None:
    text = moment.isoformat(separator)
    assert time.parse(text) == moment
    assert time.parse(text.replace("+00:00", "Z")) == moment
    assert time.parse(text.removesuffix("+00:00"), zone=UTC) == moment


@given(moment=inside, zone=offsets)
def test_iso_text_with_an_offset_comes_back(moment: datetime, zone: timezone) -> None:
    assert time.parse(moment.astimezone(zone).isoformat()) == moment


@given(moment=moments, more=st.text("0123456789", min_size=1, max_size=30))
def test_digits_beyond_a_microsecond_are_cut_off(moment: datetime, more: str) -> None:
    assert time.parse(f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06d}{more}Z") == moment


@given(moment=moments)
def test_seconds_with_a_fraction_come_back(moment: datetime) -> None:
    assert time.parse(moment.timestamp()) == moment
    assert time.parse(float(Fraction(micros(moment), 1_000_000))) == moment


@given(moment=later, nanos=st.integers(0, 999))
def test_numbers_of_other_units_come_back(moment: datetime, nanos: int) -> None:
    count = micros(moment)
    assert time.parse(count) == moment
    assert time.parse(count * 1_000 + nanos) == moment
    assert time.parse(count // 1_000) == moment.replace(microsecond=moment.microsecond // 1_000 * 1_000)
    assert time.parse(count // 1_000_000) == moment.replace(microsecond=0)


@given(value=st.one_of(st.text(), st.integers(), st.floats(), st.from_regex(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d.*")))
def test_any_value_is_a_time_or_rejected(value: object) -> None:
    try:
        moment = time.parse(value)
    except RejectedError as error:
        rejected = error.rejected
    else:
        assert moment.tzinfo is UTC
        assert 1970 <= moment.year <= 2200
        return
    assert rejected.reason == "bad_timestamp"
    assert len(rejected.error) < 200


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2025-07-01 12:00:00", 10),
        ("2025-01-01 12:00:00", 11),
        ("2025-10-26 02:30:00", 0),  # shown twice: the first
        ("2025-03-30 02:30:00", 1),  # skipped: read with the offset before
        ("2025-07-01 12:00:00Z", 12),
    ],
)
def test_a_naive_time_is_in_the_zone_that_is_set(text: str, hour: int) -> None:
    found = time.parse(text, zone=ZoneInfo("Europe/Berlin"))
    assert found.tzinfo is UTC
    assert found.hour == hour
