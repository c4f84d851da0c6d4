"""InfluxDB 2, built here from its public module: set up with an organisation, a bucket and a token of its own."""

import http.client
import json
import os
import secrets
import shutil
import signal
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from deploy.local import ports as tcp
from deploy.local.files import ServerError, tail, write_private
from deploy.local.influxdb_build import Build
from deploy.local.ports import HOST
from deploy.local.process import Command, Detached
from deploy.local.server import NotReadyError, Server

ORG: Final = "iotflow"
BUCKET: Final = "iotflow"
USER: Final = "iotflow"

_TIMEOUT_S: Final = 3.0
_POLL_S: Final = 0.05


@dataclass(frozen=True)
class Tls:
    """Files in PEM form. The certificate is localhost's; `ca` signed it."""

    cert: Path
    key: Path
    ca: Path


class InfluxDB(Server):
    """One influxd. With `tls` it speaks nothing else."""

    name: ClassVar[str] = "influxdb"
    store: ClassVar[str] = "influxdb"
    preferred: ClassVar[Mapping[str, int]] = {"http": 28086}
    replaced_by: ClassVar[frozenset[str]] = frozenset({"INFLUXDB_URL"})
    # The only signal that it stops in order at.
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT

    def __init__(
        self, folder: Path, cache: Path, *, ports: Mapping[str, int] | None = None, tls: Tls | None = None
    ) -> None:
        super().__init__(folder, cache, ports=ports)
        self.tls = tls

    def environment(self) -> dict[str, str]:
        """Where and as whom iotflow connects."""
        return {
            "INFLUXDB_URL": self.url,
            "INFLUXDB_TOKEN": self.token(),
            "INFLUXDB_ORG": ORG,
            "INFLUXDB_BUCKET": BUCKET,
        }

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"https://localhost:{self.ports['http']}" if self.tls else f"http://{HOST}:{self.ports['http']}"

    def token(self) -> str:
        """The token that may do everything; made once and kept."""
        return self._token.read_text().strip()

    @property
    def prepared(self) -> bool:
        """Whether it has been built."""
        return self._build.binary.exists()

    def prepare(self) -> None:
        """Build it into the cache, once; raises `UnavailableError` where that cannot be done."""
        self._build.run()

    def reserve(self) -> None:
        """Choose the token as well."""
        if not self._token.exists():
            write_private(self._token, f"{secrets.token_urlsafe(32)}\n")
        super().reserve()

    def configure(self) -> None:
        """Set it up, the first time."""
        if not self._data.exists():
            self._set_up()

    def command(self, part: str) -> Command:
        """The server on its data."""
        del part
        command = self._influxd(self._data, self.ports["http"])
        if self.tls is None:
            return command
        tls = [f"--tls-cert={self.tls.cert}", f"--tls-key={self.tls.key}"]
        return Command([*command.argv, *tls], command.cwd, command.env)

    def stop(self) -> None:
        """Stop it, and a set-up that a killed start left running."""
        self._first.stop(self.stop_signal, self.stop_timeout_s)
        super().stop()

    def probe(self) -> None:
        """Ask for the bucket with the token."""
        if not self.ports:
            raise NotReadyError("never started")
        query = urllib.parse.urlencode({"org": ORG, "name": BUCKET})
        context = ssl.create_default_context(cafile=self.tls.ca) if self.tls else None
        found = _ask(f"{self.url}/api/v2/buckets?{query}", {"Authorization": f"Token {self.token()}"}, context=context)
        if not found["buckets"]:
            raise NotReadyError(f"it has no bucket {BUCKET}")

    @property
    def _build(self) -> Build:
        return Build(self.cache, self.on_progress)

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _token(self) -> Path:
        return self.folder / "token"

    @property
    def _first(self) -> Detached:
        """The process of the set-up."""
        return Detached(self.folder / "setup.pid", self.folder / "setup.log")

    def _influxd(self, data: Path, port: int) -> Command:
        argv = [
            str(self._build.binary),
            f"--http-bind-address={HOST}:{port}",
            f"--bolt-path={data / 'influxd.bolt'}",
            f"--sqlite-path={data / 'influxd.sqlite'}",
            f"--engine-path={data / 'engine'}",
            "--reporting-disabled",
            "--hardening-enabled",
            "--pprof-disabled",
            "--ui-disabled",
            "--no-tasks",
            # What was acknowledged stays, whatever happens to the machine: each write is synced before its answer.
            "--storage-wal-fsync-delay=0s",
        ]
        environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": str(self.folder)}
        return Command(argv, self.folder, environment)

    def _set_up(self) -> None:
        """Make user, organisation, bucket and token.

        influxd does that in several steps and only once, so it is done on a port that nobody knows, with data made
        aside and renamed: data that exist are whole.
        """
        self.on_progress("setting it up")
        fresh = self.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        port = tcp.choose(self.ports["http"] + 1)
        try:
            self._first.start(self._influxd(fresh, port))
            self._onboard(f"http://{HOST}:{port}/api/v2/setup")
        finally:
            self._first.stop(self.stop_signal, self.stop_timeout_s)
        fresh.rename(self._data)

    def _onboard(self, url: str) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while True:
            try:
                _ask(url, {})
                break
            except (NotReadyError, OSError) as error:
                if self._first.find() is None or time.monotonic() > deadline:
                    log = self._first.log
                    raise ServerError(
                        f"influxdb: could not be set up: {error}\nThe end of {log}:\n{tail(log)}"
                    ) from error
                time.sleep(_POLL_S)
        # Without a password nobody can sign in: the token is the only way. No retention means for ever.
        wanted = {"username": USER, "org": ORG, "bucket": BUCKET, "token": self.token()}
        try:
            _ask(url, {"Content-Type": "application/json"}, json.dumps(wanted).encode())
        except (NotReadyError, OSError) as error:
            raise ServerError(f"influxdb: could not be set up: {error}") from error


def _ask(
    url: str, headers: Mapping[str, str], body: bytes | None = None, *, context: ssl.SSLContext | None = None
) -> Any:
    """Send a request (a POST when it has a body) and return what it answers."""
    request = urllib.request.Request(url, body, dict(headers))  # noqa: S310  our own URL
    # Never through a proxy of the user's.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise NotReadyError(f"{error.code} {error.reason}: {error.read().decode('utf-8', 'replace')}") from error
    except (http.client.HTTPException, ValueError) as error:
        raise NotReadyError(f"no proper answer: {error}") from error
