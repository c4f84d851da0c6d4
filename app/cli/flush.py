"""`iotflow flush`."""

from __future__ import annotations

import click

from app.cli import _control


@click.command()
@_control.stage_options
def command(stage: str | None, *, every: bool, timeout: float, as_json: bool) -> None:
    """Have what the workers of STAGE hold stored now, without waiting for full batches or their time.

    STAGE is decode or a store's, as store-timescale. Each of its live workers answers when all that it held at that
    moment is stored or dead-lettered; what it takes in meanwhile is not waited for.

    Exits with 0 when all did it, 1 when somebody failed or did not answer in time, or no worker of STAGE is alive; each
    is said by name.
    """
    _control.ask_stage("flush", stage, every=every, timeout=timeout, as_json=as_json)
