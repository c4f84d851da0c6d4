"""Choosing TCP ports on the loopback interface."""

import socket
import time
from collections.abc import Collection
from typing import Final

HOST: Final = "127.0.0.1"
#: How far above the preferred port to look.
_REACH: Final = 200
_POLL_S: Final = 0.05


def is_free(port: int) -> bool:
    """Whether a server could listen on a loopback port now."""
    # macOS lets one bind 127.0.0.1 beside a listener on every address, so ask for an answer as well.
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)
        if probe.connect_ex((HOST, port)) == 0:
            return False
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def comes_free(port: int, timeout_s: float) -> bool:
    """Whether a port is free, or becomes so in time."""
    deadline = time.monotonic() + timeout_s
    while not is_free(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def choose(preferred: int, avoid: Collection[int] = ()) -> int:
    """The preferred port if it is free and not in `avoid`, else the next one that is."""
    for port in range(preferred, min(preferred + _REACH, 65_536)):
        if port not in avoid and is_free(port):
            return port
    raise OSError(f"no free port from {preferred} to {preferred + _REACH - 1}")
