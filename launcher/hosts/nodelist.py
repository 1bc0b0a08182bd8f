"""Slurm's node lists, as in SLURM_JOB_NODELIST: "node[01-03,7],login1" -> names.

Measured with Slurm 22.05: `scontrol show hostnames` needs a slurm.conf that it can read (without one it
ends with 1, or waits up to a minute), but no slurmctld. It ends with 0 for most bad lists, and turns
"n[1-2" into "n[1" and "n]". So a list is read here first, and Slurm's own answer counts where it gives one.
There are no steps ("[0-8:2]") in node lists, and no more than 65,536 hosts in a range.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from itertools import product
from math import prod

from launcher.errors import LauncherError

MOST_HOSTS = 65_536
"""Hosts in a list; Slurm takes no more in a range."""
_SCONTROL_LIMIT_S = 5.0
# A name is text and bracketed numbers in turns; text has no commas, brackets or blanks.
_PIECE = re.compile(r"\[([^\[\]]*)\]|([^\[\],\s]+)")
_ENTRY = re.compile(r"(?:\[[^\[\]]*\]|[^\[\],\s])+")
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")


def expand(text: str) -> tuple[str, ...]:
    """The names in a node list, in Slurm's order, which is that of SLURM_NODEID.

    Asks `scontrol` where it is installed and gives an answer. Raises `LauncherError` as `expand_here`.
    """
    names = expand_here(text)
    program = shutil.which("scontrol")
    if program is None:
        return names
    try:
        asked = subprocess.run(
            [program, "show", "hostnames", text],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SCONTROL_LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return names
    answer = tuple(asked.stdout.split())
    is_answer = asked.returncode == 0 and len(answer) == len(names) and all(map(_NAME.fullmatch, answer))
    return answer if is_answer else names


def expand_here(text: str) -> tuple[str, ...]:
    """The names in a node list, without asking Slurm.

    Ranges keep the width of their first number. Of several brackets in a name the last counts fastest, then
    the first, the second and so on, as `scontrol` has it. Raises `LauncherError` with the list quoted for one
    that cannot be read, bad names, a host named twice, and more than 65,536 hosts.
    """
    names: list[str] = []
    for entry in _entries(text):
        parts = [
            _numbers(bracket, text) if bracket is not None else [plain] for bracket, plain in _pieces(entry)
        ]
        num_hosts = len(names) + prod(len(part) for part in parts)
        if num_hosts > MOST_HOSTS:
            raise _too_many(text)
        names += _names(parts)
    seen: set[str] = set()
    for name in names:
        if not _NAME.fullmatch(name):
            raise _bad(text, f"{name!r} is no host name")
        if name.lower() in seen:
            raise _bad(text, f"{name} stands in it twice")
        seen.add(name.lower())
    return tuple(names)


def _entries(text: str) -> list[str]:
    """The parts between commas that are outside brackets."""
    entries: list[str] = []
    position = 0
    while True:
        entry = _ENTRY.match(text, position)
        if entry is None:
            rest = text[position:]
            raise _bad(text, f"a host name must stand before {rest!r}" if rest else "a host name is missing")
        entries.append(entry.group())
        position = entry.end()
        if position == len(text):
            return entries
        if text[position] != ",":
            raise _bad(text, f"{text[position:]!r} cannot be read: a bracket without its partner, or a blank")
        position += 1


def _pieces(entry: str) -> list[tuple[str | None, str]]:
    return [(match.group(1), match.group(2) or "") for match in _PIECE.finditer(entry)]


def _numbers(bracket: str, text: str) -> list[str]:
    numbers: list[str] = []
    for part in bracket.split(","):
        bounds = _RANGE.fullmatch(part)
        if bounds is None:
            raise _bad(text, f"{part!r} in brackets must be a number or a range like 1-4")
        first, last = bounds.group(1), bounds.group(2) or bounds.group(1)
        if int(last) < int(first):
            raise _bad(text, f"the range {part!r} runs backwards")
        if len(numbers) + int(last) - int(first) >= MOST_HOSTS:
            raise _too_many(text)
        numbers += (str(number).zfill(len(first)) for number in range(int(first), int(last) + 1))
    return numbers


def _names(parts: Sequence[Sequence[str]]) -> list[str]:
    brackets = [place for place, part in enumerate(parts) if len(part) > 1]
    # The slowest first, as `product` takes them.
    order = [*reversed(brackets[:-1]), *brackets[-1:]]
    names: list[str] = []
    for chosen in product(*(parts[place] for place in order)):
        at = dict(zip(order, chosen, strict=True))
        names.append("".join(at.get(place, part[0]) for place, part in enumerate(parts)))
    return names


def _bad(text: str, fault: str) -> LauncherError:
    return LauncherError(
        f"the node list {_shortened(text)!r} cannot be used: {fault}. Write it as Slurm does, like "
        "node[01-03,7],login1; inside a job it is in SLURM_JOB_NODELIST."
    )


def _too_many(text: str) -> LauncherError:
    return LauncherError(
        f"the node list {_shortened(text)!r} names more than {MOST_HOSTS:,} hosts, the most there may be. "
        "Mind the ranges in its brackets."
    )


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"
