"""Apache IoTDB's tree model: an aligned device for each device, measurement and channel, a row of it for each reading.

A metric is `root.iotflow.DEVICE.METRIC`, and `root.iotflow.DEVICE.@MEASUREMENT.CHANNEL.METRIC` where there is a channel
or another measurement than the default one. What a reading says besides its values is in the series `_meta`.
"""

import heapq
import logging
import ssl
import struct
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import groupby
from operator import itemgetter
from typing import Any, ClassVar, Final

from msgspec import Struct
from msgspec.structs import replace
from pydantic import AliasChoices, ConfigDict, Field, FilePath, SecretStr, model_validator

from schemas.reading import Reading, Rejected, RejectedError
from sinks.base import (
    EVERYTHING,
    Fatal,
    Prepared,
    Reject,
    Retry,
    SchemaPlan,
    Selection,
    SinkSettings,
    Verdict,
    unpaired,
)
from sinks.iotdb.mapping import (
    Columns,
    Row,
    Rows,
    device_path,
    identity_of,
    merged,
    name_of,
    nodes_of,
    quoted,
)
from sinks.iotdb.rpc import NO_DATABASE, NO_PERMISSION, Address, Link, StatusError, driver
from sinks.meta import META, apply_meta

log = logging.getLogger(__name__)


class Settings(SinkSettings):
    """Where the server is."""

    model_config = ConfigDict(validate_by_name=True)

    PREFIX: ClassVar[str] = "IOTDB"
    STAGE: ClassVar[str] = "store-iotdb"
    PORT: ClassVar[int] = 6068

    host: str = Field("localhost", description="host name or address of a DataNode")
    port: int = Field(6667, ge=1, le=65535, description="its RPC port")
    user: str = Field("root", validation_alias=AliasChoices("IOTDB_USERNAME"), description="user to log in as")
    password: SecretStr = Field(SecretStr("root"), description="its password")
    database: str = Field(
        "root.iotflow", pattern=r"^root(\.[A-Za-z_][A-Za-z0-9_]*)+$", description="database that all devices are in"
    )
    default_measurement: str = Field("telemetry", min_length=1, description="measurement whose name is not in the path")
    tablet_rows: int = Field(
        500,
        ge=2,
        description="rows of a device in a batch from which on they go as a tablet; 5 where wal_mode is ASYNC",
    )
    rpc_compression: bool = Field(
        False, description="compact protocol: as the server's dn_rpc_thrift_compression_enable is"
    )
    ssl: bool = Field(False, description="TLS, with the server's certificate and name verified")
    ssl_ca: FilePath | None = Field(None, description="certificates to trust instead of the system's")
    ssl_cert: FilePath | None = Field(None, description="client certificate")
    ssl_key: FilePath | None = Field(None, description="key of the client certificate")
    ssl_key_password: SecretStr | None = Field(None, description="password of that key")

    @model_validator(mode="after")
    def _agree(self) -> "Settings":
        flaws = unpaired(self.ssl_cert, self.ssl_key)
        if not self.ssl and (self.ssl_ca or self.ssl_cert):
            flaws.append("`ssl_ca` and `ssl_cert` need `ssl`: true")
        if flaws:
            raise ValueError("\n".join(flaws))
        return self


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: Microseconds in the server's unit; a nanosecond is less.
_MICROS: Final = {"ms": 1000, "us": 1}
_LIMIT: Final = 2**63
#: Devices whose last instant is remembered, to see collisions.
_REMEMBERED: Final = 65536
#: Longer names of devices and channels are not remembered, so that hostile ones cannot fill the memory.
_REMEMBERED_CHARS: Final = 512
#: Devices of one query: the memory that the server has for one would not do for all.
_COUNTED_AT_ONCE: Final = 200
#: Rows of a page of a scan.
_PAGE: Final = 5000
_MILLISECONDS: Final = "to keep microseconds, set up a new server with timestamp_precision=us"


class Payload(Struct, frozen=True):
    """A batch as requests, each behind the name of its RPC; its times are in `precision`."""

    requests: Sequence[tuple[str, Any]]
    precision: str
    readings: Sequence[Reading]


class IoTDBSink:
    """`sinks.base.Sink` for Apache IoTDB 1.3 or newer.

    Limits: integers beyond 2^53 need an INT32 or INT64 override; a null does not replace a stored value; two readings
    of one device, measurement, channel and time share their `_meta`, the later one's that has any; of a reading that
    the server refuses for one value, it may store the others; a write that is given up when all of it has been sent is
    carried out all the same.
    """

    name = "iotdb"

    def __init__(self, settings: Settings, types: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self._rows = Rows(types or {})
        #: On a server that counts milliseconds: how often an instant fell on the one before it of its device.
        self.collisions = 0
        self._instants: dict[str, tuple[int, datetime]] = {}
        self._precision = "us"
        self._link: Link | None = None
        self._known_path = lru_cache(maxsize=32_768)(self._new_path)

    async def open(self) -> None:
        """Connect. Raises what `classify` knows."""
        await self.close()
        link = Link(address(self.settings))
        await link.connect()
        self._link = link
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
        if link.precision == self._precision:
            return
        self._precision = link.precision
        if link.precision == "ms":
            log.warning("the server counts milliseconds", extra={"sink": self.name, "remedy": _MILLISECONDS})

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
        row_of = self._rows.row
        for index, reading in enumerate(readings):
            try:
                row = row_of(reading)
                if row is None:
                    continue
                path = self._path(reading.device_id, reading.measurement, reading.channel)
                key = path, self._at(path, reading.time)
            except RejectedError as error:
                rejected[index] = error.rejected
                continue
            older = rows.setdefault(key, row)
            if older is not row:
                rows[key] = merged(older, row)
        return Prepared(Payload(self._requests(rows), self._precision, readings), len(rows), rejected)

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

    def _path(self, device: str, measurement: str, channel: str) -> str:
        short = len(device) + len(channel) <= _REMEMBERED_CHARS
        return (self._known_path if short else self._new_path)(device, measurement, channel)

    def _new_path(self, device: str, measurement: str, channel: str) -> str:
        path = device_path(device, measurement, channel, self.settings.default_measurement)
        return f"{self.settings.database}.{path}"

    def _at(self, path: str, time: datetime) -> int:
        """A time as the server counts it."""
        if self._precision == "us":
            return _micros(time)
        at = _counted(_micros(time), self._precision)
        if not -_LIMIT <= at < _LIMIT:
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
        """Insert the rows. What the server was doing when this is cancelled, it does all the same."""
        link = self._connected()
        await link.connect()
        self._meet(link)
        if payload.precision != self._precision:  # another server than when it was prepared
            payload = self.prepare(payload.readings).payload
        for name, request in payload.requests:
            await link.call(name, request)

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

    # -- reading back --------------------------------------------------------------------------------------------------

    def kept(self, reading: Reading) -> Reading | None:
        """All but nulls, as its types and the server's precision hold it; None where nothing is left to say."""
        found = self._rows.kept(reading)
        return found and replace(found, time=self._time(_counted(_micros(found.time), self._precision)))

    async def execute(self, statement: str) -> list[tuple[Any, ...]]:
        """The rows of any statement, without their time."""
        _, rows = await self._connected().execute(statement)
        return [row[1:] for row in rows]

    async def count(self) -> int:
        """How many values are stored."""
        paths = [path for path, *_ in await self.execute(f"SHOW DEVICES {self.settings.database}.**")]
        total = 0
        for start in range(0, len(paths), _COUNTED_AT_ONCE):
            some = ", ".join(map(quoted, paths[start : start + _COUNTED_AT_ONCE]))
            names, rows = await self._connected().execute(f"SELECT count(*) FROM {some} ALIGN BY DEVICE")  # noqa: S608
            counted = [place for place, name in enumerate(names, 1) if name not in {"Device", f"count({META})"}]
            total += sum(row[place] or 0 for row in rows for place in counted)
        return total

    async def scan(self, where: Selection = EVERYTHING) -> AsyncIterator[Reading]:
        """Every stored reading in (device, time, channel, measurement) order; `start` inclusive, `end` exclusive."""
        measurement, device_id, start, end = where.measurement, where.device_id, where.start, where.end
        settings = self.settings
        depth = settings.database.count(".") + 1
        found: list[tuple[str, str, str]] = []
        for path, *_ in await self.execute(f"SHOW DEVICES {settings.database}.**"):
            identity = identity_of(nodes_of(path)[depth:], settings.default_measurement)
            if identity and device_id in {None, identity[0]} and measurement in {None, identity[2]}:
                found.append(identity)
        for _, series in groupby(sorted(found), key=itemgetter(0)):
            async for reading in _in_order([self._series(each, start, end) for each in series]):
                yield reading

    async def _series(
        self, identity: tuple[str, str, str], start: datetime | None, end: datetime | None
    ) -> AsyncIterator[Reading]:
        """The readings of one IoTDB device by time, page by page: no query stays open on the server between pages."""
        device, channel, measurement = identity
        link, path = self._connected(), quoted(self._path(device, measurement, channel))
        until = [f"time < {self._bound(end)}"] if end else []
        since = [f"time >= {self._bound(start)}"] if start else []
        while True:
            where = f"WHERE {' AND '.join(since + until)} " if since or until else ""
            names, rows = await link.execute(f"SELECT * FROM {path} {where}LIMIT {_PAGE}")  # noqa: S608  it is quoted
            nodes = [nodes_of(name)[-1] for name in names]
            at, count = 0, 0
            for at, *cells in rows:
                row = {node: cell for node, cell in zip(nodes, cells, strict=True) if cell is not None}
                said = apply_meta(row.pop(META, ""), measurement)
                values = {name_of(node): cell for node, cell in row.items()}
                yield Reading(measurement, device, self._time(at), values, channel, **said)
                count += 1
            if count < _PAGE:
                return
            since = [f"time > {at}"]

    def _bound(self, time: datetime) -> int:
        """The first instant of the server that is not before a time."""
        return -_counted(-_micros(time), self._precision)

    def _time(self, at: int) -> datetime:
        micros = at // 1000 if self._precision == "ns" else at * _MICROS[self._precision]
        return _EPOCH + timedelta(microseconds=micros)


async def _in_order(series: Sequence[AsyncIterator[Reading]]) -> AsyncIterator[Reading]:
    """The readings of several series, each by time, as one."""
    heap: list[tuple[datetime, str, str, int, Reading]] = []

    async def push(number: int) -> None:
        async for reading in series[number]:
            heapq.heappush(heap, (reading.time, reading.channel, reading.measurement, number, reading))
            return

    for number in range(len(series)):
        await push(number)
    while heap:
        _, _, _, number, reading = heapq.heappop(heap)
        yield reading
        await push(number)


def _micros(time: datetime) -> int:
    since = time - _EPOCH
    return (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds


def _counted(micros: int, precision: str) -> int:
    """Microseconds as the server counts them; what is less than its unit is cut off."""
    return micros * 1000 if precision == "ns" else micros // _MICROS[precision]


#: Status codes that mean the data: names, types, times before the TTL, what is there as something else.
_OF_THE_DATA: Final = frozenset({503, 505, 506, 507, 508, 509, 528, 560, 607, 609, 614, 615, 616, 701, 750, 752})
#: The server's own limits of a request's size and time.
_TOO_MUCH: Final = frozenset({712, 1702, 1705})


def _classify(error: StatusError, settings: Settings) -> Verdict:
    fatal = {
        NO_DATABASE: f"no database {settings.database} that {_place(settings)} can see: run iotflow schema apply, "
        f"or {_grant(settings)}",
        801: f"IoTDB refuses the password of {_place(settings)}: set IOTDB_PASSWORD or IOTDB_PASSWORD_FILE",
        804: f"IoTDB has no user as in {_place(settings)}: set IOTDB_USER",
        NO_PERMISSION: f"{_place(settings)} may not do this ({error}): {_grant(settings)}",
    }
    remedy = next((fatal[code] for code in fatal if code in error.codes), None)
    if remedy is not None:
        return Fatal(remedy)
    if error.codes <= _OF_THE_DATA:
        missing = ": make the series, or set enable_auto_create_schema" if "does not exist" in str(error) else ""
        return Reject(Rejected("refused", f"{error}{missing}"))
    return Retry(str(error), smaller=bool(error.codes & _TOO_MUCH))


def _place(settings: Settings) -> str:
    return f"{settings.user}@{settings.host}:{settings.port}"


def _grant(settings: Settings) -> str:
    rights = "READ_DATA, WRITE_DATA, READ_SCHEMA, WRITE_SCHEMA"
    return f"GRANT {rights} ON {settings.database}.** TO USER {settings.user}"


class CertificateFilesError(Exception):
    """A file with a certificate or a key cannot be used."""


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ssl_ca)
        if settings.ssl_cert is not None:
            # Without a password OpenSSL would ask for one at the terminal.
            password = settings.ssl_key_password.get_secret_value() if settings.ssl_key_password else ""
            context.load_cert_chain(settings.ssl_cert, settings.ssl_key, password)
    except OSError as error:  # ssl.SSLError is one
        what = "IOTDB_SSL_CA, IOTDB_SSL_CERT and IOTDB_SSL_KEY"
        raise CertificateFilesError(f"{what} do not work ({error})") from error
    return context


def address(settings: Settings) -> Address:
    """How to reach the server. Raises `CertificateFilesError`."""
    context = _tls(settings) if settings.ssl else None
    return Address(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        password=settings.password.get_secret_value(),
        timeout_s=settings.write_timeout,
        tls=context,
        compact=settings.rpc_compression,
    )


async def _apply(settings: Settings) -> list[str]:
    """Make the database; returns what to tell the user. May be run again. Raises what `IoTDBSink.classify` knows."""
    link = Link(address(settings))
    try:
        try:
            await link.execute(f"CREATE DATABASE {settings.database}")
        except StatusError:  # the grammar has no IF NOT EXISTS, and one above it says "exists" too
            _, rows = await link.execute(f"SHOW DATABASES {settings.database}")
            if next(rows, None) is None:
                raise
        coarse = f"; {_MILLISECONDS}" if link.precision == "ms" else ""
        return [f"{settings.database}: database that counts {link.precision}{coarse}"]
    finally:
        link.close()


async def apply_schema(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:  # noqa: ARG001
    """Make what is missing; returns what to tell the user. May be run again. Raises what the sink's classify knows."""
    return SchemaPlan("", notes=await _apply(settings))


#: What the registry of sinks makes one with.
Sink = IoTDBSink
