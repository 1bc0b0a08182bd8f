"""A patient's complaints -> likely diseases and the department to go to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from medsft.knowledge.choice import SeededChoice
from medsft.knowledge.graph import NAME_FIELD, Entity
from medsft.knowledge.kinds.neighbours import Neighbourhood
from medsft.knowledge.pair import Pair
from medsft.knowledge.relations import DEPARTMENT, SYMPTOMS
from medsft.knowledge.templates import Templates
from medsft.knowledge.wording import join

# Complaints that fit more diseases than this point to none of them.
_MAX_CANDIDATES = 3
# Complaints that each fit more than this are everybody's; looking through all who have them, for each entity,
# would take the square of the graph's size.
_MAX_HOLDERS = 500


def vignette(
    entity: Entity, around: Neighbourhood, templates: Templates, choose: SeededChoice, count: int
) -> Iterator[Pair]:
    """`count` sets of two or three symptoms of an entity; the answer names all entities that have them.

    Of several that choose the same set the first in the graph's order asks.
    """
    texts = templates.vignette
    if texts is None:
        return
    for key, some in _chosen(entity, choose, count).items():
        found = _candidates(some, around)
        departments = list(dict.fromkeys(name for other in found for name in other.values(DEPARTMENT)))
        earlier = itertools.takewhile(lambda other: other.name != entity.name, found)
        if not departments or any(_chooses(other, some, choose, count) for other in earlier):
            continue
        (question,) = choose(texts.questions, 1, key, "question")
        (answer,) = choose(texts.answers, 1, key, "answer")
        words = {
            "symptoms": join(some),
            "entities": join([other.name for other in found], "或"),
            "choices": join(departments, "或"),
        }
        names = tuple(other.name for other in found)
        yield Pair(
            question.format(**words),
            answer.format(**words),
            "vignette",
            tuple(other.source for other in found),
            names,
            (SYMPTOMS, DEPARTMENT),
            f"vignette.questions.{texts.questions.index(question)}+answers.{texts.answers.index(answer)}",
            ((NAME_FIELD, names), (DEPARTMENT, tuple(departments))),
        )


def _chosen(entity: Entity, choose: SeededChoice, count: int) -> dict[str, tuple[str, ...]]:
    symptoms = entity.values(SYMPTOMS)
    sets = {"\x1e".join(some): some for size in (2, 3) for some in itertools.combinations(symptoms, size)}
    return {key: sets[key] for key in choose(list(sets), count, entity.name, "vignette")}


def _chooses(entity: Entity, some: tuple[str, ...], choose: SeededChoice, count: int) -> bool:
    return any(set(other) == set(some) for other in _chosen(entity, choose, count).values())


def _candidates(some: tuple[str, ...], around: Neighbourhood) -> list[Entity]:
    """All entities that have the symptoms, in the order of the graph; none where they are too many."""
    rarest = min((around.holders[SYMPTOMS, symptom] for symptom in some), key=len)
    if len(rarest) > _MAX_HOLDERS:
        return []
    having = (other for other in rarest if set(some) <= set(other.values(SYMPTOMS)))
    found = list(itertools.islice(having, _MAX_CANDIDATES + 1))
    return found if len(found) <= _MAX_CANDIDATES else []
