"""Whether `deepspeed` has started as many ranks as its hostfile says.

When it does not find the hostfile it is given, it warns in one line among many and trains on this machine
alone. Its command line is still to be seen, as it is an ancestor of this process; not so on other hosts, to
which it has come by ssh, and need not be: then it has read the file.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from medsft.errors import UserError

_NAMES = ("deepspeed", "deepspeed.pt", "ds", "deepspeed.launcher.runner")
# As DeepSpeed reads a line; it has refused the file if there is any other.
_LINE = re.compile(r"^\s*(?!#)\S+\s+slots=(\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Asked:
    """hostfile: as it was given. takes_all: whether no other option leaves out some of its slots."""

    hostfile: str
    takes_all: bool


def check_hostfile(world_size: int) -> None:
    """Raises `UserError` when a `deepspeed` above this process did not follow the hostfile it was given."""
    for command, folder in _ancestors():
        asked = asked_of_deepspeed(command)
        if asked is not None:
            check_size(asked, folder, world_size)


def check_size(asked: Asked, folder: Path, world_size: int) -> None:
    """Raises `UserError` when the hostfile is missing or has more slots than there are ranks.

    `folder`: the one that a relative path begins in.
    """
    path = folder / asked.hostfile
    if not path.is_file():
        raise UserError(
            f"deepspeed was given --hostfile {asked.hostfile}, which does not exist ({path}), so it "
            f"started {world_size} {'rank' if world_size == 1 else 'ranks'} on this machine alone. Mend the "
            "name, or leave --hostfile out to train on this machine."
        )
    num_slots = sum(int(slots) for slots in _LINE.findall(path.read_text(encoding="utf-8", errors="replace")))
    if asked.takes_all and num_slots > world_size:
        raise UserError(
            f"the hostfile {path} has {num_slots} slots, but deepspeed has started {world_size} ranks. Start "
            "again; to use a part of the hosts on purpose, say so by --include, --exclude or --num_nodes."
        )


def asked_of_deepspeed(command: Sequence[str]) -> Asked | None:
    """What a command line asks of DeepSpeed's launcher; None when it is another's, or without a hostfile."""
    programs = [number for number, word in enumerate(command[:4]) if Path(word).name in _NAMES]
    if not programs:
        return None
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False)
    parser.add_argument("-H", "--hostfile")
    parser.add_argument("-i", "--include", default="")
    parser.add_argument("-e", "--exclude", default="")
    parser.add_argument("--num_nodes", type=int, default=-1)
    parser.add_argument("--num_gpus", "--num_accelerators", type=int, default=-1)
    options, _ = parser.parse_known_args(_before_script(command[programs[0] + 1 :]))
    if options.hostfile is None:
        return None
    few = options.include or options.exclude or options.num_nodes > 0 or options.num_gpus > 0
    return Asked(options.hostfile, not few)


def _before_script(words: Iterable[str]) -> list[str]:
    """Arguments of the launcher itself: what follows the script may have the same names."""
    script = Path(sys.argv[0]).name
    before = []
    for word in words:
        if Path(word).name == script:
            break
        before.append(word)
    return before


def _ancestors() -> Iterator[tuple[list[str], Path]]:
    """Command line and working folder of each process above this one that may be looked at."""
    for process in psutil.Process().parents():
        try:
            yield process.cmdline(), Path(process.cwd())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
