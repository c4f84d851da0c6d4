"""A picture of a backtest: the series with the most alarms, their values, and when each set of rules was alarmed."""

import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from app.backtest import Outcome, Panel, Raised
from app.samples import escaped

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What a picture can be, by the ending of its file's name.
FORMATS: Final = ("svg", "png")
#: No more series are drawn.
MOST: Final = 6
#: The extra of this package that draws.
EXTRA: Final = "pictures"

#: Told apart by everybody (Okabe and Ito's palette): the rules' alarms, those compared with, and values.
_RULES, _AGAINST, _VALUES = "#d55e00", "#0072b2", "#333333"
_WIDTH: Final = 12.0
_HEIGHT: Final = 2.4
_DPI: Final = 110
_NAME_CHARS: Final = 100
#: So many values are few.
_FEW: Final = 200
#: Nothing came for long when the next value is so many times as far away as usual.
_GAP: Final = 5


class PictureError(ValueError):
    """A picture that cannot be made; the text says why."""


def check(path: Path) -> None:
    """Raise `PictureError` where no picture could be written, before anything is computed for it."""
    if path.suffix.lower().removeprefix(".") not in FORMATS:
        raise PictureError(f"{path}: the name of a picture ends in {' or '.join(f'.{name}' for name in FORMATS)}")
    if not path.parent.is_dir():
        raise PictureError(f"{path.parent}: no such directory")
    if path.is_dir():
        raise PictureError(f"{path} is a directory")
    try:
        import matplotlib as mpl  # noqa: PLC0415, F401  an extra, and slow to import
    except ImportError as error:
        raise PictureError(f"pictures need matplotlib: install iotflow[{EXTRA}] ({error})") from error


def draw(outcome: Outcome, path: Path, rules: str, against: str) -> None:
    """Write a picture of the outcome's panels; equal outcomes give equal files.

    Raises `PictureError` as `check` does, and where the file cannot be written.
    """
    check(path)
    import matplotlib as mpl  # noqa: PLC0415
    from matplotlib.figure import Figure  # noqa: PLC0415

    kind = path.suffix.lower().removeprefix(".")
    # A salt, or the names inside an SVG would be others each time; text stays text.
    with mpl.rc_context({"svg.hashsalt": "iotflow", "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in a script that no font here has
        rows = max(1, len(outcome.panels))
        figure = Figure(figsize=(_WIDTH, 1.0 + _HEIGHT * rows), dpi=_DPI, layout="constrained")
        axes: Sequence[Axes] = list(figure.subplots(rows, 1, squeeze=False)[:, 0])
        for number, (each, panel) in enumerate(zip(axes, outcome.panels, strict=False)):
            _panel(each, panel, outcome, number)
        if not outcome.panels:
            axes[0].set_axis_off()
            axes[0].text(0.5, 0.5, "no alarm", ha="center", va="center", transform=axes[0].transAxes)
        _legend(figure, rules, against)
        metadata = {"Date": None, "Creator": "iotflow"} if kind == "svg" else {"Software": "iotflow"}
        try:
            figure.savefig(path, format=kind, metadata=metadata)
        except OSError as error:
            raise PictureError(f"{path}: {error.strerror}") from error


def _panel(axes: "Axes", panel: Panel, outcome: Outcome, number: int) -> None:
    device, measurement, channel, metric = panel.series
    title = " · ".join(_short(name) for name in (device, measurement, channel, metric or "any metric") if name)
    axes.set_title(title, loc="left", fontsize="medium", parse_math=False)
    units = {alarm.unit for alarm in [*panel.rules, *panel.against] if alarm.unit}
    axes.set_ylabel(_short(", ".join(sorted(units))), parse_math=False)
    axes.set_xlim(_naive(outcome.start), _naive(outcome.end))
    if panel.points:
        _values(axes, panel.points)
    else:
        axes.set_yticks([])
    # Above the rules', below the others': each is seen where they overlap.
    for name, alarms, color, half in (
        ("rules", panel.rules, _RULES, (0.5, 1.0)),
        ("against", panel.against, _AGAINST, (0.0, 0.5)),
    ):
        levels: dict[float, None] = {}
        for place, alarm in enumerate(alarms):
            _span(axes, alarm, outcome, color, half).set_gid(f"alarm-{name}-{number}-{place}")
            levels |= dict.fromkeys(_levels(alarm))
        for level in sorted(levels):
            axes.axhline(level, color=color, linewidth=0.9, linestyle=(0, (5, 3)), zorder=2)


def _values(axes: "Axes", points: Sequence[tuple[datetime, float]]) -> None:
    """Values as a line, which is broken where none came for long; points where they are few, or alone."""
    steps = [(after - before).total_seconds() for (before, _), (after, _) in pairwise(points)]
    longest = _GAP * median(steps) if steps else 0.0
    breaks = [0, *(place for place, step in enumerate(steps, 1) if step > longest), len(points)]
    style: dict[str, Any] = {"color": _VALUES, "linewidth": 0.8, "markersize": 3.0, "zorder": 3}
    for first, behind in pairwise(breaks):
        times, values = zip(*points[first:behind], strict=True)
        marker = "." if len(points) <= _FEW or behind - first == 1 else ""
        axes.plot(list(map(_naive, times)), values, marker=marker, **style)


def _span(axes: "Axes", alarm: Raised, outcome: Outcome, color: str, half: tuple[float, float]) -> Any:
    """When an alarm was open, and what was expected then."""
    start, end = _naive(alarm.start), _naive(alarm.end or outcome.end)
    if alarm.low is not None and alarm.high is not None:
        axes.fill_between([start, end], alarm.low, alarm.high, color=color, alpha=0.15, linewidth=0, zorder=1)
    # With an edge, or one that began and ended in an instant would not be seen.
    return axes.axvspan(start, end, *half, facecolor=(color, 0.25), edgecolor=(color, 0.6), linewidth=0.8, zorder=0)


def _levels(alarm: Raised) -> list[float]:
    """The thresholds of an alarm, where they are not the ends of a range."""
    return [alarm.threshold] if alarm.threshold is not None else []


def _legend(figure: Any, rules: str, against: str) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415
    from matplotlib.patches import Patch  # noqa: PLC0415

    handles = [
        Patch(color=_RULES, alpha=0.4, label="rules"),
        Patch(color=_AGAINST, alpha=0.4, label="against"),
        Line2D([], [], color=_VALUES, linewidth=0.8, label="values"),
        Line2D([], [], color=_VALUES, linewidth=0.9, linestyle=(0, (5, 3)), label="threshold"),
    ]
    legend = figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False)
    # Set afterwards: a name may hold what matplotlib takes for a formula, or for a label to hide.
    for text, said in zip(legend.get_texts(), (f"alarms by {rules}", f"alarms by {against}"), strict=False):
        text.set_parse_math(False)
        text.set_text(_short(said))


def _short(text: str) -> str:
    text = escaped(text)
    return text if len(text) <= _NAME_CHARS else f"{text[:_NAME_CHARS]}…"


def _naive(moment: datetime) -> Any:
    """As matplotlib shows it without asking for a zone: in UTC."""
    return moment.astimezone(UTC).replace(tzinfo=None)
