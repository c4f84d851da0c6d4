"""What every JSON dialect does alike: read an object, quote a value in an error, keep secrets out of readings."""

import re
from collections.abc import Collection, Mapping
from typing import Any, Final

import msgspec

from schemas.reading import Rejected, RejectedError, Value

#: A device id, a channel or a metric's name has at most this many characters.
NAME_CHARS: Final = 256
#: An error's text shows at most this much of a value.
QUOTED_CHARS: Final = 60
#: Objects and arrays that are kept as text may be nested this deep.
DEPTH: Final = 32

_SECRETS: Final = ("apikey", "password", "token", "secret")
_NAMED_IN_ERROR: Final = 3
_not_a_letter = re.compile(r"[^a-z]")
_decode = msgspec.json.Decoder().decode


def fields(payload: bytes) -> dict[str, Any]:
    """The fields of a payload that is one JSON object.

    Raises `RejectedError`: `not_json`, `bad_type` (not an object), `out_of_range` (a number no double can hold),
    `too_large` (nested too deep).
    """
    try:
        found = _decode(payload)
    except msgspec.ValidationError as error:
        # Without a type to validate against, only the size of a number is left to complain about.
        raise RejectedError("out_of_range", f"a number is too large: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RejectedError("not_json", f"the payload is not JSON: {error}") from error
    except RecursionError as error:
        raise RejectedError("too_large", "the payload is nested too deep") from error
    if not isinstance(found, dict):
        kind = "an array" if isinstance(found, list) else "a single value"
        raise RejectedError("bad_type", f"the payload is {kind}, not an object")
    return found


def need(found: Mapping[str, Any], field: str) -> object:
    """The value of a field; raises `RejectedError` when it is absent."""
    if field not in found:
        raise RejectedError("missing_field", f"{field} is missing")
    return found[field]


def name(found: Mapping[str, Any], field: str) -> str:
    """The text in a field that must hold a name; raises `RejectedError` when it is absent, empty or too long."""
    value = need(found, field)
    if not isinstance(value, str):
        raise RejectedError("bad_type", f"{field} is {quoted(value)}, not a string")
    if not value:
        raise RejectedError("missing_field", f"{field} is empty")
    if len(value) > NAME_CHARS:
        raise RejectedError("too_large", f"{field} has {len(value)} characters, more than {NAME_CHARS}")
    return value


def number(field: str, value: object) -> int | float:
    """A field's value, which must be a number; raises `RejectedError` with reason `bad_type`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise RejectedError("bad_type", f"{field} is {quoted(value)}, not a number")


def extras(found: Mapping[str, Any], known: Collection[str]) -> tuple[dict[str, Value], Rejected | None]:
    """The scalars in fields that a dialect does not know, secrets left out, and what is wrong with the others.

    All the others share one `Rejected`: a payload of a thousand of them makes one dead letter.
    """
    kept: dict[str, Value] = {}
    wrong: list[str] = []
    for field, value in found.items():
        if field in known or is_secret(field):
            continue
        if not field:
            wrong.append("a field has no name")
        elif len(field) > NAME_CHARS:
            wrong.append(f"a field's name has {len(field)} characters, more than {NAME_CHARS}")
        elif isinstance(value, dict | list):
            wrong.append(f"{quoted(field)} is {quoted(value)}, not a number, text, boolean or null")
        else:
            kept[field] = value
    if not wrong:
        return kept, None
    rest = len(wrong) - _NAMED_IN_ERROR
    more = f"; and {rest} more" if rest > 0 else ""
    return kept, Rejected("bad_type", "; ".join(wrong[:_NAMED_IN_ERROR]) + more)


def text(value: object) -> str:
    """A value as the text of a tag: a string as it is, anything else as JSON without its secret fields.

    Raises `RejectedError` with reason `too_large` when it is nested deeper than `DEPTH`.
    """
    return value if isinstance(value, str) else msgspec.json.encode(_without_secrets(value, DEPTH)).decode()


def is_secret(field: str) -> bool:
    """Whether a field's name says that its value must not be stored, logged or shown."""
    return _not_a_letter.sub("", field.lower()).endswith(_SECRETS)


def quoted(value: object) -> str:
    """A value as an error's text may show it: short, printable, and nothing of what an object or array holds."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "an array"
    shown = repr(value[: QUOTED_CHARS + 1]) if isinstance(value, str) else str(value)
    return shown if len(shown) <= QUOTED_CHARS else shown[: QUOTED_CHARS - 1] + "…"


def _without_secrets(value: object, depth: int) -> object:
    if isinstance(value, dict | list) and depth == 0:
        raise RejectedError("too_large", f"a value is nested deeper than {DEPTH}")
    if isinstance(value, dict):
        return {key: _without_secrets(inner, depth - 1) for key, inner in value.items() if not is_secret(key)}
    if isinstance(value, list):
        return [_without_secrets(inner, depth - 1) for inner in value]
    return value
