"""The detectors: what they find, what they leave alone, and that storing them changes nothing."""

import math
from collections.abc import Sequence
from random import Random

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.alarm import QUIET, Signal
from tables.detectors import PROFILES, RUN, Findings, Memory, Tuning, replay, step, trim
from tables.histograms import BINS, HOURS, Histograms

MINUTE_US = 60_000_000
DEFAULT = PROFILES["default"]
#: Learns so soon that short series have alarms of every kind.
HASTY = Tuning(sigmas=1.5, margin=0.01, rest=5, warm_up=10, learn=60, hold=40)
values = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-3, 3).map(float), st.floats(-1e3, 1e3)
)
seeds = st.integers(0, 2**32)


class Series:
    """One series and its detectors."""

    def __init__(self, tuning: Tuning = DEFAULT) -> None:
        self.memory, self.histograms, self.tuning = Memory(), Histograms(), tuning
        self.minute = 0

    def see(self, *points: float, gap: bool = False) -> list[Findings]:
        found = []
        for value in points:
            at_us, self.minute = self.minute * MINUTE_US, self.minute + 1
            found.append(step(self.memory, self.histograms, at_us, value, self.tuning, gap=gap))
        return found

    def stored(self, histograms: bytes) -> "Series":
        """Another that was read back from what was stored, of histograms perhaps some time ago."""
        other = Series(self.tuning)
        other.minute = self.minute
        other.memory = msgspec.msgpack.decode(msgspec.msgpack.encode(self.memory), type=Memory)
        other.histograms = Histograms.unpack(histograms)
        replay(other.memory, other.histograms)
        return other


def noise(count: int, seed: int = 1, centre: float = 20.0, spread: float = 1.0) -> list[float]:
    random = Random(seed)
    return [random.gauss(centre, spread) for _ in range(count)]


def eventful(seed: int, count: int) -> list[float]:
    """Noise with spikes, a higher level and a quiet spell in it."""
    random = Random(seed)
    points = [random.gauss(20.0, 1.0) for _ in range(count)]
    for _ in range(3):
        points[random.randrange(count)] += random.choice([-40.0, 40.0])
    start = random.randrange(count)
    points[start : start + 90] = [point + 15.0 for point in points[start : start + 90]]
    start = random.randrange(count)
    points[start : start + 40] = [25.0] * len(points[start : start + 40])
    return points


def on(found: Sequence[Findings], detector: str) -> list[int]:
    """Places at which a detector's alarm is on."""
    return [place for place, each in enumerate(found) if getattr(each, detector).severity]


# -- Envelope ----------------------------------------------------------------------------------------------------------


def test_a_value_outside_the_range_seen_so_far() -> None:
    series = Series()
    series.see(18.0, 24.0, *[20.0] * 300)
    (found,) = series.see(27.12)
    signal = found.envelope
    assert signal.severity == "WARN"
    assert (signal.low, signal.high, signal.value) == (18.0, 24.0, 27.12)
    assert signal.score == pytest.approx(0.52 / 0.02)
    assert signal.message == "27.12 is above the range 18 to 24 seen so far by 52 % of its width"
    assert found.score == signal.score


def test_a_value_below_it() -> None:
    series = Series()
    series.see(18.0, 24.0, *[20.0] * 300)
    (found,) = series.see(15.0)
    assert found.envelope.message == "15 is below the range 18 to 24 seen so far by 50 % of its width"


def test_the_range_grows_no_more_than_its_width_at_once() -> None:
    series = Series()
    series.see(18.0, 24.0, 60.0, -60.0)
    assert (series.memory.low, series.memory.high) == (6.0, 30.0)


def test_less_than_the_margin_is_no_alarm() -> None:
    series = Series()
    series.see(0.0, 100.0, *[50.0] * 300)
    (found,) = series.see(101.5)
    assert found.envelope is QUIET
    assert series.memory.high == 101.5


def test_nothing_is_said_while_it_learns() -> None:
    series = Series()
    found = series.see(18.0, 24.0, *[20.0] * (DEFAULT.warm_up - 3), 90.0, 900.0)
    assert not on(found[:-1], "envelope")
    assert on(found, "envelope") == [DEFAULT.warm_up]


def test_an_alarm_rests_and_a_higher_score_begins_the_rest_anew() -> None:
    series = Series()
    series.see(0.0, 100.0, *[50.0] * 300)
    calm = [50.0] * 200
    assert on(series.see(110.0, *calm), "envelope") == list(range(DEFAULT.rest + 1))
    found = series.see(120.0, *calm[:20], 180.0, *calm)
    assert on(found, "envelope") == list(range(21 + DEFAULT.rest + 1))
    assert [place for place, each in enumerate(found) if each.score >= 1.0] == [0]
    assert found[1].envelope.message == "50 comes soon after a value outside the range seen until then"
    found = series.see(300.0, *calm[:20], 310.0, *calm)
    assert on(found, "envelope") == list(range(DEFAULT.rest + 1))


# -- Surprise ----------------------------------------------------------------------------------------------------------


def test_a_run_inside_the_range_that_is_not_like_the_others() -> None:
    series = Series()
    daily = [math.sin(2 * math.pi * minute / 1440) for minute in range(1440)]
    random = Random(3)
    for _ in range(6):
        assert not on(series.see(*[value + random.gauss(0.0, 0.02) for value in daily]), "surprise")
    found = series.see(*[random.uniform(-1.0, 1.0) for _ in range(RUN)])
    assert not on(found, "envelope")
    first = on(found, "surprise")[0]
    signal = found[first].surprise
    assert signal.severity == "WARN"
    assert signal.score >= 1.0
    assert f"ends {RUN} values that are more surprising than usual by" in signal.message
    assert signal.low is not None
    assert signal.high is not None
    assert signal.low < signal.high
    assert found[first].score == signal.score


def test_no_run_is_over_both_sides_of_a_gap() -> None:
    series = Series()
    series.see(*noise(500))
    runs = series.memory.runs
    updates = series.histograms.n
    series.see(20.0, gap=True)
    series.see(*noise(RUN - 2))
    assert series.memory.runs == runs
    series.see(20.0)
    assert series.memory.runs == runs + 1
    assert series.histograms.n == updates + RUN


def test_the_hour_is_that_of_the_day_in_utc() -> None:
    memory, histograms = Memory(), Histograms()
    for at_us in (0, 59 * MINUTE_US, 60 * MINUTE_US, 25 * 60 * MINUTE_US, 47 * 60 * MINUTE_US, -1):
        step(memory, histograms, at_us, 1.0, DEFAULT)
    assert list(memory.log[1::2]) == [0, 0, 1, 1, 23, 23]


# -- the level-shift chart ---------------------------------------------------------------------------------------------


def test_a_level_that_stays_away_and_one_that_comes_back() -> None:
    series = Series()
    assert not on(series.see(*noise(1000)), "shift")
    found = series.see(*noise(300, seed=2, centre=25.0))
    places = on(found, "shift")
    assert places[0] < 20
    assert places == list(range(places[0], 300))
    signal = found[-1].shift
    assert signal.score > 1.0
    assert signal.low is not None
    assert signal.high is not None
    assert signal.low < 20.0 < signal.high < 25.0
    assert "is at a level of about 24.8747, 8.1 times as far from the usual 19.9695 as" in signal.message
    assert on(series.see(*noise(300, seed=3)), "shift")[-1] < 40


def test_a_shifted_level_is_learnt_in_the_end() -> None:
    series = Series()
    series.see(*noise(1000))
    found = series.see(*noise(DEFAULT.hold + 100, seed=2, centre=25.0))
    (given_up,) = [place for place, each in enumerate(found) if each.rebaselined]
    begun = on(found, "shift")[0]
    assert given_up == begun + DEFAULT.hold - 1
    assert on(found, "shift") == list(range(begun, given_up))
    assert not on(series.see(*noise(1000, seed=3, centre=25.0)), "shift")
    assert on(series.see(*noise(50, seed=4)), "shift")


def test_only_a_level_held_without_a_break_is_learnt() -> None:
    series = Series()
    series.see(*noise(1000))
    for _ in range(3):
        found = series.see(*noise(DEFAULT.hold // 2, seed=2, centre=25.0), *noise(200, seed=3))
        assert len(on(found, "shift")) > DEFAULT.hold // 3
        assert not any(each.rebaselined for each in found)


def test_it_follows_what_moves_slowly() -> None:
    series = Series()
    series.see(*noise(1000))
    assert not on(series.see(*[value + 0.002 * place for place, value in enumerate(noise(3000, seed=2))]), "shift")
    assert series.memory.level == pytest.approx(26.0, abs=1.0)


def test_what_never_changed_is_learnt_further() -> None:
    series = Series()
    series.see(*[20.0] * (DEFAULT.learn - 60))
    found = series.see(*[20.0] * 70, *[21.0] * 2000)
    assert not any(each.shift.severity for each in found)


# -- laws --------------------------------------------------------------------------------------------------------------


@given(value=values, count=st.integers(1, 700), gap_at=st.integers(0, 700))
@example(value=20.1, count=700, gap_at=500)
@settings(max_examples=40)
def test_a_constant_series_never_alarms(value: float, count: int, gap_at: int) -> None:
    series = Series(HASTY)
    for place in range(count):
        (found,) = series.see(value, gap=place == gap_at)
        assert (found.envelope, found.surprise, found.shift) == (QUIET, QUIET, QUIET)


@given(value=st.floats(1.0, 1e6), seed=seeds)
@settings(max_examples=40)
def test_nor_does_one_that_is_constant_but_for_rounding(value: float, seed: int) -> None:
    random, series = Random(seed), Series()
    for place in range(1000):
        least = math.ulp(value) * (3 if place < 500 else 9)
        (found,) = series.see(value + random.choice([-least, 0.0, least]))
        assert found.envelope is QUIET
        assert found.shift is QUIET


@given(points=st.lists(values, max_size=80), later=st.lists(values, max_size=80), other=st.lists(values, max_size=80))
@settings(max_examples=60)
def test_what_comes_later_changes_nothing(points: list[float], later: list[float], other: list[float]) -> None:
    start = eventful(1, 100)
    one = Series(HASTY).see(*start, *points, *later)
    two = Series(HASTY).see(*start, *points, *other)
    same = len(start) + len(points)
    assert one[:same] == two[:same]


@given(seed=seeds, count=st.integers(120, 400), data=st.data())
@settings(max_examples=60)
def test_stored_and_read_back_anywhere_it_goes_on_bit_for_bit(seed: int, count: int, data: st.DataObject) -> None:
    points = eventful(seed, count)
    whole = Series(HASTY).see(*points)
    cuts = sorted(data.draw(st.lists(st.integers(0, count), max_size=6)))
    series, stored, found, done = Series(HASTY), Histograms().pack(), list[Findings](), 0
    for cut in [*cuts, count]:
        found += series.see(*points[done:cut])
        done = cut
        if data.draw(st.booleans()):  # histograms are stored less often than the memory, and trimmed after that
            stored = series.histograms.pack()
            if data.draw(st.booleans()):
                trim(series.memory, Histograms.unpack(stored).n)
        again = series.stored(stored)
        assert again.memory == series.memory
        assert again.histograms.pack() == series.histograms.pack()
        series = again
    assert found == whole


@given(points=st.lists(values, min_size=1, max_size=150))
@settings(max_examples=60)
def test_any_finite_values_have_finite_scores(points: list[float]) -> None:
    series = Series(HASTY)
    for found in series.see(*eventful(1, 100), *points):
        assert math.isfinite(found.score)
        for signal in (found.envelope, found.surprise, found.shift):
            assert math.isfinite(signal.score)
    for number in msgspec.to_builtins(series.memory):
        assert isinstance(number, str) or math.isfinite(number)  # bytes become base64


@given(seed=seeds, by=st.floats(0.01, 1000.0), plus=st.floats(-1000.0, 1000.0))
@settings(max_examples=40)
def test_units_do_not_matter(seed: int, by: float, plus: float) -> None:
    points = eventful(seed, 300)
    for one, two in zip(
        Series(HASTY).see(*points), Series(HASTY).see(*[by * point + plus for point in points]), strict=True
    ):
        assert two.score == pytest.approx(one.score, rel=1e-6, abs=1e-6)
        for detector in ("envelope", "surprise", "shift"):
            same: tuple[Signal, Signal] = getattr(one, detector), getattr(two, detector)
            assert same[0].severity == same[1].severity
            assert same[1].score == pytest.approx(same[0].score, rel=1e-6, abs=1e-6)


# -- what is stored ----------------------------------------------------------------------------------------------------


def test_a_memory_is_small() -> None:
    series = Series()
    series.see(*noise(3000))
    trim(series.memory, series.histograms.n)
    assert len(msgspec.msgpack.encode(series.memory)) < 200


def test_replay_says_when_a_log_does_not_fit() -> None:
    series = Series()
    series.see(*noise(50))
    stored = series.histograms.pack()
    series.see(*noise(50))
    later = series.histograms.pack()
    trim(series.memory, 70)
    with pytest.raises(ValueError, match="histograms of 50 points do not fit a memory of 100 that logs those from 70"):
        series.stored(stored)
    series.stored(later)
    with pytest.raises(ValueError, match="histograms of 100 points do not fit a memory of 0"):
        replay(Memory(), Histograms.unpack(later))
    with pytest.raises(ValueError, match="histograms of 101 points are ahead"):
        trim(series.memory, 101)


def test_trimming_twice_is_trimming_once() -> None:
    series = Series()
    series.see(*noise(50))
    trim(series.memory, 40)
    assert len(series.memory.log) == 20
    trim(series.memory, 30)
    assert len(series.memory.log) == 20
    trim(series.memory, 50)
    assert not series.memory.log
    assert series.memory.before_log == series.memory.previous


def test_histograms_are_halved_before_a_counter_overflows() -> None:
    histograms = Histograms()
    for _ in range(70_000):
        histograms.update(3, 3, 5)
    assert histograms.n == 70_000
    again = Histograms.unpack(histograms.pack())
    assert again.n == 70_000
    assert again.pack() == histograms.pack()
    # 65,535 were 32,767 and the one that was too many, and 4,464 came after that.
    count = 32_768 + 4_464
    p0 = (count + 0.5) / (count + 8)
    expected = -(math.log(p0) + 2 * math.log((p0 + count) / (count + 1))) / 3
    assert histograms.update(3, 3, 5) == pytest.approx(expected, rel=1e-9)


@given(st.lists(st.tuples(st.integers(0, BINS - 1), st.integers(0, BINS - 1), st.integers(0, HOURS - 1)), max_size=200))
@settings(max_examples=40)
def test_surprise_is_what_its_definition_says(updates: list[tuple[int, int, int]]) -> None:
    histograms = Histograms()
    for place, (symbol, previous, hour) in enumerate(updates):
        before = updates[:place]
        p0 = (sum(s == symbol for s, _, _ in before) + 0.5) / (place + BINS / 2)
        after = [s for s, p, _ in before if p == previous]
        at = [s for s, _, h in before if h == hour]
        given_them = [(p0 + same.count(symbol)) / (len(same) + 1) for same in (after, at)]
        expected = -sum(math.log(max(p, 1e-5)) for p in (p0, *given_them)) / 3
        assert histograms.update(symbol, previous, hour) == pytest.approx(expected)
    assert histograms.n == len(updates)


@pytest.mark.parametrize("packed", [b"", b"\x01", Histograms().pack() + b"\x00", b"\x02" + Histograms().pack()[1:]])
def test_bytes_that_are_no_histograms(packed: bytes) -> None:
    with pytest.raises(ValueError, match="are no histograms of version 1"):
        Histograms.unpack(packed)
