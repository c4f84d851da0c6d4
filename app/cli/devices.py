"""`iotflow devices`: which devices there are, which have gone silent, and all that is known of one."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from app.cli import _letters
from app.cli._kafka import with_kafka
from app.cli._terminal import bar, show, table_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime, timedelta

    from app.devices import Device, Event, Fleet, Present, Shown, Totals
    from app.settings import Settings
    from schemas.alarm import Record
    from schemas.latest import Latest

_WRONG: Final = 1
_SPANS: Final = ((86_400, "d"), (3600, "h"), (60, "m"))
#: So much of an alarm's id is enough to name it by.
_ID_CHARS: Final = 8

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people.")


def _span(_ctx: click.Context, _param: click.Parameter, value: str | None) -> timedelta | None:
    from schemas.duration import parse

    if value is None:
        return None
    try:
        return parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _facilities(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> Sequence[str]:
    if not all(values):
        raise click.BadParameter("is empty: name a facility, or a pattern as 'plant-*'")
    return values


_facility = click.option(
    "--facility",
    "facilities",
    multiple=True,
    metavar="NAME",
    callback=_facilities,
    help="Of this facility, or of all like 'plant-*'; may be repeated.",
)


@click.group()
def command() -> None:
    """List devices, show one, and find those that have gone silent.

    A device is known from its first reading on that the stage analyze has read. Times are when readings were received,
    by Kafka's clock. A device is online while a reading came within IOTFLOW_IDLE; this is judged now, so while no
    analyze worker runs every device goes offline (iotflow status shows the workers).
    """


@command.command()
@click.option("--stale", metavar="SPAN", callback=_span, help="Silent for so long at least: 90s, 15m, 12h, 7d.")
@click.option("--offline", is_flag=True, help="Only those that are offline.")
@click.option(
    "--sort",
    "by",
    type=click.Choice(["seen", "count", "name"]),
    default="seen",
    show_default=True,
    help="The last heard first, the most readings of the day first, or by name.",
)
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Only the first N.")
@_facility
@click.option("--alarms", "with_alarms", is_flag=True, help="Count the open alarms of each.")
@_json
def ls(  # noqa: PLR0913  its options
    stale: timedelta | None,
    by: Any,
    top: int | None,
    facilities: Sequence[str],
    *,
    offline: bool,
    with_alarms: bool,
    as_json: bool,
) -> None:
    """List devices, and above them how many there are, how many are online, and how much they sent.

    Readings are counted of the hour and the day (UTC) that are not over yet, by the readings' own times: of an earlier
    hour nothing is kept. Where a device's clock is ahead in another hour the count is `?`, and in no sum. The totals
    are of all devices, or of those of the facilities; --stale, --offline and --top choose among them.

    Exits with 0, and with 1 when there are records that cannot be read (they are named on stderr), or no topic.
    """
    from app import devices

    found, now, everyone = _everyone(facilities, with_alarms=with_alarms, as_json=as_json)
    chosen = [
        each
        for each in devices.ordered(everyone, by)
        if not (offline and each.online) and (stale is None or each.silent_s >= stale.total_seconds())
    ][:top]
    totals = devices.totals(everyone)
    if as_json:
        _print(
            {
                "at": now.at,
                "hour": now.hour,
                "day": now.day,
                "totals": _totals_object(totals),
                "devices": [_as_object(each) for each in chosen],
                "refused": _refused(found.broken),
            }
        )
    else:
        _print_totals(totals, now)
        _table(chosen, now, with_alarms=with_alarms)
        _say_refused(found.broken)
        click.echo(f"{len(chosen):,} of {_letters.counted(len(everyone), 'device')}", err=True)
        _say_quiet(everyone, now)
    sys.exit(_WRONG if found.broken else 0)


@command.command()
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Only N of them.")
@_facility
@_json
def stale(top: int, facilities: Sequence[str], *, as_json: bool) -> None:
    """List the devices that are offline, the longest silent first.

    Exits with 0, and with 1 when there are records that cannot be read (they are named on stderr), or no topic.
    """
    from app import devices

    found, now, everyone = _everyone(facilities, with_alarms=False, as_json=as_json)
    silent = devices.longest_silent(everyone)
    if as_json:
        shown = [_as_object(each) for each in silent[:top]]
        _print({"at": now.at, "offline": len(silent), "devices": shown, "refused": _refused(found.broken)})
    else:
        _table(silent[:top], now, with_alarms=False)
        _say_refused(found.broken)
        click.echo(f"{len(silent):,} of {_letters.counted(len(everyone), 'device')} offline", err=True)
        _say_quiet(everyone, now)
    sys.exit(_WRONG if found.broken else 0)


@command.command("show")
@click.argument("device_id", metavar="DEVICE")
@_json
def show_(device_id: str, *, as_json: bool) -> None:
    """Show a device: the last values of its channels, its open alarms, and its last ten quality events.

    The last values are those of the newest reading of each channel. Secrets are hidden.

    Exits with 0, and with 1 when no such device is known, or records of it cannot be read (named on stderr).
    """
    from app import devices
    from schemas.control import utcnow

    async def run(settings: Settings) -> tuple[Shown, Present]:
        with bar("read", as_json=as_json) as on_read:
            found = await devices.show(settings, device_id, on_read)
        return found, devices.present(settings, utcnow())

    found, now = with_kafka(run)
    if not found.channels:
        _say_refused(found.broken)
        raise click.ClickException(f"no device is known as {_letters.safe(device_id)}; see iotflow devices ls")
    about = devices.device(device_id, found.channels, now, len(found.alarms))
    if as_json:
        _print(_whole_object(about, found, now))
    else:
        _print_device(about, found, now)
        _say_refused(found.broken)
    sys.exit(_WRONG if found.broken else 0)


def _everyone(
    facilities: Sequence[str], *, with_alarms: bool, as_json: bool
) -> tuple[Fleet, Present, Sequence[Device]]:
    """What the topic holds, and its devices as they stand now."""
    from app import alarms, devices
    from schemas.control import utcnow

    async def run(settings: Settings) -> tuple[Fleet, alarms.Held | None, Present]:
        with bar("read", as_json=as_json) as on_read:
            found = await devices.fleet(settings, on_read)
        held = await alarms.held(settings) if with_alarms else None
        return found, held, devices.present(settings, utcnow())

    found, held, now = with_kafka(run)
    count: dict[str, int] = {}
    if held is not None:
        count = {each.device_id: each.open for each in alarms.by_device(held.records)}
        found.broken |= held.broken
    everyone = [
        devices.device(device_id, channels, now, count.get(device_id, 0) if with_alarms else None)
        for device_id, channels in found.devices.items()
    ]
    return found, now, list(filter(devices.in_facilities(facilities), everyone))


# -- for programs ------------------------------------------------------------------------------------------------------


def _as_object(each: Device) -> dict[str, Any]:
    shown = {
        "device": each.device_id,
        "facility": each.facility or None,
        "online": each.online,
        "seen": each.seen,
        "silent_s": round(each.silent_s, 3),
        "first_seen": each.first_seen,
        "readings_hour": each.hour,
        "readings_day": each.day,
        "channels": each.channels,
    }
    return shown if each.alarms is None else {**shown, "open_alarms": each.alarms}


def _totals_object(totals: Totals) -> dict[str, Any]:
    return {
        "devices": totals.devices,
        "online": totals.online,
        "offline": totals.devices - totals.online,
        "channels": totals.channels,
        "readings_hour": totals.hour,
        "readings_day": totals.day,
        "uncounted_devices": totals.unknown,
    }


def _whole_object(about: Device, found: Shown, now: Present) -> dict[str, Any]:
    from msgspec import to_builtins

    return {
        "at": now.at,
        "hour": now.hour,
        "day": now.day,
        **_as_object(about),
        "channels": [_channel_object(each, now) for each in found.channels],
        "alarms": [to_builtins(each) for each in found.alarms],
        "quality": [to_builtins(each) for each in found.events],
        "refused": _refused(found.broken),
    }


def _channel_object(channel: Latest, now: Present) -> dict[str, Any]:
    from app.devices import counted, reading_of

    reading = reading_of(channel)
    return {
        "measurement": channel.measurement,
        "channel": channel.channel,
        "first_seen": channel.first_seen,
        "seen": channel.seen,
        "readings_hour": counted(channel.hour, now.hour),
        "readings_day": counted(channel.day, now.day),
        "time": reading.time,
        "values": _without_secrets(reading.values),
        "units": dict(reading.units),
        "raw": _without_secrets(reading.raw),
        "tags": _without_secrets(reading.tags),
        "flags": list(reading.flags),
    }


def _without_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _plain(name, value) for name, value in values.items()}


def _plain(name: str, value: Any) -> Any:
    """A value in which nothing is secret."""
    from schemas.payload import is_secret
    from schemas.redacted import HIDDEN, text

    if is_secret(name):
        return HIDDEN
    return text(value) if isinstance(value, str) else value


def _refused(broken: Mapping[bytes, str]) -> dict[str, str]:
    from schemas.redacted import text

    return {key.decode("utf-8", "backslashreplace"): text(why) for key, why in broken.items()}


def _print(found: Mapping[str, Any]) -> None:
    from msgspec import to_builtins

    # Characters that move a terminal's cursor are escaped: ASCII.
    click.echo(json.dumps(to_builtins(found), indent=2))


# -- for people --------------------------------------------------------------------------------------------------------


def _print_totals(totals: Totals, now: Present) -> None:
    devices = _letters.counted(totals.devices, "device")
    click.echo(
        f"{devices}: {totals.online:,} online, {totals.devices - totals.online:,} offline; readings: {totals.hour:,} "
        f"since {now.hour:%H:%M} UTC, {totals.day:,} today"
    )
    if totals.unknown:
        click.echo(f"of {_letters.counted(totals.unknown, 'device')} with clocks ahead nobody knows that", err=True)


def _table(chosen: Sequence[Device], now: Present, *, with_alarms: bool) -> None:
    from rich.text import Text

    if not chosen:
        return
    more = ["alarms"] * with_alarms
    columns = ("device", "facility", "state", "silent", "last seen", f"since {now.hour:%H:%M}", "today")
    table = table_of(*columns, "channels", "first seen", *more)
    for each in chosen:
        row = (_letters.safe(each.device_id), _letters.safe(each.facility))
        counts = [_count(each.hour), _count(each.day), f"{each.channels:,}"]
        cells = [_ago(each.silent_s), _time(each.seen), *counts, _time(each.first_seen)]
        open_alarms = [Text(str(each.alarms), style="yellow" if each.alarms else "")] * with_alarms
        table.add_row(*map(Text, row), _state(online=each.online), *map(Text, cells), *open_alarms)
    show(table)


def _print_device(about: Device, found: Shown, now: Present) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    # Text, not markup: names may hold brackets.
    table.add_row("device", Text(_letters.safe(about.device_id)))
    table.add_row("state", _state(online=about.online))
    rows = [
        ("facility", about.facility),
        ("last seen", f"{_time(about.seen)}, {_ago(about.silent_s)} ago"),
        ("first seen", _time(about.first_seen)),
        ("readings", f"{_count(about.hour)} since {now.hour:%H:%M} UTC, {_count(about.day)} today"),
    ]
    for name, value in rows:
        if value:
            table.add_row(name, Text(_letters.safe(value)))
    show(table)
    click.echo("")
    _values(found.channels)
    if found.alarms:
        click.echo("")
        _alarms(found.alarms)
    if found.events:
        click.echo("")
        _events(found.events)


def _values(channels: Sequence[Latest]) -> None:
    from rich.text import Text

    from app.devices import reading_of

    table = table_of("measurement", "channel", "metric", "value", "unit", "time", "")
    for channel in channels:
        reading = reading_of(channel)
        for metric, value in reading.values.items():
            unit, raw = reading.units.get(metric, ""), reading.raw.get(metric)
            note = "" if raw is None else f"it said {_value(_plain(metric, raw))}"
            row = (channel.measurement, channel.channel, metric, _value(_plain(metric, value)), unit)
            table.add_row(*(Text(_letters.safe(cell)) for cell in (*row, _time(reading.time), note)))
    show(table)


def _alarms(records: Sequence[Record]) -> None:
    from rich.text import Text

    table = table_of("alarm", "severity", "state", "raised", "channel", "metric", "rule", "what")
    for each in records:
        row = (each.alarm_id[:_ID_CHARS], each.label or each.severity, each.state, _time(each.raised_at))
        what = (each.channel, each.metric, each.rule, each.message)
        table.add_row(*(Text(_letters.safe(cell)) for cell in (*row, *what)))
    show(table)


def _events(events: Sequence[Event]) -> None:
    from rich.text import Text

    table = table_of("quality", "time", "measurement", "channel", "metric", "what")
    for each in events:
        row = (each.kind, _time(each.at), each.measurement, each.channel, each.metric, each.message)
        table.add_row(*(Text(_letters.safe(cell)) for cell in row))
    show(table)


def _say_refused(broken: Mapping[bytes, str]) -> None:
    for key, why in _refused(broken).items():
        click.echo(f"refused: {_letters.safe(key)}: {_letters.safe(why)}", err=True)


def _say_quiet(everyone: Sequence[Device], now: Present) -> None:
    """Where nobody was heard for long, it is likelier that nobody listens."""
    if everyone and all(now.at - each.seen > now.idle for each in everyone):
        last = min(each.silent_s for each in everyone)
        click.echo(f"nothing was heard of any of them for {_ago(last)}: does analyze run? See iotflow status", err=True)


def _state(*, online: bool) -> Any:
    from rich.text import Text

    return Text("online", style="green") if online else Text("offline", style="bold red")


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _count(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M:%SZ")


def _ago(seconds: float) -> str:
    """As `42 s`, `5 m`, `3 h`, `2 d`: the largest unit that there is one of, rounded down."""
    for length, unit in _SPANS:
        if seconds >= length:
            return f"{int(seconds // length):,} {unit}"
    return f"{int(seconds)} s"
