"""A process's own memory, and this one's peak while something runs."""

from __future__ import annotations

import threading
from pathlib import Path


def private_bytes(pid: int | str = "self") -> int:
    """Anonymous memory of a process: what it has written and shares with no file.

    From /proc/PID/status, in microseconds; smaps_rollup gives the same number but walks all pages, a tenth
    of a second for 2 GB in which the process can map no memory.
    """
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no RssAnon line in /proc/{pid}/status")


class Peak:
    """Highest private memory while the block runs, sampled every 5 ms."""

    def __enter__(self) -> Peak:
        self.bytes = private_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, private_bytes())

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.bytes = max(self.bytes, private_bytes())
