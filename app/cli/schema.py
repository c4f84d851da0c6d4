"""`iotflow schema`: what the stores' schemas should be, what differs, and putting it right."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from sinks.base import Change, SchemaPlan

_CHANGES: Final = 2
_FAILED: Final = 1
_STYLES: Final = {"create": "green", "change": "yellow", "drop": "bold yellow", "refused": "bold red", "foreign": "dim"}
#: What not every store needs, and what it does.
_OPTIONAL: Final = {"maintain": "delete", "compress": "compress"}
_SPAN: Final = re.compile(r"([1-9][0-9]*)(min|h|d)")
_UNITS: Final = {"min": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_DONE: Final = {"create": "created", "change": "changed", "drop": "dropped"}


def _options(function: Callable[..., None]) -> Callable[..., None]:
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
    store = click.option(
        "--store", "stores", multiple=True, help="Only this store; may be repeated.  [default: STORES]"
    )
    return store(as_json(function))


@click.group()
def command() -> None:
    """Compare the stores' schemas with the configuration, make and change them.

    Tables, hypertables, columns, indexes, views, policies; databases, TTLs and rights; buckets and retention.
    """


@command.command()
@_options
def plan(stores: tuple[str, ...], *, as_json: bool) -> None:
    """Show what `apply` would do.

    Exits with 0 when there is nothing to do, 2 when something would change, 1 when something is refused or failed.
    """
    found, errors = _each("plan_schema", stores)
    _show(found, errors, as_json=as_json, nothing="nothing to do")
    pending = any(each.pending for each in found.values())
    refused = any(map(_refused, found.values()))
    sys.exit(_FAILED if errors or refused else _CHANGES if pending else 0)


@command.command()
@_options
def apply(stores: tuple[str, ...], *, as_json: bool) -> None:
    """Make what is missing and change what differs; may be run again at any time.

    Nothing that holds data is ever dropped. Exits with 0 when all is as it should be, 1 when something is refused (the
    rest is done), or a store cannot be reached.
    """
    found, errors = _each("apply_schema", stores)
    _show(found, errors, as_json=as_json, nothing="as it should be", done=True)
    refused = any(map(_refused, found.values()))
    sys.exit(_FAILED if errors or refused else 0)


@command.command()
@_options
def drift(stores: tuple[str, ...], *, as_json: bool) -> None:
    """Show how the live stores differ from the configuration, what `apply` leaves alone included.

    Exits with 0 when nothing differs, 2 when something does, 1 when a store cannot be reached.
    """
    found, errors = _each("drift", stores)
    _show(found, errors, as_json=as_json, nothing="no differences")
    sys.exit(_FAILED if errors else _CHANGES if any(each.changes for each in found.values()) else 0)


class _Span(click.ParamType):
    name = "span"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """`7d`, `12h` or `30min`."""
        found = _SPAN.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is no span of time such as 7d, 12h or 30min", param, ctx)
        try:
            return int(found[1]) * _UNITS[found[2]]
        except OverflowError:
            self.fail(f"{value!r} is too long", param, ctx)


@command.command()
@click.option("--store", "stores", multiple=True, help="Only this store; may be repeated.  [default: STORES]")
def expire(stores: tuple[str, ...]) -> None:
    """Delete what is older than the settings keep, as workers do every hour.

    For stores that do not do it by themselves: PostgreSQL without TimescaleDB. Exits with 1 when a store failed.
    """
    _say(*_each("maintain", stores), nothing="nothing to delete")


@command.command()
@click.option("--older-than", type=_Span(), required=True, help="Age of the newest row of a chunk: 7d, 12h, 30min.")
@click.option("--store", "stores", multiple=True, help="Only this store; may be repeated.  [default: STORES]")
def compress(older_than: timedelta, stores: tuple[str, ...]) -> None:
    """Compress chunks now instead of when the policy does: TimescaleDB. Exits with 1 when a store failed."""
    _say(*_each("compress", stores, older_than), nothing="nothing to compress")


def _say(done: Mapping[str, Sequence[str]], errors: Mapping[str, str], *, nothing: str) -> None:
    for name, lines in done.items():
        for line in lines or [nothing]:
            click.echo(f"{name}: {line}")
    if not done and not errors:
        click.echo(f"{nothing}: no store here needs it")
    for name, error in errors.items():
        click.echo(f"{name}: {error}", err=True)
    sys.exit(_FAILED if errors else 0)


def _each(work: str, stores: Sequence[str], *more: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """What a function of the sinks' modules gives for each store that has it, or what went wrong.

    Beside the settings it is given `more`, or the values' types where there is nothing more.
    """
    from app.settings import SettingsError, load
    from sinks import registry

    try:
        settings = load()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    unknown = set(stores) - set(registry.load())
    if unknown:
        raise click.BadParameter(f"no store is called {unknown.pop()!r}; there are: {', '.join(registry.load())}")
    found: dict[str, Any] = {}
    errors: dict[str, str] = {}
    for name in stores or settings.stores:
        module = registry.load()[name]
        if work in _OPTIONAL and not hasattr(module, work):
            if name in stores:
                errors[name] = f"there is nothing to {_OPTIONAL[work]} by hand in this store"
            continue
        try:
            found[name] = asyncio.run(getattr(module, work)(settings.sinks[name], *(more or (settings.types,))))
        except Exception as error:  # noqa: BLE001  the sink says what it means
            errors[name] = _why(module.Sink(settings.sinks[name]), settings.sinks[name], error)
    return found, errors


def _why(sink: Any, settings: Any, error: BaseException) -> str:
    """What a store's error means to a person, who is told the settings where it cannot be reached."""
    remedy: str | None = getattr(sink.classify(error), "remedy", None)
    if remedy:
        return remedy
    said = str(error) or type(error).__name__
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    if not any(isinstance(each, OSError) for each in chain):  # a time limit is one, too
        return said
    fields = [field for field in ("url", "host", "port", "nodes") if field in type(settings).model_fields]
    if not fields:
        return said
    names = ", ".join(f"{settings.PREFIX}_{field.upper()}" for field in fields)
    return f"cannot be reached at {sink.place} ({said}): check that it runs, and {names}"


def _refused(plan: SchemaPlan) -> bool:
    return any(change.action == "refused" for change in plan.changes)


def _show(
    found: Mapping[str, SchemaPlan], errors: Mapping[str, str], *, as_json: bool, nothing: str, done: bool = False
) -> None:
    if as_json:
        shown: dict[str, Any] = {name: {"ok": not _refused(each), **_as_object(each)} for name, each in found.items()}
        shown |= {name: {"ok": False, "error": error} for name, error in errors.items()}
        click.echo(json.dumps(shown, indent=2))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for name, each in found.items():
        # Text, not markup: names may hold brackets.
        console.print(Text(f"{name}: {each.server}" if each.server else name, style="bold"))
        table = Table(box=None, pad_edge=False, show_header=False)
        for column in ("what", "action", "detail"):
            table.add_column(column, overflow="fold")
        for change in each.changes:
            table.add_row(Text(change.what), _word(change, done=done), Text(change.detail))
        if each.changes:
            console.print(table)
        else:
            console.print(Text(nothing, style="dim"))
        for note in each.notes:
            console.print(Text(note, style="dim"))
    for name, error in errors.items():
        click.echo(f"{name}: {error}", err=True)


def _word(change: Change, *, done: bool) -> Any:
    from rich.text import Text

    return Text(_DONE.get(change.action, change.action) if done else change.action, style=_STYLES[change.action])


def _as_object(plan: SchemaPlan) -> dict[str, Any]:
    changes = [{"what": each.what, "action": each.action, "detail": each.detail} for each in plan.changes]
    return {"server": plan.server, "changes": changes, "notes": list(plan.notes)}
