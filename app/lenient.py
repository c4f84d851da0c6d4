"""Header names that are not UTF-8: what aiokafka stops at is read here all the same.

No broker looks at the name of a record's header. aiokafka 0.14's compiled parser takes it for UTF-8 and raises in the
middle of a batch, at the same record after every restart: its partition stands still for ever. So such a batch is
read once more, by a parser in Python that takes any name. Every other batch stays with the compiled one: until it
raises, nothing is done here but to keep the bytes of a fetch at hand.

It reaches into aiokafka 0.14; tests/unit/test_lenient.py fails when what it uses moves.
"""

import logging
import struct
import time
from collections.abc import Iterator
from types import FunctionType, MethodType
from typing import Any, ClassVar, Final

from aiokafka.consumer.fetcher import Fetcher, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import _DefaultRecordBatchPy, _DefaultRecordPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint

log = logging.getLogger(__name__)

#: How a batch begins: base offset, length of what follows, magic and, from magic 2 on, the last record's place in it.
_HEAD: Final = struct.Struct(">qi4xb6xi")
_LENGTH_END: Final = 12
_WITH_HEADERS: Final = 2
#: A sender of odd names may send nothing else; the log says so once in this time.
_LOG_EVERY_S: Final = 60.0


def read_leniently(fetcher: Fetcher) -> None:
    r"""Make a fetcher deliver records whatever the names of their headers are, each once and in order.

    Bytes of a name that are not UTF-8 stand in it as `\xNN`, so that each name is text that UTF-8 can encode. For a
    consumer without deserializers. Only this fetcher is changed: its way to handle an answer is aiokafka's own code
    with two of the names in it meaning the classes below.
    """
    stock = type(fetcher)._proc_fetch_request  # noqa: SLF001  there is no public way to any of this
    names = {**stock.__globals__, "MemoryRecords": _Fetched, "PartitionRecords": _Records}
    fetcher._proc_fetch_request = MethodType(FunctionType(stock.__code__, names), fetcher)  # noqa: SLF001


class _Fetched(MemoryRecords):  # type: ignore[misc]  # aiokafka has no types
    """The batches that a fetch brought of one partition, and their bytes, which the compiled class shows to nobody."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = data
        self._start = 0

    def batch_at(self, offset: int) -> memoryview:
        """The first batch with headers that ends behind an offset; asked for again, one behind that.

        It is the one that was being read when this was the next offset: that moves behind a batch only at its end, and
        no broker sends one that ends before the offset that was asked for.
        """
        while True:
            start = self._start
            base, length, magic, last = _HEAD.unpack_from(self._data, start)
            self._start = start + _LENGTH_END + length
            if magic >= _WITH_HEADERS and base + last >= offset:
                return memoryview(self._data)[start : self._start]


class _Records(PartitionRecords):  # type: ignore[misc]  # aiokafka has no types
    """The records of a fetch; its batches are parsed by the compiled parser, and once more where that fails."""

    _log_at: ClassVar[float] = 0.0
    _records_iterator: Any
    next_fetch_offset: int

    def __next__(self) -> Any:
        # Not by way of super(), which would cost every record a call.
        try:
            return next(self._records_iterator)
        except StopIteration:
            self._records_iterator = None
            raise
        except UnicodeDecodeError:
            self._log()
            self._records_iterator = self._go_on()
            return next(self)

    def _go_on(self) -> Iterator[Any]:
        """The batch at hand from the next record on, then the batches behind it, as ever.

        aiokafka has already looked at its checksum, and whether it is aborted or for control.
        """
        batch = LenientBatch(self._records.batch_at(self.next_fetch_offset))
        for record in batch:
            if record.offset >= self.next_fetch_offset:
                found = self._consumer_record(self._tp, record)
                self.next_fetch_offset = record.offset + 1
                yield found
        self.next_fetch_offset = batch.next_offset
        yield from self._unpack_records()

    def _log(self) -> None:
        now = time.monotonic()
        if now >= _Records._log_at:
            _Records._log_at = now + _LOG_EVERY_S
            log.warning(
                "a record's header name is not UTF-8: it is read with \\xNN for such bytes",
                extra={"topic": self._tp.topic, "partition": self._tp.partition, "from_offset": self.next_fetch_offset},
            )


#: The longest that a number takes.
_VARINT_BYTES = 10


class LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # aiokafka has no types
    """A batch of records as aiokafka's own parser in Python reads it, except that a header's name may be any bytes."""

    _pos: int

    def _read_msg(self) -> _DefaultRecordPy:
        length = self._varint()
        start = self._pos
        self._varint()  # attributes: none is in use
        after = self._varint()
        offset = self.base_offset + self._varint()
        key = self._bytes()
        value = self._bytes()
        headers = [self._header() for _ in range(self._count())]
        if self._pos != start + length:
            raise CorruptRecordException(f"a record of {length} bytes has {self._pos - start} bytes of content")
        timestamp = self.max_timestamp if self.timestamp_type == self.LOG_APPEND_TIME else self.first_timestamp + after
        return _DefaultRecordPy(offset, timestamp, self.timestamp_type, key, value, headers)

    def _header(self) -> tuple[str, bytes | None]:
        size = self._count()
        name = self._take(size).decode("utf-8", "backslashreplace")
        return name, self._bytes()

    def _bytes(self) -> bytes | None:
        size = self._varint()
        return None if size < 0 else self._take(size)

    def _take(self, size: int) -> bytes:
        start = self._pos
        self._pos += size
        return bytes(self._buffer[start : self._pos])

    def _count(self) -> int:
        count = self._varint()
        if count < 0:
            raise CorruptRecordException(f"{count} is no number of headers and no size of a name")
        return count

    def _varint(self) -> int:
        # aiokafka's own reads on behind the end of its buffer, up to a crash: it is given a copy that ends in zeros.
        window = bytes(self._buffer[self._pos : self._pos + _VARINT_BYTES]).ljust(2 * _VARINT_BYTES, b"\0")
        number: int
        try:
            number, used = decode_varint(window, 0)
        except ValueError as error:
            raise CorruptRecordException(f"a number of more than 64 bits: {error}") from error
        self._pos += used
        if self._pos > len(self._buffer):
            raise CorruptRecordException("a record goes on behind the end of its batch")
        return number
