"""What is checked before a worker starts: after that Faust would log the error and stay, alive and idle."""

import socket
import sys
from pathlib import Path

from app.settings import Settings


def data_dir(stage: str, settings: Settings) -> Path:
    """Where a worker keeps its state; one folder for each worker on a machine, told apart by the port."""
    return settings.data_dir.absolute() / f"{stage}-{settings.port(stage)}"


def check(stage: str, settings: Settings) -> None:
    """Leave the process with a sentence and exit code 78 (configuration) when the worker cannot run here."""
    problems = [*_folder(stage, settings), *_port(stage, settings)]
    if problems:
        for problem in problems:
            sys.stderr.write(f"iotflow: {problem}\n")
        sys.exit(78)


def _folder(stage: str, settings: Settings) -> list[str]:
    folder = data_dir(stage, settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
    except OSError as error:
        return [f"the data folder {folder} cannot be made or written ({error.strerror}): set IOTFLOW_DATA_DIR"]
    return []


def _port(stage: str, settings: Settings) -> list[str]:
    address = (settings.bind(stage), settings.port(stage))
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return [
                f"port {address[1]} on {address[0]} cannot be used for {stage} ({error.strerror}): "
                "stop what has it, or set IOTFLOW_WEB_PORT"
            ]
    return []
