"""What the workers of this machine say of themselves, and how it is shown: a row for each stage."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table

from app.telemetry import quantile

#: The latencies shown are those of this last while.
WINDOW_S = 30.0
#: A lag in time is shown from here on; below it is what every batch has.
_BEHIND_S = 2.0
_COLUMNS = ("stage", "in", "out", "dead letters", "lag", "p50", "p95", "p99", "breaker")
_STYLES = {"closed": "green", "half_open": "yellow", "open": "bold red"}


class Worker(Struct):
    """What one worker's metrics say; `breaker` is empty where there is none."""

    up: bool = False
    records: float = 0
    readings: float = 0
    rows: float = 0
    letters: float = 0
    lag: float = 0
    oldest_s: float = 0
    breaker: str = ""
    buckets: Mapping[float, float] = {}
    #: What the analysis has sent, by topic.
    said: Mapping[str, float] = {}

    @property
    def out(self) -> str:
        """What it has made, for a person."""
        if self.said:
            return f"{self.said.get('aggregates', 0):,.0f} windows, {self.said.get('alarms', 0):,.0f} alarm changes"
        return f"{self.rows:,.0f} rows" if self.breaker else f"{self.readings:,.0f} readings"

    @property
    def behind(self) -> str:
        """How far it is behind, in records and, where that is worth a word, in time."""
        return f"{self.lag:,.0f}" + (f" ({self.oldest_s:.0f} s)" if self.oldest_s >= _BEHIND_S else "")


class Watch:
    """Looks at the workers of some stages again and again; `ports` are their web ports."""

    def __init__(self, ports: dict[str, int]) -> None:
        self.ports = ports
        #: What is to be said of a stage beside its breaker: that its server is still being built, for one.
        self.notes: dict[str, str] = {}
        self.seen: dict[str, Worker] = {}
        self._history: dict[str, list[tuple[float, Mapping[float, float]]]] = {}

    async def look(self) -> None:
        """Ask them all."""
        async with _client() as get:
            for name, port in tuple(self.ports.items()):
                text = await get(f"http://127.0.0.1:{port}/metrics")
                if name in self.ports:  # it may have been left out meanwhile
                    self.seen[name] = read(text) if text else Worker()
                    self._remember(name)

    def _remember(self, name: str) -> None:
        """Keep the latency counts of the last while: those of the start would hide how it runs now."""
        history = self._history.setdefault(name, [])
        now = time.monotonic()
        history.append((now, self.seen[name].buckets))
        while len(history) > 1 and history[1][0] <= now - WINDOW_S:
            history.pop(0)

    def latencies(self, name: str) -> tuple[str, str, str]:
        """p50, p95 and p99 of the last while for a person; empty where nothing was measured."""
        history = self._history.get(name)
        if not history:
            return "", "", ""
        first, last = history[0][1], history[-1][1]
        if len(history) == 1 or sum(first.values()) > sum(last.values()):  # one look so far, or a restarted worker
            first = {}
        return _quantiles({bound: count - first.get(bound, 0.0) for bound, count in last.items()})

    def table(self, title: str) -> Table:
        """A row for each stage."""
        table = Table(title=title, title_justify="left")
        for column in _COLUMNS:
            table.add_column(column, justify="left" if column in {"stage", "breaker"} else "right")
        for name in self.ports:
            seen = self.seen.get(name, Worker())
            note = self.notes.get(name, "")
            if not seen.up:
                table.add_row(name, "starting", *[""] * 6, note)
                continue
            state = f"[{_STYLES.get(seen.breaker, '')}]{seen.breaker}[/]" if seen.breaker else ""
            cells = [f"{seen.records:,.0f}", seen.out, f"{seen.letters:,.0f}", seen.behind, *self.latencies(name)]
            table.add_row(name, *cells, f"{state} {note}".strip())
        return table

    def line(self) -> str:
        """All of it in one line, for what is no terminal."""
        parts = []
        for name in self.ports:
            seen = self.seen.get(name, Worker())
            p50, p95, p99 = self.latencies(name)
            said = [f"{seen.records:.0f} in", seen.out, f"{seen.letters:.0f} dead", f"lag {seen.behind}"]
            said += [f"p50 {p50} p95 {p95} p99 {p99}"] if p50 else []
            said += [f"breaker {seen.breaker}"] if seen.breaker not in {"", "closed"} else []
            said = said if seen.up else ["starting"]
            parts.append(f"{name}: " + ", ".join([*said, *filter(None, [self.notes.get(name)])]))
        return " | ".join(parts)


@contextlib.asynccontextmanager
async def _client() -> AsyncIterator[Callable[[str], Any]]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:

        async def get(url: str) -> str:
            try:
                async with session.get(url) as answer:
                    return await answer.text()
            except (aiohttp.ClientError, TimeoutError):
                return ""

        yield get


#: Metrics that are summed over their labels, by the field of `Worker` they are for.
_SUMS = {
    "iotflow_records_total": "records",
    "iotflow_rows_total": "rows",
    "iotflow_dead_letters_total": "letters",
    "iotflow_lag_records": "lag",
    "iotflow_oldest_unstored_seconds": "oldest_s",
}


def read(text: str) -> Worker:
    """Read one worker's metrics."""
    sums = dict.fromkeys([*_SUMS.values(), "readings"], 0.0)
    buckets: dict[float, float] = {}
    said: dict[str, float] = {}
    breaker = ""
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            match sample.name:
                case name if name in _SUMS:
                    sums[_SUMS[name]] += sample.value
                case "iotflow_readings_total" if sample.labels.get("outcome") == "decoded":
                    sums["readings"] += sample.value
                case "iotflow_said_total":
                    said[sample.labels["topic"]] = sample.value
                case "iotflow_breaker" if sample.value:
                    breaker = sample.labels["state"]
                case "iotflow_durable_seconds_bucket":
                    buckets[float(sample.labels["le"])] = sample.value
    return Worker(up=True, breaker=breaker, buckets=buckets, said=said, **sums)


def _quantiles(buckets: Mapping[float, float]) -> tuple[str, str, str]:
    bounds = sorted(bound for bound in buckets if bound != float("inf"))
    below = 0.0
    counts: list[float] = []
    for bound in [*bounds, float("inf")]:
        total = buckets.get(bound, below)
        counts.append(total - below)
        below = total
    found = [quantile(bounds, counts, q) if below else None for q in (0.5, 0.95, 0.99)]
    p50, p95, p99 = ("" if value is None else _duration(value, bounds[-1]) for value in found)
    return p50, p95, p99


def _duration(seconds: float, most: float) -> str:
    """For a person; what is above `most`, the last bound of the buckets, is not told apart."""
    if seconds >= most:
        return f"> {most:.0f} s"
    return f"{seconds * 1000:.0f} ms" if seconds < 10 else f"{seconds:.0f} s"  # noqa: PLR2004  read at a glance
