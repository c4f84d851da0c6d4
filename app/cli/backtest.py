"""`iotflow backtest`: what rules would have said of past readings, beside those in force."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from app.cli._kafka import with_kafka
from app.cli._terminal import show, table_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.text import Text

    from app.backtest import Compared, Count, Outcome, Raised
    from app.past import Progress, Wanted
    from app.settings import Settings
    from schemas.rules import RuleSet
    from tables.rules import Rulebook

_NEW: Final = 1
_STOPPED: Final = 130
_IN_FORCE: Final = "the rules in force"
_SEVERITY_STYLES: Final = {"EMERGENCY": "bold red", "WARN": "yellow", "INFO": "cyan"}
_STYLES: Final = {"new": "red", "gone": "green", "both": ""}
#: Those that make a difference first.
_ORDER: Final = ("new", "gone", "both")
_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))


def _moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> datetime | None:
    if value is None:
        return None
    from schemas import duration

    try:
        return duration.moment(value, datetime.now(UTC))
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@click.argument("rules", metavar="RULES")
@click.option(
    "--from",
    "start",
    metavar="TIME",
    callback=_moment,
    help="First time: ISO 8601, or 1h, 7d.  [default: a week before --to; of a file: its first reading]",
)
@click.option(
    "--to", "end", metavar="TIME", callback=_moment, help="Before TIME.  [default: now; of a file: after its last]"
)
@click.option("--source", default="topic", show_default=True, help="Where the readings are; see above.")
@click.option(
    "--against", metavar="RULES", help="Compare with these, as `none` or another file.  [default: the rules in force]"
)
@click.option("--device", "devices", metavar="NAME", multiple=True, help="Only this device, or those like EQ00*.")
@click.option("--metric", "metrics", metavar="NAME", multiple=True, help="Only alarms of this metric, or like temp*.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the series with the most alarms: .svg or .png.")
@click.option("--limit", type=click.IntRange(0), default=50, show_default=True, help="List so many alarms; 0: all.")
@click.option(
    "--fail-on-new", is_flag=True, help="Exit with 1 when RULES would raise alarms that the others would not."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people; all alarms.")
def command(  # noqa: PLR0913  one for each option
    *,
    rules: str,
    start: datetime | None,
    end: datetime | None,
    source: str,
    against: str | None,
    devices: Sequence[str],
    metrics: Sequence[str],
    picture: Path | None,
    limit: int,
    fail_on_new: bool,
    as_json: bool,
) -> None:
    """Try RULES on past readings: which alarms they would have raised, and which the rules in force.

    \b
      iotflow backtest new-rules.yaml --from 2d
      iotflow backtest fire --source timescale --from 2026-11-01T00:00:00Z --to 2026-11-08T00:00:00Z
      iotflow backtest new.yaml --against old.yaml --source file:readings.jsonl --picture alarms.svg

    RULES is a YAML file of rules (see iotflow rules --help) with its profile, or a profile's name: all rules that there
    would be. Nothing is applied, sent or stored.

    \b
    Sources:
      topic        the decoded topic: what was received from --from to --to
      timescale    a store that the settings name; also influxdb, iotdb, file
      file:PATH    JSON lines as on the decoded topic, or a directory of the store file
      -            JSON lines from standard input

    Alarms are the same if they are of one series and rule id, and overlap: `new` ones only RULES raise, `gone` ones
    only those compared with, and `both` are of both. Nothing is known before --from: what detectors say needs half a
    day of readings and more in front of it. Each reading counts as received at its own time. A topic, and files, are
    sorted in TMPDIR first.

    Exits with 0; with 1 when something cannot be used or read, there is no reading at all, or as --fail-on-new has it;
    with 130 when it is interrupted.
    """  # noqa: D301  click's mark for lines that stay as they are
    from app import past
    from app import picture as drawing
    from app.rules import from_file
    from schemas.rules import RulesError

    start, end = past.span(source, start, end, datetime.now(UTC))
    if start is not None and end is not None and start >= end:
        raise click.UsageError(f"--from, {start.isoformat()}, must be before --to, {end.isoformat()}")
    wanted = past.Wanted(start, end, devices)
    named = against or _IN_FORCE
    try:
        tried = from_file(rules)
        if picture is not None:
            drawing.check(picture)
        panels = drawing.MOST if picture is not None else 0
        outcome = with_kafka(
            lambda settings: _try(settings, tried, against, source, wanted, metrics, panels=panels, quiet=as_json)
        )
        if not outcome.readings:
            raise click.ClickException(f"{source} has no such readings{_between(start, end)}")
        if as_json:
            _print_json(outcome, {"rules": rules, "against": named, "source": source})
        else:
            _print(outcome, rules, named, limit)
        if picture is not None:
            drawing.draw(outcome, picture, rules, named)
    except KeyboardInterrupt:
        click.echo("stopped: nothing is shown", err=True)
        sys.exit(_STOPPED)
    except (RulesError, past.SourceError, drawing.PictureError) as error:
        raise click.ClickException(str(error)) from error
    sys.exit(_NEW if fail_on_new and outcome.new else 0)


async def _try(  # noqa: PLR0913  each is one knob of it
    settings: Settings,
    tried: RuleSet,
    against: str | None,
    source: str,
    wanted: Wanted,
    metrics: Sequence[str],
    *,
    panels: int,
    quiet: bool,
) -> Outcome:
    """Read and judge; what somebody should know besides goes to stderr."""
    from app import backtest, past, rules
    from tables.rules import Rulebook

    own, other = Rulebook(tried), await _others(settings, against)
    notes = rules.unwatched(tried.rules, settings.analysis.windows)
    with _progress(quiet=quiet) as tell:
        async with past.opened(settings, source, wanted, tell) as readings:
            found = await backtest.run(
                settings, readings, own, other, admits=lambda name: _named(metrics, name), panels=panels, tell=tell
            )
            if readings.unreadable:
                notes.append(f"{readings.unreadable} records of the topic are no readings")
    notes += [f"{rule} is not applied to {why}" for (rule, _), why in own.book.misfits.items()]
    for note in notes:
        click.echo(f"note: {note}", err=True)
    return found


async def _others(settings: Settings, against: str | None) -> Rulebook:
    """The rules to compare with."""
    from aiokafka.errors import KafkaError

    from app import kafka, rules
    from tables.rules import Rulebook

    if against is not None:
        return Rulebook(rules.from_file(against))
    try:
        there = await rules.held(settings)
    except (KafkaError, OSError, kafka.ConfigError) as error:
        why = kafka.explain(error, settings)
        raise click.ClickException(f"{why} --against compares with rules that need no Kafka.") from error
    for key, why in there.broken.items():
        click.echo(f"refused: {rules.name(key)}: {why}", err=True)
    return rules.in_force(rules.from_file(settings.rules), there)


def _named(names: Sequence[str], metric: str) -> bool:
    return not names or any(name == metric or fnmatchcase(metric, name) for name in names)


def _between(start: datetime | None, end: datetime | None) -> str:
    said = [f" {word} {_time(moment)}" for word, moment in (("from", start), ("before", end)) if moment is not None]
    return ",".join(said)


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Progress]:
    """What is being done, on stderr, where somebody looks at it."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import Progress as Bars
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("reading", total=None)

        def tell(what: str, done: int, of: int) -> None:
            bars.update(task, description=f"{what}: {done:,}" + (f" of {of:,}" if of else ""))

        yield tell


# -- showing -----------------------------------------------------------------------------------------------------------


def _print_json(outcome: Outcome, said: Mapping[str, str]) -> None:
    from msgspec import to_builtins

    shown = {
        **said,
        "from": outcome.start.isoformat(),
        "to": outcome.end.isoformat(),
        "readings": outcome.readings,
        "devices": outcome.devices,
        "summary": to_builtins(outcome.summaries()),
        "alarms": [
            {"verdict": each.verdict, **_as_object(each.alarm), "was": list(map(_as_object, each.was))}
            for each in outcome.found
        ],
    }
    click.echo(json.dumps(shown, indent=2, ensure_ascii=False))


def _as_object(alarm: Raised) -> dict[str, Any]:
    from msgspec import to_builtins

    found = to_builtins(alarm)
    names = ("device_id", "measurement", "channel", "metric", "rule", "severity", "start", "end", "peak", "message")
    said = {"start": "from", "end": "to"}
    return {said.get(name, name): found[name] for name in names}


def _print(outcome: Outcome, rules: str, against: str, limit: int) -> None:
    span = f"from {_time(outcome.start)} to {_time(outcome.end)}"
    click.echo(f"{outcome.readings:,} readings of {outcome.devices:,} devices {span}")
    if not outcome.found:
        click.echo(f"no alarm, neither by {rules} nor by {against}")
        return
    click.echo(f"{against} → {rules}\n")
    show(_summary(outcome))
    click.echo()
    found = sorted(outcome.found, key=lambda each: _ORDER.index(each.verdict))
    shown = found[:limit] if limit else found
    show(_list(shown))
    if len(shown) < len(found):
        click.echo(f"… and {len(found) - len(shown)} more: --limit 0 lists all")


def _summary(outcome: Outcome) -> Any:
    from rich.text import Text

    table = table_of("rule", "alarms", "new", "gone", "devices", "in alarm", "severity")
    for each in outcome.summaries():
        one, other = each.against, each.rules
        table.add_row(
            Text(each.rule),
            _changed(str(one.alarms), str(other.alarms)),
            Text(str(each.new), style=_STYLES["new"] if each.new else ""),
            Text(str(each.gone), style=_STYLES["gone"] if each.gone else ""),
            _changed(str(one.devices), str(other.devices)),
            _changed(_span(one.seconds), _span(other.seconds)),
            _changed(_severities(one), _severities(other)),
        )
    return table


def _changed(before: str, after: str) -> str:
    return after if before == after else f"{before} → {after}"


def _severities(count: Count) -> str:
    found = [f"{count.severities[name]} {name}" for name in _SEVERITY_STYLES if name in count.severities]
    return ", ".join(found) or "none"


def _list(found: Sequence[Compared]) -> Any:
    from rich.text import Text

    from app.samples import escaped

    table = table_of("", "device", "metric", "rule", "severity", "from", "to", "peak", "what")
    for each in found:
        alarm = each.alarm
        metric = " ".join(filter(None, [alarm.channel, alarm.metric]))
        # Text, not markup: names may hold brackets.
        table.add_row(
            Text(each.verdict, style=_STYLES[each.verdict]),
            Text(escaped(alarm.device_id)),
            Text(escaped(metric)),
            Text(alarm.rule),
            _severity(each),
            _time(alarm.start),
            _time(alarm.end) if alarm.end is not None else "open",
            "" if alarm.peak is None else f"{alarm.peak:.6g}",
            Text(escaped(alarm.message)),
        )
    return table


def _severity(each: Compared) -> Text:
    from rich.text import Text

    severity = each.alarm.severity
    before = sorted({other.severity for other in each.was} - {severity})
    return Text(f"{severity} (was {', '.join(before)})" if before else severity, style=_SEVERITY_STYLES[severity])


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _span(seconds: float) -> str:
    """The two largest units of a span of time."""
    left, words = round(seconds), list[str]()
    for unit, size in _UNITS:
        if left >= size or (words and len(words) < 2):  # noqa: PLR2004  so many are told
            words.append(f"{left // size}{unit}")
            left %= size
    return " ".join(words[:2]) or "0s"
