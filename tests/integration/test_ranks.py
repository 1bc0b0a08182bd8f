"""What each rank holds, and that ranks fail together when one of them fails."""

import json

import pytest
from runs import REPOSITORY, launch

HERE = REPOSITORY / "tests" / "integration"


def train_flags(model, data, run, **more):
    values = {
        "model_name_or_path": model,
        "train_file": data,
        "output_dir": run,
        "max_steps": 3,
        "global_batch_size": 8,
        "logging_steps": 1,
        "save_strategy": "no",
        "distributed_timeout_min": 5,  # were one rank to wait for another, the test would take this long
        **more,
    }
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_each_rank_holds_and_reads_its_own_slices_only(ranks, toy_model):
    result = launch([str(toy_model)], ranks, "torchrun", script=HERE / "slices_worker.py")
    assert result.returncode == 0, result.stderr
    reports = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert {report["rank"] for report in reports} == set(range(ranks))
    for report in reports:
        assert report["all_equal"]
        assert report["elements_held"] <= report["elements_in_all"] / ranks + 100
        assert report["bytes_read"] <= 4 * report["elements_held"]  # stored in fp32
        assert report["one_at_a_time"]
    num_bytes = sum(report["bytes_read"] for report in reports)
    assert num_bytes == 4 * reports[0]["elements_in_all"]


def told(result):
    """The lines in which a run says why it ended."""
    output = result.stdout + result.stderr
    return [line for line in output.splitlines() if line.startswith("medsft: ")]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("load", ["shard of", "fetch it again"]),
        ("write", ["cannot be written", "No space left on device", "--output_dir"]),
        ("data", ["fingerprint differs", "rank 0 has", "rank 1 has"]),
    ],
)
def test_a_fault_on_one_rank_is_told_once_and_ends_all(fault, words, toy_model, instruction_file, tmp_path):
    run = tmp_path / "run"
    flags = [fault, *train_flags(toy_model, instruction_file, run)]
    result = launch(flags, 2, "torchrun", script=HERE / "faulty_train.py")
    output = result.stdout + result.stderr
    assert "exitcode  : 2" in output or result.returncode == 2, output
    (line,) = told(result)
    for word in words:
        assert word in line
    assert not (run / "DONE").exists()
    assert not (run / "model").exists()
    assert not list(run.glob(".model*"))


def test_a_bug_on_one_rank_shows_its_traceback_and_ends_all(toy_model, instruction_file, tmp_path):
    flags = ["crash", *train_flags(toy_model, instruction_file, tmp_path / "run")]
    result = launch(flags, 2, "launcher", script=HERE / "faulty_train.py")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "rank 1 crashed" in result.stderr
    assert "ZeroDivisionError: a bug on rank 1" in result.stderr


def test_a_run_that_diverges_ends_with_its_own_exit_code(toy_model, instruction_file, tmp_path):
    flags = train_flags(
        toy_model,
        instruction_file,
        tmp_path / "run",
        max_steps=20,
        learning_rate=1e30,
        warmup_steps=0,
        max_nonfinite_steps=3,
    )
    result = launch(flags, 2)
    assert result.returncode == 3, result.stdout + result.stderr
    (line,) = told(result)
    assert "3 steps in a row" in line
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    last = json.loads(
        metrics.splitlines()[-1], parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    assert last["skipped_steps"] == 2
    assert last["loss"] is None


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("zero3_offload_optimizer.json", marks=pytest.mark.slow),
        "zero3_offload_all.json",
    ],
)
def test_offloaded_states_give_the_same_losses(name, toy_model, instruction_file, tmp_path):
    losses = []
    for path in ("zero3.json", name):
        run = tmp_path / path
        more = {"deepspeed": f"ds_configs/{path}", "learning_rate": 1e-3, "warmup_steps": 0, "max_steps": 5}
        result = launch(train_flags(toy_model, instruction_file, run, **more), 2, timeout_s=400)
        assert result.returncode == 0, result.stdout + result.stderr
        lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)  # bf16 weights, another Adam
    assert losses[0][-1] < losses[0][0] - 0.05


def test_epochs_decide_about_checkpoints_and_steps_about_validation(toy_model, instruction_file, tmp_path):
    run = tmp_path / "run"
    more = {
        "max_steps": -1,
        "num_train_epochs": 2,
        "max_train_samples": 20,
        "validation_file": instruction_file,
        "eval_steps": 2,
        "save_strategy": "epoch",
    }
    result = launch(train_flags(toy_model, instruction_file, run, **more), launcher="python")
    assert result.returncode == 0, result.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [2, 4, 5]
    assert [line["step"] for line in lines if line["kind"] == "checkpoint"] == [3, 5]
    checkpoints = sorted((run / "checkpoints").glob("step-*"))
    assert [folder.name for folder in checkpoints] == ["step-00000003", "step-00000005"]
    validation = {line["step"]: line["loss"] for line in lines if line["kind"] == "validation"}
    for folder, measured in zip(checkpoints, (2, 5), strict=True):
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        found = (manifest["validation"]["step"], manifest["validation"]["loss"])
        assert found == (measured, validation[measured])
    assert json.loads((run / "DONE").read_text())["step"] == 5
