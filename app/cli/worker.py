"""`iotflow worker STAGE`."""

import os
import sys

import click


@click.command()
@click.argument("stage")
def command(stage: str) -> None:
    """Run one stage in this process until SIGTERM or Ctrl-C.

    The same as `faust -A app.main worker` with IOTFLOW_STAGE set, on uvloop. Start more of them to scale out, up to
    the partition count of the stage's topic; each on one machine needs its own IOTFLOW_WEB_PORT.
    """
    from app.runtime import EXIT_CONFIG
    from app.settings import SettingsError, environment, load
    from app.stages import known
    from app.supervisor import worker_command

    try:
        load()
    except SettingsError as error:
        click.echo(f"iotflow: {error}", err=True)
        sys.exit(EXIT_CONFIG)
    if stage not in known():
        raise click.BadParameter(f"no stage is called {stage!r}; stages: {', '.join(known())}", param_hint="STAGE")
    os.execve(sys.executable, worker_command(), {**environment(), "IOTFLOW_STAGE": stage})  # noqa: S606  our own
