"""The decode stage's forwarder: what is acknowledged when, and what is let go, in time that passes by itself."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.decode import Forwarder, decode
from schemas import inputs, wire
from schemas.budget import Budget, Limits
from schemas.confluent import Schemas
from schemas.deadletter import Letter
from schemas.decoding import Decoder, Item
from schemas.partition import partition_of
from sinks.ceiling import Ceiling
from sinks.contracts import Breaker
from tests.lab.virtual import virtual

AT = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)
PARTITIONS = 4


# -- the fakes ---------------------------------------------------------------------------------------------------------

Fault = BaseException | type[BaseException] | None


class Sent:
    """A batch on its way, acknowledged after a while."""

    def __init__(self, producer: "Producer", partition: int, items: list[Item], takes: float) -> None:
        self.producer = producer
        self.partition = partition
        self.items = items
        self.takes = takes

    async def done(self) -> None:
        """Wait for the broker."""
        await self.producer.gate.wait()
        await asyncio.sleep(self.takes)
        if self.producer.loses is not None:
            raise self.producer.loses
        self.producer.acknowledged += self.items


class Producer:
    """Remembers what it was given by partition; is as slow, and fails, as it is told."""

    def __init__(self) -> None:
        self.logs: dict[int, list[Item]] = {}
        #: What went to the topics beside the decoded one.
        self.others: dict[str, dict[int, list[Item]]] = {}
        self.acknowledged: list[Item] = []
        self.gate = asyncio.Event()
        self.gate.set()
        #: How long queueing and acknowledging take, in turn; nothing said: no time.
        self.queueing: list[float] = []
        self.taking: list[float] = []
        self.fails: Fault = None
        self.loses: Fault = None

    async def send(self, topic: str, partitions: Mapping[int, list[Item]]) -> Sequence[Sent]:
        """Queue batches, one partition after the other."""
        logs = self.logs if topic == "decoded" else self.others.setdefault(topic, {})
        sent = []
        for partition, items in partitions.items():
            await asyncio.sleep(self.queueing.pop(0) if self.queueing else 0.0)
            if self.fails is not None:
                raise self.fails
            logs.setdefault(partition, []).extend(items)
            sent.append(Sent(self, partition, items, self.taking.pop(0) if self.taking else 0.0))
        return sent

    async def partitions(self, topic: str) -> int:
        """How many there really are."""
        return {"decoded": PARTITIONS, "quality": 3, "quarantine": 5}[topic]


class Letters:
    """The dead-letter topic."""

    def __init__(self) -> None:
        self.sent: list[Letter] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.fails: Fault = None

    async def send(self, letters: Sequence[Letter]) -> None:
        """Take letters once the gate is open."""
        if letters:
            await self.gate.wait()
            if self.fails is not None:
                raise self.fails
        self.sent += letters


class Telemetry:
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.chunks: list[tuple[int, int, int]] = []
        self.reasons: dict[str, int] = {}
        self.flags: dict[tuple[str, str], int] = {}
        self.ceilings: list[bool] = []
        self.stops: list[bool] = []
        self.budgets: list[tuple[dict[str, int], int, int]] = []

    def decoded(self, records: int, readings: int, rejected: int) -> None:
        """Keep."""
        self.chunks.append((records, readings, rejected))

    def dead(self, reason: str, letters: int, dialect: str = "") -> None:
        """Count."""
        assert dialect == "telemetry"
        self.reasons[reason] = self.reasons.get(reason, 0) + letters

    def flagged(self, dialect: str, flag: str, readings: int) -> None:
        """Count."""
        self.flags[dialect, flag] = self.flags.get((dialect, flag), 0) + readings

    def over_budget(self, by_excess: Mapping[str, int], withheld: int, devices: int) -> None:
        """Keep."""
        self.budgets.append((dict(by_excess), withheld, devices))

    def ceiling(self, tripped: bool) -> None:  # noqa: FBT001  a gauge's value
        """Keep."""
        self.ceilings.append(tripped)

    def stopped(self, stopped: bool) -> None:  # noqa: FBT001  a gauge's value
        """Keep."""
        self.stops.append(stopped)


@dataclass
class Record:
    """A raw record."""

    offset: int
    value: bytes
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    topic: str = "raw"
    partition: int = 0
    timestamp: int = 1_760_000_000_000


class Held:
    """A chunk in the forwarder's hands; what became of it is told to its bench."""

    def __init__(self, bench: "Bench", records: Sequence[Record], generation: int) -> None:
        self.bench = bench
        self.records = records
        self.generation = generation

    def ack(self) -> None:
        """All of it is safe."""
        self.bench.acked.append(self)

    def release(self) -> None:
        """Given up."""
        self.bench.released.append(self)


class Registry:
    """A registry of schemas, all of them JSON; answers while its gate is open."""

    def __init__(self) -> None:
        self.schemas = Schemas()
        self.gate = asyncio.Event()
        self.asked: list[set[int]] = []
        self.unknown: set[int] = set()
        self.fails: Fault = None

    async def fetch(self, wanted: set[int]) -> None:
        """Learn schemas."""
        self.asked.append(wanted)
        await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        for number in wanted - self.unknown:
            self.schemas.put(number, "JSON", "{}")


class Bench:
    """A forwarder with everything around it."""

    def __init__(
        self, ceiling: Ceiling | None = None, registry: "Registry | None" = None, budget: Budget | None = None
    ) -> None:
        self.producer = Producer()
        self.letters = Letters()
        self.telemetry = Telemetry()
        self.faults: list[BaseException] = []
        decoder = Decoder(
            inputs.parse({"topics": {"raw": {"body": "confluent"}}} if registry else None, {"raw": "telemetry"}),
            partitions=PARTITIONS,
            stage="decode",
            version="1",
            max_message_bytes=10_000,
            schemas=registry.schemas if registry else None,
            budget=budget,
        )
        self.forwarder = Forwarder(
            decoder,
            "decoded",
            self.producer,
            self.letters,
            self.telemetry,
            self.faults.append,
            ceiling=ceiling,
            fetch=registry.fetch if registry else None,
            quality="quality",
            quarantine="quarantine",
        )
        self.frame = b""
        self.put_in: list[Held] = []
        self.acked: list[Held] = []
        self.released: list[Held] = []
        self._offset = 0

    def chunk(self, *devices: str, generation: int = 1) -> Held:
        """A chunk with a record of each device; `bad` is one that cannot be decoded."""
        records = []
        for device in devices:
            said = {"device_id": device, "timestamp": AT, "temperature": 1.0, "humidity": 2.0, "battery": 3.0}
            value = b"\x00no" if device.startswith("bad") else self.frame + msgspec.json.encode(said)
            records.append(Record(self._offset, value, device.encode()))
            self._offset += 1
        held = Held(self, records, generation)
        self.put_in.append(held)
        return held

    async def put(self, *devices: str, generation: int = 1) -> Held:
        """Put a chunk."""
        held = self.chunk(*devices, generation=generation)
        await self.forwarder.put(held)
        return held

    def drain(self, seconds: float) -> None:
        """Begin to give up."""
        self.forwarder.drain(time.monotonic() + seconds)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Only errors are worth their time here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    yield
    logging.disable(level)


# -- acknowledging -----------------------------------------------------------------------------------------------------


@virtual
async def test_it_learns_how_many_partitions_there_are() -> None:
    """The topic's real count, not the one that was set."""
    bench = Bench()
    bench.forwarder.decoder.partitions = 99
    await bench.forwarder.start(bench.producer)
    assert bench.forwarder.decoder.partitions == PARTITIONS


@virtual
async def test_a_chunk_is_acked_when_the_broker_has_all_of_it() -> None:
    """Every batch and then the letters must be acknowledged; the slowest decides."""
    bench = Bench()
    bench.producer.taking = [1.0, 5.0, 2.0, 1.0]
    bench.letters.gate.clear()
    held = await bench.put(*(f"d{index}" for index in range(50)), "bad")
    await asyncio.sleep(20)
    assert len(bench.producer.logs) == PARTITIONS
    assert len(bench.producer.acknowledged) == 50
    assert bench.acked == bench.telemetry.chunks == []
    bench.letters.gate.set()
    await asyncio.sleep(1)
    assert bench.acked == [held]
    assert [dead.reason for dead in bench.letters.sent] == ["not_json"]
    assert bench.telemetry.chunks == [(51, 50, 1)]
    assert bench.telemetry.reasons == {"not_json": 1}
    assert (bench.released, bench.faults) == ([], [])


@virtual
async def test_letters_are_sent_when_the_readings_are_safe() -> None:
    """While the decoded topic does not answer, nothing is said of the bad ones either."""
    bench = Bench()
    bench.producer.gate.clear()
    await bench.put("d", "bad")
    await asyncio.sleep(100)
    assert bench.letters.sent == bench.acked == []
    bench.producer.gate.set()
    await asyncio.sleep(1)
    assert len(bench.letters.sent) == len(bench.acked) == 1


@given(
    chunks=st.lists(st.lists(st.sampled_from(["a", "b", "c", "d", "bad"]), max_size=8), max_size=8),
    queueing=st.lists(st.sampled_from([0.0, 0.1, 2.0]), max_size=12),
    taking=st.lists(st.sampled_from([0.0, 0.1, 2.0]), max_size=12),
)
@settings(deadline=None)
@virtual
async def test_order_holds_in_each_partition(
    chunks: list[list[str]], queueing: list[float], taking: list[float]
) -> None:
    """However long queueing and acknowledging take, a partition gets its records in the order of the raw ones."""
    bench = Bench()
    bench.producer.queueing, bench.producer.taking = [*queueing], [*taking]
    for chunk in chunks:
        await bench.put(*chunk)
    await asyncio.sleep(100)
    records = [record for held in bench.put_in for record in held.records]
    for partition in range(PARTITIONS):
        wanted = [
            b"raw/0/%d/0" % record.offset
            for record in records
            if record.key != b"bad" and partition_of((record.key or b"").decode(), PARTITIONS) == partition
        ]
        log = bench.producer.logs.get(partition, [])
        assert [dict(item.headers)["iotflow-src"] for item in log] == wanted
    assert len(bench.letters.sent) == sum(chunk.count("bad") for chunk in chunks)
    assert sorted(map(bench.put_in.index, bench.acked)) == list(range(len(chunks)))
    assert (bench.released, bench.faults) == ([], [])


@virtual
async def test_three_chunks_are_in_flight_at_most() -> None:
    """The fourth put waits until one is acknowledged."""
    bench = Bench()
    bench.producer.gate.clear()
    for _ in range(3):
        await bench.put("d")
    fourth = asyncio.create_task(bench.put("d"))
    await asyncio.sleep(100)
    assert not fourth.done()
    assert sum(map(len, bench.producer.logs.values())) == 3
    bench.producer.gate.set()
    await fourth
    await asyncio.sleep(1)
    assert bench.acked == bench.put_in


# -- failing -----------------------------------------------------------------------------------------------------------


def _fail(bench: Bench, where: str, error: Fault) -> None:
    match where:
        case "queueing":
            bench.producer.fails = error
        case "acknowledging":
            bench.producer.loses = error
        case "letters":
            bench.letters.fails = error
        case "decoding":
            bench.forwarder.decoder.outcomes = lambda _: 1 / 0  # type: ignore[method-assign,assignment,return-value]


@pytest.mark.parametrize("error", [OSError("gone"), asyncio.CancelledError()], ids=["error", "cancelled by the client"])
@pytest.mark.parametrize("where", ["queueing", "acknowledging", "letters", "decoding"])
@virtual
async def test_an_error_ends_the_process_and_acknowledges_nothing(where: str, error: Fault) -> None:
    """Nothing may vanish: it is told as a fault, once a chunk, and the chunk is let go."""
    bench = Bench()
    _fail(bench, where, error)
    for _ in range(5):
        await bench.put("d", "bad")
    await asyncio.sleep(1)
    assert len(bench.faults) == 5
    assert bench.acked == bench.telemetry.chunks == []
    assert bench.released == bench.put_in


# -- giving up ---------------------------------------------------------------------------------------------------------


@virtual
async def test_a_drain_finishes_what_it_can_and_lets_go_of_the_rest() -> None:
    """At the deadline, and with what is waiting its turn; nothing of it is acknowledged later."""
    bench = Bench()
    bench.producer.taking = [1.0, *[1e6] * 9]
    for _ in range(3):
        await bench.put("d")
    waiting = [asyncio.create_task(bench.put("d")) for _ in range(2)]
    bench.drain(5)
    await asyncio.sleep(4.9)
    assert bench.acked == bench.put_in[:1]
    assert bench.released == []
    await asyncio.sleep(0.2)
    await asyncio.gather(*waiting)
    assert set(bench.released) == set(bench.put_in[1:])
    await asyncio.sleep(1e7)
    assert len(bench.acked) == 1
    assert len(bench.released) == 4
    # What Kafka's client has queued would be sent some day: this process must not live to see it.
    assert ["partitions were taken away while Kafka did not answer"] == list(map(str, bench.faults))


@virtual
async def test_a_later_generation_ends_a_drain() -> None:
    """What is put after the release is let go until then."""
    bench = Bench()
    first = await bench.put("d")
    bench.drain(1)
    await asyncio.sleep(2)
    old = await bench.put("d")
    assert bench.released == [old]
    new = await bench.put("d", generation=2)
    stale = await bench.put("d", generation=1)
    await asyncio.sleep(100)
    assert bench.acked == [first, new]
    assert bench.released == [old, stale]


@virtual
async def test_drains_that_no_chunk_ended_do_not_hit_the_next_generation() -> None:
    """Two rebalances in a row with nothing to do between leave no deadline behind."""
    bench = Bench()
    bench.producer.taking = [20.0]
    bench.drain(10)
    bench.drain(12)
    held = await bench.put("d", generation=2)
    await asyncio.sleep(30)
    assert (bench.acked, bench.released) == ([held], [])


@virtual
async def test_a_chunk_that_is_let_go_before_it_begins_frees_its_place() -> None:
    """A release in the same turn of the loop as the put must not cost one of the three places for ever."""
    bench = Bench()
    for generation in range(1, 10):
        held = await bench.put("d", generation=generation)
        bench.forwarder._release()
        await asyncio.sleep(1)
        assert bench.released[-1] is held
    async with asyncio.timeout(10):
        for _ in range(3):
            await bench.put("d", generation=10)
    await asyncio.sleep(1)
    assert bench.acked == bench.put_in[-3:]
    assert len(bench.released) == 9


@virtual
async def test_a_put_that_is_cancelled_lets_go_of_its_chunk() -> None:
    """Nobody would ever settle it."""
    bench = Bench()
    bench.producer.gate.clear()
    for _ in range(3):
        await bench.put("d")
    waiting = asyncio.create_task(bench.put("d"))
    await asyncio.sleep(1)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert bench.released == bench.put_in[3:]
    bench.producer.gate.set()
    await asyncio.sleep(1)
    assert bench.acked == bench.put_in[:3]


# -- schemas -----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_chunk_waits_for_the_schemas_of_its_payloads() -> None:
    """Not ready while the registry is away, in order when it is back, and asked once for what is known then."""
    bench = Bench(registry=(registry := Registry()))
    bench.frame = b"\0\0\0\0\5"
    first = await bench.put("d", "e")
    bench.frame = b"\0\0\0\0\6"
    second = await bench.put("d")
    assert bench.forwarder.ready
    assert bench.forwarder.state is Breaker.CLOSED
    await asyncio.sleep(100)
    assert not bench.forwarder.ready
    assert bench.forwarder.state is Breaker.OPEN
    assert bench.producer.logs == {}
    assert bench.letters.sent == bench.acked == []
    registry.gate.set()
    await asyncio.sleep(1)
    assert bench.forwarder.ready
    assert bench.forwarder.state is Breaker.CLOSED
    assert bench.acked == [first, second]
    assert registry.asked == [{5}, {6}]
    bench.frame = b"\0\0\0\0\5"
    await bench.put("d")
    await asyncio.sleep(1)
    assert len(bench.acked) == 3
    assert len(registry.asked) == 2
    log = bench.producer.logs[partition_of("d", PARTITIONS)]
    sources = [dict(item.headers)["iotflow-src"] for item in log if item.key == b"d"]
    assert sources == [b"raw/0/0/0", b"raw/0/2/0", b"raw/0/3/0"]
    assert bench.letters.sent == []


@virtual
async def test_a_schema_that_the_registry_does_not_know_makes_letters() -> None:
    """Of its payloads alone; those without a frame are asked about by nobody."""
    bench = Bench(registry=(registry := Registry()))
    registry.gate.set()
    registry.unknown = {7}
    bench.frame = b"\0\0\0\0\7"
    await bench.put("d", "bad")
    bench.frame = b""
    await bench.put("d")
    bench.frame = b"\0\0\0\0\5"
    await bench.put("d")
    await asyncio.sleep(1)
    assert len(bench.acked) == 3
    assert [dead.reason for dead in bench.letters.sent] == ["unknown_schema", "undecodable", "undecodable"]
    assert registry.asked == [{7}, {5}]
    assert len(bench.producer.acknowledged) == 1


@virtual
async def test_a_drain_lets_go_of_what_waits_for_a_schema() -> None:
    """At once, with nothing queued at Kafka: that is no fault; the next generation waits and goes on."""
    bench = Bench(registry=(registry := Registry()))
    bench.frame = b"\0\0\0\0\5"
    for _ in range(3):
        await bench.put("d")
    await asyncio.sleep(1)
    bench.drain(1000)
    await asyncio.sleep(0.1)
    assert set(bench.released) == set(bench.put_in)
    assert bench.forwarder.ready
    held = await bench.put("d", generation=2)
    await asyncio.sleep(1)
    assert not bench.forwarder.ready
    registry.gate.set()
    await asyncio.sleep(1)
    assert bench.acked == [held]
    assert bench.faults == []


@virtual
async def test_a_drain_lets_what_was_sent_be_acknowledged_before_it_lets_go_of_what_waits_for_a_schema() -> None:
    """What is queued at Kafka has until the deadline, and no longer."""
    for takes, faults in ((5.0, 0), (50.0, 1)):
        bench = Bench(registry=Registry())
        bench.frame = b"\0\0\0\0\5"
        bench.forwarder.decoder._schemas.put(5, "JSON", "{}")  # type: ignore[union-attr]
        bench.producer.taking = [takes]
        sent = await bench.put("d")
        bench.frame = b"\0\0\0\0\6"
        waits = await bench.put("d")
        await asyncio.sleep(1)
        bench.drain(10)
        await asyncio.sleep(3.9)
        assert bench.acked == bench.released == []
        await asyncio.sleep(0.2)
        if not faults:
            assert (bench.acked, bench.released) == ([sent], [waits])
        await asyncio.sleep(6)
        assert set(bench.acked + bench.released) == {sent, waits}
        assert len(bench.faults) == faults


@virtual
async def test_a_schema_that_is_not_there_yet_does_not_trip_the_ceiling() -> None:
    """The devices are not at fault, and neither are we."""
    bench = Bench(Ceiling(window=10, devices=3), registry=(registry := Registry()))
    registry.gate.set()
    registry.unknown = {7}
    bench.frame = b"\0\0\0\0\7"
    await bench.put(*(f"d{index}" for index in range(20)))
    await asyncio.sleep(1)
    assert bench.telemetry.reasons == {"unknown_schema": 20}
    assert bench.forwarder.ready
    bench.frame = b"\0\xff\xff\xff\xff"
    await bench.put(*(f"d{index}" for index in range(20)))
    await asyncio.sleep(1)
    assert bench.telemetry.reasons == {"unknown_schema": 20, "undecodable": 20}
    assert not bench.forwarder.ready


@virtual
async def test_an_error_while_fetching_ends_the_process() -> None:
    """It is ours: an outage is waited for there."""
    bench = Bench(registry=(registry := Registry()))
    registry.gate.set()
    registry.fails = ValueError("ours")
    bench.frame = b"\0\0\0\0\5"
    held = await bench.put("d")
    await asyncio.sleep(1)
    assert bench.faults == [registry.fails]
    assert bench.released == [held]


@virtual
async def test_topics_without_frames_are_asked_about_by_nobody() -> None:
    """Whatever their payloads begin with."""
    bench = Bench(registry=(registry := Registry()))
    records = [Record(0, b"\0\0\0\0\5{}"), Record(1, b"\0\0\0\0\6{}", topic="other"), Record(2, b"")]
    assert bench.forwarder.decoder.wanted(records) == {5}
    assert Bench().forwarder.decoder.wanted(records) == set()
    assert registry.asked == []


# -- being asked -------------------------------------------------------------------------------------------------------


@virtual
async def test_what_is_stopped_decodes_nothing_until_it_is_resumed() -> None:
    """Not ready meanwhile; then it goes on where it was, in order."""
    bench = Bench()
    bench.forwarder.stop_intake()
    assert not bench.forwarder.ready
    held = [await bench.put("a"), await bench.put("b")]
    await asyncio.sleep(1000)
    assert bench.acked == []
    bench.forwarder.resume()
    await asyncio.sleep(1)
    assert bench.acked == held
    assert bench.forwarder.ready
    assert bench.telemetry.stops == [True, False]


@virtual
async def test_what_is_stopped_lets_go_at_once() -> None:
    """Nobody waits for what will not be decoded."""
    bench = Bench()
    bench.forwarder.stop_intake()
    held = await bench.put("a")
    bench.drain(1000)
    await asyncio.sleep(1)
    assert bench.released == [held]
    assert bench.faults == []


@virtual
async def test_a_ceiling_is_lifted_by_resume() -> None:
    """What was held goes on."""
    bench = Bench(Ceiling(window=10, devices=3))
    await bench.put(*(f"bad{index}" for index in range(10)))
    await asyncio.sleep(1)
    held = await bench.put("good")
    await asyncio.sleep(100)
    assert held not in bench.acked
    bench.forwarder.resume()
    await asyncio.sleep(1)
    assert held in bench.acked
    assert bench.telemetry.ceilings == [True, False]


@virtual
async def test_a_flush_returns_when_all_that_is_held_is_acknowledged() -> None:
    """The number of its records."""
    bench = Bench()
    bench.producer.gate.clear()
    await bench.put("a", "b")
    flush = asyncio.create_task(bench.forwarder.flush())
    await asyncio.sleep(100)
    assert not flush.done()
    bench.producer.gate.set()
    assert await flush == 2
    assert bench.acked == bench.put_in
    assert await bench.forwarder.flush() == 0


# -- the ceiling -------------------------------------------------------------------------------------------------------


@virtual
async def test_the_ceiling_stops_the_intake() -> None:
    """Not ready, nothing more is produced, and a drain lets go at once; the next generation waits too."""
    bench = Bench(Ceiling(window=10, devices=3))
    await bench.put(*(f"bad{index}" for index in range(10)))
    await asyncio.sleep(1)
    assert len(bench.acked) == 1
    assert not bench.forwarder.ready
    assert bench.telemetry.ceilings == [True]
    await bench.put("d")
    await bench.put("d")
    await asyncio.sleep(100)
    assert bench.producer.logs == {}
    bench.drain(1000)
    await asyncio.sleep(0.1)
    assert set(bench.released) == set(bench.put_in[1:])
    await bench.put("d", generation=2)
    await asyncio.sleep(100)
    assert bench.producer.logs == {}
    assert len(bench.acked) == 1
    bench.drain(0)
    await asyncio.sleep(0.1)


@virtual
async def test_one_bad_device_does_not_trip_the_ceiling() -> None:
    """However much it sends."""
    bench = Bench(Ceiling(window=10, devices=3))
    await bench.put(*["bad"] * 1000)
    await asyncio.sleep(1)
    assert bench.forwarder.ready
    assert bench.telemetry.reasons == {"not_json": 1000}


# -- the agent ---------------------------------------------------------------------------------------------------------


class Consumer:
    """Remembers which messages were let go."""

    def __init__(self) -> None:
        self.discarded: list[object] = []

    def discard(self, message: object) -> None:
        """Keep."""
        self.discarded.append(message)


class Stream:
    """A stream of events, as Faust gives it to an agent."""

    def __init__(self, events: Sequence[Any], generation: int) -> None:
        self.app = SimpleNamespace(consumer=Consumer(), consumer_generation_id=generation)
        self._events = events

    def noack(self) -> "Stream":
        """Events that are acknowledged by hand."""
        return self

    async def events(self) -> AsyncIterator[Any]:
        """All of them."""
        for event in self._events:
            yield event


@virtual
async def test_the_agent_forwards_its_generation_and_lets_go_of_others() -> None:
    """An event is acknowledged by hand; one of an earlier generation is discarded unread."""
    bench = Bench()
    acked: list[int] = []

    def event(generation: int) -> Any:
        message = SimpleNamespace(generation_id=generation)
        value = bench.chunk("d").records
        return SimpleNamespace(value=value, message=message, ack=lambda: acked.append(generation))

    events = [event(1), event(2), event(2)]
    stream = Stream(events, generation=2)
    await decode(bench.forwarder)(stream)
    await asyncio.sleep(1)
    assert acked == [2, 2]
    assert stream.app.consumer.discarded == [events[0].message]


# -- budgets -----------------------------------------------------------------------------------------------------------


@virtual
async def test_what_is_over_budget_is_safe_in_the_quarantine_before_its_chunk_is_acknowledged() -> None:
    """And so is the report of it; both stand in their devices' partitions, of which each topic has its own number."""
    bench = Bench(budget=Budget(Limits(burst=2), withholds=True))
    await bench.forwarder.start(bench.producer)
    bench.producer.gate.clear()
    held = await bench.put("a", "a", "a", "b", "a")
    await asyncio.sleep(1)
    assert bench.acked == []
    bench.producer.gate.set()
    await asyncio.sleep(1)
    assert bench.acked == [held]
    withheld = bench.producer.others["quarantine"]
    assert list(withheld) == [partition_of("a", 5)]
    assert [dict(item.headers)["iotflow-src"] for item in withheld[partition_of("a", 5)]] == [
        b"raw/0/2/0",
        b"raw/0/4/0",
    ]
    ((partition, (event,)),) = bench.producer.others["quality"].items()
    assert (partition, event.key, event.headers) == (partition_of("a", 3), b"a", [])
    assert wire.read(event.value).values["kind"] == "over_budget"
    assert sum(map(len, bench.producer.logs.values())) == 3
    assert bench.telemetry.chunks == [(5, 3, 0)]
    assert bench.telemetry.budgets == [({"rate": 2}, 2, 1)]


@virtual
@pytest.mark.parametrize("mode", ["report", "off"])
async def test_nothing_is_held_back_by_default(mode: str) -> None:
    """A noisy device is only reported; without a budget it is not even that."""
    bench = Bench(budget=Budget(Limits(burst=2)) if mode == "report" else None)
    await bench.forwarder.start(bench.producer)
    held = await bench.put("a", "a", "a", "b", "a")
    await asyncio.sleep(1)
    assert bench.acked == [held]
    assert sum(map(len, bench.producer.logs.values())) == 5
    assert set(bench.producer.others) == ({"quality"} if mode == "report" else set())
    assert bench.telemetry.budgets == ([({"rate": 2}, 0, 1)] if mode == "report" else [])


@virtual
@pytest.mark.parametrize("taking", [[0.0, 3.0], [0.0, 0.0, 3.0]])
async def test_a_chunk_waits_for_whichever_topic_is_slowest(taking: list[float]) -> None:
    """Decoded, quarantine, quality: all of it is acknowledged."""
    bench = Bench(budget=Budget(Limits(burst=1), withholds=True))
    await bench.forwarder.start(bench.producer)
    bench.producer.taking = taking
    held = await bench.put("a", "a")
    await asyncio.sleep(2)
    assert bench.acked == []
    await asyncio.sleep(2)
    assert bench.acked == [held]
    assert len(bench.producer.acknowledged) == 3
