"""The app for `faust -A app.main worker`: IOTFLOW_STAGE says which stage."""

import sys

from app.build import StageApp, build
from app.settings import SettingsError, load
from app.stages import names


def _app() -> StageApp:
    try:
        settings = load()
        if not settings.stage:
            sys.exit(f"iotflow: set IOTFLOW_STAGE to one of: {', '.join(names(settings))}")
        return build(settings.stage, settings)
    except (SettingsError, ValueError) as error:
        sys.exit(f"iotflow: {error}")


app = _app()
