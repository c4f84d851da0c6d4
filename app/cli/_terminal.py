"""What commands show on a terminal: tables, progress, and that they finish what was begun when they are interrupted."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from app.deadletters import Progress


def table_of(*columns: str) -> Table:
    """An empty table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def show(what: Any) -> None:
    """Print a table."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=1_000_000)  # where no terminal folds lines, nothing does
    console.print(what, highlight=False)


def on_signal() -> asyncio.Event:
    """Set by the first interruption, after which what has been begun is finished; the second ends it at once."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def first() -> None:
        stop.set()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
        click.echo("finishing what was begun; once more to stop at once", err=True)

    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, first)
    return stop


@contextmanager
def bar(what: str, *, as_json: bool) -> Iterator[Progress | None]:
    """A progress bar on stderr, where somebody looks at it."""
    if as_json or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True), transient=True))
        task = progress.add_task(what, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)
