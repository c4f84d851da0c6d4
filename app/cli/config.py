"""`iotflow config`: check the settings, show them, list every variable."""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:  # at run time it would make --help wait for pydantic
    from pydantic.fields import FieldInfo

    from app.settings import Settings


@click.group("config")
def command() -> None:
    """Check, show and explain the settings, which are environment variables."""


@command.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@click.pass_obj
def check(env: Mapping[str, str] | None, *, as_json: bool) -> None:
    """Say everything that is wrong with the environment and the files that it names; exit status 2 when anything is."""
    from app.settings import SettingsError, load

    try:
        settings = load(env)
        notices, problems = settings.notices, _unusable(settings)
    except SettingsError as error:
        notices, problems = [], error.problems
    if as_json:
        click.echo(json.dumps({"ok": not problems, "problems": problems, "notices": notices}, indent=2))
    else:
        for line in problems:
            click.echo(line, err=True)
        for line in [*([] if problems else ["ok"]), *(f"notice: {notice}" for notice in notices)]:
            click.echo(line)
    if problems:
        sys.exit(2)


def _unusable(settings: "Settings") -> list[str]:
    """What would keep a stage from starting or a schema from being made, of which the settings do not know themselves.

    A sink's settings say what of their files cannot be used where they have a method `unusable`, a line each.
    """
    from app import registry, rules, stages
    from schemas.datapoints import RegistryError
    from schemas.rules import RulesError

    problems = []
    try:
        registry.from_file(settings.registry_file)
    except RegistryError as error:
        problems += error.problems
    try:
        problems += rules.unwatched(rules.from_file(settings.rules).rules, settings.analysis.windows)
    except RulesError as error:
        problems += error.problems
    try:
        stages.schema_source(settings)
    except ValueError as error:
        problems.append(str(error))
    for sink in settings.sinks.values():
        problems += sink.unusable()
    return problems


@command.command()
@click.option("--json", "as_json", is_flag=True, help="print one JSON object")
@click.pass_obj
def show(env: Mapping[str, str] | None, *, as_json: bool) -> None:
    """Show every setting, its value and where that came from; secrets as ***."""
    from app.settings import SettingsError, load

    try:
        settings = load(env)
    except SettingsError as error:
        click.echo(str(error), err=True)
        sys.exit(2)
    shown = settings.public()
    if as_json:
        click.echo(json.dumps(shown, indent=2))
        return
    rows = [("SETTING", "VALUE", "FROM")]
    rows += [(path, _text(item["value"]), item["source"]) for path, item in shown.items()]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    for path, value, source in rows:
        click.echo(f"{path:<{widths[0]}}  {value:<{widths[1]}}  {source}")


@command.command()
def docs() -> None:
    """Print a Markdown table of every variable."""
    for row in _rows():
        click.echo(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |")


def _rows() -> Iterator[tuple[str, str, str, str]]:
    from app.settings import discover, variables

    sinks = discover()
    yield "variable, first one set wins", "default", "unit", "meaning"
    yield "---", "---", "---", "---"
    for variable in variables.every(sinks):
        names = ", ".join(f"`{name}`" for name in variable.names)
        notes = [variable.field.description or ""]
        if (allowed := variable.allowed()) != "text":
            notes.append(allowed)
        if variable.unit == "s":
            notes.append("each name with `_MS` behind it: in milliseconds")
            notes += [f"`{name}` is in minutes, and has none" for name in variable.names if name.endswith("_MINUTES")]
        if variable.secret:
            notes.append("secret; each name with `_FILE` behind it: a file that holds it")
        yield (
            names,
            _default(variable.field),
            variable.unit,
            "; ".join(notes),
        )
    for stage, name in variables.groups(sinks).items():
        yield f"`{name}`", f"`PREFIX-{stage}`", "", f"app id and consumer group of the stage `{stage}`"
    for url in dict.fromkeys(url for cls in sinks.values() for url in variables.urls(cls)):
        meaning = "where no other name says it: host, port, database, user, password, sslmode"
        yield f"`{url}`", "", "", f"URL of the database, used {meaning}; secret, also `{url}_FILE`"
    yield f"`{variables.ENV_FILE}`", "", "", "file of KEY=value lines; the real environment wins"
    for name, why in variables.IGNORED.items():
        yield f"`{name}`", "", "", f"accepted and ignored: {why}"


def _default(field: "FieldInfo") -> str:
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "default" in extra:
        return str(extra["default"])
    value = field.get_default()
    if isinstance(value, dict):
        value = ",".join(f"{name}:{item}" for name, item in value.items())
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return "" if value is None or value == "" else f"`{value}`"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return json.dumps(value) if isinstance(value, dict) else str(value)
