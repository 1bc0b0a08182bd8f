"""`medsft compare`: the question set in the box, suites, documents, the gate against forgetting."""

import json

import pytest
from typer.testing import CliRunner

from medsft.chatglm.init import write_random_model
from medsft.cli import app
from medsft.errors import UserError
from medsft.evaluation.question_set import IN_THE_BOX, first_of_each_kind, read_questions


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


def test_the_document_has_every_question(losses):
    for question in read_questions([IN_THE_BOX]):
        assert question.query in losses[2]
    assert "medical: ROUGE-1" in losses[2]


def test_an_interruption_says_what_is_kept(toy_model, instruction_file, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("medsft.evaluation.evaluate.answer_all", interrupted)
    monkeypatch.setattr("medsft.evaluation.compare.answer_loss", interrupted)
    words = ["eval", "--model", toy_model, "--questions", instruction_file, "--num_questions", 1]
    words += ["--output_dir", tmp_path / "评 测"]
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 130
    (line,) = [line for line in result.stderr.splitlines() if "interrupted" in line]
    assert "kept in" in line and "评 测" in line and "only what is missing" in line
    result = compare(toy_model, toy_model, "--num_questions", 1)
    assert (result.exit_code, "interrupted: nothing of it is kept" in result.stderr) == (130, True)


def test_documents_outlive_the_reader_of_the_terminal(toy_model, tmp_path, monkeypatch):
    """`medsft compare … | head -1`: what was answered for hours is on the disk."""

    def gone(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("rich.console.Console.print", gone)
    page = tmp_path / "前后.md"
    with pytest.raises(BrokenPipeError):
        compare(toy_model, toy_model, "--num_questions", 1, "--output", page)
    assert page.exists()


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


def test_the_first_of_each_kind_are_asked(tmp_path):
    asked = tmp_path / "q.jsonl"
    kinds = ["medical", "medical", "general", "medical", "general"]
    lines = [{"prompt": f"{number}?", "response": "", "kind": kind} for number, kind in enumerate(kinds)]
    asked.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    questions = read_questions([asked])
    assert all(question.expected == "" for question in questions)
    assert [question.query for question in first_of_each_kind(questions, 1)] == ["0?", "2?"]
    assert first_of_each_kind(questions, None) == questions


def test_suites_are_judged_in_both_ways(chat_model_dir, toy_model, tmp_path):
    """A toy that has learnt a sentence by heart writes it, and finds the letter likeliest that it learnt."""
    suite = tmp_path / "一般 题.csv"
    gate = ("--max_accuracy_drop", -1)  # nothing short of all wrong before and all right after
    suite.write_text("question,A,B,answer\n首都?,北京,上海,A\n首都?,上海,北京,B\n", encoding="utf-8")
    page = tmp_path / "page.md"
    result = compare(
        chat_model_dir, toy_model, "--general_choices", suite, "--num_questions", 1, "--output", page, *gate
    )
    assert result.exit_code == 1, result.output
    assert "written letter 生成: right answers fell" in result.output.replace("\n", "")
    lines = page.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|") and "一般 题.csv" in line]
    assert ["likeliest letter" in rows[0], "written letter" in rows[1], "without a letter" in rows[2]] == [
        True
    ] * 3
    assert "(1)" in rows[0]


@pytest.mark.parametrize(
    ("arguments", "content", "said"),
    [
        (["--questions"], "\n", "holds no question"),
        (["--questions"], '{"answer": "x"}', "is no question"),
        (["--choices"], '{"question": "q"', "JSON"),
        (["--max_forgetting", "0.1", "--questions"], '{"prompt": "q"}', "needs general questions"),
        (
            ["--max_accuracy_drop", "0.1", "--questions"],
            '{"prompt": "q", "response": "a", "kind": "general"}',
            "can be right or wrong",
        ),
        (["--min_exact", "0.5", "--questions"], '{"prompt": "q"}', "needs questions with answers"),
        (["--general_choices"], "\n", "holds no multiple-choice question"),
    ],
    ids=[
        "empty",
        "no question",
        "broken suite",
        "nothing general",
        "nothing to be right",
        "nothing to be exact",
        "empty suite",
    ],
)
def test_bad_input_is_named(arguments, content, said, toy_model, tmp_path):
    bad = tmp_path / "坏 文件.jsonl"
    bad.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        compare(toy_model, toy_model, *arguments, bad)
