"""Last values as records, and what devices come to by them at a time."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app import devices
from app.devices import Present, counted, device, in_facilities, longest_silent, ordered, totals
from app.settings import load
from schemas import latest, wire
from schemas.latest import Latest, Span
from schemas.names import parted
from schemas.reading import Reading, RejectedError
from tests.lab.analysis import START, Kept, Raw, reading, records

NOW = datetime(2026, 11, 23, 9, 40, tzinfo=UTC)
NINE = datetime(2026, 11, 23, 9, tzinfo=UTC)
TODAY = datetime(2026, 11, 23, tzinfo=UTC)
HERE = Present(NOW, timedelta(seconds=60))
times = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  it has a zone


def channel(device_id: str = "d", silent: float = 0.0, **changes: Any) -> Latest:
    seen = NOW - timedelta(seconds=silent)
    tags = {"facility_id": changes.pop("facility")} if "facility" in changes else {}
    fields: dict[str, Any] = {
        "device_id": device_id,
        "measurement": "telemetry",
        "first_seen": TODAY,
        "seen": seen,
        "online": True,
        "hour": Span(NINE, 5),
        "day": Span(TODAY, 50),
        "reading": Reading("telemetry", device_id, seen, {"t": 1.5}, tags=tags),
    }
    return Latest(**{**fields, **changes})


# -- records -----------------------------------------------------------------------------------------------------------


@given(st.text(min_size=1), st.text(), times, times, st.integers(0, 2**53), st.booleans())
def test_what_is_written_is_read(name: str, where: str, one: datetime, other: datetime, count: int, on: bool) -> None:  # noqa: FBT001
    reading = Reading("telemetry", name, one, {"t": 1.5, "s": "x"}, where, {"t": "°C"}, {"facility_id": "F"})
    found = Latest(
        device_id=name,
        measurement="telemetry",
        channel=where,
        first_seen=other,
        seen=one,
        online=on,
        hour=Span(one, count),
        day=Span(other, count),
        reading=msgspec.Raw(wire.write(reading)),
    )
    assert latest.read(latest.written(found)) == msgspec.structs.replace(found, reading=reading)
    key = latest.key(name, "telemetry", where)
    assert parted(key.decode()) == [name, "telemetry", where]


def test_a_reading_that_another_decoded_is_read_as_the_stage_read_it() -> None:
    """The value of a decoded record stands in it as it is: an older shape, or a time of another zone."""
    values = [
        b'{"deviceid": "d", "timestamp": "2026-11-23T00:00:10Z", "component_type": "t", "value": "20.5 C"}\n',
        b'{"v":1,"measurement":"m","device_id":"d","time":"2026-11-23T09:00:10+09:00","values":{"t":20.5}}',
    ]
    kept = Kept()
    partition = kept.begin()
    received = int(START.timestamp() * 1000)
    partition.fold([Raw(place, value, timestamp=received) for place, value in enumerate(values)], received)
    kept.keep(partition, 2)
    said = [output for output in kept.said if output.topic == "latest"]
    found = [latest.read(output.value or b"") for output in said]
    assert [each.reading for each in found] == [wire.read(value) for value in values]
    assert [output.key for output in said] == [latest.key("d", each.measurement, "") for each in found]


@pytest.mark.parametrize(
    "value",
    [b"", b"{", b"null", b'{"v":1}', b"\xff", b'{"v":2,"device_id":"d"}', b"[" * 100_000],
)
def test_what_is_no_record_is_refused(value: bytes) -> None:
    with pytest.raises((msgspec.DecodeError, UnicodeDecodeError, RecursionError, RejectedError)):
        latest.read(value)


def test_a_record_of_a_later_version_is_refused() -> None:
    said = json.loads(latest.written(channel()))
    with pytest.raises(msgspec.ValidationError):
        latest.read(json.dumps({**said, "v": 2}).encode())


def test_the_analysis_says_what_is_read_here() -> None:
    kept = Kept()
    partition = kept.begin()
    log = records([reading(at, "d", "c", t=float(at)) for at in (10, 3700, 3650, 3710)])
    partition.fold(log, log[-1].timestamp)
    kept.keep(partition, len(log))
    [output] = [output for output in kept.said if output.topic == "latest"]
    found = latest.read(output.value or b"")
    assert (found.device_id, found.channel, found.first_seen) == ("d", "c", START + timedelta(seconds=10))
    assert (found.seen, found.online) == (START + timedelta(seconds=3710), True)
    assert (found.hour, found.day) == (Span(START + timedelta(hours=1), 3), Span(START, 4))
    assert devices.reading_of(found).values == {"t": 3710.0}


# -- devices -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "count"),
    [
        (NINE, 7),
        (NINE - timedelta(hours=1), 0),  # of an hour that is over: none since
        (NINE - timedelta(days=30), 0),
        (NINE + timedelta(hours=1), None),  # its clock is ahead
    ],
)
def test_only_an_hour_that_is_not_over_counts(start: datetime, count: int | None) -> None:
    assert counted(Span(start, 7), HERE.hour) == count


@given(times)
def test_an_hour_and_a_day_begin_by_the_clock(at: datetime) -> None:
    found = Present(at, timedelta())
    assert found.hour == at.replace(minute=0, second=0, microsecond=0)
    assert found.day == found.hour.replace(hour=0)


def test_a_device_is_what_its_channels_are_together() -> None:
    earlier = TODAY - timedelta(days=3)
    channels = [
        channel(silent=300, facility="old"),
        channel(channel="b", silent=10, first_seen=earlier, hour=Span(NINE - timedelta(hours=1), 9), facility="new"),
        channel(channel="c", silent=20),
    ]
    found = device("d", channels, HERE, 2)
    assert (found.online, found.silent_s, found.seen) == (True, 10.0, NOW - timedelta(seconds=10))
    assert (found.first_seen, found.facility, found.channels, found.alarms) == (earlier, "new", 3, 2)
    assert (found.hour, found.day) == (10, 150)
    ahead = channel(channel="d", hour=Span(NINE + timedelta(hours=1), 1))
    found = device("d", [*channels, ahead], HERE)
    assert (found.hour, found.day, found.alarms) == (None, 200, None)


@pytest.mark.parametrize(
    ("silent", "says", "online"),
    [(0, True, True), (60, True, True), (60.001, True, False), (10, False, False), (-30, True, True)],
)
def test_silence_is_judged_now(silent: float, says: bool, online: bool) -> None:  # noqa: FBT001
    found = device("d", [channel(silent=silent, online=says)], HERE)
    assert (found.online, found.silent_s) == (online, max(0.0, silent))


def test_a_checkpoint_may_be_under_way() -> None:
    settings = load({"IOTFLOW_IDLE": "30", "IOTFLOW_CHECKPOINT": "4"})
    assert devices.present(settings, NOW) == Present(NOW, timedelta(seconds=34))


def test_devices_in_order() -> None:
    a = device("a", [channel("a", 100, day=Span(TODAY, 7))], HERE)
    b = device("b", [channel("b", 5, day=Span(TODAY, 1), facility="plant-1")], HERE)
    c = device("c", [channel("c", 500, day=Span(TODAY, 99), facility="plant-[2]")], HERE)
    assert ordered([c, a, b], "seen") == [b, a, c]
    assert ordered([b, a, c], "count") == [c, a, b]
    assert ordered([b, c, a], "name") == [a, b, c]
    assert longest_silent([a, b, c]) == [c, a]
    for wanted, chosen in (([], [a, b, c]), (["plant-*"], [b, c]), (["plant-[2]"], [c]), (["x", "plant-1"], [b])):
        assert list(filter(in_facilities(wanted), [a, b, c])) == chosen


def test_totals_leave_out_what_nobody_knows() -> None:
    ahead = device("x", [channel("x", hour=Span(NINE + timedelta(hours=1), 1000))], HERE)
    found = totals([device("a", [channel("a"), channel("a", channel="2")], HERE), ahead])
    assert (found.devices, found.online, found.channels) == (2, 2, 3)
    assert (found.hour, found.day, found.unknown) == (10, 150, 1)
    none = totals([])
    assert (none.devices, none.hour, none.day, none.unknown) == (0, 0, 0, 0)
