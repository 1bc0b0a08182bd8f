"""Strings that end an answer where they would begin in it."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """A text up to the first of its stop strings, told piece by piece; nothing told is ever taken back.

    is_reached: whether one has come; what follows it is dropped.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        assert all(stops), "an empty string stops everything"
        self._stops = stops
        self._held = ""  # may be the beginning of a stop string
        self.is_reached = False

    def add(self, piece: str) -> str:
        """What one more piece settles; often nothing."""
        if self.is_reached:
            return ""
        text, self._held = self._held + piece, ""
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.is_reached = True
            return text[: min(places)]
        beginnings = (stop[:size] for stop in self._stops for size in range(1, len(stop)))
        num_held = max((len(each) for each in beginnings if text.endswith(each)), default=0)
        self._held = text[len(text) - num_held :]
        return text[: len(text) - num_held]

    def end(self) -> str:
        """What was held back, once nothing more comes."""
        rest, self._held = self._held, ""
        return rest
