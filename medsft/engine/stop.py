"""What asks a run to stop: signals, and a file.

SIGTERM, SIGINT, SIGUSR1, SIGUSR2 and the file `output_dir/STOP` end a training at the next step boundary,
with a checkpoint and exit code 75. What a signal does depends on how far the run is:

    signal            while it is set up     in training                 while the model is written
    SIGINT            leaves at once, 130    stops after this step, 75   says that the end is near
    SIGTERM           leaves at once, 75     stops after this step, 75   says that the end is near
    SIGUSR1, SIGUSR2  stops when it is done  stops after this step, 75   says that the end is near

Python runs a handler between two lines of the main thread, maybe in the middle of a log call, so the
handler only writes to the file descriptor of stderr and sets flags.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from enum import Enum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from medsft import exit_codes

if TYPE_CHECKING:
    from medsft.engine.distributed import World

logger = logging.getLogger(__name__)

STOP_FILE = "STOP file"
"""The reason that `StopRequest.requested` gives for the file."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
_REASONS = (STOP_FILE, *(number.name for number in _SIGNALS))
# A terminal sends Ctrl-C to all processes and the launcher passes on its own: one request, in seconds.
_ECHO_S = 1.0


class Stopped(Exception):
    """All ranks have agreed to stop and what was done is on disk; raised on each of them."""

    def __init__(self, reason: str, step: int, without: Sequence[str] = ()) -> None:
        """`step`: steps done; at 0 there is nothing to keep. `without`: flags of a first start only."""
        where = f"after step {step}, with a checkpoint" if step else "before the first step"
        command = f"the same command{' without ' + ' and '.join(without) if without and step else ''}"
        goes_on = "the run goes on from there" if step else "the run begins"
        super().__init__(f"{reason}: stopped {where}. Start again with {command} and {goes_on}.")


class _Phase(Enum):
    SET_UP = "set-up"
    TRAINING = "training"
    FINISHING = "finishing"


class StopRequest:
    """Listens from its making to the end of the process. Made in the main thread, once.

    A signal that was ignored when the process started (nohup, a job in the background) stays ignored.
    """

    def __init__(self, speaks: bool) -> None:
        """`speaks`: whether this is the rank that answers a signal with a line; the others are silent."""
        self._speaks = speaks
        self._pid = os.getpid()
        self._phase = _Phase.SET_UP
        self._received: signal.Signals | None = None
        self._received_s = 0.0
        self._file: Path | None = None
        self._heeded = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._install()

    def watch(self, file: Path) -> None:
        """Has `requested` look for this file; for rank 0 alone. One that is there already is removed."""
        if _is_there(file):
            file.unlink(missing_ok=True)
            logger.info("%s was there before this run; removed", file)
        self._file = file

    def arm(self) -> None:
        """The training begins: from now on a signal waits for the next step boundary."""
        self._phase = _Phase.TRAINING
        self._install()  # again: a library that came with the set-up may have taken a signal for itself

    def finishing(self) -> None:
        """The training is over and the model is being written: there is nothing left to stop."""
        self._phase = _Phase.FINISHING

    def requested(self) -> str | None:
        """Why this rank would stop: "SIGTERM" or another signal, or "STOP file"; None when it would not."""
        if self._received is not None:
            return self._received.name
        return STOP_FILE if self._file is not None and _is_there(self._file) else None

    def vote(self, world: World) -> int:
        """What `requested` says, as a number, 0 for None. The largest of all ranks goes to `verdict`."""
        reason = self.requested()
        # The lowest of the ranks that have the same reason is to win.
        return (
            0 if reason is None else (1 + _REASONS.index(reason)) * world.size + world.size - 1 - world.rank
        )

    def verdict(self, vote: int, world: World) -> str | None:
        """Why all ranks stop, or None, from the largest vote. The reason names the rank unless it is rank 0.

        Rank 0 logs a reason that it has not answered with a line before.
        """
        if not vote:
            return None
        number, place = divmod(vote, world.size)
        rank = world.size - 1 - place
        reason = _REASONS[number - 1] + (f" on rank {rank}" if rank else "")
        if self._received is None:
            logger.info("%s: stopping at this step, with a checkpoint", reason)
        return reason

    def clear(self) -> None:
        """Removes the file, if there is one: it was heeded, and the next run shall not stop for it."""
        if self._file is not None and _is_there(self._file):
            self._file.unlink(missing_ok=True)

    def _install(self) -> None:
        for number in self._heeded:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A forked helper is no rank: the signal does to it what it does to any process.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        received = signal.Signals(number)
        if self._phase is _Phase.FINISHING:
            self._say(f"{received.name}: the model is being written; the run ends by itself")
        elif self._phase is _Phase.SET_UP and received is signal.SIGINT:
            self._say("interrupted")
            os._exit(exit_codes.INTERRUPTED)
        elif self._phase is _Phase.SET_UP and received is signal.SIGTERM:
            self._say("SIGTERM: stopped before the training began")
            os._exit(exit_codes.STOPPED)
        elif self._received is None:
            self._received, self._received_s = received, time.monotonic()
            is_training = self._phase is _Phase.TRAINING
            when = "after this step, with a checkpoint" if is_training else "as soon as the set-up is done"
            self._say(f"{received.name}: stopping {when}")
        elif received is not self._received or time.monotonic() - self._received_s > _ECHO_S:
            self._say(f"{received.name}: already stopping, the checkpoint is being written")

    def _say(self, message: str) -> None:
        if self._speaks:
            # A terminal has shown ^C, or a bar of progress. Nobody may be listening any more.
            start = "\n" if os.isatty(2) else ""
            with suppress(OSError):
                os.write(2, f"{start}medsft: {message}\n".encode())


def _is_there(file: Path) -> bool:
    """A network file system may fail for a moment: then it is not there, and the next step looks again."""
    try:
        return file.is_file()
    except OSError:
        return False
