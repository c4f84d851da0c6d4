"""Dead letters: what they hold, and that one failure is one letter."""

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from schemas import deadletter, wire
from schemas.deadletter import KEPT_BYTES, OVERHEAD_BYTES, Letter, letter
from schemas.reading import Rejected
from schemas.record import Record


class Raw(NamedTuple):
    topic: str = "raw_iot_data"
    partition: int = 3
    offset: int = 17
    timestamp: int = 1759667696123
    key: bytes | None = b"sensor-001"
    value: bytes | None = b'{"temperature":999}'
    headers: Sequence[tuple[str, bytes | None]] = ()


REJECTED = Rejected("out_of_range", "temperature is 999, outside -50..100")


def make(record: Raw, index: int = 0, *, now_ms: int = 5, limit: int = 1_000_000) -> Letter:
    return letter(
        record,
        REJECTED,
        stage="decode",
        index=index,
        source=deadletter.source_of(record),
        version="0.1.0",
        now_ms=now_ms,
        max_value_bytes=limit,
    )


def test_a_letter_says_what_where_and_why() -> None:
    made = make(Raw(headers=[("iotflow-dialect", b"telemetry"), ("empty", None)]))
    assert made.id == "decode:raw_iot_data/3/17/0"
    assert made.key == b"decode:raw_iot_data/3/17/0"
    assert made.reason == "out_of_range"
    assert made.value == b'{"temperature":999}'
    assert dict(made.headers) == {
        "iotflow-dlq-stage": b"decode",
        "iotflow-dlq-reason": b"out_of_range",
        "iotflow-dlq-error": b"temperature is 999, outside -50..100",
        "iotflow-dlq-src": b"raw_iot_data/3/17/0",
        "iotflow-dlq-attempt": b"1",
        "iotflow-dlq-version": b"0.1.0",
        "iotflow-dlq-ts": b"5",
        "iotflow-orig-topic": b"raw_iot_data",
        "iotflow-orig-partition": b"3",
        "iotflow-orig-offset": b"17",
        "iotflow-orig-timestamp": b"1759667696123",
        "iotflow-orig-key": b"sensor-001",
        "iotflow-orig-h-iotflow-dialect": b"telemetry",
        "iotflow-orig-n-empty": b"",
    }


def test_the_same_failure_is_the_same_letter() -> None:
    assert make(Raw(), now_ms=5).id == make(Raw(), now_ms=99).id


@pytest.mark.parametrize("other", [Raw(partition=4), Raw(offset=18), Raw(topic="other")])
def test_another_record_is_another_letter(other: Raw) -> None:
    assert make(other).id != make(Raw()).id


def test_another_reading_of_one_record_is_another_letter() -> None:
    assert make(Raw(), 0).id != make(Raw(), 1).id


def test_a_decoded_record_is_known_by_its_source_wherever_it_is() -> None:
    headers = wire.headers(b"raw_iot_data/3/17/2", 5)
    first, again = (Raw(topic="decoded_iot_data", offset=offset, headers=headers) for offset in (100, 900))
    assert make(first).id == make(again).id == "decode:raw_iot_data/3/17/2"
    assert deadletter.source_of(first) == "raw_iot_data/3/17/2"
    assert deadletter.source_of(Raw(headers=[("iotflow-src", None)])) is None


def test_a_value_too_large_is_cut_and_known_by_its_sum() -> None:
    value = bytes(range(256)) * 1024
    made = make(Raw(value=value), limit=len(value) - 1)
    assert made.value == value[:KEPT_BYTES]
    headers = dict(made.headers)
    assert headers["iotflow-dlq-sha256"] == hashlib.sha256(value).hexdigest().encode()
    assert headers["iotflow-dlq-length"] == str(len(value)).encode()


def test_a_value_that_just_fits_is_whole() -> None:
    made = make(Raw(value=b"x" * 100), limit=100)
    assert made.value == b"x" * 100
    assert "iotflow-dlq-sha256" not in dict(made.headers)


def test_no_value_and_no_key() -> None:
    made = make(Raw(key=None, value=None))
    assert made.value is None
    headers = dict(made.headers)
    assert headers["iotflow-orig-null"] == b"1"
    assert "iotflow-orig-key" not in headers


def test_a_key_that_is_cut_says_so() -> None:
    whole, cut = (dict(make(Raw(key=b"k" * size)).headers) for size in (2_000, 2_001))
    assert deadletter.HEADER_KEY_CUT not in whole
    assert cut[deadletter.HEADER_KEY_CUT] == b"1"


def test_the_letter_of_any_record_stays_within_its_overhead() -> None:
    many = [(f"header-{number}", b"x" * 1_000) for number in range(1_000)]
    made = letter(
        Raw(key=b"k" * 100_000, headers=many),
        Rejected("not_json", "e" * 100_000),
        stage="decode",
        index=0,
        version="0.1.0",
        now_ms=5,
        max_value_bytes=1_000_000,
    )
    size = sum(len(name) + len(value) for name, value in made.headers)
    assert size < OVERHEAD_BYTES
    assert dict(made.headers)["iotflow-dlq-headers-cut"] == b"1"


# -- records that are sent again ---------------------------------------------------------------------------------------

ORIGINAL = Raw(headers=[("iotflow-dialect", b"telemetry"), ("empty", None), ("iotflow-target", b"x")])


def again(record: Raw, *, attempt: int = 2, offset: int = 90, partition: int | None = None) -> Raw:
    """A record as it is sent again: it stands further on, at another time, behind a block of headers."""
    block = deadletter.replay_headers(
        "decode", record.topic, record.partition, record.offset, attempt=attempt, timestamp=record.timestamp, ids=["a"]
    )
    return record._replace(
        offset=offset,
        partition=record.partition if partition is None else partition,
        timestamp=record.timestamp + 1_000_000,
        headers=[*block, *record.headers],
    )


def fields(record: Record) -> tuple[object, ...]:
    """All that a record is."""
    return (
        *(record.topic, record.partition, record.offset, record.timestamp),
        *(record.key, record.value, list(record.headers)),
    )


def test_the_target_is_the_first_header_and_no_other() -> None:
    assert deadletter.target_of(again(ORIGINAL).headers) == "decode"
    assert deadletter.target_of(ORIGINAL.headers) is None
    assert deadletter.target_of(()) is None
    assert deadletter.target_of([("iotflow-target", None)]) == ""
    assert deadletter.target_of([("iotflow-target", b"\xff")]) == "\ufffd"


def test_a_record_that_is_sent_again_is_known_as_it_first_was() -> None:
    found = deadletter.replayed(again(ORIGINAL))
    assert found is not None
    assert fields(found) == fields(ORIGINAL)
    assert found.attempt == 2
    assert deadletter.replayed(ORIGINAL) is None


def test_it_makes_the_letter_that_it_first_made_with_its_attempt() -> None:
    first, second = make(ORIGINAL), make(again(ORIGINAL))
    assert (second.id, second.value) == (first.id, first.value)
    assert dict(second.headers) == {**dict(first.headers), "iotflow-dlq-attempt": b"2"}
    assert make(again(again(ORIGINAL), attempt=3, offset=200)).id == "decode:raw_iot_data/3/90/0"


@pytest.mark.parametrize("claim", [again(ORIGINAL, offset=17), again(ORIGINAL, offset=3), again(ORIGINAL, partition=4)])
def test_a_place_that_is_not_before_its_own_is_not_believed(claim: Raw) -> None:
    """Nobody can be made to look like a record that is still to come; the rest of what it says holds."""
    found = deadletter.replayed(claim)
    assert found is not None
    assert (found.partition, found.offset) == (claim.partition, claim.offset)
    assert (found.attempt, found.timestamp) == (2, ORIGINAL.timestamp)


def test_a_place_on_another_topic_is_not_believed() -> None:
    found = deadletter.replayed(again(ORIGINAL)._replace(topic="other"))
    assert found is not None
    assert (found.topic, found.offset) == ("other", 90)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("iotflow-dlq-src", b"raw_iot_data/3"),
        ("iotflow-dlq-src", b"raw_iot_data/3/-1"),
        ("iotflow-dlq-src", b"raw iot/3/1"),
        ("iotflow-dlq-src", None),
        ("iotflow-dlq-attempt", b"2.5"),
        ("iotflow-dlq-attempt", b"9" * 50),
        ("iotflow-dlq-attempt", b""),
        ("iotflow-orig-timestamp", b"now"),
        ("iotflow-orig-timestamp", b"9" * 50),
    ],
)
def test_a_block_that_is_not_ours_is_no_block(name: str, value: bytes | None) -> None:
    """A stranger's headers make a record no other than it is."""
    headers = [(each, value if each == name else was) for each, was in again(ORIGINAL).headers]
    assert deadletter.replayed(Raw(headers=headers)) is None
    assert make(Raw(headers=headers)).id == "decode:raw_iot_data/3/17/0"


def test_a_block_that_is_cut_or_not_at_the_beginning_is_no_block() -> None:
    block = list(again(Raw()).headers)
    assert deadletter.replayed(Raw(headers=block[:-1])) is None
    assert deadletter.replayed(Raw(headers=[("x", b""), *block])) is None
    assert deadletter.replayed(Raw(headers=list(reversed(block)))) is None
