"""Records whose header names are not UTF-8, on a real broker: they are read like any other, and commits pass them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from app import check
from tests.lab.apps import Lab, create, fill, handled, unique, until, until_committed
from tests.lab.pipeline import Pipeline

ODD = b"name\xe9"
READ = "name\\xe9"
#: None, gzip, snappy, lz4 and zstd.
CODECS = range(5)


class OddName:
    """A header name that no producer in Python sends."""

    def encode(self, *_: str) -> bytes:
        return ODD


async def send_odd(
    servers: str,
    topic: str,
    partition: int,
    values: Sequence[bytes],
    odd: int,
    codec: int = 0,
    *,
    key: bytes | None = None,
) -> None:
    """Produce one batch of records with a header each, of which the one at `odd` has an odd name."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, enable_idempotence=False)
    await producer.start()
    try:
        batch: Any = producer.create_batch()
        batch._builder = _DefaultRecordBatchBuilderPy(2, codec, 0, -1, -1, -1, 1 << 20)
        for place, value in enumerate(values):
            name = OddName() if place == odd else "name"
            assert batch.append(timestamp=None, key=key, value=value, headers=[(name, b"content")])
        await (await producer.send_batch(batch, topic, partition=partition))
    finally:
        await producer.stop()


async def test_records_with_odd_header_names_are_handled_like_any_other(kafka_servers: str, tmp_path: Path) -> None:
    """With good records before, among and behind them each is handled once in order, and the group commits to the end.

    They come with every codec, as first, middle and last of their batch. A second worker has nothing left to do.
    """
    topic, group = unique("odd"), unique("group")
    await create(kafka_servers, topic, 2)
    await fill(kafka_servers, topic, 200, 2)
    for codec in CODECS:
        for odd in (0, 2, 4):
            await send_odd(kafka_servers, topic, 0, [b"odd" * 40] * 5, odd, codec)
        await fill(kafka_servers, topic, 20, 2)
    ends = {0: 100 + 5 * (15 + 10), 1: 100 + 5 * 10}

    # A fetch of 1 KiB ends between them, larger ones have many at once.
    for size in (1024, 1024 * 1024):
        async with Lab(kafka_servers, topic, f"{group}-{size}", tmp_path, consumer_max_fetch_size=size) as lab:
            await until_committed(lab, ends)

        assert {partition: list(range(end)) for partition, end in ends.items()} == lab.offsets
        batches = [record for record in lab.seen if record.headers]
        assert [record.headers[0][0] for record in batches] == [
            READ if place == odd else "name" for _ in CODECS for odd in (0, 2, 4) for place in range(5)
        ]

    async with Lab(kafka_servers, topic, f"{group}-{1024}", tmp_path) as again:
        await fill(kafka_servers, topic, 2, 2)
        await until(lambda: len(again.seen) == 2)
    assert set(handled(again)) == set(ends.items())


async def test_decode_takes_and_refuses_them_by_their_payload(
    kafka_servers: str, database: dict[str, str], tmp_path: Path
) -> None:
    """Good payloads become readings, a bad one a dead letter that says the header's name as it was read."""
    said = {"timestamp": "2026-01-02T03:04:05Z", "temperature": 20.5, "humidity": 50.5, "battery": 90.5}
    payloads = [json.dumps({"device_id": f"d{number}", **said}).encode() for number in range(3)]
    async with Pipeline(kafka_servers, database, tmp_path) as p:
        await send_odd(kafka_servers, p.raw, 0, payloads, 1)
        await send_odd(kafka_servers, p.raw, 0, [b"no reading", payloads[0]], 0)
        await p.started("decode")
        await p.settled(stages=["decode"])

        decoded = await check.tail(p.settings, p.settings.topics.decoded)
        (letter,) = await p.letters()
    assert sorted(json.loads(record.value)["device_id"] for record in decoded) == ["d0", "d0", "d1", "d2"]
    assert letter.value == b"no reading"
    assert (f"iotflow-orig-h-{READ}", b"content") in letter.headers
