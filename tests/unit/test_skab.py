"""The Skoltech Anomaly Benchmark and the count of false alarms: layout, figures and commands."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner

from app import quiet, skab
from app.cli import main
from app.detection import FolderError
from tables.detectors import PROFILES

START = datetime(2026, 1, 1, tzinfo=UTC)
COLUMNS = "datetime;Pressure;Flow;anomaly;changepoint"


def experiment(length: int = 1000, shift: tuple[int, int] = (0, 0), marked: tuple[int, int] = (0, 0)) -> str:
    """Two sensors; the second one's level is elsewhere in the rows of `shift`, and those of `marked` are abnormal."""
    random = Random(length)
    lines = [COLUMNS]
    for row in range(length):
        flow = random.gauss(20.0, 1.0) + (10.0 if shift[0] <= row < shift[1] else 0.0)
        abnormal = float(marked[0] <= row < marked[1])
        lines.append(f"{START + row * timedelta(seconds=1):%Y-%m-%d %H:%M:%S};{random.random()};{flow};{abnormal};0.0")
    return "\n".join(lines) + "\n"


def write(root: Path, **files: str) -> Path:
    for name, text in files.items():
        group, _, number = name.rpartition("_")
        path = root / group / f"{number}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_rows_are_judged_by_any_sensor_and_the_first_400_are_not(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        valve1_0=experiment(shift=(600, 800), marked=(600, 800)),
        valve2_0=experiment(800, marked=(0, 400)),
        other_9=experiment(700, shift=(500, 600)),
        unrelated_1="not,read\n",
    )
    done = CliRunner().invoke(main, ["bench", "skab", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert done.stderr.splitlines() == ["1/3 valve1/0.csv", "2/3 valve2/0.csv", "3/3 other/9.csv"]
    assert (found["files"], found["rows"], found["points"]) == (3, 600 + 400 + 300, 2 * (1000 + 800 + 700))
    assert found["us_per_point"] > 0.0
    # 200 rows are abnormal, and found but for the first few; 100 and what the mean needs to come back are not.
    assert 0.0 < found["mar"] < 0.05
    assert 100 / 1100 < found["far"] < 160 / 1100
    right = 200 * (1 - found["mar"])
    assert found["f1"] == pytest.approx(2 * right / (200 + right + 1100 * found["far"]))


def test_a_table_for_people_of_a_clone(tmp_path: Path) -> None:
    write(tmp_path / "data", valve1_0=experiment(shift=(600, 800), marked=(600, 800)))
    done = CliRunner().invoke(main, ["bench", "skab", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "false alarms" in done.stdout
    assert "1 files, 600 tested rows, 2000 points" in done.stdout


def test_nothing_found_is_a_score_of_0(tmp_path: Path) -> None:
    result = skab.bench(skab.read(write(tmp_path, other_1=experiment(500))), PROFILES["default"])
    assert (result.f1, result.far, result.mar) == (0.0, 0.0, 0.0)


def test_all_that_is_wrong_with_files_is_said_at_once(tmp_path: Path) -> None:
    folder = write(
        tmp_path,
        valve1_0=experiment(400),
        valve1_1="datetime;anomaly;changepoint\n",
        valve1_2=COLUMNS.replace("anomaly", "state") + "\n",
        valve2_0=f"{COLUMNS}\n2026-01-01 00:00:00;1;2;0\n",
        valve2_1=f"{COLUMNS}\n2026-01-01 00:00:00;1;nan;0;0\n",
    )
    done = CliRunner().invoke(main, ["bench", "skab", str(folder)])
    assert done.exit_code == 1
    for name, said in {
        "valve1/0": "it has 400 rows, of which the first 400 are not tested",
        "valve1/1": "there should be datetime, sensors and anomaly",
        "valve1/2": "there should be datetime, sensors and anomaly",
        "valve2/0": "line 2: zip() argument 2 is shorter than argument 1",
        "valve2/1": "line 2: nan is not a finite number",
    }.items():
        (line,) = [line for line in done.stderr.splitlines() if f"{name}.csv: " in line]
        assert said in line


def test_a_folder_that_is_something_else(tmp_path: Path) -> None:
    with pytest.raises(FolderError, match=r"is not in the layout of github\.com/waico/SKAB"):
        skab.read(tmp_path)


# -- where nothing is wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["normal", "uniform"])
def test_independent_values_have_few_alarms(name: str) -> None:
    alarms, _ = quiet.count(name, PROFILES["default"])
    assert alarms.alarms <= 6.0
    assert alarms.shift == 0.0


def test_the_same_series_at_every_run_and_others_with_another_seed() -> None:
    arguments = ["bench", "quiet", "--profile", "nab", "--points", "3000", "--json"]
    one, two, other = (
        json.loads(CliRunner().invoke(main, [*arguments, *more]).stdout)["series"] for more in ([], [], ["--seed", "1"])
    )
    assert one == two != other
    assert one.keys() == {"normal", "uniform", "ar1", "daily", "walk"}
    for alarms in one.values():
        assert alarms["alarms"] == pytest.approx(alarms["envelope"] + alarms["surprise"] + alarms["shift"])
    assert any(alarms["alarms"] for alarms in one.values())


def test_a_table_of_alarms_for_people() -> None:
    done = CliRunner().invoke(main, ["bench", "quiet", "--points", "1000"])
    assert done.exit_code == 0, done.output
    assert "level shift" in done.stdout
    assert "1000 points of each" in done.stdout
    assert CliRunner().invoke(main, ["bench", "quiet", "--points", "10"]).exit_code == 2
