"""The simulated fleet, and its load on a broker in memory."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError

from app import ledger, simulate
from app.simulate import Fleet, Plan, Sample
from schemas import dialects, wire
from schemas.dialects import Meta
from schemas.partition import partition_of
from schemas.reading import Reading, Rejected

NOW = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
META = Meta("raw_iot_data", None, [], 1_759_622_400_000)


def samples(fleet: Fleet, count: int, step: timedelta = timedelta(milliseconds=10)) -> list[Sample]:
    return [fleet.sample(NOW + number * step) for number in range(count)]


def test_the_documents_dialects_can_be_spoken() -> None:
    assert {"telemetry", "fire"} <= set(simulate.speakable())


def test_a_dialect_nobody_speaks_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"cannot speak 'klingon', only .*telemetry"):
        Fleet(1, "klingon", 1)


@pytest.mark.parametrize("dialect", simulate.speakable())
def test_the_same_seed_says_the_same(dialect: str) -> None:
    first, again, other = (samples(Fleet(7, dialect, seed, bad_share=0.1), 500) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("dialect", simulate.speakable())
def test_every_expectation_is_what_decode_gives(dialect: str) -> None:
    module = dialects.load()[dialect]
    fleet = Fleet(13, dialect, 3, bad_share=0.2, odd=dict.fromkeys(module.WALKS, 0.1))
    kinds = Counter[str]()
    for sample in samples(fleet, 2_000):
        outcomes = module.decode(sample.payload, META)
        if isinstance(sample.expected, Reading):
            assert list(outcomes) == [sample.expected]
            assert wire.write(outcomes[0]) == wire.write(sample.expected)
            assert sample.expected.device_id == sample.device_id
            kinds["good"] += 1
        else:
            (rejected,) = outcomes
            assert isinstance(rejected, Rejected)
            assert rejected.reason == sample.expected
            kinds[sample.expected] += 1
    assert kinds.keys() == {"good", "not_json", *module.SPOILED}
    assert min(kinds.values()) > 20


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.01, 60, 140), (1.0, 10_000, 10_000)])
def test_the_share_of_bad_ones(share: float, low: int, high: int) -> None:
    bad = sum(
        isinstance(sample.expected, str) for sample in samples(Fleet(10, "telemetry", 1, bad_share=share), 10_000)
    )
    assert low <= bad <= high


def test_one_in_a_hundred_is_bad_when_nothing_is_said() -> None:
    bad = sum(isinstance(sample.expected, str) for sample in samples(Fleet(10, "telemetry", 1), 10_000))
    assert 60 <= bad <= 140


@pytest.mark.parametrize("step", [timedelta(0), timedelta(microseconds=1), timedelta(seconds=-1)])
def test_a_devices_times_strictly_increase_whatever_the_clock_does(step: timedelta) -> None:
    times: dict[str, list[datetime]] = {}
    for sample in samples(Fleet(3, "telemetry", 1, bad_share=0.0), 300, step):
        assert isinstance(sample.expected, Reading)
        times.setdefault(sample.device_id, []).append(sample.expected.time)
    assert times.keys() == {"sensor-001", "sensor-002", "sensor-003"}
    for moments in times.values():
        assert all(before < after for before, after in itertools.pairwise(moments))


def test_the_time_is_the_time_of_sending() -> None:
    assert samples(Fleet(1, "telemetry", 1, bad_share=0.0), 1)[0].expected.time == NOW  # type: ignore[union-attr]


def test_values_move_slowly_and_odd_ones_are_as_frequent_as_asked() -> None:
    walks = dialects.load()["telemetry"].WALKS
    odd = {"temperature": 0.05, "humidity": 0.05, "battery": 0.02, "unknown": 0.5}
    count = Counter[str]()
    calm: dict[str, float] = {}
    for sample in samples(Fleet(1, "telemetry", 1, bad_share=0.0, odd=odd), 10_000):
        assert isinstance(sample.expected, Reading)
        for metric, walk in walks.items():
            value = sample.expected.values[metric]
            assert isinstance(value, float)
            if walk.low <= value <= walk.high:
                before = calm.get(metric)
                # An odd value hides one step of the walk.
                assert before is None or abs(value - before) <= 4 * walk.step + 0.001
                calm[metric] = value
            else:
                assert walk.odd[0] <= value <= walk.odd[1]
                count[metric] += 1
    assert 400 <= count["temperature"] <= 600
    assert 400 <= count["humidity"] <= 600
    assert 130 <= count["battery"] <= 270


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
    """What `simulate.run` needs of a producer, with a log for each partition in memory.

    `answer` is asked for each batch: an exception to raise at the hand-over, one to fail the batch with, or None.
    """

    def __init__(self, partitions: int = 3, room: int = 10) -> None:
        self.logs: list[list[tuple[bytes, bytes, Any]]] = [[] for _ in range(partitions)]
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
        assert topic == "raw"
        return set(range(len(self.logs)))

    def create_batch(self) -> Batch:
        return Batch(self._room)

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> "asyncio.Future[Any]":
        assert topic == "raw"
        await asyncio.sleep(0)
        if self.raising:
            raise self.raising.pop()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self.failing is not None:
            future.set_exception(self.failing)
        elif not self.away:
            log = self.logs[partition]
            future.set_result(Place(len(log)))
            log.extend(batch.records)
        return future

    @property
    def total(self) -> int:
        return sum(map(len, self.logs))


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


async def test_a_run_sends_the_count_and_writes_down_where_each_is(broker: Broker, tmp_path: Any) -> None:
    path = tmp_path / "ledger.jsonl"
    seen = []
    with ledger.Ledger(path) as book:
        fleet = Fleet(20, "telemetry", 1, bad_share=0.1)
        summary = await simulate.run(fleet, Plan("raw", count=2_500), {"a": 1}, book=book, on_sent=seen.append)
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
    decode = dialects.load()["telemetry"].decode
    for entry in entries:
        key, payload, headers = broker.logs[entry.partition][entry.offset]
        assert headers == [("iotflow-dialect", b"telemetry")]
        assert partition_of(key.decode(), 3) == entry.partition
        (outcome,) = decode(payload, META)
        if isinstance(entry, ledger.Good):
            assert outcome == entry.reading
        else:
            assert isinstance(outcome, Rejected)
            assert outcome.reason == entry.why
            assert entry.payload_b64 == payload


async def test_a_run_keeps_its_pace_and_ends_on_time(broker: Broker) -> None:
    summary = await simulate.run(Fleet(5, "telemetry", 1), Plan("raw", rate=2_000, seconds=0.5), {})
    assert 0.45 <= summary.seconds < 2
    assert 500 <= summary.sent <= 2_000 * summary.seconds


async def test_a_stop_ends_a_run_without_an_end(broker: Broker) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().call_later(0.1, stop.set)
    summary = await simulate.run(Fleet(5, "telemetry", 1), Plan("raw", rate=1_000), {}, stop=stop)
    assert summary.sent == broker.total > 0
    assert summary.unacknowledged == 0


async def test_an_outage_is_waited_for(broker: Broker) -> None:
    broker.raising = [KafkaTimeoutError(), KafkaTimeoutError()]
    summary = await simulate.run(Fleet(5, "telemetry", 1), Plan("raw", count=100), {})
    assert summary.sent == broker.total == 100


@pytest.mark.parametrize("late", [False, True], ids=["at the hand-over", "at the broker"])
async def test_a_refusal_ends_the_run(broker: Broker, late: bool) -> None:  # noqa: FBT001  a parameter of the test
    if late:
        broker.failing = MessageSizeTooLargeError()
    else:
        broker.raising = [MessageSizeTooLargeError()]
    with pytest.raises(MessageSizeTooLargeError):
        await simulate.run(Fleet(5, "telemetry", 1), Plan("raw"), {})
    assert broker.stopped


async def test_a_topic_that_does_not_exist_is_named(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "_TOPIC_SECONDS", 0.01)
    with pytest.raises(simulate.NoTopicError, match="no topic 'nowhere'"):
        await simulate.run(Fleet(5, "telemetry", 1), Plan("nowhere"), {})
    assert broker.stopped


async def test_what_was_not_acknowledged_is_not_written_down(broker: Broker, tmp_path: Any) -> None:
    broker.away = True
    path = tmp_path / "ledger.jsonl"
    with ledger.Ledger(path) as book:
        plan = Plan("raw", count=10, patience=0.05)
        summary = await simulate.run(Fleet(5, "telemetry", 1), plan, {}, book=book)
    assert summary.sent == 0
    assert summary.unacknowledged == 10
    assert not list(ledger.read(path))


async def test_a_run_ends_on_time_while_the_broker_is_away(broker: Broker) -> None:
    broker.raising = [KafkaTimeoutError()] * 1_000_000
    summary = await simulate.run(Fleet(5, "telemetry", 1), Plan("raw", seconds=0.2, patience=0.05), {})
    assert summary.sent == 0
    assert summary.seconds < 5
