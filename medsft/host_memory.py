"""Memory of this host that the processes of a run may use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil


def host_memory_bytes(root: Path = Path("/")) -> int:
    """What there is, or the least that a control group around this process is allowed of it.

    Slurm's `--mem` and containers' limits are such groups. `root`: where proc and sys stand.
    """
    return min([psutil.virtual_memory().total, *_limits(root)])


def free_memory_bytes(root: Path = Path("/")) -> int:
    """What a process can still take without anything having to end: what is available, and free swap.

    Never more than `host_memory_bytes`; what others use of a control group's limit is not known.
    """
    available = psutil.virtual_memory().available + psutil.swap_memory().free
    return min([available, *_limits(root)])


def _limits(root: Path) -> Iterator[int]:
    """Of each group from this process's own to the outermost (cgroups(7), both versions)."""
    groups = root / "proc/self/cgroup"
    for line in groups.read_text(encoding="utf-8").splitlines() if groups.is_file() else ():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            base, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            base, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        own = base / group.lstrip("/")
        # In a container the group may be named as outside, and its files stand at the base.
        for folder in (own, *own.parents[: len(own.relative_to(base).parts)]):
            if (folder / name).is_file():
                text = (folder / name).read_text(encoding="ascii").strip()
                if text.isdigit():  # else "max": no limit
                    yield int(text)
