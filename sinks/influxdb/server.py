"""The connection to InfluxDB's HTTP API, and what its answers mean."""

import re
import ssl
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import cache
from http import HTTPStatus
from typing import Any, Final

import msgspec

from schemas.reading import Rejected
from schemas.reasons import Reason
from sinks.base import Fatal, Reject, Retry, Verdict
from sinks.influxdb.lines import EPOCH
from sinks.influxdb.settings import Settings

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
        #: The bucket that was written to.
        self.bucket = ""
        super().__init__(f"HTTP {status}: {(self.words or body[:_SAID_CHARS].decode(errors='replace'))[:_SAID_CHARS]}")


class SetupError(Exception):
    """Something that a person must put right before a schema can be compared or made; says what."""


@cache
def _driver() -> tuple[Any, Any]:
    """The driver's client and its exception."""
    from influxdb_client.client.influxdb_client_async import InfluxDBClientAsync  # noqa: PLC0415  costs 50 MB
    from influxdb_client.rest import ApiException  # noqa: PLC0415

    return InfluxDBClientAsync, ApiException


def _client(settings: Settings) -> Any:
    """The driver's client, which keeps connections and never tries anything again."""
    token = settings.token.get_secret_value() if settings.token else None
    # Of a body beyond 1 MiB, which the driver gives it no other way; the loop is not kept busy by it.
    warnings.filterwarnings("ignore", "Sending a large body directly", ResourceWarning)
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


class Link:
    """The server, asked one request at a time."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._client: Any = None

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


def refused_lines(answer: AnswerError, lines: Sequence[str]) -> dict[int, Rejected]:
    """The lines, by index, that an answer says can never be stored; none unless it is certain about each it means."""
    if answer.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE and len(lines) == 1:
        return {0: Rejected("too_large", f"a single line of {len(lines[0].encode())} bytes: {answer.words}")}
    if answer.status == HTTPStatus.UNPROCESSABLE_ENTITY:
        return _expired_lines(answer, lines)
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


#: From 2.7 on: all that was dropped is older than the retention, when the newest of it is.
_EXPIRED: Final = re.compile(
    r"failure writing points to database: partial write: dropped (?P<count>\d+) points outside retention policy of "
    r"duration (?P<kept>\S+) - oldest .*, newest .* dropped because it violates a Retention Policy Lower Bound at "
    r"(?P<since>\S+) dropped=(?P=count) for database: \S+ for retention policy: \S+",
    re.DOTALL,
)
#: Before 2.7.
_BEYOND: Final = "partial write: points beyond retention policy dropped="


def _expired_lines(answer: AnswerError, lines: Sequence[str]) -> dict[int, Rejected]:
    """What was dropped for its age are the oldest lines, as many as the answer says; all others were stored."""
    said = _EXPIRED.fullmatch(answer.words)
    if said is None:
        return {}
    times = [int(line.rpartition(" ")[2]) for line in lines]
    oldest = sorted(range(len(lines)), key=times.__getitem__)
    count = int(said["count"])
    if not 0 < count <= len(lines) or (count < len(lines) and times[oldest[count - 1]] == times[oldest[count]]):
        return {}
    kept = f"the bucket keeps {said['kept']}, since {said['since']}"
    return {
        number: Rejected("too_old", f"{(EPOCH + timedelta(microseconds=times[number])).isoformat()} is too old: {kept}")
        for number in oldest[:count]
    }


#: For a value of another type than the field's; of several points, the answer is about one.
CONFLICT: Final = "field type conflict"
#: The longest that a server's own wish to be left alone is heeded, in seconds.
_PATIENCE_S: Final = 60.0


def classify(error: BaseException, settings: Settings) -> Verdict:
    """By HTTP status; what is not known is tried again, since a lost row is worse than a late one."""
    if isinstance(error, AnswerError):
        return _classify_answer(error, settings)
    if isinstance(error, SetupError):
        return Fatal(str(error))
    if isinstance(error, ssl.SSLCertVerificationError):
        return Fatal(f"the certificate of {settings.url} is not trusted ({error}): set INFLUXDB_SSL_CA")
    if type(error) is ssl.SSLError:  # from reading the files: what comes from the network has the driver's types
        what = "INFLUXDB_SSL_CA, INFLUXDB_SSL_CERT and INFLUXDB_SSL_KEY"
        return Fatal(f"{what} do not work ({error}): they are PEM files; INFLUXDB_SSL_KEY_PASSWORD opens a key")
    return Retry(f"{type(error).__name__}: {error}")


def _classify_answer(answer: AnswerError, settings: Settings) -> Verdict:
    status = answer.status
    place = f"bucket {(answer.bucket or settings.bucket)!r} of {settings.org!r} at {settings.url}"
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
        return Reject(Rejected(_reason(answer.words), str(answer)))
    after = answer.headers.get("Retry-After", "")
    return Retry(str(answer), after_s=min(float(after), _PATIENCE_S) if after.isdecimal() else None)


def _reason(words: str) -> Reason:
    if CONFLICT in words:
        return "type_conflict"
    return "too_old" if _EXPIRED.fullmatch(words) or _BEYOND in words else "refused"
