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


async def test_what_is_older_than_the_retention_is_a_reject(lab: StoreLab) -> None:
    """In the server's words."""
    changes = {"INFLUXDB_RETENTION_DAYS": "1"}
    notes = (await influxdb.apply_schema(load({**lab.env, **changes}).sinks["influxdb"])).notes  # type: ignore[arg-type]
    assert "1 d" in notes[0]
    async with lab.opened() as sink:
        with pytest.raises(influxdb.AnswerError) as error:
            await sink.write(sink.prepare([reading()]).payload)

        verdict = sink.classify(error.value)
        assert isinstance(verdict, Reject)
        assert "outside retention policy" in verdict.rejected.error


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
