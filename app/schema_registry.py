"""Where the schemas of framed payloads come from: a schema registry, or a directory of files.

A registry that cannot be asked is away, whatever the reason: payloads wait for it, and none is refused. One that gives
an answer for other ids, and again and again none for this, is there: what waits for that schema is refused, and the
rest goes on. What was not to be had is asked for again later, since a schema may come after its first payloads.
"""

import asyncio
import logging
import random
import time
from base64 import b64encode
from collections.abc import Callable, Collection
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol
from urllib.parse import quote

import msgspec

from app.settings.models import Retry, SchemaRegistry
from schemas.confluent import LARGEST_ID, Schemas

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

#: An id that was not known is not asked for again before this, nor is another waited for that may soon be known.
AGAIN_S: Final = 10.0
#: An id that got no answer, though others did, is not asked for again before this: it may take a time-out each time.
MENDED_S: Final = 60.0
#: So often is an id asked for, the first time, before it is said to be unknown, or not to be had.
_TRIES: Final = 3
#: As many ids that were not to be had are remembered.
_REMEMBERED: Final = 10_000
#: Ids that are asked for at once.
_AT_ONCE: Final = 16
_TIMEOUT_S: Final = 10.0
_MOST_REFERENCES: Final = 256
#: Of an answer, and of what a schema refers to together.
_MOST_BYTES: Final = 4 << 20
_CHUNK: Final = 1 << 16
#: What a schema registry says itself: no such subject, version or schema. Of any other HTTP 404 nobody knows whether
#: it means that, or that the URL is wrong.
_UNKNOWN: Final = frozenset({40401, 40402, 40403})
_FILES: Final = {".avsc": "AVRO", ".json": "JSON", ".desc": "PROTOBUF"}
_CORRECT_URL: Final = "start the schema registry, or correct SCHEMA_REGISTRY_URL"
_CORRECT_LOGIN: Final = "correct SCHEMA_REGISTRY_USER and SCHEMA_REGISTRY_PASSWORD, or let that user read schemas"


class AwayError(Exception):
    """Neither a schema nor the word that there is none: `place` did `why`; `remedy` is what a person can do.

    `general` when it is certain that it has nothing to do with the schema that was asked for.
    """

    def __init__(self, place: str, why: str, remedy: str, *, general: bool = False) -> None:
        super().__init__(f"{place} {why}")
        self.why = why
        self.remedy = remedy
        self.general = general


class Found(NamedTuple):
    """A schema as `Schemas.put` takes it."""

    kind: str
    text: str | bytes
    references: tuple[tuple[str, str], ...] = ()


class Place(Protocol):
    """Where schemas are."""

    async def get(self, number: int) -> Found | None:
        """A schema by its id, or None when there is none. Raises `AwayError`."""


class SchemaSource:
    """Learns schemas for `schemas`."""

    def __init__(
        self,
        schemas: Schemas,
        place: Place,
        retry: Retry,
        *,
        pause: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.schemas = schemas
        self._place = place
        self._retry = retry
        #: Between the tries of one id, in seconds.
        self._pause = pause
        self._clock = clock
        #: What was told of an outage, while it lasts.
        self._told: set[str] = set()
        #: When to ask again for an id that was not to be had.
        self._again: dict[int, float] = {}
        #: When an id that is not known is waited for again: one device's made-up ids must not slow down the others.
        self._patient_from = clock()
        #: An id that is asked for to see whether any can be: one that was answered, or one that nobody has.
        self._other = LARGEST_ID

    async def fetch(self, numbers: Collection[int]) -> None:
        """Learn what there is to know of these schemas; waits for as long as nothing can be asked."""
        now = self._clock()
        due = [number for number in sorted(numbers) if self._again.get(number, now) <= now]
        for start in range(0, len(due), _AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for number in due[start : start + _AT_ONCE]:
                    group.create_task(self._learn(number))

    async def _learn(self, number: int) -> None:
        again = number in self._again
        # A registry's followers learn of a new schema after its leader, which told the producer.
        patient = not again and self._clock() >= self._patient_from
        tries = left = 1 if again else _TRIES
        attempt = 0
        while True:
            pause, odd = self._pause, None
            try:
                found = await self._place.get(number)
            except AwayError as error:
                odd = error
                away = await self._away(number, error)
                if away is None:
                    left -= 1
                else:
                    self._tell(number, error, away)
                    pause = min(self._retry.cap, self._retry.first * 2.0 ** min(attempt, 16))
                    attempt += 1
                    left = tries
            else:
                self._answered()
                if found is not None:
                    self._again.pop(number, None)
                    self._other = number
                    self.schemas.put(number, *found)
                    return
                left = left - 1 if patient else 0
            if left == 0:
                break
            await asyncio.sleep(pause * (0.5 + random.random() / 2))  # noqa: S311  only spreads the load
        if patient and odd is None:
            self._patient_from = self._clock() + AGAIN_S
        if not again and odd is not None:
            remedy = "mend that schema where it is kept, and replay its dead letters then"
            log.error("a schema cannot be had", extra={"schema": number, "error": str(odd), "remedy": remedy})
        self._lack(number, odd)

    def _lack(self, number: int, odd: AwayError | None) -> None:
        """Remember that a schema is not known or, if `odd`, not to be had."""
        self._again.pop(number, None)
        self._again[number] = self._clock() + (AGAIN_S if odd is None else MENDED_S)
        self.schemas.lack(number, "" if odd is None else str(odd))
        if len(self._again) > _REMEMBERED:
            oldest = next(iter(self._again))
            del self._again[oldest]
            self.schemas.lack(oldest, "")

    async def _away(self, number: int, error: AwayError) -> AwayError | None:
        """Why nothing can be asked, or None when it is that schema only."""
        if error.general:
            return error
        try:
            await self._place.get(self._other if self._other != number else number - 1)
        except AwayError as away:
            return away
        self._answered()
        return None

    def _tell(self, number: int, error: AwayError, away: AwayError) -> None:
        if away.why not in self._told:
            self._told.add(away.why)
            extra = {"schema": number, "error": str(error), "other": str(away), "remedy": away.remedy}
            log.error("decoding waits for schemas", extra=extra)

    def _answered(self) -> None:
        if self._told:
            self._told.clear()
            log.info("schemas can be had again")


def place(settings: SchemaRegistry) -> Place:
    """Where the settings say that schemas are. Raises `ValueError` when they do not say."""
    if settings.url is not None:
        password = settings.password.get_secret_value() if settings.password is not None else ""
        return Registry(settings.url, settings.user, password)
    if settings.directory is not None:
        return Directory(settings.directory)
    raise ValueError("a topic has body confluent: set SCHEMA_REGISTRY_URL or SCHEMA_REGISTRY_DIR")


class Directory:
    """Files named by their schemas' ids: ID.avsc, ID.json (JSON Schema), ID.desc.

    The last is a serialized `FileDescriptorSet`, as `protoc --include_imports --descriptor_set_out` writes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    async def get(self, number: int) -> Found | None:
        """A schema by its id, or None when there is no such file. Raises `AwayError`."""
        return await asyncio.to_thread(self._read, number)

    def _read(self, number: int) -> Found | None:
        for suffix, kind in _FILES.items():
            path = self._path / f"{number}{suffix}"
            try:
                content = path.read_bytes()
                return Found(kind, content if kind == "PROTOBUF" else content.decode())
            except FileNotFoundError:
                continue
            except (OSError, UnicodeDecodeError) as error:
                raise AwayError(
                    str(path), f"cannot be read: {error}", f"make {path} a file that can be read"
                ) from error
        if not self._path.is_dir():
            remedy = "bring it back, or correct SCHEMA_REGISTRY_DIR"
            raise AwayError(str(self._path), "is no directory any more", remedy)
        return None


class Registry:
    """A server with the API of Confluent's Schema Registry."""

    def __init__(self, url: str, user: str | None = None, password: str = "") -> None:
        self._url = url.rstrip("/")
        login = b64encode(f"{user}:{password}".encode()).decode()
        self._headers = {"Authorization": f"Basic {login}"} if user is not None else {}

    async def get(self, number: int) -> Found | None:
        """A schema by its id, with all that it refers to, or None when the registry does not know one of them.

        Raises `AwayError` for any answer but these two.
        """
        import aiohttp  # noqa: PLC0415  slow to import, and most deployments have no schema registry

        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout, headers=self._headers) as session:
            path = f"/schemas/ids/{number}"
            schema = await self._schema(session, path)
            if schema is None:
                return None
            kind = schema.kind or "AVRO"  # left out when it is that
            serialized = kind == "PROTOBUF"
            if serialized:
                schema = await self._schema(session, path, serialized=True)
            references: dict[str, str] = {}
            if schema is None or not await self._refer(session, schema, references, serialized=serialized):
                return None
            return Found(kind, schema.schema, tuple(references.items()))

    async def _refer(
        self, session: "aiohttp.ClientSession", schema: "_Schema", known: dict[str, str], *, serialized: bool
    ) -> bool:
        """Gather what a schema refers to, each after what it refers to itself; whether the registry knows it all."""
        for reference in schema.references:
            if reference.name in known:
                continue
            if len(known) >= _MOST_REFERENCES or sum(map(len, known.values())) > _MOST_BYTES:
                why = f"refers to more than {_MOST_REFERENCES} others, or than {_MOST_BYTES} bytes of them"
                raise AwayError("the schema", why, "take some of them out")
            path = f"/subjects/{quote(reference.subject, safe='')}/versions/{reference.version}"
            needed = await self._schema(session, path, serialized=serialized)
            if needed is None:
                return False
            # Taken note of at once, so that a circle ends, and moved behind what it needs itself.
            known[reference.name] = needed.schema
            if not await self._refer(session, needed, known, serialized=serialized):
                return False
            known[reference.name] = known.pop(reference.name)
        return True

    async def _schema(
        self, session: "aiohttp.ClientSession", path: str, *, serialized: bool = False
    ) -> "_Schema | None":
        import aiohttp  # noqa: PLC0415  as above
        from yarl import URL  # noqa: PLC0415  aiohttp's own

        url = f"{self._url}{path}{'?format=serialized' if serialized else ''}"
        try:
            # `encoded`: a subject's quoted slash stays quoted. The log-in goes where the setting says, nowhere else.
            async with session.get(URL(url, encoded=True), allow_redirects=False) as response:
                body = bytearray()
                async for part in response.content.iter_chunked(_CHUNK):
                    body += part
                    if len(body) > _MOST_BYTES:
                        raise AwayError(url, f"answered more than {_MOST_BYTES} bytes", _CORRECT_URL)
                return _answer(url, response.status, bytes(body))
        except TimeoutError as error:
            raise AwayError(url, f"did not answer within {_TIMEOUT_S:g} s", _CORRECT_URL) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AwayError(url, f"cannot be asked: {error}", _CORRECT_URL) from error


class _Reference(msgspec.Struct):
    name: str
    subject: str
    version: int


class _Schema(msgspec.Struct):
    schema: str
    kind: str | None = msgspec.field(default=None, name="schemaType")
    references: list[_Reference] = []


class _Refusal(msgspec.Struct):
    error_code: int


_schema: Final = msgspec.json.Decoder(_Schema).decode
_refusal: Final = msgspec.json.Decoder(_Refusal).decode


def _answer(url: str, status: int, body: bytes) -> _Schema | None:
    """What an answer says. Raises `AwayError` for one that says nothing about a schema."""
    try:
        if status == HTTPStatus.OK:
            return _schema(body)
        if status == HTTPStatus.NOT_FOUND and _refusal(body).error_code in _UNKNOWN:
            return None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AwayError(url, f"answered {status}, and not as a schema registry does", _CORRECT_URL) from error
    refused = status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
    general = status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS}
    raise AwayError(url, f"answered {status}", _CORRECT_LOGIN if refused else _CORRECT_URL, general=general)
