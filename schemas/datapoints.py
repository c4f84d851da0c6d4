"""The registry of data points: what stands at which pin of which controller, and where that is written down.

A pin's id is `CONTROLLER/CONNECTOR/PIN`: the controller's MAC address as `schemas.gateway` has it, or `*` for every
controller that is wired alike, and two numbers; an exact controller wins over `*`. What stands at a pin comes from a
YAML file (`parse`) and from the compacted topic `iotflow.registry` (`encode`, `decode`), and the topic wins.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from pydantic import TypeAdapter, ValidationError

from schemas import gateway
from schemas.config import explained
from schemas.extract import Extractor, extractors
from schemas.payload import QUOTED_CHARS, brief, quoted
from schemas.point import MAX_POINTS, Entry, named, repeated

#: No record's value is longer: 64 data points with long names and units take half of it.
MAX_VALUE_BYTES: Final = 64 * 1024
#: Stands for every controller that has no entry of its own for a pin.
ANY: Final = "*"

#: A line about a mistake is no longer, whatever it quotes.
_LINE_CHARS: Final = 400

Source = Literal["file", "topic"]


class RegistryError(ValueError):
    """Entries of the registry are wrong; `problems` has a line for each thing to correct."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = list(problems)


def parse(document: object) -> dict[str, Entry]:
    """The entries, by id, that the content of a YAML file describes.

    It is `{"controllers": {CONTROLLER: {"CONNECTOR/PIN": {"name", "points": [..]}}}}`; the list of points alone will do
    for the innermost. Raises `RegistryError` with every problem and its place.
    """
    if document is None:
        return {}
    if not isinstance(document, Mapping):
        raise RegistryError([f"must be an object with the member controllers, not {quoted(document)}"])
    others = [f"{_shown(name)}: is not known here, only controllers" for name in document if name != "controllers"]
    problems = named(others)
    entries: dict[str, Entry] = {}
    controllers = document.get("controllers")
    if not isinstance(controllers, Mapping | None):
        problems.append(f"controllers: must have a member for each controller, not be {quoted(controllers)}")
    seen: dict[str, object] = {}
    for said, pins in controllers.items() if isinstance(controllers, Mapping) else ():
        where = f"controllers.{_shown(said)}"
        try:
            controller = _controller(said)
        except RegistryError as error:
            problems.append(f"{where}: {error}")
            controller = ""
        if controller and controller in seen:
            before = _shown(seen[controller])
            problems.append(f"{where}: is the controller {controller}, which is there already as {before}")
        seen.setdefault(controller, said)
        if isinstance(pins, Mapping) and pins:
            _pins(where, controller, pins, entries, problems)
        else:
            problems.append(f"{where}: must have a member CONNECTOR/PIN for each pin, as 1/1")
    if problems:
        raise RegistryError(problems)
    return entries


def _pins(
    where: str, controller: str, pins: Mapping[Any, object], entries: dict[str, Entry], problems: list[str]
) -> None:
    seen: dict[str, object] = {}
    for said, value in pins.items():
        place = f"{where}.{_shown(said)}"
        try:
            pin = _pin(said)
        except RegistryError as error:
            problems.append(f"{place}: {error}")
            pin = ""
        if pin and pin in seen:
            problems.append(f"{place}: is the pin {pin}, which is there already as {_shown(seen[pin])}")
        seen.setdefault(pin, said)
        try:
            entry = _entry(place, value)
        except RegistryError as error:
            problems += error.problems
            continue
        size = len(encode(entry))
        if size > MAX_VALUE_BYTES:
            problems.append(f"{place}: {_too_large(size)}")
        entries[f"{controller}/{pin}"] = entry


def _shown(key: object) -> str:
    """A member's name in a line: as it stands there, unless it is long or cannot be shown."""
    text = str(key)
    return text if text.isprintable() and 0 < len(text) <= QUOTED_CHARS else quoted(text)


def _too_large(size: int) -> str:
    return f"the record's value has {size} bytes, more than {MAX_VALUE_BYTES}"


_placed: Final = TypeAdapter(dict[str, Entry]).validate_python


def _entry(place: str, value: object) -> Entry:
    try:
        return _placed({place: value})[place]
    except ValidationError as error:
        found = value.get("points") if isinstance(value, Mapping) else value
        # Pydantic looks at the points together only when each of them is right.
        points = found if isinstance(found, list) and len(found) <= MAX_POINTS else []
        labels = [_label(point) for point in points if isinstance(point, Mapping)]
        twice = repeated(label for label in labels if isinstance(label, str))
        lines = [*explained(error), f"{place}.points: {twice}"] if twice else explained(error)
        said = named(list(dict.fromkeys(lines)))
        raise RegistryError([_line(line if line.startswith(place) else f"{place}: {line}") for line in said]) from error


def _line(text: str) -> str:
    return text if len(text) <= _LINE_CHARS else text[: _LINE_CHARS - 1] + "…"


def _label(point: Mapping[Any, object]) -> object:
    label = point.get("label", point.get("Label"))
    return label.strip() if isinstance(label, str) else label


def _controller(said: object) -> str:
    if not isinstance(said, str):
        raise RegistryError([f"a controller is written in quotes, lest YAML takes it for a number: {quoted(said)}"])
    if said == ANY:
        return ANY
    found = gateway.controller(said.strip())
    if found is not None:
        return found
    raise RegistryError([f"a controller is the 12 hex digits of its MAC address, or *, not {quoted(said)}"])


def _pin(said: object) -> str:
    parts = said.split("/", 2) if isinstance(said, str) else []
    found = [number for part in parts if (number := gateway.number(part.strip())) is not None]
    if len(parts) != 2 or len(found) != 2:  # noqa: PLR2004  a connector and a pin
        numbers = f"two numbers of 0..{gateway.LAST_NUMBER}"
        raise RegistryError([f"a pin is CONNECTOR/PIN, {numbers}, as 1/3, not {quoted(said)}"])
    return "/".join(found)


def normalise(id: str) -> str:  # noqa: A002  what it is called everywhere
    """The canonical form of an entry's id. Raises `RegistryError`."""
    controller, _, pin = id.partition("/")
    problems = []
    try:
        controller = _controller(controller)
    except RegistryError as error:
        problems += error.problems
    try:
        pin = _pin(pin)
    except RegistryError as error:
        problems += error.problems
    if problems:
        raise RegistryError(problems)
    return f"{controller}/{pin}"


def encode(entry: Entry) -> bytes:
    """The value of an entry's record in the topic; its key is the entry's id."""
    return msgspec.json.encode(entry.model_dump(exclude_defaults=True))


def decode(id: str, value: bytes) -> Entry:  # noqa: A002
    """The entry in a record's value. Raises `RegistryError` with its problems, that of a wrong id too.

    Many problems are counted instead of named, and no value takes long, whatever it holds: a worker has other things to
    do meanwhile.
    """
    normalise(id)
    if len(value) > MAX_VALUE_BYTES:
        raise RegistryError([f"{id}: {_too_large(len(value))}"])
    try:
        said = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RegistryError([f"{id}: the value is not JSON: {brief(error)}"]) from error
    return _entry(id, said)


class DataPoints:
    """The registry that dialects ask (`schemas.dialects.Registry`): what the file and the topic say now."""

    def __init__(self) -> None:
        self._entries: dict[Source, dict[str, Entry]] = {"file": {}, "topic": {}}
        self._pins: dict[tuple[str, str, str], tuple[Extractor, ...]] = {}

    def points(self, controller: str, connector: str, pin: str) -> tuple[Extractor, ...] | None:
        """What stands at a pin of a controller, canonically named; None when that is not known."""
        pins = self._pins
        return pins.get((controller, connector, pin)) or pins.get((ANY, connector, pin))

    def load(self, entries: Mapping[str, Entry]) -> None:
        """Take these entries, by id, for what the file says, and forget what it said before.

        Raises `RegistryError` for an id that is none, and changes nothing.
        """
        before = self._entries["file"]
        after = {normalise(id_): entry for id_, entry in entries.items()}
        self._entries["file"] = after
        for id_ in {**before, **after}:
            self._renew(id_)

    def put(self, id: str, value: bytes | None) -> None:  # noqa: A002
        """Apply a record of the topic: an entry, or None, after which the file's holds again.

        Raises `RegistryError` for one that is wrong, and changes nothing.
        """
        canonical = normalise(id)
        if value is None:
            self._entries["topic"].pop(canonical, None)
        else:
            self._entries["topic"][canonical] = decode(id, value)
        self._renew(canonical)

    def entries(self) -> dict[str, tuple[Entry, Source]]:
        """Every entry that holds, by id, and where it comes from."""
        found: dict[str, tuple[Entry, Source]] = {}
        for source, entries in self._entries.items():
            found.update({id_: (entry, source) for id_, entry in entries.items()})
        return dict(sorted(found.items()))

    def counts(self) -> dict[str, int]:
        """How many pins have an entry that holds, by where it comes from."""
        topic = len(self._entries["topic"])
        return {"file": len(self._pins) - topic, "topic": topic}

    def __len__(self) -> int:
        return len(self._pins)

    def _renew(self, id_: str) -> None:
        controller, connector, pin = id_.split("/")
        entry = self._entries["topic"].get(id_) or self._entries["file"].get(id_)
        if entry is None:
            self._pins.pop((controller, connector, pin), None)
        else:
            self._pins[controller, connector, pin] = extractors(entry)
