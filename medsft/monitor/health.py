"""Warns, once for each kind of trouble, when the figures of a training look ill, and says what to look at."""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass
from statistics import median

from medsft.monitor.metrics import Metrics, Start
from medsft.monitor.sink import Sink

logger = logging.getLogger(__name__)

WINDOW = 10
"""Reports that are looked at together."""
DIVERGED_NATS = 1.0
"""A loss that stays by this much above the best so far has diverged."""
EXPLODED_TIMES = 20.0
"""A gradient norm so many times the usual one is an explosion."""
PLATEAU_NATS = 0.01
"""A loss that moves less than this over a window ..."""
PLATEAU_LOSS = 4.0
"""... and is still above this has learned nothing: an untrained head stands at ln(vocabulary), 11.8."""
STRAGGLER_TIMES = 1.3
"""A rank that works so many times longer than the median ..."""
STRAGGLER_REPORTS = 5
"""... and is the slowest in so many reports in a row, holds all others up."""
KNOWN_RATES = (5e-5, 1e-4)
"""Peak learning rates that full fine-tunings of ChatGLM-6B were published with: Med-ChatGLM's
(https://github.com/SCIR-HI/Med-ChatGLM) and THUDM's script (https://github.com/THUDM/ChatGLM-6B, ptuning)."""
FAR_RATES = (1e-6, 1e-3)
"""What lies outside is far from them: P-tuning's 2e-2, say, which ruins all weights within some steps."""
PRETRAINED_PARAMETERS = 1e9
"""From here on a model is taken for a pretrained one; toys that begin at random learn at other rates."""


@dataclass(frozen=True)
class ModelFacts:
    """The model that is tuned and the largest learning rate that it will see."""

    num_parameters: int
    peak_learning_rate: float


def far_rate(model: ModelFacts) -> str | None:
    """What to say of a learning rate that is far out of the known range; None where it is not."""
    low, high = KNOWN_RATES
    rate = model.peak_learning_rate
    if model.num_parameters < PRETRAINED_PARAMETERS or FAR_RATES[0] <= rate <= FAR_RATES[1]:
        return None
    consequence = (
        "at a higher one the weights are lost within some steps; 2e-2 is for P-tuning, which leaves them be"
        if rate > high
        else "at a lower one next to nothing is learned"
    )
    return (
        f"--learning_rate {rate:g} is far from what full fine-tunings of this model were published with, "
        f"{low:g} to {high:g}: {consequence}. Look at it again."
    )


class Health(Sink):
    """A sink that keeps the last figures and warns in the log; it never stops a run."""

    def __init__(self, model: ModelFacts | None = None) -> None:
        self._model = model
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._best = math.inf
        self._slowest: deque[tuple[int | None, float]] = deque(maxlen=STRAGGLER_REPORTS)
        self._warned: set[str] = set()

    def start(self, start: Start) -> None:
        """Judges the learning rate before the first step."""
        if self._model is not None and (warning := far_rate(self._model)):
            self._warn("learning rate", warning)

    def train(self, metrics: Metrics) -> None:
        """Takes up the figures of a logged step and warns if they look ill."""
        self._compare_ranks(metrics)
        norm = metrics.grad_norm
        # An infinite norm is a skipped step, which fp16 makes now and then while it looks for its scale.
        is_known = math.isfinite(norm) and len(self._norms) == WINDOW
        if is_known and norm > EXPLODED_TIMES * median(self._norms) > 0:
            self._warn(
                "explosion",
                f"step {metrics.step}: the gradient norm is {norm:.3g}, usually {median(self._norms):.3g}. "
                "Look at the examples of this step, and at --max_grad_norm and --learning_rate.",
            )
        if math.isfinite(norm):
            self._norms.append(norm)
        if not math.isfinite(metrics.loss):
            return
        self._losses.append(metrics.loss)
        self._best = min(self._best, metrics.loss)
        if len(self._losses) < WINDOW:
            return
        if min(self._losses) > self._best + DIVERGED_NATS:
            self._warn(
                "divergence",
                f"step {metrics.step}: the loss is {metrics.loss:.3f} and was {self._best:.3f} before: the "
                "training diverges. Go on from an earlier checkpoint with a lower --learning_rate.",
            )
        if max(self._losses) - min(self._losses) < PLATEAU_NATS and min(self._losses) > PLATEAU_LOSS:
            self._warn(
                "plateau",
                f"step {metrics.step}: the loss stays at {metrics.loss:.3f}, nothing is learned. Look at the "
                "first example in the log (is the answer supervised?), the prompt template and "
                "--learning_rate.",
            )

    def _compare_ranks(self, metrics: Metrics) -> None:
        """Names a rank that is the slowest in all of the last reports."""
        if not metrics.busy_median_s:
            return
        times = metrics.busy_max_s / metrics.busy_median_s
        self._slowest.append((metrics.slowest_rank, times))
        is_one = len({rank for rank, _ in self._slowest}) == 1 and len(self._slowest) == STRAGGLER_REPORTS
        if is_one and min(times for _, times in self._slowest) > STRAGGLER_TIMES:
            self._warn(
                f"straggler {metrics.slowest_rank}",
                f"step {metrics.step}: rank {metrics.slowest_rank} on host {metrics.slowest_host} needs "
                f"{metrics.busy_max_s:.3g} s a step for its own work, the median rank "
                f"{metrics.busy_median_s:.3g} s; all others wait for it. Look at that host's GPU clocks and "
                "temperature (nvidia-smi), at other processes there, and at its data storage.",
            )

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s", text)
