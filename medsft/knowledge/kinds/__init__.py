"""Kinds of questions, each in a file of its own: (subject, around, templates, choose, count) -> pairs.

A subject is an entity or, for some kinds, a value. What is asked about one follows from the graph alone and
not from what was asked about others, so that subjects can be taken in any order by any number of processes.
`count`: pairs for each thing that the kind asks about (a fact, an entity, two entities); fewer where the
templates or the graph have fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from medsft.knowledge.choice import SeededChoice
from medsft.knowledge.kinds.comparison import comparison
from medsft.knowledge.kinds.medication import medication
from medsft.knowledge.kinds.neighbours import Neighbourhood
from medsft.knowledge.kinds.reverse import reverse, reversible
from medsft.knowledge.kinds.several import several
from medsft.knowledge.kinds.single import single
from medsft.knowledge.kinds.vignette import vignette
from medsft.knowledge.kinds.yes_no import yes_no
from medsft.knowledge.pair import Pair
from medsft.knowledge.templates import Templates


def _entities(around: Neighbourhood, templates: Templates) -> Sequence[Any]:
    return around.entities


def _entities_among_others(around: Neighbourhood, templates: Templates) -> Sequence[Any]:
    around.index()  # once, before processes share it
    return around.entities


@dataclass(frozen=True)
class Kind:
    """Attributes:
    ask: what can be asked about one subject.
    subjects: all of them, in their order.
    """

    ask: Callable[[Any, Neighbourhood, Templates, SeededChoice, int], Iterator[Pair]]
    subjects: Callable[[Neighbourhood, Templates], Sequence[Any]] = _entities


KINDS: dict[str, Kind] = {
    "single": Kind(single),
    "several": Kind(several),
    "reverse": Kind(reverse, reversible),
    "comparison": Kind(comparison, _entities_among_others),
    "yes_no": Kind(yes_no, _entities_among_others),
    "vignette": Kind(vignette, _entities_among_others),
    "medication": Kind(medication),
}
