"""The `weather` dialect: the current weather at a place, as OpenWeatherMap's API answers with `units=metric`.

The time is `dt`, when the weather was so, not when it was asked for. The device is the city, `openweathermap-ID`, or
`openweathermap-LAT,LON` for a place without one. What is absent or null is no value, one of the wrong type rejects
itself and not its siblings, and of the rest of the answer nothing is kept. The API answers an error in the same form,
with another `cod` than 200: it holds no reading, and what it says is not repeated.

The answer does not say its units. The bounds are wide enough for any place on Earth, and a temperature in kelvin,
which the API gives when it is asked without `units=metric`, is outside of them.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from zlib import crc32

import msgspec

from schemas.dialects import Example, Match, Meta, Walk, changed, cut
from schemas.payload import fields, measured, name, need, quoted
from schemas.policy import Metric, Policy
from schemas.reading import Reading, Rejected, RejectedError, Value

MATCH: Final = Match("weather")

MEASUREMENT: Final = "External Weather Conditions"

#: By section of the answer, `""` for its root: a member, the metric it is, and its unit.
_SECTIONS: Final[Mapping[str, Sequence[tuple[str, str, str]]]] = {
    "main": (
        ("temp", "temperature", "°C"),
        ("feels_like", "feels_like", "°C"),
        ("pressure", "pressure", "hPa"),
        ("humidity", "humidity", "%"),
        ("temp_min", "temp_min", "°C"),
        ("temp_max", "temp_max", "°C"),
        ("sea_level", "pressure_sea_level", "hPa"),
        ("grnd_level", "pressure_ground_level", "hPa"),
    ),
    "wind": (("speed", "wind_speed", "m/s"), ("deg", "wind_deg", "°"), ("gust", "wind_gust", "m/s")),
    "clouds": (("all", "cloudiness", "%"),),
    "rain": (("1h", "rain_1h", "mm/h"),),
    "snow": (("1h", "snow_1h", "mm/h"),),
    "": (("visibility", "visibility", "m"),),
}
_CONDITION: Final = "weather_main"

_TEMPERATURE: Final = Metric(low=-110.0, high=85.0)
_SHARE: Final = Metric(low=0.0, high=100.0)
_PRESSURE: Final = Metric(low=800.0, high=1150.0)
_WIND: Final = Metric(low=0.0, high=150.0)

POLICY: Final = Policy(
    metrics={
        **dict.fromkeys(("temperature", "feels_like", "temp_min", "temp_max"), _TEMPERATURE),
        **dict.fromkeys(("humidity", "cloudiness"), _SHARE),
        **dict.fromkeys(("pressure", "pressure_sea_level"), _PRESSURE),
        **dict.fromkeys(("wind_speed", "wind_gust"), _WIND),
        "wind_deg": Metric(low=0.0, high=360.0),
    }
)

_SOURCE: Final = "OpenWeatherMap"
_PREFIX: Final = "openweathermap-"
_OK: Final = (None, 200, "200")
_MEANINGS: Final = {
    "400": ": the request was wrong",
    "401": ": it did not accept the API key",
    "404": ": it knows no such place",
    "429": ": it was asked too often",
}


def decode(payload: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
    """A payload to its reading, or to why there is none, and why not all of it is in the reading."""
    try:
        found = fields(payload)
        code = found.get("cod")
        if code not in _OK:
            meaning = _MEANINGS.get(str(code), "") if isinstance(code, int | str) else ""
            raise RejectedError(
                "not_telemetry", f"cod is {quoted(code)}, not 200: {_SOURCE}'s answer is an error{meaning}"
            )
        device_id = _device(found)
        time, flags = meta.time(found.get("dt"), "dt")
    except RejectedError as error:
        return (error.rejected,)
    rejected: list[Rejected] = []
    values: dict[str, Value] = {}
    units: dict[str, str] = {}
    tags = {"source": _SOURCE}
    for say in (_condition, _location):
        try:
            say(found, values, tags)
        except RejectedError as error:
            rejected.append(error.rejected)
    for section, members in _SECTIONS.items():
        part = found.get(section) if section else found
        if isinstance(part, dict):
            _numbers(section, part, members, values, units, rejected)
        elif part is not None:
            rejected.append(Rejected("bad_type", f"{section} is {quoted(part)}, not an object"))
    if not values:
        return rejected or (Rejected("missing_field", "there is no weather in the answer"),)
    reading = Reading(MEASUREMENT, device_id, time, values, units=units, tags=tags, dialect="weather", flags=flags)
    return (reading, *rejected)


def _device(found: Mapping[str, Any]) -> str:
    city = found.get("id")
    if city is not None and (not isinstance(city, int) or isinstance(city, bool) or city < 0):
        raise RejectedError("bad_type", f"id is {quoted(city)}, not the number of a city")
    if city:  # it is 0 at sea
        return name({"id": f"{_PREFIX}{city}"}, "id")
    place = found.get("coord")
    if place is None:
        raise RejectedError("missing_field", "both id and coord are missing, so nothing says which place it is")
    if not isinstance(place, dict):
        raise RejectedError("bad_type", f"coord is {quoted(place)}, not an object")
    return f"{_PREFIX}{_degrees(place, 'lat', 90)},{_degrees(place, 'lon', 180)}"


def _degrees(place: Mapping[str, Any], field: str, most: int) -> str:
    """A coordinate to 11 m or better, which the API does not exceed."""
    value = measured(f"coord.{field}", need(place, field))
    if abs(value) > most:
        raise RejectedError("out_of_range", f"coord.{field} is {quoted(value)}, outside {-most}..{most}")
    # There is one zero only.
    return f"{round(value, 4) + 0.0:.4f}"


def _condition(found: Mapping[str, Any], values: dict[str, Value], _: dict[str, str]) -> None:
    conditions = found.get("weather")
    if not conditions:
        return
    first = conditions[0] if isinstance(conditions, list) else None
    if not isinstance(first, dict):
        raise RejectedError("bad_type", f"weather is {quoted(conditions)}, not an array of objects")
    # The first is the one that prevails.
    if first.get("main") is not None:
        values[_CONDITION] = _word("weather[0].main", first["main"])


def _location(found: Mapping[str, Any], _: dict[str, Value], tags: dict[str, str]) -> None:
    if found.get("name"):
        tags["location"] = _word("name", found["name"])


def _word(field: str, value: object) -> str:
    if isinstance(value, str):
        return value
    raise RejectedError("bad_type", f"{field} is {quoted(value)}, not text")


def _numbers(  # noqa: PLR0913  what a section becomes
    section: str,
    part: Mapping[str, Any],
    members: Sequence[tuple[str, str, str]],
    values: dict[str, Value],
    units: dict[str, str],
    rejected: list[Rejected],
) -> None:
    for member, metric, unit in members:
        value = part.get(member)
        if value is None:
            continue
        try:
            values[metric] = measured(f"{section}.{member}" if section else member, value)
        except RejectedError as error:
            rejected.append(error.rejected)
        else:
            units[metric] = unit


def encode(reading: Reading) -> bytes:
    """The payload that `decode` makes this reading of."""
    values = reading.values
    said: dict[str, object] = {"dt": reading.time, "cod": 200}
    place = reading.device_id.removeprefix(_PREFIX)
    if place.isdigit():
        said["id"] = int(place)
    else:
        latitude, longitude = place.split(",")
        said["coord"] = {"lat": float(latitude), "lon": float(longitude)}
    if "location" in reading.tags:
        said["name"] = reading.tags["location"]
    if _CONDITION in values:
        said["weather"] = [{"main": values[_CONDITION]}]
    for section, members in _SECTIONS.items():
        part = {member: values[metric] for member, metric, _ in members if metric in values}
        if part:
            said |= {section: part} if section else part
    return msgspec.json.encode(said)


def template(prefix: str, number: int) -> Reading:
    """The first example's reading as a simulated city says it; real cities' numbers are shorter."""
    city = 10_000_000 * (1 + crc32(prefix.encode())) + number
    return _gives(_VALUES, place=str(city), location=f"{prefix}-{number:03d}")


WALKS: Final[Mapping[str, Walk]] = {
    "temperature": Walk(10.0, 30.0, 0.1, odd=(40.0, 50.0), digits=2),
    "feels_like": Walk(8.0, 33.0, 0.1, odd=(42.0, 55.0), digits=2),
    "pressure": Walk(995.0, 1025.0, 1.0, odd=(930.0, 960.0), digits=0),
    "humidity": Walk(35.0, 90.0, 1.0, odd=(5.0, 15.0), digits=0),
    "temp_min": Walk(8.0, 28.0, 0.1, odd=(-30.0, -20.0), digits=2),
    "temp_max": Walk(12.0, 32.0, 0.1, odd=(40.0, 50.0), digits=2),
    "wind_speed": Walk(0.0, 12.0, 0.3, odd=(25.0, 45.0), digits=2),
    "wind_deg": Walk(0.0, 360.0, 10.0, odd=(0.0, 360.0), digits=0),
    "cloudiness": Walk(0.0, 100.0, 5.0, odd=(0.0, 100.0), digits=0),
}

SPOILED: Final = {
    "not_json": cut,
    "missing_field": changed(dt=msgspec.UNSET),
    "bad_timestamp": changed(dt="yesterday"),
    "not_telemetry": changed(cod=401),
}

_AT: Final = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)
_CITY: Final = b'{"id":1880252,"name":"Singapore","dt":1759667696,"cod":200,'
_VALUES: Final = {
    "temperature": 29.84,
    "feels_like": 35.12,
    "pressure": 1009.0,
    "humidity": 74.0,
    "temp_min": 28.9,
    "temp_max": 30.55,
    "wind_speed": 3.6,
    "wind_deg": 160.0,
    "cloudiness": 40.0,
}
_UNITS: Final = {metric: unit for members in _SECTIONS.values() for _, metric, unit in members}


def _gives(
    values: Mapping[str, Value], *, place: str = "1880252", location: str = "Singapore", at: datetime = _AT
) -> Reading:
    return Reading(
        MEASUREMENT,
        _PREFIX + place,
        at,
        dict(values),
        units={metric: _UNITS[metric] for metric in values if metric in _UNITS},
        tags={"source": _SOURCE} | ({"location": location} if location else {}),
        dialect="weather",
    )


EXAMPLES: Final = (
    Example(
        _CITY + b'"coord":{"lon":103.8501,"lat":1.2897},"main":{"temp":29.84,"feels_like":35.12,"temp_min":28.9,'
        b'"temp_max":30.55,"pressure":1009,"humidity":74},"wind":{"speed":3.6,"deg":160},"clouds":{"all":40}}',
        [_gives(_VALUES)],
    ),
    Example(  # all that the API may say
        b'{"coord":{"lon":8.4037,"lat":49.0069},"weather":[{"id":500,"main":"Rain","description":"light rain",'
        b'"icon":"10d"},{"id":701,"main":"Mist","description":"mist","icon":"50d"}],"base":"stations",'
        b'"main":{"temp":-1.5,"feels_like":-6,"temp_min":-2.11,"temp_max":-0.4,"pressure":1021,"humidity":91,'
        b'"sea_level":1021,"grnd_level":1006},"visibility":10000,"wind":{"speed":4.12,"deg":250,"gust":9.3},'
        b'"rain":{"1h":0.25},"snow":{"1h":1},"clouds":{"all":100},"dt":1759667696,'
        b'"sys":{"type":2,"id":2009404,"country":"DE","sunrise":1759642164,"sunset":1759683252},"timezone":7200,'
        b'"id":2892794,"name":"Karlsruhe","cod":200}',
        [
            _gives(
                {
                    "weather_main": "Rain",
                    "temperature": -1.5,
                    "feels_like": -6.0,
                    "pressure": 1021.0,
                    "humidity": 91.0,
                    "temp_min": -2.11,
                    "temp_max": -0.4,
                    "pressure_sea_level": 1021.0,
                    "pressure_ground_level": 1006.0,
                    "wind_speed": 4.12,
                    "wind_deg": 250.0,
                    "wind_gust": 9.3,
                    "cloudiness": 100.0,
                    "rain_1h": 0.25,
                    "snow_1h": 1.0,
                    "visibility": 10000.0,
                },
                place="2892794",
                location="Karlsruhe",
            )
        ],
    ),
    Example(  # at sea there is no city
        b'{"coord":{"lon":-0.00001,"lat":-31.5},"id":0,"name":"","dt":1759667696,"main":{"temp":17,"humidity":null},'
        b'"wind":null,"weather":[],"rain":{}}',
        [_gives({"temperature": 17.0}, place="-31.5000,0.0000", location="")],
    ),
    Example(_CITY + b'"weather":[{"main":"Clouds"}]}', [_gives({"weather_main": "Clouds"})]),
    Example(
        _CITY + b'"weather":{"main":"Rain"},"main":{"temp":"29","pressure":true,"humidity":74},"wind":[3.6]}',
        [_gives({"humidity": 74.0}), *["bad_type"] * 4],
    ),
    Example(
        _CITY.replace(b'"Singapore"', b"7") + b'"weather":[{"main":7}],"main":{"temp":29,"humidity":101}}',
        [_gives({"temperature": 29.0}, location=""), "out_of_range", "bad_type", "bad_type"],
    ),
    Example(_CITY + b'"main":{"temp":302.99}}', ["out_of_range"]),  # kelvin
    Example(b'{"cod":401, "message": "Invalid API key. Please see https://openweathermap.org/faq"}', ["not_telemetry"]),
    Example(b'{"cod":"404","message":"city not found"}', ["not_telemetry"]),
    Example(_CITY.replace(b"200", b"[]") + b'"main":{"temp":29}}', ["not_telemetry"]),
    Example(b"Too many requests", ["not_json"]),
    Example(b"[" + _CITY + b'"main":{"temp":29}}]', ["bad_type"]),
    Example(b"{}", ["missing_field"]),
    Example(_CITY[:-1] + b"}", ["missing_field"]),
    Example(_CITY.replace(b"1880252", b"null") + b'"main":{"temp":29}}', ["missing_field"]),
    Example(_CITY.replace(b"1880252", b'"x"') + b'"main":{"temp":29}}', ["bad_type"]),
    Example(_CITY.replace(b"1880252", b"-1") + b'"main":{"temp":29}}', ["bad_type"]),
    Example(_CITY.replace(b"1880252", b"0") + b'"coord":[1,2],"main":{"temp":29}}', ["bad_type"]),
    Example(_CITY.replace(b"1880252", b"0") + b'"coord":{"lat":1},"main":{"temp":29}}', ["missing_field"]),
    Example(_CITY.replace(b"1880252", b"0") + b'"coord":{"lat":91,"lon":1},"main":{"temp":29}}', ["out_of_range"]),
    Example(_CITY.replace(b"1759667696", b"null") + b'"main":{"temp":29}}', ["missing_field"]),
    Example(_CITY.replace(b"1759667696", b'"2025-10-05T12:34:56"') + b'"main":{"temp":29}}', ["bad_timestamp"]),
    Example(_CITY + b'"main":{"temp":1e400}}', ["out_of_range"]),
)
