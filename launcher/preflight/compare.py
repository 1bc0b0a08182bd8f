"""From what hosts say about themselves to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from launcher.preflight import alike, enough, shared
from launcher.preflight.answer import Answer, Limits, Needs
from launcher.preflight.findings import Finding


def compare(answers: Sequence[Answer], needs: Needs, limits: Limits, skip: frozenset[str]) -> list[Finding]:
    """Findings for every host that answered; the first one is the master. Nothing to check: no finding.

    Values that must be alike are held against the one most hosts have (a tie: the one that comes first).
    """
    if not answers:
        return []
    judges: dict[str, Callable[[], Iterator[Finding]]] = {
        "python": lambda: alike.pythons(answers),
        "packages": lambda: alike.packages(answers),
        "commit": lambda: alike.commits(answers),
        "data": lambda: alike.data(answers),
        "gpus": lambda: enough.gpus(answers, needs),
        "driver": lambda: alike.drivers(answers),
        "cores": lambda: enough.cores(answers),
        "memory": lambda: enough.memories(answers, needs),
        "disk": lambda: shared.disks(answers, needs, limits),
        "output": lambda: shared.outputs(answers),
        "clock": lambda: shared.clocks(answers, limits),
        "files": lambda: enough.open_files(answers, limits),
        "port": lambda: enough.ports(answers),
    }
    return [finding for name, judge in judges.items() if name not in skip for finding in judge()]
