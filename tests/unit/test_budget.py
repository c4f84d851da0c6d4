"""Budgets of devices: who is over, since when, until when, and what decode does with what they send."""

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import budget as module
from schemas import inputs, wire
from schemas.budget import Budget, Limits, Report
from schemas.deadletter import replay_headers
from schemas.decoding import Decoded, Decoder
from schemas.partition import partition_of
from schemas.reading import Reading

AT = datetime(2026, 1, 2, tzinfo=UTC)
T0 = 1_767_312_000_000
DAY_MS = 86_400_000


def reading(device: str = "a", *metrics: str, channel: str = "", measurement: str = "m") -> Reading:
    return Reading(measurement, device, AT, dict.fromkeys(metrics or ("x",), 1.0), channel=channel)


def made(**limits: Any) -> Budget:
    return Budget(Limits(**limits))


def overs(budget: Budget, times: Sequence[int], device: str = "a") -> list[str]:
    return [budget.over(reading(device), T0 + ms) for ms in times]


# -- the rate ----------------------------------------------------------------------------------------------------------


def test_a_burst_may_come_at_once_and_no_reading_more() -> None:
    assert overs(made(rate=100, burst=5), [0] * 6) == ["", "", "", "", "", "rate"]


def test_the_default_lets_a_hundred_a_second_pass_for_ever_and_finds_out_who_sends_more() -> None:
    budget = made()
    assert not any(overs(budget, range(0, 100_000, 10)))
    fast = overs(budget, range(200_000, 400_000, 8))  # 125 a second: 25 too many, of which 1,000 are let pass
    assert not any(fast[:4990])
    assert fast[5010:] == ["rate"] * len(fast[5010:])


class Model:
    """The same rules said plainly: a bucket of exact tokens."""

    def __init__(self, rate: int, burst: int, release_ms: int) -> None:
        self.rate, self.burst, self.release_ms = Fraction(rate, 1000), burst, release_ms
        self.tokens, self.last = Fraction(burst), 0
        self.withheld = False
        self.full_since: Fraction | None = None

    def over(self, ms: int) -> bool:
        unspilt = self.tokens + (ms - self.last) * self.rate
        before = min(Fraction(self.burst), unspilt)
        self.last = ms
        if self.withheld:
            if unspilt >= self.burst:
                if self.full_since is None:
                    self.full_since = ms - (unspilt - self.burst) / self.rate
            elif before < Fraction(self.burst, 2):
                self.full_since = None
            if self.full_since is not None and ms - self.full_since >= self.release_ms:
                self.withheld, self.full_since = False, None
        if self.withheld or before < 1:
            self.withheld = True
            self.tokens = max(Fraction(0), before - 1)
            return True
        self.tokens = before - 1
        return False


@given(
    rate=st.sampled_from([1, 2, 8, 125, 1000]),  # whose tokens take a time that a float has exactly
    burst=st.integers(1, 12),
    release_ms=st.sampled_from([0, 1, 500, 4000]),
    gaps=st.lists(st.sampled_from([0, 0, 0, 1, 7, 125, 500, 1000, 5000]), max_size=120),
)
@settings(deadline=None, max_examples=300)
def test_it_answers_as_an_exact_bucket_does(rate: int, burst: int, release_ms: int, gaps: list[int]) -> None:
    budget, model = made(rate=rate, burst=burst, release_ms=release_ms), Model(rate, burst, release_ms)
    now = 0
    for gap in gaps:
        now += gap
        assert (budget.over(reading(), T0 + now) == "rate") is model.over(now)


@given(
    sends=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0, 3, 50, 400])), max_size=150),
    burst=st.integers(1, 5),
)
@settings(deadline=None)
def test_a_device_is_judged_by_what_it_sends_alone(sends: list[tuple[str, int]], burst: int) -> None:
    together, alone = made(rate=10, burst=burst, release_ms=200), {}
    now = T0
    for device, gap in sends:
        now += gap
        own = alone.setdefault(device, made(rate=10, burst=burst, release_ms=200))
        assert together.over(reading(device), now) == own.over(reading(device), now)


def test_who_was_over_is_released_when_the_bucket_was_full_for_the_time() -> None:
    budget = made(rate=10, burst=10, release_ms=5000)
    assert overs(budget, [0] * 11)[-1] == "rate"
    # One a second: the bucket is full before the second of them, at 1,000 ms; five seconds later it may go on.
    assert overs(budget, range(1000, 12_000, 1000)) == ["rate"] * 5 + [""] * 6


def test_who_goes_on_flooding_stays_over() -> None:
    budget = made(rate=10, burst=10, release_ms=100)
    found = overs(budget, range(0, 60_000, 20))
    first = found.index("rate")
    assert set(found[first:]) == {"rate"}


def test_readings_that_come_together_do_not_keep_a_device_from_being_released() -> None:
    budget = made(rate=10, burst=10, release_ms=5000)
    overs(budget, [0] * 11)
    few_at_a_time = [1000 * second + ms for second in range(2, 12) for ms in (0, 1, 2)]
    assert overs(budget, few_at_a_time)[-3:] == ["", "", ""]


def test_readings_that_empty_half_the_bucket_begin_the_time_anew() -> None:
    budget = made(rate=10, burst=10, release_ms=5000)
    overs(budget, [0] * 11)
    assert overs(budget, [2000, 5000, *[5001] * 8, 8000, 10_899]) == ["rate"] * 12
    assert overs(budget, [10_900]) == [""]


def test_a_device_that_was_silent_long_enough_is_released_at_once() -> None:
    budget = made(rate=10, burst=10, release_ms=5000)
    overs(budget, [0] * 11)
    assert overs(budget, [5999]) == ["rate"]  # it is full since 1,000
    assert overs(budget, [6000]) == [""]


def test_records_that_come_out_of_order_count_as_of_the_latest_and_earn_nothing() -> None:
    budget = made(rate=10, burst=2)
    assert overs(budget, [50_000, 49_000, 48_000]) == ["", "", "rate"]


def test_a_clock_that_was_far_ahead_condemns_nobody() -> None:
    """A record from the year 2100 and then today's: the bucket fills by today's time."""
    budget = made(rate=10, burst=10, release_ms=5000)
    year_2100 = 2_335_219_200_000
    assert overs(budget, [year_2100] * 3) == [""] * 3
    assert not any(overs(budget, range(0, 60_000, 100)))
    assert overs(budget, [year_2100] * 12)[-1] == "rate"
    assert overs(budget, range(60_000, 75_000, 1000))[-1] == ""


def test_a_slow_rate_is_one_too() -> None:
    budget = made(rate=0.01, burst=1, release_ms=0)
    assert overs(budget, [0, 50_000, 250_000]) == ["", "rate", ""]


# -- the series --------------------------------------------------------------------------------------------------------


def test_series_beyond_the_limit_are_over_and_known_ones_are_not() -> None:
    budget = made(series=3)
    assert budget.over(reading("a", "x", "y"), T0) == ""
    assert budget.over(reading("a", "x", channel="1"), T0) == ""
    assert budget.over(reading("a", "y", channel="1"), T0) == "series"
    assert budget.over(reading("a", "x", "z"), T0) == "series"
    assert budget.over(reading("a", measurement="n"), T0) == "series"
    for known in (reading("a", "y", "x"), reading("a", "y"), reading("a", "x", channel="1")):
        assert budget.over(known, T0) == ""
    assert budget.over(reading("b", "y", channel="1"), T0) == ""


@given(st.lists(st.tuples(st.sampled_from("pq"), st.sets(st.sampled_from("uvwxyz"), min_size=1)), max_size=60))
@settings(deadline=None)
def test_never_more_series_pass_than_the_limit_and_each_that_passed_once_passes_again(
    sent: list[tuple[str, set[str]]],
) -> None:
    budget = made(series=5, burst=10_000)
    passed: set[tuple[str, str]] = set()
    for channel, metrics in sent:
        series = {(channel, metric) for metric in metrics}
        fits = len(passed | series) <= 5
        assert budget.over(reading("a", *sorted(metrics), channel=channel), T0) == ("" if fits else "series")
        if fits:
            passed |= series


def test_more_sets_of_metrics_than_there_may_be_series_are_no_harm() -> None:
    budget = made(series=6, burst=10_000)
    for _ in range(2):
        for bits in range(1, 64):
            metrics = [name for place, name in enumerate("uvwxyz") if bits >> place & 1]
            assert budget.over(reading("a", *metrics), T0) == ""
    device = budget._devices["a"]
    assert len(device.known) <= 12


def test_series_that_are_not_seen_any_more_make_room_and_those_that_are_seen_stay() -> None:
    budget = made(series=2)
    assert [budget.over(reading("a", name), T0) for name in ("x", "y", "z")] == ["", "", "series"]
    for day in (1, 2):
        assert budget.over(reading("a", "x"), T0 + day * DAY_MS) == ""
    assert budget.over(reading("a", "z"), T0 + 2 * DAY_MS + 1) == ""
    assert budget.over(reading("a", "y"), T0 + 2 * DAY_MS + 2) == "series"
    assert budget.over(reading("a", "x"), T0 + 2 * DAY_MS + 3) == ""


def test_a_device_that_was_away_for_days_has_all_its_room_again() -> None:
    budget = made(series=2)
    assert budget.over(reading("a", "x", "y"), T0) == ""
    assert budget.over(reading("a", "u", "v"), T0 + 3 * DAY_MS) == ""
    assert budget._hashes == 3


def test_a_time_far_ahead_does_not_keep_series_for_ever() -> None:
    budget = made(series=1)
    assert budget.over(reading("a", "x"), T0 + 1000 * DAY_MS) == ""
    for day in range(3):
        budget.over(reading("a", "y"), T0 + day * DAY_MS)
    assert budget.over(reading("a", "y"), T0 + 3 * DAY_MS) == ""


# -- what is remembered ------------------------------------------------------------------------------------------------


def test_no_more_devices_are_remembered_than_may_be_and_those_seen_last_are() -> None:
    budget = made(devices=3, burst=1)
    for second in range(120):
        assert overs(budget, [1000 * second] * 2, "noisy") in (["", "rate"], ["rate", "rate"])
        overs(budget, [1000 * second], f"quiet-{second}")
        assert len(budget._devices) <= 3
    assert "noisy" in budget._devices
    assert "quiet-119" in budget._devices
    assert "quiet-0" not in budget._devices


def test_all_devices_together_cannot_take_more_memory_than_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SERIES_IN_ALL", 100)
    budget = made(burst=10_000)
    for number in range(60):
        for metric in range(30):
            budget.over(reading(f"device-{number}", f"x{metric}"), T0)
            assert budget._hashes == sum(len(one.known) + len(one.old or ()) for one in budget._devices.values())
    assert budget._hashes <= 100
    assert "device-59" in budget._devices
    for metric in range(150):  # one device may have all that its own limit lets it have
        assert budget.over(reading("large", f"x{metric}"), T0) == ""
    assert list(budget._devices) == ["large"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcd"),
            st.sets(st.sampled_from("uvwxyz"), min_size=1),
            st.sampled_from([0, 1, DAY_MS // 2, 3 * DAY_MS, -2 * DAY_MS]),
        ),
        max_size=60,
    )
)
@settings(deadline=None)
def test_the_books_of_what_is_remembered_are_right_at_any_time(sent: list[tuple[str, set[str], int]]) -> None:
    budget = made(series=4, devices=3)
    now = T0
    for device, metrics, gap in sent:
        now += gap
        budget.over(reading(device, *sorted(metrics)), now)
        assert budget._hashes == sum(len(one.known) + len(one.old or ()) for one in budget._devices.values())
        one = budget._devices[device]
        series = {hash(("m", "", metric)) for metric in "uvwxyz"}
        assert len(series & one.known) == one.fresh
        assert len(series & (one.known | (one.old or set()))) == one.count <= 4


# -- what is said of it ------------------------------------------------------------------------------------------------


def test_a_noisy_device_is_reported_at_once_and_then_once_a_minute() -> None:
    budget = made(rate=10, burst=10)
    found: list[Report] = []
    sent = 0
    for ms in range(0, 150_000, 10):
        sent += bool(budget.over(reading(), T0 + ms))
        found += budget.reports()
    assert [report.at_ms - found[0].at_ms for report in found] == [0, 60_000, 120_000]
    assert [report.readings for report in found] == [1, 6000, 6000]
    assert {(report.device_id, report.excess) for report in found} == {("a", "rate")}
    assert budget.reports() == []
    assert sent > 12_001


def test_who_is_within_its_budget_is_not_reported() -> None:
    budget = made()
    overs(budget, range(0, 60_000, 10))
    assert budget.reports() == []
    assert budget.noisy(T0 + 60_000) == 0


def test_devices_count_as_noisy_for_a_minute() -> None:
    budget = made(rate=10, burst=1)
    overs(budget, [0, 0], "a")
    assert budget.noisy(T0) == 1
    overs(budget, [30_000, 30_000], "b")
    overs(budget, [30_000], "c")
    assert [budget.noisy(T0 + ms) for ms in (30_000, 60_000, 60_001, 90_001)] == [2, 2, 1, 0]
    overs(budget, [0], "a")  # whatever time its records are of
    assert budget.noisy(T0 + 100_000) == 1


def test_who_is_forgotten_is_not_noisy_any_more() -> None:
    budget = made(devices=1, burst=1)
    overs(budget, [0, 0], "a")
    assert budget.noisy(T0) == 1
    overs(budget, [0, 0], "b")
    assert budget.noisy(T0) == 1
    overs(budget, [0], "c")
    assert budget.noisy(T0) == 0


def test_a_report_is_an_event_of_data_quality() -> None:
    report = Report("pump 1", "rate", T0 + 7, 1234)
    key, event = made(rate=2.5, burst=1000).event(report)
    assert (key, event.device_id, event.measurement) == (b"pump 1", "pump 1", "quality")
    assert event.time == datetime(2026, 1, 2, 0, 0, 0, 7000, tzinfo=UTC)
    assert (event.values["kind"], event.values["count"]) == ("over_budget", 1234)
    message = str(event.values["message"])
    for words in ("2.5 readings/s", "1,000 at once", "1,234", "not held back"):
        assert words in message
    _, event = Budget(withholds=True).event(Report("a", "series", T0, 1))
    assert "2,000 series" in str(event.values["message"])
    assert str(event.values["message"]).endswith("held back in the quarantine")
    for at_ms in (-5, 10**17):
        assert made().event(Report("a", "rate", at_ms, 1))[1].time.tzinfo is UTC


# -- what decode does --------------------------------------------------------------------------------------------------


class Raw(NamedTuple):
    offset: int
    value: bytes | None
    timestamp: int = T0
    topic: str = "raw"
    partition: int = 3
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()


def said(offset: int, device: str, timestamp: int = T0, **more: float) -> Raw:
    body = {"device_id": device, "timestamp": AT, "temperature": 1.0, "humidity": 2.0, "battery": 3.0, **more}
    return Raw(offset, msgspec.json.encode(body), timestamp)


def decoder(budget: Budget | None) -> Decoder:
    return Decoder(
        inputs.parse(None, {"raw": "telemetry"}),
        partitions=12, stage="decode", version="1", max_message_bytes=4096, budget=budget,
    )  # fmt: skip


def decode(budget: Budget | None, *records: Raw, now_ms: int = T0) -> Decoded:
    return decoder(budget)(records, now_ms)


def sources(decoded: Decoded) -> list[bytes | None]:
    items = [item for some in decoded.items.values() for item in some]
    return sorted((dict(item.headers)["iotflow-src"] for item in items), key=str)


@pytest.fixture
def flood() -> list[Raw]:
    """Ten records of a noisy device and two of another."""
    return [said(number, "noisy") for number in range(10)] + [said(number, "calm") for number in (10, 11)]


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def test_by_default_decode_only_counts_and_reports(flood: list[Raw]) -> None:
    decoded = decode(made(burst=4), *flood)
    plain = decode(None, *flood)
    assert (decoded.items, decoded.readings, decoded.good) == (plain.items, 12, 12)
    assert (decoded.over, decoded.withheld, decoded.noisy) == ({"rate": 6}, [], 1)
    assert [(report.device_id, report.readings) for report in decoded.reports] == [("noisy", 1)]
    assert (plain.over, plain.reports, plain.noisy) == ({}, [], 0)


def test_what_is_over_goes_to_the_quarantine_as_it_would_have_gone_on(flood: list[Raw]) -> None:
    decoded = decode(Budget(Limits(burst=4), withholds=True), *flood)
    plain = decode(None, *flood).items[partition_of("noisy", 12)]
    assert decoded.items[partition_of("calm", 12)][-2:] == decode(None, *flood[-2:]).items[partition_of("calm", 12)]
    assert (
        decoded.withheld
        == [
            item._replace(headers=[*item.headers, ("iotflow-quarantine", b"rate")])
            for item in plain
            if item.key == b"noisy"
        ][4:]
    )
    assert (decoded.readings, decoded.over, decoded.good, decoded.fruitless) == (6, {"rate": 6}, 12, [])
    assert decoded.letters == []


def test_one_decoder_remembers_from_chunk_to_chunk() -> None:
    made_once = decoder(Budget(Limits(burst=4, rate=1), withholds=True))
    withheld = [len(made_once([said(number, "a")], T0).withheld) for number in range(6)]
    assert withheld == [0, 0, 0, 0, 1, 1]


def test_the_reason_can_be_the_series() -> None:
    budget = Budget(Limits(series=3), withholds=True)
    decoded = decode(budget, said(0, "a"), said(1, "a", extra=4.0), said(2, "a"))
    assert sources(decoded) == [b"raw/3/0/0", b"raw/3/2/0"]
    (item,) = decoded.withheld
    assert item.headers[-1] == ("iotflow-quarantine", b"series")
    assert item.value is not None
    assert wire.read(item.value).values["extra"] == 4.0


def test_it_is_the_receive_time_of_the_record_that_counts() -> None:
    records = [said(number, "a", T0 + 1000 * number) for number in range(10)]
    assert decode(made(burst=1, rate=1), *records, now_ms=T0 + DAY_MS).over == {}


def test_records_without_a_time_of_their_own_are_of_now() -> None:
    own = decoder(made(burst=2, rate=1, release_ms=0))
    assert own([said(0, "a", -1), said(1, "a", -1)], T0).over == {}
    assert own([said(2, "a", -1)], T0).over == {"rate": 1}
    assert own([said(3, "a", -1)], T0 + 5000).over == {}


def test_a_letter_that_is_sent_again_counts_for_when_it_first_came() -> None:
    first = said(1, "a", T0 - DAY_MS)
    block = replay_headers("decode", "raw", 3, 1, attempt=2, timestamp=first.timestamp, ids=["x"])
    again = first._replace(offset=9, timestamp=T0, headers=block)
    budget = Budget(Limits(burst=1, rate=1), withholds=True)
    decoded = decode(budget, first, again)
    (item,) = decoded.withheld
    assert [name for name, _ in item.headers] == [
        "iotflow-v", "iotflow-src", "iotflow-ingest-ms", "iotflow-replay", "iotflow-quarantine",
    ]  # fmt: skip


def test_what_is_refused_takes_nothing_from_the_budget() -> None:
    bad = [Raw(number, b"{}") for number in range(20)]
    decoded = decode(made(burst=1), *bad, said(20, "a"))
    assert (decoded.over, decoded.readings, len(decoded.letters)) == ({}, 1, 20)
