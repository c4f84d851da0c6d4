"""Where the schemas of framed payloads come from: a schema registry, or a directory of files.

A registry that cannot be asked is away, whatever the reason: payloads wait for it, and none is refused. Only its own
word that it does not know a schema counts as that, and then it is asked again after a minute at the soonest.
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
from schemas.confluent import Schemas

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

#: An id that was not known is not asked for again before this.
AGAIN_S: Final = 60.0
#: As many such ids are remembered.
_REMEMBERED: Final = 10_000
#: Ids that are asked for at once.
_AT_ONCE: Final = 16
_TIMEOUT_S: Final = 10.0
_MOST_REFERENCES: Final = 256
#: What a schema registry says itself: no such subject, version or schema. Of any other HTTP 404 nobody knows whether
#: it means that, or that the URL is wrong.
_UNKNOWN: Final = frozenset({40401, 40402, 40403})
_FILES: Final = {".avsc": "AVRO", ".json": "JSON", ".desc": "PROTOBUF"}
_CORRECT_URL: Final = "start the schema registry, or correct SCHEMA_REGISTRY_URL"
_CORRECT_LOGIN: Final = "correct SCHEMA_REGISTRY_USER and SCHEMA_REGISTRY_PASSWORD, or let that user read schemas"


class AwayError(Exception):
    """Nothing can be asked now; `remedy` is what a person can do."""

    def __init__(self, why: str, remedy: str) -> None:
        super().__init__(why)
        self.remedy = remedy


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
        self, schemas: Schemas, place: Place, retry: Retry, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.schemas = schemas
        self._place = place
        self._retry = retry
        self._clock = clock
        #: What a person was told to do, while nothing can be asked.
        self._remedy = ""
        #: When to ask again for an id that was not known.
        self._again: dict[int, float] = {}

    async def fetch(self, numbers: Collection[int]) -> None:
        """Learn what there is to know of these schemas; waits for as long as nothing can be asked."""
        now = self._clock()
        due = [number for number in sorted(numbers) if self._again.get(number, now) <= now]
        for start in range(0, len(due), _AT_ONCE):
            async with asyncio.TaskGroup() as group:
                for number in due[start : start + _AT_ONCE]:
                    group.create_task(self._learn(number))

    async def _learn(self, number: int) -> None:
        found = await self._asked(number)
        self._again.pop(number, None)
        if found is not None:
            self.schemas.put(number, *found)
            return
        self._again[number] = self._clock() + AGAIN_S
        if len(self._again) > _REMEMBERED:
            del self._again[next(iter(self._again))]

    async def _asked(self, number: int) -> Found | None:
        attempt = 0
        while True:
            try:
                found = await self._place.get(number)
            except AwayError as error:
                if error.remedy != self._remedy:
                    self._remedy = error.remedy
                    log.error("decoding waits for schemas", extra={"error": str(error), "remedy": error.remedy})  # noqa: TRY400
            else:
                if self._remedy:
                    self._remedy = ""
                    log.info("schemas can be had again")
                return found
            pause = min(self._retry.cap, self._retry.first * 2.0 ** min(attempt, 16))
            await asyncio.sleep(pause * (0.5 + random.random() / 2))  # noqa: S311  only spreads the load
            attempt += 1


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
                raise AwayError(f"{path} cannot be read: {error}", f"make {path} a file that can be read") from error
        if not self._path.is_dir():
            remedy = "bring it back, or correct SCHEMA_REGISTRY_DIR"
            raise AwayError(f"{self._path} is no directory any more", remedy)
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
            if len(known) >= _MOST_REFERENCES:
                raise AwayError(f"a schema refers to more than {_MOST_REFERENCES} others", "take some of them out")
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
                return _answer(url, response.status, await response.read())
        except TimeoutError as error:
            raise AwayError(f"{url} did not answer within {_TIMEOUT_S:g} s", _CORRECT_URL) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise AwayError(f"{url} cannot be asked: {error}", _CORRECT_URL) from error


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
        raise AwayError(f"{url} answered {status}, and not as a schema registry does", _CORRECT_URL) from error
    refused = status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
    raise AwayError(f"{url} answered {status}", _CORRECT_LOGIN if refused else _CORRECT_URL)
