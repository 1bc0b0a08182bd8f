"""Bad input: one paragraph on one rank, exit code 2, no traceback, and nobody waits."""

import json
import os
import subprocess
import sys

import pytest
from runs import REPOSITORY, launch


def run_flags(model, data, output, **more):
    values = {"model_name_or_path": model, "train_file": data, "output_dir": output, "max_steps": 2} | more
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


def assert_refused(result, *words):
    output = result.stdout + result.stderr
    assert result.returncode == 2, output
    assert "Traceback" not in output
    told = [line for line in output.splitlines() if line.startswith("medsft: error")]
    assert len(told) == 1, output
    for word in words:
        assert word in told[0]


def holds_a_finished_run_without_checkpoints(tmp_path, _):
    (tmp_path / "run").mkdir()
    for name in ("run.json", "DONE"):
        (tmp_path / "run" / name).write_text("{}")
    return {}, ["already holds a run (run.json, DONE)", "--overwrite_output_dir"]


def path_without_a_checkpoint(tmp_path, _):
    (tmp_path / "别的 run").mkdir()
    return {"resume_from_checkpoint": tmp_path / "别的 run"}, ["别的 run", "holds no checkpoints"]


def states_out_of_reach(tmp_path, _):
    path = tmp_path / "藏起来.json"
    offload = {"device": "cpu", "ratio": 0.5}
    zero = {"stage": 3, "offload_optimizer": offload}
    path.write_text(json.dumps({"zero_optimization": zero, "bf16": {"enabled": True}}))
    return {"deepspeed": path}, ["hides optimiser states from checkpoints", "offload_optimizer.ratio is 0.5"]


def contradicting_json(tmp_path, _):
    path = tmp_path / "矛盾.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}, "gradient_clipping": 0.3}))
    return {"deepspeed": path}, ["矛盾.json", "gradient_clipping is 0.3", "--max_grad_norm is 1.0"]


def left_there(run):
    """What a run has left in its folder but lock, logs and tokenised data, which a refused one may make."""
    found = sorted(path.name for path in run.iterdir()) if run.exists() else []
    return [name for name in found if name not in (".lock", "logs", "data_cache")]


def missing_data(tmp_path, _):
    return {"train_file": tmp_path / "没有.jsonl"}, ["没有.jsonl"]


def empty_data(tmp_path, _):
    (tmp_path / "empty.jsonl").write_text("")
    return {"train_file": tmp_path / "empty.jsonl"}, ["empty.jsonl"]


def example_longer_than_the_micro_batch(tmp_path, data):
    return {"micro_batch_tokens": 16}, [str(data), "16"]


def missing_model(tmp_path, _):
    return {"model_name_or_path": tmp_path / "nothing"}, ["nothing"]


def limits_beyond_the_positions(tmp_path, _):
    return {"max_source_length": 3000}, ["--max_source_length 3000", "--max_target_length 256"]


def more_than_the_memory(tmp_path, _):
    """A row of half a million tokens: its attention mask alone is terabytes."""
    return {"per_device_train_batch_size": 20_000}, [
        "the run cannot fit",
        "activations",
        "--allow_low_memory true",
    ]


def unfitting_batch(tmp_path, _):
    more = {"global_batch_size": 16, "gradient_accumulation_steps": 3}
    return more, ["--global_batch_size 16", "--gradient_accumulation_steps 3"]


@pytest.mark.parametrize(
    "fault",
    [
        holds_a_finished_run_without_checkpoints,
        pytest.param(contradicting_json, marks=pytest.mark.slow),
        states_out_of_reach,
        pytest.param(missing_data, marks=pytest.mark.slow),
        example_longer_than_the_micro_batch,
    ],
    ids=lambda fault: fault.__name__,
)
def test_two_ranks_refuse_together(fault, toy_model, instruction_file, tmp_path):
    more, words = fault(tmp_path, instruction_file)
    flags = run_flags(toy_model, instruction_file, tmp_path / "run", **more)
    before = left_there(tmp_path / "run")
    assert_refused(launch(flags, ranks=2), *words)
    assert left_there(tmp_path / "run") == before


@pytest.mark.parametrize(
    "fault",
    [
        empty_data,
        missing_model,
        limits_beyond_the_positions,
        unfitting_batch,
        more_than_the_memory,
        path_without_a_checkpoint,
    ],
    ids=lambda fault: fault.__name__,
)
def test_a_single_process_refuses(fault, toy_model, instruction_file, tmp_path):
    more, words = fault(tmp_path, instruction_file)
    flags = run_flags(toy_model, instruction_file, tmp_path / "run", **more)
    assert_refused(launch(flags, launcher="python"), *words)


def test_unknown_flags_are_refused_before_the_ranks_meet(tmp_path):
    assert_refused(launch(["--lerning_rate", "1"], ranks=2), "--lerning_rate", "learning_rate")


@pytest.mark.parametrize(
    ("environment", "word"),
    [
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "0"}, "WORLD_SIZE='0'"),
        ({"RANK": "0"}, "WORLD_SIZE"),
        ({"RANK": "1"}, "WORLD_SIZE"),
        ({"RANK": "x", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK='x'"),
        ({"RANK": "2", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}, "RANK='2'"),
    ],
)
def test_a_senseless_world_is_refused(environment, word, tmp_path):
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"} if "WORLD_SIZE" in environment else {}
    result = subprocess.run(
        [sys.executable, str(REPOSITORY / "medsft" / "train.py"), *run_flags("m", "d", tmp_path)],
        env={**os.environ, **environment, **place},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert_refused(result, word)


def test_a_run_refused_before_training_leaves_the_folder_free(toy_model, instruction_file, tmp_path):
    run = tmp_path / "run"
    assert_refused(launch(run_flags(toy_model, tmp_path / "no.jsonl", run), launcher="python"), "no.jsonl")
    assert left_there(run) == []


def test_a_run_that_died_before_its_first_checkpoint_starts_over(toy_model, instruction_file, tmp_path):
    run = tmp_path / "run"
    (run / "tensorboard").mkdir(parents=True)
    (run / "run.json").write_text('{"died": "early"}')
    (run / "checkpoints" / ".step-00000001.tmp").mkdir(parents=True)
    (run / "notes of mine.txt").write_text("stays")
    flags = run_flags(toy_model, instruction_file, run, save_strategy="no")
    result = launch(flags, launcher="python")
    assert result.returncode == 0, result.stderr
    assert "what an earlier run left" in result.stdout
    old = run / "previous-1"
    assert json.loads((old / "run.json").read_text()) == {"died": "early"}
    assert sorted(path.name for path in old.iterdir()) == ["checkpoints", "run.json", "tensorboard"]
    assert (run / "notes of mine.txt").exists()
    assert (run / "DONE").exists()
