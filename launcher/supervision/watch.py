"""Watches the ranks of a job together and tells how it ended.

When a rank fails, hangs or is lost with its host, the others are asked to end (SIGTERM) and, after a grace,
killed; its exit code is the job's. Signals sent to the launcher reach every rank.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace

from launcher.exit_codes import CHECKPOINTED, CRASHED, FINISHED, INTERRUPTED, describe, shell_code
from launcher.ranks.rank import Rank, with_pid
from launcher.signals import PASSED_ON, STOPPING
from launcher.supervision.job_end import JobEnd, RankEnd, classify, most_telling
from launcher.supervision.signs_of_life import STILL_S, SignsOfLife

# The rank that failed first is not always the one at fault: so long, in seconds, others may fail by
# themselves and say why before they are asked to end.
_SETTLE_S = 2.0
# A terminal and a scheduler may send the same request one after the other: that is one, in seconds.
_ECHO_S = 1.0
# So many requests to stop, each more than that after the one before, and nobody wants to wait any longer.
_STOPS_THAT_KILL = 3
# In the place of a signal to send: a rank that stands still keeps the others from writing a checkpoint.
_KILL_IF_FROZEN = 0
# In the place of a signal to send: a process in uninterruptible sleep (state D) does not end.
_GIVE_UP = -1
# So long, in seconds, SIGKILL may take: the kernel gives much memory back first.
_KILLED_S = 15.0
# After so long, in seconds, a script has begun, whether it gives signs of life or not: imports take less.
_BEGUN_S = 600.0
# Longest sleep between two looks at the ranks, in seconds; SIGCHLD wakes the launcher before.
_LOOK_S = 1.0
_NUM_LAST_LINES = 15
# Ranks whose last lines are shown when several hang.
_MOST_SHOWN = 3


@dataclass(frozen=True)
class Grace:
    """Seconds between asking ranks to end and killing them.

    after_failure_s: when another rank has failed. after_signal_s: when the launcher was asked to stop, and
    the ranks may have a checkpoint to write.
    """

    after_failure_s: float
    after_signal_s: float


def watch(
    ranks: Sequence[Rank],
    signals: Set[signal.Signals],
    grace: Grace,
    hang_timeout_s: float,
    say: Callable[[str], None],
    still_s: float = STILL_S,
) -> JobEnd:
    """Returns when all ranks have ended, or some do not even by SIGKILL, which `say` is told.

    `signals`: from `held_back`; SIGCHLD says that there may be news of a rank. A rank that has given signs of
    life and then none for `hang_timeout_s` hangs; of one that lives and gets no further for `still_s` people
    are told. `say` gets lines for people.
    """
    watcher = _Watcher(ranks, grace, SignsOfLife(hang_timeout_s, still_s, say), say)
    while True:
        end = watcher.look()
        if end is not None:
            return end
        received = signal.sigtimedwait(signals, watcher.wait_s())
        if received is not None and received.si_signo != signal.SIGCHLD:
            watcher.asked(received.si_signo)


class _Watcher:
    """What is known of a job while it runs."""

    def __init__(self, ranks: Sequence[Rank], grace: Grace, signs: SignsOfLife, say: Callable[[str], None]):
        self._ranks = ranks
        self._grace = grace
        self._signs = signs
        self._say = say
        self._started_s = time.monotonic()
        self._ends: dict[int, RankEnd] = {}
        self._failed: list[RankEnd] = []
        self._frozen: list[str] = []
        self._hung: str | None = None
        self._hung_ranks: list[Rank] = []
        self._stop_signal: int | None = None
        # When the launcher was asked to stop, in monotonic seconds.
        self._stops_s: list[float] = []
        self._first_asked: int | None = None
        # All that the ranks were sent because the launcher was.
        self._asked: set[int] = set()
        # What the ranks still running will be sent, and when: (monotonic seconds, signal).
        self._plan: list[tuple[float, int]] = []
        # Whether ranks have been asked to end because another one has.
        self._ending = False

    def look(self) -> JobEnd | None:
        """Takes note of what has happened and does what is due; the job's end when all ranks have ended."""
        now_s = time.monotonic()
        for rank, process in enumerate(self._ranks):
            if rank not in self._ends and (ended := process.ended()) is not None:
                after_s = now_s - self._started_s
                end = RankEnd(rank, process.name, process.pid, ended.code, after_s, ended.lost)
                self._note(end, now_s)
        if len(self._ends) == len(self._ranks):
            return self._end()
        if not self._plan and not self._ending:
            self._look_for_hangs(now_s)
        while self._plan and self._plan[0][0] <= now_s:
            _, signum = self._plan.pop(0)
            if signum == _KILL_IF_FROZEN:
                if not any(process.is_frozen() for process in self._running()):
                    continue
                signum = signal.SIGKILL
            if signum == _GIVE_UP:
                self._give_up(now_s)
                return self._end()
            if signum == signal.SIGKILL:
                self._plan = [(now_s + _KILLED_S, _GIVE_UP)]
            # From here on a rank that ends badly has been asked to.
            self._ending = True
            for process in self._running():
                process.send(signum)
        return None

    def wait_s(self) -> float:
        """Seconds until the next look is due."""
        return max(0.0, min(self._plan[0][0] - time.monotonic(), _LOOK_S)) if self._plan else _LOOK_S

    def asked(self, signum: int) -> None:
        """The launcher has been sent a signal: it is the ranks' as well."""
        for process in self._running():
            process.send(signum)
        self._first_asked = self._first_asked or signum
        self._asked.add(signum)
        if signum not in STOPPING:
            return
        now_s = time.monotonic()
        if not self._stops_s or now_s - self._stops_s[-1] > _ECHO_S:
            self._stops_s.append(now_s)
        if len(self._stops_s) == _STOPS_THAT_KILL:
            self._plan = [(now_s, signal.SIGKILL)]
        elif self._stop_signal is None and not self._failed and self._hung is None:
            self._stop_signal = signum
            longest_s = self._grace.after_signal_s
            self._plan = [
                (now_s + min(self._grace.after_failure_s, longest_s), _KILL_IF_FROZEN),
                (now_s + longest_s, signal.SIGKILL),
            ]
            self._say(
                f"{signal.Signals(signum).name}: ranks have {longest_s:g} s to write a checkpoint and "
                f"end; {_STOPS_THAT_KILL - 1} more signals kill them at once"
            )

    def _running(self) -> list[Rank]:
        return [process for rank, process in enumerate(self._ranks) if rank not in self._ends]

    def _note(self, end: RankEnd, now_s: float) -> None:
        if self._has_left_before_it_began(end):
            self._say(f"{end.name} left before its training began: {describe(end.code)}")
            end = replace(end, code=CHECKPOINTED)
        self._ends[end.rank] = end
        grace_s = self._grace.after_failure_s
        if end.code == CHECKPOINTED and not self._plan:
            # The others are about to follow: no hurry, but no waiting for ever either.
            self._plan = [(now_s + grace_s, signal.SIGTERM), (now_s + 2 * grace_s, signal.SIGKILL)]
            return
        if end.code in (FINISHED, CHECKPOINTED) or self._ending or self._hung is not None:
            return
        if self._stop_signal is not None:
            if self._has_left_as_asked(end):
                return
            # Without it the others cannot complete a checkpoint.
            self._plan = [(min(now_s + grace_s, self._plan[-1][0]), signal.SIGKILL)]
        elif not self._failed:
            settled_s = now_s + _SETTLE_S
            self._plan = [(settled_s, signal.SIGTERM), (settled_s + grace_s, signal.SIGKILL)]
            self._frozen = [with_pid(peer) for peer in self._ranks if peer.is_frozen()]
        self._failed.append(end)

    def _has_left_before_it_began(self, end: RankEnd) -> bool:
        """Whether a signal that asks for a checkpoint ended a rank that had nothing to save yet.

        While Python starts and imports, nobody heeds a signal; the rank's first sign of life comes after.
        """
        was_asked = -end.code in self._asked & PASSED_ON
        return was_asked and end.after_s < _BEGUN_S and self._ranks[end.rank].silence() is None

    def _has_left_as_asked(self, end: RankEnd) -> bool:
        """Whether a rank without a checkpoint ended by what it was asked, not by a failure."""
        return end.code == INTERRUPTED or any(end.code in (-n, shell_code(-n)) for n in self._asked)

    def _give_up(self, now_s: float) -> None:
        """What SIGKILL has not ended waits in the kernel, maybe for ever; nobody is to wait for it."""
        why = (
            f"it does not end, {_KILLED_S:g} s after SIGKILL. It waits in the kernel (state D in ps), most "
            "often for a file system or a GPU that no longer answers; its host may have to be started anew"
        )
        for rank, process in enumerate(self._ranks):
            if rank not in self._ends:
                after_s = now_s - self._started_s
                end = RankEnd(rank, process.name, process.pid, -signal.SIGKILL, after_s, why)
                self._ends[rank] = end
                self._say(f"{with_pid(process)} is left behind: {why}")
                if self._stop_signal is not None:
                    self._failed.append(end)

    def _look_for_hangs(self, now_s: float) -> None:
        if hanging := self._signs.hanging(self._running()):
            self._hung_ranks = list(hanging)
            told = [
                f"{with_pid(process)} for {silence.seconds:.0f} s, after {silence.place}"
                for process, silence in hanging.items()
            ]
            self._hung = f"no sign of life from {'; '.join(told)}"
            grace_s = self._grace.after_failure_s
            self._plan = [(now_s, signal.SIGTERM), (now_s + grace_s, signal.SIGKILL)]

    def _end(self) -> JobEnd:
        ends = list(self._ends.values())
        if self._stop_signal is not None and any(map(self._has_left_as_asked, ends)):
            # Of the ranks' peers that is the end, too: a connection breaks, and they crash.
            self._failed = [end for end in self._failed if end.code not in (CRASHED, -signal.SIGABRT)]
        end = classify(ends, self._failed, self._stop_signal, self._frozen, self._hung)
        if end.is_crash and len(ends) > 1:
            causes = self._hung_ranks or [self._ranks[most_telling(self._failed).rank]]
            for cause in causes[:_MOST_SHOWN]:
                if lines := cause.last_lines(_NUM_LAST_LINES):
                    self._say("\n    ".join([f"{cause.name} printed last:", *lines]))
        return replace(end, asked_by=self._first_asked, stop_asked=bool(self._stops_s))
