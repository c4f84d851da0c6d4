"""The iotflow dialect: its topics, its two forms, and whose a message is."""

import json
from datetime import UTC, datetime

import pytest

from schemas.dialects import Meta, by_origin, iotflow, setup_of
from schemas.payload import quoted
from schemas.reading import RECEIVE_TIME, Reading, Rejected
from sinks.iotdb.mapping import device_path

AT = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)
BASE = {"timestamp": "2025-10-05T12:34:56Z", "temperature": 23.5}
TELEMETRY = "iotflow/devices/1/telemetry"
SETUP = setup_of(iotflow.POLICY)


def outcomes(payload: bytes, topic: str = "", key: bytes | None = None) -> list[Reading | Rejected]:
    headers = [("mqtt-topic", topic.encode())] if topic else []
    return list(iotflow.decode(payload, Meta("raw", key, headers, 1_759_667_700_000, SETUP)))


def decode(topic: str = TELEMETRY, **said: object) -> list[Reading | Rejected]:
    return outcomes(json.dumps(BASE | said).encode(), topic)


def one(topic: str = TELEMETRY, **said: object) -> Reading:
    (reading,) = decode(topic, **said)
    assert isinstance(reading, Reading)
    return reading


def reason(topic: str = TELEMETRY, **said: object) -> str:
    (rejected,) = decode(topic, **said)
    assert isinstance(rejected, Rejected)
    return rejected.reason


def test_a_number_is_stored_where_the_documents_look_for_it() -> None:
    for reading in (one(), one("", device_id=1), one("", device_id="1"), one("iotflow/devices/device_1/telemetry")):
        assert "root.iotflow." + device_path(reading.device_id, reading.measurement, reading.channel, "telemetry") == (
            "root.iotflow.device_1"
        )
        assert reading.values == {"temperature": 23.5}


@pytest.mark.parametrize(
    ("said", "device_id"),
    [
        (0, "device_0"),
        (12, "device_12"),
        ("007", "device_007"),
        ("esp32-a", "esp32-a"),
        ("device_1", "device_1"),
        ("1a", "1a"),
    ],
)
def test_devices(said: object, device_id: str) -> None:
    assert one("", device_id=said).device_id == device_id
    assert one(f"iotflow/devices/{said}/telemetry/sensors").device_id == device_id
    assert one(f"iotflow/devices/{said}/telemetry", device_id=said).device_id == device_id


def test_where_the_original_topic_may_be_said() -> None:
    by_header = one(TELEMETRY)
    (by_key,) = outcomes(json.dumps(BASE).encode(), key=TELEMETRY.encode())
    by_payload = one("", original_topic=TELEMETRY)
    assert by_header == by_key == by_payload
    assert by_header.tags == {"original_topic": TELEMETRY}


def test_the_records_topic_counts_over_the_payloads() -> None:
    assert one(TELEMETRY, original_topic="iotflow/devices/2/status/online").measurement == "telemetry"


@pytest.mark.parametrize("device_id", [2, "2", "device_2", "device-1", "DEVICE_1"])
def test_topic_and_payload_must_agree(device_id: object) -> None:
    assert reason(TELEMETRY, device_id=device_id) == "contradiction"


@pytest.mark.parametrize("device_id", [True, 1.5, -1, [1], {"id": 1}])
def test_no_device(device_id: object) -> None:
    assert reason("", device_id=device_id) == "bad_type"
    assert reason(TELEMETRY, device_id=device_id) == "bad_type"


@pytest.mark.parametrize("device_id", ["9" * 250, "d" * 257])
def test_a_name_that_is_too_long(device_id: str) -> None:
    assert reason("", device_id=device_id) == "too_large"
    assert reason(f"iotflow/devices/{device_id}/telemetry") == "too_large"


@pytest.mark.parametrize("kind", ["sensors", "metrics", "events"])
def test_kinds_of_telemetry(kind: str) -> None:
    reading = one(f"{TELEMETRY}/{kind}")
    assert reading.measurement == "telemetry"
    assert reading.tags["kind"] == kind


@pytest.mark.parametrize(
    ("topic", "status", "online"),
    [
        ("iotflow/devices/1/status/heartbeat", "online", True),
        ("iotflow/devices/1/status/online", "online", True),
        ("iotflow/devices/1/status/offline", "offline", False),
        ("iotflow/lwt/devices/1", "offline", False),
    ],
)
def test_status(topic: str, status: str, *, online: bool) -> None:
    reading = one(topic)
    assert reading.measurement == "status"
    assert reading.device_id == "device_1"
    assert reading.values == {"temperature": 23.5, "status": status, "online": online}
    said = one(topic, status="alive", online=not online).values
    assert (said["status"], said["online"]) == ("alive", not online)


def test_a_last_will_that_is_one_word_has_a_time_only_where_that_is_configured() -> None:
    topic = "iotflow/devices/1/status/offline"
    (rejected,) = outcomes(b"offline", topic)
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "missing_field"
    setup = setup_of(iotflow.POLICY.changed({"time": {"missing": "receive"}}))
    meta = Meta("raw", topic.encode(), [], 1_759_667_696_000, setup)
    assert iotflow.decode(b"offline", meta) == (
        Reading(
            "status",
            "device_1",
            AT,
            {"status": "offline", "online": False},
            tags={"original_topic": topic, "kind": "offline"},
            dialect="iotflow",
            flags=[RECEIVE_TIME],
        ),
    )


@pytest.mark.parametrize(
    "rest",
    [
        "devices/1/commands/config",
        "devices/1/commands/control",
        "devices/1/commands/firmware",
        "devices/1/config",
        "devices/1/status",
        "devices/1/telemetry/other",
        "devices/1",
        "devices//telemetry",
        "discovery/register/1",
        "discovery/response/1",
        "fleet/commands/g",
        "fleet/status/g",
        "system/health",
        "system/metrics",
        "monitoring/broker",
        "lwt/devices/1/2",
    ],
)
def test_the_rest_of_the_taxonomy_is_no_telemetry(rest: str) -> None:
    assert reason("iotflow/" + rest, device_id=1) == "not_telemetry"
    assert reason("", original_topic="iotflow/" + rest, device_id=1) == "not_telemetry"
    assert by_origin("iotflow/" + rest) == "iotflow"


@pytest.mark.parametrize("data", [None, {}, {"pressure": 1}])
@pytest.mark.parametrize("name", ["ts", "timestamp"])
def test_a_time_is_never_a_measurement(name: str, data: dict[str, int] | None) -> None:
    said = {"ts": None, "timestamp": None, name: 1759667696, "data": data}
    if data is not None:
        said["data"] = data | {"ts": 1, "timestamp": 2}
    reading = one(**said)
    assert not {"ts", "timestamp"} & reading.values.keys()
    assert reading.time == AT


@pytest.mark.parametrize(
    "time", [1759667696, 1759667696000, "1759667696", "2025-10-05T12:34:56", "2025-10-05 14:34:56+02:00"]
)
def test_times(time: object) -> None:
    assert one(timestamp=time).time == AT
    assert one(timestamp=None, ts=time).time == AT
    assert one(timestamp=None, data={"ts": time}).time == AT


def test_types_are_kept() -> None:
    said = {"whole": 20, "real": 20.0, "text": "20", "flag": True, "none": None}
    for reading in (one(**said), one(data=said)):
        assert {name: (value, type(value)) for name, value in reading.values.items() if name in said} == {
            name: (value, type(value)) for name, value in said.items()
        }


def test_secrets_are_dropped() -> None:
    hidden = {"api_key": "k-1", "wifi_password": "k-2", "auth": {"token": "k-3"}}
    for reading, *_ in (decode(**hidden), decode(data=hidden | {"a": 1}), decode(metadata=hidden)):
        assert isinstance(reading, Reading)
        assert "k-" not in repr(reading)


def test_metadata_are_tags() -> None:
    reading = one(metadata={"floor": 3, "room": "B", "none": None, "net": {"ip": "10.0.0.1", "token": "t"}})
    assert reading.tags == {
        "metadata.floor": "3",
        "metadata.room": "B",
        "metadata.net": '{"ip":"10.0.0.1"}',
        "original_topic": TELEMETRY,
    }
    reading, rejected = decode(metadata={"m" * 256: 1, "room": "B"})
    assert isinstance(reading, Reading)
    assert reading.tags["metadata.room"] == "B"
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "too_large"


def test_nested_measurements_are_refused_alone() -> None:
    reading, rejected = decode(data={"level": 1, "gps": [1, 2], "net": {"rssi": 1}})
    assert isinstance(reading, Reading)
    assert reading.values == {"level": 1, "temperature": 23.5}
    assert isinstance(rejected, Rejected)
    assert "gps" in rejected.error
    assert "net" in rejected.error


@pytest.mark.parametrize(
    ("within", "beside"), [(23.5, 23.5), (20.0, 20), ("a", "a"), (None, None), (False, False), (0, -0.0)]
)
def test_a_measurement_that_is_said_twice_and_alike_is_kept(within: object, beside: object) -> None:
    reading = one(level=beside, data={"level": within})
    assert repr(reading.values["level"]) == repr(within)
    assert reading.values == {"temperature": 23.5, "level": within}


@pytest.mark.parametrize(
    ("within", "beside"), [(7, 23.5), (None, 23.5), (23.5, None), (1, True), (False, 0), ("1", 1), (0.1, 0.2)]
)
def test_a_measurement_that_data_and_the_root_do_not_agree_on_is_refused_alone(within: object, beside: object) -> None:
    reading, rejected = decode(level=beside, rssi=-71, data={"level": within, "on": True})
    assert isinstance(reading, Reading)
    assert reading.values == {"on": True, "temperature": 23.5, "rssi": -71}
    assert isinstance(rejected, Rejected)
    assert rejected == Rejected("contradiction", f"'level' is {quoted(within)} in data, and {quoted(beside)} beside it")
    assert reason(temperature=beside, data={"temperature": within}) == "contradiction"


def test_a_nested_measurement_beside_a_plain_one_is_refused_with_it() -> None:
    reading, nested, apart = decode(gps=5, data={"gps": [1, 2]})
    assert isinstance(reading, Reading)
    assert reading.values == {"temperature": 23.5}
    assert isinstance(nested, Rejected)
    assert isinstance(apart, Rejected)
    assert (nested.reason, apart.reason) == ("bad_type", "contradiction")
    assert "an array" in apart.error


def test_many_contradictions_are_one_letter_and_show_no_secret() -> None:
    said = {f"m{number}": number for number in range(1_000)}
    reading, rejected = decode(
        **said,
        api_key="hunter2",
        data={name: value + 1 for name, value in said.items()} | {"api_key": "hunter3", "a": 1},
    )
    assert isinstance(reading, Reading)
    assert reading.values == {"a": 1, "temperature": 23.5}
    assert isinstance(rejected, Rejected)
    assert rejected.error.endswith("'m2' is 3 in data, and 2 beside it; and 997 more")
    assert "hunter" not in rejected.error


def test_a_status_that_is_contradicted_is_what_its_topic_says() -> None:
    reading, rejected = decode("iotflow/devices/1/status/offline", online=True, data={"online": False})
    assert isinstance(reading, Reading)
    assert reading.values == {"temperature": 23.5, "status": "offline", "online": False}
    assert isinstance(rejected, Rejected)
    assert rejected.reason == "contradiction"
