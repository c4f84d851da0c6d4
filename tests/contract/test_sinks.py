"""What every sink must do, for every sink that is found, on its real server."""

import asyncio
import importlib
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.settings import load
from schemas.reading import Reading
from sinks import registry
from sinks.base import Fatal, Reject, Retry

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


@pytest.fixture(params=sorted(registry.load()))
async def sink(request: pytest.FixtureRequest, database: dict[str, str]) -> AsyncIterator[Any]:
    """Each sink, open, on an empty store."""
    module = importlib.import_module(f"sinks.{request.param}")
    settings = load(database).sinks[request.param]
    await module.apply_schema(settings)
    made = module.Sink(settings, TYPES)
    await made.open()
    yield made
    await made.close()


async def write(sink: Any, readings: list[Reading]) -> Any:
    """Prepare and write."""
    prepared = sink.prepare(readings)
    await sink.write(prepared.payload)
    return prepared


async def stored(sink: Any, **how: Any) -> list[Reading]:
    """All that is in the store."""
    return [found async for found in sink.scan(**how)]


def by_place(readings: list[Reading]) -> list[Reading]:
    """In the order that comparing needs."""
    return sorted(readings, key=lambda found: (found.device_id, found.time, found.channel, found.measurement))


async def test_what_was_written_reads_back_equal(sink: Any) -> None:
    """Numbers, text, booleans, null, large integers, two channels, µs and hostile names come back as they went in."""
    prepared = await write(sink, EVERYTHING)

    assert not prepared.rejected
    assert by_place(EVERYTHING) == by_place(await stored(sink))
    assert sum(len(each.values) for each in EVERYTHING) == await sink.count()


async def test_writing_twice_is_writing_once(sink: Any) -> None:
    """A batch delivered twice changes nothing."""
    await write(sink, EVERYTHING)
    await write(sink, EVERYTHING)

    assert by_place(EVERYTHING) == by_place(await stored(sink))


async def test_the_last_of_a_batch_wins_and_so_does_the_last_batch(sink: Any) -> None:
    """A value written again for the same identity and time replaces the older one."""
    await write(sink, [reading(values={"a": 1.0, "b": 1.0}), reading(values={"a": 2.0})])
    assert [reading(values={"a": 2.0, "b": 1.0})] == await stored(sink)

    await write(sink, [reading(values={"b": 3.0})])
    assert [reading(values={"a": 2.0, "b": 3.0})] == await stored(sink)


async def test_what_has_no_form_is_rejected_by_index_and_the_rest_stored(sink: Any) -> None:
    """An integer beyond 2^53 without an override, an overridden fraction and a NaN each reject their reading alone."""
    batch = [
        reading("good", at=1),
        reading("big", values={"temperature": 1.0, "total": 2**53 + 1}),
        reading("fraction", values={"counter": 1.5}),
        reading("nan", values={"temperature": float("nan")}),
        reading("good", at=2),
    ]

    prepared = await write(sink, batch)

    assert {1: "integer_too_large", 2: "bad_type", 3: "bad_type"} == {
        index: rejected.reason for index, rejected in prepared.rejected.items()
    }
    assert [batch[0], batch[4]] == await stored(sink)


async def test_an_empty_batch_is_nothing(sink: Any) -> None:
    """Writing no readings works and stores none."""
    await write(sink, [])

    assert await sink.count() == 0


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


async def test_a_cancelled_write_leaves_all_or_nothing_and_a_working_sink(sink: Any) -> None:
    """Cancelling in the middle of a write neither stores half of it nor breaks the next one."""
    batch = [reading("cancelled", at=at) for at in range(5000)]
    task = asyncio.create_task(write(sink, batch))
    await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.wait([task])

    assert await sink.count() in {0, 5000}
    await write(sink, batch)
    assert await sink.count() == 5000


async def test_scan_filters(sink: Any) -> None:
    """A scan can be narrowed by device and time: start inclusive, end exclusive."""
    await write(sink, [reading("a", at=at) for at in range(4)] + [reading("b", at=1)])
    start, end = T0 + timedelta(microseconds=1), T0 + timedelta(microseconds=3)

    assert [reading("a", at=1), reading("a", at=2)] == await stored(sink, device_id="a", start=start, end=end)
    assert [] == await stored(sink, measurement="other")


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"TIMESCALE_PASSWORD": "wrong"}, Fatal),
        ({"TIMESCALE_DB": "nowhere"}, Fatal),
        ({"TIMESCALE_PORT": "1"}, Retry),
    ],
)
async def test_what_an_operator_must_mend_is_fatal_and_an_absent_server_is_not(
    database: dict[str, str], change: dict[str, str], kind: type
) -> None:
    """A wrong password and a missing database say how to mend them; a refused connection is tried again."""
    module = registry.load()["timescale"]
    made = module.Sink(load({**database, **change}).sinks["timescale"])

    with pytest.raises(Exception) as error:  # noqa: PT011  classified below
        await made.open()

    verdict = made.classify(error.value)
    assert isinstance(verdict, kind)
    assert "wrong" not in str(verdict)


async def test_a_missing_table_is_fatal_with_the_remedy(database: dict[str, str]) -> None:
    """Without the schema a probe says which command makes it."""
    module = registry.load()["timescale"]
    made = module.Sink(load(database).sinks["timescale"])
    await made.open()

    with pytest.raises(Exception) as error:  # noqa: PT011  classified below
        await made.probe()
    await made.close()

    assert "iotflow schema apply" in made.classify(error.value).remedy


@pytest.mark.parametrize("device", ["nul\0", random.Random(7).randbytes(4000).hex()])
async def test_what_only_the_server_refuses_is_a_reject(sink: Any, device: str) -> None:
    """A name that the store cannot hold is either refused before it is sent, or the server's refusal is a Reject."""
    prepared = sink.prepare([reading(device)])
    if prepared.rejected:
        return

    with pytest.raises(Exception) as error:  # noqa: PT011  classified below
        await sink.write(prepared.payload)

    assert isinstance(sink.classify(error.value), Reject)
