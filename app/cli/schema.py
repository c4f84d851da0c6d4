"""`iotflow schema`."""

import asyncio
import json
import sys

import click


@click.group()
def command() -> None:
    """Make the tables that the stores need."""


@command.command()
@click.option("--store", "stores", multiple=True, help="Only this store; may be repeated.  [default: STORES]")
@click.option("--json", "as_json", is_flag=True, help="Print the outcome as JSON.")
def apply(stores: tuple[str, ...], as_json: bool) -> None:  # noqa: FBT001  a flag
    """Create what is missing; may be run again at any time. Exits 1 when a store cannot be reached or refuses."""
    from app.settings import SettingsError, load
    from sinks import registry

    try:
        settings = load()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    unknown = set(stores) - set(registry.load())
    if unknown:
        raise click.BadParameter(f"no store is called {unknown.pop()!r}; there are: {', '.join(registry.load())}")
    outcome: dict[str, dict[str, object]] = {}
    for name in stores or settings.stores:
        module = registry.load()[name]
        try:
            notes = asyncio.run(module.apply_schema(settings.sinks[name]))
            outcome[name] = {"ok": True, "notes": notes}
        except Exception as error:  # noqa: BLE001  the sink says what it means
            verdict = module.Sink(settings.sinks[name]).classify(error)
            outcome[name] = {"ok": False, "error": getattr(verdict, "remedy", None) or str(error)}
    if as_json:
        click.echo(json.dumps(outcome))
    else:
        for name, found in outcome.items():
            for note in found.get("notes", [found.get("error")]):  # type: ignore[attr-defined]
                click.echo(f"{name}: {note}", err=not found["ok"])
    sys.exit(0 if all(found["ok"] for found in outcome.values()) else 1)
