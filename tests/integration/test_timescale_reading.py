"""What only PostgreSQL's tables can say of reading back: two layouts of one measurement, other workers, plans."""

import asyncio
import tracemalloc
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.reading import Reading
from sinks.base import FUNCTIONS, Bucket, Selection
from tests.lab import model

T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)


def reading(at: int = 0, device: str = "a", measurement: str = "telemetry", **values: Any) -> Reading:
    return Reading(measurement, device, T0 + timedelta(seconds=at), values or {"temperature": float(at)})


async def store(sink: Any, readings: Sequence[Reading]) -> None:
    prepared = sink.prepare(readings)
    assert not prepared.rejected
    await sink.write(prepared.payload)


async def scanned(sink: Any, where: Selection) -> list[Reading]:
    return [found async for found in sink.scan(where)]


async def check(sink: Any, there: Sequence[Reading]) -> None:
    """Every method gives what is there, by measurement, device and neither."""
    span = {"start": T0 - HOUR, "end": T0 + HOUR}
    for where in (Selection(), Selection(measurement="telemetry"), Selection(device_id="a"), Selection(channel="")):
        assert model.selected(there, where) == await scanned(sink, where)
        assert model.queried(there, where) == await sink.query(where)
        assert model.queried(there, where)[1:4] == await sink.query(where, limit=3, offset=1)
        assert model.latest(there, where) == await sink.latest(where)
        assert model.values_in(model.selected(there, where)) == await sink.count(where)
        assert len(model.selected(there, where)) == await sink.count(where, readings=True)
        spanned = Selection(measurement=where.measurement, device_id=where.device_id, channel=where.channel, **span)
        found = await sink.aggregate(spanned, HOUR, FUNCTIONS)
        model.check_buckets(model.buckets(there, spanned, HOUR, FUNCTIONS), found)


async def test_readings_from_before_a_measurement_was_wide_are_read_once(timescale: Any) -> None:
    """They stay in the narrow table; one that is delivered again is in both, and the wide one counts."""
    old = [reading(at, temperature=float(at), state="old") for at in range(6)]
    await timescale.apply_schema()
    narrow = timescale.sink(TIMESCALE_WIDE="none")
    await narrow.open()
    await store(narrow, [*old, reading(3, measurement="energy")])
    await narrow.close()
    async with timescale.opened() as sink:
        await check(sink, [*old, reading(3, measurement="energy")])

        again = [reading(at, temperature=at + 0.5, state="again") for at in (0, 2, 5)]
        new = [reading(at, temperature=1.0) for at in (7, 8)]
        await store(sink, [*again, *new])
        there = [old[1], old[3], old[4], *again, *new, reading(3, measurement="energy")]
        await check(sink, there)

        first = Selection(device_id="a", measurement="telemetry", end=T0 + timedelta(seconds=3))
        await sink.delete(first)
        await check(sink, [each for each in there if each not in model.selected(there, first)])
        await sink.delete(Selection(device_id="a"))
        await check(sink, [])


async def test_what_another_worker_adds_is_read(timescale: Any) -> None:
    """A column that came after this one was opened."""
    await timescale.apply_schema()
    async with timescale.opened() as reader, timescale.opened() as writer:
        await check(reader, [])
        there = [reading(1, temperature=1.0, brand_new=2.5, text="said")]
        await store(writer, there)

        await check(reader, there)


async def test_a_metric_of_several_types_is_computed_as_far_as_it_can_be(timescale: Any) -> None:
    """In the narrow table a metric may have been a double, an integer and a text; numbers count as numbers."""
    await timescale.apply_schema()
    async with timescale.opened() as sink:
        await store(sink, [reading(1, measurement="energy", total=2.5), reading(4, measurement="energy", total="off")])
    async with timescale.opened({"total": "INT64"}) as sink:
        await store(sink, [reading(at, measurement="energy", total=2**53 + at) for at in (2, 3)])
        where = Selection(start=T0, end=T0 + HOUR)

        (bucket,) = await sink.aggregate(where, 2 * HOUR, ("count", "min", "max", "first", "last"))

        start = datetime(2025, 10, 5, 12, tzinfo=UTC)
        values = {"count": 4, "min": 2.5, "max": 2**53 + 3, "first": 2.5, "last": "off"}
        assert Bucket("energy", "a", "", "total", start, values) == bucket


@pytest.mark.parametrize("start", [datetime.min.replace(tzinfo=UTC), datetime(1, 1, 3, tzinfo=UTC)])
@pytest.mark.parametrize("every", [timedelta(days=7), timedelta(days=3660), timedelta(microseconds=1)])
async def test_all_of_time_can_be_asked_for(timescale: Any, start: datetime, every: timedelta) -> None:
    """The calendar's own ends are ends like others."""
    await timescale.apply_schema()
    there = [reading(at, measurement=name) for at in range(3) for name in ("telemetry", "energy")]
    async with timescale.opened() as sink:
        await store(sink, there)
        where = Selection(start=start, end=datetime.max.replace(tzinfo=UTC))

        model.check_buckets(
            model.buckets(there, where, every, ("count",)), await sink.aggregate(where, every, ("count",))
        )
        assert model.selected(there, where) == await scanned(sink, where)
        assert len(there) == await sink.count(where)


async def test_a_page_that_is_none_is_an_error(timescale: Any) -> None:
    await timescale.apply_schema()
    async with timescale.opened() as sink:
        for page in ({"limit": -1}, {"offset": -1}):
            with pytest.raises(ValueError, match="negative"):
                await sink.query(**page)


async def test_a_device_is_found_by_the_key(timescale: Any) -> None:
    """No method reads a whole table when a device is named."""
    await timescale.apply_schema()
    devices = [f"dev-{number}" for number in range(200)]
    async with timescale.opened() as sink:
        await store(
            sink,
            [reading(at, device, name) for name in ("telemetry", "energy") for at in range(60) for device in devices],
        )
    connection = await timescale.connect()
    await connection.execute("ANALYZE")
    before = await _whole_scans(connection)
    where = Selection(device_id="dev-7", start=T0, end=T0 + HOUR)
    async with timescale.opened() as sink:
        for measurement in (None, "telemetry", "energy"):
            named = Selection(device_id="dev-7", measurement=measurement, start=where.start, end=where.end)
            there = 60 if measurement else 120
            assert there == len(await scanned(sink, named)) == await sink.count(named)
            assert len(await sink.query(named, limit=200)) == there == await sink.count(named, readings=True)
            assert len(await sink.latest(named)) == there // 60
            assert len(await sink.aggregate(named, 2 * HOUR)) == there // 60
        await sink.delete(where)

    assert before == await _whole_scans(connection)
    await connection.close()


async def _whole_scans(connection: Any) -> dict[str, int]:
    """How often the tables were read from end to end, by everybody who has left: what a session counts it then says."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    async with asyncio.timeout(20):
        while await connection.fetchval(f"{others} AND backend_type = 'client backend'"):
            await connection.execute("SELECT pg_sleep(0.02)")
    await connection.execute("SELECT pg_stat_clear_snapshot()")
    rows = await connection.fetch("SELECT relname, seq_scan FROM pg_stat_user_tables")
    return {row["relname"]: row["seq_scan"] for row in rows if row["relname"] in {"telemetry", "iot_measurements"}}


async def test_a_scan_takes_little_memory(timescale: Any) -> None:
    """However much there is: it comes by the page."""
    await timescale.apply_schema()
    async with timescale.opened() as sink:
        for start in range(0, 20_000, 10_000):
            batch = [
                reading(at, name, measurement=name)
                for at in range(start, start + 10_000)
                for name in ("telemetry", "energy")
            ]
            await store(sink, batch)
        del batch
        tracemalloc.start()
        try:
            count = 0
            async for _ in sink.scan():
                count += 1
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()

        assert count == 40_000
        assert peak < 8_000_000  # all of them at once are several times as much


async def test_a_server_that_stands_still_does_not_hold_a_reader(timescale: Any) -> None:
    """What reads can be given up, and reads on once the server does."""
    await timescale.apply_schema()
    there = [reading(at) for at in range(3)]
    async with timescale.opened() as sink:
        await store(sink, there)
        with timescale.frozen():
            for work in (sink.query, sink.count, lambda: scanned(sink, Selection()), lambda: _delete(sink)):
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(work(), 0.5)
        async with asyncio.timeout(30):
            while True:
                try:
                    found = await scanned(sink, Selection(device_id="a"))
                except Exception as error:  # noqa: BLE001  a connection that was cut is had again
                    assert "remedy" not in repr(sink.classify(error))  # noqa: PT017
                    await asyncio.sleep(0.1)
                else:
                    break

        assert there == found


async def _delete(sink: Any) -> None:
    await sink.delete(Selection(device_id="nobody"))


async def test_infinite_times_that_others_stored_are_read_as_the_calendars_ends(timescale: Any) -> None:
    """By every method, among ours; what lies a microsecond further in the sink itself can store and read back."""
    ends = [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)]
    tick = timedelta(microseconds=1)
    await timescale.apply_schema()
    connection = await timescale.connect()
    for time in ("-infinity", "infinity"):
        await connection.execute(
            f"INSERT INTO telemetry (device_id, ts, temperature) VALUES ('a', '{time}', 1)",
        )
        await connection.execute(
            "INSERT INTO iot_measurements (device_id, timestamp, measurement, component_type, value) "
            f"VALUES ('a', '{time}', 'energy', 'power', 1)",
        )
    await connection.close()
    ours = [
        Reading(name, "a", time, {metric: 1.0})
        for time in (ends[0] + tick, T0, ends[1] - tick)
        for name, metric in (("telemetry", "temperature"), ("energy", "power"))
    ]
    theirs = [
        Reading(name, "a", time, {metric: 1.0}, dialect=dialect)
        for time in ends
        for name, metric, dialect in (("telemetry", "temperature", "telemetry"), ("energy", "power", ""))
    ]
    async with timescale.opened() as sink:
        await store(sink, ours)
        kept = sorted([*ours, *theirs], key=lambda each: (each.time, each.measurement))
        stored = await scanned(sink, Selection())

        assert [(each.measurement, each.time, each.values) for each in stored] == [
            (each.measurement, each.time, each.values) for each in kept
        ]
        assert model.queried(stored, Selection()) == await sink.query()
        assert model.latest(stored, Selection()) == await sink.latest(Selection())
        whole = Selection(start=ends[0], end=ends[1])
        assert model.selected(stored, whole) == await scanned(sink, whole)
        assert await sink.count() == len(kept)
        buckets = await sink.aggregate(Selection(measurement="energy", start=ends[0], end=ends[1]), HOUR)
        assert all(bucket.start.tzinfo is UTC for bucket in buckets)
        assert sum(bucket.values["count"] for bucket in buckets) == 4
        await sink.delete(Selection(device_id="a"))
        assert await sink.count() == 0
