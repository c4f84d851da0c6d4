"""The main job under fire: whatever is killed, stopped or poisoned, each reading is stored once and nothing is lost.

Every store that there is a sink for takes part: all of them at once (`pipeline`) where the trouble is not a store's,
and one after the other (`one`) where it is.
"""

import asyncio
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from deploy.local.kafka import Kafka
from schemas import wire
from schemas.reading import Reading
from sinks.base import Selection
from tests.lab.apps import until
from tests.lab.pipeline import Pipeline
from tests.lab.stores import StoreLab

DOCUMENTED_OF_DECODE = ("ingestor_messages_total", "ingestor_valid_messages_total", "ingestor_invalid_messages_total")
DOCUMENTED_OF_A_STORE = (
    "ingestor_db_inserts_total",
    "ingestor_db_failures_total",
    "ingestor_batch_size",
    "ingestor_ingest_latency_seconds_count",
    "sink_up",
    "sink_query_seconds_count",
    "sink_batch_utilisation",
)


def over(labs: Sequence[StoreLab], **more: str) -> dict[str, str]:
    """The variables of a pipeline that stores to these."""
    merged = {name: value for lab in labs for name, value in lab.env.items()}
    return {**merged, "STORES": ",".join(lab.name for lab in labs), **more}


@pytest.fixture
def pipeline(kafka_servers: str, labs: list[StoreLab], tmp_path: Path) -> Pipeline:
    """Topics and groups of this test, and every store."""
    return Pipeline(kafka_servers, over(labs), tmp_path)


@pytest.fixture
def one(kafka_servers: str, lab: StoreLab, tmp_path: Path) -> Pipeline:
    """Topics and groups of this test, and one store."""
    return Pipeline(kafka_servers, over([lab]), tmp_path)


async def test_one_message_becomes_rows_and_one_becomes_a_letter(pipeline: Pipeline) -> None:
    """Good messages are stored by content, bad ones are dead letters with their bytes, and the workers stop cleanly."""
    async with pipeline as p:
        workers = await p.started_all()
        sent = await p.simulate(2000, bad=0.05)
        await p.settled()
        report = await p.check()

        assert {sent["good"]} == {found.expected for found in report.stores.values()}
        assert list(p.settings.stores) == list(report.stores)
        assert sent["good"] > 1800
        assert report.letters.expected == sent["bad"] > 50
        assert {0} == set(await asyncio.gather(*(worker.terminate() for worker in workers.values())))


async def test_kill_and_terminate_in_mid_batch(pipeline: Pipeline) -> None:
    """Workers of every stage killed and terminated while data flows: nothing lost, nothing doubled."""
    async with pipeline as p:
        workers = await p.started_all()
        sending = asyncio.create_task(p.simulate(45_000, rate=2500))
        for how in ("kill", "terminate"):
            for stage in reversed(p.stages):
                await asyncio.sleep(1.5)
                await getattr(workers[stage], how)()
                workers[stage] = await p.start(stage)
        await sending
        await p.settled()

        await p.check()


async def test_two_workers_and_a_rebalance(pipeline: Pipeline) -> None:
    """A second worker of each stage joins, and the first one leaves, while data flows."""
    async with pipeline as p:
        first = await p.started_all()
        sending = asyncio.create_task(p.simulate(40_000, rate=1500))
        await asyncio.sleep(2)
        second = await p.started_all()
        await asyncio.sleep(2)
        for worker in first.values():
            await worker.terminate()
        await sending
        await p.settled()

        await p.check()
        assert all(worker.metric("iotflow_records_total") > 0 for worker in second.values())


async def test_a_store_away_for_half_a_minute_is_noticed_by_no_other(
    kafka_servers: str, labs: list[StoreLab], tmp_path: Path, lab: StoreLab
) -> None:
    """An outage is waited out: the sink is unready but alive, and the others' lag stays flat; all is stored after.

    By then each of the documents' metrics has counted something.
    """
    places = [lab if each.name == lab.name else each for each in labs]
    async with Pipeline(kafka_servers, over(places), tmp_path) as p:
        workers = await p.started_all()
        away = workers.pop(lab.stage)
        sending = asyncio.create_task(p.simulate(32_000, rate=800))
        await asyncio.sleep(3)
        await asyncio.to_thread(lab.server.kill)
        await until(lambda: not away.ready(), 20)
        highest = await watched(p, list(workers), 30)
        assert away.get("/health/live")[0] == 200
        assert all(worker.ready() for worker in workers.values())
        await asyncio.to_thread(lab.server.start)
        await until(away.ready, 30)
        await sending
        await p.settled()

        report = await p.check()
        for name in DOCUMENTED_OF_DECODE:
            assert workers["decode"].metric(name) > 0, name
        for name in DOCUMENTED_OF_A_STORE:
            assert away.metric(name) > 0, name
        assert all(worker.metric("ingestor_db_failures_total") == 0 for worker in workers.values())
        assert report.letters.repeated == 0
        print(f"highest lag while {lab.name} was away: {highest}")
        # Some seconds of the load: what a busy machine needs, and far from the 24,000 of the outage.
        assert max(highest.values()) < 4000


async def watched(pipeline: Pipeline, stages: Sequence[str], seconds: float) -> dict[str, int]:
    """The highest true lag that each stage had in a while, in records."""
    highest = dict.fromkeys(stages, 0)
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while loop.time() < deadline:
        for stage in stages:
            highest[stage] = max(highest[stage], await pipeline.lag(stage))
        await asyncio.sleep(0.5)
    return highest


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_store_away_for_three_minutes_with_a_kill_and_a_join(
    kafka_servers: str, labs: list[StoreLab], tmp_path: Path, lab: StoreLab
) -> None:
    """In a long outage one worker is killed and another joins; afterwards everything is stored once."""
    places = [lab if each.name == lab.name else each for each in labs]
    await _long_outage(kafka_servers, places, [lab], tmp_path)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_two_stores_away_for_three_minutes(
    kafka_servers: str, labs: list[StoreLab], tmp_path: Path, lab: StoreLab
) -> None:
    """All stores but one are away at once, with kills and joins; the one that is there notices nothing."""
    places = [lab if each.name == lab.name else each for each in labs]
    await _long_outage(kafka_servers, places, [each for each in places if each is not lab], tmp_path)


async def _long_outage(servers: str, places: Sequence[StoreLab], away: Sequence[StoreLab], folder: Path) -> None:
    async with Pipeline(servers, over(places), folder) as p:
        others = [each.stage for each in places if each not in away]
        await p.started_all(["decode", *others])
        first = [await p.started(each.stage) for each in away]
        second = [await p.started(each.stage) for each in away]
        sending = asyncio.create_task(p.simulate(100_000, rate=500))
        await asyncio.sleep(5)
        for each in away:
            await asyncio.to_thread(each.server.stop)
        highest = await watched(p, others, 60)
        for worker in first:
            await worker.kill()
        highest = most(highest, await watched(p, others, 60))
        third = [await p.start(each.stage) for each in away]
        highest = most(highest, await watched(p, others, 60))
        for each in away:
            await asyncio.to_thread(each.server.start)
        await sending
        await p.settled(240)

        report = await p.check()
        print(f"away: {[each.name for each in away]}; highest lag of the others: {highest}; {report}")
        assert report.letters.repeated == 0
        assert max(highest.values()) < 4000
        for worker in (*second, *third):
            await until(worker.ready, 20)


def most(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    """The larger of each."""
    return {name: max(value, other[name]) for name, value in one.items()}


async def test_the_broker_is_restarted(pipeline: Pipeline, kafka: Kafka) -> None:
    """A broker that goes away and comes back costs time, no data."""
    async with pipeline as p:
        await p.started_all()
        sending = asyncio.create_task(p.simulate(20_000, rate=1000))
        await asyncio.sleep(4)
        await asyncio.to_thread(kafka.kill)
        await asyncio.sleep(3)
        await asyncio.to_thread(kafka.start)
        await sending
        await p.settled(120)

        await p.check()


async def test_poisoned_rows_hurt_only_themselves(one: Pipeline, lab: StoreLab) -> None:
    """Of 5,000 readings 1 % are refused by the server alone: each is found and dead-lettered, the others are stored."""
    async with one as p:
        readings = [
            Reading("telemetry", f"device-{number % 40}", when(number), {"state": "ok"}) for number in range(5000)
        ]
        bad = readings[7::100]
        await lab.refuse(bad)
        payloads = [
            wire.write(lab.poisoned(each) if number % 100 == 7 else each) for number, each in enumerate(readings)
        ]
        await produce(p, payloads)
        worker = await p.started(lab.stage)
        await p.settled(stages=[lab.stage])
        letters = await p.letters()

        assert sorted(payloads[7::100]) == sorted(letter.value for letter in letters)
        assert len({letter.key for letter in letters}) == 50
        said = [dict(letter.headers) for letter in letters]
        assert {headers["iotflow-dlq-reason"] for headers in said} <= {b"refused", b"type_conflict"}
        assert {lab.stage.encode()} == {headers["iotflow-dlq-stage"] for headers in said}
        print(lab.name, said[0]["iotflow-dlq-error"].decode())
        async with lab.opened() as sink:
            stored = [
                each async for each in sink.scan(Selection(measurement="telemetry")) if "conflict" not in each.values
            ]
        assert {wire.write(each) for number, each in enumerate(readings) if number % 100 != 7} == {
            wire.write(each) for each in stored
        }
        assert len(stored) == 4950
        assert worker.ready()


async def test_a_server_that_stands_still_is_an_outage(kafka_servers: str, lab: StoreLab, tmp_path: Path) -> None:
    """Connections stay open and nothing answers: writes end in time, and the breaker opens.

    With a tiny CHANNEL_SIZE intake stops, says so once and counts it; a stop ends in time; all is stored after.
    """
    more = {"CHANNEL_SIZE": "2000", "BATCH_SIZE": "500", f"{lab.prefix}_WRITE_TIMEOUT": "2"}
    async with Pipeline(kafka_servers, over([lab], **more), tmp_path) as p:
        workers = await p.started_all()
        store = workers[lab.stage]
        with lab.frozen():
            await p.simulate(20_000)
            await until(lambda: store.metric("ingest_backpressure_total") > 0, 30)
            await until(lambda: store.metric("iotflow_inflight_records") >= 2000, 10)
            await until(lambda: not store.ready(), 30)
            assert store.metric("iotflow_inflight_records") < 10_000
            assert 1 == store.log.count("intake stopped")
            assert store.get("/health/live")[0] == 200
            assert workers["decode"].ready()
            assert await store.terminate(25) == 0
            store = await p.start(lab.stage)
            await asyncio.sleep(3)
        await until(store.ready, 40)
        await p.settled()

        await p.check()


async def test_a_trigger_and_a_time_limit_hurt_only_what_they_refuse(
    kafka_servers: str, timescale: Any, tmp_path: Path
) -> None:
    """A trigger that refuses with an SQLSTATE of its own makes letters; a statement time-out makes smaller batches."""
    async with Pipeline(kafka_servers, over([timescale]), tmp_path) as p:
        connection = await timescale.connect()
        await connection.execute(
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM pg_sleep(0.005);
                IF NEW.state = 'poison' THEN RAISE EXCEPTION 'no' USING ERRCODE = 'IOT01'; END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON telemetry FOR EACH ROW EXECUTE FUNCTION refuse();
            """
        )
        await connection.execute(f"ALTER DATABASE {timescale.env['TIMESCALE_DB']} SET statement_timeout = '1s'")
        payloads = [
            wire.write(Reading("telemetry", f"device-{number}", when(number), {"state": state}))
            for number, state in enumerate(["ok", "ok", "poison", "ok"] + ["ok"] * 396)
        ]
        await produce(p, payloads)
        await p.started("store-timescale")
        await p.settled(stages=["store-timescale"])

        assert [payloads[2]] == [letter.value for letter in await p.letters()]
        assert 399 == await connection.fetchval("SELECT count(*) FROM telemetry")
        await connection.close()


async def test_what_a_transaction_aborted_is_not_stored(pipeline: Pipeline, labs: list[StoreLab]) -> None:
    """Only what a producer committed counts."""
    async with pipeline as p:
        producer = AIOKafkaProducer(
            bootstrap_servers=p.env["KAFKA_BOOTSTRAP_SERVERS"], transactional_id=p.settings.app_prefix
        )
        await producer.start()
        for device, abort in (("kept-1", False), ("aborted", True), ("kept-2", False)):
            await producer.begin_transaction()
            await producer.send_and_wait(
                p.settings.topics.decoded, wire.write(Reading("telemetry", device, when(1), {"x": 1.0})), partition=0
            )
            await (producer.abort_transaction() if abort else producer.commit_transaction())
        await producer.stop()
        await p.started_all(p.storing)
        for lab in labs:
            async with lab.opened() as sink:

                async def both(sink: Any = sink) -> bool:
                    return ["kept-1", "kept-2"] == [
                        reading.device_id async for reading in sink.scan(Selection(measurement="telemetry"))
                    ]

                await until(both, 30)


async def test_a_worker_stops_in_time_while_the_broker_is_away(pipeline: Pipeline, kafka: Kafka) -> None:
    """SIGTERM ends every stage within the grace of usual supervisors, Kafka or not."""
    async with pipeline as p:
        workers = await p.started_all()
        await p.simulate(5000)
        await asyncio.to_thread(kafka.kill)
        try:
            await asyncio.sleep(2)
            codes = await asyncio.gather(*(worker.terminate(25) for worker in workers.values()))
        finally:
            await asyncio.to_thread(kafka.start)
        assert {0} == set(codes)
        await p.started_all()
        await p.settled()

        await p.check()


def when(number: int) -> datetime:
    """A time for each number."""
    return datetime(2025, 1, 1, tzinfo=UTC) + timedelta(milliseconds=number)


async def produce(pipeline: Pipeline, payloads: list[bytes]) -> None:
    """Put records on the decoded topic, as any producer could."""
    producer = AIOKafkaProducer(bootstrap_servers=pipeline.env["KAFKA_BOOTSTRAP_SERVERS"], linger_ms=5)
    await producer.start()
    try:
        await asyncio.gather(
            *[await producer.send(pipeline.settings.topics.decoded, payload, key=b"x") for payload in payloads]
        )
    finally:
        await producer.stop()
