"""`python -m launcher node`: the agent of one host, or one rank of a step that somebody else has started."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from launcher import delivery, spec
from launcher.control import agent
from launcher.errors import LauncherError

# What mpirun tells its own processes: ranks below an agent are none, and must not take themselves for such.
_OF_MPIRUN = ("OMPI_", "PMIX_", "PRTE_", "PMI_")


def node(options: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Lives as long as this host's ranks. Raises `LauncherError` when it was not told what to do."""
    if spec.VARIABLE in environment:
        mine = spec.Spec.from_json(environment.pop(spec.VARIABLE))
        index = _slurm_index(environment)
    else:
        mine = delivery.take(options.job)
        index = mine.index
    for name in [name for name in environment if name.startswith(_OF_MPIRUN)]:
        del environment[name]
    # The environment's own programs (ninja, for DeepSpeed's operations) before the host's.
    folder = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([folder, environment.get("PATH", os.defpath)])
    return agent.run(mine, index)


def _slurm_index(environment: MutableMapping[str, str]) -> int:
    try:
        return int(environment["SLURM_NODEID"])
    except (KeyError, ValueError) as error:
        raise LauncherError(
            f"SLURM_NODEID={environment.get('SLURM_NODEID')!r}: this agent was told of its job by its "
            "environment, but srun has not started it."
        ) from error
