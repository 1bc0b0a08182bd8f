"""Hands every report of a run to the file, TensorBoard, the console and others at once."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self

from medsft.monitor.bar import Bar, can_show_a_bar
from medsft.monitor.console import Console
from medsft.monitor.health import Health, ModelFacts
from medsft.monitor.log_file import LogFile
from medsft.monitor.metrics import Metrics, Save, Start
from medsft.monitor.metrics_file import MetricsFile
from medsft.monitor.sink import Sample, Sink, Summary
from medsft.monitor.tensorboard import TensorBoard
from medsft.monitor.trackers import open_tracker
from medsft.run_folder import RunFolder

logger = logging.getLogger(__name__)


class Reporter:
    """A sink that passes everything on to several. One that fails stops no training.

    A full disk, a library that is broken: the first failure of a sink is logged, later ones pass in silence.
    """

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        """`sinks`: name for the user -> sink, told and closed in this order."""
        self._sinks = dict(sinks)
        self._failed: set[str] = set()
        self._last: Metrics | None = None
        self._begin_s = time.perf_counter()

    def _each(self, report: Callable[[Sink], None]) -> None:
        for name, sink in self._sinks.items():
            try:
                report(sink)
            except Exception as error:  # whatever it is, the training is worth more than its report
                if name not in self._failed:
                    self._failed.add(name)
                    logger.warning(
                        "%s cannot write (%s); the training goes on without it", name, _fault(error)
                    )

    def start(self, start: Start) -> None:
        """A process begins."""
        self._each(lambda sink: sink.start(start))

    def texts(self, make: Callable[[], Mapping[str, str]]) -> None:
        """Texts about the run as a whole, in Markdown under names; made only where somebody takes them up."""
        if not self._sinks:
            return
        try:
            texts = make()
        except Exception as error:  # no more than any other report is it worth a training
            logger.warning("the texts for TensorBoard cannot be made (%s)", _fault(error))
            return
        for name, text in texts.items():
            self._each(lambda sink, name=name, text=text: sink.text(name, text))

    def train(self, metrics: Metrics) -> None:
        """Figures of a logged step."""
        self._last = metrics
        self._each(lambda sink: sink.train(metrics))

    def validation(self, step: int, loss: float) -> None:
        """A validation loss, in nats a supervised token."""
        self._each(lambda sink: sink.validation(step, loss))

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """What the model answers after `step` steps."""
        self._each(lambda sink: sink.samples(step, samples))

    def checkpoint(self, save: Save) -> None:
        """A checkpoint was written."""
        self._each(lambda sink: sink.checkpoint(save))

    def rest(self) -> None:
        """The steps are over, well or not: nothing may go on moving on a terminal."""
        self._each(lambda sink: sink.rest())

    def finish(
        self, steps: int, best_loss: float | None, best_step: int | None, flags: Mapping[str, object]
    ) -> None:
        """The run has finished after `steps` steps; see `Summary`. Nobody is waited for before `close`."""
        seconds = time.perf_counter() - self._begin_s
        summary = Summary(steps, seconds, best_loss, best_step, self._last, flags)
        self._each(lambda sink: sink.finish(summary))

    def close(self) -> None:
        """Nothing more will come. A tracker may hold this up for a while, and what comes after it."""
        self._each(lambda sink: sink.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The steps are over; unless they ended as planned, so are the reports."""
        self.rest()
        if kind is not None:
            self.close()


def open_reporter(
    folder: RunFolder,
    num_steps: int,
    speaks: bool,
    start_step: int = 0,
    model: ModelFacts | None = None,
    trackers: Sequence[str] = (),
    flags: Mapping[str, object] | None = None,
) -> Reporter:
    """All sinks for the rank that speaks, none for the others; one that cannot be opened is left out.

    `start_step` is the number of steps done before this process: what stands there of later ones goes.
    `trackers` are names for `open_tracker`, which are told the run's `flags`.
    """
    openers: dict[str, Callable[[], Sink]] = {
        "metrics.jsonl": lambda: MetricsFile(folder.metrics, start_step),
        "TensorBoard": lambda: TensorBoard(folder.tensorboard, start_step),
        "the console": lambda: Console(num_steps, start_step),
        "the health guard": lambda: Health(model),
    }
    for name in trackers:
        openers[name] = partial(open_tracker, name, folder, flags or {})
    if sys.stdout.isatty():
        openers["logs/terminal.log"] = lambda: LogFile(folder.path / "logs" / "terminal.log")
    if can_show_a_bar():
        openers["the bar"] = lambda: Bar(num_steps, start_step)
    sinks = {}
    for name, opener in openers.items() if speaks else ():
        try:
            sinks[name] = opener()
        except Exception as error:  # a report that cannot be written is no reason not to train
            logger.warning("%s cannot be opened (%s); the training goes on without it", name, _fault(error))
    return Reporter(sinks)


def _fault(error: Exception) -> str:
    return str(error) or type(error).__name__
