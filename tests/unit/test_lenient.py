"""Header names that are not UTF-8: each record is delivered once, in order, by the fetcher that aiokafka has."""

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher as stock
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchBuilderPy
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st

from app import lenient
from app.lenient import LenientBatch, read_leniently

TP = TopicPartition("raw", 0)
#: Codecs by the number they have in a batch.
CODECS = pytest.mark.parametrize("codec", [0, 1, 2, 3, 4], ids=["none", "gzip", "snappy", "lz4", "zstd"])
ODD = b"n\xffme"
READ = "n\\xffme"
PLAIN, TRANSACTIONAL = -1, 7
ABORTED = 0


class Name:
    """A header name of any bytes, for aiokafka's builder."""

    def __init__(self, name: bytes) -> None:
        self.encode = lambda _: name


Made = tuple[int, bytes | None, bytes | None, Sequence[tuple[bytes, bytes | None]]]


def build(records: Sequence[Made], base: int = 0, codec: int = 0, **kind: int) -> bytes:
    """A batch as a broker has it; a record is its place in the batch, key, value and headers, its time its place."""
    wanted: dict[str, int] = {"is_transactional": 0, "producer_id": -1, "producer_epoch": -1, "base_sequence": -1}
    builder = _DefaultRecordBatchBuilderPy(2, codec, **{**wanted, **kind}, batch_size=1 << 20)
    for place, key, value, headers in records:
        named: Any = [(Name(name), content) for name, content in headers]
        assert builder.append(place, 1000 + place, key, value, named)
    return patched(bytes(builder.build()), (">q", 0, base))


def patched(batch: bytes, *changes: tuple[str, int, int]) -> bytes:
    """A batch with other values (format, place, value), and the checksum that it then has."""
    data = bytearray(batch)
    for kind, place, value in changes:
        struct.pack_into(kind, data, place, value)
    struct.pack_into(">I", data, 17, calc_crc32c(bytes(data[21:])))
    return bytes(data)


def log_append_time(batch: bytes) -> bytes:
    """A batch whose records all have the time that its broker gave it."""
    attributes = struct.unpack_from(">h", batch, 21)[0]
    return patched(batch, (">h", 21, attributes | 8), (">q", 35, 99_000))


def batch(base: int, count: int = 5, odd: Sequence[int] = (), codec: int = 0, **kind: int) -> bytes:
    """Records with a header each, whose name is odd in some of them; an odd record's value says so."""
    records = [
        (place, b"key", b"odd" * 20 if place in odd else b"even" * 20, [(b"before", b"1"), (name, None), (b"", b"")])
        for place in range(count)
        for name in [ODD if place in odd else "näme".encode()]
    ]
    return build(records, base, codec, **kind)


def marker(base: int, producer: int, kind: int) -> bytes:
    """The end of a producer's transaction, as a broker writes it: aborted (0) or committed (1)."""
    made = build([(0, struct.pack(">hh", 0, kind), bytes(6), [])], base, is_transactional=1, producer_id=producer)
    return patched(made, (">h", 21, 0x30))


class Bench:
    """aiokafka's fetcher on a partition, and the one answer of its broker."""

    def __init__(self, data: bytes, position: int, aborted: Sequence[tuple[int, int]], isolation: str) -> None:
        self._answers = [data]
        self._aborted = list(aborted)
        self._loop = asyncio.get_running_loop()
        self._metadata_max_age_ms = 1000
        self.cluster = SimpleNamespace(leader_for_partition=lambda _: 0)
        self.subscriptions = SubscriptionState()
        self.subscriptions.assign_from_user([TP])
        self.subscriptions.seek(TP, position)
        client: Any = self
        self.fetcher = Fetcher(client, self.subscriptions, isolation_level=isolation)

    async def send(self, *_: Any) -> Any:
        """As aiokafka's client does: one fetch is answered, then there is nothing new."""
        if not self._answers:
            await asyncio.Event().wait()
        partition = (TP.partition, 0, 1000, 1000, self._aborted, self._answers.pop())
        return SimpleNamespace(API_VERSION=4, topics=[(TP.topic, [partition])])

    async def records(self, count: int | None = None) -> list[Any]:
        """What is fetched, at most `count` records."""
        return (await self.fetcher.fetched_records({TP}, timeout=0.2, max_records=count)).get(TP, [])

    @property
    def position(self) -> int:
        """The offset from which the next fetch goes on."""
        subscription = self.subscriptions.subscription
        assert subscription is not None
        position: int = subscription.assignment.state_value(TP).position
        return position


@asynccontextmanager
async def bench(
    *batches: bytes,
    position: int = 0,
    aborted: Sequence[tuple[int, int]] = (),
    isolation: str = "read_uncommitted",
    change: Callable[[Fetcher], None] = read_leniently,
) -> AsyncIterator[Bench]:
    """A fetcher that was changed, and is given these batches."""
    made = Bench(b"".join(batches), position, aborted, isolation)
    change(made.fetcher)
    try:
        yield made
    finally:
        await made.fetcher.close()


def offsets(records: Sequence[Any]) -> list[int]:
    return [record.offset for record in records]


def odd(records: Sequence[Any]) -> list[int]:
    """The records with an odd name; fails when one's is not read, or another's is not as it was."""
    found = [record.offset for record in records if record.value.startswith(b"odd")]
    for record in records:
        name = READ if record.offset in found else "näme"
        assert record.headers == (("before", b"1"), (name, None), ("", b""))
        assert (record.key, record.timestamp, record.timestamp_type) == (b"key", 1000 + record.offset % 5, 0)
        assert (record.serialized_key_size, record.serialized_value_size) == (3, len(record.value))
    return found


# -- what aiokafka does, and what of it is used ----------------------------------------------------------------------


async def test_without_it_a_partition_stands_still() -> None:
    """When this fails aiokafka has mended it, and the module under test may go."""
    async with bench(batch(0, odd=[2]), change=lambda _: None) as b:
        with pytest.raises(UnicodeDecodeError):
            await b.records()
        assert b.position == 0


async def test_what_it_changes_is_what_aiokafka_uses() -> None:
    handle: Any = Fetcher._proc_fetch_request
    assert {"MemoryRecords", "PartitionRecords"} <= set(handle.__code__.co_names)
    assert (handle.__defaults__, handle.__kwdefaults__, handle.__closure__) == (None, None, None)
    assert issubclass(lenient._Fetched, stock.MemoryRecords)
    async with bench(batch(0)) as b:
        assert b.fetcher._proc_fetch_request.__code__ is handle.__code__
        assert stock.MemoryRecords is MemoryRecords
        assert stock.PartitionRecords is not lenient._Records
        assert Fetcher._proc_fetch_request is handle


async def test_good_records_stay_with_the_compiled_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lenient, "LenientBatch", None)
    fetched = lenient._Fetched(batch(0))
    assert type(fetched.next_batch()) is DefaultRecordBatch
    assert DefaultRecordBatch.__module__.startswith("aiokafka.record._crecords")
    assert lenient._Fetched.has_next is MemoryRecords.has_next
    assert lenient._Fetched.next_batch is MemoryRecords.next_batch
    async with bench(batch(0), batch(5)) as b:
        assert offsets(await b.records()) == list(range(10))


# -- the fetcher -----------------------------------------------------------------------------------------------------


@CODECS
@pytest.mark.parametrize("places", [[0], [2], [4], [0, 4], [1, 2, 3], [0, 1, 2, 3, 4]])
async def test_every_record_once_in_order(codec: int, places: list[int]) -> None:
    """Wherever in its batch an odd name stands, and however the batch is compressed."""
    batches = [batch(0, codec=codec), batch(5, odd=places, codec=codec), batch(10, codec=codec)]
    assert struct.unpack_from(">h", batches[1], 21)[0] == codec
    async with bench(*batches) as b:
        records = await b.records()
        assert offsets(records) == list(range(15))
        assert odd(records) == [5 + place for place in places]
        assert b.position == 15


@pytest.mark.parametrize("at_once", [1, 2, 3, 4, 7])
async def test_odd_batches_in_a_row_taken_bit_by_bit(at_once: int) -> None:
    """The position is right whenever a caller pauses."""
    found: list[Any] = []
    async with bench(batch(0, odd=[4]), batch(5, odd=[0, 3]), batch(10), batch(15, odd=[1])) as b:
        while records := await b.records(at_once):
            assert len(records) <= at_once
            found += records
            assert b.position == found[-1].offset + 1
    assert offsets(found) == list(range(20))
    assert odd(found) == [4, 5, 8, 16]


@pytest.mark.parametrize("position", range(5))
async def test_a_fetch_that_begins_within_a_batch(position: int) -> None:
    """The odd name may stand before the first record that is wanted."""
    async with bench(batch(0, odd=[1, 3]), batch(5, odd=[0]), position=position) as b:
        assert offsets(await b.records()) == list(range(position, 10))


async def test_gaps_that_compaction_leaves() -> None:
    """At a batch's beginning, middle and end; the position passes the last one."""
    thinned = build([(place, None, b"x", [(ODD, b"1")]) for place in (2, 3, 7)], base=10)
    thinned = patched(thinned, (">i", 23, 9))  # nine records followed the first one
    nothing_new = patched(batch(0, odd=[1]), (">i", 23, 9))
    async with bench(nothing_new, thinned, batch(20), position=6) as b:
        assert offsets(await b.records()) == [12, 13, 17, *range(20, 25)]
        assert b.position == 25
    async with bench(thinned, position=18) as b:
        assert await b.records() == []
        assert b.position == 20


def test_batches_of_an_older_format_have_no_headers() -> None:
    """They are passed over. Not by way of a fetcher: aiokafka 0.14 takes all of a fetch for the first one's format."""
    older = LegacyRecordBatchBuilder(1, 0, 1 << 20)
    for offset in range(3):
        older.append(offset, 2**62, b"k", b"v")
    newer = batch(5, odd=[2])
    assert lenient._Fetched(bytes(older.build()) + newer + batch(10)).batch_at(2) == newer


async def test_what_was_aborted_stays_unseen() -> None:
    """Of aborted and committed transactions with odd names only the committed are seen, and no marker of either."""
    batches = [
        batch(0, odd=[2], is_transactional=1, producer_id=7),
        batch(5, odd=[1], is_transactional=1, producer_id=8),
        batch(10, odd=[4], is_transactional=1, producer_id=7),
        marker(15, 7, ABORTED),
        marker(16, 8, 1),
        batch(20, odd=[0], is_transactional=1, producer_id=7),
        marker(25, 7, 1),
    ]
    async with bench(*batches, aborted=[(7, 0)], isolation="read_committed") as b:
        records = await b.records()
        assert offsets(records) == [*range(5, 10), *range(20, 25)]
        assert odd(records) == [6, 20]
        assert b.position == 26
    async with bench(*batches) as b:
        assert offsets(await b.records()) == [*range(15), *range(20, 25)]
        assert b.position == 26


async def test_a_broken_batch_is_broken_all_the_same() -> None:
    """A checksum is looked at before a name is, and of later batches too."""
    for place in (0, 1, 2):
        batches = [bytearray(batch(5 * number, odd=[3])) for number in range(3)]
        batches[place][-1] ^= 1
        async with bench(*map(bytes, batches)) as b:
            with pytest.raises(CorruptRecordException, match="Invalid CRC"):
                await b.records()
            assert b.position == 0


async def test_the_log_says_so_but_not_each_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(lenient._Records, "_log_at", 0.0)
    async with bench(batch(0, odd=[3]), batch(5, odd=[1]), batch(10, odd=[0])) as b:
        await b.records()
    (line,) = [each for each in caplog.records if each.name == "app.lenient"]
    assert (vars(line)["topic"], vars(line)["partition"], vars(line)["from_offset"]) == ("raw", 0, 3)


# -- the parser ------------------------------------------------------------------------------------------------------

CONTENT = st.none() | st.binary(max_size=200)
SOUND = st.lists(st.tuples(CONTENT, CONTENT, st.lists(st.tuples(st.text(), CONTENT), max_size=4)), min_size=1)


def parts(batch: Any) -> list[tuple[Any, ...]]:
    """What a parser makes of a batch."""
    return [
        (each.offset, each.timestamp, each.timestamp_type, each.key, each.value, each.headers, each.checksum)
        for each in batch
    ]


@CODECS
@given(records=SOUND, base=st.integers(0, 2**60), as_it_comes=st.sampled_from([bytes, log_append_time]))
def test_it_agrees_with_the_compiled_parser(
    codec: int, records: Any, base: int, as_it_comes: Callable[[bytes], bytes]
) -> None:
    """Where all names are UTF-8 every record is the same."""
    numbered = [
        (3 * number, key, value, [(name.encode(), content) for name, content in headers])
        for number, (key, value, headers) in enumerate(records)
    ]
    made = as_it_comes(build(numbered, base, codec))
    ours, theirs = LenientBatch(made), DefaultRecordBatch(made)

    assert ours.validate_crc()
    assert theirs.validate_crc()
    assert parts(ours) == parts(theirs)
    assert ours.next_offset == theirs.next_offset


@given(names=st.lists(st.binary(max_size=300), min_size=1, max_size=5))
def test_any_name_becomes_text(names: list[bytes]) -> None:
    """Text that UTF-8 can encode, the name itself where it is UTF-8, and nothing else of the record is touched."""
    made = build([(0, b"key", b"value", [(name, b"content") for name in names])])

    ((*_, key, value, headers, _),) = parts(LenientBatch(made))

    assert (key, value, [content for _, content in headers]) == (b"key", b"value", [b"content"] * len(names))
    for name, (text, _) in zip(names, headers, strict=True):
        assert text.encode().decode() == name.decode("utf-8", "backslashreplace")


@pytest.mark.parametrize("name", [b"\xed\xa0\x80", b"\xc0\x80", b"\xff" * 1000, b"\xf4\x90\x80\x80", b"name\xe9"])
def test_names_that_look_like_utf_8(name: bytes) -> None:
    """Surrogates, overlong forms and what lies behind Unicode's end are not UTF-8 either."""
    ((*_, headers, _),) = parts(LenientBatch(build([(0, None, None, [(name, b"")])])))
    assert headers[0][0].encode()
    assert "\\x" in headers[0][0]


@given(cut=st.integers(1, 40), byte=st.integers(0, 255), place=st.integers(61, 140))
def test_a_record_that_makes_no_sense_is_refused(cut: int, byte: int, place: int) -> None:
    """Bytes that are cut off or changed end in aiokafka's own error, or in records: in nothing else."""
    made = bytearray(batch(0, count=2, odd=[1]))
    with pytest.raises(CorruptRecordException):
        list(LenientBatch(made[:-cut]))
    made[place] = byte
    with suppress(CorruptRecordException):
        list(LenientBatch(made))
