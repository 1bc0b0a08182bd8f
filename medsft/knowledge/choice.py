"""Choices that depend on the seed and on what is chosen for, not on what came before."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Chooser:
    """Chooses by hash: the same on every machine and Python version."""

    seed: int

    def __call__(self, items: Sequence[str], count: int, *purpose: str) -> list[str]:
        """`count` of the items, or all where there are fewer, in an order of their own for each purpose."""

        def rank(item: str) -> bytes:
            return hashlib.sha256("\x1f".join([str(self.seed), *purpose, item]).encode()).digest()

        return sorted(items, key=rank)[:count]
