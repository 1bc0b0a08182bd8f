"""Hosts of a hostfile, reached by ssh: pdsh starts one agent on each and carries its output."""

from __future__ import annotations

import os
import shlex

from launcher import shell
from launcher.command import Command
from launcher.control.delivery import agent_command
from launcher.control.spec import Spec
from launcher.transport.remote import RemoteTransport

# A client whose connection is dead ends after 15 s instead of never.
_SSH_OPTIONS = "-o BatchMode=yes -o ServerAliveInterval=5 -o ServerAliveCountMax=3"


def command(spec: Spec) -> Command:
    """One pdsh for all hosts of the job."""
    hosts = [node.host for node in spec.job.nodes]
    # pdsh replaces %h and the like itself.
    remote = shlex.join(agent_command(spec, "node")).replace("%", "%%")
    options = (os.environ.get("PDSH_SSH_ARGS_APPEND"), shell.plain_ssh_words(), _SSH_OPTIONS)
    return Command(
        name="pdsh",
        # -N: no host name before each line. -f: all at once, for the agents live as long as the run.
        arguments=("pdsh", "-N", "-S", "-R", "ssh", "-f", str(len(hosts)), "-w", ",".join(hosts), remote),
        environment=(("PDSH_SSH_ARGS_APPEND", " ".join(filter(None, options))),),
    )


PDSH = RemoteTransport("pdsh", command, shell.ssh, delivers=True)
