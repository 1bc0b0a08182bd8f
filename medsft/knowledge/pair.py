"""A question with its answer, and where both come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medsft.data.template import med_question


@dataclass(frozen=True)
class Pair:
    """One question with its answer.

    Attributes:
        question: without the form around it.
        answer: whole sentences.
        kind: one of KINDS, or llm.
        sources: "file:line" of every entity that the answer rests on.
        entities: names of what it is about; a split keeps all pairs of an entity together.
        relations: relations that it asks about.
        template: which phrasings it is made of, or which prompt.
        facts: what it asks for, for judging answers: (relation, values), all that the graph has; entities
            stand under `NAME_FIELD`, yes or no under `VERDICT`. Empty where it cannot be told so.
    """

    question: str
    answer: str
    kind: str
    sources: tuple[str, ...]
    entities: tuple[str, ...] = ()
    relations: tuple[str, ...] = ()
    template: str = ""
    facts: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def record(self) -> dict[str, str]:
        """The pair as a line of training data: Med-ChatGLM's columns and form."""
        return {"context": med_question(self.question), "target": self.answer}

    def record_with_provenance(self, made_by: Mapping[str, Any]) -> dict[str, Any]:
        """The same with where it comes from, which training passes over. `made_by`: seed, model."""
        text = f"{self.question}\n{self.answer}"
        provenance = {
            "kind": self.kind,
            "template": self.template,
            "sources": list(self.sources),
            "entities": list(self.entities),
            "relations": list(self.relations),
            **({"facts": dict(self.facts)} if self.facts else {}),
            **made_by,
            "sha256": hashlib.sha256(text.encode()).hexdigest()[:16],
        }
        return {**self.record(), "provenance": provenance}
