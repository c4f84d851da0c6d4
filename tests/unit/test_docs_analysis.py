"""`docs/analysis.md` holds to the code: its rules can be applied, its tables say what there is, its commands exist."""

import re
from operator import attrgetter
from pathlib import Path
from typing import Any, get_args

import pytest
from click import Command, Context, Group

from app import yaml
from app.cli import main
from app.settings import load, variables
from schemas import quality, rules, wire
from schemas.alarm import STATES, Change, Signal, Subject, headers, record
from schemas.rules import KINDS, PROFILES, RuleSet
from tables.alarms import Policy, step

PAGE = Path(__file__).parent.parent.parent / "docs" / "analysis.md"
TEXT = PAGE.read_text("utf-8")
BLOCKS = re.findall(r"^```yaml\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
COMMANDS = sorted({line.partition("#")[0].strip() for line in TEXT.splitlines() if line.startswith("iotflow ")})


def rows(after: str) -> list[list[str]]:
    """The cells of the first table behind a text, without its head."""
    section = TEXT.partition(after)[2]
    table = re.search(r"(?:^\|.*\n)+", section, re.MULTILINE)
    assert table is not None, after
    lines = table[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def named(text: str) -> list[str]:
    """What stands in back-ticks."""
    return re.findall(r"`([^`]+)`", text)


@pytest.fixture
def sets(tmp_path: Path) -> list[RuleSet]:
    found = []
    for number, block in enumerate(BLOCKS):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        found.append(rules.parse(yaml.read(file)))
    return found


def test_every_block_can_be_applied_and_together_they_show_every_kind(sets: list[RuleSet]) -> None:
    assert {rule.KIND for one in sets for id_, rule in one.rules.items() if id_ in one.own} == KINDS.keys()
    first = sets[0].rules["temperature"]
    assert isinstance(first, rules.LevelRule)
    assert (first.version, first.for_, len(first.overrides)) == (2, "30s", 2)


def test_the_levels_of_the_profiles_are_those_of_the_page() -> None:
    ids = {"smoke_density": "smoke", "co_level": "co", "gas_level": "gas"}
    told = [row for row in rows("### Profiles") if named(row[0])]
    assert len(told) == 5
    for metric, *cells in told:
        name = named(metric)[0]
        for profile, cell in zip(("fire", "display", "fraction"), cells, strict=True):
            rule = rules.profile(profile).rules[ids.get(name, name)]
            assert isinstance(rule, rules.LevelRule)
            said = dict(re.findall(r"(WARN|EMERGENCY) ([\d.]+)", cell))
            assert {severity: float(level) for severity, level in said.items()} == rule.levels
            assert rule.metric == name
    assert all(profile in TEXT for profile in PROFILES)


def test_every_kind_of_rule_is_there_with_what_an_override_changes() -> None:
    found = {named(row[0])[0]: row for row in rows("### Kinds")}
    assert found.keys() == KINDS.keys()
    for kind, row in found.items():
        assert set(named(row[3])) == KINDS[kind].TUNABLE
        members = {field.alias or name for name, field in KINDS[kind].model_fields.items()}
        own = members - {field.alias or name for name, field in rules.Rule.model_fields.items()}
        assert own == set(named(row[2])) & members - {"type"}


def test_what_every_rule_may_say_is_there() -> None:
    told = [name for row in rows("### Every rule may say") for name in named(row[0])]
    assert sorted(told) == sorted({"kind", *rules.Rule.model_fields})


def test_states_changes_and_quality_are_those_of_the_code() -> None:
    assert [row[0] for row in rows("## Alarms")] == list(STATES)
    changes = TEXT.partition("`iotflow-change` says")[2].partition("`iotflow-event-id`")[0]
    assert set(named(changes)) == set(get_args(Change))
    assert {named(row[0])[0] for row in rows("## Quality events")} == {*get_args(quality.Kind)}


def test_an_alarms_values_are_those_of_its_record() -> None:
    subject = Subject("fire", "d", "", "t", "r")
    alarm, said = step(None, Signal("WARN", 1.0), 1_000_000, Policy(), replayed=False)
    assert alarm is not None
    told = [name for row in rows("### On `iotflow.alarms`") for name in named(row[0])]
    assert sorted(told) == sorted(record(subject, alarm)[1].values)
    for name, _ in headers(subject, said[0]):
        assert name == wire.HEADER_VERSION or f"`{name}`" in TEXT


def test_settings_are_there_with_their_defaults() -> None:
    default = load({})
    own = {each.path: each for each in variables.every(variables.discover())}
    wanted = {
        path: each for path, each in own.items() if path.split(".")[0] in {"analysis", "budget", "rules", "data_dir"}
    }
    told = {named(row[0])[0]: row[1].strip("`") for row in rows("## Settings")}
    assert told.keys() == {each.names[0] for each in wanted.values()}
    for path, each in wanted.items():
        value: Any = attrgetter(path)(default)
        assert _same(told[each.names[0]], value), path


def _same(text: str, value: Any) -> bool:
    if isinstance(value, bool):
        return text == str(value).lower()
    if isinstance(value, float | int):
        return float(text.removesuffix(" s")) == value
    if isinstance(value, dict):
        return text == ",".join(f"{name}={span}" for name, span in value.items())
    return text == (",".join(value) if isinstance(value, tuple) else str(value))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_what_the_page_gives_it(command: str) -> None:
    words = [word.strip("'") for word in command.split()[1:]]
    found: Command = main
    context = Context(main)
    while isinstance(found, Group):
        name = words.pop(0)
        child = found.get_command(context, name)
        assert child is not None, name
        found, context = child, Context(child, parent=context)
    options = {option for parameter in found.params for option in parameter.opts}
    for word in words:
        assert not word.startswith("--") or word in options, word
