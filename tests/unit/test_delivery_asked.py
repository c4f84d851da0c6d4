"""Delivery when it is asked for something: to flush, to stop, to let somebody else at the sink; the books; offsets."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from schemas.deadletter import HEADER_TARGET
from schemas.reading import Reading
from schemas.saved import Flush
from sinks.base import FencedError, Progress
from sinks.contracts import Breaker
from tests.lab.bench import HANG, AwayError, BadError, Bench, Sink, good, now, running, until
from tests.lab.virtual import virtual


@virtual
async def test_a_flush_closes_the_open_batch_and_returns_when_it_is_acknowledged() -> None:
    """Long before the batch's own time is up."""
    async with running(batch_timeout=3600, batch_size=100) as bench:
        await bench.many(3, 4)
        await asyncio.sleep(10)
        assert bench.sink.sizes == []
        assert await bench.delivery.flush() == 7
        assert bench.sink.sizes == [7]
        assert bench.acked == bench.put_in
        assert await bench.delivery.flush() == 0


@virtual
async def test_a_flush_returns_when_what_it_waits_for_is_given_up() -> None:
    """Partitions that are taken away leave nothing to wait for."""
    async with running(Sink(writes=[HANG])) as bench:
        await bench.many(5)
        flush = asyncio.create_task(bench.delivery.flush())
        await asyncio.sleep(1)
        bench.drain(0)
        await asyncio.wait_for(flush, 1)
        assert bench.released == bench.put_in


@virtual
async def test_what_is_stopped_stores_nothing_until_it_is_resumed() -> None:
    """Not ready, nothing written and nothing lost; the batch under way is finished."""
    async with running(Sink(takes=1.0)) as bench:
        await bench.many(10)
        await asyncio.sleep(0.5)
        bench.delivery.stop_intake()
        assert not bench.delivery.ready
        feeding = asyncio.create_task(bench.many(*[10] * 10))
        await asyncio.sleep(1000)
        assert bench.sink.sizes == [10]
        bench.delivery.resume()
        await feeding
        await bench.done()
        assert bench.delivery.ready
        assert bench.telemetry.stops == [True, False]


@virtual
async def test_what_is_stopped_lets_go_at_once_and_stays_stopped_after_a_rebalance() -> None:
    """Nobody waits for what will not be stored."""
    async with running() as bench:
        bench.delivery.stop_intake()
        held = await bench.many(10)
        bench.drain(1000)
        assert bench.released == held
        await bench.many(10, generation=2)
        await asyncio.sleep(100)
        assert bench.sink.sizes == []


@virtual
async def test_what_is_being_written_when_intake_is_stopped_is_finished_at_a_drain() -> None:
    """The time for that is there; what is not begun is let go as soon as it is done."""
    async with running(Sink(takes=5.0)) as bench:
        held = await bench.many(10, 10)
        await asyncio.sleep(0.5)
        bench.delivery.stop_intake()
        bench.drain(1000)
        await asyncio.sleep(10)
        assert bench.sink.sizes == [10]
        assert (bench.acked, bench.released) == ([held[0]], [held[1]])


@virtual
async def test_what_is_stopped_sees_that_its_destination_is_back() -> None:
    """Or nobody could be let at the sink meanwhile."""
    async with running(Sink(writes=[AwayError()] * 3, probes=[AwayError()] * 20)) as bench:
        await bench.many(1)
        await until(lambda: bench.delivery.state is Breaker.OPEN)
        bench.delivery.stop_intake()
        await asyncio.sleep(3600)
        assert bench.delivery.state is not Breaker.OPEN
        bench.delivery.resume()
        await bench.done()


@virtual
async def test_a_call_has_the_sink_for_itself_between_two_batches() -> None:
    """It waits for the batch that is being written, and the next batch for it."""
    async with running(Sink(takes=1.0)) as bench:
        feeding = asyncio.create_task(bench.many(10, 10))
        await asyncio.sleep(0.5)

        async def work(sink: Any) -> int:
            stored = len(sink.stored)
            await asyncio.sleep(5)
            assert len(sink.stored) == stored
            return stored

        assert await bench.delivery.call(work) == 10
        await feeding
        await bench.done()


@virtual
async def test_a_record_for_another_stage_is_acknowledged_and_not_stored() -> None:
    """A replayed letter says whom it is for, in its first header."""
    async with running() as bench:
        held = bench.chunk("mine", "other", "all")
        held.records[0].headers = [(HEADER_TARGET, b"store-fake")]
        held.records[1].headers = [(HEADER_TARGET, b"store-other")]
        await bench.delivery.put(held)
        await bench.done()
        assert bench.sink.stored == ["mine", "all"]
        assert bench.telemetry.skips == 1


# -- the books ---------------------------------------------------------------------------------------------------------


class Account:
    """Books that remember, and wait for `gate`."""

    def __init__(self) -> None:
        self.flushes: list[Flush] = []
        self.devices: list[str] = []
        self.gate = asyncio.Event()
        self.gate.set()

    async def saved(self, flush: Flush, readings: Sequence[Reading]) -> None:
        """Keep."""
        await self.gate.wait()
        self.flushes.append(flush)
        self.devices += [each.device_id for each in readings]


@virtual
async def test_the_books_hold_exactly_what_was_stored() -> None:
    """Refused readings are not in them, but counted; attempts that failed are."""
    account = Account()
    async with running(Sink(writes=[AwayError()], takes=1.0), books=account) as bench:
        await bench.put(*good(7), "reject", "prepare", "bytes")
        await bench.done()
        (flush,) = account.flushes
        assert account.devices == bench.sink.stored == good(7)
        assert (flush.readings, flush.rows, flush.dead, flush.failures, flush.error) == (7, 21, 3, 1, "away")
        assert flush.seconds >= 2
        assert flush.size_bytes > 0


@virtual
async def test_a_batch_is_acknowledged_only_when_it_is_in_the_books_and_the_next_one_is_written_meanwhile() -> None:
    """What was not said to be stored is stored again rather than forgotten."""
    account = Account()
    account.gate.clear()
    async with running(books=account) as bench:
        await bench.many(10, 10)
        await asyncio.sleep(5)
        assert bench.sink.sizes == [10, 10]
        assert bench.acked == []
        account.gate.set()
        await bench.done()


@virtual
async def test_what_kafka_never_takes_ends_the_process() -> None:
    """Batches that can be stored and not booked must not be stored again and again for ever."""

    class Closed:
        async def saved(self, *_: object) -> None:
            raise PermissionError("not authorized")

    async with running(books=Closed()) as bench:
        await bench.many(10)
        await until(lambda: bench.faults)
        assert "not authorized" in bench.delivery.failing
        assert not bench.delivery.ready
        assert 5 <= len(bench.sink.sizes) <= 6
        assert bench.acked == []
        bench.drain(0)


# -- exactly once ------------------------------------------------------------------------------------------------------


@dataclass
class Once(Sink):
    """A destination that keeps the offsets with the data."""

    kept: dict[tuple[str, int], int] = field(default_factory=dict)
    moves: list[dict[tuple[str, int], tuple[int | None, int]]] = field(default_factory=list)

    async def offsets(self, group: str) -> Mapping[tuple[str, int], int]:
        """What is kept."""
        assert group == "g"
        return dict(self.kept)

    async def write_at(self, payload: list[Reading], group: str, progress: Progress) -> None:
        """Only from where the offsets are: before the data, and after them."""
        assert group == "g"
        self._fence(progress)
        await self.write(payload)
        self._fence(progress)
        self.kept |= {place: after for place, (_, after) in progress.items()}
        if any(before != after for before, after in progress.values()):
            self.moves.append(dict(progress))

    def _fence(self, progress: Progress) -> None:
        if any(self.kept.get(place) != before for place, (before, _) in progress.items()):
            raise FencedError("somebody else")


async def expected(bench: Bench) -> None:
    """What the transport does at a seek."""
    await bench.delivery.positions([("decoded", 0)])


@virtual
async def test_offsets_move_with_the_data_and_from_where_they_were() -> None:
    """The first move is from nothing; each later one from the one before it."""
    sink = Once()
    async with running(sink, exactly_once="g") as bench:
        await expected(bench)
        await bench.many(10)
        await bench.done()
        await bench.many(4)
        await bench.done()
        assert sink.moves == [{("decoded", 0): (None, 10)}, {("decoded", 0): (10, 14)}]


@virtual
async def test_offsets_move_last_and_never_before_the_letters() -> None:
    """A batch that falls apart moves them once, with its end; one of which nothing is left moves them all the same."""
    sink = Once()
    async with running(sink, exactly_once="g") as bench:
        await expected(bench)
        bench.letters.gate.clear()
        await bench.put("a", "reject1", "b", "reject2")
        await asyncio.sleep(50)
        assert sink.kept == {}
        bench.letters.gate.set()
        await bench.done()
        assert sink.kept == {("decoded", 0): 4}
        assert len(sink.moves) == 1
        await bench.put("bytes", "prepare")
        await bench.done()
        assert sink.kept == {("decoded", 0): 6}
        assert {"a", "b"} == set(sink.stored)


@virtual
async def test_every_part_of_a_batch_is_fenced() -> None:
    """Not only the last: an older value must not be written over that of a new owner."""
    sink = Once(writes=[None, BadError("all of it")])
    async with running(sink, exactly_once="g") as bench:
        await expected(bench)
        await bench.many(1)
        await bench.done()
        sink.takes = 1.0
        await bench.put("a", "b")
        await asyncio.sleep(1.5)
        sink.kept["decoded", 0] = 99
        await until(lambda: bench.faults)
        assert "b" not in sink.stored
        bench.drain(0)


@virtual
async def test_who_is_fenced_off_stores_nothing_and_must_not_go_on() -> None:
    """Somebody else went on with the partition: this process ends, and nothing of the batch is acknowledged."""
    sink = Once(kept={("decoded", 0): 0})
    async with running(sink, exactly_once="g") as bench:
        await expected(bench)
        sink.kept["decoded", 0] = 99
        await bench.many(3)
        await until(lambda: bench.faults)
        assert isinstance(bench.faults[0], FencedError)
        assert sink.stored == []
        assert bench.acked == []
        bench.drain(0)


@virtual
async def test_an_answer_that_was_lost_is_no_fence() -> None:
    """The commit was made and nobody heard of it: the next attempt finds the offsets where it wanted them."""

    class Deaf(Once):
        async def write_at(self, payload: list[Reading], group: str, progress: Progress) -> None:
            await super().write_at(payload, group, progress)
            if len(self.moves) == 1:
                raise AwayError

    sink = Deaf()
    async with running(sink, exactly_once="g") as bench:
        await expected(bench)
        await bench.many(10)
        await bench.done()
        await bench.many(5)
        await bench.done()
        assert sink.kept == {("decoded", 0): 15}
        assert len(sink.stored) == 15
        assert bench.faults == []


@virtual
async def test_positions_are_asked_for_until_they_can_be_had() -> None:
    """Without the destination nobody knows where to begin."""

    class Away(Once):
        tries = 0

        async def offsets(self, group: str) -> Mapping[tuple[str, int], int]:
            self.tries += 1
            if self.tries < 4:
                raise AwayError
            return await super().offsets(group)

    async with running(Away(kept={("decoded", 0): 5, ("decoded", 1): 6}), exactly_once="g") as bench:
        began = now()
        assert await bench.delivery.positions([("decoded", 0), ("decoded", 2)]) == {("decoded", 0): 5}
        assert now() > began


@pytest.mark.parametrize("devices", [["a"], ["a", "b", "c"]])
@virtual
async def test_a_retry_moves_the_offsets_once(devices: list[str]) -> None:
    """What failed is tried again with the same move."""
    sink = Once(writes=[AwayError(), AwayError()])
    async with running(sink, exactly_once="g") as bench:
        await expected(bench)
        await bench.put(*devices)
        await bench.done()
        assert sink.moves == [{("decoded", 0): (None, len(devices))}]
