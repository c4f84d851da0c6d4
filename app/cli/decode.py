"""`iotflow decode`: what becomes of sample payloads, without a broker."""

from __future__ import annotations

import logging
import os
import stat
import sys
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console
    from rich.text import Text

    from app.samples import Files, Form, Result, Samples
    from schemas.reading import Reading, Rejected

_REFUSED: Final = 1
#: Rows of a regular file that are laid out together; whoever types or pipes is answered at once.
_BLOCK: Final = 200
_COLUMNS: Final = ("line", "device", "channel", "time", "values", "flags")
#: A column keeps the width that it once needed, up to this.
_WIDEST: Final = 32
#: Where no terminal folds lines, nothing does.
_ENDLESS: Final = 1_000_000


class _Dialect(click.ParamType):
    """A dialect's name; they are looked for when somebody asks."""

    name = "dialect"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Every name, for `--help`."""
        del param, ctx
        return f"[{'|'.join(self._known())}]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself, when there is such a dialect."""
        if value not in self._known():
            self.fail(f"no dialect is called {value!r}; there are: {', '.join(self._known())}", param, ctx)
        return value

    @staticmethod
    def _known() -> list[str]:
        from schemas import dialects

        return [*sorted(dialects.load()), dialects.AUTO]


def _header(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> list[tuple[str, bytes]]:
    found = []
    for value in values:
        name, equals, text = value.partition("=")
        if not (name and equals):
            raise click.BadParameter(f"{value!r} is not NAME=VALUE")
        found.append((name, os.fsencode(text)))
    return found


def _name(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not value.isprintable():
        raise click.BadParameter("holds what no topic's name can")
    return value


def _time(_ctx: click.Context, _param: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    from schemas.reading import RejectedError
    from schemas.time import parse

    try:
        return int(parse(value, field="the time").timestamp() * 1000)
    except RejectedError as error:
        raise click.BadParameter(str(error)) from error


_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_DIRECTORY: Final = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("files", nargs=-1, metavar="FILE...", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--topic", callback=_name, help="Raw topic whose settings apply.  [default: the only one there is]")
@click.option("--dialect", type=_Dialect(), help="What the payloads speak, whatever the topic says.")
@click.option("--origin", metavar="TOPIC", help="Topic that they had before Kafka, as of MQTT.")
@click.option("--key", help="Key of their records.")
@click.option(
    "--header", "headers", metavar="NAME=VALUE", multiple=True, callback=_header, help="Header of their records."
)
@click.option("--content-type", help="The header that names the body's encoding, as application/cbor.")
@click.option("--received", metavar="TIME", callback=_time, help="When they were received.  [default: now]")
@click.option("--whole", is_flag=True, help="Each FILE is one payload.  [default: each line is]")
@click.option("--hex", "as_hex", is_flag=True, help="Payloads are written in hex.")
@click.option("--base64", "as_base64", is_flag=True, help="Payloads are written in base64.")
@click.option("--inputs", "inputs_file", type=_FILE, help="YAML file of inputs, instead of IOTFLOW_INPUTS.")
@click.option("--registry", "registry_file", type=_FILE, help="YAML file of data points, instead of IOTFLOW_REGISTRY.")
@click.option("--schemas", type=_DIRECTORY, help="Directory of schemas, instead of SCHEMA_REGISTRY_DIR.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each line of the input, in its order.")
@click.option("--reasons", is_flag=True, help="Only list the reason codes and flags, and what they mean.")
@click.option("--dialects", is_flag=True, help="Only list the dialects, and what they believe by default.")
def command(  # noqa: PLR0913  one for each option
    *,
    files: Sequence[str],
    topic: str | None,
    dialect: str | None,
    received: int | None,
    whole: bool,
    as_hex: bool,
    as_base64: bool,
    inputs_file: Path | None,
    registry_file: Path | None,
    schemas: Path | None,
    as_json: bool,
    reasons: bool,
    dialects: bool,
    **record: Any,
) -> None:
    """Show what becomes of sample payloads: their readings, or why they are refused. No server is needed.

    \b
      iotflow decode samples.jsonl
      iotflow decode --dialect fire --json - < samples.jsonl
      iotflow decode --dialect sparkplug-b --whole --origin spBv1.0/plant/NDATA/edge-1 payload.bin
      kcat -C -t raw_iot_data -e | iotflow decode --topic raw_iot_data -

    Each line of each FILE (- is standard input) is a payload, an empty one too; payloads that may hold a line break
    need --whole, --hex or --base64. Of the environment, KAFKA_RAW_TOPICS, IOTFLOW_INPUTS, IOTFLOW_RANGES,
    IOTFLOW_REGISTRY, SCHEMA_REGISTRY_DIR and IOTFLOW_MAX_MESSAGE_BYTES count.

    With --json, line N of the output is for line N of the input: line, dialect, readings (as on the decoded topic),
    errors (reason and error), and file, when there are several.

    Exits with 0 when everything was decoded, 1 when anything was refused, 2 when the options, the settings or a FILE
    cannot be used.
    """  # noqa: D301  click's mark for lines that stay as they are
    if reasons or dialects:
        _reasons(as_json=as_json) if reasons else _dialects(as_json=as_json)
        return
    if not files:
        raise click.UsageError("name a FILE, or - for standard input")
    if as_hex and as_base64:
        raise click.UsageError("--hex and --base64 exclude each other")
    from app.samples import Files

    given = Files(inputs_file, registry_file, schemas)
    samples = _samples(given, topic or "", dialect or "", received, record)
    results = _results(samples, files, "hex" if as_hex else "base64" if as_base64 else "plain", whole=whole)
    with _unlogged():
        code = _print_json(results) if as_json else _print(results, at_once=not all(map(_is_regular, files)))
    sys.exit(code)


@contextmanager
def _unlogged() -> Iterator[None]:
    """What is refused is said in the output, not in a log."""
    log = logging.getLogger("schemas.decoding")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def _samples(given: Files, topic: str, dialect: str, received: int | None, record: Mapping[str, Any]) -> Samples:
    from app import samples
    from app.settings import environment
    from schemas import bodies
    from schemas.dialects import HEADER_DIALECT, HEADER_ORIGIN

    headers = list(record["headers"])
    if record["origin"] is not None:
        headers.append((HEADER_ORIGIN, os.fsencode(record["origin"])))
    if record["content_type"] is not None:
        headers.append((bodies.HEADER, os.fsencode(record["content_type"])))
    key = None if record["key"] is None else os.fsencode(record["key"])
    by_header = any(name == HEADER_DIALECT for name, _ in headers)
    try:
        said, topic = samples.chosen(samples.configured(environment(), given), topic, dialect, by_header=by_header)
        return samples.Samples(said, topic, key=key, headers=headers, received_ms=received)
    except ValueError as error:  # SettingsError too
        raise click.UsageError(str(error)) from error


def _results(samples: Samples, files: Sequence[str], form: Form, *, whole: bool) -> Iterator[Result]:
    for path in files:
        try:
            with click.open_file(path, "rb") as file:
                for number, text in enumerate(_texts(file, whole=whole), 1):
                    result = samples.decode(number, text, form)
                    if len(files) > 1:
                        result.file = click.format_filename(path)
                    yield result
        except OSError as error:
            raise _UnreadableError(click.format_filename(path), error.strerror or str(error)) from error


def _texts(file: Any, *, whole: bool) -> Iterator[bytes | None]:
    from app import samples

    return iter([samples.whole(file)]) if whole else samples.lines(file)


class _UnreadableError(click.FileError):
    """A file that cannot be read, or not to its end."""

    exit_code = 2


def _print_json(results: Iterator[Result]) -> int:
    code = 0
    for result in results:
        click.echo(result.json())
        if result.errors:
            code = _REFUSED
    return code


def _print(results: Iterator[Result], *, at_once: bool) -> int:
    """Show a table, and count at its end; `at_once` says that whoever sends the payloads may be waiting."""
    sheet = _Sheet(1 if at_once else _BLOCK)
    lines, readings, refused = 0, 0, Counter[str]()
    for result in results:
        sheet.add(result)
        lines += 1
        readings += len(result.readings)
        refused.update(error.reason for error in result.errors)
    sheet.flush()
    why = ", ".join(f"{reason} {count:,}" for reason, count in refused.most_common())
    click.echo(
        f"{lines:,} lines: {readings:,} readings, {refused.total():,} refused{f' ({why})' if why else ''}", err=True
    )
    return _REFUSED if refused else 0


class _Sheet:
    """A table that may be endless: it is printed in blocks, in columns that keep their widths."""

    def __init__(self, block: int) -> None:
        self._console = _console()
        self._block = block
        self._rows: list[Sequence[Text]] = []
        self._widths = [len(name) for name in _COLUMNS]
        self._printed = False

    def add(self, result: Result) -> None:
        """The rows of one payload: its readings, then what was refused of it."""
        from app.samples import escaped
        from schemas import wire

        place = str(result.line) if result.file.__class__ is not str else f"{escaped(result.file)}:{result.line}"
        self._rows += (_row(place, wire.read(bytes(value))) for value in result.readings)
        if result.errors:
            self.flush()
            for error in result.errors:
                self._refusal(place, error)
        elif len(self._rows) >= self._block:
            self.flush()

    def flush(self) -> None:
        """Print the rows that have come together."""
        from rich.table import Table

        if not self._rows:
            return
        # What has been printed is not laid out again, so a column may only become wider.
        table = Table(box=None, pad_edge=False, header_style="bold", show_header=not self._printed)
        for column, name in enumerate(_COLUMNS):
            widest = max(row[column].cell_len for row in self._rows)
            self._widths[column] = max(self._widths[column], min(widest, _WIDEST))
            table.add_column(name, overflow="fold", min_width=self._widths[column])
        for row in self._rows:
            table.add_row(*row)
        self._console.print(table)
        self._rows.clear()
        self._printed = True

    def _refusal(self, place: str, error: Rejected) -> None:
        from rich.table import Table
        from rich.text import Text

        from app.samples import escaped
        from schemas.reasons import REASONS

        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(min_width=self._widths[0])
        line.add_column(overflow="fold")
        what = Text.assemble((error.reason, "bold red"), (f": {escaped(error.error)}", "red"))
        what.append(f" ({REASONS[error.reason]})", "dim")
        line.add_row(Text(place), what)
        self._console.print(line)


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_ENDLESS)


def _row(place: str, reading: Reading) -> Sequence[Text]:
    from rich.text import Text

    from app.samples import escaped

    values = [_value(reading, metric) for metric in reading.values]
    return (
        Text(place),
        Text(escaped(reading.device_id)),
        Text(escaped(reading.channel)),
        Text(reading.time.isoformat().replace("+00:00", "Z")),
        Text("  ".join(values)),
        Text(", ".join(reading.flags), "yellow"),
    )


def _value(reading: Reading, metric: str) -> str:
    from app.samples import escaped
    from schemas.payload import quoted

    shown = f"{escaped(metric)}={quoted(reading.values[metric])}"
    if unit := reading.units.get(metric):
        shown += f" {escaped(unit)}"
    return f"{shown} (said {quoted(reading.raw[metric])})" if metric in reading.raw else shown


def _is_regular(path: str) -> bool:
    return path != "-" and stat.S_ISREG(Path(path).stat().st_mode)


def _reasons(*, as_json: bool) -> None:
    from schemas.reading import FLAGS
    from schemas.reasons import REASONS

    if as_json:
        _echo_json({"reasons": REASONS, "flags": FLAGS})
        return
    _list("reason", "why something was refused", REASONS)
    click.echo()
    _list("flag", "what is said about a reading that was kept", FLAGS)


def _dialects(*, as_json: bool) -> None:
    from app import samples

    found = samples.about()
    if as_json:
        _echo_json(found)
        return
    _list("dialect", "what it believes by default", {name: _beliefs(own) for name, own in found.items()})


def _beliefs(own: Mapping[str, Any]) -> str:
    """A dialect in some lines."""
    policy = own["policy"]
    lines = [own["about"]]
    lines += [f"Kafka topic {topic}" for topic in own["topics"]]
    if own["origin"] is not None:
        lines.append(f"original topics like {own['origin']}")
    lines += [f"{name}: {_belief(metric)}" for name, metric in policy["metrics"].items()]
    if policy["required"]:
        lines.append(f"required: {', '.join(policy['required'])}")
    lines.append(f"unparsable: {policy['unparsable']}")
    for part in ("time", "device_id"):
        lines.append(f"{part}: {', '.join(f'{name}={_said(value)}' for name, value in policy[part].items())}")
    lines += [f"option {name}: {_said(value)}" for name, value in own["options"].items()]
    return "\n".join(lines)


def _belief(metric: Mapping[str, Any]) -> str:
    low, high = (_said(metric[end]) for end in ("low", "high"))
    words = [f"{low}..{high}, outside: {metric['outside']}"] if (low, high) != ("-", "-") else []
    if metric["unit"] is not None:
        words.append(f"in {metric['unit']}" + (f", said in {metric['said_in']}" if metric["said_in"] else ""))
    return ", ".join(words) or "any"


def _said(value: object) -> str:
    """A default, as short as it can be said."""
    if value is None or value == "":
        return "-"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _list(what: str, meaning: str, found: Mapping[Any, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(what, no_wrap=True)
    table.add_column(meaning, overflow="fold")
    for name, text in found.items():
        table.add_row(Text(name), Text(text))
    _console().print(table)


def _echo_json(found: object) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
