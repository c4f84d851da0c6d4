"""asyncpg: COPY to a staging table and the upsert from it, in one transaction."""

from typing import Any

import asyncpg

from sinks import timescale
from tests.bench.stores import Bare
from tests.lab.stores import StoreLab


class Client(Bare):
    """The sink's own statements. Its rows are the lists of values that asyncpg takes, so there is no other way."""

    client_us = 6
    stock = True

    @staticmethod
    async def settle(lab: StoreLab) -> None:
        """After a checkpoint."""
        made: Any = lab
        await made._as_admin("CHECKPOINT")

    async def open(self) -> None:
        """Connect, and make the staging table."""
        self._columns = [column.name for column in timescale.COLUMNS if not column.derived]
        self._upsert = timescale.upsert()
        self._connection = await asyncpg.connect(**timescale.connect_args(self.settings))
        await self._connection.execute(timescale.staging())

    async def send(self, payload: Any) -> None:
        """One transaction."""
        async with self._connection.transaction():
            await self._connection.copy_records_to_table(timescale.STAGING, records=payload, columns=self._columns)
            await self._connection.execute(self._upsert)
