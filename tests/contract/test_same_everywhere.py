"""The same data, through every sink into its real server, read back equal."""

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from schemas.reading import Reading, Value
from sinks.base import EVERYTHING, Selection, without_nulls
from tests.lab import model
from tests.lab.stores import StoreLab

T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
TYPES = {"energy.total_wh": "INT64", "uptime": "INT32"}
#: Each measurement's metrics: a metric has one type, as it has on a device.
METRICS: dict[str, dict[str, type]] = {
    "telemetry": {"temperature": float, "humidity": float, "battery": float, "state": str, "charging": bool},
    "fire": {"temperature": float, "smoke_density": float, "co_level": float, "gas_level": float},
    "weather": {"Temperature": float, "wind.speed": float, "Himmel 空": str},
    "energy": {"total_wh": int, "power": float, "uptime": int, "breaker closed": bool, "it's": float},
}
CHANNELS = ("", "sensor-mode/1/3", "sensor-mode/1/4", "digital-mode/12/a", "ü/%/'")
DEVICES = (*(f"ESP-{number:04d}" for number in range(12)), "Gerät 7", "a.b/c", "設備 ☂", "q\"uo'te")
WORDS = ("open", "closed", "", "läuft 🌡", "line\nbreak", 'say "so"', "100 %", "back\\slash")


def _value(source: random.Random, kind: type, metric: str) -> Value:
    if source.random() < 0.03:
        return None
    if kind is bool:
        return source.random() < 0.5
    if kind is str:
        return source.choice(WORDS)
    if kind is int:
        return source.randrange(2**31) if metric == "uptime" else 2**53 + source.randrange(10**9)
    return source.choice([source.uniform(-40, 120), round(source.gauss(21, 3), 2), 0.0, -0.0, 1e-300, float(2**53)])


def dataset(seed: int, size: int) -> list[Reading]:
    """Readings as a plant sends them: many devices, neighbouring microseconds, now and then something to say."""
    source = random.Random(seed)
    readings: dict[tuple[Any, ...], Reading] = {}
    while len(readings) < size:
        measurement = source.choice(list(METRICS))
        metrics = METRICS[measurement]
        chosen = source.sample(list(metrics), source.randint(1, len(metrics)))
        values = {metric: _value(source, metrics[metric], metric) for metric in chosen}
        time = T0 + timedelta(seconds=source.randrange(600), microseconds=source.randrange(3))
        more: dict[str, Any] = {}
        if source.random() < 0.3:
            more["units"] = {metric: source.choice(["°C", "%", "ppm"]) for metric in chosen if source.random() < 0.8}
        if source.random() < 0.3:
            more["tags"] = {"facility_id": source.choice(["f'1", "工場"]), "original_topic": "cmnd/x/1"}
        if source.random() < 0.2 and isinstance(values[chosen[0]], float):
            more |= {"raw": {chosen[0]: source.choice([120, "12O", 1e9])}, "flags": ["clamped", "receive_time"]}
        if source.random() < 0.8:
            more["dialect"] = source.choice([measurement, "generic"])
        reading = Reading(measurement, source.choice(DEVICES), time, values, source.choice(CHANNELS), **more)
        readings[measurement, reading.device_id, reading.channel, time] = reading
    return list(readings.values())


async def filled(lab: StoreLab, batches: Sequence[Sequence[Reading]]) -> list[Reading]:
    """Write batches through a store's sink, and scan it; what it keeps is what it says that it keeps."""
    await lab.apply_schema(TYPES)
    async with lab.opened(TYPES) as sink:
        for batch in batches:
            prepared = sink.prepare(batch)
            assert not prepared.rejected, (lab.name, prepared.rejected)
            await sink.write(prepared.payload)
        found = [reading async for reading in sink.scan()]
        written = {id(reading): reading for batch in batches for reading in batch}.values()
        assert found == model.merged(kept for reading in written if (kept := sink.kept(reading)) is not None), lab.name
        return found


@pytest.mark.parametrize("seed", [1, 2])
async def test_the_same_data_reads_back_equal_from_all_stores(labs: list[StoreLab], seed: int) -> None:
    """Field by field, nulls removed, though batches come in any order and some of them twice."""
    assert len(labs) > 1
    readings = dataset(seed, 2500)
    batches = [readings[start : start + 400] for start in range(0, len(readings), 400)]
    random.Random(seed).shuffle(batches)
    batches += batches[:2]
    expected = said(model.selected(readings, Selection()))

    for lab in labs:
        found = said(await filled(lab, batches))

        assert len(expected) == len(found), lab.name
        for wanted, had in zip(expected, found, strict=True):
            assert wanted == had, lab.name
            assert _classes(wanted) == _classes(had), lab.name


def said(readings: Sequence[Reading]) -> list[Reading]:
    """Without nulls, and without the readings that consist of nothing else."""
    return [reading for reading in map(without_nulls, readings) if reading.values]


def _classes(reading: Reading) -> dict[str, bool]:
    """Which values are booleans: true equals 1."""
    return {metric: isinstance(value, bool) for metric, value in reading.values.items()}


async def test_every_reader_answers_alike(labs: list[StoreLab]) -> None:
    """Pages, newest, counts and aggregates of one store are those of every other."""
    readings = [each for each in dataset(3, 800) if None not in each.values.values()]
    where = Selection(start=T0, end=T0 + timedelta(minutes=5))
    hour = timedelta(hours=1)
    for lab in labs:
        found = await filled(lab, [readings])
        async with lab.opened(TYPES) as sink:
            assert model.queried(found, where)[50:150] == await sink.query(where, limit=100, offset=50), lab.name
            assert model.latest(readings, EVERYTHING) == await sink.latest(EVERYTHING), lab.name
            assert model.values_in(readings) == await sink.count(), lab.name
            assert len(readings) == await sink.count(readings=True), lab.name
            expected = model.buckets(readings, where, timedelta(minutes=1), ("count", "last", "max"))
            model.check_buckets(expected, await sink.aggregate(where, timedelta(minutes=1), ("count", "last", "max")))
            everything = Selection(start=T0 - hour, end=T0 + hour)
            expected = model.buckets(readings, everything, hour, ("mean", "stddev"), ["temperature", "power"])
            model.check_buckets(
                expected, await sink.aggregate(everything, hour, ("mean", "stddev"), ["temperature", "power"])
            )
