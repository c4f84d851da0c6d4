"""Settings: the only reader of the environment.

For every setting the first of these that is set and not empty wins:

1. the store's own prefix: `TIMESCALE_HOST`, `TIMESCALE_BATCH_SIZE` (readings), `TIMESCALE_BATCH_TIMEOUT` (seconds);
2. the documents' general name: `POSTGRES_HOST`, `BATCH_SIZE` (readings), `BATCH_TIMEOUT` (seconds);
3. a URL, `DATABASE_URL`, else `POSTGRES_URL`: what is still missing is taken from that one, never from both;
4. the default.

Durations are in seconds; any of their names with `_MS` behind it is in milliseconds, and one that ends in `_MINUTES` in
minutes. Sizes are in bytes, also as `64MiB`. A secret's name with `_FILE` behind it is a file that holds the secret. A
name and its own `_MS` or `_FILE` form are one place in this order, so both at once are an error. `IOTFLOW_ENV_FILE`
names a file of KEY=value lines; where the real environment has the same variable, the real one counts. A setting
without a store (`KAFKA_…`, `IOTFLOW_…`) has the same order, without the store's prefix.
"""

import os
from collections.abc import Mapping

from app.settings.loader import Loader
from app.settings.models import Ceiling, Kafka, Retry, Settings, Topics
from app.settings.variables import SettingsError, discover

__all__ = ["Ceiling", "Kafka", "Retry", "Settings", "SettingsError", "Topics", "discover", "environment", "load"]


def environment() -> Mapping[str, str]:
    """A copy of the process's environment."""
    return dict(os.environ)  # noqa: TID251  this is the one place


def load(env: Mapping[str, str] | None = None) -> Settings:
    """Make the settings from a mapping, the process's environment by default.

    Raises `SettingsError` with every problem there is, never with a secret.
    """
    loader = Loader(environment() if env is None else env, discover())
    settings = loader.settings()
    if settings is None:
        raise SettingsError(loader.problems)
    return settings
