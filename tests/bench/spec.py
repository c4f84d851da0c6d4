"""What a contender's process is told, and how it tells what it did: files in a folder of its own."""

import asyncio
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from app import __version__
from app.settings import Settings, load
from schemas.decoding import Decoder

ROOT = Path(__file__).parents[2]
_VARIABLE = "IOTFLOW_BENCH_SPEC"
#: Every contender commits this often, as the product does.
COMMIT_EVERY_S = 1.0
#: What the stores write at once, in readings: the product's default.
BATCH = 5000


class Raw(NamedTuple):
    """A record as the decoder wants it: with its time in milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class Spec(Struct):
    """One contender. `kind` names its code in `faust_app` or `bare`."""

    kind: str
    folder: str
    servers: str
    topic: str
    group: str
    partitions: int = 4
    decoded: str = ""
    dead: str = ""
    #: The sink that stores, and the variables that lead to its place.
    store: str = ""
    place: dict[str, str] = {}
    #: Records to store, where the contender reads them all beforehand.
    count: int = 0
    #: Of so many contenders that store at once, which one this is: each takes every so-manieth batch.
    of: int = 1
    share: int = 0

    @property
    def ready(self) -> Path:
        """Exists once the contender has its partitions, or its data."""
        return Path(self.folder) / "ready"

    @property
    def go(self) -> Path:
        """Exists once all that store at once are ready."""
        return Path(self.folder) / "go"

    @property
    def progress(self) -> Path:
        """A line `epoch-seconds rows readings` for each batch stored."""
        return Path(self.folder) / "progress"

    @property
    def log(self) -> Path:
        """What it wrote besides."""
        return Path(self.folder) / "log"

    def settings(self) -> Settings:
        """The product's own settings, with this contender's names."""
        return load(
            {
                "KAFKA_BOOTSTRAP_SERVERS": self.servers,
                "KAFKA_RAW_TOPICS": f"{self.topic if self.decoded else self.topic + '-raw'}:telemetry",
                "KAFKA_INPUT_TOPIC": self.decoded or self.topic,
                "IOTFLOW_PARTITIONS": str(self.partitions),
                "IOTFLOW_DATA_DIR": self.folder,
                "IOTFLOW_SESSION_TIMEOUT": "6",
                **self.place,
            }
        )

    def decoder(self) -> Decoder:
        """The decoder of the decode stage."""
        settings = self.settings()
        return Decoder(
            settings.inputs,
            partitions=self.partitions,
            stage="decode",
            version=__version__,
            max_message_bytes=settings.topics.max_message_bytes,
        )

    def stored(self, rows: int, readings: int) -> None:
        """Tell that a batch was stored."""
        with self.progress.open("a") as file:
            file.write(f"{time.time()} {rows} {readings}\n")


def given() -> Spec:
    """What this process was told."""
    return msgspec.json.decode(os.environ[_VARIABLE], type=Spec)  # noqa: TID251  this process's only parameter


def command(spec: Spec) -> Sequence[str]:
    """Faust contenders run under the same command line as our workers, the others as a script."""
    if spec.kind.startswith("bare"):
        return [sys.executable, "-m", "tests.bench.bare"]
    return [
        sys.executable,
        "-m",
        "faust",
        "-A",
        "tests.bench.faust_app",
        "-L",
        "uvloop",
        "--quiet",
        "worker",
        "--without-web",
    ]


class Contender:
    """A contender's process, ready inside the block and gone after it."""

    def __init__(self, spec: Spec, *, seconds: float = 60.0) -> None:
        self.spec = spec
        self._seconds = seconds
        self._process: Any = None

    @property
    def pid(self) -> int:
        """Its process id."""
        return int(self._process.pid)

    def fail_if_ended(self) -> None:
        """Raise when the process is no more."""
        if self._process.returncode is not None:
            raise RuntimeError(f"{self.spec.kind} ended:\n{self.spec.log.read_text()[-3000:]}")

    async def __aenter__(self) -> "Contender":
        spec = self.spec
        spec.ready.parent.mkdir(parents=True)
        path = os.environ["PATH"]  # noqa: TID251  what a child process needs to run at all
        env = {"PATH": path, _VARIABLE: msgspec.json.encode(spec).decode()}
        with spec.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command(spec), cwd=ROOT, env=env, stdout=log, stderr=log
            )
        try:
            await self._until(spec.ready.exists)
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(self, kind: type | None, *_: object) -> None:
        await self._end()
        if kind is not None:
            sys.stderr.write(f"--- {self.spec.kind}\n{self.spec.log.read_text()[-3000:]}\n")

    async def _until(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + self._seconds
        while not what():
            self.fail_if_ended()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{self.spec.kind} is not ready: {self.spec.log.read_text()[-3000:]}")
            await asyncio.sleep(0.05)

    async def _end(self) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()
