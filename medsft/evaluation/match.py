"""Whether an answer is the expected one, as a whole or fact by fact."""

from __future__ import annotations

import re
import unicodedata

from medsft.inference.postprocess import postprocess

_BETWEEN_FACTS = re.compile(r"[、，,；;。\s]|以及|和|与|或")
_BEFORE_FACTS = re.compile(r".*?(?:包括|为|是|有|由|到|:)")


def plain(text: str) -> str:
    """Without differences that the tokenizer does not keep: white space around, width of characters."""
    return " ".join(unicodedata.normalize("NFKC", postprocess(text)).split())


def same_answer(answer: str, expected: str) -> bool:
    """Equal but for white space around and for width of characters."""
    return plain(answer) == plain(expected)


def facts_of(expected: str) -> frozenset[str]:
    """What an answer from the knowledge graph lists: the parts between its commas, without the words before.

    A rule of thumb for short answers such as 偏头痛的相关症状有恶心和畏光。 (恶心, 畏光); free text falls
    into clauses. Never empty for text that is not empty.
    """
    parts = (_BEFORE_FACTS.sub("", part, count=1) or part for part in _BETWEEN_FACTS.split(plain(expected)))
    return frozenset(part for part in parts if part) or frozenset({plain(expected)})


def fact_share(answer: str, expected: str) -> float:
    """Share of the expected facts whose words stand in the answer, 0 to 1."""
    facts, text = facts_of(expected), plain(answer)
    return sum(fact in text for fact in facts) / len(facts)
