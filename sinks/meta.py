"""What a reading says besides its values, as one JSON text, for stores that keep it beside them as `_meta`."""

from collections.abc import Set as AbstractSet
from typing import Any, Final

import msgspec

from schemas.reading import Reading, Value

#: The field or series that holds the text.
META: Final = "_meta"

_NOTHING: Final[frozenset[str]] = frozenset()


class _Meta(msgspec.Struct, omit_defaults=True, gc=False):
    """The text's members; absent, `dialect` is the measurement's name."""

    dialect: str | None = None
    units: dict[str, str] = {}
    tags: dict[str, str] = {}
    flags: list[str] = []
    raw: dict[str, Value] = {}


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Meta).decode


def meta_text(reading: Reading, *, leave_out: AbstractSet[str] = _NOTHING) -> str:
    """The text for a reading, '' when it has nothing to say; `leave_out` names the tags that are stored elsewhere."""
    tags = reading.tags
    if tags and leave_out:
        tags = {name: value for name, value in tags.items() if name not in leave_out}
    dialect = None if reading.dialect == reading.measurement else reading.dialect
    if not (tags or reading.units or reading.flags or reading.raw or dialect is not None):
        return ""
    return _encode(_Meta(dialect, reading.units, tags, reading.flags, reading.raw)).decode()


def apply_meta(text: str, measurement: str) -> dict[str, Any]:
    """The fields of `Reading` that a text was made from; '' and the text of a reading without tags work too."""
    meta = _decode(text) if text else _Meta()
    return {
        "dialect": measurement if meta.dialect is None else meta.dialect,
        "units": meta.units,
        "tags": meta.tags,
        "flags": meta.flags,
        "raw": meta.raw,
    }
