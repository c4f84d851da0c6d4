"""IoTDB of the local stack on the real server, which is fetched if the cache does not have it."""

import contextlib
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from iotdb.Session import Session
from iotdb.utils.exception import StatementExecutionException
from iotdb.utils.IoTDBConstants import TSDataType

from deploy.local.files import default_cache
from deploy.local.iotdb import IoTDB
from deploy.local.server import NotReadyError
from tests.lab.certificates import Certificates

FROM = 30_600
ROLES = {role: FROM + number for number, role in enumerate(IoTDB.preferred)}


@pytest.fixture
def iotdb(tmp_path: Path) -> Iterator[IoTDB]:
    """One that has never run."""
    server = IoTDB(tmp_path / "iotdb", default_cache(), ports=ROLES, heap_mb=512)
    yield server
    server.kill()  # it takes its time to stop


@contextlib.contextmanager
def connected(server: IoTDB, **changes: Any) -> Iterator[Session]:
    """Log in with the real client."""
    variables = server.environment()
    where = {"host": variables["IOTDB_HOST"], "port": variables["IOTDB_PORT"]}
    login = {"user": variables["IOTDB_USER"], "password": variables["IOTDB_PASSWORD"]}
    session = Session(**{**where, **login, "connection_timeout_in_ms": 5_000, **changes})
    session.open()
    try:
        yield session
    finally:
        session.close()


def write(session: Session, microsecond: int) -> None:
    """Write one row."""
    session.insert_aligned_record("root.kept.d", microsecond, ["n"], [TSDataType.INT64], [microsecond])


def stored(session: Session) -> set[int]:
    """The rows that there are."""
    found, answer = set(), session.execute_query_statement("SELECT n FROM root.kept.d")
    while answer.has_next():
        row = answer.next()
        assert row.get_timestamp() == row.get_fields()[0].get_long_value()
        found.add(row.get_timestamp())
    answer.close_operation_handle()
    return found


def test_what_was_acknowledged_survives(iotdb: IoTDB, certificates: Certificates) -> None:
    """Stop and kill lose nothing, ports and password stay; nobody is let in without the password."""
    iotdb.start()
    variables = iotdb.environment()
    for wrong in ("root", "wrong"):
        with pytest.raises(StatementExecutionException, match="801"), connected(iotdb, password=wrong):
            pass
    with connected(iotdb) as session:
        write(session, 1_700_000_000_000_001)
    iotdb.stop()
    assert "deregister all service" in iotdb.log.read_text()  # it was closed in order
    assert iotdb.status().state == "stopped"

    iotdb.start()
    assert iotdb.environment() == variables
    with connected(iotdb) as session:
        write(session, 1_700_000_000_000_002)
    iotdb.kill()
    assert iotdb.status().state == "crashed"

    store = certificates.ca.with_name("iotdb.p12")
    export = ["openssl", "pkcs12", "-export", "-in", certificates.server, "-out", store, "-passout", "pass:sesame"]
    subprocess.run(export, check=True, capture_output=True)
    iotdb.properties = {"enable_thrift_ssl": "true", "key_store_path": str(store), "key_store_pwd": "sesame"}
    iotdb.tls = ssl.create_default_context(cafile=certificates.ca)
    iotdb.start()
    assert iotdb.environment() == {**variables, "IOTDB_HOST": "localhost"}
    with connected(iotdb, use_ssl=True, ca_certs=str(certificates.ca)) as session:
        write(session, 1_700_000_000_000_003)
        assert stored(session) == {1_700_000_000_000_001, 1_700_000_000_000_002, 1_700_000_000_000_003}
    iotdb.tls = ssl.create_default_context(cafile=certificates.other_ca)
    with pytest.raises((NotReadyError, OSError), match="CERTIFICATE_VERIFY_FAILED"):
        iotdb.probe()
    assert "sesame" not in "".join(log.read_text() for log in iotdb.folder.glob("*.log*"))


def test_a_first_start_that_was_killed_is_begun_anew(iotdb: IoTDB) -> None:
    """IoTDB cannot go on from half of a first start; as nothing was ever stored there, the next start clears it."""
    iotdb.prepare()
    with iotdb.port_lock():
        iotdb.launch()
        deadline = time.monotonic() + 60
        while not list((iotdb.folder / "data" / "confignode" / "system").glob("*.properties")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        iotdb.kill()
    iotdb.start()
    with connected(iotdb) as session:
        write(session, 1)
