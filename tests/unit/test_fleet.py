"""What the simulated fleet says."""

import itertools
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from app import fleet as fleets
from app.fleet import Disorder, Fleet, Sample
from schemas import dialects, wire
from schemas.reading import Reading, Rejected
from tests.lab import speech
from tests.lab.speech import RECEIVED_MS

NOW = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)


def samples(fleet: Fleet, count: int, step: timedelta = timedelta(milliseconds=10)) -> list[Sample]:
    return [fleet.sample(NOW + number * step) for number in range(count)]


def good(sample: Sample) -> Reading:
    assert isinstance(sample.expected, Reading)
    return sample.expected


def test_the_documents_dialects_can_be_spoken() -> None:
    assert {"telemetry", "fire"} <= set(fleets.speakable())


def test_a_dialect_nobody_speaks_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"cannot speak 'klingon', only .*telemetry"):
        Fleet(1, "klingon", 1)


@pytest.mark.parametrize("dialect", fleets.speakable())
def test_the_same_seed_says_the_same(dialect: str) -> None:
    disorder = Disorder(0.1, 0.1)
    first, again, other = (
        samples(Fleet(7, dialect, seed, bad_share=0.1, disorder=disorder), 500) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("dialect", fleets.speakable())
def test_every_expectation_is_what_decode_gives(dialect: str) -> None:
    module = dialects.load()[dialect]
    fleet = Fleet(13, dialect, 3, bad_share=0.2, odd=dict.fromkeys(module.WALKS, 0.1))
    kinds = Counter[str]()
    for sample in samples(fleet, 2_000):
        outcomes = speech.decode(dialect, sample.payload, sample.origin, RECEIVED_MS)
        if isinstance(sample.expected, Reading):
            assert list(outcomes) == [sample.expected]
            assert wire.write(outcomes[0]) == wire.write(sample.expected)
            assert sample.expected.device_id == sample.device_id
            kinds["good"] += 1
        else:
            (rejected,) = outcomes
            assert isinstance(rejected, Rejected)
            assert rejected.reason == sample.expected
            kinds[sample.expected] += 1
    assert kinds.keys() == {"good", *module.SPOILED}
    assert min(kinds.values()) > 20


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.01, 60, 140), (1.0, 10_000, 10_000)])
def test_the_share_of_bad_ones(share: float, low: int, high: int) -> None:
    bad = sum(
        isinstance(sample.expected, str) for sample in samples(Fleet(10, "telemetry", 1, bad_share=share), 10_000)
    )
    assert low <= bad <= high


def test_one_in_a_hundred_is_bad_when_nothing_is_said() -> None:
    bad = sum(isinstance(sample.expected, str) for sample in samples(Fleet(10, "telemetry", 1), 10_000))
    assert 60 <= bad <= 140


@pytest.mark.parametrize("step", [timedelta(0), timedelta(microseconds=1), timedelta(seconds=-1)])
def test_a_devices_times_strictly_increase_whatever_the_clock_does(step: timedelta) -> None:
    times: dict[str, list[datetime]] = {}
    for sample in samples(Fleet(3, "telemetry", 1, bad_share=0.0), 300, step):
        assert isinstance(sample.expected, Reading)
        times.setdefault(sample.device_id, []).append(sample.expected.time)
    assert times.keys() == {"sensor-001", "sensor-002", "sensor-003"}
    for moments in times.values():
        assert all(before < after for before, after in itertools.pairwise(moments))


def test_the_time_is_the_time_of_sending() -> None:
    assert samples(Fleet(1, "telemetry", 1, bad_share=0.0), 1)[0].expected.time == NOW  # type: ignore[union-attr]


def test_values_move_slowly_and_odd_ones_are_as_frequent_as_asked() -> None:
    walks = dialects.load()["telemetry"].WALKS
    odd = {"temperature": 0.05, "humidity": 0.05, "battery": 0.02, "unknown": 0.5}
    count = Counter[str]()
    calm: dict[str, float] = {}
    for sample in samples(Fleet(1, "telemetry", 1, bad_share=0.0, odd=odd), 10_000):
        assert isinstance(sample.expected, Reading)
        for metric, walk in walks.items():
            value = sample.expected.values[metric]
            assert isinstance(value, float)
            if walk.low <= value <= walk.high:
                before = calm.get(metric)
                # An odd value hides one step of the walk.
                assert before is None or abs(value - before) <= 4 * walk.step + 0.001
                calm[metric] = value
            else:
                assert walk.odd[0] <= value <= walk.odd[1]
                count[metric] += 1
    assert 400 <= count["temperature"] <= 600
    assert 400 <= count["humidity"] <= 600
    assert 130 <= count["battery"] <= 270


def test_without_a_share_nothing_is_in_disorder() -> None:
    plain, none = (samples(Fleet(3, "telemetry", 1, disorder=disorder), 1_000) for disorder in (None, Disorder()))
    assert plain == none
    assert not any(sample.order for sample in plain)


@pytest.mark.parametrize(("bad", "disorder"), [(0.01, Disorder(0.05, 0.01)), (0.1, Disorder(0.2, 0.3))])
def test_the_shares_of_disorder(bad: float, disorder: Disorder) -> None:
    made = samples(Fleet(10, "telemetry", 1, bad_share=bad, disorder=disorder), 20_000)
    orders = Counter(sample.order for sample in made)
    assert orders["out_of_order"] == pytest.approx(20_000 * disorder.out_of_order, rel=0.15)
    assert orders["late"] == pytest.approx(20_000 * disorder.late, rel=0.15)
    assert sum(isinstance(sample.expected, str) for sample in made) == pytest.approx(20_000 * bad, rel=0.2)
    assert all(isinstance(sample.expected, Reading) for sample in made if sample.order)


@pytest.mark.parametrize("dialect", fleets.speakable())
def test_a_reading_in_disorder_is_what_decode_gives(dialect: str) -> None:
    made = samples(Fleet(3, dialect, 1, bad_share=0.0, disorder=Disorder(0.2, 0.2)), 1_000)
    for sample in made:
        assert list(speech.decode(dialect, sample.payload, sample.origin, RECEIVED_MS)) == [sample.expected]
    assert all(good(sample).device_id == sample.device_id for sample in made)


@pytest.mark.parametrize("devices", [1, 7])
def test_one_out_of_order_comes_after_one_to_three_later_ones_of_its_device(devices: int) -> None:
    made = samples(Fleet(devices, "telemetry", 1, bad_share=0.0, disorder=Disorder(0.1)), 5_000)
    later = Counter[int]()
    for device in {sample.device_id for sample in made}:
        mine = [sample for sample in made if sample.device_id == device]
        for at, sample in enumerate(mine):
            overtakers = [other for other in mine[max(0, at - 50) : at] if good(other).time > good(sample).time]
            assert bool(overtakers) is (sample.order == "out_of_order")
            if overtakers:
                later[len(overtakers)] += 1
    assert later.keys() == {1, 2, 3}
    assert min(later.values()) > 100


@pytest.mark.parametrize(("most", "least"), [(3600.0, 60.0), (90.0, 45.0), (10.0, 5.0), (1.0, 0.5)])
def test_a_late_one_is_as_late_as_asked(most: float, least: float) -> None:
    fleet = Fleet(5, "telemetry", 1, bad_share=0.0, disorder=Disorder(late=0.2, late_by_s=most))
    behind = []
    for number in range(5_000):
        now = NOW + number * timedelta(milliseconds=10)
        sample = fleet.sample(now)
        if sample.order == "late":
            behind.append((now - good(sample).time).total_seconds())
        else:
            assert timedelta(0) <= now - good(sample).time <= timedelta(microseconds=1)
    assert least <= min(behind) < least + (most - least) / 20
    assert most - (most - least) / 20 < max(behind) <= most + 0.00001
    assert sum(behind) / len(behind) == pytest.approx((least + most) / 2, rel=0.05)


@pytest.mark.parametrize("step", [timedelta(milliseconds=10), timedelta(microseconds=1), timedelta(0)])
@pytest.mark.parametrize("disorder", [Disorder(0.1, 0.5, 1.0), Disorder(0.0, 1.0, 1.0), Disorder(0.2, 0.2)])
def test_no_two_readings_of_a_device_have_one_time(step: timedelta, disorder: Disorder) -> None:
    made = samples(Fleet(2, "telemetry", 1, bad_share=0.0, disorder=disorder), 20_000, step)
    assert len({(sample.device_id, good(sample).time) for sample in made}) == len(made)


def test_late_ones_do_not_meet_even_when_there_are_more_than_microseconds_to_choose_from() -> None:
    # A millisecond has 250 odd microseconds that are at least half of it behind.
    fleet = Fleet(1, "telemetry", 1, bad_share=0.0, disorder=Disorder(late=0.9, late_by_s=0.001))
    made = samples(fleet, 5_000, timedelta(0))
    assert len({good(sample).time for sample in made}) == len(made)


def test_two_runs_of_one_seed_do_not_meet() -> None:
    made: list[Sample] = []
    for begin in (NOW, NOW + timedelta(seconds=51, microseconds=7)):
        fleet = Fleet(2, "telemetry", 1, bad_share=0.0, disorder=Disorder(0.05, 0.2))
        made += [fleet.sample(begin + number * timedelta(milliseconds=10)) for number in range(5_000)]
    assert len({(sample.device_id, good(sample).time) for sample in made}) == len(made)


@pytest.mark.parametrize(
    ("bad", "disorder"),
    [(0.01, Disorder(0.4)), (0.5, Disorder(late=0.6)), (1.0, Disorder(0.01)), (0.2, Disorder(0.2, 0.3))],
)
def test_shares_that_cannot_all_be_are_an_error(bad: float, disorder: Disorder) -> None:
    with pytest.raises(ValueError, match="are too much: each reading out of order needs 2 in order"):
        Fleet(1, "telemetry", 1, bad_share=bad, disorder=disorder)


def test_little_is_held_back_however_long_it_runs() -> None:
    fleet = Fleet(4, "telemetry", 1, disorder=Disorder(0.3, 0.05))
    for _ in range(5_000):
        fleet.sample(NOW)
        assert len(fleet._held) <= 4
