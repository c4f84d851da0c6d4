"""What has to be done to a database so that it is as it should be. Pure: two descriptions in, steps out."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Final, get_args

from sinks.base import Change
from sinks.timescale.catalog import Live, LiveColumn, Relation, indexed
from sinks.timescale.desired import NUMBERS, SCHEMA_VERSION, Desired
from sinks.timescale.policies import retention_steps, rollup_steps, series_steps
from sinks.timescale.steps import Step, aside, literal, refused
from sinks.timescale.tables import FIXED, KINDS, NARROW, Column, Kind, Table, column_of, comment_of, metric_of, quoted
from sinks.timescale.views import View, views

_KINDS: Final = frozenset(get_args(Kind))
_WORDS: Final[Mapping[str, str]] = {kind: word for word, kind in KINDS.items()}
#: Begins the comment of a view of our making.
_MARK: Final = "iotflow"
_RELATIONS: Final = {
    "r": "table",
    "p": "partitioned table",
    "v": "view",
    "m": "materialized view",
    "f": "foreign table",
}
_CAST: Final = re.compile(r"::[a-z ]+")


def compare(wanted: Desired, live: Live) -> list[Step]:
    """The steps in the order in which they can be done; those without statements are for a person."""
    if live.version is not None and live.version > SCHEMA_VERSION:
        detail = (
            f"a newer iotflow has made version {live.version} of the schema, and this one knows {SCHEMA_VERSION}: "
            "use the newer one"
        )
        return [refused("schema version", detail)]
    steps: list[Step] = []
    if wanted.server.creates_extension:
        steps.append(Step(Change("extension timescaledb", "create"), ("CREATE EXTENSION IF NOT EXISTS timescaledb",)))
    broken: set[str] = set()
    for table in wanted.tables:
        found = list(_table(table, live.relations.get(table.name), wanted.told))
        steps += found
        if any(step.change.action == "refused" and step.change.what.startswith("table ") for step in found):
            broken.add(table.name)
        elif table.name in live.relations:
            steps += _rights(table, live.relations[table.name], wanted)
    made, rollups = _policies(wanted, live, broken)
    steps += made
    for view in views(wanted.server, wanted.wide, rollups):
        steps += _view(view, live, broken)
    return [*steps, *_version(live)]


def _policies(wanted: Desired, live: Live, broken: set[str]) -> tuple[list[Step], Mapping[str, Sequence[str]] | None]:
    """TimescaleDB's part; and the continuous aggregates with their columns, None where they are not to be had."""
    steps: list[Step] = []
    series = [(each, live.hypertables.get(each.table)) for each in wanted.series if each.table not in broken]
    for each, found in series:
        steps += series_steps(each, found, wanted.server)
    if not wanted.tiers:
        return steps, None
    made, rollups = rollup_steps(wanted, live, broken)
    steps += made
    for each, found in series:
        steps += retention_steps(each.table, found.retention if found else None, each.retention)
    return steps, rollups


# -- tables ------------------------------------------------------------------------------------------------------------


def _table(table: Table, relation: Relation | None, told: Collection[str]) -> Iterator[Step]:
    what = f"table {table.name}"
    if relation is None:
        yield Step(Change(what, "create"), _create(table))
    elif relation.kind == "v" and relation.marked.startswith(_MARK):
        drop = f"DROP VIEW {quoted(table.name)}"
        yield Step(Change(what, "create", "in place of the view of that name"), (drop, *_create(table)))
    elif relation.kind != "r":
        yield refused(what, f"a {_RELATIONS[relation.kind]} has that name: rename it and apply again")
    elif flaw := _flaw(table, relation):
        yield refused(what, flaw)
    else:
        yield from _columns(table, relation, told)
        yield from _indexes(table, relation)
        yield from _foreign(table, relation)


def _create(table: Table) -> tuple[str, ...]:
    columns = ", ".join(column.sql for column in table.columns)
    key = f"CONSTRAINT {quoted(table.key_name)} PRIMARY KEY ({', '.join(map(quoted, table.key))})"
    comments = [comment_of(table.name, metric) for metric in table.metrics]
    return (
        f"CREATE TABLE {quoted(table.name)} ({columns}, {key})",
        *(_index(table, name) for name in table.indexes),
        *filter(None, comments),
    )


def _index(table: Table, name: str) -> str:
    over = table.indexes[name]
    return f"CREATE INDEX {quoted(name)} ON {quoted(table.name)} {over if over.startswith('USING') else f'({over})'}"


def _flaw(table: Table, relation: Relation) -> str:
    """Why a table cannot be made ours without touching what it holds; '' when it can."""
    lacking = [name for name in table.key if name not in relation.columns]
    if lacking and table.name == NARROW.name:
        return (
            f"it has no {', '.join(lacking)}, without which two pins of a controller that report at one instant "
            f"overwrite each other: {aside(table.name)}"
        )
    if lacking:
        return f"it has no {', '.join(lacking)}, which its key needs: {aside(table.name)}"
    if relation.key and relation.key != table.key:
        return f"its key is ({', '.join(relation.key)}), not ({', '.join(table.key)}): {aside(table.name)}"
    for column in table.columns:
        found = relation.columns.get(column.name)
        if found is not None and not column.metric and (found.type != column.type or found.generated):
            kind = f"generated {found.type}" if found.generated else found.type
            return f"its column {column.name} is {kind}, not {column.type}: {aside(table.name)}"
    return ""


def _rights(table: Table, relation: Relation, wanted: Desired) -> Iterator[Step]:
    """What the role that plans may not do to a table that workers write; only another can give it."""
    if table.name not in wanted.written or relation.kind != "r":
        return
    user = quoted(wanted.server.user)
    if relation.denied:
        rights = ", ".join(relation.denied)
        yield refused(
            f"rights on {table.name}",
            f"{wanted.server.user} may not {rights}: have the table's owner run GRANT {rights} ON "
            f"{quoted(table.name)} TO {user}",
        )
    if wanted.grows and table.name in wanted.wide and not relation.owned:
        yield refused(
            f"ownership of {table.name}",
            f"{wanted.server.user} does not own it, and only an owner can make the columns of new metrics: have its "
            f"owner or a superuser run ALTER TABLE {quoted(table.name)} OWNER TO {user}, or GRANT the owner's role to "
            f"{user}, or set TIMESCALE_NEW_COLUMNS=plan",
        )


def _other_type(table: Table, column: Column, found: LiveColumn, told: Collection[str]) -> str:
    """What is wrong with a column of another type, and what a person can do."""
    kind = f"generated {found.type}" if found.generated else found.type
    name = f"{table.name}.{column.metric}"
    advice = ""
    if name in told:
        advice = f", or take {name} out of TIMESCALE_COLUMNS"
    elif word := None if found.generated else _WORDS.get(found.type):
        advice = f", or say {name}={word} in TIMESCALE_COLUMNS"
    return (
        f"it is {kind}, not {column.type}{' as TIMESCALE_COLUMNS says' if name in told else ''}, and readings with "
        f"another type are turned away: ALTER TABLE {quoted(table.name)} RENAME COLUMN {quoted(column.name)} TO "
        f"another name and apply again{advice}"
    )


def _columns(table: Table, relation: Relation, told: Collection[str]) -> Iterator[Step]:
    name = quoted(table.name)
    if not relation.key:
        key = f"CONSTRAINT {quoted(table.key_name)} PRIMARY KEY ({', '.join(map(quoted, table.key))})"
        yield Step(Change(f"key of {table.name}", "create", ", ".join(table.key)), (f"ALTER TABLE {name} ADD {key}",))
    for column in table.columns:
        what = f"column {table.name}.{column.name}"
        found = relation.columns.get(column.name)
        if found is None:
            comment = comment_of(table.name, column.metric) if column.metric else None
            sql = (f"ALTER TABLE {name} ADD COLUMN {column.sql}", *filter(None, [comment]))
            yield Step(Change(what, "create", column.type), sql)
        elif found.type != column.type or found.generated:
            yield refused(what, _other_type(table, column, found, told))
        else:
            yield from _altered(what, f"ALTER TABLE {name} ALTER COLUMN {quoted(column.name)}", column, found, table)


def _altered(what: str, alter: str, column: Column, found: LiveColumn, table: Table) -> Iterator[Step]:
    required = not column.null or column.name in table.key
    if required and found.null:
        yield Step(Change(what, "change", "NULL -> NOT NULL"), (f"{alter} SET NOT NULL",))
    if not required and not found.null:
        yield Step(Change(what, "change", "NOT NULL -> NULL"), (f"{alter} DROP NOT NULL",))
    wanted = column.default or None
    if _plain(found.default) != _plain(wanted):
        sql = f"{alter} DROP DEFAULT" if wanted is None else f"{alter} SET DEFAULT {wanted}"
        detail = f"default {found.default or 'none'} -> {wanted or 'none'}"
        yield Step(Change(what, "change", detail), (sql,))


def _plain(default: str | None) -> str | None:
    """A default without what the server writes around it."""
    if default is None:
        return None
    return _CAST.sub("", default).strip("()'")


def _indexes(table: Table, relation: Relation) -> Iterator[Step]:
    for name, over in table.indexes.items():
        found = relation.indexes.get(name)
        if found is None:
            yield Step(Change(f"index {name}", "create", f"{table.name} ({over})"), (_index(table, name),))
        elif found != indexed(over):
            sql = (f"DROP INDEX {quoted(name)}", _index(table, name))
            yield Step(Change(f"index {name}", "change", f"{found} -> {indexed(over)}"), sql)


def _foreign(table: Table, relation: Relation) -> Iterator[Step]:
    ours = {column.name for column in table.columns}
    for name, column in relation.columns.items():
        if name not in ours and not (table.wide and is_metric(name, column)):
            yield Step(Change(f"column {table.name}.{name}", "foreign", column.type))
    for name, over in relation.indexes.items():
        if name not in table.indexes:
            yield Step(Change(f"index {name}", "foreign", f"{table.name}: {over}"))
    for name, definition in relation.constraints.items():
        yield Step(Change(f"constraint {table.name}.{name}", "foreign", definition))


def is_metric(name: str, column: LiveColumn) -> bool:
    """Whether a column of a wide table can be one that a worker has added for a metric."""
    fits = name not in FIXED and column_of(metric_of(name, column.comment)) == name
    return fits and column.type in _KINDS and not column.generated and column.null


# -- views and version -------------------------------------------------------------------------------------------------


def _view(view: View, live: Live, broken: set[str]) -> Iterator[Step]:
    what = f"view {view.name}"
    found = live.relations.get(view.name)
    missing = sorted(broken.intersection(view.needs))
    if missing:
        yield refused(what, f"it reads the table {', '.join(missing)}, which is not as it must be")
    elif found is None:
        yield Step(Change(what, "create"), (_select(view), _marking(view, live.server.schema)))
    elif found.kind != "v":
        yield refused(
            what,
            f"a {_RELATIONS[found.kind]} has that name: rename it and apply again; or, where it is the table of a "
            f"measurement, put {view.name} into TIMESCALE_WIDE",
        )
    elif not found.marked.startswith(_MARK):
        yield refused(
            what,
            f"a view of that name was not made by iotflow: drop it (DROP VIEW {quoted(view.name)}) or rename it, and "
            "apply again",
        )
    elif found.marked != f"{_MARK} {_digest(view)} {found.digest}":
        mark = _marking(view, live.server.schema)
        drop = f"DROP VIEW {quoted(view.name)}"
        yield Step(Change(what, "change", "defined anew"), (_select(view), mark), (drop, _select(view), mark))


def _select(view: View) -> str:
    return f"CREATE OR REPLACE VIEW {quoted(view.name)} AS\n{view.sql}"


def _digest(view: View) -> str:
    return sha256(view.sql.encode()).hexdigest()[:16]


def _marking(view: View, schema: str) -> str:
    """The statement that notes on a view what it was made of, and how the server prints that.

    So a view that somebody has redefined is told from ours. Names are printed as `catalog.read` has them printed.
    """
    name = literal(f"{quoted(schema)}.{quoted(view.name)}")
    return (
        "DO $iotflow$ BEGIN PERFORM set_config('search_path', 'pg_catalog', true); "
        f"EXECUTE format('COMMENT ON VIEW %s IS %L', {name}, "
        f"'{_MARK} {_digest(view)} ' || md5(pg_get_viewdef({name}::regclass))); END $iotflow$"
    )


def _version(live: Live) -> Iterator[Step]:
    if live.version != SCHEMA_VERSION:
        action = Change("schema version", "create", str(SCHEMA_VERSION))
        if live.version is not None:
            action = Change("schema version", "change", f"{live.version} -> {SCHEMA_VERSION}")
        yield Step(action)


def counted(name: str, column: LiveColumn) -> bool:
    """Whether a column of a wide table holds a metric's numbers."""
    return is_metric(name, column) and column.type in NUMBERS
