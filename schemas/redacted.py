"""Payloads as a person may see them: laid out, without the values of fields whose names say that they are secret."""

import json
import re
from typing import Final

import msgspec

from schemas.payload import is_secret

HIDDEN: Final = "***"
#: Nested deeper than this, a payload is shown as the text that it is.
_DEPTH: Final = 64
# A name with what follows it in a query, in line protocol, in a header, in JSON that is broken.
_named = re.compile(r"""(?<![\w.-])([\w.-]++(?: [\w.-]++){0,2})\\*["']?\s*[:=]\s*""")
_login = re.compile(r"\b(?:bearer|basic)\s+|://(?=[^/\s@]*@)", re.IGNORECASE)
_escape = re.compile(r"\\u([0-9a-fA-F]{4})")


def shown(value: bytes) -> str | None:
    """A payload as text: JSON indented, other text as it is, secrets hidden in both; None where it is neither."""
    try:
        said = value.decode()
    except UnicodeDecodeError:
        return None
    try:
        found = msgspec.json.decode(value)
        if isinstance(found, dict | list):
            return json.dumps(_without(found, _DEPTH), indent=2, ensure_ascii=False)
    except (msgspec.DecodeError, RecursionError):
        pass  # as text
    return text(said)


def text(said: str) -> str:
    """A text up to where it names something secret: where that ends, nobody can say of a text in no known form."""
    plain = _escape.sub(lambda found: chr(int(found[1], 16)), said)
    ends = [found.end() for found in _named.finditer(plain) if is_secret(found[1])]
    ends += [found.end() for found in _login.finditer(plain)]
    return plain[: min(ends)] + HIDDEN if ends else said


def _without(value: object, depth: int) -> object:
    if depth == 0 and isinstance(value, dict | list):
        raise RecursionError
    if isinstance(value, dict):
        return {name: HIDDEN if is_secret(name) else _without(inner, depth - 1) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without(inner, depth - 1) for inner in value]
    return text(value) if isinstance(value, str) else value
