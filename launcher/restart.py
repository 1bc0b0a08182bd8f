"""Starts a crashed job again for as long as it gets on.

It gets on when a new checkpoint stands in its output folder. A job that crashes again and again without
one is given up: whoever would start it for ever (a scheduler) is told by the exit code not to.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from launcher import supervise
from launcher.command import Command
from launcher.exit_codes import GAVE_UP, describe, shell_code
from launcher.supervise import Grace, JobEnd

LONGEST_DELAY_S = 60.0
# Enough doublings for any delay that is not zero; more would leave the range of floating point.
_MOST_DOUBLINGS = 20
_OUTPUT_FLAGS = ("--output_dir", "--output-dir")


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


def checkpoints_folder(arguments: Sequence[str]) -> Path | None:
    """Where the script's own arguments have it write checkpoints; the last --output_dir counts.

    None when there is none among them, as when it stands in a configuration file.
    """
    value = ""
    for position, argument in enumerate(arguments):
        name, equals, after = argument.partition("=")
        if name in _OUTPUT_FLAGS:
            value = after if equals else "".join(arguments[position + 1 : position + 2])
    return Path(value) / "checkpoints" if value else None


def newest_step(checkpoints: Path) -> int | None:
    """Step of the newest checkpoint that is complete, None where there is none.

    Complete is a folder step-00000100 with manifest.json, which is written last. The pointer `latest` is
    not asked: a kill may leave it one checkpoint behind. Raises `OSError` when the folder cannot be read.
    """
    try:
        folders = list(checkpoints.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return None
    steps = (
        int(folder.name.removeprefix("step-"))
        for folder in folders
        if re.fullmatch(r"step-[0-9]{8,}", folder.name) and (folder / "manifest.json").is_file()
    )
    return max(steps, default=None)


def run(
    commands: Callable[[], Sequence[Command]],
    grace: Grace,
    policy: Policy,
    checkpoints: Path | None,
    say: Callable[[str], None],
) -> JobEnd:
    """Runs a job to an end that another start would not mend, or that `policy` does not let it mend.

    `commands` is called for each start; `checkpoints` is where progress is seen, None: nowhere; `say` gets
    a line for each restart. A signal between two starts ends it at once. Raises as `supervise.run`.
    """
    with supervise.held_back() as signals:
        progress = Progress(_look(checkpoints, say))
        while True:
            end = supervise.run(commands(), grace, signals, say)
            if policy.max_restarts == 0 or end.kind != "crashed" or end.stop_asked:
                return end
            going_on = after_crash(progress, _look(checkpoints, say), policy.max_restarts)
            if going_on is None:
                return _given_up(end, policy.max_restarts)
            progress = going_on
            delay_s = policy.delay_s(progress.num_restarts)
            say(_restart_line(end, progress, policy.max_restarts, delay_s, is_known=checkpoints is not None))
            signum = _wait(delay_s, signals)
            if signum is not None:
                message = f"{describe(-signum)} before the job was started again; no rank is running."
                return JobEnd("stopped", shell_code(-signum), message)


def _look(checkpoints: Path | None, say: Callable[[str], None]) -> int | None:
    if checkpoints is None:
        return None
    try:
        return newest_step(checkpoints)
    except OSError as error:
        say(f"{checkpoints} cannot be read, so no new checkpoint is seen there: {error}")
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
