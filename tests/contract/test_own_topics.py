"""What iotflow finds is stored as readings are, by the same way: for every sink that is found, on its real server."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec.structs import replace

from schemas import wire
from schemas.names import joined
from schemas.quality import quality, written
from schemas.reading import Reading, Value
from sinks.base import Selection
from tests.lab.apps import until
from tests.lab.bench import Bench, Held, Record
from tests.lab.stores import StoreLab

T0 = datetime(2025, 10, 5, 12, tzinfo=UTC)
DEVICE = "f2-e4fd45f654be"
#: A series whose names hold what joins them.
SERIES = ("io|t", "sensor-mode/1/3", "CO % of range")


def aggregate(revision: int, window: str = "1h", **values: Value) -> Reading:
    """A closed window."""
    measurement, _, metric = SERIES
    figures = {"mean": 20.25, "min": -1.5, "max": 30.0, "sum": 72900.0, "first": 20.0, "last": 21.0}
    return Reading(
        "aggregates",
        DEVICE,
        T0,
        {
            "measurement": measurement,
            "metric": metric,
            "window": window,
            "revision": revision,
            "count": 3600,
            "stddev": None,
            **figures,
            **values,
        },
        channel=joined(*SERIES, window),
        units=dict.fromkeys(figures, "%"),
        dialect="aggregates",
    )


def alarm(state: str, minute: int, **values: Value) -> Reading:
    """An alarm as it is after some minutes."""
    measurement, _, metric = SERIES
    return Reading(
        "alarms",
        DEVICE,
        T0,
        {
            "alarm_id": "0b0c3f0e-93a7-5f0e-8f6c-0d6f3d1a9a11",
            "measurement": measurement,
            "metric": metric,
            "rule": "co: 'high'",
            "rule_version": 3,
            "kind": "CO",
            "severity": "WARN",
            "label": "HIGH",
            "state": state,
            "unit": "ppm",
            "value": 88.5,
            "threshold": 50.0,
            "score": 1.77,
            "expected_low": 0.0,
            "expected_high": 50.0,
            "detector_version": 1,
            "message": "CO 88.5 ppm is at or above 50 ppm (WARN)",
            "measured_at": (T0 + timedelta(minutes=minute)).isoformat(),
            "updated_at": (T0 + timedelta(minutes=minute)).isoformat(),
            "facility_id": "f1",
            "replayed": False,
            **values,
        },
        channel=joined(*SERIES, "co: 'high'"),
        tags={"facility_id": "f1", "location": "hall"},
        dialect="alarms",
    )


class Ways:
    """The way from topics into a store: delivery, with a store's real sink."""

    def __init__(self, sink: Any) -> None:
        self.sink = sink
        self.bench = Bench(sink, batch_size=50)
        self._offset = 0

    async def send(self, topic: str, values: Sequence[bytes | None]) -> None:
        """A chunk of a topic, until it is acknowledged."""
        records = [Record(self._offset + at, value, b"key", topic=topic) for at, value in enumerate(values)]
        self._offset += len(values)
        held = Held(self.bench, records, 1)
        self.bench.put_in.append(held)
        await self.bench.delivery.put(held)
        await self.bench.done()

    async def stored(self, measurement: str) -> list[Reading]:
        """All of a measurement."""
        return [found async for found in self.sink.scan(Selection(measurement=measurement))]


@asynccontextmanager
async def _running(sink: Any) -> AsyncIterator[Ways]:
    ways = Ways(sink)
    task = asyncio.create_task(ways.bench.delivery.run())
    try:
        await until(lambda: ways.bench.delivery.ready, 30)
        yield ways
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def ways(lab: StoreLab) -> AsyncIterator[Ways]:
    """Into each store, which is empty; types set for devices' metrics of these names say nothing of iotflow's own."""
    types = dict.fromkeys(("value", "mean", "score", "kind", "sum"), "INT64")
    await lab.apply_schema(types)
    async with _running(lab.sink(types)) as made:
        yield made
        assert [dead.error for dead in made.bench.letters.sent] == []


def kept(ways: Ways, *readings: Reading) -> list[Reading]:
    """What the store must give back."""
    return sorted(map(ways.sink.kept, readings), key=lambda each: each.channel)


async def test_windows_are_corrected_by_higher_revisions(ways: Ways) -> None:
    """In a later batch and in the same one; whoever delivers them again changes nothing."""
    first, other = aggregate(1), aggregate(1, "1d", mean=19.5)
    second = aggregate(2, count=3601, mean=20.5, stddev=1.25)
    third = aggregate(3, count=3602, mean=20.75, stddev=1.5)

    await ways.send("aggregates", [wire.write(first), wire.write(other)])
    assert kept(ways, first, other) == await ways.stored("aggregates")

    await ways.send("aggregates", [wire.write(second)])
    assert kept(ways, second, other) == await ways.stored("aggregates")

    for _ in range(2):
        await ways.send("aggregates", [wire.write(each) for each in (second, third)])
        assert kept(ways, third, other) == await ways.stored("aggregates")


async def test_an_alarm_is_what_it_became(ways: Ways) -> None:
    """One row from when it is raised to when it is resolved; what no longer holds is said as an empty text."""
    raised = alarm("ACTIVE", 0)
    told = alarm("ACKNOWLEDGED", 3, acknowledged_at="2025-10-05T12:03:00.000000Z", acknowledged_by="kim")
    worse = alarm(
        "ACTIVE", 5, severity="EMERGENCY", value=210.5, threshold=200.0, acknowledged_at="", acknowledged_by=""
    )
    done = replace(worse, values={**worse.values, "state": "RESOLVED", "resolved_at": "2025-10-05T12:09:00.000000Z"})

    for state in (raised, told, worse, done):
        await ways.send("alarms", [wire.write(state)])
        assert kept(ways, state) == await ways.stored("alarms")

    await ways.send("alarms", [wire.write(raised), None, wire.write(done)])
    await ways.send("alarms", [None])
    assert kept(ways, done) == await ways.stored("alarms")


async def test_quality_events_are_stored(ways: Ways) -> None:
    """As they are made; two kinds at one instant are two."""
    events = [
        quality("over_budget", DEVICE, T0, "it sends 900 readings a second, and may 100", count=900, facility="f1"),
        quality("fast_clock", DEVICE, T0, "its clock is 400 s ahead"),
        quality("nulls", DEVICE, T0, "null", measurement=SERIES[0], channel=SERIES[1], metric=SERIES[2]),
    ]
    await ways.send("quality", [written(event)[1] for event in events])
    await ways.send("quality", [written(events[0])[1]])
    assert kept(ways, *(reading for _, reading in events)) == await ways.stored("quality")


async def test_what_is_of_different_measurements_is_different(ways: Ways) -> None:
    """The measurement is part of a series, and so of its windows."""
    one, other = (
        replace(
            aggregate(1), channel=joined(name, "", "temperature", "1h"), values={**aggregate(1).values, "mean": mean}
        )
        for name, mean in (("fire", 1.5), ("telemetry", 2.5))
    )
    await ways.send("aggregates", [wire.write(one), wire.write(other)])
    assert kept(ways, one, other) == await ways.stored("aggregates")


async def test_findings_and_readings_in_one_batch(ways: Ways) -> None:
    """Each in its place, found with the device's and deleted with them."""
    reading = Reading("telemetry", DEVICE, T0, {"temperature": 21.5}, dialect="telemetry")
    event = quality("fast_clock", DEVICE, T0, "its clock is 400 s ahead")[1]
    all_of_it = [reading, aggregate(1), alarm("ACTIVE", 0), event]
    for topic, each in zip(("decoded", "aggregates", "alarms", "quality"), all_of_it, strict=True):
        held = Held(ways.bench, [Record(0, wire.write(each), b"key", topic=topic)], 1)
        ways.bench.put_in.append(held)
        await ways.bench.delivery.put(held)
    await ways.bench.done()
    found = [each async for each in ways.sink.scan(Selection(device_id=DEVICE))]
    assert kept(ways, *all_of_it) == sorted(found, key=lambda each: each.channel)
    await ways.sink.delete(Selection(device_id=DEVICE))
    assert [] == [each async for each in ways.sink.scan(Selection(device_id=DEVICE))]
