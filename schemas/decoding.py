"""From raw records to decoded ones: what the decode stage does, as one pure function."""

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

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

    def __call__(self, records: Sequence[Record], now_ms: int) -> Decoded:
        """Decode records of any topics; never raises for what is in them."""
        decoded = Decoded({}, [], 0, 0, [])
        items, partitions = decoded.items, self.partitions
        for record in records:
            before, reason = decoded.readings, ""
            for index, outcome in enumerate(self._decode(record)):
                try:
                    key, value = self._encode(outcome)
                except RejectedError as error:
                    reason = error.rejected.reason
                    self._condemn(decoded, record, index, error.rejected, now_ms)
                    continue
                device: str = outcome.device_id  # type: ignore[union-attr]  # only a reading could be encoded
                source = f"{record.topic}/{record.partition}/{record.offset}/{index}"
                item = Item(key, value, wire.headers(source, record.timestamp))
                partition = partition_of(device, partitions)
                if partition in items:
                    items[partition].append(item)
                else:
                    items[partition] = [item]
                decoded.readings += 1
            if decoded.readings > before:
                decoded.good += 1
            elif reason != "unknown_device":
                decoded.fruitless.append((record.key or b"").decode("utf-8", "replace"))
        if log.isEnabledFor(logging.DEBUG):
            for record in records:
                log.debug("message decoded", extra={"topic": record.topic, "at": (record.partition, record.offset)})
        return decoded

    def _encode(self, outcome: Reading | Rejected) -> tuple[bytes, bytes]:
        """Key and value of the decoded record. Raises `RejectedError` for what cannot be one."""
        if outcome.__class__ is Rejected:
            raise RejectedError(outcome.reason, outcome.error)
        reading: Reading = outcome  # type: ignore[assignment]
        try:
            why = flaw(reading)
            key, value = reading.device_id.encode(), wire.write(reading)
        except Exception as error:  # no reading that a dialect makes up may stop the others
            raise RejectedError("dialect_failed", f"{type(error).__name__} in what the dialect made of it") from error
        if why is not None:
            raise RejectedError(why.reason, why.error)
        size = len(key) + len(value)
        if size > self.max_message_bytes - _FRAME_BYTES:
            limit = self.max_message_bytes
            raise RejectedError("too_large", f"the decoded reading has {size} bytes, and the broker takes {limit}")
        return key, value

    def _decode(self, record: Record) -> Sequence[Reading | Rejected]:
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
            received = datetime.fromtimestamp(record.timestamp / 1000, UTC)
        except (ValueError, OverflowError, OSError):  # whoever produces can set it to anything
            return [Rejected("bad_timestamp", f"the record's own time is {record.timestamp}, which is no epoch in ms")]
        try:
            # A tuple as it is; anything lazy is made to fail here.
            outcomes = tuple(decode(value, Meta(record.topic, record.key, headers, received)))
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
