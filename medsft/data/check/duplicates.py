"""Examples that stand in a set already, exactly or nearly.

Near duplicates are found with MinHash (Broder 1997) over the character trigrams of the question, by
rensa's locality sensitive hashing, and then held against the texts themselves, as the hashes only
estimate. Both question and answer must be alike, and numbers and Latin words in the answers must be the same:
"1 型" and "2 型" are one character apart and not the same thing.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from medsft.data.check.fault import Fault
from medsft.data.records import Example
from medsft.data.template import bare_question

if TYPE_CHECKING:
    from rensa import RMinHash

_NUM_HASHES = 128
_MIN_NEAR = 20
"""Shorter questions are looked for exactly only: one character in ten makes another question."""

_KEEP = re.compile(r"[\W_]+")
_WORDS = re.compile(r"[0-9]+(?:\.[0-9]+)?|[A-Za-z]+")

NamesIn = Callable[[str], set[str]]
"""Names in a text that make two texts different, however alike: those of a graph's entities."""


def normalised(text: str) -> str:
    """Letters, signs and digits only, small letters."""
    return _KEEP.sub("", text).casefold()


def trigrams(text: str) -> frozenset[str]:
    """All runs of three characters of a normalised text; the text itself where it is shorter."""
    return frozenset(text[at : at + 3] for at in range(max(len(text) - 2, 1)))


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the trigrams of two normalised texts, 0 to 1."""
    first, second = trigrams(one), trigrams(other)
    return len(first & second) / len(first | second)


@dataclass(frozen=True)
class _Kept:
    question: str
    answer: str
    source: str


class Duplicates:
    """What has been seen so far. Memory grows with the number of examples: about 4 kB each with near ones.

    Args:
        threshold: similarity from which two questions (and their answers) are near duplicates; None: only
            exact ones are looked for, and 150 bytes are kept of each example.
        names_in: see `NamesIn`.
        questions_only: answers do not matter. For leakage: a question that a test asks may not be trained on.
    """

    def __init__(
        self, threshold: float | None, names_in: NamesIn | None = None, questions_only: bool = False
    ) -> None:
        self._threshold = threshold
        self._names_in = names_in or (lambda text: set())
        self._questions_only = questions_only
        self._exact: dict[bytes, str] = {}
        self._kept: list[_Kept] = []
        self._index = None
        if threshold is not None:
            from rensa import RMinHashLSH

            self._index = RMinHashLSH(threshold, _NUM_HASHES, _num_bands(threshold))

    def find(self, example: Example) -> Fault | None:
        """The earlier example that this one repeats. Does not remember this one: see `add`."""
        question, answer = self._parts(example)
        first = self._exact.get(_digest(question, answer))
        if first is not None:
            return Fault("exact duplicate", f"of {first}")
        if self._index is None or len(question) < _MIN_NEAR:
            return None
        for number in sorted(self._index.query(self._hashes(question))):
            kept = self._kept[number]
            if self._are_alike(question, answer, kept):
                share = similarity(question, kept.question)
                return Fault("near duplicate", f"{share:.0%} of {kept.source}: {kept.question[:40]}")
        return None

    def add(self, example: Example) -> None:
        """Remembers an example that is kept."""
        question, answer = self._parts(example)
        self._exact.setdefault(_digest(question, answer), example.source)
        if self._index is not None and len(question) >= _MIN_NEAR:
            self._index.insert(len(self._kept), self._hashes(question))
            self._kept.append(_Kept(question, answer, example.source))

    def _parts(self, example: Example) -> tuple[str, str]:
        rounds = [text for pair in example.history for text in pair]
        question = normalised("".join([*rounds, bare_question(example.query)]))
        return question, "" if self._questions_only else normalised(example.response)

    def _are_alike(self, question: str, answer: str, kept: _Kept) -> bool:
        assert self._threshold is not None
        if similarity(question, kept.question) < self._threshold:
            return False
        if self._names_in(question) != self._names_in(kept.question):
            return False
        if self._questions_only:
            return _WORDS.findall(question) == _WORDS.findall(kept.question)
        return (
            similarity(answer, kept.answer) >= self._threshold
            and _WORDS.findall(answer) == _WORDS.findall(kept.answer)
            and self._names_in(answer) == self._names_in(kept.answer)
        )

    @staticmethod
    def _hashes(text: str) -> RMinHash:
        from rensa import RMinHash

        hashes = RMinHash(_NUM_HASHES, seed=1)
        hashes.update(list(trigrams(text)))
        return hashes


def _num_bands(threshold: float) -> int:
    """The fewest bands in which 99 % of texts as alike as `threshold` meet.

    Two texts of similarity s share one of b bands of r hashes with probability 1 - (1 - s^r)^b (Leskovec,
    Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.2).
    """
    bands = 1
    while bands < _NUM_HASHES and (1 - threshold ** (_NUM_HASHES // bands)) ** bands > 0.01:
        bands *= 2
    return bands


def _digest(question: str, answer: str) -> bytes:
    return hashlib.blake2b(f"{question}\n{answer}".encode(), digest_size=16).digest()
