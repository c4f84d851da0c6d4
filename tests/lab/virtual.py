"""Time that passes by itself: an event loop in which waiting costs nothing and a real hang fails at once."""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from typing import Any


class Hang(BaseException):
    """Every task waits for something that will never happen."""


class Selector(selectors.SelectSelector):
    """Instead of waiting, it makes time pass."""

    now = 1000.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Pass the time until the next timer."""
        if timeout is None:
            raise Hang
        self.now += timeout
        return super().select(0)


class Loop(asyncio.SelectorEventLoop):
    """An event loop in which nothing takes time but what asks for it."""

    def __init__(self) -> None:
        self.selector = Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        """The time that passed."""
        return self.selector.now


def virtual(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test in a loop of its own where time passes by itself."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        with asyncio.Runner(loop_factory=Loop) as runner:
            runner.run(test(*args, **kwargs))

    return run
