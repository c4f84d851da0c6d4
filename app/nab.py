"""The Numenta Anomaly Benchmark: its files, and its score of the detectors.

The rules of scoring are those of github.com/numenta/NAB 1.1, described in Lavin and Ahmad, "Evaluating Real-time
Anomaly Detection Algorithms", 2015: the first 15 % of a file, 750 rows at most, are not scored; in a window the best
alarm counts, the earlier the better; an alarm outside costs, less so shortly after a window; a window without an alarm
costs; one threshold for all files is the best one of each profile of costs; no alarm at all is 0, and every window
caught at once 100.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from msgspec import Struct

from app.detection import FolderError, finite, judge, microseconds
from tables.detectors import Tuning

_PROBATION: Final = 0.15
_LONGEST_PROBATION: Final = 750
#: This many widths after a window, an alarm is as false as any.
_FAR: Final = 3.0
_STEEPNESS: Final = 5.0
_LABELS: Final = "combined_windows.json"
_COLUMNS: Final = ["timestamp", "value"]


class Costs(Struct, frozen=True):
    """What a false alarm and a missed window cost, where a window caught at once is worth 1."""

    false_alarm: float
    missed: float


#: NAB's profiles of costs by name.
COSTS: Final[Mapping[str, Costs]] = MappingProxyType(
    {
        "standard": Costs(0.11, 1.0),
        "reward_low_fp_rate": Costs(0.22, 1.0),
        "reward_low_fn_rate": Costs(0.11, 2.0),
    }
)


class File(Struct, frozen=True):
    """One series: times in microseconds, values, and its anomalies as first and last row."""

    name: str
    times_us: list[int]
    values: list[float]
    windows: list[tuple[int, int]]


class Result(Struct, frozen=True):
    """The score of each profile of costs, at the best threshold of each and at 1, the detectors' own."""

    scores: dict[str, float]
    thresholds: dict[str, float]
    at_one: dict[str, float]
    files: int
    windows: int
    points: int
    us_per_point: float


class _Row(Struct, frozen=True):
    """A row that is scored: the detectors' score, what an alarm there is worth, and its window's place if in one."""

    score: float
    worth: float
    window: tuple[str, int] | None


def read(folder: Path) -> list[File]:
    """Every file of a folder in NAB's layout, which may be the repository's root or its `data`.

    Needs `data/GROUP/NAME.csv` and `combined_windows.json` in `labels` or beside `data`. Raises `FolderError`.
    """
    data, labels = _places(folder)
    try:
        windows = json.loads(labels.read_bytes())
    except (OSError, ValueError) as error:
        raise FolderError([f"{labels}: {error}"]) from error
    if not isinstance(windows, dict):
        raise FolderError([f"{labels}: is not an object of windows by file"])
    files, problems = [], []
    for path in sorted(data.glob("*/*.csv")):
        name = path.relative_to(data).as_posix()
        try:
            files.append(_file(path, name, windows))
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise FolderError(problems)
    if not files:
        raise FolderError([f"{data}: has no files like realTraffic/occupancy_6005.csv"])
    if not any(file.windows for file in files):
        raise FolderError([f"{labels}: has no window for any file of {data}, so there is nothing to score"])
    return files


def bench(files: Sequence[File], tuning: Tuning, on_file: Callable[[str], None] = lambda _: None) -> Result:
    """Run the detectors over files, each from nothing, and score them; `on_file` hears the name of each when done."""
    scores, seconds = {}, 0.0
    for file in files:
        judged = judge(file.times_us, file.values, tuning)
        seconds += judged.seconds
        scores[file.name] = [found.score for found in judged.findings]
        on_file(file.name)
    best, thresholds, at_one = {}, {}, {}
    for name, costs in COSTS.items():
        swept = sweep(files, scores, costs)
        best[name], thresholds[name] = max(swept, key=itemgetter(0))
        at_one[name] = [score for score, threshold in swept if threshold >= 1.0][-1]
    points = sum(len(file.values) for file in files)
    windows = sum(len(file.windows) for file in files)
    return Result(best, thresholds, at_one, len(files), windows, points, 1e6 * seconds / points)


def sweep(files: Sequence[File], scores: Mapping[str, Sequence[float]], costs: Costs) -> list[tuple[float, float]]:
    """NAB's score, 0 to 100, at each threshold that makes a difference, from none passed (infinite) down.

    An alarm is a row whose score is at least the threshold; `scores` has the rows of each file by its name. A score
    below 0 is worse than no alarm at all.
    """
    rows = [row for file in files for row in _rows(file, scores[file.name], costs)]
    rows.sort(key=lambda row: -row.score)
    worth = dict.fromkeys((row.window for row in rows if row.window is not None), -costs.missed)
    null = total = sum(worth.values())
    perfect = sum(len(file.windows) for file in files)
    swept = [(0.0, math.inf)]
    for threshold, group in groupby(rows, key=lambda row: row.score):
        for row in group:
            if row.window is None:
                total += row.worth
            elif row.worth > worth[row.window]:
                total += row.worth - worth[row.window]
                worth[row.window] = row.worth
        swept.append((100.0 * (total - null) / (perfect - null), threshold))
    return swept


def _rows(file: File, scores: Sequence[float], costs: Costs) -> Iterable[_Row]:
    """The rows of a file after its probation."""
    length = len(file.values)
    first = min(math.floor(_PROBATION * length), _LONGEST_PROBATION)
    ahead = list(file.windows)
    behind: tuple[int, int] | None = None
    for row in range(length):
        while ahead and row > ahead[0][1]:
            behind = ahead.pop(0)
        if row < first:
            continue
        if ahead and row >= ahead[0][0]:
            start, end = ahead[0]
            early = (end - row + 1) / (end - start + 1)
            yield _Row(scores[row], _sigmoid(-early) / _sigmoid(-1.0), (file.name, start))
        else:
            late = math.inf if behind is None else (row - behind[1]) / max(behind[1] - behind[0], 1)
            yield _Row(scores[row], costs.false_alarm * _sigmoid(late), None)


def _sigmoid(place: float) -> float:
    """From 1 well before a window's end (0) to -1 well after it, in widths of the window."""
    return -1.0 if place > _FAR else 2.0 / (1.0 + math.exp(_STEEPNESS * place)) - 1.0


def _places(folder: Path) -> tuple[Path, Path]:
    for root in (folder, folder.absolute().parent):
        data = root / "data"
        labels = [place for place in (root / "labels" / _LABELS, root / _LABELS) if place.is_file()]
        if data.is_dir() and labels and (root == folder or folder.absolute() in {data, labels[0].parent}):
            return data, labels[0]
    raise FolderError(
        [
            f"{folder}: is not in the layout of github.com/numenta/NAB: there should be data/GROUP/NAME.csv, and "
            f"labels/{_LABELS} or {_LABELS} beside data; give the folder that has both"
        ]
    )


def _file(path: Path, name: str, windows: Mapping[str, Any]) -> File:
    if name not in windows:
        raise ValueError(f"{_LABELS} does not name it; a file without anomalies has an empty list there")
    times, values = [], []
    with path.open(newline="", encoding="utf-8") as lines:
        rows = csv.reader(lines)
        if (columns := next(rows, [])) != _COLUMNS:
            raise ValueError(f"its columns are {','.join(columns)!r}, not {','.join(_COLUMNS)!r}")
        for line, row in enumerate(rows, 2):
            try:
                time, value = row
                times.append(microseconds(time))
                values.append(finite(value))
            except ValueError as error:
                raise ValueError(f"line {line}: {error}") from error
    if not values:
        raise ValueError("it has no rows")
    places: dict[int, int] = {}
    for row_, time_us in enumerate(times):
        places.setdefault(time_us, row_)
    return File(name, times, values, _windows(windows[name], places))


def _windows(found: Any, places: Mapping[int, int]) -> list[tuple[int, int]]:
    try:
        return sorted((places[microseconds(start)], places[microseconds(end)]) for start, end in found)
    except KeyError as error:
        raise ValueError(f"{_LABELS} has a window that does not begin and end at times of rows: {found}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"{_LABELS} has for it no list of pairs of times: {error}") from error
