"""Pairs made by several processes and written as a stream: beside the graph 9 bytes of each pair are held.

The bytes do not depend on the number of processes. No question stands in the file twice: of each a 64-bit
hash is kept (of 100 million questions one is lost to a like hash with a probability of 1 in 3,700), and where
there were repetitions, or more pairs than asked for, the file is shortened in place before it takes its name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medsft.data.workers import mapped
from medsft.data.writing import as_line, writing
from medsft.knowledge.choice import SeededChoice
from medsft.knowledge.pair import Pair
from medsft.knowledge.pairs import Portion

Make = Callable[[Portion], Iterable[Pair | None]]
"""The pairs of a portion; None for one that is left out."""

Progress = Callable[[int, int], None]
"""Called with the portions done and their number."""


@dataclass(frozen=True)
class Written:
    """Attributes:
    num_pairs: kind -> pairs in the file, in its order.
    num_left_out: pairs that `make` left out.
    keys: of the questions in the file, uint64 [pairs].
    """

    num_pairs: Mapping[str, int]
    num_left_out: int
    keys: np.ndarray


@dataclass(frozen=True)
class _Lines:
    """A portion as it goes to the file: `keys` of its questions as bytes, in the order of the lines."""

    text: bytes
    keys: bytes
    num_left_out: int


@dataclass(frozen=True)
class _LineMaker:
    make: Make
    made_by: Mapping[str, Any]
    choose: SeededChoice

    def __call__(self, portion: Portion) -> _Lines:
        lines, keys, num_left_out = [], [], 0
        for pair in self.make(portion):
            if pair is None:
                num_left_out += 1
                continue
            lines.append(as_line(pair.record_with_provenance(self.made_by)))
            keys.append(self.choose.rank(pair.question, "pairs"))
        return _Lines(b"".join(lines), np.array(keys, dtype=np.uint64).tobytes(), num_left_out)


class _NoPairs(Exception):
    """Nothing is to take the output's name."""


def write_pairs(
    output: Path,
    make: Make,
    portions: Sequence[Portion],
    seed: int,
    num_workers: int = 1,
    max_pairs: int | None = None,
    unlike: np.ndarray | None = None,
    progress: Progress | None = None,
) -> Written:
    """Writes the pairs of all portions in their order, the whole file or none of it.

    `max_pairs`: keep so many at most, chosen evenly by the seed. `unlike`: keys of questions that may not
    stand in the file. No file is made where there is no pair. Raises `UserError` where it cannot be written,
    and where a worker process is killed.
    """
    work = _LineMaker(make, {"seed": seed}, SeededChoice(seed))
    kinds = list(dict.fromkeys(portion.kind for portion in portions))
    all_keys, all_kinds, num_left_out = bytearray(), bytearray(), 0
    try:
        with writing(output) as temporary:
            with temporary.open("wb") as file:
                workers = min(num_workers, len(portions))
                for number, (portion, lines) in enumerate(mapped(work, portions, workers, "fork"), start=1):
                    file.write(lines.text)
                    all_keys += lines.keys
                    all_kinds += bytes([kinds.index(portion.kind)]) * (len(lines.keys) // 8)
                    num_left_out += lines.num_left_out
                    if progress is not None:
                        progress(number, len(portions))
            keys = np.frombuffer(all_keys, dtype=np.uint64)
            kind_of = np.frombuffer(all_kinds, dtype=np.uint8)
            stays = _stays(keys, max_pairs, unlike)
            if stays is not None:
                _shorten(temporary, stays)
                keys, kind_of = keys[stays], kind_of[stays]
            if not len(keys):
                raise _NoPairs
    except _NoPairs:
        pass
    counts = zip(kinds, np.bincount(kind_of, minlength=len(kinds)).tolist(), strict=True)
    return Written({kind: count for kind, count in counts if count}, num_left_out, keys)


def _stays(keys: np.ndarray, max_pairs: int | None, unlike: np.ndarray | None) -> np.ndarray | None:
    """Which lines stay, bool [pairs]: the first of equal ones, of these the smallest keys; None: all."""
    ordered = np.sort(keys)
    is_distinct = not np.any(ordered[1:] == ordered[:-1])
    is_apart = unlike is None or not np.isin(ordered, unlike).any()
    if is_distinct and is_apart and (max_pairs is None or len(keys) <= max_pairs):
        return None
    stays = np.ones(len(keys), dtype=bool)
    if not is_distinct:
        stays[:] = False
        stays[np.unique(keys, return_index=True)[1]] = True
    if unlike is not None:
        stays &= ~np.isin(keys, unlike)
    if max_pairs is not None and stays.sum() > max_pairs:
        stays &= keys <= np.partition(keys[stays], max_pairs - 1)[max_pairs - 1]
    return stays


def _shorten(path: Path, stays: np.ndarray) -> None:
    """Drops lines of a file in place: what is written never overtakes what was read."""
    with path.open("rb") as lines, path.open("r+b") as file:
        for line, does_stay in zip(lines, stays, strict=True):
            if does_stay:
                file.write(line)
        file.truncate()
