"""`python -m tests.bench`: start servers of its own, run the parts one after another, print the table.

It exits 0 whatever the figures are, and 1 when a part could not be measured.
"""

import argparse
import asyncio
import platform
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import psutil
import uvloop

from deploy.local.files import ServerError, default_cache
from deploy.local.stack import SERVERS, Stack
from tests.bench.bench import FULL, QUICK, Bench, say
from tests.bench.figures import Figure, table
from tests.bench.parts import PARTS, Part, chosen
from tests.lab.stores import lab_of

#: The servers are this far above the ports of `make run`, which are not the tests' either.
PORTS_APART = 3_000


def make_stack(folder: Path) -> Stack:
    """The local stack, empty; none of its servers runs yet."""
    cache = default_cache()
    servers = []
    for server in SERVERS:
        kind: Any = server
        ports = {role: port + PORTS_APART for role, port in kind.preferred.items()}
        servers.append(kind(folder / kind.name, cache, ports=ports))
    return Stack(folder, cache, servers=servers)


def start(stack: Stack, stores: Iterable[str]) -> dict[str, str]:
    """Start the broker and the servers of stores; why some of these stores cannot be measured."""
    stack.up(["kafka"], on_progress=say)
    absent: dict[str, str] = {}
    for store in stores:
        try:
            if server := lab_of(store).server_name:
                stack.up([server], on_progress=say)
        except (ServerError, ImportError) as error:
            absent[store] = str(error)
            say(f"{store}: {error}")
    return absent


async def measure(
    bench: Bench, parts: Mapping[str, Part], absent: Mapping[str, str]
) -> tuple[list[Figure], dict[str, str]]:
    """Run parts; their figures, and why some have none."""
    figures: list[Figure] = []
    failures: dict[str, str] = {}
    for name, part in parts.items():
        begun = time.monotonic()
        say(f"{name} ...")
        limit = asyncio.timeout(part.limit_s)
        try:
            if missing := [absent[store] for store in part.stores if store in absent]:
                raise ServerError("; ".join(missing))
            async with limit:
                figures += await part.run(bench)
        except Exception as error:  # noqa: BLE001  the other parts are worth having
            why = str(error) if isinstance(error, ServerError) else repr(error)
            failures[name] = f"not measured within {part.limit_s:.0f} s" if limit.expired() else why
            say(f"  {failures[name]}")
        say(f"  {name} took {time.monotonic() - begun:.0f} s")
    return figures, failures


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small counts: shows that it runs, not how fast")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help=f"store, batches, latency, analyze, or one of {', '.join(PARTS)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    try:
        parts = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    load = psutil.getloadavg()[0]
    if load > 0.5:
        say(f"the machine is not idle (load {load:.1f}): the figures will be lower than they could be")
    with tempfile.TemporaryDirectory(prefix="iotflow-bench-", ignore_cleanup_errors=True) as path:
        stack = make_stack(Path(path) / "stack")
        try:
            absent = start(stack, dict.fromkeys(store for part in parts.values() for store in part.stores))
            bench = Bench(stack, Path(path), QUICK if options.quick else FULL)
            figures, failures = uvloop.run(measure(bench, parts, absent))
        finally:
            stack.down()
            for left in psutil.Process().children():  # a simulator whose part was given up
                left.kill()
    machine = f"{platform.machine()}, {psutil.cpu_count()} cores, Python {platform.python_version()}"
    counts = "quick counts: not a measurement" if options.quick else "full counts"
    print(f"iotflow benchmark: {machine}; {counts}; medians; load at the start {load:.1f}\n")
    print(table(figures))
    for name, why in failures.items():
        print(f"\n{name}: {why}")
    if options.json is not None:
        found = [{**msgspec.to_builtins(figure), "met": figure.met} for figure in figures]
        report = {"machine": machine, "quick": options.quick, "load": load, "figures": found, "failures": failures}
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(report)) + b"\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
