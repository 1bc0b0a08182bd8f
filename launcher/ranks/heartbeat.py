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
    """seconds: since the last heartbeat. still_s: seconds since the rank last came to another place, be there
    heartbeats or not. place: where the rank said it was, in words.
    """

    seconds: float
    still_s: float
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
        self._place = ""
        self._progress: object = None
        self._still_since_s = 0.0

    def silence(self) -> Silence | None:
        """How long the content, and what it says of progress, has been the same; None before the first."""
        now_s = time.monotonic()
        try:
            content = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            content = ""
        if content != self._content:
            self._content, self._since_s = content, now_s
            self._place, progress = _read(content)
            if progress != self._progress:
                self._progress, self._still_since_s = progress, now_s
        if not self._content:
            return None
        return Silence(now_s - self._since_s, now_s - self._still_since_s, self._place)


def _read(content: str) -> tuple[str, object]:
    """The place, and what changes with the rank's progress: all but the number that counts heartbeats.

    Where it is none of the content that we know, its every change is progress.
    """
    try:
        beat = json.loads(content)
        return str(beat["place"]), (beat.get("progress"), beat["place"])
    except (ValueError, KeyError, TypeError):
        return "somewhere", content
