"""The verdict of a comparison, its documents, and what a terminal is spared."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from medsft.errors import UserError
from medsft.evaluation.comparison_page import check_name, write_comparison
from medsft.evaluation.comparison_table import comparison_table, measures_table
from medsft.evaluation.findings import (
    Accuracy,
    Answered,
    Change,
    Findings,
    Gate,
    accuracies_by_kind,
    measures,
)
from medsft.evaluation.match import names
from medsft.evaluation.question_set import IN_THE_BOX, Question, read_answered, read_questions
from medsft.evaluation.scores import mean_scores
from medsft.terminal import harmless

CAPITAL = Question("首都?", "北京。", kind="general", accepted=("北京",))
SUM = Question("三加五?", "八。", kind="general", accepted=("八", "8"))
MEDICAL = Question("挂什么科?", "神经内科。")
MODELS = (Path("模型 1"), Path("runs/first"))
FINDINGS = Findings(
    answered=(
        Answered(CAPITAL, "中国的首都是北京。", "上海"),
        Answered(SUM, "是8", "八。"),
        Answered(MEDICAL, "", "神经内科。"),
    ),
    losses=(Change("general", 1.0, 1.25), Change("medical", 3.0, 0.5)),
    scores={},
    accuracies=(
        Accuracy("general", True, 10, 9, 8),
        Accuracy("suite", True, 10, 5, 5, 2, 3),
        Accuracy("medicine", False, 10, 9, 0, 0, 10),
    ),
)


@pytest.mark.parametrize(
    ("gate", "shut"),
    [
        (Gate(), False),
        (Gate(max_forgetting=0.25), False),
        (Gate(max_forgetting=0.249), True),
        (Gate(max_accuracy_drop=0.1), False),
        (Gate(max_accuracy_drop=0.099), True),
        (Gate(max_accuracy_drop=-0.01), True),  # asks for a gain; the suite has none either
        (Gate(min_exact=2 / 3), False),
        (Gate(min_exact=0.67), True),
    ],
)
def test_both_sides_of_each_threshold(gate, shut):
    assert bool(FINDINGS.faults(gate)) == shut


def test_every_fault_is_told():
    faults = FINDINGS.faults(Gate(min_exact=1, max_forgetting=0, max_accuracy_drop=0))
    assert len(faults) == 3
    assert "grew by 0.250 nats" in faults[1]
    assert "from 9 to 8 of 10, by 10.0%" in faults[2]


def test_a_loss_that_is_no_number_is_forgotten():
    ill = replace(FINDINGS, losses=(Change("general", 1.0, math.nan),))
    assert ill.faults(Gate(max_forgetting=100))


def test_accepted_answers_are_counted_by_kind():
    (general,) = accuracies_by_kind(FINDINGS.answered)
    assert (general.name, general.is_general) == ("general", True)
    assert (general.num_questions, general.base, general.tuned, general.drop) == (2, 2, 1, 0.5)


@pytest.mark.parametrize(
    ("answer", "text", "is_named"),
    [
        ("一共18个", "8", False),
        ("一共８个", "8", True),
        ("十八", "八", False),
        ("等于八。", "八", True),
        ("goodbye", "good", False),
        ("Good Morning!", "good morning", True),
        ("H₂O", "h2o", True),
        ("先是18，再是8", "8", True),
        ("", "8", False),
    ],
)
def test_what_stands_in_an_answer(answer, text, is_named):
    assert names(answer, text) == is_named


def test_the_box_can_be_judged():
    questions = read_questions([IN_THE_BOX])
    assert [question.kind for question in questions] == ["medical"] * 32 + ["general"] * 32
    assert len({question.query for question in questions}) == 64
    assert questions[0].query.startswith("谷氨酰转肽酶") and questions[1].query.startswith("小李最近出现了")
    assert [bool(question.expected) for question in questions] == [False] * 2 + [True] * 62
    assert sum(bool(question.accepted) for question in questions[32:]) == 31
    for question in questions:
        if question.accepted:
            assert any(names(question.expected, text) for text in question.accepted)


@pytest.mark.parametrize(
    ("accepted", "said"),
    [("北京", "no list of texts"), ([1], "no list of texts"), (["首都"], "stands in the question")],
)
def test_accepted_texts_that_cannot_judge(accepted, said, tmp_path):
    asked = tmp_path / "q.jsonl"
    asked.write_text(json.dumps({"prompt": "首都?", "accepted": accepted}), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        read_questions([asked])


def test_questions_without_references_are_left_out_of_scores(tmp_path, caplog):
    asked = tmp_path / "问 题.jsonl"
    asked.write_text('{"prompt": "一?"}\n{"prompt": "二?", "response": "二"}\n', encoding="utf-8")
    (question,) = read_answered([asked])
    assert question.expected == "二"
    assert "问 题.jsonl:1: empty answer" in caplog.text
    asked.write_text('{"prompt": "一?"}\n', encoding="utf-8")
    with pytest.raises(UserError, match="No example can be used"):
        read_answered([asked])


EVIL = "\x1b[2J\x1b]0;x\x07\x9b31m\r红\u202e\b[bold]x[/]"


def shown(table):
    console = Console(width=160, force_terminal=True)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


def test_answers_give_the_terminal_no_orders():
    evil = replace(
        FINDINGS,
        answered=(Answered(Question(EVIL, EVIL), EVIL, EVIL),),
        accuracies=(Accuracy(EVIL, True, 1, 1, 1),),
    )
    text = shown(comparison_table(evil.answered)) + shown(measures_table(evil))
    for order in ("\x1b[2J", "\x1b]0", "\x07", "\x9b", "\r", "\b", "\u202e"):
        assert order not in text
    assert text.count("[bold]x[/]") >= 4  # neither are they rich's
    assert harmless("一\n\t二\x00") == "一\n\t二"


def test_a_long_answer_begins_beside_its_mark():
    text = shown(comparison_table([Answered(MEDICAL, "长" * 60, "")]))
    assert re.search("×.* 长长长", text) and len(re.findall("长+", text)) > 1


def test_documents_take_no_orders_either(tmp_path):
    answer = EVIL + "<script>alert(1)</script> | \\| ![p](http://x/y.png) `c` *b*\n# 题"
    evil = replace(FINDINGS, answered=(Answered(Question("问", "答"), answer, ""),))
    page, text = tmp_path / "页 面.html", tmp_path / "页 面.md"
    for path in (page, text):
        check_name(path)
        write_comparison(path, *MODELS, evil)
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(path.read_text(encoding="utf-8"))
    assert "&lt;script&gt;" in page.read_text(encoding="utf-8")
    assert "<script" not in page.read_text(encoding="utf-8")
    written = text.read_text(encoding="utf-8")
    assert "<script" not in written
    assert r"\| \\\| \!\[p\](http://x/y.png) \`c\` \*b\*<br>\# 题" in written
    rows = [line for line in written.splitlines() if line.startswith("| 问")]
    assert len(rows) == 1


def test_documents_have_the_whole_answer_and_the_measures(tmp_path):
    long = replace(FINDINGS, answered=(Answered(MEDICAL, "长" * 500, "神经内科。"),))
    for name in ("a.md", "a.html"):
        write_comparison(tmp_path / name, *MODELS, long)
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "长" * 500 in text
        for row in measures(long):
            assert row[1] in text and row[2] in text
    assert "长" * 201 not in shown(comparison_table(long.answered)).replace("\n", "")


def test_documents_tell_what_the_gate_refused(tmp_path):
    for name in ("a.md", "a.html"):
        write_comparison(tmp_path / name, *MODELS, FINDINGS, ["forgetting: all of <it>"])
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "Not accepted 未通过:" in text and "forgetting: all of" in text and "<it>" not in text
        write_comparison(tmp_path / name, *MODELS, FINDINGS)
        assert "Not accepted" not in (tmp_path / name).read_text(encoding="utf-8")


def test_documents_mark_what_is_exact(tmp_path):
    write_comparison(tmp_path / "a.md", *MODELS, FINDINGS)
    rows = (tmp_path / "a.md").read_text(encoding="utf-8").splitlines()
    assert "| 挂什么科? | 神经内科。 | × (empty 空) | √ 神经内科。 |" in rows


def test_programs_have_all_of_it_in_numbers(tmp_path):
    scores = mean_scores(["神经内科。"], [MEDICAL])
    lost = replace(FINDINGS, losses=(Change("general", 1.0, math.nan),), scores={"medical": (scores, scores)})
    write_comparison(tmp_path / "a.md", *MODELS, lost, ["forgetting: all of it"])
    facts = json.loads((tmp_path / "a.md.json").read_text(encoding="utf-8"))
    assert (facts["base"], facts["tuned"]) == ("模型 1", "runs/first")
    assert facts["faults"] == ["forgetting: all of it"]
    assert facts["losses"] == [{"kind": "general", "base": 1.0, "tuned": None}]
    assert {"kind": "medical", "score": "exact", "base": 100.0, "tuned": 100.0} in facts["scores"]
    assert facts["accuracies"][1]["tuned_unanswered"] == 3
    assert [item["question"] for item in facts["answers"]] == ["首都?", "三加五?", "挂什么科?"]
    assert facts["answers"][2] == {
        "question": "挂什么科?",
        "kind": "medical",
        "expected": "神经内科。",
        "base": "",
        "base_exact": False,
        "tuned": "神经内科。",
        "tuned_exact": True,
    }


def test_nothing_is_wrong_about_an_answer_that_nobody_expected(tmp_path):
    write_comparison(
        tmp_path / "a.md", *MODELS, Findings((Answered(Question("累?", ""), "", "睡"),), (), {}, ())
    )
    (answer,) = json.loads((tmp_path / "a.md.json").read_text(encoding="utf-8"))["answers"]
    assert (answer["expected"], answer["base_exact"], answer["tuned_exact"]) == (None, None, None)


def test_measures_by_hand():
    rows = {name: values for name, *values in measures(FINDINGS)}
    assert rows["general: loss 损失 (nats)"] == ["1.000", "1.250"]
    assert rows["general: right 正确率 (10)"] == ["90.0%", "80.0%"]
    assert rows["suite: without a letter 未作答"] == ["2", "3"]
    scores = mean_scores(["神经内科。"], [MEDICAL])
    with_scores = replace(FINDINGS, scores={"medical": (scores, scores)})
    assert ("medical: exact 完全一致 (%)", "100.0", "100.0") in measures(with_scores)
    assert not [row for row in measures(with_scores) if "facts" in row[0]]


def test_a_document_that_cannot_be_written(tmp_path):
    for name, said in (("a.pdf", "must end in"), ("无/a.md", "no folder"), ("b.md", "is a folder")):
        (tmp_path / "b.md").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=said):
            check_name(tmp_path / name)
