"""Pictures of backtests: spans, thresholds and names, the same file each time, and what cannot be drawn."""

import re
import struct
import sys
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from app import picture
from app.backtest import Outcome, Panel, Raised
from app.picture import PictureError, check, draw

START = datetime(2026, 11, 23, tzinfo=UTC)
END = START + timedelta(hours=1)


def at(minute: float) -> datetime:
    return START + timedelta(minutes=minute)


def raised(start: float, end: float | None, device: str = "d", **more: float) -> Raised:
    return Raised(
        device_id=device,
        measurement="fire",
        channel="",
        metric="temperature",
        rule="r",
        severity="WARN",
        start=at(start),
        end=None if end is None else at(end),
        unit="°C",
        **more,  # type: ignore[arg-type]
    )


def panel(device: str, rules: Sequence[Raised], against: Sequence[Raised]) -> Panel:
    points = [(at(minute), 20.0 + (minute % 7)) for minute in range(0, 60, 2)]
    return Panel((device, "fire", "", "temperature"), points, rules, against)


TWO = Outcome(
    START,
    END,
    panels=[
        panel("EQ001", [raised(5, 10, threshold=80.0), raised(20, 20)], [raised(6, None, threshold=70.0)]),
        panel("EQ002", [], [raised(30, 40, low=18.0, high=25.0)]),
    ],
)


def spans(path: Path) -> list[str]:
    """The ids of the spans that an SVG has."""
    return sorted(name for each in ET.parse(path).iter() if (name := each.get("id", "")).startswith("alarm-"))  # noqa: S314


def test_each_alarm_is_a_span_of_its_series(tmp_path: Path) -> None:
    draw(TWO, tmp_path / "a.svg", "new.yaml", "the rules in force")
    assert spans(tmp_path / "a.svg") == [
        "alarm-against-0-0",
        "alarm-against-1-0",
        "alarm-rules-0-0",
        "alarm-rules-0-1",
    ]
    text = (tmp_path / "a.svg").read_text()
    for said in ("EQ001 · fire · temperature", "EQ002 · fire · temperature", "alarms by new.yaml", "°C"):
        assert said in text
    assert "alarms by the rules in force" in text


def test_an_svg_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        draw(TWO, tmp_path / name, "new", "old")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert "dc:date" not in (tmp_path / "a.svg").read_text()


def test_a_png_is_one(tmp_path: Path) -> None:
    draw(TWO, tmp_path / "a.PNG", "new", "old")
    content = (tmp_path / "a.PNG").read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", content[16:24])
    assert width > height > 300
    assert content.endswith(b"IEND\xaeB`\x82")


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    odd = "$\\frac{$ <b>&_\x1b[31m"
    outcome = Outcome(START, END, panels=[panel(odd, [raised(5, 10)], [])])
    draw(outcome, tmp_path / "a.svg", "_$x^$.yaml", odd)
    texts = [each.text or "" for each in ET.parse(tmp_path / "a.svg").iter() if each.tag.endswith("}text")]  # noqa: S314
    assert "$\\frac{$ <b>&_\\x1b[31m · fire · temperature" in texts
    assert "alarms by _$x^$.yaml" in texts


def test_names_that_no_font_has(tmp_path: Path) -> None:
    draw(Outcome(START, END, panels=[panel("화재 🔥", [raised(5, 10)], [])]), tmp_path / "a.png", "r", "a")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_a_line_is_broken_where_nothing_came(tmp_path: Path) -> None:
    points = [(at(second / 60), 20.0) for second in range(3000) if not 1000 < second < 2000]
    outcome = Outcome(START, END, panels=[Panel(("d", "fire", "", "t"), points, [raised(5, 10)], [])])
    draw(outcome, tmp_path / "a.svg", "r", "a")
    lines = re.findall(rf'd="[^"]+"[^>]+stroke: {picture._VALUES}', (tmp_path / "a.svg").read_text())
    values = [line for line in lines if line.count("L") >= 1]
    whole = Outcome(START, END, panels=[Panel(("d", "fire", "", "t"), points[:1000], [raised(5, 10)], [])])
    draw(whole, tmp_path / "b.svg", "r", "a")
    others = re.findall(rf'd="[^"]+"[^>]+stroke: {picture._VALUES}', (tmp_path / "b.svg").read_text())
    assert len(values) == len([line for line in others if line.count("L") >= 1]) + 1


def test_a_series_without_values_and_none_at_all(tmp_path: Path) -> None:
    silent = Panel(("d", "fire", "", ""), [], [raised(5, 10)], [])
    draw(Outcome(START, END, panels=[silent]), tmp_path / "a.svg", "r", "a")
    assert spans(tmp_path / "a.svg") == ["alarm-rules-0-0"]
    assert "d · fire · any metric" in (tmp_path / "a.svg").read_text()
    draw(Outcome(START, END), tmp_path / "b.svg", "r", "a")
    assert "no alarm" in (tmp_path / "b.svg").read_text()


def test_what_cannot_be_written_is_said_before(tmp_path: Path) -> None:
    for name, why in (
        ("a.gif", "ends in .svg or .png"),
        ("a", "ends in .svg or .png"),
        ("no/a.svg", "no such directory"),
    ):
        with pytest.raises(PictureError, match=why):
            check(tmp_path / name)
    (tmp_path / "d.svg").mkdir()
    with pytest.raises(PictureError, match="is a directory"):
        check(tmp_path / "d.svg")


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PictureError, match=r"install iotflow\[pictures\]"):
        check(tmp_path / "a.svg")
