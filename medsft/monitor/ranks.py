"""What every rank measured between two reports, and what of it is told."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass

import psutil
import torch

Gather = Callable[[Sequence[float]], Sequence[Sequence[float]]]
"""One rank's numbers -> those of all ranks, in their order; a collective."""


@dataclass(frozen=True)
class RankFigures:
    """One rank's own figures. Seconds are those of a step, GB are 10⁹ bytes; NaN without a GPU.

    forward_s, backward_s, optimizer_s: with the waiting for other ranks. data_wait_s: for this rank's next
    micro-batches. busy_s: what this rank itself needs, which no other can make longer: its own work and its
    wait for data. gpu_*: of torch's allocator on this rank's GPU, the peak since the start. host_memory_gb:
    resident memory of this process.
    """

    forward_s: float
    backward_s: float
    optimizer_s: float
    data_wait_s: float
    busy_s: float
    gpu_allocated_gb: float
    gpu_reserved_gb: float
    gpu_peak_gb: float
    host_memory_gb: float


def memory_gb(device: torch.device) -> tuple[float, float, float, float]:
    """Of this process: GPU memory allocated, reserved, allocated at most (NaN without a GPU), host memory."""
    gpu = (float("nan"),) * 3
    if device.type == "cuda":
        readers = (torch.cuda.memory_allocated, torch.cuda.memory_reserved, torch.cuda.max_memory_allocated)
        gpu = tuple(read(device) / 1e9 for read in readers)
    return (*gpu, psutil.Process().memory_info().rss / 1e9)


@dataclass(frozen=True)
class AllRanks:
    """The figures of all ranks as they are told.

    Seconds of the step's parts are means over the ranks, as each waits for the others in all of them; the
    wait for data is the longest one, and memory is that of the rank that has most. busy: see `RankFigures`;
    the median of an even number is the lower of the two in the middle. slowest: the rank with the largest.
    """

    forward_s: float
    backward_s: float
    optimizer_s: float
    data_wait_s: float
    busy_min_s: float
    busy_median_s: float
    busy_max_s: float
    slowest: int
    gpu_allocated_gb: float
    gpu_reserved_gb: float
    gpu_peak_gb: float
    host_memory_gb: float


def over_all(mine: RankFigures, gather: Gather) -> AllRanks:
    """Gathers the figures, the one time that ranks talk for a report's sake."""
    everyone = [RankFigures(*numbers) for numbers in gather(astuple(mine))]

    def of(name: str) -> list[float]:
        return [getattr(one, name) for one in everyone]

    busy = of("busy_s")
    return AllRanks(
        **{name: statistics.fmean(of(name)) for name in ("forward_s", "backward_s", "optimizer_s")},
        data_wait_s=max(of("data_wait_s")),
        busy_min_s=min(busy),
        busy_median_s=statistics.median_low(busy),
        busy_max_s=max(busy),
        slowest=busy.index(max(busy)),
        **{
            name: max(of(name))
            for name in ("gpu_allocated_gb", "gpu_reserved_gb", "gpu_peak_gb", "host_memory_gb")
        },
    )
