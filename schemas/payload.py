"""What every JSON dialect does alike: read an object, quote a value in an error, keep secrets out of readings."""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import msgspec

from schemas.reading import Reading, Rejected, RejectedError, Value
from schemas.reasons import Reason

#: A device id, a channel or a metric's name has at most this many characters.
NAME_CHARS: Final = 256
#: An error's text shows at most this much of a value.
QUOTED_CHARS: Final = 60
#: Of the text of another's error at most this much is shown.
ERROR_CHARS: Final = 200
#: What one payload's refusals have letters of their own for; the others share one.
LETTERS: Final = 5
#: Objects and arrays that are kept as text may be nested this deep.
DEPTH: Final = 32

#: What a secret's name has in it, and what it ends with, of its letters alone.
_SECRET_PARTS: Final = (
    "apikey", "secretkey", "privatekey", "accesskey", "password", "passwd", "accesstoken", "authtoken", "authorization",
    "credential", "clientsecret",
)  # fmt: skip
_SECRET_ENDS: Final = ("token", "tokens", "secret", "secrets", "pwd", "passphrase")
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
        raise RejectedError("out_of_range", f"a number is too large: {brief(error)}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RejectedError("not_json", f"the payload is not JSON: {brief(error)}") from error
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


def device(field: str, value: object) -> str:
    """The canonical id of a device that a field names: of an integer N, also as text, `device_N`; other text is kept.

    Raises `RejectedError`.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        value = str(value)
    found = name({field: value}, field)
    return name({field: f"device_{found}"}, field) if found.isascii() and found.isdigit() else found


def number(field: str, value: object) -> int | float:
    """A field's value, which must be a number; raises `RejectedError` with reason `bad_type`."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return value
    raise RejectedError("bad_type", f"{field} is {quoted(value)}, not a number")


def measured(field: str, value: object) -> float:
    """A field's value as a double.

    Raises `RejectedError`: `bad_type`, `out_of_range`, or `integer_too_large` for one that no double holds exactly.
    """
    found = number(field, value)
    try:
        exact = float(found)
    except OverflowError as error:
        raise RejectedError("out_of_range", f"{field} is an integer larger than any double") from error
    if found.__class__ is int and int(exact) != found:
        raise RejectedError("integer_too_large", f"{field} is {quoted(found)}, an integer that no double holds exactly")
    return exact


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


def members(found: Mapping[str, Any], field: str) -> tuple[dict[str, str], Rejected | None]:
    """The members of the object in a field as tags FIELD.NAME, secrets and nulls left out, and what is wrong with any.

    All that are wrong share one `Rejected`. `object_of` is the inverse.
    """
    said = found.get(field)
    if said is None:
        return {}, None
    if not isinstance(said, dict):
        return {}, Rejected("bad_type", f"{field} is {quoted(said)}, not an object")
    tags: dict[str, str] = {}
    wrong: Rejected | None = None
    for member, value in said.items():
        if value is None or is_secret(member):
            continue
        tag = f"{field}.{member}"
        if len(tag) > NAME_CHARS:
            wrong = Rejected("too_large", f"a member of {field} has a name of more than {NAME_CHARS} characters")
            continue
        try:
            tags[tag] = text(value)
        except RejectedError as error:
            wrong = error.rejected
    return tags, wrong


def object_of(tags: Mapping[str, str], field: str) -> dict[str, str]:
    """The members of the object in a field that became tags."""
    prefix = f"{field}."
    return {tag.removeprefix(prefix): value for tag, value in tags.items() if tag.startswith(prefix)}


def text(value: object) -> str:
    """A value as the text of a tag: a string as it is, anything else as JSON without its secret fields.

    Raises `RejectedError` with reason `too_large` when it is nested deeper than `DEPTH`.
    """
    return value if isinstance(value, str) else msgspec.json.encode(_without_secrets(value, DEPTH)).decode()


def is_secret(field: str) -> bool:
    """Whether a field's name says that its value must not be stored, logged or shown."""
    # Names come again and again; those that are too long for one are not remembered.
    return _is_secret(field) if len(field) <= NAME_CHARS else _is_secret.__wrapped__(field)


@lru_cache(maxsize=8192)
def _is_secret(field: str) -> bool:
    letters = _not_a_letter.sub("", field.lower())
    return letters.endswith(_SECRET_ENDS) or any(part in letters for part in _SECRET_PARTS)


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


def brief(error: Exception) -> str:
    """What another's error says, as far as one can read it: a place deep in a payload makes it very long."""
    text = str(error)
    return text if len(text) <= ERROR_CHARS else text[: ERROR_CHARS - 1] + "…"


def _without_secrets(value: object, depth: int) -> object:
    if isinstance(value, dict | list) and depth == 0:
        raise RejectedError("too_large", f"a value is nested deeper than {DEPTH}")
    if isinstance(value, dict):
        return {key: _without_secrets(inner, depth - 1) for key, inner in value.items() if not is_secret(key)}
    if isinstance(value, list):
        return [_without_secrets(inner, depth - 1) for inner in value]
    return value


class Refusals:
    """What is refused of one payload, as few letters: each has the whole payload, and there may be a great many.

    The first few have their own and the others share one; where nothing else came of the payload all share one.
    """

    def __init__(self) -> None:
        self._first: list[Rejected] = []
        self._last = Rejected("empty", "")
        self._count = 0

    def add(self, reason: Reason, error: str) -> None:
        """Refuse one more; the error says which."""
        self._last = Rejected(reason, error)
        self._count += 1
        if self._count <= LETTERS:
            self._first.append(self._last)

    def after(self, readings: Sequence[Reading]) -> Sequence[Reading | Rejected]:
        """The outcomes of the payload."""
        if not self._count:
            return readings
        if not readings:
            first = self._first[0]
            more = f"; and {self._count - 1} more are refused" if self._count > 1 else ""
            return (Rejected(first.reason, first.error + more),)
        rest = self._count - len(self._first)
        if rest > 1:
            shared = Rejected(self._last.reason, f"{rest} more are refused, the last: {self._last.error}")
            return (*readings, *self._first, shared)
        return (*readings, *self._first, *([self._last] * rest))
