"""`iotflow delete`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from app.cli import _control
from app.cli._kafka import with_kafka

if TYPE_CHECKING:
    from app.control import Asked
    from app.settings import Settings


@click.group()
def command() -> None:
    """Delete what is stored."""


@command.command()
@click.argument("id_", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_control.timeout_option
@_control.json_option
def device(id_: str, *, yes: bool, timeout: float, as_json: bool) -> None:
    """Delete all readings of the device ID from every store of STORES. There is no way back.

    ID is the device's as it is stored: an integer id 7 is device_7. In each store the worker does it that has the
    device's partition, between two batches, and its log says who asked. What is of the device in Kafka stays there:
    readings that are not stored yet, or that the device sends later, are stored as ever. The answers say how many
    records were still to come; a device that is to stay deleted must be silent, and deleted when there are none.

    Exits with 0 when it is deleted from every store, 1 when somebody failed or did not answer in time, or a store has
    no live worker for the device; each is said by name. It may be run again at any time.
    """
    from app import control

    if not id_:
        raise click.BadParameter("is empty", param_hint="ID")
    if not yes:
        click.confirm(f"Delete all that is stored of {id_!r} from every store?", abort=True, err=True)
    stages: list[str] = []

    async def run(settings: Settings) -> Asked:
        stages.extend(settings.sinks[store].STAGE for store in settings.stores)
        return await control.ask(settings, "delete", device=id_, timeout=timeout)

    asked = with_kafka(run)
    _control.finish("delete", asked, stages, as_json=as_json)
