"""The batch transport on a real broker: the seven points, and the same cases on stock Faust where it fails them."""

from pathlib import Path

from tests.lab.apps import Lab, create, fill, unique, until


async def test_every_record_once_in_order_and_all_committed(kafka_servers: str, tmp_path: Path) -> None:
    """Without faults each record is handled once, a partition's in order, and the commits reach the end."""
    topic, group = unique("order"), unique("group")
    await create(kafka_servers, topic)
    await fill(kafka_servers, topic, 10_000)

    async with Lab(kafka_servers, topic, group, tmp_path, limits={"chunk_records": 100}) as lab:
        await until(lambda: len(lab.seen) >= 10_000)

        async def all_committed() -> bool:
            return await lab.committed() == dict.fromkeys(range(4), 2500)

        await until(all_committed)

    assert {partition: list(range(2500)) for partition in range(4)} == lab.offsets
