import errno
import gzip
import json
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from app.settings import SettingsError, load
from schemas import wire
from schemas.reading import Reading
from sinks.base import Fatal, Retry, Selection
from sinks.file import FileSink, Settings, reading
from sinks.file.archive import FORMAT, Archive, ArchiveError, AwayError, GivenUpError, Lines, never
from sinks.file.reading import in_order, page, together

T0 = datetime(2025, 10, 5, 12, 34, 56, 123456, tzinfo=UTC)
#: In microseconds since the epoch.
NOON = int(datetime(2025, 10, 5, 12, tzinfo=UTC).timestamp()) * 1_000_000


def made(device: str = "dev-1", at: int = 0, **more: Any) -> Reading:
    """A reading, `at` microseconds after the first instant."""
    values = more.pop("values", {"temperature": 20.5})
    return Reading("telemetry", device, T0 + timedelta(microseconds=at), values, **more)


def lines(*readings: Reading) -> Lines:
    """A batch as it is written."""
    prepared = FileSink(Settings()).prepare(readings)
    assert not prepared.rejected
    return prepared.payload


class Ticks:
    """A wall clock that is set by hand."""

    def __init__(self, now: int = NOON) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory that is ours."""
    Archive(tmp_path).mark()
    return tmp_path


def opened(path: Path, **more: Any) -> Archive:
    """An archive there."""
    archive = Archive(path, **more)
    archive.open()
    return archive


def stored(archive: Archive, where: Selection | None = None) -> list[Reading]:
    """As they were written."""
    return [found for found, _ in archive.read(where or Selection())]


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "size", "seconds"),
    [
        ({}, 1000, 60.0),
        ({"STORAGE_TYPE": "mock"}, 100, 60.0),
        ({"STORAGE_TYPE": "mock", "BATCH_SIZE": "7"}, 7, 60.0),
        ({"STORAGE_TYPE": "production", "STORAGE_BATCH_SIZE": "9", "BATCH_SIZE": "7"}, 9, 60.0),
        ({"BATCH_INTERVAL_MINUTES": "5"}, 1000, 300.0),
        ({"BATCH_INTERVAL_MINUTES": "0.5", "BATCH_TIMEOUT": "3"}, 1000, 30.0),
        ({"BATCH_TIMEOUT_MS": "20"}, 1000, 60.0),
        ({"STORAGE_BATCH_TIMEOUT": "2", "BATCH_INTERVAL_MINUTES": "5"}, 1000, 2.0),
        ({"STORAGE_BATCH_TIMEOUT_MS": "500"}, 1000, 0.5),
    ],
)
def test_how_large_a_batch_is_and_how_long_it_waits(env: dict[str, str], size: int, seconds: float) -> None:
    """The documents' own names count; what they say of databases' batches does not say when a file is closed."""
    found = load(env).sinks["file"]

    assert (size, seconds) == (found.batch_size, found.batch_timeout)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"BATCH_INTERVAL_MINUTES": "soon"}, "BATCH_INTERVAL_MINUTES is 'soon': must be a number of minutes"),
        ({"BATCH_INTERVAL_MINUTES": "0"}, "BATCH_INTERVAL_MINUTES is '0': must be"),
        ({"STORAGE_TYPE": "s3"}, "STORAGE_TYPE is 's3': must be one of mock, production"),
        ({"STORAGE_BATCH_SIZE": "0"}, "STORAGE_BATCH_SIZE is '0': must be a whole number at least 1"),
    ],
)
def test_settings_that_cannot_be(env: dict[str, str], said: str) -> None:
    """Each is named with its value and what it must be."""
    with pytest.raises(SettingsError, match=said):
        load(env)


def test_files_are_written_where_somebody_asked_for_them() -> None:
    """STORES names `file`; by default it does not."""
    assert "file" in load({}).sinks
    assert "file" not in load({}).stores
    assert load({"STORES": "file,timescale"}).stores == ("file", "timescale")


# -- what a file is ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [True, False])
def test_a_file_is_its_head_and_a_reading_a_line(place: Path, *, compress: bool) -> None:
    """Readable by anything that reads JSON lines; its times are those of its readings; nothing else is left."""
    readings = [made(at=5), made(at=1, values={"state": "a\nb", "none": None}), made("ü", at=9)]
    archive = opened(place, storage_type="mock", compress=compress, clock=Ticks())

    head = archive.write(lines(*readings))

    (path,) = archive.files()
    assert path == place / "2025/10/05" / f"{head.batch_id}{'.jsonl.gz' if compress else '.jsonl'}"
    assert head.batch_id.startswith("20251005T120000000001Z-")  # opening drew the number before
    first, *rest = (gzip.decompress(path.read_bytes()) if compress else path.read_bytes()).splitlines()
    assert json.loads(first) == {
        "batch_id": head.batch_id,
        "uploaded_at": "2025-10-05T12:00:00Z",
        "record_count": 3,
        "storage_type": "mock",
        "period_start": "2025-10-05T12:34:56.123457Z",
        "period_end": "2025-10-05T12:34:56.123465Z",
    }
    assert [wire.write(each) for each in readings] == rest
    assert readings == stored(archive)
    assert ["sequence"] == [each.name for each in (place / ".iotflow").iterdir()]


def test_a_clock_that_is_set_back_makes_no_batch_older(place: Path) -> None:
    """Neither in one worker nor after a restart; the day in the path is that of the number."""
    clock = Ticks()
    archive = opened(place, clock=clock)
    archive.write(lines(made(values={"a": 1.0})))
    clock.now -= 3_600_000_000
    archive.write(lines(made(values={"a": 2.0})))
    opened(place, clock=clock).write(lines(made(values={"a": 3.0})))

    assert [1.0, 2.0, 3.0] == [each.values["a"] for each in stored(archive)]


def test_workers_whose_clocks_differ_agree_which_batch_is_later(place: Path) -> None:
    """Two that are open at once, an hour apart, writing in turn."""
    ahead, behind = (opened(place, clock=Ticks(NOON + offset)) for offset in (3_600_000_000, 0))
    for number in range(6):
        (behind if number % 2 else ahead).write(lines(made(values={"a": float(number)})))

    assert [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] == [each.values["a"] for each in stored(behind)]


@pytest.mark.parametrize("left", ["nothing", "rubbish", "older"])
def test_the_number_is_found_again_from_the_files(place: Path, left: str) -> None:
    """Lost or older than the files, as after a crash of the machine, the sequence goes on behind the last file."""
    archive = opened(place, clock=Ticks(NOON + 86_400_000_000))
    archive.write(lines(made(values={"a": 1.0})))
    sequence = place / ".iotflow" / "sequence"
    sequence.write_text({"nothing": "", "rubbish": "x" * 20, "older": f"{NOON:020d}"}[left])

    opened(place, clock=Ticks()).write(lines(made(values={"a": 2.0})))

    assert [1.0, 2.0] == [each.values["a"] for each in stored(archive)]


def test_what_dead_writers_left_goes_and_what_living_ones_write_stays(place: Path) -> None:
    """A part that nobody has locked is deleted when an archive is opened; one that is being written is not."""
    dead = place / ".iotflow" / "20251005T000000000000Z-000000.part"
    archive = opened(place)
    dead.write_bytes(b"half")
    with archive._part("living", never) as living:
        opened(place)
        assert not dead.exists()
        assert Path(living.name).exists()
        Path(living.name).unlink()


def test_an_abandoned_write_leaves_nothing(place: Path) -> None:
    """Given up before its file has its name, it never gets it."""
    archive = opened(place)

    with pytest.raises(GivenUpError):
        archive.write(lines(made()), lambda: True)

    assert not stored(archive)
    assert ["sequence"] == [each.name for each in (place / ".iotflow").iterdir()]


# -- reading -----------------------------------------------------------------------------------------------------------


def cut(content: bytes) -> bytes:
    """Without its end."""
    return content[:-20]


def without_a_line(content: bytes) -> bytes:
    """As an editor leaves it: whole lines, too few."""
    return b"".join(content.splitlines(keepends=True)[:-1])


@pytest.mark.parametrize(
    ("compress", "spoil"),
    [
        (True, cut),
        (False, cut),
        (False, without_a_line),
        (True, lambda _: b"no gzip"),
        (False, lambda _: b""),
        (True, lambda content: content[:40] + bytes([content[40] ^ 0xFF]) + content[41:]),
        (False, lambda content: content.replace(b'"values"', b'"valves"', 1)),
    ],
)
def test_a_damaged_file_is_said_and_not_left_out(
    place: Path, spoil: Callable[[bytes], bytes], *, compress: bool
) -> None:
    """The error names the file and what to do; it is Fatal."""
    archive = opened(place, compress=compress)
    archive.write(lines(*(made(at=at) for at in range(50))))
    (path,) = archive.files()
    path.write_bytes(spoil(path.read_bytes()))

    with pytest.raises(ArchiveError, match=r"is damaged .*restore it") as error:
        stored(archive)

    assert str(path) in str(error.value)
    assert isinstance(FileSink(Settings(path=place)).classify(error.value), Fatal)


@pytest.mark.parametrize("read", [Archive.read, Archive.heads])
def test_a_directory_that_goes_away_while_it_is_read_is_no_end(place: Path, read: Callable[..., Any]) -> None:
    """What was not read yet is missed, though its folders look as if there were none."""
    clock = Ticks()
    archive = opened(place, clock=clock)
    archive.write(lines(made()))
    clock.now += 86_400_000_000
    archive.write(lines(made(at=1)))
    found = read(archive)
    next(found)
    place.rename(place.with_name("away"))

    with pytest.raises(AwayError, match="is it mounted"):
        list(found)
    place.with_name("away").rename(place)


def test_a_selection_looks_at_names_as_they_are(place: Path) -> None:
    """A device whose name is a part of another's, or of a text, is not taken for it."""
    readings = [made("a"), made("aa"), made('"a"'), made("b", values={"text": "a"}), made("b", at=1, tags={"a": "a"})]
    archive = opened(place)
    archive.write(lines(*readings))

    assert readings[:1] == stored(archive, Selection(device_id="a"))
    assert readings[3:] == stored(archive, Selection(device_id="b"))


_READINGS = st.builds(
    lambda device, at, metrics, number: made(device, at, values=dict.fromkeys(metrics, float(number))),
    st.sampled_from("abc"),
    st.integers(0, 5),
    st.lists(st.sampled_from("xyz"), min_size=1, unique=True),
    st.integers(0, 99),
)


@given(given=st.lists(_READINGS, max_size=60))
def test_order_and_the_last_word_do_not_depend_on_what_fits_in_memory(given: list[Reading]) -> None:
    """Runs of three, merged by twos, over several levels, give what sorting all of them gives."""
    expected: dict[Any, Reading] = {}
    for each in given:
        place = (each.device_id, each.time)
        expected[place] = together(expected[place], each) if place in expected else each

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "RUN_READINGS", 3)
        patch.setattr(reading, "FAN_IN", 2)
        found = list(in_order((each, 1) for each in given))

    assert [expected[place] for place in sorted(expected)] == found


def test_runs_end_at_so_many_bytes_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few readings that are long are not kept in memory either."""
    spilled: list[int] = []
    add = reading._Runs.add
    monkeypatch.setattr(reading._Runs, "add", lambda runs, *args: (spilled.append(1), add(runs, *args)))
    readings = [made(at=-at) for at in range(9)]

    found = list(in_order((each, reading.RUN_BYTES // 2) for each in readings))

    assert readings[::-1] == found
    assert len(spilled) == 4


def test_what_two_readings_of_one_place_say_together() -> None:
    """Value by value, with its unit and original; a reading with all of the metrics replaces everything."""
    older = made(
        values={"a": 1.0, "b": 2.0},
        units={"a": "°C", "b": "%"},
        raw={"a": 120, "b": 7},
        tags={"site": "1", "room": "x"},
        flags=["clamped"],
        dialect="fire",
    )
    newer = made(values={"a": 5.0}, tags={"site": "2"}, flags=["old"])

    assert together(older, newer) == made(
        values={"a": 5.0, "b": 2.0},
        units={"b": "%"},
        raw={"b": 7},
        tags={"site": "2", "room": "x"},
        flags=["clamped", "old"],
    )
    assert together(older, whole := replace(newer, values={"b": None, "a": 1.0})) == whole


def test_a_page_holds_no_more_than_lies_before_its_end() -> None:
    """Newest first, those of one instant by device."""
    readings = [made(device, at) for device in "abc" for at in range(4)]

    assert [made("a", 3), made("b", 3), made("c", 3), made("a", 2)] == page(readings, 4, 0)
    assert [made("b", 2), made("c", 2)] == page(readings, 2, 4)
    assert [] == page(readings, 5, 12)


# -- errors ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOLCK, errno.ENAMETOOLONG]
)
def test_what_a_person_must_mend_is_fatal_with_the_path(number: int) -> None:
    """The system's words, where, and what to do."""
    verdict = FileSink(Settings(path=Path("/data"))).classify(OSError(number, os.strerror(number), "/data/x"))

    assert isinstance(verdict, Fatal)
    assert verdict.remedy.startswith(f"/data/x: {os.strerror(number)}; ")


@pytest.mark.parametrize(
    ("error", "smaller"),
    [
        (OSError(errno.ENOENT, "gone"), False),
        (OSError(errno.EIO, "disk"), False),
        (OSError(errno.ESTALE, "nfs"), False),
        (OSError(errno.EMFILE, "files"), False),
        (OSError(errno.EFBIG, "limit"), True),
        (AwayError("away"), False),
        (GivenUpError(), False),
        (RuntimeError("?"), False),
    ],
)
def test_what_passes_is_tried_again_and_nothing_is_ever_of_the_data(error: Exception, *, smaller: bool) -> None:
    """A file system looks at no reading, so no error of it may cost one."""
    verdict = FileSink(Settings()).classify(error)

    assert isinstance(verdict, Retry)
    assert verdict.smaller is smaller


def test_a_directory_of_a_newer_version_is_left_alone(place: Path) -> None:
    """It is not written to, and the error says which version it wants."""
    (place / "iotflow.json").write_text(f'{{"format":{FORMAT + 1}}}')

    with pytest.raises(ArchiveError, match=f"has format {FORMAT + 1}, .* up to {FORMAT}: use a newer iotflow"):
        opened(place)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_marker_is_said(place: Path, content: str) -> None:
    """It is not taken for a directory that is nobody's."""
    (place / "iotflow.json").write_text(content)

    with pytest.raises(ArchiveError, match=r"iotflow\.json is damaged"):
        opened(place)
