"""`iotflow simulate`: fleets of devices that speak to raw topics."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from app.fleet import Fleet
    from app.settings import Settings
    from app.simulate import Plan, Summary

_SHARE: Final = click.FloatRange(0, 1)


@dataclass(frozen=True)
class Asked:
    """One `--fleet`; what it leaves out is as the other options say."""

    dialect: str
    devices: int | None = None
    topic: str | None = None
    prefix: str | None = None
    interval_ms: int | None = None


def _natural(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise ValueError(f"{text!r} is no number of 1 or more")
    return int(text)


def _name(text: str) -> str:
    if not text:
        raise ValueError("a name is empty")
    return text


_FORM: Final = "DIALECT[:DEVICES][,KEY=VALUE…]"
_KEYS: Final[Mapping[str, Callable[[str], Any]]] = {"topic": _name, "prefix": _name, "interval-ms": _natural}


def _asked(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> list[Asked]:
    return [_ask(value) for value in values]


def _ask(value: str) -> Asked:
    """Take a --fleet apart."""
    first, *rest = value.split(",")
    dialect, colon, devices = first.partition(":")
    more: dict[str, Any] = {}
    try:
        if colon:
            more["devices"] = _natural(devices)
        for item in rest:
            key, _, text = item.partition("=")
            if key not in _KEYS:
                raise ValueError(f"{key!r} is none of its keys: {', '.join(_KEYS)}")
            more[key.replace("-", "_")] = _KEYS[key](text)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not {_FORM}: {error}") from error
    return Asked(dialect, **more)


@click.command(context_settings={"auto_envvar_prefix": "SIMULATE"})
@click.option(
    "--devices",
    envvar="NUM_DEVICES",
    default=10,
    show_default=True,
    show_envvar=True,
    type=click.IntRange(1),
    help="How many there are.",
)
@click.option(
    "--interval-ms",
    envvar="PUBLISH_INTERVAL_MS",
    default=1000,
    show_default=True,
    show_envvar=True,
    type=click.IntRange(1),
    help="Time between two readings of one device.",
)
@click.option("--dialect", default="telemetry", show_default=True, help="What the devices speak.")
@click.option("--topic", help="Raw topic to send to.  [default: the settings' own for the dialect]")
@click.option("--prefix", help="What device ids begin with.  [default: sensor; of a --fleet its dialect]")
@click.option(
    "--fleet",
    "fleets",
    envvar="SIMULATE_FLEETS",
    multiple=True,
    metavar=_FORM,
    callback=_asked,
    help="Instead of one fleet this one, and others at the same time. Keys: topic, prefix, interval-ms.",
)
@click.option("--rate", type=click.FloatRange(0), help="Readings a second of all fleets, 0: as fast as possible.")
@click.option("--bad", default=0.01, show_default=True, type=_SHARE, help="Share that must be rejected.")
@click.option(
    "--outliers", default=0.0, type=_SHARE, help="Share of odd but right values, for each metric but the battery."
)
@click.option("--low-battery", default=0.0, type=_SHARE, help="Share of readings of an empty battery.")
@click.option(
    "--out-of-order",
    default=0.0,
    type=_SHARE,
    help="Share that is sent after one to three later ones of its device.",
)
@click.option("--late", default=0.0, type=_SHARE, help="Share whose time lies behind, a minute to --late-by.")
@click.option(
    "--late-by",
    default=3600.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Seconds it lies behind at most.",
)
@click.option("--count", type=click.IntRange(0), help="Stop after this many readings.")
@click.option("--duration", type=click.FloatRange(0), help="Stop after this many seconds.")
@click.option("--ledger", type=click.Path(dir_okay=False, path_type=Path), help="Append what was acknowledged.")
@click.option("--seed", default=1, show_default=True, help="Another one makes other values.")
@click.option("--json", "as_json", is_flag=True, allow_from_autoenv=False, help="Print the summary as JSON.")
@click.pass_context
def command(  # noqa: PLR0913  one for each option
    ctx: click.Context,
    /,
    *,
    fleets: Sequence[Asked],
    dialect: str,
    rate: float | None,
    count: int | None,
    duration: float | None,
    ledger: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Send what simulated devices say to raw topics, until a count, a duration, SIGINT or SIGTERM.

    \b
      iotflow simulate --devices 100 --interval-ms 100
      iotflow simulate --fleet telemetry:100 --fleet fire:20,prefix=hall-b,interval-ms=500
      iotflow simulate --rate 0 --count 100000 --late 0.01 --out-of-order 0.05 --ledger sent.jsonl
      iotflow check sent.jsonl

    Readings that are late or out of order are good ones: the stores must have them. Every option is also a variable:
    SIMULATE_ and its name, as SIMULATE_LATE_BY; SIMULATE_FLEETS has spaces between the fleets.
    """  # noqa: D301  click's mark for lines that stay as they are
    from aiokafka.errors import KafkaError

    from app import kafka, settings
    from app.simulate import NoTopicError, Plan, divide

    # In an outage aiokafka complains several times a second; the summary says what came of it.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    if fleets and _typed(ctx, "fleets") and _typed(ctx, "dialect"):
        raise click.UsageError("a --fleet says its dialect; leave --dialect out")
    try:
        loaded = settings.load()
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    asked = fleets or (Asked(dialect, prefix=options["prefix"] or "sensor"),)
    made = _make(asked, options)
    weights = [one.devices / (ask.interval_ms or options["interval_ms"]) for one, ask in zip(made, asked, strict=True)]
    counts = [None] * len(made) if count is None else divide(count, weights)
    pace = 1000.0 if rate is None else rate / sum(weights)
    targets = [ask.topic or options["topic"] or _topic(loaded, ask.dialect) for ask in asked]
    plans = [Plan(*each, duration) for each in zip(targets, (pace * weight for weight in weights), counts, strict=True)]

    async def run() -> "list[Summary]":
        await kafka.probe(loaded)
        return await _run(list(zip(made, plans, strict=True)), kafka.client_args(loaded), ledger)

    try:
        summaries = asyncio.run(run())
    except NoTopicError as error:
        raise click.ClickException(str(error)) from error
    except (KafkaError, OSError, kafka.ConfigError) as error:
        raise click.ClickException(kafka.explain(error, loaded)) from error
    (_print_json if as_json else _print)(made, targets, summaries)


def _typed(ctx: click.Context, name: str) -> bool:
    return ctx.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _make(asked: Sequence[Asked], options: Mapping[str, Any]) -> "list[Fleet]":
    from app.fleet import Disorder, Fleet
    from schemas import dialects

    disorder = Disorder(options["out_of_order"], options["late"], options["late_by"])
    made: dict[str, Fleet] = {}
    for number, ask in enumerate(asked):
        prefix = ask.prefix or options["prefix"] or ask.dialect
        if prefix in made:
            raise click.UsageError(f"two fleets have devices {prefix}-…; give one another prefix=")
        walks = getattr(dialects.load().get(ask.dialect), "WALKS", ())
        try:
            made[prefix] = Fleet(
                ask.devices or options["devices"],
                ask.dialect,
                options["seed"] + number,
                bad_share=options["bad"],
                odd=dict.fromkeys(walks, options["outliers"]) | {"battery": options["low_battery"]},
                prefix=prefix,
                disorder=disorder,
            )
        except ValueError as error:
            raise click.UsageError(str(error)) from error
    return list(made.values())


def _topic(loaded: "Settings", dialect: str) -> str:
    """Where a dialect is expected; anywhere else its header says what it is."""
    raw = loaded.topics.raw
    return next((name for name, spoken in raw.items() if spoken == dialect), next(iter(raw)))


async def _run(fleets: "Sequence[tuple[Fleet, Plan]]", client: dict[str, Any], path: Path | None) -> "list[Summary]":
    from app import simulate
    from app.ledger import Ledger

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, stop.set)
    with ExitStack() as stack:
        book = stack.enter_context(Ledger(path)) if path is not None else None
        on_sent = _progress(stack, [plan for _, plan in fleets]) if sys.stderr.isatty() else None
        return await simulate.run(fleets, client, book=book, stop=stop, on_sent=on_sent)


def _progress(stack: ExitStack, plans: "Sequence[Plan]") -> Callable[[int], None]:
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
    total = None
    if plans[0].count is not None:
        total = sum(plan.count or 0 for plan in plans)
    elif plans[0].seconds is not None and plans[0].rate:
        total = int(plans[0].seconds * sum(plan.rate for plan in plans))
    task = bar.add_task(", ".join(dict.fromkeys(plan.topic for plan in plans)), total=total)
    return lambda sent: bar.advance(task, sent)


def _print(fleets: "Sequence[Fleet]", topics: Sequence[str], summaries: "Sequence[Summary]") -> None:
    from app.simulate import total

    whole = total(summaries)
    if len(fleets) > 1:
        for fleet, topic, summary in zip(fleets, topics, summaries, strict=True):
            click.echo(f"{fleet.prefix}: {_sentence(summary, topic)}")
    click.echo(_sentence(whole, ", ".join(dict.fromkeys(topics))))
    if whole.unacknowledged:
        click.echo(f"{whole.unacknowledged:,} more were not acknowledged", err=True)


def _sentence(summary: "Summary", topic: str) -> str:
    disorder = {"out of order": summary.out_of_order, "late": summary.late}
    some = " and ".join(f"{count:,} {name}" for name, count in disorder.items() if count)
    return (
        f"{summary.sent:,} readings to {topic} in {summary.seconds:.1f} s ({summary.rate:,.0f}/s): "
        f"{summary.good:,} good{f' ({some})' if some else ''}, {summary.bad:,} bad"
    )


def _print_json(fleets: "Sequence[Fleet]", topics: Sequence[str], summaries: "Sequence[Summary]") -> None:
    import msgspec

    from app.simulate import total

    each = [
        {"dialect": fleet.dialect, "devices": fleet.devices, "prefix": fleet.prefix, "topic": topic, **_fields(summary)}
        for fleet, topic, summary in zip(fleets, topics, summaries, strict=True)
    ]
    click.echo(msgspec.json.encode({**_fields(total(summaries)), "fleets": each}))


def _fields(summary: "Summary") -> dict[str, Any]:
    import msgspec

    return msgspec.structs.asdict(summary)
