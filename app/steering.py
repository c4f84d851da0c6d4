"""Between `app.control` and a stage's work: doing what is asked of a worker, and saying how it stands."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol, cast

from app import health
from app.produce import BatchProducer
from app.settings import Settings
from app.telemetry import READINGS, RECORDS
from schemas.alarm import AlarmError, subject_of
from schemas.control import ANALYZE, Counters, Health, NotMineError, RefusedError, Request, Standing
from schemas.partition import partition_of
from sinks.base import Selection
from sinks.contracts import Breaker

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Steerable(Protocol):
    """What is needed of a stage's work."""

    #: Intake was stopped, until `resume`.
    stopped: bool

    def stop_intake(self) -> None:
        """Take no more, until `resume` or the end of the process."""

    def resume(self) -> None:
        """Go on, also after the ceiling tripped."""

    async def flush(self) -> int:
        """Finish what is held now; the number of its records."""


class Storing(Steerable, Protocol):
    """A store's."""

    @property
    def held_records(self) -> int:
        """Records taken over and not settled."""

    async def call(self, work: Callable[[Any], Awaitable[Any]]) -> Any:
        """Do something else with the sink, between two batches."""


class Analyzing(Steerable, Protocol):
    """The stage's that has the alarms. A key is `schemas.alarm.Subject.key`, a time in microseconds.

    Both say what was done, and raise `LookupError` with a sentence where there is no such alarm.
    """

    async def acknowledge(self, key: str, by: str, at_us: int) -> str:
        """Somebody knows of an alarm."""

    async def resolve(self, key: str, by: str, at_us: int) -> str:
        """Somebody says that an alarm is done."""


class Worker(health.View, Protocol):
    """What is needed of `app.runtime.Runtime`."""

    @property
    def settings(self) -> Settings:
        """Its settings."""

    @property
    def producer(self) -> BatchProducer:
        """Its producer."""


class Steering:
    """One worker's: `perform` and `describe` are what `app.control.Control` is given."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    @property
    def _work(self) -> Steerable:
        return cast("Steerable", self._worker.parts.work)

    # -- doing ---------------------------------------------------------------------------------------------------------

    async def perform(self, request: Request) -> str:
        """Do what is asked, and say what was done. Raises `RefusedError` and `NotMineError`."""
        match request.action:
            case "flush":
                return await self._flush()
            case "stop":
                self._work.stop_intake()
                return "intake is stopped until it is resumed, or this worker is started again"
            case "resume":
                return self._resume()
            case "delete":
                return await self._delete(request.device or "")
            case "acknowledge" | "resolve":
                return await self._alarm(request)

    async def _flush(self) -> str:
        if self._stands:
            raise RefusedError(f"nothing is stored while intake is stopped: first iotflow resume {self._worker.stage}")
        records = await self._work.flush()
        return f"all {records} records that it held are done" if records else "it held nothing"

    def _resume(self) -> str:
        before = self._stands
        self._work.resume()
        return "intake goes on" if before else "intake was not stopped"

    @property
    def _stands(self) -> bool:
        return self._work.stopped or self._worker.parts.work.ceiling.tripped

    async def _delete(self, device: str) -> str:
        if self._worker.telemetry.role != "store":
            raise NotMineError("this stage stores nothing")
        topic, partition = await self._own(device)
        now = health.snapshot(self._worker)
        if now.breaker is not Breaker.CLOSED or not (now.taking or self._stands):
            raise RefusedError(f"nothing was deleted: {'; '.join(health.readiness(now))}; ask again when it is back")
        work = cast("Storing", self._work)
        if not self._stands:
            await work.flush()  # or a batch that is open now would bring back what was received before
        values = await work.call(lambda sink: _delete_from(sink, device))
        said = f"{values} values deleted" if values else "nothing was stored of it"
        if self._stands and work.held_records:
            said += (
                f"; {work.held_records} records wait here for iotflow resume, and what is its own of them comes then"
            )
        if lag := self._worker.telemetry.lag_records.get((topic, partition), 0):
            said += (
                f"; {lag} records of its partition were not stored yet some seconds ago, and its own of them come later"
            )
        return said

    async def _own(self, device: str) -> tuple[str, int]:
        """The topic and partition of a device's readings. Raises `NotMineError` where another worker has it."""
        topic = self._worker.settings.topics.decoded
        partition = partition_of(device, await self._worker.producer.partitions(topic))
        if (topic, partition) not in self._worker.assigned():
            raise NotMineError(f"the device is in partition {partition}, which another worker has")
        return topic, partition

    async def _alarm(self, request: Request) -> str:
        if self._worker.stage != ANALYZE:
            raise NotMineError("this stage has no alarms")
        key = request.alarm or ""
        try:
            device = subject_of(key).device_id
        except AlarmError as error:
            raise RefusedError(str(error)) from error
        await self._own(device)
        work = cast("Analyzing", self._work)
        do = work.acknowledge if request.action == "acknowledge" else work.resolve
        try:
            return await do(key, request.by, (request.asked_at - _EPOCH) // timedelta(microseconds=1))
        except LookupError as error:
            raise RefusedError(str(error.args[0] if error.args else error)) from error

    # -- saying --------------------------------------------------------------------------------------------------------

    def describe(self) -> Standing:
        """How this worker stands now."""
        view = self._worker
        now = health.snapshot(view)
        reasons = health.readiness(now)
        if view.watchdog.verdict:
            reasons.append(view.watchdog.verdict)
        assignment: dict[str, list[int]] = {}
        for topic, partition in sorted(view.assigned()):
            assignment.setdefault(topic, []).append(partition)
        numbers = view.telemetry
        return Standing(
            assignment=assignment,
            ready=not reasons,
            reasons=reasons,
            health=Health(breaker=now.breaker.value, ceiling=now.ceiling, remedy=now.remedy),
            counters=Counters(
                records=int(numbers.value(RECORDS)),
                readings=int(numbers.value(READINGS, "stored" if numbers.role == "store" else "decoded")),
                dead_letters=int(numbers.value(READINGS, "dead")),
                lag=None if numbers.lag_is_stale else sum(numbers.lag_records.values()),
                held=now.held,
            ),
            intake="stopped" if self._work.stopped else "running",
        )


async def _delete_from(sink: Any, device: str) -> int:
    """How many values were deleted. Raises `RefusedError` with what the sink says that an error means."""
    where = Selection(device_id=device)
    try:
        values: int = await sink.count(where)
        await sink.delete(where)
    except Exception as error:
        remedy = getattr(sink.classify(error), "remedy", "")
        raise RefusedError(remedy or f"{type(error).__name__}: {error}") from error
    return values
