"""Which sinks there are: every module of this package with a `Settings` and a `Sink` class, found by looking."""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from types import ModuleType

import sinks


@cache
def load() -> Mapping[str, ModuleType]:
    """Each sink's module by its name, which is the module's."""
    found: dict[str, ModuleType] = {}
    for info in pkgutil.iter_modules(sinks.__path__):
        module = importlib.import_module(f"sinks.{info.name}")
        if hasattr(module, "Settings") and hasattr(module, "Sink"):
            found[info.name] = module
    return found


def of_stage(stage: str) -> str | None:
    """The name of the sink that a stage stores to, or None."""
    return next((name for name, module in load().items() if stage == module.Settings.STAGE), None)
