"""`iotflow up`."""

import asyncio
import logging.config

import click


@click.command()
@click.option(
    "--stage", "only", multiple=True, help="Only this stage; may be repeated.  [default: decode, analyze and STORES]"
)
def command(only: tuple[str, ...]) -> None:
    """Run decode, analyze and the stores of STORES on this machine, one process each, until Ctrl-C or SIGTERM.

    A process that dies is started again, with back-off. All are stopped cleanly at the end.
    """
    from app import logs, supervisor
    from app.settings import SettingsError, environment, load
    from app.stages import known, names

    try:
        settings = load()
    except SettingsError as error:
        raise click.ClickException(str(error)) from error
    wrong = [stage for stage in only if stage not in known()]
    if wrong:
        raise click.BadParameter(f"no stage is called {wrong[0]!r}; stages: {', '.join(known())}")
    logging.config.dictConfig(logs.config(settings, "up"))

    async def run() -> None:
        workers = supervisor.stages(only or names(settings), environment())
        async with supervisor.Supervisor(workers, grace_s=settings.rebalance_timeout):
            await supervisor.stopped()

    asyncio.run(run())
