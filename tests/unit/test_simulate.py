"""The load of simulated fleets on a broker in memory."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from app import ledger, simulate
from app.fleet import Disorder, Fleet
from app.simulate import Plan, Summary
from schemas.partition import partition_of
from schemas.reading import Rejected
from tests.lab import speech

NOW_MS = time.time_ns() // 1_000_000


class Batch:
    """A batch builder that holds a few records."""

    def __init__(self, room: int) -> None:
        self.records: list[tuple[bytes, bytes, Any]] = []
        self._room = room

    def append(self, *, timestamp: int, key: bytes, value: bytes, headers: Any) -> object | None:
        if len(self.records) >= self._room:
            return None
        assert abs(timestamp - time.time() * 1000) < 60_000
        self.records.append((key, value, headers))
        return object()


class Broker:
    """What `simulate.run` needs of a producer, with a log for each partition of each topic in memory.

    `raising` are exceptions for the next hand-overs, `failing` is one for every batch.
    """

    def __init__(self, partitions: int = 3, room: int = 10) -> None:
        self.topics: dict[str, list[list[tuple[bytes, bytes, Any]]]] = {
            "raw": [[] for _ in range(partitions)],
            "fire": [[] for _ in range(partitions - 1)],
        }
        self.raising: list[BaseException] = []
        self.failing: BaseException | None = None
        self.away = False
        self.stopped = False
        self.args: Mapping[str, Any] = {}
        self._room = room

    def __call__(self, **args: Any) -> "Broker":
        self.args = args
        return self

    async def start(self) -> None:
        """Nothing to connect to."""

    async def stop(self) -> None:
        self.stopped = True

    async def partitions_for(self, topic: str) -> set[int]:
        if topic == "nowhere":
            await asyncio.sleep(3600)
        return set(range(len(self.topics[topic])))

    def create_batch(self) -> Batch:
        return Batch(self._room)

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> "asyncio.Future[Any]":
        await asyncio.sleep(0)
        if self.raising:
            raise self.raising.pop()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.failing is not None:
            future.set_exception(self.failing)
        elif not self.away:
            log = self.topics[topic][partition]
            future.set_result(Place(len(log)))
            log.extend(batch.records)
        return future

    @property
    def total(self) -> int:
        return sum(len(log) for logs in self.topics.values() for log in logs)


class Place:
    """What the broker says of a batch."""

    def __init__(self, offset: int) -> None:
        self.offset = offset


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    found = Broker()
    monkeypatch.setattr(simulate, "AIOKafkaProducer", found)
    monkeypatch.setattr(simulate, "steady", lambda _: None)
    return found


async def run(fleet: Fleet, plan: Plan, **more: Any) -> Summary:
    (summary,) = await simulate.run([(fleet, plan)], {"a": 1}, **more)
    return summary


async def test_a_run_sends_the_count_and_writes_down_where_each_is(broker: Broker, tmp_path: Any) -> None:
    path = tmp_path / "ledger.jsonl"
    seen = []
    with ledger.Ledger(path) as book:
        fleet = Fleet(20, "telemetry", 1, bad_share=0.1)
        summary = await run(fleet, Plan("raw", count=2_500), book=book, on_sent=seen.append)
    assert broker.args["enable_idempotence"] is True
    assert broker.args["a"] == 1
    assert broker.stopped
    assert broker.total == summary.sent == sum(seen) == 2_500
    assert summary.good + summary.bad == 2_500
    assert summary.bad > 150
    assert summary.unacknowledged == 0
    entries = list(ledger.read(path))
    assert len(entries) == 2_500
    assert len({(entry.partition, entry.offset) for entry in entries}) == 2_500
    for entry in entries:
        assert entry.topic == "raw"
        key, payload, headers = broker.topics["raw"][entry.partition][entry.offset]
        assert headers == [("iotflow-dialect", b"telemetry")]
        assert partition_of(key.decode(), 3) == entry.partition
        (outcome,) = speech.decode("telemetry", payload, received_ms=NOW_MS)
        if isinstance(entry, ledger.Good):
            assert outcome == entry.reading
        else:
            assert isinstance(outcome, Rejected)
            assert outcome.reason == entry.why
            assert entry.payload_b64 == payload


async def test_a_run_keeps_its_pace_and_ends_on_time(broker: Broker) -> None:
    summary = await run(Fleet(5, "telemetry", 1), Plan("raw", rate=2_000, seconds=0.5))
    assert 0.45 <= summary.seconds < 2
    assert 500 <= summary.sent <= 2_000 * summary.seconds


async def test_a_stop_ends_a_run_without_an_end(broker: Broker) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, stop.set)
    summary = await run(Fleet(5, "telemetry", 1), Plan("raw", rate=1_000), stop=stop)
    assert summary.sent == broker.total > 0
    assert summary.unacknowledged == 0


async def test_an_outage_is_waited_for(broker: Broker) -> None:
    broker.raising = [KafkaTimeoutError(), KafkaTimeoutError()]
    summary = await run(Fleet(5, "telemetry", 1), Plan("raw", count=100))
    assert summary.sent == broker.total == 100


@pytest.mark.parametrize("late", [False, True], ids=["at the hand-over", "at the broker"])
async def test_a_refusal_ends_the_run(broker: Broker, late: bool) -> None:  # noqa: FBT001  a parameter of the test
    if late:
        broker.failing = MessageSizeTooLargeError()
    else:
        broker.raising = [MessageSizeTooLargeError()]
    with pytest.raises(MessageSizeTooLargeError):
        await run(Fleet(5, "telemetry", 1), Plan("raw"))
    assert broker.stopped


async def test_a_topic_that_does_not_exist_is_named(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "_TOPIC_SECONDS", 0.01)
    with pytest.raises(simulate.NoTopicError, match="no topic 'nowhere'"):
        await run(Fleet(5, "telemetry", 1), Plan("nowhere"))
    assert broker.stopped


async def test_what_was_not_acknowledged_is_not_written_down(broker: Broker, tmp_path: Any) -> None:
    broker.away = True
    path = tmp_path / "ledger.jsonl"
    with ledger.Ledger(path) as book:
        plan = Plan("raw", count=10, patience=0.05)
        summary = await run(Fleet(5, "telemetry", 1), plan, book=book)
    assert summary.sent == 0
    assert summary.unacknowledged == 10
    assert not list(ledger.read(path))


async def test_a_run_ends_on_time_while_the_broker_is_away(broker: Broker) -> None:
    broker.raising = [KafkaTimeoutError()] * 1_000_000
    summary = await run(Fleet(5, "telemetry", 1), Plan("raw", seconds=0.2, patience=0.05))
    assert summary.sent == 0
    assert summary.seconds < 5


async def test_fleets_send_at_once_each_to_its_topic(broker: Broker, tmp_path: Any) -> None:
    path = tmp_path / "ledger.jsonl"
    fleets = [
        (Fleet(20, "telemetry", 1, bad_share=0.1), Plan("raw", rate=4_000, seconds=0.5)),
        (Fleet(5, "fire", 2, bad_share=0.1, prefix="hall"), Plan("fire", rate=1_000, seconds=0.5)),
    ]
    with ledger.Ledger(path) as book:
        telemetry, fire = await simulate.run(fleets, {}, book=book)
    assert telemetry.sent == sum(map(len, broker.topics["raw"]))
    assert fire.sent == sum(map(len, broker.topics["fire"]))
    assert telemetry.sent == pytest.approx(4 * fire.sent, rel=0.2)
    assert telemetry.seconds + fire.seconds < 2
    places = {(entry.topic, entry.partition, entry.offset) for entry in ledger.read(path)}
    assert len(places) == telemetry.sent + fire.sent
    for topic, dialect in (("raw", "telemetry"), ("fire", "fire")):
        for entry in ledger.read(path, topic):
            key, payload, headers = broker.topics[topic][entry.partition][entry.offset]
            assert headers == [("iotflow-dialect", dialect.encode())]
            (outcome,) = speech.decode(dialect, payload, received_ms=NOW_MS)
            if isinstance(entry, ledger.Good):
                assert outcome == entry.reading
                assert entry.reading.device_id == key.decode()


async def test_two_fleets_may_share_a_topic(broker: Broker) -> None:
    fleets = [
        (Fleet(3, "telemetry", 1), Plan("raw", count=300)),
        (Fleet(3, "fire", 1, prefix="hall"), Plan("raw", count=100)),
    ]
    assert [summary.sent for summary in await simulate.run(fleets, {})] == [300, 100]
    assert broker.total == 400


async def test_a_refusal_of_one_fleet_ends_all(broker: Broker) -> None:
    broker.raising = [MessageSizeTooLargeError()]
    fleets = [
        (Fleet(3, "telemetry", 1), Plan("raw", rate=100)),
        (Fleet(3, "fire", 1, prefix="hall"), Plan("fire", rate=100)),
    ]
    async with asyncio.timeout(10):
        with pytest.raises(MessageSizeTooLargeError):
            await simulate.run(fleets, {})
    assert broker.stopped


async def test_disorder_is_counted_and_written_down_as_good(broker: Broker, tmp_path: Any) -> None:
    path = tmp_path / "ledger.jsonl"
    with ledger.Ledger(path) as book:
        fleet = Fleet(20, "telemetry", 1, disorder=Disorder(0.1, 0.05))
        summary = await run(fleet, Plan("raw", count=3_000), book=book)
    assert summary.good + summary.bad == summary.sent == 3_000
    assert summary.out_of_order == pytest.approx(300, rel=0.3)
    assert summary.late == pytest.approx(150, rel=0.3)
    entries = [entry for entry in ledger.read(path) if isinstance(entry, ledger.Good)]
    assert len(entries) == summary.good
    late = [entry.reading.time for entry in entries if entry.late]
    assert len(late) == summary.late
    begin = ledger.begin(path)
    assert begin is not None
    assert max(late) < begin == min(entry.reading.time for entry in entries if not entry.late)


def test_the_total_of_fleets() -> None:
    parts = [Summary(3, 2, 1, 1, 0, 5, 2.0, 1.5), Summary(30, 20, 10, 0, 2, 0, 3.0, 10.0)]
    assert simulate.total(parts) == Summary(33, 22, 11, 1, 2, 5, 3.0, 11.0)


@pytest.mark.parametrize(
    ("count", "weights", "parts"),
    [(10, [1, 1], [5, 5]), (5, [100, 20], [4, 1]), (1, [1, 1, 1], [1, 0, 0]), (0, [1, 2], [0, 0]), (7, [0.1], [7])],
)
def test_a_count_is_divided(count: int, weights: list[float], parts: list[int]) -> None:
    assert simulate.divide(count, weights) == parts
