"""The one place that turns the Kafka settings into a client's arguments, and its failures into sentences."""

import asyncio
import json
import socket
import ssl
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import quote_plus, urlsplit

from aiokafka import errors
from aiokafka.abc import AbstractTokenProvider
from pydantic import SecretStr

from app.settings import Kafka, Settings

_TLS: Final = frozenset({"SSL", "SASL_SSL"})
_SASL: Final = frozenset({"SASL_PLAINTEXT", "SASL_SSL"})
_OAUTH: Final = "OAUTHBEARER"
#: A token is renewed this long before it expires; one that lives under five minutes, in its last fifth.
_RENEW_SECONDS: Final = 60.0
#: The life of a token whose server does not say (RFC 6749 only recommends that it does).
_ASSUMED_LIFE: Final = 60.0
_TOKEN_TIMEOUT: Final = 10.0


class ConfigError(ValueError):
    """Certificates or keys that no client can use; the text names the variable."""


class TokenError(errors.KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """No OAuth token could be had. A KafkaError, or it would end aiokafka's background tasks instead of a retry."""

    retriable = True


class UnreachableError(errors.KafkaConnectionError):  # type: ignore[misc]  # aiokafka has no types
    """No bootstrap server let us in; `server` is the one that `__cause__` is about."""

    def __init__(self, server: str, cause: BaseException) -> None:
        super().__init__(f"{server}: {cause or type(cause).__name__}")
        self.server = server
        self.__cause__ = cause


class Tokens(AbstractTokenProvider):  # type: ignore[misc]  # aiokafka has no types
    """OAuth tokens by client-credentials grant, kept until shortly before they expire.

    One provider may serve clients on several event loops (Faust's consumer has a thread of its own), so it holds
    neither a lock nor a session between calls; two loops may then fetch at once, which harms nobody.
    """

    def __init__(
        self,
        url: str,
        client_id: str,
        secret: SecretStr,
        *,
        ca: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._client_id = client_id
        self._secret = secret
        # The identity provider may be public while the brokers' CA is private: both are trusted.
        self._tls = ssl.create_default_context()
        if ca is not None:
            try:
                self._tls.load_verify_locations(cafile=ca)
            except (OSError, ValueError) as error:
                raise _bad_ca(ca, error) from error
        self._clock = clock
        self._token: tuple[str, float, float] | None = None

    async def token(self) -> str:
        """A token that is still valid; raises `TokenError`."""
        held = self._token
        now = self._clock()
        if held is not None and now < held[1]:
            return held[0]
        try:
            value, life = await self._fetch()
        except TokenError:
            if held is not None and now < held[2]:
                return held[0]  # in its last fifth, but good: a provider that is away for a moment is not felt
            raise
        self._token = (value, now + max(life - _RENEW_SECONDS, life * 0.8), now + life)
        return value

    async def _fetch(self) -> tuple[str, float]:
        import aiohttp  # noqa: PLC0415  slow to import, and most deployments have no OAuth

        login = f"{quote_plus(self._client_id)}:{quote_plus(self._secret.get_secret_value())}"
        try:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_TOKEN_TIMEOUT)) as session,
                session.post(
                    self._url,
                    data={"grant_type": "client_credentials"},
                    headers={
                        "Authorization": f"Basic {b64encode(login.encode()).decode()}",
                        "Accept": "application/json",
                    },
                    ssl=self._tls,
                    allow_redirects=False,  # the secret goes where the setting says and nowhere else
                ) as response,
            ):
                status, body = response.status, await response.read()
        except TimeoutError as error:
            raise TokenError(f"{self._where} did not answer within {_TOKEN_TIMEOUT:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise TokenError(f"{self._where} cannot be asked: {error}") from error
        return self._read(status, body)

    def _read(self, status: int, body: bytes) -> tuple[str, float]:
        try:
            answer = json.loads(body)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            answer = {}
        token = answer.get("access_token")
        if status == 200 and isinstance(token, str) and token:  # noqa: PLR2004  HTTP OK
            try:
                life = float(answer.get("expires_in") or _ASSUMED_LIFE)
            except (TypeError, ValueError):
                life = _ASSUMED_LIFE
            return token, life
        # Only the two fields that are made for people: a body may hold anything.
        said = " ".join(str(answer[name])[:200] for name in ("error", "error_description") if answer.get(name))
        raise TokenError(f"{self._where} answered {status} to client {self._client_id!r}: {said or 'no access_token'}")

    @property
    def _where(self) -> str:
        # Without query and user: either may carry a secret.
        parts = urlsplit(self._url)
        return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def client_args(settings: Settings) -> dict[str, Any]:
    """Keyword arguments for any aiokafka client: producer, consumer or admin. Raises `ConfigError`."""
    kafka = settings.kafka
    args: dict[str, Any] = {
        "bootstrap_servers": kafka.bootstrap_servers.split(","),
        "security_protocol": kafka.security_protocol,
        **_sasl_args(kafka),
    }
    if kafka.security_protocol in _TLS:
        args["ssl_context"] = _ssl_context(kafka)
    return args


def faust_args(settings: Settings, scheme: str = "iotflow") -> dict[str, Any]:
    """Keyword arguments for `faust.App`: where the brokers are and how they let us in. Raises `ConfigError`."""
    from faust import auth  # noqa: PLC0415  half a second that only a worker should pay

    args = client_args(settings)
    context = args.get("ssl_context")
    credentials: auth.Credentials | None = None
    # Faust derives the protocol from what it is given: with a context it is SSL or SASL_SSL, without SASL_PLAINTEXT.
    if "sasl_oauth_token_provider" in args:
        credentials = auth.OAuthCredentials(oauth_cb=args["sasl_oauth_token_provider"], ssl_context=context)
    elif "sasl_mechanism" in args:
        credentials = auth.SASLCredentials(
            username=args["sasl_plain_username"],
            password=args["sasl_plain_password"],
            mechanism=args["sasl_mechanism"],
            ssl_context=context,
        )
    elif context is not None:
        credentials = auth.SSLCredentials(context)
    return {
        "broker": [f"{scheme}://{server}" for server in args["bootstrap_servers"]],
        "broker_credentials": credentials,
    }


async def probe(settings: Settings, *, timeout: float = 10.0) -> None:
    """Log in at one bootstrap server, or raise why none would let us.

    aiokafka only logs why a server refused it and then raises "Unable to bootstrap" without a cause, and Faust's
    worker the same; so commands and workers ask here first.
    """
    args = client_args(settings)
    failures: list[UnreachableError] = []
    for server in args.pop("bootstrap_servers"):
        try:
            async with asyncio.timeout(timeout):
                await _log_in(server, args)
        except (OSError, errors.KafkaError, ValueError) as error:
            failures.append(UnreachableError(server, error))
        else:
            return
    # A server that is there and refuses says more than one that is not there.
    raise next((failure for failure in failures if not _is_absent(failure.__cause__)), failures[0])


async def _log_in(server: str, args: dict[str, Any]) -> None:
    from aiokafka.conn import AIOKafkaConnection, get_ip_port_afi  # noqa: PLC0415  with the clients, where one is made
    from aiokafka.protocol.metadata import MetadataRequest  # noqa: PLC0415

    host, port, _ = get_ip_port_afi(server)
    connection = AIOKafkaConnection(host, port, **args)
    try:
        await connection.connect()
        metadata = await connection.send(MetadataRequest([]))
        if not metadata.brokers:
            # aiokafka takes every answer to a token for a success. A broker that refused it then answers anything
            # else with an error, which in this response is no brokers, and hangs up.
            raise errors.SaslAuthenticationFailed("logged in, but the metadata name no broker")
    finally:
        closed = connection.close()
        if connection._protocol is not None:  # noqa: SLF001  without it nothing was opened, and nothing closes
            # Not for ever: a TLS peer that has gone silent is given half a minute to say goodbye.
            await asyncio.wait([closed], timeout=1.0)


@asynccontextmanager
async def admin(settings: Settings) -> AsyncIterator[Any]:
    """An `AIOKafkaAdminClient`, started; raises what `probe` raises."""
    from aiokafka.admin import AIOKafkaAdminClient  # noqa: PLC0415  with the clients, where one is made

    await probe(settings)
    client = AIOKafkaAdminClient(**client_args(settings))
    try:
        await client.start()
        yield client
    finally:
        await client.close()


def explain(error: BaseException, settings: Settings) -> str:
    """What went wrong with Kafka and what to check, as a sentence or two without secrets."""
    if isinstance(error, ConfigError):
        return str(error)
    kafka = settings.kafka
    chain = list(_chain(error))
    server = next((e.server for e in chain if isinstance(e, UnreachableError)), None)
    how: str = kafka.security_protocol
    if how in _SASL:
        who = kafka.sasl_oauth_client_id if kafka.sasl_mechanism == _OAUTH else kafka.sasl_username
        how += f", {kafka.sasl_mechanism} as {who!r}"
    # The most telling kind of all that is in the chain, and of one kind the cause before its consequence.
    for kinds, sentence in _SENTENCES:
        for cause in reversed(chain):
            if isinstance(cause, kinds):
                return f"Kafka at {server or kafka.bootstrap_servers} ({how}) {sentence(cause, kafka)}"
    return f"Kafka at {server or kafka.bootstrap_servers} ({how}): {type(error).__name__}: {error}"


def _sasl_args(kafka: Kafka) -> dict[str, Any]:
    # The settings have seen to it that what a mechanism needs is there.
    if kafka.security_protocol not in _SASL:
        return {}
    args: dict[str, Any] = {"sasl_mechanism": kafka.sasl_mechanism}
    if kafka.sasl_mechanism == _OAUTH:
        args["sasl_oauth_token_provider"] = Tokens(
            cast("str", kafka.sasl_oauth_token_url),
            cast("str", kafka.sasl_oauth_client_id),
            cast("SecretStr", kafka.sasl_oauth_client_secret),
            ca=kafka.ssl_ca,
        )
    else:
        args["sasl_plain_username"] = kafka.sasl_username
        args["sasl_plain_password"] = cast("SecretStr", kafka.sasl_password).get_secret_value()
    return args


def _ssl_context(kafka: Kafka) -> ssl.SSLContext:
    """Trusts `ssl_ca` alone when there is one, else the system's CAs; always checks the broker's name."""
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_ca)
    except (OSError, ValueError) as error:
        raise _bad_ca(kafka.ssl_ca, error) from error
    if kafka.ssl_cert is not None:
        password = kafka.ssl_key_password
        try:
            context.load_cert_chain(
                kafka.ssl_cert,
                kafka.ssl_key,
                # Never None: OpenSSL would then ask at the terminal for an encrypted key's password.
                password=lambda: "" if password is None else password.get_secret_value(),
            )
        except (OSError, ValueError) as error:
            files = f"KAFKA_SSL_CERT={kafka.ssl_cert}, KAFKA_SSL_KEY={kafka.ssl_key}"
            raise ConfigError(
                f"{files}: cannot be used ({error}); are they PEM, do they belong together, "
                "is KAFKA_SSL_KEY_PASSWORD right?"
            ) from error
    return context


def _bad_ca(path: Path | None, error: Exception) -> ConfigError:
    return ConfigError(f"KAFKA_SSL_CA={path}: cannot be used ({error}); is it there, and PEM?")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _is_absent(error: BaseException | None) -> bool:
    # A name with several addresses of which none answers is a plain OSError: asyncio joins their errors.
    return type(error) is OSError or isinstance(error, ConnectionRefusedError | socket.gaierror | TimeoutError)


def _certificate(error: BaseException, kafka: Kafka) -> str:
    trusted = "the system's CAs (KAFKA_SSL_CA is not set)" if kafka.ssl_ca is None else f"KAFKA_SSL_CA={kafka.ssl_ca}"
    why = getattr(error, "verify_message", "") or str(error)
    return (
        f"shows a certificate that is not trusted: {why}. Check that {trusted} signed it and that it names the host "
        "as KAFKA_BOOTSTRAP_SERVERS and the broker's advertised listeners do."
    )


def _handshake(error: BaseException, kafka: Kafka) -> str:
    shown = "none is sent: KAFKA_SSL_CERT is not set" if kafka.ssl_cert is None else f"sent: {kafka.ssl_cert}"
    return (
        f"did not agree on TLS: {getattr(error, 'reason', None) or error}. Check that this listener speaks TLS and, "
        f"if it asks for a client certificate ({shown}), that it accepts it."
    )


def _login(error: BaseException, kafka: Kafka) -> str:
    del error
    if kafka.sasl_mechanism == _OAUTH:
        return "refused the token of KAFKA_SASL_OAUTH_TOKEN_URL. Check its issuer, audience, scope and the clocks."
    return "refused the login. Check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD and KAFKA_SASL_MECHANISM."


def _mechanism(error: BaseException, kafka: Kafka) -> str:
    del error  # aiokafka drops what is offered instead
    return f"does not offer KAFKA_SASL_MECHANISM={kafka.sasl_mechanism}. Check what its listener enables."


def _token(error: BaseException, kafka: Kafka) -> str:
    del kafka
    return (
        f"was not asked, there is no token: {error}. Check KAFKA_SASL_OAUTH_TOKEN_URL, KAFKA_SASL_OAUTH_CLIENT_ID and "
        "KAFKA_SASL_OAUTH_CLIENT_SECRET."
    )


def _forbidden(error: BaseException, kafka: Kafka) -> str:
    del kafka
    return f"knows us but does not allow this: {error or type(error).__name__}. Check the ACLs of this user."


def _unknown_host(error: BaseException, kafka: Kafka) -> str:
    del kafka
    return f"has a host name that does not resolve ({error}). Check KAFKA_BOOTSTRAP_SERVERS."


def _refused(error: BaseException, kafka: Kafka) -> str:
    del error, kafka
    return "refuses connections: nothing listens there. Check that the broker runs and KAFKA_BOOTSTRAP_SERVERS."


def _silent(error: BaseException, kafka: Kafka) -> str:
    del error, kafka
    return (
        "did not answer in time. Check the network between here and there, and that KAFKA_SECURITY_PROTOCOL is the "
        "listener's."
    )


def _closed(error: BaseException, kafka: Kafka) -> str:
    del error
    certificate = " or it asks for a client certificate" if kafka.security_protocol in _TLS else ""
    return f"closed the connection. Mostly KAFKA_SECURITY_PROTOCOL is not what this listener speaks{certificate}."


def _unreachable(error: BaseException, kafka: Kafka) -> str:
    del kafka
    return (
        f"cannot be reached: {error}. Check that a broker runs there, KAFKA_BOOTSTRAP_SERVERS, "
        "KAFKA_SECURITY_PROTOCOL and the login."
    )


#: Kinds of errors and what to say of them, the special before the general.
_SENTENCES: Final[tuple[tuple[tuple[type[BaseException], ...], Callable[[BaseException, Kafka], str]], ...]] = (
    ((TokenError,), _token),
    ((ssl.SSLCertVerificationError,), _certificate),
    ((ssl.SSLError,), _handshake),
    ((errors.UnsupportedSaslMechanismError,), _mechanism),
    ((errors.SaslAuthenticationFailed, errors.AuthenticationFailedError), _login),
    ((errors.IllegalSaslStateError, ConnectionResetError, BrokenPipeError, EOFError), _closed),
    (
        (
            errors.TopicAuthorizationFailedError,
            errors.GroupAuthorizationFailedError,
            errors.ClusterAuthorizationFailedError,
        ),
        _forbidden,
    ),
    ((socket.gaierror,), _unknown_host),
    ((ConnectionRefusedError,), _refused),
    ((TimeoutError, errors.RequestTimedOutError), _silent),
    ((OSError, errors.KafkaConnectionError), _unreachable),
)
