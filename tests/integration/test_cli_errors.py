"""Wrong input to the `medsft` commands: one paragraph, exit code 2, nothing of the user's lost."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import REPOSITORY
from typer.testing import CliRunner

from medsft.chatglm.weights import load_model
from medsft.cli import app

MEDSFT = str(Path(sys.executable).with_name("medsft"))
GRAPH = REPOSITORY / "medsft" / "knowledge" / "sample.jsonl"


def assert_refused(result, *words):
    code, output, errors = result
    assert code == 2, output + errors
    assert "Traceback" not in errors
    (told,) = [line for line in errors.splitlines() if line.startswith("medsft: error")]
    for word in words:
        assert word in told


def test_a_graph_is_not_replaced_by_its_pairs(tmp_path, medsft):
    graph = tmp_path / "图谱.jsonl"
    shutil.copy(GRAPH, graph)
    assert_refused(medsft("data", "build", "--graph", graph, "--output", graph), "图谱.jsonl", "Name another")
    assert graph.read_bytes() == GRAPH.read_bytes()


def test_a_tokenizer_is_not_replaced(toy_model, instruction_file, medsft):
    before = (toy_model / "ice_text.model").read_bytes()
    result = medsft("tokenizer", "--train_file", instruction_file, "--output_dir", toy_model)
    assert_refused(result, "already holds a tokenizer", "ice_text.model")
    assert (toy_model / "ice_text.model").read_bytes() == before


def test_init_without_a_tokenizer_says_so_at_once(tmp_path, medsft):
    result = medsft("init", "--tokenizer", tmp_path / "无", "--output_dir", tmp_path / "new")
    assert_refused(result, "ice_text.model", "无")


def test_init_does_not_write_over_a_model(toy_model, medsft):
    result = medsft("init", "--tokenizer", toy_model, "--output_dir", toy_model)
    assert_refused(result, "already holds a model", "Choose another folder")


def test_init_makes_any_shape(toy_model, tmp_path, medsft):
    shape = {"hidden_size": 48, "num_layers": 5, "num_attention_heads": 3, "inner_hidden_size": 96}
    flags = [text for name, value in shape.items() for text in (f"--{name}", value)]
    flags += ["--max_sequence_length", 128, "--untied"]
    code, output, errors = medsft("init", "--tokenizer", toy_model, "--output_dir", tmp_path / "新", *flags)
    assert code == 0, errors
    config = json.loads((tmp_path / "新" / "config.json").read_text())
    assert {name: config[name] for name in shape} == shape
    assert (config["max_sequence_length"], config["tie_word_embeddings"]) == (128, False)
    model = load_model(tmp_path / "新", "fp32")
    assert f"{sum(param.numel() for param in model.parameters()):,} parameters" in output
    assert model.lm_head.weight is not model.transformer.word_embeddings.weight


def test_init_refuses_a_shape_that_cannot_be(toy_model, tmp_path, medsft):
    result = medsft("init", "--tokenizer", toy_model, "--output_dir", tmp_path / "x", "--hidden_size", 50)
    assert_refused(result, "hidden_size")
    assert not (tmp_path / "x").exists()


def test_an_unknown_preset_lists_those_there_are(toy_model, tmp_path, medsft):
    result = medsft("init", "--tokenizer", toy_model, "--output_dir", tmp_path / "x", "--preset", "7b")
    assert_refused(result, "7b", "6b", "toy")


@pytest.mark.parametrize("device", ["cuda:99", "gpu"])
def test_a_device_that_is_not_there(device, toy_model, medsft):
    assert_refused(medsft("chat", "--model", toy_model, "--device", device), device, "cpu")


def test_questions_in_another_encoding(toy_model):
    done = subprocess.run(
        [MEDSFT, "chat", "--model", str(toy_model)],
        input="头痛怎么办？\n".encode("gbk"),
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert_refused((done.returncode, done.stdout.decode(), done.stderr.decode()), "iconv")


def test_a_question_file_without_a_usable_line(toy_model, tmp_path, medsft):
    bad = tmp_path / "坏.jsonl"
    bad.write_text('{"a": 1}\n', encoding="utf-8")
    result = medsft("compare", "--base", toy_model, "--tuned", toy_model, "--questions", bad)
    assert_refused(result, "坏.jsonl:1")


def test_the_table_can_be_printed_in_gbk(toy_model, instruction_file):
    models = ("--base", toy_model, "--tuned", toy_model, "--questions", instruction_file)
    words = ["compare", *map(str, models), "--num_questions", "1", "--max_new_tokens", "4"]
    done = CliRunner(charset="gbk").invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "训练前后" in done.stdout_bytes.decode("gbk")


def test_a_damaged_provenance_is_named(toy_model, tmp_path, medsft):
    model = tmp_path / "model"
    shutil.copytree(toy_model, model)
    (model / "medsft.json").write_text(json.dumps({"format": 1}))
    assert_refused(medsft("chat", "--model", model), "medsft.json", "--prompt_template")
