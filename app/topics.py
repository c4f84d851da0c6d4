"""Topics as data: which ones there should be, what differs from that, and how it is put right."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from aiokafka import errors
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int8, Int16, Int32, Schema, String

from app import kafka
from app.settings import Settings
from schemas import deadletter

_DAY_MS: Final = 24 * 60 * 60 * 1000
#: Compaction leaves the segment alone that is written to.
_SEGMENT_MS: Final = 10 * 60 * 1000
#: Three times as long as state of 30,000 series takes to be restored.
_RESTORE_MS: Final = 60 * 1000
#: With this many replicas, one may be away while every acknowledged record is still on two.
_SAFE_REPLICAS: Final = 3
_APPLY_SECONDS: Final = 60.0
_SEGMENT_BYTES: Final = 8 * 2**20
_AT_MOST: Final = frozenset({"segment.ms", "segment.bytes"})
#: The tables of the stage `analyze`: what is known of each series, and what that has let go of.
TABLES: Final = ("state", "windows", "histograms")


@dataclass(frozen=True)
class Topic:
    """A topic as it should be.

    In `config` a number is the least there should be (a longer retention or a larger message limit was somebody's
    decision, and cutting it would lose data), of `_AT_MOST` the most, and a word is what it is. `keyed` is for a topic
    where a device's records must stay in the partition they are in, `whole` for one that every process reads from its
    beginning.
    """

    name: str
    partitions: int
    config: Mapping[str, str]
    replication: int = 1
    keyed: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Existing:
    """A topic as it is; `replication` is that of its least replicated partition."""

    partitions: int
    replication: int
    config: Mapping[str, str]


@dataclass(frozen=True)
class Change:
    """Settings of one topic to change: name to (what it is, what it should be)."""

    name: str
    config: Mapping[str, tuple[str | None, str]]


@dataclass(frozen=True)
class Refusal:
    """Something that is not as wanted and is never changed in place; `reason` says why and what to do."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What `apply` would do, or what it did."""

    create: Sequence[Topic] = ()
    change: Sequence[Change] = ()
    refused: Sequence[Refusal] = ()
    unchanged: Sequence[str] = ()

    @property
    def pending(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.create or self.change)


class TopicsError(RuntimeError):
    """The broker would not do as it was asked; the text names the topic."""


def wanted(settings: Settings) -> list[Topic]:
    """The topics this configuration needs, each once."""
    topics = settings.topics
    limit = topics.max_message_bytes
    safe = {"min.insync.replicas": "2"} if topics.replication >= _SAFE_REPLICAS else {}

    def topic(name: str, days: int, max_bytes: int, *, keyed: bool = False) -> Topic:
        config = {
            "cleanup.policy": "delete",
            "retention.ms": str(days * _DAY_MS),
            "max.message.bytes": str(max_bytes),
            **safe,
        }
        return Topic(name, topics.partitions, config, topics.replication, keyed)

    compacted = {
        "cleanup.policy": "compact",
        # So that what is outdated goes soon: all of it is read at each start.
        "min.cleanable.dirty.ratio": "0.1",
        "segment.ms": str(_SEGMENT_MS),
        "max.message.bytes": str(limit),
        **safe,
    }
    metadata = {**compacted, "cleanup.policy": "compact,delete", "retention.ms": str(30 * _DAY_MS)}
    changelog = {
        **compacted,
        "segment.bytes": str(_SEGMENT_BYTES),
        # A worker that restores a table reads while the cleaner cleans: what it is about to read stays for a while. Not
        # for long: all of it is read at a start without a disk.
        "min.compaction.lag.ms": str(_RESTORE_MS),
    }
    analyze = settings.app_id("analyze")
    found = [
        *(topic(name, 7, limit) for name in topics.raw),
        topic(topics.decoded, 7, limit, keyed=True),
        topic(topics.decode_output, 7, limit, keyed=True),
        topic(topics.dead_letters, 30, limit + deadletter.OVERHEAD_BYTES),
        Topic(topics.dead_letter_state, topics.partitions, compacted, topics.replication),
        # One partition: what is said of two keys has one order then, whoever's producer wrote it.
        Topic(topics.registry, 1, compacted, topics.replication, whole=True),
        Topic(topics.status, 1, compacted, topics.replication, whole=True),
        replace(topic(topics.control, 1, limit), partitions=1, whole=True),
        topic(topics.saved, 7, limit),
        topic(topics.aggregates, 7, limit, keyed=True),
        Topic(topics.alarms, topics.partitions, compacted, topics.replication, keyed=True),
        topic(topics.anomalies, 7, limit),
        topic(topics.warnings, 7, limit),
        topic(topics.emergencies, 7, limit),
        Topic(topics.latest, topics.partitions, compacted, topics.replication, keyed=True),
        Topic(topics.rules, 1, compacted, topics.replication, whole=True),
        topic(topics.late, 7, limit, keyed=True),
        topic(topics.quality, 7, limit, keyed=True),
        topic(topics.quarantine, 7, limit, keyed=True),
        Topic(topics.storage_metadata, topics.partitions, metadata, topics.replication),
        *(
            # Faust's own names of its tables' changelogs, which must have as many partitions as what is read.
            Topic(f"{analyze}-{table}-changelog", topics.partitions, changelog, topics.replication, keyed=True)
            for table in TABLES
        ),
    ]
    return list({topic.name: topic for topic in found}.values())


def compare(topics: Iterable[Topic], existing: Mapping[str, Existing]) -> Plan:
    """What would have to happen for `existing` to be as `topics` want it."""
    create: list[Topic] = []
    change: list[Change] = []
    refused: list[Refusal] = []
    unchanged: list[str] = []
    for topic in topics:
        found = existing.get(topic.name)
        if found is None:
            create.append(topic)
            continue
        reasons = _refusals(topic, found)
        refused += reasons
        differing = {
            name: (found.config.get(name), value)
            for name, value in topic.config.items()
            if not _satisfies(name, found.config.get(name), value)
        }
        if found.replication < int(topic.config.get("min.insync.replicas", "1")):
            # With fewer replicas than must agree, no record could be written any more.
            differing.pop("min.insync.replicas", None)
        if differing:
            change.append(Change(topic.name, differing))
        elif not reasons:
            unchanged.append(topic.name)
    return Plan(create, change, refused, unchanged)


async def plan(admin: Any, topics: Iterable[Topic]) -> Plan:
    """Compare the topics with what the brokers have; `admin` is a started `AIOKafkaAdminClient`."""
    topics = list(topics)
    return compare(topics, await _existing(admin, {topic.name for topic in topics}))


async def apply(admin: Any, planned: Plan, *, timeout: float = _APPLY_SECONDS) -> Plan:
    """Carry out a plan, wait until its topics have leaders and the brokers show their settings; say what was done.

    What the plan refuses stays as it is and does not hold up the rest. A topic that somebody else has created in the
    meantime is compared and put right like any other, which may refuse it. Raises `TopicsError`.
    """
    created = await _create(admin, planned.create)
    raced = [topic for topic in planned.create if topic not in created]
    names = {topic.name for topic in planned.create} | {change.name for change in planned.change}
    await _wait_for_leaders(admin, names, timeout)
    late = await plan(admin, raced)
    changes = [*planned.change, *late.change]
    await _alter(admin, changes)
    await _wait_for_settings(admin, changes, timeout)
    return Plan(created, changes, [*planned.refused, *late.refused], [*planned.unchanged, *late.unchanged])


async def missing(settings: Settings) -> list[str]:
    """Which of the topics this configuration needs are not there; `iotflow topics apply` makes them.

    Raises what `kafka.probe` raises.
    """
    names = [topic.name for topic in wanted(settings)]
    async with kafka.admin(settings) as admin:
        there = await _described(admin, set(names))
    return [name for name in names if name not in there]


def _satisfies(name: str, found: str | None, value: str) -> bool:
    if found is None:
        return False
    try:
        has, least = int(found), int(value)
    except ValueError:
        # A list of words (`compact,delete`) comes back in an order of its own.
        return set(found.replace(" ", "").split(",")) == set(value.split(","))
    if name in _AT_MOST:
        return has <= least
    return has >= least or (name.startswith("retention.") and has < 0)


def _refusals(topic: Topic, found: Existing) -> list[Refusal]:
    refused = []
    if found.partitions != topic.partitions and topic.whole:
        refused.append(
            Refusal(
                topic.name,
                f"has {_count(found.partitions, 'partition')}, {topic.partitions} wanted. It is never changed in "
                "place: every process reads it whole, and only in one partition all of it has one order. Keep what it "
                "says, delete it, apply again and write it anew (iotflow registry ls, iotflow registry apply).",
            )
        )
    elif found.partitions != topic.partitions:
        why = (
            "the partition count decides which partition owns a device, so with another count its stored state and "
            "its new records would part"
            if topic.keyed
            else "with another count records of one key would no longer be in one partition, in order"
        )
        refused.append(
            Refusal(
                topic.name,
                f"has {_count(found.partitions, 'partition')}, {topic.partitions} wanted. It is never changed in "
                f"place: {why}. Set IOTFLOW_PARTITIONS={found.partitions}, or let the workers drain this topic, stop "
                "them, delete it and apply again.",
            )
        )
    if found.replication < topic.replication:
        refused.append(
            Refusal(
                topic.name,
                f"has {_count(found.replication, 'replica')}, {topic.replication} wanted. Moving replicas is the "
                "cluster's work: use kafka-reassign-partitions, or set "
                f"IOTFLOW_REPLICATION={found.replication}.",
            )
        )
    return refused


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


async def _described(admin: Any, names: set[str]) -> dict[str, dict[str, Any]]:
    # All topics and then ours: aiokafka's request for named topics lets the broker create what it does not have.
    described = await admin.describe_topics()
    return {
        topic["topic"]: topic
        for topic in described
        if topic["topic"] in names and topic["error_code"] != errors.UnknownTopicOrPartitionError.errno
    }


async def _existing(admin: Any, names: set[str]) -> dict[str, Existing]:
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType  # noqa: PLC0415  only with an admin

    described = await _described(admin, names)
    if not described:
        return {}
    configs: dict[str, dict[str, str]] = {}
    responses = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in described])
    for response in responses:
        for code, message, _, name, entries in response.resources:
            if code == errors.UnknownTopicOrPartitionError.errno:
                continue  # deleted since it was listed
            _check(f"cannot read the settings of {name}", code, message)
            configs[name] = {entry[0]: entry[1] for entry in entries}
    return {
        name: Existing(
            partitions=len(topic["partitions"]),
            replication=min((len(partition["replicas"]) for partition in topic["partitions"]), default=0),
            config=configs[name],
        )
        for name, topic in described.items()
        if name in configs
    }


async def _create(admin: Any, topics: Sequence[Topic]) -> list[Topic]:
    """Create the topics and return those that did not exist yet."""
    from aiokafka.admin import NewTopic  # noqa: PLC0415  only with an admin

    if not topics:
        return []
    response = await admin.create_topics(
        [NewTopic(t.name, t.partitions, t.replication, topic_configs=dict(t.config)) for t in topics]
    )
    created = set()
    for name, code, message in response.topic_errors:  # aiokafka raises nothing here
        if code == errors.TopicAlreadyExistsError.errno:
            continue
        _check(f"cannot create {name}", code, message)
        created.add(name)
    return [topic for topic in topics if topic.name in created]


async def _alter(admin: Any, changes: Sequence[Change]) -> None:
    if not changes:
        return
    # Not `alter_configs`: it resets every setting that it is not given, whoever made it.
    request = _IncrementalAlterConfigs(
        [
            (_TOPIC_RESOURCE, change.name, [(name, _SET, to) for name, (_, to) in change.config.items()])
            for change in changes
        ]
    )
    response = await admin._send_to_controller(request)  # noqa: SLF001  what aiokafka lacks goes the way its own go
    for code, message, _, name in response.resources:
        _check(f"cannot change the settings of {name}", code, message)


async def _wait_for_settings(admin: Any, changes: Sequence[Change], seconds: float) -> None:
    """Brokers learn what the controller has changed a moment after it has answered."""
    waiting = {change.name: change.config for change in changes}
    try:
        async with asyncio.timeout(seconds):
            while waiting:
                existing = await _existing(admin, set(waiting))
                waiting = {
                    name: config
                    for name, config in waiting.items()
                    if name in existing
                    and any(not _satisfies(key, existing[name].config.get(key), to) for key, (_, to) in config.items())
                }
                if waiting:
                    await asyncio.sleep(0.1)
    except TimeoutError as error:
        raise TopicsError(
            f"the brokers do not show the new settings of {', '.join(sorted(waiting))} after {seconds:g} s"
        ) from error


async def _wait_for_leaders(admin: Any, names: set[str], seconds: float) -> None:
    if not names:
        return
    waiting = names
    try:
        async with asyncio.timeout(seconds):
            while waiting:
                described = await _described(admin, names)
                waiting = {name for name in names if not _led(described.get(name))}
                if waiting:
                    await asyncio.sleep(0.1)
    except TimeoutError as error:
        raise TopicsError(
            f"no leaders after {seconds:g} s for {', '.join(sorted(waiting))}: are enough brokers up?"
        ) from error


def _led(topic: dict[str, Any] | None) -> bool:
    return bool(
        topic is not None
        and topic["error_code"] == 0
        and topic["partitions"]
        and all(partition["leader"] >= 0 for partition in topic["partitions"])
    )


def _check(what: str, code: int, message: str | None) -> None:
    if code:
        kind = errors.for_code(code)
        raise TopicsError(f"{what}: {message or kind.description}") from kind(message)


_TOPIC_RESOURCE: Final = 2
_SET: Final = 0


# aiokafka 0.14 does not know this request (KIP-339, Kafka 2.3): it changes the settings it names and no other.
class _IncrementalAlterConfigsResponse(Response):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "resources",
            Array(
                ("error_code", Int16),
                ("error_message", String("utf-8")),
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
            ),
        ),
    )


class _IncrementalAlterConfigsStruct(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = _IncrementalAlterConfigsResponse
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("resource_type", Int8),
                ("resource_name", String("utf-8")),
                (
                    "configs",
                    Array(("name", String("utf-8")), ("config_operation", Int8), ("value", String("utf-8"))),
                ),
            ),
        ),
        ("validate_only", Boolean),
    )


class _IncrementalAlterConfigs(Request[_IncrementalAlterConfigsStruct]):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = 44

    def __init__(self, resources: list[tuple[int, str, list[tuple[str, int, str]]]]) -> None:
        self._resources = resources

    def build(self, request_struct_class: type[_IncrementalAlterConfigsStruct]) -> _IncrementalAlterConfigsStruct:
        return request_struct_class(self._resources, False)
