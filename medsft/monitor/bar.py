"""A bar at the foot of a terminal, with the figures of the last report."""

from __future__ import annotations

import logging
import sys

from rich.console import Console as Terminal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Column, Table

from medsft.monitor.console import IN_THE_BAR, Pace, duration, summary_lines
from medsft.monitor.metrics import Metrics
from medsft.monitor.sink import Sink, Summary


def can_show_a_bar() -> bool:
    """Whether stdout is a terminal that can move its cursor."""
    return sys.stdout.isatty() and Terminal(file=sys.stdout).is_interactive


class Bar(Sink):
    """Takes the place of the lines of `Console` that it has the figures of; all others pass above it."""

    def __init__(self, num_steps: int, start_step: int = 0) -> None:
        self._pace = Pace(num_steps, start_step)
        handlers = logging.getLogger("medsft").handlers
        self._handlers = [each for each in handlers if getattr(each, "stream", None) is sys.stdout]
        for handler in self._handlers:
            handler.addFilter(_is_not_in_the_bar)
        self._bar = Progress(
            TextColumn("[bold]step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=None, table_column=Column(min_width=8, ratio=1)),
            TextColumn("{task.fields[figures]}", table_column=Column(no_wrap=True)),
            TextColumn("left {task.fields[left]}", style="dim", table_column=Column(no_wrap=True)),
            console=Terminal(file=sys.stdout),
            expand=True,
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("training", total=num_steps, completed=start_step)
        self._is_shown = False

    def train(self, metrics: Metrics) -> None:
        """Moves the bar, which appears with the first report."""
        mfu = "" if metrics.mfu is None else f"  MFU {metrics.mfu:.1%}"
        self._bar.update(
            self._task,
            completed=metrics.step,
            figures=f"loss {metrics.loss:.4f}  {metrics.tokens_per_s:,.0f} tokens/s{mfu}",
            left=duration(self._pace.seconds_left(metrics.step)),
        )
        if not self._is_shown:
            self._is_shown = True
            self._bar.start()
            # A run that is killed could not bring the cursor back.
            self._bar.console.show_cursor(True)
            self._follow_stdout()  # which now writes above the bar

    def rest(self) -> None:
        """Leaves the bar as it stands."""
        if self._is_shown:
            self._is_shown = False
            self._bar.stop()
            self._follow_stdout()

    def finish(self, summary: Summary) -> None:
        """A table with what came of it."""
        table = Table(show_header=False, title="finished 训练完成", title_justify="left")
        for name, value in summary_lines(summary):
            table.add_row(name, value)
        Terminal(file=sys.stdout).print(table)

    def close(self) -> None:
        """The log is shown whole again."""
        self.rest()
        for handler in self._handlers:
            handler.removeFilter(_is_not_in_the_bar)

    def _follow_stdout(self) -> None:
        for handler in self._handlers:
            handler.setStream(sys.stdout)


def _is_not_in_the_bar(record: logging.LogRecord) -> bool:
    return not getattr(record, IN_THE_BAR, False)
