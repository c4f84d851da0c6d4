"""PostgreSQL: a database for each test."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from msgspec.structs import replace

from deploy.local.postgres import DATABASE, USER, Postgres
from schemas.reading import Reading
from sinks.base import Fatal, Retry
from sinks.timescale.tables import NARROW, quoted
from tests.lab.stores import StoreLab


class Lab(StoreLab):
    """A database of the test's own; the server refuses through a constraint."""

    server_name = "postgres"
    mistakes = (
        ({"TIMESCALE_PASSWORD": "wrong"}, Fatal),
        ({"TIMESCALE_DB": "nowhere"}, Fatal),
        ({"TIMESCALE_PORT": "1"}, Retry),
    )
    server: Postgres

    async def make(self) -> dict[str, str]:
        """Make a database."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        await self._as_admin(f"CREATE DATABASE {name} OWNER {USER}")
        self.env = {**self.server.environment(), "TIMESCALE_DB": name}
        return self.env

    async def drop(self) -> None:
        """Drop it, whoever is connected."""
        await self._as_admin(f"DROP DATABASE IF EXISTS {self.env['TIMESCALE_DB']} WITH (FORCE)")
        await self._as_admin(f"DROP ROLE IF EXISTS {self._role}")

    @property
    def _role(self) -> str:
        return f"{self.env['TIMESCALE_DB']}_role"

    async def account(self) -> dict[str, str]:
        """A role that may do what the product's user may."""
        await self._as_admin(f"CREATE ROLE {self._role} LOGIN PASSWORD 'the first' IN ROLE {USER}")
        return {"TIMESCALE_USER": self._role, "TIMESCALE_PASSWORD": "the first"}

    @asynccontextmanager
    async def locked_out(self) -> AsyncIterator[None]:
        """Another password, and its sessions are ended."""
        await self._as_admin(f"ALTER ROLE {self._role} PASSWORD 'the second'")
        await self._as_admin(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{self._role}'")
        try:
            yield
        finally:
            await self._as_admin(f"ALTER ROLE {self._role} PASSWORD 'the first'")

    async def refuse(self, readings: Sequence[Reading]) -> None:
        """A constraint on the text, in the tables of the readings."""
        async with self.opened() as sink:
            tables = {
                table.name: table for table in (sink.layout.wide.get(each.measurement, NARROW) for each in readings)
            }
        connection = await self.connect()
        for table in tables.values():
            column = "conflict" if table.wide else "value_text"
            if table.wide:
                await connection.execute(f"ALTER TABLE {quoted(table.name)} ADD COLUMN {column} text")
            await connection.execute(f"ALTER TABLE {quoted(table.name)} ADD CHECK ({column} <> 'poison')")
        await connection.close()

    @staticmethod
    def harmless(reading: Reading) -> Reading:
        """Another text."""
        return replace(reading, values={"conflict": "harmless"})

    def poisoned(self, reading: Reading) -> Reading:
        """A text that the constraint forbids."""
        return replace(reading, values={"conflict": "poison"})

    async def connect(self) -> Any:
        """A connection as the product's user."""
        return await asyncpg.connect(
            host=self.env["TIMESCALE_HOST"],
            port=int(self.env["TIMESCALE_PORT"]),
            database=self.env["TIMESCALE_DB"],
            user=self.env["TIMESCALE_USER"],
            password=self.env["TIMESCALE_PASSWORD"],
        )

    async def _as_admin(self, statement: str) -> None:
        admin = await asyncpg.connect(self.server.dsn(user="postgres", database=DATABASE))
        await admin.execute(statement)
        await admin.close()
