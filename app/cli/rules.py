"""`iotflow rules`: what is an anomaly, and how severe."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import click

from app.cli import _terminal
from app.cli._kafka import with_kafka

if TYPE_CHECKING:
    from collections.abc import Mapping

    from app.compacted import Plan, What
    from app.settings import Settings
    from schemas.rules import Rule, Source

_WRONG = 1
_CHANGES = 2
_STYLES = {"added": "green", "changed": "yellow", "removed": "red"}

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Check, apply and show the rules by which readings are judged.

    Workers start from a profile or file (IOTFLOW_RULES, by default the profile fire). What stands on the rules' topic
    wins over it, and every analyze worker follows the topic: what is applied holds at once.

    A file is YAML: the profile it starts from (fire, display, fraction or none), and rules by id.

    \b
    profile: fire
    rules:
      temperature:                       # replaces the profile's
        metric: temperature              # or temp*, or * for any
        unit: °C                         # readings in °F are compared in °F
        levels: {WARN: 70, EMERGENCY: 90}
        clear: {WARN: 65}                # hysteresis
        for: 30s                         # or of: 3 of 5
        overrides:
          - {devices: [oven-*], levels: {EMERGENCY: 300}}
          - {facilities: [annex], enabled: false}
      fan: {kind: edge, metric: power, unit: W, levels: {INFO: 30}}
      load: {metric: power, on: 5m, stat: p95, levels: {WARN: 900}}
      heating: {kind: rate, metric: temperature, per: 1m, levels: {WARN: 5}}
      frozen: {kind: stuck, metric: temperature, for: 1h}
      offline: {kind: silent, for: 15m}  # with a metric: of that one
      gap: {kind: gap, metric: "*", missing: 0.3, within: 6h, every: 30m}
      odd: {kind: detector, metric: "*", detector: surprise}

    The last override that names a device holds for it, else the last that names its facility. Every rule may have
    version, enabled, type (SMOKE, GAS, CO, HEAT, POWER, COMM, CUSTOM), labels, measurement, devices, facilities and
    channels.
    """  # noqa: D301  click's mark for lines that stay as they are


@command.command()
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@_json
def check(files: tuple[str, ...], *, as_json: bool) -> None:
    """Say everything that is wrong with each FILE, which may be a profile's name too, without Kafka.

    Exits with 0 when all of it can be applied, 1 when it cannot.
    """
    from app import rules
    from schemas.rules import RulesError

    counts: dict[str, int] = {}
    problems: list[str] = []
    for file in files:
        try:
            counts[file] = len(rules.from_file(file).rules)
        except RulesError as error:
            problems += error.problems
    if as_json:
        click.echo(json.dumps({"ok": not problems, "rules": counts, "problems": problems}, indent=2))
    else:
        for file, count in counts.items():
            click.echo(f"{file}: {_counted(count)}, with those of the profile; nothing is wrong")
        if problems:
            click.echo("\n".join(problems), err=True)
    sys.exit(_WRONG if problems else 0)


@command.command()
@_json
def ls(*, as_json: bool) -> None:
    """Show the rules in force: those of the profile or file that IOTFLOW_RULES names, and over them the topic's.

    Records of the topic that no worker takes are named on stderr, and so is what looks at windows that there are not.

    Exits with 0, and with 1 when there are such records or the topic cannot be read.
    """
    found, broken = _in_force()
    if as_json:
        from schemas.rules import as_object

        shown = {id_: {"source": source, **as_object(rule)} for id_, (rule, source) in found.items()}
        click.echo(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        _list(found)
    sys.exit(_WRONG if broken else 0)


@command.command()
@click.argument("id_", metavar="ID")
@_json
def show(id_: str, *, as_json: bool) -> None:
    """Show one rule in force as it would stand in a file, and where it is from.

    Exits with 1 when there is none of this ID.
    """
    import yaml

    from schemas.rules import as_object

    found, _ = _in_force()
    if id_ not in found:
        raise click.ClickException(f"no rule is called {id_}; there are: {', '.join(sorted(found)) or 'none'}")
    rule, source = found[id_]
    if as_json:
        click.echo(json.dumps({"id": id_, "source": source, **as_object(rule)}, indent=2, ensure_ascii=False))
        return
    click.echo(f"# from the {source}; version {rule.version}{'' if rule.enabled else '; switched off'}")
    text = yaml.safe_dump({"rules": {id_: as_object(rule)}}, allow_unicode=True, sort_keys=False, width=120)
    click.echo(text, nl=False)


@command.command()
@click.argument("file")
@click.option("--prune", is_flag=True, help="Also remove what is on the topic and not in FILE.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@_json
def apply(file: str, *, prune: bool, dry_run: bool, as_json: bool) -> None:
    """Make the topic hold the rules of FILE, which may be a profile's name too, and show what changes.

    A FILE that names its profile brings that one's rules with it; otherwise they stay those that workers start from.
    What is as it should be is not written again. What is only on the topic stays, without --prune.

    Exits with 0 when all is as FILE says, 1 when FILE is wrong (nothing is written) or something failed, and with
    --dry-run 2 when something would change.
    """
    from app import rules
    from schemas.rules import RulesError

    try:
        wanted = rules.from_file(file)
    except RulesError as error:
        raise click.ClickException(str(error)) from error

    async def run(settings: Settings) -> tuple[Plan, list[str]]:
        there = await rules.held(settings)
        planned = rules.plan(wanted, there, prune=prune)
        notes = rules.unversioned(wanted, there, planned)
        notes += rules.unwatched(wanted.rules, settings.analysis.windows)
        rules.fit(settings, planned.changes)
        if planned.changes and not dry_run:
            await rules.write(settings, planned.changes)
        return planned, notes

    try:
        planned, notes = with_kafka(run)
    except RulesError as error:
        raise click.ClickException(str(error)) from error
    for note in notes:
        click.echo(f"note: {note}", err=True)
    _report(planned, done=not dry_run, as_json=as_json)
    sys.exit(_CHANGES if dry_run and planned.changes else 0)


@command.command()
@click.argument("id_", metavar="ID")
@_json
def rm(id_: str, *, as_json: bool) -> None:
    """Take the rule ID from the topic; that of the file or profile, if there is one, holds again.

    To switch off a rule of a profile, apply a file that says `enabled: false` of it.

    Exits with 1 when the topic has none of this ID.
    """
    from app import rules
    from app.compacted import Change, Plan

    async def run(settings: Settings) -> bool:
        there = await rules.held(settings)
        if id_.encode() not in there.values:
            return False
        await rules.write(settings, [Change("removed", id_.encode())])
        return True

    if not with_kafka(run):
        raise click.ClickException(f"no rule on the topic is called {id_}; see iotflow rules ls")
    _report(Plan([Change("removed", id_.encode())], [], 0), done=True, as_json=as_json)


def _in_force() -> tuple[dict[str, tuple[Rule, Source]], bool]:
    """The rules that hold, and whether the topic has records that are refused."""
    from app import rules
    from schemas.rules import RulesError

    async def run(settings: Settings) -> tuple[dict[str, tuple[Rule, Source]], rules.Held, list[str]]:
        base = rules.from_file(settings.rules)
        there = await rules.held(settings)
        found = rules.in_force(base, there).rules()
        notes = rules.unwatched({id_: rule for id_, (rule, _) in found.items()}, settings.analysis.windows)
        return found, there, notes

    try:
        found, there, notes = with_kafka(run)
    except RulesError as error:
        raise click.ClickException(str(error)) from error
    for key, why in there.broken.items():
        click.echo(f"refused: {rules.name(key)}: {why}", err=True)
    for note in notes:
        click.echo(f"note: {note}", err=True)
    return found, bool(there.broken)


def _report(plan: Plan, *, done: bool, as_json: bool) -> None:
    from rich.text import Text

    from app import rules
    from schemas.rules import decode

    if as_json:
        changes = {what: [rules.name(each.key) for each in plan.changes if each.what == what] for what in _STYLES}
        kept = [rules.name(key) for key in plan.kept]
        click.echo(json.dumps({**changes, "kept": kept, "unchanged": plan.unchanged}, indent=2))
        return
    table = _terminal.table_of("rule", "", "what")
    words: dict[What, str] = {"added": "add", "changed": "change", "removed": "remove"}
    for change in plan.changes:
        word = change.what if done else words[change.what]
        what = "" if change.value is None else _summary(decode(change.key.decode(), change.value))
        # Text, not markup: names may hold brackets.
        table.add_row(Text(rules.name(change.key)), Text(word, style=_STYLES[change.what]), Text(what))
    if plan.changes:
        _terminal.show(table)
    counts = Counter(change.what for change in plan.changes)
    said = [f"{counts[what]} {what if done else f'to {words[what]}'}" for what in words]
    said += [f"{plan.unchanged} unchanged", f"{len(plan.kept)} only on the topic"]
    click.echo(", ".join(said))


def _list(found: Mapping[str, tuple[Rule, Source]]) -> None:
    from rich.text import Text

    table = _terminal.table_of("rule", "from", "version", "type", "what")
    for id_, (rule, source) in found.items():
        what = _summary(rule) if rule.enabled else "switched off"
        table.add_row(*map(Text, (id_, source, str(rule.version), rule.type, what)))
    _terminal.show(table)


def _summary(rule: Rule) -> str:
    """A rule in a line."""
    from schemas.rules import ANY, as_object

    said = as_object(rule)
    metric = {"": "the channel", ANY: "any metric"}.get(rule.metric, rule.metric)
    where = f" of {rule.measurement}" if rule.measurement else ""
    words = [f"{metric}{where}:", *([] if rule.KIND == "level" else [rule.KIND])]
    words += [str(getattr(rule, name)) for name in ("compare", "detector") if hasattr(rule, name)]
    levels: dict[str, Any] = said.get("levels", {})
    words += [" ".join([_shown(level), rule.unit, severity]).replace("  ", " ") for severity, level in levels.items()]
    words += [f"{name} {said[name]}" for name in ("for", "of", "per", "on", "stat", "sensitivity") if name in said]
    if rule.KIND == "gap":
        words.append(f"over {rule.missing:.0%} of those {rule.every} apart within {rule.within}")  # type: ignore[attr-defined]
    words += [f"{name} {', '.join(said[name])}" for name in ("devices", "facilities", "channels") if name in said]
    if rule.overrides:
        words.append(f"{len(rule.overrides)} overrides")
    return " ".join(words)


def _shown(level: object) -> str:
    return f"{level:g}" if isinstance(level, float) else json.dumps(level, ensure_ascii=False)


def _counted(count: int) -> str:
    return f"{count} rule{'' if count == 1 else 's'}"
