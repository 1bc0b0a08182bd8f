"""Figures of a stretch of steps, the same for the file, TensorBoard and the console."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch

from medsft.monitor.ranks import Gather, RankFigures, memory_gb, over_all

T = TypeVar("T")


class StepCounts(Protocol):
    """What a step of the global batch held, over all ranks (`medsft.data.loader.StepInfo`)."""

    num_examples: int
    num_tokens: int
    num_targets: int
    num_slots: int


class StepState(Protocol):
    """What the steps since the last report left and took (`medsft.engine.step.StepState`)."""

    num_skipped: int
    loss_scale: float | None
    forward_s: float
    backward_s: float
    optimizer_s: float
    own_s: float


@dataclass(frozen=True)
class Metrics:
    """Figures at a logged step.

    step counts from 1 here: the number of steps done. loss is the mean over the supervised targets of the
    steps since the last report that were not skipped, in nats; NaN if all were. grad_norm is that of the
    last step, before clipping. Tokens are useful ones (padding not counted), over all ranks; tokens_seen and
    examples_seen count from the run's start. packing_efficiency is useful tokens / slots computed.
    step_time_s is the mean since the last report, and so are the parts of it: forward_s, backward_s and
    optimizer_s are means over the ranks and include the waiting for other ranks; data_wait_s is that of the
    rank that waited longest. busy_*_s are what ranks need themselves in a step, the waiting for others left
    out (`medsft.engine.own_work`). tflops_per_device counts the operations that the model's arithmetic asks
    for (`medsft.planner.flops`), mfu is their share of the device's peak. Memory is that of the rank with
    most, in 10⁹ bytes. None: there is none, or it is not known here.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_s: float
    supervised_tokens_per_s: float
    examples_seen: int
    tokens_seen: int
    packing_efficiency: float
    skipped_steps: int
    step_time_s: float
    examples_per_s: float | None = None
    tflops_per_device: float | None = None
    mfu: float | None = None
    loss_scale: float | None = None
    forward_s: float | None = None
    backward_s: float | None = None
    optimizer_s: float | None = None
    data_wait_s: float | None = None
    busy_min_s: float | None = None
    busy_median_s: float | None = None
    busy_max_s: float | None = None
    slowest_rank: int | None = None
    slowest_host: str | None = None
    gpu_allocated_gb: float | None = None
    gpu_reserved_gb: float | None = None
    gpu_peak_gb: float | None = None
    host_memory_gb: float | None = None


@dataclass(frozen=True)
class Start:
    """A process that begins: after `step` steps, with so many ranks, on these hosts, each named once."""

    step: int
    world_size: int
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hardware:
    """What the ranks run on.

    hosts: that of each rank. peak_flops: operations a second of one rank's device at most; None where it is
    not known, as that of a CPU.
    """

    hosts: Sequence[str]
    peak_flops: float | None


@dataclass(frozen=True)
class Save:
    """A checkpoint that was written.

    step is the number of steps done that it holds. stall_s: seconds that training waited for it; write_s:
    seconds that writing took beside the training; num_bytes: all of its files.
    """

    step: int
    stall_s: float
    write_s: float
    num_bytes: int


class Figures:
    """Adds up steps between two reports, and since the start of the run.

    Losses stay on the device until a report, so that no step waits for them. A checkpoint takes `state`
    along, and a resumed run goes on from there by `restore`: its reports are those of a run that was never
    stopped.
    """

    def __init__(
        self,
        device: torch.device,
        sum_over_ranks: Callable[[torch.Tensor], torch.Tensor],
        gather: Gather = lambda numbers: [numbers],
        hardware: Hardware = Hardware(("",), None),
        flops_of_step: Callable[[int], float] = lambda step: 0.0,
    ) -> None:
        """`flops_of_step`: step, from 0 -> operations that its arithmetic asks for, over all ranks."""
        self._device = device
        self._sum_over_ranks = sum_over_ranks
        self._gather = gather
        self._hardware = hardware
        self._flops_of_step = flops_of_step
        self._num_examples_seen = self._num_tokens_seen = 0
        self._loss = float("nan")
        # When the pause that is going on began; None while training.
        self._paused_at_s: float | None = None
        self._restart()

    def _restart(self) -> None:
        self._start_s = time.perf_counter()
        self._loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        self._num_steps = self._num_tokens = self._num_targets = self._num_slots = 0
        self._num_targets_in_loss = self._num_examples = 0
        # Of this process alone: a run that was stopped between two reports has measured only what came after.
        self._num_steps_here = 0
        self._data_wait_s = 0.0

    def waiting(self, steps: Iterable[T]) -> Iterator[T]:
        """The same steps; the time that each is waited for counts as a wait for data."""
        steps = iter(steps)
        while True:
            begin_s = time.perf_counter()
            step = next(steps, None)
            self._data_wait_s += time.perf_counter() - begin_s
            if step is None:
                return
            yield step

    def add(self, info: StepCounts, loss_sum: torch.Tensor, applied: bool) -> None:
        """Counts one step of the global batch; `loss_sum` is this rank's share of the cross-entropy.

        The loss of a step that was skipped may be NaN and is left out; its tokens were computed all the same.
        """
        self._num_steps += 1
        self._num_steps_here += 1
        self._num_examples += info.num_examples
        self._num_tokens += info.num_tokens
        self._num_targets += info.num_targets
        self._num_slots += info.num_slots
        if applied:
            self._loss_sum += loss_sum
            self._num_targets_in_loss += info.num_targets
        self._num_examples_seen += info.num_examples
        self._num_tokens_seen += info.num_tokens

    def report(
        self, step: int, epoch: float, learning_rate: float, grad_norm: float, state: StepState
    ) -> Metrics:
        """Figures since the last report, over all ranks (a collective), and begins a new stretch.

        `state` was asked for at the last report too, and its last step's own work was measured.
        """
        loss_sum = float(self._sum_over_ranks(self._loss_sum))
        self._loss = loss_sum / self._num_targets_in_loss if self._num_targets_in_loss else float("nan")
        seconds = self._seconds()
        flops_per_s = sum(map(self._flops_of_step, range(step - self._num_steps, step))) / seconds
        peak = self._hardware.peak_flops
        ranks = over_all(self._own(state), self._gather)
        metrics = Metrics(
            step=step,
            epoch=epoch,
            loss=self._loss,
            learning_rate=learning_rate,
            grad_norm=grad_norm,
            tokens_per_s=self._num_tokens / seconds,
            supervised_tokens_per_s=self._num_targets / seconds,
            examples_seen=self._num_examples_seen,
            tokens_seen=self._num_tokens_seen,
            packing_efficiency=self._num_tokens / self._num_slots,
            skipped_steps=state.num_skipped,
            step_time_s=seconds / self._num_steps,
            examples_per_s=self._num_examples / seconds,
            tflops_per_device=flops_per_s / len(self._hardware.hosts) / 1e12,
            mfu=flops_per_s / (len(self._hardware.hosts) * peak) if peak else None,
            loss_scale=state.loss_scale,
            forward_s=ranks.forward_s,
            backward_s=ranks.backward_s,
            optimizer_s=ranks.optimizer_s,
            data_wait_s=ranks.data_wait_s,
            busy_min_s=ranks.busy_min_s,
            busy_median_s=ranks.busy_median_s,
            busy_max_s=ranks.busy_max_s,
            slowest_rank=ranks.slowest,
            slowest_host=self._hardware.hosts[ranks.slowest],
            gpu_allocated_gb=_or_none(ranks.gpu_allocated_gb),
            gpu_reserved_gb=_or_none(ranks.gpu_reserved_gb),
            gpu_peak_gb=_or_none(ranks.gpu_peak_gb),
            host_memory_gb=ranks.host_memory_gb,
        )
        self._restart()
        return metrics

    def _own(self, state: StepState) -> RankFigures:
        """What this rank measured, in seconds of a step."""
        steps = max(1, self._num_steps_here)
        data_wait_s = self._data_wait_s / steps
        return RankFigures(
            state.forward_s / steps,
            state.backward_s / steps,
            state.optimizer_s / steps,
            data_wait_s,
            state.own_s + data_wait_s,
            *memory_gb(self._device),
        )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The block's time (validation, saving) does not count as training; `state` may be taken in it."""
        begin_s = self._paused_at_s = time.perf_counter()
        try:
            yield
        finally:
            self._start_s += time.perf_counter() - begin_s
            self._paused_at_s = None

    def _seconds(self) -> float:
        """Seconds of training since the last report."""
        now_s = time.perf_counter() if self._paused_at_s is None else self._paused_at_s
        return now_s - self._start_s

    def totals(self) -> dict[str, float | int | None]:
        """Examples and tokens since the start of the run, and the last reported loss (None: not a number)."""
        return {
            "examples_seen": self._num_examples_seen,
            "tokens_seen": self._num_tokens_seen,
            "train_loss": self._loss if math.isfinite(self._loss) else None,
        }

    def state(self) -> tuple[dict[str, int | float | None], float]:
        """Counters, alike on all ranks but for the seconds, and this rank's own sum of losses.

        Both come through JSON unchanged: the sum is a double, as it was added up, and a last loss that is
        not a number is None. No collective; waits for the device.
        """
        counters = {
            **self.totals(),
            "steps_since_report": self._num_steps,
            "examples_since_report": self._num_examples,
            "tokens_since_report": self._num_tokens,
            "targets_since_report": self._num_targets,
            "slots_since_report": self._num_slots,
            "targets_in_loss": self._num_targets_in_loss,
            "seconds_since_report": self._seconds(),
        }
        return counters, float(self._loss_sum)

    def restore(self, counters: Mapping[str, int | float | None], loss_sum: float) -> None:
        """Goes on from a `state`; other names among the counters are left alone. The clock runs from now."""
        self._num_examples_seen = counters["examples_seen"]
        self._num_tokens_seen = counters["tokens_seen"]
        self._loss = float("nan") if counters["train_loss"] is None else counters["train_loss"]
        self._restart()
        self._num_steps = counters["steps_since_report"]
        # Checkpoints from before examples were counted lack it: one report says too few a second.
        self._num_examples = counters.get("examples_since_report", 0)
        self._num_tokens = counters["tokens_since_report"]
        self._num_targets = counters["targets_since_report"]
        self._num_slots = counters["slots_since_report"]
        self._num_targets_in_loss = counters["targets_in_loss"]
        self._start_s -= counters["seconds_since_report"]
        self._loss_sum += loss_sum


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
