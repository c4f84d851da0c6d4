"""Payloads, quotes and secrets."""

import pytest

from schemas.payload import QUOTED_CHARS, extras, fields, is_secret, quoted, text
from schemas.reading import RejectedError


@pytest.mark.parametrize(
    ("payload", "reason"),
    [
        (b"", "not_json"),
        (b"\xef\xbb\xbf{}", "not_json"),
        (b'{"a":Infinity}', "not_json"),
        (b'{"a":01}', "not_json"),
        (b"{'a':1}", "not_json"),
        (b'{"a":1}{', "not_json"),
        (b'{"a":"\xff"}', "not_json"),
        (b'{"a":"\\ud800"}', "not_json"),
        (b'{"a":1e400}', "out_of_range"),
        (b'{"a":' + b"1" * 5_000 + b"}", "out_of_range"),
        (b'{"a":' * 100_000, "too_large"),
        (b"[]", "bad_type"),
        (b'"text"', "bad_type"),
    ],
)
def test_what_is_not_an_object(payload: bytes, reason: str) -> None:
    with pytest.raises(RejectedError) as caught:
        fields(payload)
    assert caught.value.rejected.reason == reason


def test_an_object() -> None:
    assert fields(b' {"a": [1, null], "a": 2} ') == {"a": 2}


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "null"),
        (True, "true"),
        (1.5, "1.5"),
        ("a\nb", r"'a\nb'"),
        ("온도", "'온도'"),
        ("\ud800", r"'\ud800'"),
        ({"password": "p"}, "an object"),
        (["p"], "an array"),
    ],
)
def test_quoted(value: object, shown: str) -> None:
    assert quoted(value) == shown


@pytest.mark.parametrize("value", ["x" * 1_000_000, 10**4_000, "\x00" * 100])
def test_quoted_is_short(value: object) -> None:
    assert len(quoted(value)) == QUOTED_CHARS


@pytest.mark.parametrize("name", ["api_key", "API-Key", "apikey", "password", "user.password", "accessToken", "secret"])
def test_secrets(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["key", "token_count", "secretary", "temperature", ""])
def test_no_secrets(name: str) -> None:
    assert not is_secret(name)


def test_text_of_a_value_too_deep() -> None:
    value: object = 1
    for _ in range(33):
        value = [value]
    with pytest.raises(RejectedError, match="nested deeper"):
        text(value)


def test_many_bad_extras_are_one_short_rejection() -> None:
    kept, rejected = extras({f"field{number}": {} for number in range(10_000)}, ())
    assert not kept
    assert rejected is not None
    assert len(rejected.error) < 500
