"""Seconds of a step: arithmetic, memory, links, and what of it runs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from medsft.planner import traffic
from medsft.planner.cluster import Cluster, Efficiency
from medsft.planner.flops import step_flops
from medsft.planner.lengths import StepSizes
from medsft.planner.settings import ZeroSettings
from medsft.planner.shape import Shape

_PASSES_OVER_WEIGHTS = 3  # forward; backward to the input; backward to the weight
NAMES: Mapping[str, str] = {
    "compute_s": "arithmetic",
    "optimizer_s": "the optimiser's traffic in GPU memory",
    "inside_s": "collectives inside a host",
    "between_s": "collectives between hosts",
    "pcie_s": "PCIe",
    "host_adam_s": "Adam on the CPU",
    "nvme_s": "NVMe",
}


@dataclass(frozen=True)
class Times:
    """Seconds of each part of a step, and of the step.

    Collectives run beside the arithmetic where the configuration says `overlap_comm`; inside a host and
    between hosts the same collective is as slow as its slower link. Optimiser and offload follow after that.
    """

    compute_s: float
    optimizer_s: float
    inside_s: float
    between_s: float
    pcie_s: float
    host_adam_s: float
    nvme_s: float
    overlaps: bool

    @property
    def collectives_s(self) -> float:
        """The slower of the links."""
        return max(self.inside_s, self.between_s)

    @property
    def step_s(self) -> float:
        """The whole step."""
        first, second = self.compute_s, self.collectives_s
        together = max(first, second) if self.overlaps else first + second
        return together + self.optimizer_s + self.pcie_s + self.host_adam_s + self.nvme_s

    @property
    def dominant(self) -> str:
        """What takes longest, in words."""
        parts = asdict(self)
        return NAMES[max(NAMES, key=parts.__getitem__)]


def step_times(
    shape: Shape,
    settings: ZeroSettings,
    cluster: Cluster,
    sizes: StepSizes,
    checkpointing: bool,
    efficiency: Efficiency,
) -> Times | None:
    """Times of a step; None where the speed of the device is not known (the CPU, a strange GPU).

    Arithmetic: operations of the busiest rank over peak x efficiency, but no less than streaming all weights
    through the GPU three times a pass, which is what small micro-batches wait for.
    """
    gpu = cluster.gpu
    if gpu is None or not gpu.peak_flops:
        return None
    parameters, ranks, passes = shape.num_parameters, cluster.world_size, sizes.num_micro_batches
    pairs = sizes.num_pairs * sizes.busiest_slots / sizes.num_slots
    flops = step_flops(shape, sizes.busiest_slots, sizes.busiest_targets, pairs, checkpointing)
    streams = passes * (_PASSES_OVER_WEIGHTS + checkpointing)
    streaming_s = streams * settings.bytes_a_weight * parameters / (gpu.bandwidth * efficiency.memory)
    moved = traffic.collectives(parameters, settings, cluster.gpus_per_node, cluster.nodes, passes)
    read, written = traffic.nvme_bytes(parameters, settings, ranks)
    pcie = traffic.pcie_bytes(parameters, settings, ranks, passes)
    adam = traffic.host_adam_bytes(parameters, settings, ranks)
    optimizer = traffic.optimizer_bytes(parameters, settings, ranks)
    return Times(
        compute_s=max(flops.total / (gpu.peak_flops * efficiency.compute), streaming_s),
        optimizer_s=optimizer / (gpu.bandwidth * efficiency.memory),
        inside_s=moved.inside / (cluster.link.bandwidth * efficiency.link)
        if cluster.gpus_per_node > 1
        else 0.0,
        between_s=moved.between / (cluster.network.bandwidth * efficiency.network),
        pcie_s=pcie / (cluster.pcie.bandwidth * efficiency.pcie),
        host_adam_s=adam * cluster.gpus_per_node / cluster.host_bandwidth,
        nvme_s=cluster.gpus_per_node * (read / cluster.nvme_read + written / cluster.nvme_write),
        overlaps=settings.overlaps,
    )
