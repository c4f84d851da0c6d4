"""What every sink must give back, for every sink that is found, on its real server."""

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas.reading import Reading, Value
from sinks.base import FUNCTIONS, Bucket, Function, Selection
from tests.lab import model
from tests.lab.stores import StoreLab

EPOCH = model.EPOCH
HOUR = timedelta(hours=1)
MICROSECOND = timedelta(microseconds=1)
T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
TYPES = {"counter": "INT64"}
#: The first is stored wide in PostgreSQL, the other narrow.
MEASUREMENTS = ("telemetry", "energy")
DEVICES = ("a", "b", "設備 ü")
CHANNELS = ("", "sensor-mode/1/3")
#: On both sides of the epoch; the last two are a microsecond apart.
TIMES = (EPOCH - HOUR - MICROSECOND, EPOCH - MICROSECOND, EPOCH, T0, T0 + MICROSECOND)


@pytest.fixture
async def sink(lab: StoreLab) -> AsyncIterator[Any]:
    """Each sink, open, on an empty store."""
    await lab.apply_schema(TYPES)
    async with lab.opened(TYPES) as made:
        yield made


def _values(number: int) -> dict[str, Value]:
    """Values of every kind; not every reading has each."""
    every: dict[str, Value] = {
        "temperature": number / 4 - 3,
        "humidity": None if number % 3 == 0 else 40.0 + number,
        "counter": 1000 + number,
        "state": f"state {number % 4} °C\n'",
        "door": number % 2 == 0,
    }
    names = list(every)
    del every[names[number % len(names)]]
    return every


def dataset() -> list[Reading]:
    """Readings of each measurement, device and channel at most of the times."""
    places = itertools.product(MEASUREMENTS, DEVICES, CHANNELS, TIMES)
    readings = []
    for number, (measurement, device, channel, time) in enumerate(places):
        if number % 7 == 5:  # no series has the same times as its neighbour
            continue
        values = _values(number)
        more: dict[str, Any] = {}
        if number % 4 == 1:
            more = {"units": dict.fromkeys(sorted(values)[:2], "°C"), "tags": {"site": "f'1"}, "dialect": "fire"}
        if number % 4 == 2 and "temperature" in values:
            more = {"raw": {"temperature": 120}, "flags": ["clamped"]}
        readings.append(Reading(measurement, device, time, values, channel, **more))
    return readings


async def store(sink: Any, readings: Sequence[Reading]) -> list[Reading]:
    """Write them; what the store must have then."""
    prepared = sink.prepare(readings)
    assert not prepared.rejected
    await sink.write(prepared.payload)
    return model.merged(kept for reading in readings if (kept := sink.kept(reading)) is not None)


async def scanned(sink: Any, where: Selection) -> list[Reading]:
    """What a scan gives."""
    return [found async for found in sink.scan(where)]


#: Each member by itself, and with each of the others.
SELECTIONS = [
    Selection(measurement=measurement, device_id=device, channel=channel, start=start, end=end)
    for measurement, device, channel, start, end in itertools.product(
        (None, "telemetry", "energy"),
        (None, "a", "設備 ü"),
        (None, "", "sensor-mode/1/3"),
        (None, EPOCH - MICROSECOND, T0),
        (None, T0, T0 + MICROSECOND),
    )
]


async def test_every_selection_gives_what_it_says(sink: Any) -> None:
    """Scan, query, latest and count, by each member of a selection alone and together; ends are exact."""
    there = await store(sink, dataset())
    for where in SELECTIONS:
        expected = model.selected(there, where)

        assert expected == await scanned(sink, where), where
        assert model.queried(there, where) == await sink.query(where, limit=1000), where
        assert model.latest(there, where) == await sink.latest(where), where
        assert model.values_in(expected) == await sink.count(where), where
        assert len(expected) == await sink.count(where, readings=True), where


@pytest.mark.parametrize(
    "where",
    [
        Selection(measurement="other"),
        Selection(device_id="nobody"),
        Selection(channel="nowhere"),
        Selection(measurement="energy", device_id="nobody"),
        Selection(start=T0 + HOUR),
        Selection(end=EPOCH - 10 * HOUR),
        Selection(start=T0, end=T0),
        Selection(start=T0 + HOUR, end=T0 - HOUR),
        Selection(device_id="a", start=T0 + 2 * MICROSECOND),
    ],
)
async def test_what_nothing_fits_is_empty(sink: Any, where: Selection) -> None:
    """No error, and nothing."""
    await store(sink, dataset())

    assert [] == await scanned(sink, where)
    assert [] == await sink.query(where)
    assert [] == await sink.latest(where)
    assert await sink.count(where) == 0
    assert await sink.count(where, readings=True) == 0
    span = replace(where, start=where.start or EPOCH, end=where.end or EPOCH + HOUR)
    assert [] == await sink.aggregate(span, HOUR, ("count", "last"))


async def test_an_empty_store_reads_as_empty(sink: Any) -> None:
    """Nothing was ever written."""
    span = Selection(start=EPOCH, end=EPOCH + HOUR)

    assert [] == await scanned(sink, Selection())
    assert [] == await sink.query()
    assert [] == await sink.latest(Selection())
    assert [] == await sink.aggregate(span, HOUR, FUNCTIONS)
    assert await sink.count() == await sink.count(readings=True) == 0
    await sink.delete(Selection(device_id="a"))


async def test_pages_of_a_query_follow_one_another(sink: Any) -> None:
    """However they are cut, pages together are the whole, newest first; nothing lies behind the end."""
    there = await store(sink, dataset())
    for where in (Selection(), Selection(device_id="a"), Selection(measurement="telemetry", channel=""), SPAN):
        expected = model.queried(there, where)
        for limit in (1, 7, len(expected), 1000):
            pages = [
                page
                for offset in range(0, len(expected) + limit, limit)
                for page in await sink.query(where, limit=limit, offset=offset)
            ]
            assert expected == pages, (where, limit)
        assert [] == await sink.query(where, limit=0)
        assert expected[3:8] == await sink.query(where, limit=5, offset=3)
    assert model.queried(there, Selection())[:100] == await sink.query()


SPAN = Selection(start=EPOCH - HOUR, end=T0 + MICROSECOND)


async def test_a_scan_can_be_left(sink: Any) -> None:
    """Half read and closed, it holds nothing that the next call needs."""
    there = await store(sink, dataset())
    for taken in range(6):
        async with aclosing(sink.scan()) as found:
            for expected in there[:taken]:
                assert expected == await anext(found)

    assert there == await scanned(sink, Selection())
    more = [Reading("energy", "later", T0, {"temperature": 1.0})]
    await store(sink, more)
    assert more == await scanned(sink, Selection(device_id="later"))


async def test_a_scan_is_in_order_over_many_rows(sink: Any) -> None:
    """Two measurements and channels of two devices, interleaved, more rows than any page."""
    readings = [
        Reading(
            MEASUREMENTS[number % 2],
            DEVICES[number // 2 % 2],
            T0 + timedelta(microseconds=number // 3),
            {"temperature": float(number)},
            CHANNELS[number // 4 % 2],
        )
        for number in range(24_000)
    ]
    there = await store(sink, list({model_key(each): each for each in readings}.values()))

    assert there == await scanned(sink, Selection())
    assert len(there) == await sink.count()
    middle = Selection(device_id="a", channel="", start=T0 + timedelta(milliseconds=2), end=T0 + 6001 * MICROSECOND)
    assert model.selected(there, middle) == await scanned(sink, middle)
    assert model.queried(there, middle)[1000:1500] == await sink.query(middle, limit=500, offset=1000)


def model_key(reading: Reading) -> tuple[Any, ...]:
    """A reading's place."""
    return reading.measurement, reading.device_id, reading.channel, reading.time


async def test_what_was_written_again_is_read_once(sink: Any) -> None:
    """A correction replaces, in every method."""
    old = [Reading(name, "a", T0, {"temperature": 1.0, "humidity": 2.0}) for name in MEASUREMENTS]
    new = [replace(each, values={"temperature": 5.0, "humidity": 2.0}) for each in old]
    await store(sink, old)
    there = await store(sink, new)

    assert there == await scanned(sink, Selection())
    assert model.queried(there, Selection()) == await sink.query()
    assert there == sorted(await sink.latest(Selection(device_id="a")), key=lambda each: each.measurement)
    assert await sink.count() == 4
    assert await sink.count(readings=True) == 2
    hour = Selection(start=T0 - HOUR, end=T0 + HOUR)
    for bucket in await sink.aggregate(hour, HOUR, ("count", "max"), ["temperature"]):
        assert bucket.values == {"count": 1, "max": 5.0}


# -- aggregate ---------------------------------------------------------------------------------------------------------

_ORIGINS = (EPOCH, EPOCH - 5 * HOUR, T0.replace(microsecond=0), datetime(1931, 3, 1, 23, 59, tzinfo=UTC))
_SPANS = (
    *(timedelta(microseconds=250), timedelta(milliseconds=1500), timedelta(seconds=1), timedelta(minutes=7)),
    *(HOUR, timedelta(days=1), timedelta(hours=36), timedelta(days=7)),
)
_DRAWN_VALUES = {
    "temperature": st.none() | st.integers(-4000, 4000).map(lambda number: number / 4),
    "counter": st.none() | st.integers(-(10**6), 10**6),
    "state": st.none() | st.sampled_from(["open", "closed", "", "°C 温度", "it's"]),
    "door": st.none() | st.booleans(),
}


class Drawn:
    """A small data set, and a question about it."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.every: timedelta = draw(st.sampled_from(_SPANS))
        origin = draw(st.sampled_from(_ORIGINS))

        def moment() -> datetime:
            """Up to a dozen spans on from the origin, often on the border of one."""
            near = EPOCH + (origin - EPOCH) // self.every * self.every
            within = draw(st.just(0) | st.integers(0, self.every // MICROSECOND - 1))
            return near + draw(st.integers(0, 12)) * self.every + within * MICROSECOND

        readings = {}
        for _ in range(draw(st.integers(1, 12))):
            values = draw(st.fixed_dictionaries({}, optional=_DRAWN_VALUES).filter(bool))
            measurement, device = draw(st.sampled_from(MEASUREMENTS)), draw(st.sampled_from("ab"))
            reading = Reading(measurement, device, moment(), values, draw(st.sampled_from(CHANNELS)))
            readings[model_key(reading)] = reading
        self.readings = list(readings.values())
        self.where = Selection(
            measurement=draw(st.sampled_from((None, None, *MEASUREMENTS))),
            device_id=draw(st.sampled_from((None, "a"))),
            channel=draw(st.sampled_from((None, None, *CHANNELS))),
            start=moment(),
            end=moment(),
        )
        self.functions: list[Function] = draw(st.lists(st.sampled_from(FUNCTIONS), min_size=1, unique=True))
        names = st.lists(st.sampled_from([*_DRAWN_VALUES, "nothing"]), min_size=1, unique=True)
        self.metrics: list[str] | None = draw(st.none() | names)

    def __repr__(self) -> str:
        return f"{self.readings} {self.where} {self.every} {self.functions} {self.metrics}"


@st.composite
def drawn(draw: st.DrawFn) -> Drawn:
    """A data set with a question."""
    return Drawn(draw)


_examples = itertools.count()


def _apart(drawn: Drawn, number: int) -> tuple[list[Reading], Selection]:
    """As if the example were alone in the store: its devices are its own."""
    device = drawn.where.device_id
    readings = [replace(each, device_id=f"{each.device_id}-{number}") for each in drawn.readings]
    return readings, replace(drawn.where, device_id=None if device is None else f"{device}-{number}")


def _of(number: int, buckets: Sequence[Bucket]) -> list[Bucket]:
    return [each for each in buckets if each.device_id.endswith(f"-{number}")]


@settings(deadline=None, max_examples=25, suppress_health_check=list(HealthCheck))
@given(drawn=drawn())
async def test_aggregate_is_what_plain_python_computes(sink: Any, drawn: Drawn) -> None:
    """Any functions over any span, cut anywhere, before and after the epoch."""
    number = next(_examples)
    readings, where = _apart(drawn, number)
    there = await store(sink, readings)

    found = await sink.aggregate(where, drawn.every, drawn.functions, drawn.metrics)

    model.check_buckets(
        model.buckets(there, where, drawn.every, drawn.functions, drawn.metrics),
        _of(number, found),
    )


@pytest.mark.parametrize("function", FUNCTIONS)
async def test_each_function_alone(sink: Any, function: Function) -> None:
    """Over every kind of value; what cannot be said of any is no bucket."""
    there = await store(sink, dataset())
    for where in (
        Selection(start=EPOCH - 2 * HOUR, end=EPOCH + HOUR),
        Selection(start=EPOCH - HOUR, end=EPOCH, device_id="a"),
        Selection(start=T0, end=T0 + MICROSECOND, channel=""),
    ):
        found = await sink.aggregate(where, HOUR, [function])

        model.check_buckets(model.buckets(there, where, HOUR, [function]), found)


async def test_the_usual_functions_are_the_default(sink: Any) -> None:
    """Count, mean, least and greatest."""
    there = await store(sink, dataset())
    where = Selection(start=EPOCH - 2 * HOUR, end=EPOCH + HOUR)

    found = await sink.aggregate(where, timedelta(minutes=5))

    model.check_buckets(model.buckets(there, where, timedelta(minutes=5), ("count", "mean", "min", "max")), found)


async def test_large_integers_are_exact(sink: Any) -> None:
    """Where integers have a type of their own they do not pass through doubles."""
    there = await store(
        sink,
        [
            Reading(name, "a", T0 + number * MICROSECOND, {"counter": 2**53 + number})
            for name in MEASUREMENTS
            for number in (3, 1, 5)
        ],
    )
    where = Selection(start=T0, end=T0 + HOUR)

    found = await sink.aggregate(where, HOUR, ("min", "max", "first", "last", "count"))

    model.check_buckets(model.buckets(there, where, HOUR, ("min", "max", "first", "last", "count")), found)


@pytest.mark.parametrize(
    ("where", "every"),
    [
        (Selection(end=T0), HOUR),
        (Selection(start=T0), HOUR),
        (Selection(start=T0, end=T0 + HOUR), timedelta(0)),
        (Selection(start=T0, end=T0 + HOUR), -HOUR),
    ],
)
async def test_a_span_that_is_none_is_an_error(sink: Any, where: Selection, every: timedelta) -> None:
    """It needs its two ends, and spans that last."""
    with pytest.raises(ValueError, match=r"\w+"):
        await sink.aggregate(where, every)


# -- delete ------------------------------------------------------------------------------------------------------------

DELETIONS = [
    Selection(device_id="a"),
    Selection(device_id="設備 ü", measurement="telemetry"),
    Selection(device_id="a", measurement="energy"),
    Selection(device_id="b", channel=""),
    Selection(device_id="b", channel="sensor-mode/1/3", measurement="telemetry"),
    Selection(device_id="a", start=EPOCH - MICROSECOND, end=T0),
    Selection(device_id="a", start=T0, end=T0 + MICROSECOND),
    Selection(device_id="b", start=EPOCH),
    Selection(device_id="b", end=EPOCH),
    Selection(device_id="設備 ü", channel="", measurement="energy", start=EPOCH, end=T0 + HOUR),
]


async def test_delete_takes_what_is_selected_and_nothing_else(sink: Any) -> None:
    """By every member, exact at the ends; no method gives it any more; then it can be written again."""
    there = await store(sink, dataset())
    for where in DELETIONS:
        gone = model.selected(there, where)
        rest = [each for each in there if each not in gone]
        assert gone

        await sink.delete(where)

        assert rest == await scanned(sink, Selection()), where
        assert [] == await sink.query(where)
        assert [] == await sink.latest(where)
        assert model.latest(rest, Selection()) == await sink.latest(Selection()), where
        assert model.values_in(rest) == await sink.count()
        assert len(rest) == await sink.count(readings=True)
        week = Selection(start=EPOCH - HOUR, end=EPOCH + HOUR)
        model.check_buckets(model.buckets(rest, week, HOUR, ("count",)), await sink.aggregate(week, HOUR, ("count",)))

        await store(sink, gone)
        assert there == await scanned(sink, Selection()), where


async def test_deleting_what_is_not_there_is_no_error(sink: Any) -> None:
    """An unknown device, a span without readings, and the same again."""
    there = await store(sink, dataset())
    for where in (
        Selection(device_id="nobody"),
        Selection(device_id="a", measurement="other"),
        Selection(device_id="a", channel="nowhere"),
        Selection(device_id="a", start=T0 + HOUR),
        Selection(device_id="a", start=T0, end=T0),
    ):
        await sink.delete(where)
        assert there == await scanned(sink, Selection()), where

    await sink.delete(Selection(device_id="a"))
    await sink.delete(Selection(device_id="a"))
    assert [each for each in there if each.device_id != "a"] == await scanned(sink, Selection())


async def test_deleting_without_a_device_is_refused(sink: Any) -> None:
    """Nobody empties a store by leaving something out."""
    there = await store(sink, dataset())
    for where in (Selection(), Selection(measurement="telemetry"), Selection(start=EPOCH, end=T0)):
        with pytest.raises(ValueError, match="device"):
            await sink.delete(where)

    assert there == await scanned(sink, Selection())


# -- names -------------------------------------------------------------------------------------------------------------

HOSTILE = (
    *("it's", 'say "so"', "a.b.c", "back`tick", "back``ticks", "new\nline", "tab\there", "a b", "a,b=c", "a\\b", "\\"),
    *("100%", "%41", "%s %%", "$1", "{x}", "/re/.*", ".*", "*", "**", "_", "=", "=a", "@m", "#", "__", "a::field"),
    *("root", "time", "select", "'; DROP TABLE iot_measurements; --", '" OR 1=1', "ünï 設備 🌡", " lead", "trail "),
    *("null", "true", "1", "-1", "1e5", "A", "a|b|c", "[0]", "(x)", "\u00a0", "\u2028", "é"),
)


async def test_hostile_names_anywhere(sink: Any) -> None:
    """As measurement, device, channel, metric, unit, tag and text; each is found, counted and deleted alone."""
    readings = [
        Reading(
            measurement=name,
            device_id=name,
            time=T0,
            values={name: 1.5, f"text {name}": name},
            channel=name,
            units={name: name},
            tags={name: name, "site": name},
            flags=["clamped"],
            raw={name: 7.5},
        )
        for name in HOSTILE
    ]
    there = await store(sink, readings)
    assert there == await scanned(sink, Selection())

    for reading in there:
        name, expected = reading.device_id, [reading]
        for where in (
            Selection(measurement=name),
            Selection(device_id=name),
            Selection(channel=name),
            Selection(measurement=name, device_id=name, channel=name),
        ):
            assert expected == await scanned(sink, where), where
            assert expected == await sink.query(where), where
            assert expected == await sink.latest(where), where
            assert await sink.count(where) == 2
        span = Selection(measurement=name, device_id=name, channel=name, start=T0, end=T0 + HOUR)
        functions: Sequence[Function] = ("count", "last")
        for metrics in (None, [name], [f"text {name}"], [name, f"text {name}"]):
            expected_buckets = model.buckets([reading], span, HOUR, functions, metrics)
            model.check_buckets(expected_buckets, await sink.aggregate(span, HOUR, functions, metrics))

    left = there
    for reading in there:
        await sink.delete(Selection(measurement=reading.measurement, device_id=reading.device_id))
        left = left[1:]
        assert left == await scanned(sink, Selection())


#: What columns, tags, series and InfluxQL's own words are called somewhere.
TAKEN = (
    *("time", "ts", "meta", "device_id", "value", "channel", "measurement", "created_at", "inserted_at", "timestamp"),
    *("_meta", "_field", "_measurement", "_time", "=ts", "==ts", "=", "component_type", "value_int", "unit", "topic"),
    *("Time", "TIMESTAMP", "Value", "VALUE", "s", "t", "count", "mean", "Device", "device", "root", "tags", "name"),
    *("ctid", "xmin", "oid", "tableoid", "user", "order", "group", "start", "metric", "raw", "v", "conflict"),
)


@pytest.mark.parametrize("measurement", MEASUREMENTS)
async def test_metrics_may_be_called_as_parts_of_a_store_are(sink: Any, measurement: str) -> None:
    """A metric `time` is no time and a metric `value` no column of values, in every method."""
    readings = [
        Reading(measurement, "a", T0 + at * MICROSECOND, {name: float(index + at) for index, name in enumerate(TAKEN)})
        for at in range(3)
    ]
    there = await store(sink, readings)
    where = Selection(device_id="a", start=T0, end=T0 + HOUR)

    assert there == await scanned(sink, Selection())
    assert there[::-1] == await sink.query(where)
    assert [there[-1]] == await sink.latest(where)
    assert len(TAKEN) * 3 == await sink.count(where)
    model.check_buckets(model.buckets(there, where, HOUR, FUNCTIONS), await sink.aggregate(where, HOUR, FUNCTIONS))
    for name in TAKEN:
        model.check_buckets(
            model.buckets(there, where, HOUR, ("mean", "count"), [name]),
            await sink.aggregate(where, HOUR, ("mean", "count"), [name]),
        )
    await sink.delete(Selection(device_id="a"))
    assert [] == await scanned(sink, Selection())


# -- the reserved measurements -----------------------------------------------------------------------------------------


def aggregate(revision: int, **values: Value) -> Reading:
    """A closed window."""
    return Reading(
        "aggregates",
        "dev-1",
        T0.replace(minute=0, second=0, microsecond=0),
        {
            "measurement": "telemetry",
            "metric": "temperature",
            "window": "1h",
            "revision": revision,
            "count": 3600,
            "mean": 20.25,
            "min": -1.5,
            "max": 30.0,
            "stddev": 1.25,
            "sum": 72900.0,
            "first": 20.0,
            "last": 21.0,
            "p50": 20.5,
            "p95": 29.5,
            "p99": 29.875,
            **values,
        },
        channel="telemetry|sensor-mode/1/3|temperature|1h",
        units={"mean": "°C"},
    )


ALARM = Reading(
    "alarms",
    "dev-1",
    T0,
    {
        "alarm_id": "0b0c3f0e-93a7-5f0e-8f6c-0d6f3d1a9a11",
        "measurement": "telemetry",
        "metric": "temperature",
        "rule": "too hot: 'kitchen'",
        "severity": "critical",
        "state": "active",
        "unit": "°C",
        "value": 88.5,
        "threshold": 80.0,
        "message": "88.5 °C is above 80 °C",
        "updated_at": "2025-10-05T12:34:56.123456Z",
        "rule_version": 3,
        "replayed": False,
    },
    channel="telemetry||temperature|too hot: 'kitchen'",
    tags={"facility_id": "f1"},
)
BOOKKEEPING = Reading(
    "storage_metadata",
    "influxdb",
    T0.replace(second=0, microsecond=0),
    {
        "batch_id": "store-influxdb-1",
        "storage_type": "influxdb",
        "storage_path": "iotflow",
        "flush_type": "interval",
        "period_start": "2025-10-05T12:34:00Z",
        "period_end": "2025-10-05T12:35:00Z",
        "record_count": 120_000,
        "row_count": 360_000,
        "size_bytes": 2**40,
        "flush_count": 24,
        "success_count": 24,
        "error_count": 0,
        "duration_ms": 812.5,
    },
    channel="worker-1",
)


async def test_the_reserved_measurements_are_readings(sink: Any) -> None:
    """Aggregates, alarms and the bookkeeping come back as any other, with them and apart."""
    others = [Reading("telemetry", "dev-1", T0, {"temperature": 1.0}), Reading("energy", "dev-1", T0, {"power": 1.0})]
    there = await store(sink, [aggregate(1), ALARM, BOOKKEEPING, *others])

    assert there == await scanned(sink, Selection())
    for each in there:
        where = Selection(measurement=each.measurement)
        assert [each] == await scanned(sink, where)
        assert [each] == await sink.query(where)
        assert [each] == await sink.latest(Selection(measurement=each.measurement, device_id=each.device_id))
        assert len(each.values) == await sink.count(where)
    assert model.queried(there, Selection(device_id="dev-1")) == await sink.query(Selection(device_id="dev-1"))
    assert model.latest(there, Selection()) == await sink.latest(Selection())


async def test_a_corrected_window_and_a_later_state_of_an_alarm_replace_the_older(sink: Any) -> None:
    """Aggregates are upserted by revision, alarms by what they are now."""
    await store(sink, [aggregate(1), ALARM])
    resolved = {"state": "resolved", "updated_at": "2025-10-05T12:40:00Z", "resolved_at": "2025-10-05T12:40:00Z"}
    there = await store(sink, [aggregate(2, count=3601, mean=20.5), replace(ALARM, values=ALARM.values | resolved)])

    assert there == await scanned(sink, Selection())
    assert 3601 == (await sink.latest(Selection(measurement="aggregates")))[0].values["count"]
    await sink.delete(Selection(device_id="dev-1", measurement="aggregates"))
    assert [each for each in there if each.measurement == "alarms"] == await scanned(sink, Selection())
