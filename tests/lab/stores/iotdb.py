"""IoTDB: a database of the tree for each test."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from msgspec.structs import replace

from schemas.reading import Reading
from sinks.base import Fatal, Retry
from tests.lab.stores import StoreLab


class Lab(StoreLab):
    """A database of the test's own; the server refuses a text where the series is a number."""

    server_name = "iotdb"
    mistakes = (
        ({"IOTDB_PASSWORD": "wrong"}, Fatal),
        ({"IOTDB_PORT": "1"}, Retry),
    )
    server: Any
    _with_account = False

    async def make(self) -> dict[str, str]:
        """Choose a name that is free."""
        self.env = {**self.server.environment(), "IOTDB_DATABASE": f"root.test_{uuid.uuid4().hex[:12]}"}
        return self.env

    async def drop(self) -> None:
        """Delete the database with all that is in it; a test may not have made it."""
        await self.apply_schema()
        async with self.opened() as sink:
            await sink.execute(f"DELETE DATABASE {self.env['IOTDB_DATABASE']}")
            if self._with_account:
                await sink.execute(f"DROP USER {self._user}")

    async def refuse(self, readings: Sequence[Reading]) -> None:
        """Make the series of the device a number's."""
        async with self.opened() as sink:
            await sink.write(sink.prepare([self.harmless(reading) for reading in readings]).payload)

    def poisoned(self, reading: Reading) -> Reading:
        """A text for that series."""
        return replace(reading, values={"conflict": "poison"})

    @property
    def _user(self) -> str:
        return self.env["IOTDB_DATABASE"].removeprefix("root.")

    async def account(self) -> dict[str, str]:
        """A user with the rights that the remedy for missing ones names."""
        await self._as_admin(f"CREATE USER {self._user} 'the-first'")
        self._with_account = True
        rights = "READ_DATA, WRITE_DATA, READ_SCHEMA, WRITE_SCHEMA"
        await self._as_admin(f"GRANT {rights} ON {self.env['IOTDB_DATABASE']}.** TO USER {self._user}")
        return {"IOTDB_USER": self._user, "IOTDB_PASSWORD": "the-first"}

    @asynccontextmanager
    async def locked_out(self) -> AsyncIterator[None]:
        """Another password, and the server is started anew: it asks nobody for it who is logged in."""
        await self._as_admin(f"ALTER USER {self._user} SET PASSWORD 'the-second'")
        await asyncio.to_thread(self.server.kill)
        await asyncio.to_thread(self.server.start)
        try:
            yield
        finally:
            await self._as_admin(f"ALTER USER {self._user} SET PASSWORD 'the-first'")

    async def _as_admin(self, statement: str) -> None:
        async with self.opened() as sink:
            await sink.execute(statement)
