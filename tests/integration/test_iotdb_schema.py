"""The schema of IoTDB on the real server: what is planned is done, once; what stands there besides is seen."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.settings import load
from deploy.local.stack import Stack
from schemas.reading import Reading
from sinks.base import Fatal, SchemaPlan, Selection
from sinks.iotdb import IoTDBSink, Settings, apply_schema, drift, plan_schema
from sinks.iotdb.rpc import StatusError
from tests.conftest import place, running
from tests.contract.test_reading import T0
from tests.lab.stores import StoreLab

DAY = 86_400_000
SECRET = "0pen-sesame"  # noqa: S105  of a user that the test makes


@pytest.fixture
async def lab(stack: Stack) -> AsyncIterator[StoreLab]:
    """An empty place; its TTLs and its user go with it."""
    made = await place(stack, "iotdb")
    yield made
    running(stack, made.server_name)
    user, database = user_of(made), made.env["IOTDB_DATABASE"]
    async with made.opened() as sink:
        for path, _ in await sink.execute("SHOW ALL TTL"):
            if path.startswith(f"{database}."):
                await sink.execute(f"UNSET TTL TO {path}")
        if (user,) in await sink.execute("LIST USER"):
            await sink.execute(f"DROP USER {user}")
    await made.drop()


def user_of(lab: StoreLab) -> str:
    """A user of the test's own."""
    return lab.env["IOTDB_DATABASE"].removeprefix("root.")


def settings(lab: StoreLab, **more: str) -> Any:
    """The lab's settings with these variables."""
    return load({**lab.env, **more}).sinks["iotdb"]


def said(plan: SchemaPlan) -> dict[str, tuple[str, str]]:
    """A plan's changes by what they are of, without the database's name."""
    database = next(note.partition(":")[0] for note in plan.notes)
    return {each.what.replace(database, "DB"): (each.action, each.detail) for each in plan.changes}


async def test_what_is_planned_is_done_once(lab: StoreLab) -> None:
    """Database, TTLs with an exception, the workers' user with its rights, the version; then nothing is left."""
    more = {"IOTDB_TTL_MS": str(30 * DAY), "IOTDB_TTLS": f"dev_1={DAY}, `a,b=c`.`@fire`=0"}
    app = {"IOTDB_APP_USER": user_of(lab), "IOTDB_APP_PASSWORD": SECRET}
    made = settings(lab, **more, **app)
    grant = "GRANT READ_DATA, WRITE_DATA, READ_SCHEMA, WRITE_SCHEMA ON "
    grant += f"{lab.env['IOTDB_DATABASE']}.** TO USER {user_of(lab)}"

    planned = await plan_schema(made)
    assert said(planned) == {
        "database DB": ("create", ""),
        "TTL of DB and below": ("create", "for ever -> 30 d"),
        "TTL of DB.dev_1 and below": ("change", "30 d -> 1 d"),
        "TTL of DB.`a,b=c`.`@fire` and below": ("change", "30 d -> for ever"),
        f"user {user_of(lab)}": ("create", ""),
        f"rights of {user_of(lab)}": ("create", grant),
        "schema version": ("create", "none -> 1"),
    }
    assert planned.server == "Apache IoTDB 2.0.1-beta"
    assert SECRET not in str(planned)

    assert (await apply_schema(made)).changes == planned.changes
    for _ in range(2):
        assert not (await plan_schema(made)).changes
        assert not (await apply_schema(made)).changes
        assert not (await drift(made)).changes

    worker = lab.sink(IOTDB_USER=user_of(lab), IOTDB_PASSWORD=SECRET)
    await worker.open()
    await worker.probe()
    await worker.write(worker.prepare([Reading("telemetry", "new", T0.replace(year=2100), {"a": 1.0})]).payload)
    assert [each.device_id for each in await worker.query()] == ["new"]
    await worker.delete(Selection(device_id="new"))
    await worker.close()


async def test_a_ttl_of_nothing_is_for_ever_again(lab: StoreLab) -> None:
    """What settings no longer say is undone for the database; for other paths drift tells how."""
    await apply_schema(settings(lab, IOTDB_TTL_MS=str(DAY), IOTDB_TTLS="dev_1=1000"))

    assert said(await plan_schema(settings(lab))) == {"TTL of DB and below": ("change", "1 d -> for ever")}
    await apply_schema(settings(lab))

    assert not (await plan_schema(settings(lab))).changes
    found = said(await drift(settings(lab)))
    assert set(found) == {"TTL of DB.dev_1", "TTL of DB.dev_1.**"}
    assert {action for action, _ in found.values()} == {"foreign"}
    assert "1 s: UNSET TTL TO" in found["TTL of DB.dev_1.**"][1]


async def test_a_ttl_that_takes_rows_away_says_so(lab: StoreLab) -> None:
    """Where there may be rows, and the TTL is shorter than before; a longer one takes nothing."""
    await apply_schema(settings(lab))
    gone = "the server deletes rows older than"
    assert said(await plan_schema(settings(lab, IOTDB_TTL_MS=str(30 * DAY), IOTDB_TTLS=f"dev_1={DAY}"))) == {
        "TTL of DB and below": ("create", f"for ever -> 30 d: {gone} 30 d"),
        "TTL of DB.dev_1 and below": ("change", f"30 d -> 1 d: {gone} 1 d"),
    }
    await apply_schema(settings(lab, IOTDB_TTL_MS=str(30 * DAY)))
    shorter = await apply_schema(settings(lab, IOTDB_TTL_MS=str(DAY)))
    assert said(shorter) == {"TTL of DB and below": ("change", f"30 d -> 1 d: {gone} 1 d")}
    longer = await apply_schema(settings(lab, IOTDB_TTL_MS=str(2 * DAY)))
    assert said(longer) == {"TTL of DB and below": ("change", "1 d -> 2 d")}


async def test_drift_sees_what_apply_leaves_alone(lab: StoreLab) -> None:
    """Paths of others, devices that rows of ours cannot go to, types that were set later, encodings that round."""
    database = lab.env["IOTDB_DATABASE"]
    await lab.apply_schema()
    async with lab.opened() as sink:
        values = {"counter": 1.0, "small": 2.0, "other": 3.0}
        await sink.write(sink.prepare([Reading("telemetry", "dev_1", T0, values)]).payload)
        await sink.execute(f"CREATE TIMESERIES {database}.some.body DOUBLE")
        await sink.execute(f"CREATE TIMESERIES {database}.some.bodys.s DOUBLE ENCODING=RLE")
        await sink.execute(f"CREATE TIMESERIES {database}.plain.s DOUBLE ENCODING=TS_2DIFF")
    types = {"telemetry.counter": "INT64", "fire.small": "INT32"}

    found = await drift(settings(lab), types)

    assert {what: action for what, (action, _) in said(found).items()} == {
        "device DB.some": "refused",
        "device DB.plain": "refused",
        "device DB.some.bodys": "foreign",
        "series DB.dev_1.counter": "refused",
        "series DB.plain.s": "refused",
    }
    assert "DOUBLE, not INT64" in said(found)["series DB.dev_1.counter"][1]
    assert "TS_2DIFF rounds" in said(found)["series DB.plain.s"][1]
    assert "DOUBLE in GORILLA/LZ4: 4 series" in found.notes
    assert not (await plan_schema(settings(lab), types)).changes


async def test_many_differences_are_counted(lab: StoreLab) -> None:
    """A list stays readable."""
    database = lab.env["IOTDB_DATABASE"]
    await lab.apply_schema()
    async with lab.opened() as sink:
        for number in range(25):
            await sink.execute(f"CREATE TIMESERIES {database}.some.d{number}.s DOUBLE")

    found = (await drift(settings(lab))).changes

    assert len(found) == 21
    assert found[-1].what == "5 more"


async def test_missing_rights_are_planned_and_a_missing_user_needs_a_password(lab: StoreLab) -> None:
    """What a user has is not granted again; whose password is not known is not made."""
    user = user_of(lab)
    await apply_schema(settings(lab, IOTDB_APP_USER=user, IOTDB_APP_PASSWORD=SECRET))
    made = settings(lab, IOTDB_APP_USER=user)
    assert not (await plan_schema(made)).changes
    async with lab.opened() as sink:
        await sink.execute(f"REVOKE WRITE_DATA ON {lab.env['IOTDB_DATABASE']}.** FROM USER {user}")

    assert said(await plan_schema(made))[f"rights of {user}"][1].startswith("GRANT WRITE_DATA ON")
    await apply_schema(made)
    assert not (await plan_schema(made)).changes
    async with lab.opened() as sink:
        await sink.execute(f"DROP USER {user}")

    plan = await apply_schema(made)
    assert said(plan) == {f"user {user}": ("refused", "there is none: set IOTDB_APP_PASSWORD to have it made")}
    assert not plan.pending


async def test_who_may_not_apply_is_told_who_may(lab: StoreLab) -> None:
    """A worker's own user reads the plan, and cannot make a database, a user or a TTL of it."""
    user = user_of(lab)
    await apply_schema(settings(lab, IOTDB_APP_USER=user, IOTDB_APP_PASSWORD=SECRET))
    login = {"IOTDB_USER": user, "IOTDB_PASSWORD": SECRET}
    assert not (await plan_schema(settings(lab, **login, IOTDB_APP_USER=user))).changes
    for change in (
        {"IOTDB_TTL_MS": str(DAY)},
        {"IOTDB_DATABASE": "root.nobodys"},
        {"IOTDB_APP_USER": "somebody", "IOTDB_APP_PASSWORD": SECRET},
    ):
        made: Settings = settings(lab, **{**login, **change})
        with pytest.raises(StatusError) as error:
            await apply_schema(made)

        verdict = IoTDBSink(made).classify(error.value)
        assert isinstance(verdict, Fatal)
        assert "as an administrator" in verdict.remedy
        assert SECRET not in str(verdict)


async def test_a_newer_schema_is_left_alone(lab: StoreLab) -> None:
    """An older iotflow beside a newer one says so, and takes nothing back."""
    await lab.apply_schema()
    async with lab.opened() as sink:
        await sink.execute(f"CREATE TIMESERIES {lab.env['IOTDB_DATABASE']}.`=iotflow`.schema.v7 TEXT")

    plan = await plan_schema(settings(lab))

    assert not plan.changes
    assert "schema version 7 is of a newer iotflow; this one knows 1" in plan.notes
