"""Control on Kafka: a worker that does what is asked and says how it stands, and who asks and waits for the answers.

Requests go over one topic to whoever listens when they are sent: a worker reads it from its end, so that what was asked
of others is not done when it starts. Each worker says how it stands on another, compacted one, and with that how it
answered. Whatever is wrong with either topic, the work itself goes on: this only tries again.
"""

import asyncio
import getpass
import logging
import os
import secrets
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any, Final, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError
from msgspec import Struct

from app import __version__, kafka, topics
from app.broadcast import Broadcast
from app.settings import Settings
from schemas import control
from schemas.control import (
    EVERY,
    Action,
    Answer,
    ControlError,
    NotMineError,
    RefusedError,
    Reply,
    Request,
    Standing,
    Status,
)
from schemas.decoding import Item
from schemas.payload import brief, quoted

log = logging.getLogger(__name__)

#: So often a worker looks whether it stands otherwise than it last said.
_LOOK_S: Final = 0.5
#: Requests at once; it is people who ask.
_AT_ONCE: Final = 32
#: After a fault of our own.
_AFTER_FAULT_S: Final = 5.0
_FAREWELL_S: Final = 2.0
#: A broker that says nothing for longer than this is away.
_SILENCE_S: Final = 30.0
#: An answer that a worker gives at the last moment takes this long to arrive.
_GRACE_S: Final = 2.0
_STOP_S: Final = 5.0


class Producer(Protocol):
    """What is needed of `app.produce.BatchProducer`."""

    async def deliver(self, topic: str, items: Iterable[Item]) -> None:
        """Return when the broker has acknowledged them all; waits for a broker that is away."""


# -- the worker's side -------------------------------------------------------------------------------------------------


class Control:
    """A worker's ear and voice; `run` it as a task, and `close` it while the producer still runs.

    `perform` does what a request asks and says in a sentence what it did; it may raise `RefusedError` and
    `NotMineError`, whose texts are the answer. It is cancelled when the request expires, and several may be at work at
    once. `describe` says how the worker stands; it is quick, and called about twice a second.
    """

    def __init__(  # noqa: PLR0913  what it stands between
        self,
        settings: Settings,
        stage: str,
        producer: Producer,
        perform: Callable[[Request], Awaitable[str]],
        describe: Callable[[], Standing],
        *,
        clock: Callable[[], datetime] = control.utcnow,
    ) -> None:
        self.stage = stage
        self.worker = f"{stage}@{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
        self._topic = settings.topics.status
        self._producer = producer
        self._perform = perform
        self._describe = describe
        self._clock = clock
        self._started = clock()
        self._requests = Broadcast(kafka.client_args(settings), settings.topics.control, self._hear)
        #: Taken before, with the moment from which on they are nothing but too late.
        self._known: dict[str, datetime] = {}
        self._performing: set[asyncio.Task[None]] = set()
        self._answers: list[Answer] = []
        self._unsaid: list[Answer] = []
        self._wake = asyncio.Event()
        self._saying = asyncio.Lock()
        self._closing = False
        self._spoke = False
        self._troubled = False

    async def run(self) -> None:
        """Listen and speak until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(_kept(self._requests.run))
                group.create_task(_kept(self._speak))
        finally:
            self._give_up()

    async def close(self) -> None:
        """Say that this worker is no more, if it can be said within two seconds; then do nothing that is asked."""
        self._closing = True
        self._give_up()
        with suppress(Exception):
            async with asyncio.timeout(_FAREWELL_S), self._saying:
                if self._spoke:
                    await self._send(None)

    def _give_up(self) -> None:
        for task in self._performing:
            task.cancel()

    # -- listening --

    def _hear(self, key: bytes, value: bytes | None) -> None:
        if value is None or not self._requests.ready or self._closing:
            return  # what was asked before this worker listened was asked of others
        try:
            request = control.decode_request(key, value)
        except ControlError as error:
            log.warning(
                "a request is ignored", extra={"key": quoted(key.decode("utf-8", "replace")), "error": str(error)}
            )
            return
        if request.stage not in {EVERY, self.stage} or request.id in self._known:
            return
        now = self._clock()
        self._known = {id_: expires for id_, expires in self._known.items() if expires > now}
        self._known[request.id] = request.expires_at
        late = (now - request.expires_at).total_seconds()
        if late >= 0:
            why = (
                f"came {late:.0f} s too late, so it was not done: was Kafka away, do the clocks of both machines agree?"
            )
            self._answer(request, why, ok=False)
        elif len(self._performing) >= _AT_ONCE:
            self._answer(request, f"{_AT_ONCE} requests are at work already: ask again later", ok=False)
        else:
            task = asyncio.create_task(self._do(request), name=f"control-{request.action}")
            self._performing.add(task)
            task.add_done_callback(self._performing.discard)

    async def _do(self, request: Request) -> None:
        ok, mine = False, True
        left = (request.expires_at - self._clock()).total_seconds()
        try:
            async with asyncio.timeout(left) as limit:
                detail = await self._perform(request)
            ok = True
        except RefusedError as error:
            detail = str(error)
        except NotMineError as error:
            ok, mine, detail = True, False, str(error)
        except TimeoutError as error:
            detail = self._unfinished() if limit.expired() else f"{type(error).__name__}: {error}"
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise  # the worker stops
            detail = "what does it was cancelled"
        except Exception as error:
            log.exception("a request failed", extra={"request": request.id, "action": request.action})
            detail = f"{type(error).__name__}: {brief(error)}"
        self._answer(request, detail, ok=ok, mine=mine)

    def _unfinished(self) -> str:
        reasons = "; ".join(self._describe().reasons)
        return (
            "was not finished in time, and may be done in part; ask again, with a longer --timeout"
            + f". This worker is not ready: {reasons}" * bool(reasons)
        )

    def _answer(self, request: Request, detail: str, *, ok: bool, mine: bool = True) -> None:
        # Who did what to whom is to be found in the log: the topic keeps a request for a day.
        log.log(
            logging.WARNING if mine else logging.INFO,
            "a request was answered",
            extra={
                "request": request.id,
                "action": request.action,
                "asked_by": request.by,
                "device": request.device,
                "alarm": request.alarm,
                "ok": ok,
                "detail": detail,
            },
        )
        self._unsaid.append(control.answer(request, detail, now=self._clock(), ok=ok, mine=mine))
        self._wake.set()

    # -- speaking --

    async def _speak(self) -> None:
        """Say how this worker stands: when that changes, when there is an answer, and every few seconds."""
        time = asyncio.get_running_loop().time
        said: tuple[Standing, bool] | None = None
        due = 0.0
        while not self._closing:
            self._wake.clear()
            standing, listening = self._describe(), self._requests.ready
            changed = said is None or said[1] is not listening or control.differs(said[0], standing)
            if changed or self._unsaid or time() >= due:
                due = time() + control.SAY_EVERY_S
                if await self._say(standing, listening=listening):
                    said = standing, listening
            if not self._unsaid:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_LOOK_S):
                        await self._wake.wait()

    async def _say(self, standing: Standing, *, listening: bool) -> bool:
        """Whether it was said. No more answers go at once than one status has room for, so that each is seen."""
        answers, self._unsaid = self._unsaid[: control.ANSWERS], self._unsaid[control.ANSWERS :]
        shown = [*self._answers, *answers][-control.ANSWERS :]
        status = control.status(
            standing,
            self.worker,
            self.stage,
            __version__,
            started=self._started,
            now=self._clock(),
            listening=listening,
            answers=shown,
        )
        try:
            async with self._saying:
                if self._closing:
                    return False
                self._spoke = True
                await self._send(control.encode(status))
        except Exception as error:  # noqa: BLE001  there is no last try
            self._unsaid = [*answers, *self._unsaid]
            if not self._troubled:
                log.warning(
                    "this worker cannot say how it stands; it works on",
                    extra={"topic": self._topic, "error": f"{type(error).__name__}: {brief(error)}"},
                )
            self._troubled = True
            await asyncio.sleep(_AFTER_FAULT_S)
            return False
        self._answers, self._troubled = shown, False
        return True

    async def _send(self, value: bytes | None) -> None:
        await self._producer.deliver(self._topic, [Item(self.worker.encode(), value, [])])


async def _kept(work: Callable[[], Awaitable[None]]) -> None:
    """Do something again when it fails, until cancelled."""
    while True:
        try:
            await work()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
        except Exception:
            log.exception("control failed; it begins again, and the work goes on")
        else:
            return
        await asyncio.sleep(_AFTER_FAULT_S)


# -- the asking side ---------------------------------------------------------------------------------------------------


class UnsureError(Exception):
    """Nobody knows whether a request was sent."""


class Workers:
    """What the workers say of themselves, as it comes. `broken` are the keys of what nobody can read, with why."""

    def __init__(self, settings: Settings) -> None:
        self.now: dict[str, Status] = {}
        self.broken: dict[str, str] = {}
        self._heard: dict[str, float] = {}
        self._changed = asyncio.Event()
        self._trouble = -1.0
        self.feed = Broadcast(kafka.client_args(settings), settings.topics.status, self._apply, after=self._changed.set)

    def _apply(self, key: bytes, value: bytes | None) -> None:
        name = key.decode("utf-8", "replace")
        self.now.pop(name, None)
        self.broken.pop(name, None)
        if value is None:
            return
        try:
            self.now[name] = control.decode_status(key, value)
        except ControlError as error:
            self.broken[name] = str(error)
        self._heard[name] = asyncio.get_running_loop().time()

    async def change(self, seconds: float) -> None:
        """Return when something was said, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        self._changed.clear()

    def silent(self, worker: str) -> bool:
        """Whether nothing was heard of a worker for so long that it counts as dead, with Kafka there all the while."""
        now = asyncio.get_running_loop().time()
        if self.feed.troubled:
            self._trouble = now
        return now - max(self._heard.get(worker, now), self._trouble) > control.DEAD_AFTER_S


@asynccontextmanager
async def following(settings: Settings) -> AsyncIterator[Workers]:
    """The workers as they are, and as they come and go.

    Raises what aiokafka raises, `TimeoutError`, and `TopicsError` where a topic is missing.
    """
    async with asyncio.timeout(_SILENCE_S):
        missing = {settings.topics.control, settings.topics.status} & {*await topics.missing(settings)}
    if missing:
        raise topics.TopicsError(
            f"there is no topic {' and no topic '.join(sorted(missing))}: run iotflow topics apply"
        )
    found = Workers(settings)
    task = asyncio.create_task(found.feed.run())
    try:
        async with asyncio.timeout(_SILENCE_S):
            await found.feed.read()
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


class Asked(Struct, frozen=True):
    """A request that was sent, and what came of it at each worker that it was for, and at any other that answered."""

    id: str
    replies: list[Reply]


async def ask(  # noqa: PLR0913  what is asked, and how
    settings: Settings,
    action: Action,
    stage: str = EVERY,
    *,
    device: str | None = None,
    alarm: str | None = None,
    timeout: float = 60.0,
    by: str = "",
) -> Asked:
    """Ask the live workers of a stage, and wait until each has answered, for `timeout` seconds at most.

    Nothing is sent where there are none. A worker that begins later does nothing of it. Raises what `following` raises,
    and `UnsureError`.
    """
    id_ = str(uuid.uuid4())
    async with following(settings) as workers:
        await forget(settings, workers)
        now = control.utcnow()
        wanted = {
            name: each
            for name, each in workers.now.items()
            if control.concerns(action, stage, each.stage) and control.alive(each, now)
        }
        if any(each.listening for each in wanted.values()):
            async with _producer(settings) as producer:
                now = control.utcnow()
                request = control.request(
                    id_, action, stage, by=by or me(), now=now, seconds=timeout, device=device, alarm=alarm
                )
                await _send(producer, settings.topics.control, request)
        replies = await _replies(workers, id_, wanted, timeout)
    return Asked(id_, [reply for reply in replies if control.concerns(action, stage, reply.stage)])


async def _send(producer: Any, topic: str, request: Request) -> None:
    try:
        async with asyncio.timeout(_SILENCE_S):
            await producer.send_and_wait(topic, control.encode(request), request.id.encode(), partition=0)
    except (TimeoutError, KafkaConnectionError) as error:
        raise UnsureError(
            "Kafka did not say whether it took the request, so it may be done nevertheless: see iotflow status"
        ) from error


async def _replies(workers: Workers, id_: str, wanted: Mapping[str, Status], seconds: float) -> list[Reply]:
    """What each of the wanted workers said by the end, and who else did; in the order of their names."""
    time = asyncio.get_running_loop().time
    end = time() + seconds + _GRACE_S
    found: dict[str, Reply] = {}
    while True:
        for name, each in workers.now.items():
            for said in each.answers:
                if said.id == id_:
                    found[name] = Reply(worker=name, stage=each.stage, answer=said)
        over = time() >= end
        for name, each in wanted.items():
            if name not in found and (why := _why_none(workers, name, each)):
                found[name] = Reply(worker=name, stage=each.stage, why=why)
            elif name not in found and over:
                why = f"did not answer within {seconds:g} s: see its log, and iotflow status"
                found[name] = Reply(worker=name, stage=each.stage, why=why)
        if found.keys() >= wanted.keys():
            return sorted(found.values(), key=lambda reply: reply.worker)
        await workers.change(min(1.0, max(0.0, end - time())))


def _why_none(workers: Workers, name: str, asked: Status) -> str:
    """Why there will be no answer from a worker that was so when it was asked; '' while there may be one."""
    if not asked.listening:
        return "has only just begun, and does not listen yet; ask again in a moment"
    if name not in workers.now:
        return "stopped before it answered"
    if workers.silent(name):
        return f"has not been heard of for {control.DEAD_AFTER_S:g} s, and did not answer: see its log"
    return ""


async def forget(settings: Settings, workers: Workers) -> None:
    """Take away what workers said last that have been dead for long. Where that cannot be, somebody else will."""
    old = control.forgotten(workers.now, control.utcnow())
    if not old:
        return
    with suppress(Exception):
        async with asyncio.timeout(_SILENCE_S), _producer(settings) as producer:
            for name in old:
                await producer.send_and_wait(settings.topics.status, None, name.encode(), partition=0)
                workers.now.pop(name, None)


@asynccontextmanager
async def _producer(settings: Settings) -> AsyncIterator[Any]:
    producer = AIOKafkaProducer(**kafka.client_args(settings), enable_idempotence=True, acks="all")
    try:
        async with asyncio.timeout(_SILENCE_S):
            await producer.start()
        yield producer
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_S):
                await producer.stop()


def me() -> str:
    """Who asks, as USER@HOST."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"[:512]
