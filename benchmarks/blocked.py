"""How long this rank stands still in collectives, and a clock that leaves that time out.

DeepSpeed's own logger of communication (`comms_logger`) makes every collective blocking, and so changes what
it measures. Here a collective runs as it always does; what is taken is the time in the call that hands it
over, and that of the wait for an asynchronous one, both on the thread that computes. What runs beside the
computation costs nothing and is not counted; the wait for a slower rank is.

For ranks that compute on the CPU. On a GPU a call hands over and returns, and streams wait for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import wraps
from typing import Any

from deepspeed.comm import comm
from torch.distributed import Work

from medsft.engine.stopwatch import HostWatch

# Methods of DeepSpeed's backend that a ZeRO-3 step comes through.
COLLECTIVES = ("all_gather_into_tensor", "all_gather_coalesced", "reduce_scatter_tensor", "all_reduce")


class Blocked:
    """Adds up `seconds` while it is entered; may be entered again."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._is_inside = False

    def __enter__(self) -> Blocked:
        self._wait = Work.wait
        Work.wait = self._counted(Work.wait)
        for name in COLLECTIVES:
            setattr(comm.cdb, name, self._counted(getattr(comm.cdb, name)))
        return self

    def __exit__(self, *_: object) -> None:
        Work.wait = self._wait
        for name in COLLECTIVES:
            delattr(comm.cdb, name)  # the class's own shows again

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def counted(*arguments: Any, **more: Any) -> Any:
            if self._is_inside:  # a blocking call waits inside of itself
                return function(*arguments, **more)
            self._is_inside, begin_s = True, time.perf_counter()
            try:
                return function(*arguments, **more)
            finally:
                self.seconds += time.perf_counter() - begin_s
                self._is_inside = False

        return counted


class WorkingWatch(HostWatch):
    """The clock of this process, which stands still while the process is blocked."""

    def __init__(self, blocked: Blocked) -> None:
        self._blocked = blocked

    def now(self) -> float:
        return super().now() - self._blocked.seconds
