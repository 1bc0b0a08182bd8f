"""The line a person reads at every report."""

from __future__ import annotations

import logging
import time

from medsft.monitor.metrics import Metrics, Save, Start

logger = logging.getLogger(__name__)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. 0:02:10."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def seconds_left(elapsed_s: float, step: int, num_steps: int, start_step: int) -> float:
    """Seconds until `num_steps`, by the pace from `start_step` to `step`, which took `elapsed_s`."""
    return elapsed_s / (step - start_step) * (num_steps - step)


def step_line(metrics: Metrics, num_steps: int, seconds_left: float) -> str:
    """One line with units for a logged step of `num_steps`."""
    skipped = f"  skipped {metrics.skipped_steps}" if metrics.skipped_steps else ""
    return (
        f"{_position(metrics.step, num_steps)}  epoch {metrics.epoch:.2f}"
        f"  loss {metrics.loss:.4f}  lr {metrics.learning_rate:.2e}  grad norm {metrics.grad_norm:.3g}"
        f"  {metrics.tokens_per_s:,.0f} tokens/s ({metrics.supervised_tokens_per_s:,.0f} supervised)"
        f"  packed {metrics.packing_efficiency:.1%}  {metrics.step_time_s:.2f} s/step{skipped}"
        f"  left {duration(seconds_left)}"
    )


def save_line(save: Save, num_steps: int) -> str:
    """One line with units for a checkpoint, in GB, or in MB below 0.1 GB."""
    unit, name = (1e9, "GB") if save.num_bytes >= 1e8 else (1e6, "MB")
    size = save.num_bytes / unit
    return (
        f"{_position(save.step, num_steps)}  checkpoint written: {size:.1f} {name}, training waited "
        f"{save.stall_s:.2f} s, written in {save.write_s:.1f} s ({size / save.write_s:.2f} {name}/s)"
    )


def _position(step: int, num_steps: int) -> str:
    return f"step {step:>{len(str(num_steps))}}/{num_steps}"


class Console:
    """Writes a line for each report to the log; `start_step` steps were done before this process."""

    def __init__(self, num_steps: int, start_step: int = 0) -> None:
        self._num_steps = num_steps
        self._start_step = start_step
        self._start_s = time.perf_counter()

    def start(self, start: Start) -> None:
        """The log has it in other words."""

    def train(self, metrics: Metrics) -> None:
        """A line with the time left, by the mean pace of this process so far."""
        elapsed_s = time.perf_counter() - self._start_s
        left_s = seconds_left(elapsed_s, metrics.step, self._num_steps, self._start_step)
        logger.info("%s", step_line(metrics, self._num_steps, left_s))

    def validation(self, step: int, loss: float) -> None:
        """A line with the validation loss."""
        logger.info("step %d/%d  validation loss %.4f", step, self._num_steps, loss)

    def checkpoint(self, save: Save) -> None:
        """A line with the size of a checkpoint and the time it took."""
        logger.info("%s", save_line(save, self._num_steps))

    def text(self, tag: str, text: str) -> None:
        """Texts are for TensorBoard; the log has them where they arise."""

    def close(self) -> None:
        """Nothing is held open."""
