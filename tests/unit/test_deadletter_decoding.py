"""Records that are sent again, as decode takes them: they give what they would have given."""

import json
import logging
from collections.abc import Sequence
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import inputs
from schemas.deadletter import replay_headers
from schemas.decoding import Decoded, Decoder

NOW_MS = 1_760_000_000_000


class Raw(NamedTuple):
    topic: str = "raw"
    partition: int = 3
    offset: int = 17
    timestamp: int = NOW_MS
    key: bytes | None = b"any"
    value: bytes | None = b"{}"
    headers: Sequence[tuple[str, bytes | None]] = ()


def again(record: Raw, attempt: int = 2, target: str = "decode") -> Raw:
    """A record as it is sent again, a day later."""
    block = replay_headers(
        target, record.topic, record.partition, record.offset, attempt=attempt, timestamp=record.timestamp, ids=["a"]
    )
    return record._replace(offset=99, timestamp=record.timestamp + 86_400_000, headers=[*block, *record.headers])


def decode(*records: Raw) -> Decoded:
    made = Decoder(
        inputs.parse(None, {"raw": "telemetry", "fires": "fire"}),
        partitions=12, stage="decode", version="1", max_message_bytes=4096,
    )  # fmt: skip
    return made(records, NOW_MS)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)


def telemetry(device: str, seconds: float) -> bytes:
    """A message whose time lies that far from when it was received."""
    said = {"device_id": device, "timestamp": NOW_MS / 1000 + seconds, "temperature": 1, "humidity": 2, "battery": 3}
    return json.dumps(said).encode()


@given(
    value=st.builds(telemetry, st.text(max_size=5), st.floats(-200_000, 200_000)) | st.binary(max_size=9),
    topic=st.sampled_from(["raw", "fires", "nobody"]),
    headers=st.lists(
        st.sampled_from(
            [("iotflow-dialect", b"telemetry"), ("iotflow-dialect", b"none"), ("x", None), ("content-type", b"a/cbor")]
        ),
        max_size=3,
    ),
)
@settings(deadline=None)
def test_it_gives_exactly_what_it_first_gave(value: bytes, topic: str, headers: list[tuple[str, bytes | None]]) -> None:
    """Readings, letters, places and times, and by its own headers; readings say that they were sent again.

    Only its letters count one attempt more.
    """
    first = Raw(topic, value=value, headers=headers)
    before, after = decode(first), decode(again(first))
    marked = {
        partition: [item._replace(headers=[*item.headers, ("iotflow-replay", b"1")]) for item in items]
        for partition, items in before.items.items()
    }
    assert after.items == marked
    assert [letter.id for letter in after.letters] == [letter.id for letter in before.letters]
    for one, other in zip(before.letters, after.letters, strict=True):
        assert dict(other.headers) == {**dict(one.headers), "iotflow-dlq-attempt": b"2"}
        assert other.value == one.value
    assert (after.readings, after.good, after.fruitless) == (before.readings, before.good, before.fruitless)


def test_the_time_of_receipt_is_the_first_one() -> None:
    """What came too early by the policy when it was received is not a day old, and no earlier, a day later."""
    late = Raw(value=telemetry("a", 100_000))
    assert [letter.reason for letter in decode(late).letters] == [
        letter.reason for letter in decode(again(late)).letters
    ]
    (item,) = next(iter(decode(again(Raw(value=telemetry("a", 0)))).items.values()))
    assert dict(item.headers) == {
        "iotflow-v": b"1", "iotflow-src": b"raw/3/17/0", "iotflow-ingest-ms": b"%d" % NOW_MS, "iotflow-replay": b"1",
    }  # fmt: skip
    assert [name for name, _ in item.headers][-1] == "iotflow-replay"


def test_only_what_was_sent_again_says_so() -> None:
    """Not a record that is new, nor one whose block of headers is not whole: nobody knows what that is."""
    new = Raw(value=telemetry("a", 0), headers=[("x", b"1")])
    broken = Raw(value=telemetry("a", 0), headers=[("iotflow-target", b"decode"), ("iotflow-dlq-src", b"raw/3/1")])
    for record in (new, broken):
        (item,) = next(iter(decode(record).items.values()))
        assert [name for name, _ in item.headers] == ["iotflow-v", "iotflow-src", "iotflow-ingest-ms"]


def test_a_record_of_the_raw_topic_is_decoded_whatever_target_it_names() -> None:
    """Only stores skip: nobody who may write to a raw topic can make a record vanish there."""
    for record in (
        again(Raw(value=telemetry("a", 0)), target="store-x"),
        Raw(value=telemetry("a", 0), headers=[("iotflow-target", b"store-x")]),
    ):
        assert decode(record).readings == 1
