"""A process's own memory, this one's peak while something runs, and what of it is in use."""

from __future__ import annotations

import ctypes
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


_MALLINFO_FIELDS = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip


class _Mallinfo(ctypes.Structure):
    """`struct mallinfo2` of glibc (mallinfo(3)): bytes and counts over all arenas."""

    _fields_ = [(name, ctypes.c_size_t) for name in _MALLINFO_FIELDS]


def in_use_bytes() -> int:
    """What the C library has handed out in this process and not got back: every tensor on the CPU.

    Resident memory has on top what was given back and is kept for the next request, which with rows of
    changing lengths comes and goes by hundreds of megabytes. Raises `RuntimeError`
    without glibc from 2.33 on.
    """
    library = ctypes.CDLL(None)
    try:
        library.mallinfo2.restype = _Mallinfo
    except AttributeError as error:
        raise RuntimeError("this C library has no mallinfo2; glibc has it from 2.33 on") from error
    found = library.mallinfo2()
    return found.uordblks + found.hblkhd


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
