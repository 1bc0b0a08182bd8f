"""Long commands on the terminal: their progress (plain lines where stderr is none), and Ctrl-C."""

from __future__ import annotations

import os
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


@contextmanager
def if_interrupted(kept: str) -> Iterator[None]:
    """Says at Ctrl-C what is kept and how to go on, on the first rank; the exit code stays 130."""
    try:
        yield
    except KeyboardInterrupt:
        import typer

        if os.environ.get("RANK", "0") == "0":
            typer.echo(f"medsft: interrupted: {kept}", err=True)
        raise
