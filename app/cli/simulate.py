"""`iotflow simulate`: a fleet of devices that speak to a raw topic."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from app.simulate import Fleet, Plan, Summary


@click.command()
@click.option("--devices", envvar="NUM_DEVICES", default=10, show_default=True, type=click.IntRange(1))
@click.option(
    "--interval-ms",
    envvar="PUBLISH_INTERVAL_MS",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    help="Time between two readings of one device.",
)
@click.option("--rate", type=click.FloatRange(0), help="Readings a second in total, 0: as fast as possible.")
@click.option("--dialect", default="telemetry", show_default=True, help="What the devices speak.")
@click.option(
    "--bad", default=0.01, show_default=True, type=click.FloatRange(0, 1), help="Share that must be rejected."
)
@click.option("--outliers", default=0.0, type=click.FloatRange(0, 1), help="Share of odd but right values, per metric.")
@click.option("--low-battery", default=0.0, type=click.FloatRange(0, 1), help="Share of readings of an empty battery.")
@click.option("--count", type=click.IntRange(0), help="Stop after this many readings.")
@click.option("--duration", type=click.FloatRange(0), help="Stop after this many seconds.")
@click.option("--ledger", "path", type=click.Path(dir_okay=False, path_type=Path), help="Append what was acknowledged.")
@click.option("--seed", default=1, show_default=True)
@click.option("--prefix", default="sensor", show_default=True, help="What device ids begin with.")
@click.option("--topic", help="Raw topic to send to.  [default: the settings' own]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(  # noqa: PLR0913  one for each option
    *,
    devices: int,
    interval_ms: int,
    rate: float | None,
    dialect: str,
    bad: float,
    outliers: float,
    low_battery: float,
    count: int | None,
    duration: float | None,
    path: Path | None,
    seed: int,
    prefix: str,
    topic: str | None,
    as_json: bool,
) -> None:
    """Send what simulated devices say to a raw topic, until a count, a duration, SIGINT or SIGTERM."""
    import msgspec
    from aiokafka.errors import KafkaError

    from app import kafka, settings
    from app.simulate import Fleet, NoTopicError, Plan
    from schemas import dialects

    # In an outage aiokafka complains several times a second; the summary says what came of it.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    try:
        loaded = settings.load()
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    odd = dict.fromkeys(getattr(dialects.load().get(dialect), "WALKS", ()), outliers) | {"battery": low_battery}
    try:
        fleet = Fleet(devices, dialect, seed, bad_share=bad, odd=odd, prefix=prefix)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--dialect") from error
    raw = loaded.topics.raw
    target = topic or next((name for name, spoken in raw.items() if spoken == dialect), next(iter(raw)))
    pace = rate if rate is not None else devices * 1000 / interval_ms

    async def run() -> "Summary":
        await kafka.probe(loaded)
        return await _run(fleet, Plan(target, pace, count, duration), kafka.client_args(loaded), path)

    try:
        summary = asyncio.run(run())
    except NoTopicError as error:
        raise click.ClickException(str(error)) from error
    except (KafkaError, OSError, kafka.ConfigError) as error:
        raise click.ClickException(kafka.explain(error, loaded)) from error
    if as_json:
        click.echo(msgspec.json.encode(summary))
        return
    click.echo(
        f"{summary.sent:,} readings to {target} in {summary.seconds:.1f} s ({summary.rate:,.0f}/s): "
        f"{summary.good:,} good, {summary.bad:,} bad"
    )
    if summary.unacknowledged:
        click.echo(f"{summary.unacknowledged:,} more were not acknowledged", err=True)


async def _run(fleet: "Fleet", plan: "Plan", client: dict[str, Any], path: Path | None) -> "Summary":
    from app import simulate
    from app.ledger import Ledger

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stop.set)
    with ExitStack() as stack:
        book = stack.enter_context(Ledger(path)) if path is not None else None
        on_sent = _progress(stack, plan) if sys.stderr.isatty() else None
        return await simulate.run(fleet, plan, client, book=book, stop=stop, on_sent=on_sent)


def _progress(stack: ExitStack, plan: "Plan") -> Callable[[int], None]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    bar = stack.enter_context(
        Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
        )
    )
    total = plan.count
    if total is None and plan.seconds is not None and plan.rate:
        total = int(plan.seconds * plan.rate)
    task = bar.add_task(plan.topic, total=total)
    return lambda sent: bar.advance(task, sent)
