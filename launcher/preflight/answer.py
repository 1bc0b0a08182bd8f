"""What a host answered, what the run needs of it, and where a value is worth a word."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.job import Node
from launcher.preflight.findings import RED, Finding

_GIB = 2**30


@dataclass(frozen=True)
class Limits:
    """Where a value turns yellow or red, each for the reason given."""

    clock_skew_s: float = 5.0
    """Yellow beyond it: logs of several hosts cannot be read side by side. Steps are ordered by number, never
    by time, so no skew is red."""
    spare_open_files: int = 256
    """A rank holds about two connections to each other rank (gloo's full mesh, the store), and so many files
    besides. Red below that; yellow below twice as many."""
    min_shm_bytes: int = 64 * 2**20
    """Free bytes of /dev/shm; NCCL and gloo keep buffers of a host's ranks there. Yellow below it."""
    min_tmp_bytes: int = 256 * 2**20
    """Free bytes of /tmp; compiled kernels and the launcher's own files go there. Yellow below it."""


@dataclass(frozen=True)
class Needs:
    """What the run takes on each host, in bytes; None where nobody has said, and it is only shown.

    use_gpus None: if any host has one, or gpu_memory_bytes is given. gpu_memory_bytes is for each GPU;
    disk_bytes where the output goes.
    """

    memory_bytes: int | None = None
    disk_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    use_gpus: bool | None = None


@dataclass(frozen=True)
class Answer:
    """A host's probe, and when the head asked and had the answer (seconds since 1970, the head's clock)."""

    node: Node
    probe: Mapping[str, Any]
    asked_s: float
    answered_s: float


def failed_part(answer: Answer, check: str, part: str | None = None) -> Finding | None:
    """A red finding when the host could not say; None when it could."""
    facts = answer.probe.get(part or check) or {}
    if isinstance(facts, Mapping) and "error" in facts:
        return Finding(
            answer.node.host,
            check,
            RED,
            f"could not be found out: {facts['error']}",
            f"Mend that on the host, or leave it unchecked with --skip {check}.",
        )
    return None


def gib(num_bytes: int) -> str:
    """ "1.5 GiB"."""
    return f"{num_bytes / _GIB:.1f} GiB"
