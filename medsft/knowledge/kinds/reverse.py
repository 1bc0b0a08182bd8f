"""From a value back to the entities that have it: 哪些疾病会有恶心的症状？"""

from __future__ import annotations

from collections.abc import Iterator

from medsft.knowledge.choice import SeededChoice
from medsft.knowledge.graph import NAME_FIELD
from medsft.knowledge.kinds.neighbours import Neighbourhood
from medsft.knowledge.pair import Pair
from medsft.knowledge.templates import Templates
from medsft.knowledge.wording import MAX_NAMED, join

_MAX_JUDGED = 50
"""Of a value that more entities have, answers cannot be judged: all of them would have to be listed."""


def reversible(around: Neighbourhood, templates: Templates) -> list[tuple[str, str]]:
    """(relation, value) of all values that can be asked about from the other end."""
    return [key for key in around.holders if templates.of(key[0]).reverse_questions]


def reverse(
    subject: tuple[str, str], around: Neighbourhood, templates: Templates, choose: SeededChoice, count: int
) -> Iterator[Pair]:
    """A value of a relation in `count` of its reverse phrasings.

    The answer names so many entities as a sentence can hold, and the provenance no more than one further:
    the one that its 等 rests on. A value of half of a large graph would fill its lines otherwise.
    """
    relation, value = subject
    holders = around.holders[subject]
    entities = holders[: MAX_NAMED + 1]
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
            ((NAME_FIELD, tuple(entity.name for entity in holders)),) if len(holders) <= _MAX_JUDGED else (),
        )
