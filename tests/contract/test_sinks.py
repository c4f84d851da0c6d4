"""What every sink must do, for every sink that is found, on its real server."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.reading import Reading
from sinks.base import Fatal, PartialWriteError, Reject, Retry, Selection
from tests.lab.stores import StoreLab

T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
TYPES = {"telemetry.counter": "INT64"}


def reading(device: str = "dev-1", at: int = 0, **more: Any) -> Reading:
    """A plain reading, `at` microseconds after the first instant."""
    values = more.pop("values", {"temperature": 20.5})
    return Reading("telemetry", device, T0 + timedelta(microseconds=at), values, **more)


EVERYTHING = [
    reading("numbers", values={"temperature": -0.0, "humidity": 1e308, "battery": 5e-324}),
    reading("two", channel="sensor-mode/1/3", values={"Temperature": 1.5}),
    reading("two", channel="sensor-mode/1/4", values={"Temperature": 2.5}),
    reading("text", values={"state": "open", "empty": "", "unicode": "°C 温度 🌡"}),
    reading("boolean", values={"door_1": True, "door_2": False}),
    reading("null", values={"temperature": None, "humidity": 3.0}),
    reading("integer", values={"counter": 2**53 + 1, "small": 7.0}),
    reading("micros", at=1),
    reading("micros", at=2),
    reading("said", units={"temperature": "°C"}, tags={"facility_id": "f1", "original_topic": "cmnd/x"}),
    reading("changed", raw={"temperature": 120}, flags=["clamped"], dialect="fire"),
    reading("'; DROP TABLE iot_measurements; --\\ \"", values={"a.b`c": 1.0, "time": 2.0}),
    reading("ünï/+#code 設備", channel="a/b/c/d"),
    reading("far", at=-1_000_000_000_000_000),
]


@pytest.fixture
async def sink(lab: StoreLab) -> AsyncIterator[Any]:
    """Each sink, open, on an empty store."""
    await lab.apply_schema()
    async with lab.opened(TYPES) as made:
        yield made


def kept(sink: Any, readings: list[Reading]) -> list[Reading]:
    """What the store must give back, in the order that comparing needs."""
    return by_place([found for reading in readings if (found := sink.kept(reading)) is not None])


async def write(sink: Any, readings: list[Reading]) -> Any:
    """Prepare and write."""
    prepared = sink.prepare(readings)
    await sink.write(prepared.payload)
    return prepared


async def stored(sink: Any, **how: Any) -> list[Reading]:
    """All that is in the store."""
    return [found async for found in sink.scan(Selection(**how))]


def by_place(readings: list[Reading]) -> list[Reading]:
    """In the order that comparing needs."""
    return sorted(readings, key=lambda found: (found.device_id, found.time, found.channel, found.measurement))


async def test_what_was_written_reads_back_equal(sink: Any) -> None:
    """Numbers, text, booleans, null, large integers, two channels, µs and hostile names come back as they went in."""
    prepared = await write(sink, EVERYTHING)

    assert not prepared.rejected
    assert kept(sink, EVERYTHING) == by_place(await stored(sink))
    assert sum(len(each.values) for each in kept(sink, EVERYTHING)) == await sink.count()


async def test_writing_twice_is_writing_once(sink: Any) -> None:
    """A batch delivered twice changes nothing."""
    await write(sink, EVERYTHING)
    await write(sink, EVERYTHING)

    assert kept(sink, EVERYTHING) == by_place(await stored(sink))


async def test_the_last_of_a_batch_wins_and_so_does_the_last_batch(sink: Any) -> None:
    """A value written again for the same identity and time replaces the older one."""
    await write(sink, [reading(values={"a": 1.0, "b": 1.0}), reading(values={"a": 2.0})])
    assert [reading(values={"a": 2.0, "b": 1.0})] == await stored(sink)

    await write(sink, [reading(values={"b": 3.0})])
    assert [reading(values={"a": 2.0, "b": 3.0})] == await stored(sink)


async def test_what_has_no_form_is_rejected_by_index_and_the_rest_stored(sink: Any) -> None:
    """Too large an integer, an overridden fraction, NaN and infinities each reject their reading alone."""
    batch = [
        reading("good", at=1),
        reading("big", values={"temperature": 1.0, "total": 2**53 + 1}),
        reading("fraction", values={"counter": 1.5}),
        reading("nan", values={"temperature": float("nan")}),
        reading("inf", values={"temperature": 1.0, "humidity": float("inf")}),
        reading("-inf", values={"humidity": float("-inf")}),
        reading("good", at=2),
    ]

    prepared = await write(sink, batch)

    assert {1: "integer_too_large", **dict.fromkeys((2, 3, 4, 5), "bad_type")} == {
        index: rejected.reason for index, rejected in prepared.rejected.items()
    }
    assert [batch[0], batch[6]] == await stored(sink)


async def test_an_empty_batch_is_nothing(sink: Any) -> None:
    """Writing no readings works and stores none."""
    await write(sink, [])

    assert await sink.count() == 0


async def test_a_batch_of_fifty_thousand(sink: Any) -> None:
    """In one piece, and twice."""
    batch = [reading(f"dev-{at % 7}", at=at, values={"temperature": float(at)}) for at in range(50_000)]
    await write(sink, batch)
    await write(sink, batch)

    assert await sink.count() == 50_000
    assert by_place(batch) == await stored(sink)


async def test_the_years_1900_to_2200(sink: Any) -> None:
    """To the microsecond."""
    years = [datetime(year, 1, 1, tzinfo=UTC) for year in (1900, 1969, 1970, 2038, 2200)]
    times = [time + timedelta(microseconds=at) for time in years for at in (-1, 0, 1)]
    batch = [Reading(name, "far", time, {"a": 1.5}) for time in times for name in ("energy", "telemetry")]

    prepared = await write(sink, batch)

    assert not prepared.rejected
    assert by_place(batch) == await stored(sink)
    assert [batch[0]] == await stored(sink, measurement="energy", end=years[0])


async def test_open_and_close_at_any_time(sink: Any) -> None:
    """Closing twice is harmless, and a closed sink opens again."""
    await sink.close()
    await sink.close()
    with pytest.raises(Exception) as error:  # noqa: PT011  whatever it is, it must mean "again"
        await sink.probe()
    assert isinstance(sink.classify(error.value), Retry)
    await sink.open()
    await sink.probe()
    await write(sink, [reading()])

    assert await sink.count() == 1


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 8, 13, 40])
async def test_a_cancelled_write_leaves_all_or_nothing_and_a_working_sink(sink: Any, turns: int) -> None:
    """Cancelling wherever a write waits neither stores half of it nor breaks the next one."""
    batch = [reading("cancelled", at=at) for at in range(5000)]
    await write(sink, [reading("before")])
    task = asyncio.create_task(write(sink, batch))
    for _ in range(turns):
        await asyncio.sleep(0 if turns < 8 else 0.001)
    task.cancel()
    await asyncio.wait([task])

    assert await sink.count() in {1, 5001}
    await write(sink, batch)
    assert [reading("before"), *batch] == await stored(sink)


async def test_scan_filters(sink: Any) -> None:
    """A scan can be narrowed by device and time: start inclusive, end exclusive."""
    await write(sink, [reading("a", at=at) for at in range(4)] + [reading("b", at=1)])
    start, end = T0 + timedelta(microseconds=1), T0 + timedelta(microseconds=3)

    assert [reading("a", at=1), reading("a", at=2)] == await stored(sink, device_id="a", start=start, end=end)
    assert [] == await stored(sink, measurement="other")


async def test_what_an_operator_must_mend_is_fatal_and_an_absent_server_is_not(lab: StoreLab) -> None:
    """A wrong secret and a missing database say how to mend them; a refused connection is tried again."""
    await lab.apply_schema()
    for change, kind in lab.mistakes:
        made = lab.sink(**change)

        with pytest.raises(Exception) as error:  # noqa: PT011  classified below
            await made.open()

        verdict = made.classify(error.value)
        assert isinstance(verdict, kind), (change, verdict, error.value)
        assert "wrong" not in str(verdict)
        await made.close()


async def test_a_missing_schema_is_fatal_with_the_remedy(lab: StoreLab) -> None:
    """Without the schema opening or probing says which command makes it."""
    made = lab.sink()

    async def use() -> None:
        await made.open()
        await made.probe()

    with pytest.raises(Exception) as error:  # noqa: PT011  classified below
        await use()
    await made.close()

    assert "iotflow schema apply" in made.classify(error.value).remedy


async def test_the_schema_may_be_applied_again(lab: StoreLab) -> None:
    """A second `schema apply` changes nothing that is stored."""
    await lab.apply_schema()
    async with lab.opened() as sink:
        await write(sink, [reading()])
        await lab.apply_schema()

        assert [reading()] == await stored(sink)


async def test_what_the_server_refuses_is_a_reject_in_its_words_and_the_rest_can_be_stored(lab: StoreLab) -> None:
    """A batch with a value that the server does not take is refused; written apart, all others are stored."""
    await lab.apply_schema()
    good, bad = [reading("a", at=at) for at in range(3)], reading("a", at=9)
    async with lab.opened() as sink:
        await lab.refuse([bad])
        before = [each for each in await stored(sink) if each == lab.harmless(bad)]
        with pytest.raises(Exception) as error:  # noqa: PT011  classified below
            await write(sink, [*good, lab.poisoned(bad)])

        verdict = sink.classify(error.value)
        if isinstance(error.value, PartialWriteError):
            assert [3] == list(error.value.rejected)
            why = error.value.rejected[3]
        else:
            assert isinstance(verdict, Reject)
            why = verdict.rejected
        assert why.reason in {"refused", "type_conflict"}
        assert len(why.error) > 20
        await write(sink, good)
        assert [*good, *before] == await stored(sink)


async def test_a_server_that_stands_still_ends_a_write_in_time(lab: StoreLab) -> None:
    """Nothing answers: a write can be given up, and the sink works again once the server does."""
    await lab.apply_schema()
    async with lab.opened() as sink:
        await write(sink, [reading("before")])
        with lab.frozen():
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(write(sink, [reading("during")]), 1)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sink.probe(), 1)
        async with asyncio.timeout(20):
            await again(sink, sink.probe)
            await again(sink, lambda: write(sink, [reading("after")]))

        assert {"before", "after"} <= {each.device_id for each in await stored(sink)} <= {"before", "during", "after"}


async def again(sink: Any, work: Callable[[], Awaitable[Any]]) -> None:
    """Until it succeeds; what fails must mean that it can be tried again."""
    while True:
        try:
            await work()
        except Exception as error:  # noqa: BLE001  classified below
            assert isinstance(sink.classify(error), Retry), error  # noqa: PT017
            await asyncio.sleep(0.1)
        else:
            return


async def test_a_server_that_was_killed_is_found_again(lab: StoreLab) -> None:
    """While it is away every failure means "again"; what was stored is still there after."""
    await lab.apply_schema()
    async with lab.opened() as sink:
        await write(sink, [reading("before")])
        await asyncio.to_thread(lab.server.kill)
        with pytest.raises(Exception) as error:  # noqa: PT011  classified below
            await asyncio.wait_for(write(sink, [reading("during")]), 20)
        assert isinstance(sink.classify(error.value), Retry)
        await asyncio.to_thread(lab.server.start)
        async with asyncio.timeout(60):
            await again(sink, sink.probe)
            await again(sink, lambda: write(sink, [reading("after")]))

        assert [reading("after"), reading("before")] == await stored(sink)


async def test_a_server_that_is_killed_in_the_middle_of_a_write(lab: StoreLab) -> None:
    """The same batch again stores all of it once."""
    await lab.apply_schema()
    batch = [reading(f"dev-{at % 5}", at=at, values={"temperature": float(at)}) for at in range(50_000)]
    async with lab.opened() as sink:
        await write(sink, [reading("before")])
        payload = sink.prepare(batch).payload
        task = asyncio.create_task(sink.write(payload))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(lab.server.kill)
        await asyncio.wait([task], timeout=60)
        assert task.done()
        if error := task.exception():
            assert isinstance(sink.classify(error), Retry), error
        await asyncio.to_thread(lab.server.start)
        async with asyncio.timeout(60):
            await again(sink, lambda: sink.write(payload))

        assert by_place([*batch, reading("before")]) == await stored(sink)
        assert await sink.count() == 50_001


async def test_a_secret_that_is_changed_while_running_waits_for_somebody(lab: StoreLab) -> None:
    """Nothing is refused for it; the remedy is told, and once the secret is right again so is the same sink."""
    await lab.apply_schema()
    sink = lab.sink(**await lab.account())
    await sink.open()
    try:
        await write(sink, [reading("before")])
        payload = sink.prepare([reading("during")]).payload
        async with lab.locked_out():
            verdict = await refused(sink, lambda: sink.write(payload))
            assert lab.prefix in verdict.remedy
            for _ in range(3):
                assert isinstance(await refused(sink, sink.probe), Fatal)
                assert isinstance(await refused(sink, lambda: sink.write(payload)), Fatal)
        await sink.probe()
        await sink.write(payload)
        await write(sink, [reading("after")])

        assert [reading(device) for device in ("after", "before", "during")] == await stored(sink)
    finally:
        await sink.close()


async def refused(sink: Any, work: Callable[[], Awaitable[Any]]) -> Fatal:
    """Until a person is asked for; that a connection was cut is tried again, and nothing else may happen."""
    while True:
        with pytest.raises(Exception) as error:  # noqa: PT011  classified below
            await asyncio.wait_for(work(), 30)
        verdict = sink.classify(error.value)
        if isinstance(verdict, Fatal):
            return verdict
        assert isinstance(verdict, Retry), error.value


@pytest.mark.parametrize("device", ["nul\0", random.Random(7).randbytes(40_000).hex()])
async def test_what_a_store_cannot_hold_is_a_reject_and_else_it_is_held(sink: Any, device: str) -> None:
    """A name at the border of what a store can hold is stored as it is, refused before it is sent, or by the server."""
    prepared = sink.prepare([reading(device)])
    if prepared.rejected:
        assert await sink.count() == 0
        return
    try:
        await sink.write(prepared.payload)
    except Exception as error:  # noqa: BLE001  classified below
        verdict = sink.classify(error)
        assert isinstance(error, PartialWriteError) or isinstance(verdict, Reject), verdict  # noqa: PT017
    else:
        assert [reading(device)] == await stored(sink)
