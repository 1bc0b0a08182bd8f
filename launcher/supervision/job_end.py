"""How a job ended, from how its ranks ended."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.exit_codes import (
    CHECKPOINTED,
    CRASHED,
    DIVERGED,
    FINISHED,
    INTERRUPTED,
    USER_ERROR,
    describe,
    shell_code,
)


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended: `code` is its exit code, -n when signal n killed it; `after_s` since the start.

    lost: why nothing is known of its end, when its host is lost or it does not end; else None.
    """

    rank: int
    name: str
    pid: int
    code: int
    after_s: float
    lost: str | None = None


@dataclass(frozen=True)
class JobEnd:
    """How a job ended. `kind`: finished, checkpointed, user error, diverged, interrupted, crashed, hung,
    lost host, stopped, gave up.

    `message` is a line for people; None when the ranks have said all there is to say. `failure` says which
    rank failed how, when one did. `stop_asked`: a signal asked the job to stop, be it after a rank failed;
    `asked_by`: the first signal that the launcher was sent at all.
    """

    kind: str
    exit_code: int
    message: str | None
    failure: str | None = None
    stop_asked: bool = False
    asked_by: int | None = None

    @property
    def is_crash(self) -> bool:
        """Whether another start may mend it."""
        return self.kind in ("crashed", "hung", "lost host")


def classify(
    ends: Sequence[RankEnd],
    failed: Sequence[RankEnd],
    stop_signal: int | None,
    frozen: Sequence[str] = (),
    hung: str | None = None,
) -> JobEnd:
    """The job's end from the ends of all its ranks.

    `failed` are those that failed of themselves, not because they were asked to end, be it after a signal;
    `stop_signal` is the signal that asked the job to stop before any had failed; `hung` says which ranks gave
    no sign of life, for which the job was ended. One of the three explains every rank that neither finished
    nor checkpointed.
    `frozen` names ranks that stood still when the first one failed.
    """
    codes = {end.code for end in ends}
    if hung is not None:
        message = f"{hung}; all ranks were ended. The launcher's exit code is {CRASHED}."
        return JobEnd("hung", CRASHED, message, hung)
    if failed:
        cause = most_telling(failed)
        exit_code = shell_code(cause.code)
        if cause.code == USER_ERROR:
            return JobEnd("user error", exit_code, None)
        kind = {DIVERGED: "diverged", INTERRUPTED: "interrupted"}.get(cause.code, "crashed")
        if cause.lost is not None:
            kind = "lost host"
        failure = _describe_failure(cause, frozen)
        message = f"{failure}; all other ranks were ended. The launcher's exit code is {exit_code}."
        return JobEnd(kind, exit_code, message, failure)
    if codes <= {FINISHED}:
        return JobEnd("finished", FINISHED, None)
    if codes <= {FINISHED, CHECKPOINTED}:
        message = "all ranks have checkpointed, or had nothing to save yet, and want to be started again."
        return JobEnd("checkpointed", CHECKPOINTED, message)
    if stop_signal is None:
        behind = " and ".join(end.name for end in ends if end.code not in (FINISHED, CHECKPOINTED))
        message = f"{behind} did not follow the other ranks, which had checkpointed, and had to be ended."
        return JobEnd("checkpointed", CHECKPOINTED, message)
    return JobEnd("stopped", shell_code(-stop_signal), f"{describe(-stop_signal)}; all ranks have ended.")


def most_telling(failed: Sequence[RankEnd]) -> RankEnd:
    """Which of several failures is the cause of the others.

    A user error explains itself and so does a divergence; a lost host and SIGKILL come from outside; else it
    is the first one. Of those seen at the same moment a signal tells more than an exit code, which may only
    say that a peer is gone.
    """
    return min(
        failed,
        key=lambda end: (
            end.code != USER_ERROR,
            end.code != DIVERGED,
            end.lost is None,
            end.code != -signal.SIGKILL,
            end.after_s,
            end.code >= 0,
            end.rank,
        ),
    )


def _describe_failure(cause: RankEnd, frozen: Sequence[str]) -> str:
    if cause.lost is not None:
        return f"{cause.name} is lost after {cause.after_s:.0f} s: {cause.lost}"
    hint = ""
    if cause.code == -signal.SIGKILL:
        hint = ", not by the launcher (most often the system was out of memory, see dmesg)"
    if frozen:
        # Whoever waited for them in vain failed first, but they are the cause.
        hint += f", while {' and '.join(frozen)} stood still (stopped by a signal, such as SIGSTOP)"
    return (
        f"{cause.name} (process {cause.pid}) failed after {cause.after_s:.0f} s: {describe(cause.code)}{hint}"
    )
