"""All ranks on this machine: one process for each slot, started by the launcher itself.

DeepSpeed's per-node launcher is left out on purpose: killed, it leaves its ranks running and the job
ends with exit code 0.
"""

from __future__ import annotations

from launcher.command import Command
from launcher.job import Job


def commands(job: Job) -> tuple[Command, ...]:
    """One command for each rank, with the environment torch.distributed and DeepSpeed read.

    Raises `ValueError` when the job has more than one node.
    """
    if len(job.nodes) != 1:
        raise ValueError(f"the local transport takes one node, not {len(job.nodes)}")
    size = str(job.world_size)
    return tuple(
        Command(
            name=f"rank {rank}",
            # -u: lines appear when they are printed, also through a pipe.
            arguments=(job.python, "-u", str(job.script), *job.arguments),
            environment=(
                *job.environment,
                ("RANK", str(rank)),
                ("LOCAL_RANK", str(rank)),
                ("WORLD_SIZE", size),
                ("LOCAL_WORLD_SIZE", size),
                # DeepSpeed's CPU accelerator reads its number of devices from this one.
                ("LOCAL_SIZE", size),
                ("NODE_RANK", "0"),
                ("MASTER_ADDR", job.master_address),
                ("MASTER_PORT", str(job.master_port)),
            ),
        )
        for rank in range(job.world_size)
    )
