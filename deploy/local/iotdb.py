"""Apache IoTDB: one ConfigNode and one DataNode, their Java runtime from a wheel and their jars from Maven Central."""

import json
import secrets
import shutil
import socket
import ssl
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

from deploy.local.files import ServerError, write_private
from deploy.local.java import ENVIRONMENT, Jars
from deploy.local.ports import HOST
from deploy.local.process import Command
from deploy.local.server import NotReadyError, Server

VERSION: Final = "2.0.1-beta"
USER: Final = "root"

# The last two are pinned because jgo cannot read their versions out of the poms that ask for them: the one is given as
# a range, the other as a variable.
_COORDINATES: Final = (
    f"org.apache.iotdb:iotdb-server:{VERSION}+org.apache.iotdb:iotdb-confignode:{VERSION}"
    "+com.bugsnag:bugsnag:3.7.2!+io.swagger:swagger-core:1.6.14!"
)
_JARS: Final = Jars("iotdb", VERSION, _COORDINATES, main=f"iotdb-server-{VERSION}.jar", size_mb=110)
_MAIN: Final[Mapping[str, str]] = {
    "confignode": "org.apache.iotdb.confignode.service.ConfigNode",
    "datanode": "org.apache.iotdb.db.service.DataNode",
}
_OPENED: Final = ("java.util.concurrent", "java.lang", "java.util", "java.nio", "java.io", "java.net")
_CONFIGNODE_HEAP_MB: Final = 384
#: Outside the heap, for each node.
_DIRECT_MB: Final = 512

#: Whose certificate it has.
_CERTIFIED: Final = "localhost"
_TIMEOUT_S: Final = 3.0
#: The password every IoTDB begins with.
_FIRST_PASSWORD: Final = "root"  # noqa: S105  it is public
# The protocol's third version, and two of its codes.
_PROTOCOL: Final = 2
_SUCCESS: Final = 200
_WRONG_PASSWORD: Final = 801

# At INFO its classes print the whole configuration, with the password of the key store.
_LOGGING: Final = """\
<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%d %p %c: %m%n</pattern></encoder>
  </appender>
  <logger name="org.apache.iotdb.commons.service.RegisterManager" level="INFO"/>
  <root level="WARN"><appender-ref ref="OUT"/></root>
</configuration>
"""


class IoTDB(Server):
    """A cluster of one, that loses nothing it has acknowledged. The only user is `root`, with a password of its own.

    IoTDB listens on every interface, whatever its address settings say, also with the ports between its nodes, where
    nobody has to log in: keep other machines away from them with a firewall.

    `properties` are added to (and win over) iotdb-system.properties. If `enable_thrift_ssl` is among them, `tls` is how
    `probe` connects; the certificate is localhost's, and this version cannot ask clients for theirs. The heap is the
    DataNode's.
    """

    name: ClassVar[str] = "iotdb"
    store: ClassVar[str] = "iotdb"
    preferred: ClassVar[Mapping[str, int]] = {
        "rpc": 26667,
        "confignode": 26710,
        "confignode-consensus": 26720,
        "datanode": 26730,
        "exchange": 26740,
        "schema-consensus": 26750,
        "data-consensus": 26760,
    }
    replaced_by: ClassVar[frozenset[str]] = frozenset({"IOTDB_HOST", "IOTDB_PORT"})
    parts: ClassVar[tuple[str, ...]] = ("confignode", "datanode")
    start_timeout_s: float = 120.0

    def __init__(  # noqa: PLR0913  each but the first two is an option of its own
        self,
        folder: Path,
        cache: Path,
        *,
        ports: Mapping[str, int] | None = None,
        properties: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        heap_mb: int = 1024,
    ) -> None:
        super().__init__(folder, cache, ports=ports)
        self.properties = dict(properties or {})
        self.tls = tls
        self.heap_mb = heap_mb

    def environment(self) -> dict[str, str]:
        """Where and as whom iotflow connects."""
        return {
            "IOTDB_HOST": HOST if self.tls is None else _CERTIFIED,
            "IOTDB_PORT": str(self.ports["rpc"]),
            "IOTDB_USER": USER,
            "IOTDB_PASSWORD": self.password(),
        }

    def password(self) -> str:
        """The password of `root`; made once and kept."""
        return self._password.read_text().strip()

    @property
    def _password(self) -> Path:
        return self.folder / "password"

    @property
    def prepared(self) -> bool:
        """Whether the jars are there."""
        return _JARS.folder(self.cache).is_dir()

    @property
    def _begun(self) -> Path:
        """Is there once the server has answered: from then on its data may be somebody's."""
        return self.folder / "begun"

    def prepare(self) -> None:
        """Fetch the jars into the cache, once."""
        _JARS.fetch(self.cache, self.on_progress)

    def reserve(self) -> None:
        """Choose the password as well."""
        if not self._password.exists():
            write_private(self._password, f"{secrets.token_urlsafe(24)}\n")
        super().reserve()

    def configure(self) -> None:
        """Write the settings, and clear what a first start that was cut short left: IoTDB cannot go on from there."""
        if not self._begun.exists():
            shutil.rmtree(self.folder / "data", ignore_errors=True)
        # The password is in there, too.
        (self.folder / "data").mkdir(mode=0o700, exist_ok=True)
        (self.folder / "tmp").mkdir(exist_ok=True)
        write_private(self.folder / "logback.xml", _LOGGING)
        lines = "".join(f"{name}={value}\n" for name, value in self._settings().items())
        write_private(self.folder / "conf" / "iotdb-system.properties", lines)

    def _choose_ports(self) -> None:
        before = self.ports
        super()._choose_ports()
        now = self.ports
        moved = sorted(before[role] for role in before if role != "rpc" and before[role] != now[role])
        if moved and self._begun.exists():
            write_private(self.folder / "ports.json", json.dumps(before))
            raise ServerError(
                f"iotdb: something else listens on port {moved[0]}, and the nodes of {self.folder} know each other by "
                "that number. End that process, or remove the folder to begin anew."
            )

    def _settings(self) -> dict[str, str]:
        ports = self.ports
        seed = f"{HOST}:{ports['confignode']}"
        return {
            "cluster_name": "iotflow",
            "cn_internal_address": HOST,
            "cn_internal_port": str(ports["confignode"]),
            "cn_consensus_port": str(ports["confignode-consensus"]),
            "cn_seed_config_node": seed,
            "dn_rpc_address": HOST,
            "dn_rpc_port": str(ports["rpc"]),
            "dn_internal_address": HOST,
            "dn_internal_port": str(ports["datanode"]),
            "dn_mpp_data_exchange_port": str(ports["exchange"]),
            "dn_schema_region_consensus_port": str(ports["schema-consensus"]),
            "dn_data_region_consensus_port": str(ports["data-consensus"]),
            "dn_seed_config_node": seed,
            "dn_join_cluster_retry_interval_ms": "500",
            "schema_replication_factor": "1",
            "data_replication_factor": "1",
            "timestamp_precision": "us",
            "cn_metric_reporter_list": "",
            "dn_metric_reporter_list": "",
            "cn_metric_level": "OFF",
            "dn_metric_level": "OFF",
            # What was acknowledged stays when a node is killed; the default keeps the last second in memory.
            "wal_mode": "SYNC",
            # Set aside for each region: the defaults of 32 and 16 MB leave room for five databases.
            "wal_buffer_size_in_byte": str(4 << 20),
            "schema_region_ratis_log_appender_buffer_size_max": str(4 << 20),
            **self.properties,
        }

    def command(self, part: str) -> Command:
        """One of the two nodes."""
        heap = self.heap_mb if part == "datanode" else _CONFIGNODE_HEAP_MB
        options = [
            f"-Xmx{heap}m",
            f"-XX:MaxDirectMemorySize={_DIRECT_MB}m",
            f"-DOFF_HEAP_MEMORY={_DIRECT_MB}m",
            "-XX:+ExitOnOutOfMemoryError",
            *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
            f"-Dlogback.configurationFile={self.folder / 'logback.xml'}",
            f"-DTSFILE_HOME={self.folder}",
        ]
        if part == "confignode":
            options.append("-XX:TieredStopAtLevel=1")  # it has little to do: compiling well is most of its start
        home = "CONFIGNODE" if part == "confignode" else "IOTDB"
        options += [f"-D{home}_HOME={self.folder}", f"-D{home}_CONF={self.folder / 'conf'}"]
        java = _JARS.java(self.cache, self.folder, options)
        return Command([*java, _MAIN[part], "-s"], self.folder, ENVIRONMENT)

    def probe(self) -> None:
        """Log in as iotflow will, and ask whether the node and every region take writes.

        A fresh server still has the password that every IoTDB begins with, and is given its own first.
        """
        port = self.ports.get("rpc")
        if port is None:
            raise NotReadyError("never started")
        try:
            nodes, regions = self._ask(port, self.password(), "SHOW DATANODES", "SHOW REGIONS")
        except PermissionError:
            self._ask(port, _FIRST_PASSWORD)
            self._begun.touch()
            self._ask(port, _FIRST_PASSWORD, f"ALTER USER {USER} SET PASSWORD '{self.password()}'")
            raise NotReadyError("the password has only just been set") from None
        states = _column(nodes, "Status") + _column(regions, "Status")
        if set(states) != {"Running"}:
            raise NotReadyError(f"the DataNode and its regions are {', '.join(states) or 'not there yet'}")
        self._begun.touch()

    def _ask(self, port: int, password: str, *statements: str) -> list[Any]:
        """The answer to each statement, in a session of their own."""
        # The client's generated code alone: its sessions would load pandas.
        from iotdb.thrift.rpc import IClientRPCService, ttypes  # noqa: PLC0415
        from thrift.protocol.TBinaryProtocol import TBinaryProtocol  # noqa: PLC0415
        from thrift.Thrift import TException  # noqa: PLC0415
        from thrift.transport.TSocket import TSocket  # noqa: PLC0415
        from thrift.transport.TTransport import TFramedTransport  # noqa: PLC0415

        with self._connected(port) as connection:
            wire = TSocket()
            wire.setHandle(connection)
            client = IClientRPCService.Client(TBinaryProtocol(TFramedTransport(wire)))
            login = ttypes.TSOpenSessionReq(_PROTOCOL, "UTC", USER, password, {"version": "V_1_0"})
            try:
                session = _good(client.openSession(login)).sessionId
                number = client.requestStatementId(session)
                asked = [ttypes.TSExecuteStatementReq(session, statement, number) for statement in statements]
                answers = [_good(client.executeStatement(one)) for one in asked]
                client.closeSession(ttypes.TSCloseSessionReq(session))
            except TException as error:
                raise NotReadyError(f"{error}") from error
        return answers

    def _connected(self, port: int) -> socket.socket:
        plain = socket.create_connection((HOST, port), timeout=_TIMEOUT_S)
        if self.tls is None:
            return plain
        with plain:  # until it is wrapped, which takes it over
            return self.tls.wrap_socket(plain, server_hostname=_CERTIFIED)


def _good(answer: Any) -> Any:
    """An answer, if it says that all went well."""
    if answer.status.code == _WRONG_PASSWORD:
        raise PermissionError(answer.status.message)
    if answer.status.code != _SUCCESS:
        raise NotReadyError(f"{answer.status.code} {answer.status.message}")
    return answer


def _column(answer: Any, name: str) -> list[str]:
    """A column of text, which comes as values with their lengths."""
    data, place, found = answer.queryDataSet.valueList[answer.columns.index(name)], 0, []
    while place < len(data):
        (length,) = struct.unpack_from(">i", data, place)
        place += 4 + length
        found.append(data[place - length : place].decode())
    return found
