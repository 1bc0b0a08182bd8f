"""A port on which rank 0 can wait for the others."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterable

from launcher.errors import LauncherError

# Below the range from which Linux takes ports for outgoing connections (32768 on), so that none of those
# takes the port in the seconds between this check and rank 0's listening.
_CANDIDATES = range(20000, 30000)
_NUM_TRIES = 100


def is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as server:
        # A port still in TIME_WAIT after an earlier run is free for a server.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
            server.listen()
        except OSError:
            return False
    return True


def check_port(port: int) -> int:
    """The port itself; raises `LauncherError` for what is no port that a user may listen on."""
    if not 1024 <= port <= 65535:
        raise LauncherError(f"--master-port {port} must be from 1024 to 65535; leave it out for a free one.")
    return port


def taken(wanted: int, instead: int) -> str:
    """What to say when a port that was asked for is not free."""
    return f"port {wanted} is taken; using {instead} instead"


def free_port(wanted: int | None, candidates: Iterable[int] | None = None) -> int:
    """`wanted` if it is free, else the first free one of `candidates` (default: random ones).

    Raises `LauncherError` when `wanted` is no port, and when no candidate is free.
    """
    if wanted is not None and is_free(check_port(wanted)):
        return wanted
    if candidates is None:
        candidates = random.SystemRandom().sample(_CANDIDATES, _NUM_TRIES)
    for port in candidates:
        if is_free(port):
            return port
    raise LauncherError(
        f"none of {_NUM_TRIES} ports between {_CANDIDATES.start} and {_CANDIDATES.stop - 1} is free on this "
        "machine; name a free one with --master-port."
    )
