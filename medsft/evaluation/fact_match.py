"""Answers held against the facts that a set from a knowledge graph brings with its questions.

`medsft data` writes the values that are true of a question's entity beside each pair (`provenance.facts`). An
answer names those of them that stand in it, and it names wrong ones: values that the set knows for the same
relation, but not for this entity. Its score is the F-score of the two (2 × right / (asked + named)), so that
neither silence nor naming everything pays. Asked are the values that the reference answer names; what the
question says itself is neither right nor wrong. Of two entities that are compared it is not told for which of
them a value was named. A question for yes or no is judged by how the answer begins, all or nothing. Words are
matched, not meanings: a value that the answer denies (不会发热) is named all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from medsft.evaluation.match import plain
from medsft.evaluation.question_set import Question
from medsft.knowledge.mentions import Names
from medsft.knowledge.verdict import VERDICT, verdict


class FactMatch:
    """Scores answers against the facts of one set of questions."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self._values: dict[str, set[str]] = {}
        for question in questions:
            for relation, values in question.facts.items():
                self._values.setdefault(relation, set()).update(map(plain, values))
        self._names: dict[tuple[str, ...], Names] = {}

    def score(self, question: Question, answer: str) -> float | None:
        """F-score of the facts that an answer names, 0 to 1; None where the reference names no facts."""
        if VERDICT in question.facts:
            is_told = verdict(question.expected) in question.facts[VERDICT]
            return float(verdict(answer) == verdict(question.expected)) if is_told else None
        told = self._named(question, question.query)
        asked = (self._named(question, question.expected) & _true(question)) - told
        if not asked:
            return None
        # What is true but was not asked for (a ninth symptom) is no fault.
        named = self._named(question, answer) - told - (_true(question) - asked)
        return 2 * len(named & asked) / (len(asked) + len(named))

    def _named(self, question: Question, text: str) -> set[str]:
        """Values of the question's relations that stand in a text, of several in one place the longest."""
        relations = tuple(question.facts)
        if relations not in self._names:
            self._names[relations] = Names(set().union(*(self._values[relation] for relation in relations)))
        text = plain(text)
        # What is a part of the entity's own name (头痛 in 偏头痛) is no answer, unless the name itself is.
        own = Names(set(map(plain, question.entities)) - _true(question)).places(text)
        return {
            text[start:end]
            for start, end in self._names[relations].places(text)
            if not any(first <= start and end <= last for first, last in own)
        }


def _true(question: Question) -> set[str]:
    return {plain(value) for values in question.facts.values() for value in values}
