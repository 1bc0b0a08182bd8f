"""Which configuration, how many GPUs, which batch: plans compared with each other."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from medsft.planner.cluster import Cluster, Efficiency
from medsft.planner.flops import step_flops
from medsft.planner.hardware import Gpu
from medsft.planner.lengths import Lengths
from medsft.planner.memory import Saves
from medsft.planner.plan import Batch, Plan, plan
from medsft.planner.settings import DS_CONFIGS, ZeroSettings
from medsft.planner.shape import Shape

_WORTH_IT = 0.9  # more GPUs have to save a tenth of the time


@dataclass(frozen=True)
class Candidate:
    """A configuration tried: `name` of its file in ds_configs, and the plan with it."""

    name: str
    plan: Plan

    @property
    def label(self) -> str:
        """The name, with what else is to be set."""
        return self.name + (" + --gradient_checkpointing true" if self.plan.batch.checkpointing else "")


@dataclass(frozen=True)
class Job:
    """What is to be trained, wherever it runs.

    Attributes:
        batch: the size of the global batch counts; how it is cut up follows from the number of ranks.
        per_device_size: examples in a micro-batch, or None: the fewest passes that memory allows.
        example_tokens: most tokens of an example, both length limits together.
    """

    shape: Shape
    lengths: Lengths
    batch: Batch
    saves: Saves = field(default_factory=Saves)
    efficiency: Efficiency = field(default_factory=Efficiency)
    per_device_size: int | None = None
    example_tokens: int = 512

    def ways(self, world_size: int) -> tuple[int, ...]:
        """Examples in a micro-batch that may be tried, the largest first."""
        if self.per_device_size is not None:
            return (self.per_device_size,)
        whole = math.ceil(self.batch.global_size / world_size)
        return tuple(sorted({math.ceil(whole / 2**halvings) for halvings in range(7)}, reverse=True))

    def on(
        self, cluster: Cluster, ds_config: Mapping[str, Any], per_device_size: int, checkpointing: bool
    ) -> Plan:
        """The plan of it there. Passes of a rank follow from the number of ranks."""
        batch = replace(
            self.batch,
            per_device_size=per_device_size,
            num_micro_batches=math.ceil(self.batch.global_size / (cluster.world_size * per_device_size)),
            max_tokens=self.batch.max_tokens or per_device_size * self.example_tokens,
            checkpointing=checkpointing,
        )
        return plan(self.shape, self.lengths, cluster, ds_config, batch, self.saves, self.efficiency)


def read_configs(folder: Path = DS_CONFIGS) -> dict[str, dict[str, Any]]:
    """The configurations that come with medsft, by file name."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def is_for(ds_config: Mapping[str, Any], shape: Shape, cluster: Cluster) -> bool:
    """Whether precision and grouping suit these GPUs."""
    settings, gpu = ZeroSettings.of(ds_config, shape), cluster.gpu
    if gpu is None:
        return settings.precision == "fp32"
    if settings.precision != ("bf16" if gpu.has_bf16 else "fp16"):
        return False
    if settings.hpz > 1:
        return cluster.nodes > 1 and cluster.gpus_per_node > 1
    return True


def for_gpu(ds_config: dict[str, Any], cluster: Cluster) -> dict[str, Any]:
    """The configuration with hpZ's groups made one host each."""
    zero = ds_config["zero_optimization"]
    if zero.get("zero_hpz_partition_size", 1) <= 1:
        return ds_config
    return {**ds_config, "zero_optimization": {**zero, "zero_hpz_partition_size": cluster.gpus_per_node}}


def candidates(job: Job, cluster: Cluster, configs: Mapping[str, dict[str, Any]]) -> list[Candidate]:
    """Every configuration that suits the GPUs, each the fastest way that fits; those that fit first, by time.

    With and without recomputation, and with the micro-batches that `Job.ways` allows.
    """
    found = [
        min(_ways(name, job, cluster, for_gpu(config, cluster)), key=_order)
        for name, config in configs.items()
        if is_for(config, job.shape, cluster)
    ]
    return sorted(found, key=_order)


def _ways(name: str, job: Job, cluster: Cluster, ds_config: dict[str, Any]) -> Iterator[Candidate]:
    for per_device_size in job.ways(cluster.world_size):
        for checkpointing in {job.batch.checkpointing, True}:
            yield Candidate(name, job.on(cluster, ds_config, per_device_size, checkpointing))


def _order(candidate: Candidate) -> tuple[bool, float, float, bool]:
    made = candidate.plan
    short = made.gpu_short + made.host_short
    time_s = made.times.step_s if made.times else 0.0
    return (not made.fits, short, round(time_s, 6), made.batch.checkpointing)


def best(job: Job, cluster: Cluster, configs: Mapping[str, dict[str, Any]]) -> Candidate:
    """The fastest that fits, or the one that lacks least."""
    return candidates(job, cluster, configs)[0]


def smaller_and_larger(cluster: Cluster) -> Iterator[Cluster]:
    """Powers of two of its GPUs, then of its hosts, up to twice the cluster."""
    gpus = 1
    while gpus < cluster.gpus_per_node:
        yield replace(cluster, gpus_per_node=gpus, nodes=1)
        gpus *= 2
    nodes = 1
    while nodes < cluster.nodes:
        yield replace(cluster, nodes=nodes)
        nodes *= 2
    yield cluster
    yield replace(cluster, nodes=2 * cluster.nodes)


@dataclass(frozen=True)
class Scaling:
    """`sizes`: the best for each number of GPUs, None where nothing fits. `advice`: sentences."""

    sizes: tuple[tuple[Cluster, Candidate | None], ...]
    advice: tuple[str, ...]


def scaling(job: Job, cluster: Cluster, configs: Mapping[str, dict[str, Any]]) -> Scaling:
    """Whether more GPUs help, and which global batch would use them."""
    sizes = []
    for size in smaller_and_larger(cluster):
        found = best(job, size, configs)
        sizes.append((size, found if found.plan.fits else None))
    return Scaling(tuple(sizes), tuple(_sentences(job, cluster, sizes)))


def _sentences(
    job: Job, cluster: Cluster, sizes: Sequence[tuple[Cluster, Candidate | None]]
) -> Iterator[str]:
    timed = [(size.world_size, found.plan) for size, found in sizes if found and found.plan.times]
    here = [made for world, made in timed if world == cluster.world_size]
    if not here:
        return
    now = here[0]
    more = [made for world, made in timed if world > cluster.world_size]
    batch = job.batch.global_size
    fewer = [pair for pair in timed if pair[0] < cluster.world_size]
    fastest_s = min((made.run_s for _, made in fewer), default=math.inf)
    if fastest_s <= now.run_s / _WORTH_IT:
        world, made = next(pair for pair in fewer if pair[1].run_s <= fastest_s / _WORTH_IT)
        yield (
            f"{cluster.world_size} GPUs do not pay: {world} take {made.run_s / 60:,.1f} min, "
            f"{cluster.world_size} take {now.run_s / 60:,.1f} min. They buy memory, not time."
        )
    if more and more[0].run_s > now.run_s * _WORTH_IT:
        yield (
            f"More GPUs will not help at {batch} examples a step: twice as many take "
            f"{more[0].run_s / 60:,.1f} min instead of {now.run_s / 60:,.1f} min."
        )
    if now.sizes.ranks_at_work < cluster.world_size:
        yield (
            f"At {batch} examples a step only {now.sizes.ranks_at_work} of {cluster.world_size} ranks get "
            "one."
        )
    if job.per_device_size is not None and now.batch.num_micro_batches > 1 and cluster.world_size > 1:
        yield (
            f"{now.batch.num_micro_batches} micro-batches a step repeat the collectives as often; larger "
            "ones (--per_device_train_batch_size) save that where memory allows."
        )
    needed = batch_to_fill(job, now)
    if needed is not None and needed > batch and now.times.dominant.startswith("collectives"):
        yield (
            f"From about {needed:,} examples a step on (--global_batch_size) arithmetic would outweigh the "
            "collectives; that changes the loss curve, and the learning rate wants to follow."
        )


def batch_to_fill(job: Job, made: Plan) -> int | None:
    """Examples a step at which arithmetic takes as long as the collectives of one pass; None without any."""
    times, gpu = made.times, made.cluster.gpu
    if times is None or gpu is None or not times.collectives_s:
        return None
    lengths = job.lengths
    mean_pairs = made.sizes.num_pairs / made.batch.global_size
    flops = step_flops(
        job.shape, lengths.mean_tokens, lengths.mean_targets, mean_pairs, made.batch.checkpointing
    )
    ranks = made.cluster.world_size
    pass_s = times.collectives_s / made.sizes.num_micro_batches
    examples = pass_s * gpu.peak_flops * job.efficiency.compute * ranks / flops.total
    return ranks * math.ceil(examples / ranks)


def gpus_that_fit(
    job: Job, gpu: Gpu, cluster: Cluster, configs: Mapping[str, dict[str, Any]], most: int = 1024
) -> tuple[int, str] | None:
    """The least power of two of such GPUs on which it fits, in hosts of 8, with the configuration's name."""
    count = 1
    while count <= most:
        size = replace(cluster, gpu=gpu, gpus_per_node=min(8, count), nodes=math.ceil(count / 8))
        found = best(job, size, configs)
        if found.plan.fits:
            return count, found.label
        count *= 2
    return None


def command(
    candidate: Candidate,
    model: str,
    train_files: Sequence[str],
    output_dir: str = "runs/planned",
    deepspeed: str | None = None,
) -> list[str]:
    """The command line that starts the planned run, as words, with the whole batch: the plan is of no other.

    What the plan needs of each host goes along, for the launcher to look at before the start. `deepspeed`:
    path of the configuration, where it is not the one of that name in ds_configs.
    """
    made = candidate.plan
    where = ["--num-gpus", str(made.cluster.gpus_per_node)]
    if made.cluster.nodes > 1:
        where = ["--hostfile", "hostfile"]
    where += ["--needs-memory", _gib(made.host_bytes), "--needs-disk", _gib(made.disk_bytes)]
    if made.cluster.gpu is not None:
        where += ["--needs-gpu-memory", _gib(made.gpu_bytes)]
    words = ["python", "-m", "launcher", "run", *where, "medsft/train.py"]
    words += ["--deepspeed", deepspeed or f"ds_configs/{candidate.name}", "--model_name_or_path", model]
    words += ["--train_file", *train_files, "--output_dir", output_dir]
    words += ["--global_batch_size", str(made.batch.global_size)]
    words += ["--per_device_train_batch_size", str(made.batch.per_device_size)]
    if made.batch.max_steps > 0:
        words += ["--max_steps", str(made.batch.max_steps)]
    else:
        words += ["--num_train_epochs", f"{made.batch.num_epochs:g}"]
    if made.batch.checkpointing:  # else the trainer decides by the memory that it finds
        words += ["--gradient_checkpointing", "true"]
    if not made.batch.packing:
        words += ["--packing", "false"]
    if not made.num_saves:
        words += ["--save_strategy", "no"]
    return words


def _gib(num_bytes: float) -> str:
    """Whole GiB, rounded up."""
    return str(math.ceil(num_bytes / 2**30))


def shown_command(words: Sequence[str]) -> str:
    """The words for a shell."""
    return shlex.join(words)
