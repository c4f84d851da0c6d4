"""The types that the fields of InfluxDB's measurements have, as the server has said them."""

import time
from collections.abc import Callable, Iterable
from typing import Final

#: So long what the server has said is believed, in seconds. After that a value of another type is sent again, and it
#: is the server that refuses it or not: a field may be gone, and a new shard takes any type.
TRUSTED_S: Final = 60.0
#: Fields that are remembered: names come from devices, and must not fill the memory.
_REMEMBERED: Final = 100_000
_NUMBERS: Final = ("float", "integer", "unsigned")


class FieldTypes:
    """The one type of each field that has one; a field whose type differs between shards has none here."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._types: dict[tuple[str, str], str] = {}
        self._until = 0.0

    def learn(self, found: Iterable[tuple[str, str, str]]) -> None:
        """Forget all, and remember these: stored names of measurement and field, and the type."""
        types: dict[tuple[str, str], str] = {}
        mixed: set[tuple[str, str]] = set()
        for measurement, field, kind in found:
            place = (measurement, field)
            if len(types) >= _REMEMBERED and place not in types:
                break
            if types.setdefault(place, kind) != kind:
                mixed.add(place)
        self._types = {place: kind for place, kind in types.items() if place not in mixed}
        self._until = self._clock() + TRUSTED_S

    def of(self, measurement: str, field: str) -> str | None:
        """The type of a field, by stored names; None where anything may be tried."""
        return self._types.get((measurement, field))

    @property
    def trusted(self) -> bool:
        """Whether the server said so just now."""
        return self._clock() < self._until


def readable(kinds: Iterable[str]) -> list[str]:
    """The types to ask for so that every value of a field is given once; numbers first.

    InfluxDB gives integers where floats are asked for, so that of the types of numbers only one may be.
    """
    kinds = set(kinds)
    number = next((kind for kind in _NUMBERS if kind in kinds), None)
    return [*([number] if number else []), *sorted(kinds.difference(_NUMBERS))]
