"""Text of others on a terminal, where some characters are orders."""

from __future__ import annotations

import unicodedata

# Overrides and isolates of direction would show a line in another order than it is.
_TURNING = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


def harmless(text: str) -> str:
    """Without control characters other than line ends and tabs: a model can write anything, also what
    would reprogram a terminal or turn the reading direction (https://trojansource.codes)."""
    return "".join(
        item
        for item in text
        if item in "\n\t"
        or (unicodedata.category(item) != "Cc" and unicodedata.bidirectional(item) not in _TURNING)
    )
