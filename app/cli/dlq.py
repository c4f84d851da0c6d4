"""`iotflow dlq`: the dead letters: which there are and why, sending them again, and putting them aside."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from heapq import nlargest
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from app.cli import _letters
from app.cli._kafka import with_kafka
from app.cli._terminal import bar, on_signal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from app.deadletters import Done, Shown, Verdict
    from app.settings import Settings
    from schemas.letterstate import Entry, Filter, Index, Plan

_FAILED: Final = 1
_SKIPPED: Final = 3
_STOPPED: Final = 130
#: More letters than this are asked about, where there is somebody to ask.
_MANY: Final = 100
_ORIGINAL: Final = "original"
_ANY: Final = "all"
_STATES: Final = ("open", "replayed", "dropped", _ANY)
_BY: Final = ("stage", "reason", "dialect", "device", "topic", "state", "attempt")

Command = TypeVar("Command", bound="Callable[..., None]")


def _reasons(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> Sequence[str]:
    from schemas.reasons import REASONS

    unknown = next((value for value in values if value not in REASONS), None)
    if unknown is not None:
        raise click.BadParameter(f"no reason is called {unknown!r}; there are: {', '.join(REASONS)}")
    return values


def _moment(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    from schemas import duration

    try:
        return int(duration.moment(value, datetime.now(UTC)).timestamp() * 1000)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _rate(_ctx: click.Context, _param: click.Parameter, value: str | None) -> float:
    if value is None:
        return 0.0
    number, _, per = value.partition("/")
    try:
        rate = float(number)
    except ValueError:
        rate = 0.0
    if per not in {"", "s"} or not 0 < rate < float("inf"):
        raise click.BadParameter(f"{value!r} is no rate above 0, as 100/s")
    return rate


def _filters(function: Command) -> Command:
    """ID... and the options that choose letters."""
    options = (
        click.argument("ids", nargs=-1, metavar="[ID]..."),
        click.option("--reason", "reasons", multiple=True, callback=_reasons, help="Refused for this reason."),
        click.option("--stage", "stages", multiple=True, help="Refused by this stage, as decode or store-timescale."),
        click.option("--dialect", "dialects", multiple=True, help="Of this dialect."),
        click.option(
            "--device", "devices", multiple=True, help="Of this device; of what was not decoded, with this record key."
        ),
        click.option("--topic", "topics", multiple=True, help="Whose record was read from this topic."),
        click.option(
            "--since", metavar="TIME", callback=_moment, help="Refused at TIME or later: ISO 8601, or 1h, 7d."
        ),
        click.option("--until", metavar="TIME", callback=_moment, help="Refused before TIME."),
        click.option(
            "--state", type=click.Choice(_STATES), default="open", show_default=True, help="What became of them."
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text for people.")
_yes = click.option("--yes", is_flag=True, help="Do not ask, however many there are.")
_dry_run = click.option("--dry-run", is_flag=True, help="Only say what would be done.")


@click.group()
def command() -> None:
    """List, show, count, send again and drop dead letters: what could not be decoded or stored.

    Options that choose letters may be repeated: one of each kind must be true of a letter. One failure is one letter,
    however often its record was delivered.
    """
    logging.getLogger("schemas.decoding").setLevel(logging.CRITICAL)  # what is refused is said in the output


@command.command()
@_filters
@click.option(
    "--limit", type=click.IntRange(0), default=50, show_default=True, help="At most this many, the newest; 0: all."
)
@_json
def ls(ids: Sequence[str], *, limit: int, as_json: bool, **options: Any) -> None:
    """List letters, the newest first; with --json one object a line.

    Exits with 0, and with 1 when one that is named is not there, or the topics cannot be read.
    """
    from app import deadletters

    chosen = _filter(ids, options)

    async def run(settings: Settings) -> tuple[Index, int, list[tuple[Entry, str]]]:
        index = await _index(settings, as_json=as_json)
        found = [entry for entry in index if chosen.admits(entry)]
        newest = nlargest(limit or len(found), found, key=lambda entry: (entry.failed_ms, entry.id))
        return index, len(found), [pair async for pair in deadletters.errors(settings, newest)]

    index, count, shown = with_kafka(run)
    if as_json:
        for entry, error in shown:
            click.echo(_letters.as_json(_letters.entry_object(entry, error)))
    elif shown:
        _letters.print_list(shown)
    if len(shown) < count:
        click.echo(f"{len(shown):,} of {_letters.counted(count)} shown: --limit 0 shows all", err=True)
    elif not as_json:
        click.echo(_letters.counted(count), err=True)
    sys.exit(_FAILED if _missing(index, chosen) else 0)


@command.command()
@click.argument("id", metavar="ID")
@click.option("--raw", is_flag=True, help="Only write the bytes that it holds, as they are, secrets included.")
@_json
def show(id: str, *, raw: bool, as_json: bool) -> None:  # noqa: A002  as the argument is called
    """Show all that is known of a letter, and what decode makes of its payload now.

    Values of fields that are named like secrets are hidden; --raw hides nothing.

    Exits with 0, and with 1 when there is no such letter, or the topics cannot be read.
    """
    from app import deadletters
    from schemas.letterstate import DECODE

    async def run(settings: Settings) -> tuple[Shown | None, Verdict | str | None]:
        found = await deadletters.show(settings, id)
        if found is None or raw or found.entry.stage != DECODE or not found.entry.whole:
            return found, None
        return found, await _verdict(settings, found)

    found, verdict = with_kafka(run)
    if found is None:
        raise click.ClickException(f"there is no letter {id}: iotflow dlq ls --state all lists those that there are")
    if raw:
        sys.stdout.buffer.write(found.held.value or b"")
        sys.stdout.flush()
        if not found.entry.whole:
            click.echo("the letter does not hold all of its record", err=True)
    elif as_json:
        click.echo(_letters.as_json(_letters.letter_object(found, verdict), indent=2))
    else:
        _letters.print_letter(found, verdict)


@command.command()
@_filters
@click.option("--by", multiple=True, type=click.Choice(_BY), help="Count by this; several count together.")
@click.option("--top", type=click.IntRange(1), default=10, show_default=True, help="So many devices, and rows of --by.")
@_json
def stats(ids: Sequence[str], *, by: Sequence[str], top: int, as_json: bool, **options: Any) -> None:
    """Count letters by stage, reason, dialect, device, topic, state and attempt.

    Exits with 0, and with 1 when one that is named is not there, or the topics cannot be read.
    """
    from schemas.letterstate import stats as count

    chosen = _filter(ids, options)
    index = with_kafka(lambda settings: _index(settings, as_json=as_json))
    found = count((entry for entry in index if chosen.admits(entry)), by, top)
    if as_json:
        together = [dict(zip(by, values, strict=True)) | {"letters": number} for values, number in found.together]
        click.echo(
            _letters.as_json(
                {
                    "letters": found.letters,
                    "oldest": _letters.time_of(found.oldest_ms),
                    "newest": _letters.time_of(found.newest_ms),
                    **found.counts,
                    **({"by": together} if by else {}),
                    "repeated_records": index.repeats,
                    "strange_records": index.strange,
                },
                indent=2,
            )
        )
    else:
        _letters.print_stats(found, by, top)
    sys.exit(_FAILED if _missing(index, chosen) else 0)


@command.command()
@_filters
@click.option(
    "--to",
    default=_ORIGINAL,
    show_default=True,
    metavar="STAGE",
    help="Where to: back to the stage that refused it, or what a store refused to another store's stage.",
)
@click.option("--rate", callback=_rate, metavar="N/s", help="At most N records a second.  [default: as fast as can be]")
@click.option(
    "--max-attempts",
    type=click.IntRange(2),
    default=5,
    show_default=True,
    help="What has failed so often is not sent again.",
)
@_dry_run
@_yes
@_json
def replay(  # noqa: PLR0913  one for each option
    ids: Sequence[str],
    *,
    to: str,
    rate: float,
    max_attempts: int,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Send letters again, in the order in which their records first came; what failed less often goes first.

    What decode refused goes back to its raw topic; what a store refused goes to that store's stage alone. A raw record
    is sent once for all its open letters. It may be interrupted at any time: the same command goes on from there.

    What goes to another store with --to stays open, since its own store has not got it: replay it without --to as well,
    or drop it. The same command sends it once more, which changes nothing in the store.

    Exits with 0 when all that was chosen was sent, 1 when something failed or one that is named is not there, 3 when
    some cannot be sent (the rest was), 130 when it was interrupted.
    """
    from app import deadletters
    from schemas.letterstate import plan as planned

    chosen = _filter(ids, options)

    async def run(settings: Settings) -> tuple[Index, Plan, Done | None]:
        readers = deadletters.readers(settings)
        if to != _ORIGINAL and to not in readers:
            raise click.BadParameter(f"no stage is called {to!r}; there are: {', '.join(readers)}", param_hint="--to")
        index = await _index(settings, as_json=as_json)
        target = "" if to == _ORIGINAL else to
        plan = planned(index, chosen, readers=readers, to=target, max_attempts=max_attempts)
        if dry_run or not plan.records:
            return index, plan, None
        if not yes:
            _confirm(f"Send {_letters.counted(plan.letters)} again?", plan.letters)
        with bar("sent again", as_json=as_json) as on_sent:
            done = await deadletters.replay(settings, plan, rate=rate, by=_who(), stop=on_signal(), on_sent=on_sent)
        return index, plan, done

    index, plan, done = with_kafka(run)
    skipped = plan.skipped if done is None else done.skipped
    if as_json:
        click.echo(_letters.as_json(_letters.replay_object(plan, done, skipped, dry_run=dry_run), indent=2))
    else:
        _letters.print_replay(plan, done, skipped, dry_run=dry_run)
    missing = _missing(index, chosen)
    sys.exit(_STOPPED if done is not None and done.stopped else _FAILED if missing else _SKIPPED if skipped else 0)


@command.command()
@_filters
@_dry_run
@_yes
@_json
def drop(ids: Sequence[str], *, dry_run: bool, yes: bool, as_json: bool, **options: Any) -> None:
    """Mark letters as dropped: nobody needs them any more. Nothing is deleted; `replay --state dropped` sends them.

    Say which: an ID, or an option that chooses.

    Exits with 0, and with 1 when something failed or one that is named is not there.
    """
    from app import deadletters

    chosen = _filter(ids, options)
    if not ids and not any(value for name, value in options.items() if name != "state"):
        raise click.UsageError("name an ID, or say which with --reason, --stage, --device, --until, …")

    async def run(settings: Settings) -> tuple[Index, int]:
        index = await _index(settings, as_json=as_json)
        found = [entry for entry in index if chosen.admits(entry)]
        if found and not dry_run:
            if not yes:
                _confirm(f"Drop {_letters.counted(len(found))}?", len(found))
            with bar("dropped", as_json=as_json) as on_sent:
                await deadletters.drop(settings, found, by=_who(), on_sent=on_sent)
        return index, len(found)

    index, count = with_kafka(run)
    if as_json:
        click.echo(_letters.as_json({"letters": count, "dry_run": dry_run}, indent=2))
    else:
        click.echo(f"{_letters.counted(count)} {'would be dropped' if dry_run else 'dropped'}")
    sys.exit(_FAILED if _missing(index, chosen) else 0)


# -- what the commands have in common ----------------------------------------------------------------------------------


def _filter(ids: Sequence[str], options: Mapping[str, Any]) -> Filter:
    from schemas.letterstate import Filter

    state = options["state"]
    return Filter(
        ids=frozenset(ids),
        **{name: frozenset(options[name]) for name in ("stages", "reasons", "dialects", "devices", "topics")},
        since_ms=options["since"],
        until_ms=options["until"],
        state=None if state == _ANY else state,
    )


async def _index(settings: Settings, *, as_json: bool) -> Index:
    from app import deadletters

    with bar("read", as_json=as_json) as on_read:
        index = await deadletters.index(settings, on_read)
    if index.strange:
        strange = _letters.counted(index.strange, "record")
        click.echo(f"{strange} of the topics cannot be read as letters or marks of iotflow's", err=True)
    return index


def _missing(index: Index, chosen: Filter) -> bool:
    """Say which letters that are named are not among the chosen; whether there are any that do not exist."""
    unknown = False
    for id_ in sorted(chosen.ids):
        entry = index.get(id_)
        if entry is None:
            unknown = True
            click.echo(f"there is no letter {_letters.safe(id_)}", err=True)
        elif chosen.state not in {None, entry.state}:
            click.echo(f"{_letters.safe(id_)} is {entry.state}: --state {_ANY} takes it in", err=True)
    return unknown


def _who() -> str:
    """Whose marks they are: USER@HOST."""
    import os
    import pwd
    import socket

    try:
        user = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may run as a user that has no name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _confirm(question: str, count: int) -> None:
    if count > _MANY and sys.stdin.isatty():
        click.confirm(question, abort=True, err=True)


async def _verdict(settings: Settings, found: Shown) -> Verdict | str:
    """What decode says of a letter's payload now, or why nobody can say."""
    from app import deadletters

    try:
        return await deadletters.decode_now(settings, found.held)
    except TimeoutError:
        return "the schemas that it needs cannot be had now"
    except ValueError as error:
        return str(error)
