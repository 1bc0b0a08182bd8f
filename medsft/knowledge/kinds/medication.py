"""May I take it? What a medicine is for, and why a doctor decides."""

from __future__ import annotations

from collections.abc import Iterator

from medsft.knowledge.choice import Chooser
from medsft.knowledge.graph import Graph
from medsft.knowledge.pair import Pair
from medsft.knowledge.relations import DRUGS
from medsft.knowledge.templates import Templates


def medication(graph: Graph, templates: Templates, choose: Chooser, count: int) -> Iterator[Pair]:
    """For each entity `count` of its medicines; every answer holds a caution."""
    texts = templates.medication
    if texts is None:
        return
    for entity in graph.entities:
        for drug in choose(dict(entity.facts).get(DRUGS, ()), count, entity.name, "medication"):
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
                f"medication.questions.{texts.questions.index(question)}"
                f"+answers.{texts.answers.index(answer)}",
            )
