"""The Numenta Anomaly Benchmark: its layout, its score, and the command."""

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from app import nab
from app.cli import main
from app.detection import FolderError, finite, microseconds

START = datetime(2026, 1, 1, tzinfo=UTC)
STANDARD = nab.COSTS["standard"]
LOW_FN = nab.COSTS["reward_low_fn_rate"]
LOW_FP = nab.COSTS["reward_low_fp_rate"]
#: What a window caught in its middle is worth, and its left edge, before it is made 1 there: from NAB's description.
MIDDLE, EDGE = 0.84828, 0.98661


def time(row: int) -> str:
    return f"{START + row * timedelta(minutes=5):%Y-%m-%d %H:%M:%S}"


def series(length: int, *windows: tuple[int, int], name: str = "group/a.csv") -> nab.File:
    return nab.File(name, list(range(length)), [0.0] * length, list(windows))


def alarms(length: int, *rows: int) -> list[float]:
    return [float(row in rows) for row in range(length)]


def at_one(file: nab.File, rows: list[float], costs: nab.Costs) -> float:
    """The score where an alarm is a row of 1."""
    return [score for score, threshold in nab.sweep([file], {file.name: rows}, costs) if threshold >= 1.0][-1]


def write(root: Path, labels: dict[str, object], **files: str) -> Path:
    (root / "data" / "group").mkdir(parents=True)
    (root / "labels").mkdir()
    (root / "labels" / "combined_windows.json").write_text(json.dumps(labels))
    for name, text in files.items():
        (root / "data" / "group" / f"{name}.csv").write_text(text)
    return root


def rows(*values: object) -> str:
    return "timestamp,value\n" + "".join(f"{time(row)},{value}\n" for row, value in enumerate(values))


def spike(length: int, at: int) -> str:
    random = Random(5)
    return rows(*[90.0 if row == at else random.gauss(20.0, 1.0) for row in range(length)])


# -- the score ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("costs", nab.COSTS.values())
def test_no_alarm_is_0_and_every_window_caught_at_once_is_100(costs: nab.Costs) -> None:
    file = series(1000, (300, 399), (600, 650))
    assert at_one(file, alarms(1000), costs) == 0.0
    assert at_one(file, alarms(1000, 300, 600), costs) == pytest.approx(100.0)


def test_the_later_in_a_window_the_less_and_the_best_alarm_counts() -> None:
    file = series(1000, (300, 399))
    middle = 100 * (MIDDLE / EDGE + 1) / 2
    assert at_one(file, alarms(1000, 350), STANDARD) == pytest.approx(middle, abs=0.01)
    assert at_one(file, alarms(1000, 350, 360, 399), STANDARD) == pytest.approx(middle, abs=0.01)
    late = at_one(file, alarms(1000, 399), STANDARD)
    assert 50.0 < late < 52.0
    assert at_one(file, alarms(1000, 350), LOW_FN) == pytest.approx(100 * (MIDDLE / EDGE + 2) / 3, abs=0.01)


@pytest.mark.parametrize(("costs", "null"), [(STANDARD, 1), (LOW_FP, 1), (LOW_FN, 2)])
def test_an_alarm_outside_costs_less_so_shortly_after_a_window(costs: nab.Costs, null: int) -> None:
    file = series(1000, (300, 399))
    whole = -100 * costs.false_alarm / (1 + null)
    assert at_one(file, alarms(1000, 299), costs) == pytest.approx(whole)
    assert at_one(file, alarms(1000, 399 + 300), costs) == pytest.approx(whole)
    half = 2 / (1 + math.exp(5 * 50 / 99)) - 1
    assert at_one(file, alarms(1000, 449), costs) == pytest.approx(-half * whole)
    assert at_one(file, alarms(1000, 200, 250, 900), costs) == pytest.approx(3 * whole)


@pytest.mark.parametrize(("length", "first"), [(1000, 150), (1001, 150), (1007, 151), (5000, 750), (20_000, 750)])
def test_the_first_rows_do_not_count(length: int, first: int) -> None:
    file = series(length, (900, 950))
    assert at_one(file, alarms(length, 0, first - 1), STANDARD) == 0.0
    assert at_one(file, alarms(length, first), STANDARD) < 0.0


def test_one_threshold_is_for_all_files() -> None:
    files = [series(1000, (300, 399)), series(1000, (500, 599), name="group/b.csv")]
    scores = {"group/a.csv": [0.0] * 1000, "group/b.csv": [0.0] * 1000}
    scores["group/a.csv"][300] = 5.0
    scores["group/a.csv"][700] = 3.0
    scores["group/b.csv"][500] = 2.0
    swept = nab.sweep(files, scores, STANDARD)
    assert [threshold for _, threshold in swept] == [math.inf, 5.0, 3.0, 2.0, 0.0]
    assert [score for score, _ in swept[:4]] == pytest.approx([0.0, 50.0, 50.0 - 11 / 4, 100.0 - 11 / 4])
    assert max(swept)[1] == 2.0


@given(
    scores=st.lists(st.integers(0, 4).map(float), min_size=40, max_size=120),
    start=st.integers(10, 30),
    width=st.integers(2, 9),
    threshold=st.sampled_from([1.0, 2.0, 3.0, 4.0]),
)
def test_a_swept_threshold_is_the_same_alarms_by_themselves(
    scores: list[float], start: int, width: int, threshold: float
) -> None:
    file = series(len(scores), (start, start + width - 1))
    alone = at_one(file, [float(score >= threshold) for score in scores], STANDARD)
    swept = [score for score, at in nab.sweep([file], {file.name: scores}, STANDARD) if at >= threshold]
    assert swept[-1] == pytest.approx(alone)


# -- the folder --------------------------------------------------------------------------------------------------------


def test_the_command_scores_what_the_detectors_find(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {"group/a.csv": [[f"{time(680)}.000000", f"{time(719)}.000000"]], "group/b.csv": [], "group/absent.csv": []},
        a=spike(1000, 700),
        b=spike(400, 400),
    )
    done = CliRunner().invoke(main, ["bench", "nab", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert done.stderr.splitlines() == ["1/2 group/a.csv", "2/2 group/b.csv"]
    assert (found["files"], found["windows"], found["points"], found["profile"]) == (2, 1, 1400, "nab")
    assert found["us_per_point"] > 0.0
    middle = MIDDLE / EDGE
    assert found["standard"] == pytest.approx(100 * (middle + 1) / 2, abs=0.01)
    assert found["reward_low_fp_rate"] == pytest.approx(100 * (middle + 1) / 2, abs=0.01)
    assert found["reward_low_fn_rate"] == pytest.approx(100 * (middle + 2) / 3, abs=0.01)
    assert found["thresholds"]["standard"] > 1.0
    assert found["at_one"].keys() == found["thresholds"].keys() == nab.COSTS.keys()


@pytest.mark.parametrize("part", ["", "data", "labels"])
def test_the_folder_may_be_a_part_of_it(tmp_path: Path, part: str) -> None:
    folder = write(tmp_path, {"group/a.csv": [[time(2), time(3)]]}, a=rows(1, 2, 3, 4, 5))
    (file,) = nab.read(folder / part)
    assert (file.name, file.values, file.windows) == ("group/a.csv", [1.0, 2.0, 3.0, 4.0, 5.0], [(2, 3)])
    assert file.times_us[1] == START.timestamp() * 1e6 + 300e6


def test_windows_may_be_beside_data(tmp_path: Path) -> None:
    folder = write(tmp_path, {"group/a.csv": [[time(2), time(3)]]}, a=rows(1, 2, 3, 4, 5))
    (folder / "labels" / "combined_windows.json").rename(folder / "combined_windows.json")
    assert nab.read(folder) == nab.read(folder / "data")


def test_a_table_for_people(tmp_path: Path) -> None:
    folder = write(tmp_path, {"group/a.csv": [[time(680), time(719)]]}, a=spike(1000, 700))
    done = CliRunner().invoke(main, ["bench", "nab", str(folder), "--profile", "default"])
    assert done.exit_code == 0, done.output
    assert "reward_low_fn_rate" in done.stdout
    assert "1 files, 1 windows, 1000 points" in done.stdout
    assert done.stdout.rstrip().endswith("profile default")


def test_all_that_is_wrong_with_files_is_said_at_once(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        {
            "group/columns.csv": [],
            "group/cells.csv": [],
            "group/number.csv": [],
            "group/nan.csv": [],
            "group/time.csv": [],
            "group/empty.csv": [],
            "group/edges.csv": [[time(1), time(9)]],
            "group/pairs.csv": [time(1)],
        },
        columns="time,value\n",
        cells=f"timestamp,value\n{time(0)},1,2\n",
        number=rows(1, "much"),
        nan=rows(1, "nan"),
        time="timestamp,value\nyesterday,1\n",
        empty=rows(),
        edges=rows(1, 2),
        pairs=rows(1, 2),
        unknown=rows(1),
    )
    done = CliRunner().invoke(main, ["bench", "nab", str(folder)])
    assert done.exit_code == 1
    for name, said in {
        "columns": "its columns are 'time,value', not 'timestamp,value'",
        "cells": "line 2: too many values to unpack",
        "number": "line 3: could not convert string to float: 'much'",
        "nan": "line 3: nan is not a finite number",
        "time": "line 2: Invalid isoformat string: 'yesterday'",
        "empty": "it has no rows",
        "edges": "has a window that does not begin and end at times of rows",
        "pairs": "has for it no list of pairs of times",
        "unknown": "combined_windows.json does not name it",
    }.items():
        (line,) = [line for line in done.stderr.splitlines() if f"{name}.csv: " in line]
        assert said in line


@pytest.mark.parametrize(
    ("labels", "said"),
    [("{", "Expecting property name"), ("[]", "is not an object of windows by file"), ("{}", "does not name it")],
)
def test_windows_that_cannot_be_read(tmp_path: Path, labels: str, said: str) -> None:
    folder = write(tmp_path, {}, a=rows(1))
    (folder / "labels" / "combined_windows.json").write_text(labels)
    with pytest.raises(FolderError, match=said):
        nab.read(folder)


def test_folders_with_nothing_to_score(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"is not in the layout of github\.com/numenta/NAB"):
        nab.read(tmp_path)
    with pytest.raises(FolderError, match=r"is not in the layout of github\.com/numenta/NAB"):
        nab.read(tmp_path / "absent")
    folder = write(tmp_path, {"group/a.csv": []})
    with pytest.raises(FolderError, match="has no files like"):
        nab.read(folder)
    (folder / "data" / "group" / "a.csv").write_text(rows(1))
    with pytest.raises(FolderError, match="there is nothing to score"):
        nab.read(folder)
    with pytest.raises(FolderError, match="is not in the layout"):
        nab.read(folder / "data" / "group")


def test_an_unknown_profile_names_those_there_are(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["bench", "nab", str(tmp_path), "--profile", "best"])
    assert done.exit_code == 2
    assert "no profile is called 'best'; there are: default, nab" in done.stderr


def test_cells() -> None:
    assert microseconds("1970-01-01 00:00:01.500000") == 1_500_000
    assert finite(" 1e3") == 1000.0
    with pytest.raises(ValueError, match="inf is not a finite number"):
        finite("inf")
