"""May I take it? What a medicine is for, and why a doctor decides."""

from __future__ import annotations

from collections.abc import Iterator

from medsft.knowledge.choice import SeededChoice
from medsft.knowledge.graph import Entity
from medsft.knowledge.kinds.neighbours import Neighbourhood
from medsft.knowledge.pair import Pair
from medsft.knowledge.relations import DRUGS
from medsft.knowledge.templates import Templates

_CAUTION = (("用药提醒", ("医生",)),)
"""The question names the medicine; what a right answer adds is who decides."""


def medication(
    entity: Entity, around: Neighbourhood, templates: Templates, choose: SeededChoice, count: int
) -> Iterator[Pair]:
    """`count` of the medicines of an entity; every answer holds a caution."""
    texts = templates.medication
    if texts is None:
        return
    for drug in choose(entity.values(DRUGS), count, entity.name, "medication"):
        (question,) = choose(texts.questions, 1, entity.name, drug, "question")
        (answer,) = choose(texts.answers, 1, entity.name, drug, "answer")
        words = {"entity": entity.name, "value": drug}
        yield Pair(
            question.format(**words),
            answer.format(**words),
            "medication",
            (entity.source,),
            (entity.name,),
            (DRUGS,),
            f"medication.questions.{texts.questions.index(question)}+answers.{texts.answers.index(answer)}",
            _CAUTION,
        )
