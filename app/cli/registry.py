"""`iotflow registry`: the data points that payloads are decoded with."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli._kafka import with_kafka

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.compacted import Change, Plan, What
    from app.settings import Settings
    from schemas.point import Entry, Point

_WRONG = 1
_CHANGES = 2
_STYLES = {"added": "green", "changed": "yellow", "removed": "red"}

_file = click.argument("file", type=click.Path(path_type=Path))
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group()
def command() -> None:
    """Check, apply and show the registry of data points: what the bytes at a controller's pins mean.

    Its entries stand on a Kafka topic that every decode worker follows: what is applied holds at once.
    """


@command.command()
@_file
@_json
def check(file: Path, *, as_json: bool) -> None:
    """Say everything that is wrong with FILE, without Kafka.

    Exits with 0 when it can be applied, 1 when it cannot.
    """
    from app import registry
    from schemas.datapoints import RegistryError

    try:
        entries, problems = registry.read(file), list[str]()
    except RegistryError as error:
        entries, problems = {}, error.problems
    if as_json:
        click.echo(json.dumps({"ok": not problems, "entries": len(entries), "problems": problems}, indent=2))
    elif problems:
        click.echo("\n".join(problems), err=True)
    else:
        click.echo(f"{file}: {_pins(len(entries))}, and all of it can be applied")
    sys.exit(_WRONG if problems else 0)


@command.command()
@_file
@click.option("--prune", is_flag=True, help="Also remove what is on the topic and not in FILE.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@_json
def apply(file: Path, *, prune: bool, dry_run: bool, as_json: bool) -> None:
    """Make the topic hold what FILE says, and show what changes.

    What is as it should be is not written again. What is only on the topic stays, without --prune.

    Exits with 0 when all is as FILE says, 1 when FILE is wrong or has an entry larger than the topic takes (nothing is
    written) or something failed, and with --dry-run 2 when something would change.
    """
    from app import registry
    from schemas.datapoints import RegistryError

    try:
        wanted = registry.read(file)
    except RegistryError as error:
        raise click.ClickException(str(error)) from error

    async def run(settings: Settings) -> Plan:
        planned = registry.plan(wanted, await registry.held(settings), prune=prune)
        registry.fit(settings, planned.changes)
        if planned.changes and not dry_run:
            await registry.write(settings, planned.changes)
        return planned

    try:
        planned = with_kafka(run)
    except RegistryError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps(_as_object(planned), indent=2))
    else:
        _show(planned, done=not dry_run)
    sys.exit(_CHANGES if dry_run and planned.changes else 0)


@command.command()
@click.option("--controller", help="Only this one, by its MAC address; * is what holds for every other.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, which `apply` takes as a FILE.")
def ls(controller: str | None, *, as_json: bool) -> None:
    """Show what is on the topic.

    Records that no worker takes are named on stderr. A worker that knew the pin before such a record keeps what it
    knew; one that starts later does not know the pin.

    Exits with 0, and with 1 when there are such records, of any controller, or the topic cannot be read.
    """
    from app import registry
    from schemas import datapoints

    try:
        mac = None if controller is None else _parts(datapoints.normalise(f"{controller}/0/0"))[0]
    except datapoints.RegistryError as error:
        raise click.BadParameter(str(error), param_hint="--controller") from error
    found = with_kafka(registry.held)
    shown = {id_: entry for id_, entry in sorted(found.entries.items()) if mac in {None, _parts(id_)[0]}}
    if as_json:
        controllers: dict[str, dict[str, Any]] = {}
        for id_, entry in shown.items():
            own, pin = _parts(id_)
            controllers.setdefault(own, {})[pin] = json.loads(datapoints.encode(entry))
        click.echo(json.dumps({"controllers": controllers}, indent=2, ensure_ascii=False))
    else:
        _list(shown)
    for key, why in found.broken.items():
        click.echo(f"refused: {_text(key)}: {why}", err=True)
    sys.exit(_WRONG if found.broken else 0)


def _show(plan: Plan, *, done: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("pin", "", "what"):
        table.add_column(column, overflow="fold")
    words: dict[What, str] = {"added": "add", "changed": "change", "removed": "remove"}
    for change in plan.changes:
        word = change.what if done else words[change.what]
        what = _summary(change)
        # Text, not markup: names may hold brackets.
        table.add_row(Text(_text(change.key)), Text(word, style=_STYLES[change.what]), Text(what))
    console = Console()
    if plan.changes:
        console.print(table)
    counts = Counter(change.what for change in plan.changes)
    said = [f"{counts[what]} {what if done else f'to {words[what]}'}" for what in words]
    said += [f"{plan.unchanged} unchanged", f"{len(plan.kept)} only on the topic"]
    console.print(", ".join(said), highlight=False)


def _list(entries: Mapping[str, Entry]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("controller", "pin", "name", "data points"):
        table.add_column(column, overflow="fold")
    for id_, entry in entries.items():
        points = ", ".join(map(_point, entry.points))
        table.add_row(*map(Text, (*_parts(id_), entry.name, points)))
    Console().print(table)


def _parts(id_: str) -> tuple[str, str]:
    controller, _, pin = id_.partition("/")
    return controller, pin


def _text(key: bytes) -> str:
    from schemas.payload import QUOTED_CHARS, quoted

    text = key.decode("utf-8", "backslashreplace")
    return text if text.isprintable() and 0 < len(text) <= QUOTED_CHARS else quoted(text)


def _summary(change: Change) -> str:
    from schemas import datapoints

    if change.value is None:
        return ""
    entry = datapoints.decode(change.key.decode(), change.value)
    points = ", ".join(map(_point, entry.points))
    return f"{entry.name}: {points}" if entry.name else points


def _point(point: Point) -> str:
    place = f"{point.encoding}@{point.offset}" + (f"/{point.length}" if point.length else "")
    return f"{point.label} ({' '.join(filter(None, [place, point.unit]))})"


def _pins(count: int) -> str:
    return f"{count} pin{'' if count == 1 else 's'}"


def _as_object(plan: Plan) -> dict[str, Any]:
    changes = {what: [_text(change.key) for change in plan.changes if change.what == what] for what in _STYLES}
    return {**changes, "kept": [_text(key) for key in plan.kept], "unchanged": plan.unchanged}
