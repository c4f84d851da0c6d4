"""Files: batches of readings as JSON lines in a directory, one file each.

A batch that is delivered twice is two files; every reading method takes what two of them say of one place and time
together, the later file winning, so a reader sees it once. `sinks.file.archive` has the files, `sinks.file.reading`
what is made of them.
"""

import errno
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from math import isfinite
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, TypeVar

from pydantic import AliasChoices, ConfigDict, Field, model_validator

from schemas import wire
from schemas.reading import EXACT_INTEGER, Reading, Rejected
from sinks.base import (
    EVERYTHING,
    Bucket,
    Change,
    Fatal,
    Function,
    Prepared,
    Retry,
    SchemaPlan,
    Selection,
    SinkSettings,
    Verdict,
    device_of,
    integer_type,
    out_of_type,
    span_of,
    unfit,
)
from sinks.file import reading as answers
from sinks.file.archive import FORMAT, MARKER, NAME, OWN, Archive, ArchiveError, GivenUp, Head, Lines
from sinks.file.aside import Aside

Result = TypeVar("Result")

MOCK: Final = "mock"
#: Readings in a batch, as the documents have them.
_BATCH: Final = {MOCK: 100, "production": 1000}


class Settings(SinkSettings):
    """Where the files go, and how many readings are in one."""

    model_config = ConfigDict(validate_by_name=True)

    PREFIX: ClassVar[str] = "STORAGE"
    STAGE: ClassVar[str] = "store-file"
    PORT: ClassVar[int] = 6070
    DEFAULT: ClassVar[bool] = False

    batch_size: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description="readings in a file",
        json_schema_extra={"default": "1000, with STORAGE_TYPE=mock 100"},
    )
    batch_timeout: float = Field(
        60.0,
        gt=0,
        le=3600,
        validation_alias=AliasChoices("BATCH_INTERVAL_MINUTES"),
        description="seconds that a file waits for more after its first reading; Kafka keeps them until then",
    )
    path: Path = Field(Path(".iotflow/storage"), description="directory of the files; `schema apply` makes it")
    type: Literal["mock", "production"] = Field(
        "production", description="mock for trying out: small batches, which can be listed and taken away"
    )
    gzip: bool = Field(True, description="compress the files, to a thirteenth")

    @model_validator(mode="before")
    @classmethod
    def _sized(cls, values: Any) -> Any:
        """The size that goes with the type."""
        if isinstance(values, dict) and "batch_size" not in values and (size := _BATCH.get(str(values.get("type")))):
            return {**values, "batch_size": size}
        return values


#: What a person can do about it; what is not here passes by itself, or is tried again at least.
_REMEDIES: Final[Mapping[int, str]] = {
    errno.ENOSPC: "free some space there, or set STORAGE_PATH to another disk",
    errno.EDQUOT: "free some space there, raise the quota, or set STORAGE_PATH to another disk",
    errno.EACCES: "let the user that iotflow runs as write there, or set STORAGE_PATH to another directory",
    errno.EPERM: "let the user that iotflow runs as write there, or set STORAGE_PATH to another directory",
    errno.EROFS: "mount it for writing, or set STORAGE_PATH to another directory",
    errno.ENOLCK: "its file system has no locks: set STORAGE_PATH to another one",
    errno.ENOTSUP: "its file system lacks what iotflow needs: set STORAGE_PATH to another one",
    errno.ENAMETOOLONG: "set STORAGE_PATH to a shorter one",
    errno.ELOOP: "its symbolic links lead in a circle: set STORAGE_PATH to a directory",
}
_PAGE: Final = 1000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_time: Final = attrgetter("time")


class FileSink:
    """`sinks.base.Sink` for a directory of files, which any number of workers may write to.

    Nulls are kept, and everything that a reading says besides its values. A correction that leaves metrics out keeps
    their older values. Reading takes as long as decompressing everything that was written (a file whose period lies
    outside the asked one is only opened): it is an archive.
    """

    name = "file"

    def __init__(self, settings: Settings, types: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self._types = types or {}
        self._archive = Archive(settings.path, storage_type=settings.type, compress=settings.gzip)
        self._aside: Aside | None = None

    @property
    def place(self) -> str:
        """The directory."""
        return str(self.settings.path)

    async def open(self) -> None:
        """See that the directory is ours and can be written to."""
        await self.close()
        self._aside = Aside("store-file")
        try:
            await self._do(self._archive.open)
            await self._do(self._archive.probe)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let the thread end; a call that hangs is left behind."""
        aside, self._aside = self._aside, None
        if aside is not None:
            aside.stop()

    async def probe(self) -> None:
        """Write, rename and delete a file that no reader looks at."""
        await self._do(self._archive.probe)

    def prepare(self, readings: Sequence[Reading]) -> Prepared[Lines]:
        """One line for each reading, as on the wire."""
        encode, types = wire.write, self._types
        lines: list[bytes] = []
        kept: list[Reading] = []
        rejected: dict[int, Rejected] = {}
        for index, reading in enumerate(readings):
            if (why := _flaw(reading, types)) is None:
                lines.append(encode(reading))
                kept.append(reading)
            else:
                rejected[index] = why
        if not kept:
            return Prepared(Lines(b"", 0, _EPOCH, _EPOCH), 0, rejected)
        lines.append(b"")
        times = list(map(_time, kept))
        return Prepared(Lines(b"\n".join(lines), len(kept), min(times), max(times)), len(kept), rejected)

    async def write(self, payload: Lines) -> None:
        """One file, durable with its name; cancelled, it is there whole or not at all."""
        if payload.count:
            await self._do(partial(self._archive.write, payload))

    def classify(self, error: BaseException) -> Verdict:
        """What the system says by number; what is not known is tried again."""
        if isinstance(error, ArchiveError):
            return Fatal(str(error))
        if isinstance(error, OSError):
            if remedy := _REMEDIES.get(error.errno or 0):
                return Fatal(f"{error.filename or self.place}: {error.strerror}; {remedy}")
            return Retry(f"{type(error).__name__}: {error}", smaller=error.errno == errno.EFBIG)
        return Retry(f"{type(error).__name__}: {error}")

    async def _do(self, call: Callable[[GivenUp], Result]) -> Result:
        """Make a blocking call in the thread; cancelled, it is told that nobody waits any more."""
        if self._aside is None:
            raise ConnectionError("not open")
        left = threading.Event()
        try:
            return await self._aside.run(partial(call, left.is_set))
        finally:
            left.set()

    # -- reading back ------------------------------------------------------------------------------------------------

    def kept(self, reading: Reading) -> Reading:
        """All of it."""
        return reading

    async def scan(self, where: Selection = EVERYTHING) -> AsyncIterator[Reading]:
        """Every stored reading in (device, time, channel, measurement) order."""
        if self._aside is None:
            raise ConnectionError("not open")
        aside, left = self._aside, threading.Event()
        found = self._found(where, left.is_set)
        try:
            while page := await aside.run(lambda: list(islice(found, _PAGE))):
                for reading in page:
                    yield reading
        finally:
            left.set()

    async def query(self, where: Selection = EVERYTHING, *, limit: int = 100, offset: int = 0) -> list[Reading]:
        """A page of readings, newest first; in memory is what lies in front of its end."""
        return await self._do(lambda left: answers.page(self._found(where, left), limit, offset))

    async def latest(self, where: Selection) -> list[Reading]:
        """The newest reading of each (device, channel, measurement)."""
        return await self._do(lambda left: answers.latest(self._found(where, left)))

    async def count(self, where: Selection = EVERYTHING, *, readings: bool = False) -> int:
        """How many values are stored, nulls included; with `readings`, how many readings."""
        return await self._do(lambda left: answers.count(self._found(where, left), whole=readings))

    async def aggregate(
        self,
        where: Selection,
        every: timedelta,
        functions: Sequence[Function] = ("count", "mean", "min", "max"),
        metrics: Sequence[str] | None = None,
    ) -> list[Bucket]:
        """Buckets that hold a value."""
        span_of(where, every, functions)
        return await self._do(lambda left: answers.buckets(self._found(where, left), every, functions, metrics))

    async def delete(self, where: Selection) -> None:
        """Write the files that hold what is selected anew, without it; each is renamed into its place."""
        device_of(where)
        await self._do(partial(self._archive.delete, where))

    def _found(self, where: Selection, left: GivenUp) -> Iterator[Reading]:
        return answers.in_order(self._archive.read(where, left))

    # -- batches -----------------------------------------------------------------------------------------------------

    async def batches(self) -> list[Head]:
        """The heads of the batches, the first written being first; raises `ValueError` unless STORAGE_TYPE is mock."""
        self._mock_only()
        found = await self._do(lambda left: [head for _, head in self._archive.heads(left)])
        return [head for head in found if head.storage_type == MOCK]

    async def delete_batches(self) -> int:
        """Take all of those away, readings included; how many there were. Raises as `batches` does."""
        self._mock_only()
        return await self._do(partial(self._archive.delete_batches, MOCK))

    def _mock_only(self) -> None:
        if self.settings.type != MOCK:
            raise ValueError("batches are listed and taken away with STORAGE_TYPE=mock only: these are to be kept")


def _flaw(reading: Reading, types: Mapping[str, str]) -> Rejected | None:
    """Why a reading has no form that gives it back as it was, or None."""
    for metric, value in reading.values.items():
        if value is None:
            continue
        kind = integer_type(types, reading.measurement, metric) if types else None
        if kind is not None:
            if out_of_type(kind, value):
                return unfit(metric, value, kind).rejected
        elif value.__class__ is float:
            if not isfinite(value):
                return unfit(metric, value).rejected
        elif value.__class__ is int and not -EXACT_INTEGER <= value <= EXACT_INTEGER:
            return unfit(metric, value).rejected
    return None


# -- the directory as a schema -----------------------------------------------------------------------------------------

_SERVER: Final = f"files of JSON lines, format {FORMAT}"
#: So many files of others are named.
_SHOWN: Final = 20


async def plan_schema(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:  # noqa: ARG001
    """What is missing of the directory, or why it cannot be made. Raises what the sink's classify knows."""
    return await _aside(lambda: SchemaPlan(_SERVER, list(_refused(settings.path)) or list(_missing(settings.path))))


async def drift(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:
    """The plan, and what lies there that is not ours. Raises what the sink's classify knows."""
    plan = await plan_schema(settings, types)
    foreign = await _aside(lambda: list(islice(_foreign(settings.path), _SHOWN + 1)))
    notes = [f"only the first {_SHOWN} that are not ours are shown"] if len(foreign) > _SHOWN else []
    return SchemaPlan(plan.server, [*plan.changes, *foreign[:_SHOWN]], notes)


async def apply_schema(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:
    """Make the directory, and see that files can be written and renamed in it. Raises what the sink's classify knows.

    May be run again.
    """
    plan = await plan_schema(settings, types)
    if len(plan.pending) == len(plan.changes):  # nothing is refused
        await _aside(partial(_make, settings.path, marked=not plan.changes))
    return plan


async def _aside(call: Callable[[], Result]) -> Result:
    aside = Aside("store-file")
    try:
        return await aside.run(call)
    finally:
        aside.stop()


def _missing(path: Path) -> Iterator[Change]:
    if not path.exists():
        yield Change(f"directory {path}", "create")
    if not (path / MARKER).exists():
        yield Change(f"file {path / MARKER}", "create", f"format {FORMAT}")


def _refused(path: Path) -> Iterator[Change]:
    """What `apply` cannot do."""
    if path.exists() and not path.is_dir():
        yield Change(f"directory {path}", "refused", "something else has that name: set STORAGE_PATH to a directory")
        return
    there = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        yield Change(f"directory {path}", "refused", f"{there} cannot be written to: {_REMEDIES[errno.EACCES]}")
    elif (path / MARKER).exists():
        try:
            Archive(path).check()
        except ArchiveError as error:
            yield Change(f"file {path / MARKER}", "refused", str(error))


def _make(path: Path, *, marked: bool) -> None:
    path.mkdir(parents=True, exist_ok=True)
    archive = Archive(path)
    if not marked:
        archive.mark()
    archive.open()
    archive.probe()


def _foreign(path: Path) -> Iterator[Change]:
    """Each file that is not of our making; a directory in which nothing is ours counts as one."""
    for folder, folders, names in os.walk(path):
        here = Path(folder)
        depth = len(here.relative_to(path).parts)
        folders.sort()
        for name in list(folders):
            if depth == 0 and name == OWN:
                folders.remove(name)
            elif depth >= len(_DIGITS) or not (len(name) == _DIGITS[depth] and name.isdecimal()):
                folders.remove(name)
                yield Change(f"directory {here / name}", "foreign", "no reader looks there")
        for name in sorted(names):
            ours = NAME.fullmatch(name) if depth == len(_DIGITS) else depth == 0 and name == MARKER
            if not ours:
                yield Change(f"file {here / name}", "foreign", "no reader looks at it")


#: Of a year, a month and a day.
_DIGITS: Final = (4, 2, 2)
#: What the registry of sinks makes one with.
Sink = FileSink
