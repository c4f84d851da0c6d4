"""Figures, the targets they are held against, and the table of them."""

from collections.abc import Sequence

from msgspec import Struct


class Figure(Struct):
    """One line of the table. `target` is the least that `value` should be, or the most where `at_most` says so.

    `raw` has what the value was made of; `bound` says what keeps it from being better, where that can be told.
    """

    part: str
    what: str
    value: float
    unit: str
    raw: dict[str, float] = {}
    target: float | None = None
    at_most: bool = False
    bound: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None where there is none."""
        if self.target is None:
            return None
        return self.value < self.target if self.at_most else self.value >= self.target


def number(value: float) -> str:
    """A figure for a person: three or so digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def table(figures: Sequence[Figure]) -> str:
    """The table, and a sentence on each missed target."""
    rows = [("part", "what", "value", "target", "", "raw figures")]
    for figure in figures:
        target = "" if figure.target is None else f"{'<' if figure.at_most else '>='} {number(figure.target)}"
        verdict = {None: "", True: "met", False: "NOT met"}[figure.met]
        raw = ", ".join(f"{name} {number(value)}" for name, value in figure.raw.items())
        rows.append((figure.part, figure.what, f"{number(figure.value)} {figure.unit}", target, verdict, raw))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join((*(cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True)), row[5])).rstrip()
        for row in rows
    ]
    lines.insert(1, "-" * max(map(len, lines)))
    missed = [figure for figure in figures if figure.met is False]
    if missed:
        lines += ["", "What bounds the missed ones:"]
        lines += [f"- {figure.part}, {figure.what}: {figure.bound or 'cannot be told from here'}" for figure in missed]
    return "\n".join(lines)
