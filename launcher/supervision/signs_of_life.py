"""What the ranks' heartbeats say: which ranks hang, and which live and get no further.

A job is ended for a rank whose heartbeat stops. One whose heartbeat goes on while its main thread stays at
one place may wait for ever, for a shared disk that does not answer say; or it may tokenise, load, save or
compile, which takes long and is as it should be. Nobody can tell these apart from outside: people are told,
and nothing is ended for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence

from launcher.ranks import heartbeat
from launcher.ranks.heartbeat import Silence
from launcher.ranks.rank import Rank, with_pid

STILL_S = 300.0
"""So long, in seconds, a rank stays at one place before people are told, and again for as long as it does.

A step takes seconds, so five minutes are seldom as they should be; and a long phase that is adds no more than
twelve lines an hour to the log.
"""
_MOST_NAMED = 3


class SignsOfLife:
    """Of one start of a job, looked at again and again."""

    def __init__(self, hang_timeout_s: float, still_s: float, say: Callable[[str], None]):
        """A rank hangs that has given signs of life, or whose peers have, and then none for `hang_timeout_s`.

        `say` gets a line for each `still_s` in which ranks live and get no further, and one for ranks that
        have given no sign of life `still_s` after the start.
        """
        self._hang_timeout_s = hang_timeout_s
        self._still_s = still_s
        self._say = say
        self._started_s = time.monotonic()
        # When the first rank gave a sign of life, in monotonic seconds: from then on all ought to.
        self._first_sign_s: float | None = None
        self._still_told_s = -math.inf
        self._never_told: set[Rank] = set()

    def hanging(self, running: Sequence[Rank]) -> Mapping[Rank, Silence]:
        """The ranks that hang, for which the job is to be ended; `say` is told of others."""
        now_s = time.monotonic()
        silences = {rank: rank.silence() for rank in running}
        heard = {rank: silence for rank, silence in silences.items() if silence is not None}
        if heard and self._first_sign_s is None:
            self._first_sign_s = now_s
        judged = dict(heard)
        if self._first_sign_s is not None:
            # Its imports may stand still on a file system that is gone.
            waited_s = now_s - self._first_sign_s
            at_start = Silence(waited_s, waited_s, "its start")
            judged |= {rank: at_start for rank in running if rank not in heard}
        hanging = {
            rank: silence for rank, silence in judged.items() if silence.seconds > self._hang_timeout_s
        }
        if not hanging:
            self._tell_still(heard, now_s)
            self._tell_never_heard([rank for rank in running if rank not in heard], now_s)
        return hanging

    def _tell_still(self, heard: Mapping[Rank, Silence], now_s: float) -> None:
        longest_s = max((silence.still_s for silence in heard.values()), default=0.0)
        if longest_s > self._still_s and now_s - self._still_told_s > self._still_s:
            self._still_told_s = now_s
            # The others that wait with it came there a little later.
            self._say(
                still_line({rank: beat for rank, beat in heard.items() if beat.still_s > self._still_s / 2})
            )

    def _tell_never_heard(self, ranks: Sequence[Rank], now_s: float) -> None:
        waited_s = now_s - self._started_s
        # Without a process id it has not been started, which its transport sees to.
        new = [rank for rank in ranks if rank.pid != 0 and rank not in self._never_told]
        if new and waited_s > self._still_s:
            self._never_told.update(new)
            self._say(never_heard_line(new, waited_s))


def still_line(still: Mapping[Rank, Silence]) -> str:
    """For people: who stands where since when, the longest first, and what to look at."""
    ranks = sorted(still, key=lambda rank: -still[rank].still_s)
    named = [f"{with_pid(rank)} for {still[rank].still_s:.0f} s, after {still[rank].place}" for rank in ranks]
    return (
        f"no progress from {_listed(named)}. Nothing is ended for it, as tokenising, loading, saving and "
        f"compiling may take so long. If it is none of these: `py-spy dump --pid {ranks[0].pid}` on its host "
        "shows where it stands; often a shared disk does not answer"
    )


def never_heard_line(ranks: Sequence[Rank], waited_s: float) -> str:
    """For people: who has given no sign of life since the start, and what to look at."""
    return (
        f"no sign of life yet from {_listed([with_pid(rank) for rank in ranks])}, {waited_s:.0f} s after the "
        f"start. `py-spy dump --pid {ranks[0].pid}` on its host shows where it stands; often a shared disk "
        f"does not answer its imports. A script that writes no ${heartbeat.VARIABLE} never gives one"
    )


def _listed(named: Sequence[str]) -> str:
    shown = list(named[:_MOST_NAMED])
    if len(named) > _MOST_NAMED:
        shown.append(f"{len(named) - _MOST_NAMED} more")
    return "; ".join(shown)
