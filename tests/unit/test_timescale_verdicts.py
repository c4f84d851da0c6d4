"""What the database's errors mean: whether a row is at fault, or everything is to be tried again."""

import asyncpg
import pytest

from sinks.base import Fatal, Reject, Retry
from sinks.timescale import Settings, TimescaleSink
from sinks.timescale.layout import LockedError


def raised(state: str) -> asyncpg.PostgresError:
    """The driver's error for what a server says."""
    error = asyncpg.PostgresError.new({"S": "ERROR", "C": state, "M": "in its words"})
    assert isinstance(error, asyncpg.PostgresError)
    return error


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        *dict.fromkeys(("TS000", "TS001", "TS101", "TS503", "YB001", "YB007"), Retry).items(),
        *dict.fromkeys(
            ("XX000", "XX001", "08006", "40P01", "55P03", "57P01", "53300", "58030", "0A000"), Retry
        ).items(),
        *dict.fromkeys(("22003", "23514", "44000", "54000", "P0001"), Reject).items(),
        # A trigger's own words.
        *dict.fromkeys(("U0001", "IO123", "99999"), Reject).items(),
        *dict.fromkeys(("28P01", "42P01", "42501"), Fatal).items(),
    ],
)
def test_a_state_says_who_is_at_fault(state: str, kind: type) -> None:
    """The row, the server, or a person who must act; in the server's words."""
    verdict = TimescaleSink(Settings()).classify(raised(state))

    assert isinstance(verdict, kind)
    assert kind is Fatal or "in its words" in repr(verdict)


def test_a_table_in_use_is_tried_again_after_a_pause() -> None:
    """So that others get their turn meanwhile."""
    verdict = TimescaleSink(Settings()).classify(LockedError("whom it waits for"))

    assert isinstance(verdict, Retry)
    assert verdict.why == "whom it waits for"
    assert verdict.after_s is not None
    assert verdict.after_s > 1
