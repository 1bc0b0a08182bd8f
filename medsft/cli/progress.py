"""Progress of long commands on the terminal; plain lines where stderr is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager


def progress(what: str, in_bytes: bool = False) -> AbstractContextManager[Callable[[int, int], None]]:
    """A bar with time left on stderr, moved by calls with what is done and what there is in all.

    `in_bytes`: as of `terminal_progress`.
    """
    import typer

    from medsft.data.progress import terminal_progress

    return terminal_progress(what, lambda line: typer.echo(line, err=True), in_bytes)


@contextmanager
def byte_progress(what: str, num_bytes: int) -> Iterator[Callable[[int], None]]:
    """The same, moved by calls with the bytes done since the last call."""
    from medsft.data.progress import counting

    with progress(what, in_bytes=True) as report:
        yield counting(report, num_bytes)
