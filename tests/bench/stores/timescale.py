"""asyncpg: COPY straight into the tables, in one transaction."""

from typing import Any

import asyncpg

from sinks import timescale
from sinks.timescale.write import copy
from tests.bench.stores import Bare
from tests.lab.stores import StoreLab


class Client(Bare):
    """The sink's own statements where no row is there yet, as in a measurement.

    Its rows are the lists of values that asyncpg takes, so there is no other way.
    """

    client_us = 6
    stock = True

    @staticmethod
    async def settle(lab: StoreLab) -> None:
        """After a checkpoint."""
        made: Any = lab
        await made._as_admin("CHECKPOINT")

    async def open(self) -> None:
        """Connect."""
        self._connection = await asyncpg.connect(**timescale.connect_args(self.settings))

    async def send(self, payload: Any) -> None:
        """One transaction."""
        async with self._connection.transaction():
            for stack in payload.stacks:
                await copy(self._connection, stack.table.name, stack)
