"""A rank as whoever supervises it sees it, be it a process here or on another host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from launcher.ranks.heartbeat import Silence


@dataclass(frozen=True)
class Ended:
    """code: exit code, -n for signal n. lost: why nothing is known of its end, when its host is lost."""

    code: int
    lost: str | None = None


class Rank(Protocol):
    """`name` is what people read ("rank 0", "rank 9 on node2"); `pid` is 0 before it has started."""

    name: str
    pid: int

    def ended(self) -> Ended | None:
        """How it ended; None while it runs."""

    def is_frozen(self) -> bool:
        """Whether a signal (SIGSTOP) has it stand still."""

    def silence(self) -> Silence | None:
        """Since when it gave no sign of life; None when it never gave one."""

    def send(self, signum: int) -> None:
        """A signal for the rank alone: its helpers may not expect it."""

    def last_lines(self, most: int) -> Sequence[str]:
        """What it printed last; none when its output is not kept."""


def with_pid(rank: Rank) -> str:
    """For people: "rank 9 on node2 (process 4711)"."""
    return f"{rank.name} (process {rank.pid})"
