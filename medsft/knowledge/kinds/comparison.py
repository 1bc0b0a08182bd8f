"""Two diseases that are easily confused, told apart: 偏头痛和紧张型头痛有什么不同？"""

from __future__ import annotations

from collections.abc import Iterator

from medsft.knowledge.choice import SeededChoice
from medsft.knowledge.graph import Entity
from medsft.knowledge.kinds.neighbours import Neighbourhood
from medsft.knowledge.pair import Pair
from medsft.knowledge.relations import DEPARTMENT, SYMPTOMS
from medsft.knowledge.templates import Comparison, Templates
from medsft.knowledge.wording import join


def comparison(
    entity: Entity, around: Neighbourhood, templates: Templates, choose: SeededChoice, count: int
) -> Iterator[Pair]:
    """An entity with `count` others that are related to it or share a symptom; each couple once.

    Of two that choose each other the first in the graph's order asks.
    """
    if templates.comparison is None:
        return
    for other in _chosen(entity, around, choose, count):
        is_first = around.place(entity) < around.place(other)
        if is_first or entity not in _chosen(other, around, choose, count):
            yield _compared(entity, other, templates.comparison, choose)


def _chosen(entity: Entity, around: Neighbourhood, choose: SeededChoice, count: int) -> list[Entity]:
    near = {
        other.name: other
        for other in [*around.related(entity), *around.alike(entity)]
        if _can_compare(entity, other)
    }
    return [near[name] for name in choose(list(near), count, entity.name, "comparison")]


def _can_compare(one: Entity, other: Entity) -> bool:
    first, second = set(one.values(SYMPTOMS)), set(other.values(SYMPTOMS))
    are_treated = bool(one.values(DEPARTMENT) and other.values(DEPARTMENT))
    return are_treated and bool(first - second and second - first)


def _compared(first: Entity, second: Entity, texts: Comparison, choose: SeededChoice) -> Pair:
    symptoms, other_symptoms = first.values(SYMPTOMS), second.values(SYMPTOMS)
    departments, other_departments = first.values(DEPARTMENT), second.values(DEPARTMENT)
    shared = [symptom for symptom in symptoms if symptom in other_symptoms]
    words = {
        "first": first.name,
        "second": second.name,
        "shared": join(shared),
        "first_values": join([symptom for symptom in symptoms if symptom not in shared]),
        "second_values": join([symptom for symptom in other_symptoms if symptom not in shared]),
        "first_choices": join(departments, "或"),
        "second_choices": join(other_departments, "或"),
    }
    is_same = set(departments) == set(other_departments)
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
        tuple(
            (relation, tuple(dict.fromkeys(first.values(relation) + second.values(relation))))
            for relation in (SYMPTOMS, DEPARTMENT)
        ),
    )
