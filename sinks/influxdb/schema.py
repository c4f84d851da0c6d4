"""The buckets of InfluxDB 2: what is missing or differs, making and changing them.

Nothing here deletes a point: a retention is lengthened, never shortened.
"""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from msgspec import Struct

from sinks.base import Change, SchemaPlan
from sinks.influxdb.reader import Reader, UnreadableError
from sinks.influxdb.server import AnswerError, SetupError
from sinks.influxdb.settings import Settings, shards_too_long

#: The version of what `apply_schema` makes; a bucket's description ends with it.
SCHEMA: Final = 1
_MARK: Final = re.compile(r"\s*\(iotflow schema (\d+)\)")
_BUCKETS: Final = "/api/v2/buckets"
#: The most that InfluxDB lists at once.
_PAGE: Final = 100
_DAY_S: Final = 86_400
_HOUR_S: Final = 3_600
_LIMITED: Final = frozenset({401, 403, 404})


class _ThereError(SetupError):
    """A bucket of that name exists, though it was not among those that the token may see."""


class _Wanted(Struct, frozen=True):
    """What a bucket should be; None leaves a part of it to whoever made it."""

    name: str
    description: str
    retention_days: int | None
    shard_hours: int | None
    #: Whether readings go there, and so the schema's version.
    ours: bool


class _Step(Struct, frozen=True):
    """A request, and what it changes; without one, what is left alone."""

    changes: list[Change]
    method: str = ""
    path: str = ""
    body: Mapping[str, Any] = {}


async def plan_schema(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:  # noqa: ARG001
    """What `apply_schema` would do. Raises what the sink's `classify` knows."""
    if settings.version == "3":
        return _of_version_3(settings)
    async with _connected(settings) as (reader, server):
        steps = await _steps(reader)
    return SchemaPlan(server, [change for step in steps for change in step.changes])


async def apply_schema(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:  # noqa: ARG001
    """Make the buckets that are missing, lengthen retentions and set shards; returns what was done and what was not.

    May be run again. Raises what the sink's `classify` knows.
    """
    if settings.version == "3":
        return _of_version_3(settings)
    async with _connected(settings) as (reader, server):
        try:
            done = await _carried_out(reader)
        except _ThereError:  # somebody else made it meanwhile
            done = await _carried_out(reader)
    return SchemaPlan(server, done)


async def _carried_out(reader: Reader) -> list[Change]:
    steps = await _steps(reader)
    for step in steps:
        if step.method:
            await _limited(reader, step.method, step.path, step.body)
    return [change for step in steps for change in step.changes]


async def drift(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:  # noqa: ARG001
    """What `apply_schema` would do and would not, and what stands among ours. Raises what `classify` knows."""
    if settings.version == "3":
        return _of_version_3(settings)
    async with _connected(settings) as (reader, server):
        changes = [change for step in await _steps(reader) for change in step.changes]
        notes = []
        try:
            changes += [_stranger(*each) for each in await reader.strangers()]
        except UnreadableError as error:
            notes.append(f"measurements were not compared: {error}")
    return SchemaPlan(server, changes, notes)


def _of_version_3(settings: Settings) -> SchemaPlan:
    names = ", ".join(settings.stores)
    return SchemaPlan("InfluxDB 3", notes=[f"{names}: InfluxDB 3 makes a database when it is first written to"])


def _stranger(bucket: str, measurement: str, goes_to: str | None) -> Change:
    why = "its points have no device_id: others wrote them, and iotflow does not read them"
    if goes_to is not None:
        why = f"INFLUXDB_BUCKET_BY_MEASUREMENT sends it to bucket {goes_to}: what is here is not read"
    return Change(f"measurement {measurement} in bucket {bucket}", "foreign", why)


@asynccontextmanager
async def _connected(settings: Settings) -> AsyncIterator[tuple[Reader, str]]:
    """A connection, and what the server calls itself."""
    reader = Reader(settings)
    await reader.connect()
    try:
        _, said = await reader.ask("GET", "/health")
        try:
            version = str(msgspec.json.decode(said, type=dict)["version"]).removeprefix("v")
        except (msgspec.DecodeError, KeyError) as error:
            raise SetupError(f"{settings.url} is no InfluxDB 2: set INFLUXDB_URL to where it is") from error
        yield reader, f"InfluxDB {version}"
    finally:
        await reader.close()


# -- what there should be ----------------------------------------------------------------------------------------------


def _wanted(settings: Settings) -> list[_Wanted]:
    """The buckets of readings first; what the file says of one of them holds."""
    try:
        listed = {each.name: each for each in settings.listed()}
    except ValueError as error:
        raise SetupError(str(error)) from error
    found: list[_Wanted] = []
    for name in (*settings.stores, *listed):
        each, ours = listed.get(name), name in settings.stores
        if ours and name not in {one.name for one in found}:
            days, hours = settings.retention_days, settings.shard_hours
            if each is not None:
                days = days if each.retention_days is None else each.retention_days
                hours = hours if each.shard_hours is None else each.shard_hours
            found.append(_Wanted(name, each.description if each else "", days, hours, ours))
        elif each is not None and not ours:
            found.append(_Wanted(name, each.description, each.retention_days, each.shard_hours, ours))
    return found


# -- what there is -----------------------------------------------------------------------------------------------------


async def _found(reader: Reader, wanted: list[_Wanted]) -> dict[str, Mapping[str, Any]]:
    """Every bucket of the organization that the token may see, by name."""
    org = ("org", reader.settings.org)
    found: dict[str, Mapping[str, Any]] = {}
    after: list[tuple[str, str]] = []
    while True:
        page = await _listing(reader, [org, ("limit", str(_PAGE)), *after])
        if not page:
            break
        found |= {each["name"]: each for each in page}
        after = [("after", page[-1]["id"])]
    # A token that may not see all of a page's buckets may see no page at all.
    for each in wanted:
        if each.name not in found:
            try:
                page = await _listing(reader, [org, ("name", each.name)])
            except AnswerError as error:
                if error.status != 404:  # noqa: PLR2004  there is none
                    raise
            else:
                found |= {bucket["name"]: bucket for bucket in page}
    return found


async def _listing(reader: Reader, query: list[tuple[str, str]]) -> list[Mapping[str, Any]]:
    _, said = await reader.ask("GET", _BUCKETS, query)
    return list(msgspec.json.decode(said)["buckets"])


async def _organization(reader: Reader) -> str:
    """The id of the organization, which a bucket is made in."""
    _, said = await reader.ask("GET", "/api/v2/orgs", (("org", reader.settings.org),))
    found = msgspec.json.decode(said)["orgs"]
    if not found:
        raise SetupError(_rights(reader.settings, "it may not see the organization"))
    return str(found[0]["id"])


def _rights(settings: Settings, why: str) -> str:
    return (
        f"the token may not make or change buckets of {settings.org!r} at {settings.url} ({why}): give iotflow schema "
        "one that may read the organization and read and write its buckets, in INFLUXDB_TOKEN or INFLUXDB_TOKEN_FILE"
    )


async def _limited(reader: Reader, method: str, path: str, body: Mapping[str, Any]) -> None:
    """Ask for a change, for which a token may lack the right."""
    try:
        await reader.ask(method, path, body=dict(body))
    except AnswerError as error:
        if error.status in _LIMITED or error.code == "conflict":
            kind = _ThereError if error.code == "conflict" else SetupError
            raise kind(_rights(reader.settings, str(error))) from error
        raise


# -- how they differ ---------------------------------------------------------------------------------------------------


async def _steps(reader: Reader) -> list[_Step]:
    """What is to be done, and what is left alone."""
    wanted = _wanted(reader.settings)
    found = await _found(reader, wanted)
    missing = [each for each in wanted if each.name not in found]
    org = await _organization(reader) if missing else ""
    steps = [_compared(each, found[each.name]) if each.name in found else _made(each, org) for each in wanted]
    return [step for step in steps if step.changes]


def _made(wanted: _Wanted, org: str) -> _Step:
    what = f"bucket {wanted.name}"
    if flaw := _shards_flaw(wanted, wanted.retention_days):
        return _Step([Change(what, "refused", flaw)])
    seconds = (wanted.retention_days or 0) * _DAY_S
    detail = f"keeps its points {_kept(seconds)}"
    if wanted.shard_hours:
        detail += f", in shards of {wanted.shard_hours} h"
    body = {"orgID": org, "name": wanted.name, "retentionRules": [_rule(seconds, wanted.shard_hours)]}
    if description := _marked(wanted.description) if wanted.ours else wanted.description:
        body["description"] = description
    return _Step([Change(what, "create", detail)], "POST", _BUCKETS, body)


def _compared(wanted: _Wanted, bucket: Mapping[str, Any]) -> _Step:
    """What differs, in one request for all of it."""
    changes: list[Change] = []
    body: dict[str, Any] = {}
    what = f"bucket {wanted.name}"
    rules: list[dict[str, Any]] = bucket.get("retentionRules") or []
    rule = next((each for each in rules if each.get("type") == "expire"), {})
    seconds, shard = int(rule.get("everySeconds") or 0), int(rule.get("shardGroupDurationSeconds") or 0)
    aimed = seconds if wanted.retention_days is None else wanted.retention_days * _DAY_S
    if aimed != seconds:
        detail = f"retention {_kept(seconds)} -> {_kept(aimed)}"
        if aimed and (not seconds or aimed < seconds):
            by_hand = f"influx bucket update --id {bucket['id']} --retention {aimed // _HOUR_S}h"
            detail += f" would delete older points, which iotflow does not: if they may go, run {by_hand}"
            changes.append(Change(what, "refused", detail))
            aimed = seconds
        else:
            changes.append(Change(what, "change", detail))
            body["retentionRules"] = [_rule(aimed, None)]
    if wanted.shard_hours and wanted.shard_hours * _HOUR_S != shard:
        if aimed and wanted.shard_hours * _HOUR_S > aimed:
            changes.append(Change(what, "refused", f"shards of {wanted.shard_hours} h are longer than {_kept(aimed)}"))
        else:
            changes.append(Change(what, "change", f"new shards {shard // _HOUR_S} h -> {wanted.shard_hours} h"))
            body["retentionRules"] = [_rule(aimed, wanted.shard_hours)]
    if wanted.ours:
        description = bucket.get("description") or ""
        said = _MARK.search(description)
        version = int(said[1]) if said else 0
        if version > SCHEMA:
            changes.append(Change(what, "refused", f"a newer iotflow made its schema {version}: use that one"))
        elif version < SCHEMA:
            changes.append(Change(what, "change", f"schema {version or 'none'} -> {SCHEMA}, in its description"))
            body["description"] = _marked(description)
    return _Step(changes, "PATCH", f"{_BUCKETS}/{bucket['id']}", body) if body else _Step(changes)


def _shards_flaw(wanted: _Wanted, days: int | None) -> str:
    too_long = shards_too_long(days, wanted.shard_hours)
    return f"shards of {wanted.shard_hours} h are longer than {days} d" if too_long else ""


def _rule(seconds: int, shard_hours: int | None) -> dict[str, Any]:
    rule: dict[str, Any] = {"type": "expire", "everySeconds": seconds}
    return rule | ({"shardGroupDurationSeconds": shard_hours * _HOUR_S} if shard_hours else {})


def _marked(description: str) -> str:
    return f"{_MARK.sub('', description)} (iotflow schema {SCHEMA})".strip()


def _kept(seconds: int) -> str:
    if not seconds:
        return "for ever"
    days, rest = divmod(seconds, _DAY_S)
    return f"{days} d" if not rest else f"{seconds / _HOUR_S:g} h"
