"""Rules: how they are written, what is wrong with them, which series they are for, and how they change."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from app import rules as files
from app import yaml
from schemas import rules
from schemas.alarm import QUIET, Signal
from schemas.rules import RulesError, RuleSet, decode, encode, parse, profile
from tables.rules import Book, Rulebook, Watch

W, E = "WARN", "EMERGENCY"
NO_LEVEL = "must be a number, a text of at most 200 characters, or a boolean"
HEAT = {"metric": "temperature", "unit": "°C", "levels": {W: 80, E: 95}}


def problems(document: object) -> list[str]:
    with pytest.raises(RulesError) as caught:
        parse(document)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def one(**rule: Any) -> list[str]:
    return problems({"profile": "none", "rules": {"r": {"metric": "t", "levels": {W: 1}, **rule}}})


def book(profile: str = "none", **own: Mapping[str, Any]) -> Book:
    return Book(parse({"profile": profile, "rules": own}))


def said(watch: Watch, value: Any) -> dict[str, str | None]:
    """What each check of readings says of a value."""
    found = {}
    for check in watch.reading:
        _, signal = check.step(None, 1, value)
        assert signal is not None
        found[check.rule.id] = signal.severity
    return found


# -- profiles ----------------------------------------------------------------------------------------------------------

LEVELS = {
    "fire": {
        "temperature": (80, 95, "HEAT"),
        "humidity": (90, 98, "CUSTOM"),
        "smoke_density": (100, 500, "SMOKE"),
        "co_level": (50, 200, "CO"),
        "gas_level": (100, 500, "GAS"),
    },
    "display": {
        "temperature": (40, 60, "HEAT"),
        "humidity": (90, 95, "CUSTOM"),
        "smoke_density": (0.5, 1, "SMOKE"),
        "co_level": (30, 50, "CO"),
        "gas_level": (100, 200, "GAS"),
    },
    "fraction": {
        "temperature": (80, 100, "HEAT"),
        "humidity": (95, 97.5, "CUSTOM"),
        "smoke_density": (0.2, 0.6, "SMOKE"),
        "co_level": (0.1, 0.3, "CO"),
        "gas_level": (0.15, 0.475, "GAS"),
    },
}


@pytest.mark.parametrize(
    ("name", "metric", "warn", "emergency", "kind"),
    [(name, metric, *levels) for name, metrics in LEVELS.items() for metric, levels in metrics.items()],
)
def test_the_documents_levels(name: str, metric: str, warn: float, emergency: float, kind: str) -> None:
    watch = Book(profile(name)).watch("fire", "d", "", metric)
    (check,) = watch.reading
    assert check.rule.type == kind
    assert (watch.low, watch.high) == (float("-inf"), warn)
    for value, severity in ((warn * 0.999, None), (warn, W), (emergency * 0.999, W), (emergency, E), (1e6, E)):
        assert list(said(watch, value).values()) == [severity], value


def test_the_documents_examples() -> None:
    fire = Book(profile("fire"))
    temperature, smoke = (fire.watch("fire", "EQ001", "", metric) for metric in ("temperature", "smoke_density"))
    assert [said(temperature, value)["temperature"] for value in (79.9, 85, 95, 120)] == [None, W, E, E]
    assert said(smoke, 600) == {"smoke": E}
    _, signal = Book(profile("display")).watch("fire", "EQ001", "", "temperature").reading[0].step(None, 1, 60)
    assert signal is not None
    assert (signal.severity, signal.message) == (E, "temperature 60 °C is at or above 60 °C (CRITICAL)")


@pytest.mark.parametrize("name", LEVELS)
def test_every_profile_watches_silence_gaps_and_what_is_unusual(name: str) -> None:
    found = Book(profile(name))
    some = found.watch("telemetry", "d", "sensor/1", "pressure", "", "bar")
    assert [check.rule.kind for check in some.clock] == ["gap"]
    assert [check.rule.kind for check in found.watch("telemetry", "d", "", "").clock] == ["silent"]
    (learner,) = some.detectors["1m"]
    assert (learner.stat, learner.sensitivity, sorted(learner.rules)) == (
        "mean",
        "default",
        ["envelope", "shift", "surprise"],
    )
    assert found.watch("fire", "d", "", "co_level").detectors["1m"][0].stat == "max"
    assert found.ids == profile(name).rules.keys()


@pytest.mark.parametrize("name", LEVELS)
def test_profiles_are_files_without_mistakes(name: str) -> None:
    """Read as a person's file is: nothing stands twice, and all of it is known."""
    said = yaml.read(Path(f"schemas/profiles/{name}.yaml"))
    assert isinstance(said, dict)
    assert parse({"profile": "none", **said}).rules == profile(name).rules


def test_a_profile_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="no profile is called 'water'; there are: fire, display, fraction, none"):
        profile("water")


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_file_starts_from_a_profile() -> None:
    found = parse(
        {
            "rules": {
                "temperature": {**HEAT, "levels": {W: 60}},
                "co": {"metric": "co_level", "levels": {W: 1}, "enabled": False},
            }
        }
    )
    assert (found.profile, found.said, found.own) == ("fire", False, frozenset({"temperature", "co"}))
    compiled = Book(found)
    assert said(compiled.watch("m", "d", "", "temperature"), 70) == {"temperature": W}
    assert said(compiled.watch("m", "d", "", "co_level"), 70) == {}
    assert "co" not in compiled.ids
    assert "smoke" in compiled.ids
    assert found.source("co") == "file"
    assert found.source("smoke") == "profile"
    assert parse(None).rules == profile("fire").rules
    assert parse({"profile": "display"}).said


@pytest.mark.parametrize(
    ("document", "lines"),
    [
        ([1], ["must be an object with the members profile and rules, not an array"]),
        ({"profile": "x"}, ["profile: Input should be 'fire', 'display', 'fraction' or 'none'"]),
        ({"rule": {}}, ["rule: is not known here"]),
        (
            {"rules": {"a b": {}, "b": 1, "c": {"kind": "zz"}, "d": {"metric": "t"}}},
            [
                "rules.'a b': an id is up to 100 letters, digits and . _ - after a letter or digit",
                "rules.b: must be an object, as {metric: temperature, levels: {WARN: 80}}",
                "rules.c.kind: no kind is called 'zz'; there are: level, rate, stuck, edge, silent, gap, detector",
                "rules.d.levels: Field required",
            ],
        ),
    ],
)
def test_every_mistake_is_a_line(document: object, lines: list[str]) -> None:
    assert problems(document) == lines


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({"metric": ""}, "metric: is missing: the name of one, or * for any"),
        ({"bogus": 1}, "bogus: is not known here"),
        ({"version": 0}, "version: Input should be greater than or equal to 1"),
        ({"levels": {}}, "levels: Dictionary should have at least 1 item after validation, not 0"),
        ({"levels": {W: "high"}}, "levels.WARN: must be a number with >="),
        ({"levels": {W: [1]}}, f"levels.WARN: {NO_LEVEL}"),
        ({"levels": {W: float("nan")}}, f"levels.WARN: {NO_LEVEL}"),
        ({"levels": {W: 10**400}}, f"levels.WARN: {NO_LEVEL}"),
        ({"levels": {W: 2, E: 1}}, "levels.EMERGENCY: must be above that of WARN"),
        ({"levels": {W: 1, E: 2}, "compare": "<"}, "levels.EMERGENCY: must be below that of WARN"),
        ({"levels": {W: 1, E: "x"}, "compare": "=="}, "levels: must be all numbers, all texts, or all booleans"),
        ({"clear": {W: 2}}, "clear.WARN: must not be above its level"),
        ({"clear": {W: 0}, "compare": "<="}, "clear.WARN: must not be below its level"),
        ({"clear": {E: 2}}, "clear.EMERGENCY: there is no such level"),
        ({"clear": {W: 1}, "compare": "=="}, "clear: has no meaning with ==: another value is another value"),
        ({"for": "1s", "of": "1 of 2"}, "for, of: say one of them"),
        ({"for": "1y"}, "for: '1y' is no number above 0 with a unit (s, m, h, d, w), as 90s, 12h or 7d"),
        ({"of": "3 of 2"}, "of: '3 of 2' is not as `3 of 5`: so many of the last so many, at most 100"),
        ({"stat": "max"}, "stat: max is a window's: say which with `on`, as 5m"),
        ({"on": "5 m", "stat": "max"}, "on: '5 m' is no number above 0 with a unit (s, m, h, d, w), as 90s, 12h or 7d"),
        ({"kind": "rate", "levels": {W: 0}}, "levels.WARN: Input should be greater than 0"),
        ({"kind": "edge", "levels": {W: 2, E: 1}}, "levels.EMERGENCY: must be above that of WARN"),
        ({"overrides": [{"levels": {W: 2}}]}, "overrides.0: must name devices or facilities, one of them"),
        ({"overrides": [{"devices": "d"}]}, "overrides.0: changes nothing"),
        (
            {"overrides": [{"devices": "d", "levels": {W: 2, E: 1}}]},
            "overrides.0.levels.EMERGENCY: must be above that of WARN",
        ),
        ({"overrides": [{"devices": "d", "levels": {W: []}}]}, f"overrides.0.levels.WARN: {NO_LEVEL}"),
        ({"overrides": [{"devices": "d", "clear": {W: 1}}]}, "overrides.0.clear: say the levels with it"),
        (
            {"overrides": [{"devices": "d", "unit": "K"}]},
            "overrides.0.unit: cannot be overridden; what can is: clear, enabled, for, levels, of",
        ),
        ({"labels": {"HIGH": "x"}}, "labels.HIGH.[key]: Input should be 'INFO', 'WARN' or 'EMERGENCY'"),
    ],
)
def test_what_is_wrong_with_a_rule(rule: dict[str, Any], line: str) -> None:
    assert one(**rule) == [f"rules.r.{line}"]


@pytest.mark.parametrize(
    ("rule", "line"),
    [
        ({"kind": "silent"}, "for: Field required"),
        (
            {"kind": "stuck", "metric": "t", "for": "1h", "tolerance": -1},
            "tolerance: Input should be greater than or equal to 0",
        ),
        (
            {"kind": "gap", "metric": "t", "within": "30m", "every": "1m"},
            "within: must be 1h at least; for less there is the kind silent",
        ),
        ({"kind": "gap", "metric": "t", "within": "1h", "every": "1h"}, "within: must be twice `every`, 1h, at least"),
        (
            {"kind": "detector", "metric": "t", "detector": "magic"},
            "detector: Input should be 'envelope', 'surprise' or 'shift'",
        ),
        (
            {"kind": "detector", "metric": "t", "detector": "shift", "on": "reading", "stat": "max"},
            "stat: max is a window's: say which with `on`, as 5m",
        ),
    ],
)
def test_what_is_wrong_with_other_kinds(rule: dict[str, Any], line: str) -> None:
    assert problems({"rules": {"r": rule}}) == [f"rules.r.{line}"]


def test_a_rule_is_not_larger_than_a_record_may_be() -> None:
    overrides = [{"devices": f"device-{number:0180d}", "levels": {W: number}} for number in range(400)]
    (line,) = one(overrides=overrides)
    assert line.startswith("rules.r: has ")
    assert line.endswith(" bytes as JSON, more than 65536")


# -- records -----------------------------------------------------------------------------------------------------------

EVERY_KIND = [
    HEAT,
    {
        **HEAT,
        "clear": {W: 75},
        "for": "30s",
        "on": "5m",
        "stat": "p95",
        "labels": {W: "HIGH"},
        "version": 3,
        "enabled": False,
    },
    {"metric": "state", "compare": "!=", "levels": {W: "OK"}, "of": "2 of 3", "devices": ["a*", "b"]},
    {
        "metric": "door",
        "compare": "==",
        "levels": {"INFO": True},
        "overrides": [{"facilities": ["f"], "levels": {W: False}}],
    },
    {"kind": "rate", "metric": "t", "levels": {W: 2.5}, "per": "1m", "direction": "up"},
    {"kind": "edge", "metric": "power", "unit": "W", "levels": {"INFO": 30}},
    {"kind": "stuck", "metric": "t", "for": "1h", "tolerance": 0.5},
    {"kind": "silent", "for": "15m", "severity": E, "measurement": "m"},
    {"kind": "gap", "metric": "*", "missing": 0.5, "within": "12h", "every": "1h"},
    {"kind": "detector", "metric": "*", "detector": "envelope", "sensitivity": "nab", "stat": "max"},
]


@pytest.mark.parametrize("said", EVERY_KIND)
def test_a_record_holds_the_rule(said: dict[str, Any]) -> None:
    (rule,) = parse({"profile": "none", "rules": {"r": said}}).rules.values()
    value = encode(rule)
    again = decode("r", value)
    assert (again, encode(again)) == (rule, value)
    assert json.loads(value)["kind"] == rule.KIND
    # Also as a file.
    assert parse({"profile": "none", "rules": {"r": json.loads(value)}}).rules == {"r": rule}


@pytest.mark.parametrize(
    ("id_", "value", "line"),
    [
        ("a/b", b"{}", "'a/b': an id is up to 100 letters, digits and . _ - after a letter or digit"),
        ("r", b"{", "r: the value is not JSON: Input data was truncated"),
        ("r", b"\xff", "r: the value is not JSON: "),
        ("r", b"[" * 50_000, "r: the value is not JSON: "),
        ("r", b"[]", "r: must be an object"),
        ("r", b'{"metric":"t"}', "r.levels: Field required"),
        ("r", b" " * 70_000, "r: the record's value has 70000 bytes, more than 65536"),
    ],
)
def test_a_record_that_is_wrong(id_: str, value: bytes, line: str) -> None:
    with pytest.raises(RulesError) as caught:
        decode(id_, value)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(line)


members = st.sampled_from(["kind", "metric", "levels", "for", "overrides", "WARN", "devices", "enabled", "of"])
scalars = st.none() | st.booleans() | st.floats() | st.text() | st.sampled_from(["gap", "silent", "1h", "2 of 3"])
documents = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(members, inner, max_size=5), max_leaves=20
)


@given(documents)
def test_no_file_makes_it_fail_otherwise(document: object) -> None:
    for said in (document, {"rules": document}, {"rules": {"r": document}}):
        try:
            Book(parse(said)).watch("m", "d", "", "t")
        except RulesError as error:
            found = error.problems
        else:
            found = ["fine"]
        assert found
        assert all(line and "\n" not in line for line in found)


# -- which series ------------------------------------------------------------------------------------------------------


def test_selectors() -> None:
    found = book(
        a={**HEAT, "devices": ["EQ1*", "x"]},
        b={**HEAT, "facilities": "north"},
        c={**HEAT, "channels": ["pin/[12]"]},
        d={**HEAT, "measurement": "fire"},
        e={**HEAT, "metric": "temp*"},
        f={**HEAT, "metric": "*"},
    )

    def ids(measurement: str, device: str, channel: str, metric: str, facility: str) -> str:
        return "".join(sorted(found.watch(measurement, device, channel, metric, facility).ids))

    assert ids("fire", "EQ1", "pin/1", "temperature", "north") == "abcdef"
    assert ids("iot", "x", "pin/3", "temperature", "south") == "aef"
    assert ids("iot", "EQ2", "", "temp", "") == "ef"
    assert ids("iot", "EQ2", "", "Temperature", "") == "f"
    assert ids("fire", "x", "pin/1", "", "north") == ""


def test_a_channel_as_a_whole_has_rules_without_a_metric() -> None:
    found = book(whole={"kind": "silent", "for": "1h"}, each={"kind": "silent", "for": "2h", "metric": "*"})
    assert found.watch("m", "d", "", "").ids == {"whole"}
    assert found.watch("m", "d", "", "t").ids == {"each"}


def test_overrides_the_last_device_wins_else_the_last_facility() -> None:
    found = book(
        r={
            **HEAT,
            "clear": {W: 70},
            "overrides": [
                {"devices": ["oven*"], "levels": {W: 200, E: 300}},
                {"devices": ["oven-2"], "levels": {W: 250}},
                {"facilities": ["bakery"], "levels": {W: 60}},
                {"facilities": ["closed"], "enabled": False},
                {"devices": ["kept"], "enabled": True},
            ],
        }
    )

    def high(device: str, facility: str) -> float | None:
        watch = found.watch("m", device, "", "temperature", facility)
        return watch.high if watch.ids else None

    assert high("d", "") == 80
    assert high("oven-1", "bakery") == 200
    assert high("oven-2", "bakery") == 250
    assert high("d", "bakery") == 60
    assert high("d", "closed") is None
    assert high("kept", "closed") == 80
    # Where levels are other ones, so is what clears them.
    (check,) = found.watch("m", "d", "", "temperature", "bakery").reading
    memory, _ = check.step(None, 1, 60)
    assert check.step(memory, 2, 59) == (None, QUIET)


def test_a_rule_that_is_off_can_be_on_for_some() -> None:
    found = book(r={**HEAT, "enabled": False, "overrides": [{"devices": ["d"], "enabled": True}]})
    assert found.ids == {"r"}
    assert found.watch("m", "d", "", "temperature").ids == {"r"}
    assert found.watch("m", "e", "", "temperature").ids == frozenset()


def test_series_with_the_same_rules_share_a_watch() -> None:
    found = book("fire", special={**HEAT, "devices": ["special-*"]})
    plain = {id(found.watch("fire", f"d{number}", f"c{number}", "smoke_density")) for number in range(100)}
    assert len(plain) == 1
    some = {id(found.watch("fire", f"d{number}", "", "temperature", "f")) for number in range(100)}
    others = {id(found.watch("fire", f"special-{number}", "", "temperature", "f")) for number in range(100)}
    assert (len(some), len(others)) == (1, 1)
    assert some != others


# -- units -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "unit", "high"),
    [
        (HEAT, "", 80),
        (HEAT, "°C", 80),
        (HEAT, "°F", 176),
        (HEAT, "K", 353.15),
        ({**HEAT, "unit": ""}, "°F", 80),
        ({"metric": "temperature", "unit": "bar", "levels": {W: 1.5}}, "hPa", 1500),
    ],
)
def test_levels_are_converted(rule: dict[str, Any], unit: str, high: float) -> None:
    assert book(r=rule).watch("m", "d", "", "temperature", "", unit).high == pytest.approx(high, rel=1e-12)


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ({"kind": "edge", "unit": "°C", "levels": {W: 10}}, (50.0, 67.9, 85.9)),
        ({"kind": "rate", "unit": "°C", "levels": {W: 10}, "per": "1s"}, (50.0, 67.9, 85.9)),
    ],
)
def test_differences_have_no_offset(rule: dict[str, Any], values: tuple[float, ...]) -> None:
    (check,) = book(r={"metric": "t", **rule}).watch("m", "d", "", "t", "", "°F").reading
    memory = None
    found = []
    for at, value in enumerate(values):
        memory, signal = check.step(memory, at * 1_000_000, value)
        assert signal is not None
        found.append(signal.severity)
    assert found == [None, None, W]


@pytest.mark.parametrize(
    ("stat", "level", "threshold"), [("mean", 10, 50.0), ("p95", 10, 50.0), ("stddev", 10, 18.0), ("count", 10, 10.0)]
)
def test_statistics_are_converted_as_what_they_are(stat: str, level: float, threshold: float) -> None:
    found = book(r={"metric": "t", "unit": "°C", "levels": {W: level}, "on": "5m", "stat": stat})
    ((_, check),) = found.watch("m", "d", "", "t", "", "°F").window["5m"]
    _, signal = check.step(None, 1, 1000.0)
    assert signal is not None
    assert signal.threshold == threshold
    assert signal.message.count("°F") == (0 if stat == "count" else 2)


def test_a_unit_that_a_rule_cannot_be_applied_in_is_told() -> None:
    found = book(r=HEAT, s={"metric": "temperature", "unit": "°C", "levels": {W: 10}, "on": "5m", "stat": "sum"})
    assert found.watch("m", "d", "", "temperature", "", "ppm").ids == frozenset()
    assert found.misfits["r", "ppm"] == "temperature: '°C' cannot be converted to 'ppm'"
    assert found.watch("m", "d", "", "temperature", "", "°F").ids == {"r"}
    assert found.misfits["s", "°F"] == "temperature: a sum in °C cannot be converted to °F"
    for number in range(1000):
        found.watch("m", "d", "", "temperature", "", f"unit {number}")
    assert len(found.misfits) == 100


# -- detectors ---------------------------------------------------------------------------------------------------------


def test_detectors_of_one_sensitivity_share_what_they_learn() -> None:
    found = book(
        "fire",
        envelope={
            "kind": "detector",
            "metric": "*",
            "detector": "envelope",
            "severity": E,
            "labels": {E: "ODD"},
            "overrides": [{"devices": ["d"], "sensitivity": "nab"}],
        },
        raw={"kind": "detector", "metric": "*", "detector": "surprise", "on": "reading"},
    )
    plain = found.watch("m", "e", "", "t", "", "V")
    assert [(each.sensitivity, sorted(each.rules)) for each in plain.detectors["1m"]] == [
        ("default", ["envelope", "shift", "surprise"])
    ]
    special = found.watch("m", "d", "", "t", "", "V").detectors
    assert {(each.stat, each.sensitivity): sorted(each.rules) for each in special["1m"]} == {
        ("mean", "nab"): ["envelope"],
        ("mean", "default"): ["shift", "surprise"],
    }
    assert [(each.stat, sorted(each.rules)) for each in special["reading"]] == [("", ["surprise"])]
    detector = plain.detectors["1m"][0].rules["envelope"]
    told = detector.says(Signal(W, 3.0, None, "3 is above the range", 2.0, 1.0, 2.5))
    assert told == Signal(E, 3.0, None, "t (mean of 1m) 3 is above the range (ODD)", 2.0, 1.0, 2.5)
    assert detector.says(QUIET) is QUIET


# -- changes -----------------------------------------------------------------------------------------------------------


def test_what_the_topic_says_wins_and_can_be_taken_away() -> None:
    holder = Rulebook(parse({"rules": {"mine": HEAT}}))
    before = holder.book
    assert holder.book is before
    assert holder.counts() == {"profile": 10, "file": 1, "topic": 0}
    holder.put("temperature", b'{"metric":"temperature","levels":{"WARN":10}}')
    holder.put("mine", b'{"metric":"temperature","levels":{"WARN":10},"enabled":false}')
    after = holder.book
    assert after is not before
    assert said(after.watch("m", "d", "", "temperature"), 20) == {"temperature": W}
    assert before.ids - after.ids == {"mine"}
    assert holder.rules()["mine"][1] == "topic"
    assert holder.counts() == {"profile": 9, "file": 0, "topic": 1}
    holder.put("mine", None)
    holder.put("temperature", None)
    holder.put("nobody", None)
    assert holder.book.ids == before.ids
    assert said(holder.book.watch("m", "d", "", "temperature"), 85) == {"temperature": W, "mine": W}


def test_a_bad_record_changes_nothing() -> None:
    holder = Rulebook(profile("fire"))
    before = holder.book
    with pytest.raises(RulesError, match=r"temperature\.levels: Field required"):
        holder.put("temperature", b'{"metric":"temperature"}')
    assert holder.book is before


def test_the_same_again_is_no_change() -> None:
    holder = Rulebook(profile("fire"))
    value = b'{"metric":"temperature","levels":{"WARN":10}}'
    holder.put("r", value)
    before = holder.book
    holder.put("r", value)
    assert holder.book is before


# -- from files --------------------------------------------------------------------------------------------------------


def test_from_a_profile_or_a_file(tmp_path: Path) -> None:
    assert files.from_file("display") == structs.replace(profile("display"), said=True)
    path = tmp_path / "rules.yaml"
    path.write_text("profile: none\nrules:\n  r: {metric: t, levels: {WARN: 1}, on: 5m}\n")
    found = files.from_file(str(path))
    assert isinstance(found, RuleSet)
    assert files.unwatched(found.rules, ("1m", "5m")) == []
    assert files.unwatched(found.rules, ("1m", "1h")) == ["r: looks at windows of 5m, and IOTFLOW_WINDOWS has: 1m, 1h"]


def test_a_files_problems_name_it(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text("rules:\n  r: {metric: t, levels: {}}\n  s: {}\n")
    with pytest.raises(RulesError) as caught:
        files.from_file(str(path))
    assert len(caught.value.problems) == 2
    assert all(line.startswith(f"{path}: rules.") for line in caught.value.problems)
    path.write_text("a: 1\na: 2\n")
    with pytest.raises(RulesError, match="stands here twice"):
        files.from_file(str(path))
    with pytest.raises(RulesError, match="no such file; a profile is one of: fire, display, fraction, none"):
        files.from_file(str(tmp_path / "no.yaml"))


def test_kinds_are_known_by_their_names() -> None:
    assert {name: model.KIND for name, model in rules.KINDS.items()} == {name: name for name in rules.KINDS}


def test_a_wrong_profile_hides_nothing_of_what_else_is_wrong() -> None:
    with pytest.raises(RulesError) as caught:
        parse({"profile": "fir", "rules": {"r": {"metric": "t"}}})
    assert [line.partition(":")[0] for line in caught.value.problems] == ["profile", "rules.r.levels"]
