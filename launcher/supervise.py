"""Runs the commands of a job together and tells how it ended.

When a rank fails, the others are asked to end (SIGTERM) and, after a grace, killed; its exit code is the
job's. Signals sent to the launcher reach every rank. When `run` is left, in whatever way, nothing it
started is running any more.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from launcher.command import Command
from launcher.exit_codes import (
    CHECKPOINTED,
    DIVERGED,
    FINISHED,
    INTERRUPTED,
    USER_ERROR,
    describe,
    shell_code,
)
from launcher.keeper import Keeper
from launcher.process import RankProcess

# End the job, after the ranks had their grace.
_STOPPING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
# Mean something to the ranks only.
_PASSED_ON = frozenset({signal.SIGUSR1, signal.SIGUSR2})
# The rank that failed first is not always the one at fault: so long, in seconds, others may fail by
# themselves and say why before they are asked to end.
_SETTLE_S = 2.0
# A terminal and a scheduler may send the same request one after the other: that is one, in seconds.
_ECHO_S = 1.0
# So many requests to stop, each more than that after the one before, and nobody wants to wait any longer.
_STOPS_THAT_KILL = 3
# In the place of a signal to send: a rank that stands still keeps the others from writing a checkpoint.
_KILL_IF_FROZEN = 0
# Longest sleep between two looks at the ranks, in seconds; SIGCHLD wakes the launcher before.
_LOOK_S = 1.0


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended: `code` is its exit code, -n when signal n killed it; `after_s` since the start."""

    rank: int
    name: str
    pid: int
    code: int
    after_s: float


@dataclass(frozen=True)
class JobEnd:
    """How a job ended. `kind`: finished, checkpointed, user error, diverged, interrupted, crashed, stopped,
    gave up.

    `message` is a line for people; None when the ranks have said all there is to say. `failure` says which
    rank failed how, when one did. `stop_asked`: a signal asked the job to stop, be it after a rank failed.
    """

    kind: str
    exit_code: int
    message: str | None
    failure: str | None = None
    stop_asked: bool = False


def classify(
    ends: Sequence[RankEnd],
    failed: Sequence[RankEnd],
    stop_signal: int | None,
    frozen: Sequence[str] = (),
) -> JobEnd:
    """The job's end from the ends of all its ranks.

    `failed` are those that failed of themselves, not because they were asked to end; `stop_signal` is
    the signal that asked the job to stop before any had failed. One of the two explains every rank that
    neither finished nor checkpointed. `frozen` names ranks that stood still when the first one failed.
    """
    codes = {end.code for end in ends}
    if failed:
        cause = most_telling(failed)
        exit_code = shell_code(cause.code)
        if cause.code == USER_ERROR:
            return JobEnd("user error", exit_code, None)
        kind = {DIVERGED: "diverged", INTERRUPTED: "interrupted"}.get(cause.code, "crashed")
        failure = _describe_failure(cause, frozen)
        message = f"{failure}; all other ranks were ended. The launcher's exit code is {exit_code}."
        return JobEnd(kind, exit_code, message, failure)
    if codes <= {FINISHED}:
        return JobEnd("finished", FINISHED, None)
    if codes <= {FINISHED, CHECKPOINTED}:
        return JobEnd("checkpointed", CHECKPOINTED, "all ranks checkpointed and want to be started again.")
    assert stop_signal is not None
    return JobEnd("stopped", shell_code(-stop_signal), f"{describe(-stop_signal)}; all ranks have ended.")


def most_telling(failed: Sequence[RankEnd]) -> RankEnd:
    """Which of several failures is the cause of the others.

    A user error explains itself and so does a divergence, and SIGKILL comes from outside; else it is the
    first one. Of those seen at the same moment a signal tells more than an exit code, which may only say
    that a peer is gone.
    """
    return min(
        failed,
        key=lambda end: (
            end.code != USER_ERROR,
            end.code != DIVERGED,
            end.code != -signal.SIGKILL,
            end.after_s,
            end.code >= 0,
            end.rank,
        ),
    )


def _describe_failure(cause: RankEnd, frozen: Sequence[str]) -> str:
    hint = ""
    if cause.code == -signal.SIGKILL:
        hint = ", not by the launcher (most often the system was out of memory, see dmesg)"
    if frozen:
        # Whoever waited for them in vain failed first, but they are the cause.
        hint += f", while {' and '.join(frozen)} stood still (stopped by a signal, such as SIGSTOP)"
    return (
        f"{cause.name} (process {cause.pid}) failed after {cause.after_s:.0f} s: {describe(cause.code)}{hint}"
    )


@dataclass(frozen=True)
class Grace:
    """Seconds between asking ranks to end and killing them.

    after_failure_s: when another rank has failed. after_signal_s: when the launcher was asked to stop, and
    the ranks may have a checkpoint to write.
    """

    after_failure_s: float
    after_signal_s: float


def run(
    commands: Sequence[Command], grace: Grace, signals: Set[signal.Signals], say: Callable[[str], None]
) -> JobEnd:
    """Starts all commands and returns when all have ended.

    `signals`: from `held_back`; `say` gets a line for people. Raises `OSError` when a command cannot be
    started; those started before are killed.
    """
    with ExitStack() as afterwards, Keeper() as keeper, ExitStack() as at_end:
        ranks: list[RankProcess] = []
        for command in commands:
            process = RankProcess(command, signals)
            afterwards.callback(process.reap)
            at_end.callback(process.kill_group)
            keeper.watch(process.pid)
            ranks.append(process)
        return _watch(ranks, signals, grace, say)


@contextmanager
def held_back() -> Iterator[Set[signal.Signals]]:
    """Blocks the signals that the launcher waits for, and gives them.

    A signal that was ignored when the launcher started (nohup, a background job) stays ignored.
    """
    wanted = {signum for signum in _STOPPING | _PASSED_ON if signal.getsignal(signum) != signal.SIG_IGN}
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


def _watch(
    ranks: Sequence[RankProcess], signals: Set[signal.Signals], grace: Grace, say: Callable[[str], None]
) -> JobEnd:
    grace_s = grace.after_failure_s
    started_s = time.monotonic()
    ends: dict[int, RankEnd] = {}
    failed: list[RankEnd] = []
    frozen: list[str] = []
    stop_signal: int | None = None
    # When the launcher was asked to stop, in monotonic seconds.
    stops_s: list[float] = []
    # What the ranks still running will be sent, and when: (monotonic seconds, signal).
    plan: list[tuple[float, int]] = []
    # Whether ranks have been asked to end because another one failed.
    ending = False

    while True:
        now = time.monotonic()
        for rank, process in enumerate(ranks):
            if rank in ends or (code := process.ended()) is None:
                continue
            ends[rank] = RankEnd(rank, process.name, process.pid, code, now - started_s)
            if code == CHECKPOINTED and not plan:
                # The others are about to follow: no hurry, but no waiting for ever either.
                plan = [(now + grace_s, signal.SIGTERM), (now + 2 * grace_s, signal.SIGKILL)]
            elif code not in (FINISHED, CHECKPOINTED) and stop_signal is None and not ending:
                if not failed:
                    plan = [(now + _SETTLE_S, signal.SIGTERM), (now + _SETTLE_S + grace_s, signal.SIGKILL)]
                    frozen = [f"{peer.name} (process {peer.pid})" for peer in ranks if peer.is_frozen()]
                failed.append(ends[rank])
        if len(ends) == len(ranks):
            end = classify(list(ends.values()), failed, stop_signal, frozen)
            return replace(end, stop_asked=bool(stops_s))

        running = [process for rank, process in enumerate(ranks) if rank not in ends]
        while plan and plan[0][0] <= now:
            _, signum = plan.pop(0)
            if signum == _KILL_IF_FROZEN:
                if not any(process.is_frozen() for process in running):
                    continue
                signum = signal.SIGKILL
            ending = bool(failed)
            for process in running:
                process.send(signum)

        due_s = min(plan[0][0] - now, _LOOK_S) if plan else _LOOK_S
        received = signal.sigtimedwait(signals, max(0.0, due_s))
        if received is None or received.si_signo == signal.SIGCHLD:
            continue
        for process in running:
            process.send(received.si_signo)
        if received.si_signo not in _STOPPING:
            continue
        now = time.monotonic()
        if not stops_s or now - stops_s[-1] > _ECHO_S:
            stops_s.append(now)
        if len(stops_s) == _STOPS_THAT_KILL:
            plan = [(now, signal.SIGKILL)]
        elif stop_signal is None and not failed:
            stop_signal = received.si_signo
            longest_s = grace.after_signal_s
            plan = [
                (now + min(grace_s, longest_s), _KILL_IF_FROZEN),
                (now + longest_s, signal.SIGKILL),
            ]
            say(
                f"{signal.Signals(stop_signal).name}: ranks have {longest_s:g} s to write a checkpoint and "
                f"end; {_STOPS_THAT_KILL - 1} more signals kill them at once"
            )
