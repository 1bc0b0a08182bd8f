"""Hosts of a hostfile, reached by OpenMPI: mpirun starts one agent on each and carries its output."""

from __future__ import annotations

import os

from launcher import shell
from launcher.command import Command
from launcher.control.delivery import agent_command
from launcher.control.spec import Spec
from launcher.transport.remote import RemoteTransport


def command(spec: Spec) -> Command:
    """One mpirun for all hosts of the job; the agents are no MPI programs."""
    hosts = [node.host for node in spec.job.nodes]
    as_root = ("--allow-run-as-root",) if os.getuid() == 0 else ()
    return Command(
        name="mpirun",
        arguments=(
            "mpirun",
            *as_root,
            *("--host", ",".join(f"{host}:1" for host in hosts)),
            *("--map-by", "ppr:1:node", "-np", str(len(hosts))),
            # An agent's threads and ranks take the cores they like.
            *("--bind-to", "none"),
            # By ssh from here to each host: hosts need not reach each other by ssh.
            *("--mca", "plm", "rsh", "--mca", "plm_rsh_no_tree_spawn", "1"),
            *("--mca", "plm_rsh_args", f"{shell.plain_ssh_words()} -o BatchMode=yes".strip()),
            *agent_command(spec, "node"),
        ),
        environment=(),
    )


OPENMPI = RemoteTransport("openmpi", command, shell.ssh, delivers=True)
