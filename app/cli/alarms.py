"""`iotflow alarms`: what is wrong with devices, who knows of it, and saying so."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from app.cli import _control, _terminal
from app.cli._kafka import with_kafka
from schemas.alarm import SEVERITIES, STATES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from app.alarms import Device, Held
    from app.control import Asked
    from app.settings import Settings
    from schemas.alarm import Record, Severity, State
    from schemas.control import Action

_WRONG: Final = 1
_STYLES: Final = {"EMERGENCY": "bold red", "WARN": "yellow", "INFO": "cyan"}
#: So much of an id is shown in a table, which is enough to name it by.
_ID_CHARS: Final = 8
#: A request has room for so long a name.
_NAME_CHARS: Final = 512

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people.")
_wanted = click.argument("wanted", metavar="ID|KEY")


def _name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not 0 < len(value.strip()) <= _NAME_CHARS:
        raise click.BadParameter(f"is empty, or longer than {_NAME_CHARS} characters")
    return value


_by = click.option("--by", metavar="NAME", callback=_name, help="Who says so.  [default: you, as USER@HOST]")


@click.group()
def command() -> None:
    """List, show, acknowledge and resolve alarms: what the rules and detectors found wrong with devices.

    An alarm is of one metric of a device and one rule. ID is its id or the beginning of it, KEY is
    DEVICE|CHANNEL|METRIC|RULE, in quotes for the shell; |MEASUREMENT behind it is needed only to tell two apart.
    """


@command.command()
@click.option("--device", "devices", multiple=True, metavar="NAME", help="Of this device, or of all like EQ00*.")
@click.option(
    "--severity", "severities", multiple=True, type=click.Choice(SEVERITIES, case_sensitive=False), help="As severe."
)
@click.option(
    "--state", "states", multiple=True, type=click.Choice(STATES, case_sensitive=False), help="In this state."
)
@click.option("--all", "every", is_flag=True, help="In any state.")
@click.option("--by", "by", type=click.Choice(["device"]), help="A line for each device: its worst open alarm.")
@_json
def ls(  # noqa: PLR0913  its options
    devices: Sequence[str],
    severities: Sequence[Severity],
    states: Sequence[State],
    *,
    every: bool,
    by: str | None,
    as_json: bool,
) -> None:
    """List the alarms that are open (ACTIVE, ACKNOWLEDGED or FLAPPING), the newest first.

    Options may be repeated: one of each kind must be true of an alarm. Of each subject, a metric and its rule, there is
    the last alarm; earlier ones are in the stores.

    Exits with 0, and with 1 when there are records that are no alarms (they are named on stderr), or the topic cannot
    be read.
    """
    from app import alarms
    from schemas.alarm import OPEN

    if every and states:
        raise click.UsageError("Say --state or --all, not both.")
    chosen = alarms.Chosen(devices, severities, states or (() if every else tuple(OPEN)))
    held = with_kafka(alarms.held)
    found = [record for record in held.records if chosen.admits(record)]
    if by is not None:
        _devices(alarms.by_device(found), held, as_json=as_json)
    elif as_json:
        _print({"alarms": [_as_object(record) for record in found], "refused": _refused(held)})
    elif found:
        _table(found)
    if not as_json:
        for key, why in _refused(held).items():
            click.echo(f"refused: {key}: {why}", err=True)
        if by is None:
            click.echo(f"{len(found)} of {len(held.records)} alarms", err=True)
    sys.exit(_WRONG if held.broken else 0)


@command.command()
@_wanted
@_json
def show(wanted: str, *, as_json: bool) -> None:
    """Show all that is known of an alarm.

    Exits with 0, and with 1 when there is none such, or several.
    """
    from app import alarms

    record = _find(with_kafka(alarms.held), wanted)
    if as_json:
        _print(_as_object(record))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _as_object(record).items():
        if value not in {None, ""}:
            # Text, not markup: names may hold brackets.
            table.add_row(name, Text(str(value), style=_STYLES[record.severity] if name == "severity" else ""))
    _terminal.show(table)


@command.command()
@_wanted
@_by
@_control.timeout_option
@_json
def ack(wanted: str, *, by: str | None, timeout: float, as_json: bool) -> None:
    """Say that somebody knows of an alarm.

    It stays open until it is right again, and asks for another acknowledgement if it gets worse. The worker that has
    the device does it, and answers when it has.

    Exits with 0 when it is done, and with 1 when there is no such alarm, nobody has it just now, or the answer did not
    come in time.
    """
    _ask("acknowledge", wanted, by, timeout=timeout, as_json=as_json)


@command.command()
@_wanted
@_by
@_control.timeout_option
@_json
def resolve(wanted: str, *, by: str | None, timeout: float, as_json: bool) -> None:
    """Say that an alarm is done.

    While what it is about stays wrong, nothing more is said of it; a new alarm is raised when it gets worse, or when it
    was right once and is wrong again.

    Exits with 0 when it is done, and with 1 when there is no such alarm, nobody has it just now, or the answer did not
    come in time.
    """
    _ask("resolve", wanted, by, timeout=timeout, as_json=as_json)


def _ask(action: Action, wanted: str, by: str | None, *, timeout: float, as_json: bool) -> None:
    from app import alarms, control
    from schemas.control import ANALYZE

    async def run(settings: Settings) -> Asked:
        record = _find(await alarms.held(settings), wanted)
        return await control.ask(settings, action, ANALYZE, alarm=record.key, timeout=timeout, by=by or "")

    asked = with_kafka(run)
    _control.finish(action, asked, [ANALYZE], as_json=as_json)


def _find(held: Held, wanted: str) -> Record:
    from app import alarms
    from schemas.alarm import AlarmError

    try:
        return alarms.find(held.records, wanted)
    except AlarmError as error:
        raise click.ClickException(str(error)) from error


# -- showing -----------------------------------------------------------------------------------------------------------


def _devices(devices: Sequence[Device], held: Held, *, as_json: bool) -> None:
    from msgspec import to_builtins

    if as_json:
        shown = [{**to_builtins(each), "worst": _as_object(each.worst)} for each in devices]
        _print({"devices": shown, "refused": _refused(held)})
        return
    from rich.text import Text

    table = _terminal.table_of("device", "severity", "open", "since", "worst")
    for each in devices:
        table.add_row(
            Text(each.device_id), _severity(each.worst), str(each.open), _time(each.since), Text(each.worst.message)
        )
    if devices:
        _terminal.show(table)
    click.echo(f"{len(devices)} device{'' if len(devices) == 1 else 's'} with open alarms", err=True)


def _table(records: Sequence[Record]) -> None:
    from rich.text import Text

    table = _terminal.table_of("id", "severity", "state", "raised", "device", "metric", "rule", "what")
    for column in table.columns[:2]:
        column.no_wrap = True
    for record in records:
        metric = " ".join(filter(None, [record.channel, record.metric]))
        state = record.state + (f" by {record.acknowledged_by}" if record.state == "ACKNOWLEDGED" else "")
        # Text, not markup: names may hold brackets.
        table.add_row(
            record.alarm_id[:_ID_CHARS],
            _severity(record),
            Text(state + " (replayed)" * record.replayed),
            _time(record.raised_at),
            *map(Text, (record.device_id, metric, record.rule, record.message)),
        )
    _terminal.show(table)


def _severity(record: Record) -> Any:
    from rich.text import Text

    return Text(record.label or record.severity, style=_STYLES[record.severity])


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


def _as_object(record: Record) -> dict[str, Any]:
    from msgspec import to_builtins

    found: dict[str, Any] = to_builtins(record)
    return found


def _refused(held: Held) -> dict[str, str]:
    return {key.decode("utf-8", "backslashreplace"): why for key, why in held.broken.items()}


def _print(found: Any) -> None:
    click.echo(json.dumps(found, indent=2, ensure_ascii=False))
