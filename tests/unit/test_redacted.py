"""Payloads as they are shown: nothing that is named like a secret can be seen, whatever form it is in."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.redacted import HIDDEN, shown, text

SECRET = "s3cr3t-v4lue"  # noqa: S105  it must not be seen
NAMES = ["api_key", "apiKey", "API-KEY", "password", "auth.token", "client secret", "Authorization"]


def test_json_is_laid_out_and_keeps_what_is_no_secret() -> None:
    said = {"device": "a", "values": [1, {"x": None}], "ok": True}
    found = shown(json.dumps(said).encode())
    assert found is not None
    assert json.loads(found) == said
    assert len(found.splitlines()) > 5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "form",
    [
        '{{"{name}": "{secret}", "t": 1}}',
        '{{"deep": [{{"{name}": {{"x": ["{secret}"]}}}}]}}',
        '{{"{name}": "{secret}", "broken": ',
        '{{"{name}": {{"user": "u", "x": "{secret}"',
        '{{"{name}" :"a\\" {secret}"',
        "weather,{name}={secret} temperature=1 1",
        'm {name}="a b {secret}" 1',
        "{name}: Bearer {secret}",
        "?a=1&{name}={secret}&b=2",
        "'{name}': '{secret}'",
    ],
)
def test_a_secret_is_hidden_in_every_form(name: str, form: str) -> None:
    payload = form.format(name=name, secret=SECRET)
    found = shown(payload.encode())
    assert found is not None
    assert SECRET not in found
    assert HIDDEN in found


@pytest.mark.parametrize("name", NAMES)
def test_a_secret_in_a_text_of_a_payload(name: str) -> None:
    inner = json.dumps({name: SECRET})
    assert SECRET not in str(shown(json.dumps({"message": inner, "more": [inner]}).encode()))


def test_a_name_written_in_escapes_and_a_login_in_an_address() -> None:
    assert SECRET not in str(shown(b'{"pass\\u0077ord": "' + SECRET.encode()))
    assert text(f"see https://user:{SECRET}@host/x") == "see https://***"
    assert text(f"it said basic {SECRET}") == "it said basic ***"


@pytest.mark.parametrize("said", ["pressure: 1", "a=1,b=2", "no json", "tokens of esteem", "https://host/x@y"])
def test_other_text_stays_as_it_is(said: str) -> None:
    assert shown(said.encode()) == said


def test_what_is_no_text() -> None:
    assert shown(b"\xff\xfe\x00") is None


def test_a_payload_nested_too_deep_to_be_laid_out_hides_its_secrets_too() -> None:
    payload = "[" * 100 + json.dumps({"password": SECRET}) + "]" * 100
    assert SECRET not in str(shown(payload.encode()))


values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(values=st.dictionaries(st.text() | st.sampled_from(NAMES), values), cut=st.integers(0, 200))
def test_it_takes_any_payload(values: dict[str, Any], cut: int) -> None:
    """Whole or cut anywhere, of any content: it answers."""
    payload = json.dumps(values, ensure_ascii=False).encode()
    found = shown(payload)
    assert found is not None
    assert set(json.loads(found)) == set(values)
    shown(payload[:cut])
