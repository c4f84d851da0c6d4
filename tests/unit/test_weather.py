"""The weather dialect, answer by answer."""

import json
from datetime import UTC, datetime

import pytest

from schemas.dialects import Meta, setup_of, speaker, weather
from schemas.reading import RECEIVE_TIME, Reading, Rejected

RECEIVED_MS = 1_759_669_500_000
META = Meta("weather", None, [], RECEIVED_MS, setup_of(weather.POLICY))
BASE = {"id": 1880252, "name": "Singapore", "dt": 1759667696, "main": {"temp": 29.84}}


def decode(**said: object) -> list[Reading | Rejected]:
    return list(speaker("weather")(json.dumps(BASE | said).encode(), META))


def one(**said: object) -> Reading:
    (reading,) = decode(**said)
    assert isinstance(reading, Reading)
    return reading


def refused(**said: object) -> Rejected:
    (rejected,) = decode(**said)
    assert isinstance(rejected, Rejected)
    return rejected


def test_it_is_a_point_as_the_documents_have_it() -> None:
    reading = one(weather=[{"main": "Clouds"}])
    assert reading.measurement == "External Weather Conditions"
    assert reading.tags == {"source": "OpenWeatherMap", "location": "Singapore"}
    assert reading.values == {"weather_main": "Clouds", "temperature": 29.84}
    assert reading.units == {"temperature": "°C"}
    assert reading.time == datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)


@pytest.mark.parametrize(
    ("section", "member", "metric", "unit"),
    [
        ("main", "temp", "temperature", "°C"),
        ("main", "feels_like", "feels_like", "°C"),
        ("main", "temp_min", "temp_min", "°C"),
        ("main", "temp_max", "temp_max", "°C"),
        ("main", "humidity", "humidity", "%"),
        ("wind", "speed", "wind_speed", "m/s"),
        ("wind", "deg", "wind_deg", "°"),
        ("clouds", "all", "cloudiness", "%"),
        ("rain", "1h", "rain_1h", "mm/h"),
        ("snow", "1h", "snow_1h", "mm/h"),
    ],
)
def test_zero_is_a_value_and_null_is_none(section: str, member: str, metric: str, unit: str) -> None:
    reading = one(**{"main": {}, "visibility": 5, section: {member: 0, "other": 1}})
    assert reading.values[metric] == 0.0
    assert isinstance(reading.values[metric], float)
    assert reading.units[metric] == unit
    assert metric not in one(**{"main": {}, "visibility": 5, section: {member: None}}).values


def test_the_time_is_when_the_weather_was() -> None:
    assert one(dt=1759660000).time == datetime.fromtimestamp(1759660000, UTC)
    assert refused(dt=None).reason == "missing_field"


def test_where_it_is_configured_the_receive_time_stands_in() -> None:
    policy = weather.POLICY.changed({"time": {"missing": "receive"}})
    payload = json.dumps(BASE | {"dt": None}).encode()
    (reading,) = speaker("weather", policy)(payload, Meta("weather", None, [], RECEIVED_MS, setup_of(policy)))
    assert isinstance(reading, Reading)
    assert reading.flags == [RECEIVE_TIME]
    assert reading.time == datetime.fromtimestamp(RECEIVED_MS / 1000, UTC)


@pytest.mark.parametrize(
    ("said", "device_id"),
    [
        ({"id": 2643743}, "openweathermap-2643743"),
        ({"id": 2643743, "coord": {"lat": 1, "lon": 2}}, "openweathermap-2643743"),
        ({"id": 0, "coord": {"lat": 51.5085, "lon": -0.1257}}, "openweathermap-51.5085,-0.1257"),
        ({"id": None, "coord": {"lat": 51.5085, "lon": -0.12574}}, "openweathermap-51.5085,-0.1257"),
        ({"id": 0, "coord": {"lat": 90, "lon": -180}}, "openweathermap-90.0000,-180.0000"),
        ({"id": 0, "coord": {"lat": -0.0, "lon": 0.00004}}, "openweathermap-0.0000,0.0000"),
    ],
)
def test_the_device_is_the_place(said: dict[str, object], device_id: str) -> None:
    assert one(**said).device_id == device_id


def test_two_places_of_one_name_are_two_devices() -> None:
    assert one(id=4409896, name="Springfield").device_id != one(id=4951788, name="Springfield").device_id


@pytest.mark.parametrize(
    ("code", "meaning"),
    [
        (401, "API key"),
        ("401", "API key"),
        ("404", "no such place"),
        (429, "too often"),
        (500, ""),
        ("", ""),
        (None, None),
    ],
)
def test_an_error_is_no_weather_and_what_it_says_is_not_repeated(code: object, meaning: str | None) -> None:
    answer = {"cod": code, "message": "Invalid API key 0123456789abcdef"}
    (rejected,) = weather.decode(json.dumps(answer).encode(), META)
    assert isinstance(rejected, Rejected)
    assert "0123456789abcdef" not in rejected.error
    assert rejected.reason == ("missing_field" if meaning is None else "not_telemetry")
    assert (meaning or "") in rejected.error


@pytest.mark.parametrize("section", ["main", "wind", "clouds", "rain", "snow"])
@pytest.mark.parametrize("value", [[1], "x", 7])
def test_a_section_of_the_wrong_type_rejects_itself(section: str, value: object) -> None:
    reading, rejected = decode(**{"visibility": 10000, section: value})
    assert isinstance(reading, Reading)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "bad_type"
    assert rejected.error.startswith(section)


def test_kelvin_is_not_taken_for_celsius() -> None:
    reading, rejected = decode(main={"temp": 273.15, "humidity": 80})
    assert isinstance(reading, Reading)
    assert reading.values == {"humidity": 80.0}
    assert reading.units == {"humidity": "%"}
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "out_of_range"


def test_an_integer_that_no_double_holds() -> None:
    assert refused(main={"temp": 10**400}).reason == "out_of_range"
    assert refused(id=10**300).reason == "too_large"
