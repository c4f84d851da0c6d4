"""Letters and what became of them: joined, chosen, counted, and made records again."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from schemas import wire
from schemas.deadletter import Letter, letter, replayed, source_of
from schemas.letterstate import (
    BY,
    Again,
    Entry,
    Filter,
    Index,
    Mark,
    Plan,
    decode_mark,
    dropped_mark,
    encode_mark,
    entry_of,
    headers_again,
    original,
    partition_again,
    plan,
    replayed_marks,
    stats,
)
from schemas.partition import partition_of, partition_of_key
from schemas.reading import Reading, Rejected
from schemas.reasons import Reason

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
NOW_MS = 1_760_000_000_000
STORE = "store-timescale"
READERS = {"decode": {"raw"}, STORE: {"decoded"}, "store-iotdb": {"decoded"}}
ALL = Filter(state=None)


class Raw(NamedTuple):
    topic: str = "raw"
    partition: int = 3
    offset: int = 17
    timestamp: int = 1_759_667_696_123
    key: bytes | None = b"sensor-1"
    value: bytes | None = b'{"x":1}'
    headers: Sequence[tuple[str, bytes | None]] = ()


def decoded(device: str = "dev-1", source: bytes = b"raw/3/17/0", **changes: object) -> Raw:
    """A decoded record."""
    reading = Reading("m", device, AT, {"x": 1.0}, dialect="fire")
    made = Raw("decoded", 1, 40, key=device.encode(), value=wire.write(reading), headers=wire.headers(source, 5))
    return made._replace(**changes)  # type: ignore[arg-type]


def refused(
    record: Raw, stage: str = "decode", index: int = 0, *, reason: Reason = "not_json", now_ms: int = NOW_MS
) -> Letter:
    """The letter of a record."""
    return letter(
        record,
        Rejected(reason, "why"),
        stage=stage,
        index=index,
        source=None if stage == "decode" else source_of(record),
        version="1",
        now_ms=now_ms,
        max_value_bytes=1000,
        dialect="telemetry" if stage == "decode" else "",
    )


def stands(made: Letter, offset: int = 0, partition: int = 0) -> Raw:
    """A letter as a record of its topic."""
    return Raw("dead", partition, offset, 9, made.key, made.value, made.headers)


def index(*letters: Letter) -> Index:
    """An index that was told of letters."""
    found = Index()
    for offset, made in enumerate(letters):
        found.add(stands(made, offset))
    return found


def mark(found: Index, *marks: tuple[str, Mark]) -> None:
    """Tell an index of marks, as they are read."""
    for id_, each in marks:
        found.mark(id_.encode(), encode_mark(each))


def the(found: Index) -> Entry:
    """The only letter."""
    (entry,) = found
    return entry


def sent(again: Again, made: Letter, offset: int = 90) -> Raw:
    """The record that a letter is sent again as, where it stands."""
    held = original(stands(made))
    return Raw(
        held.topic, partition_again(again.letter, held, 12), offset, NOW_MS, held.key, held.value,
        headers_again(again, held),
    )  # fmt: skip


# -- joining -----------------------------------------------------------------------------------------------------------


def test_a_letter_of_a_raw_record() -> None:
    found = the(index(refused(Raw(), index=2)))
    assert found == Entry(
        id="decode:raw/3/17/2", partition=0, offset=0, stage="decode", reason="not_json", dialect="telemetry",
        device="sensor-1", topic="raw", source_partition=3, source_offset=17, failed_ms=NOW_MS, attempt=1,
        sum=found.sum, size=7, whole=True,
    )  # fmt: skip
    assert (found.state, found.replays) == ("open", 0)


def test_a_letter_of_a_decoded_record_knows_its_device_whatever_the_key_says() -> None:
    found = the(index(refused(decoded("dev-7", key=b"another"), STORE, reason="refused")))
    assert (found.id, found.device, found.dialect) == (f"{STORE}:raw/3/17/0", "dev-7", "fire")
    unreadable = the(index(refused(decoded(value=b"{"), STORE, reason="wire")))
    assert unreadable.device == "dev-1"


def test_a_letter_that_was_sent_again_by_its_stage_is_one() -> None:
    found = index(refused(Raw()), refused(Raw(), now_ms=NOW_MS + 5), refused(Raw(offset=18)))
    assert len(found) == 2
    assert found.repeats == 1
    entry = found.get("decode:raw/3/17/0")
    assert entry is not None
    assert (entry.offset, entry.failed_ms) == (1, NOW_MS + 5)


def test_a_decoded_record_that_was_decoded_twice_is_one_letter() -> None:
    found = index(refused(decoded(), STORE), refused(decoded(offset=900, timestamp=77), STORE))
    assert (len(found), the(found).source_offset) == (1, 900)


@pytest.mark.parametrize(
    "other",
    [Raw(value=b"other"), Raw(key=b"other"), Raw(value=None), Raw(timestamp=5), Raw(headers=[("a", b"b")])],
)
def test_another_record_of_the_same_id_hides_none(other: Raw) -> None:
    """A topic that was made anew counts from 0 again, and a stranger may say any place: both letters are there."""
    found = index(refused(Raw()), refused(other), refused(Raw()), refused(other))
    first, second = found
    assert first.id == "decode:raw/3/17/0"
    assert second.id == f"{first.id}~{second.sum}"
    assert (first.offset, second.offset) == (2, 3)


def test_a_mark_is_about_one_of_them_whichever_came_first() -> None:
    """The topic of letters forgets, and then the second is the only one: what was said of the first is not about it."""
    one, other = refused(Raw()), refused(Raw(value=b"other"))
    first, second = index(one, other)
    said = [(entry.id, dropped_mark(entry, AT, "")) for entry in (first, second)]
    both, left = index(one, other), index(other)
    mark(both, said[1])
    assert [entry.state for entry in both] == ["open", "dropped"]
    mark(left, said[0])
    assert the(left).state == "open"
    mark(left, said[1])
    assert the(left).state == "dropped"


def test_a_letter_that_failed_again_is_open_again_and_a_late_repeat_is_not() -> None:
    first = refused(Raw())
    found = index(first)
    (again,) = plan(found, ALL, readers=READERS, max_attempts=5).records
    marks = replayed_marks(again, AT, "me")
    failed = refused(sent(again, first), now_ms=NOW_MS + 9, reason="unknown_device")

    mark(found, *marks)
    assert (the(found).state, the(found).replays) == ("replayed", 1)
    repeated = index(first, first)
    mark(repeated, *marks)
    assert the(repeated).state == "replayed"
    for letters in ([first, failed], [failed, first], [first, failed, first]):
        found = index(*letters)
        mark(found, *marks)
        entry = the(found)
        assert (entry.state, entry.attempt, entry.reason, entry.replays) == ("open", 2, "unknown_device", 1)


def test_the_last_mark_counts_and_says_how_often_it_was_sent() -> None:
    found = index(refused(Raw()))
    for _ in range(3):
        (again,) = plan(found, ALL, readers=READERS, max_attempts=5).records
        assert again.attempt == 2
        mark(found, *replayed_marks(again, AT, ""))
    assert (the(found).state, the(found).replays) == ("replayed", 3)
    mark(found, (the(found).id, dropped_mark(the(found), AT, "")))
    assert (the(found).state, the(found).replays) == ("dropped", 3)


def test_what_is_no_letter_and_no_mark_is_counted() -> None:
    found = index(refused(Raw()))
    for record in (
        Raw(),
        Raw(key=None),
        stands(refused(Raw()))._replace(key=None),
        stands(refused(Raw()))._replace(key=b""),
    ):
        assert found.add(record) is None
    headers = [header for header in refused(Raw()).headers if header[0] != "iotflow-orig-offset"]
    found.add(Raw(headers=headers))
    found.add(Raw(headers=[*headers, ("iotflow-orig-offset", b"1x")]))
    assert (len(found), found.strange) == (1, 6)
    id_ = the(found).id.encode()
    for value in (
        b"{",
        b"[]",
        b'{"v":2}',
        b'{"v":1,"state":"gone","attempt":1,"at":"2026-01-02T03:04:05Z","sum":""}',
        b"\xff",
    ):
        assert found.mark(id_, value) is None
    assert found.strange == 11
    assert found.mark(None, b"{") is None
    assert found.mark(id_, None) is None
    assert found.mark(b"decode:of/0/0/nothing", encode_mark(dropped_mark(the(found), AT, ""))) is None
    assert (the(found).state, found.strange) == ("open", 11)


def test_a_mark_on_its_topic() -> None:
    made = Mark("replayed", 2, AT, "00ff", 3, "store-iotdb", "me@here")
    assert encode_mark(made) == (
        b'{"v":1,"state":"replayed","attempt":2,"at":"2026-01-02T03:04:05Z","sum":"00ff","replays":3,'
        b'"to":"store-iotdb","by":"me@here"}'
    )
    assert decode_mark(encode_mark(made)) == made


# -- choosing and counting ---------------------------------------------------------------------------------------------


def several() -> Index:
    """Letters of two stages, three devices, three times; one dropped."""
    found = index(
        refused(Raw(), now_ms=1000),
        refused(Raw(offset=18, key=b"sensor-2"), reason="unknown_device", now_ms=2000),
        refused(decoded("dev-1"), STORE, reason="refused", now_ms=3000),
    )
    first = next(iter(found))
    mark(found, (first.id, dropped_mark(first, AT, "")))
    return found


@pytest.mark.parametrize(
    ("chosen", "times"),
    [
        (Filter(), [2000, 3000]),
        (Filter(state=None), [1000, 2000, 3000]),
        (Filter(state="dropped"), [1000]),
        (Filter(state="replayed"), []),
        (Filter(state=None, stages=frozenset({"decode"})), [1000, 2000]),
        (Filter(state=None, reasons=frozenset({"not_json", "refused"})), [1000, 3000]),
        (Filter(state=None, dialects=frozenset({"fire"})), [3000]),
        (Filter(state=None, devices=frozenset({"sensor-2", "dev-1"})), [2000, 3000]),
        (Filter(state=None, topics=frozenset({"decoded"})), [3000]),
        (Filter(state=None, since_ms=2000), [2000, 3000]),
        (Filter(state=None, until_ms=2000), [1000]),
        (Filter(state=None, ids=frozenset({"decode:raw/3/17/0", "x"})), [1000]),
        (Filter(ids=frozenset({"decode:raw/3/17/0"})), []),
        (Filter(stages=frozenset({"decode"}), reasons=frozenset({"refused"})), []),
    ],
)
def test_choosing(chosen: Filter, times: list[int]) -> None:
    assert [entry.failed_ms for entry in several() if chosen.admits(entry)] == times


def test_counting() -> None:
    found = stats(several(), ("stage", "state"))
    assert (found.letters, found.oldest_ms, found.newest_ms) == (3, 1000, 3000)
    assert found.counts == {
        "stage": {"decode": 2, STORE: 1},
        "reason": {"not_json": 1, "refused": 1, "unknown_device": 1},
        "dialect": {"telemetry": 2, "fire": 1},
        "device": {"dev-1": 1, "sensor-1": 1, "sensor-2": 1},
        "topic": {"raw": 2, "decoded": 1},
        "state": {"open": 2, "dropped": 1},
        "attempt": {"1": 3},
    }
    assert found.together == [(("decode", "dropped"), 1), (("decode", "open"), 1), ((STORE, "open"), 1)]
    assert list(stats(several(), top=1).counts["device"]) == ["dev-1"]
    assert list(found.counts) == list(BY)


def test_counting_nothing() -> None:
    found = stats([])
    assert (found.letters, found.oldest_ms, found.newest_ms, found.together) == (0, None, None, [])


# -- sending again -----------------------------------------------------------------------------------------------------

headers = st.lists(
    st.tuples(
        st.text(max_size=12)
        | st.sampled_from(["iotflow-target", "iotflow-dlq-src", "iotflow-orig-key", "iotflow-src"]),
        st.none() | st.binary(max_size=12),
    ),
    max_size=6,
)


@given(
    partition=st.integers(0, 11),
    offset=st.integers(0, 80),
    timestamp=st.integers(-1, 2**40),
    key=st.none() | st.binary(max_size=20),
    value=st.none() | st.binary(max_size=40),
    said=headers,
    rounds=st.integers(1, 3),
)
def test_a_record_comes_back_as_it_was_however_often(
    partition: int,
    offset: int,
    timestamp: int,
    key: bytes | None,
    value: bytes | None,
    said: list[tuple[str, bytes | None]],
    rounds: int,
) -> None:
    """Record to letter to record: the same key, value, headers, partition and time of receipt, and the same letter."""
    first = Raw("raw", partition, offset, timestamp, key, value, said)
    record, made = first, refused(first)
    for attempt in range(2, 2 + rounds):
        (again,) = plan(index(made), ALL, readers=READERS, max_attempts=9).records
        record = sent(again, made, offset=100 + attempt)
        assert (record.topic, record.partition, record.key, record.value) == (first.topic, partition, key, value)
        assert list(record.headers[5:]) == said
        found = replayed(record)
        assert found is not None
        assert (found.partition, found.offset, found.timestamp, found.attempt) == (
            partition,
            offset,
            timestamp,
            attempt,
        )
        assert (found.key, found.value, list(found.headers)) == (key, value, said)
        failed = refused(record)
        assert entry_of(stands(failed)) == replace(entry_of(stands(made)), attempt=attempt)
        made = failed


def test_a_decoded_record_comes_back_for_its_stage_alone() -> None:
    made = refused(decoded("dev-5"), STORE)
    (again,) = plan(index(made), Filter(), readers=READERS, max_attempts=5).records
    record = sent(again, made)
    assert record.headers[0] == ("iotflow-target", STORE.encode())
    assert dict(record.headers)["iotflow-dlq-id"] == made.key
    assert list(record.headers[5:]) == decoded("dev-5").headers
    assert record.partition == partition_of("dev-5", 12)
    assert refused(record, STORE).id == made.id


def test_where_a_record_goes_when_its_partition_is_no_more() -> None:
    made = refused(Raw(partition=7))
    held, entry = original(stands(made)), entry_of(stands(made))
    assert partition_again(entry, held, 8) == 7
    assert partition_again(entry, held, 7) == partition_of_key(b"sensor-1", 7)
    unreadable = refused(decoded(value=b"{"), STORE)
    assert partition_again(entry_of(stands(unreadable)), original(stands(unreadable)), 4) == 1


def test_letters_of_one_record_are_one_record_and_the_order_is_the_first_one() -> None:
    found = index(
        refused(Raw(offset=30), index=1),
        refused(Raw(offset=9)),
        refused(Raw(offset=30), index=4, reason="unknown_device"),
        refused(Raw(partition=1, offset=500)),
    )
    made = plan(found, Filter(), readers=READERS, max_attempts=5)
    assert [[entry.id for entry in again.letters] for again in made.records] == [
        ["decode:raw/1/500/0"],
        ["decode:raw/3/9/0"],
        ["decode:raw/3/30/1", "decode:raw/3/30/4"],
    ]
    assert (made.letters, made.skipped) == (4, {})


def test_what_is_sent_along_with_a_letter_is_marked_too_unless_it_was_dropped() -> None:
    """All of a raw record is decoded again: its other letters that are open are answered by that as well."""
    found = index(*(refused(Raw(), index=number, reason=why) for number, why in enumerate(("old", "future", "empty"))))
    dropped = found.get("decode:raw/3/17/2")
    assert dropped is not None
    mark(found, (dropped.id, dropped_mark(dropped, AT, "")))
    (again,) = plan(found, Filter(reasons=frozenset({"old"})), readers=READERS, max_attempts=5).records
    assert [id_ for id_, _ in replayed_marks(again, AT, "")] == ["decode:raw/3/17/0", "decode:raw/3/17/1"]
    mark(found, *replayed_marks(again, AT, ""))
    assert [entry.state for entry in found] == ["replayed", "replayed", "dropped"]


def test_what_cannot_be_sent_again_is_said() -> None:
    long, many = Raw(value=b"x" * 2000), Raw(offset=2, headers=[("h", b"x" * 900)] * 60)
    found = index(
        refused(long),
        refused(many),
        refused(Raw(offset=3, key=b"k" * 3000)),
        refused(Raw(offset=4, topic="left")),
        refused(decoded(), "store-gone"),
        refused(Raw(offset=5)),
    )
    made = plan(found, Filter(), readers=READERS, max_attempts=5)
    assert [again.letter.id for again in made.records] == ["decode:raw/3/5/0"]
    assert made.skipped == {
        "no_reader": ["store-gone:raw/3/17/0", "decode:left/3/4/0"],
        "cut": ["decode:raw/3/2/0", "decode:raw/3/3/0", "decode:raw/3/17/0"],
    }


def test_attempts_come_to_an_end() -> None:
    made, tries = refused(Raw()), 1
    while (planned := plan(index(made), Filter(), readers=READERS, max_attempts=5)).records:
        made, tries = refused(sent(planned.records[0], made, 100 + tries)), tries + 1
    assert tries == 5
    assert planned == Plan([], {"attempts": ["decode:raw/3/17/0"]})
    assert plan(index(made), Filter(), readers=READERS, max_attempts=6).letters == 1


def test_to_another_store() -> None:
    made = refused(decoded(), STORE)
    (again,) = plan(index(made), Filter(), readers=READERS, to="store-iotdb", max_attempts=5).records
    assert dict(sent(again, made).headers)["iotflow-target"] == b"store-iotdb"
    assert replayed_marks(again, AT, "") == []  # its own store has not got it


def test_what_goes_to_another_store_is_counted_apart_from_what_goes_to_its_own() -> None:
    found = index(refused(decoded(), STORE), refused(decoded(), "store-iotdb"))
    made = plan(found, Filter(), readers=READERS, to="store-iotdb", max_attempts=5)
    assert (made.letters, made.kept_open) == (2, 1)
    marked = [id_ for again in made.records for id_, _ in replayed_marks(again, AT, "")]
    assert marked == ["store-iotdb:raw/3/17/0"]


def offsets(made: Plan) -> list[int]:
    """Where the records of a plan stood."""
    return [again.letter.source_offset for again in made.records]


def test_what_failed_again_keeps_its_place() -> None:
    """Of two values of one series and time the later must come last, however often the earlier has failed."""
    letters = [refused(Raw(offset=offset), now_ms=NOW_MS + offset) for offset in range(6)]
    order = offsets(plan(index(*letters), ALL, readers=READERS, max_attempts=5))
    assert order == [0, 1, 2, 3, 4, 5]
    for made in letters[:3]:
        (again,) = plan(index(made), ALL, readers=READERS, max_attempts=5).records
        letters.append(refused(sent(again, made), now_ms=NOW_MS + 99))
    assert offsets(plan(index(*letters), ALL, readers=READERS, max_attempts=5)) == order


def test_a_key_that_names_a_secret_is_counted_hidden() -> None:
    found = index(refused(Raw(key=b"password=s3cr3t")), refused(Raw(offset=2, key=b"password=other")))
    assert stats(found).counts["device"] == {"password=***": 2}
    assert [each.device for each in found if Filter(devices=frozenset({"password=other"})).admits(each)] == [
        "password=other"
    ]


@pytest.mark.parametrize(("record", "stage", "to"), [(Raw(), "decode", STORE), (decoded(), STORE, "decode")])
def test_raw_records_go_to_decode_and_decoded_ones_to_stores(record: Raw, stage: str, to: str) -> None:
    made = plan(index(refused(record, stage)), Filter(), readers=READERS, to=to, max_attempts=5)
    assert (made.records, list(made.skipped)) == ([], ["wrong_stage"])
