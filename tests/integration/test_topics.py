"""Topics on a real broker: planned, created, put right and never more than that."""

import asyncio
import dataclasses
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from click.testing import CliRunner, Result

from app import kafka, topics
from app.cli import main
from app.settings import Settings, load
from tests.lab.apps import made, own_topics, unique

DAY_MS = 86_400_000


@pytest.fixture
def settings(kafka_servers: str) -> Settings:
    """Settings whose topics nobody else has."""
    return load({"KAFKA_BOOTSTRAP_SERVERS": kafka_servers, **own_topics(unique("topics"))})


@pytest.fixture
async def admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    async with kafka.admin(settings) as client:
        yield client


async def config_of(admin: AIOKafkaAdminClient, name: str) -> dict[str, str]:
    (response,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)])
    return {entry[0]: entry[1] for entry in response.resources[0][4]}


async def partitions_of(admin: AIOKafkaAdminClient, name: str) -> int:
    return len((await admin.describe_topics([name]))[0]["partitions"])


async def test_a_plan_is_carried_out_once(settings: Settings, admin: AIOKafkaAdminClient) -> None:
    wanted = topics.wanted(settings)
    names = [topic.name for topic in wanted]
    assert await topics.missing(settings) == names

    plan = await topics.plan(admin, wanted)
    assert [topic.name for topic in plan.create] == names
    assert await topics.apply(admin, plan) == plan
    assert await topics.missing(settings) == []
    assert await partitions_of(admin, names[0]) == 4
    config = await config_of(admin, settings.topics.dead_letters)
    assert config["retention.ms"] == str(30 * DAY_MS)
    assert config["max.message.bytes"] == str(1_048_588 + 65_536)

    # The same plan again, as after a crash, and a new one.
    again = await topics.apply(admin, plan)
    assert (again.create, again.change, again.unchanged) == ([], [], names)
    assert await topics.plan(admin, wanted) == topics.Plan([], [], [], names)


async def test_a_created_topic_can_be_written_at_once(settings: Settings, admin: AIOKafkaAdminClient) -> None:
    await topics.apply(admin, await topics.plan(admin, topics.wanted(settings)))
    async with AIOKafkaProducer(**kafka.client_args(settings), request_timeout_ms=2000) as producer:
        for partition in range(4):
            await producer.send_and_wait(settings.topics.decoded, b"x", partition=partition)


async def test_a_change_leaves_every_other_setting_alone(settings: Settings, admin: AIOKafkaAdminClient) -> None:
    """What aiokafka's own `alter_configs` would reset: settings that somebody else made."""
    (raw, *_) = topics.wanted(settings)
    theirs = {"retention.ms": "1000", "segment.ms": "123456789", "max.message.bytes": "9000000"}
    await made(admin, NewTopic(raw.name, raw.partitions, 1, topic_configs=theirs))

    plan = await topics.plan(admin, [raw])
    assert plan.change == [topics.Change(raw.name, {"retention.ms": ("1000", str(7 * DAY_MS))})]
    assert await topics.apply(admin, plan) == plan

    config = await config_of(admin, raw.name)
    assert config["retention.ms"] == str(7 * DAY_MS)
    assert (config["segment.ms"], config["max.message.bytes"]) == ("123456789", "9000000")
    assert not (await topics.plan(admin, [raw])).pending


async def test_several_may_apply_at_once(settings: Settings, admin: AIOKafkaAdminClient) -> None:
    plan = await topics.plan(admin, topics.wanted(settings))
    done = await asyncio.gather(*(topics.apply(admin, plan) for _ in range(5)))
    created = [topic.name for one in done for topic in one.create]
    assert sorted(created) == sorted(topic.name for topic in plan.create)
    assert not any(one.refused for one in done)


async def test_a_topic_created_meanwhile_is_put_right_or_refused(
    settings: Settings, admin: AIOKafkaAdminClient
) -> None:
    raw, decoded, dead, *_ = topics.wanted(settings)
    plan = await topics.plan(admin, [raw, decoded, dead])
    theirs = NewTopic(raw.name, raw.partitions, 1, topic_configs={"retention.ms": "1000"})
    await made(admin, theirs, NewTopic(decoded.name, 7, 1))
    done = await topics.apply(admin, plan)
    assert [topic.name for topic in done.create] == [dead.name]
    assert done.change[0] == topics.Change(raw.name, {"retention.ms": ("1000", str(7 * DAY_MS))})
    assert [refusal.name for refusal in done.refused] == [decoded.name]
    assert (await config_of(admin, raw.name))["retention.ms"] == str(7 * DAY_MS)
    assert await partitions_of(admin, decoded.name) == 7


@pytest.mark.parametrize("partitions", [2, 6])
async def test_a_partition_count_is_never_changed(
    settings: Settings, admin: AIOKafkaAdminClient, partitions: int
) -> None:
    decoded = topics.wanted(settings)[1]
    await made(admin, NewTopic(decoded.name, partitions, 1))
    done = await topics.apply(admin, await topics.plan(admin, [decoded]))
    assert [refusal.name for refusal in done.refused] == [decoded.name]
    assert await partitions_of(admin, decoded.name) == partitions


async def test_what_the_broker_will_not_do_is_said(settings: Settings, admin: AIOKafkaAdminClient) -> None:
    raw = dataclasses.replace(topics.wanted(settings)[0], replication=3)
    with pytest.raises(topics.TopicsError, match=rf"cannot create {raw.name}: .*replica"):
        await topics.apply(admin, topics.Plan(create=[raw]))
    raw = dataclasses.replace(raw, replication=1)
    await topics.apply(admin, topics.Plan(create=[raw]))
    odd = topics.Plan(change=[topics.Change(raw.name, {"retention.ms": ("1", "soon")})])
    with pytest.raises(topics.TopicsError, match=rf"settings of {raw.name}: .*soon"):
        await topics.apply(admin, odd)


async def test_a_topic_that_does_not_come_is_not_waited_for_without_end(
    settings: Settings, admin: AIOKafkaAdminClient
) -> None:
    plan = topics.Plan(change=[topics.Change("nobody.made.this", {"retention.ms": ("1", "2")})])
    with pytest.raises(topics.TopicsError, match=r"nobody\.made\.this"):
        await topics.apply(admin, plan, timeout=0.3)


class Command:
    """`iotflow topics` with the settings in its environment."""

    def __init__(self, settings: Settings) -> None:
        name = settings.topics.decoded.removesuffix("-decoded")
        self.env = {"KAFKA_BOOTSTRAP_SERVERS": settings.kafka.bootstrap_servers, **own_topics(name)}

    def __call__(self, *arguments: str, **env: str) -> Result:
        """Run it."""
        return CliRunner().invoke(main, ["topics", *arguments], env={**self.env, **env})

    def json(self, *arguments: str, **env: str) -> tuple[int, Any]:
        """Run it with `--json`: exit code and output."""
        done = self(*arguments, "--json", **env)
        return done.exit_code, json.loads(done.stdout)


def test_the_command_says_what_there_is_to_do_by_its_exit_code(settings: Settings) -> None:
    run = Command(settings)
    names = [topic.name for topic in topics.wanted(settings)]

    code, plan = run.json("plan")
    assert code == 2
    assert [topic["name"] for topic in plan["create"]] == names
    code, done = run.json("apply")
    assert (code, done) == (0, plan)
    code, plan = run.json("plan")
    assert (code, plan) == (0, {"create": [], "change": [], "refused": [], "unchanged": names})
    assert run.json("apply") == (0, plan)

    code, plan = run.json("plan", IOTFLOW_MAX_MESSAGE_BYTES="2000000")
    assert code == 2
    assert plan["change"][0] == {
        "name": names[0],
        "config": {"max.message.bytes": {"from": "1048588", "to": "2000000"}},
    }
    code, plan = run.json("plan", IOTFLOW_PARTITIONS="5")
    assert code == 1
    # What every process reads whole always has one.
    assert [refusal["name"] for refusal in plan["refused"]] == [
        topic.name for topic in topics.wanted(settings) if not topic.whole
    ]
    assert run.json("apply", IOTFLOW_PARTITIONS="5")[0] == 1


def test_the_command_prints_a_table_for_people(settings: Settings) -> None:
    run = Command(settings)
    planned = run("plan", COLUMNS="200")
    assert planned.exit_code == 2
    line = next(line for line in planned.stdout.splitlines() if settings.topics.decoded in line)
    assert "create" in line
    assert "partitions=4" in line
    assert "retention.ms=604800000" in line
    assert "created" in run("apply", COLUMNS="200").stdout
    refused = run("plan", COLUMNS="400", IOTFLOW_PARTITIONS="3")
    assert refused.exit_code == 1
    assert "which partition owns a device" in refused.stdout


def test_the_command_says_why_it_cannot(settings: Settings) -> None:
    run = Command(settings)
    away = run("plan", KAFKA_BOOTSTRAP_SERVERS="127.0.0.1:1")
    assert away.exit_code == 1
    assert "Kafka at 127.0.0.1:1 (PLAINTEXT) refuses connections" in away.stderr
    wrong = run("plan", IOTFLOW_PARTITIONS="many")
    assert wrong.exit_code == 1
    assert "IOTFLOW_PARTITIONS" in wrong.stderr
    impossible = run("apply", IOTFLOW_REPLICATION="3")
    assert impossible.exit_code == 1
    assert f"cannot create {next(iter(settings.topics.raw))}" in impossible.stderr
