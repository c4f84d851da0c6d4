"""PostgreSQL: a database for each test."""

import uuid
from collections.abc import Sequence
from typing import Any

import asyncpg
from msgspec.structs import replace

from deploy.local.postgres import DATABASE, USER, Postgres
from schemas.reading import Reading
from sinks.base import Fatal, Retry
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

    async def refuse(self, readings: Sequence[Reading]) -> None:  # noqa: ARG002  refused wherever it is
        """A constraint on the text."""
        connection = await self.connect()
        await connection.execute("ALTER TABLE iot_measurements ADD CHECK (value_text <> 'poison')")
        await connection.close()

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
