"""Checks: what each kind of rule says of values, what it remembers, and where it has nothing to say."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.alarm import QUIET, Severity, Signal
from schemas.rules import parse
from tables.checks import Check, Memory, Said, Subject
from tables.clocks import Clock
from tables.rules import Book, Watch

S, M, H = 1_000_000, 60_000_000, 3_600_000_000
START = 1_760_000_400 * S  # on the half hour


def watch(rule: Mapping[str, Any], metric: str = "temperature", unit: str = "") -> Watch:
    said = {"metric": metric, **rule}
    return Book(parse({"profile": "none", "rules": {"r": said}})).watch("m", "d", "", metric, "", unit)


def check(rule: Mapping[str, Any], metric: str = "temperature", unit: str = "") -> Check:
    (found,) = watch(rule, metric, unit).reading
    return found


def severities(found: Check, values: Iterable[Any], every: int = S) -> list[Severity | None]:
    memory: Memory | None = None
    told: list[Severity | None] = []
    for place, value in enumerate(values):
        memory, said = found.step(memory, START + place * every, value)
        assert said is not None
        told.append(said.severity)
    return told


def severity(said: Said) -> Severity | None:
    assert said is not None
    return said.severity


# -- levels ------------------------------------------------------------------------------------------------------------

FIRE = {"unit": "°C", "levels": {"WARN": 80, "EMERGENCY": 95}}
W, E = "WARN", "EMERGENCY"


@pytest.mark.parametrize(
    ("compare", "levels", "said"),
    [
        (">=", (80, 95), {79.9: None, 80: W, 85: W, 94.999: W, 95: E, 1e9: E}),
        (">", (80, 95), {80: None, 80.1: W, 95: W, 95.1: E}),
        ("<=", (10, 0), {10.1: None, 10: W, 0.1: W, 0: E, -5: E}),
        ("<", (10, 0), {10: None, 9.9: W, 0: W, -0.1: E}),
        ("==", (1, 2), {0: None, 1: W, 2: E, 3: None}),
        ("!=", (1, 2), {2: W, 1: E, 0: E}),
    ],
)
def test_levels_are_compared_as_is_said(
    compare: str, levels: tuple[float, float], said: dict[float, Severity | None]
) -> None:
    found = check({"compare": compare, "levels": dict(zip((W, E), levels, strict=True))})
    for value, expected in said.items():
        memory, signal = found.step(None, START, value)
        assert severity(signal) == expected, value
        assert (memory is None) is (expected is None)


def test_texts_and_booleans_can_be_equal() -> None:
    state = check({"compare": "!=", "levels": {W: "OK"}}, "state")
    assert severities(state, ["OK", "FAULT", "OK"]) == [None, W, None]
    assert state.step(None, START, 1.0) == (None, None)
    _, said = state.step(None, START, "FAULT")
    assert said is not None
    assert (said.message, said.threshold) == ("state 'FAULT' is other than 'OK' (WARN)", None)
    door = check({"compare": "==", "levels": {"INFO": True}}, "door")
    assert severities(door, [False, True]) == [None, "INFO"]
    assert door.step(None, START, 1) == (None, None)
    assert (state.low, state.high) == (math.inf, -math.inf)


@pytest.mark.parametrize("value", ["85", True])
def test_what_is_no_number_is_not_compared_with_one(value: Any) -> None:
    assert check(FIRE).step(None, START, value) == (None, None)


def test_a_signal_says_what_is_wrong() -> None:
    smoke = check({"unit": "ppm", "levels": {W: 100, E: 500}}, "smoke_density")
    _, said = smoke.step(None, START, 600.0)
    assert said == Signal(
        E, 600.0, 500.0, "smoke_density 600 ppm is at or above 500 ppm (EMERGENCY)", low=None, high=100.0
    )
    labelled = check({**FIRE, "labels": {W: "HIGH"}})
    _, said = labelled.step(None, START, 85.5)
    assert said is not None
    assert said.message == "temperature 85.5 °C is at or above 80 °C (HIGH)"
    below = check({"compare": "<", "levels": {W: 5}}, "pressure", "bar")
    _, said = below.step(None, START, 4.25)
    assert said is not None
    assert (said.message, said.low, said.high) == ("pressure 4.25 bar is below 5 bar (WARN)", 5.0, None)


def test_a_level_is_held_until_it_is_cleared() -> None:
    found = check({**FIRE, "clear": {W: 75, E: 90}})
    assert severities(found, [78, 80, 78, 75, 74.9, 78, 95, 92, 89, 76, 74]) == (
        [None, W, W, W, None, None, E, E, W, W, None]
    )
    memory, _ = found.step(None, START, 80)
    _, said = found.step(memory, START + S, 78)
    assert said is not None
    assert said.message == "temperature 78 °C is not yet below 75 °C (WARN)"


def test_what_comes_late_can_raise_and_not_clear() -> None:
    found = check(FIRE)
    memory, _ = found.step(None, START, 85)
    assert found.step(memory, START - S, 20) == (memory, None)
    after, said = found.step(memory, START - S, 96)
    assert severity(said) == E
    assert severity(found.step(after, START - S, 85)[1]) == W  # an anomalous reading, whatever is held
    assert found.step(after, START + S, 20) == (None, QUIET)


def test_a_level_must_be_reached_for_a_time() -> None:
    found = check({**FIRE, "for": "30s"})
    assert severities(found, [85, 85, 85, 85, 20], 10 * S) == [None, None, None, W, None]
    assert severities(found, [85, 85, 20, 85, 85, 85], 10 * S) == [None] * 6
    assert severities(found, [85, 96, 96, 96, 96, 96, 85], 10 * S) == [None, None, None, W, E, E, W]
    memory, _ = found.step(None, START, 85)
    assert found.step(memory, START, 20) == (memory, None)
    assert found.step(memory, START - H, 85) == (memory, None)
    _, said = found.step(memory, START + 30 * S, 85)
    assert said is not None
    assert said.message == "temperature 85 °C is at or above 80 °C for 30s (WARN)"


def test_a_level_must_be_reached_several_times() -> None:
    found = check({**FIRE, "of": "3 of 5"})
    assert severities(found, [85, 20, 85, 20, 85, 20, 20]) == [None, None, None, None, W, None, None]
    assert severities(found, [96, 85, 96, 85, 96, 85]) == [None, None, W, W, E, W]
    memory: Memory | None = None
    for place, value in enumerate([85, 85, 85, 20, 20, 20, 20, 20]):
        memory, _ = found.step(memory, START + place, value)
    assert memory is None
    memory, _ = found.step(None, START, 85)
    assert found.step(memory, START, 85) == (memory, None)


# -- changes -----------------------------------------------------------------------------------------------------------


def test_how_fast_a_value_changes() -> None:
    found = check({"kind": "rate", "unit": "°C", "levels": {W: 5, E: 20}, "per": "1m"})
    assert severities(found, [20, 20.4, 20.8, 22, 18, 18], 5 * S) == [None, None, None, W, E, None]
    up = check({"kind": "rate", "levels": {W: 1}, "direction": "up"})
    assert severities(up, [0, 2, 0, 0.5]) == [None, W, None, None]
    down = check({"kind": "rate", "levels": {W: 1}, "direction": "down"})
    assert severities(down, [0, 2, 0, 0.5]) == [None, None, W, None]
    memory, _ = found.step(None, START, 20.0)
    assert found.step(memory, START, 90.0) == (memory, None)
    _, said = found.step(memory, START + 30 * S, 24.0)
    assert said is not None
    assert said.message == ("temperature went from 20 to 24 °C: up by 8 °C in 1m is at or above 5 °C in 1m (WARN)")
    assert (said.value, said.threshold, said.score) == (24.0, 5.0, 1.6)


def test_a_load_is_switched() -> None:
    found = check({"kind": "edge", "unit": "W", "levels": {"INFO": 30}}, "power")
    assert found.rule.type == "POWER"
    assert severities(found, [5, 34, 64, 64, 30, 0, 0], 30 * M) == [None, None, "INFO", None, "INFO", "INFO", None]
    _, said = found.step(found.step(None, START, -1e308)[0], START + S, 1e308)
    assert said is not None
    assert said.score == 1e9
    tenths = check({"kind": "edge", "levels": {"INFO": 0.3}}, "power")
    assert severities(tenths, [0.1, 0.4, 0.7, 0.99]) == [None, "INFO", "INFO", None]
    memory, _ = found.step(None, START, 0)
    assert found.step(memory, START - 1, 500) == (memory, None)


def test_another_unit_begins_anew() -> None:
    rule = {"kind": "edge", "unit": "°C", "levels": {W: 10}}
    memory, _ = check(rule, unit="°C").step(None, START, 25.0)
    fahrenheit = check(rule, unit="°F")
    assert severity(fahrenheit.step(memory, START + S, 77.0)[1]) is None
    assert severities(fahrenheit, [77, 94, 112]) == [None, None, W]


def test_a_value_is_stuck() -> None:
    found = check({"kind": "stuck", "for": "1h", "tolerance": 0.1})
    assert severities(found, [20, 20.1, 19.9, 20.2, 20.2, 20.2, 20.2], 30 * M) == [None, None, W, None, None, W, W]
    memory, _ = found.step(None, START, 20)
    assert found.step(memory, START, 25) == (memory, None)
    long = check({"kind": "stuck", "for": "1h"}, "text")
    assert severities(long, ["x" * 10_000, "x" * 10_000, "x" * 9_999, True, True, 1], H) == [
        None,
        W,
        None,
        None,
        W,
        None,
    ]
    memory, _ = long.step(None, START, "x" * 10_000)
    assert len(msgspec.msgpack.encode(memory)) < 100


def test_memory_of_another_kind_is_none() -> None:
    memory, _ = check({"kind": "rate", "levels": {W: 5}}).step(None, START, 20.0)
    for rule in (FIRE, {**FIRE, "for": "1h"}, {**FIRE, "of": "2 of 3"}, {"kind": "stuck", "for": "1h"}):
        found = check(rule)
        assert found.step(memory, START, 20.0) == found.step(None, START, 20.0)


# -- windows -----------------------------------------------------------------------------------------------------------


def test_a_window_is_named() -> None:
    found = watch({**FIRE, "on": "5m", "stat": "p95"})
    assert (found.reading, found.low, found.high) == ((), -math.inf, math.inf)
    ((stat, rule),) = found.window["5m"]
    _, said = rule.step(None, START, 96.0)
    assert said is not None
    assert (stat, said.message) == ("p95", "temperature (p95 of 5m) 96 °C is at or above 95 °C (EMERGENCY)")


def test_a_yaml_on_is_true() -> None:
    """YAML 1.1 reads the word on as true."""
    assert list(watch({**FIRE, True: "1h"}).window) == ["1h"]  # type: ignore[dict-item]


# -- the clock ---------------------------------------------------------------------------------------------------------


def clock(rule: Mapping[str, Any], metric: str = "") -> Clock:
    (found,) = watch(rule, metric).clock
    return found


def test_silence() -> None:
    found = clock({"kind": "silent", "for": "1h"})
    assert found.rule.type == "COMM"
    assert found.due(None, START) == START + H
    assert found.expire(None, START, START + H - 1) == (None, None)
    memory, said = found.expire(None, START, START + H)
    assert said is not None
    assert (said.severity, said.value, said.threshold) == (W, 3600.0, 3600.0)
    assert said.message == "no reading for 1h: none since 2025-10-09 09:00:00 UTC (WARN)"
    assert found.due(memory, START) is None
    assert found.expire(memory, START, START + 9 * H) == (memory, None)
    # A reading ends it, by whichever way the check hears of it.
    assert found.step(memory, START + 2 * H, 1) == (None, QUIET)
    assert found.due(memory, START + 2 * H) == START + 2 * H
    assert found.expire(memory, START + 2 * H, START + 2 * H) == (None, QUIET)
    assert found.step(memory, START - S, 1) == (memory, None)


def test_silence_of_a_metric() -> None:
    _, said = clock({"kind": "silent", "for": "1h"}, "co").expire(None, START, START + H)
    assert said is not None
    assert said.message.startswith("co: no reading for 1h: ")


def readings(found: Clock, slots: Iterable[int], until: int) -> list[Severity | None]:
    """What is said by each half hour, when there are readings in these of them; windows close a minute late."""
    there = [START + slot * 30 * M for slot in slots]
    memory: Memory | None = None
    told: list[Severity | None] = []
    for now in range(START, START + until * 30 * M, M):
        for at in there:
            if at == now - 2 * M:
                memory, said = found.step(memory, at, 1)
                assert said is None
        last = max([at for at in there if at <= now], default=0)
        due = found.due(memory, last)
        if due is not None and due <= now:
            memory, said = found.expire(memory, last, now)
            told.append(None if said is None else said.severity)
    return told


def test_a_gap() -> None:
    found = clock({"kind": "gap"}, "temperature")
    assert found.counts
    assert set(readings(found, range(40), 40)) == {None}
    # Of twelve, three may be missing, and four not.
    three = [slot for slot in range(40) if slot not in {20, 21, 22}]
    assert set(readings(found, three, 40)) == {None}
    four = [slot for slot in range(40) if slot not in {20, 21, 22, 23}]
    told = readings(found, four, 40)
    assert told.count(W) == 9
    assert told[-1] is None
    # It dies: it is said, and at some time there is no more to ask.
    told = readings(found, range(20), 80)
    assert told[-1] == W
    assert len(told) < 50


def test_a_gap_is_not_found_before_its_span_is_over() -> None:
    assert set(readings(clock({"kind": "gap"}, "temperature"), [0, 11], 12)) <= {None}


def test_readings_a_little_early_or_late_are_not_missing() -> None:
    """Each lies on one side or the other of its half hour's end."""
    found = clock({"kind": "gap"}, "temperature")
    memory: Memory | None = None
    for place in range(48):
        at = START + place * 30 * M + (20 if place % 3 else -20) * S
        memory, _ = found.step(memory, at, 1)
        due = found.due(memory, at)
        if due is not None and due <= at:
            memory, said = found.expire(memory, at, at)
            assert said is None or said.severity is None


def judged(counts: Mapping[int, int], last: int = 0) -> tuple[Memory, Severity | None]:
    """What is remembered and said of half hours 1 to 12, of which these have so many readings, `last` the latest."""
    found = clock({"kind": "gap"}, "temperature")
    memory, _ = found.step(None, START, 1)
    for slot, count in counts.items():
        memory, _ = found.step(memory, START + slot * 30 * M, count)
    memory, said = found.expire(memory, START + last * 30 * M + 29 * M, START + 13 * 30 * M + 10 * M)
    assert memory is not None
    return memory, severity(said)


def test_the_latest_reading_counts_before_its_window_closes() -> None:
    there = dict.fromkeys(range(1, 9), 1)
    assert judged(there, last=8)[1] == W
    assert judged(there, last=12)[1] is None


def test_a_reading_too_many_makes_up_for_one_beside_it() -> None:
    assert judged(dict.fromkeys((2, 5, 8, 11), 3))[1] is None
    assert judged(dict.fromkeys((2, 5, 8, 11), 2))[1] == W  # one each, and eight are missing
    memory, said = judged(dict.fromkeys((1, 2, 3, 4, 5, 6), 100))
    assert said == W
    assert max(memory[4:]) == 3


def test_a_burst_does_not_hide_a_gap() -> None:
    found = clock({"kind": "gap", "every": "10s", "within": "1h"}, "temperature")
    memory, _ = found.step(None, START - 2 * H, 6)
    for minute in range(60):
        memory, _ = found.step(memory, START + minute * M, 6 if minute % 15 else 600)
    last = START + 59 * M
    after, said = found.expire(memory, last, START + H + 2 * M)
    assert said == QUIET
    memory, _ = found.step(None, START - 2 * H, 6)
    for minute in range(0, 60, 15):
        memory, _ = found.step(memory, START + minute * M, 600)
    _, said = found.expire(memory, last, START + H + 2 * M)
    assert said is not None
    assert said.severity == W
    assert said.message.startswith("temperature: ")
    assert "of 360 readings of 1h are missing, more than 30% (WARN)" in said.message
    assert after is not None
    assert len(msgspec.msgpack.encode(after)) < 60


# -- laws --------------------------------------------------------------------------------------------------------------

numbers = st.floats(-200, 200) | st.integers(-200, 200)
_levels = st.lists(numbers, min_size=1, max_size=3, unique=True)


@st.composite
def level_rules(draw: st.DrawFn) -> dict[str, Any]:
    compare = draw(st.sampled_from([">=", ">", "<=", "<", "==", "!="]))
    upwards = compare in {">=", ">"}
    values = sorted({float(level) for level in draw(_levels)}, reverse=not upwards)
    names = draw(st.permutations(["INFO", W, E]))[: len(values)]
    levels = dict(zip(sorted(names, key=["INFO", W, E].index), values, strict=True))
    rule: dict[str, Any] = {"compare": compare, "levels": levels}
    if compare not in {"==", "!="} and draw(st.booleans()):
        apart = draw(st.floats(0, 20))
        rule["clear"] = {name: level - apart if upwards else level + apart for name, level in levels.items()}
    how = draw(st.sampled_from(["", "for", "of"]))
    if how == "for":
        rule["for"] = draw(st.sampled_from(["1s", "5s", "1m"]))
    elif how == "of":
        most = draw(st.integers(1, 6))
        rule["of"] = f"{draw(st.integers(1, most))} of {most}"
    return rule


other_rules = st.one_of(
    st.builds(
        lambda level, way, per: {"kind": "rate", "levels": {W: level}, "direction": way, "per": per},
        st.floats(0.1, 100),
        st.sampled_from(["up", "down", "both"]),
        st.sampled_from(["1s", "1m"]),
    ),
    st.builds(lambda level: {"kind": "edge", "levels": {"INFO": level}}, st.floats(0.1, 100)),
    st.builds(
        lambda span, tolerance: {"kind": "stuck", "for": span, "tolerance": tolerance},
        st.sampled_from(["1s", "10s"]),
        st.floats(0, 5),
    ),
)
rules = level_rules() | other_rules
#: Near the levels, that there is something to say.
series = st.lists(st.tuples(st.integers(-3, 20), numbers), max_size=30)


@given(level_rules(), numbers)
def test_between_low_and_high_there_is_nothing_to_say(rule: dict[str, Any], value: float) -> None:
    found = watch(rule)
    (only,) = found.reading
    memory, said = only.step(None, START, value)
    if found.low < value < found.high:
        assert memory is None
        assert said == QUIET


@given(rules, series)
def test_skipping_the_quiet_band_changes_nothing(rule: dict[str, Any], values: list[tuple[int, float]]) -> None:
    found = watch(rule)
    (only,) = found.reading
    always: Memory | None = None
    mostly: Memory | None = None
    at = START
    for step, value in values:
        at += step * S
        always, expected = only.step(always, at, value)
        said: Said = QUIET
        if mostly is not None or not found.low < value < found.high:
            mostly, said = only.step(mostly, at, value)
        assert (mostly, said) == (always, expected)


@given(rules, series, st.integers(0, 30))
def test_memory_that_was_packed_says_the_same(rule: dict[str, Any], values: list[tuple[int, float]], cut: int) -> None:
    one, other = check(rule), check(rule)
    kept: Memory | None = None
    restored: Memory | None = None
    at = START
    for place, (step, value) in enumerate(values):
        at += step * S
        kept, expected = one.step(kept, at, value)
        if place >= cut:
            restored = msgspec.msgpack.decode(msgspec.msgpack.encode(restored))
        restored, said = other.step(restored, at, value)
        assert said == expected
    assert msgspec.msgpack.encode(restored) == msgspec.msgpack.encode(kept)


@given(level_rules(), st.lists(numbers, max_size=20))
def test_where_all_is_quiet_nothing_is_remembered(rule: dict[str, Any], values: list[float]) -> None:
    found = watch(rule)
    (only,) = found.reading
    memory: Memory | None = None
    at = START
    for value in values:
        at += S
        memory, _ = only.step(memory, at, value)
    calm = {True: found.low + 100, False: found.high - 100}[math.isfinite(found.low)]
    if math.isfinite(calm):
        for _ in range(6):
            at += S
            memory, said = only.step(memory, at, calm)
        assert (memory, said) == (None, QUIET)


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(1, 40)), max_size=60), st.integers(0, 60))
def test_gaps_survive_packing(windows: list[tuple[int, int]], cut: int) -> None:
    found = clock({"kind": "gap", "every": "5m", "within": "1h"}, "temperature")
    kept: Memory | None = None
    restored: Memory | None = None
    at = START
    for place, (minutes, count) in enumerate(windows):
        at += minutes * M
        kept, _ = found.step(kept, at, count)
        restored, _ = found.step(restored, at, count)
        if place >= cut:
            restored = msgspec.msgpack.decode(msgspec.msgpack.encode(restored))
        now = at + 3 * M
        kept, expected = found.expire(kept, at, now)
        restored, said = found.expire(restored, at, now)
        assert (said, restored) == (expected, kept)
        due = found.due(kept, at)
        assert due is None or due > now


def test_a_sentence_names_what_it_is_about() -> None:
    assert Subject("power", "W").measured(1234567.0) == "1234567 W"
    assert Subject("power", "W").measured(0.1 + 0.2) == "0.3 W"
    assert Subject("open").measured(True) == "true"
