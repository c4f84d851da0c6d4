"""A thread beside the event loop for calls that wait for a disk."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

Result = TypeVar("Result")


class Aside:
    """Makes calls one after the other in a thread of its own.

    A disk or a mount can hang for good, and what waits for it cannot be cancelled. So nobody waits for the thread when
    the process ends, as is done for those of an executor, and however often a call is given up and made again, there is
    one thread that hangs.
    """

    def __init__(self, name: str) -> None:
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    async def run(self, call: Callable[[], Result]) -> Result:
        """The result, or what it raised. Cancelled, a call that has begun goes on, and the next one waits for it."""
        future: Future[Result] = Future()
        self._calls.put((future, call))
        return await asyncio.wrap_future(future)

    def stop(self) -> None:
        """End the thread after the calls that were made."""
        self._calls.put(None)

    def _run(self) -> None:
        while (item := self._calls.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001  it is raised where the call is awaited
                    future.set_exception(error)
            del item, future, call  # so that nothing is kept until the next call
