"""Starts a crashed job again for as long as it gets on.

It gets on when a new checkpoint stands in its output folder. A job that crashes again and again without
one is given up: whoever would start it for ever (a scheduler) is told by the exit code not to.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Set
from dataclasses import dataclass

from launcher.errors import LauncherError
from launcher.exit_codes import CHECKPOINTED, GAVE_UP, describe, shell_code
from launcher.run_folder import RunFolder
from launcher.shell import InterruptedWork
from launcher.signals import PASSED_ON, held_back
from launcher.supervision.job_end import JobEnd

LONGEST_DELAY_S = 60.0
# Enough doublings for any delay that is not zero; more would leave the range of floating point.
_MOST_DOUBLINGS = 20


@dataclass(frozen=True)
class Policy:
    """max_restarts: how many in a row may bring no new checkpoint; 0: a crash is final.

    first_delay_s: wait in seconds before the first of them; each further wait is twice as long, up to 60 s.
    """

    max_restarts: int
    first_delay_s: float = 1.0

    def delay_s(self, num_restarts: int) -> float:
        """Seconds to wait before restart `num_restarts` (from 1) since the newest checkpoint."""
        return min(self.first_delay_s * 2 ** min(num_restarts - 1, _MOST_DOUBLINGS), LONGEST_DELAY_S)


def policy(max_restarts: int, first_delay_s: float) -> Policy:
    """The policy that the flags ask for. Raises `LauncherError` for numbers that make no sense."""
    if max_restarts < 0:
        raise LauncherError(f"--max-restarts {max_restarts} must be 0 or more; 0 starts nothing again.")
    if not 0 <= first_delay_s <= LONGEST_DELAY_S:
        raise LauncherError(
            f"--restart-delay {first_delay_s} must be a number of seconds from 0 to {LONGEST_DELAY_S:.0f}."
        )
    return Policy(max_restarts, first_delay_s)


@dataclass(frozen=True)
class Progress:
    """step: that of the newest checkpoint ever seen, None before there is one; restarts since it appeared."""

    step: int | None
    num_restarts: int = 0


def after_crash(before: Progress, newest_step: int | None, max_restarts: int) -> Progress | None:
    """The progress with which the job is started again; None: it is given up.

    Only a step above all earlier ones is progress. A job whose checkpoints come and go may so be given up
    too early, but none can crash for ever.
    """
    if newest_step is not None and (before.step is None or newest_step > before.step):
        before = Progress(newest_step)
    if before.num_restarts >= max_restarts:
        return None
    return Progress(before.step, before.num_restarts + 1)


def run(
    start: Callable[[Set[signal.Signals]], JobEnd],
    policy: Policy,
    folder: RunFolder | None,
    say: Callable[[str], None],
) -> JobEnd:
    """Runs a job to an end that another start would not mend, or that `policy` does not let it mend.

    `start` runs the job once; `folder` is where progress is seen, None: nowhere; `say` gets a line for
    each restart. A signal between two starts ends it at once; one that asks the job to stop for a while
    (SIGUSR1 before a time limit) leaves it at its newest checkpoint, exit code 75. Raises as `start`.
    """
    with held_back() as signals:
        progress = Progress(newest_step(folder, say))
        while True:
            try:
                end = start(signals)
            except InterruptedWork:
                signum = _wait(0.0, signals) or signal.SIGINT
                if signum in PASSED_ON:
                    return _stopped_before_start(signum)
                message = f"{describe(-signum)} before any rank was started."
                return JobEnd("stopped", shell_code(-signum), message, stop_asked=True, asked_by=signum)
            if not end.is_crash or end.stop_asked:
                return end
            if end.asked_by is not None and newest_step(folder, say) is not None:
                # SIGUSR1 or SIGUSR2: there is no time for another start, but a checkpoint to go on from.
                return _stopped_after(end.failure, end.asked_by)
            if policy.max_restarts == 0:
                return end
            going_on = after_crash(progress, newest_step(folder, say), policy.max_restarts)
            if going_on is None:
                return _given_up(end, policy.max_restarts)
            progress = going_on
            delay_s = policy.delay_s(progress.num_restarts)
            say(_restart_line(end, progress, policy.max_restarts, delay_s, is_known=folder is not None))
            signum = _wait(delay_s, signals)
            if signum in PASSED_ON and newest_step(folder, say) is not None:
                return _stopped_after(end.failure, signum)
            if signum is not None:
                message = f"{describe(-signum)} before the job was started again; no rank is running."
                return JobEnd("stopped", shell_code(-signum), message, stop_asked=True, asked_by=signum)


def _stopped_after(failure: str | None, signum: int) -> JobEnd:
    """The end of a job that was to stop for a while, and crashed before its checkpoint."""
    message = (
        f"{failure}; it is not started again now, for {signal.Signals(signum).name} asked the job to stop. "
        "It goes on from its newest checkpoint when it is."
    )
    return JobEnd("checkpointed", CHECKPOINTED, message, failure, asked_by=signum)


def _stopped_before_start(signum: int) -> JobEnd:
    """The end of a job that was to stop for a while, and had nothing yet to checkpoint."""
    message = (
        f"{signal.Signals(signum).name} before any rank was started: nothing is lost, and the job goes on "
        "from its newest checkpoint when it is started again."
    )
    return JobEnd("checkpointed", CHECKPOINTED, message, asked_by=signum)


def newest_step(folder: RunFolder | None, say: Callable[[str], None]) -> int | None:
    """That of the newest checkpoint; None where there is none, or where nobody can look."""
    if folder is None:
        return None
    try:
        return folder.newest_step()
    except OSError as error:
        say(f"{folder.checkpoints} cannot be read, so no new checkpoint is seen there: {error}")
        return None


def _wait(delay_s: float, signals: Set[signal.Signals]) -> int | None:
    """The signal that came within `delay_s` seconds, also before the call; None if none did."""
    received = signal.sigtimedwait(signals - {signal.SIGCHLD}, delay_s)
    return None if received is None else received.si_signo


def _restart_line(end: JobEnd, progress: Progress, max_restarts: int, delay_s: float, is_known: bool) -> str:
    if not is_known:
        start = ""
    elif progress.step is None:
        start = " from the beginning, there is no checkpoint yet"
    else:
        start = f" from the newest checkpoint, step {progress.step}"
    return (
        f"{end.failure}; starting again in {delay_s:g} s{start} (restart {progress.num_restarts} of at most "
        f"{max_restarts} without a new checkpoint)"
    )


def _given_up(end: JobEnd, max_restarts: int) -> JobEnd:
    restarts = "the restart" if max_restarts == 1 else f"{max_restarts} restarts in a row"
    message = (
        f"gave up: crashed again, and {restarts} brought no new checkpoint; at last {end.failure}. Starting "
        "it again as it is would not help, so do not requeue it; the first traceback says why. The "
        f"launcher's exit code is {GAVE_UP}."
    )
    return JobEnd("gave up", GAVE_UP, message, end.failure)
