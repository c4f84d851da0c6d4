"""The pool of connections, from which every transaction of the sink is had."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg

from sinks.base import Reject, Verdict
from sinks.timescale.settings import Settings, connect_args

#: Seconds that giving a connection back may take; then it is cut.
_RELEASE_S: Final = 5.0


class Connections:
    """A pool that is opened, closed and opened again; `classify` says what an error means.

    When work is cancelled its connection is cut: asyncpg would ask the server to stop the query and wait for its
    answer, which a server that stands still never gives.
    """

    def __init__(
        self,
        settings: Settings,
        classify: Callable[[BaseException], Verdict],
        init: Callable[[asyncpg.Connection], Awaitable[None]],
    ) -> None:
        self._settings = settings
        self._classify = classify
        self._init = init
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Connect."""
        self.close()
        self._pool = await asyncpg.create_pool(
            **connect_args(self._settings),
            min_size=self._settings.pool_min,
            max_size=self._settings.pool_max,
            init=self._init,
        )

    def close(self) -> None:
        """Drop the connections."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.terminate()

    async def work(self, work: Callable[[asyncpg.Connection], Awaitable[Any]]) -> Any:
        """Do some work with a connection."""
        pool, connection = await self._acquire()
        task = asyncio.ensure_future(work(connection))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            connection.terminate()
            await asyncio.wait([task])
            raise
        finally:
            # It resets the connection, which a server that stands still keeps waiting just so.
            await pool.release(connection, timeout=_RELEASE_S)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[asyncpg.Connection]:
        """A connection in a transaction that only reads, and sees the database as it was at its beginning."""
        pool, connection = await self._acquire()
        try:
            transaction = connection.transaction(isolation="repeatable_read", readonly=True)
            await transaction.start()
            try:
                yield connection
            except asyncio.CancelledError:
                raise
            except BaseException:
                if not connection.is_closed():
                    await transaction.rollback()
                raise
            await transaction.rollback()
        except asyncio.CancelledError:
            connection.terminate()
            raise
        finally:
            await pool.release(connection, timeout=_RELEASE_S)

    async def _acquire(self) -> tuple[asyncpg.Pool, asyncpg.Connection]:
        """A connection; that there is none to be had never counts against the data."""
        pool = self._pool
        if pool is None:
            raise ConnectionError("not connected")
        try:
            return pool, await pool.acquire()
        except Exception as error:
            if isinstance(self._classify(error), Reject):
                raise ConnectionError(f"{type(error).__name__}: {error}") from error
            raise
