"""Facts -> question-answer pairs by templates: pure, and the same for the same graph and seed.

A choice depends on the seed and on what is chosen for, not on what came before: a new entity leaves the
single and several pairs of the others as they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from medsft.errors import UserError
from medsft.knowledge.choice import Chooser
from medsft.knowledge.graph import Graph
from medsft.knowledge.kinds import KINDS as _KINDS
from medsft.knowledge.kinds.single import phrased
from medsft.knowledge.pair import Pair
from medsft.knowledge.templates import Templates

__all__ = ["KINDS", "Pair", "make_pairs", "recall_pairs"]

KINDS = tuple(_KINDS)


def make_pairs(
    graph: Graph,
    templates: Templates,
    seed: int,
    kinds: Sequence[str] = KINDS,
    num_phrasings: int = 2,
    max_pairs: int | None = None,
) -> tuple[Pair, ...]:
    """Pairs of the kinds asked for, kind by kind in the order of the graph; no question comes twice.

    `num_phrasings`: questions for each fact, fewer where the templates have fewer. `max_pairs`: keep so
    many at most, chosen evenly by the seed. Raises `UserError` for unknown kinds and numbers below 1.
    """
    check_kinds(kinds)
    if num_phrasings < 1 or (max_pairs is not None and max_pairs < 1):
        raise UserError(
            f"The number of phrasings ({num_phrasings}) and of pairs ({max_pairs}) must be 1 or more."
        )
    choose = Chooser(seed)
    distinct: dict[str, Pair] = {}
    for name in _KINDS:
        if name in kinds:
            for pair in _KINDS[name](graph, templates, choose, num_phrasings):
                distinct.setdefault(pair.question, pair)
    pairs = tuple(distinct.values())
    if max_pairs is not None and len(pairs) > max_pairs:
        kept = set(choose(list(distinct), max_pairs, "pairs"))
        pairs = tuple(pair for pair in pairs if pair.question in kept)
    return pairs


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises `UserError` for kinds that there are not, and for none."""
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UserError(
            f"The kinds of pairs are {', '.join(KINDS)}; {', '.join(unknown) or 'none'} was asked for."
        )


def recall_pairs(graph: Graph, templates: Templates, seed: int, num_phrasings: int) -> tuple[Pair, ...]:
    """Every fact in the one phrasing that follows those `make_pairs` takes: the same answer, asked anew.

    A fact whose phrasings are all taken has none.
    """
    choose = Chooser(seed)
    which = slice(num_phrasings, num_phrasings + 1)
    pairs = [pair for entity in graph.entities for pair in phrased(entity, templates, choose, which)]
    return tuple({pair.question: pair for pair in pairs}.values())
