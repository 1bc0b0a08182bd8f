"""Scores of a generated answer against its reference, as THUDM's `main.py` reports them.

ROUGE-1, ROUGE-2 and ROUGE-L are F-scores over the words that jieba finds; BLEU-4 is over characters, smoothed
by method 3 of Chen and Cherry (2014). All are times 100 and averaged over the examples. An empty answer
scores 0, for which the libraries have no number.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from medsft.evaluation.match import fact_share, same_answer

if TYPE_CHECKING:
    from jieba import Tokenizer


@dataclass(frozen=True)
class Scores:
    """Means over some answers, each 0 to 100.

    exact: share of answers equal to the reference. facts: share of the reference's facts that the
    answer names (see `medsft.evaluation.match`).
    """

    rouge_1: float
    rouge_2: float
    rouge_l: float
    bleu_4: float
    exact: float
    facts: float


SCORE_NAMES = {
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "bleu_4": "BLEU-4",
    "exact": "exact 完全一致 (%)",
    "facts": "facts 要点 (%)",
}
"""Field of Scores -> how it is shown."""


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


def score_answer(answer: str, reference: str) -> Scores:
    """Scores of one answer; `reference` is not empty."""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    from rouge_chinese import Rouge

    exact, facts = 100.0 * same_answer(answer, reference), 100.0 * fact_share(answer, reference)
    words = [" ".join(_words().cut(text)) for text in (answer, reference)]
    if not all(text.replace(".", " ").split() for text in words):  # the library has no number for these
        return Scores(exact, exact, exact, exact, exact, facts)
    (rouge,) = Rouge().get_scores(*words)
    smoothing = SmoothingFunction().method3
    bleu = sentence_bleu([list(reference)], list(answer), smoothing_function=smoothing)
    by_name = [100 * rouge[name]["f"] for name in ("rouge-1", "rouge-2", "rouge-l")]
    return Scores(*by_name, 100 * float(bleu), exact, facts)


def mean_scores(answers: Sequence[str], references: Sequence[str]) -> Scores:
    """Means over pairs of an answer and its reference, of which there is at least one."""
    rows = [asdict(score_answer(*pair)) for pair in zip(answers, references, strict=True)]
    return Scores(**{name: sum(row[name] for row in rows) / len(rows) for name in rows[0]})
