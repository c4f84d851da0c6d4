"""Tables and checkpoints on a real broker: what was written is there again, whatever happened in between."""

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest

from agents.analyze import Limits
from agents.decode import CannotWithdrawError
from deploy.local.kafka import Kafka
from schemas.partition import partition_of
from tables.binding import NotMineError
from tests.lab.apps import until
from tests.lab.tally import PARTITIONS, Place, Sum, Worker, expected, packed, sums, windows

# Workers that are let die leave their sockets, which Faust's own collection of garbage finds in a later test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")

KEYS = [b"k%d" % number for number in range(37)]
#: A checkpoint comes only when something else asks for it.
SELDOM = Limits(every=3600.0)
Number = tuple[bytes, int]


def numbers(start: int, count: int) -> list[Number]:
    """Numbers of all keys, in turn; one in a hundred is an alarm."""
    return [
        (KEYS[number % len(KEYS)], -number if number % 100 == 99 else number) for number in range(start, start + count)
    ]


def place_of(key: bytes) -> int:
    """A key's partition."""
    return partition_of(key.decode(), PARTITIONS)


@pytest.fixture
async def place(kafka: Kafka, tmp_path: Path) -> AsyncIterator[Place]:
    """Topics of the test's own, on a broker that is up before and after."""
    yield await Place(kafka.bootstrap, tmp_path).make()
    if not kafka.answers():
        await asyncio.to_thread(kafka.restart)


async def outputs(place: Place) -> tuple[Counter[tuple[bytes, bytes]], Counter[tuple[bytes, bytes]]]:
    """How often each window and each alarm was sent."""
    closed = Counter((record.key, record.value) for record in await place.read(place.topics["aggregates"]))
    alarms = Counter((record.key, record.value) for record in await place.read(place.topics["alarms"]))
    return closed, alarms


def alarms_of(all_of_it: Iterable[Number]) -> set[tuple[bytes, bytes]]:
    """The alarms there must be."""
    return {(key, b"%d" % value) for key, value in all_of_it if value < 0}


# -- the table ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["rocksdb://", "memory://"])
async def test_what_was_written_is_there_again_without_the_local_store(place: Place, store: str) -> None:
    """In memory and on disk, deleted keys stay deleted, and each partition has its own."""
    async with Worker(place, store=store) as worker:
        await worker.up()
        table = worker.tables["windows"]
        await table.write(1, [(b"a", b"1"), (b"b", b"2")], worker.producer)
        await table.write(2, [(b"a", b"other")], worker.producer)
        await table.write(1, [(b"b", None), (b"c", b"3"), (b"a", b"4")], worker.producer)
        await table.write(1, [(b"%04d" % number, b"x" * 900) for number in range(1300)], worker.producer)
        assert b"4" == table.get(1, b"a")
        assert b"other" == table.get(2, b"a")
        assert table.get(1, b"b") is None
        assert 1302 == len(list(table.load(1)))
        assert [] == list(table.load(3))
        with pytest.raises(NotMineError):
            table.get(PARTITIONS, b"a")
    assert not worker.faults
    shutil.rmtree(place.folder / "data")
    async with Worker(place, store=store) as again:
        await again.up()
        table = again.tables["windows"]
        found = dict(table.load(1))
        assert (b"4", b"3", 1302) == (found[b"a"], found[b"c"], len(found))
        assert {b"a": b"other"} == dict(table.load(2))


async def test_a_store_on_disk_reads_only_what_it_has_not(place: Place) -> None:
    """The persisted offset is that of the last write, so a restart reads nothing again."""
    async with Worker(place) as worker:
        await worker.up()
        await worker.tables["windows"].write(0, [(b"%d" % number, b"v") for number in range(700)], worker.producer)
    async with Worker(place) as again:
        await again.up()
        recovery = again.lab.app.tables.recovery
        starts = {tp: offset for tp, offset in recovery.active_offsets.items() if "windows" in tp.topic}
        assert 699 == starts[next(tp for tp in starts if tp.partition == 0)]
        assert recovery.active_highwaters == recovery.active_offsets
        assert 700 == len(list(again.tables["windows"].load(0)))


async def test_a_late_write_of_an_earlier_owner_does_not_win_and_is_written_over(place: Place) -> None:
    """The higher position wins, then the higher generation; compaction, which keeps the last, finds the winner last."""
    high, low = Sum(90, total=1), Sum(80, total=2)
    ahead, behind = packed(7, high), packed(6, low)
    newer, older = packed(7, Sum(50, total=3)), packed(5, Sum(50, total=4))
    await place.write(
        place.changelog("state"),
        [(1, b"a", ahead), (1, b"a", behind), (1, b"b", newer), (1, b"b", older), (2, b"c", behind), (2, b"c", ahead)],
    )
    await place.write(place.changelog("windows"), [(1, b"a", ahead), (1, b"a", behind)])
    await place.write(place.source, [(number % PARTITIONS, b"k0", b"0") for number in range(400)])
    async with Worker(place) as worker:
        await worker.up()
        assert {b"a": ahead, b"b": newer} == dict(worker.tables["state"].load(1))
        assert {b"c": ahead} == dict(worker.tables["state"].load(2))
        assert {b"a": behind} == dict(worker.tables["windows"].load(1))
        await worker.committed_all()
    last = {(record.partition, record.key): record.value for record in await place.read(place.changelog("state"))}
    assert (ahead, newer, ahead) == (last[1, b"a"], last[1, b"b"], last[2, b"c"])
    shutil.rmtree(place.folder / "data")
    async with Worker(place) as again:
        await again.up()
        assert ahead == again.tables["state"].get(1, b"a")


async def test_a_source_made_anew_wins_over_its_past(place: Place) -> None:
    """The state keeps what it knows and begins again at low positions, also for whoever restores it from nothing."""
    key = KEYS[0]
    before = packed(7, Sum(1_000_000, total=5, count=1))
    await place.write(place.changelog("state"), [(place_of(key), key, before)])
    await place.produce([(key, 1)])
    async with Worker(place) as worker:
        await worker.up()
        await worker.committed_all()
        assert {key: (6, 2)} == sums(worker)
    shutil.rmtree(place.folder / "data")
    async with Worker(place) as again:
        await again.up()
        assert {key: (6, 2)} == sums(again)


# -- the agent ---------------------------------------------------------------------------------------------------------


async def test_all_is_folded_once_over_workers_that_come_and_go(place: Place) -> None:
    """Sums, windows and alarms are those of an undisturbed run, and no window is said in two ways."""
    sent = numbers(0, 4000)
    await place.produce(sent)
    async with Worker(place, folder=place.folder / "one") as one:
        await one.up()
        two = Worker(place, folder=place.folder / "two")
        async with two:
            await place.produce(numbers(4000, 4000))
            await two.up()
            await until(lambda: one.lab.running and one.lab.assigned and len(one.lab.assigned) < PARTITIONS)
            await place.produce(numbers(8000, 2000))
            await one.committed_all()
            assert sums(one, two) == expected(numbers(0, 10_000))
        await place.produce(numbers(10_000, 2000))
        await until(lambda: one.lab.assigned == set(range(PARTITIONS)))
        await one.committed_all()
        assert sums(one) == expected(numbers(0, 12_000))
        assert not one.faults
        assert not two.faults
    closed, alarms = await outputs(place)
    assert set(windows(numbers(0, 12_000)).items()) == set(closed)
    assert alarms_of(numbers(0, 12_000)) == set(alarms)


async def test_held_acks_do_not_hang_a_rebalance(place: Place) -> None:
    """No checkpoint is due and no record comes: the rebalance itself makes one, and its offsets are committed."""
    await place.produce(numbers(0, 500))
    async with Worker(place, folder=place.folder / "one", limits=SELDOM) as one:
        await one.up()
        await until(lambda: one.steps.count("folded") and sums(one) == expected(numbers(0, 500)))
        assert not await one.lab.committed()
        # The records were shed, so that they do not hold up intake.
        assert 0 == one.lab.consumer.inflight_records
        async with Worker(place, folder=place.folder / "two", limits=SELDOM) as two:
            await two.up()
            await until(lambda: one.lab.running)
            assert await one.lab.committed() == await place.ends()
            assert sums(one, two) == expected(numbers(0, 500))
        assert not one.faults


async def test_a_stop_keeps_all_and_a_flush_too(place: Place) -> None:
    """Without a checkpoint in between, the next worker has nothing to fold again."""
    await place.produce(numbers(0, 500))
    async with Worker(place, limits=SELDOM) as worker:
        await worker.up()
        await until(lambda: sums(worker) == expected(numbers(0, 500)))
        assert await worker.analyzer.flush() <= 500  # a first checkpoint comes with the state
        await worker.committed_all()
        await place.produce(numbers(500, 500))
        await until(lambda: sums(worker) == expected(numbers(0, 1000)))
        assert await worker.stop()
    assert await worker.lab.committed() == await place.ends()
    async with Worker(place, limits=SELDOM) as again:
        await again.up()
        assert sums(again) == expected(numbers(0, 1000))
        assert not again.lab.entered
    closed, alarms = await outputs(place)
    assert Counter(windows(numbers(0, 1000)).items()) == closed
    assert Counter(alarms_of(numbers(0, 1000))) == alarms


async def test_what_a_dead_worker_left_pending_is_sent_by_the_next(place: Place) -> None:
    """Its state has it, and no record comes any more."""
    key = KEYS[3]
    left = Sum(41, total=400, count=40, pending=[(3, 300), (4, 400)])
    await place.write(place.changelog("state"), [(place_of(key), key, packed(3, left))])
    await place.write(place.source, [(place_of(key), key, b"0")] * 42)
    async with Worker(place) as worker:
        await worker.up()
        await until(lambda: "acked" in worker.steps)
        await worker.committed_all()
        assert {key: (400, 40)} == sums(worker)
        assert {b"k3/3": b"300", b"k3/4": b"400"} == dict(worker.tables["windows"].load(place_of(key)))
    closed, _ = await outputs(place)
    assert Counter({(b"k3/3", b"300"): 1, (b"k3/4", b"400"): 1}) == closed
    async with Worker(place) as again:
        await again.up()
        assert not again.parts[place_of(key)].sums[key].pending


async def test_partitions_are_caught_up_when_all_was_folded(place: Place) -> None:
    """Of a topic with records, of an empty one, and behind markers of transactions that nobody reads."""
    key = KEYS[0]
    async with Worker(place) as worker:
        await worker.up()
        await until(lambda: all(part.expired for part in worker.parts.values()))
        await place.produce(numbers(0, 300))
        await until(lambda: sums(worker) == expected(numbers(0, 300)))
        seen = worker.parts[place_of(key)].expired
        await until(lambda: worker.parts[place_of(key)].expired > seen)
        worker.analyzer.stop_intake()
        await place.produce([(key, 1)])
        await asyncio.sleep(2.5)
        seen = worker.parts[place_of(key)].expired
        await asyncio.sleep(2.5)
        assert seen == worker.parts[place_of(key)].expired
        worker.analyzer.resume()
        await until(lambda: worker.parts[place_of(key)].expired > seen)


async def test_a_worker_that_cannot_withdraw_ends_while_the_broker_is_away(place: Place, kafka: Kafka) -> None:
    """Nothing it holds is committed, and whoever comes next folds it again, to the same result."""
    await place.produce(numbers(0, 300))
    async with Worker(place) as worker:
        await worker.up()
        await worker.committed_all()
        ends = await place.ends()
        await asyncio.to_thread(kafka.stop)
        part = worker.parts[place_of(KEYS[0])]
        part.touch(KEYS[0])  # as what the clock does, while no record can come
        begun = len(worker.steps)
        await until(lambda: len(worker.steps) > begun)
        worker.analyzer.drain(time.monotonic() + 1.0)
        await until(lambda: worker.faults)
        assert [CannotWithdrawError] == [type(fault) for fault in worker.faults]
        assert not worker.analyzer.busy
        await asyncio.to_thread(kafka.restart)
    async with Worker(place, folder=place.folder / "next") as again:
        await again.up()
        await place.produce(numbers(300, 300))
        await again.committed_all(60)
        assert sums(again) == expected(numbers(0, 600))
        assert ends != await place.ends()
