"""IoTDB: a database of the tree for each test."""

import uuid
from collections.abc import Sequence
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

    async def make(self) -> dict[str, str]:
        """Choose a name that is free."""
        self.env = {**self.server.environment(), "IOTDB_DATABASE": f"root.test_{uuid.uuid4().hex[:12]}"}
        return self.env

    async def drop(self) -> None:
        """Delete the database with all that is in it; a test may not have made it."""
        await self.apply_schema()
        async with self.opened() as sink:
            await sink.execute(f"DELETE DATABASE {self.env['IOTDB_DATABASE']}")

    async def refuse(self, readings: Sequence[Reading]) -> None:
        """Make the series of the device a number's."""
        async with self.opened() as sink:
            await sink.write(sink.prepare([self.harmless(reading) for reading in readings]).payload)

    def poisoned(self, reading: Reading) -> Reading:
        """A text for that series."""
        return replace(reading, values={"conflict": "poison"})
