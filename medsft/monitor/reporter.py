"""Hands every report of a run to the file, TensorBoard and the console at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from medsft.monitor.console import Console
from medsft.monitor.health import Health
from medsft.monitor.metrics import Metrics, MetricsFile, Save, Start
from medsft.monitor.tensorboard import TensorBoard

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """A place that reports go to."""

    def start(self, start: Start) -> None:
        """A process begins."""

    def train(self, metrics: Metrics) -> None:
        """Figures of a logged step."""

    def validation(self, step: int, loss: float) -> None:
        """A validation loss, in nats a supervised token."""

    def checkpoint(self, save: Save) -> None:
        """A checkpoint was written."""

    def text(self, tag: str, text: str) -> None:
        """A text under a tag."""

    def close(self) -> None:
        """Nothing more will come."""


class Reporter:
    """A sink that passes everything on to several. One that fails stops no training.

    A full disk, a library that is broken: the first failure of a sink is logged, later ones pass in silence.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)
        self._failed: set[Sink] = set()

    def _each(self, report: Callable[[Sink], None]) -> None:
        for sink in self._sinks:
            try:
                report(sink)
            except Exception as error:  # whatever it is, the training is worth more than its report
                if sink not in self._failed:
                    self._failed.add(sink)
                    name = type(sink).__name__
                    fault = str(error) or type(error).__name__
                    logger.warning("%s cannot write (%s); the training goes on without it", name, fault)

    def start(self, start: Start) -> None:
        """A process begins."""
        self._each(lambda sink: sink.start(start))

    def train(self, metrics: Metrics) -> None:
        """Figures of a logged step."""
        self._each(lambda sink: sink.train(metrics))

    def validation(self, step: int, loss: float) -> None:
        """A validation loss, in nats a supervised token."""
        self._each(lambda sink: sink.validation(step, loss))

    def checkpoint(self, save: Save) -> None:
        """A checkpoint was written."""
        self._each(lambda sink: sink.checkpoint(save))

    def text(self, tag: str, text: str) -> None:
        """A text under a tag."""
        self._each(lambda sink: sink.text(tag, text))

    def close(self) -> None:
        """Nothing more will come."""
        self._each(lambda sink: sink.close())


def open_reporter(
    metrics_file: Path, tensorboard: Path, num_steps: int, speaks: bool, start_step: int = 0
) -> Reporter:
    """All sinks for the rank that speaks, none for the others.

    `start_step` is the number of steps done before this process: what stands there of later ones goes.
    """
    if not speaks:
        return Reporter(())
    return Reporter(
        (
            MetricsFile(metrics_file, start_step),
            TensorBoard(tensorboard, start_step),
            Console(num_steps, start_step),
            Health(),
        )
    )
