"""Three detectors that learn what is normal for one series: Envelope, Surprise and a level-shift chart.

Envelope and Surprise find events: a value outside the range seen so far, and a run of values that cost more nats than
runs of this series usually do. The level-shift chart finds states: a level that is not the one it learnt. Every point
costs the same, and nothing that is said of a point depends on a later one.
"""

from collections.abc import Mapping
from math import copysign, sqrt
from types import MappingProxyType
from typing import Final

from msgspec import Struct

from schemas.alarm import QUIET, Signal
from tables.histograms import BINS, HOURS, Histograms

#: Rises when equal points no longer give equal scores.
VERSION: Final = 1
#: Surprise judges the mean of this many points.
RUN: Final = 24

_HOUR_US: Final = 3_600_000_000
#: The symbol that a first one is taken to follow.
_FIRST: Final = BINS // 2
#: Means are over all points until there are so many; then a new one has this weight.
_MOST_POINTS: Final = 2000
_LEAST_WEIGHT: Final = 1 / _MOST_POINTS
#: After this many points, one further from the centre than so many spreads moves it no more than that.
_CLIP_AFTER: Final = 50
_CLIP: Final = 5.0
#: Less than this part of a value is rounding, not change.
_ROUNDING: Final = 1e-12
#: A value beyond this counts as this, so that no square overflows; and no score is above the other.
_GREATEST: Final = 1e150
_HIGHEST: Final = 1e6
#: Surprise is kept in this part of a nat, in 16 bits, so that a run is short and its sum exact.
_PER_NAT: Final = 4096
_PLACE: Final = 2
_RUN_BYTES: Final = _PLACE * RUN
_RUN_NATS: Final = RUN * _PER_NAT
#: Runs differ by this many nats at least, or a trifle would stand out where nothing varies.
_LEAST_DEVIATION: Final = 0.05
#: The level-shift chart looks at deviations only after this many points.
_SETTLED: Final = 50
#: A symbol and its hour, as the log has them.
_ENTRIES: Final = [bytes((symbol, hour)) for symbol in range(BINS) for hour in range(HOURS)]
_ENTRY: Final = 2


class Tuning(Struct, frozen=True):
    """How sensitive the detectors are; counts are of points of one series.

    Surprise is too great from `sigmas` standard deviations above its mean, a value too far out from `margin` of the
    range's width beyond its edge. Neither says anything in the first `warm_up` points. An alarm of theirs stays on for
    the next `rest` points, of which none is another alarm; a score higher than the alarm's begins the rest anew.

    The level-shift chart learns from `learn` points (above 50) how far an exponentially weighted mean, a new point
    having the weight `smoothing`, strays from the level. The level has shifted while the square of that deviation is
    more than `limit` times the largest then; it follows the last `follow` points or so while that is less than `guard`
    times. After `hold` points of a shifted level what is now counts as normal, and is learnt.
    """

    sigmas: float = 5.0
    margin: float = 0.02
    rest: int = 50
    warm_up: int = 200
    smoothing: float = 0.1
    follow: int = 200
    guard: float = 3.0
    limit: float = 4.0
    learn: int = 400
    hold: int = 800


#: `default` is for values a minute apart, with a false alarm in 20,000 or so where values are independent; `nab` for
#: the benchmark of that name, where most are five minutes apart.
PROFILES: Final[Mapping[str, Tuning]] = MappingProxyType(
    {
        "default": Tuning(),
        "nab": Tuning(sigmas=2.8, margin=0.005, rest=30),
    }
)


class Memory(Struct, array_like=True, gc=False):
    """What is remembered of one series, apart from its `Histograms`; msgspec packs it, bit for bit.

    `log` has what the histograms were updated with since they were last stored, so that `replay` can do it again.
    """

    points: int = 0
    # Envelope
    low: float = 0.0
    high: float = 0.0
    envelope_rest: int = 0
    envelope_peak: float = 0.0
    # Surprise
    centre: float = 0.0
    spread: float = 0.0
    previous: int = _FIRST
    run: bytes = b""
    run_sum: int = 0
    runs: int = 0
    mean: float = 0.0
    variance: float = 0.0
    upper_variance: float = 0.0
    surprise_rest: int = 0
    surprise_peak: float = 0.0
    before_log: int = _FIRST
    log: bytes = b""
    # The level-shift chart
    learnt: int = 0
    level: float = 0.0
    deviation: float = 0.0
    largest: float = 0.0
    held: int = 0


class Findings(Struct, frozen=True, gc=False):
    """What the detectors say of one point; `QUIET` of those that still learn.

    `score` is for whoever has a threshold of its own: the higher one of Envelope's and Surprise's scores, without one
    that is at rest. `rebaselined`: the level-shift chart has just given up a level, and learns what is normal now.
    """

    score: float
    envelope: Signal = QUIET
    surprise: Signal = QUIET
    shift: Signal = QUIET
    rebaselined: bool = False


def step(  # noqa: PLR0913  one call a point
    memory: Memory, histograms: Histograms, at_us: int, value: float, tuning: Tuning, *, gap: bool = False
) -> Findings:
    """Judge a point by those before it, then learn from it: changes memory and histograms.

    `at_us` is microseconds since the epoch, of which the hour of the day in UTC counts; the value is finite. `gap`:
    more than `RUN` points are missing before this one, so that no run is over both sides of it.
    """
    if not -_GREATEST < value < _GREATEST:
        value = copysign(_GREATEST, value)
    low, high, centre, spread, seen = memory.low, memory.high, memory.centre, memory.spread, memory.points
    outer = 0.0 if low <= value <= high and seen else _widen(memory, value)
    inner = _surprise(memory, histograms, at_us // _HOUR_US % HOURS, value, gap=gap)
    shifted = _shift(memory, value, tuning)
    memory.points = seen + 1
    outer = min(outer / tuning.margin, _HIGHEST) if outer and seen >= tuning.warm_up else 0.0
    inner = inner / tuning.sigmas if inner and memory.runs > tuning.warm_up else 0.0
    if outer < 1.0 and inner < 1.0 and not (shifted or memory.envelope_rest or memory.surprise_rest):
        return Findings(max(outer, inner))
    envelope = surprise = shift = QUIET
    if outer >= 1.0 or memory.envelope_rest:
        envelope = Signal("WARN", value, None, _say_outside(value, low, high), outer, low, high)
        memory.envelope_rest, memory.envelope_peak, outer = _rest(
            outer, memory.envelope_rest, memory.envelope_peak, tuning
        )
    if inner >= 1.0 or memory.surprise_rest:
        message, reach = _say_unusual(value, inner, tuning), 3.0 * spread
        surprise = Signal("WARN", value, None, message, inner, centre - reach, centre + reach)
        memory.surprise_rest, memory.surprise_peak, inner = _rest(
            inner, memory.surprise_rest, memory.surprise_peak, tuning
        )
    given_up = memory.held >= tuning.hold
    if given_up:
        memory.learnt = memory.held = 0
        memory.deviation = memory.largest = 0.0
    elif shifted:
        shift = _say_shifted(memory, value, shifted, tuning)
    return Findings(max(outer, inner), envelope, surprise, shift, given_up)


def replay(memory: Memory, histograms: Histograms) -> None:
    """Bring histograms as they were once stored up to a memory stored later; raises `ValueError` if its log cannot."""
    logged = memory.points - len(memory.log) // _ENTRY
    done = histograms.n - logged
    if not 0 <= done <= memory.points - logged:
        raise ValueError(
            f"histograms of {histograms.n} points do not fit a memory of {memory.points} that logs those from {logged}"
        )
    log = memory.log
    previous = memory.before_log if not done else log[_ENTRY * (done - 1)]
    for place in range(_ENTRY * done, len(log), _ENTRY):
        histograms.update(log[place], previous, log[place + 1])
        previous = log[place]


def trim(memory: Memory, n: int) -> None:
    """Forget what histograms need no more that are stored with `n` updates; what is forgotten already stays so.

    Raises `ValueError` when the memory has not come so far.
    """
    if n > memory.points:
        raise ValueError(f"histograms of {n} points are ahead of a memory of {memory.points}")
    done = n - (memory.points - len(memory.log) // _ENTRY)
    if done > 0:
        memory.before_log = memory.log[_ENTRY * (done - 1)]
        memory.log = memory.log[_ENTRY * done :]


def _widen(memory: Memory, value: float) -> float:
    """Move an edge of the range, at most by the range's width; how far out the value is, in widths."""
    if not memory.points:
        memory.low = memory.high = value
        return 0.0
    low, high = memory.low, memory.high
    width = high - low
    excess = value - high if value > high else low - value
    known = width > _ROUNDING * max(-low, high)
    grown = min(excess, width) if known else excess
    if value > high:
        memory.high = high + grown
    else:
        memory.low = low - grown
    return min(excess / width, _HIGHEST) if known else 0.0


def _surprise(memory: Memory, histograms: Histograms, hour: int, value: float, *, gap: bool) -> float:
    """How many deviations the last run is more surprising than runs are, 0 when it is not, or there is no run yet."""
    seen, previous, spread = memory.points, memory.previous, memory.spread
    centre = memory.centre if seen else value
    off = value - centre
    size = abs(off)
    # The value is u = off / scale, and u / (1 + |u|) its place between -1 and 1.
    place = off / (size + 3.0 * spread + _ROUNDING * abs(centre)) if off else 0.0
    symbol = min(int((place + 1.0) * (BINS / 2)), BINS - 1)
    nats = int(histograms.update(symbol, previous, hour) * _PER_NAT + 0.5)
    memory.previous = symbol
    memory.log += _ENTRIES[symbol * HOURS + hour]
    weight = 1 / (seen + 2) if seen + 2 < _MOST_POINTS else _LEAST_WEIGHT
    if seen > _CLIP_AFTER and size > _CLIP * spread:
        size = _CLIP * spread
        off = copysign(size, off)
    memory.centre = centre + weight * off
    memory.spread = spread + weight * (size - spread)
    return _judge_run(memory, nats, gap=gap)


def _judge_run(memory: Memory, nats: int, *, gap: bool) -> float:
    """As `_surprise`, of the run that this point ends.

    Its deviation is the standard deviation of runs or, if greater, the root mean square of that of the runs above the
    mean: where points depend on each other, few runs are far above it, and the former alone has many false alarms.
    """
    run, total = (b"", nats) if gap else (memory.run, memory.run_sum + nats)
    if len(run) == _RUN_BYTES:
        total -= (run[0] << 8) + run[1]
        run = run[_PLACE:]
    memory.run = run = run + nats.to_bytes(_PLACE, "big")
    memory.run_sum = total
    if len(run) < _RUN_BYTES:
        return 0.0
    runs, variance = memory.runs, memory.variance
    memory.runs = runs + 1
    if not runs:
        memory.mean = total / _RUN_NATS
        return 0.0
    weight = 1 / (runs + 1) if runs < _MOST_POINTS else _LEAST_WEIGHT
    above = total / _RUN_NATS - memory.mean
    memory.mean += weight * above
    square = above * above
    memory.variance = (1.0 - weight) * (variance + weight * square)
    if above > 0.0:  # about every other run
        upper = memory.upper_variance
        memory.upper_variance = upper + 2.0 * weight * (square - upper)
        return above / max(sqrt(max(variance, upper)), _LEAST_DEVIATION)
    return 0.0


def _shift(memory: Memory, value: float, tuning: Tuning) -> float:
    """The score of a level that has shifted, 0 of one that has not."""
    if memory.learnt < tuning.learn:
        _learn(memory, value, tuning)
        return 0.0
    level, deviation, largest = memory.level, memory.deviation, memory.largest
    off = value - level
    memory.deviation = deviation = deviation + tuning.smoothing * (off - deviation)
    square = deviation * deviation
    if square < tuning.guard * largest:
        memory.level = level + off / tuning.follow
    if square <= tuning.limit * largest:
        if memory.held:
            memory.held = 0
        return 0.0
    memory.held += 1
    return min(square / (tuning.limit * largest), _HIGHEST)


def _learn(memory: Memory, value: float, tuning: Tuning) -> None:
    learnt = memory.learnt + 1
    level = memory.level + (value - memory.level) / learnt
    deviation = memory.deviation + tuning.smoothing * (value - level - memory.deviation)
    largest = max(memory.largest, deviation * deviation) if learnt > _SETTLED else 0.0
    if learnt == tuning.learn and largest <= (_ROUNDING * level) ** 2:
        learnt = 0  # what never changed says nothing of how far is too far
    memory.learnt, memory.level, memory.deviation, memory.largest = learnt, level, deviation, largest


def _rest(score: float, left: int, peak: float, tuning: Tuning) -> tuple[int, float, float]:
    """Points of rest from now on, the alarm's highest score, and the score unless it was at rest."""
    if not left:
        return tuning.rest, score, score
    if score > peak:
        return tuning.rest, score, 0.0
    return left - 1, peak, 0.0


def _say_outside(value: float, low: float, high: float) -> str:
    if low <= value <= high:
        return f"{value:.6g} comes soon after a value outside the range seen until then"
    side, excess = ("above", value - high) if value > high else ("below", low - value)
    part = f"{100 * min(excess / (high - low), _HIGHEST):.2g} % of its width"
    return f"{value:.6g} is {side} the range {low:.6g} to {high:.6g} seen so far by {part}"


def _say_unusual(value: float, score: float, tuning: Tuning) -> str:
    if score < 1.0:
        return f"{value:.6g} comes soon after a run of unusual values"
    sigmas = f"{score * tuning.sigmas:.2g} standard deviations"
    return (
        f"{value:.6g} ends {RUN} values that are more surprising than usual by {sigmas}, {tuning.sigmas:g} being many"
    )


def _say_shifted(memory: Memory, value: float, score: float, tuning: Tuning) -> Signal:
    level, now, reach = memory.level, memory.level + memory.deviation, sqrt(tuning.limit * memory.largest)
    times = sqrt(score * tuning.limit)
    message = (
        f"{value:.6g} is at a level of about {now:.6g}, {times:.2g} times as far from the usual {level:.6g} as it ever "
        "was while that was learnt"
    )
    return Signal("WARN", value, None, message, score, level - reach, level + reach)
