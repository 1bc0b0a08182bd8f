"""How long this rank itself works in a step, apart from all waiting for others.

The ranks of a ZeRO-3 training wait for each other in every layer, so that all have the same step time, the
slow one and those that wait for it. What differs is the time of the work between the collectives: here that
of the modules whose weights DeepSpeed gathers (blocks, as they are leaf modules of ZeRO-3, embedding, final
LayerNorm and head) in the forward pass, and of the optimizer's update. The weights are gathered in a hook
before such a module's forward pass; the hooks here stand inside of that one. The backward pass cannot be
taken apart so, nor the forward pass that gradient checkpointing repeats within it: on the same hardware they
are in proportion to the forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from medsft.engine.stopwatch import Moment, Stopwatch

NAME = "own"
"""What the seconds are called on the stopwatch."""


class OwnWork:
    """Measures while `is_on`: two moments for each module call, so not in every step."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, stopwatch: Stopwatch) -> None:
        """`module` must have DeepSpeed's hooks already."""
        self.is_on = False
        self._stopwatch = stopwatch
        self._begin: Moment | None = None
        for part in gathered_modules(module):
            part.register_forward_pre_hook(self._started)
            part.register_forward_hook(self._ended, prepend=True)
        optimizer.register_step_pre_hook(self._started)
        optimizer.register_step_post_hook(self._ended)

    def _started(self, *_: Any) -> None:
        if self.is_on:
            self._begin = self._stopwatch.now()

    def _ended(self, *_: Any) -> None:
        if self.is_on and self._begin is not None:
            self._stopwatch.add(NAME, self._begin, self._stopwatch.now())
            self._begin = None


def gathered_modules(module: nn.Module) -> Iterator[nn.Module]:
    """The modules whose weights ZeRO-3 gathers as one: its leaves, and others that hold parameters."""
    from deepspeed.utils import z3_leaf_module

    if z3_leaf_module(module):
        yield module
        return
    if next(module.parameters(recurse=False), None) is not None:
        yield module
    for part in module.children():
        yield from gathered_modules(part)
