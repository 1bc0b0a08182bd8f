"""Work done by several processes, its results in order whatever their number."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any, Literal, TypeVar

from medsft.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_work: Callable[[Any], Any] | None = None
"""What a worker process does; handed over once to each, as it may be large."""


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def mapped(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    num_workers: int,
    method: Literal["spawn", "fork"],
) -> Iterator[tuple[Item, Result]]:
    """(item, work(item)) in the order of the items; no more than a few of them are under way at a time.

    `method`: how the processes begin. Spawned ones get a copy of `work` and may begin where there are
    threads. Forked ones share what `work` holds, so that it may be large; nobody else may run threads then.
    With one worker everything is done here.

    Raises `UserError` when a worker is killed, and whatever `work` raises.
    """
    if num_workers <= 1:
        for item in items:
            yield item, work(item)
        return
    context = multiprocessing.get_context(method)
    if method == "fork":
        gc.freeze()  # else the collector of each worker would touch, and so copy, everything that is shared
    with ProcessPoolExecutor(num_workers, context, _start, (work,)) as pool:
        pending: deque[tuple[Item, Future[Result]]] = deque()
        try:
            for item in items:
                pending.append((item, pool.submit(_do, item)))
                if len(pending) > 2 * num_workers:  # bounds what is held in memory
                    done, future = pending.popleft()
                    yield done, future.result()
            while pending:
                done, future = pending.popleft()
                yield done, future.result()
        except BrokenProcessPool as error:
            raise UserError(
                f"One of {num_workers} worker processes was killed, most often for want of memory. Ask for "
                "fewer of them, or make room."
            ) from error
        finally:
            for _, future in pending:
                future.cancel()
            gc.unfreeze()


def _start(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


def _do(item: Any) -> Any:
    assert _work is not None
    return _work(item)
