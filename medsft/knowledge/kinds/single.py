"""One relation of one entity: 偏头痛有哪些症状？"""

from __future__ import annotations

from collections.abc import Iterator

from medsft.knowledge.choice import SeededChoice
from medsft.knowledge.graph import Entity
from medsft.knowledge.kinds.neighbours import Neighbourhood
from medsft.knowledge.pair import Pair
from medsft.knowledge.templates import Templates
from medsft.knowledge.wording import joined


def single(
    entity: Entity, around: Neighbourhood, templates: Templates, choose: SeededChoice, count: int
) -> Iterator[Pair]:
    """Every fact in `count` phrasings, with one answer however it is asked."""
    yield from phrased(entity, templates, choose, slice(count))


def phrased(entity: Entity, templates: Templates, choose: SeededChoice, which: slice) -> Iterator[Pair]:
    """The facts of an entity in some of the phrasings, counted in the order in which they are chosen."""
    for relation, values in entity.facts:
        phrasings = templates.of(relation)
        words = {"entity": entity.name, "relation": relation}
        (answer,) = choose(phrasings.answers, 1, entity.name, relation, "answer")
        order = choose(phrasings.questions, len(phrasings.questions), entity.name, relation, "question")
        for question in order[which]:
            yield Pair(
                question.format(**words),
                answer.format(**words, **joined(values)),
                "single",
                (entity.source,),
                (entity.name,),
                (relation,),
                f"{templates.name_of(relation)}.questions.{phrasings.questions.index(question)}"
                f"+answers.{phrasings.answers.index(answer)}",
                ((relation, values),),
            )
