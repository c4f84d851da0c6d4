"""The batch transport: Faust over Kafka, paying Faust's price per chunk of records instead of per record.

Faust finds it by the scheme of a broker URL (`iotflow://host:port`) through the entry-point group `faust.transports`.
It is Faust's own aiokafka driver with one change of unit: the records fetched for one partition are folded into
chunks, and each chunk travels through Faust as ONE message whose value is the list of records and whose offset is
the last record's. Topics of tables (changelogs) are not folded: recovery reads them as ever.

Seven promises, each held by a test in tests/acceptance/test_transport.py; the numbers stand in comments where they are
kept:

1. table partitions are not folded;
2. a commit passes only what was acknowledged, in the order in which chunks were handed out;
3. at a revoke or stop what was acknowledged is committed first, and a held chunk is let go within a time limit;
4. nothing is fetched from data partitions while a rebalance or a recovery is under way;
5. a flowing consumer is never paused;
6. an outage of any length does not end the membership in the group (`app.build` sets the poll interval);
7. what is queued and held is bounded in bytes and in records.

It reaches into faust-streaming 0.15.3, which is therefore pinned.
"""

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, ClassVar, cast

import faust
from faust.transport.consumer import ensure_TP, ensure_TPset
from faust.transport.drivers import aiokafka as stock
from faust.types import TP, ConsumerMessage, Message
from mode.utils.futures import notify

from app.lenient import read_leniently
from schemas.record import Record

log = logging.getLogger(__name__)

#: A full queue stops the fetch loop, and aiokafka leaves the group for good after this long (6); the session time-out
#: still finds dead workers, and the watchdog live ones that do nothing.
MAX_POLL_INTERVAL_S = 86_400.0
#: So long a broker may wait for records. Faust's 1,500 is how long a partition with records stood behind those without,
#: since a client asks a broker for one thing at a time, and the partitions that it still has records of are not in it.
FETCH_WAIT_MS = 50
#: Queued chunks per agent; the transport's own bounds are reached first.
QUEUED_CHUNKS = 64
#: A chunk that stays unacknowledged this long while later ones of its partition are acknowledged is a fault.
FROZEN_AFTER_S = 60.0
#: So long a seek waits for a destination that keeps the offsets; well within what Faust gives it.
_SEEK_S = 10.0
#: How often a fetch that may not start yet looks again.
_WAIT_POLL_S = 0.01
#: A full intake takes again when this share of its limits is in flight.
_REFILL_AT = 0.8
#: A worker that lags stops and starts many times a second; its log says so once in this time.
_FULL_LOG_EVERY_S = 60.0
#: Python's own share of a record: the record object, its key and headers, beside its value.
_RECORD_OVERHEAD_BYTES = 400


class Chunk(list[Record]):
    """Consecutive records of one partition, oldest first; never empty."""

    __slots__ = ("size_bytes",)

    def __init__(self, records: Iterable[Record], size_bytes: int) -> None:
        super().__init__(records)
        self.size_bytes = size_bytes


class _HandedOut:
    """A chunk on its way through Faust: its place in the partition's order, and since when."""

    __slots__ = ("acked", "counted", "first_ms", "offset", "records", "since", "size_bytes")

    def __init__(self, offset: int, chunk: Chunk) -> None:
        self.offset = offset
        self.records = len(chunk)
        self.size_bytes = chunk.size_bytes
        self.first_ms = chunk[0].timestamp
        self.since = time.monotonic()
        self.acked = False
        #: Whether it counts as in flight.
        self.counted = False


def fold(records: Sequence[Record], max_records: int, max_bytes: int) -> Iterator[Chunk]:
    """Cut one partition's records into chunks of at most `max_records` records and about `max_bytes` of values.

    A chunk ends with the record that reaches `max_bytes`, so a record larger than that is a chunk of its own.
    """
    start = 0
    size = 0
    for index, record in enumerate(records):
        value = record.value
        size += 0 if value is None else len(value)
        if size >= max_bytes or index - start + 1 >= max_records:
            yield Chunk(records[start : index + 1], size)
            start, size = index + 1, 0
    if start < len(records):
        yield Chunk(records[start:], size)


class OffsetOutsideLogError(RuntimeError):
    """The destination says to go on where the log has nothing any more, or not yet."""

    def __init__(self, place: Any, offset: int, start: int, end: int) -> None:
        super().__init__(
            f"the destination has offset {offset} as the next of {place.topic}/{place.partition}, whose log holds "
            f"{start} to {end}: the topic was made anew or has lost records that were not stored; see to it that "
            "nothing is missing, then delete the partition's row from sink_offsets and start again"
        )


class Thread(stock.AIOKafkaConsumerThread):
    """The thread that aiokafka's consumer lives in."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        """As Faust makes it, but blind to what an aborted transaction wrote: Faust looks away only for its own."""
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # noqa: SLF001  Faust has no setting for it
        consumer._fetch_max_wait_ms = FETCH_WAIT_MS  # noqa: SLF001  Faust has set it
        return consumer

    async def on_start(self) -> None:
        """As Faust does, with a fetcher that no header name stops; nothing is fetched before topics are subscribed."""
        await super().on_start()
        read_leniently(self._ensure_consumer()._fetcher)  # noqa: SLF001  made in the consumer's start


class Consumer(stock.Consumer):
    """Faust's aiokafka consumer with chunks as its messages."""

    chunk_records: ClassVar[int] = 1000
    chunk_bytes: ClassVar[int] = 256 * 1024
    max_inflight_bytes: ClassVar[int] = 64 * 1024 * 1024
    max_inflight_records: ClassVar[int] = 50_000

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        limits = getattr(self.app, "transport_limits", {})
        for name, value in limits.items():
            setattr(self, name, value)
        #: Per partition, what was put into Faust's queues, in order, until it is committed.
        self._order: defaultdict[TP, deque[_HandedOut]] = defaultdict(deque)
        self._by_offset: defaultdict[TP, dict[int, _HandedOut]] = defaultdict(dict)
        #: Per partition, the last offset that a fetch brought and the last that was put into Faust's queues.
        self._fetched: dict[TP, int] = {}
        self._handed: dict[TP, int] = {}
        #: Per partition, the last offset whose records are not needed any more (`shed`).
        self._shed: dict[TP, int] = {}
        #: Per partition, what `caught_up` saw when it was last asked: the log's end, and the next to read.
        self._looked: dict[TP, tuple[int, int] | None] = {}
        self._leaving = False
        self._committing_since: float | None = None
        self._revokes = 0
        self._full = False
        self._log_full_at = 0.0
        self.inflight_bytes = 0
        self.inflight_records = 0
        #: Called with the monotonic deadline when everything held must be finished or let go.
        self.on_drain: list[Callable[[float], None]] = []
        #: Asked, after that, whether something is still being finished for which no chunk is held.
        self.unfinished: list[Callable[[], bool]] = []
        #: The destination's offsets are not known yet: nothing may be fetched.
        self._unsought = False
        #: Asked at each seek, with the data partitions that are assigned, where the destination keeps the offsets.
        self.on_seek: Callable[[set[TP]], Awaitable[Mapping[TP, int]]] | None = None
        #: Called once each time intake stops because too much is in flight.
        self.on_full: list[Callable[[], None]] = []
        self._deliver = self.callback
        self.callback = self._hand_out

    def _new_consumer_thread(self) -> Thread:
        return Thread(self, loop=self.loop, beacon=self.beacon)

    # -- folding -----------------------------------------------------------------------------------------------------

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Any:
        if self._unsought and self.flow_active and not self.app.rebalancing:
            await self._seek_again()
        wanted = await self._fetchable(active_partitions, timeout)
        if wanted is not None and not wanted:
            return {}
        revokes = self._revokes
        fetched = await super()._getmany(wanted, timeout)
        outlived = revokes != self._revokes
        folded: dict[TP, Sequence[Any]] = {}
        for partition, records in fetched.items():
            tp = ensure_TP(partition)
            if self._is_changelog_tp(tp):  # 1
                folded[tp] = records
            elif not outlived:
                folded[tp] = list(fold(records, self.chunk_records, self.chunk_bytes))
                if records:
                    self._fetched[tp] = records[-1].offset
        if outlived and len(folded) < len(fetched) and self.flow_active:
            await self._seek_again()
        return folded

    async def _seek_again(self) -> None:
        """Fetch once more what was brought by a fetch that began before a rebalance and ended after it (4).

        Recovery's own seek may lie before or after it, and clears the queues: it is not known what would be left.
        While the flow is stopped Faust does this itself.
        """
        rebalances = self.app.rebalancing_count
        try:
            await self.perform_seek()
        except Exception:
            if rebalances == self.app.rebalancing_count:
                raise
            log.info("seek given up: the next rebalance makes its own")

    async def _fetchable(self, active: set[TP] | None, timeout: float) -> set[TP] | None:
        """Which partitions may be fetched now; waits up to `timeout` seconds when there is none.

        Never an empty set for aiokafka: it reads that as "all of them".
        """
        if active is None:  # a client without a group
            return None
        data = {tp for tp in active if not self._is_changelog_tp(tp)}
        # 4: a copy, because recovery adds the data partitions to the live set while a fetch is under way, and before
        # its seek is finished.
        changelogs = set(active) - data
        if changelogs:
            return changelogs if self._may_not_fetch() else data | changelogs
        deadline = time.monotonic() + timeout
        while self._may_not_fetch():
            if time.monotonic() >= deadline or self.should_stop or not self.flow_active:
                return set()
            await asyncio.sleep(_WAIT_POLL_S)
        return data

    def _may_not_fetch(self) -> bool:
        return bool(self.app.rebalancing) or self._unsought or self._is_full()

    def _is_full(self) -> bool:
        """Whether intake must stop (7). It is stopped by not taking, never by pausing (5)."""
        share = max(self.inflight_bytes / self.max_inflight_bytes, self.inflight_records / self.max_inflight_records)
        full = share >= (_REFILL_AT if self._full else 1.0)
        if full and not self._full:
            for hook in self.on_full:
                hook()
            now = time.monotonic()
            if now >= self._log_full_at:
                self._log_full_at = now + _FULL_LOG_EVERY_S
                log.warning(
                    "intake stopped: too much is in flight",
                    extra={"records": self.inflight_records, "bytes": self.inflight_bytes},
                )
        self._full = full
        return full

    def _to_message(self, tp: TP, record: Any) -> ConsumerMessage:
        if not isinstance(record, Chunk):
            return super()._to_message(tp, record)
        last = record[-1]
        return ConsumerMessage(
            tp.topic,
            tp.partition,
            last.offset,
            last.timestamp / 1000.0,
            0,
            [],
            None,
            cast("Any", record),
            None,
            0,
            record.size_bytes,
            tp,
            generation_id=self.app.consumer_generation_id,
        )

    # -- the order of chunks, and what of it may be committed --------------------------------------------------------

    async def _hand_out(self, message: Message) -> None:
        """Put a message into Faust's queues; called by the drain loop once the message is known to be new.

        A chunk enters the order before the put, so that no later one can pass it, and leaves it again when the put
        is cancelled by a suspend (2): a chunk nobody holds would freeze the partition's commits.
        """
        chunk: Any = message.value
        if not isinstance(chunk, Chunk):
            await self._deliver(message)
            return
        tp = message.tp
        entry = _HandedOut(message.offset, chunk)
        self._order[tp].append(entry)
        self._by_offset[tp][entry.offset] = entry
        self._handed[tp] = entry.offset
        self._count(entry, counts=True)
        try:
            await self._deliver(message)
        except BaseException:
            if self._by_offset[tp].pop(entry.offset, None) is entry:
                self._order[tp].remove(entry)
                self._count(entry, counts=False)
            raise

    def _count(self, entry: _HandedOut, *, counts: bool) -> None:
        """See to it that a chunk counts as in flight, or does not; each only once."""
        if entry.counted is counts:
            return
        entry.counted = counts
        sign = 1 if counts else -1
        self.inflight_records += sign * entry.records
        self.inflight_bytes += sign * (entry.size_bytes + entry.records * _RECORD_OVERHEAD_BYTES)

    def shed(self, message: Message) -> None:
        """The holder needs a chunk's records no more, though it is not done: it counts as in flight no longer.

        For who acknowledges much later than it has read, as a checkpoint does, and bounds itself what it holds.
        """
        if message.generation_id != self.app.consumer_generation_id:
            return
        entry = self._by_offset[message.tp].get(message.offset)
        if entry is not None:
            self._count(entry, counts=False)
            self._shed[message.tp] = max(entry.offset, self._shed.get(message.tp, -1))

    def caught_up(self, tp: TP) -> bool:
        """Whether all that a data partition held when this was last asked has been read and shed since.

        To be asked about once a second. False at first, and where nothing is known of the end of the log.
        """
        before, now = self._looked.get(tp), self._look(tp)
        if now is None or before is None:
            self._looked[tp] = now
            return False
        self._looked[tp] = now
        (end, position), shed = before, self._shed.get(tp, -1)
        if shed + 1 >= end:
            return True
        # Nothing was read for a second, and there is nothing to read: what ends the log are markers of transactions,
        # or no record has come since the partition was assigned.
        idle = now == before and position >= end
        return idle and self._fetched.get(tp, -1) == self._handed.get(tp, -1) <= shed

    def _look(self, tp: TP) -> tuple[int, int] | None:
        """Where a partition's log ended at the last fetch, and what would be read next, if both are known."""
        client: Any = self._thread._consumer  # noqa: SLF001  another thread's, but numbers of it may be read
        subscription = None if client is None else client._subscription.subscription  # noqa: SLF001
        assignment = None if subscription is None else subscription.assignment
        state = None if assignment is None else assignment.state_value(stock.ensure_aiokafka_TP(tp))
        if state is None or state.highwater is None or not state.has_valid_position:
            return None
        return int(state.highwater), int(state.position)

    def ack(self, message: Message) -> bool:
        """Mark a message done. One of an earlier generation changes nothing (2): its partition may have moved."""
        value: Any = message.value
        if not isinstance(value, Chunk):
            return bool(super().ack(message))
        self._unacked_messages.discard(message)
        try:
            if message.generation_id != self.app.consumer_generation_id:
                return False
            entry = self._by_offset[message.tp].get(message.offset)
            if entry is None or entry.acked:
                return False
            entry.acked = True
            self._count(entry, counts=False)
            self._acked[message.tp]  # a key here is what makes Faust ask for this partition's new offset
            self._n_acked += 1
            return True
        finally:
            message.acked = True
            notify(self._waiting_for_ack)

    async def force_commit(self, *args: Any, **kwargs: Any) -> bool:
        """Commit, and let it be seen how long that takes: aiokafka's may hang for good after its broker was killed."""
        self._committing_since = time.monotonic()
        try:
            return bool(await super().force_commit(*args, **kwargs))
        finally:
            self._committing_since = None

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit: last + 1 of the longest acknowledged run of chunks, or None (2)."""
        if self._is_changelog_tp(tp):
            return super()._new_offset(tp)
        order = self._order[tp]
        last: int | None = None
        while order and order[0].acked:
            last = order.popleft().offset
            del self._by_offset[tp][last]
        return None if last is None else last + 1

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Offsets that compaction or a transaction left out lie inside or between chunks: the order covers them."""
        if self._is_changelog_tp(tp):
            await super()._add_gap(tp, offset_from, offset_to)

    def _forget(self, partitions: Iterable[TP]) -> None:
        for tp in partitions:
            self._acked.pop(tp, None)
            self._acked_index.pop(tp, None)
            self._by_offset.pop(tp, None)
            for entry in self._order.pop(tp, ()):
                self._count(entry, counts=False)

    async def perform_seek(self) -> None:
        """Go to the committed offsets, forgetting all that was handed out since.

        While partitions are being given up this does nothing: the records of a fetch that was under way are dropped
        and fetched again by whoever has the partition next, and the acknowledgements are still to be committed (3).
        """
        if self._leaving:
            return
        self._forget(list(self._order))
        for places in (self._fetched, self._handed, self._shed, self._looked):
            places.clear()
        self._acked.clear()
        self._acked_index.clear()
        await super().perform_seek()
        # aiokafka leaves a partition without a commit where it is, and a fetch that was dropped has moved it.
        untouched = [
            stock.ensure_aiokafka_TP(tp)
            for tp in self.assignment()
            if not self._read_offset[tp] and not self._is_changelog_tp(tp)
        ]
        if untouched:
            await self._thread.seek_to_beginning(*untouched)

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Go to the committed offsets; where the destination keeps them with its data, to its own.

        Here, because Faust seeks on every path of a rebalance, and what was sought apart would be undone. Raises
        `OffsetOutsideLogError` where the log does not have the destination's offset.
        """
        committed = dict(await super().seek_to_committed())
        if self.on_seek is None:
            return committed
        data = {ensure_TP(tp) for tp in self.assignment() if not self._is_changelog_tp(ensure_TP(tp))}
        self._unsought = True
        try:
            async with asyncio.timeout(_SEEK_S):
                kept = await self.on_seek(data)
        except TimeoutError:
            return committed  # Faust gives a rebalance up that takes too long; nothing is fetched until it is sought
        places = {stock.ensure_aiokafka_TP(tp): offset for tp, offset in kept.items()}
        if places:
            starts, ends = await self.earliest_offsets(*places), await self.highwaters(*places)
            for place, offset in places.items():
                if not starts[place] <= offset <= ends[place]:
                    error = OffsetOutsideLogError(place, offset, starts[place], ends[place])
                    log.critical("a worker cannot begin", extra={"error": str(error)})
                    raise error
            await self._thread.seek_wait(places)
        self._unsought = False
        # What Kafka says is what lag is measured by, and may be another: after a restore, for one.
        assigned = self.assignment()
        behind = {tp: offset for tp, offset in kept.items() if committed.get(tp) != offset and tp in assigned}
        if behind:
            await self._commit(behind)
        return {**committed, **places}

    def verify_event_path(self, now: float, tp: TP) -> None:
        """As Faust does; a partition that is being sought has no position, which aiokafka asserts it has."""
        with suppress(AssertionError):
            super().verify_event_path(now, tp)

    # -- revoke and stop ---------------------------------------------------------------------------------------------

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Commit, let the holders finish or give up, commit, and only then forget (3).

        Stock Faust forgets the acknowledgements first, so that its last commit has nothing to say.
        """
        self._leaving = True
        try:
            await self._commit_soon()
            self._active_partitions.difference_update(revoked)
            self._paused_partitions.difference_update(revoked)
            await self._on_partitions_revoked(revoked)
            await self._commit_soon()
            self._forget(revoked)
            for tp in revoked:
                self._gap.pop(tp, None)
                self._read_offset.pop(tp, None)
                self._committed_offset.pop(tp, None)
        finally:
            self._leaving = False
            self._revokes += 1

    async def wait_empty(self) -> None:
        """Wait until nothing is held any more, two thirds of the rebalance time-out at most, and commit (3).

        The holders are told to be done within one third. What is held after that is discarded: it is not committed,
        so it is delivered again.
        """
        started = time.monotonic()
        third = self.app.conf.broker_rebalance_timeout / 3
        for hook in self.on_drain:
            hook(started + third)
        await self._commit_soon()
        while self._held() and time.monotonic() < started + 2 * third:
            if self._unacked_messages:
                await self._wait_for_ack(timeout=1)
                self._clean_unacked_messages()
            else:
                await asyncio.sleep(_WAIT_POLL_S)
        if self._unacked_messages:
            log.warning("chunks discarded: their holder did not let go", extra={"chunks": len(self._unacked_messages)})
            self._unacked_messages.clear()
        await self._commit_soon()

    def _held(self) -> bool:
        return bool(self._unacked_messages) or any(unfinished() for unfinished in self.unfinished)

    async def _commit_soon(self) -> None:
        """Commit, unless the broker is away: then what was done is done again, and nobody waits for it here."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self.app.conf.broker_rebalance_timeout / 6):
                await self.commit(start_new_transaction=False)

    def pause_partitions(self, tps: Iterable[TP]) -> None:
        """As Faust does in a rebalance; refused while records flow (5).

        aiokafka skips what it has already fetched of a paused partition, and the next commit passes it: lost.
        """
        partitions = ensure_TPset(tps)
        if self.flow_active and not self.app.rebalancing and not all(map(self._is_changelog_tp, partitions)):
            raise RuntimeError("a flowing consumer must not be paused: records already fetched would be lost")
        super().pause_partitions(partitions)

    # -- what health and metrics look at -----------------------------------------------------------------------------

    def discard(self, message: Message) -> None:
        """Let go of a held message without acknowledging it: the broker delivers it again after a seek."""
        self._unacked_messages.discard(message)
        notify(self._waiting_for_ack)

    def frozen(self, now: float | None = None) -> list[TP]:
        """Partitions whose commits stand still: a chunk unacknowledged for long while later ones are done."""
        now = time.monotonic() if now is None else now
        return [
            tp
            for tp, order in self._order.items()
            if order
            and not order[0].acked
            and now - order[0].since > FROZEN_AFTER_S
            and any(entry.acked for entry in order)
        ]

    def committing_since(self) -> float | None:
        """When the commit that is under way began (`time.monotonic`), or None."""
        return self._committing_since

    def oldest_unstored_ms(self) -> int | None:
        """Record time (epoch, ms) of the oldest record handed out and not acknowledged, or None."""
        heads = (next((entry.first_ms for entry in order if not entry.acked), None) for order in self._order.values())
        return min((head for head in heads if head is not None), default=None)

    def committed(self) -> Mapping[TP, int | None]:
        """The offsets committed by this worker since its last assignment."""
        return dict(self._committed_offset)


class ChunkSchema(faust.Schema[Any, Any]):
    """Hands keys and values through as they are; decoding is the agent's, and a bad payload must not end a stream."""

    def loads_key(self, app: Any, message: Message, **_: Any) -> Any:
        """The record's key, untouched."""
        del app
        return message.key

    def loads_value(self, app: Any, message: Message, **_: Any) -> Any:
        """The message's value, untouched: a chunk."""
        del app
        return message.value


class Transport(stock.Transport):
    """Faust's aiokafka transport with the batch consumer; registered as `iotflow://`."""

    Consumer: ClassVar[type[Consumer]] = Consumer
    driver_version = f"iotflow batches over {stock.Transport.driver_version}"
