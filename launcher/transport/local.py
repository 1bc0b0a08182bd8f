"""All ranks on this machine: one process for each slot, started by the launcher itself.

DeepSpeed's per-node launcher is left out on purpose: killed, it leaves its ranks running and the job
ends with exit code 0.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from signal import Signals

from launcher import shell
from launcher.command import Command
from launcher.hosts import ports
from launcher.job import Job
from launcher.ranks import local as local_ranks
from launcher.ranks.commands import rank_commands
from launcher.ranks.rank import Rank
from launcher.shell import Shell

_ADDRESS = "127.0.0.1"


@dataclass(frozen=True)
class LocalTransport:
    """A `Transport` to nowhere else."""

    name: str = "local"
    shell: Shell = shell.here

    def commands(self, job: Job) -> tuple[Command, ...]:
        """One command for each rank. Raises `ValueError` when the job has more than one node."""
        if len(job.nodes) != 1:
            raise ValueError(f"the local transport takes one node, not {len(job.nodes)}")
        environment = dict(os.environ) | dict(job.environment)
        of_host = local_ranks.of_host(job.world_size, environment)
        job = replace(job, environment=(*of_host, *job.environment))
        # Looked for at each start: by then the port may be another program's.
        port = ports.free_port(job.master_port or None)
        return rank_commands(job, 0, job.master_address or _ADDRESS, port, os.environ)

    @contextmanager
    def started(
        self, job: Job, signals: Set[Signals], start_limit_s: float, say: Callable[[str], None]
    ) -> Iterator[Sequence[Rank]]:
        """The job's ranks, running."""
        commands = self.commands(job)
        with local_ranks.started(commands, job.logs, signals, has_terminal=True) as ranks:
            yield ranks


LOCAL = LocalTransport()
