"""`iotflow rules` without Kafka: what it says of files, what it would change, and how it fails."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from app import compacted, rules
from app.cli import main
from app.cli.rules import _summary
from app.compacted import Change, Plan
from app.rules import Held
from app.settings import load
from schemas.rules import RulesError, RuleSet, encode, parse, profile

AWAY = {"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"}
HEAT = {"metric": "temperature", "unit": "°C", "levels": {"WARN": 60, "EMERGENCY": 70}}


def run(*arguments: str, env: Mapping[str, str] = AWAY) -> Result:
    return CliRunner().invoke(main, ["rules", *arguments], env=env)


def file(folder: Path, **document: Any) -> str:
    path = folder / "rules.yaml"
    path.write_text(json.dumps(document))
    return str(path)


def there(**own: Any) -> Held:
    """A topic that holds these rules."""
    found = parse({"profile": "none", "rules": own}).rules
    return Held(dict(found), {}, {id_.encode(): encode(rule) for id_, rule in found.items()})


def test_good_files_are_said_to_be_good(tmp_path: Path) -> None:
    path = file(tmp_path, profile="display", rules={"oven": HEAT})
    done = run("check", path, "fire")
    assert (done.exit_code, done.stderr) == (0, "")
    assert [line.split(": ")[1].split(",")[0] for line in done.stdout.splitlines()] == ["11 rules", "10 rules"]
    assert json.loads(run("check", path, "--json").stdout) == {"ok": True, "rules": {path: 11}, "problems": []}


def test_the_example_of_the_help_is_right(tmp_path: Path) -> None:
    said = run("--help").stdout
    lines = said[said.index("  profile: fire") : said.index("  The last override")].splitlines()
    path = tmp_path / "example.yaml"
    path.write_text("\n".join(line[2:] for line in lines))
    assert rules.read(path).own >= {"temperature", "fan", "load", "heating", "frozen", "offline", "gap", "odd"}


def test_every_mistake_of_every_file_is_a_line(tmp_path: Path) -> None:
    path = file(tmp_path, rules={"a": {**HEAT, "for": "soon"}, "b": {}, "c": {"kind": "magic"}})
    done = run("check", path, "fire", "no.yaml")
    lines = done.stderr.splitlines()
    assert done.exit_code == 1
    assert len(lines) == 4
    for word in (".a.for: 'soon'", ".b.levels: ", ".c.kind: ", "no.yaml: no such file"):
        assert sum(word in line for line in lines) == 1
    as_json = run("check", path, "fire", "no.yaml", "--json")
    assert as_json.exit_code == 1
    assert json.loads(as_json.stdout) == {"ok": False, "rules": {"fire": 10}, "problems": lines}


def test_a_wrong_file_is_not_applied(tmp_path: Path) -> None:
    done = run("apply", file(tmp_path, rules={"a": {}}))
    assert done.exit_code == 1
    assert "rules.a.levels: Field required" in done.stderr


@pytest.mark.parametrize("arguments", [("ls",), ("show", "smoke"), ("rm", "smoke")])
def test_kafka_that_is_away(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.exit_code == 1
    assert "127.0.0.1:1" in done.stderr


def test_rules_that_the_worker_could_not_start_from() -> None:
    done = run("ls", env={**AWAY, "IOTFLOW_RULES": "no.yaml"})
    assert done.exit_code == 1
    assert "no.yaml: no such file; a profile is one of" in done.stderr


# -- what changes ------------------------------------------------------------------------------------------------------


def test_a_file_brings_its_own_rules_and_those_of_a_profile_that_it_names() -> None:
    own = parse({"rules": {"oven": HEAT}})
    assert rules.plan(own, there(), prune=False) == Plan([Change("added", b"oven", encode(own.rules["oven"]))], [], 0)
    with_profile = rules.plan(parse({"profile": "display", "rules": {"oven": HEAT}}), there(), prune=False)
    assert {change.key for change in with_profile.changes} == {b"oven", *map(str.encode, profile("display").rules)}


def test_a_profile_is_applied_whole_by_its_name() -> None:
    planned = rules.plan(rules.from_file("display"), there(), prune=False)
    assert {change.key.decode() for change in planned.changes} == set(profile("display").rules)
    done = run("apply", "display")
    assert done.exit_code == 1
    assert "127.0.0.1:1" in done.stderr  # it is no file that is missing


def test_only_what_differs_is_written() -> None:
    held = there(oven=HEAT, old=HEAT, changed=HEAT)
    held.values |= {b"broken": b"{", b"a/b": b"{}"}
    # Written otherwise, and the same.
    held.values[b"oven"] = json.dumps({"kind": "level", "enabled": True, **HEAT}).encode()
    wanted = parse({"rules": {"oven": HEAT, "changed": {**HEAT, "version": 2}, "broken": HEAT}})
    found = rules.plan(wanted, held, prune=False)
    assert [(change.what, change.key) for change in found.changes] == [("changed", b"changed"), ("changed", b"broken")]
    assert (found.kept, found.unchanged) == ([b"old", b"a/b"], 1)
    pruned = rules.plan(wanted, held, prune=True)
    assert [change for change in pruned.changes if change.what == "removed"] == [
        Change("removed", b"old"),
        Change("removed", b"a/b"),
    ]
    assert pruned.kept == []


def test_a_change_without_a_new_version_is_told() -> None:
    wanted = parse({"rules": {"a": {**HEAT, "type": "HEAT"}, "b": {**HEAT, "version": 2}, "c": HEAT, "d": HEAT}})
    held = there(a={**HEAT, "version": 1}, b=HEAT, c=HEAT)
    found = rules.unversioned(wanted, held, rules.plan(wanted, held, prune=True))
    assert found == ["a: changes without a new version; alarms name it, so make it 2"]


def test_what_a_topic_does_not_take_is_named() -> None:
    settings = load({"IOTFLOW_MAX_MESSAGE_BYTES": "1024"})
    changes = [Change("added", b"large", b"x" * 1000), Change("added", b"small", b"x"), Change("removed", b"large")]
    with pytest.raises(RulesError) as caught:
        rules.fit(settings, changes)
    assert caught.value.problems == ["'large': takes 1133 bytes, more than IOTFLOW_MAX_MESSAGE_BYTES, 1024"]
    assert compacted.too_large(settings, changes[1:]) == []


def test_in_force_is_the_base_and_over_it_the_topic() -> None:
    found = rules.in_force(profile("fire"), there(temperature=HEAT, mine=HEAT)).rules()
    assert {id_: source for id_, (_, source) in found.items() if source == "topic"} == {
        "temperature": "topic",
        "mine": "topic",
    }
    assert found["smoke"][1] == "profile"


# -- for people --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        (HEAT, "temperature: >= 60 °C WARN 70 °C EMERGENCY"),
        (
            {**HEAT, "measurement": "fire", "devices": ["a", "b*"], "overrides": [{"devices": "a", "for": "1m"}]},
            "temperature of fire: >= 60 °C WARN 70 °C EMERGENCY devices a, b* 1 overrides",
        ),
        ({"metric": "state", "compare": "!=", "levels": {"WARN": "OK"}}, 'state: != "OK" WARN'),
        ({"kind": "silent", "for": "1h"}, "the channel: silent for 1h"),
        ({"kind": "gap", "metric": "*"}, "any metric: gap over 30% of those 30m apart within 6h"),
        ({"kind": "detector", "metric": "*", "detector": "shift"}, "any metric: detector shift"),
        ({"kind": "rate", "metric": "t", "levels": {"WARN": 2.5}, "per": "1m"}, "t: rate 2.5 WARN per 1m"),
    ],
)
def test_a_rule_in_a_line(rule: dict[str, Any], line: str) -> None:
    found: RuleSet = parse({"profile": "none", "rules": {"r": rule}})
    assert _summary(found.rules["r"]) == line


def test_odd_keys_can_be_read() -> None:
    assert rules.name(b"smoke") == "smoke"
    assert rules.name(b"\xff") == "\\xff"
    assert rules.name(b"") == "''"
    assert rules.name(b"a\nb") == "'a\\nb'"
