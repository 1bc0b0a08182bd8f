"""One rank as an operating system process, in a process group of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Sequence, Set
from contextlib import suppress

from launcher.command import Command
from launcher.ranks.heartbeat import Heartbeat, Silence
from launcher.ranks.output import RankOutput
from launcher.ranks.rank import Ended

_PR_SET_PDEATHSIG = 1
# How long what a rank printed may still be on its way when it has ended, in seconds.
_DRAIN_S = 1.0
# How long a killed process may take to be gone, in seconds.
_REAP_S = 5.0


class RankProcess:
    """A started command.

    The process stays unreaped until `reap`, so that its id, and its group's, cannot pass to a stranger
    while signals may still be sent to it.
    """

    def __init__(
        self,
        command: Command,
        signals: Set[signal.Signals],
        output: RankOutput | None = None,
        heartbeat: Heartbeat | None = None,
    ):
        """Starts the command with `signals` unblocked and standard input closed.

        What it prints goes to `output`; None: straight to where the launcher prints. Raises `OSError` when
        the program cannot be started.
        """
        self.name = command.name
        self._output = output
        self._heartbeat = heartbeat
        launcher_pid = os.getpid()
        libc = ctypes.CDLL(None, use_errno=True)

        def in_child() -> None:
            # The launcher holds signals back while it waits for them; its children must not inherit that.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)
            # The kernel kills the rank when the launcher is gone, whatever ended it.
            if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
                raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
            if os.getppid() != launcher_pid:
                os.kill(os.getpid(), signal.SIGKILL)

        self._process = subprocess.Popen(
            command.arguments,
            env=os.environ | dict(command.environment),
            stdin=subprocess.DEVNULL,
            stdout=None if output is None else subprocess.PIPE,
            stderr=None if output is None else subprocess.PIPE,
            process_group=0,
            preexec_fn=in_child,
        )
        self.pid = self._process.pid
        if output is not None:
            # The threads own the pipes from here on.
            out, err = os.dup(self._process.stdout.fileno()), os.dup(self._process.stderr.fileno())
            self._process.stdout.close()
            self._process.stderr.close()
            output.attach(out, err)

    def ended(self) -> Ended | None:
        """How it ended, None while it runs; does not reap."""
        status = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if status is None:
            return None
        return Ended(status.si_status if status.si_code == os.CLD_EXITED else -status.si_status)

    def is_frozen(self) -> bool:
        """Whether a signal (SIGSTOP) has it stand still."""
        options = os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT
        status = os.waitid(os.P_PID, self.pid, options)
        return status is not None and status.si_code == os.CLD_STOPPED

    def silence(self) -> Silence | None:
        """Since when it gave no sign of life; None when it never gave one."""
        return None if self._heartbeat is None else self._heartbeat.silence()

    def last_lines(self, most: int, limit_s: float = _DRAIN_S) -> Sequence[str]:
        """What it printed last; none when its output is not kept. Waits `limit_s` for what is on its way."""
        if self._output is None:
            return ()
        self._output.drain(limit_s)
        return self._output.last_lines(most)

    def send(self, signum: int) -> None:
        """A signal for the rank alone: its helpers may not expect it."""
        os.kill(self.pid, signum)

    def kill_group(self) -> None:
        """SIGKILL for the rank and everything it has started in its group; nothing left is no fault."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def reap(self, limit_s: float = _REAP_S) -> None:
        """Waits `limit_s` for the end and gives the process id back to the system.

        One that does not end even by SIGKILL is left to the system.
        """
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(limit_s)
