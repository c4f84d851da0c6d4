"""IoTDB of the local stack, as far as it can be looked at without running it."""

import socket
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deploy.local.files import ServerError
from deploy.local.iotdb import _JARS, IoTDB, _column
from deploy.local.server import NotReadyError

FROM = 31_700  # away from the ports of a stack that is in use
ROLES = {role: FROM + 5 * number for number, role in enumerate(IoTDB.preferred)}


@pytest.fixture
def iotdb(tmp_path: Path) -> IoTDB:
    """One that has never run."""
    (tmp_path / "iotdb").mkdir()
    return IoTDB(tmp_path / "iotdb", tmp_path / "cache", ports=ROLES, properties={"dn_rpc_selector_thread_count": "2"})


def answer(*status: str) -> Any:
    """What the server says to SHOW DATANODES or SHOW REGIONS."""
    texts = [text.encode() for text in status]
    column = b"".join(len(text).to_bytes(4, "big") + text for text in texts)
    return SimpleNamespace(columns=["NodeID", "Status"], queryDataSet=SimpleNamespace(valueList=[b"", column]))


def test_settings(iotdb: IoTDB) -> None:
    """Ports, microseconds and durable writes; the caller's properties win; the key store's password stays private."""
    iotdb.properties["timestamp_precision"] = "ms"
    iotdb.reserve()
    settings = iotdb._settings()
    assert settings["dn_rpc_port"] == str(FROM)
    assert settings["dn_seed_config_node"] == settings["cn_seed_config_node"] == f"127.0.0.1:{FROM + 5}"
    assert settings["timestamp_precision"] == "ms"
    assert settings["dn_rpc_selector_thread_count"] == "2"
    assert settings["wal_mode"] == "SYNC"
    iotdb.configure()
    written = iotdb.folder / "conf" / "iotdb-system.properties"
    assert f"dn_rpc_port={FROM}\n" in written.read_text()
    assert stat.S_IMODE(written.stat().st_mode) == 0o600
    assert stat.S_IMODE((iotdb.folder / "data").stat().st_mode) == 0o700


def test_the_password_is_reserved(iotdb: IoTDB) -> None:
    """It is chosen once, before the first start, and only its owner reads it."""
    iotdb.reserve()
    variables = iotdb.environment()
    assert variables["IOTDB_PASSWORD"] not in {"", "root"}
    assert stat.S_IMODE((iotdb.folder / "password").stat().st_mode) == 0o600
    iotdb.reserve()
    assert iotdb.environment() == variables


def test_commands_share_a_class_path(iotdb: IoTDB) -> None:
    """Each node has its heap and its folder."""
    for part, heap in (("confignode", "-Xmx384m"), ("datanode", "-Xmx1024m")):
        argv = list(iotdb.command(part).argv)
        assert heap in argv
        assert argv[argv.index("-cp") + 1] == str(_JARS.folder(iotdb.cache) / "*")
        assert argv[-1] == "-s"


def test_only_the_port_of_clients_moves(iotdb: IoTDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first answer any port may move; after it, a node's port that is taken is an error and is kept."""
    monkeypatch.setattr("deploy.local.server._PORT_WAIT_S", 0.1)
    with socket.create_server(("127.0.0.1", FROM + 15)):
        iotdb.reserve()
    before = iotdb.ports
    assert before["datanode"] == FROM + 16
    (iotdb.folder / "begun").touch()
    with socket.create_server(("127.0.0.1", FROM)):
        iotdb.reserve()
    assert iotdb.ports == {**before, "rpc": FROM + 1}
    with (
        socket.create_server(("127.0.0.1", FROM + 16)),
        pytest.raises(ServerError, match=rf"port {FROM + 16}, and the nodes of .* know each other"),
    ):
        iotdb.reserve()
    assert iotdb.ports == {**before, "rpc": FROM + 1}


def test_data_is_cleared_only_before_the_first_answer(iotdb: IoTDB) -> None:
    """Half of a first start goes; what a server that has answered left stays."""
    iotdb.reserve()
    file = iotdb.folder / "data" / "file"
    for left in (False, True):
        file.parent.mkdir(exist_ok=True)
        file.touch()
        iotdb.configure()
        assert file.exists() == left
        (iotdb.folder / "begun").touch()


def test_ready_is_when_everything_takes_writes(iotdb: IoTDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node is there, and neither it nor a region is in another state."""
    with pytest.raises(NotReadyError, match="never started"):
        iotdb.probe()
    iotdb.reserve()
    assert not iotdb.answers()
    for nodes, regions, said in (
        (answer(), answer(), "not there yet"),
        (answer("Unknown"), answer(), "Unknown"),
        (answer("Running"), answer("Running", "ReadOnly"), "Running, Running, ReadOnly"),
    ):
        monkeypatch.setattr(iotdb, "_ask", lambda *_, answers=(nodes, regions): answers)
        with pytest.raises(NotReadyError, match=f"the DataNode and its regions are {said}"):
            iotdb.probe()
    assert not (iotdb.folder / "begun").exists()
    monkeypatch.setattr(iotdb, "_ask", lambda *_: (answer("Running"), answer("Running", "Running")))
    assert iotdb.answers()
    assert (iotdb.folder / "begun").exists()


def test_a_fresh_server_is_given_its_password(iotdb: IoTDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """The password that every IoTDB begins with is tried only when the own one is refused, and replaced."""
    iotdb.reserve()
    asked: list[tuple[Any, ...]] = []

    def ask(_: int, password: str, *statements: str) -> list[Any]:
        asked.append((password, *statements))
        if password == iotdb.password():
            raise PermissionError
        return []

    monkeypatch.setattr(iotdb, "_ask", ask)
    with pytest.raises(NotReadyError, match="only just"):
        iotdb.probe()
    assert asked[1:] == [("root",), ("root", f"ALTER USER root SET PASSWORD '{iotdb.password()}'")]
    assert (iotdb.folder / "begun").exists()


def test_a_column_is_read() -> None:
    """Texts of any length, by the column's name; an empty answer has none."""
    assert _column(answer("Running", "", "ä"), "Status") == ["Running", "", "ä"]
    assert _column(answer(), "Status") == []
