"""What only IoTDB does: TTLs that refuse rows, types by series, and servers that count ms or ns."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from deploy.local.files import default_cache
from deploy.local.iotdb import IoTDB
from deploy.local.stack import Stack
from schemas.reading import Reading
from sinks.base import FUNCTIONS, PartialWriteError, Reject, Selection
from sinks.iotdb import IoTDBSink, Settings, apply_schema
from sinks.iotdb.places import TRUSTED_S
from sinks.iotdb.rpc import StatusError
from tests.conftest import place, running
from tests.lab import model
from tests.lab.stores import StoreLab

FROM = 30_900
DAY = timedelta(days=1)
T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)


@pytest.fixture
async def lab(stack: Stack) -> AsyncIterator[StoreLab]:
    """An empty place with the schema."""
    made = await place(stack, "iotdb")
    await made.apply_schema()
    yield made
    running(stack, made.server_name)
    await made.drop()


class Clock:
    """Passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


def reading(device: str = "dev", at: int = 0, **values: Any) -> Reading:
    """`at` microseconds after the first instant."""
    return Reading("telemetry", device, T0 + timedelta(microseconds=at), values or {"a": 1.0})


async def write(sink: Any, *readings: Reading) -> Any:
    """Prepare and write."""
    prepared = sink.prepare(readings)
    await sink.write(prepared.payload)
    return prepared


async def stored(sink: Any) -> list[Reading]:
    """All that is there."""
    return [each async for each in sink.scan()]


# -- rows older than a TTL ---------------------------------------------------------------------------------------------


async def test_rows_past_a_ttl_are_told_from_the_others(lab: StoreLab) -> None:
    """The server refuses a batch for them without saying which; the sink knows by the server's own rules."""
    database = lab.env["IOTDB_DATABASE"]
    now = datetime.now(UTC).replace(microsecond=0)

    def aged(device: str, age: timedelta, channel: str = "") -> Reading:
        return Reading("telemetry", device, now - age, {"a": 1.0}, channel)

    batch = [
        aged("dev", DAY / 2),
        aged("dev", 2 * DAY),
        aged("kept", 400 * DAY),
        aged("kept", 400 * DAY, "x"),
        aged("dev", 9 * DAY, "x"),
        aged("own", DAY / 2),
    ]
    async with lab.opened() as sink:
        for path, ttl in ((database, "86400000"), (f"{database}.kept", "INF"), (f"{database}.kept.**", "INF")):
            await sink.execute(f"SET TTL TO {path} {ttl}")
        await sink.execute(f"SET TTL TO {database}.own 3600000")
        with pytest.raises(PartialWriteError) as error:
            await write(sink, *batch)

        assert {index: why.reason for index, why in error.value.rejected.items()} == dict.fromkeys((1, 4, 5), "too_old")
        assert error.value.rejected[1].error.endswith(f"is past the TTL of {database}.dev, which is 1 d")
        good = [each for index, each in enumerate(batch) if index not in error.value.rejected]
        await write(sink, *good)
        assert model.merged(filter(None, map(sink.kept, good))) == await stored(sink)
        for path in (f"{database}.kept", f"{database}.kept.**", f"{database}.own", database):
            await sink.execute(f"UNSET TTL TO {path}")


async def test_a_row_that_may_be_too_old_is_the_servers_to_refuse(lab: StoreLab) -> None:
    """Close to its TTL it depends on the server's clock: the refusal of it alone has the same reason."""
    database = lab.env["IOTDB_DATABASE"]
    async with lab.opened() as sink:
        await sink.execute(f"SET TTL TO {database} 86400000")
        close = Reading("telemetry", "dev", datetime.now(UTC) - DAY - timedelta(seconds=5), {"a": 1.0})
        with pytest.raises(StatusError) as error:
            await write(sink, close, Reading("telemetry", "dev", datetime.now(UTC), {"a": 1.0}))
        verdict = sink.classify(error.value)
        await sink.execute(f"UNSET TTL TO {database}")

        assert isinstance(verdict, Reject)
        assert verdict.rejected.reason == "too_old"


# -- types -------------------------------------------------------------------------------------------------------------


async def test_a_text_where_a_number_lives_is_known_before_the_server_refuses(lab: StoreLab) -> None:
    """The reading alone is refused, with both types; other metrics, devices and `_meta` are not its business."""
    async with lab.opened() as sink:
        await write(sink, reading(a=1.0, b="x"), reading("other", b=True))

        prepared = await write(
            sink,
            reading(at=1, a=2.0),
            reading(at=2, a="text"),
            reading(at=3, b="y"),
            reading(at=4, b=True, a=1.0),
            reading("other", at=5, b=False, a="text"),
        )

        path = f"{lab.env['IOTDB_DATABASE']}.dev"
        assert {index: why.reason for index, why in prepared.rejected.items()} == {
            1: "type_conflict",
            3: "type_conflict",
        }
        assert f"a is TEXT here and DOUBLE in {path}" in prepared.rejected[1].error
        assert f"b is BOOLEAN here and TEXT in {path}" in prepared.rejected[3].error
        assert [each.time.microsecond - T0.microsecond for each in await stored(sink)] == [0, 1, 3, 0, 5]


async def test_what_is_remembered_from_long_ago_is_asked_for(lab: StoreLab) -> None:
    """Still so: the reading is refused before anything is sent. Deleted behind the sink's back: it is stored."""
    clock = Clock()
    async with lab.opened() as other:
        sink = IoTDBSink(other.settings, monotonic=clock)
        await sink.open()
        await write(sink, reading(a=1.0), reading("gone", a=1.0))
        clock.now += TRUSTED_S
        batch = [reading(at=1, a=2.0), reading(at=2, a="text"), reading("gone", at=3, a="text")]
        await other.execute(f"DELETE TIMESERIES {lab.env['IOTDB_DATABASE']}.gone.*")

        with pytest.raises(PartialWriteError) as error:
            await write(sink, *batch)
        assert {index: why.reason for index, why in error.value.rejected.items()} == {1: "type_conflict"}
        await write(sink, batch[0], batch[2])
        assert {1: "type_conflict"} == {
            index: why.reason for index, why in sink.prepare([batch[2], batch[1]]).rejected.items()
        }
        assert [each.values["a"] for each in await stored(sink)] == [1.0, 2.0, "text"]
        await sink.close()


async def test_what_others_stored_is_the_servers_to_judge(lab: StoreLab) -> None:
    """And a reconnect forgets, since it may be another server."""
    async with lab.opened() as other, lab.opened() as sink:
        await write(other, reading(a=1.0))
        with pytest.raises(StatusError) as error:
            await write(sink, reading(at=1, a="text"))
        assert sink.classify(error.value).rejected.reason == "refused"

        await write(sink, reading(at=2, a=1.0))
        assert sink.prepare([reading(at=3, a="text")]).rejected
        sink._connected().close()
        await write(sink, reading("another"))
        assert not sink.prepare([reading(at=3, a="text")]).rejected


async def test_a_deleted_device_may_come_back_with_other_types(lab: StoreLab) -> None:
    """Without a span its series go too; with one they stay, and so do the types."""
    async with lab.opened() as sink:
        await write(sink, reading(a=1.0), reading(at=1, a=2.0), reading("other", a=1.0))
        await sink.delete(Selection(device_id="dev", end=T0 + timedelta(microseconds=1)))
        with pytest.raises(StatusError):
            await write(sink, reading(a="text"))
        await sink.delete(Selection(device_id="dev"))

        assert not (await write(sink, reading(a="text"))).rejected
        assert await stored(sink) == [reading(a="text"), reading("other", a=1.0)]


# -- other precisions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["ms", "ns"])
async def test_servers_that_count_otherwise_read_back_the_same(tmp_path: Path, precision: str) -> None:
    """Every method, with times on both sides of the epoch; a span that the server has no word for is an error."""
    ports = {role: FROM + number for number, role in enumerate(IoTDB.preferred)}
    properties = {"timestamp_precision": precision}
    server = IoTDB(tmp_path / "iotdb", default_cache(), ports=ports, heap_mb=512, properties=properties)
    await asyncio.to_thread(server.start)
    try:
        login = {name.removeprefix("IOTDB_").lower(): value for name, value in server.environment().items()}
        settings = Settings(**login)  # type: ignore[arg-type]
        coarse = [note for note in (await apply_schema(settings)).notes if "timestamp_precision=us" in note]
        assert bool(coarse) == (precision == "ms")
        sink = IoTDBSink(settings)
        await sink.open()
        await _reads_back(sink, precision)
        await sink.close()
    finally:
        await asyncio.to_thread(server.kill)


async def _reads_back(sink: IoTDBSink, precision: str) -> None:
    second = timedelta(seconds=1)
    readings = [
        Reading("telemetry", device, start + number * second / 4, {"a": float(number), "t": "x"}, channel)
        for device in "ab"
        for channel in ("", "c")
        for start in (model.EPOCH - second / 2, T0)
        for number in range(4)
    ]
    await write(sink, *readings)
    there = model.merged(filter(None, map(sink.kept, readings)))

    for where in (
        Selection(),
        Selection(device_id="a", start=model.EPOCH - second / 4, end=T0 + second / 4),
        Selection(channel="c", start=model.EPOCH),
    ):
        assert model.selected(there, where) == [each async for each in sink.scan(where)]
        assert model.queried(there, where)[1:4] == await sink.query(where, limit=3, offset=1)
        assert model.latest(there, where) == await sink.latest(where)
        assert model.values_in(model.selected(there, where)) == await sink.count(where)
    where = Selection(start=model.EPOCH - second, end=T0 + second / 2)
    found = await sink.aggregate(where, second, FUNCTIONS)
    model.check_buckets(model.buckets(there, where, second, FUNCTIONS), found)
    if precision == "ms":
        with pytest.raises(ValueError, match="milliseconds"):
            await sink.aggregate(where, timedelta(microseconds=1500))
    await sink.delete(Selection(device_id="a", start=model.EPOCH, end=T0 + second / 4))
    gone = Selection(device_id="a", start=model.EPOCH, end=T0 + second / 4)
    left = [each for each in there if each not in model.selected(there, gone)]
    assert left == [each async for each in sink.scan()]
