"""Kills the ranks' process groups when the launcher dies without having done so.

The kernel's own parent-death signal reaches the ranks, not what they have started. This small process
reads group ids, one a line, from the launcher's pipe. When the pipe ends without the line "done", the
launcher is gone and the groups are killed. Run as a script of its own, it imports nothing of ours.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from types import TracebackType


class Keeper:
    """The launcher's side: `with Keeper() as keeper: keeper.watch(group)`."""

    def __enter__(self) -> Keeper:
        # A session of its own: what is sent to the launcher's group or terminal does not reach it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )
        return self

    def watch(self, group: int) -> None:
        """From now on the process group does not outlive the launcher."""
        self._say(str(group))

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._say("done")
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        # Somebody may have killed the keeper; the ranks still have the kernel's parent-death signal.
        with suppress(BrokenPipeError):
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()


def _main() -> None:
    groups = []
    for line in sys.stdin:
        if line == "done\n":
            return
        groups.append(int(line))
    for group in groups:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    _main()
