"""What all commands share that talk to Kafka."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from app.settings import Settings

Result = TypeVar("Result")


def with_kafka(work: Callable[[Settings], Awaitable[Result]]) -> Result:
    """Do something with the settings; what goes wrong with them or with Kafka is an error of the command."""
    from aiokafka.errors import KafkaError

    from app import control, kafka, settings, topics

    try:
        loaded = settings.load()
    except settings.SettingsError as error:
        raise click.ClickException(str(error)) from error

    async def run() -> Result:
        return await work(loaded)

    try:
        return asyncio.run(run())
    except (topics.TopicsError, control.UnsureError) as error:
        raise click.ClickException(str(error)) from error
    except (KafkaError, OSError, kafka.ConfigError) as error:
        raise click.ClickException(kafka.explain(error, loaded)) from error
