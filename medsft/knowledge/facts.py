"""Answers held against a graph.

A question is understood when its provenance names one entity and one relation, or when it is, word for word,
a question of the templates about an entity of the graph. The answer's values are those of that relation,
anywhere in the graph, that stand in the text.

A graph does not hold all that is true, so there are two strengths. An answer contradicts the graph when it
denies one of its facts, or sends the patient to departments none of which is the entity's. It leaves the
graph when it names any value that the entity does not have; that is a fault only in the strict form, which
fits data that was to be made from the graph and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from medsft.data.check.fault import Fault
from medsft.data.records import Example
from medsft.data.template import bare_question
from medsft.knowledge.graph import Graph
from medsft.knowledge.mentions import Names
from medsft.knowledge.relations import (
    BODY_PART,
    CLINICAL_SYMPTOMS,
    COMPLICATION,
    DEPARTMENT,
    DRUGS,
    EXAMINATION,
    HISTOLOGY,
    SYMPTOMS,
)
from medsft.knowledge.templates import Templates
from medsft.knowledge.verdict import NO, verdict

# Kinds of facts whose values are looked for in free text, and the kind that each belongs to.
_FREE_TEXT = {
    SYMPTOMS: SYMPTOMS,
    CLINICAL_SYMPTOMS: SYMPTOMS,
    EXAMINATION: EXAMINATION,
    HISTOLOGY: EXAMINATION,
    BODY_PART: BODY_PART,
    COMPLICATION: COMPLICATION,
}
_MIN_CLEAR_CHARACTERS = 3
_CLAUSE = re.compile(r"[，。；！？,;!?\n]")
_PASSING = re.compile(
    r"[不无没非勿忌]|避免|防止|预防|以免|排除|除外|鉴别|区别|区分|不同|其他|其它|如果|若|一旦|相比|而"
)
"""Words of a clause that denies a fact, warns of it, supposes it, or tells it of something else."""


class FactCheck:
    """Checks answers against one graph.

    Attributes:
        names: of its entities.
    """

    def __init__(self, graph: Graph, templates: Templates, is_strict: bool = False) -> None:
        self._facts = {entity.name: dict(entity.facts) for entity in graph.entities}
        self.names = Names(self._facts)
        self._is_strict = is_strict
        values: dict[str, set[str]] = {}
        for facts in self._facts.values():
            for relation, texts in facts.items():
                values.setdefault(relation, set()).update(texts)
        self._values = {relation: Names(texts) for relation, texts in values.items()}
        self._clear = _unambiguous(values, self._facts)
        self._everything = Names({*self._facts, *(text for texts in values.values() for text in texts)})
        self._questions = [
            (relation, pattern)
            for relation in values
            if relation in templates.relations
            for pattern in _patterns(templates, relation)
        ]

    def fault(self, example: Example, raw: Any = None) -> Fault | None:
        """What in the answer is not as the graph has it; None also where the question is not understood.

        `raw`: the record, whose provenance is used where it has one.
        """
        question = bare_question(example.query).strip()
        entity, relation = _told(raw) or self._recognised(question) or ("", "")
        own = self._facts.get(entity, {}).get(relation)
        if own is None:
            return None
        asked = self._values[relation].found_in(question.replace(entity, "□"))
        if asked and question.rstrip("？?。").endswith("吗"):
            return self._denied(entity, relation, own, asked, example.response)
        answered = self._values[relation].found_in(example.response.replace(entity, "□"))
        foreign = {value for value in answered if not any(value in one or one in value for one in own)}
        detail = f"{entity}, {relation}: {'、'.join(sorted(foreign))}; the graph has {'、'.join(own)}"
        if foreign and foreign == answered and relation == DEPARTMENT:
            return Fault("contradicts the graph", detail)
        if foreign and self._is_strict:
            return Fault("leaves the graph's facts", detail)
        return None

    def stray(self, entity: str, question: str, answer: str) -> Fault | None:
        """A fact in an answer about an entity that the graph does not give it.

        Medicines and departments are looked for wherever they stand; symptoms, examinations, body parts and
        complications only where a mention can mean nothing else: see `_unambiguous` and `_PASSING`.
        """
        own = {value for values in self._facts[entity].values() for value in values}

        def is_foreign(value: str) -> bool:
            return not any(value in one or one in value for one in own)

        for relation in (DRUGS, DEPARTMENT):
            names = self._values.get(relation)
            for value in sorted(names.found_in(answer)) if names else ():
                if is_foreign(value):
                    return Fault("leaves the graph's facts", f"{entity}, {relation}: {value}")
        for clause in _CLAUSE.split(answer):
            for value in sorted(self._everything.found_in(clause)) if not _PASSING.search(clause) else ():
                relation = self._clear.get(value)
                if relation and value not in question and is_foreign(value):
                    return Fault("leaves the graph's facts", f"{entity}, {relation}: {value}")
        return None

    def _recognised(self, question: str) -> tuple[str, str] | None:
        for relation, pattern in self._questions:
            found = pattern.fullmatch(question)
            if found and found["entity"] in self._facts:
                return found["entity"], relation
        return None

    @staticmethod
    def _denied(
        entity: str, relation: str, own: tuple[str, ...], asked: set[str], answer: str
    ) -> Fault | None:
        # Only what the graph has can be denied wrongly; what it lacks may still be true.
        true = [value for value in asked if value in own]
        if len(true) == len(asked) == 1 and verdict(answer) == NO:
            return Fault("contradicts the graph", f"denies that {true[0]} is {relation} of {entity}")
        return None


def _told(raw: Any) -> tuple[str, str] | None:
    provenance = raw.get("provenance") if isinstance(raw, Mapping) else None
    if not isinstance(provenance, Mapping):
        return None
    entities, relations = provenance.get("entities"), provenance.get("relations")
    if isinstance(entities, list) and isinstance(relations, list) and len(entities) == len(relations) == 1:
        return str(entities[0]), str(relations[0])
    return None


def _unambiguous(values: Mapping[str, set[str]], entities: Collection[str]) -> dict[str, str]:
    """Value -> relation of all values that a text can mean nothing else by.

    They are of one kind throughout the graph, are no entity, and have three characters or more: 发热 or 脑
    stands in general advice, and in other words.
    """
    kinds: dict[str, set[str]] = {}
    for relation, texts in values.items():
        for text in texts:
            kinds.setdefault(text, set()).add(_FREE_TEXT.get(relation, ""))
    return {
        text: next(iter(found))
        for text, found in kinds.items()
        if len(found) == 1 and "" not in found and len(text) >= _MIN_CLEAR_CHARACTERS and text not in entities
    }


def _patterns(templates: Templates, relation: str) -> list[re.Pattern[str]]:
    """The templates' questions for a relation, with the entity and a value left open."""
    phrasings = templates.of(relation)
    patterns = []
    for question in (*phrasings.questions, *phrasings.yes_no_questions):
        text = re.escape(question.rstrip("？").replace("{relation}", relation))
        text = text.replace(r"\{entity\}", "(?P<entity>.+?)").replace(r"\{value\}", ".+?")
        patterns.append(re.compile(text + "[？?]?"))
    return patterns
