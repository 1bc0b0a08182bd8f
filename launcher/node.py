"""`python -m launcher node`: the agent of one host, or one rank of a step that somebody else has started."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

from launcher.control import agent, delivery, spec
from launcher.errors import LauncherError
from launcher.exit_codes import USER_ERROR
from launcher.hosts import allocation
from launcher.job import existing_script

# What mpirun tells its own processes: ranks below an agent are none, and must not take themselves for such.
_OF_MPIRUN = ("OMPI_", "PMIX_", "PRTE_", "PMI_")


def node(options: argparse.Namespace, environment: MutableMapping[str, str]) -> int:
    """Lives as long as this host's ranks, or becomes the one rank that it is.

    Raises `LauncherError` when it was not told what to do, or when what it was told does not fit together.
    """
    if options.script:
        become_rank(options, environment)
    if spec.VARIABLE in environment:
        mine = spec.Spec.from_json(environment.pop(spec.VARIABLE))
        index = _index(mine, environment)
    elif options.job is not None:
        mine = delivery.take(options.job)
        index = mine.index
    else:
        raise LauncherError(
            "name the script: srun --ntasks-per-node=8 python -m launcher node medsft/train.py [its flags]. "
            "To start a job from one place, write `python -m launcher run`."
        )
    for name in [name for name in environment if name.startswith(_OF_MPIRUN)]:
        del environment[name]
    # The environment's own programs (ninja, for DeepSpeed's operations) before the host's.
    folder = str(Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([folder, environment.get("PATH", os.defpath)])
    return agent.run(mine, index)


def _index(mine: spec.Spec, environment: MutableMapping[str, str]) -> int:
    """Which of the job's nodes this is. By its name: Slurm may have another order than the job."""
    hosts = [node.host for node in mine.job.nodes]
    name = environment.get("SLURMD_NODENAME")
    return hosts.index(name) if name in hosts else allocation.read_task(environment).node_index


def become_rank(options: argparse.Namespace, environment: MutableMapping[str, str]) -> None:
    """Turns this task of srun into the rank that it stands for; does not return."""
    name, *arguments = options.script
    try:
        script = existing_script(name)
        hosts = allocation.step_hosts(environment)
        environment.update(allocation.task_environment(environment, hosts, options.world_size))
    except LauncherError:
        if environment.get("SLURM_LOCALID", "0") != "0":
            sys.exit(USER_ERROR)  # the first task of this host finds the same and says it
        raise
    os.execv(sys.executable, [sys.executable, "-u", str(script), *arguments])
