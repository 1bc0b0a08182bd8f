"""From a value back to the entities that have it: 哪些疾病会有恶心的症状？"""

from __future__ import annotations

from collections.abc import Iterator

from medsft.knowledge.choice import Chooser
from medsft.knowledge.graph import Entity, Graph
from medsft.knowledge.pair import Pair
from medsft.knowledge.templates import Templates
from medsft.knowledge.wording import join


def reverse(graph: Graph, templates: Templates, choose: Chooser, count: int) -> Iterator[Pair]:
    """Every value of a relation with reverse phrasings, in `count` of them."""
    holders: dict[tuple[str, str], list[Entity]] = {}
    for entity in graph.entities:
        for relation, values in entity.facts:
            if templates.of(relation).reverse_questions:
                for value in values:
                    holders.setdefault((relation, value), []).append(entity)
    for (relation, value), entities in holders.items():
        phrasings = templates.of(relation)
        words = {"relation": relation, "value": value}
        names = [entity.name for entity in entities]
        (answer,) = choose(phrasings.reverse_answers, 1, value, relation, "answer")
        for question in choose(phrasings.reverse_questions, count, value, relation, "question"):
            yield Pair(
                question.format(**words),
                answer.format(**words, entities=join(names)),
                "reverse",
                tuple(entity.source for entity in entities),
                tuple(names),
                (relation,),
                f"{templates.name_of(relation)}.reverse_questions.{phrasings.reverse_questions.index(question)}"
                f"+reverse_answers.{phrasings.reverse_answers.index(answer)}",
            )
