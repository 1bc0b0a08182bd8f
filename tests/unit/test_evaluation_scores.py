"""Scores against numbers worked out by hand, and what is a fact."""

import pytest

from medsft.evaluation.match import fact_share, facts_of, same_answer
from medsft.evaluation.scores import mean_scores, score_answer

REFERENCE = "偏头痛应到神经内科就诊。"


def test_an_equal_answer_scores_full():
    scores = score_answer(REFERENCE, REFERENCE)
    for value in (scores.rouge_1, scores.rouge_2, scores.rouge_l, scores.bleu_4, scores.exact, scores.facts):
        assert value == pytest.approx(100, abs=1e-3)


def test_bleu_by_hand():
    """Five characters against six: 5/5 single ones, 3/4 pairs, 1/3 triples, none of 2 quadruples.

    Method 3 puts 1/2 in the place of that first missing numerator (Chen and Cherry 2014); the answer is
    shorter, so exp(1 - 6/5) is the penalty.
    """
    by_hand = 100 * 2.718281828459045 ** (1 - 6 / 5) * (1 * (3 / 4) * (1 / 3) * (0.5 / 2)) ** 0.25
    assert score_answer("甲乙丙己丁", "甲乙丙戊己丁").bleu_4 == pytest.approx(by_hand, abs=1e-6)


def test_rouge_by_hand():
    """Words 我 爱 北京 against 我 爱 天气: 2 of 3 words, 1 of 2 pairs, a common run of 2 of 3."""
    scores = score_answer("我爱北京", "我爱天气")
    assert scores.rouge_1 == pytest.approx(200 / 3, abs=1e-3)
    assert scores.rouge_2 == pytest.approx(50, abs=1e-3)
    assert scores.rouge_l == pytest.approx(200 / 3, abs=1e-3)


@pytest.mark.parametrize("answer", ["", " ", ".", "\u3000"])
def test_an_answer_without_words_is_no_fault(answer):
    scores = score_answer(answer, REFERENCE)
    assert scores.rouge_1 == 0
    assert scores.bleu_4 < 2
    assert scores.exact == 0


def test_the_mean_is_over_examples():
    scores = mean_scores([REFERENCE, ""], [REFERENCE, REFERENCE])
    assert scores.rouge_l == pytest.approx(50, abs=1e-3)
    assert scores.exact == 50


def test_width_of_characters_does_not_count():
    assert same_answer(" 38.5度， ", "38.5度,")
    assert not same_answer("38.5度", "38.6度")


def test_facts_are_what_a_list_names():
    assert facts_of("偏头痛的相关症状有恶心、畏光和呕吐。") == {"恶心", "畏光", "呕吐"}
    assert fact_share("会恶心，也会畏光", "偏头痛的相关症状有恶心、畏光和呕吐。") == pytest.approx(2 / 3)
    assert fact_share("", "。") == 0
