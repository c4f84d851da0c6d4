"""The Kafka settings as arguments of aiokafka and Faust, and Kafka's failures as sentences."""

import asyncio
import base64
import re
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import faust
import pytest
from aiohttp import web
from aiokafka import errors
from faust.transport.drivers.aiokafka import credentials_to_aiokafka_auth, server_list
from pydantic import SecretStr

from app import kafka
from app.settings import Kafka, Settings

SCRAM = {
    "sasl_mechanism": "SCRAM-SHA-512",
    "sasl_username": "ann",
    "sasl_password": SecretStr("hush-hush"),
}
OAUTH = {
    "sasl_mechanism": "OAUTHBEARER",
    "sasl_oauth_token_url": "https://login.example/token",
    "sasl_oauth_client_id": "flow",
    "sasl_oauth_client_secret": SecretStr("hush-hush"),
}


def settings(**access: Any) -> Settings:
    return Settings(kafka=Kafka(bootstrap_servers="one:9092", **access))


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A certificate that is its own CA, with a plain and an encrypted key."""
    folder = tmp_path_factory.mktemp("pem")
    cert, key, locked = folder / "cert.pem", folder / "key.pem", folder / "locked.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=iotflow", "-days", "2", "-keyout"]
    subprocess.run([*make, key, "-out", cert], check=True, capture_output=True)
    lock = ["openssl", "pkcs8", "-topk8", "-passout", "pass:open-sesame", "-in"]
    subprocess.run([*lock, key, "-out", locked], check=True, capture_output=True)
    return SimpleNamespace(cert=cert, key=key, locked=locked)


class TestArguments:
    def test_plaintext_needs_nothing(self) -> None:
        assert kafka.client_args(settings()) == {"bootstrap_servers": ["one:9092"], "security_protocol": "PLAINTEXT"}
        assert kafka.faust_args(settings()) == {"broker": ["iotflow://one:9092"], "broker_credentials": None}

    def test_faust_reads_the_same_servers_from_our_urls(self) -> None:
        there = Settings(kafka=Kafka(bootstrap_servers="one:1, [::1]:2,kafka_3:3,10.0.0.4:4"))
        servers = kafka.client_args(there)["bootstrap_servers"]
        assert servers == ["one:1", "[::1]:2", "kafka_3:3", "10.0.0.4:4"]
        app = faust.App("servers", **kafka.faust_args(there, scheme="kafka"))
        assert server_list(app.conf.broker, 9092) == servers

    def test_tls_trusts_the_ca_alone_and_checks_names(self, pem: SimpleNamespace) -> None:
        context = kafka.client_args(settings(security_protocol="SSL", ssl_ca=pem.cert))["ssl_context"]
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
        assert context.cert_store_stats()["x509"] == 1

    def test_tls_without_a_ca_still_checks(self) -> None:
        context = kafka.client_args(settings(security_protocol="SSL"))["ssl_context"]
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname

    @pytest.mark.parametrize("protocol", ["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"])
    @pytest.mark.parametrize("login", [SCRAM, {**SCRAM, "sasl_mechanism": "PLAIN"}, OAUTH])
    def test_faust_hands_aiokafka_the_same_as_ours(
        self, protocol: str, login: dict[str, Any], pem: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        access = {"security_protocol": protocol}
        if "SASL" in protocol:
            access |= login
        if "SSL" in protocol:
            access |= {"ssl_ca": pem.cert, "ssl_cert": pem.cert, "ssl_key": pem.key}
        there = settings(**access)
        args = kafka.client_args(there)
        monkeypatch.setattr(kafka, "client_args", lambda _: args)
        given = credentials_to_aiokafka_auth(kafka.faust_args(there)["broker_credentials"])
        wanted = {"ssl_context": None, **args} if "SASL" in protocol else dict(args)
        del wanted["bootstrap_servers"]
        assert given == wanted

    def test_no_secret_in_what_faust_logs(self) -> None:
        app = faust.App("secrets", **kafka.faust_args(settings(security_protocol="SASL_PLAINTEXT", **SCRAM)))
        assert "hush-hush" not in f"{app.conf.broker} {app.conf.broker_credentials!r} {app.conf!r}"


class TestBadFiles:
    @pytest.mark.parametrize("protocol", [{"security_protocol": "SSL"}, {"security_protocol": "SASL_SSL", **OAUTH}])
    def test_a_ca_that_is_none(self, protocol: dict[str, Any]) -> None:
        there = settings(**protocol, ssl_ca=Path(__file__))
        with pytest.raises(kafka.ConfigError, match=r"KAFKA_SSL_CA=.*PEM") as raised:
            kafka.client_args(there)
        assert kafka.explain(raised.value, there) == str(raised.value)

    def test_an_encrypted_key_is_opened_and_never_asked_for(self, pem: SimpleNamespace) -> None:
        locked = {"security_protocol": "SSL", "ssl_cert": pem.cert, "ssl_key": pem.locked}
        kafka.client_args(settings(**locked, ssl_key_password=SecretStr("open-sesame")))
        for password in (None, SecretStr("wrong-sesame")):
            with pytest.raises(kafka.ConfigError, match="KAFKA_SSL_KEY_PASSWORD") as raised:
                kafka.client_args(settings(**locked, ssl_key_password=password))
            assert "sesame" not in str(raised.value)


@asynccontextmanager
async def identity_provider(answer: Callable[[web.Request], Awaitable[web.Response]]) -> AsyncIterator[str]:
    """A real HTTP server for tokens; gives its URL."""
    app = web.Application()
    app.router.add_post("/token", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    finally:
        await runner.cleanup()


class Clock:
    """A clock that stands still until it is moved."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class TestTokens:
    async def test_asks_by_client_credentials(self) -> None:
        seen: list[Any] = []

        async def answer(request: web.Request) -> web.Response:
            seen.extend((request.headers["Authorization"], dict(await request.post())))
            return web.json_response({"access_token": "t", "expires_in": 300})

        async with identity_provider(answer) as url:
            assert await kafka.Tokens(url, "flow:1", SecretStr("a b")).token() == "t"
        # RFC 6749 2.3.1: form-encoded, then Basic.
        assert seen == ["Basic " + base64.b64encode(b"flow%3A1:a+b").decode(), {"grant_type": "client_credentials"}]

    @pytest.mark.parametrize(
        ("expires_in", "fresh_for"), [(3600, 3540), (300, 240), (100, 80), ("3600", 3540), (None, 48), ("soon", 48)]
    )
    async def test_keeps_a_token_until_shortly_before_it_expires(self, expires_in: Any, fresh_for: float) -> None:
        served = 0

        async def answer(_: web.Request) -> web.Response:
            nonlocal served
            served += 1
            return web.json_response({"access_token": f"t{served}", "expires_in": expires_in})

        clock = Clock()
        async with identity_provider(answer) as url:
            tokens = kafka.Tokens(url, "flow", SecretStr("s"), clock=clock)
            assert await tokens.token() == "t1"
            clock.now += fresh_for - 1
            assert await tokens.token() == "t1"
            clock.now += 2
            assert await tokens.token() == "t2"

    async def test_a_short_outage_of_the_provider_is_not_felt(self) -> None:
        clock = Clock()

        async def answer(_: web.Request) -> web.Response:
            return web.json_response({"access_token": "t", "expires_in": 100})

        async with identity_provider(answer) as url:
            tokens = kafka.Tokens(url, "flow", SecretStr("s"), clock=clock)
            await tokens.token()
        clock.now += 99
        assert await tokens.token() == "t"
        clock.now += 2
        with pytest.raises(kafka.TokenError):
            await tokens.token()

    async def test_serves_several_event_loops(self) -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.json_response({"access_token": "t", "expires_in": 1})

        clock = Clock()
        async with identity_provider(answer) as url:
            tokens = kafka.Tokens(url, "flow", SecretStr("s"), clock=clock)
            for _ in range(2):
                assert await tokens.token() == "t"
                clock.now += 2
                assert await asyncio.to_thread(lambda: asyncio.run(tokens.token())) == "t"
                clock.now += 2

    @pytest.mark.parametrize(
        ("response", "says"),
        [
            (
                {"status": 401, "body": b'{"error": "invalid_client", "error_description": "no such client"}'},
                "answered 401 to client 'flow': invalid_client no such client",
            ),
            ({"status": 500, "body": b"<h1>hush-hush</h1>"}, "answered 500 to client 'flow': no access_token"),
            ({"status": 200, "body": b"[]"}, "no access_token"),
            ({"status": 200, "body": b'{"access_token": ""}'}, "no access_token"),
            ({"status": 302, "headers": {"Location": "http://127.0.0.1:1/"}}, "answered 302"),
        ],
    )
    async def test_says_what_the_provider_said(self, response: dict[str, Any], says: str) -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(**response)

        async with identity_provider(answer) as url:
            with pytest.raises(kafka.TokenError) as raised:
                await kafka.Tokens(url, "flow", SecretStr("hush-hush")).token()
        sentence = kafka.explain(raised.value, settings(security_protocol="SASL_SSL", **OAUTH))
        assert says in sentence
        assert "KAFKA_SASL_OAUTH_CLIENT_SECRET" in sentence
        assert "hush-hush" not in sentence

    async def test_a_provider_that_is_away_is_not_taken_for_kafka(self) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            url = f"http://user:hush-hush@127.0.0.1:{unused.getsockname()[1]}/token?secret=hush-hush"
            with pytest.raises(kafka.TokenError) as raised:
                await kafka.Tokens(url, "flow", SecretStr("hush-hush")).token()
        sentence = kafka.explain(raised.value, settings(security_protocol="SASL_SSL", **OAUTH))
        assert "there is no token" in sentence
        assert "hush-hush" not in sentence
        # aiokafka goes on after errors of this kind only.
        assert isinstance(raised.value, errors.KafkaError)


def caused(cause: BaseException) -> kafka.UnreachableError:
    return kafka.UnreachableError("one:9092", cause)


class TestSentences:
    @pytest.mark.parametrize(
        ("error", "says"),
        [
            (caused(ConnectionRefusedError(111, "no")), "nothing listens there"),
            (caused(OSError("Multiple exceptions: [Errno 111], [Errno 111]")), "cannot be reached: "),
            (caused(socket.gaierror(-2, "Name or service not known")), "does not resolve"),
            (caused(TimeoutError()), "did not answer in time"),
            (caused(ConnectionResetError()), "KAFKA_SECURITY_PROTOCOL is not what this listener speaks"),
            (caused(ssl.SSLCertVerificationError("unable to get issuer")), "not trusted: .*KAFKA_SSL_CA is not set"),
            (caused(ssl.SSLError(1, "alert")), "did not agree on TLS.*KAFKA_SSL_CERT is not set"),
            (caused(errors.SaslAuthenticationFailed("bad")), "refused the login. Check KAFKA_SASL_USERNAME"),
            (caused(errors.UnsupportedSaslMechanismError()), "does not offer KAFKA_SASL_MECHANISM=SCRAM-SHA-512"),
            (errors.TopicAuthorizationFailedError("raw"), "Check the ACLs"),
            (errors.KafkaConnectionError("Unable to bootstrap from []"), "cannot be reached"),
            (ValueError("odd"), "ValueError: odd"),
        ],
    )
    def test_say_what_to_check(self, error: BaseException, says: str) -> None:
        sentence = kafka.explain(error, settings(security_protocol="SASL_SSL", **SCRAM))
        assert sentence.startswith("Kafka at one:9092 (SASL_SSL, SCRAM-SHA-512 as 'ann')")
        assert re.search(says, sentence), sentence
        assert "hush-hush" not in sentence

    def test_a_refused_token_is_not_called_a_password(self) -> None:
        sentence = kafka.explain(
            caused(errors.SaslAuthenticationFailed("bad")), settings(security_protocol="SASL_SSL", **OAUTH)
        )
        assert "refused the token" in sentence
        assert "KAFKA_SASL_PASSWORD" not in sentence


def at(servers: str) -> Settings:
    return Settings(kafka=Kafka(bootstrap_servers=servers))


class TestProbe:
    async def test_a_server_that_refuses_says_more_than_one_that_is_not_there(self) -> None:
        async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            there = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            both = at(f"127.0.0.1:{unused.getsockname()[1]},{there}")
            async with server:
                with pytest.raises(kafka.UnreachableError) as raised:
                    await kafka.probe(both)
        assert raised.value.server == there
        assert "closed the connection" in kafka.explain(raised.value, both)

    async def test_a_server_that_never_answers_is_given_up(self) -> None:
        done = asyncio.Event()

        async def be_silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await done.wait()
            writer.close()

        server = await asyncio.start_server(be_silent, "127.0.0.1", 0)
        silent = at(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        async with server:
            with pytest.raises(kafka.UnreachableError) as raised:
                await kafka.probe(silent, timeout=0.2)
            done.set()
        assert "did not answer in time" in kafka.explain(raised.value, silent)
