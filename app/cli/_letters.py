"""How `iotflow dlq` shows letters: as tables and text for people, or as JSON; secrets are hidden in both."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast

import click

from app.cli._terminal import show, table_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from app.deadletters import Done, Shown, Verdict
    from schemas.letterstate import Entry, Plan, Skip, Stats
    from schemas.reasons import Reason

_EXAMPLES: Final = 5


def safe(said: str) -> str:
    """A text in which nothing can move a terminal's cursor."""
    from app.samples import escaped

    return escaped(said)


def as_json(found: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON in which nothing can move a terminal's cursor."""
    return json.dumps(found, indent=indent)


def time_of(ms: int | None) -> str | None:
    """Epoch milliseconds as ISO 8601; None for what is no time."""
    if ms is None:
        return None
    try:
        return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):  # headers may say anything
        return None


def entry_object(entry: Entry, error: str) -> dict[str, Any]:
    """A letter of a list, and why it was refused."""
    from schemas.letterstate import shown_device
    from schemas.redacted import text

    return {
        "id": entry.id,
        "state": entry.state,
        "replays": entry.replays,
        "attempt": entry.attempt,
        "stage": entry.stage,
        "reason": entry.reason,
        "dialect": entry.dialect,
        "device": shown_device(entry.device),
        "topic": entry.topic,
        "partition": entry.source_partition,
        "offset": entry.source_offset,
        "failed": time_of(entry.failed_ms),
        "bytes": entry.size,
        "whole": entry.whole,
        "error": text(error),
    }


def counted(number: int, what: str = "letter") -> str:
    """As `1 letter`, `2,000 letters`."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def print_list(shown: Iterable[tuple[Entry, str]]) -> None:
    """A table of letters with their errors."""
    from rich.text import Text

    from schemas.letterstate import shown_device
    from schemas.redacted import text

    table = table_of("letter", "state", "failed", "attempt", "device", "reason", "error")
    for entry, error in shown:
        failed, device = time_of(entry.failed_ms) or "", shown_device(entry.device)
        row = (entry.id, entry.state, failed, str(entry.attempt), device, entry.reason)
        table.add_row(*(Text(safe(cell)) for cell in (*row, text(error))))
    show(table)


def print_stats(found: Stats, by: Sequence[str], top: int) -> None:
    """Tables of counts; of what was counted together, the `top` rows."""
    from rich.text import Text

    click.echo(counted(found.letters))
    if not found.letters:
        return
    click.echo(f"refused from {time_of(found.oldest_ms)} to {time_of(found.newest_ms)}")
    if by:
        table = table_of("letters", *by)
        for values, number in found.together[:top]:
            table.add_row(*(Text(safe(cell)) for cell in (f"{number:,}", *values)))
        show(table)
        return
    table = table_of("", "", "letters")
    for name, counts in found.counts.items():
        for place, (value, number) in enumerate(counts.items()):
            table.add_row(*(Text(safe(cell)) for cell in ("" if place else name, value, f"{number:,}")))
    show(table)


def replay_object(
    plan: Plan, done: Done | None, skipped: Mapping[Skip, Sequence[str]], *, dry_run: bool
) -> dict[str, Any]:
    """What was sent again, or would be, and what was not."""
    from schemas.letterstate import SKIPS

    return {
        "dry_run": dry_run,
        "records": len(plan.records) if done is None else done.records,
        "letters": plan.letters if done is None else done.letters,
        "kept_open": plan.kept_open if done is None else done.kept_open,
        "stopped": done is not None and done.stopped,
        "skipped": {
            why: {"letters": len(ids), "why": SKIPS[why], "examples": ids[:_EXAMPLES]} for why, ids in skipped.items()
        },
    }


def print_replay(plan: Plan, done: Done | None, skipped: Mapping[Skip, Sequence[str]], *, dry_run: bool) -> None:
    """The same for people."""
    from schemas.letterstate import SKIPS

    letters, records = (plan.letters, len(plan.records)) if done is None else (done.letters, done.records)
    verb = "would be sent" if dry_run else "sent"
    click.echo(f"{counted(letters)} {verb} again, as {counted(records, 'record')}")
    if kept := plan.kept_open if done is None else done.kept_open:
        stay = "would stay open" if dry_run else "open still"
        click.echo(f"{counted(kept)} {stay}: their own store has not got them; replay without --to, or drop them")
    for why, ids in skipped.items():
        click.echo(f"{counted(len(ids))} not sent: {SKIPS[why]}", err=True)
        for id_ in ids[:_EXAMPLES]:
            click.echo(f"  {safe(id_)}", err=True)
    if done is not None and done.stopped:
        goes_on = "sends all of them" if plan.kept_open else "goes on"
        click.echo(f"stopped; {counted(plan.letters - done.letters)} left: the same command {goes_on}", err=True)


def _meaning(reason: str) -> str:
    from schemas.reasons import REASONS

    return REASONS.get(cast("Reason", reason), "")


def _headers(found: Shown) -> dict[str, str | None]:
    from schemas.payload import is_secret
    from schemas.redacted import HIDDEN, text

    return {
        name: HIDDEN if is_secret(name) else None if value is None else text(value.decode("utf-8", "backslashreplace"))
        for name, value in found.held.headers
    }


def _payload(found: Shown) -> str | None:
    from schemas.redacted import shown

    return None if found.held.value is None else shown(found.held.value)


def letter_object(found: Shown, verdict: Verdict | str | None) -> dict[str, Any]:
    """All that is known of a letter."""
    from schemas.redacted import shown, text

    now: dict[str, Any] | None = None
    if isinstance(verdict, str):
        now = {"unknown": verdict}
    elif verdict is not None:
        now = {
            "readings": [json.loads(shown(value) or "null") for value in verdict.readings],
            "refusals": [{"reason": reason, "error": text(error)} for reason, error in verdict.refusals],
        }
    return {
        **entry_object(found.entry, found.tries[-1].error),
        "means": _meaning(found.entry.reason) or None,
        "received": time_of(found.held.timestamp),
        "key": None if found.held.key is None else text(found.held.key.decode("utf-8", "backslashreplace")),
        "headers": _headers(found),
        "tries": [
            {
                "attempt": each.attempt,
                "failed": time_of(each.failed_ms),
                "reason": each.reason,
                "error": text(each.error),
                "version": each.version,
            }
            for each in found.tries
        ],
        "marks": [
            {"state": mark.state, "at": mark.at.isoformat(), "by": mark.by, "to": mark.to, "attempt": mark.attempt}
            for mark in found.marks
        ],
        "payload": _payload(found),
        "now": now,
    }


def print_letter(found: Shown, verdict: Verdict | str | None) -> None:
    """The same for people."""
    from rich.text import Text

    table = table_of("", "")
    table.show_header = False
    for name, value in _rows(found):
        table.add_row(Text(name, style="bold"), Text(safe(value)))
    show(table)
    click.echo()
    payload = _payload(found)
    if payload is None:
        what = "no value" if found.held.value is None else f"{found.entry.size:,} bytes that are no text: see --raw"
        click.echo(what)
    else:
        click.echo("\n".join(safe(line) for line in payload.splitlines()))
    for line in _now(verdict):
        click.echo(safe(line))


def _rows(found: Shown) -> Iterator[tuple[str, str]]:
    from schemas.letterstate import shown_device
    from schemas.redacted import text

    entry, held = found.entry, found.held
    yield "letter", entry.id
    yield "state", f"{entry.state}, sent again: {entry.replays}" if entry.replays else entry.state
    yield "stage", entry.stage
    yield "reason", f"{entry.reason}: {_meaning(entry.reason) or 'a reason that this version does not know'}"
    yield "error", text(found.tries[-1].error)
    yield "dialect", entry.dialect or "not known"
    yield "device", shown_device(entry.device) or "not known"
    yield "record", f"{entry.topic}, partition {entry.source_partition}, offset {entry.source_offset}"
    yield "received", time_of(held.timestamp) or "at no time that it says"
    yield "key", "none" if held.key is None else text(held.key.decode("utf-8", "backslashreplace"))
    for name, value in _headers(found).items():
        yield "header", f"{name}: {'null' if value is None else value}"
    if not entry.whole:
        yield "cut", "it does not hold all of its record, and cannot be sent again"
    for each in found.tries:
        yield f"attempt {each.attempt}", f"{time_of(each.failed_ms)}  {each.reason}  iotflow {each.version}"
    for mark in found.marks:
        to = f" to {mark.to}" if mark.to else ""
        by = f" by {mark.by}" if mark.by else ""
        yield "mark", f"{mark.at.isoformat(timespec='milliseconds')}  {mark.state}{to}{by}, attempt {mark.attempt}"


def _now(verdict: Verdict | str | None) -> Iterator[str]:
    """What decode says now, in lines."""
    from schemas.redacted import shown, text

    if verdict is None:
        return
    yield ""
    if isinstance(verdict, str):
        yield f"what decode makes of it now cannot be said: {verdict}"
        return
    if verdict.readings:
        yield "now it would be decoded as:" if not verdict.refusals else "now it would be decoded in part, as:"
        for value in verdict.readings:
            yield from (shown(value) or "").splitlines()
    for reason, error in verdict.refusals:
        yield f"still refused: {reason}: {text(error)}"
