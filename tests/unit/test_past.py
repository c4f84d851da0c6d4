"""Past readings of files: their order, which of them, and what is wrong with a file."""

import io
import random
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from app import past
from app.past import SourceError, Wanted
from app.settings import load
from schemas import wire
from schemas.reading import Reading
from sinks.file import FileSink, Settings, apply_schema
from tests.lab.analysis import START, reading

READINGS = [
    reading(second, device, channel, temperature=float(second))
    for device in ("EQ001", "EQ002", "other")
    for second in range(0, 3000, 10)
    for channel in ("", "c")
]


def lines(readings: Sequence[Reading]) -> bytes:
    return b"".join(wire.write(each) + b"\n" for each in readings)


async def read(
    source: str, wanted: Wanted | None = None, env: Mapping[str, str] | None = None
) -> tuple[past.Past, list[Reading]]:
    told: list[tuple[str, int, int]] = []
    async with past.opened(load(env or {}), source, wanted or Wanted(), lambda *said: told.append(said)) as found:
        return found, [each async for page in found.pages for each in page]


async def test_a_file_in_any_order(tmp_path: Path) -> None:
    mixed = random.Random(1).sample(READINGS, len(READINGS))
    (tmp_path / "a.jsonl").write_bytes(b"\n" + lines(mixed) + b"\r\n")
    found, readings = await read(f"file:{tmp_path / 'a.jsonl'}")
    assert readings == sorted(READINGS, key=lambda each: (each.device_id, each.time, each.channel))
    assert (found.start, found.end) == (START, START + timedelta(seconds=2990, microseconds=1))
    assert found.total == len(READINGS)


async def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    for source in ("-", "file:-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines(READINGS[::-1]))))
        assert len((await read(source))[1]) == len(READINGS)


async def test_some_of_them(tmp_path: Path) -> None:
    own = replace(READINGS[0], measurement="alarms")
    (tmp_path / "a.jsonl").write_bytes(lines([*READINGS, own]))
    start, end = START + timedelta(seconds=100), START + timedelta(seconds=200)
    found, readings = await read(f"file:{tmp_path / 'a.jsonl'}", Wanted(start, end, ["EQ*"]))
    assert {each.device_id for each in readings} == {"EQ001", "EQ002"}
    assert (min(each.time for each in readings), max(each.time for each in readings)) == (
        start,
        end - timedelta(seconds=10),
    )
    assert len(readings) == 2 * 10 * 2
    assert (found.start, found.end) == (start, end)


async def test_of_one_place_and_time_the_later_holds(tmp_path: Path) -> None:
    one = reading(0, temperature=1.0, humidity=50.0)
    (tmp_path / "a.jsonl").write_bytes(lines([one, reading(0, temperature=2.0)]))
    _, readings = await read(f"file:{tmp_path / 'a.jsonl'}")
    assert [each.values for each in readings] == [{"temperature": 2.0, "humidity": 50.0}]


async def test_an_archive_of_the_store_file(tmp_path: Path) -> None:
    settings = Settings(path=tmp_path / "archive")
    await apply_schema(settings, {})
    sink = FileSink(settings)
    await sink.open()
    for start in (300, 0):
        await sink.write(sink.prepare(READINGS[start : start + 300]).payload)
    await sink.close()
    _, readings = await read(f"file:{tmp_path / 'archive'}", Wanted(devices=["EQ002"]))
    assert readings == [each for each in READINGS[:600] if each.device_id == "EQ002"]
    (part,) = {path.parent for path in (tmp_path / "archive").rglob("*.jsonl.gz")}
    first = min(part.glob("*.jsonl.gz"))
    first.write_bytes(first.read_bytes()[:200])
    with pytest.raises(SourceError, match=first.name):
        await read(f"file:{tmp_path / 'archive'}")


async def test_wrong_lines_are_named(tmp_path: Path) -> None:
    good = lines(READINGS[:1])
    file = tmp_path / "a.jsonl"
    file.write_bytes(good + b"{}\n" + good + b"\xff\n" + b'{"v":1}\n' * 10)
    with pytest.raises(SourceError) as caught:
        await read(f"file:{file}")
    said = str(caught.value).splitlines()
    assert [line.split(": ")[1] for line in said[:-1]] == ["line 2", "line 4", "line 5", "line 6", "line 7"]
    assert said[-1] == "each line must be a reading as on the decoded topic"


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("nowhere", "no source is called 'nowhere'; there are: topic, file:PATH, -, file, influxdb, iotdb, timescale"),
        ("/", "a file is named file:/"),
        ("file:/no/such.jsonl", "/no/such.jsonl: no such file"),
        ("file:/etc", "/etc is a directory and no archive of the store file: it has no iotflow.json"),
    ],
)
async def test_sources_that_are_none(source: str, why: str) -> None:
    with pytest.raises(SourceError) as caught:
        await read(source)
    assert why in str(caught.value)


async def test_a_store_that_cannot_be_opened(tmp_path: Path) -> None:
    week = Wanted(START, START + timedelta(days=7))
    with pytest.raises(SourceError, match=r"file: .* is no directory of ours"):
        await read("file", week, {"STORAGE_PATH": str(tmp_path / "none")})
    with pytest.raises(SourceError, match="timescale: "):
        await read("timescale", week, {"TIMESCALE_HOST": "127.0.0.1", "TIMESCALE_PORT": "1"})


def test_a_week_by_default_and_of_a_file_all() -> None:
    now = datetime(2026, 11, 23, tzinfo=UTC)
    week = timedelta(weeks=1)
    assert past.span("topic", None, None, now) == (now - week, now)
    assert past.span("timescale", None, now - week, now) == (now - 2 * week, now - week)
    assert past.span("file:a", None, None, now) == (None, None)
    assert past.span("-", now, None, now) == (now, None)


def test_a_plain_device_is_asked_for_by_its_name() -> None:
    assert [each.device_id for each in Wanted(devices=["b", "a", "b"]).selections] == ["a", "b"]
    assert [each.device_id for each in Wanted(devices=["a", "b*"]).selections] == [None]
