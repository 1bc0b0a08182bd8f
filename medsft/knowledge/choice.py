"""Choices that depend on the seed and on what is chosen for, not on what came before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SeededChoice:
    """Chooses by hash: the same on every machine and Python version."""

    seed: int

    def __call__(self, items: Sequence[str], count: int, *purpose: str) -> list[str]:
        """`count` of the items, or all where there are fewer, in an order of their own for each purpose."""
        if len(items) < 2:
            return list(items[:count])
        start = hashlib.sha256("\x1f".join([str(self.seed), *purpose, ""]).encode())

        def rank(item: str) -> bytes:
            digest = start.copy()
            digest.update(item.encode())
            return digest.digest()

        return sorted(items, key=rank)[:count]

    def rank(self, item: str, purpose: str) -> int:
        """64 bits by which the same choice can be made of items that are not held together: the smallest."""
        digest = hashlib.sha256("\x1f".join([str(self.seed), purpose, item]).encode()).digest()
        return int.from_bytes(digest[:8])
