"""Yes or no: 偏头痛会出现畏光吗？ The hard ones ask for what a disease much alike has.

A graph does not hold all that is true, so that something it lacks is no proof of "no". Only symptoms are
denied, and only those that `distinctive` lists: no rule about graphs alone was found that never denies what
is true. Besides, the disease that the symptom is taken from shares another symptom, is not related, is
treated elsewhere, sits in another body part (both known), and is the only one in the graph to have it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from medsft.knowledge.choice import SeededChoice
from medsft.knowledge.distinctive import DISTINCTIVE_SYMPTOMS
from medsft.knowledge.graph import Entity
from medsft.knowledge.kinds.neighbours import Neighbourhood
from medsft.knowledge.pair import Pair
from medsft.knowledge.relations import BODY_PART, DEPARTMENT, SYMPTOMS
from medsft.knowledge.templates import RelationTemplates, Templates
from medsft.knowledge.verdict import NO, VERDICT, YES
from medsft.knowledge.wording import joined


def yes_no(
    entity: Entity, around: Neighbourhood, templates: Templates, choose: SeededChoice, count: int
) -> Iterator[Pair]:
    """At most `count` questions with yes, and as many with no where there is a hard one."""
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
        for value, donor in _negatives(entity, relation, around)
    }
    for key in choose(list(foreign), count, entity.name, "no"):
        yield _asked(entity, *foreign[key], templates, choose)


def _negatives(entity: Entity, relation: str, around: Neighbourhood) -> Iterator[tuple[str, Entity]]:
    if relation != SYMPTOMS:
        return
    known = [value for _, values in entity.facts for value in values] + [entity.name]
    related = {other.name for other in around.related(entity)}
    for donor in around.alike(entity):
        is_elsewhere = all(
            _are_apart(entity.values(where), donor.values(where)) for where in (BODY_PART, DEPARTMENT)
        )
        if donor.name in related or not is_elsewhere:
            continue
        for value in donor.values(relation):
            is_only_there = len(around.holders[relation, value]) == 1
            # A value that is part of one of its own, or the other way round, may be true under another name.
            if value in DISTINCTIVE_SYMPTOMS and is_only_there and _are_apart([value], known):
                yield value, donor


def _are_apart(some: Sequence[str], others: Sequence[str]) -> bool:
    """Whether both are known and no name of one is, or is part of, a name of the other."""
    return bool(some and others) and not any(one in other or other in one for one in some for other in others)


def _asked(
    entity: Entity,
    relation: str,
    value: str,
    donor: Entity | None,
    templates: Templates,
    choose: SeededChoice,
) -> Pair:
    texts: RelationTemplates = templates.of(relation)
    answers, field = (texts.yes_answers, "yes_answers") if donor is None else (texts.no_answers, "no_answers")
    (question,) = choose(texts.yes_no_questions, 1, entity.name, relation, value, "question")
    (answer,) = choose(answers, 1, entity.name, relation, value, "answer")
    words = {"entity": entity.name, "value": value, **joined(entity.values(relation))}
    return Pair(
        question.format(**words),
        answer.format(**words),
        "yes_no",
        (entity.source, *([donor.source] if donor else [])),
        (entity.name, *([donor.name] if donor else [])),
        (relation,),
        f"{relation}.yes_no_questions.{texts.yes_no_questions.index(question)}+{field}.{answers.index(answer)}",
        ((VERDICT, (YES if donor is None else NO,)),),
    )
