"""One optimiser step: forward and backward over this rank's micro-batches, then the update."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from medsft.data.pack import MicroBatch
from medsft.engine import own_work
from medsft.engine.distributed import World
from medsft.engine.own_work import OwnWork
from medsft.engine.stopwatch import Stopwatch, open_stopwatch

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScalerBase


class DivergedError(RuntimeError):
    """Gradients stayed NaN or infinite for as many steps in a row as the run allows."""


@dataclass(frozen=True)
class StepResult:
    """What a step did. `loss_sum` stays on the device and holds this rank's share only.

    loss_sum: cross-entropy summed over this rank's supervised targets, in nats, fp32 scalar tensor.
    grad_norm: norm of the whole gradient before clipping; inf when the step was skipped.
    applied: whether the weights changed.
    """

    loss_sum: torch.Tensor
    grad_norm: float
    applied: bool


@dataclass(frozen=True)
class StepState:
    """What steps have taken and left, as this rank knows it.

    num_skipped: steps left out so far. loss_scale: fp16's; None in other precisions. forward_s, backward_s,
    optimizer_s: seconds since the last asking, of all steps together, the waiting for other ranks included.
    own_s: seconds of own work in a step, waiting left out, the mean of those that were measured
    (`medsft.engine.own_work`).
    """

    num_skipped: int
    loss_scale: float | None
    forward_s: float
    backward_s: float
    optimizer_s: float
    own_s: float


class TrainStep:
    """Runs steps on a DeepSpeed engine, counts those that were skipped, and takes their time."""

    def __init__(
        self,
        engine: DeepSpeedEngine,
        world: World,
        learning_rate: Callable[[int], float],
        max_nonfinite_steps: int,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        """`stopwatch`: takes the time of the parts of a step; default: the one that suits the device."""
        self._engine = engine
        self._world = world
        self._learning_rate = learning_rate
        self._max_nonfinite_steps = max_nonfinite_steps
        self._scaler = engine.optimizer.loss_scaler
        if self._scaler.dynamic:
            self._scaler.raise_error_at_min_scale = False  # a bare Exception; the limit below says it better
        self._nonfinite_in_a_row = 0
        self.num_skipped = 0
        self._stopwatch = stopwatch or open_stopwatch(world.device)
        self._own_work = OwnWork(engine.module, engine.optimizer.optimizer, self._stopwatch)
        self._num_measured = 0  # since the last asking

    def __call__(
        self, step: int, micro_batches: Sequence[MicroBatch], num_targets: int, measure: bool = False
    ) -> StepResult:
        """Runs step `step` (from 0), whose global batch has `num_targets` supervised targets.

        The gradient is that of sum(cross-entropy) / num_targets over the whole global batch: DeepSpeed
        averages over ranks, hence the factor world size. A NaN or infinite gradient norm is agreed on by
        all ranks inside DeepSpeed (the norm is all-reduced) and the update is left out on all of them, in
        any precision. `measure`: take the time of this rank's own work too. Raises `DivergedError` when
        steps are left out too often in a row.
        """
        engine, now, add = self._engine, self._stopwatch.now, self._stopwatch.add
        self._own_work.is_on = measure
        self._num_measured += measure
        for group in engine.optimizer.param_groups:
            group["lr"] = self._learning_rate(step)
        loss_sum = torch.zeros((), dtype=torch.float32, device=self._world.device)
        last = len(micro_batches) - 1
        for number, micro_batch in enumerate(micro_batches):
            engine.set_gradient_accumulation_boundary(number == last)
            begin = now()
            inputs = micro_batch.to(self._world.device, non_blocking=True).model_inputs()
            loss = engine(**inputs, num_items_in_batch=num_targets, use_cache=False).loss
            forward_done = now()
            engine.backward(loss * self._world.size, scale_wrt_gas=False)
            loss_sum += loss.detach() * num_targets
            backward_done = now()
            engine.step()
            add("forward", begin, forward_done)
            add("backward", forward_done, backward_done)
            add("optimizer", backward_done, now())
        self._own_work.is_on = False  # what comes between two steps, a validation, is not a step's work
        applied = engine.was_step_applied()
        self._count(step, applied)
        return StepResult(loss_sum, float(engine.get_global_grad_norm()), applied)

    def state(self) -> StepState:
        """Counts so far, and times since the last call; waits for the device."""
        seconds = self._stopwatch.take()
        own_s = seconds.get(own_work.NAME, 0.0) / max(1, self._num_measured)
        self._num_measured = 0
        scaler = self._scaler
        return StepState(
            self.num_skipped,
            float(scaler.cur_scale) if scaler.dynamic or scaler.cur_scale != 1 else None,
            seconds.get("forward", 0.0),
            seconds.get("backward", 0.0),
            seconds.get("optimizer", 0.0),
            own_s,
        )

    def counters(self) -> dict[str, int]:
        """What a checkpoint takes along of the counting of skipped steps."""
        return {"skipped_steps": self.num_skipped, "nonfinite_in_a_row": self._nonfinite_in_a_row}

    def restore(self, counters: Mapping[str, Any]) -> None:
        """Goes on counting from `counters`, in which other names are left alone."""
        self.num_skipped = counters["skipped_steps"]
        self._nonfinite_in_a_row = counters["nonfinite_in_a_row"]

    def _count(self, step: int, applied: bool) -> None:
        if applied:
            self._nonfinite_in_a_row = 0
            return
        self.num_skipped += 1
        if is_settling(self._scaler):
            return
        self._nonfinite_in_a_row += 1
        if self._nonfinite_in_a_row >= self._max_nonfinite_steps:
            raise DivergedError(
                f"gradients were NaN or infinite in {self._nonfinite_in_a_row} steps in a row, up to step "
                f"{step + 1}; none of them changed the weights. Lower --learning_rate, prefer bf16 to fp16, "
                "or look at the data of these steps; --max_nonfinite_steps sets the limit."
            )


def is_settling(scaler: LossScalerBase) -> bool:
    """Whether fp16's loss scale may still fall: it begins far too high, so overflows are no divergence."""
    return scaler.dynamic and scaler.cur_scale > scaler.min_scale


def start_engine(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    ds_config: dict[str, Any],
    leaves: Sequence[type[nn.Module]],
) -> DeepSpeedEngine:
    """DeepSpeed's engine around a partitioned model. The learning rate stays ours (no scheduler).

    Modules of the types `leaves` are each gathered, released and reduced as one: a block's twelve parameters
    in one collective, and hooks on the block instead of on every part of it.
    """
    import deepspeed
    from deepspeed.utils import set_z3_leaf_modules

    _import_muon_uncompiled()
    set_z3_leaf_modules(model, list(leaves))
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=ds_config, dist_init_required=False
    )
    return engine


def _import_muon_uncompiled() -> None:
    """Imports Muon, an optimiser that is not used here, without the compiler it is decorated with.

    DeepSpeed imports it to know it when it sees it, and with it all of torch's compiler comes: two seconds
    of each rank. A DeepSpeed that has it elsewhere is left to itself.
    """
    try:
        from deepspeed.runtime import compiler

        compile_it, plain = compiler.compile, compiler.dummy_decorator
    except (ImportError, AttributeError):
        return
    compiler.compile = lambda: plain
    try:
        with suppress(ImportError):
            importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = compile_it
