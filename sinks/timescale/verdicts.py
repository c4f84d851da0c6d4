"""What the errors of PostgreSQL, TimescaleDB and the driver mean to delivery.

What a server says of itself is tried again, since a lost row is worse than a late one: PostgreSQL's SQLSTATE classes
that are not of the data, its internal errors (XX) among them, and those of TimescaleDB (TS) and YugabyteDB (YB). Any
other class is taken for the user's own, of a trigger that would refuse the same row for ever: the row is refused, or
nothing behind it would ever be stored.
"""

import re
import ssl
from typing import Final

import asyncpg

from schemas.reading import Rejected
from sinks.base import Fatal, Reject, Retry, Verdict
from sinks.timescale.layout import LayoutError, LockedError
from sinks.timescale.settings import Settings
from sinks.timescale.write import STAGING

#: SQLSTATE classes: data exceptions, constraints, views that check, limits such as an index row, and PL/pgSQL's own.
_OF_THE_DATA: Final = frozenset({"22", "23", "44", "54", "P0"})
#: All classes that PostgreSQL itself uses (its manual, appendix A).
_CLASSES: Final = frozenset(
    re.findall(
        "..",
        "0001020308090A0B0F0L0P0Z102021222324252627282B2D2F3438393B3D3F404244535455575872F0HVP0XX",
    )
)
#: Classes of servers that are made of PostgreSQL.
_OF_OTHERS: Final = frozenset({"TS", "YB"})
#: Seconds, on top of delivery's own, before a column is tried again whose table is in use; others go on meanwhile.
_LOCKED_S: Final = 5.0
#: The server's own limits: of time, for a statement and for a transaction, and of rows that TimescaleDB takes out of
#: compressed chunks for one statement.
_TOO_MUCH: Final = frozenset({"57014", "25P04", "53400"})


def _by_state(error: asyncpg.PostgresError, settings: Settings) -> Verdict:
    state = error.sqlstate or ""
    place = f"{settings.user}@{settings.host}:{settings.port}/{settings.db}"
    fatal = {
        "28P01": f"PostgreSQL refuses the password of {place}: set TIMESCALE_PASSWORD or TIMESCALE_PASSWORD_FILE",
        "28000": f"PostgreSQL does not let {place} in: look at pg_hba.conf and TIMESCALE_USER",
        "3D000": f"no database {settings.db!r} on {settings.host}:{settings.port}: make it, or set TIMESCALE_DB",
        "42P01": f"a table is missing: run iotflow schema apply ({error})"
        if STAGING not in str(error)
        else f"{place} loses temporary tables between transactions: connect without a pooler, or one in session mode",
        "42703": f"a table lacks a column: run iotflow schema apply ({error})",
        "42P10": f"a table lacks its key: run iotflow schema plan, which says how to mend it ({error})",
        "42501": f"{place} may not do this ({error}): let it read and write iotflow's tables, and make temporary ones; "
        "to add columns it must own the wide tables, else set TIMESCALE_NEW_COLUMNS=plan",
    }.get(state)
    if fatal is not None:
        return Fatal(fatal)
    if state in _TOO_MUCH:
        return Retry(f"{state}: {error}", smaller=True)
    # Of the data, or of nobody's but the user's own: a trigger may raise whatever it likes.
    if state[:2] in _OF_THE_DATA or (state and state[:2] not in _CLASSES | _OF_OTHERS):
        return Reject(Rejected("refused", f"{state}: {error}"))
    return Retry(f"{state}: {error}")


def classify(error: BaseException, settings: Settings) -> Verdict:
    """By SQLSTATE class; what is no error of a server's is tried again, unless the driver says it of the data."""
    if isinstance(error, asyncpg.PostgresError):
        return _by_state(error, settings)
    if isinstance(error, LockedError):
        return Retry(str(error), after_s=_LOCKED_S)
    if isinstance(error, LayoutError):
        return Fatal(str(error))
    if isinstance(error, ssl.SSLCertVerificationError):  # a ValueError too, but not one of the data
        return Fatal(f"the certificate of {settings.host} is not trusted ({error}): set TIMESCALE_SSL_CA")
    if isinstance(error, (ValueError, TypeError, OverflowError)):  # asyncpg cannot encode it
        return Reject(Rejected("bad_value", f"{type(error).__name__}: {error}"))
    return Retry(f"{type(error).__name__}: {error}")
