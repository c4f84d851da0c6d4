"""InfluxDB of the local stack on the real influxd, which the first of these tests builds if the cache has none."""

import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.files import ServerError, default_cache
from deploy.local.influxdb import BUCKET, ORG, InfluxDB, Tls
from deploy.local.server import NotReadyError
from tests.lab.certificates import Certificates

pytestmark = pytest.mark.timeout(1500)

PORT = 30_086


@pytest.fixture
def influxdb(tmp_path: Path) -> Iterator[InfluxDB]:
    """One that has never run."""
    server = InfluxDB(tmp_path / "influxdb", default_cache(), ports={"http": PORT})
    yield server
    server.stop()


def ask(server: InfluxDB, path: str, body: bytes, token: str | None = None) -> str:
    """POST to the server."""
    request = urllib.request.Request(  # noqa: S310  our own server
        f"{server.url}/api/v2/{path}?org={ORG}&bucket={BUCKET}",
        body,
        {"Authorization": f"Token {token or server.token()}", "Content-Type": "application/vnd.flux"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        return str(answer.read().decode())


def write(server: InfluxDB, number: int) -> None:
    """Write one point."""
    ask(server, "write", f"kept,n={number} value={number} {number}".encode())


def stored(server: InfluxDB) -> set[int]:
    """The points that there are."""
    query = f'from(bucket: "{BUCKET}") |> range(start: 0) |> group() |> keep(columns: ["n"])'
    lines = ask(server, "query", query.encode()).split()
    return {int(line.rsplit(",", 1)[1]) for line in lines[1:]}


def test_what_was_acknowledged_survives(influxdb: InfluxDB) -> None:
    """A first start sets it up; stop and kill lose nothing, and port and token stay."""
    influxdb.start()
    variables = influxdb.environment()
    write(influxdb, 1)
    influxdb.stop()
    assert "subsystem=bolt" in influxdb.log.read_text()  # it was closed in order
    influxdb.start()
    write(influxdb, 2)
    influxdb.kill()
    assert influxdb.status().state == "crashed"
    influxdb.start()
    assert stored(influxdb) == {1, 2}
    assert influxdb.environment() == variables
    with pytest.raises(urllib.error.HTTPError, match="401"):
        ask(influxdb, "write", b"kept value=1", token="wrong")  # noqa: S106


def test_a_set_up_that_was_killed_is_done_again(influxdb: InfluxDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a kill during the first start leaves (a process, half of the set-up), the next start completes it."""

    class KilledError(BaseException):
        """Nothing is tidied up after a kill."""

    def killed(url: str) -> None:
        while True:
            try:
                urllib.request.urlopen(url, timeout=1).close()  # noqa: S310
            except OSError:
                continue
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(influxdb, "_onboard", killed)
        patch.setattr(InfluxDB, "stop", lambda _: None)
        patch.setattr("deploy.local.process.Detached.stop", lambda *_: None)
        with pytest.raises(KilledError):
            influxdb.start()
    left = influxdb._first.find()
    assert left is not None
    influxdb.start()
    assert not left.is_running()
    write(influxdb, 1)
    assert stored(influxdb) == {1}


def test_a_set_up_that_fails_shows_the_log(influxdb: InfluxDB, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the end of the log, and nothing runs."""
    command = influxdb._influxd

    def broken(data: Path, port: int) -> object:
        made = command(data, port)
        return type(made)([*made.argv, "--engine-path=/dev/null/engine"], made.cwd, made.env)

    monkeypatch.setattr(influxdb, "_influxd", broken)
    with pytest.raises(ServerError, match=r"(?s)could not be set up.*setup\.log.*/dev/null"):
        influxdb.start()
    assert influxdb._first.find() is None
    assert influxdb.status().state == "stopped"


def test_it_serves_tls(tmp_path: Path, certificates: Certificates) -> None:
    """With a certificate it answers over TLS to those who trust its CA, and is not ready for the others."""
    files = Tls(certificates.server, certificates.server, certificates.ca)
    server = InfluxDB(tmp_path / "influxdb", default_cache(), ports={"http": PORT}, tls=files)
    try:
        server.start()
        assert server.environment()["INFLUXDB_URL"] == f"https://localhost:{server.ports['http']}"
        server.probe()
        server.tls = Tls(certificates.server, certificates.server, certificates.other_ca)
        with pytest.raises((NotReadyError, OSError), match="CERTIFICATE_VERIFY_FAILED"):
            server.probe()
    finally:
        server.stop()
