"""Progress of long work on the terminal."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from medsft.data.build import Progress

logger = logging.getLogger(__name__)

Steps = Callable[[str], AbstractContextManager[Progress]]
"""Called with the name of a step of some work; the block gets the callback for what is done, and in all."""

_SHOW_AFTER_S = 1.0
_LOG_EVERY_S = 30.0
_REFRESH_EVERY_S = 0.1


@contextmanager
def silent_steps(what: str) -> Iterator[Progress]:
    """Steps that nobody is told of."""
    yield lambda done, total: None


@contextmanager
def terminal_progress(
    what: str, tell: Callable[[str], None] = logger.info, in_bytes: bool = False
) -> Iterator[Progress]:
    """A progress callback: a bar on stderr, or where that is no terminal a line to `tell` now and then.

    Both say how much time is left; of work counted `in_bytes` the bar also says how many and how fast.
    Nothing is shown for work that is done within a second, nor in processes that never call it. No thread is
    started, so that the work may fork.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bar

    begin_s = time.monotonic()
    shown_s = begin_s
    console = Console(stderr=True)
    amount = (DownloadColumn(), TransferSpeedColumn()) if in_bytes else (TaskProgressColumn(),)
    columns = (TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn())
    is_terminal = console.is_terminal
    bar = Bar(*columns, console=console, transient=True, disable=not is_terminal, auto_refresh=False)
    task = bar.add_task(what, total=None)

    def report(done: int, total: int) -> None:
        nonlocal shown_s
        now_s = time.monotonic()
        if now_s - begin_s < _SHOW_AFTER_S:
            return
        if is_terminal:
            bar.start()
            bar.update(task, completed=done, total=total)
            if now_s - shown_s >= _REFRESH_EVERY_S or done == total:
                shown_s = now_s
                bar.refresh()
        elif now_s - shown_s >= _LOG_EVERY_S:
            shown_s = now_s
            left_s = (now_s - begin_s) * (total - done) / max(done, 1)
            tell(f"{what}: {done / max(total, 1):.0%}, about {duration(left_s)} left")

    try:
        yield report
    finally:
        bar.stop()


def duration(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def counting(progress: Progress, num_bytes: int) -> Callable[[int], None]:
    """A callback for the bytes done since its last call."""
    num_done = 0

    def advance(count: int) -> None:
        nonlocal num_done
        num_done += count
        progress(num_done, num_bytes)

    return advance


def bytes_of(paths: Sequence[Path]) -> int:
    """The size of some files."""
    return sum(path.stat().st_size for path in paths)
