"""One cell of the table: a host, a check, what was found and what to do."""

from __future__ import annotations

from dataclasses import dataclass

from launcher.errors import LauncherError

CHECKS = (
    "reach",
    "python",
    "packages",
    "commit",
    "data",
    "gpus",
    "driver",
    "cores",
    "memory",
    "disk",
    "output",
    "clock",
    "files",
    "port",
    "collective",
)
"""Columns of the table, and what --skip takes."""

GREEN = "green"
YELLOW = "yellow"
"""Worth knowing; the run can start all the same."""
RED = "red"
"""The run would not start, would break, or would train something else."""


@dataclass(frozen=True)
class Finding:
    """`found` is a clause ("python 3.10.4; 3 other hosts have 3.11.7"); `remedy` a sentence, "" if green."""

    host: str
    check: str
    level: str
    found: str
    remedy: str = ""


def checks_to_skip(names: list[str]) -> frozenset[str]:
    """The checks that --skip names; raises `LauncherError` for a name that is none."""
    for name in names:
        if name not in CHECKS:
            raise LauncherError(f"--skip {name!r} is no check. The checks are: {', '.join(CHECKS)}.")
    return frozenset(names)
