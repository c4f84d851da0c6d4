"""InfluxDB's buckets on a real server: what a plan says, what applying it does, and what is never done."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from app.settings import load
from sinks import influxdb
from sinks.base import Change, Fatal, SchemaPlan
from sinks.influxdb import InfluxSink, Settings
from sinks.influxdb.schema import SCHEMA
from tests.lab.stores import StoreLab

pytestmark = pytest.mark.parametrize("lab", ["influxdb"], indirect=True)

MARK = f"(iotflow schema {SCHEMA})"


def settings_of(lab: StoreLab, **more: str) -> Settings:
    """The lab's settings; names of variables are without their beginning."""
    found = load({**lab.env, **{f"INFLUXDB_{name}": value for name, value in more.items()}}).sinks["influxdb"]
    assert isinstance(found, Settings)
    return found


async def ask(lab: StoreLab, method: str, path: str, query: Mapping[str, str] | None = None, body: Any = None) -> Any:
    """What the server answers the token that may do everything."""
    sink = InfluxSink(settings_of(lab))
    await sink.connect()
    try:
        _, said = await sink.ask(method, path, list((query or {}).items()), body=body)
    finally:
        await sink.close()
    return json.loads(said) if said else None


async def bucket(lab: StoreLab, name: str | None = None) -> Any:
    """A bucket as the server describes it."""
    return (await ask(lab, "GET", "/api/v2/buckets", {"name": name or lab.env["INFLUXDB_BUCKET"]}))["buckets"][0]


async def org_of(lab: StoreLab) -> str:
    return str((await ask(lab, "GET", "/api/v2/orgs", {"org": lab.env["INFLUXDB_ORG"]}))["orgs"][0]["id"])


async def made(lab: StoreLab, name: str, **more: Any) -> Any:
    """A bucket that was made by hand."""
    return await ask(lab, "POST", "/api/v2/buckets", body={"orgID": await org_of(lab), "name": name, **more})


def rule_of(found: Any) -> tuple[int, int]:
    """Retention and span of a shard, in hours."""
    (rule,) = found["retentionRules"]
    return rule["everySeconds"] // 3600, rule["shardGroupDurationSeconds"] // 3600


async def remedy(settings: Settings, error: BaseException) -> str:
    verdict = InfluxSink(settings).classify(error)
    assert isinstance(verdict, Fatal)
    assert not settings.token or settings.token.get_secret_value() not in verdict.remedy
    return verdict.remedy


async def settled(settings: Settings) -> None:
    """Applied twice, nothing is left to do."""
    for _ in range(2):
        assert not (await influxdb.plan_schema(settings)).changes
        assert not (await influxdb.apply_schema(settings)).changes


async def test_a_bucket_is_planned_made_and_then_as_it_should_be(lab: StoreLab) -> None:
    """With retention, shards and the schema's version; a plan changes nothing."""
    settings = settings_of(lab, RETENTION_DAYS="30", SHARD_HOURS="12")
    expected = [
        Change(f"bucket {settings.bucket}", "create", "keeps its points 30 d, in shards of 12 h"),
    ]

    for work in (influxdb.plan_schema, influxdb.drift, influxdb.plan_schema, influxdb.apply_schema):
        plan = await work(settings)
        assert expected == plan.changes
        assert plan.server.startswith("InfluxDB 2.")

    found = await bucket(lab)
    assert rule_of(found) == (720, 12)
    assert found["description"] == MARK
    await settled(settings)
    assert not (await influxdb.drift(settings)).changes


async def test_a_bucket_without_settings_keeps_for_ever_or_as_whoever_made_it_said(lab: StoreLab) -> None:
    """Its description stays, the version goes behind it."""
    name = lab.env["INFLUXDB_BUCKET"]
    await made(lab, name, description="our own", retentionRules=[{"type": "expire", "everySeconds": 86400}])
    settings = settings_of(lab)

    plan = await influxdb.apply_schema(settings)

    assert [Change(f"bucket {name}", "change", "schema none -> 1, in its description")] == plan.changes
    found = await bucket(lab)
    assert rule_of(found)[0] == 24
    assert found["description"] == f"our own {MARK}"
    await settled(settings)


async def test_a_retention_is_lengthened_and_never_shortened(lab: StoreLab) -> None:
    """Shortening would delete points: the refusal says how a person does it; all else is done."""
    await influxdb.apply_schema(settings_of(lab, RETENTION_DAYS="30"))
    for days, hours, words in (("60", 1440, "30 d -> 60 d"), ("0", 0, "60 d -> for ever")):
        settings = settings_of(lab, RETENTION_DAYS=days)
        (change,) = (await influxdb.apply_schema(settings)).changes
        assert change.action == "change"
        assert change.detail == f"retention {words}"
        assert rule_of(await bucket(lab))[0] == hours
        await settled(settings)

    settings = settings_of(lab, RETENTION_DAYS="7", SHARD_HOURS="48")
    for work, actions in (
        (influxdb.plan_schema, ["refused", "change"]),
        (influxdb.apply_schema, ["refused", "change"]),
        (influxdb.plan_schema, ["refused"]),
        (influxdb.drift, ["refused"]),
    ):
        plan = await work(settings)
        assert actions == [change.action for change in plan.changes]
        found = await bucket(lab)
        assert f"influx bucket update --id {found['id']} --retention 168h" in plan.changes[0].detail
    assert rule_of(found) == (0, 48)
    assert not plan.pending


async def test_shards_that_would_be_longer_than_what_is_kept(lab: StoreLab) -> None:
    """Refused, as the server would."""
    name = lab.env["INFLUXDB_BUCKET"]
    await made(lab, name, retentionRules=[{"type": "expire", "everySeconds": 86400}])
    settings = settings_of(lab, SHARD_HOURS="48")

    refused = (await influxdb.apply_schema(settings)).changes[0]

    assert refused.action == "refused"
    assert "longer than 1 d" in refused.detail


async def test_a_schema_of_a_newer_iotflow_is_left_alone(lab: StoreLab) -> None:
    await made(lab, lab.env["INFLUXDB_BUCKET"], description="x (iotflow schema 99)")

    (change,) = (await influxdb.apply_schema(settings_of(lab))).changes

    assert change.action == "refused"
    assert "newer iotflow" in change.detail
    assert (await bucket(lab))["description"] == "x (iotflow schema 99)"


NAMES = ["Power Consumption", "Growlight_Brightness", "Temperature", "Humidity", "WeatherAPI", "CO2", "Water"]


@pytest.mark.parametrize(("kind", "more"), [("json", 100), ("yaml", 0)])
async def test_a_list_of_buckets_is_made_and_those_that_exist_are_left(
    lab: StoreLab, tmp_path: Path, kind: str, more: int
) -> None:
    """S3's list: names and descriptions; beyond the first page of buckets, too."""
    own = lab.env["INFLUXDB_BUCKET"]
    names = [f"{own} {name}" for name in [*NAMES, *map(str, range(more))]]
    listed = [{"name": name, "description": f"all of {name}: ü"} for name in names]
    listed[0]["retention_days"] = 30  # type: ignore[assignment]
    listed.append({"name": own, "description": "readings"})
    text = json.dumps(listed)
    if kind == "yaml":
        text = "\n".join(
            f"- name: {each['name']!r}\n  description: {each['description']!r}"
            + (f"\n  retention_days: {each['retention_days']}" if "retention_days" in each else "")
            for each in listed
        )
    path = tmp_path / f"buckets.{kind}"
    path.write_text(text, "utf-8")
    await made(lab, names[-1], description="made by hand")
    settings = settings_of(lab, BUCKETS=str(path))
    try:
        plan = await influxdb.plan_schema(settings)
        assert len(plan.changes) == len(names)
        assert plan.changes == (await influxdb.apply_schema(settings)).changes
        await settled(settings)

        assert rule_of(await bucket(lab, names[0]))[0] == 720
        assert rule_of(await bucket(lab, names[1]))[0] == 0
        assert (await bucket(lab, names[1]))["description"] == f"all of {names[1]}: ü"
        assert (await bucket(lab, names[-1]))["description"] == "made by hand"
        assert (await bucket(lab))["description"] == f"readings {MARK}"
        assert not (await influxdb.drift(settings)).changes
    finally:
        for name in names:
            await ask(lab, "DELETE", f"/api/v2/buckets/{(await bucket(lab, name))['id']}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "cannot be read"),
        ("a: 1", "must be a list"),
        ('[{"description": "x"}]', "0.name"),
        ('[{"name": "a"}, {"name": "_b"}]', "1.name"),
        ('[{"name": "a", "retention": 3}]', "0.retention"),
        ('[{"name": "a", "retention_days": -3}]', "0.retention_days"),
        ('[{"name": "a"}, {"name": "a"}]', "'a' twice"),
    ],
)
async def test_a_list_that_cannot_be_used(lab: StoreLab, tmp_path: Path, text: str, words: str) -> None:
    """Nothing is made; the error has the file, the place and the rule."""
    path = tmp_path / "buckets.json"
    path.write_text(text)
    settings = settings_of(lab, BUCKETS=str(path))

    with pytest.raises(influxdb.server.SetupError) as error:
        await influxdb.apply_schema(settings)

    said = await remedy(settings, error.value)
    assert words in said
    assert str(path) in said
    assert "create" in {change.action for change in (await influxdb.plan_schema(settings_of(lab))).changes}


async def test_the_buckets_of_measurements_are_made(lab: StoreLab) -> None:
    """With the same retention, and the version."""
    own = f"{lab.env['INFLUXDB_BUCKET']} fire"
    settings = settings_of(lab, BUCKET_BY_MEASUREMENT=f"fire={own},smoke={own}", RETENTION_DAYS="3")

    plan = await influxdb.apply_schema(settings)
    try:
        assert [f"bucket {settings.bucket}", f"bucket {own}"] == [change.what for change in plan.changes]
        assert rule_of(await bucket(lab, own))[0] == 72
        assert (await bucket(lab, own))["description"] == MARK
        await settled(settings)
    finally:
        await ask(lab, "DELETE", f"/api/v2/buckets/{(await bucket(lab, own))['id']}")


async def test_drift_shows_what_stands_among_our_measurements(lab: StoreLab) -> None:
    """Points without a device, and measurements that go elsewhere now; a plan has neither."""
    await lab.apply_schema()
    sink = InfluxSink(settings_of(lab))
    await sink.connect()
    lines = "telemetry,device_id=a f=1\nfire,device_id=a f=1\ncpu,host=a f=1"
    query = [("org", sink.settings.org), ("bucket", sink.settings.bucket)]
    await sink.ask("POST", "/api/v2/write", query, [("Content-Type", "text/plain")], lines.encode())
    await sink.close()
    own = f"{sink.settings.bucket} fire"
    settings = settings_of(lab, BUCKET_BY_MEASUREMENT=f"fire={own}")
    await influxdb.apply_schema(settings)
    try:
        found = {change.what: change for change in (await influxdb.drift(settings)).changes}
    finally:
        await ask(lab, "DELETE", f"/api/v2/buckets/{(await bucket(lab, own))['id']}")

    place = f"in bucket {settings.bucket}"
    assert {f"measurement cpu {place}", f"measurement fire {place}"} == set(found)
    assert {"foreign"} == {change.action for change in found.values()}
    assert "no device_id" in found[f"measurement cpu {place}"].detail
    assert own in found[f"measurement fire {place}"].detail


async def limited(lab: StoreLab, *rights: tuple[str, str]) -> Settings:
    """Settings with a token that has these rights only."""
    org = await org_of(lab)
    permissions = [{"action": action, "resource": {"type": kind, "orgID": org}} for action, kind in rights]
    wanted = {"orgID": org, "permissions": permissions}
    return settings_of(lab, TOKEN=(await ask(lab, "POST", "/api/v2/authorizations", body=wanted))["token"])


@pytest.mark.parametrize("rights", [[("write", "buckets")], [("read", "buckets"), ("write", "buckets")]])
async def test_a_token_that_may_not_see_the_organization_says_what_it_needs(
    lab: StoreLab, rights: list[tuple[str, str]]
) -> None:
    """While the bucket is missing; nothing is made."""
    settings = await limited(lab, *rights)
    for work in (influxdb.plan_schema, influxdb.apply_schema, influxdb.drift):
        with pytest.raises(influxdb.server.SetupError) as error:
            await work(settings)
        said = await remedy(settings, error.value)
        assert "INFLUXDB_TOKEN" in said
        assert "read the organization" in said


async def test_a_token_that_may_only_read_plans_and_cannot_apply(lab: StoreLab) -> None:
    """The error of applying says which right is missing."""
    org = await org_of(lab)
    right = {"action": "read", "resource": {"type": "orgs", "id": org}}
    buckets = {"action": "read", "resource": {"type": "buckets", "orgID": org}}
    wanted = {"orgID": org, "permissions": [right, buckets]}
    token = (await ask(lab, "POST", "/api/v2/authorizations", body=wanted))["token"]
    settings = settings_of(lab, TOKEN=token)

    plan = await influxdb.plan_schema(settings)
    assert [f"bucket {settings.bucket}"] == [change.what for change in plan.changes]
    with pytest.raises(influxdb.server.SetupError) as error:
        await influxdb.apply_schema(settings)

    assert "may not make or change" in await remedy(settings, error.value)


async def test_a_token_that_sees_the_bucket_needs_no_organization(lab: StoreLab) -> None:
    """Reading and writing buckets is enough to change one."""
    await made(lab, lab.env["INFLUXDB_BUCKET"])
    settings = await limited(lab, ("read", "buckets"), ("write", "buckets"))

    await influxdb.apply_schema(settings)

    await settled(settings)


async def test_applying_twice_at_once_is_applying_once(lab: StoreLab) -> None:
    """The one that comes second makes nothing."""
    settings = settings_of(lab, RETENTION_DAYS="3")

    done = await asyncio.gather(*(influxdb.apply_schema(settings) for _ in range(3)), return_exceptions=True)

    assert not [each for each in done if not isinstance(each, SchemaPlan)]
    await settled(settings)


async def test_a_server_that_is_away(lab: StoreLab) -> None:
    """Its address is in the error."""
    settings = settings_of(lab, URL="http://127.0.0.1:1")
    for work in (influxdb.plan_schema, influxdb.apply_schema, influxdb.drift):
        with pytest.raises(OSError, match=r"127\.0\.0\.1"):
            await work(settings)


async def test_version_3_is_told_that_nothing_is_to_be_done(lab: StoreLab) -> None:
    settings = settings_of(lab, VERSION="3")
    for work in (influxdb.plan_schema, influxdb.apply_schema, influxdb.drift):
        plan = await work(settings)
        assert not plan.changes
        assert "first written to" in plan.notes[0]
