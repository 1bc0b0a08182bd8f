"""Learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass


def _linear(progress: float) -> float:
    return 1.0 - progress


def _cosine(progress: float) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def _constant(progress: float) -> float:
    return 1.0


_SHAPES: dict[str, Callable[[float], float]] = {"linear": _linear, "cosine": _cosine, "constant": _constant}


@dataclass(frozen=True)
class Schedule:
    """Warm-up from zero, then one of the shapes down to zero at `num_steps`.

    Step 0 is the first; its factor is 0/warm-up as in transformers' `get_scheduler`, whose values these
    are. Constant with no warm-up is 1 throughout.
    """

    shape: str
    peak: float
    num_warmup_steps: int
    num_steps: int

    def __call__(self, step: int) -> float:
        """Learning rate of the update that step `step` (from 0) makes."""
        if step < self.num_warmup_steps:
            return self.peak * step / max(1, self.num_warmup_steps)
        rest = max(1, self.num_steps - self.num_warmup_steps)
        return self.peak * max(0.0, _SHAPES[self.shape](min(1.0, (step - self.num_warmup_steps) / rest)))


def warmup_steps(num_steps: int, ratio: float, steps: int | None) -> int:
    """Steps of warm-up: the number if given, else the ratio of all steps, rounded up."""
    return steps if steps is not None else math.ceil(num_steps * ratio)
