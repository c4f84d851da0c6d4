"""influxd, built from its public Go module: no registry of packages carries it as a binary."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from deploy.local.files import ServerError, UnavailableError, locked, tail
from deploy.local.process import uninterrupted
from deploy.local.server import Progress

VERSION: Final = "2.7.12"
#: What the build needs, and the packages that bring it: Debian's, Homebrew's.
TOOLS: Final[Mapping[str, tuple[str, str]]] = {
    "go": ("golang-go", "go"),
    "cargo": ("cargo", "rust"),
    "cc": ("gcc libc6-dev", "gcc"),
}

#: What to do without a build.
INSTEAD: Final = (
    "Or use a server of your own: set INFLUXDB_URL, INFLUXDB_TOKEN, INFLUXDB_ORG and INFLUXDB_BUCKET. "
    "Or leave it out: STORES=timescale,iotdb"
)

_SOURCE: Final = Path(__file__).with_name("influxd")  # a main of ours, and the pinned modules
_FLUX: Final = "github.com/influxdata/flux"  # the query language: Go around a Rust library
_LOCK_S: Final = 3600.0
_ALIVE_S: Final = 15.0
_END_S: Final = 5.0


@dataclass(frozen=True)
class Build:
    """The build into one cache. Go's modules and cargo's crates go where Go and cargo keep them."""

    cache: Path
    on_progress: Progress

    @property
    def binary(self) -> Path:
        """Where the result is; a file that exists is whole."""
        return self.cache / f"influxdb-{VERSION}" / "influxd"

    @property
    def log(self) -> Path:
        """What the tools said."""
        return self.cache / f"influxdb-{VERSION}.log"

    @property
    def _folder(self) -> Path:
        """What an interrupted build goes on with; gone when one has succeeded."""
        return self.cache / f"influxdb-{VERSION}.build"

    def run(self) -> None:
        """Build it, once, whoever else is about to; nothing runs on when this is interrupted."""
        if self.binary.exists():
            return
        _need_tools()
        with locked(
            self.cache / "influxdb.lock",
            timeout_s=_LOCK_S,
            on_wait=lambda: self.on_progress("waiting for another process that is building it"),
        ):
            if not self.binary.exists():
                self._build()

    def _build(self) -> None:
        self.on_progress(f"building it from source, once: 5 minutes or more, 3 GB of disk; log: {self.log}")
        begun = time.monotonic()
        shutil.rmtree(self._folder / "tmp", ignore_errors=True)
        (self._folder / "tmp").mkdir(parents=True)
        self.log.unlink(missing_ok=True)
        self._influxd(self._libflux(self._modules()))
        self.binary.parent.mkdir(parents=True, exist_ok=True)
        (self._folder / "influxd").rename(self.binary)
        shutil.rmtree(self._folder)
        self.on_progress(f"built in {time.monotonic() - begun:.0f} s")

    def _modules(self) -> Path:
        """Fetch the Go modules; returns flux's folder."""
        listed = self._folder / "modules"
        template = "{{with .Module}}{{.Path}} {{.Dir}}{{end}}"
        self._step(
            "fetching Go modules", ["go", "list", "-mod=readonly", "-deps", "-f", template, "."], _SOURCE, output=listed
        )
        folders = dict(line.split(" ", 1) for line in listed.read_text().splitlines() if line)
        return Path(folders[_FLUX])

    def _libflux(self, flux: Path) -> Path:
        """Build the Rust library; returns the script that tells Go where it is."""
        manifest, target = flux / "libflux" / "Cargo.toml", self._folder / "target"
        build = ["cargo", "build", "--release", "--locked", "--package=flux", "--lib", "--color=never"]
        # From a folder of ours, where its rust-toolchain.toml does not ask rustup for a toolchain of long ago; what a
        # newer one warns of must not be an error.
        self._step(
            "building libflux",
            ["env", "RUSTFLAGS=--cap-lints=warn", *build, f"--manifest-path={manifest}", f"--target-dir={target}"],
            self._folder,
        )
        include, library = flux / "libflux" / "include", target / "release" / "libflux.a"
        script = self._folder / "pkg-config"
        script.write_text(
            "#!/bin/sh\n"
            f"case $1 in --cflags) echo {_quoted(f'-I{include}')};; --libs) echo {_quoted(library)} -ldl -lm;; esac\n"
        )
        script.chmod(0o700)
        return script

    def _influxd(self, pkg_config: Path) -> None:
        # A build cache of its own: Go's would keep where libflux.a was, for ever.
        variables = [f"GOCACHE={self._folder / 'go'}", f"PKG_CONFIG={pkg_config}", "CGO_ENABLED=1", "CC=cc"]
        build = ["go", "build", "-mod=readonly", "-buildvcs=false", "-trimpath"]
        flags = f"-ldflags=-s -w -X main.version=v{VERSION}"
        self._step(
            "building influxd", ["env", *variables, *build, flags, "-o", str(self._folder / "influxd"), "."], _SOURCE
        )

    def _step(self, what: str, argv: Sequence[str], cwd: Path, *, output: Path | None = None) -> None:
        """Run one tool to its end, and say now and then that it still runs."""
        self.on_progress(what)
        begun = time.monotonic()
        with (
            self.log.open("ab") as log,
            (output or self.log).open("ab" if output is None else "wb") as out,
            _running(["env", f"TMPDIR={self._folder / 'tmp'}", *argv], cwd, out, log) as child,
        ):
            while (code := _code(child, _ALIVE_S)) is None:
                self.on_progress(f"{what}: {time.monotonic() - begun:.0f} s")
        if code != 0:
            raise ServerError(f"influxdb: {what} failed.\nThe end of {self.log}:\n{tail(self.log)}\n{INSTEAD}")


def _need_tools() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if not missing:
        return
    apt, brew = (" ".join(TOOLS[tool][which] for tool in missing) for which in (0, 1))
    mac = sys.platform == "darwin"
    remedy = f"Homebrew: brew install {brew}" if mac else f"Debian, Ubuntu: apt-get install -y {apt}"
    raise UnavailableError(
        "influxdb: building it needs go (1.23 or newer), cargo (Rust 1.72 or newer) and cc; "
        f"missing: {', '.join(missing)}. {remedy}. {INSTEAD}"
    )


@contextlib.contextmanager
def _running(argv: Sequence[str], cwd: Path, out: BinaryIO, log: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own, of which nothing is left after the block."""
    child: subprocess.Popen[bytes] | None = None
    try:
        with uninterrupted():
            child = subprocess.Popen(  # noqa: S603  our own commands
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=log, cwd=cwd, start_new_session=True
            )
        yield child
    finally:
        if child is not None:
            with uninterrupted():
                _end(child)


def _end(child: subprocess.Popen[bytes]) -> None:
    for which in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, which)
        _code(child, _END_S)


def _code(child: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    """Its exit code, once it has ended in time."""
    try:
        return child.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _quoted(argument: object) -> str:
    """For Go, which splits what pkg-config prints, and for the shell that prints it."""
    return shlex.quote(shlex.quote(str(argument)))
