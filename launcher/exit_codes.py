"""What the launcher's exit code means; the scripts it starts use the same numbers."""

import signal

FINISHED = 0
CRASHED = 1
"""Of the launcher itself: a rank hung, a host was lost, or success could not be shown."""
USER_ERROR = 2
DIVERGED = 3
GAVE_UP = 4
"""Crashed again and again without a new checkpoint: starting it again as it is would not help."""
CHECKPOINTED = 75
"""Checkpointed and wants to be started again (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""Left because a signal asked it to, before there was anything to checkpoint."""


def shell_code(code: int) -> int:
    """Exit code as a shell shows it: 128 + n for a process ended by signal n (here -n, as in subprocess)."""
    return 128 - code if code < 0 else code


def describe(code: int) -> str:
    """What became of a process: "exit code 1", "ended by SIGKILL"."""
    if code >= 0:
        return f"exit code {code}"
    names = {signum.value: signum.name for signum in signal.Signals}
    return f"ended by {names.get(-code, f'signal {-code}')}"
