"""What every transport can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from contextlib import AbstractContextManager
from signal import Signals
from typing import Protocol

from launcher.command import Command
from launcher.job import Job
from launcher.ranks.rank import Rank
from launcher.shell import Shell


class Transport(Protocol):
    """name: for --transport. shell: runs other commands on the hosts."""

    @property
    def name(self) -> str: ...

    @property
    def shell(self) -> Shell: ...

    def commands(self, job: Job) -> tuple[Command, ...]:
        """What would be started, for people to read."""

    def started(
        self, job: Job, signals: Set[Signals], start_limit_s: float, say: Callable[[str], None]
    ) -> AbstractContextManager[Sequence[Rank]]:
        """The job's ranks, running or about to; none is left when the block is.

        `say` gets lines for people. A host that has not answered within `start_limit_s` is lost. Raises
        `LauncherError` when a host cannot be reached at all, `OSError` when a program is missing.
        """
