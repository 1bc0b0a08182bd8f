"""`medsft compare`: the question set in the box, suites, documents, the gate against forgetting."""

import json

import pytest
from typer.testing import CliRunner

from medsft.chatglm.init import write_random_model
from medsft.cli import app
from medsft.errors import UserError
from medsft.evaluation.choices import accuracy, likeliest_letters, read_choices
from medsft.evaluation.question_set import IN_THE_BOX, first_of_each_kind, read_questions
from medsft.inference.responder import open_responder


def compare(base, tuned, *arguments):
    words = ["compare", "--base", base, "--tuned", tuned, "--max_new_tokens", "4", *arguments]
    return CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)


@pytest.fixture(scope="module")
def other_model(toy_model, tmp_path_factory):
    """Another random toy with the same tokenizer: as good as one that has forgotten."""
    folder = tmp_path_factory.mktemp("other") / "model"
    shape = {"hidden_size": 64, "num_layers": 3, "num_attention_heads": 4, "inner_hidden_size": 256}
    write_random_model(folder, toy_model, overrides=shape, seed=2, dtype="float32")
    return folder


@pytest.fixture(scope="module")
def losses(toy_model, other_model, tmp_path_factory):
    """General loss of both by the document that is written, and that document."""
    path = tmp_path_factory.mktemp("页面") / "before after.md"
    result = compare(toy_model, other_model, "--output", path)
    assert result.exit_code == 0, result.output
    (row,) = [line for line in path.read_text(encoding="utf-8").splitlines() if "general: loss" in line]
    base, tuned = map(float, row.strip("| ").split(" | ")[1:])
    return base, tuned, path.read_text(encoding="utf-8")


def test_the_box_holds_both_kinds():
    questions = read_questions([IN_THE_BOX])
    assert [question.kind for question in questions] == ["medical"] * 8 + ["general"] * 8
    assert questions[0].query.startswith("谷氨酰转肽酶")
    assert [bool(question.expected) for question in questions] == [False] * 2 + [True] * 14


def test_the_document_has_every_question(losses):
    for question in read_questions([IN_THE_BOX]):
        assert question.query in losses[2]
    assert "medical: ROUGE-1" in losses[2]


def test_the_gate_opens_and_shuts(toy_model, other_model, losses):
    base, tuned, _ = losses
    grown = tuned - base
    general = ["--num_questions", "10"]
    assert compare(toy_model, toy_model, "--max_forgetting", "0", *general).exit_code == 0
    order = (toy_model, other_model) if grown > 0 else (other_model, toy_model)
    assert compare(*order[::-1], "--max_forgetting", "0").exit_code == 0
    shut = compare(*order, "--max_forgetting", abs(grown) / 2)
    assert shut.exit_code == 1
    assert "the loss of general answers grew by" in shut.output


def test_an_html_page_shows_text_as_text(toy_model, tmp_path):
    asked = tmp_path / "q.jsonl"
    asked.write_text('{"prompt": "<script>x</script>?"}\n', encoding="utf-8")
    page = tmp_path / "page.html"
    assert compare(toy_model, toy_model, "--questions", asked, "--output", page).exit_code == 0
    text = page.read_text(encoding="utf-8")
    assert "&lt;script&gt;" in text
    assert "<script>" not in text
    assert "http" not in text


SUITES = {
    "ceval.csv": "id,question,A,B,C,D,answer\n0,首都?,北京,上海,天津,重庆,A\n",
    "cmb.json": json.dumps([{"question": "首都?", "option": {"A": "上海", "B": "北京"}, "answer": "B"}]),
    "medqa.jsonl": json.dumps(
        {"question": "首都?", "options": {"A": "上海", "C": "北京"}, "answer": "北京", "answer_idx": "C"}
    ),
}


def test_the_first_of_each_kind_are_asked(tmp_path):
    asked = tmp_path / "q.jsonl"
    kinds = ["medical", "medical", "general", "medical", "general"]
    lines = [{"prompt": f"{number}?", "response": "", "kind": kind} for number, kind in enumerate(kinds)]
    asked.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    questions = read_questions([asked])
    assert all(question.expected == "" for question in questions)
    assert [question.query for question in first_of_each_kind(questions, 1)] == ["0?", "2?"]
    assert first_of_each_kind(questions, None) == questions


def test_a_suite_with_the_letter_of_the_answer_alone(tmp_path):
    suite = tmp_path / "s.jsonl"
    suite.write_text('{"question": "q", "options": {"A": 0, "B": 1}, "answer_idx": "a"}', encoding="utf-8")
    (choice,) = read_choices(suite)
    assert (dict(choice.options), choice.answer) == ({"A": "0", "B": "1"}, "A")


@pytest.mark.parametrize("name", SUITES)
def test_each_form_is_read_and_judged(name, toy_model, tmp_path):
    (tmp_path / name).write_text(SUITES[name], encoding="utf-8")
    (choice,) = read_choices(tmp_path / name)
    assert choice.options[choice.answer] == "北京"
    responder = open_responder(toy_model, device="cpu")
    (letter,) = likeliest_letters(responder, [choice])
    assert letter in choice.options
    assert accuracy(responder, [choice]) == float(letter == choice.answer)


@pytest.mark.parametrize(
    ("arguments", "content", "said"),
    [
        (["--questions"], "\n", "holds no question"),
        (["--questions"], '{"answer": "x"}', "is no question"),
        (["--choices"], '{"question": "q", "A": "x", "B": "y", "answer": "E"}', "'E' is none of A, B"),
        (["--choices"], '{"question": "q", "answer": "A"}', "0 options"),
        (["--choices"], '{"question": "q", "options": ["a", "b"], "answer": "A"}', "no object of letters"),
        (["--choices"], '{"question": "q"', "JSON"),
        (["--max_forgetting", "0.1", "--questions"], '{"prompt": "q"}', "needs general questions"),
    ],
    ids=["empty", "no question", "wrong letter", "no options", "a list", "broken", "nothing general"],
)
def test_bad_input_is_named(arguments, content, said, toy_model, tmp_path):
    bad = tmp_path / "坏 文件.jsonl"
    bad.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        compare(toy_model, toy_model, *arguments, bad)
