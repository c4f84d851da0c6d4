"""`iotflow check`."""

import asyncio
import sys
from pathlib import Path

import click


@click.command()
@click.argument("ledger", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--topic", help="Look only at what was sent to this raw topic.  [default: at all]")
@click.option("--json", "as_json", is_flag=True, help="Print the comparison as JSON.")
def command(ledger: Path, topic: str | None, as_json: bool) -> None:  # noqa: FBT001  a flag
    """Compare what `iotflow simulate --ledger LEDGER` sent with the stores and the dead letters, by content.

    Exits 0 only if every good reading is stored exactly once and every bad one, and nothing else, is a dead letter.
    What cannot be reached is named, and the rest is compared all the same.
    """
    import msgspec

    from app import check
    from app.settings import SettingsError, load

    try:
        settings = load()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    report = asyncio.run(check.compare(settings, ledger, topic))
    if as_json:
        click.echo(msgspec.json.encode({"ok": report.ok, **msgspec.to_builtins(report)}).decode())
    else:
        for name, found in {**report.stores, "dead letters": report.letters}.items():
            if name in report.unreachable:
                continue
            click.echo(
                f"{name}: {found.expected} expected, {found.missing} missing, {found.different} different, "
                f"{found.unexpected} unexpected"
            )
            for example in found.examples:
                click.echo(f"  {example}", err=True)
        for name, why in report.unreachable.items():
            click.echo(f"{name}: could not be looked into: {why}", err=True)
        click.echo("everything is as it was sent" if report.ok else "NOT as it was sent")
    sys.exit(0 if report.ok else 1)
