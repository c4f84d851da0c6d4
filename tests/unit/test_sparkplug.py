"""Sparkplug B: types, times, births and aliases, and payloads that mean harm."""

import gzip
import math
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.fleet import Fleet
from schemas import dialects, sparkplug, wire
from schemas.dialects import Meta, sparkplug_b
from schemas.payload import NAME_CHARS
from schemas.reading import RECEIVE_TIME, Reading, Rejected

MS = 1_759_581_296_789
AT = datetime(2025, 10, 4, 12, 34, 56, 789_000, tzinfo=UTC)
RECEIVED_MS = 1_759_622_400_123
RECEIVED = datetime(2025, 10, 5, microsecond=123_000, tzinfo=UTC)
DEVICE = "spBv1.0/G/DDATA/E/D"
NODE = "spBv1.0/G/NDATA/E"
DBIRTH = "spBv1.0/G/DBIRTH/E/D"
NBIRTH = "spBv1.0/G/NBIRTH/E"
NDEATH = "spBv1.0/G/NDEATH/E"
DDEATH = "spBv1.0/G/DDEATH/E/D"
PROTECTED = "hunter2-do-not-show"

Outcomes = Sequence[Reading | Rejected]


class Host:
    """A decoder with a memory of its own."""

    def __init__(self, policy: Mapping[str, Any] | None = None, **options: int) -> None:
        self.policy = dialects.policy_of("sparkplug-b").changed(policy or {})
        self.speak = dialects.speaker("sparkplug-b", self.policy, options)

    def bytes(self, origin: str, payload: bytes, received_ms: int = RECEIVED_MS) -> Outcomes:
        setup = dialects.setup_of(self.policy)
        return self.speak(payload, Meta("raw", None, [("mqtt_topic", origin.encode())], received_ms, setup))

    def __call__(self, origin: str, *metrics: Mapping[str, Any], received_ms: int = RECEIVED_MS, **payload: Any) -> Any:
        return self.bytes(origin, built(metrics=metrics, **({"timestamp": MS} | payload)), received_ms)


def built(**payload: Any) -> bytes:
    made: bytes = sparkplug.payload_type()(**{k: v for k, v in payload.items() if v is not None}).SerializeToString()
    return made


def double(name: str, value: float = 1.5, **more: Any) -> dict[str, Any]:
    return {"name": name, "datatype": sparkplug.DOUBLE, "double_value": value, **more}


def properties(unit: str | None = None, quality: int | None = None, key: str = "engUnit") -> dict[str, Any]:
    said: list[tuple[str, dict[str, Any]]] = []
    if unit is not None:
        said.append((key, {"type": sparkplug.STRING, "string_value": unit}))
    if quality is not None:
        said.append(("Quality", {"type": sparkplug.INT32, "int_value": quality}))
    return {"keys": [name for name, _ in said], "values": [value for _, value in said]}


def value_of(datatype: int | None, **field: Any) -> Any:
    metric = {"name": "m", **field} | ({} if datatype is None else {"datatype": datatype})
    (outcome,) = Host()(DEVICE, metric)
    return outcome.values["m"] if isinstance(outcome, Reading) else outcome.reason


def reasons(outcomes: Outcomes) -> list[str]:
    return [outcome.reason for outcome in outcomes if isinstance(outcome, Rejected)]


def values(outcomes: Outcomes) -> list[dict[str, Any]]:
    return [outcome.values for outcome in outcomes if isinstance(outcome, Reading)]


def exactly(value: Any) -> str:
    return repr(msgspec.to_builtins(value, builtin_types=(datetime,)))


EXAMPLES: list[dict[str, Any]] = [
    {
        "timestamp": MS,
        "metrics": [
            double("Temperature", 21.5, timestamp=MS, properties=properties("°C")),
            double("Pressure", 312.25, timestamp=MS, properties=properties("kPa")),
            double("Motor/Current", 4.75, timestamp=MS, properties=properties("A")),
        ],
    },
    {
        "timestamp": MS,
        "metrics": [
            {"name": "Int8", "datatype": 1, "int_value": 254},
            {"name": "Int16", "datatype": 2, "int_value": 2**32 - 300},
            {"name": "Int32", "datatype": 3, "int_value": 2**32 - 70_000},
            {"name": "Int64", "datatype": 4, "long_value": 2**64 - 2**53 - 1},
            {"name": "UInt32", "datatype": 7, "long_value": 2**32 - 1},
            {"name": "UInt64", "datatype": 8, "long_value": 2**64 - 1},
            {"name": "Float", "datatype": 9, "float_value": 0.5},
            {"name": "Running", "datatype": 11, "boolean_value": False},
            {"name": "State", "datatype": 12, "string_value": "idle"},
            {"name": "Last service", "datatype": 13, "long_value": 1_735_689_600_000},
            {"name": "Recipe", "datatype": 12, "is_null": True},
        ],
        "seq": 7,
    },
    {
        "timestamp": MS,
        "metrics": [
            double("Level", 3.0),
            double("Level", 1.0, timestamp=MS - 2000, is_historical=True),
            double("Level", 2.0, timestamp=MS - 1000, is_historical=True),
            double("Flow", 0.25, timestamp=MS - 2000, is_historical=True),
        ],
        "seq": 8,
    },
    {
        "timestamp": MS,
        "metrics": [
            {"name": "bdSeq", "timestamp": MS, "datatype": 4, "long_value": 3},
            {"name": "Node Control/Rebirth", "timestamp": MS, "datatype": 11, "boolean_value": False},
            double("Room/Temperature", 19.25, alias=5, timestamp=MS, properties=properties("°C")),
        ],
        "seq": 0,
    },
    {"timestamp": MS, "seq": 9},
    {
        "timestamp": MS,
        "metrics": [
            double("Level", properties=properties("m", 500)),
            double("Flow", 0.25, properties=properties(quality=192)),
        ],
        "seq": 10,
    },
    {"timestamp": MS, "metrics": [double("Level"), {"alias": 17, "double_value": 4.0}], "seq": 11},
    {
        "timestamp": MS,
        "metrics": [
            double("Level"),
            {"name": "Table", "datatype": 16, "dataset_value": {}},
            {"name": "Spectrum", "datatype": 31, "bytes_value": bytes(8)},
        ],
        "seq": 12,
    },
    {"timestamp": MS, "metrics": [double("Flow", math.nan), double("Level")], "seq": 13},
    {"timestamp": MS, "metrics": [{"name": "Flow", "datatype": 10}]},
    {"timestamp": MS, "metrics": [{"name": "Flow", "datatype": 10, "string_value": "1"}]},
    {"timestamp": MS, "metrics": [{"name": "Steps", "datatype": 1, "int_value": 300}]},
    {"metrics": [double("Level")]},
    {"timestamp": 2**63, "metrics": [double("Level")]},
    {"timestamp": MS + 10 * 365 * 86_400_000, "metrics": [double("Level")]},
    {"timestamp": MS, "metrics": [{"name": "Node Control/Rebirth", "datatype": 11, "boolean_value": True}]},
]


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_examples_bytes_are_what_they_seem(number: int) -> None:
    assert built(**EXAMPLES[number]) == sparkplug_b.EXAMPLES[number].payload


def test_the_types_have_their_numbers() -> None:
    assert len(sparkplug.TYPES) == 35
    numbered = {"Int8": 1, "UInt64": 8, "Double": 10, "DateTime": 13, "UUID": 15, "File": 18, "DateTimeArray": 34}
    assert {name: sparkplug.TYPES.index(name) for name in numbered} == numbered
    assert sparkplug.TYPES.index("PropertySetList") == 21
    assert sparkplug.TYPES[sparkplug.UUID] == "UUID"


@pytest.mark.parametrize(
    ("datatype", "field", "said", "expected"),
    [
        (1, "int_value", 127, 127),
        (1, "int_value", 128, -128),
        (1, "int_value", 255, -1),
        (1, "int_value", 2**32 - 1, -1),
        (1, "int_value", 2**32 - 128, -128),
        (1, "int_value", 2**32 - 129, "out_of_range"),
        (1, "int_value", 256, "out_of_range"),
        (1, "long_value", 2**64 - 1, -1),
        (2, "int_value", 32_767, 32_767),
        (2, "int_value", 32_768, -32_768),
        (2, "int_value", 2**32 - 2, -2),
        (2, "int_value", 65_536, "out_of_range"),
        (3, "int_value", 2**31 - 1, 2**31 - 1),
        (3, "int_value", 2**31, -(2**31)),
        (3, "long_value", 2**32 - 5, -5),
        (3, "long_value", 2**64 - 5, -5),
        (3, "long_value", 2**32, "out_of_range"),
        (4, "long_value", 2**63 - 1, 2**63 - 1),
        (4, "long_value", 2**63, -(2**63)),
        (4, "long_value", 2**64 - 1, -1),
        (4, "int_value", 2**32 - 1, 2**32 - 1),
        (5, "int_value", 255, 255),
        (5, "int_value", 256, "out_of_range"),
        (6, "int_value", 65_535, 65_535),
        (6, "int_value", 65_536, "out_of_range"),
        (7, "int_value", 2**32 - 1, 2**32 - 1),
        (7, "long_value", 2**32 - 1, 2**32 - 1),
        (7, "long_value", 2**32, "out_of_range"),
        (8, "long_value", 2**64 - 1, 2**64 - 1),
        (8, "int_value", 3, 3),
        (8, "double_value", 3.0, "bad_type"),
        (9, "float_value", 0.25, 0.25),
        (9, "float_value", 1e39, "not_finite"),
        (9, "double_value", 0.1, 0.1),
        (10, "double_value", -0.0, -0.0),
        (10, "double_value", math.nan, "not_finite"),
        (10, "double_value", -math.inf, "not_finite"),
        (10, "int_value", 1, "bad_type"),
        (11, "boolean_value", True, True),
        (11, "boolean_value", False, False),
        (11, "int_value", 1, "bad_type"),
        (12, "string_value", "", ""),
        (12, "string_value", "größer\n", "größer\n"),
        (12, "double_value", 1.0, "bad_type"),
        (13, "long_value", 0, "1970-01-01T00:00:00.000Z"),
        (13, "long_value", MS, "2025-10-04T12:34:56.789Z"),
        (13, "long_value", 253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
        (13, "long_value", 253_402_300_800_000, "out_of_range"),
        (13, "long_value", 2**64 - 1, "out_of_range"),
        (13, "string_value", "2025-10-04", "bad_type"),
        (14, "string_value", "text", "text"),
        (15, "string_value", "8e52761e-35de-4c3b-8a5b-1d2e3f405162", "8e52761e-35de-4c3b-8a5b-1d2e3f405162"),
        *[(datatype, "bytes_value", b"\0" * 8, "bad_type") for datatype in (*range(16, 35), 35, 2**32 - 1)],
        (None, "double_value", 2.5, 2.5),
        (None, "float_value", 2.5, 2.5),
        (None, "double_value", math.inf, "not_finite"),
        (None, "string_value", "idle", "idle"),
        (None, "boolean_value", True, True),
        (None, "int_value", 3, "unknown_alias"),
        (None, "long_value", 3, "unknown_alias"),
        (None, "bytes_value", b"3", "bad_type"),
        (None, "dataset_value", {}, "bad_type"),
        (None, "template_value", {}, "bad_type"),
    ],
)
def test_each_type_becomes_its_value(datatype: int | None, field: str, said: Any, expected: Any) -> None:
    assert exactly(value_of(datatype, **{field: said})) == exactly(expected)


@pytest.mark.parametrize("datatype", [None, *range(16)])
def test_a_null_of_any_single_value_is_null(datatype: int | None) -> None:
    assert value_of(datatype, is_null=True) is None
    assert value_of(datatype, is_null=True, string_value="ignored") is None


@pytest.mark.parametrize("datatype", range(16, 35))
def test_a_null_of_anything_else_is_refused(datatype: int) -> None:
    assert value_of(datatype, is_null=True) == "bad_type"


def test_an_error_names_the_metric_and_the_rule() -> None:
    (wrong,) = Host()(DEVICE, {"name": "Spectrum", "datatype": 31, "bytes_value": b"x"})
    assert wrong == Rejected("bad_type", "'Spectrum' is of type DoubleArray, which is no single value")


def test_the_topic_names_the_device() -> None:
    tags = {"original_topic": DEVICE, "group_id": "G", "edge_node_id": "E"}
    (reading,) = Host()(DEVICE, double("m"))
    assert reading == Reading("telemetry", "G/E/D", AT, {"m": 1.5}, tags=tags, dialect="sparkplug-b")
    (reading,) = Host()(NODE, double("m"))
    assert (reading.device_id, reading.channel) == ("G/E", "")


def test_the_topic_may_be_the_records_key() -> None:
    speak = dialects.speaker("sparkplug-b")
    (reading,) = speak(built(timestamp=MS, metrics=[double("m")]), Meta("raw", DEVICE.encode(), [], RECEIVED_MS))
    assert isinstance(reading, Reading)
    assert reading.device_id == "G/E/D"


def test_the_dialect_claims_its_topics() -> None:
    assert dialects.by_origin(DEVICE) == dialects.by_origin("spBv1.0/STATE/scada") == "sparkplug-b"
    assert dialects.by_origin("spAv1.0/G/DDATA/E/D") != "sparkplug-b"


def test_metrics_of_one_time_are_one_reading_and_times_are_in_order() -> None:
    outcomes = Host()(
        DEVICE,
        double("now", 1.0),
        double("then", 2.0, timestamp=MS - 5),
        double("now too", 3.0, timestamp=MS),
        double("then too", 4.0, timestamp=MS - 5),
        double("between", 5.0, timestamp=MS - 1),
    )
    assert [(reading.time, reading.values) for reading in outcomes] == [
        (AT - timedelta(milliseconds=5), {"then": 2.0, "then too": 4.0}),
        (AT - timedelta(milliseconds=1), {"between": 5.0}),
        (AT, {"now": 1.0, "now too": 3.0}),
    ]
    assert len({id(reading.tags) for reading in outcomes}) == 3


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (1, datetime(1970, 1, 1, microsecond=1000, tzinfo=UTC)),
        (86_400_000, datetime(1970, 1, 2, tzinfo=UTC)),
        (MS * 1000 + 1, AT + timedelta(microseconds=1)),
        (MS * 1_000_000 + 1999, AT + timedelta(microseconds=1)),
        (0, "missing_field"),
        (None, "missing_field"),
        (7_289_654_400_000, "bad_timestamp"),
        (2**64 - 1, "bad_timestamp"),
    ],
)
def test_times_are_ms_or_finer(said: int | None, expected: Any) -> None:
    for payload in ({"timestamp": said}, {"timestamp": None, "at": said}):
        at = payload.pop("at", None)
        metric = double("m") if at is None else double("m", timestamp=at)
        (outcome,) = Host({"time": {"since": None}})(DEVICE, metric, **payload)
        assert (outcome.time if isinstance(outcome, Reading) else outcome.reason) == expected


def test_a_bad_time_of_one_metric_is_its_own() -> None:
    outcomes = Host()(DEVICE, double("good"), double("bad", timestamp=2**64 - 1))
    assert values(outcomes) == [{"good": 1.5}]
    assert reasons(outcomes) == ["bad_timestamp"]


def test_the_receive_time_stands_in_where_that_is_configured() -> None:
    host = Host({"time": {"missing": "receive", "unreadable": "receive"}})
    outcomes = host(
        DEVICE,
        double("unsaid"),
        double("absurd", timestamp=2**63),
        double("more", timestamp=2**63 + 1),
        double("said", timestamp=MS),
        timestamp=None,
    )
    assert [(reading.time, reading.values, reading.flags) for reading in outcomes] == [
        (AT, {"said": 1.5}, []),
        (RECEIVED, {"unsaid": 1.5, "absurd": 1.5, "more": 1.5}, [RECEIVE_TIME]),
    ]
    (again,) = host.bytes(DEVICE, sparkplug_b.encode(outcomes[1]))
    assert exactly(again) == exactly(outcomes[1])


def test_of_two_values_with_one_name_the_last_counts_whole() -> None:
    outcomes = Host()(
        DEVICE,
        double("a", 1.0, properties=properties("m", 0)),
        double("b", 2.0, properties=properties("s", 0)),
        double("a", 3.0),
    )
    (reading,) = outcomes
    assert list(reading.values.items()) == [("b", 2.0), ("a", 3.0)]
    assert reading.units == {"b": "s"}
    assert {tag for tag in reading.tags if tag.startswith("quality")} == {"quality.b"}


@pytest.mark.parametrize("key", ["engUnit", "EngUnit"])
def test_units_and_bad_quality_are_kept(key: str) -> None:
    (reading,) = Host()(DEVICE, double("a", properties=properties("°C", 0, key)), double("b"))
    assert reading.units == {"a": "°C"}
    assert reading.tags["quality.a"] == "0"
    assert "quality.b" not in reading.tags


@pytest.mark.parametrize(
    "odd",
    [
        {"keys": ["engUnit", "Quality"], "values": []},
        {"keys": [], "values": [{"type": 12, "string_value": "m"}]},
        {"keys": ["engUnit"], "values": [{"type": 3, "int_value": 4}]},
        {"keys": ["engUnit"], "values": [{"type": 12, "is_null": True}]},
        {"keys": ["Quality"], "values": [{"type": 12, "string_value": "bad"}]},
        {"keys": ["Quality"], "values": [{"type": 3, "is_null": True}]},
        {"keys": ["tooltip"], "values": [{"type": 12, "string_value": "of the tank"}]},
    ],
)
def test_odd_properties_say_nothing(odd: dict[str, Any]) -> None:
    (reading,) = Host()(DEVICE, double("a", properties=odd))
    assert not reading.units
    assert len(reading.tags) == 3


def test_names_and_units_have_their_lengths() -> None:
    name = "n" * NAME_CHARS
    assert values(Host()(DEVICE, double(name), double("a", properties=properties(name)))) == [{name: 1.5, "a": 1.5}]
    for metric in (
        double(name + "n"),
        double("a", properties=properties(name + "n")),
        double(name, properties=properties(quality=0)),
    ):
        outcomes = Host()(DEVICE, metric, double("sibling"))
        assert values(outcomes) == [{"sibling": 1.5}]
        assert reasons(outcomes) == ["too_large"]


def test_what_is_no_measurement_is_left_out() -> None:
    outcomes = Host()(
        NODE,
        {"name": "bdSeq", "datatype": 4, "long_value": 1},
        {"name": "Node Control/Reboot", "datatype": 11, "boolean_value": False},
        {"name": "Device Control/Scan rate", "datatype": 4, "long_value": 3000},
        {"name": "_types_/Motor", "datatype": 19, "template_value": {"is_definition": True}},
        {"name": "Uplink/api_key", "datatype": 12, "string_value": PROTECTED},
        double("scratch", is_transient=True),
        double("kept"),
    )
    assert values(outcomes) == [{"kept": 1.5}]
    assert not reasons(outcomes)
    assert PROTECTED not in repr(outcomes)


def test_an_instance_of_a_template_is_refused() -> None:
    outcomes = Host()(NODE, {"name": "Motor 1", "datatype": 19, "template_value": {}}, double("kept"))
    assert values(outcomes) == [{"kept": 1.5}]
    assert reasons(outcomes) == ["bad_type"]


def test_data_may_name_its_metrics_by_alias() -> None:
    host = Host()
    first = host(DEVICE, double("Level"), {"alias": 0, "double_value": 1.0})
    assert values(first) == [{"Level": 1.5}]
    assert reasons(first) == ["unknown_alias"]
    host(
        DBIRTH,
        double("Flow", alias=0, properties=properties("l/s")),
        {"name": "Steps", "alias": 2**64 - 1, "datatype": 1, "int_value": 1},
        {"name": "State", "alias": 2, "datatype": 12, "is_null": True},
        {"name": "Node Control/Rebirth", "alias": 3, "datatype": 11, "boolean_value": False},
    )
    (reading,) = host(
        DEVICE,
        {"alias": 0, "double_value": 4.0},
        {"alias": 2**64 - 1, "int_value": 2**32 - 7},
        {"alias": 2, "is_null": True},
        {"alias": 3, "boolean_value": True},
    )
    assert reading.values == {"Flow": 4.0, "Steps": -7, "State": None}
    assert reading.units == {"Flow": "l/s"}


def test_a_name_without_a_type_has_that_of_its_birth() -> None:
    host = Host()
    assert reasons(host(DEVICE, {"name": "Steps", "int_value": 255})) == ["unknown_alias"]
    host(DBIRTH, {"name": "Steps", "datatype": 1, "int_value": 0})
    assert values(host(DEVICE, {"name": "Steps", "int_value": 255})) == [{"Steps": -1}]


def test_an_alias_is_of_the_device_that_was_born_with_it() -> None:
    host = Host()
    host(DBIRTH, double("Flow", alias=7))
    for other in (NODE, "spBv1.0/G/DDATA/E/D2", "spBv1.0/G/DDATA/E2/D", "spBv1.0/H/DDATA/E/D"):
        assert reasons(host(other, {"alias": 7, "double_value": 1.0})) == ["unknown_alias"]
    assert values(host(DEVICE, {"alias": 7, "double_value": 1.0})) == [{"Flow": 1.0}]
    assert reasons(Host()(DEVICE, {"alias": 7, "double_value": 1.0})) == ["unknown_alias"]


def test_a_birth_takes_the_place_of_the_one_before() -> None:
    host = Host()
    host(DBIRTH, double("Flow", alias=7, properties=properties("l/s")), double("Old", alias=8))
    host(DBIRTH, double("Level", alias=7))
    outcomes = host(DEVICE, {"alias": 7, "double_value": 1.0}, {"alias": 8, "double_value": 1.0})
    assert values(outcomes) == [{"Level": 1.0}]
    assert reasons(outcomes) == ["unknown_alias"]
    assert not outcomes[0].units


def born(host: Host, device: str, metrics: int = 1) -> None:
    host(f"spBv1.0/G/DBIRTH/E/{device}", *[double(f"m{number}", alias=number) for number in range(metrics)])


def knows(host: Host, device: str) -> bool:
    return not reasons(host(f"spBv1.0/G/DDATA/E/{device}", {"alias": 0, "double_value": 1.0}))


def test_the_birth_that_was_not_used_for_longest_is_forgotten_first() -> None:
    host = Host(devices=2)
    born(host, "a")
    born(host, "b")
    assert knows(host, "a")
    born(host, "c")
    assert [knows(host, device) for device in "abc"] == [True, False, True]


def test_the_memory_is_bounded_by_metrics_too() -> None:
    host = Host(metrics=10)
    born(host, "a", 5)
    born(host, "b", 5)
    born(host, "a", 5)
    assert [knows(host, device) for device in "ab"] == [True, True]
    born(host, "c", 6)
    assert [knows(host, device) for device in "abc"] == [False, False, True]


def test_a_birth_that_is_too_large_to_remember_is_read_and_says_so() -> None:
    host = Host(metrics=3)
    outcomes = host(DBIRTH, *[double(f"m{number}", alias=number) for number in range(4)])
    assert values(outcomes) == [{"m0": 1.5, "m1": 1.5, "m2": 1.5, "m3": 1.5, "online": True}]
    assert reasons(outcomes) == ["too_large"]
    assert not knows(host, "D")


def test_a_birth_is_online_at_the_payloads_time() -> None:
    first, second = Host()(DBIRTH, double("a", timestamp=MS - 60_000), double("b", timestamp=MS))
    assert (first.time, first.values) == (AT - timedelta(minutes=1), {"a": 1.5})
    assert (second.time, second.values) == (AT, {"b": 1.5, "online": True})
    (alone,) = Host()(NBIRTH)
    assert alone.values == {"online": True}


def test_a_birth_without_a_time_says_nothing_about_when_it_was() -> None:
    (reading,) = Host()(DBIRTH, double("a", timestamp=MS), timestamp=None)
    assert reading.values == {"a": 1.5}
    assert reasons(Host()(DBIRTH, timestamp=None)) == ["missing_field"]
    (reading,) = Host({"time": {"missing": "receive"}})(DBIRTH, double("a"), timestamp=None)
    assert (reading.time, reading.values) == (RECEIVED, {"a": 1.5, "online": True})


def test_a_metric_of_the_devices_own_that_is_called_online_is_kept() -> None:
    (reading,) = Host()(DBIRTH, {"name": "online", "datatype": 4, "long_value": 3}, double("a"))
    assert reading.values == {"online": 3, "a": 1.5}


def test_the_death_of_a_device_has_its_payloads_time() -> None:
    (reading,) = Host()(DDEATH, double("ignored"))
    assert (reading.device_id, reading.time, reading.values, reading.flags) == ("G/E/D", AT, {"online": False}, [])
    assert reasons(Host()(DDEATH, timestamp=None)) == ["missing_field"]


def test_the_death_of_an_edge_node_has_its_receive_time() -> None:
    host = Host()
    (reading,) = host(NDEATH, {"name": "bdSeq", "datatype": 4, "long_value": 3})
    assert (reading.device_id, reading.time, reading.values) == ("G/E", RECEIVED, {"online": False})
    assert reading.flags == [RECEIVE_TIME]
    assert host.bytes(NDEATH, sparkplug_b.encode(reading)) == (reading,)
    assert reasons(host(NDEATH, received_ms=-1)) == ["bad_timestamp"]


def test_the_will_of_an_older_session_is_refused() -> None:
    host = Host()
    session = {"name": "bdSeq", "datatype": 4}
    host(NBIRTH, {**session, "long_value": 4})
    assert reasons(host(NDEATH, {**session, "long_value": 3})) == ["not_telemetry"]
    assert values(host(NDEATH, {**session, "long_value": 4})) == [{"online": False}]
    assert values(host(NDEATH, {**session, "int_value": 4})) == [{"online": False}]
    assert values(host(NDEATH)) == [{"online": False}]
    # Received before the birth, it came late through another partition.
    assert values(host(NDEATH, {**session, "long_value": 3}, received_ms=RECEIVED_MS - 1)) == [{"online": False}]


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_compressed_payload_is_read(pack: Any) -> None:
    body = pack(built(timestamp=MS, metrics=[double("m")]))
    host = Host()
    packed = {"uuid": "SPBV1.0_COMPRESSED", "metrics": [{"name": "algorithm", "string_value": "GZIP"}]}
    assert values(host.bytes(DEVICE, built(**packed, body=body))) == [{"m": 1.5}]
    for spoiled in (body[:-9], b"", b"\0" + body, pack(b"\xff")):
        assert reasons(host.bytes(DEVICE, built(**packed, body=spoiled))) == ["undecodable"]
    bomb = pack(built(timestamp=MS, metrics=[double("m")], body=bytes(64 * 1024 * 1024)))
    assert reasons(host.bytes(DEVICE, built(**packed, body=bomb))) == ["too_large"]


def compressed(*metrics: Mapping[str, Any], **payload: Any) -> bytes:
    body = zlib.compress(built(timestamp=MS, metrics=metrics, **payload), 9)
    return built(uuid="SPBV1.0_COMPRESSED", body=body)


def outer(size: int, inflated: int) -> bytes:
    """A payload of so many bytes, a good metric in it, that decompresses to so many."""
    inner = built(timestamp=MS, metrics=[double("m")])
    fill = inflated - len(inner) - 1
    inner += b"\x2a" + varint(fill - len(varint(fill))) + bytes(fill - len(varint(fill)))
    assert len(inner) == inflated
    made = built(uuid="SPBV1.0_COMPRESSED", body=zlib.compress(inner, 9))
    fill = size - len(made) - 1
    # A field that nobody knows, since a body is as long as it is.
    made += b"\x7a" + varint(fill - len(varint(fill))) + bytes(fill - len(varint(fill)))
    assert len(made) == size
    return made


@pytest.mark.parametrize(
    ("size", "most"), [(500, 65_536), (2_000, 65_536), (2_100, 67_200), (10_000, 320_000), (200_000, 2_097_152)]
)
def test_what_a_payload_decompresses_to_goes_with_its_size(size: int, most: int) -> None:
    assert values(Host().bytes(DEVICE, outer(size, most))) == [{"m": 1.5}]
    (wrong,) = Host().bytes(DEVICE, outer(size, most + 1))
    assert wrong == Rejected("too_large", f"the payload's {size} bytes decompress to more than {most}")


def test_how_many_metrics_a_payload_holds_goes_with_its_size() -> None:
    """Twenty thousand nameless metrics are 40 kB, which compress to less than a hundred bytes."""
    few = compressed(*[{}] * 2_048)
    assert len(few) < 100
    assert reasons(Host().bytes(DEVICE, few)) == ["missing_field"]
    for count in (2_049, 20_000):
        many = compressed(*[{}] * count)
        assert len(many) < 150
        (wrong,) = Host().bytes(DEVICE, many)
        why = f"the payload has {count} metrics, more than the 2048 that its {len(many)} bytes may hold"
        assert wrong == Rejected("too_large", why)
        # As many fit where as much was received, and uncompressed any number does that fits.
        assert reasons(Host().bytes(DEVICE, many + b"\x7a" + varint(2 * count) + bytes(2 * count))) == ["missing_field"]
        assert reasons(Host().bytes(DEVICE, b"\x12\x00" * count)) == ["missing_field"]


def test_a_large_birth_that_is_compressed_is_read_whole() -> None:
    names = [f"Line {number % 7}/Motor {number}/Current" for number in range(10_000)]
    birth = compressed(*[double(name, number * 0.37, properties=properties("A")) for number, name in enumerate(names)])
    (reading,) = Host().bytes(DBIRTH, birth)
    assert isinstance(reading, Reading)
    assert reading.values.keys() == {*names, "online"}


def test_every_truncation_gives_an_answer() -> None:
    payload = sparkplug_b.EXAMPLES[1].payload
    host = Host()
    whole = len(values(host.bytes(DEVICE, payload))[0])
    for length in range(len(payload)):
        outcomes = host.bytes(DEVICE, payload[:length])
        assert reasons(outcomes) or len(values(outcomes)[0]) < whole or payload[length:] == b"\x18\x07"


def test_deep_templates_are_passed_over() -> None:
    metric = built(metrics=[{"name": "m"}])
    for _ in range(5_000):
        # A payload's metrics and a template's have the same number, so that one fits into the other.
        inner = b"\x0a\x01m\x20\x13\x92\x01" + varint(len(metric)) + metric
        metric = b"\x12" + varint(len(inner)) + inner
    outcomes = Host().bytes(DEVICE, metric + built(timestamp=MS, metrics=[double("kept")]))
    assert values(outcomes) == [{"kept": 1.5}]
    assert reasons(outcomes) == ["bad_type"]
    # Groups of an unknown field, which a parser must follow to their ends.
    assert reasons(Host().bytes(DEVICE, b"\x7b" * 100_000)) == ["undecodable"]


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def test_text_that_is_not_utf_8_hurts_only_itself() -> None:
    spoiled = built(timestamp=MS, metrics=[{"name": "note", "string_value": "AAAA"}, double("kept"), double("BBBB")])
    spoiled = spoiled.replace(b"AAAA", b"\xff" * 4).replace(b"BBBB", b"\xfe" * 4)
    outcomes = Host().bytes(DEVICE, spoiled)
    assert values(outcomes) == [{"kept": 1.5}]
    assert reasons(outcomes) == ["undecodable"]
    unit = built(timestamp=MS, metrics=[double("kept", properties=properties("CCCC"))]).replace(b"CCCC", b"\xff" * 4)
    assert values(Host().bytes(DEVICE, unit)) == [{"kept": 1.5}]


def test_huge_texts_are_quoted_short() -> None:
    huge = "x" * 10_000_000
    outcomes = Host()(
        DEVICE, double(huge), {"name": huge, "datatype": 16}, {"name": "long", "datatype": 12, "string_value": huge}
    )
    assert values(outcomes) == [{"long": huge}]
    (wrong,) = [outcome for outcome in outcomes if isinstance(outcome, Rejected)]
    assert wrong.reason == "too_large"
    assert wrong.error.count("x") < 130
    assert reasons(Host().bytes("spBv1.0/" + huge, b"")) == ["too_large"]


def test_a_hundred_thousand_metrics_make_few_outcomes() -> None:
    count = 100_000
    good = Host()(DBIRTH, *[double(f"m{number}") for number in range(count)])
    assert [len(found) for found in values(good)] == [count + 1]
    bad = Host()(DEVICE, *[{"alias": number, "double_value": 1.0} for number in range(count)])
    assert reasons(bad) == ["unknown_alias"]
    assert "and 99997 more" in bad[0].error
    times = Host()(DEVICE, *[double("m", timestamp=MS - number) for number in range(count)])
    assert len(values(times)) == count
    assert times[0].time < times[-1].time
    wild = Host()(DEVICE, *[double("m", timestamp=2**63 + number) for number in range(count)])
    assert reasons(wild) == ["bad_timestamp"]
    assert reasons(Host().bytes(DEVICE, b"\x12\x00" * 250_001)) == ["too_large"]


def test_errors_are_short_whatever_is_wrong() -> None:
    metrics = [{"name": "'\\\0" * 80, "datatype": kind % 40, "bytes_value": b"x"} for kind in range(400)]
    for outcome in Host()(DEVICE, *metrics):
        assert isinstance(outcome, Rejected)
        assert len(outcome.error) < 1_000


names = st.text(max_size=12) | st.sampled_from(["online", "bdSeq", "a", "b", "api_key", "Node Control/x", "n" * 250])
counts = st.sampled_from([0, 1, 127, 128, 192, 255, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
longs = st.sampled_from([0, 2**63 - 1, 2**63, 2**64 - 1, MS]) | st.integers(0, 2**64 - 1)
times = st.sampled_from([0, MS, MS - 1, MS * 1000 + 1, 2**64 - 1])
property_values = st.one_of(
    st.fixed_dictionaries({"string_value": st.text(max_size=5)}), st.fixed_dictionaries({"int_value": counts})
)
property_sets = st.fixed_dictionaries(
    {
        "keys": st.lists(st.sampled_from(["engUnit", "EngUnit", "Quality", "x"]), max_size=3),
        "values": st.lists(property_values, max_size=3),
    }
)
metrics = st.fixed_dictionaries(
    {},
    optional={
        "name": names,
        "alias": st.integers(0, 3),
        "timestamp": times,
        "datatype": st.integers(0, 36),
        "is_null": st.booleans(),
        "is_transient": st.booleans(),
        "properties": property_sets,
    },
).flatmap(
    lambda metric: st.one_of(
        st.just(metric),
        counts.map(lambda value: {**metric, "int_value": value}),
        longs.map(lambda value: {**metric, "long_value": value}),
        st.floats(width=32).map(lambda value: {**metric, "float_value": value}),
        st.floats().map(lambda value: {**metric, "double_value": value}),
        st.floats().map(lambda value: {**metric, "datatype": 10, "double_value": value}),
        st.booleans().map(lambda value: {**metric, "boolean_value": value}),
        st.text(max_size=9).map(lambda value: {**metric, "string_value": value}),
        st.binary(max_size=3).map(lambda value: {**metric, "bytes_value": value}),
    )
)
payloads = st.fixed_dictionaries({"metrics": st.lists(metrics, max_size=6)}, optional={"timestamp": times}).map(
    lambda payload: built(**payload)
)
origins = st.sampled_from([DEVICE, NODE, DBIRTH, NBIRTH, DDEATH, NDEATH])


def check(host: Host, origin: str, payload: bytes) -> None:
    outcomes = host.bytes(origin, payload)
    assert outcomes
    for outcome in outcomes:
        if isinstance(outcome, Rejected):
            assert 0 < len(outcome.error) < 1_000
            continue
        assert exactly(wire.read(wire.write(outcome))) == exactly(outcome)
        again = host.bytes(origin, sparkplug_b.encode(outcome))
        assert [exactly(reading) for reading in again] == [exactly(outcome)]


@given(messages=st.lists(st.tuples(origins, payloads), min_size=1, max_size=4))
@settings(deadline=None, max_examples=300)
def test_any_messages_in_any_order_are_said_again_exactly(messages: list[tuple[str, bytes]]) -> None:
    host = Host()
    for origin, payload in messages:
        check(host, origin, payload)


@given(origin=origins, payload=st.binary(max_size=60), at=st.integers(0, 200))
@settings(deadline=None, max_examples=300)
def test_any_bytes_anywhere_give_an_answer(origin: str, payload: bytes, at: int) -> None:
    host = Host()
    example = sparkplug_b.EXAMPLES[1].payload
    check(host, origin, payload)
    check(host, origin, example[:at] + payload + example[at + len(payload) :])


@given(origin=st.text(max_size=40) | st.lists(st.sampled_from(["spBv1.0", "G", "DDATA", "STATE", ""])).map("/".join))
@settings(deadline=None)
def test_any_topic_gives_an_answer(origin: str) -> None:
    headers = [("mqtt_topic", origin.encode("utf-8", "surrogatepass"))]
    assert dialects.speaker("sparkplug-b")(built(timestamp=MS), Meta("raw", None, headers, RECEIVED_MS))


def test_the_simulator_speaks_it() -> None:
    host = Host()
    fleet = Fleet(3, "sparkplug-b", 1, bad_share=0.5, prefix="press")
    kinds = set()
    for second in range(100):
        sample = fleet.sample(AT + timedelta(seconds=second, microseconds=second))
        (outcome,) = host.bytes(sample.origin, sample.payload)
        if isinstance(outcome, Reading):
            assert exactly(outcome) == exactly(sample.expected)
            assert outcome.device_id == sample.device_id
        else:
            assert outcome.reason == sample.expected
            kinds.add(outcome.reason)
    assert kinds == sparkplug_b.SPOILED.keys()
    assert fleet.sample(AT).device_id.startswith("Plant 1/Line 4/press-00")


def test_without_protobuf_the_dialect_says_what_to_install() -> None:
    script = """
import sys
from types import SimpleNamespace

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name == "google.protobuf" or name.startswith("google.protobuf."):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden())
from schemas import dialects, inputs
from schemas.decoding import Decoder

assert "sparkplug-b" in dialects.load()
try:
    inputs.parse({"topics": {"plant": {"dialect": "sparkplug-b"}}}, {})
except inputs.InputsError as error:
    print(*error.problems)
decode = Decoder(inputs.Inputs({"raw": inputs.Input("telemetry")}), partitions=1, stage="decode", version="1",
                 max_message_bytes=100_000)
record = SimpleNamespace(topic="raw", partition=0, offset=0, timestamp=1, key=None, value=b"",
                         headers=[("iotflow-dialect", b"sparkplug-b")])
print(decode.outcomes(record))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    configured, asked = done.stdout.splitlines()
    sentence = "the dialect sparkplug-b needs protobuf, which is not installed: pip install 'iotflow[codecs]'"
    assert configured == f"topics.plant: {sentence}"
    assert "reason='unknown_dialect'" in asked
    assert sentence in asked
