"""What every dialect keeps to; a new dialect's file is enough to be tested here."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import dialects, wire
from schemas.dialects import Example
from schemas.payload import QUOTED_CHARS
from schemas.reading import FLAGS, Reading, Rejected, flaw
from schemas.reasons import REASONS
from tests.lab import speech

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
HIDDEN = "hunter2-do-not-show"

MODULES = dialects.load()
SPEAKABLE = {name: module for name, module in MODULES.items() if hasattr(module, "encode")}
EXAMPLES = [
    pytest.param(module, example, id=f"{name}-{number}")
    for name, module in MODULES.items()
    for number, example in enumerate(module.EXAMPLES)
]

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-1000, 1000),
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(-100, 1100),
    st.text(),
    st.integers(-(10**9), 8 * 10**9).map(lambda seconds: (EPOCH + timedelta(seconds=seconds)).isoformat()),
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


JSON = {name: module for name, module in MODULES.items() if module.EXAMPLES[0].payload[:1] == b"{"}


def decode(module: ModuleType, payload: bytes, origin: str | None = None) -> Sequence[Reading | Rejected]:
    return speech.decode(module.MATCH.name, payload, origin)


def exactly(value: Any) -> Any:
    """A value that is equal only to one of the same types: 1 is not 1.0 and not True."""
    return repr(msgspec.to_builtins(value, builtin_types=(datetime,)))


def check(module: ModuleType, payload: bytes, origin: str | None = None) -> None:
    outcomes = decode(module, payload, origin)
    assert outcomes
    for outcome in outcomes:
        if isinstance(outcome, Rejected):
            assert outcome.reason in REASONS
            assert outcome.error
            assert len(outcome.error) < 1_000
            continue
        assert flaw(outcome) is None
        assert outcome.dialect == module.MATCH.name
        assert outcome.time.tzinfo is UTC
        assert FLAGS.keys() >= set(outcome.flags)
        assert exactly(wire.read(wire.write(outcome))) == exactly(outcome)
        if hasattr(module, "encode"):
            said = module.origin(outcome) if hasattr(module, "origin") else origin
            again = decode(module, module.encode(outcome), said)
            assert [exactly(reading) for reading in again] == [exactly(outcome)]


def test_the_documents_dialects_are_found() -> None:
    assert {"telemetry", "fire"} <= MODULES.keys()


@pytest.mark.parametrize(("module", "example"), EXAMPLES)
def test_examples_hold(module: ModuleType, example: Example) -> None:
    outcomes = decode(module, example.payload, example.origin)
    given_ = [outcome.reason if isinstance(outcome, Rejected) else exactly(outcome) for outcome in outcomes]
    assert given_ == [expected if isinstance(expected, str) else exactly(expected) for expected in example.gives]
    check(module, example.payload, example.origin)


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_examples_show_both_sides(module: ModuleType) -> None:
    first, *others = module.EXAMPLES
    assert isinstance(first.gives[0], Reading)
    assert any(isinstance(expected, str) for example in others for expected in example.gives)


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
@given(payload=st.binary())
@settings(deadline=None)
def test_any_bytes_give_an_answer(module: ModuleType, payload: bytes) -> None:
    check(module, payload)


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
@given(payload=values)
@settings(deadline=None)
def test_any_json_gives_an_answer(module: ModuleType, payload: object) -> None:
    check(module, msgspec.json.encode(payload))


@pytest.mark.parametrize("module", JSON.values(), ids=JSON)
@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_any_change_of_an_example_gives_an_answer(module: ModuleType, data: st.DataObject) -> None:
    said = msgspec.json.decode(module.EXAMPLES[0].payload)
    names = st.sampled_from([*said, "channel", "metadata", "api_key"]) | st.text()
    for name, value in data.draw(st.dictionaries(names, values, max_size=4)).items():
        said[name] = value
    for name in data.draw(st.sets(st.sampled_from([*said]), max_size=2)):
        del said[name]
    check(module, msgspec.json.encode(said))


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
@given(data=st.data())
@settings(deadline=None)
def test_a_damaged_example_gives_an_answer(module: ModuleType, data: st.DataObject) -> None:
    payload = bytearray(data.draw(st.sampled_from([example.payload for example in module.EXAMPLES if example.payload])))
    at = data.draw(st.integers(0, len(payload) - 1))
    payload[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    check(module, bytes(payload))


@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES)
def test_ten_megabytes_give_an_answer(module: ModuleType) -> None:
    text, first = "x" * 10_000_000, module.EXAMPLES[0].payload
    payloads = [text.encode(), b'"' * 10_000_000, first + text.encode(), b"[" * 10_000_000]
    if module.MATCH.name in JSON:
        said = msgspec.json.decode(first)
        payloads += [msgspec.json.encode(said | {field: text}) for field in (*said, "more")]
        payloads.append(msgspec.json.encode(said | {text: 1}))
    for payload in payloads:
        outcomes = decode(module, payload)
        assert outcomes
        assert all(len(outcome.error) < 1_000 for outcome in outcomes if isinstance(outcome, Rejected))


@pytest.mark.parametrize("module", JSON.values(), ids=JSON)
@pytest.mark.parametrize("name", ["api_key", "apiKey", "X-API-Key", "password", "db_password", "token", "secret"])
@pytest.mark.parametrize("value", [HIDDEN, {"inner": HIDDEN}, [HIDDEN]], ids=["text", "object", "array"])
def test_secrets_go_nowhere(module: ModuleType, name: str, value: object) -> None:
    said = msgspec.json.decode(module.EXAMPLES[0].payload) | {name: value, "metadata": {name: value, "in": [{name: 1}]}}
    for outcome in decode(module, msgspec.json.encode(said)):
        assert HIDDEN not in repr(outcome)
    for field in list(said):
        for outcome in decode(module, msgspec.json.encode(said | {field: {name: value}})):
            assert HIDDEN not in repr(outcome)


@pytest.mark.parametrize("module", JSON.values(), ids=JSON)
def test_errors_quote_little(module: ModuleType) -> None:
    said = msgspec.json.decode(module.EXAMPLES[0].payload)
    for field in said:
        for outcome in decode(module, msgspec.json.encode(said | {field: "x" * 10_000})):
            if isinstance(outcome, Rejected):
                assert outcome.error.count("x") <= QUOTED_CHARS


@pytest.mark.parametrize("module", SPEAKABLE.values(), ids=SPEAKABLE)
def test_what_the_simulator_needs_is_there(module: ModuleType) -> None:
    template: Reading = module.EXAMPLES[0].gives[0]
    assert module.WALKS.keys() == template.values.keys()
    for metric, walk in module.WALKS.items():
        assert 0 < walk.step < walk.high - walk.low
        for value in (walk.low, walk.high, *walk.odd):
            reading = msgspec.structs.replace(template, values=template.values | {metric: value})
            said = module.origin(reading) if hasattr(module, "origin") else None
            assert list(decode(module, module.encode(reading), said)) == [reading]
    assert module.SPOILED.keys() <= REASONS.keys()
    for reason, spoil in module.SPOILED.items():
        (outcome,) = decode(module, spoil(module.EXAMPLES[0].payload))
        assert isinstance(outcome, Rejected)
        assert outcome.reason == reason
