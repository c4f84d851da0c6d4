"""Rules tried on past readings: the same alarms as the stage would have raised, and the difference to others."""

import random
from collections.abc import AsyncIterator, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app import analysis, backtest
from app.backtest import Compared, Outcome, Raised, compare
from app.past import Past
from app.settings import load
from schemas import alarm
from schemas.reading import Reading
from schemas.rules import parse
from tables.analysis import Partition
from tables.rules import Rulebook
from tests.lab.analysis import START, Kept, reading, records

SETTINGS = load({})
HEAT = {"metric": "temperature", "unit": "°C", "levels": {"WARN": 70, "EMERGENCY": 90}}


def book(**own: Any) -> Rulebook:
    return Rulebook(parse({"profile": "none", "rules": own}))


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


async def run(
    readings: Sequence[Reading],
    rules: Rulebook,
    against: Rulebook | None = None,
    *,
    until: float = 3600,
    page: int = 7,
    **how: Any,
) -> Outcome:
    """Readings in the order of a source, for an hour."""
    ordered = sorted(readings, key=lambda each: (each.device_id, each.time, each.channel, each.measurement))

    async def pages() -> AsyncIterator[list[Reading]]:
        for start in range(0, len(ordered), page):
            yield ordered[start : start + page]

    past = Past(pages(), START, at(until), len(ordered))
    return await backtest.run(SETTINGS, past, rules, against or book(), **how)


def series(values: Sequence[float], device: str = "d", every: float = 10, metric: str = "temperature") -> list[Reading]:
    return [reading(place * every, device, **{metric: value}) for place, value in enumerate(values)]


SPIKE = series([20.0] * 10 + [75.0, 95.0, 98.5, 92.0] + [20.0] * 10)


# -- the difference ----------------------------------------------------------------------------------------------------


async def test_a_spike_is_an_alarm_of_rules_that_see_it() -> None:
    found = await run(SPIKE, book(heat=HEAT))
    assert found.found == [
        Compared(
            "new",
            Raised(
                device_id="d",
                measurement="telemetry",
                channel="",
                metric="temperature",
                rule="heat",
                severity="EMERGENCY",
                start=at(100),
                end=at(140),
                peak=98.5,
                message="temperature 95 °C is at or above 90 °C (EMERGENCY)",
                unit="°C",
                threshold=90.0,
                high=70.0,
            ),
            [],
        )
    ]
    assert (found.readings, found.devices, found.new) == (24, 1, 1)


async def test_the_difference_of_two_sets_of_rules() -> None:
    old = book(
        heat={**HEAT, "levels": {"WARN": 85}}, dry={"metric": "humidity", "compare": "<", "levels": {"WARN": 20}}
    )
    new = book(heat={**HEAT, "levels": {"WARN": 70}}, wet={"metric": "humidity", "levels": {"INFO": 80}})
    humid = series([50, 10, 50, 90, 85, 50], "e", metric="humidity")
    warm = series([20, 72, 20], "f")
    found = await run([*SPIKE, *humid, *warm], new, old)

    assert [(each.verdict, each.alarm.device_id, each.alarm.rule, each.alarm.start) for each in found.found] == [
        ("gone", "e", "dry", at(10)),
        ("new", "f", "heat", at(10)),
        ("new", "e", "wet", at(30)),
        ("both", "d", "heat", at(100)),
    ]
    (was,) = found.found[3].was
    assert (was.start, was.end, was.peak) == (at(110), at(140), 98.5)
    summaries = {each.rule: each for each in found.summaries()}
    heat = summaries["heat"]
    assert (heat.new, heat.gone, heat.both) == (1, 0, 1)
    assert (heat.rules.alarms, heat.rules.devices, heat.rules.seconds) == (2, 2, 50.0)
    assert (heat.against.alarms, heat.against.devices, heat.against.seconds) == (1, 1, 30.0)
    assert heat.rules.severities == {"WARN": 2}
    assert (summaries["dry"].rules.alarms, summaries["dry"].against.alarms, summaries["dry"].gone) == (0, 1, 1)
    assert summaries["wet"].rules.severities == {"INFO": 1}


async def test_equal_rules_make_no_difference() -> None:
    found = await run(SPIKE, book(heat=HEAT), book(heat=HEAT))
    assert [each.verdict for each in found.found] == ["both"]
    assert found.new == 0


async def test_metrics_can_be_chosen() -> None:
    both = [replace(each, values={**each.values, "humidity": each.values["temperature"]}) for each in SPIKE]
    rules = book(any={**HEAT, "metric": "*", "unit": ""})
    found = await run(both, rules, admits=lambda metric: metric == "humidity")
    assert [each.alarm.metric for each in found.found] == ["humidity"]


def raised(start: int, end: int | None, rule: str = "r", metric: str = "m") -> Raised:
    return Raised(
        device_id="d",
        measurement="telemetry",
        channel="",
        metric=metric,
        rule=rule,
        severity="WARN",
        start=at(start),
        end=None if end is None else at(end),
    )


def in_turn(drawn: Sequence[tuple[int, int, str, str]], *, last_open: bool) -> list[Raised]:
    """Alarms, of one series and rule one after the other: how long after, and how long; by time."""
    ends: dict[tuple[str, str], int] = {}
    found = []
    for after, long, rule, metric in drawn:
        start = ends.get((rule, metric), 0) + after
        ends[rule, metric] = start + long
        found.append(raised(start, start + long, rule, metric))
    if found and last_open:
        found[-1].end = None
    return sorted(found, key=lambda each: each.start)


ALARMS = st.builds(
    in_turn,
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.sampled_from("ab"), st.sampled_from("xy")), max_size=12
    ),
    last_open=st.booleans(),
)


@given(rules=ALARMS, against=ALARMS)
def test_each_alarm_is_compared_once_and_with_all_that_it_overlaps(rules: list[Raised], against: list[Raised]) -> None:
    end = at(200)

    def overlap(one: Raised, other: Raised) -> bool:
        first, last = max(one.start, other.start), min(one.end or end, other.end or end)
        return (one.series, one.rule) == (other.series, other.rule) and first <= last

    found = list(compare(rules, against, end))
    own = [each for each in found if each.verdict != "gone"]
    assert [id(each.alarm) for each in own] == list(map(id, rules))
    for each in own:
        assert list(map(id, each.was)) == [id(other) for other in against if overlap(each.alarm, other)]
        assert (each.verdict == "both") is bool(each.was)
    gone = {id(each.alarm) for each in found if each.verdict == "gone"}
    assert gone == {id(other) for other in against if not any(overlap(each, other) for each in rules)}
    outcome = Outcome(START, end, found=found)
    assert sum(each.rules.alarms for each in outcome.summaries()) == len(rules)
    assert sum(each.against.alarms for each in outcome.summaries()) == len(against)


# -- as the stage ------------------------------------------------------------------------------------------------------


def lived(readings: Sequence[Reading], rules: Rulebook, until: float) -> set[tuple[str, str, datetime]]:
    """The alarms that are raised when all devices' readings come as time passes, and the clock is seen each second."""
    config = replace(analysis.config(SETTINGS, 1), replay_after=10**15)
    store = Kept(config, rules)
    partition: Partition = store.begin()
    log = records(sorted(readings, key=lambda each: each.time))
    said = []
    place = 0
    for second in range(1, round(until) + 1):
        upto = round(at(second).timestamp() * 1000)
        while place < len(log) and log[place].timestamp < upto:
            said += partition.fold([log[place]], log[place].timestamp)
            place += 1
        while partition.expire(upto):
            pass
        if not second % 5:
            store.keep(partition, place)
    store.keep(partition, place)
    found = [alarm.read_record(each.key, each.value) for each in [*said, *store.said] if each.topic == "alarms"]  # type: ignore[arg-type]
    return {(record.key, record.alarm_id, record.raised_at) for record in found}


async def test_the_alarms_are_those_that_the_stage_raises() -> None:
    """Levels, windows, a rate, silence and detectors, of devices whose readings come mixed, irregularly and not."""
    drawn = random.Random(7)
    readings = []
    for device in "abc":
        seconds = 0.0
        while seconds < 5 * 3600:
            value = drawn.gauss(20, 1) + (60 if drawn.random() < 0.01 else 0)
            humid = drawn.gauss(50, 1) + (25 if seconds > 17_000 else 0)
            channel = drawn.choice(("", "c2"))
            readings.append(reading(round(seconds, 3), device, channel, temperature=value, humidity=humid))
            seconds += 1200 if drawn.random() < 0.005 else drawn.uniform(2, 20)
    rules = {
        "heat": HEAT,
        "minute": {"metric": "temperature", "on": "1m", "stat": "max", "levels": {"WARN": 60}},
        "five": {"metric": "temperature", "on": "5m", "levels": {"INFO": 25}},
        "rate": {"kind": "rate", "metric": "temperature", "per": "10s", "levels": {"WARN": 40}},
        "offline": {"kind": "silent", "for": "10m"},
        "mute": {"kind": "silent", "metric": "temperature", "for": "5m"},
        "envelope": {"kind": "detector", "metric": "humidity", "detector": "envelope"},
    }
    until = 5.5 * 3600
    found = await run(readings, book(**rules), until=until)
    there = set()
    for each in found.found:
        one = each.alarm
        subject = alarm.Subject(one.measurement, one.device_id, one.channel, one.metric, one.rule)
        micros = round(one.start.timestamp() * 1e6)
        there.add((subject.key, alarm.alarm_id(subject, micros), one.start))
    assert there == lived(readings, book(**rules), until)
    assert {each.alarm.rule for each in found.found} == set(rules)


@pytest.mark.parametrize("page", [1, 10, 1000])
async def test_pages_mean_nothing(page: int) -> None:
    devices = [replace(each, device_id=name) for name in ("a", "b", "c") for each in SPIKE]
    found = await run(devices, book(heat=HEAT), page=page)
    assert [(each.alarm.device_id, each.alarm.peak) for each in found.found] == [("a", 98.5), ("b", 98.5), ("c", 98.5)]


async def test_silence_is_an_alarm_when_it_has_lasted() -> None:
    spoken = [reading(second, temperature=20.0) for second in (0, 60, 120, 1200, 1260)]
    found = await run(spoken, book(offline={"kind": "silent", "for": "10m"}))
    assert [(each.alarm.start, each.alarm.end, each.alarm.metric) for each in found.found] == [
        (at(720), at(1200), ""),
        (at(1860), None, ""),
    ]
    (summary,) = found.summaries()
    assert summary.rules.seconds == 480 + (3600 - 1860)
    assert found.found[0].alarm.threshold is None


async def test_old_news_is_news_in_its_time() -> None:
    """Nothing is replayed, and no clock is fast: whatever the time is now."""
    long_ago = [replace(each, time=each.time - timedelta(days=4000)) for each in SPIKE]
    found = await run(long_ago, book(heat=HEAT))
    assert [each.alarm.peak for each in found.found] == [98.5]


# -- peaks -------------------------------------------------------------------------------------------------------------


async def test_the_peak_of_what_is_too_low_is_the_lowest() -> None:
    cold = {"metric": "temperature", "compare": "<=", "levels": {"WARN": 0, "EMERGENCY": -10}}
    found = await run(series([5, -3, -12, -15, -11, 5]), book(cold=cold))
    assert [(each.alarm.peak, each.alarm.severity, each.alarm.falling) for each in found.found] == [
        (-15.0, "EMERGENCY", True)
    ]


async def test_the_peak_is_what_was_measured() -> None:
    clamped = [
        replace(each, raw={"temperature": 120.0}) if each.values["temperature"] == 98.5 else each for each in SPIKE
    ]
    found = await run(clamped, book(heat=HEAT))
    assert found.found[0].alarm.peak == 120.0


async def test_an_alarm_over_many_chunks_has_the_peak_of_all() -> None:
    hot = series([20.0, *[75.0 + place / 1000 for place in range(1500)], 20.0], every=1)
    found = await run(hot, book(heat={**HEAT, "levels": {"WARN": 70}}))
    assert [(each.alarm.start, each.alarm.end, each.alarm.peak) for each in found.found] == [(at(1), at(1501), 76.499)]


async def test_a_text_has_no_peak() -> None:
    states = [replace(each, values={"state": "OK" if place else "BROKEN"}) for place, each in enumerate(SPIKE[:3])]
    rule = {"metric": "state", "compare": "==", "levels": {"WARN": "BROKEN"}}
    found = await run(states, book(broken=rule))
    assert [(each.alarm.peak, "BROKEN" in each.alarm.message) for each in found.found] == [(None, True)]


# -- what is kept for a picture ----------------------------------------------------------------------------------------


async def test_the_series_with_the_most_alarms_are_kept_to_be_drawn() -> None:
    def wave(device: str, times: int) -> list[Reading]:
        return series([20.0, 95.0] * times + [20.0], device)

    readings = [*wave("one", 1), *wave("three", 3), *wave("two", 2), *series([20.0], "none")]
    found = await run(readings, book(heat=HEAT), book(heat=HEAT), panels=2)
    assert [(panel.series[0], len(panel.rules), len(panel.against)) for panel in found.panels] == [
        ("three", 3, 3),
        ("two", 2, 2),
    ]
    assert found.panels[1].points == [(each.time, each.values["temperature"]) for each in wave("two", 2)]
    assert (await run(readings, book(heat=HEAT))).panels == []


async def test_what_is_kept_is_bounded_and_has_the_extremes() -> None:
    drawn = random.Random(3)
    values = [drawn.gauss(20, 1) for _ in range(20_000)]
    values[777], values[15_000] = 95.0, -40.0
    found = await run(series(values, every=0.1), book(heat=HEAT), panels=1)
    (panel,) = found.panels
    kept = dict(panel.points)
    assert len(panel.points) <= 2 * backtest._BINS
    assert (kept[at(77.7)], kept[at(1500.0)]) == (95.0, -40.0)
    assert [time for time, _ in panel.points] == sorted(time for time, _ in panel.points)
