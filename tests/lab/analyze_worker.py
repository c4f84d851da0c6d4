"""A worker of the stage `analyze` that kills itself: `python -m tests.lab.analyze_worker` with `IOTFLOW_STAGE=analyze`.

`IOTFLOW_TEST_DIES` is STEP:NUMBER: at the so-manieth time that a checkpoint comes to that step, the process ends as by
kill -9. Everything else is the product's own.
"""

import os
import signal
import sys

from app.build import build
from app.settings import load


def main() -> None:
    """Build the stage as `app.main` does, with a fault in it."""
    step, _, number = os.environ["IOTFLOW_TEST_DIES"].partition(":")  # noqa: TID251  not a setting of the product
    left = int(number)

    def at(reached: str) -> None:
        nonlocal left
        if reached == step:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    app = build("analyze", load({name: value for name, value in os.environ.items() if "TEST_DIES" not in name}))  # noqa: TID251
    app.runtime.parts.work.at = at  # type: ignore[attr-defined]
    sys.argv = ["faust", "worker"]
    app.main()


if __name__ == "__main__":
    main()
