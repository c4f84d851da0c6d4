"""`iotflow bench`: how good the detectors are, on public benchmarks and where nothing is wrong."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tables.detectors import Tuning

_FEW_POINTS = 1_000


class _Profile(click.ParamType):
    """A profile's name, looked up when somebody asks."""

    name = "profile"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """Every name, for `--help`."""
        del param, ctx
        from tables.detectors import PROFILES

        return f"[{'|'.join(PROFILES)}]"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The name itself, when there is such a profile."""
        from tables.detectors import PROFILES

        if value not in PROFILES:
            self.fail(f"no profile is called {value!r}; there are: {', '.join(PROFILES)}", param, ctx)
        return value


def _profile(default: str) -> Callable[[Any], Any]:
    return click.option(
        "--profile", type=_Profile(), default=default, show_default=True, help="How sensitive the detectors are."
    )


_folder = click.argument("folder", type=click.Path(path_type=Path))
_json = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")


@click.group()
def command() -> None:
    """Measure the detectors: on the public benchmarks NAB and SKAB, and on series without anomalies.

    The data are not part of iotflow: clone github.com/numenta/NAB and github.com/waico/SKAB. A series is read once,
    from its beginning, and each point judged only by those before it. Times are CPU time of this process.
    """


@command.command()
@_folder
@_profile("nab")
@_json
def nab(folder: Path, *, profile: str, as_json: bool) -> None:
    """Score Envelope and Surprise as NAB does.

    By the rules of the Numenta Anomaly Benchmark, version 1.1.

    FOLDER is the root of a clone, its data, or any folder with data/GROUP/NAME.csv and combined_windows.json in labels
    or beside data. 0 is a detector that never speaks, 100 one that catches every anomaly at once and nothing else. As
    NAB does, the threshold is the best one for all files and each of its three profiles of costs; `at_one` has the
    scores at the detectors' own threshold, which is chosen without the files.
    """
    from app import nab as benchmark

    with _clear_errors():
        files = benchmark.read(folder)
    result = benchmark.bench(files, _tuning(profile), _progress(len(files)))
    if as_json:
        _print_json(
            {
                **result.scores,
                "at_one": result.at_one,
                "thresholds": result.thresholds,
                "files": result.files,
                "windows": result.windows,
                "points": result.points,
                "us_per_point": result.us_per_point,
                "profile": profile,
            }
        )
        return
    rows = [
        (name, f"{score:.2f}", f"{result.thresholds[name]:.4f}", f"{result.at_one[name]:.2f}")
        for name, score in result.scores.items()
    ]
    _print_table(("costs", "score", "at threshold", "score at 1"), rows)
    click.echo(
        f"{result.files} files, {result.windows} windows, {result.points} points, {result.us_per_point:.2f} us a "
        f"point, profile {profile}"
    )


@command.command()
@_folder
@_profile("default")
@_json
def skab(folder: Path, *, profile: str, as_json: bool) -> None:
    """Score the level-shift chart as SKAB does.

    By the rules of the Skoltech Anomaly Benchmark, version 0.9.

    FOLDER is the root of a clone or its data, with valve1, valve2 and other. The first 400 rows of a file are learnt
    from, the others tested; a row is abnormal while the chart of any sensor is. far is the share of normal rows with an
    alarm, mar that of abnormal rows without one: in JSON all three are between 0 and 1. More than half of the tested
    rows are abnormal, so that alarms everywhere would have an F1 of .70: look at far and mar.
    """
    from app import skab as benchmark

    with _clear_errors():
        files = benchmark.read(folder)
    result = benchmark.bench(files, _tuning(profile), _progress(len(files)))
    if as_json:
        import msgspec

        _print_json({**msgspec.to_builtins(result), "profile": profile})
        return
    _print_table(
        ("F1", "false alarms", "missed"),
        [(f"{result.f1:.3f}", f"{100 * result.far:.1f} %", f"{100 * result.mar:.1f} %")],
    )
    click.echo(
        f"{result.files} files, {result.rows} tested rows, {result.points} points, {result.us_per_point:.2f} us a "
        f"point, profile {profile}"
    )


@command.command()
@click.option("--points", type=click.IntRange(min=_FEW_POINTS), help="Of each series; 400000 if not given.")
@click.option("--seed", type=int, help="For other series of the same kinds.")
@_profile("default")
@_json
def quiet(points: int | None, seed: int | None, *, profile: str, as_json: bool) -> None:
    """Count alarms where nothing is wrong.

    The series are made up, with a point a minute. Normal and uniform: values independent of each other; ar1: each .95
    of the one before and a normal one; daily: a sine of a day and a tenth of it as noise; walk: a random walk. The
    figures are alarms that went on in 100,000 points (69 days), the detectors' own learning included.
    """
    from app import quiet as benchmark

    chosen = {"points": points, "seed": seed}
    given = {name: value for name, value in chosen.items() if value is not None}
    result = benchmark.bench(_tuning(profile), on_series=_progress(len(benchmark.SERIES)), **given)
    if as_json:
        import msgspec

        _print_json({**msgspec.to_builtins(result), "profile": profile})
        return
    rows = [
        (name, *(f"{figure:.2f}" for figure in (a.envelope, a.surprise, a.shift, a.alarms)))
        for name, a in result.series.items()
    ]
    _print_table(("alarms in 100,000 points", "envelope", "surprise", "level shift", "together"), rows)
    click.echo(f"{result.points} points of each, {result.us_per_point:.2f} us a point, profile {profile}")


def _tuning(profile: str) -> Tuning:
    from tables.detectors import PROFILES

    return PROFILES[profile]


@contextmanager
def _clear_errors() -> Iterator[None]:
    from app.detection import FolderError

    try:
        yield
    except FolderError as error:
        raise click.ClickException(str(error)) from error


def _progress(total: int) -> Callable[[str], None]:
    """What says on stderr which of so many things is done."""
    numbers = count(1)
    return lambda name: click.echo(f"{next(numbers)}/{total} {name}", err=True)


def _print_json(result: dict[str, Any]) -> None:
    json.dump(result, sys.stdout, indent=2)
    click.echo()


def _print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
