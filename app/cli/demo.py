"""`iotflow demo`, which is what `make run` runs."""

import asyncio
import logging.config
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from app.cli.stack import terminated

if TYPE_CHECKING:
    from collections.abc import Callable

    from app.settings import Settings
    from deploy.local.stack import Stack

_SHARE = click.FloatRange(0, 1)


@click.command()
@click.option("--run-for", envvar="RUN_FOR", type=click.FloatRange(1), help="Seconds to run, then check and stop.")
@click.option(
    "--fleet",
    "fleets",
    envvar="SIMULATE_FLEETS",
    multiple=True,
    default=("telemetry", "fire:20,prefix=hall"),
    show_default=True,
    metavar="DIALECT[:DEVICES],…",
    help="Devices that send, as `iotflow simulate --fleet` takes them; may be repeated.",
)
@click.option("--devices", envvar="NUM_DEVICES", default=100, show_default=True, type=click.IntRange(1))
@click.option(
    "--interval-ms",
    envvar="PUBLISH_INTERVAL_MS",
    default=250,
    show_default=True,
    type=click.IntRange(1),
    help="Time between two readings of one device.",
)
@click.option("--bad", default=0.01, show_default=True, type=_SHARE, help="Share that must be refused.")
@click.option("--outliers", default=0.01, show_default=True, type=_SHARE, help="Share of odd but right values.")
@click.option("--out-of-order", default=0.02, show_default=True, type=_SHARE, help="Share sent after later ones.")
@click.option("--late", default=0.01, show_default=True, type=_SHARE, help="Share whose time lies behind.")
@click.option("--keep", is_flag=True, help="Leave the servers running at the end.")
def command(run_for: float | None, fleets: Sequence[str], *, keep: bool, **load: Any) -> None:
    """Start real servers, every stage and fleets of simulated devices, and watch the telemetry flow.

    STORES=timescale,iotdb,influxdb chooses the stores. Servers that your own settings name are used instead of
    started ones. One that must first be fetched or built is not waited for: its stage starts with an open breaker and
    catches up. At the end (after RUN_FOR seconds, or on Ctrl-C) what was sent is compared, by content, with the stores
    and the dead letters; exits 0 only if all is there exactly once.
    """
    from rich.console import Console

    from app import logs
    from app.demo import Demo, Options
    from app.settings import SettingsError, environment
    from app.settings import load as load_settings
    from deploy.local.files import ServerError
    from deploy.local.stack import Stack

    console = Console()
    stack = Stack()
    own = environment()
    was_up = bool(stack.environment())
    # Ended from outside, it still stops what it has started.
    signal.signal(signal.SIGTERM, terminated)

    def tell(text: str) -> None:
        console.print(text, style="dim", markup=False, soft_wrap=True)

    try:
        env, coming = _servers(stack, load_settings(own), own, tell)
        settings = load_settings(env)
        logging.config.dictConfig(logs.config(settings, "demo"))
        flags = [text for fleet in fleets for text in ("--fleet", fleet)]
        flags += [text for name, value in load.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        options = Options(Path(".iotflow/runs"), flags, run_for, own, coming)
        code = asyncio.run(Demo(settings, env, options, console).run())
    except (ServerError, SettingsError) as error:
        raise click.ClickException(str(error)) from error
    finally:
        if not was_up and not keep:
            stack.down(on_progress=tell)
    sys.exit(code)


def _servers(
    stack: "Stack", settings: "Settings", own: Mapping[str, str], tell: "Callable[[str], None]"
) -> tuple[dict[str, str], dict[str, str]]:
    """Start what is needed and can be started soon; the variables, and the stores whose servers are still to come."""
    wanted = [server for server in stack.chosen(None, own) if server.store in {"", *settings.stores}]
    coming = {server.name: server.store for server in wanted if server.store and not server.prepared}
    for store in coming.values():
        tell(f"{store}: its server is fetched or built while the others already run")
    found = stack.up([server.name for server in wanted if server.name not in coming], external=own, on_progress=tell)
    return {**found, **stack.reserve(coming, external=own), **own}, coming
