"""Hosts of a Slurm allocation: srun starts one agent on each and carries its output. No ssh is needed."""

from __future__ import annotations

import os

from launcher import shell
from launcher.command import Command
from launcher.control import spec
from launcher.control.delivery import agent_command
from launcher.control.spec import Spec
from launcher.transport.remote import RemoteTransport


def command(part: Spec) -> Command:
    """One srun for all nodes of the job, inside its allocation."""
    hosts = [node.host for node in part.job.nodes]
    # Since Slurm 22.05 a step does not take this from its job by itself.
    num_cpus = os.environ.get("SLURM_CPUS_PER_TASK")
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
        environment=((spec.VARIABLE, part.to_json()),),
    )


SLURM = RemoteTransport("slurm", command, shell.srun, delivers=False)
