"""`iotflow stop`."""

from __future__ import annotations

import click

from app.cli import _control


@click.command()
@_control.stage_options
def command(stage: str | None, *, every: bool, timeout: float, as_json: bool) -> None:
    """Stop the intake of all workers of STAGE: they stay alive and are not ready, and their records wait in Kafka.

    STAGE is decode or a store's, as store-timescale. What is being written is finished, and nothing after that.

    It lasts until `iotflow resume`, and no longer than the worker: one that is started anew, or joins later, works. To
    stop a stage for good, stop its workers. `iotflow status` shows who is stopped.

    Exits with 0 when all did it, 1 when somebody failed or did not answer in time, or no worker of STAGE is alive; each
    is said by name.
    """
    _control.ask_stage("stop", stage, every=every, timeout=timeout, as_json=as_json)
