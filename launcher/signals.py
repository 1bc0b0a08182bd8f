"""The signals that the launcher and its agents wait for."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Set
from contextlib import contextmanager

STOPPING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
"""End the job, after the ranks had their grace."""
PASSED_ON = frozenset({signal.SIGUSR1, signal.SIGUSR2})
"""Ask the ranks to checkpoint and end for a while; the launcher waits for them as long as they take."""


def is_asked_to_stop() -> bool:
    """Whether one of them is held back, and not yet taken."""
    return bool(signal.sigpending() & (STOPPING | PASSED_ON))


@contextmanager
def held_back() -> Iterator[Set[signal.Signals]]:
    """Blocks the signals that the launcher waits for, and gives them.

    A signal that was ignored when the launcher started (nohup, a background job) stays ignored.
    """
    wanted = {signum for signum in STOPPING | PASSED_ON if signal.getsignal(signum) != signal.SIG_IGN}
    wanted.add(signal.SIGCHLD)
    # Ignored, the kernel would reap the ranks itself and their exit codes would be lost.
    child_handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    try:
        yield wanted
    finally:
        # What came too late to matter must not end the launcher before it has given its exit code.
        while signal.sigtimedwait(wanted, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGCHLD, child_handler)
