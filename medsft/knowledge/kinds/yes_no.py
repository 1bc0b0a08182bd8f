"""Yes or no: 偏头痛会出现畏光吗？ The hard ones ask for what a disease much alike has.

A graph does not hold all that is true, so that something it lacks is no proof of "no". A negative is taken
only from a disease that shares a symptom, is not related, is treated elsewhere, and is the only one in the
graph that has the value.
"""

from __future__ import annotations

from collections.abc import Iterator

from medsft.knowledge.choice import Chooser
from medsft.knowledge.graph import Entity, Graph
from medsft.knowledge.kinds.neighbours import Neighbourhood
from medsft.knowledge.pair import Pair
from medsft.knowledge.relations import DEPARTMENT
from medsft.knowledge.templates import RelationTemplates, Templates
from medsft.knowledge.wording import joined


def yes_no(graph: Graph, templates: Templates, choose: Chooser, count: int) -> Iterator[Pair]:
    """For each entity at most `count` questions with yes, and as many with no where there is a hard one."""
    neighbourhood = Neighbourhood(graph)
    for entity in graph.entities:
        own = {
            f"{relation}\x1e{value}": (relation, value)
            for relation, values in entity.facts
            if templates.of(relation).yes_no_questions
            for value in values
        }
        for key in choose(list(own), count, entity.name, "yes"):
            yield _asked(entity, *own[key], None, templates, choose)
        foreign = {
            f"{relation}\x1e{value}": (relation, value, donor)
            for relation, _ in entity.facts
            if templates.of(relation).yes_no_questions
            for value, donor in _negatives(entity, relation, neighbourhood)
        }
        for key in choose(list(foreign), count, entity.name, "no"):
            yield _asked(entity, *foreign[key], templates, choose)


def _negatives(entity: Entity, relation: str, neighbourhood: Neighbourhood) -> Iterator[tuple[str, Entity]]:
    own = neighbourhood.facts[entity.name]
    everything = [value for values in own.values() for value in values] + [entity.name]
    related = {other.name for other in neighbourhood.related(entity)}
    for donor in neighbourhood.alike(entity):
        facts = neighbourhood.facts[donor.name]
        if donor.name in related or set(facts.get(DEPARTMENT, ())) & set(own.get(DEPARTMENT, ())):
            continue
        for value in facts.get(relation, ()):
            is_only_there = len(neighbourhood.holders[relation, value]) == 1 or relation == DEPARTMENT
            # A value that is part of one of its own, or the other way round, may be true under another name.
            if is_only_there and not any(value in known or known in value for known in everything):
                yield value, donor


def _asked(
    entity: Entity, relation: str, value: str, donor: Entity | None, templates: Templates, choose: Chooser
) -> Pair:
    texts: RelationTemplates = templates.of(relation)
    answers, field = (texts.yes_answers, "yes_answers") if donor is None else (texts.no_answers, "no_answers")
    (question,) = choose(texts.yes_no_questions, 1, entity.name, relation, value, "question")
    (answer,) = choose(answers, 1, entity.name, relation, value, "answer")
    words = {"entity": entity.name, "value": value, **joined(dict(entity.facts)[relation])}
    return Pair(
        question.format(**words),
        answer.format(**words),
        "yes_no",
        (entity.source, *([donor.source] if donor else [])),
        (entity.name, *([donor.name] if donor else [])),
        (relation,),
        f"{relation}.yes_no_questions.{texts.yes_no_questions.index(question)}+{field}.{answers.index(answer)}",
    )
