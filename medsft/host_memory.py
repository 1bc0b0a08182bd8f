"""Memory of this host that the processes of a run may use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass(frozen=True)
class _Version:
    """Files of a control group: its limit and its use, in bytes; droppable: page cache, in memory.stat."""

    limit: str
    use: str
    droppable: str


_V1 = _Version("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version("memory.max", "memory.current", "inactive_file")


def host_memory_bytes(root: Path = Path("/")) -> int:
    """What there is, or the least that a control group around this process is allowed of it.

    Slurm's `--mem` and containers' limits are such groups. `root`: where proc and sys stand.
    """
    return min([psutil.virtual_memory().total, *(limit for limit, _ in _groups(root))])


def free_memory_bytes(root: Path = Path("/")) -> int:
    """What a process can still take without anything having to end: available memory and free swap.

    Never more than the control groups around this process have left.
    """
    available = psutil.virtual_memory().available + psutil.swap_memory().free
    return min([available, *(max(0, limit - used) for limit, used in _groups(root))])


def _groups(root: Path) -> Iterator[tuple[int, int]]:
    """Limit and use of each group that has a limit, from this process's own outwards (cgroups(7))."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, version = root / "sys/fs/cgroup", _V2
        elif "memory" in controllers.split(","):
            base, version = root / "sys/fs/cgroup/memory", _V1
        else:
            continue
        own = base / group.lstrip("/")
        # In a container the group may be named as outside, and its files stand at the base.
        for folder in (own, *own.parents[: len(own.relative_to(base).parts)]):
            text = _text(folder / version.limit)
            if text.isdigit():  # else "max": no limit
                yield int(text), _used(folder, version)


def _used(folder: Path, version: _Version) -> int:
    stat = dict(line.split() for line in _text(folder / "memory.stat").splitlines())
    return int(_text(folder / version.use) or 0) - int(stat.get(version.droppable, 0))


def _text(path: Path) -> str:
    return path.read_text(encoding="ascii").strip() if path.is_file() else ""
