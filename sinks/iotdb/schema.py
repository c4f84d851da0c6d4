"""The schema of an Apache IoTDB: database, TTLs, the workers' user and its rights, and the version of all this.

Series are made by the server when they are first written to, with the encodings that its own settings say. Device
templates could say others, but give every device below a node the same types, and a metric is not the same type
everywhere; making each series by a statement of its own costs ten times what writing its first row does.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any, Final

from msgspec import Struct

from sinks.base import Change, SchemaPlan
from sinks.iotdb.mapping import identity_of, name_of, nodes_of, quoted, shown, written
from sinks.iotdb.rpc import Link, StatusError
from sinks.iotdb.settings import Settings, address
from sinks.iotdb.ttl import Rules, rules_of, worded

VERSION: Final = 1
TESTED: Final = "2.0.1-beta"
RIGHTS: Final = ("READ_DATA", "WRITE_DATA", "READ_SCHEMA", "WRITE_SCHEMA")
#: Below the database, where no device's name leads: the version is a series without rows, which no TTL takes away.
_RECORD: Final = "`=iotflow`.schema"
_NO_USER: Final = 804
_EXISTS: Final = 503
#: Of one kind of difference, more are only counted.
_SHOWN: Final = 20
#: Series of one question.
_PAGE: Final = 50_000
#: They keep so many digits (the server's float_precision, 2) and round the rest away.
_LOSSY: Final = frozenset({"RLE", "TS_2DIFF"})
_FRACTIONS: Final = frozenset({"FLOAT", "DOUBLE"})


class _Step(Struct, frozen=True):
    """A change with the statements that make it."""

    change: Change
    statements: Sequence[str] = ()


class _Live(Struct, frozen=True):
    """What the server has."""

    version: str
    precision: str
    database: bool
    rules: Rules
    #: The version of the schema, 0 where there is none.
    schema: int
    #: The rights of the workers' user on the database, None where there is no such user or none is wanted.
    rights: frozenset[str] | None


async def plan_schema(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:  # noqa: ARG001
    """What `apply_schema` would do. Raises what the sink's `classify` knows."""
    async with _linked(settings) as link:
        live = await _live(link, settings)
        return _said(live, settings, [step.change for step in _steps(live, settings)])


async def apply_schema(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:  # noqa: ARG001
    """Make what is missing and change what differs; says what was done. May be run again.

    Raises what the sink's `classify` knows.
    """
    async with _linked(settings) as link:
        live = await _live(link, settings)
        done = _steps(live, settings)
        for step in done:
            for statement in step.statements:
                await _run(link, statement, settings)
        return _said(live, settings, [step.change for step in done])


async def drift(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:
    """The plan, what `apply_schema` leaves alone, and what is not of our making. Looks at every device and series.

    Raises what the sink's `classify` knows.
    """
    async with _linked(settings) as link:
        live = await _live(link, settings)
        changes = [step.change for step in _steps(live, settings)]
        changes += _foreign_rules(live.rules, settings)
        notes: list[str] = []
        if live.database:
            changes += await _odd_devices(link, settings)
            encodings: Counter[tuple[str, str]] = Counter()
            changes += await _odd_series(link, settings, types or {}, encodings)
            notes = [f"{kind} in {encoding}: {count} series" for (kind, encoding), count in sorted(encodings.items())]
        return _said(live, settings, changes, notes)


@asynccontextmanager
async def _linked(settings: Settings) -> AsyncIterator[Link]:
    link = Link(address(settings))
    try:
        await link.connect()
        yield link
    finally:
        link.close()


def _said(live: _Live, settings: Settings, changes: Sequence[Change], notes: Sequence[str] = ()) -> SchemaPlan:
    coarse = "; to keep microseconds, set up a new server with timestamp_precision=us"
    said = [f"{settings.database}: times in {live.precision}{coarse if live.precision == 'ms' else ''}"]
    if live.version != TESTED:
        said.append(f"tried on IoTDB {TESTED} only")
    if live.schema > VERSION:
        said.append(f"schema version {live.schema} is of a newer iotflow; this one knows {VERSION}")
    return SchemaPlan(f"Apache IoTDB {live.version}", changes, [*said, *notes])


# -- what is there -----------------------------------------------------------------------------------------------------


async def _live(link: Link, settings: Settings) -> _Live:
    version = (await _rows(link, "SHOW VERSION"))[0][0]
    database = bool(await _rows(link, f"SHOW DATABASES {settings.database}"))
    record = await _rows(link, f"SHOW TIMESERIES {settings.database}.{_RECORD}.*") if database else []
    versions = [nodes_of(path)[-1].removeprefix("v") for path, *_ in record]
    return _Live(
        version=version,
        precision=link.precision,
        database=database,
        rules=await rules_of(link),
        schema=max((int(each) for each in versions if each.isdecimal()), default=0),
        rights=await _rights(link, settings) if settings.app_user else None,
    )


async def _rights(link: Link, settings: Settings) -> frozenset[str] | None:
    """What the workers' user may do in all of the database, None where there is no such user."""
    try:
        names, rows = await link.execute(f"LIST PRIVILEGES OF USER {settings.app_user}")
    except StatusError as error:
        if error.codes == {_NO_USER}:
            return None
        raise
    path, right = names.index("Path" if "Path" in names else "Scope") + 1, names.index("Privileges") + 1
    database = nodes_of(settings.database)
    return frozenset(row[right] for row in rows if _covers(nodes_of(row[path]), database))


def _covers(pattern: Sequence[str], database: Sequence[str]) -> bool:
    """Whether a right on a pattern is one on all that is below the database."""
    return pattern[-1:] == ["**"] and list(database[: len(pattern) - 1]) == list(pattern[:-1])


async def _rows(link: Link, statement: str) -> list[tuple[Any, ...]]:
    _, rows = await link.execute(statement)
    return [row[1:] for row in rows]


# -- what is to be done ------------------------------------------------------------------------------------------------


def _steps(live: _Live, settings: Settings) -> list[_Step]:
    database = settings.database
    steps = []
    if not live.database:
        steps.append(_Step(Change(f"database {database}", "create"), [f"CREATE DATABASE {database}"]))
    steps += _ttl_steps(live.rules, settings, filled=live.database)
    if settings.app_user:
        steps += _user_steps(live.rights, settings)
    if live.schema < VERSION:
        applied = datetime.now(UTC).isoformat(timespec="seconds")
        statement = f"CREATE TIMESERIES {database}.{_RECORD}.v{VERSION} TEXT ATTRIBUTES('applied'='{applied}')"
        detail = f"{live.schema or 'none'} -> {VERSION}"
        steps.append(_Step(Change("schema version", "change" if live.schema else "create", detail), [statement]))
    return steps


def _ttl_steps(rules: Rules, settings: Settings, *, filled: bool) -> list[_Step]:
    """The closest rule holds, so each node that is wanted gets its own where the others do not say the same.

    `filled` is whether there may be rows, of which a shorter TTL takes some away.
    """
    database = tuple(nodes_of(settings.database))
    devices, below = dict(rules.devices), dict(rules.below)
    steps = []
    for nodes, ttl_ms in sorted(settings.wanted_ttls().items(), key=lambda item: len(item[0])):
        now, whole = Rules(devices, below), nodes == database
        before = {now.of_all_below(nodes)} if whole else {now.of(nodes), now.of_all_below(nodes)}
        if before == {ttl_ms}:
            continue
        path = written(nodes)
        what = f"TTL of {shown(nodes)} and below"
        detail = f"{' and '.join(sorted(map(worded, before)))} -> {worded(ttl_ms)}"
        if not whole and not rules.by_device:
            steps.append(_Step(Change(what, "refused", f"{detail}: this server has TTLs for databases only")))
            continue
        if filled and ttl_ms is not None and any(kept is None or kept > ttl_ms for kept in before):
            detail += f": the server deletes rows older than {worded(ttl_ms)}"
        # For the database one statement sets both; below it a node and what is below the node have a rule each.
        ttl = "INF" if ttl_ms is None else str(ttl_ms)
        statements = [f"SET TTL TO {pattern} {ttl}" for pattern in ([path] if whole else [path, f"{path}.**"])]
        if ttl_ms is None and not rules.by_device:
            statements = [f"UNSET TTL TO {path}"]
        steps.append(_Step(Change(what, "create" if before == {None} else "change", detail), statements))
        devices[nodes] = below[nodes] = ttl_ms
    return steps


def _user_steps(rights: frozenset[str] | None, settings: Settings) -> list[_Step]:
    user, steps = settings.app_user, []
    if rights is None:
        if settings.app_password is None:
            return [_Step(Change(f"user {user}", "refused", "there is none: set IOTDB_APP_PASSWORD to have it made"))]
        password = settings.app_password.get_secret_value()
        steps.append(_Step(Change(f"user {user}", "create"), [f"CREATE USER {user} '{password}'"]))
    missing = [right for right in RIGHTS if right not in (rights or ())]
    if missing:
        grant = f"GRANT {', '.join(missing)} ON {settings.database}.** TO USER {user}"
        steps.append(_Step(Change(f"rights of {user}", "create", grant), [grant]))
    return steps


async def _run(link: Link, statement: str, settings: Settings) -> None:
    try:
        await link.execute(statement)
    except StatusError as error:
        if error.codes == {_EXISTS}:  # somebody else was faster
            return
        password = settings.app_password.get_secret_value() if settings.app_password else ""
        if password and password in str(error):
            raise StatusError(error.codes, str(error).replace(password, "…")) from None
        raise


# -- what differs besides ----------------------------------------------------------------------------------------------


def _foreign_rules(rules: Rules, settings: Settings) -> list[Change]:
    """TTLs below the database that nobody here asked for."""
    ours, database = settings.wanted_ttls(), tuple(nodes_of(settings.database))
    found = []
    for known, suffix in ((rules.devices, ""), (rules.below, ".**")):
        for nodes, ttl_ms in known.items():
            if nodes[: len(database)] == database and nodes not in ours:
                path = written(nodes) + suffix
                detail = f"{worded(ttl_ms)}: UNSET TTL TO {path}, or say it in IOTDB_TTLS"
                found.append(Change(f"TTL of {shown(nodes)}{suffix}", "foreign", detail))
    return _some(found)


async def _odd_devices(link: Link, settings: Settings) -> list[Change]:
    """IoTDB devices that are none of ours, and ours that cannot be written to."""
    foreign, refused = [], []
    depth = settings.database.count(".") + 1
    record = nodes_of(_RECORD)
    names, rows = await link.execute(f"SHOW DEVICES {settings.database}.**")
    aligned = names.index("IsAligned") + 1
    for row in rows:
        below = nodes_of(row[1])[depth:]
        if below == record:
            continue
        if identity_of(below, settings.default_measurement) is None:
            foreign.append(Change(f"device {row[1]}", "foreign", "no name of a device leads there"))
        elif row[aligned] != "true":
            mend = f"it is not aligned, and rows of ours are: DELETE TIMESERIES {quoted(row[1])}.*, or move it away"
            refused.append(Change(f"device {row[1]}", "refused", mend))
    return _some(refused) + _some(foreign)


async def _odd_series(
    link: Link, settings: Settings, types: Mapping[str, str], encodings: Counter[tuple[str, str]]
) -> list[Change]:
    """Series of another type than is set, and ones that round; counts the encodings of all of ours."""
    depth = settings.database.count(".") + 1
    wrong, lossy = [], []
    async for path, kind, encoding, compressor in _series(link, settings.database):
        *device, node = nodes_of(path)[depth:]
        identity = identity_of(device, settings.default_measurement)
        if identity is None:
            continue
        encodings[kind, f"{encoding}/{compressor}"] += 1
        wanted = types.get(f"{identity[2]}.{name_of(node)}") or types.get(name_of(node))
        if wanted and wanted != kind:
            mend = f"{kind}, not {wanted}, which it would be if it were made again: DELETE TIMESERIES {quoted(path)}"
            wrong.append(Change(f"series {path}", "refused", mend))
        if kind in _FRACTIONS and encoding in _LOSSY:
            mend = f"{encoding} rounds: set default_{kind.lower()}_encoding=GORILLA on the server for new series"
            lossy.append(Change(f"series {path}", "refused", mend))
    return _some(wrong) + _some(lossy)


async def _series(link: Link, database: str) -> AsyncIterator[tuple[str, str, str, str]]:
    """Path, type, encoding and compressor of every series, in pages."""
    offset = 0
    while True:
        statement = f"SHOW TIMESERIES {database}.** LIMIT {_PAGE} OFFSET {offset}"
        names, rows = await link.execute(statement)
        wanted = [names.index(name) + 1 for name in ("Timeseries", "DataType", "Encoding", "Compression")]
        count = 0
        for row in rows:
            count += 1
            path, kind, encoding, compressor = (row[place] for place in wanted)
            yield path, kind, encoding, compressor
        if count < _PAGE:
            return
        offset += count


def _some(changes: Sequence[Change]) -> list[Change]:
    """The first ones, and how many more there are."""
    shown = list(changes[:_SHOWN])
    if len(changes) > _SHOWN:
        last = changes[_SHOWN]
        shown.append(Change(f"{len(changes) - _SHOWN} more", last.action, last.detail))
    return shown
