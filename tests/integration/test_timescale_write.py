"""Writing to a real PostgreSQL: columns that come by themselves, what wins, the fast path, exactly once."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from schemas.reading import Reading
from sinks.base import Fatal as FatalVerdict
from sinks.base import FencedError, PartialWriteError, Reject, Retry
from sinks.timescale.layout import be_patient
from sinks.timescale.tables import SCHEMA_LOCK
from tests.lab.stores import StoreLab

T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
GROUP = "iotflow-store-timescale"
TOPIC = "decoded_iot_data"


def reading(values: dict[str, Any], at: int = 0, **more: Any) -> Reading:
    """A reading of a wide measurement, of whose dialect nothing is to be said."""
    named = {"measurement": "telemetry", "device_id": "dev", "dialect": "telemetry", **more}
    return Reading(**named, time=T0 + timedelta(seconds=at), values=values)


def aggregate(revision: int | None, mean: float) -> Reading:
    """A window's aggregate."""
    return Reading("aggregates", "dev", T0, {"revision": revision, "mean": mean}, "c|m|1m")


async def write(sink: Any, readings: Sequence[Reading]) -> None:
    """Prepare and write all of it."""
    prepared = sink.prepare(readings)
    assert not prepared.rejected
    await sink.write(prepared.payload)


async def stored(sink: Any) -> list[Reading]:
    """All that is in the store."""
    return [found async for found in sink.scan()]


@asynccontextmanager
async def opened(lab: StoreLab, count: int = 1, **changes: str) -> AsyncIterator[list[Any]]:
    """Sinks of one place, open."""
    sinks = [lab.sink(**changes) for _ in range(count)]
    try:
        for sink in sinks:
            await sink.open()
        yield sinks
    finally:
        for sink in sinks:
            await sink.close()


async def execute(lab: Any, statement: str) -> list[Any]:
    """Any statement, as the product's user."""
    connection = await lab.connect()
    try:
        return list(await connection.fetch(statement))
    finally:
        await connection.close()


# -- columns -----------------------------------------------------------------------------------------------------------


async def test_two_workers_add_columns_at_the_same_time(timescale: Any) -> None:
    """Each has some of its own, and some that the other wants too."""
    await timescale.apply_schema()
    async with opened(timescale, 2) as (one, two):
        first = [reading({f"m{at}": float(at), "shared": 1.0, "state": "on"}, at) for at in range(0, 30, 2)]
        other = [reading({f"m{at}": float(at), "state": "off", "shared": 2.0}, at) for at in range(1, 30, 2)]
        await asyncio.gather(write(one, first), write(two, other))

        assert await stored(one) == await stored(two) == sorted([*first, *other], key=lambda each: each.time)


async def test_what_no_longer_fits_is_told_by_index(timescale: Any) -> None:
    """Two want a column of one name with different types: the later one's readings are refused, its others stored."""
    await timescale.apply_schema()
    async with opened(timescale, 2) as (one, two):
        texts = [reading({"temperature": 1.0}, 1), reading({"new": "open"}, 2), reading({"new": "shut"}, 3)]
        late = two.prepare(texts)
        assert not late.rejected
        await write(one, [reading({"new": 1.5})])

        with pytest.raises(PartialWriteError) as error:
            await two.write(late.payload)

        assert {index: why.reason for index, why in error.value.rejected.items()} == {
            1: "type_conflict",
            2: "type_conflict",
        }
        assert error.value.rejected[1].error == "new is a text, and its column in telemetry is double precision"
        await write(two, texts[:1])
        assert await stored(two) == [reading({"new": 1.5}), texts[0]]


async def test_a_payload_from_before_a_column_is_written_all_the_same(timescale: Any) -> None:
    """The next batch is prepared while the columns of this one are made."""
    await timescale.apply_schema()
    async with opened(timescale) as (sink,):
        batch = [[reading({"a": 1.0}, 1)], [reading({"a": 2.0, "b": "x"}, 2)], [reading({"a": 3}, 3)]]
        for prepared in [sink.prepare(each) for each in batch]:
            await sink.write(prepared.payload)

        assert await stored(sink) == [each for (each,) in batch]


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


async def refused(sink: Any, readings: Sequence[Reading]) -> dict[int, str]:
    """The words for each reading that is not stored, whether prepare or write finds it; delivery's own way."""
    prepared = sink.prepare(readings)
    found = {index: why.error for index, why in prepared.rejected.items()}
    left = [index for index in range(len(readings)) if index not in found]
    try:
        await sink.write(prepared.payload)
    except PartialWriteError as error:
        return found | {left[index]: why.error for index, why in error.rejected.items()}
    return found


async def test_with_a_plan_columns_come_from_apply_alone(timescale: Any) -> None:
    """Until the setting names the metric it is refused; what `schema apply` makes is seen by a worker that runs."""
    await timescale.apply_schema()
    wanted, plain = reading({"temperature": 1.0, "pressure": 2}), reading({"temperature": 2.0}, 1)
    clock = Clock()
    async with opened(timescale, TIMESCALE_NEW_COLUMNS="plan") as (sink,):
        sink._clock, sink._looked = clock, clock.now
        (why,) = sink.prepare([wanted]).rejected.values()
        assert "telemetry.pressure=number to TIMESCALE_COLUMNS" in why.error
        timescale.env["TIMESCALE_COLUMNS"] = "telemetry.pressure=number"
        await timescale.apply_schema()
        clock.now += 60
        await write(sink, [plain, wanted])

        assert await stored(sink) == [wanted, plain]


@pytest.mark.parametrize(
    ("changes", "before", "after"),
    [
        ({}, "ADD COLUMN level numeric(6,2)", "DROP COLUMN level"),
        ({}, "ADD COLUMN level text", "DROP COLUMN level, ADD COLUMN level double precision"),
        ({"TIMESCALE_MAX_COLUMNS": "4"}, "ADD COLUMN other text", "ADD COLUMN level double precision"),
    ],
)
async def test_a_column_that_is_mended_is_used_at_once(
    timescale: Any, changes: dict[str, str], before: str, after: str
) -> None:
    """By a person, who did what the letter says, while the worker runs."""
    await timescale.apply_schema()
    await execute(timescale, f"ALTER TABLE telemetry {before}")
    clock = Clock()
    batch = [reading({"temperature": 1.0}), reading({"level": 2.0}, 1)]
    async with opened(timescale, **changes) as (sink,):
        sink._clock, sink._looked = clock, clock.now
        clock.now += 60
        assert list(await refused(sink, batch)) == [1]
        await execute(timescale, f"ALTER TABLE telemetry {after}")
        clock.now += 60
        assert await refused(sink, batch) == {}

        assert await stored(sink) == batch


async def test_many_bad_readings_are_one_look(timescale: Any) -> None:
    """What was looked at a moment ago is believed: by the batches that come then, and by those already on their way."""
    await timescale.apply_schema()
    clock = Clock()
    async with opened(timescale) as (sink,):
        sink._clock, sink._looked = clock, clock.now
        looks = []
        look = sink._look

        async def told(connection: Any) -> None:
            looks.append(clock.now)
            await look(connection)

        sink._look = told
        bad = [reading({"temperature": "warm"}), reading({"device": "\0"}), reading({"humidity": 1.0})]
        clock.now += 60
        early = [sink.prepare(bad).payload for _ in range(3)]
        for payload in early:
            with pytest.raises(PartialWriteError) as error:
                await sink.write(payload)
            assert list(error.value.rejected) == [0]
        for _ in range(10):
            clock.now += 0.25
            assert list(sink.prepare(bad).rejected) == [0, 1]
        clock.now += 60
        assert list(await refused(sink, bad)) == [1, 0]

        assert looks == [160.0, 222.5]


async def test_any_name_can_be_a_metric(timescale: Any) -> None:
    """Longer than a column's name may be, a word of SQL, one of PostgreSQL's own columns, quotes of all kinds."""
    await timescale.apply_schema()
    names = [
        "é" * 100,
        "é" * 99 + "e",
        "select",
        "ctid",
        "meta",
        "=meta",
        'a"b',
        "a'b\\",
        "%s $1",
        "Temp",
        "temp",
        "=#",
    ]
    batch = [reading({name: float(at) for at, name in enumerate(names)}), reading({names[0]: "a text"}, 1)]
    async with opened(timescale) as (sink,):
        prepared = sink.prepare(batch)
        assert {1: "type_conflict"} == {index: why.reason for index, why in prepared.rejected.items()}
        await sink.write(prepared.payload)

        assert await stored(sink) == batch[:1]
    async with opened(timescale) as (sink,):
        assert await stored(sink) == batch[:1]


async def test_a_column_that_was_dropped_is_made_again(timescale: Any) -> None:
    """The write finds that it is gone, before anything is stored, and makes it."""
    await timescale.apply_schema()
    async with opened(timescale) as (sink,):
        await write(sink, [reading({"temperature": 1.0})])
        await execute(timescale, "ALTER TABLE telemetry DROP COLUMN temperature CASCADE")
        again = reading({"temperature": 2.0}, 1)
        await write(sink, [again])

        assert again in await stored(sink)


@pytest.mark.parametrize("fast", ["auto", "off"])
@pytest.mark.parametrize(
    ("alteration", "fits"),
    [
        ("humidity TYPE bigint", {"humidity": 61, "battery": 3.5}),
        ("battery TYPE text", {"humidity": 60.5, "battery": "low"}),
    ],
)
async def test_a_type_that_is_altered_under_a_running_worker(
    timescale: Any, alteration: str, fits: dict[str, Any], fast: str
) -> None:
    """No value is stored as another: what does not fit is refused, by index, and what does is stored as it is."""
    await timescale.apply_schema()
    async with opened(timescale, TIMESCALE_FAST_PATH=fast) as (sink,):
        await write(sink, [reading({"humidity": 60.1, "battery": 3.5})])
        old, later = reading({"humidity": 60.1, "battery": 3.5}, 1), reading({"temperature": 20.0}, 2)
        payload = sink.prepare([old, later]).payload
        await execute(timescale, "DROP VIEW IF EXISTS realtime, measurements, recent_activity CASCADE")
        await execute(timescale, f"ALTER TABLE telemetry ALTER COLUMN {alteration}")
        with pytest.raises(PartialWriteError) as error:
            await sink.write(payload)
        assert {index: why.reason for index, why in error.value.rejected.items()} == {0: "type_conflict"}
        new = reading(fits, 3)
        await write(sink, [later, new])

        assert [each for each in await stored(sink) if each.time > T0] == [later, new]


@pytest.mark.parametrize("fast", ["auto", "off"])
async def test_an_altered_column_of_iotflows_own_stops_the_worker(timescale: Any, fast: str) -> None:
    """There is no other way to write it, so nothing is, until a person has mended it; then all goes on."""
    await timescale.apply_schema()
    batch = [reading({"x": 1.5}, measurement="other", dialect="generic")]
    async with opened(timescale, TIMESCALE_FAST_PATH=fast) as (sink,):
        await write(sink, batch)
        for name in ("iot_hourly_stats", "iot_daily_stats", "measurements", "recent_activity", "realtime"):
            await execute(timescale, f"DROP VIEW IF EXISTS {name} CASCADE")
        await execute(timescale, "ALTER TABLE iot_measurements ALTER COLUMN value TYPE text")
        for work in (sink.write(sink.prepare(batch).payload), sink.probe()):
            with pytest.raises(Exception) as error:  # noqa: PT011  classified below
                await work
            verdict = sink.classify(error.value)
            assert isinstance(verdict, FatalVerdict)
            assert "the column value of iot_measurements is text, not double precision" in verdict.remedy
        await execute(
            timescale, "ALTER TABLE iot_measurements ALTER COLUMN value TYPE double precision USING value::float8"
        )
        await sink.probe()
        await write(sink, [replace(batch[0], time=T0 + timedelta(seconds=1))])

        assert [each.values for each in await stored(sink)] == [{"x": 1.5}] * 2


async def test_a_role_that_owns_no_table_is_told_what_to_do(timescale: Any) -> None:
    """It may write, and not add a column."""
    await timescale.apply_schema()
    role = await timescale.account()
    name = role["TIMESCALE_USER"]
    for statement in (
        f"REVOKE {timescale.env['TIMESCALE_USER']} FROM {name}",
        f"ALTER DATABASE {timescale.env['TIMESCALE_DB']} OWNER TO postgres",
        f"GRANT TEMP, CONNECT ON DATABASE {timescale.env['TIMESCALE_DB']} TO {name}",
    ):
        await timescale._as_admin(statement)
    await execute(timescale, f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public TO {name}")
    async with opened(timescale, **role) as (sink,):
        await write(sink, [reading({"temperature": 1.0})])
        with pytest.raises(Exception) as error:  # noqa: PT011  classified below
            await write(sink, [reading({"new": 1.0})])

        verdict = sink.classify(error.value)
        assert isinstance(verdict, FatalVerdict)
        assert "TIMESCALE_NEW_COLUMNS=plan" in verdict.remedy
    await execute(timescale, f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {name}")
    await timescale._as_admin(f"REVOKE ALL ON DATABASE {timescale.env['TIMESCALE_DB']} FROM {name}")


@pytest.mark.parametrize(
    ("statement", "says"),
    [
        ("DROP TABLE telemetry CASCADE", "the table telemetry is missing: run iotflow schema apply"),
        ("ALTER TABLE telemetry DROP COLUMN channel CASCADE", "it lacks channel"),
    ],
)
async def test_a_table_that_is_not_ours_is_fatal_at_once(timescale: Any, statement: str, says: str) -> None:
    """It is found when the sink is opened, not by the first reading."""
    await timescale.apply_schema()
    await execute(timescale, statement)
    sink = timescale.sink()
    with pytest.raises(Exception) as error:  # noqa: PT011  classified below
        await sink.open()

    verdict = sink.classify(error.value)
    assert isinstance(verdict, FatalVerdict)
    assert says in verdict.remedy


# -- what wins ---------------------------------------------------------------------------------------------------------


def merged(older: Reading | None, newer: Reading) -> Reading:
    """A stored reading after another one of its instant."""
    values = {metric: value for metric, value in newer.values.items() if value is not None}
    if older is None:
        return replace(newer, values=values)
    flags = newer.flags if older.values.keys() <= values.keys() or newer.flags else older.flags
    return replace(newer, values={**older.values, **values}, flags=flags)


@pytest.mark.parametrize("fast", ["auto", "off"])
@pytest.mark.parametrize("seed", range(4))
async def test_batch_after_batch_is_reading_after_reading(timescale: Any, fast: str, seed: int) -> None:
    """Nulls and absent metrics take nothing away; a whole correction loses the flag, a partial one keeps it."""
    draw = random.Random(seed)
    await timescale.apply_schema()
    model: dict[tuple[str, datetime, str], Reading] = {}
    async with opened(timescale, TIMESCALE_FAST_PATH=fast) as (sink,):
        for _ in range(25):
            batch = []
            # A batch never has two of one instant here: how those are merged is shown without a server.
            for device, at, channel in draw.sample([(d, a, c) for d in "xy" for a in range(4) for c in ("", "1")], 6):
                names = draw.sample(["temperature", "humidity", "battery", "extra"], draw.randint(1, 4))
                values = {name: draw.choice([None, 1.0, 2.0, 3.0]) for name in names}
                if any(value is not None for value in values.values()):
                    flags = draw.choice([[], [], ["clamped"]])
                    batch.append(reading(values, at, device_id=device, channel=channel, flags=flags))
            await write(sink, batch)
            for each in batch:
                place = each.device_id, each.time, each.channel
                model[place] = merged(model.get(place), each)

        assert await stored(sink) == [model[place] for place in sorted(model)]
        before = await execute(timescale, "SELECT xmin::text, * FROM telemetry ORDER BY device_id, ts, channel")
        await write(sink, list(model.values()))
        assert before == await execute(timescale, "SELECT xmin::text, * FROM telemetry ORDER BY device_id, ts, channel")


@pytest.mark.parametrize(
    ("revisions", "kept"), [([1, 2, 1], 1), ([2, 2], 1), ([1, None], 0), ([None, 1], 1), ([5, 4, 6, 5], 2)]
)
async def test_an_aggregate_is_replaced_by_no_older_revision(
    timescale: Any, revisions: list[int | None], kept: int
) -> None:
    """A window that is sent again late does not undo its correction."""
    await timescale.apply_schema()
    async with opened(timescale) as (sink,):
        for at, revision in enumerate(revisions):
            await write(sink, [aggregate(revision, float(at))])

        (found,) = await stored(sink)
        assert found.values == {"revision": revisions[kept], "mean": float(kept)}


async def test_a_batch_is_stored_in_all_tables_or_in_none(timescale: Any) -> None:
    """A reading that the wide table refuses takes the narrow rows of its batch with it."""
    await timescale.apply_schema()
    bad = reading({"conflict": "poison"})
    await timescale.refuse([bad])
    async with opened(timescale) as (sink,):
        with pytest.raises(Exception) as error:  # noqa: PT011  classified below
            await write(sink, [Reading("energy", "dev", T0, {"power": 1.0}), reading({"temperature": 1.0}, 1), bad])

        assert isinstance(sink.classify(error.value), Reject)
        assert not await stored(sink)


# -- the fast path -----------------------------------------------------------------------------------------------------


async def test_the_fast_path_leaves_and_comes_back(timescale: Any) -> None:
    """A batch that is stored already goes the other way, as do the next ones for a while; all of them are stored."""
    await timescale.apply_schema()
    async with opened(timescale) as (sink,):
        ways: list[str] = []
        straight, staged = sink._writer._straight, sink._writer.staged

        async def told(connection: Any, stack: Any) -> bool:
            went: bool = await straight(connection, stack)
            ways.append("fast" if went else "conflict")
            return went

        async def slow(connection: Any, stack: Any) -> None:
            ways.append("staged")
            await staged(connection, stack)

        sink._writer._straight, sink._writer.staged = told, slow
        for at in [0, 0, *range(1, 19)]:
            await write(sink, [reading({"temperature": float(at)}, at)])

        assert ways == ["fast", "conflict", *["staged"] * 17, "fast", "fast"]
        assert len(await stored(sink)) == 19


async def test_a_table_with_row_security_is_never_copied_to(timescale: Any) -> None:
    """PostgreSQL does not let anybody; the sink goes the other way, with this table alone."""
    await timescale.apply_schema()
    await execute(timescale, "ALTER TABLE telemetry ENABLE ROW LEVEL SECURITY")
    await execute(timescale, "ALTER TABLE telemetry FORCE ROW LEVEL SECURITY")
    await execute(timescale, "CREATE POLICY everybody ON telemetry USING (true) WITH CHECK (true)")
    async with opened(timescale) as (sink,):
        batch = [reading({"temperature": 1.0}, at) for at in range(2)]
        for each in batch:
            await write(sink, [each])
        straight = sink._writer._straight
        ways = []

        async def told(connection: Any, stack: Any) -> bool:
            went: bool = await straight(connection, stack)
            ways.append((stack.table.name, went))
            return went

        sink._writer._straight = told
        other = Reading("fire", "dev", T0 + timedelta(seconds=9), {"smoke_density": 1.0}, dialect="fire")
        await write(sink, [reading({"temperature": 2.0}, 5), other])

        assert ways == [("fire", True)]
        assert await stored(sink) == [*batch, reading({"temperature": 2.0}, 5), other]


# -- exactly once ------------------------------------------------------------------------------------------------------


async def test_offsets_move_with_their_data(timescale: Any) -> None:
    """From nothing to the first, then on; groups and partitions do not meet, and an empty batch moves them too."""
    await timescale.apply_schema()
    async with opened(timescale) as (sink,):
        assert await sink.offsets(GROUP) == {}
        await sink.write_at(
            sink.prepare([reading({"a": 1.0})]).payload, GROUP, {(TOPIC, 0): (None, 5), (TOPIC, 1): (None, 7)}
        )
        await sink.write_at(sink.prepare([]).payload, GROUP, {(TOPIC, 1): (7, 9)})
        await sink.write_at(sink.prepare([]).payload, "other", {(TOPIC, 1): (None, 1)})

        assert await sink.offsets(GROUP) == {(TOPIC, 0): 5, (TOPIC, 1): 9}
        assert await sink.offsets("other") == {(TOPIC, 1): 1}
        assert await stored(sink) == [reading({"a": 1.0})]


@pytest.mark.parametrize(
    "progress",
    [
        {(TOPIC, 0): (4, 6)},
        {(TOPIC, 0): (None, 6)},
        {(TOPIC, 9): (5, 6)},
        {(TOPIC, 0): (5, 6), (TOPIC, 1): (6, 8)},
        {(TOPIC, 0): (5, 6), (TOPIC, 1): (None, 8)},
    ],
)
async def test_whoever_lost_a_partition_stores_nothing(timescale: Any, progress: Any) -> None:
    """One partition of several is enough."""
    await timescale.apply_schema()
    async with opened(timescale) as (sink,):
        await sink.write_at(sink.prepare([]).payload, GROUP, {(TOPIC, 0): (None, 5), (TOPIC, 1): (None, 7)})
        with pytest.raises(FencedError, match=TOPIC):
            await sink.write_at(sink.prepare([reading({"a": 1.0})]).payload, GROUP, progress)

        assert await sink.offsets(GROUP) == {(TOPIC, 0): 5, (TOPIC, 1): 7}
        assert not await stored(sink)


async def test_what_is_refused_moves_no_offset(timescale: Any) -> None:
    """The data and the offsets are one."""
    await timescale.apply_schema()
    bad = reading({"conflict": "poison"})
    await timescale.refuse([bad])
    async with opened(timescale) as (sink,):
        with pytest.raises(Exception) as error:  # noqa: PT011  classified below
            await sink.write_at(sink.prepare([bad]).payload, GROUP, {(TOPIC, 0): (None, 5)})

        assert isinstance(sink.classify(error.value), Reject)
        assert await sink.offsets(GROUP) == {}


@pytest.mark.parametrize("begin", [None, 0])
async def test_of_many_who_believe_a_partition_is_theirs_one_goes_on(timescale: Any, begin: int | None) -> None:
    """Six workers with the same offsets, step by step: every step is stored by exactly one of them."""
    await timescale.apply_schema()
    async with opened(timescale, 6) as sinks:
        if begin is not None:
            await sinks[0].write_at(
                sinks[0].prepare([]).payload, GROUP, dict.fromkeys(((TOPIC, 0), (TOPIC, 1)), (None, 0))
            )

        async def step(number: int, sink: Any, known: int | None, to: int) -> bool:
            batch = [reading({"worker": float(number)}, to, device_id=f"w-{number}")]
            places = [(TOPIC, 0), (TOPIC, 1)]
            random.Random(number).shuffle(places)
            try:
                await sink.write_at(sink.prepare(batch).payload, GROUP, dict.fromkeys(places, (known, to)))
            except FencedError:
                return False
            return True

        known = begin
        for to in range(1, 6):
            won = await asyncio.gather(*(step(number, sink, known, to) for number, sink in enumerate(sinks)))
            assert sum(won) == 1
            known = to

        assert await sinks[0].offsets(GROUP) == {(TOPIC, 0): 5, (TOPIC, 1): 5}
        assert [each.time for each in sorted(await stored(sinks[0]), key=lambda each: each.time)] == [
            T0 + timedelta(seconds=to) for to in range(1, 6)
        ]


async def test_offsets_without_a_table_name_the_command(timescale: Any) -> None:
    """It was made by no earlier version."""
    await timescale.apply_schema()
    await execute(timescale, "DROP TABLE sink_offsets")
    async with opened(timescale) as (sink,):
        with pytest.raises(Exception) as error:  # noqa: PT011  classified below
            await sink.offsets(GROUP)

        assert "run iotflow schema apply" in sink.classify(error.value).remedy


async def until_waiting(connection: Any) -> None:
    """Return when somebody waits to have the table alone."""
    statement = (
        "SELECT count(*) FROM pg_locks WHERE relation = 'telemetry'::regclass AND mode = 'AccessExclusiveLock' "
        "AND NOT granted"
    )
    while not await connection.fetchval(statement):  # noqa: ASYNC110  only the server knows
        await asyncio.sleep(0.01)


async def test_a_new_column_waits_for_a_reader_and_holds_nobody_up(timescale: Any) -> None:
    """Whoever reads a table for long keeps a column from being made; meanwhile another worker writes to the table."""
    await timescale.apply_schema()
    reader, watcher = await timescale.connect(), await timescale.connect()
    new = reading({"new": 1.0})
    verdicts = []
    async with opened(timescale, 2) as (one, other):

        async def insist() -> None:
            while True:
                try:
                    await write(one, [new])
                except Exception as error:  # noqa: BLE001  classified below
                    verdicts.append(one.classify(error))
                    await asyncio.sleep(verdicts[-1].after_s or 0)
                else:
                    return

        async def go_on() -> None:
            for at in range(1, 10**6):
                batch = [reading({"temperature": float(at)}, at)]
                await write(other, batch)
                written.extend(batch)

        written: list[Reading] = []
        async with reader.transaction():
            await reader.fetch("SELECT * FROM telemetry")
            insisting = asyncio.create_task(insist())
            await until_waiting(watcher)
            going = asyncio.create_task(go_on())
            await asyncio.sleep(3)
            during = len(written)
            assert not insisting.done()
        await insisting
        going.cancel()
        await asyncio.wait([going])

        assert during >= 5
        assert verdicts
        for verdict in verdicts:
            assert isinstance(verdict, Retry)
            assert "a new column of telemetry waits for whoever has that table in use" in verdict.why
        found = await stored(one)
        assert found[0] == new
        assert found[1 : len(written) + 1] == written
    await reader.close()
    await watcher.close()


async def test_the_advice_names_whoever_holds_the_table(timescale: Any) -> None:
    """The statement in the text gives the reader's connection, and not one that waits too."""
    await timescale.apply_schema()
    reader = await timescale.connect()
    async with opened(timescale) as (sink,), reader.transaction():
        await reader.fetch("SELECT * FROM telemetry")
        with pytest.raises(Exception, match="who that is, says") as error:
            await write(sink, [reading({"new": 1.0})])
        (found,) = await execute(timescale, error.value.args[0].partition("says ")[2])

        assert found["pid"] == reader.get_server_pid()
    await reader.close()


async def test_a_change_of_the_tables_is_waited_for(timescale: Any) -> None:
    """While `schema apply` is at work no column is made; the text says so, and later it is."""
    await timescale.apply_schema()
    other = await timescale.connect()
    async with opened(timescale) as (sink,):
        await other.execute("SELECT pg_advisory_lock($1)", SCHEMA_LOCK)
        with pytest.raises(Exception, match="or iotflow schema apply, has changed the tables") as error:
            await write(sink, [reading({"new": 1.0})])
        assert isinstance(sink.classify(error.value), Retry)
        await other.execute("SELECT pg_advisory_unlock($1)", SCHEMA_LOCK)
        await write(sink, [reading({"new": 1.0})])

        assert await stored(sink) == [reading({"new": 1.0})]
    await other.close()


async def test_a_vacuum_is_given_the_time_to_give_way(timescale: Any) -> None:
    """The server takes a vacuum of its own away from whoever has waited for `deadlock_timeout`, and nobody sooner."""
    await timescale.apply_schema()
    mine, other = await timescale.connect(), await timescale.connect()

    async def patience() -> str:
        async with mine.transaction():
            await be_patient(mine, "telemetry")
            found: str = await mine.fetchval("SHOW lock_timeout")
            return found

    short = await patience()
    async with other.transaction():
        await other.execute("LOCK TABLE fire IN SHARE UPDATE EXCLUSIVE MODE")
        assert await patience() == short == "200ms"
        await other.execute("LOCK TABLE telemetry IN SHARE UPDATE EXCLUSIVE MODE")
        assert await patience() == "1200ms"
    assert await patience() == short
    await mine.close()
    await other.close()
