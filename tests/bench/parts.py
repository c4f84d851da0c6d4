"""The parts of the benchmark: each measures ours and the alternatives, in turn, on the same servers."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from msgspec import Struct

from sinks import registry
from tests.bench import alarms, analyze, batches, decode, dialects, latency, recovery, store
from tests.bench.bench import Bench, say
from tests.bench.figures import Figure


class Part(Struct, frozen=True):
    """What measures it, the seconds after which it is given up, and the stores that it needs."""

    run: Callable[[Bench], Awaitable[list[Figure]]]
    limit_s: float
    stores: Sequence[str] = ()


async def peers(bench: Bench) -> list[Figure]:
    """Other frameworks are no dependencies of ours, so they are compared by hand."""
    del bench
    say(
        "  skipped: peers are not installed. By hand: a virtualenv of its own with quixstreams or bytewax, a consumer "
        "of JSON records (tests/bench/load.py, raw) that decodes and commits, and its CPU seconds over 600,000 of them "
        "as decode.per_cpu_second takes them, next to `--only consume` on the same machine; targets 2x and 1.2x"
    )
    return []


def _parts() -> dict[str, Part]:
    stages = {name: str(module.Settings.STAGE) for name, module in registry.load().items()}
    # Files wait for more readings, so how soon they are there says nothing.
    prompt = [name for name, module in registry.load().items() if module.Settings.DEFAULT]
    parts = {
        "dialects": Part(dialects.decode_alone, 200.0),
        "consume": Part(decode.consume, 100.0),
        "decode": Part(decode.decode, 130.0),
        "detectors": Part(analyze.detectors, 60.0),
        "analyze": Part(analyze.cost, 150.0),
        "analyze-memory": Part(analyze.memory, 240.0),
        "analyze-recovery": Part(recovery.recovery, 150.0),
        "alarm-latency": Part(partial(alarms.latency, store=prompt[-1]), 150.0, prompt[-1:]),
    }
    for name, stage in stages.items():
        parts[stage] = Part(partial(store.measure, store=name, part=stage), 300.0, [name])
    for name in stages:
        parts[f"batches-{name}"] = Part(partial(batches.measure, store=name, part=f"batches-{name}"), 100.0, [name])
    for name in prompt:
        part = f"latency-{name}"
        parts[part] = Part(partial(latency.one, store=name, part=part), 100.0, [name])
    parts["latency-all"] = Part(partial(latency.together, stores=prompt, part="latency-all"), 130.0, prompt)
    parts["peers"] = Part(peers, 5.0)
    return parts


#: Each part by its name; those of one kind begin alike.
PARTS: Mapping[str, Part] = _parts()


def chosen(names: Sequence[str]) -> dict[str, Part]:
    """The parts of these names or kinds (`store`, `batches`, `latency`, `analyze`), else all; raises `ValueError`."""
    for name in names:
        if not any(_is(part, name) for part in PARTS):
            raise ValueError(f"no part is called {name!r}; there are: {', '.join(PARTS)}")
    return {part: PARTS[part] for part in PARTS if not names or any(_is(part, name) for name in names)}


def _is(part: str, name: str) -> bool:
    return part == name or part.startswith(f"{name}-")
