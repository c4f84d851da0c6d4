"""One step from what a database has to what it should have."""

from collections.abc import Sequence

from msgspec import Struct

from sinks.base import Change
from sinks.timescale.tables import quoted


class Step(Struct, frozen=True):
    """A difference and the statements that end it, done together; none for what is left to a person.

    `otherwise` are done where those cannot replace a view.
    """

    change: Change
    sql: Sequence[str] = ()
    otherwise: Sequence[str] = ()


def refused(what: str, detail: str) -> Step:
    """What is never done in place; `detail` says why, and what a person can do."""
    return Step(Change(what, "refused", detail))


def aside(name: str) -> str:
    """How a person makes room for a table of ours."""
    return (
        f"move it out of the way with its indexes (CREATE SCHEMA old; ALTER TABLE {quoted(name)} SET SCHEMA old), "
        "apply again, and copy over what it holds"
    )


def literal(text: str) -> str:
    """A text as SQL has it."""
    return "E'" + text.replace("\\", "\\\\").replace("'", "''") + "'"
