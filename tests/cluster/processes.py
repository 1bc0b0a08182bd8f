"""Processes known by id and start time, so that an id which has passed to a stranger is never signalled."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process of this machine, dead or alive."""

    pid: int
    # Clock ticks from the machine's start to the process's: with the id, it names one process for ever.
    start_ticks: int

    @property
    def is_alive(self) -> bool:
        """Whether it still runs; what has ended and waits for its parent (a zombie) does not."""
        return find(self.pid) == self

    @property
    def command(self) -> str:
        """Its command line, words set apart by blanks; empty when it has ended."""
        try:
            line = Path(f"/proc/{self.pid}/cmdline").read_bytes()
        except OSError:
            return ""
        return line.replace(b"\0", b" ").decode(errors="replace").strip()

    def has_variable(self, name: str) -> bool:
        """Whether it was started with this environment variable."""
        try:
            return f"\0{name}=".encode() in b"\0" + Path(f"/proc/{self.pid}/environ").read_bytes()
        except OSError:
            return False

    def send(self, number: signal.Signals) -> None:
        """Sends a signal, unless the process has ended."""
        if self.is_alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


def find(pid: int) -> Process | None:
    """The living process with this id; None when there is none."""
    try:
        # The second field is the program's name in brackets, and may hold anything.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else Process(pid, int(fields[19]))


def in_network(inode: int) -> Iterator[Process]:
    """All living processes in the network namespace of this inode number."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        # Gone by now, or a kernel thread.
        with suppress(OSError):
            if (entry / "ns/net").stat().st_ino == inode and (process := find(int(entry.name))):
                yield process


def remember(process: Process, path: Path) -> None:
    """Writes the process to a pid file."""
    path.write_text(f"{process.pid} {process.start_ticks}\n", encoding="ascii")


def recall(path: Path) -> Process | None:
    """The process of a pid file, dead or alive; None when there is no such file."""
    try:
        pid, start_ticks = path.read_text(encoding="ascii").split()
    except FileNotFoundError:
        return None
    return Process(int(pid), int(start_ticks))
