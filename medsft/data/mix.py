"""Several instruction files -> one, by shares: general data replayed among the special, to fight forgetting.

Of a source with more examples than its share asks for, some are chosen by the seed; one with fewer is
repeated, but only where that is allowed. The sources are interleaved evenly. Two passes, one example at a
time; memory is at most 18 bytes for each example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, repeat
from pathlib import Path

import numpy as np

from medsft.data.convert import WRITERS, Record, as_record, iter_raw_files
from medsft.data.files import BadRecord, expand_files
from medsft.data.layouts import Columns
from medsft.data.records import Example
from medsft.data.writing import check_output, writing_lines
from medsft.errors import UserError


@dataclass(frozen=True)
class Source:
    """Attributes:
    name: file, folder or pattern.
    weight: its part of the mix, relative to the others.
    """

    name: str
    weight: float

    @classmethod
    def parse(cls, text: str) -> Source:
        """FILE=WEIGHT, or FILE alone with weight 1; `UserError` for a weight that is not above 0."""
        name, sign, weight = text.rpartition("=")
        if not sign:
            return cls(text, 1.0)
        try:
            value = float(weight)
        except ValueError:
            value = -1.0
        if not 0 < value < float("inf") or not name:
            raise UserError(f"The source {text!r} must be FILE=WEIGHT with a weight above 0, as a.jsonl=0.8.")
        return cls(name, value)


@dataclass(frozen=True)
class Mix:
    """Source -> (examples it has, examples that were written)."""

    counts: Mapping[str, tuple[int, int]]
    num_bad: int

    def describe(self) -> str:
        """One line for people."""
        total = sum(written for _, written in self.counts.values())
        parts = [
            f"{written:,} ({written / total:.1%}) from {name} with {there:,}"
            for name, (there, written) in self.counts.items()
        ]
        bad = f"; {self.num_bad:,} unusable records left out" if self.num_bad else ""
        return f"{total:,} examples: {', '.join(parts)}{bad}"


def shares_of(counts: Sequence[int], weights: Sequence[float], total: int | None) -> list[int]:
    """Examples to take of each source, by largest remainders.

    `total` None: as many as there can be when the first source is taken whole, once.
    """
    whole = sum(weights)
    size = total if total is not None else round(counts[0] * whole / weights[0])
    exact = [size * weight / whole for weight in weights]
    wanted = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda at: (wanted[at] - exact[at], at))
    for at in by_remainder[: size - sum(wanted)]:
        wanted[at] += 1
    return wanted


def mix_files(
    sources: Sequence[Source],
    output: Path,
    total: int | None = None,
    seed: int = 0,
    repeats: bool = False,
    layout: str = "chatglm",
    columns: Columns | None = None,
) -> Mix:
    """Writes the mix in one layout.

    Raises `UserError` for sources that cannot be read or hold too few examples while `repeats` is false, for
    an example with history where the layout has no place for it, and for an output that cannot be written.
    """
    if layout not in WRITERS:
        raise UserError(f"The layout {layout!r} is not known; give one of {', '.join(WRITERS)}.")
    if len(sources) < 2 or len({source.name for source in sources}) < len(sources):
        raise UserError("A mix needs two sources or more, each named once: --source a.jsonl=0.8 …")
    if total is not None and total < 1:
        raise UserError(f"The mix is to hold {total} examples; it must be at least 1.")
    paths = [expand_files([source.name]) for source in sources]
    check_output(output, list(chain(*paths)))
    read = [list(_usable(files, columns)) for files in paths]
    counts = [sum(usable) for usable in read]
    for source, count in zip(sources, counts, strict=True):
        if not count:
            raise UserError(f"The source {source.name} holds no usable example.")
    wanted = shares_of(counts, [source.weight for source in sources], total)
    for source, count, number in zip(sources, counts, wanted, strict=True):
        if number > count and not repeats:
            raise UserError(
                f"The source {source.name} has {count:,} examples, and its share is {number:,}; allow "
                "repeats, lower its weight or the total."
            )
    streams = [
        _chosen(files, columns, count, number, f"{seed}\x1f{source.name}", layout)
        for files, source, count, number in zip(paths, sources, counts, wanted, strict=True)
    ]
    with writing_lines(output) as write:
        for record in _interleaved(streams, wanted):
            write(record)
    names = [source.name for source in sources]
    pairs = zip(counts, wanted, strict=True)
    num_bad = sum(len(usable) - sum(usable) for usable in read)
    return Mix(dict(zip(names, pairs, strict=True)), num_bad)


def _usable(files: Sequence[Path], columns: Columns | None) -> Iterator[bool]:
    return (isinstance(example, Example) for _, example in iter_raw_files(files, columns))


def _chosen(
    files: Sequence[Path], columns: Columns | None, count: int, wanted: int, key: str, layout: str
) -> Iterator[Record]:
    """`wanted` records of a source, in its order; whole passes first, then a chosen part."""
    passes, rest = divmod(wanted, count)
    words = np.frombuffer(hashlib.sha256(key.encode()).digest(), dtype="<u4").astype(np.uint32)
    is_chosen = np.zeros(count, dtype=bool)
    is_chosen[np.random.RandomState(words).permutation(count)[:rest]] = True
    everything = np.ones(count, dtype=bool)
    for mask in chain(repeat(everything, passes), [is_chosen] if rest else []):
        usable = (
            (raw, example) for raw, example in iter_raw_files(files, columns) if isinstance(example, Example)
        )
        for (raw, example), is_wanted in zip(usable, mask, strict=True):
            if is_wanted:
                try:
                    yield as_record(example, layout, raw)
                except BadRecord as fault:
                    raise UserError(
                        f"{example.source} has earlier rounds, for which the layout {layout} has no place; "
                        "give another layout."
                    ) from fault


def _interleaved(streams: Sequence[Iterator[Record]], wanted: Sequence[int]) -> Iterator[Record]:
    """At every place the source that is furthest behind its share."""
    done = [0] * len(streams)
    for _ in range(sum(wanted)):
        at = min(
            (number for number in range(len(streams)) if done[number] < wanted[number]),
            key=lambda number: ((done[number] + 1) / wanted[number], number),
        )
        done[at] += 1
        yield next(streams[at])
