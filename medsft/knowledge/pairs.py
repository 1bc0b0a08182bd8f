"""Facts -> question-answer pairs by templates: pure, and the same for the same graph and seed.

A choice depends on the seed and on what is chosen for, not on what came before: a new entity leaves the
single and several pairs of the others as they are, and any process can make the pairs of any entity.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from medsft.errors import UserError
from medsft.knowledge.choice import SeededChoice
from medsft.knowledge.graph import Graph
from medsft.knowledge.kinds import KINDS as _KINDS
from medsft.knowledge.kinds.neighbours import Neighbourhood
from medsft.knowledge.pair import Pair
from medsft.knowledge.templates import Templates

__all__ = ["KINDS", "Pair", "PairRecipe", "Portion", "make_pairs"]

KINDS = tuple(_KINDS)

PORTION_SUBJECTS = 250
"""Subjects whose pairs are made at a time: some megabytes of text."""


@dataclass(frozen=True)
class Portion:
    """The subjects `start` to `stop` of a kind: what one process makes at a time."""

    kind: str
    start: int
    stop: int


@dataclass(frozen=True)
class PairRecipe:
    """What decides about pairs.

    Attributes:
        graph: whose facts are asked.
        templates: how.
        seed: of all choices.
        kinds: kinds of questions, of KINDS.
        num_phrasings: questions for each fact, fewer where the templates have fewer.

    Raises `UserError` for unknown kinds and for no phrasing.
    """

    graph: Graph
    templates: Templates
    seed: int = 0
    kinds: Sequence[str] = KINDS
    num_phrasings: int = 2

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise UserError(
                f"The kinds of pairs are {', '.join(KINDS)}; {', '.join(unknown) or 'none'} was asked for."
            )
        if self.num_phrasings < 1:
            raise UserError(f"The number of phrasings is {self.num_phrasings}; it must be 1 or more.")

    @cached_property
    def around(self) -> Neighbourhood:
        """Who shares what in the graph."""
        return Neighbourhood(self.graph)

    @cached_property
    def choose(self) -> SeededChoice:
        """The choices of the seed."""
        return SeededChoice(self.seed)

    @cached_property
    def subjects(self) -> dict[str, Sequence[Any]]:
        """Kind -> what it asks about."""
        return {
            name: kind.subjects(self.around, self.templates)
            for name, kind in _KINDS.items()
            if name in self.kinds
        }

    @property
    def portions(self) -> Iterator[Portion]:
        """All of it: kind by kind in the order of the graph."""
        for kind, subjects in self.subjects.items():
            for start in range(0, len(subjects), PORTION_SUBJECTS):
                yield Portion(kind, start, min(start + PORTION_SUBJECTS, len(subjects)))

    def pairs(self, portion: Portion) -> Iterator[Pair]:
        """The pairs of a portion; a question may come again elsewhere."""
        ask = _KINDS[portion.kind].ask
        for subject in self.subjects[portion.kind][portion.start : portion.stop]:
            yield from ask(subject, self.around, self.templates, self.choose, self.num_phrasings)


def make_pairs(
    graph: Graph,
    templates: Templates,
    seed: int,
    kinds: Sequence[str] = KINDS,
    num_phrasings: int = 2,
) -> tuple[Pair, ...]:
    """All pairs of a graph that is small enough to hold them; no question comes twice, the first stays.

    Arguments as of `PairRecipe`. The same that `PairFile` writes.
    """
    recipe = PairRecipe(graph, templates, seed, kinds, num_phrasings)
    distinct: dict[str, Pair] = {}
    for portion in recipe.portions:
        for pair in recipe.pairs(portion):
            distinct.setdefault(pair.question, pair)
    return tuple(distinct.values())
