"""A run that ends and is started again: bit for bit the same, on any number of ranks, from what is good."""

import hashlib
import json
import os
import random
import shutil
import signal
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest
import torch
from runs import REPOSITORY, launch, ranks_of, read_metrics, running, wait_for_step
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NUM_STEPS = 14
SAVE_STEPS = 4


def flags(toy_model, instruction_file, out, **more):
    """Flags of a run of 14 steps of 8 examples that saves after every fourth."""
    settings = {
        "model_name_or_path": toy_model,
        "train_file": instruction_file,
        "output_dir": out,
        "max_source_length": 96,
        "max_target_length": 96,
        "per_device_train_batch_size": 2,
        "global_batch_size": 8,
        "max_steps": NUM_STEPS,
        "learning_rate": 1e-3,
        "weight_decay": 0.01,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": SAVE_STEPS,
        "data_cache_dir": Path(out).parent / "data cache",
    } | more
    return [
        text for name, value in settings.items() if value is not None for text in (f"--{name}", str(value))
    ]


def curve(run):
    """Step -> (loss, gradient norm, examples seen), in the order of the file."""
    return {r["step"]: (r["loss"], r["grad_norm"], r["examples_seen"]) for r in read_metrics(run)}


def weights_digest(folder):
    """SHA-256 of all tensors of a model folder."""
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        digest.update(name.encode() + tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def checkpoint_steps(run):
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*"))


def finish(arguments, ranks, *said, launcher="launcher", timeout_s=240):
    """Starts the run again, to its end; what it printed must contain `said`."""
    done = launch(arguments, ranks, launcher, timeout_s=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    for text in said:
        assert text in done.stdout + done.stderr, done.stdout + done.stderr
    return done


PRECISIONS = {
    "fp32": REPOSITORY / "ds_configs" / "zero3_cpu.json",
    "bf16": REPOSITORY / "ds_configs" / "zero3.json",
}


@pytest.fixture(scope="module")
def whole(toy_model, instruction_file, tmp_path_factory):
    """Precision -> folder of a run of two ranks that nobody disturbed; made once."""

    @cache
    def run(precision):
        out = tmp_path_factory.mktemp("不间断 runs") / precision
        finish(flags(toy_model, instruction_file, out, deepspeed=PRECISIONS[precision]), 2)
        return out

    return run


def assert_same_run(out, reference):
    """Every step once and in order, every figure and every weight bit for bit."""
    assert curve(out) == curve(reference)
    assert [record["step"] for record in read_metrics(out)] == list(range(1, NUM_STEPS + 1))
    assert weights_digest(out / "model") == weights_digest(reference / "model")


@contextmanager
def held_after(step, arguments, out, folder):
    """A run of two ranks that waits after a step until `folder` has "go on"; else it might be over soon."""
    wait = {"WAIT_AFTER": str(step), "WAIT_FOR": str(folder / "go on")}
    script = REPOSITORY / "tests" / "integration" / "faulty_train.py"
    with running(["wait", *arguments], folder / "log", ranks=2, script=script, **wait) as process:
        wait_for_step(out, step, process)
        yield process


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit(precision, whole, toy_model, instruction_file, tmp_path):
    out = tmp_path / "杀掉 run"
    # The other run asks its model nothing meanwhile: samples change no bit.
    more = {"deepspeed": PRECISIONS[precision], "sample_steps": NUM_STEPS // 2}
    arguments = flags(toy_model, instruction_file, out, **more)
    chance = random.Random(precision)
    with held_after(chance.randint(SAVE_STEPS + 1, NUM_STEPS - 3), arguments, out, tmp_path) as process:
        ranks_of(process)[chance.randint(0, 1)].kill()
        (tmp_path / "go on").touch()
        assert process.wait(timeout=120) == 128 + signal.SIGKILL, (tmp_path / "log").read_text()
    assert not (out / "DONE").exists()
    finish(arguments, 2, "going on from")
    assert_same_run(out, whole(precision))
    assert [line["step"] for line in read_metrics(out, "samples")] == [NUM_STEPS // 2, NUM_STEPS]
    events = EventAccumulator(str(out / "tensorboard"), purge_orphaned_data=True).Reload()
    shown = {tag: [point.step for point in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert shown["loss/train"] == list(range(1, NUM_STEPS + 1))
    assert all(steps == sorted(set(steps)) for steps in shown.values()), shown


@pytest.mark.parametrize(
    ("number", "precision"),
    [(signal.SIGTERM, "fp32"), pytest.param(signal.SIGUSR2, "bf16", marks=pytest.mark.slow)],
)
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(
    number, precision, whole, toy_model, instruction_file, tmp_path
):
    out = tmp_path / "run"
    more = {"deepspeed": PRECISIONS[precision], "save_strategy": "no", "save_steps": None}
    arguments = flags(toy_model, instruction_file, out, **more)
    with held_after(3, arguments, out, tmp_path) as process:
        last = ranks_of(process)[-1]
        last.send_signal(number)
        last.send_signal(number)  # again, in the middle of it
        (tmp_path / "go on").touch()
        assert process.wait(timeout=120) == 75, (tmp_path / "log").read_text()
    log = (tmp_path / "log").read_text()
    assert "same command" in log and "Traceback" not in log
    (stopped,) = checkpoint_steps(out)
    assert max(curve(out)) == stopped
    finish(arguments, 2, f"going on from {out}/checkpoints/step-{stopped:08}: step {stopped} of {NUM_STEPS}")
    assert_same_run(out, whole(precision))


def test_any_number_of_ranks_goes_on(toy_model, instruction_file, tmp_path):
    out = tmp_path / "run"
    arguments = flags(toy_model, instruction_file, out, save_steps=3)
    for ranks, steps, launcher in (
        (2, 3, "launcher"),
        (1, 6, "python"),
        (3, 9, "torchrun"),
        (2, 14, "launcher"),
    ):
        # Fewer steps than in the end, but the learning rate of the whole: its schedule is flat here.
        finish([*arguments, "--max_steps", str(steps), *CONSTANT], ranks, launcher=launcher)
    reference = tmp_path / "reference"
    finish(
        [*flags(toy_model, instruction_file, reference, save_strategy="no", save_steps=None), *CONSTANT], 2
    )
    ours, theirs = curve(out), curve(reference)
    assert list(ours) == list(theirs) == list(range(1, NUM_STEPS + 1))
    for step, (loss, norm, seen) in ours.items():
        assert loss == pytest.approx(theirs[step][0], rel=1e-5)
        assert norm == pytest.approx(theirs[step][1], rel=1e-3)
        assert seen == theirs[step][2]
    # DONE and model of the shorter runs are not lost, and not in the way.
    assert sorted(path.name for path in out.glob("previous-*/*")) == ["DONE"] * 3 + ["model"] * 3


CONSTANT = ("--lr_scheduler_type", "constant", "--warmup_ratio", "0")


@pytest.fixture
def run_folder(whole, tmp_path):
    """A copy of the finished run, without its end: checkpoints of the steps 12 and 14."""
    out = tmp_path / "拷贝 run"
    shutil.copytree(whole("fp32"), out)
    (out / "DONE").unlink()
    return out


def test_damage_is_named_and_the_one_before_is_taken(run_folder, toy_model, instruction_file):
    shard = run_folder / "checkpoints" / "step-00000014" / "rank-00001-of-00002.safetensors"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    (run_folder / "checkpoints" / "latest").write_text("")
    before = curve(run_folder)
    done = finish(flags(toy_model, instruction_file, run_folder), 2, "going on from", "step 12 of 14")
    found = hashlib.sha256(content).hexdigest()
    said = done.stdout + done.stderr
    assert "step-00000014 is passed over" in said and str(shard) in said and found in said
    assert curve(run_folder) == before
    assert checkpoint_steps(run_folder) == [12, 14]
    assert (run_folder / "checkpoints" / "latest").read_text() == "step-00000014\n"
    # The damaged one is kept for whoever wants to look, where no run takes it for its own.
    aside = run_folder / "checkpoints" / "previous-1"
    assert sorted(path.name for path in aside.iterdir()) == ["metrics.jsonl", "step-00000014"]


def test_it_never_starts_over_when_no_checkpoint_is_good(run_folder, toy_model, instruction_file):
    for step, harm in ((12, lambda path: path.unlink()), (14, lambda path: os.truncate(path, 1000))):
        harm(run_folder / "checkpoints" / f"step-{step:08}" / "rank-00000-of-00002.safetensors")
    before = sorted(path for path in run_folder.rglob("*") if "tensorboard" not in path.parts)
    done = launch(flags(toy_model, instruction_file, run_folder), 2)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "no checkpoint is good" in done.stderr and "missing" in done.stderr and "1000 bytes" in done.stderr
    assert sorted(path for path in run_folder.rglob("*") if "tensorboard" not in path.parts) == before


def test_another_run_is_refused_with_both_values(run_folder, toy_model, instruction_file):
    change = {"seed": 7, "global_batch_size": 4, "max_train_samples": 100}
    done = launch(flags(toy_model, instruction_file, run_folder, **change), launcher="python")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    for text in ("seed was 42 and is 7", "global_batch_size was 8 and is 4", "data was", "--allow_changed"):
        assert text in done.stderr


def test_a_change_that_is_meant_is_allowed_and_told(run_folder, toy_model, instruction_file):
    arguments = flags(
        toy_model,
        instruction_file,
        run_folder,
        seed=7,
        allow_changed="seed",
        max_steps=16,
        learning_rate=5e-4,
    )
    finish(arguments, 1, "seed was 42 and is 7", "--learning_rate 0.001 → 0.0005", launcher="python")
    assert max(curve(run_folder)) == 16


@pytest.mark.slow
def test_another_folder_may_begin_with_this_checkpoint(run_folder, toy_model, instruction_file, tmp_path):
    checkpoint = run_folder / "checkpoints" / "step-00000012"
    out = tmp_path / "branch"
    finish(
        flags(toy_model, instruction_file, out, resume_from_checkpoint=checkpoint),
        2,
        f"going on from {checkpoint}: step 12",
    )
    assert curve(out) == {step: values for step, values in curve(run_folder).items() if step > 12}


def test_a_stop_file_ends_the_run_and_is_gone(toy_model, instruction_file, tmp_path):
    out = tmp_path / "run"
    arguments = flags(toy_model, instruction_file, out, max_steps=400, save_strategy="no", save_steps=None)
    with running(arguments, tmp_path / "log", launcher="python") as process:
        wait_for_step(out, 2, process)
        (out / "STOP").touch()
        assert process.wait(timeout=120) == 75, (tmp_path / "log").read_text()
    assert not (out / "STOP").exists()
    assert "STOP file" in (tmp_path / "log").read_text()
    assert checkpoint_steps(out) == [max(curve(out))]


def test_retention_early_stopping_and_what_a_checkpoint_says_of_itself(toy_model, instruction_file, tmp_path):
    out = tmp_path / "run"
    # After the first, no validation loss is lower by so much: the third ends the run.
    arguments = flags(
        toy_model, instruction_file, out, save_steps=1, keep_every_steps=5, save_total_limit=1,
        logging_steps=4, validation_file=instruction_file, eval_steps=3, max_steps=20,
        early_stopping_patience=2, early_stopping_threshold=100,
    )  # fmt: skip
    finish(arguments, 1, "the training ends here", "at best, after step", launcher="python")
    assert json.loads((out / "DONE").read_text())["step"] == 9
    losses = {record["step"]: record["loss"] for record in read_metrics(out, "validation")}
    best = min((loss, step) for step, loss in losses.items())[1]
    assert list(losses) == [3, 6, 9]
    assert checkpoint_steps(out) == sorted({5, 9, best})
    manifest = json.loads((out / "checkpoints" / "step-00000005" / "manifest.json").read_text())
    assert manifest["step"] == manifest["adam_step"] == 5
    assert manifest["examples_seen"] == 40 and manifest["epoch"] == pytest.approx(40 / 512)
    assert manifest["validation"].pop("data") == manifest["identity"]["data"]
    assert manifest["validation"] == {"step": 3, "loss": losses[3]}
    # The last step is reported though none was due there, each step's examples once.
    reports = {record["step"]: record for record in read_metrics(out)}
    assert list(reports) == [4, 8, 9]
    assert [report["examples_seen"] for report in reports.values()] == [32, 64, 72]
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    points = {point.step: point.value for point in board.Scalars("loss/train")}
    assert points == {step: pytest.approx(report["loss"]) for step, report in reports.items()}
    assert json.loads((out / "DONE").read_text())["train_loss"] == reports[9]["loss"]
    assert all(report["busy_max_s"] > report["data_wait_s"] for report in reports.values())
    saves = read_metrics(out, "checkpoint")
    assert [save["step"] for save in saves] == list(range(1, 10))
    assert all(save["num_bytes"] > 0 and save["stall_s"] >= 0 for save in saves)


@pytest.mark.slow
def test_a_run_that_goes_on_with_other_validation_data_counts_anew(toy_model, instruction_file, tmp_path):
    out, other = tmp_path / "run", tmp_path / "other.jsonl"
    lines = instruction_file.read_text(encoding="utf-8").splitlines(keepends=True)
    other.write_text("".join(lines[:40]), encoding="utf-8")
    settings = {
        "validation_file": instruction_file, "eval_steps": 3, "max_steps": 40, "save_steps": 3,
        "early_stopping_patience": 2, "early_stopping_threshold": 100,
    }  # fmt: skip
    finish(flags(toy_model, instruction_file, out, **settings), 1, launcher="python")
    settings["validation_file"] = other
    arguments = flags(toy_model, instruction_file, out, **settings)
    finish(arguments, 1, "validation data are others than those of step 9", launcher="python")
    # 12 is the first of its kind and progress; the second after it without any ends the run.
    assert [record["step"] for record in read_metrics(out, "validation")] == [3, 6, 9, 12, 15, 18]
    assert json.loads((out / "DONE").read_text())["step"] == 18
    finish(arguments, 1, "nothing to do", launcher="python")


@pytest.mark.slow
def test_time_decides_when_asked_to(toy_model, instruction_file, tmp_path):
    out = tmp_path / "run"
    arguments = flags(
        toy_model, instruction_file, out, save_strategy="time", save_steps=None, save_minutes=0.001,
        save_total_limit=100,
    )  # fmt: skip
    finish(arguments, 1, launcher="python")
    assert len(checkpoint_steps(out)) > 2 and max(checkpoint_steps(out)) == NUM_STEPS


def offloaded(name, tmp_path):
    """One of ds_configs, with NVMe, if it uses that, in a folder of its own and small sub-groups."""
    content = json.loads((REPOSITORY / "ds_configs" / name).read_text())
    zero = content["zero_optimization"]
    zero["sub_group_size"] = 50_000  # several of them in a toy
    if zero["offload_optimizer"]["device"] == "nvme":
        zero["offload_optimizer"]["nvme_path"] = str(tmp_path / "nvme")
        (tmp_path / "nvme").mkdir()
    path = tmp_path / name
    path.write_text(json.dumps(content))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["zero3_offload_all.json", "zero3_nvme.json"])
def test_offloaded_states_resume_bit_for_bit(name, toy_model, instruction_file, tmp_path):
    if "nvme" in name and not Path("/usr/include/libaio.h").exists():
        pytest.skip("DeepSpeed's NVMe swapping needs libaio (apt install libaio-dev)")
    config = offloaded(name, tmp_path)
    one, two = tmp_path / "one", tmp_path / "two"
    more = {"deepspeed": config, "save_steps": 3, "save_total_limit": 9, "max_steps": 6}
    finish(flags(toy_model, instruction_file, one, **more), 2, timeout_s=900)
    start = one / "checkpoints" / "step-00000003"
    finish(flags(toy_model, instruction_file, two, resume_from_checkpoint=start, **more), 2)
    assert curve(two) == {step: values for step, values in curve(one).items() if step > 3}
    assert weights_digest(two / "model") == weights_digest(one / "model")
