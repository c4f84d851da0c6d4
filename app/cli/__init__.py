"""The `iotflow` command: every other module of this package is one command or group, found by looking.

A module here has `command`, a click command or group.
"""

import importlib
import pkgutil

import click

from app import __version__


class _Commands(click.Group):
    """Finds its commands in this package, and imports only the one that is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names for `--help`."""
        del ctx
        return sorted(info.name for info in pkgutil.iter_modules(__path__) if not info.name.startswith("_"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return command


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="iotflow")
def main() -> None:
    """Raw device telemetry from Kafka, decoded, watched and stored; nothing lost, nothing doubled."""
