from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.reading import Reading
from sinks.meta import apply_meta, meta_text

NOW = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)


def reading(**more: Any) -> Reading:
    return Reading(more.pop("measurement", "telemetry"), "dev-1", NOW, {"temperature": 1.0}, **more)


TEXTS = st.dictionaries(st.text(), st.text(), max_size=3)
VALUES = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False)
READINGS = st.builds(
    reading,
    measurement=st.sampled_from(["telemetry", "fire", "ünï"]),
    dialect=st.sampled_from(["telemetry", "fire", ""]),
    units=TEXTS,
    tags=TEXTS,
    flags=st.lists(st.text(), max_size=3),
    raw=st.dictionaries(st.text(), VALUES | st.text(), max_size=3),
)


@given(READINGS)
def test_what_a_reading_says_comes_back(said: Reading) -> None:
    back = apply_meta(meta_text(said), said.measurement)

    assert (said.dialect, said.units, said.tags) == (back["dialect"], back["units"], back["tags"])
    assert (said.flags, said.raw) == (back["flags"], back["raw"])
    assert [type(value) for value in said.raw.values()] == [type(value) for value in back["raw"].values()]


def test_a_plain_reading_says_nothing() -> None:
    assert not meta_text(reading(dialect="telemetry"))
    assert apply_meta("", "telemetry") == {"dialect": "telemetry", "units": {}, "tags": {}, "flags": [], "raw": {}}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"dialect": ""}, '{"dialect":""}'),
        ({"dialect": "fire"}, '{"dialect":"fire"}'),
        ({"dialect": "telemetry", "units": {"temperature": "°C"}}, '{"units":{"temperature":"°C"}}'),
        ({"dialect": "telemetry", "flags": ["clamped"], "raw": {"t": 1}}, '{"flags":["clamped"],"raw":{"t":1}}'),
    ],
)
def test_only_what_differs_from_the_default_is_said(more: dict[str, Any], text: str) -> None:
    assert text == meta_text(reading(**more))


def test_tags_that_are_stored_elsewhere_are_left_out() -> None:
    said = reading(dialect="telemetry", tags={"facility_id": "f1", "location": "roof"})

    assert meta_text(said, leave_out=frozenset({"facility_id"})) == '{"tags":{"location":"roof"}}'
    assert not meta_text(said, leave_out=frozenset({"facility_id", "location"}))
