"""`medsft eval` on a toy: loss, answers, scores; interrupted and taken up again; on two ranks."""

import json
import math
import subprocess
import sys
from dataclasses import replace

import pytest
from runs import REPOSITORY
from typer.testing import CliRunner

from medsft.cli import app
from medsft.data.records import read_files
from medsft.engine.distributed import World
from medsft.errors import UserError
from medsft.evaluation.predict import answer_all, answers_key
from medsft.inference.responder import open_responder
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
    with pytest.raises(UserError, match="mixes kinds"):
        evaluate("--model", toy_model, "--device", "cpu,meta", *flags)


def test_two_ranks_find_the_same(evaluated, toy_model, instruction_file, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = ["--model", toy_model, "--questions", instruction_file, "--output_dir", tmp_path, *FLAGS]
    done = subprocess.run(
        [*command, "-m", "medsft.cli", "eval", *map(str, arguments)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert read(tmp_path) == read(evaluated)
    name = "generated_predictions.txt"
    assert (tmp_path / name).read_bytes() == (evaluated / name).read_bytes()


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


def test_questions_without_answers_are_named(toy_model, tmp_path):
    bad = tmp_path / "没有答案.jsonl"
    bad.write_text('{"context": "什么？", "target": ""}\n', encoding="utf-8")
    with pytest.raises(UserError, match="No example can be used"):
        evaluate("--model", toy_model, "--questions", bad, "--output_dir", tmp_path / "out")
