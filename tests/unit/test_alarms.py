"""The life of an alarm: what each signal, moment and person does to it, and what is said of it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.alarm import QUIET, SEVERITIES, Alarm, Facts, Severity, Signal, State, Subject, Transition, event_id, rank
from tables.alarms import (
    Outcome,
    Policy,
    acknowledge,
    due,
    expire,
    rebaseline,
    resolve,
    step,
    withdraw,
    worst,
)

S = 1_000_000
M = 60 * S
T0 = 1_760_000_000 * S
POLICY = Policy()
LEVELS: dict[str, Severity | None] = {"-": None, "i": "INFO", "w": "WARN", "e": "EMERGENCY"}


def signal(severity: Severity | None, value: float = 1.0) -> Signal:
    return QUIET if severity is None else Signal(severity, value, 0.5, f"it is {value}")


class Life:
    """An alarm and all that was said of it; a signal a second unless said otherwise."""

    def __init__(self, policy: Policy = POLICY) -> None:
        self.alarm: Alarm | None = None
        self.said: list[Transition] = []
        self.now = T0
        self.policy = policy

    def take(self, outcome: Outcome) -> "Life":
        self.alarm, said = outcome
        self.said += said
        return self

    def see(self, levels: str, every: int = S, *, replayed: bool = False) -> "Life":
        """Signals by their first letters, `-` where nothing is wrong."""
        for level in levels:
            self.take(step(self.alarm, signal(LEVELS[level]), self.now, self.policy, replayed))
            self.now += every
        return self

    def wait(self, micros: int) -> "Life":
        self.now += micros
        return self if self.alarm is None else self.take(expire(self.alarm, self.now, self.policy))

    @property
    def there(self) -> Alarm:
        assert self.alarm is not None
        return self.alarm

    @property
    def changes(self) -> list[str]:
        return [said.change for said in self.said]


# -- the usual life ----------------------------------------------------------------------------------------------------


def test_nothing_comes_of_nothing() -> None:
    life = Life().see("---")
    assert (life.alarm, life.said) == (None, [])


@pytest.mark.parametrize(
    ("levels", "changes", "state"),
    [
        ("w", ["raised"], "ACTIVE"),
        ("wwww", ["raised"], "ACTIVE"),
        ("we", ["raised", "escalated"], "ACTIVE"),
        ("iwe", ["raised", "escalated", "escalated"], "ACTIVE"),
        ("ew", ["raised", "deescalated"], "ACTIVE"),
        ("w-", ["raised", "cleared"], "CLEARED"),
        ("w---", ["raised", "cleared"], "CLEARED"),
        ("w-w", ["raised", "cleared", "raised"], "ACTIVE"),
        ("ee-ww", ["raised", "cleared", "raised"], "ACTIVE"),
    ],
)
def test_signals(levels: str, changes: list[str], state: State) -> None:
    life = Life().see(levels)
    assert life.changes == changes
    assert life.there.state == state


def test_the_same_severity_again_changes_only_what_is_known() -> None:
    life = Life().see("w")
    life.take(step(life.there, Signal("WARN", 7, 5, "now 7", 2, 1, 3), life.now, POLICY, replayed=False))
    found = life.there
    assert (found.value, found.threshold, found.message, found.score, found.low, found.high) == (7, 5, "now 7", 2, 1, 3)
    assert (found.raised_at, found.updated_at, found.measured_at) == (T0, T0 + S, T0 + S)
    assert life.changes == ["raised"]


def test_what_was_wrong_is_still_known_when_it_is_cleared() -> None:
    found = Life().see("e-").there
    assert (found.severity, found.value, found.message) == ("EMERGENCY", 1.0, "it is 1.0")
    assert (found.measured_at, found.ended_at, found.updated_at) == (T0, T0 + S, T0 + S)


def test_a_new_alarm_knows_nothing_of_the_one_before() -> None:
    life = Life().see("w")
    life.take(acknowledge(life.there, "ann", life.now)).see("-w")
    found = life.there
    assert (found.acknowledged_by, found.acknowledged_at, found.ended_at) == ("", 0, 0)
    assert found.raised_at == T0 + 2 * S


def test_a_transition_shows_the_alarm_as_it_was_then() -> None:
    life = Life().see("we-")
    assert [(said.alarm.severity, said.alarm.state) for said in life.said] == [
        ("WARN", "ACTIVE"),
        ("EMERGENCY", "ACTIVE"),
        ("EMERGENCY", "CLEARED"),
    ]
    assert [said.at for said in life.said] == [T0, T0 + S, T0 + 2 * S]


def test_an_older_signal_says_nothing_of_now() -> None:
    life = Life().see("w")
    for late in (QUIET, signal("EMERGENCY")):
        life.take(step(life.there, late, T0 - 1, POLICY, replayed=False))
    assert (life.changes, life.there.severity) == (["raised"], "WARN")


def test_whole_numbers_are_kept_as_what_is_read_back_of_them() -> None:
    alarm, _ = step(None, Signal("WARN", 7, 5, "", 2, 1, 3), T0, POLICY, replayed=False)
    restored = msgspec.msgpack.decode(msgspec.msgpack.encode(alarm), type=Alarm)
    assert msgspec.json.encode(restored) == msgspec.json.encode(alarm)
    for value in (True, "open"):
        alarm, _ = step(None, Signal("WARN", value), T0, POLICY, replayed=False)
        assert alarm is not None
        assert alarm.value is value


def test_facts_are_the_last_signals() -> None:
    one, other = Facts("SMOKE", 1, unit="ppm"), Facts("SMOKE", 2, unit="ppm", label="CRITICAL")
    alarm, _ = step(None, signal("WARN"), T0, POLICY, replayed=False, facts=one)
    assert alarm is not None
    assert alarm.facts == one
    alarm, (said,) = step(alarm, signal("EMERGENCY"), T0 + S, POLICY, replayed=False, facts=other)
    assert said.alarm.facts == other


# -- people ------------------------------------------------------------------------------------------------------------


def test_who_acknowledged_is_known_and_once_is_enough() -> None:
    life = Life().see("w")
    life.take(acknowledge(life.there, "ann", life.now)).take(acknowledge(life.there, "bob", life.now + 1)).see("w")
    found = life.there
    assert (found.state, found.acknowledged_by, found.acknowledged_at) == ("ACKNOWLEDGED", "ann", T0 + S)
    assert life.changes == ["raised", "acknowledged"]


def test_worse_needs_another_acknowledgement_and_milder_does_not() -> None:
    life = Life().see("w")
    life.take(acknowledge(life.there, "ann", life.now)).see("e")
    assert life.there.state == "ACTIVE"
    assert life.there.acknowledged_by == "ann"  # it stays known who did
    life.take(acknowledge(life.there, "bob", life.now)).see("w")
    assert (life.there.state, life.there.acknowledged_by) == ("ACKNOWLEDGED", "bob")
    assert life.changes == ["raised", "acknowledged", "escalated", "acknowledged", "deescalated"]


def test_an_acknowledged_alarm_is_cleared_like_any() -> None:
    life = Life().see("w")
    life.take(acknowledge(life.there, "ann", life.now)).see("-")
    assert (life.there.state, life.changes[-1]) == ("CLEARED", "cleared")


def test_resolved_is_silent_until_it_was_right_once() -> None:
    life = Life().see("w")
    life.take(resolve(life.there, "ann", life.now)).see("www")
    assert (life.there.state, life.there.resolved_by, life.changes) == ("RESOLVED", "ann", ["raised", "resolved"])
    life.see("--w")
    assert life.changes == ["raised", "resolved", "raised"]
    assert life.there.resolved_by == ""


def test_resolved_and_worse_is_a_new_alarm() -> None:
    life = Life().see("e")
    life.take(resolve(life.there, "ann", life.now)).see("wwe")
    assert life.changes == ["raised", "resolved", "raised"]
    assert life.said[2].alarm.raised_at == T0 + 3 * S
    assert life.there.state == "ACTIVE"


@pytest.mark.parametrize("ended", ["w-", "resolved", "expired"])
def test_what_has_ended_cannot_be_acknowledged_or_resolved(ended: str) -> None:
    life = Life().see("w")
    if ended == "w-":
        life.see("-")
    elif ended == "resolved":
        life.take(resolve(life.there, "ann", life.now))
    else:
        life.wait(POLICY.silence)
    before = msgspec.msgpack.encode(life.there)
    for do in (acknowledge, resolve):
        assert do(life.there, "bob", life.now) == (life.there, [])
    assert msgspec.msgpack.encode(life.there) == before


# -- time --------------------------------------------------------------------------------------------------------------


def test_what_nothing_is_heard_of_expires_when_it_was_due() -> None:
    life = Life().see("w").wait(POLICY.silence - S - 1)
    assert life.changes == ["raised"]
    life.wait(2)
    assert (life.changes, life.there.state) == (["raised", "expired"], "EXPIRED")
    assert life.said[1].at == T0 + POLICY.silence
    life.see("w")
    assert life.changes == ["raised", "expired", "raised"]


def test_a_signal_after_a_long_silence_finds_the_alarm_expired_even_if_nobody_looked() -> None:
    life = Life().see("ww", every=2 * POLICY.silence)
    assert life.changes == ["raised", "expired", "raised"]
    assert life.said[1].at == T0 + POLICY.silence


def test_a_resolved_alarm_expires_in_silence() -> None:
    life = Life().see("w")
    life.take(resolve(life.there, "ann", life.now)).wait(POLICY.silence + POLICY.within)
    assert (life.alarm, life.changes) == (None, ["raised", "resolved"])


def test_what_is_cleared_is_forgotten_when_it_cannot_flap_any_more() -> None:
    life = Life().see("w-").wait(POLICY.within - S - 1)
    assert life.alarm is not None
    assert life.wait(1).alarm is None


def test_after_all_that_nothing_is_left() -> None:
    for levels in ("w", "we", "w-", "w-" * 8, "w-" * 8 + "w"):
        assert Life().see(levels).wait(POLICY.silence + 3 * POLICY.within).alarm is None, levels


# -- flapping ----------------------------------------------------------------------------------------------------------


def test_flapping_is_said_once_and_then_nothing_is() -> None:
    life = Life().see("w-" * 5 + "w")
    assert life.changes == ["raised", "cleared"] * 5 + ["flapping"]
    assert life.there.state == "FLAPPING"
    life.see("-w" * 500)
    assert len(life.said) == 11


def test_slow_enough_is_not_flapping() -> None:
    life = Life().see("w-" * 20, every=M)
    assert life.changes == ["raised", "cleared"] * 20


@pytest.mark.parametrize(("then", "state"), [("-", "CLEARED"), ("w", "ACTIVE")])
def test_it_settles_when_it_has_been_one_way_for_long_enough(then: str, state: State) -> None:
    life = Life().see("w-" * 6, every=M // 3)
    other = "-" if then == "w" else "w"
    life.see(other, every=M).see(then * 20, every=M)
    assert life.changes[11:] == ["settled"]
    settled = T0 + 5 * M + POLICY.within  # twelve signals in four minutes, and one for a minute
    assert (life.said[11].at, life.said[11].alarm.state) == (settled, state)
    assert life.said[11].alarm.updated_at == settled


def test_it_settles_also_when_no_signal_comes() -> None:
    life = Life().see("w-" * 6).wait(POLICY.within)
    assert (life.changes[11:], life.said[11].alarm.state) == (["settled"], "CLEARED")


def test_when_it_has_settled_while_nobody_spoke_is_when_it_changed_last() -> None:
    life = Life().see("w-" * 6 + "w").wait(2 * POLICY.within)
    assert life.there.updated_at == life.said[11].at == T0 + 12 * S + POLICY.within


def test_what_comes_after_it_has_settled_is_said_again() -> None:
    life = Life().see("w-" * 6)
    life.now += POLICY.within
    life.see("w-")
    assert life.changes[11:] == ["settled", "raised", "cleared"]


def test_a_severity_that_was_not_said_of_it_is_said_also_of_what_flaps() -> None:
    """A fire behind a loose contact."""
    life = Life().see("w-" * 6)
    life.take(acknowledge(life.there, "ann", life.now)).see("-e-w-e-e-")
    assert life.changes[11:] == ["acknowledged", "escalated"]
    assert (life.there.state, life.there.acknowledged) == ("FLAPPING", False)


def test_what_flaps_can_be_acknowledged_and_resolved() -> None:
    life = Life().see("w-" * 6 + "w")
    life.take(acknowledge(life.there, "ann", life.now))
    assert life.there.state == "FLAPPING"
    assert life.wait(POLICY.within).there.state == "ACKNOWLEDGED"
    life = Life().see("w-" * 6 + "w")
    life.take(resolve(life.there, "ann", life.now)).see("ww")
    assert life.there.state == "RESOLVED"
    assert life.see("-w").changes[11:] == ["resolved", "flapping"]


# -- detectors and rules -----------------------------------------------------------------------------------------------


def test_a_new_normal_level_ends_an_alarm() -> None:
    life = Life().see("w")
    life.take(rebaseline(life.there, life.now)).take(rebaseline(life.there, life.now))
    assert (life.changes, life.there.state, life.there.on) == (["raised", "rebaselined"], "CLEARED", False)
    assert life.see("w").changes[2:] == ["raised"]


def test_what_was_measured_before_a_new_normal_level_raises_nothing() -> None:
    life = Life().see("w")
    life.take(rebaseline(life.there, T0 + 9 * S)).see("w")
    assert life.changes == ["raised", "rebaselined"]


def test_a_new_normal_level_is_said_of_a_resolved_alarm_too() -> None:
    life = Life().see("w")
    life.take(resolve(life.there, "ann", life.now)).take(rebaseline(life.there, life.now))
    assert (life.changes[2:], life.there.state) == (["rebaselined"], "RESOLVED")


def test_without_its_rule_an_alarm_is_resolved_by_nobody() -> None:
    life = Life().see("w")
    life.take(withdraw(life.there, life.now))
    (said,) = life.said[1:]
    assert (life.alarm, said.change, said.alarm.state, said.alarm.resolved_by) == (None, "resolved", "RESOLVED", "")
    assert withdraw(Life().see("w-").there, T0) == (None, [])


# -- replay ------------------------------------------------------------------------------------------------------------


def paged(life: Life) -> list[tuple[str, bool]]:
    return [(said.change, said.replayed) for said in life.said]


def test_what_is_replayed_is_said_silently_and_paged_if_it_is_still_so() -> None:
    life = Life().see("we", replayed=True)
    assert life.there.replayed
    life.see("ee")
    assert paged(life) == [("raised", True), ("escalated", True), ("paged", False)]
    assert not life.there.replayed


def test_what_was_over_before_the_replay_was_pages_nobody() -> None:
    assert paged(Life().see("w-", replayed=True)) == [("raised", True), ("cleared", True)]
    assert paged(Life().see("w", replayed=True).see("-")) == [("raised", True), ("cleared", True)]


def test_of_what_nobody_heard_of_it_is_not_said_that_it_changed() -> None:
    assert paged(Life().see("w", replayed=True).see("e")) == [("raised", True), ("paged", False)]
    assert paged(Life().see("e", replayed=True).see("w")) == [("raised", True), ("paged", False)]


def test_what_somebody_acknowledged_is_not_paged_but_that_it_is_worse() -> None:
    for levels, said in (("w", []), ("e", [("escalated", False)])):
        life = Life().see("w", replayed=True)
        life.take(acknowledge(life.there, "ann", life.now)).see(levels)
        assert paged(life)[2:] == said


def test_what_got_worse_in_a_replay_is_paged_after_it() -> None:
    life = Life().see("w").see("e", replayed=True).see("e")
    assert paged(life) == [("raised", False), ("escalated", True), ("paged", False)]


def test_what_a_replay_says_of_a_live_alarm_is_silent() -> None:
    assert paged(Life().see("e").see("w-", replayed=True)) == [
        ("raised", False),
        ("deescalated", True),
        ("cleared", True),
    ]


def test_what_flapped_in_a_replay_is_paged_when_it_is_wrong_again() -> None:
    life = Life().see("w-" * 6, replayed=True).see("--w")
    assert paged(life)[10:] == [("flapping", True), ("paged", False)]


# -- devices -----------------------------------------------------------------------------------------------------------


def test_a_devices_alarm_is_its_worst_open_one() -> None:
    assert worst([]) is None
    cleared, warn, known, urgent = (Life().see(levels).there for levels in ("e-", "w", "e", "e"))
    acknowledge(known, "ann", T0 + S)
    assert worst([cleared]) is None
    assert worst([cleared, warn]) is warn
    assert worst([warn, known]) is known
    assert worst([known, warn, urgent, cleared]) is urgent


# -- laws --------------------------------------------------------------------------------------------------------------

ENDS = {"cleared", "resolved", "expired", "rebaselined"}
SMALL = Policy(raises=2, within=20 * S, silence=100 * S)
#: What flaps expires before it settles.
SHORT = Policy(raises=2, within=20 * S, silence=15 * S)
events = st.lists(
    st.tuples(
        st.sampled_from(["-", "-", "i", "w", "e", "look", "ack", "resolve", "rebaseline"]),
        st.sampled_from([0, 1, 5, 15, 25, 150]).map(lambda seconds: seconds * S),
        st.booleans(),
    ),
    max_size=60,
)


def live(life: Life, event: tuple[str, int, bool]) -> None:
    what, later, replayed = event
    life.now += later
    if what in LEVELS:
        life.see(what, every=0, replayed=replayed)
    elif life.alarm is not None:
        alarm, now = life.alarm, life.now
        actions = {
            "look": lambda: expire(alarm, now, life.policy),
            "ack": lambda: acknowledge(alarm, "ann", now),
            "resolve": lambda: resolve(alarm, "ann", now),
            "rebaseline": lambda: rebaseline(alarm, now),
        }
        life.take(actions[what]())


@given(events)
def test_an_alarm_ends_before_another_is_raised(events: list[tuple[str, int, bool]]) -> None:
    life = Life(SMALL)
    for event in events:
        live(life, event)
    standing = False
    for said in life.said:
        if said.change in {"raised", "flapping"}:
            assert not standing
            standing = True
        elif said.change in ENDS or said.alarm.state == "CLEARED":
            standing = False


@given(events)
def test_the_severity_is_the_last_signals(events: list[tuple[str, int, bool]]) -> None:
    life, last = Life(SMALL), None
    for event in events:
        live(life, event)
        if event[0] in LEVELS:
            last = LEVELS[event[0]]
            assert last is None or (life.there.on and life.there.severity == last)
        if last is None:
            assert life.alarm is None or not life.alarm.on


@given(events)
def test_packed_and_restored_anywhere_it_lives_on_the_same(events: list[tuple[str, int, bool]]) -> None:
    straight, packed = Life(SMALL), Life(SMALL)
    for event in events:
        live(straight, event)
        live(packed, event)
        if packed.alarm is not None:
            value = msgspec.msgpack.encode(packed.alarm)
            packed.alarm = msgspec.msgpack.decode(value, type=Alarm)
            assert msgspec.msgpack.encode(packed.alarm) == value
        assert packed.alarm == straight.alarm
    assert packed.said == straight.said


@given(events)
def test_looking_at_the_time_more_often_changes_nothing_that_is_said(events: list[tuple[str, int, bool]]) -> None:
    """So that ids are the same however often a worker looks, and across its restarts. People have another clock."""
    seldom, often = Life(SMALL), Life(SMALL)
    for what, later, replayed in events:
        if what not in LEVELS:
            continue
        often.wait(later // 2).wait(later - later // 2)
        seldom.now += later
        for life in (seldom, often):
            life.see(what, every=0, replayed=replayed)
    for life in (seldom, often):
        life.wait(300 * S)
    assert seldom.said == often.said
    assert [said.at for said in often.said] == sorted(said.at for said in often.said)


@given(st.lists(st.tuples(st.sampled_from("-iwe"), st.booleans()), max_size=80), st.sampled_from([1, 15, 25, 150]))
def test_there_are_no_more_transitions_than_changes(signals: list[tuple[str, bool]], every: int) -> None:
    """Of the severity, or to what is live; an alarm that expires or settles is one more, between signals far apart."""
    life = Life(SMALL)
    for level, replayed in signals:
        life.see(level, every=every * S, replayed=replayed)
    before = [("-", True), *signals]
    changes = sum(one != other for one, other in zip(before, signals, strict=False))
    alike = [said for said in life.said if said.change not in {"expired", "settled"}]
    expired = sum(said.change == "expired" for said in life.said)
    assert len(alike) <= changes + expired
    assert sum(said.change == "settled" for said in life.said) <= sum(said.change == "flapping" for said in life.said)


@given(events)
def test_little_is_remembered(events: list[tuple[str, int, bool]]) -> None:
    life = Life(SMALL)
    for event in events:
        live(life, event)
        if life.alarm is not None:
            assert len(life.alarm.raises) <= SMALL.raises + 1
            assert len(msgspec.msgpack.encode(life.alarm)) < 300
    if life.alarm is not None:
        assert life.wait(SMALL.silence + 2 * SMALL.within).alarm is None


@given(events, st.integers(0, 400), st.sampled_from([SMALL, SHORT]))
def test_it_is_due_when_time_does_something(events: list[tuple[str, int, bool]], later: int, policy: Policy) -> None:
    life = Life(policy)
    for event in events:
        live(life, event)
    if life.alarm is None:
        return
    now, when = life.now + later * S, due(life.alarm, policy)
    before = msgspec.msgpack.encode(life.alarm)
    alarm, said = expire(life.alarm, now, policy)
    changed = alarm is None or bool(said) or msgspec.msgpack.encode(alarm) != before
    assert changed is (now >= when)


@given(events)
def test_no_two_changes_have_one_id_unless_they_are_the_same(events: list[tuple[str, int, bool]]) -> None:
    life, subject = Life(SMALL), Subject("fire", "d", "", "smoke", "r")
    for event in events:
        live(life, event)
    ids = [event_id(subject, said) for said in life.said]
    assert len(set(ids)) == len({(said.change, said.at) for said in life.said})


def test_what_is_resolved_and_gets_worse_again_and_again_is_not_remembered_without_end() -> None:
    life = Life()
    for _ in range(50):
        life.see("ie")
        life.take(resolve(life.there, "ann", life.now))
        assert len(life.there.raises) <= POLICY.raises + 1


def test_what_flaps_may_expire_first() -> None:
    life = Life(SHORT).see("w-" * 2 + "w")
    assert life.there.state == "FLAPPING"
    assert due(life.there, SHORT) == T0 + 4 * S + SHORT.silence
    assert life.wait(SHORT.silence).changes[5:] == ["expired"]


def test_severities_are_in_order() -> None:
    assert [rank(severity) for severity in SEVERITIES] == [0, 1, 2]
