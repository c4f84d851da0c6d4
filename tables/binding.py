"""A table on Faust's tables: whole partitions are read, and written a batch at a time, changelog first.

Faust's own way to write is a key at a time, on behalf of an event of the key's partition, and answers before the
changelog has the value. Here Faust only owns the store, restores it from the changelog after a rebalance and says
where to begin (the persisted offset); reading and writing go by partition.

The values of a table that `keeps_highest` begin with a header (`tables.channel.header`). Of two values of one key the
one with the higher position in the source wins, whatever their order in the changelog: a worker that has lost its
partition may still write, late. All else is last-wins.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Protocol, cast

import faust
import rocksdict
from faust.stores import base, rocksdb
from faust.types import TP, EventT

from schemas.decoding import Item
from tables.channel import HEADER

log = logging.getLogger(__name__)

Entry = tuple[bytes, bytes | None]

#: One cache for all partitions of all tables of a process: state is read whole, once, and then kept by its owner.
CACHE_BYTES: Final = 8 * 2**20
#: Of each partition of each table. RocksDB's own would be three times 64 MiB.
LIMITS: Final[Mapping[str, int]] = {
    "block_cache_size": CACHE_BYTES,
    "write_buffer_size": 2**20,
    "max_write_buffer_number": 2,
    "target_file_size_base": 8 * 2**20,
    "max_open_files": 64,
}
#: The event loop has other things to do between so many entries.
_SLICE: Final = 500


class Sent(Protocol):
    """A batch on its way."""

    @property
    def last_offset(self) -> int | None:
        """Where its last record lies, when it is done; None where the broker did not say."""

    async def done(self) -> None:
        """Wait for the broker; raises when it refuses."""


class Producer(Protocol):
    """What writing needs of `app.produce.BatchProducer`."""

    async def send(self, topic: str, partitions: Mapping[int, list[Item]]) -> Sequence[Sent]:
        """Queue batches, in order."""


class NotMineError(LookupError):
    """A partition was asked for that another worker has."""


def _rank(value: bytes | None) -> tuple[int, int] | None:
    """What decides between two values of a key, the higher the better; None where a value does not say."""
    if value is None or len(value) < HEADER.size:
        return None
    _, generation, position = HEADER.unpack_from(value)
    return position, generation


class Store(Protocol):
    """A store, by partition.

    `outdone` are the keys, by partition, whose last value in the changelog is not the one that the store has.
    """

    outdone: dict[int, set[bytes]]

    def holds(self, partition: int) -> bool:
        """Whether a partition is this worker's."""

    def entries(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """All entries of a partition."""

    def entry(self, partition: int, key: bytes) -> bytes | None:
        """The value of a key."""

    def put(self, partition: int, items: Iterable[Entry], offset: int | None) -> None:
        """Write entries, None to delete; with them, at once, the offset up to which the changelog is in the store."""


def restore(store: Store, batch: Iterable[EventT[Any]], *, keeps_highest: bool) -> None:
    """Write what was read of a changelog."""
    found: dict[int, dict[bytes, bytes | None]] = {}
    ends: dict[int, int] = {}
    for event in batch:
        message = event.message
        entries = found.setdefault(message.partition, {})
        ends[message.partition] = max(message.offset, ends.get(message.partition, -1))
        key, value = cast("bytes", message.key), message.value
        if keeps_highest and (rank := _rank(value)) is not None:
            has = _rank(entries[key] if key in entries else store.entry(message.partition, key))
            if has is not None and rank < has:
                log.warning(
                    "a late write of an earlier owner was passed over",
                    extra={"topic": message.topic, "partition": message.partition, "offset": message.offset},
                )
                store.outdone.setdefault(message.partition, set()).add(key)
                continue
            store.outdone.get(message.partition, set()).discard(key)
        entries[key] = value
    for partition, entries in found.items():
        store.put(partition, entries.items(), ends[partition])


class Options(rocksdb.RocksDBOptions):
    """Faust's, with one cache for all databases of the process, also of those that are opened again."""

    cache: ClassVar[Any] = None

    def open(self, path: Path, *, read_only: bool = False) -> Any:
        """Open a database, or make it."""
        del read_only  # Faust has no use for it with rocksdict either
        options = self.as_options()
        # Of a database that is there, rocksdict takes only what is said by the name of its column family: it would have
        # a cache of 8 MiB to itself, and no bloom filter.
        found = rocksdict.Rdict(str(path), options=options, column_families={"default": options})
        found.set_read_options(rocksdict.ReadOptions())
        return found

    def as_options(self) -> Any:
        """As Faust makes them."""
        if Options.cache is None:
            Options.cache = rocksdict.Cache(CACHE_BYTES)
        options = super().as_options()
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(Options.cache)
        blocks.set_bloom_filter(10, block_based=False)
        options.set_block_based_table_factory(blocks)
        return options


class _Rocks(rocksdb.Store):
    """On disk: a database for each partition."""

    keeps_highest = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rocksdb_options = Options(**LIMITS, use_rocksdict=True)
        self.outdone: dict[int, set[bytes]] = {}

    def holds(self, partition: int) -> bool:
        return partition in self._dbs

    def entries(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        return self._visible_items(self._db_for_partition(partition))

    def entry(self, partition: int, key: bytes) -> bytes | None:
        return cast("bytes | None", self._db_for_partition(partition).get(key))

    def put(self, partition: int, items: Iterable[Entry], offset: int | None) -> None:
        # One batch, so that a crash leaves all of it or nothing.
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in items:
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        if offset is not None:
            batch.put(self.offset_key, b"%d" % offset)
        self._db_for_partition(partition).write(batch)

    def apply_changelog_batch(self, batch: Iterable[EventT[Any]], to_key: Any, to_value: Any) -> None:
        del to_key, to_value
        restore(self, batch, keeps_highest=self.keeps_highest)


class _Memory(base.Store[bytes, bytes]):
    """In memory, for tests: what a process has read of a changelog it need not read again until it ends."""

    keeps_highest = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._partitions: dict[int, dict[bytes, bytes]] = {}
        self._offsets: dict[int, int] = {}
        self.outdone: dict[int, set[bytes]] = {}

    def holds(self, partition: int) -> bool:
        return partition in self._partitions

    def entries(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        return iter(list(self._partitions.get(partition, {}).items()))

    def entry(self, partition: int, key: bytes) -> bytes | None:
        return self._partitions.get(partition, {}).get(key)

    def put(self, partition: int, items: Iterable[Entry], offset: int | None) -> None:
        entries = self._partitions.setdefault(partition, {})
        for key, value in items:
            if value is None:
                entries.pop(key, None)
            else:
                entries[key] = value
        if offset is not None:
            self._offsets[partition] = offset

    def apply_changelog_batch(self, batch: Iterable[EventT[Any]], to_key: Any, to_value: Any) -> None:
        del to_key, to_value
        restore(self, batch, keeps_highest=self.keeps_highest)

    def persisted_offset(self, tp: TP) -> int | None:
        return self._offsets.get(tp.partition)

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly_assigned: set[TP], generation_id: int = 0
    ) -> None:
        del assigned, generation_id
        own = self.table.changelog_topic.topics
        for tp in revoked:
            if tp.topic in own:
                self._partitions.pop(tp.partition, None)
                self._offsets.pop(tp.partition, None)
        for tp in newly_assigned:
            if tp.topic in own:
                self._partitions.setdefault(tp.partition, {})

    def reset_state(self) -> None:
        self._partitions.clear()
        self._offsets.clear()

    async def backup_partition(self, tp: Any, flush: bool = True, purge: bool = False, keep: int = 1) -> None:  # noqa: FBT001, FBT002  as Faust has it
        raise NotImplementedError

    def restore_backup(self, tp: Any, latest: bool = True, backup_id: int = 0) -> None:  # noqa: FBT001, FBT002  as Faust has it
        raise NotImplementedError


class _FaustTable(faust.Table[bytes, bytes]):
    """Faust's table with a store of ours."""

    keeps_highest = False
    #: Where it keeps its entries. Faust's own attribute for it takes `rocksdb://` for nothing said.
    url = "rocksdb://"

    def _new_store(self) -> Any:
        kind: Any = _Memory if self.url.startswith("memory:") else _Rocks
        # Faust's stores alter the options that they are given: theirs are their own.
        store = kind(
            self.url,
            self.app,
            self,
            table_name=self.name,
            key_type=self.key_type,
            value_type=self.value_type,
            key_serializer=self.key_serializer,
            value_serializer=self.value_serializer,
            loop=self.loop,
            options={},
        )
        store.keeps_highest = self.keeps_highest
        return store


class Table:
    """A table of bytes by bytes, of as many partitions as the topic that its stage reads.

    `store` is `rocksdb://` or `memory://`. Every method but `bind` needs an app that runs.
    """

    def __init__(self, name: str, *, keeps_highest: bool = False, store: str = "rocksdb://") -> None:
        self.name = name
        self._keeps_highest = keeps_highest
        self._url = store
        self._table: Any = None

    def bind(self, app: faust.App, partitions: int) -> None:
        """Make it a table of an app that has not started yet."""
        table = _FaustTable(app, name=self.name, key_type=bytes, value_type=bytes, partitions=partitions)
        table.keeps_highest = self._keeps_highest
        table.url = self._url
        self._table = app.tables.add(table)

    @property
    def changelog(self) -> str:
        """The name of its changelog topic: `APP-NAME-changelog`."""
        return str(self._table.changelog_topic_name)

    @property
    def folder(self) -> Path:
        """Where its partitions are on disk."""
        return Path(self._table.data.path)

    @property
    def _store(self) -> Store:
        return cast("Store", self._table.data)

    def load(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """All entries of a partition as they are now. Raises `NotMineError`."""
        return self._of(partition).entries(partition)

    def get(self, partition: int, key: bytes) -> bytes | None:
        """The value of a key. Raises `NotMineError`."""
        return self._of(partition).entry(partition, key)

    def _of(self, partition: int) -> Store:
        # Asked for a partition that it does not have, a store of Faust's would make an empty one and lock it.
        if not self._store.holds(partition):
            raise NotMineError(f"partition {partition} of the table {self.name} is not this worker's")
        return self._store

    async def write(self, partition: int, items: Sequence[Entry], producer: Producer, *, anew: bool = False) -> None:
        """Write entries, None to delete a key; returns when the changelog has them all, and then the store.

        `anew` makes them win over what was higher: their source was made anew, and its positions begin again.
        When this fails or is cancelled, the changelog may have some of them, and the store none that it has not.
        """
        if anew:
            items = [entry for key, value in items for entry in ((key, None), (key, value))]
        items = [*self._again(partition, {key for key, _ in items}), *items]
        if not items:
            return
        sent: list[Sent] = []
        for start in range(0, len(items), _SLICE):
            part = [Item(key, value, []) for key, value in items[start : start + _SLICE]]
            sent += await producer.send(self.changelog, {partition: part})
            await asyncio.sleep(0)
        for batch in sent:
            await batch.done()
        last = sent[-1].last_offset
        for start in range(0, len(items), _SLICE):
            if not self._store.holds(partition):
                return  # it was given up meanwhile: whoever has it reads the changelog
            end = start + _SLICE
            self._store.put(partition, items[start:end], last if end >= len(items) else None)
            await asyncio.sleep(0)
        self._store.outdone.pop(partition, None)

    def _again(self, partition: int, keys: set[bytes]) -> Iterator[Entry]:
        """What must be written again, since compaction keeps the last value of a key, not the highest."""
        outdone = self._store.outdone.get(partition)
        if outdone and self._store.holds(partition):
            for key in sorted(outdone - keys):
                yield key, self._store.entry(partition, key)
