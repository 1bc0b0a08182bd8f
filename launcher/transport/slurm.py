"""Hosts of a Slurm allocation: srun starts one agent on each and carries its output. No ssh is needed."""

from __future__ import annotations

import os

from launcher import shell
from launcher.command import Command
from launcher.control import spec
from launcher.control.delivery import agent_command
from launcher.control.spec import Spec
from launcher.errors import LauncherError
from launcher.hosts.allocation import tasks_per_node
from launcher.transport.remote import RemoteTransport

# Linux takes 128 KiB for one variable, its name included.
_LONGEST_VALUE = 128 * 1024 - 64


def command(part: Spec) -> Command:
    """One srun for all nodes of the job, inside its allocation."""
    hosts = [node.host for node in part.job.nodes]
    text = part.to_json()
    if len(text) > _LONGEST_VALUE:
        raise LauncherError(
            f"the job's description has {len(text)} characters, and one environment variable takes "
            f"{_LONGEST_VALUE}: take fewer nodes, or a hostfile and --transport pdsh."
        )
    num_cpus = _cpus_of_a_node()
    return Command(
        name="srun",
        arguments=(
            "srun",
            f"--nodes={len(hosts)}",
            f"--ntasks={len(hosts)}",
            "--ntasks-per-node=1",
            f"--nodelist={','.join(hosts)}",
            *(() if num_cpus is None else (f"--cpus-per-task={num_cpus}",)),
            # Also from a shell that is itself a step of the allocation.
            "--overlap",
            "--kill-on-bad-exit=1",
            # The agents end one after another; nobody is in a hurry.
            "--wait=0",
            "--input=none",
            "--unbuffered",
            "--export=ALL",
            *agent_command(part, "node"),
        ),
        environment=((spec.VARIABLE, text),),
    )


def _cpus_of_a_node() -> int | None:
    """What the job was given on each node for all its tasks, the agent's one task now; None: not said.

    Since Slurm 22.05 a step does not take this from its job by itself.
    """
    per_task = os.environ.get("SLURM_CPUS_PER_TASK")
    if per_task is None:
        return None
    # SLURM_NTASKS_PER_NODE is there only where --ntasks-per-node was given, not with --ntasks alone.
    num_tasks = os.environ.get("SLURM_NTASKS_PER_NODE")
    if num_tasks is None:
        # One number for all nodes, so the least where they differ: more would not be granted there.
        num_tasks = min(tasks_per_node(os.environ.get("SLURM_TASKS_PER_NODE", "1")))
    return int(per_task) * int(num_tasks)


SLURM = RemoteTransport("slurm", command, shell.srun, delivers=False)
