"""A directory of batch files: names that say which is later, files that are there whole or not at all, reading them.

    PATH/iotflow.json                                    what the directory is, and its format
    PATH/2025/10/05/20251005T123456123456Z-1f0c9a.jsonl.gz   a batch: a line with its head, then a reading a line
    PATH/.iotflow/                                       files that are being written, and what workers agree by

Everything here blocks. `given_up` is asked by whatever may take long, and ends it by `GivenUpError`.
"""

import fcntl
import gzip
import os
import re
import secrets
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from io import BufferedIOBase
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from msgspec import Struct

from schemas.reading import Reading
from sinks.base import EVERYTHING, Selection

GivenUp = Callable[[], bool]

#: The format of what is written; what is read may be older.
FORMAT: Final = 1
MARKER: Final = "iotflow.json"
#: The directory of what is no batch.
OWN: Final = ".iotflow"
#: A batch file's name; the batch's id is in front of the first dot.
NAME: Final = re.compile(r"(\d{4})(\d\d)(\d\d)T\d{12}Z-[0-9a-f]{6}\.jsonl(\.gz)?")

_SEQUENCE: Final = "sequence"
_DELETING: Final = "deleting"
_PART: Final = ".part"
_POLL_S: Final = 0.01
_GZIP_LEVEL: Final = 6
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
_DIGITS: Final = 20
_DAMAGE: Final = (EOFError, zlib.error, gzip.BadGzipFile, msgspec.DecodeError, UnicodeDecodeError)


class ArchiveError(Exception):
    """Raised where a person has to act; the text says how."""


class AwayError(ConnectionError):
    """Raised where the directory was there, and is no longer: as a mount that went away."""


class GivenUpError(Exception):
    """Raised in work that nobody waits for any more; nothing of it is seen by a reader."""


class Head(Struct):
    """The first line of a batch file: what is in it.

    Its readings' times lie between `period_start` and `period_end`, both included.
    """

    batch_id: str
    uploaded_at: datetime
    record_count: int
    storage_type: str
    period_start: datetime
    period_end: datetime


class Marker(Struct):
    """What `iotflow.json` says."""

    format: int


class Lines(Struct, frozen=True):
    """Readings as they are written: `count` lines, and the first and last of their times."""

    body: bytes
    count: int
    start: datetime
    end: datetime


_encode: Final = msgspec.json.Encoder().encode
_head: Final = msgspec.json.Decoder(Head).decode
_marker: Final = msgspec.json.Decoder(Marker).decode
_reading: Final = msgspec.json.Decoder(Reading).decode


def never() -> bool:
    """Nobody gives up."""
    return False


def wall_us() -> int:
    """Microseconds since the epoch."""
    return time.time_ns() // 1000


class Archive:
    """One directory, which other processes write to as well.

    Batches are numbered in the order in which they were begun, by all workers together: a number is the wall clock in
    microseconds, or one more than the last where that is not later, drawn under a lock. So neither a clock that was set
    back nor one that differs from another worker's makes an older batch look like the later one.
    """

    def __init__(
        self, path: Path, *, storage_type: str = "production", compress: bool = True, clock: Callable[[], int] = wall_us
    ) -> None:
        self.path = path
        self._type = storage_type
        self._compress = compress
        self._clock = clock
        self._own = path / OWN
        #: Whether the directory was there once: from then on its absence is an outage.
        self._opened = False
        #: The last folder whose whole path is known to be durable.
        self._folder: Path | None = None

    # -- the directory -----------------------------------------------------------------------------------------------

    def open(self, given_up: GivenUp = never) -> None:
        """See that the directory is ours, and take away what dead writers left."""
        self.check()
        with self._locked(_SEQUENCE, given_up) as sequence:
            # A machine that crashed may have kept a batch and not the number.
            self._draw(sequence, least=self._newest())
            self._clean()
        self._opened = True

    def check(self) -> None:
        """See that the directory is there, is ours and can be read by this version."""
        try:
            marker = _marker((self.path / MARKER).read_bytes())
        except (FileNotFoundError, NotADirectoryError) as error:
            if self._opened:
                raise AwayError(f"{self.path} is no longer there, or is empty: is it mounted?") from error
            raise ArchiveError(
                f"{self.path} is no directory of ours: run iotflow schema apply; if it was one, mount it, or set "
                "STORAGE_PATH to where it is"
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ArchiveError(f"{self.path / MARKER} is damaged ({error}): restore it from a copy") from error
        if marker.format > FORMAT:
            raise ArchiveError(
                f"{self.path} has format {marker.format}, and this version knows up to {FORMAT}: use a newer iotflow"
            )
        self._own.mkdir(exist_ok=True)

    def probe(self, given_up: GivenUp = never) -> None:
        """Do all that writing a batch does, and leave nothing."""
        self.check()
        folder = self._folder_of(self._clock())
        with self._part(f"probe-{secrets.token_hex(4)}", given_up) as part:
            part.write(b"\0" * 4096)
            # Not a batch's name, so no reader looks at it.
            tried = folder / f".{Path(part.name).name}"
            self._publish(part, tried, given_up)
        tried.unlink()

    def mark(self) -> None:
        """Make a directory ours; it is there."""
        self._own.mkdir(exist_ok=True)
        part = self._own / f"marker-{secrets.token_hex(4)}{_PART}"
        with part.open("xb") as file:
            file.write(_encode(Marker(FORMAT)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        part.rename(self.path / MARKER)
        _make_durable(self.path)

    # -- writing -----------------------------------------------------------------------------------------------------

    def write(self, lines: Lines, given_up: GivenUp = never) -> Head:
        """Store a batch; when it returns, all of it is durable, and when it raises, none of it is or all of it."""
        self.check()
        number = 0

        def name(sequence: int) -> str:
            nonlocal number
            number = self._draw(sequence)
            return f"{_EPOCH + number * _MICROSECOND:%Y%m%dT%H%M%S%fZ}-{secrets.token_hex(3)}"

        with self._part(name, given_up) as part:
            batch_id = Path(part.name).name.removesuffix(_PART)
            uploaded_at = _EPOCH + self._clock() * _MICROSECOND
            head = Head(batch_id, uploaded_at, lines.count, self._type, lines.start, lines.end)
            with _written(part, compress=self._compress) as file:
                file.write(_encode(head) + b"\n")
                file.write(lines.body)
            suffix = ".jsonl.gz" if self._compress else ".jsonl"
            self._publish(part, self._folder_of(number) / f"{batch_id}{suffix}", given_up)
        return head

    def _draw(self, sequence: int, least: int = 0) -> int:
        """The next batch's number, above `least` and all that were drawn before; the lock is held."""
        text = os.pread(sequence, _DIGITS, 0)
        last = int(text) if text.isdigit() else self._newest()
        number = max(self._clock(), last + 1, least + 1)
        os.pwrite(sequence, b"%0*d" % (_DIGITS, number), 0)
        return number

    def _newest(self) -> int:
        """The highest number of a batch that is there; 0 when there is none."""
        for path in self.files(newest_first=True):
            with suppress(ValueError):  # somebody else's file, whose name only looks like a time
                time = datetime.strptime(path.name.partition("-")[0], "%Y%m%dT%H%M%S%f%z")
                return (time - _EPOCH) // _MICROSECOND
        return 0

    @contextmanager
    def _part(self, name: str | Callable[[int], str], given_up: GivenUp) -> Iterator[BinaryIO]:
        """A new file that no reader sees, locked for as long as its writer lives; gone after the block unless renamed.

        `name` may be a function of the open file of the sequence, called while that is locked.
        """
        with self._locked(_SEQUENCE, given_up) as sequence:
            named = name if isinstance(name, str) else name(sequence)
            part = (self._own / f"{named}{_PART}").open("xb")
            fcntl.flock(part, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            with part:
                yield part
        except BaseException:
            self._folder = None  # whatever failed, nothing is known any more
            with suppress(OSError):
                Path(part.name).unlink()
            raise

    def _publish(self, part: BinaryIO, path: Path, given_up: GivenUp) -> None:
        part.flush()
        os.fsync(part.fileno())
        if given_up():
            raise GivenUpError
        Path(part.name).rename(path)
        _make_durable(path.parent)

    def _folder_of(self, number: int) -> Path:
        """The folder of the day of a number, there and durable."""
        folder = self.path / f"{_EPOCH + number * _MICROSECOND:%Y/%m/%d}"
        if folder != self._folder:
            # Never the path itself: where its mount is away, another disk would be filled.
            for each in (folder.parent.parent, folder.parent, folder):
                each.mkdir(exist_ok=True)
                _make_durable(each.parent)
            self._folder = folder
        return folder

    @contextmanager
    def _locked(self, name: str, given_up: GivenUp) -> Iterator[int]:
        """A lock among all processes that use the directory, and the open file that it is on."""
        file = os.open(self._own / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if given_up():
                        raise GivenUpError from None
                    time.sleep(_POLL_S)
            yield file
        finally:
            os.close(file)

    def _clean(self) -> None:
        """Delete the unfinished files of writers that are gone; those of the living are locked. The lock is held."""
        for path in self._own.glob(f"*{_PART}"):
            with suppress(FileNotFoundError), path.open("rb+") as file:  # NFS locks nothing that is open for reading
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                path.unlink()

    # -- reading -----------------------------------------------------------------------------------------------------

    def files(self, *, newest_first: bool = False) -> Iterator[Path]:
        """The batch files, the one written first being first; the names of one day are held at a time."""
        for year in _folders(self.path, 4, newest_first=newest_first):
            for month in _folders(year, 2, newest_first=newest_first):
                for day in _folders(month, 2, newest_first=newest_first):
                    for name in sorted(filter(NAME.fullmatch, _names(day)), reverse=newest_first):
                        yield day / name

    def heads(self, given_up: GivenUp = never) -> Iterator[tuple[Path, Head]]:
        """Each batch file with what it says of itself, the one written first being first."""
        self.check()
        for path in self.files():
            if given_up():
                raise GivenUpError
            with self._batch(path) as batch:
                if batch is not None:
                    yield path, batch[0]
        self.check()

    def read(self, where: Selection = EVERYTHING, given_up: GivenUp = never) -> Iterator[tuple[Reading, int]]:
        """The readings that are selected, in the order in which they were written, and the length of their lines.

        Raises `ArchiveError` where a file is damaged: what cannot be read is not left out in silence.
        """
        self.check()
        for path in self.files():
            if given_up():
                raise GivenUpError
            yield from self._selected(path, where)
        self.check()  # a directory that went away meanwhile looks like an empty one

    def _selected(self, path: Path, where: Selection) -> Iterator[tuple[Reading, int]]:
        device = None if where.device_id is None else _encode(where.device_id)
        with self._batch(path) as batch:
            if batch is None or _outside(batch[0], where):
                return
            for line in batch[1]:
                if device is None or device in line:  # decoding is what takes long
                    reading = _reading(line)
                    if _fits(reading, where):
                        yield reading, len(line)

    @contextmanager
    def _batch(self, path: Path) -> Iterator[tuple[Head, Iterator[bytes]] | None]:
        """The head and the lines of a file; None where it was deleted meanwhile."""
        file: BufferedIOBase | None = None
        try:
            file = gzip.open(path) if path.suffix == ".gz" else path.open("rb")  # noqa: SIM115  closed below
        except FileNotFoundError:
            self.check()  # it may be all of the directory that is gone
        if file is None:
            yield None
            return
        with file:
            try:
                head = _head(file.readline())
                yield head, _lines(file, head.record_count)
            except _DAMAGE as error:
                raise ArchiveError(
                    f"{path} is damaged ({error}): restore it from a copy, or move it out of {self.path}"
                ) from error

    # -- deleting ----------------------------------------------------------------------------------------------------

    def delete(self, where: Selection, given_up: GivenUp = never) -> None:
        """Write every file anew that holds a selected reading, without those; one without others is taken away.

        What is written meanwhile is not looked at.
        """
        self.check()
        with self._locked(_DELETING, given_up):  # two at once would bring back what the other has deleted
            for path in self.files():
                if given_up():
                    raise GivenUpError
                self._delete_in(path, where, given_up)

    def _delete_in(self, path: Path, where: Selection, given_up: GivenUp) -> None:
        if next(self._selected(path, where), None) is None:
            return
        with self._batch(path) as batch:
            if batch is None:
                return
            head, lines = batch
            left = [(line, reading.time) for line in lines if not _fits(reading := _reading(line), where)]
        if not left:
            path.unlink()
            _make_durable(path.parent)
            return
        times = [time for _, time in left]
        head.record_count, head.period_start, head.period_end = len(left), min(times), max(times)
        with self._part(f"{head.batch_id}-{secrets.token_hex(4)}", given_up) as part:
            with _written(part, compress=path.suffix == ".gz") as file:
                file.write(_encode(head) + b"\n")
                file.writelines(line for line, _ in left)
            self._publish(part, path, given_up)

    def delete_batches(self, storage_type: str, given_up: GivenUp = never) -> int:
        """Take away every file of a storage type; how many there were."""
        self.check()
        with self._locked(_DELETING, given_up):
            found = [path for path, head in self.heads(given_up) if head.storage_type == storage_type]
            for path in found:
                path.unlink()
            for folder in {path.parent for path in found}:
                _make_durable(folder)
        return len(found)


@contextmanager
def _written(part: BinaryIO, *, compress: bool) -> Iterator[BinaryIO | BufferedIOBase]:
    """What is written into a part, compressed or as it is."""
    if not compress:
        yield part
        return
    # Without a name and a time, so that the same readings are the same bytes.
    with gzip.GzipFile("", "wb", _GZIP_LEVEL, part, mtime=0) as file:
        yield file


def _lines(file: BufferedIOBase, count: int) -> Iterator[bytes]:
    """The lines of a file, which must be so many."""
    found = 0
    for line in file:
        found += 1
        yield line
    if found != count:
        raise EOFError(f"it has {found} readings of {count}")


def _make_durable(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _names(folder: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(folder)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _folders(folder: Path, digits: int, *, newest_first: bool) -> Iterator[Path]:
    for name in sorted(_names(folder), reverse=newest_first):
        if len(name) == digits and name.isdecimal():
            yield folder / name


def _outside(head: Head, where: Selection) -> bool:
    """Whether nothing of a batch can lie between the ends of a selection."""
    return (where.start is not None and head.period_end < where.start) or (
        where.end is not None and head.period_start >= where.end
    )


def _fits(reading: Reading, where: Selection) -> bool:
    return (
        where.device_id in {None, reading.device_id}
        and where.measurement in {None, reading.measurement}
        and where.channel in {None, reading.channel}
        and (where.start is None or reading.time >= where.start)
        and (where.end is None or reading.time < where.end)
    )
