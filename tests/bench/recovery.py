"""How soon a worker of the stage `analyze` is ready that has state to restore.

The state is that of devices an hour old. A few devices are analysed in process for an hour of their time, each with a
reading and a checkpoint every 5 s, and what the tables then have of them is written to the changelogs under as many
names as there are to be devices: what compaction leaves of an hour of load. Compaction leaves the last minute alone
(`min.compaction.lag.ms`), and the segment that is written to: what they add is computed from how long it takes to read
each state some times.
"""

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec
from msgspec import Struct

from app import analysis, topics
from app.settings import load as settings_of
from schemas import rules, wire
from schemas.decoding import Item
from schemas.names import parted
from tables import channel
from tables.rules import Rulebook
from tables.windows import Window
from tests.bench import load
from tests.bench.bench import Bench, Storeless, say
from tests.bench.figures import Figure
from tests.bench.load import METRICS, PARTITIONS, Load
from tests.bench.spec import Raw
from tests.bench.watch import Watch, cpu_s
from tests.lab.analysis import Kept
from tests.lab.apps import until
from tests.lab.pipeline import Process

#: Devices that are analysed; all others are like them.
PATTERNS = 200
_EVERY_S = 5.0
_HOUR_S = 3600.0
#: So many times each state is read without compaction; and so often it is written in a minute: when its window closes,
#: and when what came then is of age.
_TIMES = 6
_TIMES_A_MINUTE = 60 / settings_of({}).analysis.checkpoint_age
_GOAL_S = 20.0
_PATIENCE_S = 100.0


class Restored(Struct):
    """From a process' start: seconds until it says that it is ready, and until it has all states; what that took."""

    ready_s: float
    states_s: float
    cpu_s: float
    peak_mb: float
    port: int

    @property
    def seconds(self) -> float:
        """Until it works."""
        return max(self.ready_s, self.states_s)


def tables_after_an_hour(devices: int) -> dict[str, list[Item]]:
    """What each table has of so many devices after an hour, as records of its changelog."""
    settings = settings_of({})
    kept = Kept(analysis.config(settings, 1), Rulebook(rules.profile("fire")))
    part = kept.begin()
    items, times_ms = load.on_schedule(int(PATTERNS * _HOUR_S / _EVERY_S), PATTERNS, _EVERY_S)
    for start in range(0, len(items), PATTERNS):
        chunk = [Raw("decoded", 0, at, times_ms[at], *items[at]) for at in range(start, start + PATTERNS)]
        part.fold(chunk, chunk[-1].timestamp)
        kept.keep(part, start + PATTERNS)
        kept.said.clear()
    sizes = kept.config.sizes
    found: dict[str, list[Item]] = {"state": []}
    for copy in range(max(1, devices // PATTERNS)):
        for key, value in kept.state.items():
            found["state"].append(_renamed(key, value, copy, sizes))
        for (table, key), value in kept.side.items():
            device, bar, rest = key.partition(b"|")
            found.setdefault(table, []).append(Item(b"%s-%d%s%s" % (device, copy, bar, rest), value, []))
    return found


def _renamed(key: bytes, value: bytes, copy: int, sizes: Sequence[Window]) -> Item:
    """The same state of another device, of whose readings none is in the topic."""
    found = channel.restore(key, value, sizes, lambda _: value)
    found.device_id = f"{found.device_id}-{copy}"
    found.position = -1
    found.latest = wire.write(msgspec.structs.replace(wire.read(found.latest), device_id=found.device_id))
    name = channel.key_of(found.measurement, found.device_id, found.name)
    return Item(name, found.pack(1, sizes), [])


def device_of(item: Item) -> str:
    """The device that an entry of a table is of."""
    return parted((item.key or b"").decode())[0]


async def recovery(bench: Bench) -> list[Figure]:
    """A worker without its local tables, with them, and with changelogs that are not compacted."""
    tables = await asyncio.to_thread(tables_after_an_hour, bench.counts.held)
    devices = len(tables["state"])
    sizes = {name: sum(len(item.value or b"") + len(item.key or b"") for item in of) for name, of in tables.items()}
    for name, of in tables.items():
        say(f"  {name}: {len(of):,} entries, {sizes[name] / 1e6:.0f} MB")
    more = {"IOTFLOW_IDLE": "86400"}  # no clock changes the states meanwhile
    async with Storeless(bench, "recovery", **more) as pipeline:
        for name, of in tables.items():
            await _write(bench, pipeline, name, of)
        empty = await _restored(bench, pipeline, devices, "without local tables")
        local = await _restored(bench, pipeline, devices, "with local tables", port=empty.port)
        minutes = _uncompacted_minutes(pipeline, sizes["state"])
    async with Storeless(bench, "recovery", **more) as pipeline:
        await _write(bench, pipeline, "state", tables["state"] * _TIMES)
        newer = await _restored(bench, pipeline, devices, f"the states alone, {_TIMES} times")
    return _figures(devices, sizes, {"empty": empty, "local": local, "newer": newer}, minutes)


def _uncompacted_minutes(pipeline: Storeless, size: int) -> float:
    """Of how many minutes of states nothing is compacted: the lag, and as long as a segment is written to."""
    state = f"{pipeline.settings.app_id('analyze')}-state-changelog"
    (found,) = (topic for topic in topics.wanted(pipeline.settings) if topic.name == state)
    segments = int(found.config["segment.bytes"]) * PARTITIONS
    return int(found.config["min.compaction.lag.ms"]) / 60_000 + segments / (size * _TIMES_A_MINUTE)


async def _write(bench: Bench, pipeline: Storeless, table: str, items: Sequence[Item]) -> None:
    topic = f"{pipeline.settings.app_id('analyze')}-{table}-changelog"
    async with Load(bench.servers, topic, items, device=device_of) as sending:
        await sending.send()


async def _restored(bench: Bench, pipeline: Storeless, devices: int, what: str, port: int = 0) -> Restored:
    """Start a worker, wait until it works, and end it as a supervisor does."""
    begun = time.time()
    worker = await pipeline.start("analyze", **({"IOTFLOW_WEB_PORT": str(port)} if port else {}))
    pid = worker.process.pid
    async with Watch({"worker": pid, "broker": bench.broker}, {}) as watch:
        await until(worker.ready, _PATIENCE_S)
        ready = time.time()
        await until(lambda: _states(worker, begun)[0] >= devices, _PATIENCE_S)
    states, at = _states(worker, begun)
    if states != devices:
        raise RuntimeError(f"{devices} states should be restored, not {states}")
    found = Restored(ready - begun, at - begun, cpu_s(pid), watch.peak_mb["worker"], worker.port)
    say(
        f"  {what}: ready after {found.ready_s:.1f} s, states after {found.states_s:.1f} s, {found.cpu_s:.1f} s of "
        f"CPU, {found.peak_mb:.0f} MB"
    )
    await worker.terminate()
    return found


def _states(worker: Process, since: float) -> tuple[int, float]:
    """How many states a worker has restored since then, and when it had them, by its log."""
    for line in worker.log.splitlines(keepends=True):
        if '"state is restored"' in line and line.endswith("}\n"):
            found = json.loads(line)
            at = datetime.fromisoformat(found["ts"]).timestamp()
            if at >= since and found["states"]:
                return int(found["states"]), at
    return 0, 0.0


def _figures(devices: int, sizes: Mapping[str, int], runs: Mapping[str, Restored], minutes: float) -> list[Figure]:
    empty, local, newer = runs["empty"], runs["local"], runs["newer"]
    more = max(0.0, newer.seconds - local.seconds) * _TIMES_A_MINUTE / _TIMES
    series = f"{devices * METRICS:,} series"
    raw = {f"MB of {name}": size / 1e6 for name, size in sizes.items()}

    def of(run: Restored) -> dict[str, float]:
        return {"ready": run.ready_s, "states": run.states_s, "CPU s": run.cpu_s, "peak MB": run.peak_mb}

    bound = (
        f"it took {empty.cpu_s:.1f} s of CPU: what is in the changelogs is read record by record, written to the local "
        "tables, and the states unpacked"
    )
    late = (
        f"compaction leaves the last {minutes:.1f} minutes alone, and in each of them every state is written "
        f"{_TIMES_A_MINUTE:.0f} times, which take {more:.1f} s to read"
    )
    return [
        Figure("analyze-recovery", f"{series}, compacted", empty.seconds, "s", of(empty) | raw, _GOAL_S, at_most=True,
               bound=bound),
        Figure("analyze-recovery", f"{series}, local tables", local.seconds, "s", of(local), _GOAL_S, at_most=True),
        Figure("analyze-recovery", f"{series}, states alone, {_TIMES} times", newer.seconds, "s", of(newer)),
        Figure("analyze-recovery", f"{series}, {minutes:.1f} minutes not compacted, computed",
               empty.seconds + more * minutes, "s", {"s a minute": more}, _GOAL_S, at_most=True, bound=late),
    ]  # fmt: skip
