"""The ceiling, against the naive model of it."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sinks.ceiling import Ceiling

#: What is counted: so many good records, or one rejected of a device.
Step = int | str


class Model:
    """The last records, one by one, looked at whole after every step."""

    def __init__(self, window: int, devices: int, ratio: float) -> None:
        self.last: deque[str | None] = deque(maxlen=window)
        self.window, self.devices, self.ratio = window, devices, ratio
        self.tripped = False

    def take(self, step: Step) -> None:
        """Count, and look."""
        self.last.extend([None] * step if isinstance(step, int) else [step])
        rejected = [device for device in self.last if device is not None]
        full = len(self.last) == self.window
        if full and len(rejected) > self.window * self.ratio and len(set(rejected)) > self.devices:
            self.tripped = True


def feed(ceiling: Ceiling, *steps: Step) -> Ceiling:
    """Count steps."""
    for step in steps:
        if isinstance(step, int):
            ceiling.good(step)
        else:
            ceiling.rejected(step)
    return ceiling


def refused(count: int, devices: int) -> list[str]:
    """Rejected records of so many devices, in turn."""
    return [f"d{index % devices}" for index in range(count)]


@given(
    window=st.integers(1, 12),
    devices=st.integers(0, 3),
    ratio=st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]),
    steps=st.lists(st.integers(0, 30) | st.sampled_from(["", "a", "b", "c", "d", "e"]), max_size=60),
)
@settings(deadline=None)
def test_it_trips_exactly_when_the_model_does(window: int, devices: int, ratio: float, steps: list[Step]) -> None:
    """After every step it agrees with a list of the last records."""
    ceiling, model = Ceiling(window, devices, ratio), Model(window, devices, ratio)
    for step in steps:
        feed(ceiling, step)
        model.take(step)
        assert ceiling.tripped == model.tripped


@pytest.mark.parametrize(
    ("steps", "tripped"),
    [
        pytest.param(refused(100, 100), True, id="all of a window, many devices"),
        pytest.param(refused(99, 99), False, id="the window is not full yet"),
        pytest.param(refused(1000, 1), False, id="one bad device"),
        pytest.param(refused(1000, 20), False, id="as many devices as are allowed"),
        pytest.param(refused(1000, 21), True, id="one device more"),
        pytest.param([50, *refused(50, 50)], False, id="half of them"),
        pytest.param([49, *refused(51, 51)], True, id="more than half"),
        pytest.param([*refused(51, 51), 49], True, id="more than half, in the other order"),
        pytest.param([*refused(60, 60), 1000], False, id="good ones push the bad out"),
        pytest.param([1_000_000, *refused(51, 51)], True, id="what is old does not count"),
        pytest.param([0, 0], False, id="nothing"),
    ],
)
def test_when_it_trips(steps: list[Step], tripped: bool) -> None:  # noqa: FBT001  a table's column
    """The table of the design: more than half of a full window, and more than 20 devices."""
    assert feed(Ceiling(window=100), *steps).tripped is tripped


def test_it_stays_tripped_until_reset() -> None:
    """Good records do not undo a trip; a reset does, and forgets what came before."""
    ceiling = feed(Ceiling(window=10, devices=2), *refused(10, 10), 1000)
    assert ceiling.tripped
    ceiling.reset()
    assert not ceiling.tripped
    assert not feed(ceiling, *refused(9, 9)).tripped
    assert feed(ceiling, "d9").tripped


def test_the_defaults_are_the_designs() -> None:
    """10,000 records, 20 devices, half."""
    ceiling = Ceiling()
    assert (ceiling.window, ceiling.devices, ceiling.ratio) == (10_000, 20, 0.5)


def test_it_holds_no_more_than_its_window() -> None:
    """However long it runs, its memory is bounded by the window."""
    ceiling = feed(Ceiling(window=100, devices=2000), *refused(5000, 1000))
    assert len(ceiling._runs) == 100
    assert len(ceiling._rejected) <= 100
