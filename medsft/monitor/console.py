"""What a person reads while a run goes on: a line at every report, or a bar on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medsft.monitor.metrics import Metrics, Save
from medsft.monitor.sink import Sample, Sink, Summary

if TYPE_CHECKING:
    from rich.progress import Progress

logger = logging.getLogger(__name__)

FOR_THE_FILE = "for_the_file"
"""Attribute of a log record that a terminal shows in another way."""


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
        self._start_step = start_step
        self._start_s = time.perf_counter()

    def train(self, metrics: Metrics) -> None:
        """A line with the time left."""
        line = step_line(metrics, self._num_steps, self.seconds_left(metrics.step))
        logger.info("%s", line, extra={FOR_THE_FILE: True})

    def seconds_left(self, step: int) -> float:
        """By the mean pace of this process so far."""
        elapsed_s = time.perf_counter() - self._start_s
        return seconds_left(elapsed_s, step, self._num_steps, self._start_step)

    def validation(self, step: int, loss: float) -> None:
        """A line with the validation loss."""
        logger.info("step %d/%d  validation loss %.4f", step, self._num_steps, loss)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """The first question and what is answered, on one line."""
        for sample in samples[:1]:
            question, answer = (" ".join(text.split()) for text in (sample.question, sample.answer))
            logger.info("step %d/%d  %s -> %s", step, self._num_steps, question, answer or "(empty 空)")

    def checkpoint(self, save: Save) -> None:
        """A line with the size of a checkpoint and the time it took."""
        logger.info("%s", save_line(save, self._num_steps))

    def finish(self, summary: Summary) -> None:
        """A few lines with what came of it."""
        for name, value in summary_lines(summary):
            logger.info("%-16s %s", name, value)


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


class Terminal(Sink):
    """A bar at the foot of a terminal with the figures of the last report; other lines pass above it.

    The lines of the steps go to `log_file` only, which gets everything that is logged.
    """

    def __init__(self, lines: Console, num_steps: int, start_step: int, log_file: Path) -> None:
        self._lines = lines
        self._log = logging.getLogger("medsft")
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self._file = logging.FileHandler(log_file, encoding="utf-8")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._on_terminal = [
            handler for handler in self._log.handlers if getattr(handler, "stream", None) is sys.stdout
        ]
        for handler in self._on_terminal:
            handler.addFilter(_is_for_the_terminal)
        self._log.addHandler(self._file)
        self._bar = _bar()
        self._task = self._bar.add_task(
            "training", total=num_steps, completed=start_step, figures="", left=""
        )
        self._is_moving = False

    def train(self, metrics: Metrics) -> None:
        """Moves the bar, which appears with the first report."""
        if not self._is_moving:
            self._is_moving = True
            self._bar.start()
            for handler in self._on_terminal:  # sys.stdout now writes above the bar
                handler.setStream(sys.stdout)
        mfu = "" if metrics.mfu is None else f"  MFU {metrics.mfu:.1%}"
        self._bar.update(
            self._task,
            completed=metrics.step,
            figures=f"loss {metrics.loss:.4f}  {metrics.tokens_per_s:,.0f} tokens/s{mfu}",
            left=duration(self._lines.seconds_left(metrics.step)),
        )
        self._lines.train(metrics)

    def validation(self, step: int, loss: float) -> None:
        """A line with the validation loss."""
        self._lines.validation(step, loss)

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """The first question and what is answered, on one line."""
        self._lines.samples(step, samples)

    def checkpoint(self, save: Save) -> None:
        """A line with the size of a checkpoint and the time it took."""
        self._lines.checkpoint(save)

    def rest(self) -> None:
        """Leaves the bar as it stands; the terminal has its cursor again."""
        if self._is_moving:
            self._is_moving = False
            self._bar.stop()
            for handler in self._on_terminal:
                handler.setStream(sys.stdout)

    def finish(self, summary: Summary) -> None:
        """A table with what came of it; the lines go to the file."""
        from rich.console import Console as Rich
        from rich.table import Table

        table = Table(show_header=False, title="finished 训练完成", title_justify="left")
        for name, value in summary_lines(summary):
            table.add_row(name, value)
            logger.info("%-16s %s", name, value, extra={FOR_THE_FILE: True})
        Rich(file=sys.stdout).print(table)

    def close(self) -> None:
        """Ends the log file."""
        self.rest()
        self._log.removeHandler(self._file)
        self._file.close()
        for handler in self._on_terminal:
            handler.removeFilter(_is_for_the_terminal)


def open_console(num_steps: int, start_step: int, log_file: Path) -> Sink:
    """What a person sees: a bar on a terminal, else lines."""
    lines = Console(num_steps, start_step)
    return Terminal(lines, num_steps, start_step, log_file) if sys.stdout.isatty() else lines


def _is_for_the_terminal(record: logging.LogRecord) -> bool:
    return not getattr(record, FOR_THE_FILE, False)


def _bar() -> Progress:
    from rich.console import Console as Rich
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("[bold]step"),
        MofNCompleteColumn(),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[figures]}"),
        TextColumn("left {task.fields[left]}", style="dim"),
    )
    return Progress(*columns, console=Rich(file=sys.stdout), expand=True, refresh_per_second=4)
