"""A worker of the stage `analyze` that kills itself: `python -m tests.lab.analyze_worker` with `IOTFLOW_STAGE=analyze`.

`IOTFLOW_TEST_DIES` is STEP:NUMBER: at the so-manieth time that a checkpoint comes to that step, the process ends as by
kill -9; without it never. `IOTFLOW_TEST_CLOCK` is what its clock says, in seconds since the epoch, all the time: what a
run comes to does not depend on how long it takes then. Everything else is the product's own.
"""

import os
import signal
import sys
from typing import Any

from app.build import build
from app.settings import load


def main() -> None:
    """Build the stage as `app.main` does, with a fault in it."""
    env = dict(os.environ)  # noqa: TID251  what is read of it here is no setting of the product
    step, _, number = env.pop("IOTFLOW_TEST_DIES", ":0").partition(":")
    left = int(number)
    now = float(env.pop("IOTFLOW_TEST_CLOCK"))

    def at(reached: str) -> None:
        nonlocal left
        if reached == step:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    app = build("analyze", load(env))
    work: Any = app.runtime.parts.work
    work.at = at
    work._clock = lambda: now
    sys.argv = ["faust", "worker"]
    app.main()


if __name__ == "__main__":
    main()
