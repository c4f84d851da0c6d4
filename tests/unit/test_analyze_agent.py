"""The analyze stage's agent: what is safe before what, and what is let go, in time that passes by itself."""

import asyncio
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from agents.analyze import Analyzer, Limits
from agents.decode import CannotWithdrawError
from schemas.decoding import Item
from tables.channel import header
from tests.lab.tally import Output, Silent, Tally
from tests.lab.virtual import virtual

TOPICS = {"alarms": "t-alarms", "aggregates": "t-aggregates"}


class Sent:
    """A batch on its way, acknowledged when its topic's gate is open."""

    def __init__(self, producer: "Producer", topic: str, items: list[Item]) -> None:
        self.producer = producer
        self.topic = topic
        self.items = items
        self.last_offset = 0

    async def done(self) -> None:
        """Wait for the broker."""
        await self.producer.gate(self.topic).wait()
        if self.producer.refuses is not None:
            raise self.producer.refuses
        self.producer.events += [f"acknowledged {self.topic}"]
        self.producer.logs.setdefault(self.topic, []).extend(self.items)


class Producer:
    """A broker that acknowledges where and when it is let."""

    def __init__(self, events: list[str]) -> None:
        self.events = events
        self.logs: dict[str, list[Item]] = {}
        self.counts: dict[str, int] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.refuses: Exception | None = None

    def gate(self, topic: str) -> asyncio.Event:
        """Open unless it was closed."""
        if topic not in self.gates:
            self.gates[topic] = asyncio.Event()
            self.gates[topic].set()
        return self.gates[topic]

    async def send(self, topic: str, partitions: Mapping[int, list[Item]]) -> Sequence[Sent]:
        """Queue."""
        self.events.append(f"sent {topic}")
        return [Sent(self, topic, items) for items in partitions.values()]

    async def partitions(self, topic: str) -> int:
        """As many as was said, else two."""
        return self.counts.get(topic, 2)


class Table:
    """A table that is a dict; writing it goes over the broker."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.changelog = f"t-{name}"
        self.events = events
        self.entries: dict[int, dict[bytes, bytes]] = {}
        self.anew: list[bool] = []

    def load(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """All of a partition."""
        yield from list(self.entries.get(partition, {}).items())

    def get(self, partition: int, key: bytes) -> bytes | None:
        """One."""
        return self.entries.get(partition, {}).get(key)

    async def write(
        self, partition: int, items: Sequence[tuple[bytes, bytes | None]], producer: Any, *, anew: bool = False
    ) -> None:
        """Write once acknowledged."""
        if not items:
            return
        for sent in await producer.send(self.changelog, {partition: [Item(*item, []) for item in items]}):
            await sent.done()
        self.anew.append(anew)
        self.entries.setdefault(partition, {}).update({key: value for key, value in items if value is not None})


@dataclass
class Record:
    """A number of a key."""

    offset: int
    value: bytes
    key: bytes = b"a"
    partition: int = 0


class Held:
    """A chunk; what becomes of it is an event."""

    def __init__(self, bench: "Bench", records: list[Record], generation: int) -> None:
        self.bench = bench
        self.records: Any = records
        self.generation = generation
        self.first = records[0].offset

    def ack(self) -> None:
        """Safe."""
        self.bench.events.append("acked")
        self.bench.acked.append(self.first)

    def release(self) -> None:
        """Given up."""
        self.bench.released.append(self.first)

    def shed(self) -> None:
        """Not needed."""
        self.records = []


class Bench(Silent):
    """An analyzer with everything around it, and the source that it reads."""

    def __init__(self, **limits: Any) -> None:
        self.events: list[str] = []
        self.acked: list[int] = []
        self.released: list[int] = []
        self.faults: list[BaseException] = []
        self.stops: list[bool] = []
        self.made: list[Tally] = []
        self.read = True
        self.log_end = 1_000_000
        self.producer = Producer(self.events)
        self.tables = {name: Table(name, self.events) for name in ("state", "windows")}
        self.analyzer = Analyzer(
            self.tables,
            "decoded",
            lambda _: self._make,
            TOPICS,
            self,
            self.faults.append,
            limits=Limits(**{"every": 5.0, "age": 0.0, **limits}),
            clock=lambda: asyncio.get_running_loop().time(),
            at=lambda step: self.events.append(f"at {step}"),
        )

    def _make(self, number: int, load: Any) -> Tally:
        self.made.append(Tally(number, load))
        return self.made[-1]

    def stopped(self, stopped: bool) -> None:  # noqa: FBT001  a gauge's value
        """Told."""
        self.stops.append(stopped)

    def caught_up(self, partition: int) -> bool:
        """As said."""
        del partition
        return self.read

    async def ends(self, partitions: Collection[int]) -> Mapping[int, int]:
        """As said."""
        return dict.fromkeys(partitions, self.log_end)

    async def __aenter__(self) -> "Bench":
        await self.analyzer.start(self.producer)
        self._running = asyncio.create_task(self.analyzer.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._running.cancel()
        await asyncio.wait({self._running})

    async def begin(self, generation: int = 1, partitions: Sequence[int] = (0, 1)) -> None:
        """Give partitions, and wait until a first checkpoint was made of them."""
        self.analyzer.begin(generation, partitions, self)
        await asyncio.sleep(0.1)
        self.events.clear()

    def chunk(self, first: int, *values: int, generation: int = 1, key: bytes = b"a", partition: int = 0) -> Held:
        """Numbers at consecutive offsets."""
        records = [Record(first + place, b"%d" % value, key, partition) for place, value in enumerate(values)]
        return Held(self, records, generation)

    async def put(self, first: int, *values: int, **more: Any) -> None:
        """Numbers, handed over."""
        await self.analyzer.put(self.chunk(first, *values, **more))

    def steps(self, *wanted: str) -> list[str]:
        """The events among these, in order."""
        return [event for event in self.events if event in wanted]


TEN = range(1, 11)


@virtual
async def test_each_step_of_a_checkpoint_is_safe_before_the_next_begins() -> None:
    """Outputs of the fold, states, closed windows, the other table, acks: nothing overtakes."""
    async with Bench() as bench:
        await bench.begin()
        await bench.put(0, *TEN, -1)
        await asyncio.sleep(6)
        assert bench.events == [
            "at folded", "sent t-alarms", "acknowledged t-alarms",
            "at outputs", "sent t-state", "acknowledged t-state",
            "at state", "sent t-aggregates", "acknowledged t-aggregates",
            "at emitted", "sent t-windows", "acknowledged t-windows",
            "at side", "acked", "at acked",
        ]  # fmt: skip
        assert bench.tables["windows"].entries == {0: {b"a/1": b"55"}}
        assert [0] == bench.acked
        assert not bench.faults


@pytest.mark.parametrize("away", ["t-alarms", "t-state", "t-aggregates", "t-windows"])
def test_nothing_is_acknowledged_while_a_step_waits(away: str) -> None:
    """Whatever topic does not answer, the chunk is held, and no later topic is written."""

    @virtual
    async def run() -> None:
        topics = ["t-alarms", "t-state", "t-aggregates", "t-windows"]
        async with Bench() as bench:
            await bench.begin()
            bench.producer.gate(away).clear()
            await bench.put(0, *TEN, -1)
            await asyncio.sleep(60)
            assert not bench.acked
            assert set(topics[: topics.index(away)]) == set(bench.producer.logs)
            bench.producer.gate(away).set()
            await asyncio.sleep(6)
            assert [0] == bench.acked

    run()


@virtual
async def test_what_is_found_is_sent_at_once_and_folding_goes_on_while_a_checkpoint_waits() -> None:
    """An alarm does not wait for a checkpoint, nor behind closed windows that the broker does not take."""
    async with Bench() as bench:
        await bench.begin()
        bench.producer.gate("t-aggregates").clear()
        await bench.put(0, *TEN)
        await asyncio.sleep(6)
        began = asyncio.get_running_loop().time()
        await bench.put(10, -5)
        for _ in range(10):  # turns of the loop, none of which takes time
            await asyncio.sleep(0)
        assert "t-alarms" in bench.producer.logs
        assert asyncio.get_running_loop().time() == began
        assert 2 == bench.events.count("at folded")
        bench.producer.gate("t-aggregates").set()
        await asyncio.sleep(12)
        assert [0, 10] == bench.acked


@virtual
async def test_a_checkpoint_comes_early_when_much_waits_and_folding_stops_when_too_much_does() -> None:
    """Bounds hold though the records are shed."""
    async with Bench(every=3600.0, chunks=2, most_chunks=3) as bench:
        await bench.begin()
        bench.producer.gate("t-state").clear()
        for first in range(3):
            await bench.put(first, 1)
        waiting = asyncio.create_task(bench.put(3, 1))
        await asyncio.sleep(10)
        assert not waiting.done()
        assert 3 == bench.events.count("at folded")
        bench.producer.gate("t-state").set()
        await waiting
        await asyncio.sleep(1)
        assert [0, 1] == bench.acked[:2]
        assert 4 == bench.events.count("at folded")


@virtual
async def test_many_records_in_few_chunks_count_too() -> None:
    """All of them are made safe then, however young their states are."""
    async with Bench(every=3600.0, age=3600.0, records=3) as bench:
        await bench.begin()
        await bench.put(0, 1)
        await asyncio.sleep(1)
        assert not bench.acked
        await bench.put(1, 1, 1, key=b"b")
        await asyncio.sleep(1)
        assert [0, 1] == bench.acked


@virtual
async def test_a_checkpoint_comes_early_when_many_states_have_something_to_say() -> None:
    """They keep it until then, and windows of all devices close in the same second."""
    async with Bench(every=3600.0, unsaid=2) as bench:
        await bench.begin()
        await bench.put(0, *TEN)
        await asyncio.sleep(1)
        assert not bench.acked
        await bench.put(10, *TEN, key=b"b")
        await asyncio.sleep(1)
        assert [0, 10] == bench.acked
        assert 2 == len(bench.producer.logs["t-aggregates"])


@virtual
async def test_a_state_is_kept_when_it_has_something_to_say_or_is_of_age() -> None:
    """A key that has a value each second is not written each time; chunks are acknowledged up to the oldest change."""
    async with Bench(age=20.0) as bench:
        await bench.begin()
        written = bench.tables["state"].entries
        for second in range(29):
            if second < 10:
                await bench.put(second, 1)
            await bench.put(100 + second, 1, key=b"slow%d" % second, partition=1)
            await asyncio.sleep(1)
            if second == 8:
                assert not written
            if second == 12:
                assert list(written) == [0], "the tenth closes a window"
                assert bench.acked == list(range(10))
        assert len(written[1]) == 5, "those of more than 20 s ago at the last checkpoint"
        assert bench.acked[10:] == [100 + second for second in range(5)]


@virtual
async def test_what_has_come_to_rest_is_kept_at_once() -> None:
    """Nothing came since the checkpoint before: there is no reason to wait for more."""
    async with Bench(age=3600.0) as bench:
        await bench.begin()
        await bench.put(0, 1)
        await asyncio.sleep(5)
        assert not bench.acked
        await asyncio.sleep(5)
        assert bench.acked == [0]


@virtual
async def test_last_values_are_said_at_each_checkpoint_of_a_partition_that_is_read_to_its_end() -> None:
    """Though no state is kept for that; what lags behind has others to come first."""
    async with Bench(age=3600.0) as bench:
        bench.read = False
        await bench.begin()
        bench.made[0].news = [Output("alarms", "a", b"news", b"1")]
        await bench.put(0, 1)
        await asyncio.sleep(6)
        assert not bench.producer.logs
        bench.read = True
        await asyncio.sleep(6)
        assert [item.key for item in bench.producer.logs["t-alarms"]] == [b"news"]
        bench.made[0].news = [Output("alarms", "a", b"news", b"2")]
        bench.analyzer.drain(time.monotonic() + 20)
        await asyncio.sleep(1)
        assert 1 == len(bench.producer.logs["t-alarms"]), "the state has it, for the next owner"
        assert not bench.faults


@virtual
async def test_last_values_that_come_while_others_are_said_wait_for_the_next_checkpoint() -> None:
    """Or a checkpoint of a busy partition would never end."""
    async with Bench() as bench:
        await bench.begin()
        said: list[int] = []

        def endless(most: int) -> list[Output]:
            said.append(most)
            return [Output("alarms", "a", b"news", b"1")] * most

        bench.made[0].news = [Output("alarms", "a", b"news", b"1")] * 1200
        bench.made[0].latest = endless  # type: ignore[method-assign]
        await asyncio.sleep(6)
        assert said == [250, 250, 250, 250, 200]


@virtual
async def test_what_is_folded_while_all_is_kept_does_not_ask_for_all_again() -> None:
    """The limit is still exceeded then, until the chunks are acknowledged."""
    async with Bench(every=3600.0, age=3600.0, records=10) as bench:
        await bench.begin()
        bench.producer.gate("t-state").clear()
        await bench.put(0, *[0] * 9)
        await bench.put(9, 0, key=b"b")
        await asyncio.sleep(1)
        await bench.put(10, 0, key=b"c")
        bench.producer.gate("t-state").set()
        await asyncio.sleep(60)
        assert bench.acked == [0, 9]
        assert bench.tables["state"].entries[0].keys() == {b"a", b"b"}


@virtual
async def test_what_the_clock_closes_is_said_early_too_when_it_is_much() -> None:
    """Channels that fell silent together have their windows closed together."""
    async with Bench(every=3600.0, unsaid=1) as bench:
        await bench.begin()
        part = bench.made[0]
        part.fold([Record(0, b"1")], 0)
        part.sums[b"a"].pending.append((1, 1))
        await asyncio.sleep(2)
        assert len(bench.producer.logs["t-aggregates"]) == 1


@virtual
async def test_a_drain_makes_one_last_checkpoint_and_takes_no_more() -> None:
    """Also when the next would be an hour away and no chunk comes."""
    async with Bench(every=3600.0) as bench:
        await bench.begin()
        await bench.put(0, *TEN)
        bench.analyzer.drain(time.monotonic() + 20)
        assert bench.analyzer.busy
        await bench.put(10, 1)
        await asyncio.sleep(1)
        assert not bench.analyzer.busy
        assert [0] == bench.acked
        assert [10] == bench.released
        await bench.put(11, 1)
        assert [10, 11] == bench.released
        assert not bench.faults


@virtual
async def test_a_drain_leaves_nothing_to_be_sent_again() -> None:
    """The state that is kept last does not have the windows that were sent."""
    async with Bench(every=3600.0) as bench:
        await bench.begin()
        await bench.put(0, *TEN)
        bench.analyzer.drain(time.monotonic() + 20)
        await asyncio.sleep(1)
        assert 1 == len(bench.producer.logs["t-aggregates"])
        await bench.begin(2)
        assert not bench.made[2].sums[b"a"].pending
        assert 1 == len(bench.producer.logs["t-aggregates"])


@virtual
async def test_past_the_deadline_what_kafka_may_still_send_ends_the_process() -> None:
    """And what it was not given is just let go."""
    async with Bench() as bench:
        await bench.begin()
        bench.producer.gate("t-state").clear()
        await bench.put(0, 1)
        await asyncio.sleep(6)
        bench.analyzer.drain(time.monotonic() + 5)
        await asyncio.sleep(4)
        assert not bench.faults
        await asyncio.sleep(2)
        assert [CannotWithdrawError] == [type(fault) for fault in bench.faults]
        assert [0] == bench.released
        bench.producer.gate("t-state").set()
        await asyncio.sleep(30)
        assert not bench.acked


@virtual
async def test_a_new_generation_begins_from_the_tables() -> None:
    """What was folded and not kept is forgotten, on partitions without records too, and stale chunks are let go."""
    async with Bench(every=3600.0) as bench:
        await bench.begin()
        await bench.put(0, 1, 2)
        bench.analyzer.drain(time.monotonic() + 20)
        await asyncio.sleep(1)
        await bench.begin(2)
        assert 4 == len(bench.made)
        assert 3 == bench.made[2].sums[b"a"].total
        await bench.put(2, 5, generation=1)
        assert [2] == bench.released
        await bench.put(2, 5, generation=2)
        assert 8 == bench.made[2].sums[b"a"].total
        assert 3 == bench.made[0].sums[b"a"].total


@virtual
async def test_a_chunk_waits_until_the_state_is_read() -> None:
    """Where the log ends is asked first, and may take long to learn."""
    async with Bench() as bench:
        asked = asyncio.Event()

        async def ends(partitions: Collection[int]) -> Mapping[int, int]:
            await asked.wait()
            return dict.fromkeys(partitions, 100)

        bench.ends = ends  # type: ignore[method-assign]
        bench.analyzer.begin(1, [0], bench)
        waiting = asyncio.create_task(bench.put(0, 1))
        await asyncio.sleep(30)
        assert not waiting.done()
        assert not bench.made
        asked.set()
        await waiting
        assert 1 == bench.made[0].sums[b"a"].total


@virtual
async def test_what_is_pending_in_a_state_is_sent_by_the_next_owner() -> None:
    """Word for word, though no record comes."""
    async with Bench() as bench:
        await bench.begin()
        bench.producer.gate("t-aggregates").clear()
        await bench.put(0, *TEN)
        await asyncio.sleep(6)
        bench.analyzer.drain(time.monotonic())
        await asyncio.sleep(1)
        assert not bench.acked
        bench.producer.gate("t-aggregates").set()
        await bench.begin(2)
        await asyncio.sleep(1)
        assert {(b"a/1", b"55")} == {(item.key, item.value) for item in bench.producer.logs["t-aggregates"]}
        await asyncio.sleep(12)
        assert not bench.made[-2].sums[b"a"].pending
        logged = bench.producer.logs["t-aggregates"]
        await asyncio.sleep(60)
        assert logged == bench.producer.logs["t-aggregates"]


@virtual
async def test_a_topic_that_was_made_anew_is_said_to_the_table_once() -> None:
    """So that its low positions win over the high ones of the old."""
    async with Bench() as bench:
        await bench.begin()
        await bench.put(500, 1)
        await asyncio.sleep(6)
        bench.analyzer.drain(time.monotonic() + 20)
        await asyncio.sleep(1)
        bench.log_end = 10
        await bench.begin(2)
        for first in range(2):
            await bench.put(first, 1, generation=2)
            await asyncio.sleep(6)
        assert 3 == bench.made[2].sums[b"a"].total
        assert [False, True, False, False] == bench.tables["state"].anew


@virtual
async def test_all_states_of_a_topic_that_was_made_anew_are_written_at_once() -> None:
    """However young they are, and though records come before the first checkpoint: later ones are not said to win."""
    async with Bench() as bench:
        await bench.begin()
        for key in (b"a", b"b", b"c"):
            await bench.put(500 + ord(key), 1, key=key)
        await asyncio.sleep(6)
        bench.analyzer.drain(time.monotonic() + 20)
        await asyncio.sleep(1)
        states = bench.tables["state"]
        states.anew.clear()
        bench.log_end = 10
        bench.analyzer._limits = Limits(every=5.0, age=3600.0)
        bench.analyzer.begin(2, [0], bench)
        await bench.put(0, 1, generation=2)
        await bench.put(1, 1, generation=2)
        await asyncio.sleep(1)
        assert [True] == states.anew
        assert all(value.startswith(header(2, 0)[:9]) for value in states.entries[0].values())


@virtual
async def test_partitions_look_at_the_clock_only_when_all_was_read() -> None:
    """A backlog must not be closed by the wall's clock; nor what stands still because somebody stopped it."""
    async with Bench() as bench:
        bench.read = False
        await bench.begin()
        await asyncio.sleep(10)
        assert [0, 0] == [part.expired for part in bench.made]
        bench.read = True
        await asyncio.sleep(10)
        assert all(part.expired >= 9 for part in bench.made)
        seen = [part.expired for part in bench.made]
        bench.analyzer.stop_intake()
        await asyncio.sleep(10)
        assert seen == [part.expired for part in bench.made]


@virtual
async def test_intake_stops_and_goes_on_and_what_is_held_is_made_safe() -> None:
    """As a command asks."""
    async with Bench() as bench:
        await bench.begin()
        await bench.put(0, 1)
        bench.analyzer.stop_intake()
        assert not bench.analyzer.ready
        waiting = asyncio.create_task(bench.put(1, 1))
        await asyncio.sleep(10)
        assert not waiting.done()
        assert [0] == bench.acked
        bench.analyzer.resume()
        await waiting
        assert bench.analyzer.ready
        assert [True, False] == bench.stops


@virtual
async def test_a_chunk_that_waits_is_let_go_at_a_drain_and_when_its_agent_ends() -> None:
    """Nobody waits for a worker whose intake was stopped."""
    async with Bench() as bench:
        await bench.begin()
        bench.analyzer.stop_intake()
        waiting = [asyncio.create_task(bench.put(first, 1)) for first in range(2)]
        await asyncio.sleep(1)
        waiting[0].cancel()
        await asyncio.sleep(0)
        bench.analyzer.drain(time.monotonic() + 20)
        await asyncio.sleep(1)
        assert [0, 1] == bench.released
        assert not bench.analyzer.busy


@virtual
async def test_a_flush_says_how_much_it_made_safe() -> None:
    """All that was held when it was asked for, though a checkpoint is under way."""
    async with Bench(every=3600.0) as bench:
        await bench.begin()
        await bench.put(0, 1, 2)
        assert 2 == await bench.analyzer.flush()
        assert [0] == bench.acked
        bench.producer.gate("t-state").clear()
        await bench.put(2, 1)
        first = asyncio.create_task(bench.analyzer.flush())
        await asyncio.sleep(1)
        await bench.put(3, 1, 1)
        second = asyncio.create_task(bench.analyzer.flush())
        await asyncio.sleep(1)
        bench.producer.gate("t-state").set()
        assert [1, 3] == [await first, await second]
        assert [0, 2, 3] == bench.acked
        assert 0 == await bench.analyzer.flush()


@virtual
async def test_a_flush_ends_when_the_partitions_are_taken_away() -> None:
    """What it waits for was let go."""
    async with Bench(every=3600.0) as bench:
        await bench.begin()
        bench.producer.gate("t-state").clear()
        await bench.put(0, 1)
        flushing = asyncio.create_task(bench.analyzer.flush())
        await asyncio.sleep(1)
        bench.analyzer.drain(time.monotonic())
        assert 1 == await flushing


@virtual
async def test_a_chunk_that_cannot_be_folded_is_never_acknowledged() -> None:
    """Not even if the process should live on, as one that is stopping does."""
    async with Bench() as bench:
        await bench.begin()
        await bench.put(0, 1)
        held = bench.chunk(1, 1)
        held.records[0].value = b"no number"
        await bench.analyzer.put(held)
        assert [ValueError] == [type(fault) for fault in bench.faults]
        await asyncio.sleep(30)
        assert not bench.acked
        assert [0, 1] == bench.released


@virtual
async def test_what_the_broker_refuses_is_a_fault() -> None:
    """Nothing is acknowledged for it."""
    async with Bench() as bench:
        await bench.begin()
        bench.producer.refuses = RuntimeError("too large")
        await bench.put(0, -1)
        await asyncio.sleep(30)
        assert [bench.producer.refuses] == bench.faults
        assert not bench.acked


@virtual
async def test_changelogs_must_have_the_partitions_of_the_topic() -> None:
    """Else a key's state and its records would part."""
    bench = Bench()
    bench.producer.counts["t-windows"] = 3
    await bench.analyzer.start(bench.producer)
    assert ["t-windows must have as many partitions as decoded (2): see iotflow topics plan"] == [
        str(fault) for fault in bench.faults
    ]
