"""`medsft eval` on a toy: loss, answers, scores; interrupted and taken up again; on two ranks."""

import json
import math
import multiprocessing
import os
import shutil
import signal
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from runs import REPOSITORY, launch
from typer.testing import CliRunner

from medsft.cli import app, progress
from medsft.data.records import Example, read_files
from medsft.engine.distributed import World
from medsft.errors import UserError
from medsft.evaluation.answer_loss import loss_sums
from medsft.evaluation.predict import answer_all, answers_key, write_predictions
from medsft.inference.responder import Responder, open_responder
from medsft.inference.sampling import Sampling

FLAGS = ("--num_questions", "5", "--batch_size", "2", "--max_target_length", "12")


def evaluate(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def evaluated(toy_model, instruction_file, tmp_path_factory):
    """A folder in which one process has evaluated the toy."""
    folder = tmp_path_factory.mktemp("评测") / "of one"
    result = evaluate("--model", toy_model, "--questions", instruction_file, "--output_dir", folder, *FLAGS)
    assert result.exit_code == 0, result.output
    assert "ROUGE-L" in result.output
    return folder


def read(folder):
    return json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))


def test_an_untrained_model_knows_nothing(evaluated, toy_model, instruction_file):
    found = read(evaluated)
    vocabulary = json.loads((toy_model / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    assert found["loss"] == pytest.approx(math.log(vocabulary), rel=0.1)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["scores"]["exact"] == 0
    lines = (evaluated / "generated_predictions.txt").read_text(encoding="utf-8").splitlines()
    examples = read_files([instruction_file]).examples[:5]
    assert [json.loads(line)["labels"] for line in lines] == [example.response for example in examples]
    assert not list(evaluated.glob("answers-*"))


def test_quantised_and_in_parts(evaluated, toy_model, instruction_file, tmp_path):
    """int4 changes the loss, a little; and asks for answers anew. Several devices are passed on."""
    flags = ("--questions", instruction_file, "--output_dir", tmp_path, *FLAGS)
    result = evaluate("--model", toy_model, "--quantize", "4", *flags)
    assert result.exit_code == 0, result.output
    assert 0 < abs(read(tmp_path)["loss"] / read(evaluated)["loss"] - 1) < 0.02
    with pytest.raises(UserError, match="is not there"):
        evaluate("--model", toy_model, "--device", "cpu,cuda", *flags)


def evaluate_until_killed(*arguments):
    """In a child process: ends it as `kill -9` does, once the first batch of answers is written down."""

    @contextmanager
    def killed_after_the_first_batch(what):
        yield lambda *_: os.kill(os.getpid(), signal.SIGKILL) if what == "answering" else None

    progress.progress = killed_after_the_first_batch
    evaluate(*arguments)


def test_two_ranks_finish_what_one_that_was_killed_began(evaluated, toy_model, instruction_file, tmp_path):
    arguments = ["--model", toy_model, "--questions", instruction_file, "--output_dir", tmp_path, *FLAGS]
    child = multiprocessing.get_context("fork").Process(target=evaluate_until_killed, args=arguments)
    child.start()
    child.join(timeout=240)
    assert child.exitcode == -signal.SIGKILL
    (part,) = tmp_path.iterdir()
    assert len(part.read_text(encoding="utf-8").splitlines()) == 2

    script = REPOSITORY / "medsft" / "cli" / "__main__.py"
    done = launch(["eval", *map(str, arguments)], 2, script=script)
    assert done.returncode == 0, done.stdout + done.stderr
    assert read(tmp_path) == read(evaluated)
    name = "generated_predictions.txt"
    assert (tmp_path / name).read_bytes() == (evaluated / name).read_bytes()
    assert not list(tmp_path.glob("answers-*"))


def test_predictions_are_written_as_thudm_writes_them(tmp_path):
    examples = [Example("问", " 答\n", (), ""), Example("问", '"引"', (), "")]
    write_predictions(tmp_path / "p.txt", examples, ["\n答 ", ""])
    written = (tmp_path / "p.txt").read_text(encoding="utf-8")
    assert written == '{"labels": "答", "predict": "答"}\n{"labels": "\\"引\\"", "predict": ""}\n'


def test_examples_of_a_row_lose_what_they_lose_alone(toy_model, instruction_file):
    responder = open_responder(toy_model, device="cpu")
    examples = read_files([instruction_file]).examples[:3]
    together = loss_sums(responder, examples, 64, 12)
    alone = [pair for example in examples for pair in loss_sums(responder, [example], 64, 12)]
    assert [num for _, num in together] == [num for _, num in alone]
    assert [loss for loss, _ in together] == pytest.approx([loss for loss, _ in alone], rel=1e-5)


def test_what_was_answered_is_not_asked_again(toy_model, instruction_file, tmp_path, monkeypatch):
    responder = open_responder(toy_model, device="cpu")
    examples = read_files([instruction_file]).examples[:3]
    sampling = Sampling(max_new_tokens=4, greedy=True)
    world = World(0, 1, 0, responder.model.device)
    key = answers_key("weights", "chatglm", examples, sampling)
    whole = answer_all(responder, examples, sampling, tmp_path, key, world, batch_size=1)

    (part,) = tmp_path.glob("answers-*.jsonl")
    lines = part.read_text(encoding="utf-8").split("\n")
    part.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20], encoding="utf-8")  # killed while writing
    asked = []
    ask = responder.answers
    monkeypatch.setattr(
        responder, "answers", lambda queries, *rest: asked.extend(queries) or ask(queries, *rest)
    )
    assert answer_all(responder, examples, sampling, tmp_path, key, world, batch_size=1) == whole
    assert len(asked) == 1
    answer_all(responder, examples, sampling, tmp_path, key, world, batch_size=1)
    assert len(asked) == 1

    other = answers_key("other weights", "chatglm", examples, replace(sampling, max_new_tokens=5))
    answer_all(responder, examples, sampling, tmp_path, other, world, batch_size=1)
    assert len(asked) == 4


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"context": "什么？", "target": ""}', "No example can be used.*没有.jsonl:1: empty answer"),
        ('{"prompt": "什么？"}', "No example can be used.*没有.jsonl:1: empty answer"),
        ("\n", "没有.jsonl holds no question"),
        ("", "没有.jsonl is empty"),
        ('{"prompt": "什', "没有.jsonl:1 is no question .broken JSON"),
    ],
    ids=["empty answer", "no answer", "no question", "no byte", "broken"],
)
def test_questions_that_cannot_be_used(content, said, toy_model, tmp_path):
    bad = tmp_path / "没有.jsonl"
    bad.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=said):
        evaluate("--model", toy_model, "--questions", bad, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def without_tokenizer(model: Path, folder: Path) -> Path:
    """A copy of a model that lacks its tokenizer."""
    shutil.copytree(model, folder)
    (folder / "ice_text.model").unlink()
    return folder


def test_a_missing_tokenizer_is_named(toy_model, instruction_file, tmp_path, monkeypatch):
    """By both commands, and by compare before the other model has been asked anything."""
    monkeypatch.setattr(Responder, "answers", None)
    lacking = without_tokenizer(toy_model, tmp_path / "无 词表")
    with pytest.raises(UserError, match=r"无 词表.*ice_text\.model is missing"):
        evaluate("--model", lacking, "--questions", instruction_file, "--output_dir", tmp_path / "out")
    for base, tuned in ((toy_model, lacking), (lacking, toy_model)):
        words = ["compare", "--base", base, "--tuned", tuned, "--questions", instruction_file]
        with pytest.raises(UserError, match=r"无 词表.*ice_text\.model is missing"):
            CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)


def test_no_folder_is_made_for_a_model_that_is_none(instruction_file, tmp_path):
    with pytest.raises(UserError, match="错 名"):
        evaluate("--model", tmp_path / "错 名", "--questions", instruction_file)
    assert not list(tmp_path.iterdir())
