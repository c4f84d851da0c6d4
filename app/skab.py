"""The Skoltech Anomaly Benchmark: its files, and how well the level-shift charts find the states marked in them.

By the rules of github.com/waico/SKAB 0.9: the first 400 rows of a file are for learning, the others are tested, each
row being a case. A device is in an abnormal state while the chart of any of its sensors is.
"""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from msgspec import Struct

from app.detection import FolderError, finite, judge, microseconds
from tables.detectors import Tuning

#: Rows at the beginning of a file that are not tested.
LEARNING: Final = 400
_GROUPS: Final = ("valve1", "valve2", "other")
_TIME: Final = "datetime"
_MARK: Final = "anomaly"
_MARKS: Final = (_MARK, "changepoint")


class File(Struct, frozen=True):
    """One experiment: times in microseconds, the values of each sensor, and which rows are marked abnormal."""

    name: str
    times_us: list[int]
    sensors: dict[str, list[float]]
    abnormal: list[bool]


class Result(Struct, frozen=True):
    """Over all tested rows: F1, the share of normal rows with an alarm (far), of abnormal ones without (mar)."""

    f1: float
    far: float
    mar: float
    files: int
    rows: int
    points: int
    us_per_point: float


def read(folder: Path) -> list[File]:
    """Every file of a folder in SKAB's layout, which may be the repository's root; raises `FolderError`."""
    root = folder / "data" if (folder / "data").is_dir() else folder
    paths = [path for group in _GROUPS for path in sorted((root / group).glob("*.csv"))]
    if not paths:
        raise FolderError(
            [
                f"{folder}: is not in the layout of github.com/waico/SKAB: there should be files like valve1/0.csv in "
                f"{', '.join(_GROUPS)} (or in those of its folder data)"
            ]
        )
    files, problems = [], []
    for path in paths:
        try:
            files.append(_file(path, path.relative_to(root).as_posix()))
        except (OSError, ValueError) as error:
            problems.append(f"{path}: {error}")
    if problems:
        raise FolderError(problems)
    return files


def bench(files: Sequence[File], tuning: Tuning, on_file: Callable[[str], None] = lambda _: None) -> Result:
    """Run the detectors over every sensor, each from nothing; `on_file` hears the name of each file when done."""
    found, missed, false, quiet = 0, 0, 0, 0
    points, seconds = 0, 0.0
    for file in files:
        alarms = [False] * len(file.abnormal)
        for values in file.sensors.values():
            judged = judge(file.times_us, values, tuning)
            seconds += judged.seconds
            points += len(values)
            alarms = [on or bool(said.shift.severity) for on, said in zip(alarms, judged.findings, strict=True)]
        for abnormal, alarm in list(zip(file.abnormal, alarms, strict=True))[LEARNING:]:
            found += abnormal and alarm
            missed += abnormal and not alarm
            false += alarm and not abnormal
            quiet += not (alarm or abnormal)
        on_file(file.name)
    return Result(
        f1=_share(2 * found, 2 * found + false + missed),
        far=_share(false, false + quiet),
        mar=_share(missed, missed + found),
        files=len(files),
        rows=found + missed + false + quiet,
        points=points,
        us_per_point=1e6 * _share(seconds, points),
    )


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _file(path: Path, name: str) -> File:
    with path.open(newline="", encoding="utf-8") as lines:
        rows = csv.reader(lines, delimiter=";")
        columns = next(rows, [])
        sensors = {column: list[float]() for column in columns if column not in {_TIME, *_MARKS}}
        if _TIME not in columns or _MARK not in columns or not sensors:
            raise ValueError(f"its columns are {';'.join(columns)!r}: there should be {_TIME}, sensors and {_MARK}")
        times, abnormal = [], []
        for line, row in enumerate(rows, 2):
            try:
                cells = dict(zip(columns, row, strict=True))
                times.append(microseconds(cells[_TIME]))
                abnormal.append(finite(cells[_MARK]) > 0)
                for sensor, values in sensors.items():
                    values.append(finite(cells[sensor]))
            except ValueError as error:
                raise ValueError(f"line {line}: {error}") from error
    if len(times) <= LEARNING:
        raise ValueError(f"it has {len(times)} rows, of which the first {LEARNING} are not tested")
    return File(name, times, sensors, abnormal)
