"""What is to run and where: plain values, complete before anything starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import LauncherError

# Each rank gets its own values of these from the transport.
OWNED_VARIABLES = frozenset(
    [
        "RANK",
        "LOCAL_RANK",
        "WORLD_SIZE",
        "LOCAL_SIZE",
        "LOCAL_WORLD_SIZE",
        "NODE_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
    ]
)


@dataclass(frozen=True)
class Node:
    """A machine and how many ranks it takes; devices: which of its visible GPUs to use, from
    0; () for the first ones."""

    host: str
    num_slots: int
    devices: tuple[int, ...] = ()


@dataclass(frozen=True)
class Job:
    """A script with its arguments, for every slot of every node.

    `environment` is what is added to the environment the launcher was started in, as (name, value).
    master_address, master_port: where the ranks meet; "" and 0: the master chooses. logs: folder for what the
    ranks print, each in a file of its own; None: it is not kept.
    """

    nodes: tuple[Node, ...]
    python: str
    script: Path
    arguments: tuple[str, ...]
    environment: tuple[tuple[str, str], ...]
    master_address: str
    master_port: int
    logs: Path | None = None

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        return sum(node.num_slots for node in self.nodes)


def existing_script(name: str) -> Path:
    """The training script, or `LauncherError` when there is no such file."""
    path = Path(name)
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise LauncherError(
            f"the script {name!r} {found} (looked in {Path.cwd()}). Give the path of a Python file after the "
            "launcher's own flags: python -m launcher run [flags] medsft/train.py [its flags]."
        )
    return path


def parse_environment(settings: Sequence[str], present: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """("NAME=VALUE", ...) as pairs; values may hold anything, further = signs too. The last of a name wins.

    NAME alone takes the value of `present`, the launcher's own environment. Raises `LauncherError` when it is
    not there, for a bad name and for names the launcher itself sets.
    """
    values: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise LauncherError(
                f"--env {name!r} is not NAME=VALUE: the name is made of letters, digits and _ and does "
                "not begin with a digit. Write it like --env OMP_NUM_THREADS=4."
            )
        if not equals:
            if name not in present:
                raise LauncherError(
                    f"--env {name}: there is no {name} in the launcher's own environment to pass on. "
                    "Export it, or write --env NAME=VALUE."
                )
            value = present[name]
        if name in OWNED_VARIABLES:
            raise LauncherError(
                f"--env {name}: it differs from rank to rank, or follows from the job, and is set "
                "by the launcher. Use --num-gpus and --master-port instead."
            )
        values[name] = value
    return tuple(values.items())
