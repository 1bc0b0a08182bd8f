"""Scores against numbers worked out by hand, facts among them."""

import json
from dataclasses import replace

import pytest

from medsft.evaluation.fact_match import FactMatch
from medsft.evaluation.match import same_answer
from medsft.evaluation.question_set import Question, read_questions
from medsft.evaluation.scores import mean_scores, score_answer
from medsft.knowledge.graph import SAMPLE_GRAPH
from medsft.knowledge.pairs import KINDS
from medsft.knowledge.split import write_split

REFERENCE = "偏头痛应到神经内科就诊。"


def test_an_equal_answer_scores_full():
    scores = score_answer(REFERENCE, REFERENCE)
    for value in (scores.rouge_1, scores.rouge_2, scores.rouge_l, scores.bleu_4, scores.exact):
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


@pytest.mark.parametrize(
    ("answer", "rouge_l"), [("police kill the gunman", 75), ("the gunman kill police", 50)]
)
def test_rouge_as_its_inventor_says(answer, rouge_l):
    """The example of Lin (2004), section 3.1: one common pair in both, the gunman; runs of 3 and of 2 of 4.

    rouge-chinese has none of its own: the numbers in its README are those of an older library for other text.
    """
    scores = score_answer(answer, "police killed the gunman")
    assert scores.rouge_2 == pytest.approx(100 / 3, abs=1e-3)
    assert scores.rouge_l == pytest.approx(rouge_l, abs=1e-3)


def test_bleu_as_its_library_says():
    """The example of nltk's `SmoothingFunction`, 0.4118 by method 3; a character stands for each word."""
    texts = (
        "It is a guide to action which ensures that the military always obeys the commands of the party",
        "It is a guide to action that ensures that the military will forever heed Party commands",
    )
    words = sorted(set(" ".join(texts).split()))
    answer, reference = ("".join(chr(0x4E00 + words.index(word)) for word in text.split()) for text in texts)
    assert score_answer(answer, reference).bleu_4 == pytest.approx(41.18, abs=0.01)


@pytest.mark.parametrize("answer", ["", " ", ".", "\u3000"])
def test_an_answer_without_words_is_no_fault(answer):
    scores = score_answer(answer, REFERENCE)
    assert scores.rouge_1 == 0
    assert scores.bleu_4 < 2
    assert scores.exact == 0


def test_the_mean_is_over_examples():
    scores = mean_scores([REFERENCE, ""], [Question("挂什么科？", REFERENCE)] * 2)
    assert scores.rouge_l == pytest.approx(50, abs=1e-3)
    assert scores.exact == 50
    assert scores.facts is None  # nobody said what the facts are


def test_width_of_characters_does_not_count():
    assert same_answer(" 38.5度， ", "38.5度,")
    assert not same_answer("38.5度", "38.6度")


MIGRAINE = Question(
    "偏头痛有哪些症状？",
    "偏头痛的相关症状有恶心、畏光和呕吐等。",
    entities=("偏头痛",),
    facts={"相关症状": ("恶心", "畏光", "呕吐", "畏声")},
)
TENSION = Question(
    "紧张型头痛有哪些症状？",
    "紧张型头痛的相关症状有头痛和失眠。",
    entities=("紧张型头痛",),
    facts={"相关症状": ("头痛", "失眠")},
)
FREE = Question("你好？", "你好。")
SET = FactMatch([MIGRAINE, TENSION, FREE])


@pytest.mark.parametrize(
    ("answer", "right", "named"),
    [
        ("偏头痛的相关症状有恶心、畏光和呕吐等。", 3, 3),
        ("会恶心，也会畏光", 2, 2),
        ("恶心、失眠", 1, 2),  # 失眠 is the other's
        ("恶心、发热", 1, 1),  # what no question of the set knows can be neither right nor wrong
        ("恶心和畏声", 1, 1),  # true, but not among those the reference names
        ("偏头痛", 0, 0),  # 头痛 is a part of the name here
        ("头痛", 0, 1),
        ("不会恶心", 1, 1),  # words, not meanings, as the docs say
        ("", 0, 0),
    ],
)
def test_facts_by_hand(answer, right, named):
    """Three are asked for."""
    assert SET.score(MIGRAINE, answer) == pytest.approx(2 * right / (3 + named))


def test_facts_count_where_there_are_any():
    assert SET.score(FREE, "你好。") is None
    scores = mean_scores(["恶心", "头痛、失眠", "你好。"], [MIGRAINE, TENSION, FREE])
    assert scores.facts == pytest.approx(100 * (2 / 4 + 1) / 2)


CANDIDATES = Question(
    "出现贫血和皮疹，要考虑哪些疾病？",
    "要考虑麻疹或水痘，建议到感染科就诊。",
    entities=("麻疹", "水痘"),
    facts={"中心词": ("麻疹", "水痘"), "所属科室": ("感染科",)},
)
ANAEMIA = Question("谁会乏力？", "见于贫血。", entities=("贫血",), facts={"中心词": ("贫血",)})


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("麻疹或水痘，去感染科。", 1.0),
        ("贫血和皮疹见于麻疹、水痘，去感染科。", 1.0),  # the question said it
        ("水痘，去感染科。", 2 * 2 / (3 + 2)),
        ("感染科。", 2 * 1 / (3 + 1)),
    ],
)
def test_entities_may_be_the_answer(answer, score):
    assert FactMatch([CANDIDATES, ANAEMIA]).score(CANDIDATES, answer) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "score"), [("是的。", 1.0), ("一般不会，畏光不是。", 0.0), ("畏光。", 0.0)]
)
def test_yes_and_no_are_told_by_how_an_answer_begins(answer, score):
    asked = Question("偏头痛会畏光吗？", "会，常有畏光。", entities=("偏头痛",), facts={"是否": ("是",)})
    assert FactMatch([asked]).score(asked, answer) == score
    unclear = replace(asked, expected="畏光是它的表现。")
    assert FactMatch([unclear]).score(unclear, answer) is None


def test_the_sets_of_a_split_bring_their_facts(tmp_path):
    """Every reference of recall and generalisation names all of its facts and no other's, for every kind."""
    write_split([SAMPLE_GRAPH], tmp_path, (0.7, 0, 0.3), seed=1)
    lines = [(tmp_path / f"{name}.jsonl").read_text("utf-8").splitlines() for name in ("recall", "test")]
    assert {json.loads(line)["provenance"]["kind"] for line in lines[1]} == set(KINDS)
    for name, records in zip(("recall", "test"), lines, strict=True):
        questions = read_questions([tmp_path / f"{name}.jsonl"])
        assert len(questions) == len(records)
        match = FactMatch(questions)
        assert {match.score(question, question.expected) for question in questions} == {1.0}
        assert {match.score(question, "") for question in questions} == {0.0}


def test_what_the_question_says_itself_is_no_answer():
    asked = Question("谁会有贫血貌？", "见于贫血。", entities=("贫血",), facts={"中心词": ("贫血",)})
    assert FactMatch([asked, ANAEMIA]).score(asked, asked.expected) is None
