"""Apache Kafka: one KRaft node, its Java runtime from a wheel and its jars from Maven Central."""

import base64
import contextlib
import socket
import struct
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

from deploy.local.files import ServerError, write_private
from deploy.local.java import ENVIRONMENT, Jars
from deploy.local.ports import HOST
from deploy.local.process import Command
from deploy.local.server import NotReadyError, Server

VERSION: Final = "4.1.1"
# The last one carries Kafka's own log to log4j; "!" keeps its parent pom from choosing other jars' versions.
_COORDINATES: Final = f"org.apache.kafka:kafka_2.13:{VERSION}+org.apache.logging.log4j:log4j-slf4j-impl:2.24.3!"
_JARS: Final = Jars("kafka", VERSION, _COORDINATES, main=f"kafka_2.13-{VERSION}.jar", size_mb=44)
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
    def prepared(self) -> bool:
        """Whether the jars are there."""
        return _JARS.folder(self.cache).is_dir()

    def prepare(self) -> None:
        """Fetch the jars into the cache, once."""
        _JARS.fetch(self.cache, self.on_progress)

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
            argv, capture_output=True, text=True, check=False, timeout=60, cwd=self.folder, env=ENVIRONMENT
        )
        if done.returncode != 0:
            raise ServerError(f"kafka: could not format {self.folder / 'data'}:\n{done.stdout}{done.stderr}")

    def _java(self, *options: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}"
        return _JARS.java(self.cache, self.folder, [*options, logging])

    def command(self, part: str) -> Command:
        """The broker."""
        del part
        java = self._java(f"-Xmx{self.heap_mb}m", "-XX:+ExitOnOutOfMemoryError")
        return Command([*java, "kafka.Kafka", str(self.folder / "server.properties")], self.folder, ENVIRONMENT)

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
