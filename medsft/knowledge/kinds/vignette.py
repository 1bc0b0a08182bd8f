"""A patient's complaints -> likely diseases and the department to go to."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from medsft.knowledge.choice import Chooser
from medsft.knowledge.graph import Graph
from medsft.knowledge.kinds.neighbours import Neighbourhood
from medsft.knowledge.pair import Pair
from medsft.knowledge.relations import DEPARTMENT, SYMPTOMS
from medsft.knowledge.templates import Templates
from medsft.knowledge.wording import join

# Complaints that fit more diseases than this point to none of them.
_MAX_CANDIDATES = 3


def vignette(graph: Graph, templates: Templates, choose: Chooser, count: int) -> Iterator[Pair]:
    """For each entity `count` sets of two or three of its symptoms; the answer names all that have them."""
    texts = templates.vignette
    if texts is None:
        return
    neighbourhood = Neighbourhood(graph)
    done: set[frozenset[str]] = set()
    for entity in graph.entities:
        symptoms = neighbourhood.facts[entity.name].get(SYMPTOMS, ())
        sets = {"\x1e".join(some): some for size in (2, 3) for some in itertools.combinations(symptoms, size)}
        for key in choose(list(sets), count, entity.name, "vignette"):
            some = sets[key]
            rarest = min((neighbourhood.holders[SYMPTOMS, symptom] for symptom in some), key=len)
            found = [other for other in rarest if set(some) <= set(neighbourhood.facts[other.name][SYMPTOMS])]
            departments = [
                name for other in found for name in neighbourhood.facts[other.name].get(DEPARTMENT, ())
            ]
            if len(found) > _MAX_CANDIDATES or not departments or frozenset(some) in done:
                continue
            done.add(frozenset(some))
            (question,) = choose(texts.questions, 1, key, "question")
            (answer,) = choose(texts.answers, 1, key, "answer")
            words = {
                "symptoms": join(some),
                "entities": join([other.name for other in found], "或"),
                "choices": join(list(dict.fromkeys(departments)), "或"),
            }
            yield Pair(
                question.format(**words),
                answer.format(**words),
                "vignette",
                tuple(other.source for other in found),
                tuple(other.name for other in found),
                (SYMPTOMS, DEPARTMENT),
                f"vignette.questions.{texts.questions.index(question)}+answers.{texts.answers.index(answer)}",
            )
