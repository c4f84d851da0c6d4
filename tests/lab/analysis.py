"""The analysis on tables that are dicts and a topic that is a list: to be stopped, restored and compared anywhere."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from schemas import rules, wire
from schemas.names import parted
from schemas.reading import Reading
from schemas.record import Headers
from tables.analysis import Config, Partition, spans
from tables.output import Output
from tables.rules import Rulebook
from tables.snapshot import Snapshot

SECOND = 1_000_000
MINUTE = 60 * SECOND
SIZES = {"1m": MINUTE, "5m": 5 * MINUTE, "1h": 60 * MINUTE, "1d": 1440 * MINUTE}
LATE = {"1m": 10 * MINUTE, "5m": 30 * MINUTE, "1h": 360 * MINUTE, "1d": 2880 * MINUTE}
CONFIG = Config(tuple(spans(SIZES, LATE)), 1)
START = datetime(2026, 11, 23, tzinfo=UTC)


@dataclass
class Raw:
    """A decoded record."""

    offset: int
    value: bytes
    headers: Headers = ()
    topic: str = "decoded"
    partition: int = 0
    timestamp: int = 0
    key: bytes | None = None


def records(readings: Sequence[Reading], received: datetime | None = None) -> list[Raw]:
    """Readings as decode sends them, one raw record each, received when they are of unless that is said."""
    found = []
    for offset, reading in enumerate(readings):
        ms = int((received or reading.time).timestamp() * 1000)
        headers = wire.headers(b"raw/0/%d/0" % offset, ms)
        found.append(Raw(offset, wire.write(reading), headers, timestamp=ms))
    return found


@dataclass
class Kept:
    """What outlives a process: tables, what was said, and how far the log is acknowledged."""

    config: Config = CONFIG
    rules: Rulebook = field(default_factory=lambda: Rulebook(rules.profile("none")))
    state: dict[bytes, bytes] = field(default_factory=dict)
    side: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    said: list[Output] = field(default_factory=list)
    acknowledged: int = 0

    def begin(self) -> Partition:
        """A process takes the partition over."""
        found = Partition(0, self.config, self.rules, self._load)
        for key, value in self.state.items():
            found.restore(key, value)
        return found

    def _load(self, table: str, key: bytes) -> bytes | None:
        return self.state.get(key) if table == "state" else self.side.get((table, key))

    def keep(
        self, partition: Partition, upto: int, dies: str = "", *, most: int | None = None, before: int = 1 << 60
    ) -> bool:
        """A checkpoint of what was folded below offset `upto`; False when the process dies before the step `dies`.

        Of `most` of the channels that offsets below `before` changed or with something to say: of all, unless that is
        said.
        """
        snapshot: Snapshot = partition.snapshot(1, most, before)
        for step, does in (
            ("state", lambda: self._states(snapshot)),
            ("outputs", lambda: self.said.extend(snapshot.outputs)),
            ("side", lambda: self._side(snapshot)),
            ("ack", lambda: setattr(self, "acknowledged", min(upto, partition.safe))),
        ):
            if step == dies:
                return False
            does()
        snapshot.done()
        return True

    def clock(self, partition: Partition, now_ms: int) -> list[Output]:
        """The time is so; what is said of that, after a checkpoint that closes windows, and one of what they give."""
        known = len(self.said)
        for _ in range(2):
            while partition.expire(now_ms):
                pass
            self.keep(partition, self.acknowledged)
        return self.said[known:]

    def _states(self, snapshot: Snapshot) -> None:
        for key, value in snapshot.states:
            if value is None:
                self.state.pop(key, None)
            else:
                self.state[key] = value

    def _side(self, snapshot: Snapshot) -> None:
        for table, key, value in snapshot.side:
            if value is None:
                self.side.pop((table, key), None)
            else:
                self.side[table, key] = value

    def aggregates(self) -> dict[tuple[str, ...], Reading]:
        """The last revision of each window, by measurement, device, channel, metric, window and start."""
        found: dict[tuple[str, ...], Reading] = {}
        for output in self.said:
            if output.topic == "aggregates":
                assert output.value is not None
                reading = wire.read(output.value)
                key = (*parted(output.key.decode()),)
                before = found.get(key)
                if before is not None and before.values["revision"] == reading.values["revision"]:
                    assert before == reading, "one revision, two contents"
                if before is None or int(reading.values["revision"]) > int(before.values["revision"]):
                    found[key] = reading
        return found


def recomputed(readings: Sequence[Reading], sizes: Mapping[str, int]) -> dict[tuple[str, ...], dict[str, Any]]:
    """What the windows of readings come to, from scratch; of one series and time the first counts."""
    values: dict[tuple[str, ...], dict[int, float]] = {}
    for reading in readings:
        at = round(reading.time.timestamp() * 1e6)
        for metric, value in reading.values.items():
            series = (reading.device_id, reading.measurement, reading.channel, metric)
            values.setdefault(series, {}).setdefault(at, float(value))  # type: ignore[arg-type]
    found = {}
    for series, points in values.items():
        for name, size in sizes.items():
            windows: dict[int, list[int]] = {}
            for at in sorted(points):
                windows.setdefault(at - at % size, []).append(at)
            for start, times in windows.items():
                xs = [points[at] for at in times]
                mean = math.fsum(xs) / len(xs)
                squares = math.fsum([(x - mean) ** 2 for x in xs])
                found[(*series, name, str(start))] = {
                    "count": len(xs),
                    "mean": mean,
                    "min": min(xs),
                    "max": max(xs),
                    "stddev": math.sqrt(squares / (len(xs) - 1)) if len(xs) > 1 else 0.0,
                    "sum": math.fsum(xs),
                    "first": xs[0],
                    "last": xs[-1],
                }
    return found


def reading(seconds: float, device: str = "d", channel: str = "", **values: Any) -> Reading:
    """A reading so long after `START`."""
    return Reading("telemetry", device, START + timedelta(seconds=seconds), values, channel=channel)
