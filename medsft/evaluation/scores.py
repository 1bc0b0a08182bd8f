"""Scores of a generated answer against its reference, as THUDM's `main.py` reports them.

ROUGE-1, ROUGE-2 and ROUGE-L are F-scores over the words that jieba finds; BLEU-4 is over characters, smoothed
by method 3 of Chen and Cherry (2014). All are times 100 and averaged over the examples. An empty answer
scores 0, for which the libraries have no number.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from medsft.evaluation.fact_match import FactMatch
from medsft.evaluation.match import same_answer
from medsft.evaluation.question_set import Question

if TYPE_CHECKING:
    from jieba import Tokenizer


@dataclass(frozen=True)
class Scores:
    """Means over some answers, each 0 to 100.

    exact: share of answers equal to the reference. facts: F-score of the facts that the answer names (see
    `medsft.evaluation.fact_match`), over the questions that bring facts; None where none does.
    """

    rouge_1: float
    rouge_2: float
    rouge_l: float
    bleu_4: float
    exact: float
    facts: float | None


SCORE_NAMES = {
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "bleu_4": "BLEU-4",
    "exact": "exact 完全一致 (%)",
    "facts": "facts 知识点 (%)",
}
"""Field of Scores, in their order -> how it is shown."""


@cache
def _words() -> Tokenizer:
    """jieba with its dictionary read anew: its cache in /tmp could be anybody's."""
    import jieba

    jieba.setLogLevel(logging.WARNING)
    words = jieba.Tokenizer()
    with TemporaryDirectory() as folder:
        words.tmp_dir = folder
        words.initialize()
    return words


def score_answer(answer: str, reference: str, facts: float | None = None) -> Scores:
    """Scores of one answer; `reference` is not empty. facts: what was found of these, 0 to 1."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    exact = 100.0 * same_answer(answer, reference)
    facts = None if facts is None else 100.0 * facts
    words = [" ".join(_words().cut(text)) for text in (answer, reference)]
    if not all(text.replace(".", " ").split() for text in words):  # the library has no number for these
        return Scores(exact, exact, exact, exact, exact, facts)
    (rouge,) = Rouge().get_scores(*words)
    smoothing = SmoothingFunction().method3
    bleu = sentence_bleu([list(reference)], list(answer), smoothing_function=smoothing)
    by_name = [100 * rouge[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")]
    return Scores(*by_name, 100 * float(bleu), exact, facts)


def mean_scores(answers: Sequence[str], questions: Sequence[Question]) -> Scores:
    """Means over answers to questions, of which there is at least one; all have an expected answer."""
    facts = FactMatch(questions)
    rows = [
        score_answer(answer, question.expected, facts.score(question, answer))
        for answer, question in zip(answers, questions, strict=True)
    ]
    return Scores(*(_mean([getattr(row, name) for row in rows]) for name in SCORE_NAMES))


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
