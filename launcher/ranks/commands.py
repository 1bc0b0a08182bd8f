"""The commands that start the ranks of one node."""

from __future__ import annotations

from collections.abc import Mapping

from launcher.command import Command
from launcher.errors import LauncherError
from launcher.hosts.slots import visible_devices
from launcher.job import Job, Node


def rank_commands(
    job: Job, index: int, address: str, port: int | str, host: Mapping[str, str]
) -> tuple[Command, ...]:
    """One command for each slot of node `index`, with the environment torch.distributed and DeepSpeed read.

    `address` and `port` are where the ranks meet. `host` is the environment that the node itself has, empty
    where it is not known: the slots are those of the GPUs that it leaves visible. Whoever starts the ranks
    adds what else follows from the host. Raises `LauncherError` for a chosen slot without such a GPU.
    """
    first = sum(node.num_slots for node in job.nodes[:index])
    num_slots = job.nodes[index].num_slots
    devices = _devices(job.nodes[index], {**host, **dict(job.environment)})
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


def _devices(node: Node, environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What makes the chosen slots of a node the only GPUs its ranks see; nothing where there are none."""
    if not node.devices or environment.get("DS_ACCELERATOR") == "cpu":
        return ()
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return (("CUDA_VISIBLE_DEVICES", ",".join(map(str, node.devices))),)
    # What a scheduler, or a colleague, has left to this job: slot 0 is the first of these, not GPU 0.
    names = visible_devices(visible)
    if names and max(node.devices) >= len(names):
        raise LauncherError(
            f"{node.host} has no slot {max(node.devices)}: CUDA_VISIBLE_DEVICES={visible} leaves it "
            f"{len(names)} GPUs, slots 0 to {len(names) - 1}. Choose among these by --include or --exclude."
        )
    return (("CUDA_VISIBLE_DEVICES", ",".join(names[device] for device in node.devices)),) if names else ()
