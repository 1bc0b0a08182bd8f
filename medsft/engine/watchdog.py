"""Names the rank that hangs, where a collective only knows that it waited too long.

Every rank publishes in the key-value store of the process group that it lives, and how far its main thread
has come. Each one reads what the others publish and takes the time since a value last changed, by its own
monotonic clock: the clocks of hosts are never compared. Whoever first finds fault writes its verdict into the
store and prints it, and all ranks leave with exit code 1. Faults are

- a rank whose heartbeat stands still: stopped, lost with its host, frozen;
- the process that keeps the store, by default rank 0, which then answers nobody;
- a rank whose main thread stands still while others have gone on and wait for it, in its data say.

Ranks that have all come equally far are left alone, however long they take (a first step that compiles, a
slow disk): the timeout of the collective they are in is meant for that. While the main thread of a rank gets
on, this rank finds no fault with others: they take part in its collectives.

An operation on the store may block without end, so the thread that talks to the store is not the one that
judges.
"""

from __future__ import annotations

import json
import os
import select
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NoReturn

import torch.distributed as dist

from medsft import exit_codes
from medsft.engine.distributed import World
from medsft.engine.heartbeat import INTERVAL_S, Beat

_VERDICT = "verdict"
_NONE_YET = "-"
# A pipe that nobody reads may be the very cause of the hang: so long, in seconds, the verdict waits for it.
_PIPE_S = 5.0
_MOST_NAMED = 4


@dataclass(frozen=True)
class Verdict:
    """Who hangs, as a sentence; `shared`: whether the store can still tell the others."""

    text: str
    shared: bool


_place = (0, "its start")


def now_at(place: str) -> None:
    """The main thread has come to `place`, "step 12: waiting for data" say, and is there until the next call.

    Who is behind whom follows from the number of calls, so every rank makes them at the same places. Costs
    as much as an assignment.
    """
    global _place
    _place = (_place[0] + 1, place)  # replaced as a whole, for other threads read it at any time


def last_place() -> tuple[int, str]:
    """How many places the main thread has come past, and the last of them."""
    return _place


class Judge:
    """Finds the fault in what one rank has seen. Knows no clock, store or thread."""

    def __init__(self, rank: int, size: int, timeout_s: float, tolerance_s: float, store_keeper: str | None):
        """`store_keeper`: in words who keeps the store; None: rank 0 does.

        Once a fault is found, ranks that are within `tolerance_s` of the timeout are named with it.
        """
        self._rank = rank
        self._size = size
        self._timeout_s = timeout_s
        self._tolerance_s = tolerance_s
        self._store_keeper = store_keeper
        self._own_progress = -1
        self._beats: Mapping[int, Beat] = {}
        self._store_silent_s = 0.0
        self._silent_s = [0.0] * size
        self._behind_s = [0.0] * size

    def look(self, elapsed_s: float, beats: Mapping[int, Beat] | None, progress: int) -> Verdict | None:
        """The verdict, or None while there is no fault.

        Args:
            elapsed_s: observed time since the last look; not that in which this process itself was stopped.
            beats: what the ranks have published; None when the store has not answered since the last look.
            progress: that of this rank's main thread.
        """
        if progress != self._own_progress:
            self._own_progress = progress
            self._store_silent_s = 0.0
            self._silent_s = [0.0] * self._size
            self._behind_s = [0.0] * self._size
            elapsed_s = 0.0
        if beats is None:
            self._store_silent_s += elapsed_s
            return self._store_verdict() if self._store_silent_s >= self._timeout_s else None
        # Nothing was to be seen of the ranks while the store was silent; only a slow answer counts.
        elapsed_s += min(self._store_silent_s, self._tolerance_s)
        self._store_silent_s = 0.0
        farthest = max(beat.progress for beat in beats.values())
        for rank in range(self._size):
            self._compare(rank, self._beats.get(rank), beats.get(rank), farthest, elapsed_s)
        self._beats = dict(beats)
        return self._verdict()

    def _compare(
        self, rank: int, before: Beat | None, beat: Beat | None, farthest: int, elapsed_s: float
    ) -> None:
        if beat == before:
            self._silent_s[rank] += elapsed_s
            return
        assert beat is not None
        self._silent_s[rank] = 0.0
        has_moved = before is None or beat.progress != before.progress
        if has_moved or beat.progress == farthest:
            self._behind_s[rank] = 0.0
        else:
            self._behind_s[rank] += elapsed_s

    def _verdict(self) -> Verdict | None:
        if max(self._silent_s) >= self._timeout_s:
            return Verdict(self._silence(self._overdue(self._silent_s)), shared=True)
        if max(self._behind_s) >= self._timeout_s:
            overdue = self._overdue(self._behind_s)
            least = min(self._beats[rank].progress for rank in overdue)
            last = [rank for rank in overdue if self._beats[rank].progress == least]
            ahead = max(self._beats.values(), key=lambda beat: beat.progress)
            return Verdict(
                f"{self._names(last)} {'has' if len(last) == 1 else 'have'} been in {self._place(last[0])} "
                f"for {self._timeout_s:.0f} s while others wait in {ahead.place}",
                shared=True,
            )
        return None

    def _overdue(self, times_s: Sequence[float]) -> list[int]:
        return [rank for rank, s in enumerate(times_s) if s >= self._timeout_s - self._tolerance_s]

    def _store_verdict(self) -> Verdict:
        if self._store_keeper is None:
            return Verdict(self._silence([0]), shared=False)
        return Verdict(f"{self._store_keeper} has not answered for {self._timeout_s:.0f} s", shared=False)

    def _silence(self, ranks: Sequence[int]) -> str:
        has, it = ("has", "it") if len(ranks) == 1 else ("have", f"rank {ranks[0]}")
        return (
            f"{self._names(ranks)} {has} not been heard from for {self._timeout_s:.0f} s; "
            f"{it} was last seen in {self._place(ranks[0])}"
        )

    def _names(self, ranks: Sequence[int]) -> str:
        named = [self._name(rank) for rank in ranks[:_MOST_NAMED]]
        if len(ranks) > _MOST_NAMED:
            named.append(f"{len(ranks) - _MOST_NAMED} more")
        listed = named[0] if len(named) == 1 else f"{', '.join(named[:-1])} and {named[-1]}"
        return f"rank {listed}" if len(ranks) == 1 else f"ranks {listed}"

    def _name(self, rank: int) -> str:
        beat = self._beats.get(rank)
        return f"{rank} (host {beat.host}, pid {beat.pid})" if beat else f"{rank} (not heard from before)"

    def _place(self, rank: int) -> str:
        return self._beats[rank].place if rank in self._beats else "its start"

    def speaks_for_its_host(self) -> bool:
        """Whether this rank prints a verdict that could not be shared: of each host the lowest does.

        Rank 0 is passed over where it keeps the store, and is therefore the one that is named.
        """
        own = self._beats.get(self._rank)
        lower = range(0 if self._store_keeper else 1, self._rank)
        return own is None or not any(self._host(rank) == own.host for rank in lower)

    def _host(self, rank: int) -> str | None:
        return self._beats[rank].host if rank in self._beats else None


class Watchdog:
    """Watches while its block runs, from two threads; in a world of one there is nothing to watch."""

    def __init__(self, world: World, timeout_s: float) -> None:
        """`timeout_s`: seconds without a sign of life, or of progress while others wait.

        The collectives' own timeout should be longer, so that the verdict comes first.
        """
        self._world = world
        self._timeout_s = timeout_s
        self._interval_s = min(INTERVAL_S, timeout_s / 20)
        self._address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
        keeper = None
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            keeper = f"torchrun on host {self._address[0]}, which keeps the store of the ranks,"
        self._judge = Judge(world.rank, world.size, timeout_s, 2 * self._interval_s, keeper)
        self._host = socket.gethostname()
        self._heard: tuple[int, Mapping[int, Beat]] = (0, {})
        self._proposal: str | None = None
        self._agreed: str | None = None
        self._stopped = threading.Event()
        self._news = threading.Event()
        self._has_spoken = False

    def __enter__(self) -> Watchdog:
        if self._world.size > 1:
            for name, work in (("talks", self._talk), ("judges", self._watch)):
                threading.Thread(target=work, name=f"watchdog {name}", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._news.set()

    @property
    def has_spoken(self) -> bool:
        """Whether there is a verdict. The process is about to end; errors of its main thread are no news."""
        return self._has_spoken

    def _talk(self) -> None:
        beats = 0
        while not self._stopped.is_set():
            try:
                store = self._connect()
                while not self._stopped.is_set():
                    beats += 1
                    self._exchange(store, beats)
                    self._stopped.wait(self._interval_s)
            except RuntimeError:  # connection lost or refused; silence is the judge's business
                self._stopped.wait(self._timeout_s / 10)

    def _connect(self) -> dist.Store:
        """A connection of its own, as the process group's is not to wait for this thread."""
        timeout = timedelta(seconds=self._timeout_s)
        store = dist.TCPStore(*self._address, is_master=False, timeout=timeout)
        return dist.PrefixStore("medsft/watchdog", store)

    def _exchange(self, store: dist.Store, number: int) -> None:
        rank = self._world.rank
        beat = Beat(number, *last_place(), self._host, os.getpid())
        store.set(str(rank), json.dumps(asdict(beat)))
        if self._proposal is None:
            verdict = store.compare_set(_VERDICT, "", _NONE_YET).decode()
        else:
            verdict = store.compare_set(_VERDICT, _NONE_YET, f"{rank} {self._proposal}").decode()
        known = self._heard[1]
        ranks = [other for other in range(self._world.size) if other in known or store.check([str(other)])]
        texts = store.multi_get([str(other) for other in ranks])
        self._heard = (
            number,
            {other: Beat(**json.loads(text)) for other, text in zip(ranks, texts, strict=True)},
        )
        if verdict != _NONE_YET:
            self._agreed = verdict
            self._news.set()

    def _watch(self) -> None:
        last_s, last_number = time.monotonic(), 0
        while not self._stopped.is_set():
            self._news.wait(self._interval_s)
            now_s = time.monotonic()
            # Capped: time in which this process was stopped itself is not the others' silence.
            elapsed_s, last_s = min(now_s - last_s, 2 * self._interval_s), now_s
            number, beats = self._heard
            verdict = self._judge.look(elapsed_s, beats if number != last_number else None, last_place()[0])
            last_number = number
            if verdict is not None and verdict.shared:
                self._proposal = verdict.text
                self._news.wait(4 * self._interval_s)
            if self._stopped.is_set():
                return
            if self._agreed is not None:
                author, _, text = self._agreed.partition(" ")
                self._end(text, speaks=int(author) == self._world.rank)
            elif verdict is not None:
                self._end(verdict.text, speaks=verdict.shared or self._judge.speaks_for_its_host())

    def _end(self, text: str, speaks: bool) -> NoReturn:
        if speaks and select.select([], [2], [], _PIPE_S)[1]:
            message = (
                f"medsft: {text}; all ranks stop. Start again with the same command; the run goes on from "
                "its last checkpoint.\n"
            )
            os.write(2, message.encode())
        self._has_spoken = True
        # The others read the verdict meanwhile. An earlier end would break their collectives, and each would
        # print a traceback.
        time.sleep(2 * self._interval_s)
        os._exit(exit_codes.CRASHED)
