"""`iotflow dlq` on a real broker: letters as they stand on their topic, and what is done with them."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from aiokafka.structs import TopicPartition
from click.testing import CliRunner, Result

from app import check, deadletters, kafka, topics
from app.cli import main
from app.settings import Settings, load
from schemas import wire
from schemas.deadletter import Letter, letter, source_of
from schemas.letterstate import Filter, Mark, encode_mark, plan
from schemas.partition import partition_of, partition_of_key
from schemas.reading import Reading, Rejected
from schemas.reasons import Reason
from tests.lab.apps import create, unique

ROOT = Path(__file__).parents[2]
STORE = "store-timescale"
NOW_MS = time.time_ns() // 1_000_000
BLOCK = 5
SECRET = "s3cr3t-v4lue"  # noqa: S105  it must not be seen


class Raw(NamedTuple):
    """A record that some stage refused."""

    topic: str
    offset: int
    partition: int = 3
    timestamp: int = NOW_MS - 60_000
    key: bytes | None = b"sensor-1"
    value: bytes | None = b'{"x":1}'
    headers: Sequence[tuple[str, bytes | None]] = (("a", b"b"), ("null", None), ("a", b"again"))


class Command:
    """`iotflow dlq` on topics of the test's own; its raw topic is behind offset 100 in every partition."""

    def __init__(self, servers: str, **more: str) -> None:
        name = unique("dlq")
        self.raw = f"{name}-raw"
        self.env = {
            "KAFKA_BOOTSTRAP_SERVERS": servers,
            "KAFKA_RAW_TOPICS": f"{self.raw}:telemetry",
            "KAFKA_INPUT_TOPIC": f"{name}-in",
            "IOTFLOW_DEAD_LETTER_TOPIC": f"{name}-dead",
            "IOTFLOW_DEAD_LETTER_STATE_TOPIC": f"{name}-state",
            "IOTFLOW_REGISTRY_TOPIC": f"{name}-registry",
            "STORES": "timescale,influxdb",
            "COLUMNS": "250",
            **more,
        }
        self.settings: Settings = load(self.env)
        self.decoded = self.settings.topics.decoded

    def __call__(self, *arguments: str, code: int = 0) -> Result:
        done = CliRunner().invoke(main, ["dlq", *arguments], env=self.env)
        assert done.exit_code == code, (done.output, done.exception)
        return done

    def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", code=code).stdout)

    def ls(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self("ls", *arguments, "--json", code=code).stdout.splitlines()]

    def states(self) -> dict[str, str]:
        return {each["id"]: each["state"] for each in self.ls("--state", "all", "--limit", "0")}

    def create(self) -> None:
        """Make the topics that are not there yet."""

        async def run() -> None:
            async with kafka.admin(self.settings) as admin:
                planned = await topics.plan(admin, topics.wanted(self.settings))
                await topics.apply(admin, topics.Plan(create=planned.create))

        asyncio.run(run())
        for topic in (self.raw, self.decoded):
            self.produce([(topic, number % 4, None, b"before", []) for number in range(400)])

    def produce(self, records: Sequence[tuple[str, int, bytes | None, bytes | None, Any]]) -> None:
        async def run() -> None:
            async with AIOKafkaProducer(**kafka.client_args(self.settings), linger_ms=5) as producer:
                sends = [
                    await producer.send(topic, value, key, partition=partition, headers=headers)
                    for topic, partition, key, value, headers in records
                ]
                await asyncio.gather(*sends)

        asyncio.run(run())

    def write(self, *letters: Letter) -> None:
        topic = self.settings.topics.dead_letters
        self.produce([(topic, partition_of_key(made.key, 4), made.key, made.value, made.headers) for made in letters])

    def refused(
        self,
        offset: int,
        index: int = 0,
        *,
        reason: Reason = "bad_type",
        error: str = "x is odd",
        now_ms: int = NOW_MS,
        limit: int = 100_000,
        **record: Any,
    ) -> Letter:
        """The letter of a raw record."""
        raw = Raw(self.raw, offset, **record)
        return letter(
            raw, Rejected(reason, error), stage="decode", index=index, version="1.2.3", now_ms=now_ms,
            max_value_bytes=limit, dialect="telemetry",
        )  # fmt: skip

    def unstored(self, device: str, offset: int) -> Letter:
        """The letter of a decoded record."""
        value = wire.write(Reading("m", device, datetime(2026, 1, 2, tzinfo=UTC), {"x": 1.0}, dialect="fire"))
        source = f"{self.raw}/0/{offset}/0"
        headers = wire.headers(source.encode(), 7)
        record = Raw(self.decoded, offset, partition_of(device, 4), NOW_MS, device.encode(), value, headers)
        return letter(
            record, Rejected("refused", "it says no"), stage=STORE, index=0, source=source_of(record),
            version="1.2.3", now_ms=NOW_MS, max_value_bytes=100_000,
        )  # fmt: skip

    def records(self, topic: str) -> list[Any]:
        """What came to a topic since it was made."""
        found = asyncio.run(check.tail(self.settings, topic))
        return [record for record in found if record.value != b"before"]


@pytest.fixture
def command(kafka_servers: str) -> Command:
    found = Command(kafka_servers)
    found.create()
    return found


def test_letters_are_listed_newest_first_and_each_once(command: Command) -> None:
    first, second = command.refused(1, now_ms=NOW_MS - 9000), command.refused(2, reason="unknown_device")
    command.write(first, second, first, first, command.unstored("dev-1", 3))
    found = command.ls()
    assert [each["id"] for each in found[-1:]] == [first.id]
    assert {each["id"] for each in found} == {first.id, second.id, f"{STORE}:{command.raw}/0/3/0"}
    assert found[-1] == {
        "id": first.id, "state": "open", "replays": 0, "attempt": 1, "stage": "decode", "reason": "bad_type",
        "dialect": "telemetry", "device": "sensor-1", "topic": command.raw, "partition": 3, "offset": 1,
        "failed": iso(NOW_MS - 9000), "bytes": 7, "whole": True, "error": "x is odd",
    }  # fmt: skip

    limited = command("ls", "--json", "--limit", "1")
    assert len(limited.stdout.splitlines()) == 1
    assert "1 of 3 letters shown" in limited.stderr
    for arguments, ids in {
        ("--reason", "unknown_device"): {second.id},
        ("--stage", STORE): {f"{STORE}:{command.raw}/0/3/0"},
        ("--device", "dev-1", "--device", "nobody"): {f"{STORE}:{command.raw}/0/3/0"},
        ("--dialect", "telemetry"): {first.id, second.id},
        ("--topic", command.decoded): {f"{STORE}:{command.raw}/0/3/0"},
        ("--until", iso(NOW_MS - 5000)): {first.id},
        ("--since", iso(NOW_MS - 5000), "--topic", command.raw): {second.id},
        ("--since", "999w", first.id): {first.id},
        ("--state", "dropped"): set(),
    }.items():
        assert {each["id"] for each in command.ls(*arguments)} == ids, arguments

    table = command("ls").stdout.splitlines()
    assert table[0].split() == ["letter", "state", "failed", "attempt", "device", "reason", "error"]
    assert len(table) == 4
    done = command("ls", "decode:nobody/0/0/0", code=1)
    assert "there is no letter decode:nobody/0/0/0" in done.stderr


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_counting(command: Command) -> None:
    letters = [command.refused(number, key=b"a" if number < 3 else b"b") for number in range(5)]
    command.write(*letters, letters[0], command.unstored("dev-1", 3))
    command.produce([(command.settings.topics.dead_letters, 0, b"key", b"no letter", [])])
    command("drop", letters[0].id)
    found = command.json("stats", "--state", "all", "--by", "stage", "--by", "state")
    assert found["letters"] == 6
    assert found["stage"] == {"decode": 5, STORE: 1}
    assert found["device"] == {"a": 3, "b": 2, "dev-1": 1}
    assert found["state"] == {"open": 5, "dropped": 1}
    assert found["by"] == [
        {"stage": "decode", "state": "open", "letters": 4},
        {"stage": "decode", "state": "dropped", "letters": 1},
        {"stage": STORE, "state": "open", "letters": 1},
    ]
    assert (found["repeated_records"], found["strange_records"]) == (1, 1)
    done = command("stats", "--top", "1")
    assert "1 record of the topics cannot be read as letters" in done.stderr
    assert done.stdout.startswith("5 letters\n")
    assert [line.split() for line in command("stats", "--by", "device").stdout.splitlines()[2:]] == [
        ["letters", "device"], ["2", "a"], ["2", "b"], ["1", "dev-1"],
    ]  # fmt: skip


def test_all_that_is_known_of_a_letter_is_shown_and_no_secret(command: Command) -> None:
    payload = {"device_id": "d", "api_key": SECRET, "note": f'{{"token": "{SECRET}"}}'}
    good = {**payload, "timestamp": NOW_MS, "temperature": 20, "humidity": 2, "battery": 3, "note": "n"}
    headers = [("x-api-key", SECRET.encode()), ("plain", b"yes\x1b[2J"), ("null", None)]
    bad = command.refused(1, value=json.dumps(payload).encode(), headers=headers, error="timestamp is missing")
    mended = command.refused(2, value=json.dumps(good).encode(), timestamp=NOW_MS)
    command.write(bad, bad, mended, command.refused(3, value=b"\xff" * 9), command.refused(4, value=None))
    command.write(command.refused(5, value=f'{{"password": "{SECRET}'.encode()), command.unstored("dev-1", 6))
    command("replay", bad.id)

    shown = command("show", bad.id)
    assert SECRET not in shown.output
    assert "\x1b" not in shown.output
    for words in (
        "replayed, sent again: 1",
        "bad_type: a field holds another kind of value than it must",
        "timestamp is missing",
        f"{command.raw}, partition 3, offset 1",
        "x-api-key: ***",
        "null: null",
        '"api_key": "***"',
        "still refused: missing_field: ",
        "iotflow 1.2.3",
    ):
        assert words in shown.stdout, words
    found = command.json("show", bad.id)
    assert SECRET not in json.dumps(found)
    assert (found["state"], found["replays"], found["key"], found["received"]) == (
        "replayed", 1, "sensor-1", iso(NOW_MS - 60_000),
    )  # fmt: skip
    assert [each["attempt"] for each in found["tries"]] == [1, 1]
    assert [each["state"] for each in found["marks"]] == ["replayed"]
    assert [each["reason"] for each in found["now"]["refusals"]] == ["missing_field"]
    assert command("show", bad.id, "--raw").stdout_bytes == json.dumps(payload).encode()

    assert "now it would be decoded as:" in command("show", mended.id).stdout
    (reading,) = command.json("show", mended.id)["now"]["readings"]
    assert reading["values"] == {"temperature": 20.0, "humidity": 2.0, "battery": 3.0, "note": "n"}
    binary = command("show", command.refused(3).id)
    assert "9 bytes that are no text" in binary.stdout
    assert command("show", command.refused(3).id, "--raw").stdout_bytes == b"\xff" * 9
    assert "no value" in command("show", command.refused(4).id).stdout
    assert SECRET not in command("show", command.refused(5).id).output
    unstored = command.json("show", f"{STORE}:{command.raw}/0/6/0")
    assert (unstored["now"], unstored["device"]) == (None, "dev-1")
    assert "iotflow dlq ls" in command("show", "decode:x", code=1).stderr


def test_raw_records_go_back_as_they_were_in_their_order(command: Command) -> None:
    letters = [
        command.refused(9),
        command.refused(7, key=None, value=b"\x00\xff"),
        command.refused(8, 1, partition=1),
        command.refused(8, 4, partition=1),
        command.refused(6, value=None),
    ]
    command.write(*letters)
    dry = command.json("replay", "--dry-run")
    assert dry == {"dry_run": True, "records": 4, "letters": 5, "kept_open": 0, "stopped": False, "skipped": {}}
    assert command.records(command.raw) == []

    done = command.json("replay")
    assert done == {"dry_run": False, "records": 4, "letters": 5, "kept_open": 0, "stopped": False, "skipped": {}}
    found = command.records(command.raw)
    assert [(record.partition, record.key, record.value) for record in sorted(found, key=place)] == [
        (1, b"sensor-1", b'{"x":1}'),
        (3, b"sensor-1", None),
        (3, None, b"\x00\xff"),
        (3, b"sensor-1", b'{"x":1}'),
    ]
    for record in found:
        assert tuple(record.headers[BLOCK:]) == (("a", b"b"), ("null", None), ("a", b"again"))
        assert record.headers[0] == ("iotflow-target", b"decode")
        assert record.timestamp >= NOW_MS
        assert dict(record.headers)["iotflow-orig-timestamp"] == b"%d" % (NOW_MS - 60_000)
        assert dict(record.headers)["iotflow-dlq-attempt"] == b"2"
    first = min(found, key=place)
    # They lie in two partitions of their topic, of which either may be read first.
    assert set(dict(first.headers)["iotflow-dlq-id"].decode().split(",")) == {letters[2].id, letters[3].id}
    assert set(command.states().values()) == {"replayed"}
    assert command.json("replay")["records"] == 0
    assert len(command.records(command.raw)) == 4


def place(record: Any) -> tuple[int, int]:
    return record.partition, record.offset


def test_what_fails_again_is_open_again_and_comes_to_an_end(command: Command) -> None:
    made = command.refused(1)
    command.write(made)
    for attempt in range(1, 4):
        assert command.json("replay", "--max-attempts", "4")["letters"] == 1
        assert command.states() == {made.id: "replayed"}
        *_, record = command.records(command.raw)
        made = letter(
            record, Rejected("old", "still"), stage="decode", index=0, version="1", now_ms=NOW_MS, max_value_bytes=9999
        )
        command.write(made)
        (open_again,) = command.ls()
        assert (open_again["id"], open_again["attempt"], open_again["replays"]) == (made.id, attempt + 1, attempt)
    left = command.json("replay", "--max-attempts", "4", code=3)
    assert left["records"] == 0
    assert left["skipped"]["attempts"]["examples"] == [made.id]
    assert "--max-attempts" in command("replay", "--max-attempts", "4", code=3).stderr
    assert len(command.records(command.raw)) == 3


def test_what_a_store_refused_goes_to_that_store_alone(command: Command) -> None:
    devices = [f"dev-{number}" for number in range(8)]
    command.write(*[command.unstored(device, number) for number, device in enumerate(devices)])
    other = command.json("replay", "--device", "dev-0", "--to", "store-influxdb")
    assert (other["letters"], other["kept_open"]) == (1, 1)
    own, elsewhere = len(devices), command.records(command.decoded)
    assert [record.headers[0] for record in elsewhere] == [("iotflow-target", b"store-influxdb")]
    assert {each["state"] for each in command.ls()} == {"open"}  # its own store has not got it
    assert (command.json("replay")["letters"], command.ls()) == (own, [])
    found = [record for record in command.records(command.decoded) if place(record) != place(elsewhere[0])]
    assert len(found) == own
    assert {record.partition for record in found} == {partition_of(device, 4) for device in devices}
    for record in found:
        device = wire.read(record.value).device_id
        assert record.partition == partition_of(device, 4)
        assert record.headers[0] == ("iotflow-target", STORE.encode())
        assert [name for name, _ in record.headers[BLOCK:]] == ["iotflow-v", "iotflow-src", "iotflow-ingest-ms"]
    assert "no stage is called 'store-x'" in command("replay", "--to", "store-x", code=2).stderr


def test_what_cannot_be_sent_is_said_and_the_rest_is_sent(kafka_servers: str) -> None:
    """A letter that was cut, one without a reader, and those that are too large: by the settings, and by the topic."""
    command = Command(kafka_servers, IOTFLOW_MAX_MESSAGE_BYTES="200000")
    asyncio.run(create(kafka_servers, command.raw, 4, **{"max.message.bytes": "90000"}))
    asyncio.run(create(kafka_servers, command.settings.topics.dead_letters, 4, **{"max.message.bytes": "900000"}))
    command.create()
    cut = command.refused(1, value=b"x" * 150_000)
    elsewhere = command.refused(2)
    headers = [(name, b"elsewhere" if name == "iotflow-orig-topic" else value) for name, value in elsewhere.headers]
    large = command.refused(3, value=b"x" * 199_950, limit=200_000)
    larger = command.refused(4, value=os.urandom(95_000))
    command.write(
        cut, Letter(elsewhere.id, "old", b"{}", headers), large, larger, command.refused(5), command.refused(0)
    )
    done = command.json("replay", code=3)
    assert {why: each["examples"] for why, each in done["skipped"].items()} == {
        "cut": [cut.id], "no_reader": [elsewhere.id], "too_large": [large.id, larger.id],
    }  # fmt: skip
    assert {record.value for record in command.records(command.raw)} == {b'{"x":1}'}
    assert [id_ for id_, state in sorted(command.states().items()) if state == "replayed"] == [
        command.refused(0).id, command.refused(5).id,
    ]  # fmt: skip
    said = command("replay", code=3).stderr
    assert "which was too large" in said
    assert "IOTFLOW_MAX_MESSAGE_BYTES" in said


def test_letters_that_are_far_apart_are_found_and_one_that_is_gone_is_said(command: Command) -> None:
    letters = [command.refused(number, value=b"%d" % number, headers=()) for number in range(15_000)]
    command.write(*letters)
    chosen = Filter(ids=frozenset(letters[number].id for number in (5, 6, 14_000, 9_999, 77)))

    async def run() -> Any:
        index = await deadletters.index(command.settings)
        made = plan(index, chosen, readers=deadletters.readers(command.settings), max_attempts=5)
        admin = AIOKafkaAdminClient(**kafka.client_args(command.settings))
        await admin.start()
        gone = next(again.letter for again in made.records if again.letter.id == letters[6].id)
        where = TopicPartition(command.settings.topics.dead_letters, gone.partition)
        await admin.delete_records({where: RecordsToDelete(gone.offset + 1)})
        await admin.close()
        return gone.partition, await deadletters.replay(command.settings, made)

    partition, done = asyncio.run(run())
    kept = [
        number for number in (5, 77, 9_999, 14_000) if number > 6 or partition_of_key(letters[5].key, 4) != partition
    ]
    assert [record.value for record in command.records(command.raw)] == [b"%d" % number for number in kept]
    assert letters[6].id in done.skipped["gone"]


def test_dropping_marks_and_deletes_nothing(command: Command) -> None:
    command.write(command.refused(1), command.refused(2, reason="old"), command.refused(3, reason="old"))
    assert "--reason" in command("drop", code=2).stderr
    assert "2 letters would be dropped" in command("drop", "--reason", "old", "--dry-run").stdout
    assert set(command.states().values()) == {"open"}
    assert "2 letters dropped" in command("drop", "--reason", "old").stdout
    assert sorted(command.states().values()) == ["dropped", "dropped", "open"]
    assert command.json("replay")["letters"] == 1
    named = command("replay", command.refused(2).id)
    assert "is dropped: --state all" in named.stderr
    assert command.json("replay", "--state", "dropped")["letters"] == 2
    assert set(command.states().values()) == {"replayed"}
    assert len(command.records(command.settings.topics.dead_letters)) == 3


def test_marks_that_nobody_can_read_change_nothing(command: Command) -> None:
    made = command.refused(1)
    command.write(made)
    other = Mark("dropped", 9, datetime(2026, 1, 2, tzinfo=UTC), "0" * 16)
    state = command.settings.topics.dead_letter_state
    partition = partition_of_key(made.key, 4)
    command.produce([(state, partition, made.key, value, []) for value in (b"{", encode_mark(other), None)])
    assert command.states() == {made.id: "open"}


def run(command: Command, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "from app.cli import main; main()", "dlq", *arguments],
        cwd=ROOT, env={"PATH": os.environ["PATH"], **command.env},  # noqa: TID251  what a process needs to run at all
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_who_is_interrupted_goes_on_where_he_was(command: Command, how: signal.Signals) -> None:
    """Nothing is left out, and no more is sent twice than was on its way."""
    letters = [command.refused(number, value=b"%d" % number) for number in range(400)]
    command.write(*letters)
    process = run(command, "replay", "--rate", "20/s", "--json")
    deadline = time.monotonic() + 60
    while not command.records(command.raw):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
    process.send_signal(how)
    output, _ = process.communicate(timeout=30)
    sent = len(command.records(command.raw))
    marked = sum(state == "replayed" for state in command.states().values())
    assert 0 < sent < 400
    assert sent - marked in {0, 20}
    if how is not signal.SIGKILL:
        assert process.returncode == 130
        assert json.loads(output)["stopped"] is True
        assert sent == marked == json.loads(output)["records"]

    assert command.json("replay")["letters"] == 400 - marked
    found = [int(record.value) for record in command.records(command.raw)]
    assert set(found) == set(range(400))
    assert len(found) == 400 + sent - marked
    assert set(command.states().values()) == {"replayed"}


def test_without_its_topics_it_says_how_to_make_them(kafka_servers: str) -> None:
    command = Command(kafka_servers)
    for arguments in (("ls",), ("stats",), ("show", "x"), ("replay",), ("drop", "x")):
        assert "iotflow topics apply" in command(*arguments, code=1).stderr
