"""`iotflow resume`."""

from __future__ import annotations

import click

from app.cli import _control


@click.command()
@_control.stage_options
def command(stage: str | None, *, every: bool, timeout: float, as_json: bool) -> None:
    """Have all workers of STAGE go on, after `iotflow stop` or because most records were refused.

    STAGE is decode or a store's, as store-timescale. Before going on after the ceiling tripped, look at the dead
    letters: what made it trip is refused again, until it is put right.

    Exits with 0 when all did it, 1 when somebody failed or did not answer in time, or no worker of STAGE is alive; each
    is said by name.
    """
    _control.ask_stage("resume", stage, every=every, timeout=timeout, as_json=as_json)
