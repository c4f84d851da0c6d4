"""What the commands have in common that ask something of running workers, or how they stand."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from app.cli._kafka import with_kafka

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from app.control import Asked
    from app.settings import Settings
    from schemas.control import Action, Reply

_FAILED: Final = 1

Command = TypeVar("Command", bound="Callable[..., None]")

timeout_option = click.option(
    "--timeout",
    type=click.IntRange(1, 86_000),
    default=60,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for the answers. A worker that has not finished by then gives up.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


def stage_options(function: Command) -> Command:
    """STAGE or --all, --timeout and --json."""
    every = click.option("--all", "every", is_flag=True, help="All workers of all stages.")
    stage = click.argument("stage", required=False)
    return stage(every(timeout_option(json_option(function))))


def ask_stage(action: Action, stage: str | None, *, every: bool, timeout: float, as_json: bool) -> None:
    """Ask the workers of a stage or of all, show what came of it, and exit."""
    from app import control
    from app.stages import known
    from schemas.control import EVERY

    if (stage is None) is not every:
        raise click.UsageError("Name one STAGE, or say --all.")

    async def run(settings: Settings) -> Asked:
        if stage is not None and stage not in known():
            raise click.BadParameter(f"no stage is called {stage!r}; stages: {', '.join(known())}", param_hint="STAGE")
        return await control.ask(settings, action, stage or EVERY, timeout=timeout)

    asked = with_kafka(run)
    finish(action, asked, [] if stage is None else [stage], as_json=as_json)


def finish(action: Action, asked: Asked, stages: Sequence[str], *, as_json: bool) -> None:
    """Show what came of a request, and exit with 0 when all did it."""
    from schemas import control

    wrong = control.problems(action, asked.replies, stages)
    if as_json:
        found = {
            "ok": not wrong,
            "request": asked.id,
            "answers": [_as_object(reply) for reply in asked.replies],
            "problems": wrong,
        }
        click.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(asked.replies)
        for line in wrong:
            click.echo(line, err=True)
    sys.exit(_FAILED if wrong else 0)


def _as_object(reply: Reply) -> dict[str, Any]:
    found = reply.answer
    said: dict[str, Any] = {"worker": reply.worker, "stage": reply.stage, "ok": reply.ok, "answered": found is not None}
    return {**said, "mine": found is not None and found.mine, "detail": reply.why if found is None else found.detail}


def _show(replies: Sequence[Reply]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for column in ("worker", "", "what"):
        table.add_column(column, overflow="fold")
    for reply in replies:
        found = reply.answer
        if found is None:
            word, style = "no answer", "bold red"
        elif not found.ok:
            word, style = "failed", "bold red"
        else:
            word, style = ("done", "green") if found.mine else ("not its", "dim")
        # Text, not markup: what a worker says may hold brackets.
        table.add_row(Text(reply.worker), Text(word, style=style), Text(reply.why if found is None else found.detail))
    if replies:
        Console().print(table)
