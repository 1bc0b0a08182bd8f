"""`python -m launcher`, installed as `medsft-launch`: starts a training script on every slot."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from launcher import options
from launcher.errors import LauncherError
from launcher.exit_codes import USER_ERROR


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; the return value is the exit code."""
    try:
        chosen = options.parse(None if arguments is None else list(arguments))
        return _act(chosen)
    except LauncherError as error:
        _say(str(error))
        return USER_ERROR


def _act(chosen: argparse.Namespace) -> int:
    # Imported where used: an agent is to be up at once.
    if chosen.action == "run":
        from launcher.run import run

        return run(chosen, os.environ, _say)
    if chosen.action == "check":
        from launcher.check import check

        return check(chosen, os.environ, _say)
    if chosen.action == "node":
        from launcher.node import node

        return node(chosen, os.environ)
    from launcher.control.delivery import receive

    return receive(chosen.job)


def _say(line: str) -> None:
    sys.stderr.write(f"launcher: {line}\n")


if __name__ == "__main__":
    sys.exit(main())
