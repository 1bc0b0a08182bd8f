"""Whether a run fits the machines it is about to use, and what it will take: told before it starts."""

from __future__ import annotations

import logging
import math
import os
import socket
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from medsft.chatglm import ChatGLMConfig
from medsft.chatglm.weights import parse_size
from medsft.config import Config
from medsft.data.dataset import EncodedDataset
from medsft.data.plan import StepPlan
from medsft.engine.deepspeed_config import Batch
from medsft.engine.distributed import World, from_all, together
from medsft.errors import UserError
from medsft.host_memory import host_memory_bytes
from medsft.planner import plan as planning
from medsft.planner.cluster import Cluster
from medsft.planner.hardware import LINKS, Gpu, match_gpu
from medsft.planner.lengths import Lengths
from medsft.planner.memory import Saves
from medsft.planner.shape import Shape

logger = logging.getLogger(__name__)

TOLERANCE = 0.1
"""Share by which the plan may be too high: a run is refused where even so much less would not fit."""


@dataclass(frozen=True)
class Fit:
    """A run that may start. `text`: its plan in one line. `recomputes`: with gradient checkpointing."""

    text: str
    recomputes: bool


def check_fit(
    config: Config,
    model: ChatGLMConfig,
    data: EncodedDataset,
    steps: StepPlan,
    batch: Batch,
    most_tokens: int,
    ds_config: Mapping[str, Any],
    world: World,
) -> Fit:
    """Decides on gradient checkpointing where that is left to it, and logs the run's plan. A collective.

    Raises `UserError` with the arithmetic where memory cannot suffice, unless --allow_low_memory says to try.
    """
    # Containers may all have one name; launchers number the hosts.
    ranks_of_host = Counter(from_all(world, (socket.gethostname(), os.environ.get("NODE_RANK"))))
    flags = config.optimization
    with together(world):
        shape = Shape.of(model)
        lengths = Lengths(tuple(map(int, data.lengths)), tuple(map(int, data.num_targets)))
        cluster = this_cluster(world.device, max(ranks_of_host.values()), len(ranks_of_host))
        saves = Saves(config.run.save_strategy != "no", parse_size(config.run.max_shard_size))

        def planned(recomputes: bool) -> planning.Plan:
            cut = planning.Batch(
                len(steps.examples(0)),
                batch.per_device_size,
                batch.num_micro_batches,
                most_tokens if flags.packing else None,
                flags.packing,
                recomputes,
                flags.num_train_epochs,
                steps.num_steps,
            )
            return planning.plan(shape, lengths, cluster, ds_config, cut, saves)

        plain, again = planned(False), planned(True)
    recomputes = config.model.recomputes
    if recomputes is None:  # one host may have less memory than another: what one rank needs, all do
        recomputes = any(from_all(world, needs_recomputation(plain, again)))
        logger.info("gradient checkpointing: %s", explain_recomputation(plain, again, recomputes))
    made = again if recomputes else plain
    text, fault = describe(made), misfit(made)
    logger.info("plan: %s", text)
    with together(world):
        if fault is not None and not config.run.allow_low_memory:
            raise UserError(
                f"{fault} Ways out: --gradient_checkpointing true, smaller --micro_batch_tokens, a file of "
                "ds_configs that offloads, more GPUs or hosts; `medsft plan` compares them. To try all the "
                "same: --allow_low_memory true."
            )
    if fault is not None:
        logger.warning("--allow_low_memory: %s", fault)
    return Fit(text, recomputes)


def needs_recomputation(plain: planning.Plan, again: planning.Plan) -> bool:
    """Whether a GPU or a host keeps too little memory free without gradient checkpointing, and more with it.

    Free is to stay what the plan may be wrong by. Where it is not the activations that need the memory,
    computing them again would cost a third more work for nothing.
    """
    return bool(_helped(plain, again))


def explain_recomputation(plain: planning.Plan, again: planning.Plan, recomputes: bool) -> str:
    """On or off, and the arithmetic of the place that has least to spare, among those that it helps."""
    needs = _needs(plain)
    fullest = max(_helped(plain, again) or needs, key=lambda place: needs[place].share)
    need = needs[fullest]
    if not recomputes:
        helps = "; computing activations again would not change that" if need.is_tight else ""
        return f"off, {fullest} needs {need} without it{helps}"
    return (
        f"on, {fullest} needs {need} without it, of which a tenth is to stay free; with it {fullest} needs "
        f"{_needs(again)[fullest]}"
    )


@dataclass(frozen=True)
class _Need:
    """Memory that a place needs of what it has, in bytes."""

    needed: float
    there_is: float

    @property
    def share(self) -> float:
        return self.needed / self.there_is

    @property
    def is_tight(self) -> bool:
        return self.share * (1 + TOLERANCE) > 1

    def __str__(self) -> str:
        return f"{_gb(self.needed)} of {_gb(self.there_is)}"


def _needs(made: planning.Plan) -> dict[str, _Need]:
    """Place -> its memory, as far as it is known: "a GPU" and "a host"."""
    cluster = made.cluster
    found = {"a host": _Need(made.host_bytes, cluster.host_memory_bytes or math.inf)}
    if cluster.gpu is not None:
        found["a GPU"] = _Need(made.gpu_bytes, cluster.gpu_memory_bytes)
    return found


def _helped(plain: planning.Plan, again: planning.Plan) -> list[str]:
    """The places with too little memory that need less where activations are computed again."""
    less = _needs(again)
    return [
        place for place, need in _needs(plain).items() if need.is_tight and less[place].needed < need.needed
    ]


def this_cluster(device: torch.device, ranks_a_host: int, num_hosts: int) -> Cluster:
    """The machines that a run has, as far as this host tells."""
    gpu = None
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory, name = properties.total_memory, properties.name
        gpu = match_gpu(name, memory) or Gpu(name, memory, 0.0, 0.0, True, "pcie4")
    return Cluster(
        gpu=gpu,
        gpus_per_node=ranks_a_host,
        nodes=num_hosts,
        gpu_memory_bytes=memory if gpu else 0.0,
        host_memory_bytes=host_memory_bytes(),
        link=LINKS[gpu.link if gpu else "pcie4"],
        pcie=LINKS[gpu.pcie if gpu else "pcie4"],
    )


def describe(made: planning.Plan) -> str:
    """Memory and time in one line."""
    parts = []
    if made.cluster.gpu is not None:
        stage = max(made.stages, key=lambda stage: stage.gpu_bytes)
        parts.append(
            f"a GPU needs about {_gb(stage.gpu_bytes)} of {_gb(made.cluster.gpu_memory_bytes)} ({stage.name})"
        )
    stage = max(made.stages, key=made.node_bytes)
    memory = made.cluster.host_memory_bytes
    of_all = "" if memory is None else f" of {_gb(memory)}"
    parts.append(f"a host needs about {_gb(made.node_bytes(stage))}{of_all} ({stage.name})")
    if made.times is not None and made.run_s is not None:
        parts.append(
            f"about {made.times.step_s:.2f} s a step and {made.run_s / 60:,.0f} min in all, most of it "
            f"{made.times.dominant}"
        )
    return "; ".join(parts)


def misfit(made: planning.Plan) -> str | None:
    """What does not fit, with its components; None where it does, the plan's own error granted."""
    cluster = made.cluster
    if cluster.gpu is not None:
        stage = max(made.stages, key=lambda stage: stage.gpu_bytes)
        if stage.gpu_bytes * (1 - TOLERANCE) > cluster.gpu_memory_bytes:
            return (
                f"the run cannot fit: a GPU needs {_gb(stage.gpu_bytes)} ({stage.name}: {_sum(stage.gpu)}) "
                f"and has {_gb(cluster.gpu_memory_bytes)}."
            )
    if cluster.host_memory_bytes is not None:
        stage = max(made.stages, key=made.node_bytes)
        need, ranks = made.node_bytes(stage), cluster.gpus_per_node
        if need * (1 - TOLERANCE) > cluster.host_memory_bytes:
            return (
                f"the run cannot fit: a host with {ranks} rank{'s' if ranks > 1 else ''} needs {_gb(need)} "
                f"({stage.name}, for each rank: {_sum(stage.host)}) and has {_gb(cluster.host_memory_bytes)}."
            )
    return None


def _sum(parts: Mapping[str, float]) -> str:
    """Components from the largest on, those below one per cent as one."""
    whole = sum(parts.values())
    shown = sorted((item for item in parts.items() if item[1] >= 0.01 * whole), key=lambda item: -item[1])
    rest = whole - sum(size for _, size in shown)
    if rest >= 0.05e9:
        shown.append(("the rest", rest))
    return " + ".join(f"{name} {_gb(size)}" for name, size in shown)


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
