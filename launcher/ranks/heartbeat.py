"""Whether a rank still moves: it writes a line to a file again and again, and the line changes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "MEDSFT_HEARTBEAT"
"""Names the file to the rank; medsft/engine/heartbeat.py writes it."""


@dataclass(frozen=True)
class Silence:
    """seconds: since the last heartbeat. place: where the rank said it was, in words."""

    seconds: float
    place: str


class Heartbeat:
    """The launcher's view of one rank's file.

    Only a rank that has begun to write is judged: other scripts never do, and imports take long. Time is
    taken by this process's monotonic clock, from when a content was first seen.
    """

    def __init__(self, path: Path):
        self.path = path
        self._content = ""
        self._since_s = 0.0

    def silence(self) -> Silence | None:
        """How long the content has been the same; None before the first heartbeat."""
        now_s = time.monotonic()
        try:
            content = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            content = ""
        if content != self._content:
            self._content, self._since_s = content, now_s
        return Silence(now_s - self._since_s, _place(self._content)) if self._content else None


def _place(content: str) -> str:
    try:
        return str(json.loads(content)["place"])
    except (ValueError, KeyError, TypeError):
        return "somewhere"
