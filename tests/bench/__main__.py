"""`python -m tests.bench`: start servers of its own, run the parts one after another, print the table.

It exits 0 whatever the figures are, and 1 when a part could not be measured.
"""

import argparse
import asyncio
import platform
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import psutil
import uvloop

from deploy.local.files import default_cache
from deploy.local.kafka import Kafka
from deploy.local.postgres import Postgres
from deploy.local.stack import Stack
from tests.bench.figures import Figure, table
from tests.bench.parts import FULL, PARTS, QUICK, Bench, say


async def measure(bench: Bench, names: list[str]) -> tuple[list[Figure], dict[str, str]]:
    """Run parts; their figures, and why some have none."""
    figures: list[Figure] = []
    failures: dict[str, str] = {}
    for name in names:
        part, limit = PARTS[name]
        begun = time.monotonic()
        say(f"{name} ...")
        try:
            async with asyncio.timeout(limit):
                figures += await part(bench)
        except Exception as error:  # noqa: BLE001  the other parts are worth having
            failures[name] = f"not measured within {limit:.0f} s" if isinstance(error, TimeoutError) else repr(error)
            say(f"  {failures[name]}")
        say(f"  {name} took {time.monotonic() - begun:.0f} s")
    return figures, failures


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small counts: shows that it runs, not how fast")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="NAME", help=", ".join(PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args()
    names = [name for name in PARTS if not options.only or name in options.only]
    load = psutil.getloadavg()[0]
    if load > 0.5:
        say(f"the machine is not idle (load {load:.1f}): the figures will be lower than they could be")
    with tempfile.TemporaryDirectory(prefix="iotflow-bench-", ignore_cleanup_errors=True) as path:
        folder, cache = Path(path), default_cache()
        kafka = Kafka(folder / "kafka", cache, ports={"broker": 37092, "controller": 37093})
        postgres = Postgres(folder / "postgres", cache, ports={"sql": 33432})
        stack = Stack(folder / "stack", cache, servers=[kafka, postgres])
        stack.up(on_progress=say)
        try:
            bench = Bench(kafka, postgres, folder, QUICK if options.quick else FULL)
            figures, failures = uvloop.run(measure(bench, names))
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
