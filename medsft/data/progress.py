"""Progress of long preparation on the terminal."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from medsft.data.build import Progress

logger = logging.getLogger(__name__)

_SHOW_AFTER_S = 1.0
_LOG_EVERY_S = 30.0


@contextmanager
def terminal_progress(what: str) -> Iterator[Progress]:
    """A progress callback for `load_or_build`: a bar on stderr, or log lines where that is no terminal.

    Nothing is shown for work that is done within a second, nor in processes that never call it.
    """
    from rich.console import Console
    from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    begin_s = time.monotonic()
    logged_s = begin_s
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(what, total=None)

    def report(done_bytes: int, all_bytes: int) -> None:
        nonlocal logged_s
        now_s = time.monotonic()
        if now_s - begin_s < _SHOW_AFTER_S:
            return
        if console.is_terminal:
            bar.start()
            bar.update(task, completed=done_bytes, total=all_bytes)
        elif now_s - logged_s >= _LOG_EVERY_S:
            logged_s = now_s
            logger.info("%s: %.0f %% of %.1f MB", what, 100 * done_bytes / all_bytes, all_bytes / 1e6)

    try:
        yield report
    finally:
        bar.stop()
