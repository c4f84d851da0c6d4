"""`iotflow topics`: the Kafka topics there should be, and putting them right."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from app.cli._kafka import with_kafka

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.settings import Settings
    from app.topics import Plan, Topic

_CHANGES = 2
_REFUSED = 1


@click.group()
def command() -> None:
    """Compare Kafka's topics with the configuration, create and adjust them.

    Settings that are larger than needed stay; partition counts are never changed in place.
    """


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def plan(*, as_json: bool) -> None:
    """Show what `apply` would do.

    Exits with 0 when there is nothing to do, 2 when something would change, 1 when something is refused or failed.
    """
    from app import topics

    found = _with_admin(lambda admin, settings: topics.plan(admin, topics.wanted(settings)))
    _show(found, as_json=as_json, done=False)
    if found.refused:
        sys.exit(_REFUSED)
    sys.exit(_CHANGES if found.pending else 0)


@command.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def apply(*, as_json: bool) -> None:
    """Create and adjust topics, and wait until they can be used.

    Exits with 0 when all is as it should be, 1 when something is refused (the rest is done) or failed.
    """
    from app import topics

    async def run(admin: Any, settings: Settings) -> Plan:
        return await topics.apply(admin, await topics.plan(admin, topics.wanted(settings)))

    done = _with_admin(run)
    _show(done, as_json=as_json, done=True)
    sys.exit(_REFUSED if done.refused else 0)


def _with_admin(work: Callable[[Any, Settings], Awaitable[Plan]]) -> Plan:
    from app import kafka

    async def run(settings: Settings) -> Plan:
        async with kafka.admin(settings) as admin:
            return await work(admin, settings)

    return with_kafka(run)


def _show(plan: Plan, *, as_json: bool, done: bool) -> None:
    if as_json:
        click.echo(json.dumps(_as_object(plan), indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("topic", "", "what"):
        table.add_column(column, overflow="fold")

    def row(name: str, word: str, what: str, style: str) -> None:
        # Text, not markup: names and values may hold brackets.
        table.add_row(Text(name), Text(word, style=style), Text(what))

    for topic in plan.create:
        row(topic.name, "created" if done else "create", _summary(topic), "green")
    for change in plan.change:
        what = ", ".join(f"{name} {old} → {new}" for name, (old, new) in change.config.items())
        row(change.name, "changed" if done else "change", what, "yellow")
    for refusal in plan.refused:
        row(refusal.name, "refused", refusal.reason, "bold red")
    for name in plan.unchanged:
        row(name, "as it is", "", "dim")
    Console().print(table)


def _summary(topic: Topic) -> str:
    config = ", ".join(f"{name}={value}" for name, value in topic.config.items())
    return f"partitions={topic.partitions}, replicas={topic.replication}, {config}"


def _as_object(plan: Plan) -> dict[str, Any]:
    return {
        "create": [
            {"name": t.name, "partitions": t.partitions, "replication": t.replication, "config": dict(t.config)}
            for t in plan.create
        ],
        "change": [
            {"name": c.name, "config": {name: {"from": old, "to": new} for name, (old, new) in c.config.items()}}
            for c in plan.change
        ],
        "refused": [{"name": r.name, "reason": r.reason} for r in plan.refused],
        "unchanged": list(plan.unchanged),
    }
