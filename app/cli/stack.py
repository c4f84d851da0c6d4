"""`iotflow stack`: the servers around iotflow, on this machine."""

import dataclasses
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

if TYPE_CHECKING:
    from deploy.local.server import Status
    from deploy.local.stack import Stack

_NOT_RUNNING: Final = 3
_COLOURS: Final = {"running": "green", "external": "green", "stopped": "yellow"}

_folder = click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".iotflow/stack"),
    show_default=True,
    help="Where data, logs and passwords are kept.",
)
_only = click.option("--only", metavar="NAME,…", help="Only these servers, for example kafka,postgres.")
_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")


@click.group()
def command() -> None:
    """Start and stop real servers on this machine: no Docker, no root.

    A server that your own settings name (KAFKA_BOOTSTRAP_SERVERS, TIMESCALE_HOST, …) is used as it is.
    """


@command.command()
@_only
@_folder
@_json
def up(only: str | None, folder: Path, *, as_json: bool) -> None:
    """Start the servers; quick when they run.

    Without --only, one that cannot be had on this machine is left out, and the report says why.
    """
    with _told() as stack_of:
        # Ended from outside, it still stops what it has started.
        signal.signal(signal.SIGTERM, terminated)
        stack = stack_of(folder)
        external = _environment()
        variables = stack.up(_names(only), external=external, on_progress=_progress)
        if as_json:
            _print_json({"variables": variables, "absent": stack.absent, **_as_dict(stack, external)})
            return
        _print_table(stack.status(external=external))
        _print_absent(stack)
        if variables:
            click.echo(f"Variables are in {stack.env_file}")


@command.command()
@_only
@_folder
def prepare(only: str | None, folder: Path) -> None:
    """Fetch and build what the servers need, without starting any: minutes the first time."""
    with _told() as stack_of:
        signal.signal(signal.SIGTERM, terminated)
        stack = stack_of(folder)
        stack.prepare(_names(only), external=_environment(), on_progress=_progress)
        _print_absent(stack)


@command.command()
@_only
@_folder
@_json
def down(only: str | None, folder: Path, *, as_json: bool) -> None:
    """Stop the servers; their data stays."""
    with _told() as stack_of:
        stack = stack_of(folder)
        stack.down(_names(only), on_progress=_progress)
        if as_json:
            _print_json(_as_dict(stack, {}))


@command.command()
@_folder
@_json
def status(folder: Path, *, as_json: bool) -> None:
    """Say how each server is; exit code 3 when one is not running."""
    with _told() as stack_of:
        stack = stack_of(folder)
        external = _environment()
        found = stack.status(external=external)
        if as_json:
            _print_json(_as_dict(stack, external, found))
        else:
            _print_table(found)
    if any(one.state not in {"running", "external"} for one in found):
        sys.exit(_NOT_RUNNING)


@contextmanager
def _told() -> "Iterator[type[Stack]]":
    """Turn what goes wrong into one message and exit code 1."""
    try:
        from deploy.local.files import ServerError, UnavailableError
        from deploy.local.stack import Stack
    except ImportError as error:
        raise click.ClickException(f"{error}; the local stack needs: pip install 'iotflow[local]'") from error
    try:
        yield Stack
    except UnavailableError as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(error.EXIT_CODE)
    except (ServerError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _environment() -> Mapping[str, str]:
    from app.settings import environment

    return environment()


def _names(only: str | None) -> list[str] | None:
    return None if only is None else [name.strip() for name in only.split(",") if name.strip()]


def _progress(text: str) -> None:
    click.echo(text, err=True)


def terminated(number: int, frame: object) -> NoReturn:
    """A handler of SIGTERM that lets every `finally` run."""
    del frame
    sys.exit(128 + number)


def _as_dict(stack: "Stack", external: Mapping[str, str], found: "list[Status] | None" = None) -> dict[str, object]:
    statuses = stack.status(external=external) if found is None else found
    return {"servers": [dataclasses.asdict(one) for one in statuses], "env_file": str(stack.env_file)}


def _print_json(value: object) -> None:
    click.echo(json.dumps(value, default=str))


def _print_absent(stack: "Stack") -> None:
    for reason in stack.absent.values():
        click.echo(f"Left out: {reason}")


def _print_table(found: "list[Status]") -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("server", "state", "pid", "ports", box=None, pad_edge=False)
    table.add_column("log", overflow="fold")
    for one in found:
        colour = _COLOURS.get(one.state, "red")
        ports = " ".join(f"{role} {port}" for role, port in one.ports.items())
        pid = "" if one.pid is None else str(one.pid)
        log = one.log or ""
        if isinstance(log, Path) and log.is_relative_to(Path.cwd()):
            log = log.relative_to(Path.cwd())
        table.add_row(one.name, f"[{colour}]{one.state}[/]", pid, ports, str(log))
    Console().print(table)
