"""Which known names a text mentions."""

from __future__ import annotations

from collections.abc import Iterable


class Names:
    """A set of names that can be looked for in texts; the time for a text does not depend on their number."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        # First two characters -> lengths of the names that begin so, the longest first.
        lengths: dict[str, set[int]] = {}
        for name in self._names:
            lengths.setdefault(name[:2], set()).add(len(name))
        self._lengths = {start: sorted(some, reverse=True) for start, some in lengths.items()}
        self._has_single_characters = any(len(name) == 1 for name in self._names)

    def found_in(self, text: str) -> set[str]:
        """Names in the text; a name within a longer one at the same place is not meant (癌 in 肺癌)."""
        return {text[start:end] for start, end in self.places(text)}

    def places(self, text: str) -> list[tuple[int, int]]:
        """(start, end) of the names in the text, from left to right, the longest at each place."""
        found = []
        at = 0
        while at < len(text):
            length = self._longest_at(text, at)
            if length:
                found.append((at, at + length))
            at += length or 1
        return found

    def _longest_at(self, text: str, at: int) -> int:
        for length in self._lengths.get(text[at : at + 2], ()):
            if text[at : at + length] in self._names:
                return length
        return int(self._has_single_characters and text[at] in self._names)
