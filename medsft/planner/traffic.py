"""Bytes that move in a step: the GPU's own memory, links inside a host, between hosts, PCIe, NVMe."""

from __future__ import annotations

from dataclasses import dataclass

from medsft.planner.settings import ZeroSettings

ONE_PASS_ADAM = 28
"""Bytes a parameter of AdamW done at once: read 16-bit gradient (2) and master, m, v (12), write these (12)
and the 16-bit weight (2)."""

DEEPSPEED_ADAM = 54
"""Bytes a parameter as DeepSpeed 0.19.8 does it, with fp32 gradients: norm 4 (read); flattened into a
sub-group 8 (read, write); clipped 8; AdamW reads gradient, master, m, v 16 and writes 12; cast back 6 (read
4, write 2)."""

PCIE_GRADIENTS = 12
"""Bytes a parameter over PCIe where the optimiser is offloaded: the fp32 gradient down to be added up, up for
its norm, down again to Adam (`partition_grads` in deepspeed/runtime/zero/stage3.py)."""

HOST_ADAM = 34
"""Bytes a parameter in host memory of DeepSpeed's CPU Adam: it reads 16 and writes 12; casting back takes
6."""

NVME_STATES = 16
"""Bytes a parameter read from NVMe in a step: master, m, v and the fp32 gradient. 12 + 4 are written."""


@dataclass(frozen=True)
class Collectives:
    """Bytes that one rank receives in one step, by where they come from.

    Attributes:
        inside: over the links inside its host, if the host has several GPUs.
        between: that a host receives from the others, over all of its adapters.
    """

    inside: float
    between: float


def zero3_bytes(num_parameters: float, bytes_a_weight: int, ranks: int, num_gathers: int = 2) -> float:
    """What a rank receives in a micro-step of plain ZeRO-3.

    Each gather of all weights brings a rank what it does not hold, s·P·(W - 1)/W; so does, the other way
    round, the reduce-scatter of the gradients. Weights are gathered for the forward and for the backward
    pass: 3·s·P·(W - 1)/W in all (ZeRO, arXiv 1910.02054, section 7.2.2). Recomputation gathers nothing more:
    it runs where the backward pass has gathered.
    """
    return (num_gathers + 1) * bytes_a_weight * num_parameters * (ranks - 1) / ranks


def collectives(
    num_parameters: float, settings: ZeroSettings, gpus_per_node: int, nodes: int, num_micro_batches: float
) -> Collectives:
    """Bytes of a step with `num_micro_batches` passes.

    A ring over all ranks enters each host once, so a host receives as much as a rank does, whatever the
    number of its GPUs. With hpZ (ZeRO++, arXiv 2306.10209, section 3.2) only the first gather after an update
    crosses the hosts; the others stay among the `zero_hpz_partition_size` ranks. Gradients travel as ever.
    """
    ranks = gpus_per_node * nodes
    size = settings.bytes_a_weight
    one = size * num_parameters * (ranks - 1) / ranks
    if nodes == 1:
        return Collectives(3 * one * num_micro_batches, 0.0)
    if not 1 < settings.hpz < ranks:
        return Collectives(3 * one * num_micro_batches, 3 * one * num_micro_batches)
    group = size * num_parameters * (settings.hpz - 1) / settings.hpz
    crossing = one * (1 + num_micro_batches)
    staying = group * (2 * num_micro_batches - 1)
    between = crossing + (0 if settings.hpz <= gpus_per_node else staying)
    return Collectives(crossing + staying, between)


def optimizer_bytes(num_parameters: float, ranks: int, one_pass: bool = False) -> float:
    """What AdamW moves in a GPU's own memory in a step."""
    return (ONE_PASS_ADAM if one_pass else DEEPSPEED_ADAM) * num_parameters / ranks


def pcie_bytes(num_parameters: float, settings: ZeroSettings, ranks: int, num_micro_batches: float) -> float:
    """What a rank sends over PCIe in a step, both ways added.

    Optimiser offloaded: the gradients of each pass, 12 B a parameter (the third trip only at the last), and
    the new weights up. Weights offloaded: each gather takes the rank's own slices up.
    """
    share, total = num_parameters / ranks, 0.0
    if settings.offload_optimizer != "none":
        total += share * (PCIE_GRADIENTS * num_micro_batches)
        if settings.offload_param == "none":
            total += share * settings.bytes_a_weight
    if settings.offload_param != "none":
        total += share * settings.bytes_a_weight * 2 * num_micro_batches
    return total


def host_adam_bytes(num_parameters: float, settings: ZeroSettings, ranks: int) -> float:
    """What CPU Adam moves in host memory for a rank in a step."""
    return HOST_ADAM * num_parameters / ranks if settings.offload_optimizer != "none" else 0.0


def nvme_bytes(num_parameters: float, settings: ZeroSettings, ranks: int) -> tuple[float, float]:
    """What a rank reads from and writes to NVMe in a step."""
    if settings.offload_optimizer != "nvme":
        return 0.0, 0.0
    return NVME_STATES * num_parameters / ranks, NVME_STATES * num_parameters / ranks
