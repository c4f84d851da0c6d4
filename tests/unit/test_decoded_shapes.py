"""What somebody else has decoded: the older shapes in any mixture, and wire version 1 as it is."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import wire
from schemas.dialects import Meta, decoded, iot_gateway, setup_of, speaker
from schemas.payload import is_secret
from schemas.reading import FLAGS, UNPARSABLE, Reading, Rejected
from tests.lab import drawn

AT = datetime(2023, 5, 25, 15, 13, 10, 543400, tzinfo=UTC)
TOPIC = "cmnd/f2-e4fd45f654be/sensor-mode/1/sensor-1"
META = Meta("decoded", None, [], 1_759_667_700_000, setup_of(decoded.POLICY))
BASE: Mapping[str, object] = {"timestamp": "2023-05-25T15:13:10.543400", "device_id": "e4fd45f654be", "value": 29.8}

DEVICES = ("mac_address", "device_id", "deviceid")
METRICS = ("data_point_label", "component_type", "datapointid")
MODES = ("mode", "connector_mode")
PINS = ("pin", "pin_position")
TOPICS = ("original_topic", "topic")

names = st.text(min_size=1).filter(lambda text: not is_secret(text))
readings = drawn.readings(names, st.sampled_from(sorted(FLAGS)), 7_289_654_399_999_999)
anything = st.recursive(
    drawn.values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def decode(meta: Meta = META, **said: object) -> Reading | Rejected:
    (outcome,) = decoded.decode(json.dumps({**BASE, **said}).encode(), meta)
    return outcome


def one(**said: object) -> Reading:
    reading = decode(**said)
    assert isinstance(reading, Reading)
    return reading


def reason(**said: object) -> str:
    rejected = decode(**said)
    assert isinstance(rejected, Rejected)
    return rejected.reason


@given(data=st.data())
def test_aliases_in_any_mixture(data: st.DataObject) -> None:
    def pick(choices: Sequence[Any]) -> Any:
        return data.draw(st.sampled_from(choices))

    said = {
        pick(DEVICES): pick(["e4fd45f654be", "f2-e4fd45f654be", "E4:FD:45:F6:54:BE", "e4fd.45f6.54be"]),
        pick(METRICS): "Temperature",
        pick(MODES): "sensor-mode",
        pick(PINS): pick([1, "1", "01"]),
        pick(TOPICS): TOPIC,
        "timestamp": pick(["2023-05-25 15:13:10.543400", 1685027590.5434, "2023-05-25T15:13:10.5434Z"]),
        **pick([{"value": 29.8, "unit": "°C"}, {"value": "29.8 °C"}, {"value": "29.8", "unit": " °C"}]),
        **pick([{}, {"raw_data": {"data": "01 03", "api_key": "k"}}]),
    }
    order = data.draw(st.permutations(list(said)))
    expected = Reading(
        "iot",
        "f2-e4fd45f654be",
        AT,
        {"Temperature": 29.8},
        "sensor-mode/1/1",
        {"Temperature": "°C"},
        {"original_topic": TOPIC},
        dialect="decoded",
    )
    payload = json.dumps({field: said[field] for field in order}).encode()
    assert decoded.decode(payload, META) == (expected,)
    assert wire.read(payload) == expected


def test_a_pin_is_one_series_whoever_decoded_it() -> None:
    speak = speaker("iot-gateway")
    meta = Meta("raw", None, [], 1_759_667_700_000, setup_of(iot_gateway.POLICY, iot_gateway.EXAMPLE_REGISTRY))
    seen = set()
    for example in iot_gateway.EXAMPLES:
        headers = [("original_topic", example.origin.encode())] if example.origin else []
        for reading in speak(example.payload, msgspec.structs.replace(meta, headers=headers)):
            if not isinstance(reading, Reading):
                continue
            topic = reading.tags["original_topic"]
            mode, _, component = topic.split("/", 2)[2].split("/")
            pins: list[object] = [None, reading.channel.split("/")[2]]
            if component[-1].isdigit():
                pins += [component.rpartition("-")[2], int(component.rpartition("-")[2])]
            for pin in pins:
                for said in ({"mode": mode}, {"connector_mode": None}):
                    again = one(device_id=reading.device_id.removeprefix("f2-"), topic=topic, pin=pin, **said)
                    identity = (again.measurement, again.device_id, again.channel)
                    assert identity == (reading.measurement, reading.device_id, reading.channel)
                    seen.add(identity)
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("said", "device_id"),
    [
        ("E4FD45F654BE", "f2-e4fd45f654be"),
        ("F2-E4-FD-45-F6-54-BE", "f2-e4fd45f654be"),
        ("e4 fd 45 f6 54 be", "f2-e4fd45f654be"),
        ("123456789012", "f2-123456789012"),
        (7, "device_7"),
        ("7", "device_7"),
        (99999999999, "device_99999999999"),
        (1234567890123, "device_1234567890123"),
        ("e4:fd-45:f6:54:be", "e4:fd-45:f6:54:be"),
        ("e4fd45f654b", "e4fd45f654b"),
        ("f2-gateway", "f2-gateway"),
        ("Sensor-001", "Sensor-001"),
    ],
)
def test_devices(said: object, device_id: str) -> None:
    for field in DEVICES:
        assert one(**{"device_id": None, field: said}).device_id == device_id


@pytest.mark.parametrize("said", [100000000000, 123456789012, 999999999999])
def test_a_mac_address_without_letters_may_come_as_a_number(said: int) -> None:
    text = one(device_id=None, mac_address=str(said))
    assert one(device_id=None, mac_address=said) == text
    assert text.device_id == f"f2-{said}"
    for field in ("device_id", "deviceid"):
        assert one(**{"device_id": None, field: said}).device_id == f"device_{said}"


@pytest.mark.parametrize(
    "said",
    [
        {"mac_address": "e4fd45f654bf"},
        {"deviceid": "F2-E4:FD:45:F6:54:BF"},
        {"mac_address": 123456789012},
        {"topic": "cmnd/f2-e4fd45f654bf/sensor-mode/1/sensor-1"},
        {"topic": "tele/f2-e4fd45f654bf/LWT"},
        {"topic": "tele/f2-e4fd45f654bf/" + "x" * 500},
        {"device_id": "gateway", "deviceid": "E4FD45F654BF", "topic": TOPIC},
        {"topic": TOPIC, "pin": 2},
        {"topic": TOPIC, "pin": "sensor-2"},
        {"topic": "stat/f2-e4fd45f654be/access-control-mode/2/strike-2", "pin": "strike-1"},
    ],
)
def test_what_says_two_things(said: dict[str, object]) -> None:
    assert reason(**said) == "contradiction"


@pytest.mark.parametrize(
    "said",
    [
        {"mac_address": "E4:FD:45:F6:54:BE", "deviceid": 7, "topic": TOPIC},
        {"device_id": "gateway", "topic": TOPIC},
        {"device_id": "gateway", "deviceid": "E4FD45F654BE", "topic": TOPIC},
        {"topic": TOPIC.replace("e4fd45f654be", "E4FD45F654BE"), "pin": "sensor-1"},
        {"topic": TOPIC.replace("sensor-1", "sensor-01"), "pin": "001"},
    ],
)
def test_what_says_one_thing_twice(said: dict[str, object]) -> None:
    assert one(**said).channel == "sensor-mode/1/1"


def test_of_two_aliases_the_codes_counts() -> None:
    reading = one(mac_address="e4fd45f654be", device_id="other", data_point_label="A", component_type="B")
    assert reading.device_id == "f2-e4fd45f654be"
    assert reading.values == {"A": 29.8}


@pytest.mark.parametrize(
    ("said", "channel"),
    [
        ({}, ""),
        ({"mode": "unknown", "pin": "-1", "topic": ""}, ""),
        ({"mode": "", "pin": -1, "topic": "site/7"}, ""),
        ({"mode": "sensor-mode"}, "sensor-mode//"),
        ({"mode": "sensor-mode", "pin": 3}, "sensor-mode//3"),
        ({"pin": "007"}, "unknown//7"),
        ({"pin": "A1"}, "unknown//A1"),
        ({"topic": TOPIC}, "sensor-mode/1/1"),
        ({"topic": TOPIC, "pin": 1}, "sensor-mode/1/1"),
        ({"topic": TOPIC, "mode": "alarm-mode"}, "alarm-mode/1/1"),
        ({"topic": "tele/f2-E4FD45F654BE/sensor-mode/J4/sensor-02"}, "sensor-mode/4/2"),
        ({"topic": "stat/f2-e4fd45f654be/alarm-mode/2/door-sensors"}, "alarm-mode/2/door-sensors"),
        ({"topic": "stat/f2-e4fd45f654be/alarm-mode/2/door-sensors", "pin": 3}, "alarm-mode/2/3"),
        ({"topic": "cmnd/f2-e4fd45f654be/sensor-mode/100/sensor-1"}, ""),
        ({"topic": "cmnd/e4fd45f654be/sensor-mode/1/sensor-1"}, ""),
        ({"topic": TOPIC + "1" * 200}, ""),
    ],
)
def test_channels(said: dict[str, object], channel: str) -> None:
    assert one(**said).channel == channel


@pytest.mark.parametrize(
    ("value", "unit", "stored", "kept"),
    [
        (30, "", 30.0, ""),
        (30, "°C", 30.0, "°C"),
        (-0.5, " V ", -0.5, "V"),
        ("27.93 °C", "", 27.93, "°C"),
        ("27.93 °C", "K", 27.93, "°C"),
        ("27.93 °C", "celsius", 27.93, "°C"),
        ("1.5 V", "mV", 1.5, "V"),
        ("1.5", "mV", 1.5, "mV"),
        ("27.93", None, 27.93, ""),
        (" -1e3 ppm ", "", -1000.0, "ppm"),
        (1, "u" * 32 + " ", 1.0, "u" * 32),
        (True, "", True, ""),
        (None, "°C", None, "°C"),
        (2**53 + 1, "", 2**53 + 1, ""),
    ],
)
def test_values(value: object, unit: str | None, stored: object, kept: str) -> None:
    reading = one(value=value, unit=unit)
    assert repr(reading.values) == repr({"unknown": stored})
    assert reading.units == ({"unknown": kept} if kept else {})
    assert not reading.flags
    assert not reading.raw


@pytest.mark.parametrize(
    "text", ["on", "", "NaN", "1e999", "27,93", "1 2", "1st floor", "1 " + "u" * 33, "x" * 100_000]
)
def test_a_text_that_is_no_number(text: str) -> None:
    reading = one(value=text, data_point_label="CO2", unit="ppm")
    assert reading.values == {"CO2": None}
    assert reading.raw == {"CO2": text}
    assert reading.units == {"CO2": "ppm"}
    assert reading.flags == [UNPARSABLE]
    assert wire.read(wire.write(reading)) == reading
    rejected = decode(Meta("t", None, [], 0, setup_of(decoded.POLICY.changed({"unparsable": "reject"}))), value=text)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "unparsable"
    assert rejected.error.count("x") < 100


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"value": [1]}, "bad_type"),
        ({"value": {}}, "bad_type"),
        ({"pin": True}, "bad_type"),
        ({"pin": 1.5}, "bad_type"),
        ({"pin": "1/2"}, "bad_type"),
        ({"mode": ["m"]}, "bad_type"),
        ({"mode": "a/b"}, "bad_type"),
        ({"component_type": False}, "bad_type"),
        ({"topic": 7}, "bad_type"),
        ({"unit": 7}, "bad_type"),
        ({"unit": "u" * 33}, "bad_unit"),
        ({"unit": "u" * 33, "value": "1.5 V"}, "bad_unit"),
        ({"device_id": True}, "bad_type"),
        ({"device_id": None}, "missing_field"),
        ({"device_id": "d" * 257}, "too_large"),
        ({"component_type": "c" * 257}, "too_large"),
        ({"timestamp": None}, "missing_field"),
        ({"timestamp": True}, "bad_timestamp"),
        ({"component_type": "api_key", "value": "k"}, "not_telemetry"),
        ({"v": 1}, "wire"),
        ({"v": None}, "wire"),
    ],
)
def test_what_is_refused(said: dict[str, object], why: str) -> None:
    assert reason(**said) == why


def test_a_raw_payload_on_the_wrong_topic_is_not_taken_for_a_null() -> None:
    payload = b'{"device_id":"sensor-001","timestamp":"2025-10-05T12:34:56Z","temperature":23.5}'
    (rejected,) = decoded.decode(payload, META)
    assert rejected == Rejected("missing_field", "value is missing")


@given(reading=readings)
def test_wire_version_1_is_what_it_is(reading: Reading) -> None:
    (again,) = decoded.decode(wire.write(reading), META)
    assert repr(again) == repr(reading)


def test_another_zone_of_wire_version_1_becomes_utc() -> None:
    reading = Reading("m", "d", AT, {"t": 1.5}, dialect="telemetry")
    local = wire.write(reading).replace(b"2023-05-25T15:13:10.543400Z", b"2023-05-26T00:13:10.543400+09:00")
    (again,) = decoded.decode(local, META)
    assert again == reading
    assert isinstance(again, Reading)
    assert again.time.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("59.9999999Z", 999999),
        ("59.999999999999999999Z", 999999),
        ("59.1234567Z", 123456),
        ("59.1234564+00:00", 123456),
        ("59.5Z", 500000),
        ("59Z", 0),
    ],
)
def test_what_is_finer_than_a_microsecond_is_cut(text: str, micros: int) -> None:
    payload = b'{"v":1,"measurement":"m","device_id":"d","time":"2023-12-31T23:59:%s","values":{"t":1}}' % text.encode()
    at = datetime(2023, 12, 31, 23, 59, 59, micros, tzinfo=UTC)
    assert decoded.decode(payload, META) == (Reading("m", "d", at, {"t": 1}),)


def test_times_of_wire_version_1_are_believed_as_any_others_are() -> None:
    (rejected,) = decoded.decode(wire.write(Reading("m", "d", AT.replace(year=2201), {"t": 1})), META)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "bad_timestamp"


def test_secrets_of_wire_version_1_are_dropped() -> None:
    said = {"api_key": "hunter2", "a": "b"}
    (reading,) = decoded.decode(wire.write(Reading("m", "d", AT, dict(said), "", said, said, dict(said))), META)
    assert reading == Reading("m", "d", AT, {"a": "b"}, "", {"a": "b"}, {"a": "b"}, {"a": "b"})
    (rejected,) = decoded.decode(wire.write(Reading("m", "d", AT, {"api_key": "hunter2"})), META)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "missing_field"


def test_flags_that_there_are_not_are_dropped() -> None:
    (reading,) = decoded.decode(wire.write(Reading("m", "d", AT, {"a": 1}, flags=["odd", "clamped", "x"])), META)
    assert isinstance(reading, Reading)
    assert reading.flags == ["clamped"]


@pytest.mark.parametrize(
    ("reading", "why"),
    [
        (Reading("m", "", AT, {"t": 1}), "missing_field"),
        (Reading("m", "d", AT, {"": 1}), "missing_field"),
        (Reading("m", "d", AT.replace(tzinfo=None), {"t": 1}), "bad_timestamp"),
        (Reading("m", "d", AT, {"t" * 257: 1}), "too_large"),
        (Reading("m", "d", AT, {"t": 1}, "c" * 257), "too_large"),
    ],
)
def test_wire_version_1_that_is_no_reading(reading: Reading, why: str) -> None:
    (rejected,) = decoded.decode(wire.write(reading), META)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == why


@given(reading=readings)
def test_any_reading_can_be_said(reading: Reading) -> None:
    (again,) = decoded.decode(decoded.encode(reading), META)
    assert repr(again) == repr(reading)


@given(
    value=drawn.values,
    unit=st.sampled_from(["", "°C"]),
    channel=st.sampled_from(["", "sensor-mode//1", "sensor-mode/1/1", "unknown//x"]),
    number=st.integers(0, 2**48 - 1),
)
def test_what_an_older_shape_can_say_is_said_in_it(value: object, unit: str, channel: str, number: int) -> None:
    said = {"value": value, "unit": unit, "device_id": f"f2-{number:012x}", "component_type": "Temperature"}
    topic = f"cmnd/f2-{number:012x}/sensor-mode/1/sensor-1"
    mode, _, pin = channel.partition("/")
    reading = one(**said, mode=mode, pin=pin.rpartition("/")[2], topic=topic if "1/1" in channel else "")
    assert reading.channel == channel
    payload = decoded.encode(reading)
    assert "v" not in json.loads(payload)
    (again,) = decoded.decode(payload, META)
    assert repr(again) == repr(reading)


@given(
    said=st.dictionaries(st.sampled_from([*DEVICES, *METRICS, *MODES, *PINS, *TOPICS, *BASE, "unit", "v"]), anything)
)
def test_any_json_gives_one_answer(said: dict[str, object]) -> None:
    (outcome,) = decoded.decode(msgspec.json.encode({**BASE, **said}), META)
    if isinstance(outcome, Reading):
        (again,) = decoded.decode(decoded.encode(outcome), META)
        assert repr(again) == repr(outcome)
