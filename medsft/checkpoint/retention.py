"""Which checkpoints may go when a newer one is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Keep:
    """What is kept; a checkpoint that one of the rules keeps stays.

    last: the newest so many, at least 1.
    every_steps: those of steps that this number divides; None: no such rule.
    best: the one with the lowest validation loss measured at that very step; of equals the newest.
    """

    last: int
    every_steps: int | None
    best: bool

    def __post_init__(self) -> None:
        if self.last < 1:
            raise ValueError(f"{self.last} checkpoints to keep; at least the last one must stay")
        if self.every_steps is not None and self.every_steps < 1:
            raise ValueError(f"a checkpoint to keep every {self.every_steps} steps; at least 1 is meant")


def superseded(checkpoints: Sequence[tuple[int, float | None]], keep: Keep) -> list[int]:
    """Steps of the checkpoints that may be deleted, ascending; never the newest.

    `checkpoints` are (step, validation loss measured at that very step or None) of those that are committed,
    in any order. A loss that is not finite is none.
    """
    losses = dict(checkpoints)
    steps = sorted(losses)
    kept = set(steps[-keep.last :])
    if keep.every_steps is not None:
        kept |= {step for step in steps if step % keep.every_steps == 0}
    measured = [(loss, -step) for step, loss in losses.items() if loss is not None and math.isfinite(loss)]
    if keep.best and measured:
        kept.add(-min(measured)[1])
    return [step for step in steps if step not in kept]
