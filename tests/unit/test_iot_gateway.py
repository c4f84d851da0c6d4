"""The iot-gateway dialect beyond its examples: addresses, times, what cannot be read, and the documents' own words."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import dialects
from schemas.datapoints import DataPoints, parse
from schemas.dialects import Meta, iot_gateway
from schemas.policy import Metric, Policy, Time
from schemas.reading import CLAMPED, RECEIVE_TIME, UNPARSABLE, Reading, Rejected

RECEIVED_MS = 1_759_622_400_000
RECEIVED = datetime(2025, 10, 5, tzinfo=UTC)
BRIDGED = datetime(2023, 5, 21, 15, 13, 10, 543400, tzinfo=UTC)
DEVICE = "f2-e4fd45f654be"
TOPIC = f"cmnd/{DEVICE}/sensor-mode/1/sensor-1"
NAIVE = "2023-05-25 15:13:10.543400"


def decode(
    payload: bytes, *, policy: Policy | None = None, registry: DataPoints | None = iot_gateway.EXAMPLE_REGISTRY,
    origin: str = "",
) -> Sequence[Reading | Rejected]:  # fmt: skip
    policy = policy or iot_gateway.POLICY
    headers = [("mqtt-topic", origin.encode())] if origin else []
    meta = Meta("raw_iot_data", None, headers, RECEIVED_MS, dialects.setup_of(policy, registry))
    return dialects.speaker("iot-gateway", policy)(payload, meta)


def said(payload: object, *, topic: str = TOPIC, **fields: object) -> bytes:
    whole = {"original_topic": topic, "device_id": DEVICE, "payload": payload, "timestamp": 1684681990.5434} | fields
    return msgspec.json.encode({name: value for name, value in whole.items() if value is not msgspec.UNSET})


def reading(payload: object, *, policy: Policy | None = None, **fields: Any) -> Reading:
    (found,) = decode(said(payload, **fields), policy=policy)
    assert isinstance(found, Reading), found
    return found


def rejected(payload: object, **fields: Any) -> Rejected:
    (found,) = decode(said(payload, **fields))
    assert isinstance(found, Rejected), found
    return found


# -- the address -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["cmnd", "stat", "tele"])
@pytest.mark.parametrize("connector", ["1", "J1", "j1", "01"])
@pytest.mark.parametrize("pin", ["sensor-1", "sensor-01"])
def test_one_pin_is_one_channel_however_it_is_written(prefix: str, connector: str, pin: str) -> None:
    topic = f"{prefix}/f2-E4FD45F654BE/sensor-mode/{connector}/{pin}"
    found = reading({"timestamp": NAIVE, "data": "01030C320190"}, topic=topic)
    assert (found.device_id, found.channel) == (DEVICE, "sensor-mode/1/1")
    assert found.tags == {"original_topic": topic}


@pytest.mark.parametrize(
    "device_id", [DEVICE, "F2-E4FD45F654BE", "e4fd45f654be", "E4:FD:45:F6:54:BE", "e4fd.45f6.54be", None, msgspec.UNSET]
)
def test_a_device_that_agrees_with_the_topic(device_id: object) -> None:
    assert reading({"data": "01030C320190"}, device_id=device_id).device_id == DEVICE


@pytest.mark.parametrize("device_id", ["", "f2-", "f2-e4fd45f654bf", "e4fd45f654be ", 1, {}, []])
def test_a_device_that_does_not(device_id: object) -> None:
    wanted = "contradiction" if isinstance(device_id, str) else "bad_type"
    assert rejected({"data": "01030C320190"}, device_id=device_id).reason == wanted


def test_a_mode_of_any_name_and_numbers_up_to_99() -> None:
    registry = DataPoints()
    registry.load(parse({"controllers": {"e4fd45f654be": {"99/0": [{"label": "x", "encoding": "Int8"}]}}}))
    topic = f"tele/{DEVICE}/sensor-mode.v2/99/sensor-00"
    (found,) = decode(said("7F", topic=topic), registry=registry)
    assert isinstance(found, Reading)
    assert (found.channel, found.values) == ("sensor-mode.v2/99/0", {"x": 127.0})


@pytest.mark.parametrize(
    ("topic", "reason"),
    [
        ("", "missing_field"),
        (f"cmnd/{DEVICE}", "bad_type"),
        (f"cmnd/{DEVICE}0/sensor-mode/1/sensor-1", "bad_type"),
        (f"CMND/{DEVICE}/sensor-mode/1/sensor-1", "bad_type"),
        (f"cmnd/{DEVICE}/sensor-mode/1/sensor-1\n", "bad_type"),
        (f"cmnd/{DEVICE}/sensor-mode/J/sensor-1", "bad_type"),
        (f"cmnd/{DEVICE}/sensor-mode/J100/sensor-1", "bad_type"),
        (f"cmnd/{DEVICE}/sensor-mode/-1/sensor-1", "bad_type"),
        (f"cmnd/{DEVICE}/sensor-mode/\u0661/sensor-1", "bad_type"),
        (f"cmnd/{DEVICE}/sensor-mode/1", "not_telemetry"),
        (f"cmnd/{DEVICE}/sensor-mode/1/sensor-", "not_telemetry"),
        (f"cmnd/{DEVICE}/sensor-mode/1/sensor-\u0661", "not_telemetry"),
        (f"cmnd/{DEVICE}/sensor-mode/1/door-sensors-1", "not_telemetry"),
        (f"cmnd/{DEVICE}/sensor\u0000mode/1/sensor-1", "not_telemetry"),
        (f"tele/{DEVICE}/LWT", "not_telemetry"),
        (f"cmnd/{DEVICE}/{'m' * 169}/1/sensor-1", "too_large"),
    ],
)
def test_topics_that_name_no_pin(topic: str, reason: str) -> None:
    assert rejected({"data": "01030C320190"}, topic=topic).reason == reason


def test_the_longest_topic() -> None:
    topic = f"cmnd/{DEVICE}/".ljust(189, "m") + "/1/sensor-1"
    assert len(topic) == 200
    assert len(reading({"data": "01030C320190"}, topic=topic).channel) < 200


# -- the time ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "time", "at"),
    [
        ("UTC", NAIVE, datetime(2023, 5, 25, 15, 13, 10, 543400, tzinfo=UTC)),
        ("America/Bogota", NAIVE, datetime(2023, 5, 25, 20, 13, 10, 543400, tzinfo=UTC)),
        ("America/Bogota", NAIVE + "Z", datetime(2023, 5, 25, 15, 13, 10, 543400, tzinfo=UTC)),
        ("America/Bogota", 1685027590.5434, datetime(2023, 5, 25, 15, 13, 10, 543400, tzinfo=UTC)),
    ],
)
@pytest.mark.parametrize("data", ["01030C320190", "0x01030C320190"], ids=["fast", "carefully"])
def test_the_devices_own_time(zone: str, time: object, at: datetime, data: str) -> None:
    found = reading({"timestamp": time, "data": data}, policy=Policy(time=Time(zone=zone)))
    assert (found.time, found.flags) == (at, [])


@pytest.mark.parametrize("own", [{}, {"timestamp": None}, {"timestamp": ""}])
@pytest.mark.parametrize(
    ("outer", "at"),
    [
        (1684681990.5434, BRIDGED),
        ("2023-05-21T15:13:10.5434Z", BRIDGED),
        ("yesterday", RECEIVED),
        (-1, RECEIVED),
        (None, RECEIVED),
        (msgspec.UNSET, RECEIVED),
    ],
)
def test_a_device_without_a_time(own: dict[str, object], outer: object, at: datetime) -> None:
    found = reading({**own, "data": "01030C320190"}, timestamp=outer)
    assert (found.time, found.flags) == (at, [RECEIVE_TIME])


@pytest.mark.parametrize("outer", [5, 0.5, "1970-01-01T00:00:05Z"])
def test_a_bridge_whose_clock_was_never_set(outer: object) -> None:
    assert rejected({"data": "01030C320190"}, timestamp=outer).reason == "old"
    assert rejected({"timestamp": 5, "data": "01030C320190"}).reason == "old"
    flagging = iot_gateway.POLICY.changed({"time": {"outside": "receive"}})
    found = reading({"data": "01030C320190"}, timestamp=outer, policy=flagging)
    assert (found.time, found.flags) == (RECEIVED, [RECEIVE_TIME])


def test_a_device_without_a_time_where_it_must_have_one() -> None:
    (found,) = decode(said({"data": "01030C320190"}), policy=Policy(time=Time(zone="UTC")))
    assert isinstance(found, Rejected)
    assert (found.reason, found.error) == ("missing_field", "payload.timestamp is missing")


def test_a_time_that_cannot_be_read_is_not_made_up() -> None:
    assert rejected({"timestamp": "noon", "data": "01030C320190"}).reason == "bad_timestamp"
    policy = Policy(time=Time(zone="UTC", unreadable="receive"))
    found = reading({"timestamp": "noon", "data": "01030C320190"}, policy=policy)
    assert (found.time, found.flags) == (BRIDGED, [RECEIVE_TIME])


# -- sensors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registry", [None, DataPoints()], ids=["none", "empty"])
def test_without_a_registry_no_sensor_is_known(registry: DataPoints | None) -> None:
    (found,) = decode(said({"data": "0103"}), registry=registry)
    assert isinstance(found, Rejected)
    assert found.reason == "unknown_device"
    assert "e4fd45f654be/1/1" in found.error


def test_a_device_becomes_known() -> None:
    registry = DataPoints()
    topic = f"tele/{DEVICE}/sensor-mode/J4/sensor-3"
    payload = said({"timestamp": NAIVE, "data": "01 03 0C"}, topic=topic)
    (before,) = decode(payload, registry=registry)
    assert isinstance(before, Rejected)
    registry.put(f"{DEVICE}/J4/3", b'[{"label":"Temperature","encoding":"Int16","offset":1,"unit":"K"}]')
    (after,) = decode(payload, registry=registry)
    assert isinstance(after, Reading)
    assert (after.values, after.units, after.channel) == (
        {"Temperature": 780.0},
        {"Temperature": "K"},
        "sensor-mode/4/3",
    )
    registry.put(f"{DEVICE}/J4/3", None)
    assert decode(payload, registry=registry) == (before,)


def test_what_cannot_be_read_rejects_itself_where_that_is_wanted() -> None:
    policy = iot_gateway.POLICY.changed({"unparsable": "reject"})
    found, *refused = decode(said({"timestamp": NAIVE, "data": "01 03 0C"}), policy=policy)
    assert isinstance(found, Reading)
    assert (found.values, found.units, found.raw, found.flags) == ({"Temperature": 2.59}, {"Temperature": "°C"}, {}, [])
    assert [(why.reason, why.error) for why in refused if isinstance(why, Rejected)] == [
        ("unparsable", "Humidity is bytes 3..4 of the data, which has 3 bytes"),
        ("unparsable", "CO2 is bytes 5..6 of the data, which has 3 bytes"),
    ]
    door = f"cmnd/{DEVICE}/sensor-mode/2/sensor-1"
    (nothing, *rest) = decode(said({"timestamp": NAIVE, "data": "07"}, topic=door), policy=policy)
    assert isinstance(nothing, Rejected)
    assert nothing.error == "Door is 7, which is not in its map"
    assert len(rest) == 4


def test_a_payload_of_which_nothing_can_be_read_is_still_one_of_nulls() -> None:
    found = reading({"timestamp": NAIVE, "data": "01"}, topic=TOPIC)
    assert found.values == dict.fromkeys(["Temperature", "Humidity", "CO2"])
    assert found.raw == dict.fromkeys(found.values, "01")
    assert found.flags == [UNPARSABLE]


def test_text_and_numbers_at_one_pin() -> None:
    registry = DataPoints()
    points = [{"label": "Text", "encoding": "RawString"}, {"label": "Number", "encoding": "Int8"}]
    registry.load(parse({"controllers": {"*": {"1/1": points}}}))
    found, again = (decode(said(data), registry=registry)[0] for data in ("off", "0A"))
    assert isinstance(found, Reading)
    assert isinstance(again, Reading)
    assert (found.values, found.raw) == ({"Text": "off", "Number": None}, {"Number": "off"})
    assert (again.values, again.raw) == ({"Text": "0A", "Number": 10.0}, {})


@pytest.mark.parametrize("payload", [0, 7, 10**20, "1003"])
def test_a_payload_that_the_bridge_took_for_a_number(payload: object) -> None:
    topic = f"cmnd/{DEVICE}/sensor-mode/2/sensor-4"
    assert reading(payload, topic=topic).values == {"Card": str(payload)}


@pytest.mark.parametrize("payload", [True, 1.5, [], [1, 3], -1])
def test_payloads_of_another_kind(payload: object) -> None:
    assert rejected(payload).reason in {"bad_type", "undecodable"}


def test_bounds_apply_to_a_sensors_metrics_and_leave_the_original() -> None:
    policy = iot_gateway.POLICY.changed({"metrics": {"Temperature": {"high": 50.0, "outside": "clamp"}}})
    found = reading({"timestamp": NAIVE, "data": "2710 1388"}, policy=policy)
    assert found.values == {"Temperature": 50.0, "Humidity": 50.0, "CO2": None}
    assert found.raw == {"Temperature": 100.0, "CO2": "2710 1388"}
    assert found.flags == [UNPARSABLE, CLAMPED]
    assert decode(iot_gateway.encode(found), policy=policy) == [found]


def test_units_are_converted_by_policy() -> None:
    policy = Policy(metrics={"Temperature": Metric(unit="°F")}, time=iot_gateway.POLICY.time)
    found = reading({"timestamp": NAIVE, "data": "09C4 1388 0190"}, policy=policy)
    assert (found.values["Temperature"], found.units["Temperature"]) == (77.0, "°F")


def test_the_most_that_a_payload_may_hold() -> None:
    assert rejected("00" * 4097).reason == "too_large"
    found = reading({"timestamp": NAIVE, "data": "01030C32" + "00" * 4092})
    assert found.values == {"Temperature": 2.59, "Humidity": 31.22, "CO2": 0.0}


# -- components --------------------------------------------------------------------------------------------------------

STRIKE = f"stat/{DEVICE}/access-control-mode/J2/strike-01"


@pytest.mark.parametrize(
    ("voltage", "value", "unit"),
    [
        (12, 12.0, None),
        (12.5, 12.5, None),
        ("12.5", 12.5, None),
        ("12.5 V", 12.5, "V"),
        ("12.5V", 12.5, "V"),
        ("-1e3 mV", -1000.0, "mV"),
        (None, None, None),
    ],
)
def test_a_measured_member_with_or_without_its_unit(voltage: object, value: float | None, unit: str | None) -> None:
    found = reading({"timestamp": NAIVE, "state": "locked", "voltage": voltage}, topic=STRIKE)
    assert found.values == {"voltage": value, "state": "locked"}
    assert found.units == ({} if unit is None else {"voltage": unit})
    assert (found.channel, found.raw, found.flags) == ("access-control-mode/2/strike-1", {}, [])
    assert list(decode(iot_gateway.encode(found))) == [found]


@pytest.mark.parametrize("voltage", ["", "high", "12..5", "1e999", "12.5 V 3", "x" * 5_000])
def test_a_measured_member_that_cannot_be_read(voltage: str) -> None:
    found = reading({"timestamp": NAIVE, "state": "locked", "voltage": voltage}, topic=STRIKE)
    assert found.values == {"voltage": None, "state": "locked"}
    assert (found.raw, found.flags) == ({"voltage": voltage}, [UNPARSABLE])
    policy = iot_gateway.POLICY.changed({"unparsable": "reject"})
    kept, why = decode(said({"timestamp": NAIVE, "state": "locked", "voltage": voltage}, topic=STRIKE), policy=policy)
    assert isinstance(kept, Reading)
    assert (kept.values, kept.raw, kept.flags) == ({"state": "locked"}, {}, [])
    assert isinstance(why, Rejected)
    assert why.reason == "unparsable"


def test_what_the_newer_controllers_say() -> None:
    """Their documentation's own payloads."""
    for place, members in (
        ("stat/{}/access-control-mode/J2/strike-1", {"status": True}),
        ("stat/{}/access-control-mode/J2/door-sensors", {"door-sensor-1": False, "door-sensor-2": True}),
        ("tele/{}/access-control-mode/J2/reader-1", {"data": "b'\"Hello World\"'"}),
        ("stat/{}/access-control-mode/J2/exit-buttons", {"exit-button-1": False, "exit-button-2": False}),
        ("stat/{}/alarm-mode/J1/siren-1", {"status": False}),
        ("stat/{}/alarm-mode/J1/motion-sensor-1", {"status": True}),
    ):
        topic = place.format(DEVICE)
        found = reading({"timestamp": "2023-05-26 18:34:04.928538", **members}, topic=topic)
        assert found.values == members
        assert found.channel == "/".join(topic.split("/")[2:]).replace("J", "")
        assert found.time == datetime(2023, 5, 26, 18, 34, 4, 928538, tzinfo=UTC)


@pytest.mark.parametrize(
    "payload", [{"power-flag": 2, "period": 3}, {"timestamp": None, "state": 1}, {}, None, 1, "on", True]
)
def test_commands_are_no_readings(payload: object) -> None:
    assert rejected(payload, topic=STRIKE.replace("stat", "cmnd")).reason == "not_telemetry"


@pytest.mark.parametrize(
    ("payload", "reason"),
    [("on", "bad_type"), (1, "bad_type"), ([], "bad_type"), (None, "missing_field"), ({}, "empty")],
)
def test_statuses_that_say_nothing(payload: object, reason: str) -> None:
    assert rejected(payload, topic=STRIKE).reason == reason


def test_secrets_of_a_component_are_dropped() -> None:
    payload = {"timestamp": NAIVE, "card_id": "A1", "api_token": "hunter2", "voltage": "hunter2", "password": {"a": 1}}
    found = reading(payload, topic=f"tele/{DEVICE}/access-control-mode/2/reader-1")
    assert found.values == {"card_id": "A1", "voltage": None}


# -- without an envelope -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        b'{"timestamp":"2023-05-25 15:13:10.543400","data":"01 03 0C 32 01 90"}',
        b'{"data":"01 03 0C 32 01 90"}',
        b"01 03 0C 32 01 90",
        b"01030C320190",
        b"010304320190",
    ],
)
def test_a_record_that_says_the_topic_itself(payload: bytes) -> None:
    (found,) = decode(payload, origin=TOPIC)
    assert isinstance(found, Reading)
    assert (found.device_id, found.channel, found.values["CO2"]) == (DEVICE, "sensor-mode/1/1", 400.0)
    assert list(decode(iot_gateway.encode(found))) == [found]


def test_the_envelope_wins_over_the_record() -> None:
    (found,) = decode(said({"data": "08FC 0000"}, topic=TOPIC[:-1] + "2"), origin=TOPIC)
    assert isinstance(found, Reading)
    assert found.channel == "sensor-mode/1/2"


@pytest.mark.parametrize("origin", ["", "telemetry/sensor-1", "cmnd/f2-e4fd45f654b/sensor-mode/1/sensor-1"])
def test_a_record_that_says_another_topic(origin: str) -> None:
    (found,) = decode(b'{"data":"0103"}', origin=origin)
    assert isinstance(found, Rejected)
    assert found.reason == "missing_field"


@pytest.mark.parametrize("topic", [TOPIC, STRIKE, f"tele/{DEVICE}/LWT", TOPIC.upper().replace("CMND/F2", "cmnd/f2")])
def test_the_topics_that_are_this_dialects(topic: str) -> None:
    assert dialects.by_origin(topic) == "iot-gateway"


@pytest.mark.parametrize("topic", ["cmnd/x/y", f"{DEVICE}/sensor-mode/1/sensor-1", f"x/{TOPIC}", f"tele/{DEVICE}"])
def test_the_topics_that_are_not(topic: str) -> None:
    assert dialects.by_origin(topic) != "iot-gateway"


# -- the simulator -----------------------------------------------------------------------------------------------------


def test_simulated_controllers_are_told_apart() -> None:
    fleet = [iot_gateway.template(prefix, number) for prefix in ("sensor", "b") for number in (1, 2, 2**24 - 1)]
    assert len({found.device_id for found in fleet}) == 6
    for found in fleet:
        assert found.device_id.startswith("f2-02")
        assert list(decode(iot_gateway.encode(found))) == [found]


# -- anything ----------------------------------------------------------------------------------------------------------

texts = st.text() | st.text("0123456789abcdefABCDEF x") | st.binary().map(bytes.hex)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
anything = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=6)
sensors = st.sampled_from([f"sensor-mode/{id_[2]}/sensor-{id_[4]}" for id_ in iot_gateway.EXAMPLE_REGISTRY.entries()])
components = st.sampled_from(["strike-1", "door-sensors", "reader-2", "exit-buttons", "motion-sensor-3", "siren-1"])
places = sensors | components.map("alarm-mode/J1/{}".format) | st.text("sensor-/J1\0é")
topics = st.tuples(st.sampled_from(["cmnd", "stat", "tele"]), places).map(
    lambda found: f"{found[0]}/{DEVICE}/{found[1]}"
)
members = st.sampled_from(["timestamp", "data", "voltage", "current", "Temperature", "state", "token"])
sent = st.dictionaries(members, anything) | st.fixed_dictionaries({"data": texts}) | anything


@given(topic=topics, payload=sent, outer=scalars)
def test_whatever_is_sent_gives_an_answer_that_can_be_said_again(topic: str, payload: object, outer: object) -> None:
    outcomes = decode(said(payload, topic=topic, timestamp=outer))
    assert outcomes
    for found in outcomes:
        if isinstance(found, Reading):
            assert list(map(repr, decode(iot_gateway.encode(found)))) == [repr(found)]


@given(topic=topics, payload=st.binary() | sent.map(msgspec.json.encode))
def test_whatever_a_record_with_a_topic_holds_gives_an_answer(topic: str, payload: bytes) -> None:
    outcomes = decode(payload, origin=topic)
    assert outcomes
    for found in outcomes:
        if isinstance(found, Reading):
            assert list(map(repr, decode(iot_gateway.encode(found)))) == [repr(found)]


@given(topic=topics, payload=sent)
def test_null_or_refused_is_all_that_the_policy_changes(topic: str, payload: object) -> None:
    strict = iot_gateway.POLICY.changed({"unparsable": "reject"})
    lenient, refusing = (decode(said(payload, topic=topic), policy=policy) for policy in (None, strict))
    kept = [found.values for found in refusing if isinstance(found, Reading)]
    for found in lenient:
        if isinstance(found, Reading):
            values = {metric: value for metric, value in found.values.items() if metric not in found.raw}
            assert kept == ([values] if values else [])
            assert len([why for why in refusing if isinstance(why, Rejected)]) == len(lenient) - 1 + len(found.raw)
