"""The stage `analyze` put together: from settings to the pure machine of each partition."""

from collections.abc import Callable
from typing import Final

from app.settings import Settings
from schemas.rules import microseconds
from tables.analysis import Config, Partition, spans
from tables.judge import Load
from tables.rules import Rulebook

#: The tables beside the state.
SIDE_TABLES: Final = ("windows", "histograms")
_US: Final = 1_000_000


def config(settings: Settings, partitions: int) -> Config:
    """How readings are analysed, by the settings; `partitions` is how many the decoded topic has."""
    own = settings.analysis
    sizes = {name: microseconds(name) for name in own.windows}
    late = {name: microseconds(span) for name, span in own.lateness.items()}
    return Config(
        tuple(spans(sizes, late)),
        partitions,
        grace=round(own.grace * _US),
        idle=round(own.idle * _US),
        skew=round(own.skew * _US),
        replay_after=round(own.replay_after * _US),
        replay=own.replay,
        escalate=own.escalate,
        forget=round(own.forget * _US),
    )


def factory(settings: Settings, rulebook: Rulebook, partitions: int) -> Callable[[int, Load], Partition]:
    """What makes a partition's machine, given its number and what reads its tables beside the state."""
    found = config(settings, partitions)
    return lambda number, load: Partition(number, found, rulebook, load)
