"""`python -m launcher`, installed as `medsft-launch`: starts a training script on every slot."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from launcher import options
from launcher.errors import LauncherError
from launcher.exit_codes import INTERRUPTED, USER_ERROR, shell_code

_STDERR = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the return value is the exit code."""
    _open_standard_files()
    try:
        chosen = options.parse(None if arguments is None else list(arguments))
        code = _act(chosen)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except LauncherError as error:
        _say(str(error))
        return USER_ERROR
    except BrokenPipeError:
        # Whoever read a table (head, less) has seen enough. What is left has no way to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return shell_code(-signal.SIGPIPE)


def _act(chosen: argparse.Namespace) -> int:
    # Imported where used: an agent is to be up at once.
    if chosen.action == "run":
        from launcher.run import run

        with _screen() as say:
            return run(chosen, os.environ, say)
    if chosen.action == "check":
        from launcher.check import check

        return check(chosen, os.environ, _say)
    if chosen.action == "node":
        from launcher.node import node

        return node(chosen, os.environ)
    from launcher.control.delivery import receive

    return receive(chosen.job)


def _open_standard_files() -> None:
    """Those that are closed lead to nowhere, lest the next file that is opened takes the number of one."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


@contextmanager
def _screen() -> Iterator[Callable[[str], None]]:
    """Says lines without waiting for the terminal: who watches over ranks must not stand still with it."""
    from launcher.ranks.output import Screen

    screen = Screen(_STDERR)
    try:
        yield lambda line: screen.write(f"launcher: {line}\n".encode(errors="replace"))
    finally:
        screen.close()


def _say(line: str) -> None:
    if sys.stderr is None:
        return  # closed by whoever started the launcher
    try:
        sys.stderr.write(f"launcher: {line}\n")
        sys.stderr.flush()
    except OSError:
        # A reader that is gone ends no training, and what is left for it must not spoil the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


if __name__ == "__main__":
    sys.exit(main())
