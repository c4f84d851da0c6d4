"""The contract between delivery and a destination. A sink writes and classifies; `sinks.delivery` does the rest."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar, get_args

from msgspec import Struct
from msgspec.structs import replace
from pydantic import BaseModel, ConfigDict, Field

from schemas.reading import RESERVED, Reading, Rejected, RejectedError, Value

Payload = TypeVar("Payload")

INTEGER_TYPES: Final = frozenset({"INT32", "INT64"})
_LIMIT: Final[Mapping[str, int]] = {"INT32": 2**31, "INT64": 2**63}


class Retry(Struct, frozen=True):
    """The destination is away or busy: the same batch again, after `after_s` seconds or delivery's own back-off."""

    why: str
    after_s: float | None = None
    #: It was too much at once: when it comes back a second time, each half is tried apart.
    smaller: bool = False


class Reject(Struct, frozen=True):
    """Something in the batch can never be stored; delivery bisects to find it."""

    rejected: Rejected


class Fatal(Struct, frozen=True):
    """No batch can be stored until a person acts (wrong password, no such database); `remedy` says how."""

    remedy: str


Verdict = Retry | Reject | Fatal


class PartialWriteError(Exception):
    """Raised by `write`: the batch's readings at these indexes can never be stored.

    Delivery dead-letters them and writes all the others again, so whether those were stored does not matter.
    """

    def __init__(self, rejected: Mapping[int, Rejected]) -> None:
        super().__init__(f"{len(rejected)} of the batch's readings were refused")
        self.rejected = rejected


class Prepared(Struct, Generic[Payload], frozen=True):
    """A batch in the form its destination takes; `rejected` are the readings (by index) that no form exists for."""

    payload: Payload
    rows: int
    rejected: Mapping[int, Rejected]


class SinkSettings(BaseModel):
    """What every sink can be told; a sink's file adds its own. `PREFIX` begins its environment variables."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    PREFIX: ClassVar[str]
    STAGE: ClassVar[str]
    PORT: ClassVar[int]
    #: Whether the bookkeeping of all stores is stored here.
    BOOKS: ClassVar[bool] = False
    #: Whether it is used where nobody said which stores are.
    DEFAULT: ClassVar[bool] = True

    batch_size: int = Field(5000, ge=1, le=1_000_000, description="readings in a batch")
    batch_timeout: float = Field(0.02, gt=0, le=3600, description="seconds a batch waits after its first reading")
    write_timeout: float = Field(30.0, gt=0, le=600, description="seconds before a write counts as failed")

    def unusable(self) -> list[str]:
        """What of the files that are named here cannot be used, a line each: for `iotflow config check`."""
        return []


class Sink(Protocol[Payload]):
    """A destination. Delivery calls one of the asynchronous methods at a time, and `close` in any case.

    Made as `Sink(settings, types)`; beside it the module has `Settings` (whose `STAGE` begins with `store-`), and
    `plan_schema`, `drift` and `apply_schema`, each of `(settings, types)` and returning a `SchemaPlan`; and `maintain`
    of the same, where something has to be done every hour. `write` must be idempotent on (measurement, device_id,
    channel, metric, time), the last of a batch winning: what is delivered twice must change nothing. Every sink is
    `Readable` too.
    """

    name: str

    @property
    def place(self) -> str:
        """Where it stores, for a person, without secrets: as `ts_user@db:5432/timeseries`."""

    async def open(self) -> None:
        """Connect; called until it succeeds once. After that `write` and `probe` find the way back by themselves."""

    async def close(self) -> None:
        """Let go of everything; may be called at any time, any number of times."""

    async def probe(self) -> None:
        """Do what `write` does, without data; raises what `write` would."""

    def prepare(self, readings: Sequence[Reading]) -> Prepared[Payload]:
        """Encode a batch, without I/O: it runs while another batch is being written."""

    async def write(self, payload: Payload) -> None:
        """Store a prepared batch; when it returns, all of it is durable.

        May be cancelled at any await, and must leave the connection usable or replaced.
        """

    def classify(self, error: BaseException) -> Verdict:
        """What an error of any other method means."""


#: How far a group has come with a partition: (topic, partition) to (what must have been next until now, what is next
#: from now on), as offsets. The first is None where the destination knows nothing of the partition yet.
Progress = Mapping[tuple[str, int], tuple[int | None, int]]


class FencedError(Exception):
    """Raised by a `Transactional` sink: somebody else went on with the partition. Nothing was stored."""


class Transactional(Protocol):
    """What a sink has besides, that keeps a group's offsets in the transaction of its data: exactly once."""

    async def offsets(self, group: str) -> Mapping[tuple[str, int], int]:
        """The next offset of each partition that is known."""

    async def write_at(self, payload: Any, group: str, progress: Progress) -> None:
        """As `write`, and move the offsets in the same transaction; nothing to write is an empty batch.

        Raises `FencedError` where an offset is not what it must have been until now.
        """


Function = Literal["count", "mean", "min", "max", "sum", "first", "last", "stddev"]
#: What `aggregate` can compute. `stddev` is the sample's (n - 1), absent for a single value. Texts and booleans have
#: `count`, `first` and `last` only; first and last are by time.
FUNCTIONS: Final[tuple[Function, ...]] = get_args(Function)


class Bucket(Struct, frozen=True):
    """What a metric did in the span of time that begins at `start`; spans are aligned to the epoch, UTC."""

    measurement: str
    device_id: str
    channel: str
    metric: str
    start: datetime
    values: dict[str, Value]


class Selection(Struct, frozen=True, kw_only=True):
    """Which readings: None lets everything through; `channel` '' is the device itself.

    `start` is inclusive and `end` exclusive, aware datetimes.
    """

    measurement: str | None = None
    device_id: str | None = None
    channel: str | None = None
    start: datetime | None = None
    end: datetime | None = None


EVERYTHING: Final = Selection()


class Readable(Protocol):
    """Reading back: what the web, exports, migrations, checks and tests use, and nothing else. Needs `open`.

    Units, tags, raw and flags come back too.
    """

    def scan(self, where: Selection = EVERYTHING) -> AsyncIterator[Reading]:
        """Every stored reading in (device, time, channel, measurement) order, in bounded memory."""

    async def query(self, where: Selection = EVERYTHING, *, limit: int = 100, offset: int = 0) -> list[Reading]:
        """A page of readings, newest first, those of one instant in (device, channel, measurement) order."""

    async def latest(self, where: Selection) -> list[Reading]:
        """The newest reading of each (device, channel, measurement), in that order."""

    async def count(self, where: Selection = EVERYTHING, *, readings: bool = False) -> int:
        """How many values (metrics of readings) are stored; with `readings`, how many readings."""

    async def aggregate(
        self,
        where: Selection,
        every: timedelta,
        functions: Sequence[Function] = ("count", "mean", "min", "max"),
        metrics: Sequence[str] | None = None,
    ) -> list[Bucket]:
        """Buckets that hold a value, in (device, channel, measurement, metric, start) order; nulls do not count.

        `start` and `end` of `where` must be there; a bucket that they cut holds what lies between them, and one of
        which nothing that was asked for can be said is left out. `metrics` None is all of them. Raises `ValueError`
        for a span that is none.
        """

    async def delete(self, where: Selection) -> None:
        """Delete what is selected of a device; that nothing is there is no error.

        When it returns no reading method gives it any more. Raises `ValueError` where no device is named.
        """

    def kept(self, reading: Reading) -> Reading | None:
        """What `scan` gives for a reading that was stored; None where nothing of it is kept."""


class Change(Struct, frozen=True):
    """One difference between a store and what it should be."""

    #: The object in the store's own terms, as `table telemetry` or `TTL of root.iotflow`.
    what: str
    #: `refused` is what `apply` leaves alone, `detail` saying why and what a person can do; `foreign` is what stands
    #: among ours and is not of our making: only drift reports it.
    action: Literal["create", "change", "drop", "refused", "foreign"]
    #: For a person, as `30 d -> 90 d`.
    detail: str = ""


class SchemaPlan(Struct, frozen=True):
    """What `apply` would do to a store, or what it did."""

    #: The server and its version, as `PostgreSQL 15.4, TimescaleDB 2.26.4`.
    server: str
    changes: Sequence[Change] = ()
    #: What a person should know besides, as that an extension is missing.
    notes: Sequence[str] = ()

    @property
    def pending(self) -> list[Change]:
        """What `apply` would do."""
        return [change for change in self.changes if change.action not in {"refused", "foreign"}]


def unpaired(cert: Path | None, key: Path | None) -> list[str]:
    """What is wrong with the settings `ssl_cert` and `ssl_key` together, if anything is."""
    return [] if (cert is None) is (key is None) else ["`ssl_cert` and `ssl_key` go together: set both or neither"]


def without_nulls(reading: Reading) -> Reading:
    """A reading as stores keep it that have no null: the value is absent."""
    if None not in reading.values.values():
        return reading
    return replace(reading, values={metric: value for metric, value in reading.values.items() if value is not None})


def value_type(types: Mapping[str, str], measurement: str, metric: str) -> str | None:
    """The type set for a metric by `measurement.metric` or `metric`, or None.

    A metric's name alone means what devices say: an alarm's `value` is nobody's counter of that name.
    """
    return types.get(f"{measurement}.{metric}") or (None if measurement in RESERVED else types.get(metric))


def integer_type(types: Mapping[str, str], measurement: str, metric: str) -> str | None:
    """As `value_type`, where that is an integer's (`INT32`, `INT64`), else None."""
    name = value_type(types, measurement, metric)
    return name if name in INTEGER_TYPES else None


def unfit(metric: str, value: Value, kind: str = "") -> RejectedError:
    """The error for a number that cannot be stored exactly: as type `kind`, or as a double where none is named."""
    if kind:
        return RejectedError("bad_type", f"{metric} is {value}, which is no {kind}")
    if value.__class__ is float:
        return RejectedError("bad_type", f"{metric} is {value}, which is not a finite number")
    return RejectedError(
        "integer_too_large",
        f"{metric} is {value}, beyond 2^53, which a double would round: set IOTFLOW_VALUE_TYPES={metric}=INT64",
    )


def span_of(where: Selection, every: timedelta, functions: Sequence[str]) -> tuple[datetime, datetime]:
    """The span that `aggregate` is asked for. Raises `ValueError` for what cannot be aggregated."""
    if where.start is None or where.end is None:
        raise ValueError("an aggregate needs the `start` and the `end` of its selection")
    if every <= timedelta(0):
        raise ValueError(f"`every` is {every}: a span must last")
    if unknown := set(functions).difference(FUNCTIONS):
        raise ValueError(f"there is no function {min(unknown)!r}; there are: {', '.join(FUNCTIONS)}")
    return where.start, where.end


def device_of(where: Selection) -> str:
    """The device that `delete` is asked for. Raises `ValueError` where none is named."""
    if where.device_id is None:
        raise ValueError("deleting needs the device whose readings are to go: set `device_id`")
    return where.device_id


def out_of_type(kind: str, value: Any) -> bool:
    """Whether a value cannot be stored exactly as integer type `kind`."""
    return value.__class__ is not int or not -_LIMIT[kind] <= value < _LIMIT[kind]
