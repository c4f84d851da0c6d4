"""Files on a real file system: many writers, kills, full disks, mounts that go away, deletions."""

import asyncio
import json
import os
import random
import resource
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from app.settings import load
from schemas.reading import Reading
from sinks import file
from sinks.base import Change, Fatal, Retry, Selection
from tests.lab.pipeline import ROOT
from tests.lab.stores.file import Lab

T0 = datetime(2025, 10, 5, 12, 34, 56, tzinfo=UTC)


def reading(device: str, number: int = 0, at: int = 0) -> Reading:
    """A plain reading, `at` microseconds after the first instant."""
    return Reading("telemetry", device, T0 + timedelta(microseconds=at), {"number": float(number)})


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    """A directory, with its schema."""
    made = Lab("file", None)
    await made.make()
    await made.apply_schema()
    yield made
    await made.drop()


@pytest.fixture
async def sink(lab: Lab) -> AsyncIterator[Any]:
    """An open sink."""
    async with lab.opened() as made:
        yield made


async def write(sink: Any, *readings: Reading) -> None:
    """One batch."""
    await sink.write(sink.prepare(readings).payload)


async def stored(sink: Any, **how: Any) -> list[Reading]:
    """What a scan gives."""
    return [found async for found in sink.scan(Selection(**how))]


def unfinished(path: Path) -> list[str]:
    """Names of files that are being written, or were."""
    return [found.name for found in path.rglob("*.part")]


# -- writers -----------------------------------------------------------------------------------------------------------

_WRITER = """
import asyncio, sys
from tests.integration.test_file import lab_at, reading, write
async def main(path, name):
    async with lab_at(path) as sink:
        for number in range(1_000_000):
            batch = [reading(f"{name}-{each}", number, number) for each in range(200)]
            await write(sink, *batch, reading("both", number))
            print(number, flush=True)
asyncio.run(main(*sys.argv[1:]))
"""


@asynccontextmanager
async def lab_at(path: str) -> AsyncIterator[Any]:
    """An open sink of a directory, for a process of its own."""
    sink = file.Sink(load({"STORAGE_PATH": path}).sinks["file"])
    await sink.open()
    try:
        yield sink
    finally:
        await sink.close()


def writer(lab: Lab, name: str) -> subprocess.Popen[str]:
    """A process that writes batches and says which are durable."""
    command = [sys.executable, "-c", _WRITER, str(lab.server.path), name]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


async def test_what_killed_writers_said_is_stored_is_stored(lab: Lab) -> None:
    """Two at a time, killed at random: each durable batch is there, whole, and of one place the last one wins."""
    rng = random.Random(5)
    for round_ in range(3):
        writers = {f"{round_}{name}": writer(lab, f"{round_}{name}") for name in "ab"}
        last = {}
        for name, process in writers.items():
            assert process.stdout is not None
            for _ in range(rng.randint(3, 40)):
                last[name] = int(process.stdout.readline())
            process.kill()
            last[name] = max([last[name], *map(int, process.stdout.read().split())])
            process.wait()
            process.stdout.close()
        async with lab.opened() as sink:
            for name, number in last.items():
                found = await stored(sink, device_id=f"{name}-7")
                assert list(range(len(found))) == [each.values["number"] for each in found]
                assert len(found) in {number + 1, number + 2}  # what was written and not said any more may be there
            assert not unfinished(lab.server.path)
            # Whoever of the two came last, in the order of the files.
            newest = [each for each, _ in sink._archive.read(Selection(device_id="both"))][-1]
            assert [newest] == await stored(sink, device_id="both")


async def test_workers_at_once_get_numbers_of_their_own(lab: Lab) -> None:
    """Eight sinks writing at the same time: no file replaces another."""

    async def work(number: int) -> None:
        async with lab.opened() as sink:
            for at in range(25):
                await write(sink, reading(f"dev-{number}", at, at))

    await asyncio.gather(*(work(number) for number in range(8)))

    async with lab.opened() as sink:
        assert await sink.count(readings=True) == 200
    names = [path.name.partition("-")[0] for path in lab.server.path.rglob("*.jsonl.gz")]
    assert len(set(names)) == len(names) == 200


# -- disks -------------------------------------------------------------------------------------------------------------


def mount(*arguments: str) -> None:
    """Mount something; where that is not allowed, say so and skip."""
    try:
        subprocess.run(["mount", *arguments], check=True, capture_output=True)
    except (subprocess.CalledProcessError, FileNotFoundError) as error:
        pytest.skip(f"mounting is not allowed here: {getattr(error, 'stderr', error)!r}")


def unmount(*arguments: str) -> None:
    """Take it away."""
    subprocess.run(["umount", *arguments], check=True)


def fill(path: Path) -> None:
    """Write until there is no room."""
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for 256 KiB."""
    mount("-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path))
    yield tmp_path
    unmount("--lazy", str(tmp_path))


async def test_a_full_disk_waits_for_a_person_and_loses_nothing(disk: Path) -> None:
    """The write fails whole and says what to do; what was there stays readable; with room again it goes on."""
    settings = load({"STORAGE_PATH": str(disk / "storage")}).sinks["file"]
    await file.apply_schema(settings)
    sink = file.Sink(settings)
    await sink.open()
    await write(sink, reading("before"))
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space"):
        fill(filler)

    for attempt in (sink.probe(), write(sink, *(reading(f"dev-{number}", number) for number in range(5000)))):
        with pytest.raises(OSError, match="No space") as error:
            await attempt
        verdict = sink.classify(error.value)
        assert isinstance(verdict, Fatal)
        assert "free some space" in verdict.remedy
    assert [reading("before")] == await stored(sink)
    assert not unfinished(disk)

    filler.unlink()
    await sink.probe()
    await write(sink, reading("later"))
    assert [reading("before"), reading("later")] == await stored(sink)
    await sink.close()


async def test_a_file_that_may_not_be_so_large_asks_for_less(sink: Any) -> None:
    """A limit on the size of files is met by halves."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (16 * 1024, before[1]))
    try:
        with pytest.raises(OSError, match="File too large") as error:
            await write(sink, *(reading(os.urandom(40).hex(), number) for number in range(1000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    verdict = sink.classify(error.value)
    assert isinstance(verdict, Retry)
    assert verdict.smaller
    assert [] == await stored(sink)


async def test_a_mount_that_goes_away_is_an_outage_and_the_disk_below_is_not_written_to(tmp_path: Path) -> None:
    """The empty directory under a mount is not taken for ours, neither while running nor at the start."""
    disk, point = tmp_path / "disk", tmp_path / "point"
    disk.mkdir()
    point.mkdir()
    mount("--bind", str(disk), str(point))
    settings = load({"STORAGE_PATH": str(point)}).sinks["file"]
    await file.apply_schema(settings)
    sink = file.Sink(settings)
    await sink.open()
    await write(sink, reading("before"))

    unmount(str(point))
    for attempt in (write(sink, reading("during")), sink.probe(), sink.count(), sink.delete(Selection(device_id="x"))):
        with pytest.raises(ConnectionError, match="is it mounted") as error:
            await attempt
        assert isinstance(sink.classify(error.value), Retry)
    other = file.Sink(settings)
    with pytest.raises(Exception, match="iotflow schema apply; if it was one, mount it") as fatal:
        await other.open()
    assert isinstance(other.classify(fatal.value), Fatal)
    assert not list(point.iterdir())

    mount("--bind", str(disk), str(point))
    try:
        await sink.probe()
        await write(sink, reading("after"))
        assert [reading("after"), reading("before")] == await stored(sink)
    finally:
        await sink.close()
        unmount("--lazy", str(point))


async def test_a_worker_that_waits_for_a_number_ends_all_the_same(lab: Lab) -> None:
    """Cancelled while another stands still with the lock, it leaves no thread that waits and writes nothing later."""
    async with lab.opened() as sink:
        with lab.frozen():
            task = asyncio.create_task(write(sink, reading("during")))
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
        await sink.probe()  # its turn comes when the abandoned call has ended

        assert [] == await stored(sink)


# -- deletions ---------------------------------------------------------------------------------------------------------


def content(lab: Lab) -> dict[str, tuple[int, bytes]]:
    """Each file's inode and bytes."""
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in sorted(lab.server.path.rglob("*.jsonl.gz"))}


async def test_deleting_writes_anew_only_what_holds_the_device(sink: Any, lab: Lab) -> None:
    """One file loses some of its readings, one all, the third is not touched."""
    await write(sink, reading("a", 1), reading("b", 1))
    await write(sink, reading("b", 2, 2))
    await write(sink, reading("a", 3, 3), reading("a", 4, 4))
    before = content(lab)

    await sink.delete(Selection(device_id="a"))

    first, second = content(lab).items()
    assert first[0] in before
    assert first[1] != before[first[0]]
    assert before[second[0]] == second[1]
    assert [reading("b", 1), reading("b", 2, 2)] == await stored(sink)
    assert not unfinished(lab.server.path)


async def test_deletions_of_two_devices_at_once_bring_neither_back(lab: Lab) -> None:
    """Both write the same files anew."""
    devices = [f"dev-{number}" for number in range(6)]
    async with lab.opened() as sink:
        for at in range(20):
            await write(sink, *(reading(device, at, at) for device in [*devices, "stays"]))

    async def delete(device: str) -> None:
        async with lab.opened() as own:
            await own.delete(Selection(device_id=device))

    await asyncio.gather(*(delete(device) for device in devices))

    async with lab.opened() as sink:
        assert {"stays"} == {each.device_id for each in await stored(sink)}
        assert await sink.count() == 20


async def test_what_is_written_while_a_device_is_deleted_is_kept(lab: Lab) -> None:
    """Of the others everything, and of the device what came after."""
    async with lab.opened() as sink, lab.opened() as other:
        for at in range(30):
            await write(sink, reading("a", at, at), reading("b", at, at))
        deleting = asyncio.create_task(other.delete(Selection(device_id="a")))
        number = 30
        while not deleting.done():
            await write(sink, reading("b", number, number))
            number += 1
        await deleting
        await write(sink, reading("a", number, number))

        found = await stored(sink)
        assert [reading("a", number, number), *(reading("b", at, at) for at in range(number))] == found


# -- batches -----------------------------------------------------------------------------------------------------------


async def test_batches_of_a_mock_are_listed_and_taken_away(lab: Lab) -> None:
    """In the order in which they were written; what production wrote is neither shown nor touched."""
    async with lab.opened() as production:
        await write(production, reading("kept"))
        for call in (production.batches, production.delete_batches):
            with pytest.raises(ValueError, match="STORAGE_TYPE=mock only"):
                await call()
    mock = lab.sink(STORAGE_TYPE="mock")
    await mock.open()
    await write(mock, reading("a", 1), reading("a", 2, 2))
    await write(mock, reading("b"))
    heads = await mock.batches()

    assert [(2, "mock", T0, T0 + timedelta(microseconds=2)), (1, "mock", T0, T0)] == [
        (head.record_count, head.storage_type, head.period_start, head.period_end) for head in heads
    ]
    assert heads[0].batch_id < heads[1].batch_id
    assert await mock.delete_batches() == 2
    assert [] == await mock.batches()
    assert [reading("kept")] == await stored(mock)
    await mock.close()


# -- the schema --------------------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path) -> Any:
    """A path below one that is not there."""
    return load({"STORAGE_PATH": str(tmp_path / "deep" / "storage")}).sinks["file"]


async def test_the_directory_is_planned_made_and_then_as_it_should_be(settings: Any) -> None:
    """A plan changes nothing; applied twice, the second time does nothing; the format is recorded."""
    planned = await file.plan_schema(settings)
    assert ["create", "create"] == [change.action for change in planned.pending]
    assert not settings.path.parent.exists()

    done = await file.apply_schema(settings)

    assert planned.changes == done.changes
    assert json.loads((settings.path / "iotflow.json").read_text()) == {"format": 1}
    for _ in range(2):
        assert not (await file.plan_schema(settings)).changes
        assert not (await file.drift(settings)).changes
        assert not (await file.apply_schema(settings)).changes


async def test_drift_names_what_is_not_ours_and_apply_leaves_it(settings: Any) -> None:
    """Files among the batches, directories that are no days; a few, however many there are."""
    await file.apply_schema(settings)
    async with lab_at(str(settings.path)) as sink:
        await write(sink, reading("a"))
        (day,) = settings.path.glob("2*/*/*")
        for path in (settings.path / "notes.txt", day / "copy.jsonl.gz", day.parent / "x.tmp"):
            path.write_text("x")
        (settings.path / "other" / "deep").mkdir(parents=True)

        plan = await file.drift(settings)

        assert [
            f"directory {settings.path}/other",
            f"file {settings.path}/notes.txt",
            f"file {day.parent}/x.tmp",
            f"file {day}/copy.jsonl.gz",
        ] == [change.what for change in plan.changes]
        assert {"foreign"} == {change.action for change in plan.changes}
        assert not plan.pending
        assert [reading("a")] == await stored(sink)
    for number in range(40):
        (settings.path / f"{number}.txt").touch()
    plan = await file.drift(settings)
    assert (len(plan.changes), len(plan.notes)) == (20, 1)


async def test_what_cannot_be_made_is_refused_with_the_reason(settings: Any, tmp_path: Path) -> None:
    """Something else has the name, or a newer version made it; nothing is changed."""
    settings.path.parent.mkdir()
    settings.path.write_text("mine")
    for plan in (await file.plan_schema(settings), await file.apply_schema(settings)):
        (change,) = plan.changes
        assert change == Change(
            f"directory {settings.path}", "refused", "something else has that name: set STORAGE_PATH to a directory"
        )
    assert settings.path.read_text() == "mine"
    below = load({"STORAGE_PATH": str(settings.path / "below")}).sinks["file"]
    assert ["refused"] == [change.action for change in (await file.apply_schema(below)).changes]
    settings.path.unlink()
    settings.path.mkdir()
    (settings.path / "iotflow.json").write_text('{"format":99}')
    (change,) = (await file.apply_schema(settings)).changes
    assert change.action == "refused"
    assert "use a newer iotflow" in change.detail
