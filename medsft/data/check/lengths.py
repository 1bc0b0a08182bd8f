"""How long questions and answers are, and which are far from all others."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

_SPREADS = 6.0
"""So many spreads from the median is an outlier; in a normal distribution one of 500 million."""

_MIN_SPREAD = 0.25
"""Of the logarithm: sets whose texts all have nearly the same length are no reason to reject the rest."""

_MIN_LIMIT = 256
"""No text up to this is too long."""


@dataclass(frozen=True)
class Bounds:
    """Longest text that is no outlier, characters."""

    question: int
    answer: int


def upper_bound(lengths: Counter[int]) -> int:
    """Median plus six spreads (median absolute deviation) of the logarithms, characters, 256 at least."""
    logs = Counter({math.log(max(length, 1)): count for length, count in lengths.items()})
    middle = _median(logs)
    deviations: Counter[float] = Counter()
    for value, count in logs.items():
        deviations[abs(value - middle)] += count
    spread = max(1.4826 * _median(deviations), _MIN_SPREAD)
    return max(round(math.exp(middle + _SPREADS * spread)), _MIN_LIMIT)


def _median(counts: Counter[float]) -> float:
    half = (counts.total() + 1) / 2
    seen = 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= half:
            return value
    raise ValueError("no values")


def histogram(lengths: Counter[int], num_bins: int = 12) -> list[tuple[str, int]]:
    """(range of characters, texts in it): bins of equal width up to the 99th percentile, then the rest."""
    if not lengths:
        return []
    total, seen, top = lengths.total(), 0, max(lengths)
    for length in sorted(lengths):
        seen += lengths[length]
        if seen >= 0.99 * total:
            top = length
            break
    width = max(math.ceil((top + 1) / num_bins), 1)
    counts = [0] * (num_bins + 1)
    for length, count in lengths.items():
        counts[min(length // width, num_bins)] += count
    labels = [f"{at * width}–{(at + 1) * width - 1}" for at in range(num_bins)] + [f"≥ {num_bins * width}"]
    return [(label, count) for label, count in zip(labels, counts, strict=True)]
