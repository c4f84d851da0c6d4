"""What became of dead letters: letters and the marks about them joined, chosen from, counted, and sent again.

Letters are at-least-once, so one failure may stand on its topic many times: what counts is its id, and its last record.
An id may also come to mean another record, as when a raw topic is made anew: letters of one id that hold different
records are told apart by a sum of what they hold, and the later ones are called `ID~SUM`. A mark (replayed, dropped) is
about one sum and holds up to an attempt: a letter with a higher one is open again.
"""

import hashlib
import heapq
import sys
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from schemas import wire
from schemas.deadletter import (
    HEADER_ATTEMPT,
    HEADER_HEADERS_CUT,
    HEADER_KEY_CUT,
    HEADER_SHA256,
    HEADER_TIMESTAMP,
    PREFIX_HEADER,
    PREFIX_NULL_HEADER,
    Replayed,
    replay_headers,
)
from schemas.partition import partition_of, partition_of_key
from schemas.reading import Reading
from schemas.record import Headers, Record
from schemas.redacted import text

Moment = Annotated[datetime, Meta(tz=True)]
State = Literal["open", "replayed", "dropped"]
STATES: Final[Sequence[State]] = get_args(State)
#: Whose letters hold raw records; every other stage's hold decoded ones.
DECODE: Final = "decode"

_CUT: Final = (HEADER_SHA256, HEADER_KEY_CUT, HEADER_HEADERS_CUT)
_SRC: Final = PREFIX_HEADER + wire.HEADER_SRC
_DIGITS: Final = 18


class Mark(Struct, frozen=True, omit_defaults=True, tag_field="v", tag=1, gc=False):
    """A record's value on the topic of letters' states, whose key is the letter's id (or `ID~SUM`)."""

    state: State
    #: The highest attempt that it is about.
    attempt: int
    at: Moment
    #: Of the record that the letter holds, in hex.
    sum: str
    replays: int = 0
    #: The stage that it was sent to, where that is not its own; only marks of earlier versions say so.
    to: str = ""
    by: str = ""


encode_mark: Final = msgspec.json.Encoder().encode
decode_mark: Final = msgspec.json.Decoder(Mark).decode


class Entry(Struct, gc=False):
    """A letter without what it holds; `partition` and `offset` say where its last record stands.

    The original record's are `topic`, `source_partition` and `source_offset`. `failed_ms` is epoch milliseconds.
    """

    id: str
    partition: int
    offset: int
    stage: str
    reason: str
    dialect: str
    device: str
    topic: str
    source_partition: int
    source_offset: int
    failed_ms: int
    attempt: int
    sum: str
    size: int
    #: Whether it holds all of its record, so that it can be sent again.
    whole: bool
    mark: Mark | None = None

    @property
    def state(self) -> State:
        """What became of it."""
        mark = self.mark
        return "open" if mark is None or self.attempt > mark.attempt else mark.state

    @property
    def replays(self) -> int:
        """How often it was sent again."""
        return self.mark.replays if self.mark is not None else 0

    @property
    def place(self) -> tuple[str, int, int, str, str]:
        """Of the record that it holds; in this order, the records of a partition first came."""
        return self.topic, self.source_partition, self.source_offset, self.stage, self.sum


def _number(value: bytes | None) -> int:
    text = value or b""
    if not text.removeprefix(b"-").isdigit() or len(text) > _DIGITS:
        raise ValueError(f"{text!r} is no number")
    return int(text)


def summed(record: Record) -> str:
    """The sum of what a letter's record holds: equal for letters of one original record, and for no others."""
    parts: list[bytes] = [record.value or b""]
    own = True
    for name, value in record.headers:
        if name.startswith((PREFIX_HEADER, PREFIX_NULL_HEADER)) or name in {"iotflow-orig-key", "iotflow-orig-null"}:
            parts += (name.encode(), value or b"")
            own = own and name != _SRC
    if own:  # one that was decoded again has another time, and is the same all the same
        parts += (value or b"" for name, value in record.headers if name == HEADER_TIMESTAMP)
    return hashlib.blake2b(b"".join(b"%d:%s" % (len(part), part) for part in parts), digest_size=8).hexdigest()


def entry_of(record: Record) -> Entry:
    """The letter that a record of the dead-letter topic is. Raises `ValueError` when it is none."""
    said = dict(record.headers)
    try:
        stage, topic = (said[name] for name in ("iotflow-dlq-stage", "iotflow-orig-topic"))
        reason, key = said["iotflow-dlq-reason"], record.key
        source = _number(said["iotflow-orig-partition"]), _number(said["iotflow-orig-offset"])
        failed_ms, attempt = _number(said["iotflow-dlq-ts"]), _number(said[HEADER_ATTEMPT])
    except KeyError as error:
        raise ValueError(f"{error.args[0]} is missing") from error
    if not (key and stage and topic and reason):
        raise ValueError("it has no key, or an empty header")
    device, dialect = _text(said.get("iotflow-orig-key")), _text(said.get("iotflow-dlq-dialect"))
    if stage != DECODE.encode():
        reading = _reading(record.value)
        if reading is not None:
            device, dialect = reading.device_id, reading.dialect
    return Entry(
        _text(key),
        record.partition,
        record.offset,
        sys.intern(_text(stage)),
        sys.intern(_text(reason)),
        sys.intern(dialect),
        sys.intern(device),
        sys.intern(_text(topic)),
        *source,
        failed_ms,
        attempt,
        summed(record),
        len(record.value or b""),
        not any(name in said for name in _CUT),
    )


def _reading(value: bytes | None) -> Reading | None:
    try:
        return wire.read(value)
    except Exception:  # noqa: BLE001  whatever is in it, it is no reading
        return None


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "backslashreplace")


def original(record: Record) -> Replayed:
    """The record that a letter holds, as it was; `attempt` is the letter's. The letter must be whole."""
    said = dict(record.headers)
    headers: list[tuple[str, bytes | None]] = []
    for name, value in record.headers:
        if name.startswith(PREFIX_HEADER):
            headers.append((name.removeprefix(PREFIX_HEADER), value or b""))
        elif name.startswith(PREFIX_NULL_HEADER):
            headers.append((name.removeprefix(PREFIX_NULL_HEADER), None))
    return Replayed(
        _text(said["iotflow-orig-topic"]),
        _number(said["iotflow-orig-partition"]),
        _number(said["iotflow-orig-offset"]),
        _number(said[HEADER_TIMESTAMP]),
        said.get("iotflow-orig-key"),
        None if "iotflow-orig-null" in said else record.value or b"",
        headers,
        _number(said[HEADER_ATTEMPT]),
    )


class Index:
    """All letters, each once: tell it of every record of the dead-letter topic, then of every mark, in their order."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        #: Records of the dead-letter topic that are no letters, and marks that cannot be read.
        self.strange = 0
        #: Records of letters that were there already.
        self.repeats = 0

    def add(self, record: Record) -> Entry | None:
        """Take in a record of the dead-letter topic; gives the letter, None where it is none."""
        try:
            entry = entry_of(record)
        except ValueError:
            self.strange += 1
            return None
        before = self._entries.get(entry.id)
        if before is not None and before.sum != entry.sum:
            entry.id = f"{entry.id}~{entry.sum}"
            before = self._entries.get(entry.id)
        if before is not None:
            self.repeats += 1
            if entry.attempt < before.attempt:
                return before  # delivered again, from before its record was sent again
            entry.mark = before.mark
        self._entries[entry.id] = entry
        return entry

    def mark(self, key: bytes | None, value: bytes | None) -> Entry | None:
        """Take in a record of the topic of states; gives the letter that it is about, None where there is none."""
        if key is None or value is None:
            return None
        try:
            mark = decode_mark(value)
        except (msgspec.DecodeError, UnicodeDecodeError):
            self.strange += 1
            return None
        first = _text(key).removesuffix(f"~{mark.sum}")
        # Which letter of an id came first may change, since the topic forgets: the sum tells.
        for name in (first, f"{first}~{mark.sum}"):
            entry = self._entries.get(name)
            if entry is not None and entry.sum == mark.sum:
                entry.mark = mark
                return entry
        return None

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def get(self, id_: str) -> Entry | None:
        """A letter by its id."""
        return self._entries.get(id_)


class Filter(Struct, frozen=True, kw_only=True):
    """Which letters; what is empty lets everything through. `since_ms` is inclusive, `until_ms` exclusive."""

    ids: frozenset[str] = frozenset()
    stages: frozenset[str] = frozenset()
    reasons: frozenset[str] = frozenset()
    dialects: frozenset[str] = frozenset()
    devices: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()
    since_ms: int | None = None
    until_ms: int | None = None
    #: None is any.
    state: State | None = "open"

    def admits(self, entry: Entry) -> bool:
        """Whether a letter is among them."""
        return (
            (self.state is None or entry.state == self.state)
            and (not self.ids or entry.id in self.ids)
            and (not self.stages or entry.stage in self.stages)
            and (not self.reasons or entry.reason in self.reasons)
            and (not self.dialects or entry.dialect in self.dialects)
            and (not self.devices or entry.device in self.devices)
            and (not self.topics or entry.topic in self.topics)
            and (self.since_ms is None or entry.failed_ms >= self.since_ms)
            and (self.until_ms is None or entry.failed_ms < self.until_ms)
        )


# -- counting ----------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=8192)
def shown_device(device: str) -> str:
    """A device as it may be shown: where nothing was decoded it is a record's key, which may hold a secret."""
    return text(device)


#: What letters can be counted by.
BY: Final[Mapping[str, Callable[[Entry], str]]] = {
    "stage": lambda entry: entry.stage,
    "reason": lambda entry: entry.reason,
    "dialect": lambda entry: entry.dialect,
    "device": lambda entry: shown_device(entry.device),
    "topic": lambda entry: entry.topic,
    "state": lambda entry: entry.state,
    "attempt": lambda entry: str(entry.attempt),
}


class Stats(Struct):
    """Counts of letters; times are epoch milliseconds, None where there is no letter."""

    letters: int
    oldest_ms: int | None
    newest_ms: int | None
    #: By each of `BY`, the most frequent first.
    counts: dict[str, dict[str, int]]
    #: By what was asked for together.
    together: list[tuple[tuple[str, ...], int]]


def stats(entries: Iterable[Entry], by: Sequence[str] = (), top: int = 10) -> Stats:
    """Count letters by everything there is (of devices the `top` ones), and by the names of `BY` in `by` together."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in BY}
    together: Counter[tuple[str, ...]] = Counter()
    letters, oldest, newest = 0, None, None
    for entry in entries:
        letters += 1
        oldest = entry.failed_ms if oldest is None else min(oldest, entry.failed_ms)
        newest = entry.failed_ms if newest is None else max(newest, entry.failed_ms)
        for name, value_of in BY.items():
            counts[name][value_of(entry)] += 1
        if by:
            together[tuple(BY[name](entry) for name in by)] += 1
    found = {
        name: dict(sorted(count.items(), key=_frequency)[: top if name == "device" else None])
        for name, count in counts.items()
    }
    return Stats(letters, oldest, newest, found, sorted(together.items(), key=_frequency))


def _frequency(item: tuple[str, int] | tuple[tuple[str, ...], int]) -> tuple[int, str]:
    return -item[1], str(item[0])


# -- sending again -----------------------------------------------------------------------------------------------------

#: Why a letter is not sent again.
Skip = Literal["cut", "attempts", "no_reader", "wrong_stage", "too_large", "gone"]
SKIPS: Final[Mapping[Skip, str]] = {
    "cut": "the letter does not hold all of its record, which was too large: send it from where it came from",
    "attempts": "it has failed as often as --max-attempts allows",
    "no_reader": "no stage of this configuration reads its topic (see KAFKA_RAW_TOPICS, KAFKA_INPUT_TOPIC and STORES), "
    "or the topic keeps only the latest of each key, in whose place nothing older is put",
    "wrong_stage": "what decode refused can only go back to its raw topic, and what a store refused only to a store",
    "too_large": "with its headers it is larger than IOTFLOW_MAX_MESSAGE_BYTES",
    "gone": "the dead-letter topic has forgotten it meanwhile",
}


class Again(Struct, frozen=True):
    """A record to send again, with all the letters that are about it; the last of them has its bytes."""

    target: str
    attempt: int
    letters: Sequence[Entry]

    @property
    def letter(self) -> Entry:
        """The one whose bytes are sent."""
        return self.letters[-1]

    @property
    def elsewhere(self) -> bool:
        """Whether it goes to another stage than the one that refused it, which still lacks it then."""
        return self.target != self.letter.stage


class Plan(Struct, frozen=True):
    """What is sent again, each partition's in the order in which it first came, and which letters are not, by why.

    Also where some have failed more often than others: of two values of one series and time the later must come last.
    """

    records: Sequence[Again]
    skipped: Mapping[Skip, Sequence[str]]

    @property
    def letters(self) -> int:
        """How many letters that are."""
        return sum(len(record.letters) for record in self.records)

    @property
    def kept_open(self) -> int:
        """How many of these stay open, since they go to another store than their own."""
        return sum(len(record.letters) for record in self.records if record.elsewhere)


def plan(
    entries: Iterable[Entry],
    chosen: Filter,
    *,
    readers: Mapping[str, Container[str]],
    to: str = "",
    max_attempts: int,
) -> Plan:
    """What sending the chosen letters again means. `readers` are the topics that each stage reads.

    A record is sent once for all its open letters, chosen or not, since all that is in it is decoded again. It goes to
    the stage that refused it, or to the stage `to`.
    """
    records: list[Again] = []
    skipped: dict[Skip, list[str]] = {}
    for letters in _in_order(_groups(entries, chosen)):
        again = Again(to or letters[0].stage, 1 + max(entry.attempt for entry in letters), letters)
        why = _why_not(again, readers.get(again.target, ()), max_attempts)
        if why is None:
            records.append(again)
        else:
            skipped.setdefault(why, []).extend(entry.id for entry in letters)
    return Plan(records, skipped)


def _groups(entries: Iterable[Entry], chosen: Filter) -> dict[tuple[str, int, int, str, str], list[Entry]]:
    """The chosen letters by what they hold, each with the open ones beside it."""
    groups: dict[tuple[str, int, int, str, str], list[Entry]] = {}
    others: list[Entry] = []
    for entry in entries:
        if chosen.admits(entry):
            groups.setdefault(entry.place, []).append(entry)
        elif entry.state == "open" and entry.stage == DECODE:
            others.append(entry)
    for entry in others:
        if entry.place in groups:
            groups[entry.place].append(entry)
    return groups


def _in_order(groups: Mapping[tuple[str, int, int, str, str], list[Entry]]) -> Iterator[list[Entry]]:
    """Each partition's in its order, all of them about as their letters came: so these stand close together."""
    partitions: dict[tuple[str, int], list[list[Entry]]] = {}
    for place in sorted(groups):
        partitions.setdefault(place[:2], []).append(groups[place])
    return heapq.merge(*partitions.values(), key=lambda letters: letters[0].failed_ms)


def _why_not(again: Again, topics: Container[str], max_attempts: int) -> Skip | None:
    letter = again.letter
    if not all(entry.whole for entry in again.letters):
        return "cut"
    if (again.target == DECODE) is not (letter.stage == DECODE):
        return "wrong_stage"
    if letter.topic not in topics:
        return "no_reader"
    return "attempts" if again.attempt > max_attempts else None


def headers_again(again: Again, held: Replayed) -> Headers:
    """The headers of a record that is sent again: where it goes and where it is from, then those that it had."""
    block = replay_headers(
        again.target,
        held.topic,
        held.partition,
        held.offset,
        attempt=again.attempt,
        timestamp=held.timestamp,
        ids=[entry.id for entry in again.letters],
    )
    return [*block, *held.headers]


def partition_again(letter: Entry, held: Replayed, partitions: int) -> int:
    """Where a record that is sent again belongs, of so many partitions of its topic.

    A raw record goes to the partition that it was in, as long as there is one, so that it stays behind the others of
    its sender; a decoded one to its device's.
    """
    reading = None if letter.stage == DECODE else _reading(held.value)
    if reading is not None:
        return partition_of(reading.device_id, partitions)
    if held.partition < partitions:
        return held.partition
    return partition_of_key(held.key or b"", partitions)


def replayed_marks(again: Again, at: datetime, by: str) -> list[tuple[str, Mark]]:
    """What is to be said of the letters of a record that was sent again, by their ids.

    Nothing, where another store got it: its own has not.
    """
    if again.elsewhere:
        return []
    return [
        (entry.id, Mark("replayed", again.attempt - 1, at, entry.sum, entry.replays + 1, by=by))
        for entry in again.letters
    ]


def dropped_mark(entry: Entry, at: datetime, by: str) -> Mark:
    """What is to be said of a letter that is dropped."""
    return Mark("dropped", entry.attempt, at, entry.sum, entry.replays, "", by)
