"""The ranks of this machine: started together, and gone together."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from signal import Signals

from launcher.command import Command
from launcher.ranks import heartbeat
from launcher.ranks.heartbeat import Heartbeat
from launcher.ranks.keeper import Keeper
from launcher.ranks.output import RankOutput, Screen
from launcher.ranks.process import RankProcess

_STDOUT, _STDERR = 1, 2


def log_name(rank: int) -> str:
    """File of a rank in the folder of logs."""
    return f"rank-{rank:05d}.log"


def of_host(num_ranks: int, environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """What ranks get that follows from their host, where `environment` does not have it already."""
    if "OMP_NUM_THREADS" in environment:
        return ()
    # Without it every rank takes a thread for each core, and the ranks get in each other's way.
    num_cores = len(os.sched_getaffinity(0))
    return (("OMP_NUM_THREADS", str(max(1, num_cores // num_ranks))),)


def _is_one_file(first: int, second: int) -> bool:
    try:
        return os.path.sameopenfile(first, second)
    except OSError:
        return False  # one of them is closed


@contextmanager
def started(
    commands: Sequence[Command], logs: Path | None, signals: Set[Signals], has_terminal: bool
) -> Iterator[list[RankProcess]]:
    """Starts one rank for each command; when the block is left, in whatever way, none is running any more.

    What they print goes to `logs`/rank-00000.log, if given, and on, line by line. Without `logs` ranks that
    could have a terminal of their own have it. Raises `OSError` when one cannot be started; those started
    before are killed.
    """
    with ExitStack() as afterwards, Keeper() as keeper, ExitStack() as at_end:
        folder = Path(afterwards.enter_context(tempfile.TemporaryDirectory(prefix="medsft-")))
        screens: tuple[Screen, Screen] | None = None
        if logs is not None:
            logs.mkdir(parents=True, exist_ok=True)
        if logs is not None or not has_terminal:
            out = Screen(_STDOUT)
            # Two writers to one pipe or file would get into each other's lines.
            screens = (out, out if _is_one_file(_STDOUT, _STDERR) else Screen(_STDERR))
            for screen in dict.fromkeys(screens):
                afterwards.callback(screen.close)
        ranks: list[RankProcess] = []
        for command in commands:
            rank = int(dict(command.environment)["RANK"])
            output = None
            if screens is not None:
                output = RankOutput(None if logs is None else logs / log_name(rank), screens)
                afterwards.callback(output.close)
                afterwards.callback(output.drain, limit_s=1.0)
            beat = Heartbeat(folder / f"rank-{rank}")
            here = of_host(len(commands), dict(os.environ) | dict(command.environment))
            whole = (*here, *command.environment, (heartbeat.VARIABLE, str(beat.path)))
            process = RankProcess(replace(command, environment=whole), signals, output, beat)
            afterwards.callback(process.reap)
            at_end.callback(process.kill_group)
            keeper.watch(process.pid)
            ranks.append(process)
        yield ranks
