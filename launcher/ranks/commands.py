"""The commands that start the ranks of one node."""

from __future__ import annotations

from launcher.command import Command
from launcher.job import Job


def rank_commands(job: Job, index: int, address: str, port: int | str) -> tuple[Command, ...]:
    """One command for each slot of node `index`, with the environment torch.distributed and DeepSpeed read.

    `address` and `port` are where the ranks meet. Whoever starts them adds what follows from the host itself.
    """
    first = sum(node.num_slots for node in job.nodes[:index])
    num_slots = job.nodes[index].num_slots
    chosen = job.nodes[index].devices
    devices = (("CUDA_VISIBLE_DEVICES", ",".join(map(str, chosen))),) if chosen else ()
    return tuple(
        Command(
            name=f"rank {first + slot}",
            # -u: lines appear when they are printed, also through a pipe.
            arguments=(job.python, "-u", str(job.script), *job.arguments),
            environment=(
                *job.environment,
                ("RANK", str(first + slot)),
                ("LOCAL_RANK", str(slot)),
                ("WORLD_SIZE", str(job.world_size)),
                ("LOCAL_WORLD_SIZE", str(num_slots)),
                # DeepSpeed's CPU accelerator reads its number of devices from this one.
                ("LOCAL_SIZE", str(num_slots)),
                ("NODE_RANK", str(index)),
                ("MASTER_ADDR", address),
                ("MASTER_PORT", str(port)),
                *devices,
            ),
        )
        for slot in range(num_slots)
    )
