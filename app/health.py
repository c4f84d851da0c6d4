"""Whether a worker is alive, and whether it is ready: two questions, because an outage must not restart anything.

`readiness` says whether work flows now. The `Watchdog` finds what Kafka cannot: a process whose session is kept alive
while nothing is done in it, and ends it, so that a supervisor starts it again. A destination that is away, a tripped
ceiling and a topic where nothing happens make a worker unready at most.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import faust
from faust.web import Request, Response
from faust.web import View as Page

from app import __version__
from app.telemetry import Telemetry
from sinks.contracts import Breaker

log = logging.getLogger(__name__)

INTERVAL_S: Final = 5.0
#: A drain loop ends and begins again within one turn of the event loop; this is for the loop being busy.
_DRAIN_GRACE_S: Final = 15.0
#: A write may take its time-out, and several of those go by before the breaker opens.
STANDSTILL_S: Final = 300.0
#: Between two looks no more time than this counts as passed: a process that was stopped, or a machine that slept, was
#: in no position to make progress.
_LONGEST_STEP_S: Final = 3 * INTERVAL_S
#: So many records a partition may lag for ever: the marker that ends a transaction lies in the log and is never read.
_MARKERS: Final = 100
_NO_GROUP: Final = -1


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A worker at one moment. The defaults are those of a healthy one that has nothing to do."""

    #: Asked to stop, or crashed and stopping.
    stopping: bool = False
    #: Topics that must be read whole before the work starts, and are not yet.
    unread: tuple[str, ...] = ()
    #: Partitions are being given out, or state is being restored.
    rebalancing: bool = False
    #: Of the consumer group; -1 outside it.
    generation: int = 1
    #: None before the first assignment. 0 is good: there are more workers than partitions.
    partitions: int | None = 1
    recovered: bool = True
    #: How far the changelogs have been read: moves while state is being restored.
    recovery_position: int = 0
    #: The loop that takes records from the consumer runs.
    draining: bool = True
    #: Partitions whose commits stand still though later work is done.
    frozen: tuple[str, ...] = ()
    broker_answers: bool = True
    #: Sum of the offsets committed: moves while work is done.
    committed: int = 0
    #: Records not committed, when that was last measured.
    lag: int = 0
    #: Records taken in and not acknowledged.
    held: int = 0
    #: What work is given can be expected to be done soon.
    taking: bool = True
    breaker: Breaker = Breaker.CLOSED
    ceiling: bool = False
    #: What goes wrong in the work itself, again and again.
    failing: str = ""
    #: Intake was stopped by somebody.
    stopped: bool = False
    remedy: str = ""
    #: What is away while the breaker is open.
    waits_for: str = "the destination"
    #: When the commit that is under way began, or None.
    committing_since: float | None = None
    #: Writes that the destination answered: moves inside a batch too, which is committed only whole.
    progress: int = 0


class Limit(Protocol):
    """A ceiling."""

    tripped: bool


class Work(Protocol):
    """What a stage does; what may have to wait for another also has `state` (its breaker), `remedy`, `waits_for`."""

    @property
    def ceiling(self) -> Limit:
        """The ceiling."""

    @property
    def ready(self) -> bool:
        """Whether what it is given now can be expected to be done soon."""


class Feed(Protocol):
    """A topic that must be read whole before the work starts."""

    topic: str

    @property
    def ready(self) -> bool:
        """Whether it has been."""


class Parts(Protocol):
    """What a stage is made of."""

    @property
    def work(self) -> Work:
        """Its work."""

    @property
    def feeds(self) -> Sequence[Feed]:
        """What it must know before it works."""


class View(Protocol):
    """What is needed of `app.runtime.Runtime`."""

    @property
    def app(self) -> faust.App:
        """The app that runs the stage, on the batch transport."""

    @property
    def stage(self) -> str:
        """The stage's name."""

    @property
    def telemetry(self) -> Telemetry:
        """Its numbers."""

    @property
    def parts(self) -> Parts:
        """What it is made of."""

    @property
    def watchdog(self) -> "Watchdog":
        """The one that `watch` asks."""

    def assigned(self) -> set[tuple[str, int]]:
        """The data partitions this worker has now."""


# -- decisions -------------------------------------------------------------------------------------------------------


def readiness(now: Snapshot) -> list[str]:
    """Why no work flows, as far as is known; empty when it can."""
    reasons: list[str] = []
    if now.stopping:
        reasons.append("stopping")
    reasons += [f"the topic {topic} has not been read yet" for topic in now.unread]
    if now.partitions is None:
        reasons.append("no partitions have been assigned yet")
    else:
        if now.generation == _NO_GROUP:
            reasons.append("not in the consumer group")
        if now.rebalancing:
            reasons.append("rebalancing")
        if not now.recovered:
            reasons.append("state is not restored yet")
    if now.frozen:
        reasons.append(f"commits stand still: {', '.join(now.frozen)}")
    return [*reasons, *_standstills(now)]


def _standstills(now: Snapshot) -> Iterator[str]:
    """What the work itself waits for."""
    if now.breaker is not Breaker.CLOSED:
        yield f"{now.waits_for} is away" if not now.remedy else "storing needs a person"
    if now.stopped:
        yield "intake is stopped, as asked"
    if now.ceiling:
        yield "most records are refused, so intake is stopped"
    if now.failing:
        yield f"storing fails: {now.failing}"
    elif not (now.taking or now.ceiling or now.stopped) and now.breaker is Breaker.CLOSED:
        yield "the destination has not been reached yet"


class Watchdog:
    """Decides when a worker that is alive does nothing; pure but for its clock.

    `rebalance_timeout` is the group's, in seconds. `standstill` is how long records may be waiting while nothing is
    committed; make it several times the longest write.
    """

    def __init__(
        self, rebalance_timeout: float, *, standstill: float = STANDSTILL_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.verdict = ""
        self._patience = 2 * rebalance_timeout
        self._standstill = standstill
        self._clock = clock
        self._looked = clock()
        self._now = 0.0
        #: What has been so since when; it counts anew when what is beside it changes.
        self._since: dict[str, tuple[Hashable, float]] = {}

    def look(self, now: Snapshot) -> str:
        """What is wrong beyond hope, or ''. It is kept in `verdict`, and stays there."""
        clock = self._clock()
        self._now += min(clock - self._looked, _LONGEST_STEP_S)
        self._looked = clock
        self.verdict = self.verdict or self._judge(now)
        return self.verdict

    def _judge(self, now: Snapshot) -> str:
        # Each is asked each time, so that each knows since when. While the broker is away nobody can join a group or
        # finish a rebalance, and a restart would only make the way back longer.
        working = not now.stopping and now.broker_answers
        idle = not now.rebalancing and now.recovered
        progress = (now.generation, now.recovery_position)
        outside = self._lasts("outside", working and now.generation == _NO_GROUP)
        rebalance = self._lasts("rebalance", working and not idle, progress)
        dead = self._lasts("dead", not now.stopping and idle and now.partitions is not None and not now.draining)
        stop = self._lasts("stop", now.stopping)
        blocked = now.ceiling or now.stopped or now.breaker is not Breaker.CLOSED
        waiting = now.held > 0 or now.lag > _MARKERS * (now.partitions or 0)
        still = self._lasts(
            "still", working and idle and waiting and not blocked, (now.generation, now.committed, now.progress)
        )
        commit = self._lasts("commit", working and now.committing_since is not None, now.committing_since)
        if outside >= self._patience:
            return f"no generation of the consumer group for {outside:.0f} s"
        if commit >= self._patience:
            return f"a commit has been under way for {commit:.0f} s though the broker answers"
        if rebalance >= self._patience:
            return f"a rebalance or recovery without progress for {rebalance:.0f} s"
        if dead >= _DRAIN_GRACE_S:
            return f"the loop that takes records ended {dead:.0f} s ago"
        if now.frozen and working:
            return f"records were handed out and never acknowledged: {', '.join(now.frozen)}"
        if still >= self._standstill:
            return f"records wait ({now.held} taken in, lag {now.lag}) and none was committed for {still:.0f} s"
        if stop >= self._patience:
            return f"stopping has taken {stop:.0f} s"
        return ""

    def _lasts(self, what: str, so: bool, unchanged: Hashable = None) -> float:  # noqa: FBT001  one fact, not a switch
        """For how many seconds something has been so, and `unchanged` the same."""
        if not so:
            self._since.pop(what, None)
            return 0.0
        known = self._since.get(what)
        if known is None or known[0] != unchanged:
            self._since[what] = (unchanged, self._now)
            return 0.0
        return self._now - known[1]


# -- looking at a worker ---------------------------------------------------------------------------------------------


def snapshot(view: View) -> Snapshot:
    """The worker as it is now, read from Faust, the transport, the work and what telemetry knows of the lag."""
    app: Any = view.app
    consumer: Any = app.consumer
    recovery = app.tables.recovery
    work = view.parts.work
    return Snapshot(
        stopping=bool(app.should_stop),
        unread=tuple(feed.topic for feed in view.parts.feeds if not feed.ready),
        rebalancing=bool(app.rebalancing),
        generation=generation(consumer),
        # Faust keeps the last assignment here; it has none before the first, and an empty one is one.
        partitions=None if app._assignment is None else len(view.assigned()),  # noqa: SLF001
        # Faust sets the event once and for all, so it cannot stand alone.
        recovered=recovery.completed.is_set() and not app.in_recovery,
        # None until Faust has asked where a changelog begins.
        recovery_position=sum(
            offset or 0 for offset in (*recovery.active_offsets.values(), *recovery.standby_offsets.values())
        ),
        draining=drains(app),
        frozen=tuple(f"{tp.topic}/{tp.partition}" for tp in consumer.frozen()),
        broker_answers=view.telemetry.broker_answers,
        committed=sum(offset or 0 for offset in consumer.committed().values()),
        # An old one would say that records wait long after they were read.
        lag=0 if view.telemetry.lag_is_stale else sum(view.telemetry.lag_records.values()),
        held=consumer.inflight_records,
        taking=work.ready,
        breaker=getattr(work, "state", Breaker.CLOSED),
        ceiling=work.ceiling.tripped,
        failing=getattr(work, "failing", ""),
        stopped=getattr(work, "stopped", False),
        remedy=getattr(work, "remedy", ""),
        waits_for=getattr(work, "waits_for", "the destination"),
        committing_since=consumer.committing_since(),
        progress=getattr(work, "progress", 0),
    )


def generation(consumer: Any) -> int:
    """The generation of the group that this consumer is a member of, -1 when it is in none.

    `app.consumer_generation_id` is the last one there was: it says nothing of having left. The coordinator belongs to
    the consumer's own thread; reading one of its numbers from here is safe.
    """
    thread = getattr(consumer, "_thread", None)
    coordinator = getattr(getattr(thread, "_consumer", None), "_coordinator", None)
    if coordinator is None or coordinator._coordination_task.done():  # noqa: SLF001  nobody would rejoin
        return _NO_GROUP
    return int(coordinator.generation)


def drains(app: Any) -> bool:
    """Whether Faust's fetcher runs the loop that takes records from the consumer.

    It is one task, which sets `_shutdown` however it ends; Faust looks at that only when it stops the fetcher itself.
    """
    fetcher = app._fetcher  # noqa: SLF001
    return fetcher.started and not fetcher.should_stop and not fetcher._shutdown.is_set()  # noqa: SLF001


def refresh(view: View) -> Snapshot:
    """Look, and set the gauges that show what was seen."""
    now = snapshot(view)
    telemetry = view.telemetry
    telemetry.ready(not readiness(now) and not view.watchdog.verdict)
    telemetry.generation(now.generation)
    telemetry.rebalancing(now.rebalancing or not now.recovered)
    telemetry.partitions(now.partitions or 0, len(now.frozen))
    if telemetry.role == "store":
        telemetry.up(up=now.breaker is Breaker.CLOSED and (now.taking or now.ceiling or now.stopped))
    return now


async def watch(view: View, leave: Callable[[], object], *, interval: float = INTERVAL_S) -> None:
    """Look again and again; when the watchdog has seen enough, say what it saw and `leave`.

    That writes out the logs and ends the process, with a status that makes its supervisor start it again.
    """
    while True:
        now = refresh(view)
        fault = view.watchdog.look(now)
        if fault:
            view.telemetry.ready(False)
            log.critical("watchdog: worker is alive and does nothing", extra={"stage": view.stage, "fault": fault})
            leave()
            return
        await asyncio.sleep(interval)


# -- pages -----------------------------------------------------------------------------------------------------------


def register(app: faust.App, view: View) -> None:
    """Serve `/health/live`, `/health/ready` and `/metrics` on the app's web server."""

    async def live(page: Page, request: Request) -> Response:
        """Whether the process is worth keeping; that this is answered at all says that its event loop turns."""
        del request
        fault = view.watchdog.verdict
        body = {"status": "dead" if fault else "live", "stage": view.stage, "version": __version__}
        return page.json({**body, "fault": fault} if fault else body, status=503 if fault else 200)

    async def ready(page: Page, request: Request) -> Response:
        """Whether work flows, and if not, why."""
        del request
        now = refresh(view)
        reasons = readiness(now)
        if view.watchdog.verdict:
            reasons.append(view.watchdog.verdict)
        body: dict[str, Any] = {
            "ready": not reasons,
            "reasons": reasons,
            "stage": view.stage,
            "version": __version__,
            "partitions": now.partitions,
            "breaker": now.breaker.value,
        }
        if now.remedy:
            body["remedy"] = now.remedy
        return page.json(body, status=503 if reasons else 200)

    async def metrics(page: Page, request: Request) -> Response:
        """The numbers, for Prometheus."""
        del request
        refresh(view)
        body, content_type = view.telemetry.render()
        # As a header, because aiohttp wants the charset apart from a content type it is given as such.
        return page.bytes(body, headers={"Content-Type": content_type})

    app.page("/health/live")(live)
    app.page("/health/ready")(ready)
    app.page("/metrics")(metrics)
