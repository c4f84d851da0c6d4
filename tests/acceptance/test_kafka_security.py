"""Every way into a broker, on a real one: TLS with client certificates, SCRAM, PLAIN and OAuth, and being refused."""

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from aiohttp import web
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from click.testing import CliRunner

from app import kafka, topics
from app.cli import main
from app.settings import Settings, load
from deploy.local.files import default_cache
from deploy.local.kafka import Kafka, Listener
from tests.lab.apps import own_topics, unique
from tests.lab.certificates import KEY_PASSWORD, Certificates
from tests.lab.pipeline import Pipeline

USER: Final = "ann"
PASSWORD: Final = "so hush%"  # noqa: S105
#: Being refused is not a matter of time-outs: each is ten seconds or more.
QUICK: Final = 5.0

Env = dict[str, str]


@pytest.fixture(scope="module")
def broker(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kafka]:
    """One broker with a listener of each protocol; those with TLS insist on a client certificate."""
    login = "org.apache.kafka.common.security"
    properties = {
        # On, to see that nothing here creates a topic by asking for it.
        "auto.create.topics.enable": "true",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(certificates.server),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(certificates.ca),
    }
    for name in ("tls", "sasl_tls", "sasl_open"):
        listener = f"listener.name.{name}."
        properties |= {
            f"{listener}ssl.client.auth": "required",
            f"{listener}sasl.enabled.mechanisms": "SCRAM-SHA-512,PLAIN,OAUTHBEARER",
            f"{listener}scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            f"{listener}plain.sasl.jaas.config": (f'{login}.plain.PlainLoginModule required user_{USER}="{PASSWORD}";'),
            f"{listener}oauthbearer.sasl.jaas.config": (
                f'{login}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker";'
            ),
        }
    server = Kafka(
        tmp_path_factory.mktemp("broker"),
        default_cache(),
        ports={"broker": 30_192, "controller": 30_193},
        listeners=[
            Listener("TLS", "SSL", 30_194, "localhost"),
            Listener("SASL_TLS", "SASL_SSL", 30_195, "localhost"),
            Listener("SASL_OPEN", "SASL_PLAINTEXT", 30_196, "localhost"),
        ],
        properties=properties,
        scram={USER: PASSWORD},
        heap_mb=256,
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def token_url() -> AsyncIterator[str]:
    """An identity provider whose tokens the broker takes."""
    async with identity_provider(life=300) as url:
        yield url


@asynccontextmanager
async def identity_provider(life: float) -> AsyncIterator[str]:
    """A real HTTP server for tokens of the kind that Kafka takes without a signature."""

    def part(content: Mapping[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    async def answer(_: web.Request) -> web.Response:
        now = int(time.time())
        claims = {"sub": USER, "iat": now - 600, "exp": now + life}
        return web.json_response({"access_token": f"{part({'alg': 'none'})}.{part(claims)}.", "expires_in": 300})

    site = web.Application()
    site.router.add_post("/token", answer)
    runner = web.AppRunner(site)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    finally:
        await runner.cleanup()


class Ways:
    """The environment for each way into the broker."""

    def __init__(self, broker: Kafka, certificates: Certificates, token_url: str) -> None:
        self._ports = broker.ports
        self._token_url = token_url
        self._tls = {
            "KAFKA_SSL_CA": str(certificates.ca),
            "KAFKA_SSL_CERT": str(certificates.client),
            "KAFKA_SSL_KEY": str(certificates.client_key),
            "KAFKA_SSL_KEY_PASSWORD": KEY_PASSWORD,
        }

    def tls(self) -> Env:
        """By client certificate alone."""
        return {**self._at("TLS"), **self._tls, "KAFKA_SECURITY_PROTOCOL": "SSL"}

    def scram(self, mechanism: str = "SCRAM-SHA-512") -> Env:
        """By password, as SCRAM or as it is, over TLS."""
        return {
            **self._at("SASL_TLS"),
            **self._tls,
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": mechanism,
            "KAFKA_SASL_USERNAME": USER,
            "KAFKA_SASL_PASSWORD": PASSWORD,
        }

    def plain(self) -> Env:
        """By password as it is, over TLS."""
        return self.scram("PLAIN")

    def oauth(self) -> Env:
        """By token, over TLS."""
        return {
            **self._at("SASL_TLS"),
            **self._tls,
            "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
            "KAFKA_SASL_MECHANISM": "OAUTHBEARER",
            "KAFKA_SASL_OAUTH_TOKEN_URL": self._token_url,
            "KAFKA_SASL_OAUTH_CLIENT_ID": "flow",
            "KAFKA_SASL_OAUTH_CLIENT_SECRET": "hush-hush",
        }

    def scram_in_the_open(self) -> Env:
        """By password, without TLS."""
        env = {**self.scram(), **self._at("SASL_OPEN"), "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT"}
        return {name: value for name, value in env.items() if not name.startswith("KAFKA_SSL")}

    def _at(self, listener: str) -> Env:
        return {"KAFKA_BOOTSTRAP_SERVERS": f"localhost:{self._ports[listener]}"}


@pytest.fixture
def ways(broker: Kafka, certificates: Certificates, token_url: str) -> Ways:
    return Ways(broker, certificates, token_url)


def with_topics(env: Env) -> Env:
    """The environment, with topics that nobody else has."""
    return {**env, **own_topics(unique("security")), "IOTFLOW_PARTITIONS": "1"}


async def received(settings: Settings, topic: str) -> bytes | None:
    """The first record of a topic."""
    arguments = kafka.client_args(settings)
    async with AIOKafkaConsumer(topic, auto_offset_reset="earliest", **arguments) as consumer:
        value: bytes | None = (await asyncio.wait_for(consumer.getone(), 60)).value
        return value


# Stock Faust over what `faust_args` gives it: reads the raw topic and writes the decoded one.
WORKER: Final = """
import sys
import faust
from app import kafka, settings

here = settings.load()
app = faust.App(
    here.topics.decoded, **kafka.faust_args(here, scheme="kafka"), datadir=sys.argv.pop(1), web_enabled=False,
    topic_allow_declare=False, topic_disable_leader=True, value_serializer="raw", broker_commit_interval=0.2,
)
source = app.topic(next(iter(here.topics.raw)), value_type=bytes, value_serializer="raw")
target = app.topic(here.topics.decoded, value_serializer="raw")

@app.agent(source)
async def forward(values):
    async for value in values:
        await (await target.send(value=value.upper()))

app.main()
"""


@pytest.mark.parametrize("way", ["tls", "scram", "plain", "oauth", "scram_in_the_open"])
async def test_every_client_gets_in(ways: Ways, tmp_path: Path, way: str) -> None:
    """Admin, producer and consumer of aiokafka, and both of Faust's, which has a thread of its own for one."""
    env = with_topics(getattr(ways, way)())
    settings = load(env)
    async with kafka.admin(settings) as admin:
        await topics.apply(admin, await topics.plan(admin, topics.wanted(settings)))
    assert await topics.missing(settings) == []
    raw = next(iter(settings.topics.raw))
    async with AIOKafkaProducer(**kafka.client_args(settings)) as producer:
        await producer.send_and_wait(raw, b"hello")
    assert await received(settings, raw) == b"hello"

    log = (tmp_path / "log").open("wb")
    with log:
        worker = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", WORKER, str(tmp_path / "data"), "worker", "--without-web", "-l", "info"),
            env={"PATH": os.defpath, **env},
            stdout=log,
            stderr=log,
        )
        ended = asyncio.ensure_future(worker.wait())
        arrived = asyncio.ensure_future(received(settings, settings.topics.decoded))
        try:
            await asyncio.wait({ended, arrived}, return_when=asyncio.FIRST_COMPLETED)
            said = (tmp_path / "log").read_text()
            assert not ended.done(), said
            assert arrived.result() == b"HELLO", said
        finally:
            arrived.cancel()
            if worker.returncode is None:
                worker.terminate()
            await ended
    assert PASSWORD not in said
    assert KEY_PASSWORD not in said
    assert "hush-hush" not in said


async def refusal(env: Env) -> str:
    """What is said of not getting in, soon and without a secret."""
    settings = load(env)
    begun = time.monotonic()
    with pytest.raises(kafka.UnreachableError) as raised:
        await kafka.probe(settings)
    assert time.monotonic() - begun < QUICK
    sentence = kafka.explain(raised.value, settings)
    assert sentence.startswith(f"Kafka at {settings.kafka.bootstrap_servers} ({settings.kafka.security_protocol}")
    assert not any(secret in sentence for secret in settings.secrets())
    return sentence


@pytest.mark.parametrize("way", ["scram", "plain", "scram_in_the_open"])
async def test_a_wrong_password_is_refused(ways: Ways, way: str) -> None:
    wrong = {**getattr(ways, way)(), "KAFKA_SASL_PASSWORD": "sesame"}
    assert "refused the login. Check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD" in await refusal(wrong)


async def test_a_mechanism_that_is_not_offered_is_named(ways: Ways) -> None:
    assert "does not offer KAFKA_SASL_MECHANISM=SCRAM-SHA-256" in await refusal(ways.scram("SCRAM-SHA-256"))


async def test_an_expired_token_is_refused(ways: Ways) -> None:
    async with identity_provider(life=-300) as url:
        sentence = await refusal({**ways.oauth(), "KAFKA_SASL_OAUTH_TOKEN_URL": url})
    assert "refused the token" in sentence


async def test_no_token_is_said_to_be_the_providers_fault(ways: Ways) -> None:
    sentence = await refusal({**ways.oauth(), "KAFKA_SASL_OAUTH_TOKEN_URL": "http://127.0.0.1:1/token"})
    assert "there is no token" in sentence


@pytest.mark.parametrize("way", ["tls", "scram", "oauth"])
async def test_a_ca_that_did_not_sign_the_broker_is_not_enough(
    ways: Ways, certificates: Certificates, way: str
) -> None:
    sentence = await refusal({**getattr(ways, way)(), "KAFKA_SSL_CA": str(certificates.other_ca)})
    assert "certificate that is not trusted" in sentence
    assert f"KAFKA_SSL_CA={certificates.other_ca}" in sentence


@pytest.mark.parametrize("way", ["tls", "scram"])
async def test_the_systems_cas_are_not_enough(ways: Ways, way: str) -> None:
    env = getattr(ways, way)()
    del env["KAFKA_SSL_CA"]
    assert "KAFKA_SSL_CA is not set" in await refusal(env)


@pytest.mark.parametrize("way", ["tls", "plain"])
async def test_a_broker_by_a_name_it_does_not_have_is_not_trusted(ways: Ways, way: str) -> None:
    env = getattr(ways, way)()
    env["KAFKA_BOOTSTRAP_SERVERS"] = env["KAFKA_BOOTSTRAP_SERVERS"].replace("localhost", "127.0.0.1")
    assert "IP address mismatch" in await refusal(env)


@pytest.mark.parametrize("way", ["tls", "scram"])
async def test_without_its_certificate_a_client_stays_out(ways: Ways, way: str) -> None:
    env = getattr(ways, way)()
    for name in ("KAFKA_SSL_CERT", "KAFKA_SSL_KEY", "KAFKA_SSL_KEY_PASSWORD"):
        del env[name]
    assert "client certificate" in await refusal(env)


async def test_the_wrong_protocol_is_suspected(ways: Ways) -> None:
    in_the_open = ways.scram_in_the_open()
    tls = {**ways.tls(), "KAFKA_BOOTSTRAP_SERVERS": in_the_open["KAFKA_BOOTSTRAP_SERVERS"]}
    plaintext = {"KAFKA_BOOTSTRAP_SERVERS": ways.tls()["KAFKA_BOOTSTRAP_SERVERS"]}
    nobody = {"KAFKA_BOOTSTRAP_SERVERS": in_the_open["KAFKA_BOOTSTRAP_SERVERS"]}
    for env in (tls, plaintext, nobody):
        assert "KAFKA_SECURITY_PROTOCOL is not what this listener speaks" in await refusal(env)


def test_the_command_explains_it(ways: Ways) -> None:
    done = CliRunner().invoke(main, ["topics", "plan"], env={**ways.scram(), "KAFKA_SASL_PASSWORD": "sesame"})
    assert done.exit_code == 1
    assert "refused the login" in done.stderr
    assert "Traceback" not in done.output


async def test_asking_for_topics_creates_none(ways: Ways) -> None:
    settings = load(with_topics(ways.scram()))
    wanted = topics.wanted(settings)
    for _ in range(2):
        assert await topics.missing(settings) == [topic.name for topic in wanted]
        async with kafka.admin(settings) as admin:
            assert len((await topics.plan(admin, wanted)).create) == len(wanted)


async def test_the_whole_pipeline_over_sasl_ssl(
    broker: Kafka, certificates: Certificates, database: Mapping[str, str], tmp_path: Path
) -> None:
    """Decode, store, simulator, topics and lag all get through a listener that wants a certificate and a password."""
    env = {
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "KAFKA_SASL_USERNAME": USER,
        "KAFKA_SASL_PASSWORD": PASSWORD,
        "KAFKA_SSL_CA": str(certificates.ca),
        "KAFKA_SSL_CERT": str(certificates.client),
        "KAFKA_SSL_KEY": str(certificates.client_key),
        "KAFKA_SSL_KEY_PASSWORD": KEY_PASSWORD,
    }
    async with Pipeline(f"localhost:{broker.ports['SASL_TLS']}", database, tmp_path, **env) as p:
        await p.started("decode")
        await p.started("store-timescale")
        await p.simulate(1000, bad=0.05)
        await p.settled()

        await p.check()
