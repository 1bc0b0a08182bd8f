"""One loss curve: ranks, micro-batches, packing and what ZeRO-3 sends at once must not show in the losses.

The reference is a plain loop of one process over the same step plan, which shares only the model, the plan
and the learning rates with the trainer: one example at a time, unpacked, with full logits and torch's own
clipping and AdamW.
"""

import json

import pytest
import torch
from runs import launch, read_metrics
from torch.nn import functional as F

from medsft.chatglm.base import open_base_model
from medsft.chatglm.weights import load_model
from medsft.data.cache import load_or_build
from medsft.data.plan import StepPlan
from medsft.engine.schedule import Schedule
from medsft.planner.shape import Shape

NUM_STEPS = 20
BATCH = 16
NUM_VALIDATION = 21
PEAK = 2e-3
SEED = 3
LENGTHS = {"max_source_length": 96, "max_target_length": 96}


@pytest.fixture(scope="module")
def reference(toy_model, instruction_file, tmp_path_factory):
    """Loss and gradient norm of each step, and the validation loss at the end."""
    base = open_base_model(toy_model)
    data = load_or_build([instruction_file], base.tokenizer, tmp_path_factory.mktemp("cache"), **LENGTHS)
    plan = StepPlan(len(data), data.fingerprint, BATCH, SEED, NUM_STEPS)
    model = load_model(toy_model, torch.float32, torch.device("cpu")).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK, weight_decay=0.0, eps=1e-8)
    schedule = Schedule("linear", PEAK, 2, NUM_STEPS)
    losses, norms = [], []
    for step in range(NUM_STEPS):
        rows = [data[int(index)] for index in plan.examples(step)]
        num_targets = sum(len(row.input_ids) - row.context_length for row in rows)
        total = 0.0
        for row in rows:
            ids = torch.tensor(row.input_ids, dtype=torch.int64)
            logits = model(input_ids=ids[None]).logits[0]
            first = row.context_length
            loss = F.cross_entropy(logits[first - 1 : -1], ids[first:], reduction="sum") / num_targets
            loss.backward()
            total += float(loss.detach())
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    assert losses[-1] < losses[0] - 0.5  # it learns, or there would be nothing to compare
    return losses, norms, validation_of(model.eval(), [data[index] for index in range(NUM_VALIDATION)])


@torch.no_grad()
def validation_of(model, rows):
    """Mean cross-entropy of the answers, one example at a time."""
    total = num_targets = 0
    for row in rows:
        ids = torch.tensor(row.input_ids, dtype=torch.int64)
        first = row.context_length
        logits = model(input_ids=ids[None]).logits[0, first - 1 : -1]
        total += float(F.cross_entropy(logits, ids[first:], reduction="sum"))
        num_targets += len(ids) - first
    return total / num_targets


@pytest.fixture(scope="module")
def validation_file(instruction_file, tmp_path_factory):
    """The first pairs of the training data: what is validated does not matter here."""
    path = tmp_path_factory.mktemp("validation") / "pairs.txt"
    lines = instruction_file.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:NUM_VALIDATION]), encoding="utf-8")
    return path


def flags(toy_model, instruction_file, validation_file, output_dir):
    values = {
        "model_name_or_path": toy_model,
        "train_file": instruction_file,
        "validation_file": validation_file,
        "per_device_eval_batch_size": 4,
        "output_dir": output_dir,
        "deepspeed": "ds_configs/zero3_cpu.json",
        "max_steps": NUM_STEPS,
        "global_batch_size": BATCH,
        "learning_rate": PEAK,
        "warmup_steps": 2,
        "seed": SEED,
        "logging_steps": 1,
        "save_strategy": "no",
        **LENGTHS,
    }
    return [text for name, value in values.items() for text in (f"--{name}", str(value))]


CASES = {
    "1 rank": ("python", 1, ["--per_device_train_batch_size", "8"]),
    "1 rank, padded": ("python", 1, ["--per_device_train_batch_size", "4", "--packing", "false"]),
    "2 ranks": ("launcher", 2, ["--per_device_train_batch_size", "8"]),
    "2 ranks, small micro-batches": ("deepspeed", 2, ["--per_device_train_batch_size", "3"]),
    "2 ranks, padded": ("torchrun", 2, ["--per_device_train_batch_size", "5", "--packing", "false"]),
    "2 ranks, compiled": (
        "launcher",
        2,
        [
            "--per_device_train_batch_size",
            "8",
            "--torch_compile",
            "true",
            "--gradient_checkpointing",
            "false",
        ],
    ),
    "3 ranks, tight rows, checkpointing": (
        "launcher",
        3,
        [
            "--per_device_train_batch_size",
            "6",
            "--micro_batch_tokens",
            "256",
            "--gradient_checkpointing",
            "true",
        ],
    ),
}


SLOW = ("1 rank, padded", "2 ranks, compiled")


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=pytest.mark.slow) if case in SLOW else case for case in CASES],
)
def test_the_losses_are_those_of_a_plain_loop(
    case, reference, toy_model, instruction_file, validation_file, tmp_path
):
    launcher, ranks, more = CASES[case]
    run = tmp_path / "run"
    result = launch([*flags(toy_model, instruction_file, validation_file, run), *more], ranks, launcher)
    assert result.returncode == 0, result.stdout + result.stderr
    assert (run / "DONE").exists()
    layer = Shape.of(open_base_model(toy_model).config).layer_parameters
    described = json.loads((run / "run.json").read_text(encoding="utf-8"))
    assert described["deepspeed"]["zero_optimization"]["stage3_prefetch_bucket_size"] == layer
    assert described["gradient_checkpointing"] is (more[-2:] == ["--gradient_checkpointing", "true"])
    metrics = read_metrics(run)
    losses, norms, validation_loss = reference
    assert [line["step"] for line in metrics] == list(range(1, NUM_STEPS + 1))
    assert [line["loss"] for line in metrics] == pytest.approx(losses, rel=1e-5)
    assert [line["grad_norm"] for line in metrics] == pytest.approx(norms, rel=1e-3)
    assert metrics[-1]["examples_seen"] == NUM_STEPS * BATCH
    (validation,) = read_metrics(run, "validation")
    assert (validation["step"], validation["loss"]) == (NUM_STEPS, pytest.approx(validation_loss, rel=1e-5))
