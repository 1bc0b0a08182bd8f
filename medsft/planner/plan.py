"""A run's plan: memory at every stage, whether it fits, and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from medsft.errors import UserError
from medsft.planner.cluster import Cluster, Efficiency
from medsft.planner.flops import mfu, step_flops
from medsft.planner.lengths import Lengths, StepSizes, step_sizes
from medsft.planner.memory import Place, Saves, Stage, checkpoint_bytes, stages
from medsft.planner.settings import ZeroSettings
from medsft.planner.shape import Shape
from medsft.planner.times import Times, step_times

ONCE_A_NODE = "a model file (rank 0)"
# As --save_total_limit has it unless told otherwise.
_KEPT_CHECKPOINTS = 2
# Bytes of a value in bf16.
_HALF = 2


@dataclass(frozen=True)
class Batch:
    """Batch settings, as the trainer's flags have them.

    Attributes:
        global_size: examples in a step, over all ranks.
        per_device_size: examples in one micro-batch of a rank.
        num_micro_batches: micro-batches of a rank in a step.
        max_tokens: most tokens in a packed micro-batch; None: no limit.
        packing: examples in one row without padding.
        checkpointing: activations are computed again in the backward pass.
        num_epochs: passes over the data. max_steps: replaces them when it is above 0.
    """

    global_size: int
    per_device_size: int
    num_micro_batches: int
    max_tokens: int | None = None
    packing: bool = True
    checkpointing: bool = False
    num_epochs: float = 3.0
    max_steps: int = -1


@dataclass(frozen=True)
class Plan:
    """What a run needs and takes.

    Attributes:
        shape, cluster, batch, settings: what was planned.
        sizes: of a step.
        stages: load, forward and backward, optimiser step, save, resume.
        times: of a step; None where the device's speed is not known.
        num_steps: of the run.
        num_saves: checkpoints that it writes.
    """

    shape: Shape
    cluster: Cluster
    batch: Batch
    settings: ZeroSettings
    sizes: StepSizes
    stages: tuple[Stage, ...]
    times: Times | None
    num_steps: int
    num_saves: int

    @property
    def gpu_bytes(self) -> float:
        """Peak of one GPU."""
        return max(stage.gpu_bytes for stage in self.stages)

    def node_bytes(self, stage: Stage) -> float:
        """What a host holds at a stage: all of its ranks; a model file is held by one only."""
        ranks = self.cluster.gpus_per_node
        return ranks * stage.host_bytes - (ranks - 1) * stage.host.get(ONCE_A_NODE, 0.0)

    @property
    def host_bytes(self) -> float:
        """Peak of one host."""
        return max(map(self.node_bytes, self.stages))

    @property
    def disk_bytes(self) -> float:
        """Most that lies in the output folder: checkpoints kept, the one being written, the model in bf16."""
        num_parameters = self.shape.num_parameters
        num_checkpoints = min(self.num_saves, _KEPT_CHECKPOINTS + 1)
        return num_checkpoints * checkpoint_bytes(num_parameters) + _HALF * num_parameters

    @property
    def gpu_short(self) -> float:
        """Bytes that a GPU lacks; 0 where it fits or there is none."""
        return max(0.0, self.gpu_bytes - self.cluster.gpu_memory_bytes) if self.cluster.gpu else 0.0

    @property
    def host_short(self) -> float:
        """Bytes that a host lacks; 0 where it fits or its memory is not known."""
        memory = self.cluster.host_memory_bytes
        return 0.0 if memory is None else max(0.0, self.host_bytes - memory)

    @property
    def fits(self) -> bool:
        """Whether memory suffices everywhere."""
        return not self.gpu_short and not self.host_short

    @property
    def stall_s(self) -> float:
        """Seconds that training waits for one checkpoint: its copy over PCIe."""
        share = checkpoint_bytes(self.shape.num_parameters) / self.cluster.world_size
        return share / self.cluster.pcie.bandwidth if self.settings.offload_optimizer == "none" else 0.0

    @property
    def run_s(self) -> float | None:
        """Seconds of the training; start-up and the writing of the model come on top."""
        if self.times is None:
            return None
        return self.num_steps * self.times.step_s + self.num_saves * self.stall_s

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation, by the useful tokens of a step."""
        if self.times is None or self.cluster.gpu is None:
            return None
        sizes = self.sizes
        flops = step_flops(self.shape, sizes.num_tokens, sizes.num_targets, sizes.num_pairs)
        peak = self.cluster.gpu.peak_flops
        return mfu(flops.necessary, self.times.step_s, self.cluster.world_size, peak)

    def cost(self, price_per_gpu_hour: float) -> float | None:
        """What the training's GPU hours cost."""
        if self.run_s is None:
            return None
        return self.run_s / 3600 * self.cluster.world_size * price_per_gpu_hour


def plan(
    shape: Shape,
    lengths: Lengths,
    cluster: Cluster,
    ds_config: Mapping[str, Any],
    batch: Batch,
    saves: Saves | None = None,
    efficiency: Efficiency | None = None,
) -> Plan:
    """Plans a run.

    `ds_config` is a DeepSpeed configuration, settled or as in ds_configs. Raises `UserError` for one that is
    not ZeRO-3, for a batch that cannot be, and for an example longer than a micro-batch.
    """
    saves, efficiency = saves or Saves(), efficiency or Efficiency()
    if min(batch.global_size, batch.per_device_size, batch.num_micro_batches) < 1:
        raise UserError(
            f"a global batch of {batch.global_size}, {batch.per_device_size} examples a micro-batch and "
            f"{batch.num_micro_batches} micro-batches cannot be; each must be 1 or more."
        )
    settings = ZeroSettings.of(ds_config, shape)
    sizes = _sizes(
        lengths,
        cluster.world_size,
        batch.global_size,
        batch.per_device_size,
        batch.num_micro_batches,
        batch.max_tokens,
        batch.packing,
    )
    place = Place(cluster.gpu is not None, cluster.world_size)
    num_steps = batch.max_steps
    if num_steps < 1:
        num_steps = math.ceil(math.ceil(batch.num_epochs * len(lengths)) / batch.global_size)
    return Plan(
        shape,
        cluster,
        batch,
        settings,
        sizes,
        stages(shape, settings, place, sizes, batch.checkpointing, saves),
        step_times(shape, settings, cluster, sizes, batch.checkpointing, efficiency),
        num_steps,
        max(1, math.ceil(batch.num_epochs)) if saves.checkpoints else 0,
    )


_sizes = lru_cache(maxsize=64)(step_sizes)
