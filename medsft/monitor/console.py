"""The line a person reads at every report."""

from __future__ import annotations

import logging
import time

from medsft.monitor.metrics import Metrics

logger = logging.getLogger(__name__)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. 0:02:10."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def step_line(metrics: Metrics, num_steps: int, seconds_left: float) -> str:
    """One line with units for a logged step of `num_steps`."""
    skipped = f"  skipped {metrics.skipped_steps}" if metrics.skipped_steps else ""
    return (
        f"step {metrics.step:>{len(str(num_steps))}}/{num_steps}  epoch {metrics.epoch:.2f}"
        f"  loss {metrics.loss:.4f}  lr {metrics.learning_rate:.2e}  grad norm {metrics.grad_norm:.3g}"
        f"  {metrics.tokens_per_s:,.0f} tokens/s ({metrics.supervised_tokens_per_s:,.0f} supervised)"
        f"  packed {metrics.packing_efficiency:.1%}  {metrics.step_time_s:.2f} s/step{skipped}"
        f"  left {duration(seconds_left)}"
    )


class Console:
    """Writes a line for each report to the log."""

    def __init__(self, num_steps: int) -> None:
        self._num_steps = num_steps
        self._start_s = time.perf_counter()

    def train(self, metrics: Metrics) -> None:
        """A line with the time left, by the mean pace of this process so far."""
        seconds_per_step = (time.perf_counter() - self._start_s) / metrics.step
        left_s = seconds_per_step * (self._num_steps - metrics.step)
        logger.info("%s", step_line(metrics, self._num_steps, left_s))

    def validation(self, step: int, loss: float) -> None:
        """A line with the validation loss."""
        logger.info("step %d/%d  validation loss %.4f", step, self._num_steps, loss)

    def text(self, tag: str, text: str) -> None:
        """Texts are for TensorBoard; the log has them where they arise."""

    def close(self) -> None:
        """Nothing is held open."""
