"""A place that reports go to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medsft.monitor.metrics import Metrics, Save, Start


@dataclass(frozen=True)
class Sample:
    """What the model says to one of the fixed questions; expected is empty where nobody wrote an answer."""

    question: str
    answer: str
    expected: str


@dataclass(frozen=True)
class Summary:
    """How a run ended.

    steps: done in all. seconds: that this process trained, evaluated and saved. best_loss, best_step: lowest
    validation loss and the steps done then; None without validation. last: the last figures; None where this
    process reported none. flags: all of the run's.
    """

    steps: int
    seconds: float
    best_loss: float | None
    best_step: int | None
    last: Metrics | None
    flags: Mapping[str, object]


class Sink:
    """Every kind of report; a sink takes up those that concern it and lets the others pass."""

    def start(self, start: Start) -> None:
        """A process begins."""

    def text(self, tag: str, text: str) -> None:
        """A text about the run as a whole, in Markdown."""

    def train(self, metrics: Metrics) -> None:
        """Figures of a logged step."""

    def validation(self, step: int, loss: float) -> None:
        """A validation loss, in nats a supervised token."""

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """What the model answers after `step` steps."""

    def checkpoint(self, save: Save) -> None:
        """A checkpoint was written."""

    def rest(self) -> None:
        """The steps are over, well or not: nothing may go on moving on a terminal."""

    def finish(self, summary: Summary) -> None:
        """The run has finished."""

    def close(self) -> None:
        """Nothing more will come."""
