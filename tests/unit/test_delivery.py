"""Delivery: batches, retries, the breaker, bisection, letters and giving up, in time that passes by itself."""

import asyncio
import logging
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import wire
from schemas.reading import Rejected
from sinks.base import PartialWriteError
from sinks.ceiling import Ceiling
from sinks.contracts import Breaker
from tests.lab.bench import (
    HANG,
    WALL_MS,
    AwayError,
    BadError,
    DeniedError,
    Fault,
    Sink,
    devices,
    good,
    now,
    running,
    until,
)
from tests.lab.virtual import virtual


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Only errors are worth their time here."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    yield
    logging.disable(level)


# -- batches -----------------------------------------------------------------------------------------------------------


@virtual
async def test_a_batch_closes_when_it_is_full() -> None:
    """As soon as there are `batch_size` readings, they are written, without waiting."""
    async with running() as bench:
        await bench.many(4, 4, 2)
        await bench.done()
        assert bench.sink.sizes == [10]
        assert bench.sink.begun[0] < 0.01


@virtual
async def test_a_batch_closes_some_time_after_its_first_reading() -> None:
    """The time-out counts from the first reading, and what comes in meanwhile is in the batch."""
    async with running(batch_timeout=0.5) as bench:
        began = now()
        await bench.many(1)
        await asyncio.sleep(0.4)
        await bench.many(1)
        await asyncio.sleep(0.2)
        await bench.many(1)
        await bench.done()
        assert bench.sink.sizes == [2, 1]
        assert [begun - began for begun in bench.sink.begun] == pytest.approx([0.5, 1.1], abs=0.01)


@virtual
async def test_batches_fill_while_the_writer_is_busy() -> None:
    """A batch whose time is up goes on filling as long as it could not be written anyway."""
    async with running(Sink(takes=1.0), batch_timeout=0.02) as bench:
        for _ in range(9):
            await bench.many(1)
            await asyncio.sleep(0.1)
        await bench.done()
        assert bench.sink.sizes == [1, 8]


@virtual
async def test_the_next_batch_is_prepared_while_one_is_written() -> None:
    """The writer never waits for encoding."""
    async with running(Sink(takes=1.0)) as bench:
        await bench.many(10, 10, 10)
        await asyncio.sleep(0.5)
        assert bench.sink.sizes == [10]
        assert len(bench.sink.prepared) >= 2
        await bench.done()


@virtual
async def test_a_chunk_larger_than_a_batch_is_acked_once_with_its_last_record() -> None:
    """It spans several batches, and is safe only when the last of them is."""
    async with running(Sink(takes=1.0)) as bench:
        (held,) = await bench.many(35)
        await until(lambda: len(bench.sink.stored) == 30)
        assert held.pending
        await bench.done()
        assert bench.sink.sizes == [10, 10, 10, 5]


@virtual
async def test_an_empty_chunk_is_acked() -> None:
    """There is nothing in it to wait for."""
    async with running() as bench:
        await bench.many(0, 3, 0)
        await bench.done()
        assert bench.sink.sizes == [3]


@virtual
async def test_put_waits_while_two_batches_are_queued() -> None:
    """The queue is bounded, so that a slow destination slows the intake."""
    async with running(Sink(writes=[HANG])) as bench:
        feeding = asyncio.create_task(bench.many(*[5] * 100))
        await asyncio.sleep(5)
        assert not feeding.done()
        # One being written, one prepared, one waiting for its place, and the queue.
        assert bench.delivery.held_records <= 5 * 10 + 5
        assert bench.telemetry.records == bench.delivery.held_records
        feeding.cancel()
        await asyncio.wait([feeding])


@virtual
async def test_telemetry_is_told_everything_once() -> None:
    """Records taken, stored and durable, rows and letters add up."""
    async with running(batch_size=100) as bench:
        await bench.put(*good(59), "bytes", "reject", "prepare")
        await bench.many(33, 7)
        await bench.done()
        told = bench.telemetry
        assert told.records == sum(records for _, records in told.durables) == 102
        assert len(told.durables) <= 3 * 16 + 16
        assert sum(readings for readings, _, _ in told.writes) == 99
        assert sum(rows for _, rows, _ in told.writes) == 3 * 99
        assert {size for _, _, size in told.writes} == {100}
        assert told.reasons == {"wire": 1, "refused": 1, "no_form": 1}


@virtual
async def test_latency_counts_from_the_receipt_of_the_raw_record() -> None:
    """The header `iotflow-ingest-ms` says when that was; without it, the record's own time."""
    async with running() as bench:
        held = bench.chunk("a", "b", "c", "d")
        held.records[1].headers = [(wire.HEADER_INGEST_MS, b"%d" % (WALL_MS - 5000))]
        held.records[2].headers = [(wire.HEADER_INGEST_MS, b"9" * 5000)]
        held.records[3].headers = [(wire.HEADER_INGEST_MS, b"9" * 400)]
        await bench.delivery.put(held)
        await bench.done()
        ages = [seconds for seconds, _ in bench.telemetry.durables]
        assert ages[:2] == pytest.approx([0.02, 5.02], abs=0.01)


# -- bad records -------------------------------------------------------------------------------------------------------

kinds = st.sampled_from(["d", "d", "d", "bytes", "prepare", "reject", "partial", "raise"])


@given(
    chunks=st.lists(st.lists(kinds, max_size=9), min_size=1, max_size=6),
    batch_size=st.integers(1, 8),
    faults=st.lists(st.sampled_from([None, None, AwayError, HANG]), max_size=8),
)
@settings(deadline=None)
@virtual
async def test_a_bad_record_hurts_only_itself(chunks: list[list[str]], batch_size: int, faults: list[Fault]) -> None:
    """Whatever is bad in whatever batch, and however often the destination goes away, the good ones are stored.

    Once, in order; each bad one is one letter with its original bytes; each chunk is acknowledged once, in order.
    """
    async with running(Sink(writes=[*faults]), batch_size=batch_size, write_timeout=0.2) as bench:
        for at, chunk in enumerate(chunks):
            await bench.put(*(f"{kind}{at}.{index}" for index, kind in enumerate(chunk)))
        await bench.done()
        records = [record for held in bench.put_in for record in held.records]
        assert bench.sink.stored == [device for device in devices(bench.put_in) if device.startswith("d")]
        bad = {f"store-fake:decoded/0/{r.offset}/0": r.value for r in records if not (r.key or b"").startswith(b"d")}
        assert {dead.id: dead.value for dead in bench.letters.sent} == bad
        assert len(bench.letters.sent) == len(bad)
        assert sum(bench.telemetry.reasons.values()) == len(bad)


@given(
    chunk=st.lists(st.sampled_from(["d", "e", "reject", "partial"]), min_size=1, max_size=12),
    batch_size=st.integers(1, 12),
)
@settings(deadline=None)
@virtual
async def test_the_last_value_wins_also_in_a_batch_that_is_bisected(chunk: list[str], batch_size: int) -> None:
    """Writing again what a refused batch left behind never puts an older value over a newer one."""
    async with running(Sink(leaks=True), batch_size=batch_size) as bench:
        await bench.put(*(f"{device}#{index}" for index, device in enumerate(chunk)))
        await bench.done()
        last = {(device, "x"): float(at) for at, device in enumerate(chunk) if device in {"d", "e"}}
        assert bench.sink.values == last
        assert len(bench.letters.sent) == sum(device in {"reject", "partial"} for device in chunk)


@virtual
async def test_a_batch_of_nothing_but_bad_records_is_acked() -> None:
    """There is nothing to write, and the letters are safe."""
    async with running() as bench:
        await bench.put("bytes1", "prepare2")
        await bench.put("bytes3")
        await bench.done()
        assert bench.sink.sizes == []
        assert bench.letters.devices == ["bytes1", "bytes3", "prepare2"]


@virtual
async def test_one_bad_record_in_thousands_is_found_quickly() -> None:
    """Bisection takes two writes a level, not one a record."""
    async with running(batch_size=4096) as bench:
        names = good(4096)
        names[1234] = "reject"
        await bench.put(*names)
        await bench.done()
        assert len(bench.sink.stored) == 4095
        assert len(bench.sink.sizes) == 1 + 2 * 12


_START = b'{"v":1,"measurement":"m","device_id":"d","values":{"x":1},"time":'


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(None, id="none"),
        pytest.param(_START + b'"0001-01-01T00:00:00+10:00"}', id="a time before the first"),
        pytest.param(_START + b'"2025-01-01T00:00:00Z","y":' + b"[" * 9000 + b"]" * 9000 + b"}", id="too deep"),
    ],
)
@virtual
async def test_a_record_nobody_thought_of_is_a_letter(value: bytes | None) -> None:
    """Whatever reading it raises, it does not stop the others."""
    async with running() as bench:
        held = bench.chunk("a", "odd", "b")
        held.records[1].value = value
        await bench.delivery.put(held)
        await bench.done()
        assert bench.sink.stored == ["a", "b"]
        assert [(dead.reason, dead.value) for dead in bench.letters.sent] == [("wire", value)]


@virtual
async def test_letters_come_before_the_ack() -> None:
    """While the dead-letter topic does not answer, nothing of the batch is acknowledged and no other is written."""
    async with running() as bench:
        bench.letters.gate.clear()
        first = await bench.put(*good(9), "reject")
        second = await bench.put(*good(10, 1))
        await until(lambda: bench.letters.waiting)
        await asyncio.sleep(100)
        assert len(bench.sink.stored) == 9
        assert first.pending
        assert second.pending
        bench.letters.gate.set()
        await bench.done()


@virtual
async def test_letters_that_are_refused_acknowledge_nothing() -> None:
    """The batch is begun again, and is acknowledged when its letters are safe."""
    async with running() as bench:
        bench.letters.fails = [RuntimeError("too large"), RuntimeError("too large")]
        held = await bench.put("a", "bytes", "b")
        await until(lambda: len(bench.letters.fails) == 1)
        assert held.pending
        await bench.done()
        assert bench.letters.devices == ["bytes"]
        assert set(bench.sink.stored) == {"a", "b"}


@pytest.mark.parametrize("indexes", [[], [-1], [5], [0, 99]])
@virtual
async def test_a_sink_that_refuses_what_it_was_not_given_is_a_fault(indexes: list[int]) -> None:
    """It neither makes a letter of another record nor goes round and round."""
    wrong: Mapping[int, Rejected] = {index: Rejected("x", "x") for index in indexes}
    async with running(Sink(writes=[PartialWriteError(wrong), PartialWriteError(wrong)])) as bench:
        await bench.many(5)
        await bench.done()
        assert bench.clock.slept == [1.0, 1.0]
        assert bench.letters.sent == []
        assert len(bench.sink.stored) == 5


# -- outages -----------------------------------------------------------------------------------------------------------


@virtual
async def test_an_outage_is_not_a_poison_message() -> None:
    """The batch is kept, no other is taken beyond the bound, nothing is a letter, and all is stored in the end."""
    sink = Sink(writes=[AwayError] * 3, probes=[AwayError] * 50)
    async with running(sink) as bench:
        feeding = asyncio.create_task(bench.many(*[5] * 40))
        await until(lambda: bench.delivery.state is Breaker.OPEN)
        assert not bench.delivery.ready
        await asyncio.sleep(100)
        assert not feeding.done()
        assert bench.delivery.held_records <= 5 * 10 + 5
        assert sink.log == ["open", *["write"] * 3, *["probe"] * (len(sink.log) - 4)]
        await asyncio.sleep(300)
        await feeding
        await bench.done()
        assert bench.delivery.ready
        assert bench.telemetry.breakers == [Breaker.OPEN, Breaker.HALF_OPEN, Breaker.CLOSED]
        assert sink.stored == devices(bench.put_in)
        assert bench.letters.sent == []


@pytest.mark.parametrize("jitter", [0.0, 0.5, 1.0])
@virtual
async def test_back_off_doubles_up_to_a_cap_and_has_no_end(jitter: float) -> None:
    """Each pause is between half and all of what it would be, and there is no last try."""
    async with running(Sink(probes=[AwayError] * 2000, writes=[AwayError] * 3)) as bench:
        bench.jitter = jitter
        await bench.many(1)
        await asyncio.sleep(11_000)
        await bench.done()
        whole = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, *[5.0] * 1997]
        assert bench.clock.slept == pytest.approx([pause * (0.5 + jitter / 2) for pause in whole])


@pytest.mark.parametrize("after", [0.0, 2.0, 60.0])
@virtual
async def test_it_never_comes_back_sooner_than_it_was_asked_to(after: float) -> None:
    """Its own back-off comes on top, so that 0 does not spin and not all workers come at once."""
    async with running(Sink(writes=[AwayError(after), AwayError(after)])) as bench:
        bench.jitter = 0.0
        await bench.many(1)
        await asyncio.sleep(200)
        await bench.done()
        assert bench.clock.slept == pytest.approx([after + 0.05, after + 0.1])


@virtual
async def test_a_short_failure_does_not_open_the_breaker() -> None:
    """Fewer than `breaker_after` failures in a row are retries and no more."""
    async with running(Sink(writes=[AwayError, AwayError, None, AwayError, AwayError])) as bench:
        await bench.many(10, 10)
        await bench.done()
        assert bench.telemetry.breakers == []
        assert "probe" not in bench.sink.log


@virtual
async def test_a_write_that_fails_after_a_good_probe_opens_the_breaker_again() -> None:
    """Half open is one try."""
    async with running(Sink(writes=[DeniedError("x"), AwayError])) as bench:
        await bench.many(1)
        await bench.done()
        assert bench.telemetry.breakers == [
            Breaker.OPEN,
            Breaker.HALF_OPEN,
            Breaker.OPEN,
            Breaker.HALF_OPEN,
            Breaker.CLOSED,
        ]


@virtual
async def test_a_refusal_closes_the_breaker_too() -> None:
    """A destination that refuses a reading is there; it must not look away until a good reading comes."""
    async with running(Sink(writes=[DeniedError("x")])) as bench:
        await bench.put("reject")
        await bench.done()
        assert bench.delivery.ready
        assert bench.letters.devices == ["reject"]


@virtual
async def test_what_needs_a_person_opens_the_breaker_at_once_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    """The remedy is shown as long as it holds; another one is said again."""
    sink = Sink(
        writes=[DeniedError("password")],
        probes=[DeniedError("password"), DeniedError("password"), DeniedError("database")],
    )
    async with running(sink) as bench:
        await bench.many(1)
        await until(lambda: bench.delivery.state is Breaker.OPEN)
        assert sink.log == ["open", "write"]
        assert bench.delivery.remedy == "remedy: password"
        await bench.done()
        assert bench.delivery.remedy == ""
        said = [record.remedy for record in caplog.records if hasattr(record, "remedy")]
        assert said == ["remedy: password", "remedy: database"]


@virtual
async def test_a_remedy_that_only_a_probe_finds_is_said(caplog: pytest.LogCaptureFixture) -> None:
    """A server that comes back without its database after an outage needs a person as well."""
    async with running(Sink(writes=[AwayError] * 3, probes=[AwayError, DeniedError("x"), DeniedError("x")])) as bench:
        await bench.many(1)
        await until(lambda: bench.delivery.remedy)
        await bench.done()
        assert [record.remedy for record in caplog.records if hasattr(record, "remedy")] == ["remedy: x"]


@virtual
async def test_a_write_that_does_not_end_is_an_outage() -> None:
    """Its time-out is a retry even where the sink would refuse the batch for it, and the write is cancelled."""
    async with running(Sink(writes=[HANG, HANG]), write_timeout=30.0) as bench:
        await bench.many(1)
        await asyncio.sleep(70)
        await bench.done()
        assert bench.sink.cancelled == 2
        assert bench.telemetry.failures == ["retry", "retry"]
        assert bench.letters.sent == []


@virtual
async def test_a_driver_that_cancels_its_own_work_does_not_end_ours() -> None:
    """A cancellation that nobody here asked for is a failure like others, wherever it comes from."""
    alien = asyncio.CancelledError
    sink = Sink(opens=[alien(), alien()], writes=[alien(), alien(), alien()], probes=[alien()])
    async with running(sink) as bench:
        await bench.many(1)
        await bench.done()
        assert bench.telemetry.failures == ["retry"] * 6


@pytest.mark.parametrize("fault", [AwayError, DeniedError("x"), BadError("x"), HANG])
@virtual
async def test_a_destination_that_cannot_be_opened_is_waited_for(
    fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    """From the first failure on the breaker is open, each failure is logged, and what comes in is kept."""
    async with running(Sink(opens=[fault] * 6), write_timeout=1.0) as bench:
        feeding = asyncio.create_task(bench.many(*[5] * 10))
        await until(lambda: bench.delivery.state is Breaker.OPEN)
        assert not bench.delivery.ready
        await feeding
        await bench.done()
        assert bench.sink.log[:7] == ["open"] * 7
        assert "probe" not in bench.sink.log
        assert bench.telemetry.breakers == [Breaker.OPEN, Breaker.CLOSED]
        assert bench.clock.slept == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2])
        assert len([record for record in caplog.records if record.message == "write failed"]) == 6
        assert bench.letters.sent == []


# -- giving up ---------------------------------------------------------------------------------------------------------


@virtual
async def test_a_drain_finishes_what_it_can() -> None:
    """What can be written in time is written, without waiting for batches to fill."""
    async with running(Sink(takes=1.0), batch_timeout=60.0) as bench:
        await bench.many(3, 4)
        await asyncio.sleep(1)
        assert bench.sink.sizes == []
        bench.drain(10)
        await bench.done()
        assert bench.sink.sizes == [7]
        assert bench.sink.begun == pytest.approx([1.0], abs=0.01)


@virtual
async def test_at_the_deadline_a_drain_lets_go_of_the_rest() -> None:
    """The write in flight is cancelled, and nothing that was let go is acknowledged or written later."""
    async with running(Sink(writes=[None, HANG])) as bench:
        held = await bench.many(10, 10, 10, 3)
        await until(lambda: bench.acked)
        bench.drain(5)
        await asyncio.sleep(4.9)
        assert [each.pending for each in held] == [False, True, True, True]
        await asyncio.sleep(0.2)
        assert bench.released == held[1:]
        assert bench.delivery.held_records == 0
        assert bench.sink.cancelled == 1
        await asyncio.sleep(100)
        assert bench.acked == held[:1]
        assert bench.sink.sizes == [10, 10]


@virtual
async def test_a_drain_cancels_letters_on_their_way() -> None:
    """A dead-letter topic that does not answer holds no rebalance."""
    async with running() as bench:
        bench.letters.gate.clear()
        held = await bench.put("bytes")
        await until(lambda: bench.letters.waiting)
        bench.drain(5)
        await asyncio.sleep(6)
        bench.letters.gate.set()
        await asyncio.sleep(6)
        assert bench.released == [held]
        assert bench.letters.sent == []


@virtual
async def test_with_the_breaker_open_a_drain_lets_go_at_once() -> None:
    """Waiting for a destination that is away would only hold the rebalance."""
    async with running(Sink(writes=[DeniedError("x")], probes=[AwayError] * 99)) as bench:
        held = await bench.many(10, 10)
        await until(lambda: bench.delivery.state is Breaker.OPEN)
        bench.drain(1000)
        assert bench.released == held


@virtual
async def test_a_breaker_that_opens_in_a_drain_ends_it() -> None:
    """There is no point in waiting for the deadline then."""
    async with running(Sink(writes=[AwayError, AwayError, AwayError], takes=1.0)) as bench:
        held = await bench.many(10, 10)
        bench.drain(1000)
        await asyncio.sleep(2.9)
        assert bench.released == []
        await asyncio.sleep(1)
        assert bench.released == held
        assert bench.delivery.state is Breaker.OPEN


@virtual
async def test_a_drain_before_the_destination_was_ever_there_lets_go_at_once() -> None:
    """Nothing can be stored yet."""
    async with running(Sink(opens=[HANG])) as bench:
        held = await bench.many(1)
        bench.drain(1000)
        assert bench.released == held


@virtual
async def test_a_chunk_of_a_generation_that_was_let_go_is_let_go() -> None:
    """It was on its way when the release came."""
    async with running(Sink(writes=[HANG])) as bench:
        await bench.many(3)
        await until(lambda: bench.sink.sizes)
        bench.drain(1)
        await bench.many(3)
        await asyncio.sleep(2)
        await bench.many(3, 3)
        assert bench.released == bench.put_in
        await asyncio.sleep(10)
        assert bench.sink.sizes == [3]


@virtual
async def test_a_later_generation_ends_a_drain() -> None:
    """What is put then is delivered, and the deadline of the old drain does nothing to it."""
    async with running(Sink(writes=[HANG, None, HANG], takes=0.5)) as bench:
        await bench.many(3)
        bench.drain(1)
        await asyncio.sleep(2)
        (new,) = await bench.many(3, generation=2)
        await until(lambda: bench.acked)
        assert bench.acked == [new]
        bench.drain(1)
        bench.drain(2)
        (newer,) = await bench.many(3, generation=3)
        await asyncio.sleep(10)
        assert newer.pending
        assert bench.sink.cancelled == 1


@virtual
async def test_drains_that_no_chunk_ended_do_not_hit_the_next_generation() -> None:
    """Two rebalances in a row with nothing to do between leave no deadline behind."""
    async with running(Sink(takes=20.0)) as bench:
        bench.drain(10)
        bench.drain(12)
        await bench.many(3, generation=2)
        await asyncio.sleep(19)
        assert bench.released == []
        await asyncio.sleep(2)
        await bench.done()


@virtual
async def test_a_chunk_of_an_earlier_generation_is_let_go() -> None:
    """Somebody else has its partition."""
    async with running() as bench:
        await bench.many(1, generation=2)
        await bench.many(1, generation=1)
        assert bench.released == bench.put_in[1:]


@virtual
async def test_a_release_wakes_a_put_that_waits_for_room() -> None:
    """Its chunk is let go like the others, also when the next generation is already there."""
    async with running(Sink(writes=[HANG])) as bench:
        await bench.many(10, 10, 10, 10, 10)
        waiting = asyncio.create_task(bench.many(10))
        await asyncio.sleep(1)
        assert not waiting.done()
        bench.drain(1)
        await until(waiting.done)
        assert bench.released == bench.put_in
        (new,) = await bench.many(1, generation=2)
        await until(lambda: bench.acked == [new])


@virtual
async def test_a_put_that_is_cancelled_lets_go_of_its_chunk() -> None:
    """Nobody would ever settle it."""
    async with running(Sink(writes=[HANG])) as bench:
        await bench.many(10, 10, 10, 10, 10)
        waiting = asyncio.create_task(bench.many(10))
        await asyncio.sleep(1)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert bench.released == bench.put_in[5:]


@virtual
async def test_the_breaker_outlives_a_release() -> None:
    """The next generation's first batch waits for a probe, not for a write to fail."""
    async with running(Sink(writes=[DeniedError("x")], probes=[AwayError] * 9)) as bench:
        await bench.many(1)
        await until(lambda: len(bench.sink.probes) == 7)
        bench.drain(10)
        await bench.many(1, generation=2)
        await until(lambda: bench.acked)
        assert bench.sink.log == ["open", "write", *["probe"] * 10, "write"]


@virtual
async def test_cancelling_lets_go_of_everything_and_closes_the_sink() -> None:
    """The write in flight is cancelled first; a chunk that comes later is let go too."""
    async with running(Sink(writes=[HANG])) as bench:
        await bench.many(10, 10, 10, 10, 10)
        waiting = asyncio.create_task(bench.many(3))
        await asyncio.sleep(1)
        await bench.stop()
        await waiting
        await bench.many(1)
        assert bench.released == bench.put_in
        assert bench.sink.cancelled == 1
        assert bench.sink.log == ["open", "write", "close"]


# -- the ceiling -------------------------------------------------------------------------------------------------------


@virtual
async def test_the_ceiling_stops_the_intake() -> None:
    """Not ready, and nothing is written until somebody says `resume`; then it goes on where it was."""
    async with running(ceiling=Ceiling(window=10, devices=3)) as bench:
        await bench.put(*(f"reject{index}" for index in range(10)))
        await until(lambda: bench.telemetry.ceilings)
        assert bench.acked
        assert not bench.delivery.ready
        feeding = asyncio.create_task(bench.many(*[10] * 10))
        await asyncio.sleep(100)
        assert not feeding.done()
        assert bench.sink.stored == []
        bench.delivery.resume()
        await feeding
        await bench.done()
        assert bench.delivery.ready
        assert bench.telemetry.ceilings == [True, False]


@virtual
async def test_a_rebalance_does_not_lift_the_ceiling() -> None:
    """A drain lets go at once, and not one batch of the next generation is written."""
    async with running(ceiling=Ceiling(window=10, devices=3)) as bench:
        await bench.put(*(f"reject{index}" for index in range(10)))
        await until(lambda: bench.telemetry.ceilings)
        before = len(bench.sink.sizes)
        held = await bench.many(10)
        bench.drain(1000)
        assert bench.released == held
        await bench.many(10, generation=2)
        await asyncio.sleep(100)
        assert len(bench.sink.sizes) == before
        bench.delivery.resume()
        await until(lambda: len(bench.acked) == 2)


@virtual
async def test_unknown_devices_do_not_count_for_the_ceiling() -> None:
    """A registry that is behind is no bad deploy."""
    async with running(ceiling=Ceiling(window=10, devices=3)) as bench:
        await bench.put(*(f"unknown{index}" for index in range(30)))
        await bench.done()
        assert bench.delivery.ready
        assert bench.telemetry.reasons == {"unknown_device": 30}


# -- faults of our own -------------------------------------------------------------------------------------------------


@virtual
async def test_a_fault_neither_loses_nor_acknowledges() -> None:
    """All that is held is begun again, a second later each time, not ready meanwhile, and in order."""
    async with running(Sink(prepares=[KeyError("ours")] * 3)) as bench:
        held = await bench.many(10, 10, 5)
        await until(lambda: len(bench.clock.slept) == 2)
        assert all(each.pending for each in held)
        assert not bench.delivery.ready
        await bench.done()
        assert bench.delivery.ready
        assert bench.sink.stored == devices(held)
        assert bench.clock.slept == [1.0, 1.0, 1.0]
        assert bench.letters.sent == []


@virtual
async def test_a_reading_that_a_sink_fails_on_is_a_letter_and_the_rest_is_stored() -> None:
    """A sink must not raise while it prepares; if it does for a reading, that reading alone pays for it."""
    async with running(Sink()) as bench:
        await bench.put("d1", "raise2", "prepare3", "d4")
        await bench.done()
        assert bench.sink.stored == ["d1", "d4"]
        assert sorted(bench.letters.devices) == ["prepare3", "raise2"]


@virtual
async def test_a_fault_does_not_take_a_waiting_chunk_twice() -> None:
    """A put that waits for room while all is begun again must not make the queue look fuller than it is."""
    async with running(Sink(prepares=[KeyError("ours")] * 20, takes=0.01)) as bench:
        feeding = asyncio.create_task(bench.many(*[7] * 30))
        await asyncio.sleep(50)
        await feeding
        await bench.done()
        assert bench.sink.stored == devices(bench.put_in)
        assert bench.telemetry.records == 210
        assert bench.delivery._queued == 0


@virtual
async def test_a_sink_that_cannot_say_what_an_error_means_is_a_fault() -> None:
    """`classify` itself may raise; that is no verdict."""
    async with running(Sink(writes=[ZeroDivisionError()])) as bench:
        await bench.many(3)
        await bench.done()
        assert bench.clock.slept == [1.0]


@virtual
async def test_a_drain_after_a_fault_lets_go_at_once() -> None:
    """Who cannot prepare a batch will not finish it by a deadline; the next generation is tried anew."""
    async with running(Sink(prepares=[KeyError("ours")])) as bench:
        held = await bench.many(3)
        await until(lambda: bench.clock.slept)
        bench.drain(1000)
        assert bench.released == held
        (new,) = await bench.many(3, generation=2)
        await until(lambda: bench.acked == [new])
        assert bench.sink.stored == devices([new])


# -- everything at once ------------------------------------------------------------------------------------------------

faults = st.sampled_from(
    [None, None, AwayError, DeniedError, BadError, HANG, ZeroDivisionError, asyncio.CancelledError]
)
steps = st.one_of(
    st.tuples(st.just("put"), st.integers(1, 12)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.01, 0.3, 4.0])),
    st.tuples(st.just("drain"), st.sampled_from([0.0, 0.01, 2.0])),
    st.tuples(st.just("rebalance"), st.just(0)),
)


@given(st.lists(steps, max_size=14), st.lists(faults, max_size=10), st.lists(faults, max_size=4))
@settings(deadline=None)
@virtual
async def test_every_chunk_is_settled_once_and_never_before_it_is_safe(
    plan: list[tuple[str, Any]], writes: list[Fault], probes: list[Fault]
) -> None:
    """Puts, waits, drains and rebalances in any order, with any faults: an acknowledged chunk is stored or buried."""
    async with running(Sink(writes=[*writes], probes=[*probes]), write_timeout=1.0, batch_size=6) as bench:
        generation, feeding = 1, []
        for what, amount in plan:
            match what:
                case "put":
                    feeding.append(asyncio.create_task(bench.many(amount, generation=generation)))
                    await asyncio.sleep(0)
                case "wait":
                    await asyncio.sleep(amount)
                case "drain":
                    bench.drain(amount)
                case "rebalance":
                    bench.drain(0.0)
                    await asyncio.sleep(0.01)
                    generation += 1
        await asyncio.sleep(200)
        assert all(each.done() for each in feeding)
        assert not [held for held in bench.put_in if held.pending]
        safe = {*bench.sink.stored, *bench.letters.devices}
        assert safe >= set(devices(bench.acked))
        assert [bench.put_in.index(held) for held in bench.acked] == sorted(map(bench.put_in.index, bench.acked))
