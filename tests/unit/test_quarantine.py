"""How far the quarantine was replayed: each record once, whatever is chosen in which order, and cut short where."""

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from hypothesis import given, settings
from hypothesis import strategies as st

from app.quarantine import Done, Position, _check, _chosen, device_of, position_of
from app.topics import TopicsError

TP = TopicPartition("iotflow.quarantine", 0)


def test_without_a_commit_nothing_was_sent() -> None:
    at = position_of(-1, "", 5, 100)
    assert at == Position(5)
    assert not at.sent("a", 5)


def test_what_is_below_the_commit_was_sent_and_of_some_devices_what_is_beyond() -> None:
    at = position_of(10, '{"a*":20,"b":15,"c":9}', 0, 100)
    assert at == Position(10, {"a*": 20, "b": 15})
    assert [at.sent(device, 9) for device in "abx"] == [True] * 3
    assert [at.sent(device, 12) for device in ("a", "ab", "b", "B", "x")] == [True, True, True, False, False]
    assert [at.sent(device, 19) for device in ("a", "b")] == [True, False]
    assert not at.sent("a", 20)


def test_a_commit_says_what_it_says() -> None:
    at = Position(3, {"a[1-3]": 17, 'say "hi" é': 4})
    assert position_of(at.offset, at.metadata, 0, 50) == at
    assert Position(3).metadata == ""


@pytest.mark.parametrize("metadata", ["no json", "[1]", '{"a": "x"}', "[" * 5000])
def test_somebody_elses_words_are_none(metadata: str) -> None:
    assert position_of(7, metadata, 0, 50) == Position(7)


def test_records_that_are_gone_are_not_waited_for() -> None:
    assert position_of(10, '{"a":30,"b":20}', 25, 50) == Position(25, {"a": 30})


@pytest.mark.parametrize(("offset", "metadata"), [(51, ""), (10, '{"a":51}')])
def test_a_topic_that_was_made_anew_begins_anew(offset: int, metadata: str) -> None:
    assert position_of(offset, metadata, 0, 50) == Position(0)


def record(offset: int, device: str) -> Any:
    return SimpleNamespace(offset=offset, key=device.encode())


RUN = st.tuples(
    st.sampled_from(["*", "a", "b", "a*", "[bc]", "nobody"]),
    st.integers(0, 12),  # so many records came in before it
    st.integers(1, 5),  # so many are sent together
    st.integers(0, 9),  # after so many times it is cut short
    st.booleans(),  # between sending and saying so
)


@given(
    devices=st.lists(st.sampled_from(["a", "aa", "b", "c"]), min_size=60, max_size=60), runs=st.lists(RUN, max_size=8)
)
@settings(deadline=None, max_examples=300)
def test_each_record_is_sent_once_and_all_are_in_the_end(
    devices: list[str], runs: list[tuple[str, int, int, int, bool]]
) -> None:
    """But for what was under way when a run was killed: that is sent once more."""
    log = [record(offset, device) for offset, device in enumerate(devices)]
    sent: Counter[int] = Counter()
    under_way: set[int] = set()
    committed = (-1, "")
    end = 0
    for glob, came, at_once, portions, killed in [*runs, ("*", 60, 7, 99, False)]:
        end = min(end + came, len(log))
        start = position_of(*committed, 0, end)
        topic: Any = SimpleNamespace(at={TP.partition: start})
        left: dict[Any, int] = {}
        order: list[int] = []
        for number, offset in enumerate(range(start.offset, end, at_once)):
            after = min(offset + at_once, end)
            chosen = _chosen(topic, glob, {TP.partition: log[offset:after]}, left, Done())
            order += [one.offset for one in chosen]
            sent.update(one.offset for one in chosen)
            if number == portions and killed:
                under_way |= {one.offset for one in chosen}
                break
            now = start.after(glob, after, left.get(TP.partition))
            committed = (now.offset, now.metadata)
            if number == portions:
                break
        else:
            at = position_of(*committed, 0, end)
            assert all(sent[one.offset] for one in log[:end] if at.sent(device_of(one), one.offset))
            if glob == "*":
                assert all(sent[offset] for offset in range(end))
        assert order == sorted(order)
    assert all(sent[offset] == 1 for offset in range(60) if offset not in under_way)
    assert all(sent[offset] >= 1 for offset in range(60))


def test_more_choices_than_a_commit_can_tell_of_are_refused_before_anything_is_sent() -> None:
    at = Position(0, {f"device-{number:040}": 50 for number in range(70)})
    topic: Any = SimpleNamespace(at={TP: at}, end={TP: 100})
    _check(topic, "*")
    _check(topic, "device-1*")
    with pytest.raises(TopicsError, match=r"replay iotflow\.quarantine without --device first"):
        _check(topic, "x" * 900)
