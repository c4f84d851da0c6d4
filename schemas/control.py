"""Control: what somebody asks of running workers, and what each worker says of itself, as JSON on two topics.

A request's key is its id, a status' key is its worker. Here are only their forms and what follows from them; who reads
and writes them is `app.control`.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, get_args

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import asdict

from schemas.payload import brief, quoted

Action = Literal["flush", "stop", "resume", "delete", "acknowledge", "resolve"]
ACTIONS: Final[tuple[Action, ...]] = get_args(Action)
#: A request to workers of every stage.
EVERY: Final = "*"
#: Stages that store begin so.
STORE: Final = "store-"
#: The stage that has the alarms.
ANALYZE: Final = "analyze"
#: What is asked about one alarm.
OF_ALARMS: Final[frozenset[Action]] = frozenset({"acknowledge", "resolve"})

#: Seconds: so often a worker speaks, so long after its last word it counts as dead, and so long after that its word is
#: taken away.
SAY_EVERY_S: Final = 5.0
DEAD_AFTER_S: Final = 20.0
FORGET_AFTER_S: Final = 3600.0
#: A worker's last answers, of which each of its statuses speaks.
ANSWERS: Final = 16
#: Longer requests are none of ours.
MAX_REQUEST_BYTES: Final = 16 * 1024
#: As long as the topic keeps it.
MAX_LIFE: Final = timedelta(days=1)
_DETAIL_CHARS: Final = 500
_REASONS: Final = 20

Moment = Annotated[datetime, Meta(tz=True)]
Name = Annotated[str, Meta(min_length=1, max_length=256)]


class ControlError(ValueError):
    """A record of these topics is not what it should be; the text says why."""


class RefusedError(Exception):
    """What was asked cannot be done; the text is the answer, and says what to do."""


class NotMineError(Exception):
    """What was asked is another worker's to do; the text is the answer."""


class Request(Struct, frozen=True, kw_only=True):
    """Something to do for the workers of a stage that listen when it is sent, until `expires_at` and no later."""

    v: Literal[1]
    id: Name
    action: Action
    #: Its name, or `EVERY`.
    stage: Name
    asked_at: Moment
    expires_at: Moment
    #: Who asked, as USER@HOST.
    by: Annotated[str, Meta(max_length=512)]
    #: For `delete` only.
    device: str | None = None
    #: For `acknowledge` and `resolve` only: the alarm's key, as `schemas.alarm.Subject` has it.
    alarm: str | None = None


class Answer(Struct, frozen=True, kw_only=True):
    """What became of a request, whose `id` it has, at one worker."""

    id: str
    ok: bool
    detail: str
    at: Moment
    #: False where it was another worker's to do.
    mine: bool = True


class Health(Struct, frozen=True, kw_only=True):
    """What stops work, if anything does."""

    breaker: str = "closed"
    ceiling: bool = False
    remedy: str = ""


class Counters(Struct, frozen=True, kw_only=True):
    """Since the worker began; `lag` and `held` are of now, in records, and the lag is None while it is not known."""

    records: int = 0
    #: Decoded or stored.
    readings: int = 0
    dead_letters: int = 0
    lag: int | None = None
    held: int = 0


class Standing(Struct, frozen=True, kw_only=True):
    """How a worker stands."""

    #: Its partitions by topic.
    assignment: dict[str, list[int]] = {}
    ready: bool
    #: Why it is not.
    reasons: list[str] = []
    health: Health = Health()
    counters: Counters = Counters()
    intake: Literal["running", "stopped"] = "running"


class Status(Standing, frozen=True, kw_only=True):
    """What a worker says of itself."""

    v: Literal[1]
    worker: Name
    stage: Name
    version: str
    started: Moment
    at: Moment
    #: It takes requests: what is asked before that is not for it.
    listening: bool = True
    #: The last `ANSWERS`, oldest first.
    answers: list[Answer] = []


_request = msgspec.json.Decoder(Request)
_status = msgspec.json.Decoder(Status)
encode = msgspec.json.Encoder().encode


def decode_request(key: bytes, value: bytes) -> Request:
    """Read a request. Raises `ControlError`."""
    if len(value) > MAX_REQUEST_BYTES:
        raise ControlError(f"it has {len(value)} bytes, more than {MAX_REQUEST_BYTES}")
    found: Request = _decode(_request, value)
    if found.id.encode() != key:
        raise ControlError(f"its key is {quoted(key.decode('utf-8', 'replace'))} and its id {quoted(found.id)}")
    if (found.action == "delete") is not bool(found.device):
        raise ControlError("a device is named to delete it, and for nothing else")
    if (found.action in OF_ALARMS) is not bool(found.alarm):
        raise ControlError("an alarm is named to acknowledge or resolve it, and for nothing else")
    if not timedelta(0) < found.expires_at - found.asked_at <= MAX_LIFE:
        raise ControlError("it must expire after it was asked, and within a day")
    return found


def decode_status(key: bytes, value: bytes) -> Status:
    """Read a status. Raises `ControlError`."""
    found: Status = _decode(_status, value)
    if found.worker.encode() != key:
        raise ControlError(f"its key is {quoted(key.decode('utf-8', 'replace'))}, its worker {quoted(found.worker)}")
    return found


def _decode(decoder: Any, value: bytes) -> Any:
    try:
        return decoder.decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ControlError(brief(error)) from error


def request(  # noqa: PLR0913  its fields
    id_: str,
    action: Action,
    stage: str,
    *,
    by: str,
    now: datetime,
    seconds: float,
    device: str | None = None,
    alarm: str | None = None,
) -> Request:
    """A request that holds for `seconds` from now on."""
    expires = now + timedelta(seconds=seconds)
    whom = {"device": device, "alarm": alarm}
    return Request(v=1, id=id_, action=action, stage=stage, asked_at=now, expires_at=expires, by=by, **whom)


def answer(asked: Request, detail: str, *, now: datetime, ok: bool, mine: bool = True) -> Answer:
    """The answer to a request."""
    return Answer(id=asked.id, ok=ok, detail=_cut(detail), at=now, mine=mine)


def status(  # noqa: PLR0913  its fields
    standing: Standing,
    worker: str,
    stage: str,
    version: str,
    *,
    started: datetime,
    now: datetime,
    listening: bool,
    answers: Sequence[Answer],
) -> Status:
    """What a worker says that stands so."""
    fields = {name: getattr(standing, name) for name in Standing.__struct_fields__}
    fields["reasons"] = [_cut(reason) for reason in standing.reasons[:_REASONS]]
    return Status(
        v=1,
        **fields,
        worker=worker,
        stage=stage,
        version=version,
        started=started,
        at=now,
        listening=listening,
        answers=list(answers),
    )


def _cut(text: str) -> str:
    return text if len(text) <= _DETAIL_CHARS else text[: _DETAIL_CHARS - 1] + "…"


# -- what follows ------------------------------------------------------------------------------------------------------


def age_s(of: Status, now: datetime) -> float:
    """Seconds since a worker spoke; 0 where its clock is ahead of ours."""
    return max(0.0, (now - of.at).total_seconds())


def alive(of: Status, now: datetime) -> bool:
    """Whether a worker spoke a short while ago."""
    return age_s(of, now) <= DEAD_AFTER_S


def forgotten(statuses: Mapping[str, Status], now: datetime) -> list[str]:
    """The workers that have been silent for so long that nobody wants to know."""
    return [name for name, each in statuses.items() if age_s(each, now) > FORGET_AFTER_S]


def concerns(action: Action, asked: str, stage: str) -> bool:
    """Whether a request to the stage `asked`, or `EVERY`, is for workers of a stage.

    To delete is for stores, and what is asked about an alarm for the stage that has the alarms.
    """
    if asked not in {EVERY, stage}:
        return False
    if action == "delete":
        return stage.startswith(STORE)
    return action not in OF_ALARMS or stage == ANALYZE


class Reply(Struct, frozen=True, kw_only=True):
    """What came of a request at one worker: its answer, or why there is none."""

    worker: str
    stage: str
    answer: Answer | None = None
    why: str = ""

    @property
    def ok(self) -> bool:
        """Whether it did what was asked, or had nothing to do with it."""
        return self.answer is not None and self.answer.ok


def problems(action: Action, replies: Sequence[Reply], stages: Collection[str]) -> list[str]:
    """What is wrong with what came of a request, a line each; none when all was done.

    In each of `stages` somebody must have done it. What is asked about a device or an alarm is done once in a stage, by
    the worker that has the device's partition.
    """
    found = [
        f"{reply.worker}: {reply.why if reply.answer is None else reply.answer.detail}"
        for reply in replies
        if not reply.ok
    ]
    for stage in stages:
        own = [reply for reply in replies if reply.stage == stage]
        if not own:
            found.append(f"{stage}: no live worker; see iotflow status, and start one with iotflow worker {stage}")
        elif (action == "delete" or action in OF_ALARMS) and all(reply.ok and not _did(reply) for reply in own):
            found.append(f"{stage}: no live worker has the device's partition just now; ask again in a moment")
    if not replies and not stages:
        found.append("no live worker of any stage; see iotflow status")
    return found


def _did(reply: Reply) -> bool:
    return reply.answer is not None and reply.answer.mine


def unwell(statuses: Mapping[str, Status], now: datetime) -> list[str]:
    """What is wrong with the workers, a line each: live ones that are not ready, and stages that nobody alive runs.

    Where a worker knows what a person can do, that stands behind why it is not ready.
    """
    found = []
    running = {each.stage for each in statuses.values() if alive(each, now)}
    for name, each in sorted(statuses.items()):
        if alive(each, now) and not each.ready:
            why, remedy = "; ".join(each.reasons) or "not ready", " ".join(each.health.remedy.split())
            found.append(f"{name}: {why}: {remedy}" if remedy else f"{name}: {why}")
    gone = sorted({each.stage for each in statuses.values()} - running)
    found += [f"{stage}: its workers have been silent for more than {DEAD_AFTER_S:g} s" for stage in gone]
    if not statuses:
        found.append("no worker has said anything: none runs, or none on these topics")
    return found


def as_object(of: Status, now: datetime) -> dict[str, Any]:
    """A status as plain data, with whether it is `alive` and its age in seconds."""
    plain: dict[str, Any] = msgspec.to_builtins(of)
    return {**plain, "alive": alive(of, now), "age_s": round(age_s(of, now), 1)}


def utcnow() -> datetime:
    """Now, by this machine's clock."""
    return datetime.now(UTC)


def differs(one: Standing, other: Standing) -> bool:
    """Whether two standings differ in more than their numbers."""
    return {**asdict(one), "counters": None} != {**asdict(other), "counters": None}
