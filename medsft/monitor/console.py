"""What a person reads while a run goes on: a line in the log for each report."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from medsft.monitor.metrics import Metrics, Save
from medsft.monitor.sink import Sample, Sink, Summary
from medsft.terminal import harmless

logger = logging.getLogger(__name__)

IN_THE_BAR = "in_the_bar"
"""Attribute of a log record whose figures `medsft.monitor.bar.Bar` shows too: a terminal needs it once."""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, e.g. 0:02:10."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


def seconds_left(elapsed_s: float, step: int, num_steps: int, start_step: int) -> float:
    """Seconds until `num_steps`, by the pace from `start_step` to `step`, which took `elapsed_s`."""
    return elapsed_s / (step - start_step) * (num_steps - step)


class Pace:
    """A clock that starts when it is made, at `start_step`, and tells how long `num_steps` will take."""

    def __init__(self, num_steps: int, start_step: int) -> None:
        self._num_steps = num_steps
        self._start_step = start_step
        self._begin_s = time.perf_counter()

    def seconds_left(self, step: int) -> float:
        """By the mean pace so far, `step` steps being done."""
        return seconds_left(time.perf_counter() - self._begin_s, step, self._num_steps, self._start_step)


def step_line(metrics: Metrics, num_steps: int, seconds_left: float) -> str:
    """One line with units for a logged step of `num_steps`."""
    skipped = f"  skipped {metrics.skipped_steps}" if metrics.skipped_steps else ""
    mfu = "" if metrics.mfu is None else f"  MFU {metrics.mfu:.1%}"
    return (
        f"{_position(metrics.step, num_steps)}  epoch {metrics.epoch:.2f}"
        f"  loss {metrics.loss:.4f}  lr {metrics.learning_rate:.2e}  grad norm {metrics.grad_norm:.3g}"
        f"  {metrics.tokens_per_s:,.0f} tokens/s ({metrics.supervised_tokens_per_s:,.0f} supervised)"
        f"{mfu}  packed {metrics.packing_efficiency:.1%}  {metrics.step_time_s:.2f} s/step{skipped}"
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


class Console(Sink):
    """Writes a line for each report to the log; `start_step` steps were done before this process."""

    def __init__(self, num_steps: int, start_step: int = 0) -> None:
        self._num_steps = num_steps
        self._pace = Pace(num_steps, start_step)

    def train(self, metrics: Metrics) -> None:
        """A line with the time left."""
        line = step_line(metrics, self._num_steps, self._pace.seconds_left(metrics.step))
        logger.info("%s", line, extra={IN_THE_BAR: True})

    def validation(self, step: int, loss: float) -> None:
        """A line with the validation loss."""
        logger.info("%s  validation loss %.4f", _position(step, self._num_steps), loss)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """The first question and what is answered, on one line."""
        for sample in samples[:1]:
            question, answer = (" ".join(harmless(text).split()) for text in (sample.question, sample.answer))
            where = _position(step, self._num_steps)
            logger.info("%s  sample: %s -> %s", where, question, answer or "(empty 空)")

    def checkpoint(self, save: Save) -> None:
        """A line with the size of a checkpoint and the time it took."""
        logger.info("%s", save_line(save, self._num_steps))

    def finish(self, summary: Summary) -> None:
        """A few lines with what came of it."""
        for name, value in summary_lines(summary):
            logger.info("%-16s %s", name, value, extra={IN_THE_BAR: True})


def summary_lines(summary: Summary) -> list[tuple[str, str]]:
    """Name and value of what is worth knowing at the end; figures that there are none of are left out."""
    lines = [("steps", f"{summary.steps:,}"), ("time", duration(summary.seconds))]
    last = summary.last
    if last is not None:
        lines.append(("training loss", f"{last.loss:.4f}"))
    if summary.best_loss is not None:
        lines.append(
            ("validation loss", f"{summary.best_loss:.4f} at best, after step {summary.best_step:,}")
        )
    if last is not None:
        mfu = "" if last.mfu is None else f", MFU {last.mfu:.1%}"
        lines.append(("speed", f"{last.tokens_per_s:,.0f} tokens/s{mfu}"))
        gpu = "" if last.gpu_peak_gb is None else f"{last.gpu_peak_gb:.1f} GB of a GPU, "
        if last.host_memory_gb is not None:
            lines.append(("memory", f"{gpu}{last.host_memory_gb:.1f} GB of a host for each rank"))
    return lines
