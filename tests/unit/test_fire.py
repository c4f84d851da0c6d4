"""The fire dialect, value by value."""

import json
from datetime import UTC, datetime

import pytest

from schemas import dialects
from schemas.dialects import Meta, fire
from schemas.reading import CLAMPED, Reading, Rejected

META = Meta("raw_fire", None, [], 1_759_622_400_000, dialects.setup_of(fire.POLICY))
BASE = {"equipment_id": "EQ001", "measured_at": "2024-01-01T12:00:00"}


speak = dialects.speaker("fire")


def decode(**said: object) -> list[Reading | Rejected]:
    return list(speak(json.dumps(BASE | said).encode(), META))


def one(**said: object) -> Reading:
    (reading,) = decode(**said)
    assert isinstance(reading, Reading)
    return reading


@pytest.mark.parametrize("metric", fire.POLICY.metrics)
def test_each_metric_alone_is_enough_and_zero_is_a_value(metric: str) -> None:
    reading = one(**{metric: 0.0})
    assert reading.values == {metric: 0.0}
    assert not reading.flags
    assert reading.measurement == reading.dialect == "fire"


@pytest.mark.parametrize(
    ("metric", "said", "stored"),
    [
        ("temperature", 100.1, 100.0),
        ("temperature", 120, 100.0),
        ("temperature", -50.1, -50.0),
        ("humidity", -1, 0.0),
        ("humidity", 101, 100.0),
        ("smoke_density", -0.001, 0.0),
        ("smoke_density", 1000, 999.999),
        ("co_level", 999.9999, 999.999),
    ],
)
def test_out_of_bounds_is_clamped_and_kept(metric: str, said: float, stored: float) -> None:
    reading = one(**{metric: said})
    assert reading.values == {metric: stored}
    assert reading.raw == {metric: said}
    assert reading.flags == [CLAMPED]


@pytest.mark.parametrize(
    ("metric", "edge"), [("temperature", -50), ("temperature", 100), ("humidity", 0), ("gas_level", 999.999)]
)
def test_the_bounds_are_inside(metric: str, edge: float) -> None:
    reading = one(**{metric: edge})
    assert reading.values == {metric: edge}
    assert isinstance(reading.values[metric], float)
    assert not reading.raw


def test_a_number_that_no_double_holds_rejects_itself() -> None:
    reading, rejected = decode(gas_level=10**400, humidity=50)
    assert isinstance(reading, Reading)
    assert reading.values == {"humidity": 50.0}
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "out_of_range"


@pytest.mark.parametrize("value", ["27.9", True, [], {}])
def test_a_value_of_the_wrong_type_rejects_itself(value: object) -> None:
    reading, rejected = decode(temperature=value, humidity=50, co_level=None)
    assert isinstance(reading, Reading)
    assert reading.values == {"humidity": 50.0}
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "bad_type"
    assert rejected.error.startswith("temperature is ")


def test_nothing_but_wrong_values_gives_no_reading() -> None:
    assert [type(outcome) for outcome in decode(temperature="a", humidity="b")] == [Rejected, Rejected]


@pytest.mark.parametrize(
    "said", [{}, {"temperature": None, "co_level": None}, {"metadata": {"floor": 1}}, {"note": None}]
)
def test_no_value_at_all_is_rejected(said: dict[str, object]) -> None:
    (rejected,) = decode(**said)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "missing_field"


@pytest.mark.parametrize(
    ("text", "hour"), [("2024-01-01T12:00:00", 12), ("2024-01-01T12:00:00+09:00", 3), ("2024-01-01T12:00:00Z", 12)]
)
def test_a_naive_time_is_utc_and_an_offset_counts(text: str, hour: int) -> None:
    assert one(measured_at=text, humidity=1).time == datetime(2024, 1, 1, hour, tzinfo=UTC)


def test_tags() -> None:
    reading = one(
        humidity=1,
        facility_id="F1",
        equipment_location="Hall",
        metadata={"floor": 3, "ok": True, "zone": "B", "x": None, "list": [1, {"token": "t", "a": 1.5}], "secret": "s"},
    )
    assert reading.tags == {
        "facility_id": "F1",
        "location": "Hall",
        "metadata.floor": "3",
        "metadata.ok": "true",
        "metadata.zone": "B",
        "metadata.list": '[1,{"a":1.5}]',
    }


@pytest.mark.parametrize("field", ["facility_id", "equipment_location", "metadata"])
def test_a_bad_tag_rejects_itself(field: str) -> None:
    reading, rejected = decode(humidity=1, **{field: ["x"]})
    assert isinstance(reading, Reading)
    assert not reading.tags
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "bad_type"


def test_further_scalars_are_metrics() -> None:
    assert one(humidity=1, battery=80, mode="auto", gone=None).values == {
        "humidity": 1.0,
        "battery": 80,
        "mode": "auto",
    }


def test_encode_says_the_original_of_a_clamped_value() -> None:
    assert json.loads(fire.encode(one(temperature=120, humidity=5)))["temperature"] == 120
