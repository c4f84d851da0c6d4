"""From raw records to decoded ones: what the decode stage does, as one pure function."""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct
from pydantic import ValidationError

from schemas import bodies, dialects, wire
from schemas.budget import HEADER_QUARANTINE, Budget, Report
from schemas.confluent import Schemas
from schemas.deadletter import HEADER_TARGET, Letter, letter, replayed
from schemas.dialects import AUTO, HEADER_DIALECT, Decode, Meta, Registry, Setup
from schemas.inputs import Input, Inputs
from schemas.partition import partition_of
from schemas.payload import LETTERS, quoted
from schemas.reading import Reading, Rejected, RejectedError, Value, flaw
from schemas.record import Headers, Record

log = logging.getLogger(__name__)

#: Refusals of what will be known some day: no sign that something is wrong with the devices, or with us.
_NOT_YET = frozenset({"unknown_device", "unknown_alias", "unknown_schema"})
_REPLAY = (wire.HEADER_REPLAY, b"1")
#: Room for the headers and framing of a decoded record.
_FRAME_BYTES = 1024


class Item(NamedTuple):
    """A record to produce."""

    key: bytes | None
    value: bytes | None
    headers: Headers


class Decoded(Struct):
    """What became of a chunk: records to produce, by partition and in order, and letters."""

    items: dict[int, list[Item]]
    letters: list[Letter]
    readings: int
    #: Records that gave a reading at least.
    good: int
    #: The keys or devices of those that gave none, but for devices that are not known yet.
    fruitless: list[str]
    #: How often a reading had a flag, by dialect and flag.
    flags: dict[tuple[str, str], int]
    #: Readings over their devices' budgets, by why, and what is to be reported of it.
    over: dict[str, int] = {}
    reports: list[Report] = []
    #: Those of them that are not among the items, in order: records for the quarantine.
    withheld: list[Item] = []
    #: Devices that were over their budgets in the last minute.
    noisy: int = 0


class _Speech(Struct, frozen=True):
    """How the payloads of one topic and dialect are decoded."""

    dialect: str
    decode: Decode
    setup: Setup
    body: str


def distinct(outcomes: Sequence[Any]) -> Sequence[Any]:
    """The outcomes of one payload, with a refusal for each reading that a store would let replace an earlier one.

    Of two readings of one series and time, the later is refused where it says another value of the same metric.
    """
    seen: dict[tuple[str, str, str, datetime], dict[str, Value]] = {}
    found: list[Any] = []
    for outcome in outcomes:
        if outcome.__class__ is Reading:
            series = outcome.measurement, outcome.device_id, outcome.channel, outcome.time
            earlier = seen.setdefault(series, {})
            for metric, value in outcome.values.items():
                if metric in earlier and earlier[metric] != value:
                    why = (
                        f"{metric} of {quoted(outcome.device_id)} is {quoted(earlier[metric])} and {quoted(value)} at "
                        "one time; a channel would tell them apart"
                    )
                    found.append(Rejected("contradiction", why))
                    break
            else:
                earlier.update(outcome.values)
                found.append(outcome)
        else:
            found.append(outcome)
    return found


def few(outcomes: Sequence[Any]) -> Sequence[Any]:
    """The outcomes of one payload with at most `LETTERS` refusals of their own, since each letter has it whole.

    The others share one, in the place of the first of them.
    """
    places = [place for place, outcome in enumerate(outcomes) if outcome.__class__ is Rejected]
    rest = places[LETTERS:]
    if len(rest) < 2:  # noqa: PLR2004  one shares with nobody
        return outcomes
    last = outcomes[rest[-1]]
    shared = Rejected(last.reason, f"{len(rest)} more are refused, the last: {last.error}")
    dropped = set(rest[1:])
    kept = [shared if place == rest[0] else each for place, each in enumerate(outcomes) if place not in dropped]
    return tuple(kept)


class Decoder:
    """Decodes chunks of raw records. `partitions` is the decoded topic's count; the device decides which one."""

    def __init__(  # noqa: PLR0913  each is a fact about the stage
        self,
        inputs: Inputs,
        *,
        partitions: int,
        stage: str,
        version: str,
        max_message_bytes: int,
        registry: Registry | None = None,
        schemas: Schemas | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.budget = budget
        self.partitions = partitions
        self.stage = stage
        self.version = version
        self.max_message_bytes = max_message_bytes
        self._registry = registry
        self._inputs = inputs
        self._schemas = schemas
        #: The topics whose payloads name their schemas.
        self._framed = frozenset(topic for topic, own in inputs.topics.items() if own.body == bodies.CONFLUENT)
        #: By topic.
        self._speeches = {topic: self._speech(own) for topic, own in inputs.topics.items() if own.dialect != AUTO}
        #: By topic, and the dialect and body that records' headers ask for: as many as there can be.
        self._asked_for: dict[tuple[str, str, str], _Speech] = {}
        #: By topic, and the header of a record that has no other than its dialect's.
        self._by_header: dict[tuple[str, tuple[str, bytes | None]], _Speech] = {}

    def _speech(self, own: Input) -> _Speech:
        policy = own.policy or dialects.policy_of(own.dialect)
        decode = dialects.speaker(own.dialect, policy, own.options)
        return _Speech(own.dialect, decode, dialects.setup_of(policy, self._registry), own.body)

    def wanted(self, records: Sequence[Record]) -> set[int]:
        """The ids of schemas that these records need and that are not known."""
        schemas, framed = self._schemas, self._framed
        if schemas is None or not framed:
            return set()
        values = (record.value for record in records if record.topic in framed)
        return {number for value in values if value is not None and (number := schemas.wanted(value)) is not None}

    def __call__(self, records: Sequence[Record], now_ms: int) -> Decoded:  # noqa: C901, PLR0912, PLR0915  the hot loop
        """Decode records of any topics; never raises for what is in them."""
        decoded = Decoded({}, [], 0, 0, [], {})
        items, partitions = decoded.items, self.partitions
        largest = self.max_message_bytes - _FRAME_BYTES
        write, headers = wire.write, wire.headers
        budget = self.budget
        for given in records:
            said = given.headers
            # One that was sent again is decoded as it first was, so that what it gives is what it would have given.
            record = (replayed(given) or given) if said and said[0][0] == HEADER_TARGET else given
            good, excused = False, True
            received_ms = record.timestamp if record.timestamp >= 0 else now_ms  # Kafka lets a producer say none
            place = b"%s/%d/%d/" % (record.topic.encode(), record.partition, record.offset)
            dialect, outcomes = self.outcomes(record)
            for index, outcome in enumerate(outcomes):
                # Written out here, and not in functions of their own, because this is the loop that a message costs.
                if outcome.__class__ is Reading:
                    try:
                        why = flaw(outcome)
                        key, value = outcome.device_id.encode(), write(outcome)
                    except Exception as error:  # noqa: BLE001  nothing that a dialect makes up may stop the others
                        why = Rejected("dialect_failed", f"{type(error).__name__} in what the dialect made of it")
                    else:
                        if why is None and len(key) + len(value) > largest:
                            why = Rejected("too_large", f"its {len(value)} bytes are more than the {largest} that fit")
                else:
                    why = self._refusal(outcome)
                if why is not None:
                    excused = excused and why.reason in _NOT_YET
                    self._condemn(decoded, record, index, why, dialect, now_ms)
                    continue
                if outcome.flags:
                    for flag in outcome.flags:
                        decoded.flags[dialect, flag] = decoded.flags.get((dialect, flag), 0) + 1
                own = headers(b"%s%d" % (place, index), record.timestamp)
                if record is not given:
                    own.append(_REPLAY)
                item = Item(key, value, own)
                good = True
                if budget is not None and (excess := budget.over(outcome, received_ms)):
                    decoded.over[excess] = decoded.over.get(excess, 0) + 1
                    if budget.withholds:
                        own.append((HEADER_QUARANTINE, excess.encode()))
                        decoded.withheld.append(item)
                        continue
                partition = partition_of(outcome.device_id, partitions)
                if partition in items:
                    items[partition].append(item)
                else:
                    items[partition] = [item]
                decoded.readings += 1
            if good:
                decoded.good += 1
            elif not excused:
                decoded.fruitless.append((record.key or b"").decode("utf-8", "replace"))
        if budget is not None:
            decoded.reports, decoded.noisy = budget.reports(), budget.noisy(now_ms)
        if log.isEnabledFor(logging.DEBUG):
            for record in records:
                log.debug("message decoded", extra={"topic": record.topic, "at": (record.partition, record.offset)})
        return decoded

    @staticmethod
    def _refusal(outcome: Any) -> Rejected:
        if outcome.__class__ is Rejected:
            return outcome
        return Rejected("dialect_failed", f"the dialect made a {type(outcome).__name__} of it")

    def outcomes(self, record: Record) -> tuple[str, Sequence[Any]]:
        """A record's dialect, `''` when it is not known, and what the record holds in it; raises nothing."""
        headers, value = record.headers, record.value
        speech, dialect = None, ""
        if not headers:
            speech = self._speeches.get(record.topic)
        elif len(headers) == 1:
            speech = self._by_header.get((record.topic, headers[0]))
        try:
            if speech is None:
                speech = self._chosen(record)
            dialect = speech.dialect
            if value is None:
                return dialect, [Rejected("empty", "the record has no value")]
            if speech.body:
                value = bodies.plain(value, speech.body, self._schemas)
            meta = Meta(record.topic, record.key, headers, record.timestamp, speech.setup)
            outcomes: Sequence[Any] = tuple(speech.decode(value, meta))
        except RejectedError as error:
            return dialect, [error.rejected]
        except Exception as error:
            # A dialect raises nothing else; one that does is at fault, and its payload is kept until it is mended.
            log.exception("a dialect failed", extra={"dialect": dialect})
            return dialect, [Rejected("dialect_failed", f"{type(error).__name__} in dialect {dialect}")]
        if len(outcomes) > 1:
            outcomes = few(distinct(outcomes))
        return dialect, outcomes or [Rejected("empty", "the payload holds no readings")]

    def _chosen(self, record: Record) -> _Speech:
        """How a record's payload is decoded: as its headers ask, else as its topic, else as its origin says."""
        topic, headers = record.topic, record.headers
        usual = self._speeches.get(topic)
        own = self._inputs.topics.get(topic)
        asked = name = self._asked(record)
        if not asked:
            if own is None:
                raise self._unknown(f"nothing says which dialect {topic} speaks")
            name = own.dialect if own.dialect != AUTO else self._by_origin(record)
        body = bodies.named(headers, own.body if own is not None else "")
        if usual is not None and (name, body) == (usual.dialect, usual.body):
            found = usual
        else:
            found = self._asked_for.get((topic, name, body)) or self._ask_for(topic, name, body)
        if asked and len(headers) == 1:
            self._by_header[topic, headers[0]] = found
        return found

    def _ask_for(self, topic: str, name: str, body: str) -> _Speech:
        if name not in dialects.load():
            raise self._unknown(f"no dialect is called {quoted(name)}")
        own = self._inputs.topics.get(topic)
        if own is None or own.dialect != name:
            own = self._inputs.dialects.get(name) or Input(name)
        try:
            found = self._asked_for[topic, name, body] = self._speech(msgspec.structs.replace(own, body=body))
        except ValidationError as error:
            raise self._unknown(f"the dialect {name} needs options, which nothing says for {topic}") from error
        return found

    @staticmethod
    def _asked(record: Record) -> str:
        for header, value in record.headers:
            if header == HEADER_DIALECT and value is not None:
                return value.decode("utf-8", "replace")
        return ""

    def _by_origin(self, record: Record) -> str:
        origin = Meta(record.topic, record.key, record.headers, record.timestamp).origin
        if not origin:
            raise self._unknown(f"{record.topic} is auto, and the record says neither its dialect nor where it is from")
        name = dialects.by_origin(origin)
        if not name:
            raise self._unknown(f"no dialect claims the original topic {quoted(origin)}")
        return name

    @staticmethod
    def _unknown(why: str) -> RejectedError:
        return RejectedError("unknown_dialect", f"{why}; known: {', '.join(sorted(dialects.load()))}")

    def _condemn(  # noqa: PLR0913  all that a letter says
        self, decoded: Decoded, record: Record, index: int, why: Rejected, dialect: str, now_ms: int
    ) -> None:
        dead = letter(
            record,
            why,
            stage=self.stage,
            index=index,
            version=self.version,
            now_ms=now_ms,
            max_value_bytes=self.max_message_bytes,
            dialect=dialect,
        )
        decoded.letters.append(dead)
        log.warning(
            "payload refused", extra={"dialect": dialect, "reason": why.reason, "error": why.error, "letter": dead.id}
        )
