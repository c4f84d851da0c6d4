"""`iotflow status`."""

from __future__ import annotations

import asyncio
import json
import sys
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

import click

from app.cli import _control
from app.cli._kafka import with_kafka

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from rich.console import RenderableType

    from app.control import Workers
    from app.settings import Settings
    from schemas.control import Status

_EVERY_S: Final = 1.0
_NOT_WELL: Final = 1


@click.command()
@_control.json_option
@click.option("--watch", is_flag=True, help="Go on showing it until Ctrl-C; with --json, one object a line.")
def command(*, as_json: bool, watch: bool) -> None:
    """Show all workers: their partitions, whether they are ready and if not why, their lag, and when they last spoke.

    Each says of itself how it stands, every five seconds and when that changes; one that has been silent for more than
    20 seconds is shown as dead. The clocks of the machines must agree by a few seconds.

    Exits with 0 when each stage that has been run in the last hour has live workers and all of these are ready, else
    with 1 and the reasons.
    """
    wrong = with_kafka(lambda settings: _run(settings, as_json=as_json, watch=watch))
    sys.exit(_NOT_WELL if wrong else 0)


async def _run(settings: Settings, *, as_json: bool, watch: bool) -> list[str]:
    from rich.console import Console

    from app import control
    from schemas.control import utcnow

    async with control.following(settings) as workers:
        await control.forget(settings, workers)
        if watch:
            await _watch(workers, as_json=as_json)
        now = utcnow()
        wrong = _wrong(workers, now)
        if as_json:
            click.echo(json.dumps(_as_object(workers, now), indent=2, ensure_ascii=False))
        else:
            if workers.now:
                Console().print(_table(workers.now.values(), now))
            for line in wrong:
                click.echo(line, err=True)
        return wrong


async def _watch(workers: Workers, *, as_json: bool) -> None:
    """Show it again and again; ends with Ctrl-C."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from schemas.control import utcnow

    if as_json:
        while True:
            click.echo(json.dumps(_as_object(workers, utcnow()), ensure_ascii=False))
            await asyncio.sleep(_EVERY_S)

    def shown() -> RenderableType:
        now = utcnow()
        return Group(_table(workers.now.values(), now), *(Text(line, style="red") for line in _wrong(workers, now)))

    with Live(shown(), auto_refresh=False) as live:
        while True:
            await asyncio.sleep(_EVERY_S)
            live.update(shown(), refresh=True)


def _wrong(workers: Workers, now: datetime) -> list[str]:
    from schemas.control import unwell

    unreadable = [f"{name}: what it says cannot be read: {why}" for name, why in sorted(workers.broken.items())]
    return [*unwell(workers.now, now), *unreadable]


def _as_object(workers: Workers, now: datetime) -> dict[str, Any]:
    from schemas.control import as_object

    wrong = _wrong(workers, now)
    found = [as_object(each, now) for _, each in sorted(workers.now.items())]
    return {"ok": not wrong, "at": now.isoformat(), "workers": found, "problems": wrong}


def _table(statuses: Iterable[Status], now: datetime) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from schemas.control import age_s, alive

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("worker", "version", "partitions", "state", "lag", "held", "breaker", "spoke"):
        table.add_column(column, overflow="fold", justify="right" if column in {"lag", "held", "spoke"} else "left")
    for each in sorted(statuses, key=lambda each: each.worker):
        state = ("ready", "green") if each.ready else ("not ready", "bold red")
        if each.intake == "stopped":
            state = ("stopped", "bold yellow")
        if not alive(each, now):
            state = ("dead", "dim")
        lag = each.counters.lag
        # Text, not markup: names may hold brackets.
        table.add_row(
            Text(each.worker),
            Text(each.version),
            Text(_partitions(each)),
            Text(*state),
            Text("?" if lag is None else f"{lag:,}"),
            Text(f"{each.counters.held:,}"),
            Text(each.health.breaker),
            Text(f"{age_s(each, now):.0f} s ago"),
        )
    return table


def _partitions(status: Status) -> str:
    return ", ".join(f"{topic} {_ranges(numbers)}" for topic, numbers in status.assignment.items()) or "none"


def _ranges(numbers: list[int]) -> str:
    """As `0-3,7`."""
    found = []
    for _, run in groupby(enumerate(sorted(numbers)), key=lambda pair: pair[1] - pair[0]):
        some = [number for _, number in run]
        found.append(str(some[0]) if len(some) == 1 else f"{some[0]}-{some[-1]}")
    return ",".join(found)
