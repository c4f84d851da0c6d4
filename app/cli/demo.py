"""`iotflow demo`, which is what `make run` runs."""

import asyncio
import logging.config
import sys
from pathlib import Path

import click


@click.command()
@click.option("--run-for", envvar="RUN_FOR", type=click.FloatRange(1), help="Seconds to run, then check and stop.")
@click.option("--devices", envvar="NUM_DEVICES", default=100, show_default=True, type=click.IntRange(1))
@click.option("--rate", default=500.0, show_default=True, type=click.FloatRange(0), help="Readings a second in total.")
@click.option("--bad", default=0.01, show_default=True, type=click.FloatRange(0, 1), help="Share that must be refused.")
@click.option("--dialect", default="telemetry", show_default=True, help="What the devices speak.")
@click.option("--keep", is_flag=True, help="Leave the servers running at the end.")
def command(run_for: float | None, devices: int, rate: float, bad: float, dialect: str, keep: bool) -> None:  # noqa: FBT001, PLR0913  options
    """Start real servers, every stage and a fleet of simulated devices, and watch the telemetry flow.

    Servers that your own settings name are used instead of started ones. At the end (after RUN_FOR seconds, or on
    Ctrl-C) what was sent is compared, by content, with the stores and the dead letters; exits 0 only if all is there
    exactly once.
    """
    from rich.console import Console

    from app import logs
    from app.demo import Demo, Options
    from app.settings import SettingsError, environment, load
    from deploy.local.files import ServerError
    from deploy.local.stack import Stack

    console = Console()
    stack = Stack()
    own = environment()
    was_up = bool(stack.environment())
    try:
        env = {**stack.up(external=own, on_progress=lambda text: console.print(text, style="dim")), **own}
        settings = load(env)
        logging.config.dictConfig(logs.config(settings, "demo"))
        options = Options(Path(".iotflow/runs"), devices, rate, bad, dialect, run_for)
        code = asyncio.run(Demo(settings, env, options, console).run())
    except (ServerError, SettingsError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        if not was_up and not keep:
            stack.down(on_progress=lambda text: console.print(text, style="dim"))
    sys.exit(code)
