"""A run from its flags to a model that answers, with real processes."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import launch, read_metrics, running, wait_for_step
from safetensors import safe_open
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import (
    EventAccumulator as PluginEventAccumulator,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

import medsft.chatglm  # noqa: F401  registers ChatGLM
from medsft.chatglm.weights import check_release, load_model
from medsft.monitor.tensorboard import TAGS

MEDSFT = str(Path(sys.executable).with_name("medsft"))
NUM_STEPS = 12


@pytest.fixture(scope="module")
def finished_run(toy_model, instruction_file, tmp_path_factory):
    """Two bf16 ranks through the launcher, settings from a YAML file, checkpoints, small shards."""
    folder = tmp_path_factory.mktemp("运行 1")
    run = folder / "out put"
    settings = folder / "设置.yaml"
    settings.write_text(
        f"model_name_or_path: {json.dumps(str(toy_model))}\n"
        f"train_file: [{json.dumps(str(instruction_file))}]\n"
        "learning_rate: 2.0e-3\nlr_scheduler_type: cosine\nmax_train_samples: 100\nglobal_batch_size: 25\n"
        "save_strategy: steps\nsave_steps: 5\nmax_shard_size: 200KB\nlogging_steps: 3\nweight_decay: 0.01\n"
        f"sample_steps: {NUM_STEPS}\n",
        encoding="utf-8",
    )
    flags = ["--config", str(settings), "--output_dir", str(run), "--deepspeed", "ds_configs/zero3.json"]
    flags += ["--gradient_checkpointing", "true"]
    result = launch(flags, ranks=2)
    assert result.returncode == 0, result.stdout + result.stderr
    return run, result.stdout, flags


def test_the_console_shows_what_is_supervised_and_one_line_a_report(finished_run):
    _, output, _ = finished_run
    lines = output.splitlines()
    assert sum(line.startswith("context ") for line in lines) == 1
    assert sum(line.startswith("supervised ") for line in lines) == 1
    reports = [line for line in lines if line.startswith("step ") and "  loss " in line]
    assert len(reports) == NUM_STEPS // 3
    assert all("tokens/s" in line and "left 0:" in line for line in reports)
    assert any(line.startswith("training loss ") for line in lines)
    assert any(line.startswith(f"step {NUM_STEPS}/{NUM_STEPS}  sample: ") for line in lines)
    saves = [line for line in lines if "checkpoint written: " in line]
    assert [line.split("/")[0].split()[-1] for line in saves] == ["5", "10", "12"]
    assert all("training waited" in line and "MB/s" in line for line in saves)


def test_the_loss_falls_and_every_figure_is_there(finished_run):
    run, *_ = finished_run
    metrics = read_metrics(run)
    assert [line["step"] for line in metrics] == [3, 6, 9, 12]
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.3
    assert metrics[-1]["examples_seen"] == 300
    assert metrics[-1]["epoch"] == 3.0
    assert metrics[-1]["packing_efficiency"] > 0.95
    assert metrics[0]["supervised_tokens_per_s"] < metrics[0]["tokens_per_s"]
    for line in metrics:
        parts = line["forward_s"] + line["backward_s"] + line["optimizer_s"]
        # Means over the ranks; the whole is rank 0's own clock.
        assert 0 < parts < 1.5 * line["step_time_s"]
        assert 0 < line["busy_min_s"] <= line["busy_median_s"] <= line["busy_max_s"]
        assert line["host_memory_gb"] > 0.1 and line["tflops_per_device"] > 0
        # A CPU has no memory of its own, nobody states its peak, and bf16 needs no loss scale.
        assert all(line[name] is None for name in ("gpu_peak_gb", "mfu", "loss_scale"))
    (start,) = read_metrics(run, "start")
    assert (start["step"], start["world_size"], start["hosts"]) == (0, 2, [socket.gethostname()])


def test_tensorboard_has_the_same_points(finished_run):
    run, *_ = finished_run
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name, tag in TAGS.items():
        known = [line for line in read_metrics(run) if line[name] is not None]
        points = [(event.step, event.value) for event in events.Scalars(tag)] if known else []
        assert points == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in known]
    for name in ("stall_s", "write_s"):
        points = [(event.step, event.value) for event in events.Scalars(f"saving/{name}")]
        saves = read_metrics(run, "checkpoint")
        assert points == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in saves]


def test_tensorboard_has_the_texts_and_the_hyperparameters(finished_run):
    run, *_ = finished_run
    events = PluginEventAccumulator(str(run / "tensorboard")).Reload()
    texts = {
        tag.removesuffix("/text_summary"): events.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in events.PluginTagToContent("text")
    }
    assert "| `learning_rate` | `0.002` |" in texts["run/flags"]
    assert '"stage": 3' in texts["run/deepspeed"]
    assert f"{NUM_STEPS} steps of 25 examples" in texts["run/plan"]
    assert f"| 1 | {socket.gethostname()} |" in texts["run/ranks"]
    assert "100 examples" in texts["data/summary"]
    assert "8 of 25 examples" in texts["data/first batch"] and "supervised (" in texts["data/first batch"]
    (line,) = read_metrics(run, "samples")
    assert line["step"] == NUM_STEPS
    for number, sample in enumerate(line["samples"], start=1):
        card = texts[f"samples/question {number}"]
        assert all(part in card for text in sample.values() for part in text.split("\n"))
    assert [bool(sample["expected"]) for sample in line["samples"]] == [True, True, False, False]
    assert "_hparams_/session_start_info" in events.PluginTagToContent("hparams")
    (loss,) = EventAccumulator(str(run / "tensorboard")).Reload().Scalars("result/train_loss")
    assert (loss.step, loss.value) == (NUM_STEPS, pytest.approx(read_metrics(run)[-1]["loss"], rel=1e-6))


def test_the_run_describes_itself(finished_run, toy_model):
    run, *_ = finished_run
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert (facts["world_size"], facts["num_steps"], facts["num_examples"]) == (2, NUM_STEPS, 100)
    assert facts["flags"]["model_name_or_path"] == str(toy_model)
    assert facts["deepspeed"]["zero_optimization"]["stage"] == 3
    assert json.loads((run / "DONE").read_text())["step"] == NUM_STEPS


def test_the_model_folder_is_complete_sound_and_in_shards(finished_run):
    run, *_ = finished_run
    model = run / "model"
    check_release(model, read_everything=True)
    shards = sorted(model.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    assert all(path.stat().st_size < 250_000 for path in shards)
    names = set()
    for path in shards:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                # The release has its rotary buffers in fp16, whatever the weights are.
                is_buffer = name.endswith("rotary_emb.inv_freq")
                assert file.get_tensor(name).dtype == (torch.float16 if is_buffer else torch.bfloat16), name
            names |= set(file.keys())
    assert names == set(json.loads((model / "model.safetensors.index.json").read_text())["weight_map"])
    for name in ("config.json", "generation_config.json", "ice_text.model", "tokenizer_config.json"):
        assert (model / name).exists()
    assert not list(run.glob(".*.tmp"))


def test_the_model_card_names_data_and_flags(finished_run):
    run, *_ = finished_run
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    for part in (facts["data_fingerprint"], "`--learning_rate` | `0.002`", "medical advice", "300"):
        assert part in card


def test_it_loads_with_transformers_and_answers_in_batches(finished_run):
    run, *_ = finished_run
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    inputs = tokenizer(["头痛怎么办？", "感冒有哪些症状？要不要吃药？"], padding=True, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    assert output.shape[0] == 2
    ours = load_model(run / "model", torch.float32, "cpu")
    assert torch.equal(model.lm_head.weight, ours.lm_head.weight)


def test_checkpoints_are_there_and_become_models(finished_run, tmp_path):
    run, *_ = finished_run
    folders = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert folders == ["latest", "step-00000010", "step-00000012"]
    models = {step: tmp_path / f"模型 {step}" for step in (10, 12)}
    for step, output in models.items():
        export = [MEDSFT, "export", str(run), str(output), "--step", str(step)]
        result = subprocess.run(export, capture_output=True, text=True, timeout=120, check=False)
        assert result.returncode == 0, result.stderr
    weights = {
        step: load_model(model, torch.float32, "cpu").state_dict()
        for step, model in (models | {"final": run / "model"}).items()
    }
    assert weights[12].keys() == weights["final"].keys()
    assert all(torch.equal(weights[12][name], tensor) for name, tensor in weights["final"].items())
    assert not torch.equal(weights[10]["lm_head.weight"], weights["final"]["lm_head.weight"])
    assert json.loads((models[10] / "medsft.json").read_text(encoding="utf-8"))["step"] == 10


def test_a_piped_chat_answers_line_by_line_and_leaves_at_q(finished_run):
    run, *_ = finished_run
    result = subprocess.run(
        [MEDSFT, "chat", "--model", str(run), "--greedy", "--max_new_tokens", "6"],
        input="头痛怎么办？\n\n[gMASK]<sop>是什么？\nclear\nq\n没有人会回答这一句\n",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2
    assert "Traceback" not in result.stderr


def contents(run):
    """Path -> (size, time of the last change) of all files of a run but its lock, logs and data."""
    return {
        path: (path.stat().st_size, path.stat().st_mtime_ns)
        for path in run.rglob("*")
        if path.is_file() and path.name != ".lock" and not {"data_cache", "logs"} & {*path.parts}
    }


def test_the_same_command_finds_nothing_to_do_and_another_starts_over(
    finished_run, toy_model, instruction_file
):
    run, _, flags = finished_run
    before = contents(run)
    again = launch(flags, ranks=2)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"holds a finished run of {NUM_STEPS} steps (DONE): nothing to do" in again.stdout
    assert contents(run) == before

    flags = ["--model_name_or_path", str(toy_model), "--train_file", str(instruction_file)]
    flags += ["--output_dir", str(run), "--max_steps", "1", "--global_batch_size", "4"]
    refused = launch(flags, launcher="python")
    assert refused.returncode == 2
    assert "global_batch_size was 25 and is 4" in refused.stderr
    assert contents(run) == before

    over = launch([*flags, "--overwrite_output_dir", "true", "--save_strategy", "no"], launcher="python")
    assert over.returncode == 0, over.stderr
    assert json.loads((run / "DONE").read_text())["step"] == 1
    old = {path.relative_to(run / "previous-1") for path in contents(run / "previous-1")}
    assert old == {path.relative_to(run) for path in before}

    # That run has finished and left no checkpoint: there is nothing to go on from, and much to lose.
    refused = launch(flags, launcher="python")
    assert refused.returncode == 2
    assert "already holds a run" in refused.stderr


def test_ctrl_c_stops_all_ranks_with_a_checkpoint_and_without_a_traceback(
    toy_model, instruction_file, tmp_path
):
    run, log = tmp_path / "run", tmp_path / "log"
    flags = ["--model_name_or_path", str(toy_model), "--train_file", str(instruction_file)]
    flags += ["--output_dir", str(run), "--max_steps", "100000", "--logging_steps", "1"]
    with running(flags, log, ranks=2) as process:
        wait_for_step(run, 1, process)
        time.sleep(0.3)  # into the middle of a step
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=120) == 75, log.read_text()
    output = log.read_text()
    assert "Traceback" not in output
    assert "SIGINT: stopped after step" in output
    assert (run / "checkpoints" / "latest").exists()
    assert not (run / "DONE").exists()
