"""InfluxDB 2.x, or 3 for writing: one point per reading, a field for each metric.

A point's identity is measurement, tags and time, and a point written again replaces its fields, so a batch delivered
twice changes nothing. The driver is imported when a client is made: every worker reads these settings, and only
store-influxdb pays for it.
"""

import heapq
import ssl
import zlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from http import HTTPStatus
from math import isfinite
from operator import attrgetter
from typing import Annotated, Any, ClassVar, Final, Literal
from urllib.parse import quote, unquote, urlsplit

import msgspec
from pydantic import AfterValidator, BeforeValidator, Field, FilePath, SecretStr, model_validator

from schemas.reading import EXACT_INTEGER, Reading, Rejected, RejectedError, Value
from sinks.base import (
    EVERYTHING,
    Fatal,
    PartialWriteError,
    Prepared,
    Reject,
    Retry,
    SchemaPlan,
    Selection,
    SinkSettings,
    Verdict,
    integer_type,
    out_of_type,
    unpaired,
    without_nulls,
)
from sinks.meta import META, apply_meta, meta_text

#: The tags that every point has, `channel` where it is not empty.
DEVICE: Final = "device_id"
CHANNEL: Final = "channel"


def _url(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc
        usable = usable and (parts.port is None or parts.port > 0) and not (parts.query or parts.fragment)
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("must be an http or https URL without a user, password or query in it")
    return value.rstrip("/")


def _tags(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    names = tuple(dict.fromkeys(name.strip() for name in value.split(",") if name.strip()))
    for name in names:
        if name in {DEVICE, CHANNEL, "time"} or _stored(name) != name:
            raise ValueError(f"cannot make {name!r} a tag: the name is reserved")
    return names


class Settings(SinkSettings):
    """Where the server is and what goes there."""

    PREFIX: ClassVar[str] = "INFLUXDB"
    STAGE: ClassVar[str] = "store-influxdb"
    PORT: ClassVar[int] = 6069

    url: Annotated[str, AfterValidator(_url)] = Field("http://localhost:8086", description="address of the server")
    token: SecretStr | None = Field(None, description="API token that may write to the bucket")
    org: str = Field("iotflow", min_length=1, description="organization")
    bucket: str = Field("iotflow", min_length=1, description="bucket, or InfluxDB 3's database")
    version: Literal["2", "3"] = Field("2", description="InfluxDB's major version")
    gzip: bool = Field(False, description="compress what is sent: a fifth of the bytes for a fifth more CPU time")
    tags: Annotated[tuple[str, ...], BeforeValidator(_tags)] = Field(
        (),
        description="reading tags that become InfluxDB tags, and so part of a series: NAME,NAME; "
        "a value sent again with another tag is a second point",
    )
    retention_days: int = Field(
        0, ge=0, le=36_500, description="days that a bucket made by `schema apply` keeps its points; 0 is for ever"
    )
    ssl_verify: bool = Field(True, description="check the server's certificate")
    ssl_ca: FilePath | None = Field(None, description="certificates to trust instead of the system's")
    ssl_cert: FilePath | None = Field(None, description="client certificate")
    ssl_key: FilePath | None = Field(None, description="key of the client certificate")
    ssl_key_password: SecretStr | None = Field(None, description="password of that key")

    @model_validator(mode="after")
    def _agree(self) -> "Settings":
        flaws = unpaired(self.ssl_cert, self.ssl_key)
        if (self.ssl_ca or self.ssl_cert) and not self.url.startswith("https:"):
            flaws.append("`ssl_ca` and `ssl_cert` need a `url` that begins with https://")
        if self.ssl_ca and not self.ssl_verify:
            flaws.append("`ssl_ca` is of no use while `ssl_verify` is off: set one of them")
        if flaws:
            raise ValueError("\n".join(flaws))
        return self


# -- names -------------------------------------------------------------------------------------------------------------

#: Begins a name that is stored percent-encoded, because line protocol or InfluxDB could not take it as it is.
_MARK: Final = "%"
_ODD: Final = "%\\\ufffd"


def _stored(name: str, reserved: frozenset[str] = frozenset()) -> str:
    """The name that stands for any name at all in InfluxDB; no two names have the same."""
    plain = name.isprintable() and "\\" not in name and "\ufffd" not in name
    if plain and name and name[0] not in "%_#" and name not in reserved:
        return name
    return _MARK + "".join(c if c.isprintable() and c not in _ODD else quote(c, safe="") for c in name)


def _original(stored: str) -> str:
    return unquote(stored[1:]) if stored.startswith(_MARK) else stored


def _escaped(stored: str) -> str:
    """A stored name as line protocol has it in tags and field names; measurements take an escaped `=` as it is."""
    return stored.replace(",", "\\,").replace(" ", "\\ ").replace("=", "\\=")


def _text(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


# -- lines -------------------------------------------------------------------------------------------------------------

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)
#: InfluxDB counts nanoseconds in 64 bits: the years 1677 to 2262.
_LAST_US: Final = (2**63 - 1) // 1000
#: Longer names of devices and channels are not remembered, so that hostile ones cannot fill the memory.
_REMEMBERED_CHARS: Final = 512
_META_FIELD: Final = f"{META}="


class Lines:
    """Readings as line protocol, for one set of promoted tags and types."""

    def __init__(self, tags: Sequence[str] = (), types: Mapping[str, str] | None = None) -> None:
        types = types or {}
        self._tags = tuple(tags)
        self._promoted = frozenset(tags)
        # A field of a tag's name could not be told from it by InfluxQL, and InfluxDB 3 refuses it.
        reserved = frozenset({DEVICE, CHANNEL, "time"} | self._promoted)

        @lru_cache(maxsize=32_768)
        def head(measurement: str, device: str, channel: str, more: tuple[tuple[str, str], ...]) -> str:
            tags = sorted([(DEVICE, device), *([(CHANNEL, channel)] if channel else []), *more])
            name = _stored(measurement).replace(",", "\\,").replace(" ", "\\ ")
            return name + "".join(f",{_escaped(tag)}={_escaped(_stored(value))}" for tag, value in tags) + " "

        @lru_cache(maxsize=32_768)
        def field(measurement: str, metric: str) -> tuple[str, str | None]:
            return f"{_escaped(_stored(metric, reserved))}=", integer_type(types, measurement, metric)

        self._head, self._field = head, field

    def line(self, reading: Reading) -> str:
        """One point, '' when there is nothing to store; raises `RejectedError` where no point holds the reading."""
        field, measurement = self._field, reading.measurement
        fields = []
        for metric, value in reading.values.items():
            key, integer = field(measurement, metric)
            if value.__class__ is float and integer is None and isfinite(value):
                fields.append(f"{key}{value!r}")
            elif value is not None:
                fields.append(key + _value(metric, value, integer))
        promoted: tuple[tuple[str, str], ...] = ()
        tags = reading.tags
        if tags and self._promoted:
            promoted = tuple((name, tags[name]) for name in self._tags if name in tags)
        if meta := meta_text(reading, leave_out=self._promoted):
            fields.append(_META_FIELD + _text(meta))
        if not fields:
            return ""
        time = (reading.time - _EPOCH) // _MICROSECOND
        if not -_LAST_US <= time <= _LAST_US:
            raise RejectedError("bad_timestamp", f"{reading.time.isoformat()} is outside InfluxDB's years 1677 to 2262")
        device, channel = reading.device_id, reading.channel
        head = self._head if len(device) + len(channel) <= _REMEMBERED_CHARS else self._head.__wrapped__
        return f"{head(measurement, device, channel, promoted)}{','.join(fields)} {time}"


def _value(metric: str, value: Value, integer: str | None) -> str:
    """A value as line protocol has it; `integer` is the integer type set for the metric."""
    if integer is not None:
        if out_of_type(integer, value):
            raise RejectedError("bad_type", f"{metric} is {value}, which is no {integer}")
        return f"{value}i"
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return _text(value)
        case float():  # the finite ones were dealt with
            raise RejectedError("bad_type", f"{metric} is {value}, which is not a finite number")
        case int() if not -EXACT_INTEGER <= value <= EXACT_INTEGER:
            raise RejectedError(
                "integer_too_large",
                f"{metric} is {value}, beyond 2^53, which a float would round: set IOTFLOW_VALUE_TYPES={metric}=INT64",
            )
    return repr(value)


# -- the server --------------------------------------------------------------------------------------------------------

Pairs = Sequence[tuple[str, str]]
#: So much of an answer is repeated.
_SAID_CHARS: Final = 500


class AnswerError(Exception):
    """The server answered something else than success; `words` are its own, '' when it is not InfluxDB that speaks."""

    def __init__(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        said: dict[str, Any] = {}
        with suppress(msgspec.DecodeError, UnicodeDecodeError):
            said = msgspec.json.decode(body, type=dict)
        self.status = status
        self.words = str(said.get("message") or said.get("error") or "")
        #: InfluxDB 2's own; what stands in front of it may answer with JSON, too.
        self.code = str(said.get("code") or "")
        self.headers = headers or {}
        super().__init__(f"HTTP {status}: {(self.words or body[:_SAID_CHARS].decode(errors='replace'))[:_SAID_CHARS]}")


@cache
def _driver() -> tuple[Any, Any]:
    """The driver's client and its exception."""
    from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync  # noqa: PLC0415  costs 50 MB
    from influxdb_client.rest import ApiException  # noqa: PLC0415

    return InfluxDBClientAsync, ApiException


def _client(settings: Settings) -> Any:
    """The driver's client, which keeps connections and never tries anything again."""
    token = settings.token.get_secret_value() if settings.token else None
    client = _driver()[0](
        settings.url,
        token=token,
        org=settings.org,
        timeout=int(settings.write_timeout * 900),  # ms, so that it ends before delivery's own
        allow_redirects=False,  # a redirected POST becomes a GET, whose success means nothing
        verify_ssl=settings.ssl_verify,
        ssl_ca_cert=settings.ssl_ca,
        cert_file=settings.ssl_cert,
        cert_key_file=settings.ssl_key,
        # Without a password OpenSSL would ask for one at the terminal.
        cert_key_password=settings.ssl_key_password.get_secret_value() if settings.ssl_key_password else "",
    )
    if token and settings.version == "3":
        client.api_client.set_default_header("Authorization", f"Bearer {token}")
    return client


class Payload(msgspec.Struct, frozen=True):
    """A batch as it is sent, its lines, and which of the batch's readings each is of."""

    body: bytes
    lines: list[str]
    places: list[int]


class InfluxSink:
    """`sinks.base.Sink` for InfluxDB 2.x; 3 can be written to, which was not tried on a real server.

    Every name is stored, in a form of ours where line protocol has none (`_stored`). A null is not stored, and does
    not take away a value that is; nor does a reading without `_meta` take away that of an earlier one of its instant.
    Limits: measurement, tags and metric together 65,535 bytes, a text 1 MiB, the years 1677 to 2262; a metric has one
    type in all of a measurement; integers beyond 2^53 need an INT32 or INT64 override.
    """

    name = "influxdb"

    def __init__(self, settings: Settings, types: Mapping[str, str] | None = None) -> None:
        self.settings = settings
        self._lines = Lines(settings.tags, types)
        self._client: Any = None

    async def open(self) -> None:
        """Connect, and see that a write would be accepted. Raises what `classify` knows."""
        await self.connect()
        try:
            await self.probe()
        except BaseException:
            await self.close()
            raise

    async def connect(self) -> None:
        """Make the client, without asking the server for anything."""
        await self.close()
        self._client = _client(self.settings)

    async def close(self) -> None:
        """Drop the connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def ask(  # noqa: PLR0913  what a request consists of
        self, method: str, path: str, query: Pairs = (), headers: Pairs = (), body: Any = None, form: Pairs = ()
    ) -> tuple[int, bytes]:
        """Status and body of the answer; raises `AnswerError` for a status that is not 2xx."""
        if self._client is None:
            raise ConnectionError("not connected")
        api = self._client.api_client
        try:
            await api.call_api(path, method, {}, list(query), dict(headers), body, list(form))
        except _driver()[1] as error:
            raise AnswerError(error.status, error.body or b"", error.headers) from None
        return api.last_response.status, api.last_response.data

    async def probe(self) -> None:
        """Write nothing: the server looks at token, organization, bucket and rights, though not at its disk."""
        try:
            await self._post(self._body([]))
        except AnswerError as error:
            if "write was empty" not in error.words:  # InfluxDB 3's complaint, when all else is well
                raise

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
        return Prepared(Payload(self._body(lines), lines, places), len(lines), rejected)

    def _body(self, lines: Sequence[str]) -> bytes:
        body = "\n".join(lines).encode()
        # The driver's own, at level 9, takes eight times as long, and would do so while the server waits.
        return zlib.compress(body, 1, _GZIP) if self.settings.gzip else body

    async def write(self, payload: Payload) -> None:
        """One request; it is answered when the points are in the server's log on disk."""
        if not payload.lines:
            return
        try:
            await self._post(payload.body)
        except AnswerError as error:
            if refused := refused_lines(error, payload.lines):
                raise PartialWriteError({payload.places[line]: why for line, why in refused.items()}) from error
            raise

    async def _post(self, body: bytes) -> None:
        settings = self.settings
        query = (("org", settings.org), ("bucket", settings.bucket), ("precision", "us"))
        status, answer = await self.ask("POST", "/api/v2/write", query, _HEADERS[settings.gzip], body)
        if status != HTTPStatus.NO_CONTENT:  # the only one that says that all of it is stored
            raise AnswerError(status, answer)

    def classify(self, error: BaseException) -> Verdict:
        """By HTTP status; what is not known is tried again, since a lost row is worse than a late one."""
        if isinstance(error, AnswerError):
            return _classify_answer(error, self.settings)
        if isinstance(error, ssl.SSLCertVerificationError):
            return Fatal(f"the certificate of {self.settings.url} is not trusted ({error}): set INFLUXDB_SSL_CA")
        if type(error) is ssl.SSLError:  # from reading the files: what comes from the network has the driver's types
            what = "INFLUXDB_SSL_CA, INFLUXDB_SSL_CERT and INFLUXDB_SSL_KEY"
            return Fatal(f"{what} do not work ({error}): they are PEM files; INFLUXDB_SSL_KEY_PASSWORD opens a key")
        return Retry(f"{type(error).__name__}: {error}")

    # -- reading back: by InfluxQL, since Flux answers with CSV that alters line breaks in texts -----------------------

    def kept(self, reading: Reading) -> Reading | None:
        """All but nulls; of a reading with nothing else, what it says besides its values."""
        found = without_nulls(reading)
        return found if found.values or meta_text(found, leave_out=frozenset(self.settings.tags)) else None

    async def count(self) -> int:
        """How many values are stored."""
        measurements = {series["name"] for series in await self._select(_DEVICES)}
        queries = [f"SELECT count(*::field) FROM {_quoted(name)}" for name in measurements]  # noqa: S608  quoted
        return sum(
            count
            for series in await self._select(";".join(queries))
            for column, count in zip(series["columns"][1:], series["values"][0][1:], strict=True)
            if column != f"count_{META}"
        )

    async def scan(self, where: Selection = EVERYTHING) -> AsyncIterator[Reading]:
        """Every stored reading in (device, time, channel, measurement) order; `start` inclusive, `end` exclusive.

        Device by device. Where a metric's type was changed between two of the server's shards, texts and booleans
        that share it with numbers are not seen.
        """
        measurement, device_id, start, end = where.measurement, where.device_id, where.start, where.end
        places: dict[str, list[str]] = {}
        asked = {} if device_id is None else {"device": _stored(device_id)}
        for series in await self._select(f"{_DEVICES} WHERE {DEVICE} = $device" if asked else _DEVICES, **asked):
            if measurement in {None, _original(series["name"])}:
                for _, device in series["values"]:
                    places.setdefault(device, []).append(series["name"])
        since = f" AND time >= {_nanoseconds(start)}" if start else ""
        until = f" AND time < {_nanoseconds(end)}" if end else ""
        selected = f"WHERE {DEVICE} = $device{since}{until} GROUP BY *"
        for device in sorted(places, key=_original):
            queries = [f"SELECT *::field FROM {_quoted(name)} {selected}" for name in places[device]]  # noqa: S608
            found = await self._select(";".join(queries), device=device)
            for reading in heapq.merge(*map(_readings, found), key=attrgetter("time", "channel", "measurement")):
                yield reading

    async def _select(self, query: str, **parameters: str) -> list[dict[str, Any]]:
        """The series that InfluxQL statements answer with."""
        if self.settings.version == "3":
            raise NotImplementedError("what InfluxDB 3 stores cannot be read back yet")
        if not query:
            return []
        given = msgspec.json.encode(parameters).decode()
        form = (("q", query), ("db", self.settings.bucket), ("epoch", "u"), ("params", given))
        _, answer = await self.ask("POST", "/query", headers=_ASK_HEADERS, form=form)
        found: list[dict[str, Any]] = []
        for result in msgspec.msgpack.decode(answer)["results"]:
            if "error" in result:
                raise ConnectionError(f"{self.settings.bucket} cannot be read: {result['error']}")
            found += result["series"]
        return found


#: What `zlib` calls gzip.
_GZIP: Final = 31
_TEXT: Final = ("Content-Type", "text/plain; charset=utf-8")
_HEADERS: Final = {False: (_TEXT,), True: (_TEXT, ("Content-Encoding", "gzip"))}
_ASK_HEADERS: Final = (("Content-Type", "application/x-www-form-urlencoded"), ("Accept", "application/x-msgpack"))
_DEVICES: Final = f'SHOW TAG VALUES WITH KEY = "{DEVICE}"'


def _quoted(stored: str) -> str:
    return '"' + stored.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _nanoseconds(time: datetime) -> int:
    return max(-(2**63) + 1, min((time - _EPOCH) // _MICROSECOND * 1000, 2**63 - 1))


def _readings(series: Mapping[str, Any]) -> Iterator[Reading]:
    """The readings that the points of one series were made from."""
    measurement = _original(series["name"])
    tags = {name: _original(value) for name, value in series["tags"].items() if value}
    device, channel = tags.pop(DEVICE), tags.pop(CHANNEL, "")
    metrics = [None if column == META else _original(column) for column in series["columns"][1:]]
    for time, *values in series["values"]:
        text = ""
        found: dict[str, Value] = {}
        for metric, value in zip(metrics, values, strict=True):
            if metric is None:
                text = value or ""
            elif value is not None:
                found[metric] = value
        said = apply_meta(text, measurement)
        said["tags"] = {**tags, **said["tags"]}
        yield Reading(measurement, device, _EPOCH + timedelta(microseconds=time), found, channel, **said)


def refused_lines(answer: AnswerError, lines: Sequence[str]) -> dict[int, Rejected]:
    """The lines, by index, that an answer says can never be stored; none unless it is certain about each it names."""
    if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and len(lines) == 1:
        return {0: Rejected("too_large", f"a single line of {len(lines[0].encode())} bytes: {answer.words}")}
    if answer.status != HTTPStatus.BAD_REQUEST:
        return {}
    refused: dict[int, Rejected] = {}
    numbers: dict[str, list[int]] = {}
    for number, line in enumerate(lines):
        numbers.setdefault(line, []).append(number)
    first, *parts = f"\n{answer.words}".split("\nunable to parse '")
    for part in parts:
        line, _, why = part.rpartition("': ")
        if first or line not in numbers:
            return {}
        refused |= dict.fromkeys(numbers[line], Rejected("refused", why))
    return refused


#: The longest that a server's own wish to be left alone is heeded, in seconds.
_PATIENCE_S: Final = 60.0


def _classify_answer(answer: AnswerError, settings: Settings) -> Verdict:
    status = answer.status
    place = f"bucket {settings.bucket!r} of {settings.org!r} at {settings.url}"
    fatal = {
        401: f"{settings.url} does not know the token: set INFLUXDB_TOKEN or INFLUXDB_TOKEN_FILE",
        403: f"the token may not write to {place}: give it that right, or set INFLUXDB_TOKEN or INFLUXDB_TOKEN_FILE",
        404: f"no {place}: run iotflow schema apply, or set INFLUXDB_BUCKET, INFLUXDB_ORG or INFLUXDB_URL",
    }.get(status)
    if 300 <= status < 400:  # noqa: PLR2004  redirections
        fatal = f"{settings.url} redirects to {answer.headers.get('Location')}: set INFLUXDB_URL to where InfluxDB is"
    if fatal is not None:
        return Fatal(f"{fatal} ({answer})")
    if status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
        return Retry(str(answer), smaller=True)
    # 201 is how some InfluxDB 3 say that they stored a part of it; a code is what no gateway's own JSON has.
    ours = status == HTTPStatus.CREATED or answer.code or settings.version == "3"
    if status in {201, 400, 422} and answer.words and ours:
        return Reject(Rejected("refused", str(answer)))
    after = answer.headers.get("Retry-After", "")
    return Retry(str(answer), after_s=min(float(after), _PATIENCE_S) if after.isdecimal() else None)


async def _apply(settings: Settings) -> list[str]:
    """Make the bucket, unless it is there; returns what to tell the user.

    May be run again. Raises what `InfluxSink.classify` knows.
    """
    if settings.version == "3":
        return [f"{settings.bucket}: InfluxDB 3 makes a database when it is first written to"]
    sink, org = InfluxSink(settings), ("org", settings.org)
    await sink.connect()
    try:
        try:
            await sink.ask("GET", _BUCKETS, (org, ("name", settings.bucket)))
        except AnswerError as error:
            if error.status != HTTPStatus.NOT_FOUND:
                raise
        else:
            return [f"{settings.bucket}: bucket is there; its retention is left as it is"]
        found = msgspec.json.decode((await sink.ask("GET", "/api/v2/orgs", (org,)))[1])["orgs"]
        if not found:
            raise AnswerError(403, b'{"message": "it may not see the organization, and so not make a bucket in it"}')
        expire = {"type": "expire", "everySeconds": settings.retention_days * 86_400}
        wanted = {"orgID": found[0]["id"], "name": settings.bucket, "retentionRules": [expire]}
        await sink.ask("POST", _BUCKETS, body=wanted)
    finally:
        await sink.close()
    kept = f"{settings.retention_days} d" if settings.retention_days else "for ever"
    return [f"{settings.bucket}: bucket that keeps its points {kept}"]


async def apply_schema(settings: Settings, types: Mapping[str, str] | None = None) -> SchemaPlan:  # noqa: ARG001
    """Make what is missing; returns what to tell the user. May be run again. Raises what the sink's classify knows."""
    return SchemaPlan("", notes=await _apply(settings))


_BUCKETS: Final = "/api/v2/buckets"
#: What the registry of sinks makes one with.
Sink = InfluxSink
