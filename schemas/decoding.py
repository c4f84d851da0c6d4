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
from schemas.reading import Reading, Rejected, flaw
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
    """What became of a chunk: records to produce, by partition and in order, and letters with their devices."""

    items: dict[int, list[Item]]
    letters: list[Letter]
    devices: list[str]
    readings: int
    good: int


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
        decoded = Decoded({}, [], [], 0, 0)
        items, write, partitions = decoded.items, wire.write, self.partitions
        limit = self.max_message_bytes - _FRAME_BYTES
        for record in records:
            flawless = True
            for index, outcome in enumerate(self._decode(record)):
                if outcome.__class__ is Rejected:
                    flawless = False
                    self._condemn(decoded, record, index, outcome, now_ms)
                    continue
                reading: Reading = outcome  # type: ignore[assignment]
                try:
                    if why := flaw(reading):
                        flawless = False
                        self._condemn(decoded, record, index, why, now_ms, reading.device_id)
                        continue
                    value = write(reading)
                    device = reading.device_id
                    key = device.encode()
                except Exception as error:  # noqa: BLE001  no reading that a dialect makes up may stop the others
                    flawless = False
                    why = Rejected("dialect_failed", f"{type(error).__name__} in what the dialect made of it")
                    self._condemn(decoded, record, index, why, now_ms)
                    continue
                if len(value) + len(key) > limit:
                    flawless = False
                    why = Rejected("too_large", f"the decoded reading has {len(value)} bytes, the broker takes {limit}")
                    self._condemn(decoded, record, index, why, now_ms, device)
                    continue
                source = f"{record.topic}/{record.partition}/{record.offset}/{index}"
                item = Item(key, value, wire.headers(source, record.timestamp))
                partition = partition_of(device, partitions)
                if partition in items:
                    items[partition].append(item)
                else:
                    items[partition] = [item]
                decoded.readings += 1
            decoded.good += flawless
        if log.isEnabledFor(logging.DEBUG):
            for record in records:
                log.debug("message decoded", extra={"topic": record.topic, "at": (record.partition, record.offset)})
        return decoded

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
        except Exception as error:
            # A dialect must not raise; one that does is at fault, and its payload is kept for the day it is mended.
            log.exception("a dialect failed", extra={"dialect": name})
            return [Rejected("dialect_failed", f"{type(error).__name__} in dialect {name}")]
        return outcomes or [Rejected("empty", "the payload holds no readings")]

    def _condemn(  # noqa: PLR0913  a letter's facts
        self, decoded: Decoded, record: Record, index: int, why: Rejected, now_ms: int, device: str | None = None
    ) -> None:
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
        if device is None:
            device = (record.key or b"").decode("utf-8", "replace")
        decoded.devices.append(device)
        log.warning(
            "payload refused", extra={"reason": why.reason, "error": why.error, "device": device, "src": dead.id}
        )
