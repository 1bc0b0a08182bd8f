"""What is wrong with an example."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Attributes:
    reason: the kind, one of a few; the report counts by it.
    detail: what exactly.
    """

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return self.reason + (f" ({self.detail})" if self.detail else "")
