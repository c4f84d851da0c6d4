"""`iotflow up`: every stage on this machine, one process each; one that dies is started again, with back-off."""

import asyncio
import logging
import signal
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

log = logging.getLogger(__name__)

_FIRST_S, _CAP_S = 0.5, 30.0
#: A worker that lived this long was well: its next back-off begins anew.
_WELL_AFTER_S = 60.0


def worker_command() -> list[str]:
    """The command line of a worker; its stage is in the environment."""
    return [sys.executable, "-m", "faust", "-A", "app.main", "-L", "uvloop", "--quiet", "worker"]


class Worker:
    """One supervised process; `restarts` counts how often it had to be started again."""

    def __init__(self, name: str, command: list[str], env: Mapping[str, str], output: Path | None = None) -> None:
        self.name = name
        self.restarts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._command = command
        self._env = dict(env)
        self._output = output
        self._stopping = False

    async def run(self) -> None:
        """Keep it running until cancelled or `stop` was called."""
        delay = _FIRST_S
        while not self._stopping:
            started = time.monotonic()
            code = await self._once()
            if self._is_stopping():
                return
            if time.monotonic() - started >= _WELL_AFTER_S:
                delay = _FIRST_S
            self.restarts += 1
            log.error("worker ended", extra={"worker": self.name, "code": code, "again_in_s": delay})
            await asyncio.sleep(delay)
            delay = min(_CAP_S, delay * 2)

    def _is_stopping(self) -> bool:
        return self._stopping

    async def _once(self) -> int:
        output = None if self._output is None else self._output.open("ab")
        try:
            # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which stops the rest in order.
            self.process = await asyncio.create_subprocess_exec(
                *self._command, env=self._env, stdout=output, stderr=output, start_new_session=True
            )
        finally:
            if output is not None:
                output.close()
        return await self.process.wait()

    async def stop(self, grace_s: float) -> None:
        """Ask it to end; after `grace_s` seconds end it."""
        self._stopping = True
        process = self.process
        if process is None or process.returncode is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            log.error("worker did not stop in time and was killed", extra={"worker": self.name})  # noqa: TRY400
            process.kill()
            await process.wait()


class Supervisor:
    """Runs workers until it is told to stop."""

    def __init__(self, workers: Iterable[Worker], *, grace_s: float) -> None:
        self.workers = list(workers)
        self.grace_s = grace_s
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Supervisor":
        self._tasks = [asyncio.create_task(worker.run()) for worker in self.workers]
        return self

    async def stop(self, name: str) -> None:
        """End one worker for good."""
        await asyncio.gather(*(worker.stop(self.grace_s) for worker in self.workers if worker.name == name))

    async def __aexit__(self, *_: object) -> None:
        # All at once: each stage has its own group, and none waits for another.
        await asyncio.gather(*(worker.stop(self.grace_s) for worker in self.workers))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def stages(
    names: Iterable[str],
    env: Mapping[str, str],
    folder: Path | None = None,
    ports: Mapping[str, int] | None = None,
) -> list[Worker]:
    """A worker for each stage; their output goes to `folder` as STAGE.log, or where the supervisor's goes.

    `ports` are for stages whose web views are to be elsewhere than at their usual port.
    """
    # The port of one worker cannot be the port of all.
    common = {name: value for name, value in env.items() if name != "IOTFLOW_WEB_PORT"}
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    return [
        Worker(
            name,
            worker_command(),
            {**common, "IOTFLOW_STAGE": name, **({"IOTFLOW_WEB_PORT": str(ports[name])} if ports else {})},
            None if folder is None else folder / f"{name}.log",
        )
        for name in names
    ]


async def stopped() -> None:
    """Wait for SIGINT or SIGTERM."""
    event = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, event.set)
    try:
        await event.wait()
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
