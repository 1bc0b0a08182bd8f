"""Two diseases that are easily confused, told apart: 偏头痛和紧张型头痛有什么不同？"""

from __future__ import annotations

from collections.abc import Iterator

from medsft.knowledge.choice import Chooser
from medsft.knowledge.graph import Entity, Graph
from medsft.knowledge.kinds.neighbours import Neighbourhood
from medsft.knowledge.pair import Pair
from medsft.knowledge.relations import DEPARTMENT, SYMPTOMS
from medsft.knowledge.templates import Comparison, Templates
from medsft.knowledge.wording import join


def comparison(graph: Graph, templates: Templates, choose: Chooser, count: int) -> Iterator[Pair]:
    """For each entity `count` others that are related to it or share a symptom; each couple once."""
    if templates.comparison is None:
        return
    neighbourhood = Neighbourhood(graph)
    done: set[frozenset[str]] = set()
    for entity in graph.entities:
        near = {
            other.name: other
            for other in [*neighbourhood.related(entity), *neighbourhood.alike(entity)]
            if _can_compare(neighbourhood, entity, other)
        }
        for name in choose(list(near), count, entity.name, "comparison"):
            couple = frozenset((entity.name, name))
            if couple not in done:
                done.add(couple)
                yield _compared(entity, near[name], neighbourhood, templates.comparison, choose)


def _can_compare(neighbourhood: Neighbourhood, *entities: Entity) -> bool:
    facts = [neighbourhood.facts[entity.name] for entity in entities]
    if not all({SYMPTOMS, DEPARTMENT} <= known.keys() for known in facts):
        return False
    symptoms = [set(known[SYMPTOMS]) for known in facts]
    return bool(symptoms[0] - symptoms[1] and symptoms[1] - symptoms[0])


def _compared(
    first: Entity, second: Entity, neighbourhood: Neighbourhood, texts: Comparison, choose: Chooser
) -> Pair:
    one, other = neighbourhood.facts[first.name], neighbourhood.facts[second.name]
    shared = [symptom for symptom in one[SYMPTOMS] if symptom in other[SYMPTOMS]]
    words = {
        "first": first.name,
        "second": second.name,
        "shared": join(shared),
        "first_values": join([symptom for symptom in one[SYMPTOMS] if symptom not in shared]),
        "second_values": join([symptom for symptom in other[SYMPTOMS] if symptom not in shared]),
        "first_choices": join(one[DEPARTMENT], "或"),
        "second_choices": join(other[DEPARTMENT], "或"),
    }
    is_same = set(one[DEPARTMENT]) == set(other[DEPARTMENT])
    parts = [
        *([texts.shared] if shared else []),
        texts.differences if shared else texts.differences_only,
        texts.same_department if is_same else texts.departments,
    ]
    (question,) = choose(texts.questions, 1, first.name, second.name, "comparison")
    return Pair(
        question.format(**words),
        "；".join(part.format(**words) for part in parts) + "。",
        "comparison",
        (first.source, second.source),
        (first.name, second.name),
        (SYMPTOMS, DEPARTMENT),
        f"comparison.questions.{texts.questions.index(question)}",
    )
