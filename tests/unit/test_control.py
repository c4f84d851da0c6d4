"""Requests, answers and statuses as they are written, read and judged; nothing here needs a broker."""

import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.cli.status import _ranges
from schemas import control
from schemas.control import Answer, ControlError, Counters, Health, Reply, Request, Standing, Status

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
WELL = Standing(ready=True, assignment={"t": [0, 1]}, counters=Counters(records=5, lag=0))


def request(**changes: Any) -> Request:
    fields = {"by": "me@here", "now": NOW, "seconds": 60.0, **changes}
    return control.request(
        fields.pop("id", "i-1"), fields.pop("action", "flush"), fields.pop("stage", "store-x"), **fields
    )


def status(worker: str = "w", standing: Standing = WELL, **changes: Any) -> Status:
    fields: dict[str, Any] = {"started": NOW, "now": NOW, "listening": True, "answers": [], **changes}
    return control.status(standing, worker, fields.pop("stage", "store-x"), "1.2", **fields)


def as_json(found: Any, **changes: Any) -> bytes:
    return json.dumps({**json.loads(control.encode(found)), **changes}).encode()


@pytest.mark.parametrize(
    "asked",
    [
        request(),
        request(action="delete", stage="*", device="dö/ 1"),
        request(action="resolve", stage="analyze", alarm="dö/ 1||t|r"),
        request(seconds=86_400.0),
    ],
)
def test_a_request_is_read_as_it_was_written(asked: Request) -> None:
    value = control.encode(asked)
    assert control.decode_request(asked.id.encode(), value) == asked
    assert json.loads(value)["v"] == 1


def test_a_request_has_the_documented_members() -> None:
    assert json.loads(control.encode(request())) == {
        "v": 1,
        "id": "i-1",
        "action": "flush",
        "stage": "store-x",
        "asked_at": "2026-01-02T03:04:05Z",
        "expires_at": "2026-01-02T03:05:05Z",
        "by": "me@here",
        "device": None,
        "alarm": None,
    }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"v": 2}, "Invalid enum value 2"),
        ({"action": "format"}, "Invalid enum value 'format'"),
        ({"stage": ""}, "length >= 1"),
        ({"id": "other"}, "its key is 'i-1' and its id 'other'"),
        ({"asked_at": "2026-01-02T03:04:05"}, "timezone"),
        ({"expires_at": "2026-01-02T03:04:05Z"}, "expire after it was asked"),
        ({"expires_at": "2026-01-03T03:04:06Z"}, "within a day"),
        ({"action": "delete"}, "a device is named to delete it"),
        ({"action": "delete", "device": ""}, "a device is named to delete it"),
        ({"device": "d"}, "for nothing else"),
        ({"action": "acknowledge"}, "an alarm is named to acknowledge or resolve it"),
        ({"action": "resolve", "alarm": ""}, "an alarm is named to acknowledge or resolve it"),
        ({"alarm": "d||t|r"}, "an alarm is named to acknowledge or resolve it, and for nothing else"),
        ({"by": 1}, "Expected `str`"),
        ({"by": "x" * 20_000}, "bytes, more than"),
    ],
)
def test_a_request_that_is_none_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ControlError, match=re.escape(said)):
        control.decode_request(b"i-1", as_json(request(), **changes))


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b"null", b"\xff", b"{}", b"[" * 10_000])
def test_garbage_is_refused(value: bytes) -> None:
    for read in (control.decode_request, control.decode_status):
        with pytest.raises(ControlError):
            read(b"i-1", value)


def test_a_member_that_a_later_version_adds_is_passed() -> None:
    assert control.decode_request(b"i-1", as_json(request(), later=1)) == request()
    assert control.decode_status(b"w", as_json(status(), later=1)) == status()


def test_a_status_is_read_as_it_was_written() -> None:
    answers = [control.answer(request(), "done", now=NOW, ok=True)]
    stopped = Standing(
        ready=False, reasons=["x"], health=Health(breaker="open", ceiling=True, remedy="r"), intake="stopped"
    )
    found = status(standing=stopped, answers=answers, listening=False)
    assert control.decode_status(b"w", control.encode(found)) == found
    assert (found.intake, found.reasons, found.answers) == ("stopped", ["x"], answers)
    with pytest.raises(ControlError, match="its key is 'v', its worker 'w'"):
        control.decode_status(b"v", control.encode(found))


def test_what_is_long_is_cut_before_it_is_said() -> None:
    long = "x" * 10_000
    assert len(control.answer(request(), long, now=NOW, ok=False).detail) == 500
    shown = status(standing=Standing(ready=False, reasons=[long] * 100))
    assert {len(reason) for reason in shown.reasons} == {500}
    assert len(control.encode(shown)) < 20_000


def test_a_silent_worker_is_dead_and_forgotten_after_an_hour() -> None:
    def ago(seconds: float) -> Status:
        return status(now=NOW - timedelta(seconds=seconds))

    assert [control.alive(ago(seconds), NOW) for seconds in (0, 20, 20.5, 7200)] == [True, True, False, False]
    assert control.alive(ago(-3600), NOW)
    assert control.age_s(ago(-3600), NOW) == 0
    assert control.forgotten({"a": ago(1), "b": ago(3600), "c": ago(3601)}, NOW) == ["c"]


def test_numbers_alone_make_no_difference() -> None:
    assert not control.differs(WELL, Standing(ready=True, assignment={"t": [0, 1]}, counters=Counters(records=6)))
    for other in (
        Standing(ready=False, assignment={"t": [0, 1]}),
        Standing(ready=True, assignment={"t": [0]}),
        Standing(ready=True, assignment={"t": [0, 1]}, intake="stopped"),
        Standing(ready=True, assignment={"t": [0, 1]}, health=Health(breaker="open")),
        Standing(ready=True, assignment={"t": [0, 1]}, reasons=["x"]),
    ):
        assert control.differs(WELL, other)


def test_whom_a_request_concerns() -> None:
    assert control.concerns("stop", "decode", "decode")
    assert control.concerns("stop", control.EVERY, "decode")
    assert not control.concerns("stop", "store-x", "decode")
    assert control.concerns("delete", control.EVERY, "store-x")
    assert not control.concerns("delete", control.EVERY, "decode")
    for action in ("acknowledge", "resolve"):
        assert control.concerns(action, "analyze", "analyze")
        assert control.concerns(action, control.EVERY, "analyze")
        assert not control.concerns(action, control.EVERY, "store-x")


def reply(worker: str, stage: str = "store-x", why: str = "", *, ok: bool = True, mine: bool = True) -> Reply:
    said = Answer(id="i", ok=ok, detail=f"said by {worker}", at=NOW, mine=mine)
    return Reply(worker=worker, stage=stage, answer=None if why else said, why=why)


def test_all_must_have_done_it() -> None:
    assert control.problems("flush", [reply("a"), reply("b")], ["store-x"]) == []
    assert control.problems("flush", [reply("a"), reply("b", ok=False), reply("c", why="is gone")], ["store-x"]) == [
        "b: said by b",
        "c: is gone",
    ]


def test_somebody_must_be_there() -> None:
    (named,) = control.problems("stop", [], ["store-x"])
    assert named.startswith("store-x: no live worker")
    (anybody,) = control.problems("stop", [], [])
    assert "no live worker of any stage" in anybody


def test_in_each_store_one_must_have_deleted() -> None:
    stages = ["store-x", "store-y"]
    done = [reply("a", mine=False), reply("b"), reply("c", "store-y")]
    assert control.problems("delete", done, stages) == []
    nobodys = [reply("a", mine=False), reply("b", mine=False), reply("c", "store-y")]
    (said,) = control.problems("delete", nobodys, stages)
    assert said.startswith("store-x: no live worker has the device's partition")
    assert control.problems("delete", done[:2], stages)[0].startswith("store-y: no live worker;")
    # Who failed is named, and that is enough.
    assert control.problems("delete", [*done[:2], reply("c", "store-y", ok=False)], stages) == ["c: said by c"]


@pytest.mark.parametrize("action", ["acknowledge", "resolve"])
def test_of_the_workers_that_have_alarms_one_must_have_done_it(action: control.Action) -> None:
    others = reply("a", "analyze", mine=False)
    assert control.problems(action, [others, reply("b", "analyze")], ["analyze"]) == []
    (said,) = control.problems(action, [others], ["analyze"])
    assert said.startswith("analyze: no live worker has the device's partition")
    (said,) = control.problems(action, [], ["analyze"])
    assert "start one with iotflow worker analyze" in said


def test_what_is_wrong_with_workers_is_named() -> None:
    old = NOW - timedelta(seconds=30)
    well = {"a": status("a"), "b": status("b", stage="decode"), "c": status("c", now=old)}
    assert control.unwell(well, NOW) == []  # the dead one's stage has a live worker
    ill = {
        **well,
        "d": status("d", Standing(ready=False, reasons=["one", "two"])),
        "e": status("e", now=old, stage="s"),
    }
    assert control.unwell(ill, NOW) == ["d: one; two", "s: its workers have been silent for more than 20 s"]
    assert len(control.unwell({}, NOW)) == 1


def test_what_a_person_can_do_is_said_in_the_same_line() -> None:
    health = control.Health(breaker="open", remedy="no table x:\n  run iotflow schema apply")
    away = status("a", Standing(ready=False, reasons=["storing needs a person"], health=health))
    assert control.unwell({"a": away}, NOW) == ["a: storing needs a person: no table x: run iotflow schema apply"]


@pytest.mark.parametrize(
    ("numbers", "shown"), [([], ""), ([3], "3"), ([0, 1, 2, 3], "0-3"), ([7, 1, 0, 3], "0-1,3,7"), ([4, 5], "4-5")]
)
def test_partitions_are_shown_as_ranges(numbers: list[int], shown: str) -> None:
    assert _ranges(numbers) == shown
