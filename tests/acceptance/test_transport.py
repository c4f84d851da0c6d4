"""The batch transport on a real broker: the seven points, and the same cases on stock Faust where it fails them.

A case that stock Faust is known to fail is an expected failure with its reason, never a strict one: most are races,
and a lucky run must not fail the build. Where a race can be forced, it is.
"""

import asyncio
import gc
import random
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from app.transport import FROZEN_AFTER_S, MAX_POLL_INTERVAL_S
from tests.lab.apps import (
    Lab,
    ack_all,
    create,
    create_changelog,
    fill,
    fill_with_gaps,
    gated,
    handled,
    hold,
    late_fetch,
    paced,
    slow_seek,
    unique,
    until,
    until_committed,
)
from tests.lab.table_worker import table_lab

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)  # of stock workers that hang
ROOT = Path(__file__).parents[2]
SMALL: Mapping[str, int] = {"chunk_records": 100}
BOTH = pytest.mark.parametrize("scheme", ["kafka", "iotflow"])


def stock_fails(reason: str) -> pytest.MarkDecorator:
    """The case on both, where stock Faust is expected to fail."""
    stock = pytest.param("kafka", marks=pytest.mark.xfail(reason=reason, strict=False))
    return pytest.mark.parametrize("scheme", [stock, "iotflow"])


def ends(count: int, partitions: int = 4) -> dict[int, int]:
    """The end offsets after `fill`."""
    return dict.fromkeys(range(partitions), count // partitions)


@pytest.fixture(autouse=True, scope="module")
def _no_leaks() -> Iterator[None]:
    """Stock workers that hang leave sockets behind; no other module's test shall hear of it."""
    yield
    with warnings.catch_warnings(action="ignore"):
        gc.collect()


@pytest.fixture
async def topic(kafka_servers: str) -> str:
    """A topic of four partitions."""
    name = unique("topic")
    await create(kafka_servers, name)
    return name


# -- commits (2) -----------------------------------------------------------------------------------------------------


@BOTH
async def test_every_record_once_in_order_and_all_committed(
    kafka_servers: str, tmp_path: Path, topic: str, scheme: str
) -> None:
    """Without faults each record is handled once, a partition's in order, and the commits reach the end."""
    await fill(kafka_servers, topic, 10_000)

    async with Lab(kafka_servers, topic, unique("group"), tmp_path, scheme=scheme, limits=SMALL) as lab:
        await until(lambda: len(lab.seen) >= 10_000)
        await until_committed(lab, ends(10_000))

    assert {partition: list(range(2500)) for partition in range(4)} == lab.offsets


@BOTH
async def test_commits_pass_chunk_borders_and_gaps(kafka_servers: str, tmp_path: Path, topic: str, scheme: str) -> None:
    """Offsets without a record neither hold a commit up nor lose a record; ours sees no aborted record, stock does."""
    data = await fill_with_gaps(kafka_servers, topic, transactions=30, records=20, aborted=scheme == "kafka")

    async with Lab(kafka_servers, topic, unique("group"), tmp_path, scheme=scheme, limits={"chunk_records": 7}) as lab:
        await until_committed(lab, {partition: offsets[-1] + 1 for partition, offsets in data.items()})

    assert lab.offsets == data


@stock_fails("a new group commits over records that are not done, faust#606")
async def test_nothing_is_committed_past_what_is_held(kafka_servers: str, tmp_path: Path, scheme: str) -> None:
    """While the first chunk of a new group is held and all later ones are done, nothing is committed, and it shows."""
    topic = unique("held")
    await create(kafka_servers, topic, 1)
    await fill(kafka_servers, topic, 1000, 1)
    first: list[Any] = []

    async def hold_first(lab: Lab, event: Any, records: Any) -> None:
        if first:
            await ack_all(lab, event, records)
        else:
            first.append(event)

    async with Lab(kafka_servers, topic, unique("group"), tmp_path, hold_first, scheme=scheme, limits=SMALL) as lab:
        await until(lambda: lab.seen and lab.seen[-1].offset == 999)
        await lab.consumer.commit()
        await lab.consumer.commit()
        assert await lab.committed() == {}
        if scheme == "iotflow":
            since = lab.consumer._order[first[0].message.tp][0].since
            assert lab.consumer.frozen(since + FROZEN_AFTER_S - 1) == []
            assert lab.consumer.frozen(since + FROZEN_AFTER_S + 1) == [first[0].message.tp]

        first[0].ack()
        await until_committed(lab, {0: 1000})


# -- rebalances (2, 3) -----------------------------------------------------------------------------------------------


@BOTH
async def test_a_second_worker_joins_in_the_middle(kafka_servers: str, tmp_path: Path, topic: str, scheme: str) -> None:
    """Two workers of which one came later handle everything together, commit it, and hold nothing at the end."""
    await fill(kafka_servers, topic, 10_000)
    group, pace = unique("group"), paced(0.02, 100)

    async with Lab(kafka_servers, topic, group, tmp_path, pace, scheme=scheme, limits=SMALL) as one:
        await until(lambda: len(one.seen) > 1000)
        async with Lab(kafka_servers, topic, group, tmp_path, pace, scheme=scheme, limits=SMALL) as two:
            await until(lambda: one.running and two.running and len(one.assigned) == len(two.assigned) == 2)
            await fill(kafka_servers, topic, 10_000, start=10_000)
            await until(lambda: len(handled(one, two)) == 20_000)
            await until_committed(one, ends(20_000))
            assert one.seen
            assert two.seen
            if scheme == "iotflow":
                assert (one.consumer.inflight_records, one.consumer.inflight_bytes) == (0, 0)
                assert (two.consumer.inflight_records, two.consumer.inflight_bytes) == (0, 0)


@stock_fails("acknowledgements are thrown away before the last commit of a revoke, faust#502")
async def test_what_is_done_is_committed_before_a_partition_goes(
    kafka_servers: str, tmp_path: Path, topic: str, scheme: str
) -> None:
    """With no commit since the start, records that were done before another worker joined are not handled again."""
    await fill(kafka_servers, topic, 4000)
    group, rare = unique("group"), {"broker_commit_interval": 1000.0}

    async with Lab(kafka_servers, topic, group, tmp_path, scheme=scheme, limits=SMALL, **rare) as one:
        await until(lambda: len(one.seen) == 4000)
        async with Lab(kafka_servers, topic, group, tmp_path, scheme=scheme, limits=SMALL, **rare) as two:
            await until(lambda: one.running and two.running)
            await fill(kafka_servers, topic, 400, start=4000)
            await until(lambda: len(handled(one, two)) == 4400)
            assert [record for record, times in handled(one, two).items() if times > 1] == []


@stock_fails("the wait for acknowledgements has no end: the worker is thrown out of the group, and never stops")
async def test_held_chunks_are_let_go_at_a_revoke_and_at_a_stop(
    kafka_servers: str, tmp_path: Path, topic: str, scheme: str
) -> None:
    """A worker that holds what it has for ever neither keeps others from their partitions nor itself from stopping."""
    await fill(kafka_servers, topic, 4000)
    group, quick = unique("group"), {"broker_rebalance_timeout": 6.0}
    holder = Lab(kafka_servers, topic, group, tmp_path, hold, scheme=scheme, limits=SMALL, **quick)
    deadlines: list[float] = []
    if scheme == "iotflow":
        holder.consumer.on_drain.append(deadlines.append)

    async with holder:
        await until(lambda: holder.held and len(holder.assigned) == 4)
        async with Lab(kafka_servers, topic, group, tmp_path, scheme=scheme, limits=SMALL, **quick) as other:
            # Two each: the holder is still a member. One that hangs is evicted, and the other has all four.
            await until(lambda: other.running and len(holder.assigned) == len(other.assigned) == 2, 12)
            assert await holder.stop(12)
            await until(lambda: len(handled(other)) == 4000)
            await until_committed(other, ends(4000))
    assert scheme == "kafka" or len(deadlines) >= 2


@BOTH
async def test_a_revoke_while_the_queues_are_full(kafka_servers: str, tmp_path: Path, topic: str, scheme: str) -> None:
    """Chunks that were queued, or about to be, when a partition went are handled by whoever has it next."""
    await fill(kafka_servers, topic, 4000)
    group, gate = unique("group"), asyncio.Event()
    small = {"stream_buffer_maxsize": 4}

    limits = {"chunk_records": 10}
    async with Lab(kafka_servers, topic, group, tmp_path, gated(gate), scheme=scheme, limits=limits, **small) as one:
        await until(lambda: one.entered and len(one.assigned) == 4)
        async with Lab(kafka_servers, topic, group, tmp_path, scheme=scheme, limits=limits, **small) as two:
            await until(lambda: one.app.rebalancing and not one.consumer.flow_active)
            gate.set()
            await until(lambda: len(handled(one, two)) == 4000)
            await until_committed(two, ends(4000))
            await until(lambda: one.running and two.running)
            if scheme == "iotflow":
                assert (one.consumer.inflight_records, two.consumer.inflight_records) == (0, 0)


# -- recovery (1, 4) -------------------------------------------------------------------------------------------------


@BOTH
async def test_a_table_is_after_a_restart_what_was_written(
    kafka_servers: str, tmp_path: Path, topic: str, scheme: str
) -> None:
    """Recovery reads each of several thousand changelog records: changelogs are not folded."""
    await fill(kafka_servers, topic, 6000)
    group = unique("group")
    await create_changelog(kafka_servers, group)

    async def write(lab: Lab, event: Any, records: Any) -> None:
        for record in records:
            lab.write(event, record.value, b"%d" % record.offset)
        await ack_all(lab, event, records)

    async with Lab(kafka_servers, topic, group, tmp_path, write, scheme=scheme, table=True) as lab:
        await until_committed(lab, ends(6000))
        written = dict(lab.table.items())
    assert len(written) == 6000

    async with Lab(kafka_servers, topic, group, tmp_path, write, scheme=scheme, table=True) as lab:
        await until(lambda: lab.running)
        assert dict(lab.table.items()) == written
        assert lab.seen == []


@stock_fails("data flows before recovery's seek is finished, then the queues are cleared: commits freeze for good")
async def test_recovery_neither_loses_a_record_nor_freezes_a_commit(
    kafka_servers: str, tmp_path: Path, topic: str, scheme: str
) -> None:
    """A worker with a table whose way to the committed offsets takes long handles all that is left, and commits it."""
    group = unique("group")
    await create_changelog(kafka_servers, group)
    await fill(kafka_servers, topic, 2000)
    pace = paced(0.02, 100)

    async def count(lab: Lab, event: Any, records: Any) -> None:
        lab.write(event, b"%d" % records[0].partition, b"%d" % records[-1].offset)
        await pace(lab, event, records)

    kind: dict[str, Any] = {"scheme": scheme, "limits": {"chunk_records": 20}, "table": True}
    async with Lab(kafka_servers, topic, group, tmp_path, count, **kind) as first:
        await until_committed(first, ends(2000))
    await fill(kafka_servers, topic, 10_000, start=2000)

    second = Lab(kafka_servers, topic, group, tmp_path, count, **kind)
    slow_seek(second, before=0.3, after=1.5)
    async with second:
        await until(lambda: second.running)
        await until(lambda: len(handled(first, second)) == 12_000, 8)
        await until_committed(second, ends(12_000), 5)


@stock_fails("a fetch that outlives a rebalance moves the position, and a seek to no commit does not move it back")
async def test_a_fetch_outlives_a_rebalance_of_a_new_group(
    kafka_servers: str, tmp_path: Path, topic: str, scheme: str
) -> None:
    """Nothing is lost when a worker joins while the group has no commit yet and a fetch is under way."""
    group = unique("group")
    await fill(kafka_servers, topic, 4000)

    async def in_second_generation(lab: Lab, event: Any, records: Any) -> None:
        if event.message.generation_id > 1:
            await ack_all(lab, event, records)
        else:
            lab.consumer._unacked_messages.discard(event.message)  # as a holder does that gives up at once

    kind: dict[str, Any] = {"scheme": scheme, "limits": SMALL}
    one = Lab(kafka_servers, topic, group, tmp_path, in_second_generation, **kind)
    slow_seek(one, before=1.0)
    async with one:
        await until(lambda: one.running)
        await late_fetch(one, lambda: one.app.consumer_generation_id > 1)
        async with Lab(kafka_servers, topic, group, tmp_path, in_second_generation, **kind) as two:
            await until(lambda: one.running and two.running)
            await until(lambda: len(handled(one, two)) == 4000, 8)
            await until_committed(two, ends(4000))


@stock_fails("a record handed out amid recovery's seek is cleared from the queues: commits freeze for good")
async def test_a_fetch_outlives_a_rebalance_of_a_worker_with_a_table(
    kafka_servers: str, tmp_path: Path, topic: str, scheme: str
) -> None:
    """Nothing is lost and no commit freezes when a fetch of before a rebalance ends amid the seek of its recovery.

    The table is empty: a recovery that has nothing to read resumes at once.
    """
    group, pace = unique("group"), paced(0.05, 100)
    await create_changelog(kafka_servers, group)
    await fill(kafka_servers, topic, 2000)

    kind: dict[str, Any] = {"scheme": scheme, "limits": {"chunk_records": 20}, "table": True}
    one = Lab(kafka_servers, topic, group, tmp_path, pace, **kind)
    slow_seek(one, before=0.7, after=0.3)
    async with one:
        await until_committed(one, ends(2000))
        await late_fetch(one, lambda: one.seeks > 1)
        await fill(kafka_servers, topic, 8000, start=2000)
        async with Lab(kafka_servers, topic, group, tmp_path, pace, **kind) as two:
            await until(lambda: one.running and two.running, 15)
            await until(lambda: len(handled(one, two)) == 10_000, 10)
            await until_committed(two, ends(10_000), 5)


async def test_twenty_kills_in_recovery(kafka_servers: str, tmp_path: Path, topic: str) -> None:
    """A worker with a table, killed twenty times while it recovers or works, ends with all handled and committed."""
    group, chance = unique("group"), random.Random(20)
    await create_changelog(kafka_servers, group)
    await fill(kafka_servers, topic, 40_000)

    async def spawn() -> asyncio.subprocess.Process:
        # It is made ready while its predecessor still works.
        command = (sys.executable, "-m", "tests.lab.table_worker", kafka_servers, topic, group, str(tmp_path))
        pipe = asyncio.subprocess.PIPE
        return await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, cwd=ROOT
        )

    coming = await spawn()
    try:
        for _ in range(20):
            worker, coming = coming, await spawn()
            assert worker.stdin is not None
            assert worker.stdout is not None
            worker.stdin.write(b"\n")
            try:
                assert await asyncio.wait_for(worker.stdout.readline(), 30) == b"assigned\n"
                await asyncio.sleep(chance.uniform(0.0, 2.0))
                assert worker.returncode is None
            finally:
                worker.kill()
                await worker.wait()
    finally:
        coming.kill()
        await coming.wait()

    async with table_lab(kafka_servers, topic, group, tmp_path) as last:
        await until(lambda: last.running)
        recovered = dict(last.table.items())
        await until_committed(last, ends(40_000), 60)
        assert last.consumer.frozen() == []
    seen: dict[int, set[int]] = {}
    for line in (tmp_path / "handled").read_text().splitlines():
        partition, first, end = map(int, line.split())
        seen.setdefault(partition, set()).update(range(first, end + 1))
    assert {partition: set(range(10_000)) for partition in range(4)} == seen
    assert recovered
    assert len(last.seen) < 40_000  # or the killed ones did nothing


# -- intake (5, 7) ---------------------------------------------------------------------------------------------------


@stock_fails("aiokafka skips what it has fetched of a paused partition, and the next commit passes it")
async def test_pausing_while_data_flows(kafka_servers: str, tmp_path: Path, topic: str, scheme: str) -> None:
    """Two pauses in the middle of a flow lose nothing: they are refused."""
    await fill(kafka_servers, topic, 40_000)
    pauses, refused = [2000, 10_000], 0

    async def pausing(lab: Lab, event: Any, records: Any) -> None:
        nonlocal refused
        await ack_all(lab, event, records)
        if pauses and len(lab.seen) > pauses[0]:
            pauses.pop(0)
            everything = lab.consumer.assignment()
            try:
                lab.consumer.pause_partitions(everything)
            except RuntimeError:
                refused += 1
                return
            asyncio.get_running_loop().call_later(0.5, lab.consumer.resume_partitions, everything)

    async with Lab(kafka_servers, topic, unique("group"), tmp_path, pausing, scheme=scheme, limits=SMALL) as lab:
        await until_committed(lab, ends(40_000), 9)
        assert len(handled(lab)) == 40_000
    assert refused == 2


async def test_full_intake_loses_nothing_and_resumes(kafka_servers: str, tmp_path: Path, topic: str) -> None:
    """With room for few records intake stops, says so, resumes when there is room, and all is handled once."""
    for start in range(0, 8000, 1000):
        await fill(kafka_servers, topic, 1000, start=start)
    limits = {"chunk_records": 50, "max_inflight_records": 200}
    few = {"consumer_max_fetch_size": 8 * 1024}  # a fetch is one batch of records of each partition
    lab = Lab(kafka_servers, topic, unique("group"), tmp_path, paced(0.005, 50), limits=limits, **few)
    stops: list[int] = []
    lab.consumer.on_full.append(lambda: stops.append(lab.consumer.inflight_records))

    async with lab:
        await until_committed(lab, ends(8000))

    assert {partition: list(range(2000)) for partition in range(4)} == lab.offsets
    assert len(stops) > 1
    assert all(records >= 200 for records in stops)


async def test_catch_up_is_bounded_in_bytes(kafka_servers: str, tmp_path: Path, topic: str) -> None:
    """A slow handler that catches up 40 MB has no more in flight than the limit and one fetch of each partition."""
    await fill(kafka_servers, topic, 4000, size=10_000)
    limit, fetch = 3_000_000, 512 * 1024
    most = 0
    pace = paced(0.002, 10)

    async def weigh(lab: Lab, event: Any, records: Any) -> None:
        nonlocal most
        most = max(most, lab.consumer.inflight_bytes)
        await pace(lab, event, records)

    limits = {"max_inflight_bytes": limit, "chunk_bytes": 64 * 1024}
    options = {"consumer_max_fetch_size": fetch, "stream_buffer_maxsize": 1000}
    async with Lab(kafka_servers, topic, unique("group"), tmp_path, weigh, limits=limits, **options) as lab:
        await until_committed(lab, ends(4000), 60)

    assert len(handled(lab)) == 4000
    assert limit / 2 < most < limit + 4 * fetch * 1.2  # a fetch ends with a whole batch of records


# -- outages (6) -----------------------------------------------------------------------------------------------------


@stock_fails("a full queue stops the fetch loop, aiokafka leaves the group after the poll interval, and stays away")
async def test_an_outage_longer_than_a_poll_interval(
    kafka_servers: str, tmp_path: Path, topic: str, scheme: str
) -> None:
    """After an outage with full queues, longer than a poll interval of 3 s, the worker goes on where it stopped."""
    await fill(kafka_servers, topic, 8000)
    gate = asyncio.Event()
    options = {
        "broker_max_poll_interval": 3.0 if scheme == "kafka" else MAX_POLL_INTERVAL_S,
        "stream_buffer_maxsize": 4,
    }
    lab = Lab(
        kafka_servers,
        topic,
        unique("group"),
        tmp_path,
        gated(gate),
        scheme=scheme,
        limits={"chunk_records": 10},
        **options,
    )
    async with lab:
        await until(lambda: lab.entered)
        await asyncio.sleep(6)
        gate.set()
        await until_committed(lab, ends(8000), 8)
        assert lab.running

    assert len(handled(lab)) == 8000
