"""What topics there should be, and what a plan makes of those that are there."""

import dataclasses
from typing import Any

import pytest

from app.settings import Settings, Topics
from app.topics import Change, Existing, Plan, Refusal, Topic, compare, wanted

DAY_MS = 86_400_000
TOPIC = Topic("decoded", 4, {"cleanup.policy": "delete", "retention.ms": str(7 * DAY_MS)}, keyed=True)


def there(topic: Topic = TOPIC, **differing: Any) -> dict[str, Existing]:
    """The topic on the broker, as wanted but for what differs, among settings we do not make."""
    config = {"segment.ms": "604800000", **topic.config, **differing.pop("config", {})}
    given = {"partitions": topic.partitions, "replication": topic.replication, "config": config}
    return {"other": Existing(1, 1, {}), topic.name: Existing(**{**given, **differing})}


def the_only_refusal(plan: Plan) -> Refusal:
    assert len(plan.refused) == 1
    return plan.refused[0]


def test_every_topic_of_the_settings_is_wanted() -> None:
    topics = Topics(
        raw={"a": "telemetry", "b": "telemetry"},
        decoded="in",
        decode_output="out",
        dead_letters="dead",
        dead_letter_state="state",
        registry="registry",
        control="control",
        status="status",
        storage_metadata="metadata",
        saved="saved",
        partitions=6,
        max_message_bytes=2_000_000,
    )
    found = {topic.name: topic for topic in wanted(Settings(topics=topics, app_prefix="p"))}
    broadcast = {"registry", "control", "status", "iotflow.rules"}
    tables = {f"p-analyze-{table}-changelog" for table in ("state", "windows", "histograms")}
    kept = {"iotflow.alarms", "iotflow.latest"}
    passing = {"iotflow.aggregates", "iotflow.late", "iotflow.quality", "iotflow.quarantine"}
    events = {"datalake.sensorDataAnomalyDetected"}
    events |= {"controlTower.warningAlertIssued", "controlTower.emergencyAlertIssued"}
    own = {"a", "b", "in", "out", "dead", "state", "metadata", "saved"}
    assert set(found) == {*own, *broadcast, *tables, *kept, *passing, *events}
    # What every process reads whole has one partition: what is said of two keys has one order then.
    assert {topic.partitions for name, topic in found.items() if name in broadcast} == {1}
    assert {topic.partitions for name, topic in found.items() if name not in broadcast} == {6}
    assert {name for name, topic in found.items() if topic.keyed} == {"in", "out", *tables, *kept, *passing}
    week = {"cleanup.policy": "delete", "retention.ms": str(7 * DAY_MS), "max.message.bytes": "2000000"}
    assert all(found[name].config == week for name in ("a", "b", "in", "out"))
    # A letter is the record it is about, and its headers.
    month = {"cleanup.policy": "delete", "retention.ms": str(30 * DAY_MS), "max.message.bytes": str(2_000_000 + 65_536)}
    assert found["dead"].config == month
    # Every process reads all of it at each start: in one order, and without what is long outdated.
    compacted = {
        "cleanup.policy": "compact",
        "min.cleanable.dirty.ratio": "0.1",
        "segment.ms": "600000",
        "max.message.bytes": "2000000",
    }
    assert all(found[name].config == compacted for name in ("registry", "status", "state", *kept))
    # Its newest word on an interval, for a month.
    assert found["metadata"].config == {
        **compacted,
        "cleanup.policy": "compact,delete",
        "retention.ms": str(30 * DAY_MS),
    }
    assert found["control"].config["retention.ms"] == str(DAY_MS)


def test_a_topic_named_twice_is_wanted_once() -> None:
    names = [topic.name for topic in wanted(Settings())]
    assert len(names) == len(set(names))
    assert names[:3] == ["raw_iot_data", "decoded_iot_data", "iotflow.dead_letters"]


@pytest.mark.parametrize(("replicas", "in_sync"), [(1, None), (2, None), (3, "2"), (5, "2")])
def test_two_replicas_must_agree_where_one_can_be_away(replicas: int, in_sync: str | None) -> None:
    for topic in wanted(Settings(topics=Topics(replication=replicas))):
        assert topic.replication == replicas
        assert topic.config.get("min.insync.replicas") == in_sync


def test_a_missing_topic_is_created() -> None:
    plan = compare([TOPIC], {"other": Existing(4, 1, {})})
    assert plan == Plan(create=[TOPIC], change=[], refused=[], unchanged=[])
    assert plan.pending


def test_a_topic_as_it_should_be_is_left_alone() -> None:
    plan = compare([TOPIC], there())
    assert plan == Plan(create=[], change=[], refused=[], unchanged=["decoded"])
    assert not plan.pending


def test_only_the_setting_that_differs_is_changed() -> None:
    plan = compare([TOPIC], there(config={"retention.ms": "1000", "segment.ms": "5"}))
    assert plan.change == [Change("decoded", {"retention.ms": ("1000", str(7 * DAY_MS))})]
    assert plan.pending


def test_a_setting_the_broker_does_not_report_is_set() -> None:
    existing = {"decoded": Existing(4, 1, {"cleanup.policy": "delete"})}
    assert compare([TOPIC], existing).change == [Change("decoded", {"retention.ms": (None, str(7 * DAY_MS))})]


@pytest.mark.parametrize(
    ("name", "least", "found", "enough"),
    [
        ("retention.ms", "1000", "1000", True),
        ("retention.ms", "1000", "1001", True),
        ("retention.ms", "1000", "999", False),
        ("retention.ms", "1000", "-1", True),
        ("max.message.bytes", "2000000", "1048588", False),
        ("max.message.bytes", "2000000", "9000000", True),
        ("min.insync.replicas", "2", "1", False),
        ("segment.ms", "600000", "604800000", False),
        ("segment.ms", "600000", "600000", True),
        ("segment.ms", "600000", "60000", True),
        ("min.cleanable.dirty.ratio", "0.1", "0.5", False),
        ("min.cleanable.dirty.ratio", "0.1", "0.1", True),
        ("cleanup.policy", "delete", "delete", True),
        ("cleanup.policy", "delete", "compact", False),
        ("cleanup.policy", "delete", "compact,delete", False),
        ("cleanup.policy", "compact,delete", "delete, compact", True),
    ],
)
def test_a_number_is_a_floor_and_a_word_is_a_word(name: str, least: str, found: str, *, enough: bool) -> None:
    topic = Topic("t", 1, {name: least}, replication=3)
    assert compare([topic], there(topic, config={name: found})).pending is not enough


@pytest.mark.parametrize("partitions", [3, 5])
def test_another_partition_count_is_refused_and_says_why(partitions: int) -> None:
    plan = compare([TOPIC], there(partitions=partitions))
    refusal = the_only_refusal(plan)
    assert refusal.name == "decoded"
    assert f"has {partitions} partitions, 4 wanted" in refusal.reason
    assert "which partition owns a device" in refusal.reason
    assert f"IOTFLOW_PARTITIONS={partitions}" in refusal.reason
    assert not plan.pending
    assert not plan.unchanged


def test_where_no_device_owns_a_partition_the_reason_is_another() -> None:
    raw = dataclasses.replace(TOPIC, keyed=False)
    reason = the_only_refusal(compare([raw], there(raw, partitions=1))).reason
    assert reason.startswith("has 1 partition, 4 wanted")
    assert "owns a device" not in reason


def test_what_every_process_reads_whole_stays_in_one_partition() -> None:
    """The reason and the remedy are its own: IOTFLOW_PARTITIONS says nothing of it."""
    topic = Topic("registry", 1, {}, whole=True)
    reason = the_only_refusal(compare([topic], there(topic, partitions=3))).reason
    assert reason.startswith("has 3 partitions, 1 wanted")
    assert "reads it whole" in reason
    assert "IOTFLOW_PARTITIONS" not in reason
    assert "iotflow registry" in reason


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"registry": "raw"}, "`registry` and `raw` both name 'raw'"),
        ({"registry": "in"}, "`registry` and `decoded` both name 'in'"),
        ({"registry": "out"}, "`registry` and `decode_output` both name 'out'"),
        ({"registry": "dead"}, "`registry` and `dead_letters` both name 'dead'"),
        ({"dead_letters": "raw"}, "`dead_letters` and `raw` both name 'raw'"),
    ],
)
def test_no_two_uses_share_a_topic(names: dict[str, str], said: str) -> None:
    given = {"raw": {"raw": "telemetry"}, "decoded": "in", "decode_output": "out", "dead_letters": "dead"}
    with pytest.raises(ValueError, match=said):
        Topics.model_validate({**given, **names}, by_name=True)


def test_what_is_not_refused_of_a_topic_is_still_changed() -> None:
    plan = compare([TOPIC], there(partitions=1, config={"retention.ms": "1000"}))
    assert the_only_refusal(plan).name == "decoded"
    assert [change.name for change in plan.change] == ["decoded"]


def test_fewer_replicas_are_refused_and_more_are_welcome() -> None:
    topic = dataclasses.replace(TOPIC, replication=2)
    reason = the_only_refusal(compare([topic], there(topic, replication=1))).reason
    assert "has 1 replica, 2 wanted" in reason
    assert "kafka-reassign-partitions" in reason
    assert "IOTFLOW_REPLICATION=1" in reason
    assert compare([topic], there(topic, replication=3)).unchanged == ["decoded"]


def test_more_replicas_are_never_asked_to_agree_than_there_are() -> None:
    """With min.insync.replicas above the replica count every acknowledged write would fail."""
    topic = Topic("t", 1, {"min.insync.replicas": "2"}, replication=3)
    plan = compare([topic], there(topic, replication=1, config={"min.insync.replicas": "1"}))
    assert not plan.pending
    assert the_only_refusal(plan).name == "t"
