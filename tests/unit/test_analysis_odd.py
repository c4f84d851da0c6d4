"""Readings, clocks and changes that are out of the ordinary: none ends a worker, and none outlives its cause."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest

from schemas import rules, wire
from schemas.reading import Reading
from schemas.rules import RuleSet
from tables.analysis import METRICS, Config, spans
from tables.output import Output, closed_windows
from tables.rules import Rulebook
from tests.lab.analysis import LATE, MINUTE, START, Kept, Raw, reading, records

START_MS = int(START.timestamp() * 1000)
HOUR_MS = 3_600_000


def kept(profile: str = "none", **extra: Any) -> Kept:
    base = rules.profile(profile)
    own = rules.parse({"profile": "none", "rules": extra}).rules
    return Kept(rules=Rulebook(RuleSet({**base.rules, **own}, profile)))


def metrics(seconds: float, numbers: Iterable[int], value: float | str) -> Reading:
    return reading(seconds, "d", "", **{f"m{number}": value for number in numbers})


def states(said: list[Output]) -> list[str]:
    return [str(wire.read(output.value).values["state"]) for output in said if output.topic == "alarms"]


def survives(store: Kept, log: list[Raw]) -> list[Output]:
    """What is said of records that are folded, kept and taken over by another worker."""
    partition = store.begin()
    said = partition.fold(log, max(START_MS, min(log[-1].timestamp, START_MS + 10**9)))
    store.keep(partition, len(log))
    store.begin()
    return said


def test_the_last_instant_of_the_calendar_is_a_time_like_any_other() -> None:
    last = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
    said = survives(kept("fire"), records([Reading("telemetry", "d", last, {"temperature": 100.0})], START))
    (event,) = [json.loads(output.value or b"") for output in said if output.topic == "anomalies"]
    assert event["measured_at"] == "9999-12-31T23:59:59.999999Z"


@pytest.mark.parametrize("timestamp", [-1, 10**15, 10**18, 2**62])
def test_a_record_of_no_time_there_is_ends_nothing(timestamp: int) -> None:
    log = records([reading(0, temperature=100.0)])
    log[0].timestamp = timestamp
    assert states(survives(kept("fire"), log)) == ["ACTIVE"]


@pytest.mark.parametrize(
    "rule",
    [
        {"kind": "stuck", "metric": "*", "for": "1h"},
        {"kind": "rate", "metric": "*", "levels": {"WARN": 1}},
        {"kind": "detector", "metric": "*", "detector": "envelope", "on": "reading"},
    ],
)
def test_an_integer_of_any_size_can_be_remembered(rule: dict[str, Any]) -> None:
    store = kept(odd=rule)
    survives(store, records([reading(at, t=value) for at, value in enumerate((2**70, -(2**70), 10**100, 2**2000))]))
    assert len(store.state) == 1


@pytest.mark.parametrize(("place", "value"), [(1, b"raw/0/" + b"9" * 30 + b"/0"), (2, b"9" * 30)])
def test_a_source_of_any_length_can_be_remembered(place: int, value: bytes) -> None:
    log = records([reading(0, t=1.0)])
    headers = list(log[0].headers)
    headers[place] = (headers[place][0], value)
    log[0].headers = headers
    store = kept()
    survives(store, log)
    assert len(store.state) == 1


def test_metrics_beyond_the_most_leave_nothing_behind() -> None:
    store = kept()
    partition = store.begin()
    log = records([metrics(at, [at], 1.0) for at in range(3 * METRICS)])
    log += records([metrics(at, [-1 - at], "text") for at in range(3 * METRICS)])
    for offset, record in enumerate(log):
        record.offset, record.headers = offset, ()
    partition.fold(log, log[-1].timestamp)
    (each,) = partition._channels.values()
    assert len(each.series) <= METRICS + 1


def test_an_alarm_of_a_clock_that_was_ahead_is_cleared_when_it_is_right_again() -> None:
    log = records([reading(86_000, temperature=100.0), *(reading(10 * at, temperature=20.0) for at in range(1, 60))])
    log[0].timestamp = START_MS
    assert states(kept("fire").begin().fold(log, log[-1].timestamp)) == ["ACTIVE", "CLEARED"]


def test_a_clock_that_was_ahead_takes_no_room_from_what_is_right() -> None:
    store = kept()
    partition = store.begin()
    ahead = records([reading(72_000 + 30 * at, t=1.0) for at in range(200)])
    for number, record in enumerate(ahead):
        record.timestamp = START_MS + 30_000 * number
    right = records([reading(6000 + 30 * at, t=1.0) for at in range(100)])
    for record in right:
        record.offset, record.headers = record.offset + 200, ()
    partition.fold(ahead, ahead[-1].timestamp)
    assert not partition.fold(right, right[-1].timestamp)
    store.keep(partition, 300)
    assert len([key for key in store.aggregates() if key[4] == "1m"]) == 49


def _size(item: tuple[tuple[str, bytes], bytes]) -> int:
    return int(item[0][1].rpartition(b"|")[2])


def test_windows_that_are_corrected_no_more_are_not_stored() -> None:
    store = kept()
    partition = store.begin()
    log = records([reading(20 * at, t=1.0) for at in range(2000)])
    partition.fold(log, log[-1].timestamp)
    store.keep(partition, len(log))
    (each,) = partition._channels.values()
    archived = [starts for starts in each.opened().windows.archived if starts]
    assert [sorted(closed_windows(entry)) for _, entry in sorted(store.side.items(), key=_size)] == archived


def test_missing_sensors_are_known_to_the_next_worker() -> None:
    log = records([Reading("fire", "d", START, {"temperature": 1.0, "humidity": 1.0})] * 2)
    store = kept()
    partition = store.begin()
    partition.fold(log[:1], START_MS)
    store.keep(partition, 1)
    log = records([Reading("fire", "d", START, {"temperature": 1.0})] * 2)
    assert [output.topic for output in store.begin().fold(log[1:], START_MS)] == ["quality"]


def test_a_window_says_its_own_percentiles_however_many_close_at_once() -> None:
    values = [(70 + at / 10, float(at * at % 97)) for at in range(200)]
    log = records([reading(1, t=0.0), *(reading(at, h=x) for at, x in values), reading(130, t=0.0), reading(700, t=0)])
    found = []
    for step in (1, len(log)):
        store = kept()
        partition = store.begin()
        for place in range(0, len(log), step):
            partition.fold(log[place : place + step], log[-1].timestamp)
            store.keep(partition, place + step)
        start = str(START_MS * 1000 + 60_000_000)
        found.append(store.aggregates()["d", "telemetry", "", "h", "1m", start])
    assert found[0] == found[1]


def test_a_new_rule_holds_for_what_is_silent_already() -> None:
    store = kept()
    partition = store.begin()
    log = records([reading(0, t=1.0)])
    partition.fold(log, START_MS)
    for hour in range(1, 20):
        partition.expire(START_MS + hour * HOUR_MS)
    store.rules.put("quiet", b'{"kind": "silent", "for": "10m"}')
    assert states(store.clock(partition, START_MS + 20 * HOUR_MS)) == ["ACTIVE"]


def test_a_rule_of_silence_that_comes_later_does_not_go_by_an_alarm_of_long_ago() -> None:
    """While a metric had an alarm each of its readings was looked at, and then no more."""
    store = kept(hot={"metric": "t", "levels": {"WARN": 50}})
    partition = store.begin()
    log = records([reading(60 * at, t=90.0 if at < 3 else 1.0) for at in range(120)])
    partition.fold(log, log[-1].timestamp)
    store.clock(partition, log[-1].timestamp)
    store.rules.put("late", b'{"kind": "silent", "metric": "t", "for": "30m"}')
    assert states(store.clock(partition, log[-1].timestamp + 1000)) == []
    assert states(store.clock(partition, log[-1].timestamp + HOUR_MS)) == ["ACTIVE"]


@pytest.mark.parametrize("before", [False, True])
def test_silence_of_a_metric_is_counted_from_when_a_rule_first_asks(*, before: bool) -> None:
    """Also where others of its channel go on, and where the rule was there once and was taken away."""
    rule = {"kind": "silent", "metric": "t", "for": "30m"}
    store = kept(late=rule) if before else kept()
    partition = store.begin()
    said: list[Output] = []
    for at, record in enumerate(
        records([reading(60 * at, h=1.0, **({"t": 1.0} if at < 5 else {})) for at in range(120)])
    ):
        if at in {10, 20}:
            store.rules.put("late", json.dumps({**rule, "enabled": at == 20}).encode())
        said += partition.fold([record], record.timestamp) + store.clock(partition, record.timestamp)
        assert bool(states(said)) is (at >= 49)
    assert states(said) == ["ACTIVE"]


def test_what_detectors_learnt_begins_again_where_a_table_was_lost() -> None:
    store = kept("fire")
    log = records([reading(60 * at, t=float(at % 7)) for at in range(300)])
    survives(store, log)
    assert any(table == "histograms" for table, _ in store.side)
    store.state.clear()
    survives(store, log)
    assert len(store.state) == 1


def test_a_channel_of_texts_is_offline_again_when_it_is_silent_again() -> None:
    partition = kept().begin()
    log = records([reading(0, door="open"), reading(1000, door="shut")])
    partition.fold(log[:1], START_MS)
    for seconds in range(1, 999, 10):
        partition.expire(START_MS + seconds * 1000)
    partition.fold(log[1:], log[1].timestamp)
    (each,) = partition._channels.values()
    assert each.online
    partition.expire(log[1].timestamp + 61_000)
    assert not each.online


def test_a_text_ends_the_silence_of_its_metric() -> None:
    store = kept(door={"kind": "silent", "metric": "door", "for": "10m"})
    partition = store.begin()
    log = records([reading(60 * at, t=1.0, **({"door": "shut"} if at < 20 else {})) for at in range(40)])
    said: list[Output] = []
    for record in log:
        said += partition.fold([record], record.timestamp) + store.clock(partition, record.timestamp)
    assert states(said) == ["ACTIVE"]


def test_a_change_too_small_to_be_told_in_a_unit_is_no_rule_there() -> None:
    store = kept(fast={"kind": "rate", "metric": "t", "unit": "K", "levels": {"WARN": 1e-13}})
    log = records(
        [Reading("telemetry", "d", one.time, {"t": 1.0}, units={"t": "°C"}) for one in (reading(0), reading(9))]
    )
    assert not survives(store, log)
    assert ("fast", "°C") in store.rules.book.misfits


# -- what is bounded ---------------------------------------------------------------------------------------------------

MESSAGE_BYTES = 1_000_000


def catch_up(store: Kept, log: list[Raw], chunk: int = 1000) -> int:
    """Fold as the stage does, with a checkpoint when a state is full; the largest state."""
    partition = store.begin()
    largest = 0
    for start in range(0, len(log), chunk):
        partition.fold(log[start : start + chunk], log[-1].timestamp)
        if partition.full:
            store.keep(partition, start + chunk)
            assert not partition.full
            largest = max(largest, *map(len, [*store.state.values(), *store.side.values()]))
    store.keep(partition, len(log))
    return max(largest, *map(len, [*store.state.values(), *store.side.values()]))


def test_a_state_fits_in_a_message_however_much_is_caught_up_on() -> None:
    log = records([reading(at, a=1.5, b=float(at % 9), c=float(at % 7)) for at in range(20 * 3600)])
    store = kept()
    assert catch_up(store, log) < MESSAGE_BYTES
    found = store.aggregates()
    assert sum(int(each.values["count"]) for key, each in found.items() if key[3:5] == ("a", "1m")) == 20 * 3600 - 60


def test_a_state_of_many_fast_metrics_fits_in_a_message() -> None:
    names = {f"metric-{number}": 1.5 for number in range(METRICS)}
    log = records([reading(at / 5, **{name: value + at % 5 for name, value in names.items()}) for at in range(3000)])
    assert catch_up(kept("fire"), log) < MESSAGE_BYTES


def test_a_state_of_a_clock_far_ahead_fits_in_a_message() -> None:
    log = records([reading(at * 30.0, a=1.5, b=2.5) for at in range(20_000)], received=START)
    store = kept()
    partition = store.begin()
    said = partition.fold(log, START_MS)
    store.keep(partition, len(log))
    assert max(map(len, store.state.values())) < MESSAGE_BYTES
    assert sum(output.topic == "late" for output in said) > 10_000


def test_long_texts_and_names_are_cut_or_left_out() -> None:
    store = kept(state={"metric": "text", "compare": "!=", "levels": {"WARN": "ok"}})
    partition = store.begin()
    log = records([reading(0, text="x" * 900_000, **{"n" * 400_000: 1.0})])
    said = partition.fold(log, START_MS)
    store.keep(partition, 1)
    assert states(said) == ["ACTIVE"]
    assert all(len(output.value or b"") < 10_000 for output in said if output.topic == "alarms")
    assert max(map(len, store.state.values())) < 10_000


def test_a_channel_that_is_silent_for_long_is_forgotten_and_its_alarms_end() -> None:
    store = kept("fire")
    partition = store.begin()
    log = records([reading(60 * at, temperature=20.0 + at % 7) for at in range(300)])
    partition.fold(log, log[-1].timestamp)
    store.clock(partition, log[-1].timestamp + 2 * HOUR_MS)
    assert store.side
    said = [output for _ in range(3) for output in store.clock(partition, log[-1].timestamp + 31 * 24 * HOUR_MS)]
    assert "RESOLVED" in states(said)
    assert not store.state
    assert not store.side
    assert len(partition) == 0


# -- the clock, and changes --------------------------------------------------------------------------------------------


def test_what_the_clock_finds_is_said_when_the_state_has_it() -> None:
    """Or a crash in between would leave an alarm on its topic that nobody remembers."""
    store = kept(quiet={"kind": "silent", "for": "10m"})
    partition = store.begin()
    log = records([reading(0, t=1.0), reading(700, t=1.0)])
    partition.fold(log[:1], START_MS)
    store.keep(partition, 1)
    partition.expire(START_MS + 601_000)
    assert not store.keep(partition, 1, dies="state")
    partition = store.begin()
    said = partition.fold(log[1:], log[1].timestamp)
    assert not states([*said, *store.said])


def test_silence_lasts_until_a_reading_comes() -> None:
    store = kept(quiet={"kind": "silent", "for": "10m"})
    partition = store.begin()
    partition.fold(records([reading(0, t=1.0)]), START_MS)
    said = [output for hour in range(1, 100) for output in store.clock(partition, START_MS + hour * HOUR_MS)]
    assert states(said) == ["ACTIVE"]


def test_an_alarm_ends_when_its_rule_no_longer_applies() -> None:
    store = kept(hot={"metric": "t", "unit": "°C", "levels": {"WARN": 80}})
    partition = store.begin()
    hot = [reading(at, t=90.0) for at in range(4)]
    for at, one in enumerate(hot):
        one.units["t"] = "°C" if at < 2 else "bar"
    log = records(hot)
    assert states(partition.fold(log[:2], log[1].timestamp)) == ["ACTIVE"]
    assert states(partition.fold(log[2:], log[3].timestamp)) == ["RESOLVED"]


def test_other_larger_windows_leave_what_is_corrected_as_it_was() -> None:
    store = kept()
    partition = store.begin()
    log = records([reading(at, t=1.0) for at in range(0, 600, 10)] + [reading(15, t=3.0)])
    partition.fold(log[:-1], log[-2].timestamp)
    store.keep(partition, 60)
    store.config = Config(tuple(spans({"1m": MINUTE, "10m": 10 * MINUTE}, LATE)), 1)
    partition = store.begin()
    partition.fold(log[-1:], log[-2].timestamp)
    store.keep(partition, 61)
    found = store.aggregates()["d", "telemetry", "", "t", "1m", str(START_MS * 1000)]
    assert (found.values["revision"], found.values["count"]) == (2, 7)


def test_with_another_base_nothing_older_is_said_again() -> None:
    store = kept()
    partition = store.begin()
    log = records([reading(at, t=1.0) for at in range(0, 600, 10)] + [reading(15, t=3.0), reading(1300, t=1.0)])
    partition.fold(log[:-2], log[-3].timestamp)
    store.keep(partition, 60)
    store.config = Config(tuple(spans({"10s": MINUTE // 6, "1m": MINUTE}, LATE)), 1)
    partition = store.begin()
    said = partition.fold(log[-2:], log[-1].timestamp)
    store.keep(partition, 62)
    assert [output.topic for output in said if output.topic == "late"] == ["late"]
    found = store.aggregates()["d", "telemetry", "", "t", "1m", str(START_MS * 1000)]
    assert (found.values["revision"], found.values["count"]) == (1, 6)


def test_a_device_that_says_one_metric_a_message_lacks_none() -> None:
    partition = kept().begin()
    log = records([reading(at, **{f"m{at % 9}": 1.0}) for at in range(90)])
    assert not partition.fold(log, log[-1].timestamp)
