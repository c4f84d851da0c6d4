"""Spans of time and moments as a person types them."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import duration

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


@given(number=st.integers(1, 1_000_000), unit=st.sampled_from(sorted(UNITS)))
def test_a_number_and_a_unit(number: int, unit: str) -> None:
    assert duration.parse(f"{number}{unit}") == timedelta(seconds=number * UNITS[unit])


@pytest.mark.parametrize(
    "text", ["", "7", "d", "0d", "-1d", "+1d", "1.5h", "1 d", " 1d", "1d ", "1D", "1d12h", "1e3s", "٣d", "1234567890s"]
)
def test_nothing_else_is_a_span(text: str) -> None:
    with pytest.raises(ValueError, match="number above 0 with a unit"):
        duration.parse(text)


def test_a_span_longer_than_any_calendar() -> None:
    with pytest.raises(ValueError, match="longer than any calendar"):
        duration.parse("999999999w")
    with pytest.raises(ValueError, match="before any calendar"):
        duration.moment("3000w", datetime(1, 2, 3, tzinfo=UTC))


def test_a_moment_is_a_span_before_now_or_a_time() -> None:
    assert duration.moment("7d", NOW) == NOW - timedelta(days=7)
    assert duration.moment("2026-01-02T03:04:05+01:00", NOW) == datetime(2026, 1, 2, 2, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize("text", ["yesterday", "2026-01-02", "2026-01-02T03:04:05"])
def test_what_is_neither_says_how_both_are_written(text: str) -> None:
    with pytest.raises(ValueError, match="12h, 7d or 2w"):
        duration.moment(text, NOW)
