"""The batch transport without a broker: folding, the order of chunks, and what may be fetched when."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from faust.types import TP, ConsumerMessage
from hypothesis import given
from hypothesis import strategies as st

from app.transport import FROZEN_AFTER_S, Chunk, ChunkSchema, Consumer, fold

DATA, OTHER, CHANGELOG = TP("data", 0), TP("data", 1), TP("app-counts-changelog", 0)
LIMITS = {"chunk_records": 2, "chunk_bytes": 1000, "max_inflight_bytes": 100_000, "max_inflight_records": 10}


def record(offset: int, tp: TP = DATA, value: bytes | None = b"value") -> Any:
    """A Kafka record; its time is its offset."""
    return SimpleNamespace(
        topic=tp.topic, partition=tp.partition, offset=offset, timestamp=offset, key=None, value=value, headers=()
    )


async def nowhere(message: Any) -> None:
    """Faust's queues, with room for everything."""


class Bench:
    """A consumer of an app that is not started, and its broker: what is fetched, committed and sought."""

    def __init__(self, deliver: Callable[[Any], Awaitable[None]] = nowhere) -> None:
        self.app = faust.App(
            "app", broker="iotflow://nowhere:1", store="memory://", autodiscover=False, broker_rebalance_timeout=0.3
        )
        self.app.transport_limits = LIMITS
        self.app.Table("counts", key_type=bytes, value_type=bytes, partitions=2)
        self.app.consumer_generation_id = 1
        self.consumer: Any = Consumer(self.app.transport, deliver, self._revoked, nowhere)
        self.app.consumer = self.consumer
        self.consumer._thread.thread_loop.close()
        self.consumer._thread = self
        self.consumer._commit = self._commit
        self.assigned = {DATA, OTHER, CHANGELOG}
        self.commits: dict[TP, int] = {}
        self.stored: dict[TP, int | None] = {DATA: 5}
        self.to_beginning: set[TP] = set()
        self.asked: list[Any] = []
        self.fetched: dict[TP, Sequence[Any]] = {}
        self.amid_fetch: Callable[[], Awaitable[None]] | None = None
        self.in_revoke: Callable[[], Awaitable[None]] | None = None

    async def _revoked(self, _: set[TP]) -> None:
        if self.in_revoke is not None:
            await self.in_revoke()

    async def _commit(self, offsets: dict[TP, int]) -> bool:
        self.commits.update(offsets)
        return True

    def assignment(self) -> set[TP]:
        """As aiokafka's thread does."""
        return self.assigned

    async def seek_to_committed(self) -> dict[TP, int | None]:
        """As aiokafka's thread does."""
        return {tp: self.stored.get(tp) for tp in self.assigned}

    async def seek_to_beginning(self, *partitions: Any) -> None:
        """As aiokafka's thread does."""
        self.to_beginning.update(TP(tp.topic, tp.partition) for tp in partitions)

    async def getmany(self, active: set[TP] | None, timeout: float) -> dict[TP, Sequence[Any]]:
        """As aiokafka's thread does."""
        del timeout
        self.asked.append(active)
        if self.amid_fetch is not None:
            await self.amid_fetch()
        return {tp: records for tp, records in self.fetched.items() if active is None or tp in active}

    def message(self, *records: Any, tp: TP = DATA) -> ConsumerMessage:
        """What Faust is given for a chunk of these records."""
        chunk = Chunk(records, sum(len(record.value) for record in records))
        message = self.consumer._to_message(tp, chunk)
        assert isinstance(message, ConsumerMessage)
        return message

    async def wait_empty(self) -> bool:
        """Wait as at a revoke; says whether it ended, and ends it all the same: Faust's own cannot be cancelled."""
        waiting = asyncio.ensure_future(self.consumer.wait_empty())
        done, _ = await asyncio.wait({waiting}, timeout=5)
        self.consumer._unacked_messages.clear()
        await waiting
        return bool(done)

    async def hand_out(self, *records: Any, tp: TP = DATA) -> ConsumerMessage:
        """Put a chunk into Faust's queues, and let the agent take it."""
        message = self.message(*records, tp=tp)
        await self.consumer.callback(message)
        self.consumer._unacked_messages.add(message)
        return message


@pytest.fixture
async def bench() -> Bench:
    """A consumer with one table."""
    return Bench()


# -- folding (1, 7) --------------------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.one_of(st.none(), st.integers(0, 50)), max_size=60),
    max_records=st.integers(1, 10),
    max_bytes=st.integers(1, 80),
)
def test_fold_keeps_every_record_and_its_bounds(sizes: list[int | None], max_records: int, max_bytes: int) -> None:
    """The chunks are the records in order, none is empty, and none goes on after it has reached a bound."""
    records = [record(offset, value=None if size is None else bytes(size)) for offset, size in enumerate(sizes)]

    chunks = list(fold(records, max_records, max_bytes))

    assert [item for chunk in chunks for item in chunk] == records
    for chunk in chunks:
        values = [len(item.value or b"") for item in chunk]
        assert 0 < len(chunk) <= max_records
        assert chunk.size_bytes == sum(values)
        assert sum(values[:-1]) < max_bytes
    for chunk in chunks[:-1]:
        assert len(chunk) == max_records or chunk.size_bytes >= max_bytes


async def test_changelogs_are_not_folded(bench: Bench) -> None:
    """A fetch brings chunks of data partitions and plain records of changelogs."""
    bench.fetched = {DATA: [record(n) for n in range(3)], CHANGELOG: [record(n, CHANGELOG) for n in range(3)]}

    found = await bench.consumer._getmany({DATA, CHANGELOG}, 0.1)

    assert [list(chunk) for chunk in found[DATA]] == [bench.fetched[DATA][:2], bench.fetched[DATA][2:]]
    assert found[CHANGELOG] == bench.fetched[CHANGELOG]


async def test_a_message_is_a_chunk(bench: Bench) -> None:
    """A chunk travels as one message that has the last record's offset and time, and decodes to itself."""
    records = [record(3), record(7)]
    message = bench.message(*records)

    assert (message.tp, message.offset, message.timestamp, message.generation_id) == (DATA, 7, 0.007, 1)
    assert ChunkSchema().loads_value(bench.app, message) == records
    assert ChunkSchema().loads_key(bench.app, message) is None


# -- commits (2) -----------------------------------------------------------------------------------------------------


async def test_a_commit_passes_only_the_longest_done_run(bench: Bench) -> None:
    """Acknowledgements out of order commit nothing past the first chunk that is still held, over gaps too."""
    held, *later = [await bench.hand_out(record(n), record(n + 5)) for n in (0, 10, 20)]
    for message in later:
        assert bench.consumer.ack(message)
    await bench.consumer.commit()
    assert bench.commits == {}

    assert bench.consumer.ack(held)
    await bench.consumer.commit()

    assert bench.commits == {DATA: 26}
    assert not bench.consumer._order[DATA]


async def test_a_chunk_counts_once(bench: Bench) -> None:
    """A second acknowledgement of a chunk changes no counter."""
    message = await bench.hand_out(record(0), record(1))
    assert bench.consumer.inflight_records == 2
    assert bench.consumer.inflight_bytes > 10

    assert bench.consumer.ack(message)
    assert not bench.consumer.ack(message)

    assert (bench.consumer.inflight_records, bench.consumer.inflight_bytes) == (0, 0)


async def test_a_put_that_is_cancelled_leaves_the_order() -> None:
    """A chunk whose put a suspend cancels is not waited for by the commits of later ones."""
    full = asyncio.Event()

    async def deliver(message: Any) -> None:
        if message.offset == 0:
            full.set()
            await asyncio.Event().wait()

    bench = Bench(deliver)
    put = asyncio.ensure_future(bench.hand_out(record(0)))
    await full.wait()
    put.cancel()
    with pytest.raises(asyncio.CancelledError):
        await put
    assert (bench.consumer.inflight_records, bench.consumer.inflight_bytes) == (0, 0)

    bench.consumer.ack(await bench.hand_out(record(1)))
    await bench.consumer.commit()

    assert bench.commits == {DATA: 2}


async def test_an_ack_of_an_earlier_generation_changes_nothing(bench: Bench) -> None:
    """Such a chunk is only no longer waited for: its partition may have moved, and is read again."""
    message = await bench.hand_out(record(0))
    bench.app.consumer_generation_id = 2

    assert not bench.consumer.ack(message)
    await bench.consumer.commit()

    assert bench.commits == {}
    assert message not in bench.consumer.unacked
    assert bench.consumer.inflight_records == 1


async def test_a_seek_forgets_all_that_was_handed_out(bench: Bench) -> None:
    """After a seek neither the order nor Faust's own books have anything of before, and a late ack counts nothing."""
    done, late = await bench.hand_out(record(5)), await bench.hand_out(record(6))
    bench.consumer.ack(done)

    await bench.consumer.perform_seek()

    assert not any((bench.consumer._order, bench.consumer._acked, bench.consumer._acked_index))
    assert (bench.consumer.inflight_records, bench.consumer.inflight_bytes) == (0, 0)
    assert bench.consumer.committed()[DATA] == 5
    assert not bench.consumer.ack(late)
    await bench.consumer.commit()
    assert bench.commits == {}


async def test_a_seek_moves_partitions_without_a_commit_too(bench: Bench) -> None:
    """A data partition without a commit is read from its beginning again, a changelog is left where it is."""
    await bench.consumer.perform_seek()

    assert bench.to_beginning == {OTHER}


async def test_gaps_of_data_are_not_booked(bench: Bench) -> None:
    """Only changelogs have gaps in Faust's books; in data the order of chunks covers them."""
    await bench.consumer._add_gap(DATA, 1, 9)
    await bench.consumer._add_gap(CHANGELOG, 1, 9)

    assert not bench.consumer._gap[DATA]
    assert bench.consumer._gap[CHANGELOG]


# -- revoke and stop (3) ---------------------------------------------------------------------------------------------


async def test_a_revoke_commits_before_it_forgets(bench: Bench) -> None:
    """What was done before a revoke, and what its holder finishes in it, is committed; the rest is forgotten."""
    first, second, _ = [await bench.hand_out(record(n)) for n in range(3)]
    bench.consumer.ack(first)

    async def finish() -> None:
        assert bench.commits == {DATA: 1}
        await bench.consumer.perform_seek()  # a fetch that ends meanwhile makes Faust seek
        bench.consumer.ack(second)

    bench.in_revoke = finish
    await bench.consumer.on_partitions_revoked({DATA})

    assert bench.commits == {DATA: 2}
    assert not bench.consumer._order
    assert bench.consumer.inflight_records == 0


async def test_the_wait_for_holders_has_an_end(bench: Bench) -> None:
    """Holders are told to be done within a third of the rebalance time-out; after two thirds they are not awaited."""
    message = await bench.hand_out(record(0))
    deadlines: list[float] = []
    bench.consumer.on_drain.append(deadlines.append)
    started = time.monotonic()

    assert await bench.wait_empty()

    assert deadlines == [pytest.approx(started + 0.1, abs=0.05)]
    assert not message.acked
    assert bench.commits == {}


async def test_a_holder_that_lets_go_ends_the_wait(bench: Bench) -> None:
    """A chunk that is discarded is neither waited for nor committed."""
    bench.app.conf.broker_rebalance_timeout = 60.0
    message = await bench.hand_out(record(0))
    bench.consumer.on_drain.append(lambda _: bench.consumer.discard(message))

    assert await bench.wait_empty()

    assert bench.commits == {}


# -- what may be fetched (4, 5, 7) -----------------------------------------------------------------------------------


async def test_data_is_not_fetched_while_a_rebalance_is_under_way(bench: Bench) -> None:
    """Only changelogs are; without any nothing is fetched, and never an empty set, which aiokafka takes for all."""
    bench.app.rebalancing = True
    bench.fetched = {DATA: [record(0)], CHANGELOG: [record(0, CHANGELOG)]}

    assert await bench.consumer._getmany({DATA, CHANGELOG}, 0.05) == {CHANGELOG: bench.fetched[CHANGELOG]}
    started = time.monotonic()
    assert await bench.consumer._getmany({DATA, OTHER}, 0.05) == {}
    assert await bench.consumer._getmany(set(), 0.05) == {}

    assert time.monotonic() - started >= 0.1  # it waits: returning at once would spin
    assert bench.asked == [{CHANGELOG}]


async def test_a_fetch_has_partitions_of_its_own(bench: Bench) -> None:
    """Partitions that recovery adds to the live set while a fetch is under way are not fetched by it."""
    live = {DATA}

    async def add() -> None:
        live.add(OTHER)
        bench.fetched = {DATA: [record(0)], OTHER: [record(0, OTHER)]}

    bench.amid_fetch = add
    assert set(await bench.consumer._getmany(live, 0.05)) == {DATA}
    live = {CHANGELOG}
    bench.app.rebalancing = True
    assert await bench.consumer._getmany(live, 0.05) == {}


async def test_a_fetch_that_outlives_a_rebalance_is_made_again(bench: Bench) -> None:
    """What it brought of data is dropped and sought again, because recovery's seek may lie before or after it."""
    bench.fetched = {DATA: [record(7)], CHANGELOG: [record(0, CHANGELOG)]}
    bench.amid_fetch = lambda: bench.consumer.on_partitions_revoked({DATA})

    assert await bench.consumer._getmany({DATA, CHANGELOG}, 0.05) == {CHANGELOG: bench.fetched[CHANGELOG]}

    assert bench.consumer._read_offset[DATA] == 5


async def test_a_seek_that_fails_in_the_next_rebalance_is_left_to_it(bench: Bench) -> None:
    """A seek for a fetch that was dropped may fail when partitions go again; else its failure is one of the worker."""

    async def fail() -> None:
        raise LookupError

    bench.consumer.perform_seek = fail
    with pytest.raises(LookupError):
        await bench.consumer._seek_again()

    async def fail_in_rebalance() -> None:
        bench.app.rebalancing_count += 1
        raise LookupError

    bench.consumer.perform_seek = fail_in_rebalance
    await bench.consumer._seek_again()


async def test_intake_stops_when_too_much_is_in_flight(bench: Bench) -> None:
    """At the limit data is not fetched, changelogs are, a hook is called once, and with room it goes on."""
    stops: list[int] = []
    bench.consumer.on_full.append(lambda: stops.append(bench.consumer.inflight_records))
    bench.fetched = {DATA: [record(90)]}
    messages = [await bench.hand_out(record(n), record(n + 1)) for n in range(0, 12, 2)]

    assert await bench.consumer._getmany({DATA}, 0.05) == {}
    await bench.consumer._getmany({DATA, CHANGELOG}, 0.05)
    assert bench.asked == [{CHANGELOG}]
    bench.consumer.ack(messages[0])
    bench.consumer.ack(messages[1])
    assert await bench.consumer._getmany({DATA}, 0.05) == {}  # 8 of 10: it waits for some more room
    bench.consumer.ack(messages[2])
    assert await bench.consumer._getmany({DATA}, 0.05) != {}
    assert stops == [12]


async def test_intake_stops_by_bytes(bench: Bench) -> None:
    """Few but large records stop it as well."""
    await bench.hand_out(record(0, value=bytes(100_000)))
    bench.fetched = {DATA: [record(1)]}

    assert await bench.consumer._getmany({DATA}, 0.05) == {}


async def test_a_flowing_consumer_is_not_paused(bench: Bench) -> None:
    """Pausing data is refused while it flows, allowed in a rebalance or with the flow stopped, and of changelogs."""
    bench.consumer._active_partitions = {DATA, CHANGELOG}
    with pytest.raises(RuntimeError, match="must not be paused"):
        bench.consumer.pause_partitions({DATA, CHANGELOG})
    assert bench.consumer._active_partitions == {DATA, CHANGELOG}

    bench.consumer.pause_partitions({CHANGELOG})
    bench.app.rebalancing = True
    bench.consumer.pause_partitions({DATA})
    bench.app.rebalancing = False
    bench.consumer.stop_flow()
    bench.consumer.pause_partitions({OTHER})

    assert bench.consumer._paused_partitions == {DATA, OTHER, CHANGELOG}


# -- what health and metrics look at -----------------------------------------------------------------------------------


async def test_a_frozen_partition_is_reported(bench: Bench) -> None:
    """A partition is frozen when a chunk is held for long and later ones are done: not by waiting alone."""
    head, later = await bench.hand_out(record(0)), await bench.hand_out(record(1))
    then = time.monotonic() + FROZEN_AFTER_S
    assert bench.consumer.frozen(then + 1) == []

    bench.consumer.ack(later)

    assert bench.consumer.frozen() == []
    assert bench.consumer.frozen(then - 1) == []
    assert bench.consumer.frozen(then + 1) == [DATA]
    bench.consumer.ack(head)
    assert bench.consumer.frozen(then + 1) == []


async def test_the_oldest_record_that_is_not_stored(bench: Bench) -> None:
    """It is the first record of the first chunk that is not done, over all partitions."""
    first, _ = await bench.hand_out(record(30), record(31)), await bench.hand_out(record(40), tp=OTHER)
    assert bench.consumer.oldest_unstored_ms() == 30

    bench.consumer.ack(first)

    assert bench.consumer.oldest_unstored_ms() == 40
    await bench.consumer.perform_seek()
    assert bench.consumer.oldest_unstored_ms() is None
