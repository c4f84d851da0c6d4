"""The decode stage as a function: raw records in, records and letters out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas import inputs, wire
from schemas.decoding import Decoded, Decoder
from schemas.dialects import Meta
from schemas.inputs import Input, Inputs
from schemas.partition import partition_of
from schemas.reading import Reading, Rejected

NOW_MS = 1_760_000_000_000
RECEIVED_MS = 1_759_999_999_123
AT = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)
LIMIT = 4096


@dataclass
class Record:
    """A raw record."""

    value: bytes | None = b"{}"
    offset: int = 7
    key: bytes | None = b"any"
    headers: Sequence[tuple[str, bytes | None]] = ()
    topic: str = "raw"
    partition: int = 3
    timestamp: int = RECEIVED_MS


def payload(device: str = "dev-1", **more: Any) -> bytes:
    """A reading as the `telemetry` dialect says it."""
    said = {"device_id": device, "timestamp": AT, "temperature": 1.0, "humidity": 2.0, "battery": 3.0}
    return msgspec.json.encode(said | more)


def decoder(speaks: Callable[..., Any] | None = None, **more: Any) -> Decoder:
    """A decoder of topic `raw`; `speaks` becomes the dialect of topic `custom`."""
    options: dict[str, Any] = {"partitions": 12, "stage": "decode", "version": "1.2.3", "max_message_bytes": LIMIT}
    made = Decoder(inputs.parse(None, {"raw": "telemetry", "fires": "fire"}), **options | more)
    if speaks is not None:
        made._inputs = Inputs({**made._inputs.topics, "custom": Input("custom")})
        made._speeches["custom"] = msgspec.structs.replace(made._speeches["raw"], dialect="custom", decode=speaks)
    return made


def reading(device: str = "dev-1", **values: Any) -> Reading:
    """What a custom dialect may give."""
    return Reading("m", device, AT, values or {"x": 1.0})


def decode(*records: Record, speaks: Callable[..., Any] | None = None, **more: Any) -> Decoded:
    """Decode records."""
    return decoder(speaks, **more)(records, NOW_MS)


def the_letter(decoded: Decoded) -> tuple[str, str, dict[str, bytes]]:
    """The only letter: its reason, its record's key and its headers."""
    assert not decoded.items
    (dead,), (device,) = decoded.letters, decoded.fruitless
    return dead.reason, device, dict(dead.headers)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What is refused is logged each time, which costs most of a property's time."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(level)


# -- what goes on ------------------------------------------------------------------------------------------------------


@given(device=st.text(min_size=1, max_size=40), key=st.none() | st.binary(max_size=10), partitions=st.integers(1, 64))
@settings(deadline=None)
def test_the_device_decides_the_partition(device: str, key: bytes | None, partitions: int) -> None:
    """Whatever the record's key says, its reading goes where the device lives, keyed by the device."""
    decoded = decode(Record(payload(device), key=key), partitions=partitions)
    ((partition, (item,)),) = decoded.items.items()
    assert partition == partition_of(device, partitions)
    assert item.key == device.encode()
    assert item.value is not None
    assert wire.read(item.value).device_id == device


def test_the_headers_say_where_a_reading_came_from_and_when() -> None:
    """Version, source with index, and the raw record's own time travel with it."""
    ((item,),) = decode(Record(payload())).items.values()
    assert dict(item.headers) == {
        "iotflow-v": b"1",
        "iotflow-src": b"raw/3/7/0",
        "iotflow-ingest-ms": b"%d" % RECEIVED_MS,
    }


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "e"]), max_size=30))
@settings(deadline=None)
def test_a_devices_readings_stay_in_order(devices: list[str]) -> None:
    """Each partition gets its readings in the order in which their records were."""
    records = [Record(payload(device), offset) for offset, device in enumerate(devices)]
    decoded = decode(*records, partitions=3)
    for partition, items in decoded.items.items():
        wanted = [
            (device.encode(), b"raw/3/%d/0" % offset)
            for offset, device in enumerate(devices)
            if partition_of(device, 3) == partition
        ]
        assert [(item.key, dict(item.headers)["iotflow-src"]) for item in items] == wanted
    assert sum(map(len, decoded.items.values())) == decoded.readings == decoded.good == len(devices)


def test_a_header_chooses_the_dialect_over_the_topic() -> None:
    """A record may say itself what it speaks, and other headers do not matter."""
    said = b'{"equipment_id":"E","measured_at":"2024-01-01T12:00:00Z","temperature":1}'
    by_header = decode(Record(said, headers=[("x", None), ("iotflow-dialect", b"fire")]))
    by_topic = decode(Record(said, topic="fires", headers=[("x", b"y")]))
    for decoded in (by_header, by_topic):
        assert not decoded.letters
        ((item,),) = decoded.items.values()
        assert wire.read(item.value).dialect == "fire"


def test_a_dialect_knows_the_records_circumstances() -> None:
    """Topic, key, headers and the record's own time, aware UTC, are given to it."""
    seen: list[Meta] = []

    def speaks(_: bytes, meta: Meta) -> Sequence[Reading]:
        seen.append(meta)
        return [reading()]

    headers = [("a", b"b")]
    decode(Record(topic="custom", key=b"k", headers=headers), speaks=speaks)
    assert seen == [Meta("custom", b"k", headers, 1_759_999_999_123, seen[0].setup)]


def auto(**topics: Any) -> Decoder:
    """A decoder of topic `mixed`, whose records' original topics say what they speak."""
    document = {"topics": {"mixed": {"dialect": "auto"}, **topics}}
    return Decoder(inputs.parse(document, {}), partitions=1, stage="decode", version="1", max_message_bytes=LIMIT)


@pytest.mark.parametrize(
    "said",
    [
        {"headers": [("original_topic", b"telemetry/dev-1")]},
        {"headers": [("MQTT-Topic", b"telemetry/dev-1")], "key": b"x/y"},
        {"key": b"telemetry/dev-1"},
        {"key": b"no topic", "headers": [("iotflow-dialect", b"telemetry")]},
    ],
)
def test_the_original_topic_chooses_where_the_topic_is_auto(said: dict[str, Any]) -> None:
    """As bridges from MQTT say it: in a header, or as the key; a record's own choice of a dialect comes first."""
    dialect, (outcome,) = auto().outcomes(Record(payload(), topic="mixed", **said))
    assert dialect == "telemetry"
    assert isinstance(outcome, Reading)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"key": None}, "mixed is auto, and the record says neither its dialect nor where it is from"),
        ({"key": b"who/knows"}, "no dialect claims the original topic 'who/knows'"),
    ],
)
def test_auto_never_guesses(said: dict[str, Any], error: str) -> None:
    """What nothing says is a letter."""
    _, (outcome,) = auto().outcomes(Record(payload(), topic="mixed", **said))
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "unknown_dialect"
    assert outcome.error.startswith(error)


def test_letters_and_flags_are_counted_by_dialect() -> None:
    """A letter carries the dialect that refused it, and flags are summed up."""
    hot = b'{"equipment_id":"E","measured_at":"2024-01-01T12:00:00Z","temperature":120}'
    decoded = decode(Record(hot, topic="fires"), Record(hot, topic="fires", offset=8), Record(b"?", topic="fires"))
    assert decoded.flags == {("fire", "clamped"): 2}
    (dead,) = decoded.letters
    assert dead.dialect == "fire"
    assert dict(dead.headers)["iotflow-dlq-dialect"] == b"fire"


def test_each_topic_has_its_own_policy() -> None:
    """The same dialect may be believed more on one topic than on another."""
    document = {
        "dialects": {"telemetry": {"policy": {"metrics": {"temperature": {"high": 60}}}}},
        "topics": {
            "strict": {"dialect": "telemetry", "policy": {"metrics": {"temperature": {"high": 20, "outside": "flag"}}}},
            "loose": {"dialect": "telemetry"},
        },
    }
    made = Decoder(inputs.parse(document, {}), partitions=1, stage="d", version="1", max_message_bytes=LIMIT)
    _, (flagged,) = made.outcomes(Record(payload(temperature=50.0), topic="strict"))
    assert flagged.flags == ["out_of_range"]
    _, (fine,) = made.outcomes(Record(payload(temperature=50.0), topic="loose"))
    assert not fine.flags
    _, (asked,) = made.outcomes(
        Record(payload(temperature=70.0), topic="strange", headers=[("iotflow-dialect", b"telemetry")])
    )
    assert asked.reason == "out_of_range"


def test_a_dialect_that_must_be_told_something_is_a_letter_where_nothing_tells_it() -> None:
    """A header may ask for any dialect, also for one that only options make complete."""
    _, (refused,) = decoder().outcomes(Record(payload(), headers=[("iotflow-dialect", b"json")]))
    assert refused.reason == "unknown_dialect"
    assert refused.error.startswith("the dialect json needs options, which nothing says for raw")


# -- what becomes a letter ---------------------------------------------------------------------------------------------


def test_a_letter_has_the_original_and_its_place() -> None:
    """The original bytes, the place, the reason, and the record's key as the device."""
    record = Record(b"\xffnot json", key=b"dev\xff-9")
    reason, device, headers = the_letter(decoded := decode(record))
    dead = decoded.letters[0]
    assert (reason, device) == ("not_json", "dev�-9")
    assert (dead.id, dead.value) == ("decode:raw/3/7/0", record.value)
    assert headers["iotflow-dlq-stage"] == b"decode"
    assert headers["iotflow-dlq-version"] == b"1.2.3"
    assert headers["iotflow-dlq-ts"] == b"%d" % NOW_MS
    assert headers["iotflow-orig-key"] == record.key
    assert (decoded.readings, decoded.good) == (0, 0)


def test_a_record_without_value_is_a_letter() -> None:
    """A tombstone on a raw topic is nothing that can be decoded."""
    reason, _, headers = the_letter(decode(Record(None, key=None)))
    assert reason == "empty"
    assert headers["iotflow-orig-null"] == b"1"


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (Record(payload(), topic="other"), b"nothing says which dialect other speaks"),
        (Record(payload(), headers=[("iotflow-dialect", b"klingon")]), b"no dialect is called 'klingon'"),
        (Record(payload(), headers=[("iotflow-dialect", b"\xff")]), "no dialect is called '�'".encode()),
    ],
)
def test_an_unknown_dialect_is_a_letter(record: Record, says: bytes) -> None:
    """Its error names what was asked for and what there is."""
    reason, _, headers = the_letter(decode(record))
    assert reason == "unknown_dialect"
    assert headers["iotflow-dlq-error"].startswith(says)
    assert b"known: decoded, fire, " in headers["iotflow-dlq-error"]


@pytest.mark.parametrize("offset", [-1, 0, 1])
@pytest.mark.parametrize("device", ["d", "設" * 200])
def test_what_the_broker_would_refuse_is_a_letter(device: str, offset: int) -> None:
    """Key and value together must leave room for the frame; one byte more is `too_large`."""
    room = LIMIT - 1024 - len(device.encode()) - len(wire.write(reading(device, x=""))) + offset

    def speaks(_: bytes, __: Meta) -> Sequence[Reading]:
        return [reading(device, x="." * room)]

    decoded = decode(Record(b"small", topic="custom"), speaks=speaks)
    if offset <= 0:
        assert (decoded.readings, decoded.good, decoded.letters) == (1, 1, [])
    else:
        reason, key, _ = the_letter(decoded)
        assert (reason, key) == ("too_large", "any")
        assert decoded.letters[0].value == b"small"
        assert decoded.good == 0


def test_several_outcomes_of_one_payload_share_nothing_but_the_record() -> None:
    """Each reading and each letter has its own index; siblings of a bad value go on."""

    def speaks(_: bytes, __: Meta) -> Sequence[Reading | Rejected]:
        return [reading("a"), Rejected("bad_type", "b"), reading("c"), Rejected("out_of_range", "d")]

    decoded = decode(Record(b"all", topic="custom"), speaks=speaks, partitions=1)
    assert [dict(item.headers)["iotflow-src"] for item in decoded.items[0]] == [b"custom/3/7/0", b"custom/3/7/2"]
    assert [dead.id for dead in decoded.letters] == ["decode:custom/3/7/1", "decode:custom/3/7/3"]
    assert {dead.value for dead in decoded.letters} == {b"all"}
    assert (decoded.readings, decoded.good, decoded.fruitless) == (2, 1, [])


def test_one_payload_makes_few_letters() -> None:
    """Each letter has the payload whole: after the first five refusals the others share one."""

    def speaks(_: bytes, __: Meta) -> Sequence[Reading | Rejected]:
        return [Rejected("future", f"n{number}") for number in range(1000)] + [reading("a")]  # type: ignore[list-item]

    decoded = decode(Record(b"all", topic="custom"), speaks=speaks)
    errors = [dict(dead.headers)["iotflow-dlq-error"] for dead in decoded.letters]
    assert errors == [b"n0", b"n1", b"n2", b"n3", b"n4", b"995 more are refused, the last: n999"]
    assert decoded.readings == 1


@pytest.mark.parametrize(
    ("second", "kept"),
    [
        (reading("a", x=1.0), 2),
        (reading("a", y=2.0), 2),
        (reading("b", x=2.0), 2),
        (msgspec.structs.replace(reading("a", x=2.0), channel="c"), 2),
        (reading("a", x=2.0), 1),
        (reading("a", x=None), 1),
    ],
)
def test_what_would_be_overwritten_in_silence_is_a_letter(second: Reading, kept: int) -> None:
    """Two values of one metric, series and time in one payload: a store would keep the later and say nothing."""
    decoded = decode(Record(b"all", topic="custom"), speaks=lambda *_: [reading("a", x=1.0), second])
    assert decoded.readings == kept
    assert [dead.reason for dead in decoded.letters] == ["contradiction"] * (2 - kept)


@pytest.mark.parametrize(
    ("reasons", "fruitless"),
    [(["unknown_device"], 0), (["unknown_alias", "unknown_device"], 0), (["bad_type", "unknown_device"], 1)],
)
def test_what_is_not_known_yet_is_no_sign_of_a_fault(reasons: list[Any], fruitless: int) -> None:
    """Only records all of whose refusals are of what will be known some day are not counted against the ceiling."""
    decoded = decode(Record(b"all", topic="custom"), speaks=lambda *_: [Rejected(reason, "") for reason in reasons])
    assert len(decoded.fruitless) == fruitless


# -- what must not stop the others -------------------------------------------------------------------------------------


def boom(_: bytes, __: Meta) -> Sequence[Reading]:
    """Raise."""
    raise ZeroDivisionError


def lazily(_: bytes, __: Meta) -> Iterator[Reading]:
    """Raise only when what it gave is looked at."""
    yield reading()
    raise ZeroDivisionError


@pytest.mark.parametrize(
    "speaks",
    [
        pytest.param(boom, id="raises"),
        pytest.param(lazily, id="raises late"),
        pytest.param(lambda *_: None, id="gives nothing"),
        pytest.param(lambda *_: [{"device_id": "d"}], id="gives something else"),
        pytest.param(lambda *_: [reading("\ud800")], id="a name that has no bytes"),
        pytest.param(lambda *_: [reading(x="\ud800")], id="a value that has no bytes"),
        pytest.param(lambda *_: [reading(x=object())], id="a value of no type"),
    ],
)
def test_a_broken_dialect_hurts_only_its_records(speaks: Callable[..., Any]) -> None:
    """Its payloads are kept as letters for the day it is mended, and the records around them go on."""
    decoded = decode(Record(payload()), Record(b"odd", 8, topic="custom"), Record(payload(), 9), speaks=speaks)
    assert (decoded.readings, decoded.good) == (2, 2)
    assert [(dead.reason, dead.value) for dead in decoded.letters] == [("dialect_failed", b"odd")]


@pytest.mark.parametrize("timestamp", [1_759_667_696_000_000_000, -(10**18), 2**63 - 1])
def test_a_record_time_that_is_none_is_a_letter_where_it_is_needed(timestamp: int) -> None:
    """A producer that stamps its records in nanoseconds does not stop the stage, nor a dialect that does not ask."""

    def speaks(_: bytes, meta: Meta) -> Sequence[Reading | Rejected]:
        return [reading(meta.received.isoformat())]

    needed = decode(Record(b"", topic="custom", timestamp=timestamp), speaks=speaks)
    assert [dead.reason for dead in needed.letters] == ["bad_timestamp"]
    assert decode(Record(payload(), timestamp=timestamp)).readings == 1


def test_a_record_without_a_time_is_decoded() -> None:
    """-1 is Kafka's own word for none."""
    assert decode(Record(payload(), timestamp=-1)).readings == 1


texts = st.text(max_size=20)
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    [
        "device_id",
        "timestamp",
        "temperature",
        "humidity",
        "battery",
        "channel",
        "equipment_id",
        "measured_at",
        "metadata",
    ]
)
objects = st.dictionaries(fields | texts, jsons | st.just(AT.isoformat()) | st.just(1.0), max_size=8)


@given(
    values=st.lists(st.none() | st.binary(max_size=60) | objects.map(msgspec.json.encode), max_size=5),
    topic=st.sampled_from(["raw", "fires", "nowhere"]),
    headers=st.lists(
        st.tuples(st.sampled_from(["iotflow-dialect", "iotflow-src", "x"]), st.none() | st.binary(max_size=9)),
        max_size=3,
    ),
    timestamp=st.integers(-(2**63), 2**63 - 1) | st.just(RECEIVED_MS),
    key=st.none() | st.binary(max_size=9),
)
@settings(deadline=None)
def test_nothing_in_a_record_makes_it_raise_or_vanish(
    values: list[bytes | None],
    topic: str,
    headers: list[tuple[str, bytes | None]],
    timestamp: int,
    key: bytes | None,
) -> None:
    """Every record of any bytes comes out at least once, as something the stores can read or as a letter."""
    records = [Record(value, at, key, headers, topic, timestamp=timestamp) for at, value in enumerate(values)]
    decoded = decode(*records)
    items = [item for batch in decoded.items.values() for item in batch]
    for item in items:
        assert wire.read(item.value).device_id.encode() == item.key
    seen = {int(dict(item.headers)["iotflow-src"].split(b"/")[2]) for item in items}
    seen |= {int(dict(dead.headers)["iotflow-orig-offset"]) for dead in decoded.letters}
    assert seen == set(range(len(records)))
    assert decoded.readings == len(items)
    assert decoded.good + len(decoded.fruitless) == len(records)


def test_the_same_records_give_the_same() -> None:
    """A chunk that is delivered again makes the same records and the same letters."""
    records = [Record(payload(), 1), Record(b"bad", 2), Record(None, 3)]
    assert decode(*records) == decode(*records)
