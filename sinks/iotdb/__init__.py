"""Apache IoTDB's tree model: an aligned device for each device, measurement and channel, a row of it for each reading.

A metric is `root.iotflow.DEVICE.METRIC`, and `root.iotflow.DEVICE.@MEASUREMENT.CHANNEL.METRIC` where there is a channel
or another measurement than the default one. What a reading says besides its values is in the series `_meta`.
"""

import logging
import ssl
import struct
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from operator import itemgetter
from typing import Any, Final

from msgspec import Struct, structs

from schemas.reading import Reading, Rejected, RejectedError
from sinks.base import Fatal, PartialWriteError, Prepared, Reject, Retry, Verdict
from sinks.iotdb.mapping import Columns, Row, Rows, merged, nodes_of
from sinks.iotdb.places import TRUSTED_S, Clash, Place, confirmed, refusal
from sinks.iotdb.reading import Reader
from sinks.iotdb.rpc import NO_DATABASE, NO_PERMISSION, TOO_OLD, Link, StatusError, driver
from sinks.iotdb.schema import apply_schema, drift, plan_schema
from sinks.iotdb.settings import CertificateFilesError, Settings, address
from sinks.iotdb.times import LIMIT, counted, instant, micros
from sinks.iotdb.ttl import rules_of, worded

log = logging.getLogger(__name__)

#: Devices whose last instant is remembered, to see collisions.
_REMEMBERED: Final = 65_536
#: IoTDB devices whose paths and types are remembered.
_PLACES: Final = 32_768
#: Longer names of devices and channels are not remembered, so that hostile ones cannot fill the memory.
_REMEMBERED_CHARS: Final = 512
#: Devices whose types a write asks for at most; what others clash with is the server's to say.
_ASKED_AT_ONCE: Final = 100
#: Seconds beyond its TTL that make a row too old without asking for the server's clock.
_MARGIN_S: Final = 60.0
_MILLISECONDS: Final = "to keep microseconds, set up a new server with timestamp_precision=us"
#: What a sink's module has beside its sink.
__all__ = ["IoTDBSink", "Settings", "Sink", "apply_schema", "drift", "plan_schema"]


class Payload(Struct, frozen=True):
    """A batch as requests, each behind the name of its RPC; its times are in `precision`."""

    requests: Sequence[tuple[str, Any]]
    precision: str
    #: Those that have a form.
    readings: Sequence[Reading]
    #: Where columns are stored that were not the last ones there.
    news: Sequence[tuple[Place, Columns]] = ()
    #: By index in `readings`: what clashes with a type that is remembered from long ago.
    doubts: Mapping[int, tuple[Place, Clash]] = {}


class IoTDBSink(Reader):
    """`sinks.base.Sink` for Apache IoTDB 1.3 or newer; tried on 2.0.1-beta.

    Limits: integers beyond 2^53 need an INT32 or INT64 override; a null does not replace a stored value; two readings
    of one device, measurement, channel and time share their `_meta`, the later one's that has any; of a reading that
    the server refuses for one value, it may store the others; a write that is given up when all of it has been sent is
    carried out all the same.
    """

    name = "iotdb"

    def __init__(
        self,
        settings: Settings,
        types: Mapping[str, str] | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.settings = settings
        self._monotonic = monotonic
        self._wall = wall
        self._rows = Rows(types or {})
        #: On a server that counts milliseconds: how often an instant fell on the one before it of its device.
        self.collisions = 0
        self._instants: dict[str, tuple[int, datetime]] = {}
        self._precision = "us"
        self._link: Link | None = None
        self._session = 0
        self._known_place = lru_cache(maxsize=_PLACES)(self._new_place)

    @property
    def place(self) -> str:
        """Where it stores, without secrets."""
        return f"{_login(self.settings)}/{self.settings.database}"

    async def open(self) -> None:
        """Connect. Raises what `classify` knows."""
        await self.close()
        link = Link(address(self.settings))
        await link.connect()
        self._link = link
        self._session = 0
        self._meet(link)

    async def close(self) -> None:
        """Drop the connection."""
        link, self._link = self._link, None
        if link is not None:
            link.close()

    def _connected(self) -> Link:
        if self._link is None:
            raise ConnectionError("not connected")
        return self._link

    def _meet(self, link: Link) -> None:
        if link.sessions == self._session:
            return
        self._session = link.sessions
        self._forget()
        if link.precision == self._precision:
            return
        self._precision = link.precision
        if link.precision == "ms":
            log.warning("the server counts milliseconds", extra={"sink": self.name, "remedy": _MILLISECONDS})

    def _forget(self) -> None:
        self._known_place.cache_clear()

    async def probe(self) -> None:
        """See that the database is there, and insert no records."""
        link = self._connected()
        _, rows = await link.execute(f"SHOW DATABASES {self.settings.database}")
        if next(rows, None) is None:
            raise StatusError([NO_DATABASE], f"no database {self.settings.database}")
        await link.call("insertRecords", driver().types.TSInsertRecordsReq(None, [], [], [], [], True))

    # -- preparing -----------------------------------------------------------------------------------------------------

    def prepare(self, readings: Sequence[Reading]) -> Prepared[Payload]:
        """One row for each device, measurement, channel and time; the last value of a metric wins."""
        rows: dict[tuple[str, int], Row] = {}
        rejected: dict[int, Rejected] = {}
        news: list[tuple[Place, Columns]] = []
        doubts: dict[int, tuple[Place, Clash]] = {}
        row_of, place_of = self._rows.row, self._place
        in_micros = self._precision == "us"
        for index, reading in enumerate(readings):
            try:
                row = row_of(reading)
                if row is None:
                    continue
                where = place_of(reading)
                path = where.path
                key = path, micros(reading.time) if in_micros else self._at(path, reading.time)
                if where.stored is not row[0].itself:
                    if found := where.clash(row[0]):
                        self._believe(where, found)
                        doubts[index - len(rejected)] = where, found
                    news.append((where, row[0]))
            except RejectedError as error:
                rejected[index] = error.rejected
                continue
            older = rows.setdefault(key, row)
            if older is not row:
                rows[key] = merged(older, row)
        if rejected:
            readings = [reading for index, reading in enumerate(readings) if index not in rejected]
        payload = Payload(self._requests(rows), self._precision, readings, news, doubts)
        return Prepared(payload, len(rows), rejected)

    def _believe(self, where: Place, found: Clash) -> None:
        """Raises `RejectedError` where what is remembered is fresh; else the server is asked before it is written."""
        if self._monotonic() - where.since < TRUSTED_S:
            why = refusal(where.path, found)
            raise RejectedError(why.reason, why.error)

    def _requests(self, rows: Mapping[tuple[str, int], Row]) -> list[tuple[str, Any]]:
        """Records, and a tablet for what is many rows of the same columns."""
        least = self.settings.tablet_rows
        many = {path for path, count in Counter(map(itemgetter(0), rows)).items() if count >= least}
        alone: list[tuple[str, int, Columns, Sequence[Any]]] = []
        alike: dict[tuple[str, Columns], list[tuple[int, Sequence[Any]]]] = defaultdict(list)
        for (path, at), (columns, values) in rows.items():
            if path in many:
                alike[path, columns].append((at, values))
            else:
                alone.append((path, at, columns, values))
        tablets = driver().types.TSInsertTabletsReq(None, [], [], [], [], [], [], True)
        for (path, columns), same in alike.items():
            if len(same) < least:
                alone += [(path, at, columns, values) for at, values in same]
                continue
            same.sort(key=itemgetter(0))
            tablets.prefixPaths.append(path)
            tablets.measurementsList.append(columns.nodes)
            tablets.valuesList.append(columns.tablet([values for _, values in same]))
            tablets.timestampsList.append(struct.pack(f">{len(same)}q", *(at for at, _ in same)))
            tablets.typesList.append(columns.kinds)
            tablets.sizeList.append(len(same))
        records = driver().types.TSInsertRecordsReq(
            prefixPaths=[path for path, _, _, _ in alone],
            measurementsList=[columns.nodes for _, _, columns, _ in alone],
            valuesList=[columns.record(values) for _, _, columns, values in alone],
            timestamps=[at for _, at, _, _ in alone],
            isAligned=True,
        )
        named = (("insertRecords", records), ("insertTablets", tablets))
        return [(name, request) for name, request in named if request.prefixPaths]

    def _place(self, reading: Reading) -> Place:
        device, channel = reading.device_id, reading.channel
        short = len(device) + len(channel) <= _REMEMBERED_CHARS
        return (self._known_place if short else self._new_place)(device, reading.measurement, channel)

    def _new_place(self, device: str, measurement: str, channel: str) -> Place:
        return Place(self._path(device, measurement, channel))

    def _at(self, path: str, time: datetime) -> int:
        """A time as a server counts it that does not count microseconds."""
        at = counted(micros(time), self._precision)
        if not -LIMIT <= at < LIMIT:
            raise RejectedError("bad_timestamp", f"{time} is more than a server that counts nanoseconds can hold")
        last = self._instants.get(path, (at, time))
        if last[0] == at and last[1] != time:
            self.collisions += 1
            if self.collisions == 1:
                told = {"sink": self.name, "path": path, "time": time.isoformat(), "remedy": _MILLISECONDS}
                log.warning("two readings fell on one millisecond, and the later one is kept", extra=told)
        if len(self._instants) >= _REMEMBERED:
            self._instants.clear()
        self._instants[path] = at, time
        return at

    # -- writing -------------------------------------------------------------------------------------------------------

    async def write(self, payload: Payload) -> None:
        """Insert the rows. What the server was doing when this is cancelled, it does all the same.

        Raises `PartialWriteError` for rows that are too old, or that clash with a type that the server was asked for.
        """
        link = self._connected()
        await link.connect()
        self._meet(link)
        if payload.precision != self._precision:  # another server than when it was prepared
            prepared = self.prepare(payload.readings)
            if prepared.rejected:
                raise PartialWriteError(prepared.rejected)
            payload = prepared.payload
        if payload.doubts:
            await self._settle(payload.doubts)
        try:
            for name, request in payload.requests:
                await link.call(name, request)
        except StatusError as error:
            if TOO_OLD in error.codes and (old := await self._too_old(payload.readings)):
                raise PartialWriteError(old) from error
            raise
        now = self._monotonic()
        for where, columns in payload.news:
            where.learn(columns, now)

    async def _settle(self, doubts: Mapping[int, tuple[Place, Clash]]) -> None:
        """Ask for the types that readings clash with, and refuse those that do."""
        asked: dict[str, dict[str, str]] = {}
        rejected: dict[int, Rejected] = {}
        for index, (where, found) in doubts.items():
            if where.path not in asked and len(asked) >= _ASKED_AT_ONCE:
                continue
            if where.path not in asked:
                asked[where.path] = await self._types_of(where.path)
            if confirmed(found, asked[where.path]):
                where.since = self._monotonic()
                rejected[index] = refusal(where.path, found)
            else:
                where.stored = None
        if rejected:
            raise PartialWriteError(rejected)

    async def _too_old(self, readings: Sequence[Reading]) -> dict[int, Rejected]:
        """Those that are past their TTL for sure, by index; the server has refused some and does not say which."""
        rules = await rules_of(self._connected())
        now = self._wall() - _MARGIN_S
        found: dict[int, Rejected] = {}
        for index, reading in enumerate(readings):
            path = self._place(reading).path
            ttl_ms = rules.of(nodes_of(path))
            if ttl_ms is not None and micros(reading.time) < now * 1e6 - ttl_ms * 1000:
                said = f"{reading.time.isoformat()} is past the TTL of {path}, which is {worded(ttl_ms)}"
                found[index] = Rejected("too_old", said)
        return found

    def classify(self, error: BaseException) -> Verdict:
        """By the server's status codes; what is not known is tried again: a lost row is worse than a late one."""
        if isinstance(error, StatusError):
            return _classify(error, self.settings)
        if isinstance(error, ssl.SSLCertVerificationError):
            return Fatal(f"the certificate of {self.settings.host} is not trusted ({error}): set IOTDB_SSL_CA")
        if isinstance(error, CertificateFilesError):
            return Fatal(f"{error}: they are PEM files, and IOTDB_SSL_KEY_PASSWORD opens a key")
        if isinstance(error, UnicodeEncodeError):
            return Reject(Rejected("bad_value", f"{type(error).__name__}: {error}"))
        return Retry(f"{type(error).__name__}: {error}")

    # -- reading back: `Reader` has the rest ---------------------------------------------------------------------------

    def kept(self, reading: Reading) -> Reading | None:
        """All but nulls, as its types and the server's precision hold it; None where nothing is left to say."""
        found = self._rows.kept(reading)
        if found is None:
            return None
        return structs.replace(found, time=instant(counted(micros(found.time), self._precision), self._precision))


#: Status codes that mean the data: names, types, times before the TTL, what is there as something else.
_OF_THE_DATA: Final = frozenset({503, 505, 506, 507, 508, 509, 528, 560, 607, 609, 614, 615, 616, 701, 750, 752})
#: Who grants must have been granted it with that option.
_NO_GRANT: Final = 817
_ADMINISTRATOR: Final = "run it as an administrator, such as root (IOTDB_USER, IOTDB_PASSWORD)"
#: The server's own limits of a request's size and time.
_TOO_MUCH: Final = frozenset({712, 1702, 1705})


def _classify(error: StatusError, settings: Settings) -> Verdict:
    fatal = {
        NO_DATABASE: f"no database {settings.database} that {_login(settings)} can see: run iotflow schema apply, "
        f"or {_grant(settings)}",
        801: f"IoTDB refuses the password of {_login(settings)}: set IOTDB_PASSWORD or IOTDB_PASSWORD_FILE",
        804: f"IoTDB has no user as in {_login(settings)}: set IOTDB_USER",
        NO_PERMISSION: f"{_login(settings)} may not do this ({error}): {_mend(error, settings)}",
        _NO_GRANT: f"{_login(settings)} may not do this ({error}): {_ADMINISTRATOR}",
    }
    remedy = next((fatal[code] for code in fatal if code in error.codes), None)
    if remedy is not None:
        return Fatal(remedy)
    if error.codes == {TOO_OLD}:
        return Reject(Rejected("too_old", str(error)))
    if error.codes <= _OF_THE_DATA:
        missing = ": make the series, or set enable_auto_create_schema" if "does not exist" in str(error) else ""
        return Reject(Rejected("refused", f"{error}{missing}"))
    return Retry(str(error), smaller=bool(error.codes & _TOO_MUCH))


def _mend(error: StatusError, settings: Settings) -> str:
    """An administrator's rights are needed for the database itself, not for what is in it."""
    return _ADMINISTRATOR if "MANAGE_" in str(error) or f"[{settings.database}]" in str(error) else _grant(settings)


def _login(settings: Settings) -> str:
    return f"{settings.user}@{settings.host}:{settings.port}"


def _grant(settings: Settings) -> str:
    rights = "READ_DATA, WRITE_DATA, READ_SCHEMA, WRITE_SCHEMA"
    return f"GRANT {rights} ON {settings.database}.** TO USER {settings.user}"


#: What the registry of sinks makes one with.
Sink = IoTDBSink
