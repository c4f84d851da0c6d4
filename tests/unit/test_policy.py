"""Policies: what is believed, and what becomes of the rest."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from schemas import units
from schemas.policy import Metric, Policy, finisher
from schemas.reading import Reading, Rejected, flaw

AT = datetime(2025, 10, 5, 12, tzinfo=UTC)
RECEIVED_MS = int(AT.timestamp() * 1000)
HOUR = timedelta(hours=1)


def reading(time: datetime = AT, device: str = "d", units: dict[str, str] | None = None, **values: Any) -> Reading:
    return Reading("m", device, time, dict(values) or {"x": 1.0}, units=dict(units or {}))


def apply(policy: dict[str, Any], *outcomes: Reading | Rejected, received_ms: int = RECEIVED_MS) -> list[Any]:
    return list(finisher(Policy.model_validate(policy))(outcomes, received_ms))


def metric(**said: Any) -> dict[str, Any]:
    return {"metrics": {"x": said}}


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0.0, 10.0, 5, 0, 10, True, None, "hot"])
def test_what_is_inside_or_no_number_is_left_alone(value: Any) -> None:
    said = reading(x=value)
    (kept,) = apply(metric(low=0, high=10), said)
    assert kept is said
    assert kept.values == {"x": value}
    assert not kept.raw
    assert not kept.flags


@pytest.mark.parametrize(("value", "edge"), [(-0.1, 0.0), (10.5, 10.0), (11, 10.0)])
def test_clamped_keeps_the_original(value: float, edge: float) -> None:
    (kept,) = apply(metric(low=0, high=10, outside="clamp"), reading(x=value))
    assert (kept.values, kept.raw, kept.flags) == ({"x": edge}, {"x": value}, ["clamped"])


def test_flagged_changes_nothing_else() -> None:
    (kept,) = apply(metric(high=10, outside="flag"), reading(x=11.0))
    assert (kept.values, kept.raw, kept.flags) == ({"x": 11.0}, {}, ["out_of_range"])


def test_rejected_is_the_value_and_not_its_siblings() -> None:
    kept, rejected = apply(metric(low=0), reading(x=-1.0, y=2.0))
    assert kept.values == {"y": 2.0}
    assert (rejected.reason, rejected.error) == ("out_of_range", "x is -1.0, outside 0..")


def test_nothing_left_is_no_reading() -> None:
    (rejected,) = apply(metric(low=0), reading(x=-1.0))
    assert rejected.reason == "out_of_range"


def test_a_reading_without_a_required_metric_is_refused_whole() -> None:
    (rejected,) = apply({**metric(low=0), "required": ["x"]}, reading(x=-1.0, y=2.0))
    assert rejected.reason == "out_of_range"


@pytest.mark.parametrize("policy", [{}, metric(low=0)])
@pytest.mark.parametrize("values", [{"y": 2.0}, {"x": None, "y": 2.0}])
def test_a_required_metric_must_be_there(policy: dict[str, Any], values: dict[str, Any]) -> None:
    (rejected,) = apply({**policy, "required": ["x"]}, reading(**values))
    assert (rejected.reason, rejected.error) == ("missing_field", "x is required and has no value")
    said = reading(x="on", y=1.0)
    assert apply({**policy, "required": ["x"]}, said) == [said]


def test_one_bad_reading_leaves_the_others_and_what_was_rejected_before() -> None:
    before = Rejected("bad_type", "z")
    outcomes = apply(metric(low=0), reading(x=1.0), before, reading(x=-1.0), reading(y=3.0))
    assert [getattr(each, "reason", None) for each in outcomes] == [None, "bad_type", "out_of_range", None]


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-1e9, 1e9),
    st.sampled_from(["reject", "clamp", "flag"]),
)
def test_whatever_a_number_is_it_is_inside_after_clamping(value: float, low: float, outside: str) -> None:
    outcomes = apply(metric(low=low, high=low + 10, outside=outside), reading(x=value))
    (outcome,) = outcomes
    inside = low <= value <= low + 10
    if outside == "clamp":
        assert low <= outcome.values["x"] <= low + 10
        assert outcome.raw == ({} if inside else {"x": value})
    elif outside == "flag":
        assert outcome.values["x"] == value
        assert bool(outcome.flags) is not inside
    else:
        assert isinstance(outcome, Rejected) is not inside


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("outside", ["reject", "clamp", "flag"])
def test_what_is_no_number_is_left_for_what_refuses_it(value: float, outside: str) -> None:
    (kept,) = apply(metric(low=0, high=1, outside=outside), reading(x=value))
    refused = flaw(kept)
    assert refused is not None
    assert refused.reason == "not_finite"


# -- units -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "unit", "value", "becomes"),
    [
        ("°F", "°C", 80.6, 27.0),
        ("K", "°C", 300.15, 27.0),
        ("°C", "°F", 27.0, 80.6),
        ("%", "fraction", 55.0, 0.55),
        ("fraction", "ppm", 0.0001, 100.0),
        ("ppm", "fraction", 100.0, 0.0001),
        ("mV", "V", 230_000, 230.0),
        ("mA", "A", 5.0, 0.005),
        ("kW", "W", 1.5, 1500.0),
        ("°C", "°C", 3, 3),
        ("rpm", "Hz", 60.0, 1.0),
        ("kHz", "Hz", 1.5, 1500.0),
    ],
)
def test_a_unit_becomes_the_one_that_is_wanted(said: str, unit: str, value: float, becomes: float) -> None:
    (kept,) = apply(metric(unit=unit), reading(x=value, units={"x": said}))
    assert kept.values == {"x": becomes}
    assert kept.units == {"x": unit}
    assert not kept.raw


def test_a_unit_that_is_not_said_is_the_configured_one() -> None:
    (kept,) = apply(metric(unit="°C", said_in="°F"), reading(x=50.0))
    assert (kept.values, kept.units) == ({"x": 10.0}, {"x": "°C"})
    (kept,) = apply(metric(unit="°C"), reading(x=50.0))
    assert (kept.values, kept.units) == ({"x": 50.0}, {"x": "°C"})


def test_bounds_are_in_the_wanted_unit_and_so_is_the_original() -> None:
    (kept,) = apply(metric(unit="°C", high=100, outside="clamp"), reading(x=248.0, units={"x": "°F"}))
    assert (kept.values, kept.raw) == ({"x": 100.0}, {"x": 120.0})


def test_an_original_that_was_there_is_converted_with_its_value() -> None:
    said = reading(x=100.0, units={"x": "°C"})
    said.raw["x"] = 120.0
    (kept,) = apply(metric(unit="°F"), said)
    assert (kept.values, kept.raw) == ({"x": 212.0}, {"x": 248.0})


@pytest.mark.parametrize(("said", "unit", "value"), [("dBm", "mW", -70.0), ("dB", "%", -3.0)])
def test_a_logarithm_is_no_factor(said: str, unit: str, value: float) -> None:
    (rejected,) = apply(metric(unit=unit), reading(x=value, units={"x": said}))
    assert rejected.reason == "bad_unit"


@pytest.mark.parametrize("value", [10**400, 1e307])
def test_what_no_double_holds_rejects_itself(value: float) -> None:
    kept, rejected = apply(metric(unit="W", said_in="kW"), reading(x=value, y=1.0))
    assert kept.values == {"y": 1.0}
    assert rejected.reason == "out_of_range"
    kept, rejected = apply(metric(high=100), reading(x=10**400, y=1.0))
    assert (kept.values, rejected.reason) == ({"y": 1.0}, "out_of_range")


@pytest.mark.parametrize("said", ["V", "parsecs per blob", "9**9**9**9", "°C" * 50, "\0"])
def test_a_unit_that_cannot_be_converted_rejects_its_value(said: str) -> None:
    kept, rejected = apply(metric(unit="°C"), reading(x=1.0, y=2.0, units={"x": said}))
    assert kept.values == {"y": 2.0}
    assert not kept.units
    assert rejected.reason == "bad_unit"


@given(st.text(max_size=40))
def test_any_text_is_a_number_with_a_unit_or_is_not(text: str) -> None:
    found = units.split(text)
    assert found is None or (isinstance(found[0], float) and found[1] == found[1].strip())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("27.93 °C", (27.93, "°C")),
        ("27.93°C", (27.93, "°C")),
        ("-1e3 W", (-1000.0, "W")),
        (" 12 ", (12.0, "")),
        (".5%", (0.5, "%")),
        ("0x12", None),
        ("1.5.2", None),
        ("", None),
        ("warm", None),
        ("1" * 100, None),
        ("230V", (230.0, "V")),
        ("12.5mA", (12.5, "mA")),
        ("1st floor", None),
        ("12abc", None),
        ("9007199254740993", None),
        ("9007199254740992 Wh", (9007199254740992.0, "Wh")),
    ],
)
def test_a_number_and_its_unit(text: str, found: tuple[float, str] | None) -> None:
    assert units.split(text) == found


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("time", "outside", "gives"),
    [
        (AT + HOUR, "reject", AT + HOUR),
        (AT + 2 * HOUR, "reject", "future"),
        (AT + 2 * HOUR, "flag", (AT + 2 * HOUR, ["future"])),
        (AT + 2 * HOUR, "receive", (AT, ["receive_time"])),
        (AT - HOUR, "reject", AT - HOUR),
        (AT - 2 * HOUR, "reject", "old"),
        (AT - 2 * HOUR, "flag", (AT - 2 * HOUR, ["old"])),
        (AT - 2 * HOUR, "receive", (AT, ["receive_time"])),
    ],
)
def test_a_time_too_far_from_the_records(time: datetime, outside: str, gives: Any) -> None:
    (outcome,) = apply({"time": {"ahead": "1h", "behind": "1h", "outside": outside}}, reading(time))
    if isinstance(gives, str):
        assert outcome.reason == gives
    elif isinstance(gives, tuple):
        assert (outcome.time, outcome.flags) == gives
    else:
        assert (outcome.time, outcome.flags) == (gives, [])


@pytest.mark.parametrize("received_ms", [-1, 2**62])
def test_a_record_without_a_believable_time_limits_nothing(received_ms: int) -> None:
    said = reading(datetime(2200, 1, 1, tzinfo=UTC))
    assert apply({}, said, received_ms=received_ms) == [said]
    (rejected,) = apply({"time": {"outside": "receive"}}, reading(datetime(1970, 1, 1, tzinfo=UTC)), received_ms=-1)
    assert rejected.reason == "old"


def test_nothing_was_measured_before_there_were_such_devices() -> None:
    said = reading(datetime(1970, 1, 21, tzinfo=UTC))
    (rejected,) = apply({}, said)
    assert rejected.reason == "old"
    assert "before 2000-01-01: is the clock set, and is it counted in the unit expected?" in rejected.error
    assert apply({"time": {"since": None}}, said) == [said]
    assert apply({"time": {"since": "1970-01-21"}}, said) == [said]
    first = reading(datetime(2000, 1, 1, tzinfo=UTC))
    assert apply({}, first) == [first]


def test_the_limits_move_with_the_records() -> None:
    finish = finisher(Policy.model_validate({"time": {"ahead": "1m"}}))
    said = reading(AT + HOUR)
    (early,) = finish((said,), RECEIVED_MS)
    (late,) = finish((said,), RECEIVED_MS + 3_600_000)
    assert isinstance(early, Rejected)
    assert late is said


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "device", "becomes"),
    [
        ({"case": "lower"}, "AA:BB", "aa:bb"),
        ({"case": "upper", "prefix": "SITE-"}, "a", "SITE-A"),
        ({"prefix": "s-"}, "s-1", "s-1"),
        ({"strip": True}, " d\t", "d"),
        ({"case": "lower", "prefix": "hall-"}, "HALL-1", "hall-1"),
    ],
)
def test_a_device_has_one_name(names: dict[str, Any], device: str, becomes: str) -> None:
    (kept,) = apply({"device_id": names}, reading(device=device))
    assert kept.device_id == becomes


def test_a_name_may_not_grow_too_long() -> None:
    (rejected,) = apply({"device_id": {"prefix": "p" * 60}}, reading(device="d" * 250))
    assert rejected.reason == "too_large"


def test_a_name_of_white_space_is_none() -> None:
    (rejected,) = apply({"device_id": {"strip": True, "prefix": "x-"}}, reading(device="  "))
    assert rejected.reason == "missing_field"


# -- the configuration -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (metric(low=5, high=5), "the range 5..5 is empty"),
        (metric(unit="°C", said_in="V"), "'V' cannot be converted to '°C'"),
        (metric(said_in="V"), "said_in needs unit"),
        (metric(outside="ignore"), "'reject', 'clamp' or 'flag'"),
        ({"time": {"zone": "Europe/Atlantis"}}, "Europe/Atlantis"),
        ({"time": {"ahead": "soon"}}, "must be a span of time as 90s, 15m"),
        ({"metric": {}}, "Extra inputs"),
        ({"device_id": {"case": "upper", "prefix": "hall-"}}, "is not in upper case"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(policy: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace("(", r"\(")):
        Policy.model_validate(policy)


def test_a_change_keeps_what_it_does_not_name() -> None:
    policy = Policy(metrics={"x": Metric(low=0, high=1, outside="clamp"), "y": Metric(low=2)}, required=("x",))
    changed = policy.changed({"metrics": {"x": {"high": 9}}, "time": {"behind": "2d"}})
    assert changed.metrics == {"x": Metric(low=0, high=9, outside="clamp"), "y": Metric(low=2)}
    assert changed.required == ("x",)
    assert changed.time.behind == 2 * 86400
    assert changed.time.ahead == 86400
    assert policy.changed({"metrics": {"x": None}}).metrics == {"y": Metric(low=2)}


@given(st.floats(allow_nan=False, allow_infinity=False), st.sampled_from(["°F", "K", "V", ""]))
def test_nothing_that_a_policy_does_makes_a_reading_impossible(value: float, said: str) -> None:
    policy = metric(low=-50, high=100, outside="clamp", unit="°C")
    for outcome in apply(policy, reading(x=value, units={"x": said} if said else None)):
        assert isinstance(outcome, Rejected) or flaw(outcome) is None
