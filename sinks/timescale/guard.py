"""Sees to it that a table is what its layout says for as long as a transaction writes to it.

COPY in binary form takes bytes as they come, and the driver remembers the types that it makes them for: where somebody
alters a column's type meanwhile, the bytes of a number would be stored as another number. So a transaction first
executes a statement that the server has prepared over the columns of the layout. That locks the table against changes
until the transaction's end, and the server refuses it where a column has become another.
"""

from typing import Final

import asyncpg

from sinks.timescale.layout import LayoutError
from sinks.timescale.tables import Table, quoted

#: What the driver, or `CREATE TABLE`, calls other than the catalog does.
_CALLED: Final = {"timestamptz": "timestamp with time zone"}
_COLUMNS: Final = """
SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute
WHERE attrelid = to_regclass(quote_ident($1)) AND attnum > 0 AND NOT attisdropped
"""


class AlteredError(LayoutError):
    """A table has other columns than those of the layout; what is to be written must be prepared for a newer one."""


class Guard:
    """Holds tables, and knows which statements each connection has prepared for it."""

    def __init__(self) -> None:
        #: By the server's process and the table: what the statement was made for; None where that was not so.
        self._made: dict[tuple[int, str], Table | None] = {}

    def forget(self, pid: int) -> None:
        """A server's process is a new one."""
        self._made = {key: table for key, table in self._made.items() if key[0] != pid}

    async def hold(self, connection: asyncpg.Connection, table: Table) -> None:
        """Lock a table against changes until the end of the transaction at hand.

        Raises `AlteredError` where its columns are not as they are in `table`; the transaction is of no more use then.
        """
        key = (connection.get_server_pid(), table.name)
        statement = quoted(f"iotflow_hold_{table.name}")
        try:
            if key in self._made:
                if (made := self._made[key]) is table or made == table:
                    await connection.execute(f"EXECUTE {statement}")
                    return
                await connection.execute(f"DEALLOCATE {statement}")
                del self._made[key]
            await self._prepare(connection, table, statement)
        except (asyncpg.FeatureNotSupportedError, asyncpg.UndefinedColumnError, asyncpg.UndefinedTableError) as error:
            if key in self._made:
                self._made[key] = None
            raise AlteredError(f"the table {table.name} has other columns than it had: {error}") from error

    async def _prepare(self, connection: asyncpg.Connection, table: Table, statement: str) -> None:
        names = ", ".join(quoted(column.name) for column in table.columns)
        query = f"SELECT {names} FROM {quoted(table.name)} WHERE false"  # noqa: S608  quoted
        await connection.execute(f"PREPARE {statement} AS {query}")
        key = (connection.get_server_pid(), table.name)
        self._made[key] = None
        await connection.reload_schema_state()  # what the driver knows may be older than the statement
        live = dict(await connection.fetch(_COLUMNS, table.name))
        for column in table.columns:
            kind = column.type.partition(" COLLATE ")[0]
            if live.get(column.name) != _CALLED.get(kind, kind):
                raise AlteredError(
                    f"the column {column.name} of {table.name} is {live.get(column.name, 'not there')}, not {kind}: "
                    "run iotflow schema plan, which says how to mend it"
                )
        self._made[key] = table
