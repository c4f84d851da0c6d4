"""The books of real workers: what each store says that it stored is what it stored, and PostgreSQL has it for all."""

import asyncio
from collections import Counter
from pathlib import Path

import msgspec

from app import check
from sinks import registry
from sinks.base import Selection
from tests.lab.apps import until
from tests.lab.pipeline import Pipeline
from tests.lab.stores import StoreLab


async def test_every_store_is_in_the_books(kafka_servers: str, labs: list[StoreLab], tmp_path: Path) -> None:
    """Events and sums count each stored reading once, and the sums of all stores are rows of `storage_metadata`."""
    env = {name: value for lab in labs for name, value in lab.env.items()}
    env |= {"STORES": ",".join(lab.name for lab in labs), "REDIS_FLUSH_INTERVAL_SECONDS": "2"}
    async with Pipeline(kafka_servers, env, tmp_path) as p:
        workers = await p.started_all()
        sent = await p.simulate(3000, bad=0.02)
        await p.settled()
        wanted = dict.fromkeys(p.settings.stores, sent["good"])

        events: Counter[str] = Counter()
        for record in await check.tail(p.settings, p.settings.topics.saved):
            event = msgspec.json.decode(record.value)
            events[event["store"]] += event["record_count"]
        assert events == wanted

        sink = registry.load()["timescale"].Sink(p.settings.sinks["timescale"])
        await sink.open()
        try:
            sums: Counter[str] = Counter()

            async def booked() -> bool:
                sums.clear()
                async for reading in sink.scan(Selection(measurement="storage_metadata")):
                    sums[reading.device_id] += reading.values["record_count"]
                return sums == wanted

            async with asyncio.timeout(30):
                while not await booked():  # noqa: ASYNC110  a table sets no event
                    await asyncio.sleep(0.3)
        finally:
            await sink.close()
        assert sums == wanted
        await p.check()
        assert {0} == set(await asyncio.gather(*(worker.terminate() for worker in workers.values())))


async def test_a_worker_that_stops_writes_its_sum(kafka_servers: str, labs: list[StoreLab], tmp_path: Path) -> None:
    """Long before the interval is over."""
    lab = next(each for each in labs if each.name == "timescale")
    env = {**lab.env, "STORES": "timescale", "IOTFLOW_BOOKS_INTERVAL": "86400"}
    async with Pipeline(kafka_servers, env, tmp_path) as p:
        workers = await p.started_all()
        sent = await p.simulate(500, bad=0)
        await p.settled()
        assert await workers["store-timescale"].terminate() == 0
        sums = [
            msgspec.json.decode(record.value)["values"]["record_count"]
            for record in await check.tail(p.settings, p.settings.topics.storage_metadata)
        ]
        assert sums[-1] == sent["good"]
        await until(workers["decode"].ready, 10)
