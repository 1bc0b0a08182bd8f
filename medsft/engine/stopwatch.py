"""Seconds of the parts of a step, on a CPU by the clock, on a GPU by events that no step waits for."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from typing import Protocol

import torch

Moment = float | torch.cuda.Event
"""Seconds of a clock, or a place in the work that a GPU was given."""


class Watch(Protocol):
    """How moments are taken."""

    def now(self) -> Moment: ...

    def is_past(self, moment: Moment) -> bool:
        """Whether the work before it is done."""

    def seconds(self, begin: Moment, end: Moment) -> float:
        """From one moment to a later one; waits for the device where `end` is not past."""


class HostWatch:
    """The clock of this process; for devices that compute while Python waits."""

    def now(self) -> Moment:
        return time.perf_counter()

    def is_past(self, moment: Moment) -> bool:
        return True

    def seconds(self, begin: Moment, end: Moment) -> float:
        return end - begin


class StreamWatch:
    """Events in the stream of a GPU: the time between them is that of the work, not of handing it over."""

    def now(self) -> Moment:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def is_past(self, moment: Moment) -> bool:
        return moment.query()

    def seconds(self, begin: Moment, end: Moment) -> float:
        end.synchronize()
        return begin.elapsed_time(end) / 1e3


class Stopwatch:
    """Adds up seconds under names."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._open: deque[tuple[str, Moment, Moment]] = deque()
        self._seconds: dict[str, float] = defaultdict(float)
        self.now: Callable[[], Moment] = watch.now

    def add(self, name: str, begin: Moment, end: Moment) -> None:
        """The time between two moments goes under `name`. Waits for nothing."""
        self._open.append((name, begin, end))
        while self._open and self._watch.is_past(self._open[0][2]):
            self._settle()

    def take(self) -> dict[str, float]:
        """Seconds under each name since the last call; waits for the device to have come so far."""
        while self._open:
            self._settle()
        taken, self._seconds = dict(self._seconds), defaultdict(float)
        return taken

    def _settle(self) -> None:
        name, begin, end = self._open.popleft()
        self._seconds[name] += self._watch.seconds(begin, end)


def open_stopwatch(device: torch.device) -> Stopwatch:
    """A stopwatch for work on that device."""
    return Stopwatch(StreamWatch() if device.type == "cuda" else HostWatch())
