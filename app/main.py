"""The app for `faust -A app.main worker`: IOTFLOW_STAGE says which stage."""

import sys

from app.build import StageApp, build
from app.runtime import EXIT_CONFIG
from app.settings import load
from app.stages import known


def _app() -> StageApp:
    try:
        settings = load()
        if not settings.stage:
            raise ValueError(f"set IOTFLOW_STAGE to one of: {', '.join(known())}")
        return build(settings.stage, settings)
    except ValueError as error:  # SettingsError is one
        sys.stderr.write(f"iotflow: {error}\n")
        sys.exit(EXIT_CONFIG)


app = _app()
