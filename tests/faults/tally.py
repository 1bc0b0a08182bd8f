"""What a row of the campaign measures, and whether its promise was kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


class BrokenPromise(AssertionError):
    """A check of the campaign that did not hold."""


@dataclass
class Tally:
    """Adds up one row; a check that does not hold ends it with `BrokenPromise`.

    injections: faults that were injected. detected_s: seconds from each fault, or from the start that comes
    upon damage, until a process says so or has ended for it. recovered_s: likewise until the training has
    gone past where it was. steps_lost: steps that were done again. loads: checkpoints whose content was held
    against what is right for their step; bad_loads: those that were taken for good and were not.
    """

    say: Callable[[str], None] = lambda _: None
    injections: int = 0
    detected_s: list[float] = field(default_factory=list)
    recovered_s: list[float] = field(default_factory=list)
    steps_lost: list[int] = field(default_factory=list)
    loads: int = 0
    bad_loads: int = 0
    num_checks: int = 0
    remarks: list[str] = field(default_factory=list)

    def inject(self, what: str) -> None:
        """Counts a fault that is about to be injected, and tells it."""
        self.injections += 1
        self.say(what)

    def check(self, holds: bool, otherwise: str) -> None:
        """Counts a check; raises `BrokenPromise` with `otherwise` if it does not hold."""
        self.num_checks += 1
        if not holds:
            raise BrokenPromise(otherwise)

    def equal(self, found: object, expected: object, what: str) -> None:
        """A check that two values are the same."""
        self.check(found == expected, f"{what}: found {_short(found)}, expected {_short(expected)}")

    def says(self, text: str, words: Iterable[str]) -> None:
        """Checks that a log contains all of `words`."""
        for each in words:
            self.check(each in text, f"{each!r} is not in the log:\n{text}")

    def load(self, is_right: bool, what: str) -> None:
        """Counts a checkpoint that was taken for good; one that is not what was written ends the row."""
        self.loads += 1
        self.bad_loads += not is_right
        self.check(is_right, f"bad load: {what}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 300 else f"{text[:300]}…"
