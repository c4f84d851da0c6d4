"""What only the real InfluxDB can say of the sink: names, tags, rights, retention."""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync

from app.settings import load
from schemas.reading import Reading
from sinks import influxdb
from sinks.base import Fatal, PartialWriteError, Reject, Selection
from tests.lab.stores import StoreLab

pytestmark = pytest.mark.parametrize("lab", ["influxdb"], indirect=True)

T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
NAMES = [
    *("a,b", "a b", "a=b", 'a"b', "a'b", "%", "%a", "%25", "#a", "_a", "_field", "_meta", "_measurement", "time"),
    *("device_id", "channel", "site", "a\\", "\\", "a\\,b", "a\\ ", "\n", "a\nb", "\t", "\0", "a\0b", " ", " a", "a "),
    *("\r\n", "\ufffd", "\u00a0", "\u200b", "ü設🌡", "=", ",", '"', "''", "-", "$device", "*", "/x/", ".", "a::float"),
    *("\x7f", "\ufeff", "\x85", "\u2028", "'; DROP MEASUREMENT m; --", "", "\U0010ffff"),
]
ODD = st.text(st.sampled_from(" ,=\"'\\%#_\n\t\r\0\ufffd\u00a0aé🌡0;$")) | st.text()


def reading(device: str = "dev-1", at: int = 0, **more: Any) -> Reading:
    values = more.pop("values", {"temperature": 20.5})
    measurement = more.pop("measurement", "telemetry")
    return Reading(measurement, device, T0 + timedelta(microseconds=at), values, **more)


async def stored(sink: Any, **how: Any) -> list[Reading]:
    return [found async for found in sink.scan(Selection(**how))]


async def round_trip(sink: Any, readings: list[Reading]) -> None:
    """Writes, and finds the same again."""
    prepared = sink.prepare(readings)
    assert not prepared.rejected
    await sink.write(prepared.payload)
    for each in readings:
        more = {"device_id": each.device_id, "measurement": each.measurement}
        assert each in await stored(sink, start=each.time, end=each.time + timedelta(microseconds=1), **more)


@pytest.fixture
async def sink(lab: StoreLab) -> AsyncIterator[Any]:
    await lab.apply_schema()
    async with lab.opened() as made:
        yield made


@pytest.mark.parametrize("changes", [{}, {"INFLUXDB_TAGS": "site", "INFLUXDB_GZIP": "true"}])
async def test_any_name_anywhere_reads_back(lab: StoreLab, changes: dict[str, str]) -> None:
    """As measurement, device, channel, metric, tag and text, in order."""
    await lab.apply_schema()
    sink = lab.sink(**changes)
    await sink.open()
    readings = [
        made
        for name in NAMES
        for made in (
            reading("m", measurement=name),
            reading("c", channel=name, values={name: 1.0, "text": name}),
            reading(name, measurement="d", tags={"site": name, "other": name}),
        )
    ]
    await sink.write(sink.prepare(readings).payload)

    wanted = {(each.device_id, each.time, each.channel, each.measurement): each for each in readings}
    assert [wanted[place] for place in sorted(wanted)] == await stored(sink)
    assert sum(len(each.values) for each in readings) == await sink.count()
    await sink.close()


_times = itertools.count()


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(st.tuples(ODD, ODD, ODD, ODD, ODD), min_size=1, max_size=15, unique_by=lambda parts: parts[:3]))
def test_random_text_reads_back(lab: StoreLab, made: list[tuple[str, ...]]) -> None:
    """Nothing is altered on its way, wherever it stands."""

    async def run() -> None:
        await lab.apply_schema()
        at = next(_times)
        async with lab.opened() as sink:
            await round_trip(
                sink,
                [
                    # A metric has one type in all of a measurement: numbers and texts are kept apart.
                    reading(
                        device, at, measurement=f"{one}#", channel=channel, values={f"n{metric}": 1.5, "text": text}
                    )
                    for one, device, channel, metric, text in made
                ],
            )

    asyncio.run(run())


async def test_times_to_the_ends_of_the_range(sink: Any) -> None:
    years = [
        datetime(1677, 9, 21, 0, 12, 43, 145225, tzinfo=UTC),
        datetime(2262, 4, 11, 23, 47, 16, 854775, tzinfo=UTC),
    ]
    years += [datetime(year, 1, 1, tzinfo=UTC) for year in (1700, 1969, 2200)]

    await round_trip(sink, [Reading("telemetry", "dev-1", time, {"a": 1.0}) for time in years])

    assert sorted(years) == [each.time for each in await stored(sink)]
    everything = {"start": datetime(1, 1, 1, tzinfo=UTC), "end": datetime(9999, 1, 1, tzinfo=UTC)}
    assert len(years) == len(await stored(sink, **everything))


async def test_flux_finds_points_by_their_own_names(lab: StoreLab, sink: Any) -> None:
    """Names with spaces, commas and equals signs are stored as they are."""
    await sink.write(sink.prepare([reading("a b,c=d", values={"e f,g=h": 1.5})]).payload)

    query = f'from(bucket: "{lab.env["INFLUXDB_BUCKET"]}") |> range(start: 0) |> filter(fn: (r) => r._field != "_meta")'
    where = {"url": lab.env["INFLUXDB_URL"], "token": lab.env["INFLUXDB_TOKEN"], "org": lab.env["INFLUXDB_ORG"]}
    async with InfluxDBClientAsync(**where) as client:
        (table,) = await client.query_api().query(query)

    (record,) = table.records
    assert ("telemetry", "a b,c=d", "e f,g=h", 1.5) == (
        record["_measurement"],
        record["device_id"],
        record["_field"],
        record["_value"],
    )


async def test_a_promoted_tag_that_changes_is_a_second_point(lab: StoreLab) -> None:
    """The price of a tag, which the setting's description names."""
    await lab.apply_schema()
    sink = lab.sink(INFLUXDB_TAGS="site")
    await sink.open()
    readings = [reading(tags={"site": site}) for site in ("a", "b")]
    await sink.write(sink.prepare(readings).payload)

    assert readings == await stored(sink)
    await sink.close()


async def test_a_line_that_the_server_cannot_parse_is_named(sink: Any) -> None:
    """By its place among the readings; of a batch with one nothing is stored, which delivery knows."""
    batch = [reading("a"), reading("b" * 70_000), reading("c", values={"text": 'x\n"y"'})]
    with pytest.raises(PartialWriteError) as error:
        await sink.write(sink.prepare(batch).payload)

    (place, why), *more = error.value.rejected.items()
    assert not more
    assert (1, "refused") == (place, why.reason)
    assert "max key length exceeded" in why.error
    assert len(why.error) < 100


async def test_what_is_older_than_the_retention_is_named_line_by_line(lab: StoreLab) -> None:
    """In one answer, whatever the order; what is younger is stored."""
    plan = await influxdb.apply_schema(load({**lab.env, "INFLUXDB_RETENTION_DAYS": "1"}).sinks["influxdb"])  # type: ignore[arg-type]
    assert "keeps its points 1 d" in plan.changes[0].detail
    now = datetime.now(UTC)
    batch = [
        Reading("telemetry", "dev-1", now - timedelta(hours=hours), {"a": 1.0}, dialect="telemetry")
        for hours in (30, 1, 200, 2, 25, 3)
    ]
    async with lab.opened() as sink:
        with pytest.raises(PartialWriteError) as error:
            await sink.write(sink.prepare(batch).payload)

        assert {0, 2, 4} == set(error.value.rejected)
        assert {"too_old"} == {why.reason for why in error.value.rejected.values()}
        assert batch[2].time.isoformat() in error.value.rejected[2].error
        assert "24h0m0s" in error.value.rejected[2].error
        assert sorted([batch[1], batch[3], batch[5]], key=lambda each: each.time) == await stored(sink)


async def test_an_old_reading_in_a_batch_with_a_conflict_is_found_by_halves(lab: StoreLab) -> None:
    """Then the answer is about the conflict alone; without it, it is about what is old."""
    await influxdb.apply_schema(load({**lab.env, "INFLUXDB_RETENTION_DAYS": "1"}).sinks["influxdb"])  # type: ignore[arg-type]
    now = datetime.now(UTC)
    number, text = (Reading("telemetry", "dev-1", now, {"a": value}) for value in (1.0, "x"))
    old = Reading("telemetry", "dev-1", now - timedelta(days=9), {"a": 1.0})
    async with lab.opened() as sink, lab.opened() as other:
        await other.write(other.prepare([number]).payload)
        with pytest.raises(influxdb.AnswerError) as conflict:
            await sink.write(sink.prepare([text, old]).payload)
        with pytest.raises(PartialWriteError) as expired:
            await sink.write(sink.prepare([number, old]).payload)

    verdict = sink.classify(conflict.value)
    assert isinstance(verdict, Reject)
    assert verdict.rejected.reason == "type_conflict"
    assert "field type conflict" in verdict.rejected.error
    assert [1] == list(expired.value.rejected)


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def with_clock(lab: StoreLab, **more: Any) -> tuple[Any, Clock]:
    clock = Clock()
    return influxdb.InfluxSink(lab.sink(**more).settings, {"counter": "INT64"}, clock), clock


KINDS: list[tuple[str, Any]] = [("float", 1.5), ("string", "x"), ("boolean", True)]


async def test_a_value_of_another_type_than_its_field_is_rejected_before_it_is_sent(lab: StoreLab, sink: Any) -> None:
    """With both types; integers are floats, and other measurements have other fields."""
    everything = dict(KINDS) | {"counter": 7}
    hostile = 'a b" on = \\ \n'
    async with lab.opened({"counter": "INT64"}) as other:
        await other.write(other.prepare([reading(values=everything), reading(values={hostile: 1.0})]).payload)
    sink, _ = with_clock(lab)
    await sink.open()
    fits = [
        *(reading("fits", at, values={kind: value}) for at, (kind, value) in enumerate(KINDS)),
        reading("fits", 3, values={"float": 2, "new": "x", "counter": 8}),
        reading("fits", 4, measurement="other", values={"float": "x", "string": 1.0}),
    ]
    conflicts = [
        (field, value, found)
        for field, _ in [*KINDS, ("counter", 7), (hostile, 1.0)]
        for found, value in KINDS
        if found != {"counter": "integer", hostile: "float"}.get(field, field)
    ]
    batch = [*fits, *(reading("conflict", values={field: value}) for field, value, _ in conflicts)]

    prepared = sink.prepare(batch)

    reasons = {index: why.reason for index, why in prepared.rejected.items()}
    for index, (field, _, found) in enumerate(conflicts, len(fits)):
        if field == "counter":
            assert reasons.pop(index) == "bad_type"
        else:
            assert reasons.pop(index) == "type_conflict"
            there = "float" if field == hostile else field
            assert f"of type {found}, and has the type {there}" in prepared.rejected[index].error
    assert not reasons
    await sink.write(prepared.payload)
    assert len([each for each in await stored(sink) if each.device_id == "fits"]) == len(fits)
    await sink.close()


async def test_a_minute_later_the_server_is_asked_again(lab: StoreLab, sink: Any) -> None:
    """A conflict is refused by what was learned for so long only; what the server refuses then is learned again."""
    await sink.write(sink.prepare([reading()]).payload)
    sink, clock = with_clock(lab)
    await sink.open()
    text = reading(at=1, values={"temperature": "x"})
    assert [0] == list(sink.prepare([text]).rejected)

    clock.now = 61.0
    again = sink.prepare([text])
    assert not again.rejected
    with pytest.raises(influxdb.AnswerError) as error:
        await sink.write(again.payload)
    assert isinstance(sink.classify(error.value), Reject)
    assert [0] == list(sink.prepare([text]).rejected)
    clock.now = 130.0
    assert not sink.prepare([text]).rejected
    await sink.close()


async def test_what_a_new_shard_takes_is_stored_and_read(lab: StoreLab, sink: Any) -> None:
    """A type is one of a shard: after a minute the value is sent, stored, and both types are read and counted."""
    number = reading(values={"temperature": 1.0, "humidity": 2.0})
    await sink.write(sink.prepare([number]).payload)
    sink, clock = with_clock(lab)
    await sink.open()
    text = reading(at=-40_000_000_000_000, values={"temperature": "x"})
    assert [0] == list(sink.prepare([text]).rejected)

    clock.now = 61.0
    await sink.write(sink.prepare([text]).payload)

    assert [text, number] == await stored(sink)
    assert [number, text] == await sink.query()
    assert await sink.count() == 3
    found = await sink.aggregate(
        Selection(start=text.time, end=number.time + timedelta(days=1)), timedelta(days=6000), ["count", "last"]
    )
    assert [("humidity", {"count": 1, "last": 2.0}), ("temperature", {"count": 2, "last": 1.0})] == [
        (each.metric, each.values) for each in found
    ]
    await sink.close()
    sink, _ = with_clock(lab)
    await sink.open()
    assert not sink.prepare([reading(values={"temperature": "x"})]).rejected  # the server's to say, by shard
    await sink.close()


async def test_what_others_write_behind_its_back_is_learned_from_the_first_refusal(lab: StoreLab, sink: Any) -> None:
    """And from then on is refused before it is sent."""
    async with lab.opened() as other:
        await other.write(other.prepare([reading()]).payload)
    batch = [reading(at=at, values={"temperature": "x" if at == 7 else 1.0}) for at in range(1, 9)]
    first = sink.prepare(batch)
    assert not first.rejected
    with pytest.raises(influxdb.AnswerError) as error:
        await sink.write(first.payload)
    assert isinstance(sink.classify(error.value), Reject)

    second = sink.prepare(batch)

    assert {6: "type_conflict"} == {index: why.reason for index, why in second.rejected.items()}
    await sink.write(second.payload)
    assert len(await stored(sink)) == 8


async def test_points_of_others_are_not_read(sink: Any) -> None:
    """Those that have no device; with another precision they are as near as a reading can be."""
    lines = "telemetry,site=x temperature=1.0 5\ntelemetry,device_id=a temperature=2.0 1001\nother value=1 7"
    query = [("org", sink.settings.org), ("bucket", sink.settings.bucket), ("precision", "ns")]
    await sink.ask("POST", "/api/v2/write", query, [("Content-Type", "text/plain")], lines.encode())
    expected = [Reading("telemetry", "a", datetime(1970, 1, 1, 0, 0, 0, 1, tzinfo=UTC), {"temperature": 2.0})]
    expected = [each for each in expected if sink.kept(each)]

    for found in (await stored(sink), await sink.query(), await sink.latest(Selection())):
        assert [("a", expected[0].time, {"temperature": 2.0})] == [
            (each.device_id, each.time, each.values) for each in found
        ]
    assert await sink.count() == await sink.count(readings=True) == 1
    span = Selection(start=datetime(1970, 1, 1, tzinfo=UTC), end=datetime(1970, 1, 2, tzinfo=UTC))
    assert ["a"] == [each.device_id for each in await sink.aggregate(span, timedelta(days=1))]


async def test_sparse_and_dense_series_come_in_order(sink: Any) -> None:
    """Pages end where a series is cut, and their spans grow and shrink."""
    dense = [reading("a", at * 1000, values={"x": float(at)}, channel="dense") for at in range(7000)]
    sparse = [reading("a", at * 700_001, values={"x": float(at)}, channel="sparse") for at in range(200)]
    far = [reading("a", at * 10**13, values={"x": float(at)}, channel="far") for at in range(-3, 4)]
    readings = [*dense, *sparse, *far]
    await sink.write(sink.prepare(readings).payload)

    assert sorted(readings, key=lambda each: (each.time, each.channel)) == await stored(sink)
    assert len(readings) == await sink.count(readings=True)


async def test_measurements_with_a_bucket_of_their_own(lab: StoreLab) -> None:
    """Written to and read from it, in every method, beside the others."""
    own = f"{lab.env['INFLUXDB_BUCKET']} (own) 'b'"
    routes = {"INFLUXDB_BUCKET_BY_MEASUREMENT": f"fire = {own}"}
    given: Any = load({**lab.env, **routes}).sinks["influxdb"]
    with pytest.raises(influxdb.AnswerError) as missing:
        await lab.sink(**routes).open()
    await lab.apply_schema()
    with pytest.raises(influxdb.AnswerError) as own_missing:
        await lab.sink(**routes).open()
    for error, name in ((missing, lab.env["INFLUXDB_BUCKET"]), (own_missing, own)):
        verdict = lab.sink().classify(error.value)
        assert isinstance(verdict, Fatal)
        assert f"bucket {name!r}" in verdict.remedy
    await influxdb.apply_schema(given)
    sink = lab.sink(**routes)
    await sink.open()
    readings = [reading(at=at, measurement=name) for at in range(3) for name in ("fire", "telemetry")]
    await sink.write(sink.prepare(readings).payload)

    assert readings == await stored(sink)
    assert [readings[5], readings[4]] == sorted(await sink.query(limit=2), key=lambda each: each.measurement)[::-1]
    assert readings[4:] == await sink.latest(Selection())
    assert await sink.count() == 6
    hour = Selection(start=T0, end=T0 + timedelta(hours=1))
    assert ["fire", "telemetry"] == [each.measurement for each in await sink.aggregate(hour, timedelta(days=1))]
    async with lab.opened() as plain:
        assert readings[1::2] == await stored(plain)
    wrong = sink.prepare([reading(measurement="fire"), reading("b" * 70_000, measurement="fire"), reading("c")])
    with pytest.raises(PartialWriteError) as refused:
        await sink.write(wrong.payload)
    assert [1] == list(refused.value.rejected)
    await sink.delete(Selection(device_id="dev-1"))
    assert [] == await stored(sink, device_id="dev-1")
    await sink.close()
    async with lab.opened() as plain:
        assert [] == await stored(plain, device_id="dev-1")
    lab.env["INFLUXDB_BUCKET"], kept = own, lab.env["INFLUXDB_BUCKET"]
    await lab.drop()
    lab.env["INFLUXDB_BUCKET"] = kept


@pytest.mark.parametrize("action", ["read", "write"])
async def test_a_token_without_rights(lab: StoreLab, action: str) -> None:
    """One that may only read is refused when the sink opens, one that may only write is enough."""
    await lab.apply_schema()
    admin = lab.sink()
    await admin.connect()
    _, found = await admin.ask("GET", "/api/v2/buckets", [("name", lab.env["INFLUXDB_BUCKET"])])
    bucket = json.loads(found)["buckets"][0]
    right = {"action": action, "resource": {"type": "buckets", "id": bucket["id"], "orgID": bucket["orgID"]}}
    wanted = {"orgID": bucket["orgID"], "permissions": [right]}
    _, found = await admin.ask("POST", "/api/v2/authorizations", body=wanted)
    await admin.close()
    sink = lab.sink(INFLUXDB_TOKEN=json.loads(found)["token"])

    if action == "write":
        await sink.open()
        await sink.write(sink.prepare([reading()]).payload)
        with pytest.raises(ConnectionError, match="cannot be read"):
            await stored(sink)
        await sink.close()
        return
    with pytest.raises(influxdb.AnswerError) as error:
        await sink.open()
    verdict = sink.classify(error.value)
    assert isinstance(verdict, Fatal)
    assert "may not write" in verdict.remedy


async def test_an_organization_that_is_not_there_is_fatal(lab: StoreLab) -> None:
    """For the sink and for making its bucket."""
    sink = lab.sink(INFLUXDB_ORG="nobody")
    for work in (sink.open, lambda: influxdb.apply_schema(sink.settings)):
        with pytest.raises(influxdb.AnswerError) as error:
            await work()

        verdict = sink.classify(error.value)
        assert isinstance(verdict, Fatal)
        assert "INFLUXDB_ORG" in verdict.remedy
