"""From raw records to decoded ones: what the decode stage does, as one pure function."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from msgspec import Struct

from schemas import wire
from schemas.deadletter import Letter, letter
from schemas.dialects import Decode, Meta, choose, load
from schemas.partition import partition_of
from schemas.reading import Reading, Rejected, RejectedError, flaw
from schemas.record import Record

log = logging.getLogger(__name__)

#: Room for the headers and framing of a decoded record.
_FRAME_BYTES = 1024


class Item(NamedTuple):
    """A record to produce."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


class Decoded(Struct):
    """What became of a chunk: records to produce, by partition and in order, and letters."""

    items: dict[int, list[Item]]
    letters: list[Letter]
    readings: int
    #: Records that gave a reading at least.
    good: int
    #: The keys or devices of those that gave none, but for devices that are not known yet.
    fruitless: list[str]


class Decoder:
    """Decodes chunks of raw records. `partitions` is the decoded topic's count; the device decides which one.

    `ranges` are a dialect's own for some of its metrics, where it lets them be set (it has `decoder` and `RANGES`).
    """

    def __init__(  # noqa: PLR0913  each is a fact about the stage
        self,
        by_topic: Mapping[str, str],
        *,
        partitions: int,
        stage: str,
        version: str,
        max_message_bytes: int,
        ranges: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
    ) -> None:
        self.by_topic = by_topic
        self.partitions = partitions
        self.stage = stage
        self.version = version
        self.max_message_bytes = max_message_bytes
        self._decoders: dict[str, Decode] = {name: module.decode for name, module in load().items()}
        for name, own in (ranges or {}).items():
            module = load()[name]
            self._decoders[name] = module.decoder({**module.RANGES, **own})

    def __call__(self, records: Sequence[Record], now_ms: int) -> Decoded:  # noqa: C901, PLR0912  the hot loop, whole
        """Decode records of any topics; never raises for what is in them."""
        decoded = Decoded({}, [], 0, 0, [])
        items, partitions = decoded.items, self.partitions
        largest = self.max_message_bytes - _FRAME_BYTES
        write, headers = wire.write, wire.headers
        for record in records:
            good, reason = False, ""
            place = b"%s/%d/%d/" % (record.topic.encode(), record.partition, record.offset)
            for index, outcome in enumerate(self._decode(record)):
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
                    reason = why.reason
                    self._condemn(decoded, record, index, why, now_ms)
                    continue
                item = Item(key, value, headers(b"%s%d" % (place, index), record.timestamp))
                partition = partition_of(outcome.device_id, partitions)
                if partition in items:
                    items[partition].append(item)
                else:
                    items[partition] = [item]
                decoded.readings += 1
                good = True
            if good:
                decoded.good += 1
            elif reason != "unknown_device":
                decoded.fruitless.append((record.key or b"").decode("utf-8", "replace"))
        if log.isEnabledFor(logging.DEBUG):
            for record in records:
                log.debug("message decoded", extra={"topic": record.topic, "at": (record.partition, record.offset)})
        return decoded

    @staticmethod
    def _refusal(outcome: Any) -> Rejected:
        if outcome.__class__ is Rejected:
            return outcome
        return Rejected("dialect_failed", f"the dialect made a {type(outcome).__name__} of it")

    def _decode(self, record: Record) -> Sequence[Any]:
        headers = record.headers
        name = choose(record.topic, headers, self.by_topic) if headers else self.by_topic.get(record.topic, "")
        decode = self._decoders.get(name)
        if decode is None:
            why = f"no dialect is called {name!r}" if name else f"nothing says which dialect {record.topic} speaks"
            return [Rejected("unknown_dialect", f"{why}; known: {', '.join(sorted(self._decoders))}")]
        value = record.value
        if value is None:
            return [Rejected("empty", "the record has no value")]
        try:
            # A tuple as it is; anything lazy is made to fail here.
            outcomes = tuple(decode(value, Meta(record.topic, record.key, headers, record.timestamp)))
        except RejectedError as error:
            return [error.rejected]
        except Exception as error:
            # A dialect raises nothing else; one that does is at fault, and its payload is kept until it is mended.
            log.exception("a dialect failed", extra={"dialect": name})
            return [Rejected("dialect_failed", f"{type(error).__name__} in dialect {name}")]
        return outcomes or [Rejected("empty", "the payload holds no readings")]

    def _condemn(self, decoded: Decoded, record: Record, index: int, why: Rejected, now_ms: int) -> None:
        dead = letter(
            record,
            why,
            stage=self.stage,
            index=index,
            version=self.version,
            now_ms=now_ms,
            max_value_bytes=self.max_message_bytes,
        )
        decoded.letters.append(dead)
        log.warning("payload refused", extra={"reason": why.reason, "error": why.error, "letter": dead.id})
