"""Ways to get a job onto its nodes: each a pure function from a job to the commands that start it."""

from __future__ import annotations

from collections.abc import Callable

from launcher.command import Command
from launcher.job import Job
from launcher.transport import local

TRANSPORTS: dict[str, Callable[[Job], tuple[Command, ...]]] = {"local": local.commands}


def choose(name: str) -> Callable[[Job], tuple[Command, ...]]:
    """The transport of this name; "auto" takes the one that fits where the launcher runs: this machine."""
    return TRANSPORTS["local" if name == "auto" else name]
