"""What a training step changes: fp32 weights, Adam's moments and step, the loss scale.

ZeRO-3 keeps this rank's slices of all parameters one after another in flat tensors, one for each sub-group
(`fp32_partitioned_groups_flat`), with the moments in the optimiser's state of that tensor. Slice r of a
flattened parameter has ceil(numel / world_size) elements; the padding of the last one is memory that nobody
initialises, so it never leaves this room.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch

from medsft.engine.adam import STATES
from medsft.engine.distributed import World
from medsft.errors import UserError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine
    from deepspeed.runtime.fp16.loss_scaler import LossScalerBase


class StateSource(Protocol):
    """Saved state of which any range can be read (`medsft.checkpoint.reader.Checkpoint`)."""

    def read_range(self, name: str, start: int, end: int, state: str = "master") -> torch.Tensor:
        """Elements start … end-1 of the flattened parameter's state, fp32 [end - start]."""


@dataclass(frozen=True)
class _Piece:
    """This rank's slice of a parameter, and where it lies in the flat tensors of its sub-group.

    start: its first element in the flattened parameter. offset: in the flat tensors. size: elements, without
    padding; none where the parameter has fewer elements than there are ranks.
    """

    name: str
    start: int
    size: int
    offset: int


class TrainingState:
    """This rank's share of the training state inside a DeepSpeed engine, to be copied out and put back.

    shapes: of all whole parameters by name, in the model's order. loss_scaler: DeepSpeed's.
    """

    def __init__(self, engine: DeepSpeedEngine, world: World) -> None:
        self._zero = engine.optimizer
        self._adam = self._zero.optimizer
        self.loss_scaler = self._zero.loss_scaler
        self._pins = world.device.type == "cuda"
        params = list(engine.module.named_parameters())
        self.shapes = {name: tuple(param.ds_shape) for name, param in params}
        names = {param.ds_id: name for name, param in params}
        self._groups = tuple(tuple(_pieces(group, names, world)) for group in self._zero.fp16_groups)
        self._copies: dict[tuple[str, str], torch.Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """Bytes of this rank's share."""
        return sum(piece.size for group in self._groups for piece in group) * 4 * len(STATES)

    @torch.no_grad()
    def copy(self) -> tuple[dict[tuple[str, str], torch.Tensor], int]:
        """The state as it is now, in host memory, and the number of steps Adam has taken.

        (state, parameter) -> flat fp32 tensor; empty slices are left out. It is the same memory at each
        call, page-locked for a GPU: the next call overwrites it.
        """
        steps = set()
        for number, pieces in enumerate(self._groups):
            with self._in_memory(number) as (flat, moments):
                steps.add(int(moments["step"]) if moments else 0)
                for state in STATES:
                    source = flat if state == "master" else moments.get(state)
                    for piece in pieces:
                        if not piece.size:
                            continue
                        copy = self._memory_for(state, piece)
                        if source is None:
                            copy.zero_()  # before Adam's first step there are no moments yet
                        else:
                            copy.copy_(source.narrow(0, piece.offset, piece.size), non_blocking=self._pins)
                if self._pins:
                    torch.cuda.synchronize()  # before a sub-group goes back to where it is kept
        assert len(steps) == 1, f"sub-groups of the optimiser have taken different numbers of steps: {steps}"
        return self._copies, steps.pop()

    def reserve(self) -> None:
        """Takes the memory for copies now, so that a host that has too little says so before the training.

        Raises `UserError` with the size. Memory that is only promised is written to, and so had for certain.
        """
        try:
            for piece in (piece for group in self._groups for piece in group if piece.size):
                for state in STATES:
                    self._memory_for(state, piece).zero_()
        except (RuntimeError, MemoryError) as error:
            raise UserError(
                f"this host has no {self.num_bytes / 2**30:.1f} GiB of memory for this rank's copy of a "
                f"checkpoint ({error}). Use fewer ranks on a host or more hosts, or give --save_strategy no."
            ) from error

    def _memory_for(self, state: str, piece: _Piece) -> torch.Tensor:
        if (state, piece.name) not in self._copies:
            self._copies[state, piece.name] = torch.empty(piece.size, pin_memory=self._pins)
        return self._copies[state, piece.name]

    @torch.no_grad()
    def restore(
        self, source: StateSource, adam_step: int, progress: Callable[[int, int], None] | None = None
    ) -> None:
        """Puts saved state back; `source` may come from any number of ranks.

        The low-precision weights must have been filled from the same source before the engine was built
        (`medsft.engine.zero.load_slices`). `progress` is called with the bytes done and those in all.
        """
        num_done = 0
        for number, pieces in enumerate(self._groups):
            with self._in_memory(number, changed=True) as (flat, moments):
                if adam_step:
                    self._prepare_moments(flat, moments, adam_step)
                for state in STATES if adam_step else STATES[:1]:
                    target = flat if state == "master" else moments[state]
                    for piece in pieces:
                        values = source.read_range(piece.name, piece.start, piece.start + piece.size, state)
                        target.narrow(0, piece.offset, piece.size).copy_(values)
                        num_done += values.nbytes
                    if progress is not None:
                        progress(num_done, self.num_bytes)
        self._catch_up(adam_step)

    @contextmanager
    def _in_memory(self, number: int, changed: bool = False) -> Iterator[tuple[torch.Tensor, dict[str, Any]]]:
        """A sub-group's flat fp32 weights and Adam's state of them, fetched from NVMe if they live there."""
        zero = self._zero
        flat = zero.fp32_partitioned_groups_flat[number]
        swapped = zero._swappable_optimizer_subgroup(number)
        if swapped:
            zero._optimizer_states_and_gradient_swap_in(number)
        try:
            yield flat, self._adam.state[flat]
        finally:
            if swapped and changed:
                zero._optimizer_states_and_gradient_swap_out(number)
            elif swapped:
                zero._release_swap_buffers(number)

    def _prepare_moments(self, flat: torch.Tensor, moments: dict[str, Any], adam_step: int) -> None:
        """The state that the optimiser would make at its first step, counting `adam_step`."""
        is_torch = isinstance(self._adam, torch.optim.AdamW)
        # torch's fused kernel counts on the device of the weights.
        moments["step"] = torch.tensor(float(adam_step), device=flat.device) if is_torch else adam_step
        for state in STATES[1:]:
            if state not in moments:
                moments[state] = torch.zeros_like(flat)

    def _catch_up(self, adam_step: int) -> None:
        """Has DeepSpeed's CPU Adam count to `adam_step`.

        It keeps beta^t as a running product in fp32; jumping to step t it would take a power, which differs
        in the last bits, and so would every later weight.
        """
        kernel = getattr(self._adam, "ds_opt_adam", None)
        if kernel is None:
            return
        empty = torch.empty(0)
        group = self._adam.param_groups[0]
        for step in range(1, adam_step + 1):
            kernel.adam_update(
                self._adam.opt_id, step, group["lr"], *group["betas"], group["eps"], group["weight_decay"],
                group["bias_correction"], empty, empty, empty, empty,
            )  # fmt: skip


_SCALER_FIELDS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


def scaler_state(scaler: LossScalerBase) -> dict[str, float | int]:
    """Numbers of fp16's dynamic loss scaler that change from step to step; none in other precisions."""
    return {name: getattr(scaler, name) for name in _SCALER_FIELDS} if scaler.dynamic else {}


def restore_scaler(scaler: LossScalerBase, state: Mapping[str, float | int]) -> None:
    """Puts the scaler back to `state`; where either comes from another precision it stays as it is."""
    if scaler.dynamic and state:
        for name in _SCALER_FIELDS:
            setattr(scaler, name, state[name])


# Elsewhere DeepSpeed keeps quantised weights, or slices over fewer ranks than all.
_HARMLESS = {
    "zenflow": (None,),
    "mics_shard_size": (-1,),
    "zero_quantized_weights": (False,),
    "zero_quantized_nontrainable_weights": (False,),
}


def check_reachable(ds_config: Mapping[str, Any]) -> None:
    """Raises `UserError` where DeepSpeed keeps a part of the state out of reach of checkpoints.

    To be called before a run starts: at the first save it would be too late.
    """
    offload = ds_config["zero_optimization"].get("offload_optimizer") or {}
    faults = []
    if offload.get("ratio", 1.0) != 1.0:
        faults.append(f"offload_optimizer.ratio is {offload['ratio']}; remove it (1.0)")
    for name in ("pipeline_read", "pipeline_write"):
        if offload.get(name):
            faults.append(f"offload_optimizer.{name} is true; set it to false")
    if offload.get("super_offload"):
        faults.append("offload_optimizer.super_offload is true; set it to false")
    for name, harmless in _HARMLESS.items():
        if ds_config["zero_optimization"].get(name, harmless[0]) not in harmless:
            faults.append(f"zero_optimization.{name} is set; remove it")
    if faults:
        raise UserError(
            "this DeepSpeed configuration hides optimiser states from checkpoints: " + "; ".join(faults) + "."
        )


def _pieces(group: Any, names: Mapping[int, str], world: World) -> Iterator[_Piece]:
    """The parameters of a sub-group in their order in its flat tensors."""
    offset = 0
    for param in group:
        padded = param.partition_numel()
        assert padded == math.ceil(param.ds_numel / world.size), "partitioned over fewer ranks than all"
        start = min(world.rank * padded, param.ds_numel)
        yield _Piece(names[param.ds_id], start, min(padded, param.ds_numel - start), offset)
        offset += padded
