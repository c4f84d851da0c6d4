"""Windows equal a recomputation from scratch, whatever the order, and whenever a process dies."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas import latest, rules
from schemas.names import parted
from schemas.reading import Reading
from schemas.rules import RuleSet
from tables import snapshot
from tables.rules import Rulebook
from tests.lab.analysis import CONFIG, MINUTE, SECOND, SIZES, START, Kept, reading, recomputed, records

NUMBERS = ("count", "mean", "min", "max", "stddev", "sum", "first", "last")


def equal(kept: Kept, readings: list[Reading]) -> None:
    found, wanted = kept.aggregates(), recomputed(readings, SIZES)
    assert found.keys() == wanted.keys()
    for key, numbers in wanted.items():
        for name in NUMBERS:
            assert math.isclose(found[key].values[name], numbers[name], rel_tol=1e-9, abs_tol=1e-6), (key, name)


def after(kept: Kept, partition: Any, days: float = 3) -> int:
    """Long after all, when everything has closed by the clock: checkpoints until nothing is left to say."""
    now = int(START.timestamp() * 1000 + days * 86_400_000)
    partition.expire(now)
    partition.expire(now + 86_400_000)
    return now


@st.composite
def arrivals(draw: st.DrawFn) -> list[Reading]:
    """Readings of two devices over some hours, each at most nine minutes late, some of them twice."""
    count = draw(st.integers(1, 60))
    found = []
    clock = 0.0
    for _ in range(count):
        clock += draw(st.sampled_from([0.0, 0.5, 1, 7, 20, 59, 61, 300, 4000]))
        late = draw(st.sampled_from([0, 0, 0, 0, 1, 30, 100, 500]))
        device = draw(st.sampled_from(["a", "b"]))
        values: dict[str, Any] = {"t": draw(st.floats(-1e6, 1e6))}
        if draw(st.booleans()):
            values["h"] = draw(st.integers(-5, 5))
        found.append(reading(max(0.0, clock - late), device, **values))
    if draw(st.booleans()):
        found += [found[draw(st.integers(0, count - 1))]]
    return found


def in_time(readings: list[Reading]) -> list[Reading]:
    """Those that no window is closed to for good: at most ten minutes behind their device's newest."""
    newest: dict[str, float] = {}
    found = []
    for one in readings:
        at = one.time.timestamp()
        newest[one.device_id] = max(newest.get(one.device_id, 0), at)
        end = (at // 60 + 1) * 60
        if end + 600 > newest[one.device_id] - 2:
            found.append(one)
    return found


@settings(max_examples=150, deadline=None)
@given(arrivals(), st.data())
def test_windows_equal_a_recomputation_wherever_a_process_dies(readings: list[Reading], data: st.DataObject) -> None:
    readings = in_time(readings)
    log = records(readings)
    now = max(record.timestamp for record in log)
    kept = Kept()
    partition = kept.begin()
    place = 0
    for _ in range(200):
        if place >= len(log):
            break
        upto = min(len(log), place + data.draw(st.integers(1, 20)))
        partition.fold(log[place:upto], now)
        place = upto
        match data.draw(st.sampled_from(["go on", "keep", "die", "idle"])):
            case "keep":
                dies = data.draw(st.sampled_from(["", "", "state", "outputs", "side", "ack"]))
                before = data.draw(st.sampled_from([0, place // 2, place]))
                if not kept.keep(partition, place, dies, most=data.draw(st.integers(1, 4)), before=before):
                    partition, place = kept.begin(), kept.acknowledged
                elif data.draw(st.booleans()):
                    kept.said += partition.latest(1)
            case "die":
                partition, place = kept.begin(), kept.acknowledged
            case "idle":
                partition.expire(log[upto - 1].timestamp + data.draw(st.integers(0, 400_000)))
    after(kept, partition)
    kept.keep(partition, len(log))
    equal(kept, readings)
    assert kept.keep(partition, len(log))
    assert partition.dirty == 0
    assert kept.acknowledged == len(log)
    alone = Kept()
    undisturbed = alone.begin()
    undisturbed.fold(log, now)
    after(alone, undisturbed)
    alone.keep(undisturbed, len(log))
    assert last_values(kept) == last_values(alone)


def last_values(kept: Kept) -> dict[bytes, Any]:
    """What the compacted topic comes to."""
    found = {output.key: latest.read(output.value or b"") for output in kept.said if output.topic == "latest"}
    return {key: (each.reading, each.online, each.hour, each.day) for key, each in found.items()}


WATCHED = rules.parse(
    {
        "profile": "none",
        "rules": {
            "hot": {"metric": "t", "levels": {"WARN": 100, "EMERGENCY": 1e5}},
            "mean": {"metric": "t", "levels": {"WARN": 0}, "on": "1m", "of": "2 of 3"},
            "longer": {"metric": "h", "levels": {"INFO": 2}, "on": "5m", "stat": "max"},
            "gaps": {"kind": "gap", "metric": "*", "within": "1h", "every": "1m"},
            "odd": {"kind": "detector", "metric": "h", "detector": "shift"},
            "silent": {"kind": "silent", "metric": "h", "for": "5m"},
        },
    }
)


@settings(max_examples=150, deadline=None)
@given(arrivals(), st.lists(st.integers(1, 9), min_size=60), st.sampled_from([set(), {"silent"}]))
def test_a_window_that_is_left_open_for_a_checkpoint_is_as_if_it_had_been_closed(
    readings: list[Reading], steps: list[int], without: set[str]
) -> None:
    """To the last bit, in what is said and in what is kept, whatever comes in between."""
    log = records([one if at % 7 else replace(one, tags={"facility_id": "f"}) for at, one in enumerate(readings)])
    book = RuleSet({name: rule for name, rule in WATCHED.rules.items() if name not in without}, "none")
    ends = []
    for left in (0, 5):
        kept, place, said = Kept(replace(CONFIG, left=left), Rulebook(book)), 0, list[Any]()
        partition = kept.begin()
        for step in steps:
            said += partition.fold(log[place : place + step], log[-1].timestamp)
            place += step
            if step % 3 == 0:
                kept.keep(partition, place)
                said.append((dict(kept.state), dict(kept.side)))
        kept.keep(partition, len(log))
        ends.append((said, kept.state, kept.side, kept.said))
    assert ends[0] == ends[1]


@settings(max_examples=100, deadline=None)
@given(arrivals())
def test_state_is_restored_bit_for_bit(readings: list[Reading]) -> None:
    log = records(readings)
    kept = Kept()
    partition = kept.begin()
    partition.fold(log, log[-1].timestamp)
    kept.keep(partition, len(log))
    before = dict(kept.state)
    again = kept.begin()
    for each in again._channels.values():
        again._dirty.touch(each)
    kept.keep(again, len(log))
    assert {key: value[9:] for key, value in kept.state.items()} == {key: value[9:] for key, value in before.items()}


def test_a_late_reading_corrects_its_windows_with_a_higher_revision() -> None:
    kept = Kept()
    partition = kept.begin()
    log = records(
        [reading(10, t=1.0), reading(70, t=2.0), reading(200, t=3.0), reading(20, t=5.0), reading(300, t=0.0)]
    )
    partition.fold(log[:3], log[2].timestamp)
    kept.keep(partition, 3)
    first = kept.aggregates()["d", "telemetry", "", "t", "1m", str(round(START.timestamp()) * 1_000_000)]
    assert (first.values["revision"], first.values["count"], first.values["mean"]) == (1, 1, 1.0)
    partition.fold(log[3:], log[4].timestamp)
    kept.keep(partition, 5)
    again = kept.aggregates()["d", "telemetry", "", "t", "1m", str(round(START.timestamp()) * 1_000_000)]
    assert (again.values["revision"], again.values["count"], again.values["mean"]) == (2, 2, 3.0)
    assert not [output for output in kept.said if output.topic == "late"]


def test_what_is_too_late_for_a_window_counts_for_the_larger_ones() -> None:
    kept = Kept()
    partition = kept.begin()
    readings = [reading(10, t=1.0), reading(1000, t=2.0), reading(20, t=5.0)]
    log = records(readings)
    said = partition.fold(log, log[1].timestamp)
    assert [(output.topic, dict(output.headers)["iotflow-late"]) for output in said] == [("late", b"1m")]
    assert partition.tally["late"] == 1
    after(kept, partition)
    kept.keep(partition, 3)
    start = str(round(START.timestamp()) * 1_000_000)
    found = kept.aggregates()
    assert found["d", "telemetry", "", "t", "1m", start].values["count"] == 1
    assert found["d", "telemetry", "", "t", "5m", start].values["count"] == 2
    assert found["d", "telemetry", "", "t", "1d", start].values["sum"] == 8.0


def test_a_fast_clock_is_held_back_and_reported_and_makes_nobody_late() -> None:
    kept = Kept()
    partition = kept.begin()
    fast = [reading(3600 + at, "fast", t=1.0) for at in range(0, 300, 10)]
    slow = [reading(at, "slow", t=1.0) for at in range(0, 300, 10)]
    log = records([one for pair in zip(fast, slow, strict=True) for one in pair])
    for record, at in zip(log[::2], range(0, 300, 10), strict=True):
        record.timestamp = log[1].timestamp + at * 1000
    said = partition.fold(log, log[-1].timestamp)
    assert [output.topic for output in said] == ["quality"]
    assert b"fast_clock" in (said[0].value or b"")
    kept.keep(partition, len(log))
    devices = {key[0] for key in kept.aggregates()}
    assert devices == {"slow"}
    assert partition.tally["late"] == 0


def test_repeats_of_decode_are_known_by_their_raw_record() -> None:
    kept = Kept()
    partition = kept.begin()
    log = records([reading(at, t=float(at)) for at in range(10)])
    again = records([reading(at, t=float(at)) for at in range(10)])
    for record in again:
        record.offset += 10
    partition.fold([*log, *again], log[-1].timestamp)
    assert partition.tally["repeated"] == 10
    anew = records([reading(100 + at, t=float(at)) for at in range(10)])
    for record in anew:
        record.offset += 20
    partition.fold(anew, anew[-1].timestamp)  # a raw topic that was made anew: low offsets, received later
    assert partition.tally["repeated"] == 10


def test_a_second_value_of_one_time_is_counted_and_not_folded() -> None:
    kept = Kept()
    partition = kept.begin()
    log = records([reading(1, t=1.0), reading(1, t=9.0), reading(1, h=2.0)])
    partition.fold(log, log[-1].timestamp)
    assert partition.tally["duplicate"] == 1
    after(kept, partition)
    kept.keep(partition, 3)
    start = str(round(START.timestamp()) * 1_000_000)
    assert kept.aggregates()["d", "telemetry", "", "t", "1m", start].values["sum"] == 1.0
    assert kept.aggregates()["d", "telemetry", "", "h", "1m", start].values["sum"] == 2.0


def test_a_dense_window_is_bounded_and_still_right() -> None:
    kept = Kept()
    partition = kept.begin()
    readings = [reading(at / 400, t=math.sin(at)) for at in range(20_000)]
    log = records(readings)
    partition.fold(log, log[-1].timestamp)
    kept.keep(partition, len(log))
    assert max(map(len, kept.state.values())) < 300_000
    after(kept, partition)
    kept.keep(partition, len(log))
    equal(kept, readings)


def test_a_device_that_was_silent_says_its_windows_by_the_clock() -> None:
    kept = Kept()
    partition = kept.begin()
    log = records([reading(10, t=1.0)])
    partition.fold(log, log[0].timestamp)
    partition.expire(log[0].timestamp + 55_000)
    kept.keep(partition, 1)
    assert not kept.aggregates()
    partition.expire(log[0].timestamp + 61_000)
    kept.keep(partition, 1)
    assert {key[4] for key in kept.aggregates()} == {"1m"}
    partition.expire(log[0].timestamp + 600_000)
    kept.keep(partition, 1)
    assert {key[4] for key in kept.aggregates()} == {"1m", "5m"}
    # What comes of the same minute afterwards corrects it: silence makes nothing late.
    more = records([reading(10, t=1.0), reading(30, t=2.0)])[1:]
    partition.fold(more, more[0].timestamp)
    kept.keep(partition, 2)
    start = str(round(START.timestamp()) * 1_000_000)
    assert kept.aggregates()["d", "telemetry", "", "t", "1m", start].values["count"] == 2
    assert MINUTE == SIZES["1m"]


def test_a_channel_is_kept_when_it_has_something_to_say_or_changed_long_ago() -> None:
    """Until then each reading changes it, and nothing is written; the log is needed from the oldest of these on."""
    kept = Kept()
    partition = kept.begin()
    log = records([reading(0, "a", t=1.0), reading(10, "b", t=1.0), reading(20, "a", t=2.0), reading(63, "a", t=1.0)])
    partition.fold(log[:3], log[2].timestamp)
    assert (partition.waiting(0), partition.waiting(1), partition.dirty, partition.safe) == (0, 1, 2, 0)
    partition.fold(log[3:], log[3].timestamp)
    assert partition.waiting(0) == 1, "a minute of a's is over"
    kept.keep(partition, 4, before=0)
    assert [parted(key.decode())[0] for key in kept.state] == ["a"]
    assert {output.topic for output in kept.said} == {"aggregates", "latest"}
    assert (kept.acknowledged, partition.safe) == (1, 1), "b's reading has changed what is not kept"
    partition.fold(records([reading(0, "a", t=1.0)] * 4 + [reading(64, "a", t=1.0)])[4:], log[3].timestamp)
    kept.keep(partition, 5, most=1, before=5)
    assert (kept.acknowledged, partition.safe) == (4, 4), "the one that changed first is kept first"
    kept.keep(partition, 5, most=1, before=5)
    assert kept.acknowledged == 5


def test_last_values_are_said_once_and_again_by_the_next_owner() -> None:
    kept = Kept()
    partition = kept.begin()
    log = records([reading(0, "a", t=1.0), reading(1, "b", t=1.0), reading(2, "a", t=2.0)])
    partition.fold(log, log[-1].timestamp)
    assert [len(partition.latest(1)) for _ in range(3)] == [1, 1, 0]
    kept.keep(partition, 3)
    assert not [output for output in kept.said if output.topic == "latest"], "they were said"
    partition.fold(records([reading(0, t=1.0)] * 3 + [reading(3, "a", t=3.0)])[3:], log[-1].timestamp)
    kept.keep(partition, 4, "outputs")
    [again] = kept.begin().latest(10)
    assert latest.read(again.value or b"").reading.values == {"t": 3.0}


def test_what_a_closing_window_needs_is_in_the_table_and_not_in_memory() -> None:
    """From a checkpoint until the next window closes; a table that has lost it is a fault, and not an empty state."""
    kept = Kept()
    partition = kept.begin()
    log = records([reading(0, t=1.0), reading(63, t=2.0), reading(64, t=3.0), reading(127, t=4.0)])
    partition.fold(log[:2], log[1].timestamp)
    (channel,) = partition._channels.values()
    assert channel.packed is not None
    kept.keep(partition, 2)
    assert channel.packed is None
    partition.fold(log[2:3], log[2].timestamp)
    assert channel.packed is None, "a reading within a window"
    kept.keep(partition, 3)
    assert channel.packed is None
    partition.fold(log[3:], log[3].timestamp)
    assert channel.packed is None, "a window that is over may wait for the checkpoint"
    kept.keep(partition, 4)
    assert channel.packed is None
    assert [output.topic for output in kept.said].count("aggregates") == 2
    kept.state.clear()
    partition.fold(records([reading(190, t=1.0)] * 5)[4:], log[3].timestamp)
    with pytest.raises(LookupError, match="has lost the state"):
        kept.keep(partition, 5)


def test_channels_that_had_to_close_windows_at_once_are_few_until_the_next_checkpoint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What a closing window needs is in memory then; the first round of a checkpoint makes room for more."""
    monkeypatch.setattr(snapshot, "_CLOSED", 2)
    kept = Kept()
    partition = kept.begin()
    log = records([reading(at, device, t=1.0) for at in (0, 63, 10) for device in "abc"])
    partition.fold(log[:6], log[5].timestamp)
    assert not partition.full, "windows that are over are left open"
    partition.fold(log[6:7], log[5].timestamp)
    assert not partition.full
    partition.fold(log[7:], log[5].timestamp)
    assert partition.full, "late readings have closed the windows of three"
    kept.keep(partition, 9, most=1)
    assert partition.full
    kept.keep(partition, 9, most=1)
    assert not partition.full
    kept.keep(partition, 9)
    assert partition.unsaid == 0


def test_what_was_said_while_a_channel_went_on_is_not_still_to_be_said() -> None:
    """A reading between a snapshot and its end changes the channel, and gives it nothing to say."""
    partition = Kept().begin()
    log = records([reading(0, t=1.0), reading(63, t=1.0), reading(64, t=1.0)])
    partition.fold(log[:2], log[1].timestamp)
    taken = partition.snapshot(1)
    partition.fold(log[2:], log[2].timestamp)
    assert partition.unsaid == 1
    taken.done()
    assert (partition.unsaid, partition.waiting(0), partition.dirty) == (0, 0, 1)


def test_a_channel_that_was_forgotten_and_has_come_back_is_left_alone() -> None:
    """Though the clock, which looks at some channels at a time, has still to look at what it was."""
    kept = Kept(config=replace(CONFIG, forget=3600 * SECOND))
    partition = kept.begin()
    log = records([reading(number / 1000, f"d{number:03}", t=1.0) for number in range(501)])
    partition.fold(log, log[-1].timestamp)
    kept.keep(partition, 501)
    now = log[-1].timestamp + 2 * 3_600_000
    while partition.expire(now):
        pass
    partition._rules = Rulebook(rules.profile("none"))  # other rules: all are to be looked at anew
    assert partition.expire(now + 1000)
    kept.keep(partition, 501)
    assert not kept.state
    back = records([reading(7300, "d500", t=2.0)] * 502)[501:]
    partition.fold(back, now + 1500)
    kept.keep(partition, 502)
    assert not partition.expire(now + 2000)
    kept.keep(partition, 502)
    assert [parted(key.decode())[0] for key in kept.state] == ["d500"]
    assert len(partition) == 1
