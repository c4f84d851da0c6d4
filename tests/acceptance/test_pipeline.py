"""The main job under fire: whatever is killed, stopped or poisoned, each reading is stored once and nothing is lost."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer

from deploy.local.kafka import Kafka
from deploy.local.postgres import Postgres
from schemas import wire
from schemas.reading import Reading
from sinks import timescale
from tests.lab.apps import until
from tests.lab.pipeline import Pipeline


@pytest.fixture
def pipeline(kafka_servers: str, database: Mapping[str, str], tmp_path: Path) -> Pipeline:
    """Topics, group and database of this test."""
    return Pipeline(kafka_servers, database, tmp_path)


async def test_one_message_becomes_rows_and_one_becomes_a_letter(pipeline: Pipeline) -> None:
    """Good messages are stored by content, bad ones are dead letters with their bytes, and the workers stop cleanly."""
    async with pipeline as p:
        decode, store = await p.started("decode"), await p.started("store-timescale")
        sent = await p.simulate(2000, bad=0.05)
        await p.settled()
        report = await p.check()

        assert report.stores["timescale"].expected == sent["good"] > 1800
        assert report.letters.expected == sent["bad"] > 50
        assert [0, 0] == [await decode.terminate(), await store.terminate()]


async def test_kill_and_terminate_in_mid_batch(pipeline: Pipeline) -> None:
    """Workers of both stages killed and terminated while data flows: nothing lost, nothing doubled."""
    async with pipeline as p:
        workers = {stage: await p.started(stage) for stage in ("decode", "store-timescale")}
        sending = asyncio.create_task(p.simulate(60_000, rate=4000))
        for how in ("kill", "terminate"):
            for stage in ("store-timescale", "decode"):
                await asyncio.sleep(1.5)
                await getattr(workers[stage], how)()
                workers[stage] = await p.start(stage)
        await sending
        await p.settled()

        await p.check()


async def test_two_workers_and_a_rebalance(pipeline: Pipeline) -> None:
    """A second worker of each stage joins, and the first one leaves, while data flows."""
    async with pipeline as p:
        first = [await p.started(stage) for stage in ("decode", "store-timescale")]
        sending = asyncio.create_task(p.simulate(60_000, rate=3000))
        await asyncio.sleep(2)
        second = [await p.started(stage) for stage in ("decode", "store-timescale")]
        await asyncio.sleep(2)
        for worker in first:
            await worker.terminate()
        await sending
        await p.settled()

        await p.check()
        assert all(worker.metric("iotflow_records_total") > 0 for worker in second)


async def test_postgresql_away_for_half_a_minute(pipeline: Pipeline, postgres: Postgres) -> None:
    """An outage is waited out: the sink is unready but alive, nothing is dead-lettered for it, all is stored after."""
    async with pipeline as p:
        decode, store = await p.started("decode"), await p.started("store-timescale")
        sending = asyncio.create_task(p.simulate(40_000, rate=1000))
        await asyncio.sleep(3)
        await asyncio.to_thread(postgres.kill)
        await until(lambda: not store.ready(), 20)
        await asyncio.sleep(30)
        assert store.get("/health/live")[0] == 200
        assert decode.ready()
        await asyncio.to_thread(postgres.start)
        await until(store.ready, 20)
        await sending
        await p.settled()

        await p.check()
        assert store.metric("ingestor_db_failures_total") > 0


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_postgresql_away_for_three_minutes_with_a_kill_and_a_join(pipeline: Pipeline, postgres: Postgres) -> None:
    """In a long outage one worker is killed and another joins; afterwards everything is stored once."""
    async with pipeline as p:
        await p.started("decode")
        first, second = await p.started("store-timescale"), await p.started("store-timescale")
        sending = asyncio.create_task(p.simulate(100_000, rate=500))
        await asyncio.sleep(5)
        await asyncio.to_thread(postgres.stop)
        await asyncio.sleep(60)
        await first.kill()
        await asyncio.sleep(60)
        third = await p.start("store-timescale")
        await asyncio.sleep(60)
        await asyncio.to_thread(postgres.start)
        await sending
        await p.settled(180)

        await p.check()
        assert second.ready()
        assert third.ready()


async def test_the_broker_is_restarted(pipeline: Pipeline, kafka: Kafka) -> None:
    """A broker that goes away and comes back costs time, no data."""
    async with pipeline as p:
        await p.started("decode")
        await p.started("store-timescale")
        sending = asyncio.create_task(p.simulate(30_000, rate=1500))
        await asyncio.sleep(4)
        await asyncio.to_thread(kafka.kill)
        await asyncio.sleep(3)
        await asyncio.to_thread(kafka.start)
        await sending
        await p.settled(120)

        await p.check()


async def test_poisoned_rows_hurt_only_themselves(pipeline: Pipeline, database: Mapping[str, str]) -> None:
    """Of 5,000 readings 1 % are refused by the server alone: each is found and dead-lettered, the others are stored."""
    async with pipeline as p:
        connection = await connect(database)
        await connection.execute("ALTER TABLE iot_measurements ADD CHECK (value_text <> 'poison')")
        readings = [
            Reading(
                "telemetry", f"device-{number % 40}", when(number), {"state": "poison" if number % 100 == 7 else "ok"}
            )
            for number in range(5000)
        ]
        payloads = [wire.write(reading) for reading in readings]
        await produce(p, payloads)
        await p.started("store-timescale")
        await p.settled(stages=["store-timescale"])
        letters = await p.letters()

        poisoned = [payload for payload in payloads if b"poison" in payload]
        assert sorted(poisoned) == sorted(letter.value for letter in letters)
        assert len({letter.key for letter in letters}) == 50
        assert {b"refused"} == {dict(letter.headers)["iotflow-dlq-reason"] for letter in letters}
        assert 4950 == await connection.fetchval("SELECT count(*) FROM iot_measurements")
        await connection.close()


async def test_a_trigger_and_a_time_limit_hurt_only_what_they_refuse(
    pipeline: Pipeline, database: Mapping[str, str]
) -> None:
    """A trigger that refuses with an SQLSTATE of its own makes letters; a statement time-out makes smaller batches."""
    async with pipeline as p:
        connection = await connect(database)
        await connection.execute(
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                PERFORM pg_sleep(0.005);
                IF NEW.value_text = 'poison' THEN RAISE EXCEPTION 'no' USING ERRCODE = 'IOT01'; END IF;
                RETURN NEW;
            END $$;
            CREATE TRIGGER refuse BEFORE INSERT ON iot_measurements FOR EACH ROW EXECUTE FUNCTION refuse();
            """
        )
        await connection.execute(f"ALTER DATABASE {database['TIMESCALE_DB']} SET statement_timeout = '1s'")
        payloads = [
            wire.write(Reading("telemetry", f"device-{number}", when(number), {"state": state}))
            for number, state in enumerate(["ok", "ok", "poison", "ok"] + ["ok"] * 396)
        ]
        await produce(p, payloads)
        await p.started("store-timescale")
        await p.settled(stages=["store-timescale"])

        assert [payloads[2]] == [letter.value for letter in await p.letters()]
        assert 399 == await connection.fetchval("SELECT count(*) FROM iot_measurements")
        await connection.close()


async def test_what_a_transaction_aborted_is_not_stored(pipeline: Pipeline) -> None:
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
        await p.started("store-timescale")
        sink = timescale.Sink(p.settings.sinks["timescale"])
        await sink.open()

        async def stored() -> list[str]:
            return [reading.device_id async for reading in sink.scan()]

        async def both() -> bool:
            return await stored() == ["kept-1", "kept-2"]

        await until(both, 30)
        await sink.close()


async def test_a_worker_stops_in_time_while_the_broker_is_away(pipeline: Pipeline, kafka: Kafka) -> None:
    """SIGTERM ends both stages within the grace of usual supervisors, Kafka or not."""
    async with pipeline as p:
        workers = [await p.started(stage) for stage in ("decode", "store-timescale")]
        await p.simulate(5000)
        await asyncio.to_thread(kafka.kill)
        try:
            await asyncio.sleep(2)
            codes = await asyncio.gather(*(worker.terminate(25) for worker in workers))
        finally:
            await asyncio.to_thread(kafka.start)
        assert [0, 0] == codes
        for stage in ("decode", "store-timescale"):
            await p.started(stage)
        await p.settled()

        await p.check()


async def test_a_full_channel_stops_intake_and_loses_nothing(
    kafka_servers: str, database: Mapping[str, str], tmp_path: Path
) -> None:
    """With a tiny CHANNEL_SIZE and the database locked, intake stops, says so once, counts it, and goes on after."""
    async with Pipeline(kafka_servers, database, tmp_path, CHANNEL_SIZE="2000", TIMESCALE_BATCH_SIZE="500") as p:
        await p.started("decode")
        store = await p.started("store-timescale")
        connection = await connect(database)
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("LOCK TABLE iot_measurements IN ACCESS EXCLUSIVE MODE")
        await p.simulate(20_000)
        await until(lambda: store.metric("ingest_backpressure_total") > 0, 30)
        await until(lambda: store.metric("iotflow_inflight_records") >= 2000, 10)
        held = store.metric("iotflow_inflight_records")
        await transaction.rollback()
        await connection.close()
        await p.settled()

        await p.check()
        assert held < 10_000
        assert 1 == store.log.count("intake stopped")


async def test_no_documented_metric_stays_zero_under_traffic(pipeline: Pipeline, postgres: Postgres) -> None:
    """The documents' metric names count real things; failures count when the database was away."""
    async with pipeline as p:
        decode, store = await p.started("decode"), await p.started("store-timescale")
        await p.simulate(3000, bad=0.05)
        await p.settled()
        await asyncio.to_thread(postgres.kill)
        await p.simulate(200, seed="2")
        await until(lambda: store.metric("ingestor_db_failures_total") > 0, 30)
        await asyncio.to_thread(postgres.start)
        await p.settled()

        for name in ("messages", "valid_messages", "invalid_messages"):
            assert decode.metric(f"ingestor_{name}_total") > 0, name
        for name in (
            "ingestor_db_inserts_total", "ingestor_db_failures_total", "ingestor_batch_size",
            "ingestor_ingest_latency_seconds_count", "sink_up", "sink_query_seconds_count", "sink_batch_utilisation",
        ):  # fmt: skip
            assert store.metric(name) > 0, name


def when(number: int) -> Any:
    """A time for each number."""
    from datetime import UTC, datetime, timedelta  # noqa: PLC0415

    return datetime(2025, 1, 1, tzinfo=UTC) + timedelta(milliseconds=number)


async def connect(database: Mapping[str, str]) -> asyncpg.Connection:
    """A connection as the product's user."""
    return await asyncpg.connect(
        host=database["TIMESCALE_HOST"],
        port=int(database["TIMESCALE_PORT"]),
        database=database["TIMESCALE_DB"],
        user=database["TIMESCALE_USER"],
        password=database["TIMESCALE_PASSWORD"],
    )


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
