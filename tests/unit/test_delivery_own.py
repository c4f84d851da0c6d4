"""Delivery of what iotflow itself finds: topics of its own beside the one that anybody may write to."""

import asyncio
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from schemas import wire
from schemas.reading import RESERVED, Reading
from schemas.saved import Flush
from sinks.base import FencedError, Progress
from sinks.timescale import tables
from tests.lab.bench import AT, Bench, Held, Record, Sink, good, running, until
from tests.lab.virtual import virtual


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Only errors are worth their time here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    yield
    logging.disable(level)


async def put(bench: Bench, topic: str, *values: bytes | None, first: int = 0) -> Held:
    """Put a chunk of some other topic than the bench's own."""
    records = [Record(first + at, value, b"key", topic=topic) for at, value in enumerate(values)]
    held = Held(bench, records, 1)
    bench.put_in.append(held)
    await bench.delivery.put(held)
    return held


def found(measurement: str, device: str = "d") -> bytes:
    """A finding on the wire."""
    return wire.write(Reading(measurement, device, AT, {"count": 1}, channel="m||x|1m"))


def test_what_is_reserved_has_its_table() -> None:
    """And nothing else has one from the start."""
    assert set(tables.RESERVED) == RESERVED


@pytest.mark.parametrize("measurement", sorted(RESERVED))
@virtual
async def test_only_iotflows_own_topics_may_say_what_is_reserved(measurement: str) -> None:
    """Anybody may write to the decoded topic, and no device may raise alarms."""
    async with running() as bench:
        await put(bench, "decoded", found(measurement, "device"))
        await put(bench, "own", found(measurement, "iotflow"))
        await bench.done()
        assert bench.sink.stored == ["iotflow"]
        assert [dead.reason for dead in bench.letters.sent] == ["reserved"]


@virtual
async def test_a_tombstone_is_done_and_is_no_letter() -> None:
    """Compaction lets go of a key; on the open topic a record without a value is somebody's mistake."""
    async with running() as bench:
        await put(bench, "own", None, found("alarms"), None)
        await put(bench, "own", None, None, first=3)
        await put(bench, "decoded", None)
        await bench.done()
        assert bench.sink.stored == ["d"]
        assert bench.telemetry.skips == 4
        assert [(dead.reason, dead.value) for dead in bench.letters.sent] == [("wire", None)]


class Account:
    """Books that remember."""

    def __init__(self) -> None:
        self.flushes: list[Flush] = []
        self.readings: list[Reading] = []

    async def saved(self, flush: Flush, readings: Sequence[Reading]) -> None:
        """Keep."""
        self.flushes.append(flush)
        self.readings += readings


@virtual
async def test_the_books_count_what_devices_said() -> None:
    """Neither windows and alarms, which would be counted beside the readings they are of, nor the books themselves."""
    account = Account()
    async with running(books=account, batch_size=6) as bench:
        own = [found(measurement) for measurement in sorted(RESERVED)]
        await put(bench, "own", *own)
        held = await bench.put("a", "b")
        await bench.done()
        assert bench.sink.sizes == [6]
        (flush,) = account.flushes
        assert [each.device_id for each in account.readings] == ["a", "b"]
        assert flush.readings == 2
        assert flush.size_bytes == sum(len(record.value or b"") for record in held.records)
        assert (flush.first, flush.last) == (AT, AT)
        await put(bench, "own", *own, first=4)
        await bench.done()
        assert len(account.flushes) == 1


@virtual
async def test_a_window_is_not_stale_because_it_lasted() -> None:
    """How old readings are when they are stored is told of devices' readings alone."""
    async with running() as bench:
        await put(bench, "own", *[found("aggregates")] * 10)
        await bench.many(10)
        await bench.done()
        assert sum(readings for _, readings in bench.telemetry.ages) == 10
        assert sum(records for _, records in bench.telemetry.durables) == 20


# -- exactly once ------------------------------------------------------------------------------------------------------


@dataclass
class Once(Sink):
    """A destination that keeps the offsets of every topic with the data."""

    kept: dict[tuple[str, int], int] = field(default_factory=dict)
    moves: list[dict[tuple[str, int], tuple[int | None, int]]] = field(default_factory=list)

    async def offsets(self, group: str) -> Mapping[tuple[str, int], int]:
        """What is kept."""
        del group
        return dict(self.kept)

    async def write_at(self, payload: list[Reading], group: str, progress: Progress) -> None:
        """Only from where the offsets are."""
        del group
        if any(self.kept.get(place) != before for place, (before, _) in progress.items()):
            raise FencedError("somebody else")
        await self.write(payload)
        self.kept |= {place: after for place, (_, after) in progress.items()}
        self.moves.append(dict(progress))


TOPICS = ("decoded", "aggregates", "alarms")


@virtual
async def test_offsets_of_all_topics_of_a_batch_move_together() -> None:
    """Each from where it was, whatever gaps compaction has left, and with tombstones alone too."""
    sink = Once(kept={("alarms", 0): 7})
    async with running(sink, exactly_once="g", batch_size=5) as bench:
        await bench.delivery.positions([(topic, 0) for topic in TOPICS])
        await bench.many(2)
        await put(bench, "aggregates", found("aggregates"), found("aggregates"))
        await put(bench, "alarms", found("alarms"), first=40)
        await bench.done()
        assert sink.moves == [{("decoded", 0): (None, 2), ("aggregates", 0): (None, 2), ("alarms", 0): (7, 41)}]
        await put(bench, "alarms", None, first=90)
        await bench.done()
        assert sink.moves[1:] == [{("alarms", 0): (41, 91)}]
        assert sink.kept == {("decoded", 0): 2, ("aggregates", 0): 2, ("alarms", 0): 91}


@virtual
async def test_who_lost_one_topics_partition_stores_nothing_of_the_others() -> None:
    """Partitions of one number move together, so whoever has one of them has the others too."""
    sink = Once()
    async with running(sink, exactly_once="g", batch_size=11) as bench:
        await bench.delivery.positions([(topic, 0) for topic in TOPICS])
        sink.kept["alarms", 0] = 5
        await bench.put(*good(10))
        await put(bench, "alarms", found("alarms"))
        await until(lambda: bench.faults)
        assert isinstance(bench.faults[0], FencedError)
        assert sink.stored == []
        assert bench.acked == []
        bench.drain(0)
        await asyncio.sleep(1)
