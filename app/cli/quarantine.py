"""`iotflow quarantine`: readings of devices that were over their budgets: whose, why, and sending them on."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Final

import click

from app.cli import _letters
from app.cli._kafka import with_kafka
from app.cli._terminal import bar, on_signal, show, table_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from app.quarantine import Done, Held
    from app.settings import Settings

_STOPPED: Final = 130

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people.")


@click.group()
def command() -> None:
    """List readings that were held back because their devices were over budget, and send them on.

    With IOTFLOW_BUDGET=quarantine decode sends the readings of a device that is over its budget (too many readings, or
    too many series) to a topic of their own instead of the decoded one. By default it only reports such devices.
    """


@command.command()
@_json
def ls(*, as_json: bool) -> None:
    """Count what the quarantine has, by device, the noisiest first; times are those of receipt.

    What was sent on stays in the topic until its retention ends: `waiting` is what was not.

    Exits with 0, and with 1 when the topic cannot be read.
    """
    from app import quarantine

    async def run(settings: Settings) -> list[Held]:
        with bar("read", as_json=as_json) as on_read:
            return await quarantine.survey(settings, on_read)

    found = with_kafka(run)
    if as_json:
        click.echo(_letters.as_json(_list_object(found), indent=2))
    else:
        _print_list(found)


def _glob(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    if not value:
        raise click.BadParameter("is empty: name a device, or a pattern as 'sensor-*'")
    return value


@command.command()
@click.option(
    "--device",
    "glob",
    default="*",
    metavar="GLOB",
    callback=_glob,
    help="Only of devices that this matches, as 'sensor-*' (*, ?, [abc]).  [default: all]",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@_json
def replay(*, glob: str, dry_run: bool, as_json: bool) -> None:
    """Send readings on to the decoded topic, each device's in order: up to what there is now, and each once.

    How far it came is kept in Kafka, also of some devices only, so the same command again sends what is new; after an
    interruption it goes on, and sends at most what was under way (a thousand readings) once more, which changes nothing
    in the stores. What the stores have got of the same series and time meanwhile is replaced.

    Exits with 0 when all that was chosen was sent, 1 when something failed, 130 when it was interrupted.
    """
    from app import quarantine

    async def run(settings: Settings) -> Done:
        with bar("read", as_json=as_json) as on_sent:
            return await quarantine.replay(settings, glob, dry_run=dry_run, stop=on_signal(), on_sent=on_sent)

    done = with_kafka(run)
    if as_json:
        click.echo(_letters.as_json(_done_object(done, dry_run=dry_run), indent=2))
    else:
        _print_done(done, dry_run=dry_run)
    sys.exit(_STOPPED if done.stopped else 0)


def _list_object(found: Sequence[Held]) -> dict[str, Any]:
    return {
        "readings": sum(held.readings for held in found),
        "waiting": sum(held.waiting for held in found),
        "devices": [
            {
                "device": held.device,
                "readings": held.readings,
                "waiting": held.waiting,
                "reasons": dict(held.reasons),
                "first": _letters.time_of(held.first_ms),
                "last": _letters.time_of(held.last_ms),
            }
            for held in found
        ],
    }


def _print_list(found: Sequence[Held]) -> None:
    from rich.text import Text

    readings, waiting = sum(held.readings for held in found), sum(held.waiting for held in found)
    if found:
        table = table_of("device", "readings", "waiting", "reasons", "first", "last")
        for held in found:
            reasons = ", ".join(f"{reason or 'none said'} {count:,}" for reason, count in held.reasons.most_common())
            times = (_letters.time_of(held.first_ms) or "", _letters.time_of(held.last_ms) or "")
            row = (held.device, f"{held.readings:,}", f"{held.waiting:,}", reasons, *times)
            table.add_row(*(Text(_letters.safe(cell)) for cell in row))
        show(table)
    devices = _letters.counted(len(found), "device")
    click.echo(f"{_letters.counted(readings, 'reading')} of {devices}, {waiting:,} waiting", err=True)


def _done_object(done: Done, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "readings": done.devices.total(),
        "devices": dict(done.devices.most_common()),
        "left": done.left,
        "stopped": done.stopped,
    }


def _print_done(done: Done, *, dry_run: bool) -> None:
    verb = "would be sent" if dry_run else "sent"
    devices = _letters.counted(len(done.devices), "device")
    click.echo(f"{_letters.counted(done.devices.total(), 'reading')} of {devices} {verb} on")
    if done.left:
        click.echo(f"{_letters.counted(done.left, 'reading')} of other devices left waiting", err=True)
    if done.stopped:
        click.echo("stopped: the same command goes on", err=True)
