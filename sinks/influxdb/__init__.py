"""InfluxDB 2.x, or 3 for writing: one point per reading, a field for each metric.

A point's identity is measurement, tags and time, and a point written again replaces its fields, so a batch delivered
twice changes nothing. The driver is imported when a client is made: every worker reads these settings, and only
store-influxdb pays for it.
"""

import asyncio
import logging
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Final

import msgspec

from schemas.reading import Reading, Rejected, RejectedError
from sinks.base import PartialWriteError, Prepared, Verdict, without_nulls
from sinks.influxdb.fields import TRUSTED_S, FieldTypes
from sinks.influxdb.lines import Lines
from sinks.influxdb.reader import Reader
from sinks.influxdb.schema import apply_schema, drift, plan_schema
from sinks.influxdb.server import CONFLICT, AnswerError, classify, refused_lines
from sinks.influxdb.settings import Settings
from sinks.meta import meta_text

__all__ = ["AnswerError", "InfluxSink", "Settings", "Sink", "apply_schema", "drift", "plan_schema"]

log = logging.getLogger(__name__)


class Part(msgspec.Struct, frozen=True):
    """What goes to one bucket: as it is sent, its lines, and which of the batch's readings each is of."""

    bucket: str
    body: bytes
    lines: list[str]
    places: list[int]


#: The parts of a batch that are not empty.
Payload = Sequence[Part]


class InfluxSink(Reader):
    """`sinks.base.Sink` for InfluxDB 2.x; 3 can be written to, which was not tried on a real server.

    Every name is stored, in a form of ours where line protocol has none (`lines.stored`). A null is not stored, and
    does not take away a value that is; nor does a reading without `_meta` take away that of an earlier one of its
    instant. A batch is one request for each of its buckets; when one fails, all are sent again.
    Limits: measurement, tags and metric together 65,535 bytes, a text 1 MiB, the years 1677 to 2262; a metric has one
    type in all of a measurement; integers beyond 2^53 need an INT32 or INT64 override.
    """

    name = "influxdb"

    def __init__(
        self,
        settings: Settings,
        types: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(settings)
        self._clock = clock
        self._known = FieldTypes(clock)
        self._learn_from = 0.0
        self._lines = Lines(settings.tags, types, self._known)

    @property
    def place(self) -> str:
        """Where it stores, for a person."""
        settings = self.settings
        return f"{settings.url} {settings.org}/{settings.bucket}"

    async def open(self) -> None:
        """Connect, and see that a write would be accepted. Raises what `classify` knows."""
        await self.connect()
        try:
            await self.probe()
            await self._learn()
        except BaseException:
            await self.close()
            raise

    async def probe(self) -> None:
        """Write nothing: the server looks at token, organization, bucket and rights, though not at its disk."""
        for bucket in self.settings.stores:
            try:
                await self._post(bucket, self._body([]))
            except AnswerError as error:
                if "write was empty" not in error.words:  # InfluxDB 3's complaint, when all else is well
                    raise

    async def _learn(self) -> None:
        """Learn which type each field has; without that, as for a token that may only write, the server refuses."""
        if self.settings.version == "3":
            return
        try:
            async with asyncio.timeout(_LEARNING_S):
                found = await self.field_types()
        except Exception as error:  # noqa: BLE001  whatever it is: writing goes without
            log.info("the types of fields are not known", extra={"sink": self.name, "error": str(error)})
            return
        self._known.learn(found)
        self._lines.forget()

    def prepare(self, readings: Sequence[Reading]) -> Prepared[Payload]:
        """One line per reading; of lines of one point the server lets the last win."""
        lines: list[str] = []
        places: list[int] = []
        rejected: dict[int, Rejected] = {}
        for index, reading in enumerate(readings):
            try:
                line = self._lines.line(reading)
            except RejectedError as error:
                rejected[index] = error.rejected
                continue
            if line:
                lines.append(line)
                places.append(index - len(rejected))  # of those that are left
        if not lines:
            return Prepared((), 0, rejected)
        if self.settings.bucket_by_measurement:
            left = [reading for index, reading in enumerate(readings) if index not in rejected]
            return Prepared(self._by_bucket(lines, places, left), len(lines), rejected)
        return Prepared((Part(self.settings.bucket, self._body(lines), lines, places),), len(lines), rejected)

    def _by_bucket(self, lines: Sequence[str], places: Sequence[int], readings: Sequence[Reading]) -> Payload:
        parts: dict[str, tuple[list[str], list[int]]] = {}
        for line, place in zip(lines, places, strict=True):
            bucket = self.settings.bucket_of(readings[place].measurement)
            of_bucket = parts.setdefault(bucket, ([], []))
            of_bucket[0].append(line)
            of_bucket[1].append(place)
        return [Part(bucket, self._body(those), those, there) for bucket, (those, there) in parts.items()]

    def _body(self, lines: Sequence[str]) -> bytes:
        body = "\n".join(lines).encode()
        # The driver's own, at level 9, takes eight times as long, and would do so while the server waits.
        return zlib.compress(body, 1, _GZIP) if self.settings.gzip else body

    async def write(self, payload: Payload) -> None:
        """A request for each bucket; it is answered when the points are in the server's log on disk."""
        for part in payload:
            try:
                await self._post(part.bucket, part.body)
            except AnswerError as error:
                if refused := refused_lines(error, part.lines):
                    raise PartialWriteError({part.places[line]: why for line, why in refused.items()}) from error
                if CONFLICT in error.words and self._clock() >= self._learn_from:
                    self._learn_from = self._clock() + TRUSTED_S
                    await self._learn()  # delivery prepares each half of the batch again
                raise

    async def _post(self, bucket: str, body: bytes) -> None:
        settings = self.settings
        query = (("org", settings.org), ("bucket", bucket), ("precision", "us"))
        try:
            status, answer = await self.ask("POST", "/api/v2/write", query, _HEADERS[settings.gzip], body)
            if status != HTTPStatus.NO_CONTENT:  # the only one that says that all of it is stored
                raise AnswerError(status, answer)
        except AnswerError as error:
            error.bucket = bucket
            raise

    def classify(self, error: BaseException) -> Verdict:
        """By HTTP status; what is not known is tried again, since a lost row is worse than a late one."""
        return classify(error, self.settings)

    def kept(self, reading: Reading) -> Reading | None:
        """All but nulls; of a reading with nothing else, what it says besides its values."""
        found = without_nulls(reading)
        return found if found.values or meta_text(found, leave_out=frozenset(self.settings.tags)) else None


#: What `zlib` calls gzip.
_GZIP: Final = 31
_TEXT: Final = ("Content-Type", "text/plain; charset=utf-8")
_HEADERS: Final = {False: (_TEXT,), True: (_TEXT, ("Content-Encoding", "gzip"))}
#: Seconds that learning the types may take.
_LEARNING_S: Final = 5.0
#: What the registry of sinks makes one with.
Sink = InfluxSink
