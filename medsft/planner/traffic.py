"""Bytes that move in a step: the GPU's own memory, links inside a host, between hosts, PCIe, NVMe."""

from __future__ import annotations

from dataclasses import dataclass

from medsft.planner.settings import ZeroSettings

GPU_ADAM = 54
"""Bytes a parameter of a GPU's AdamW in DeepSpeed 0.19.8, with fp32 gradients: norm 4 (read); flattened into
a sub-group 8 (read, write); clipped 8; torch's fused AdamW reads gradient, master, m, v 16 and writes 12;
cast back 6 (read 4, write 2)."""

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


def zero3_bytes(num_parameters: float, bytes_a_weight: int, ranks: int) -> float:
    """What a rank receives in a micro-step of plain ZeRO-3: 3·s·P·(W - 1)/W.

    Weights are gathered for the forward and for the backward pass, gradients reduced and scattered once
    (ZeRO, arXiv 1910.02054, section 7.2.2). Recomputation gathers nothing more: it runs where the backward
    pass has gathered.
    """
    return 3 * _gather_bytes(num_parameters, bytes_a_weight, ranks)


def _gather_bytes(num_parameters: float, bytes_a_weight: int, ranks: int) -> float:
    """What a rank receives in one gather of all weights, or in one reduction: all but its own share."""
    return bytes_a_weight * num_parameters * (ranks - 1) / ranks


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
    plain = zero3_bytes(num_parameters, size, ranks) * num_micro_batches
    if nodes == 1:
        return Collectives(plain, 0.0)
    if not 1 < settings.hpz < ranks:
        return Collectives(plain, plain)
    crossing = _gather_bytes(num_parameters, size, ranks) * (1 + num_micro_batches)
    staying = _gather_bytes(num_parameters, size, settings.hpz) * (2 * num_micro_batches - 1)
    between = crossing + (0 if settings.hpz <= gpus_per_node else staying)
    return Collectives(crossing + staying, between)


def optimizer_bytes(num_parameters: float, settings: ZeroSettings, ranks: int) -> float:
    """What AdamW moves in a GPU's own memory in a step."""
    return GPU_ADAM * num_parameters / ranks if settings.offload_optimizer == "none" else 0.0


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
