"""Groups of ranks that keep a copy of the weights of their own (hpZ) train as plain ZeRO-3 does.

To the last bit, in validation, checkpoint and model too: four ranks, in groups of two and without.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from runs import REPOSITORY, launch, read_metrics
from test_ranks import train_flags


@pytest.fixture(scope="module")
def train(toy_model, instruction_file, tmp_path_factory):
    """Trains four steps with groups of a size and gives its folder."""
    folder = tmp_path_factory.mktemp("分组")
    few = folder / "验证 集.jsonl"
    few.write_text(
        "".join(instruction_file.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), "utf-8"
    )
    flags = {
        "max_steps": 4,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "global_batch_size": 16,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
        "validation_file": few,
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
    }

    def run(name: str, group_size: int, **more) -> Path:
        content = json.loads((REPOSITORY / "ds_configs" / "zero3_cpu.json").read_text(encoding="utf-8"))
        # Some parameters stay whole between the steps, others are gathered again for each micro-batch.
        zero = {"stage3_param_persistence_threshold": 100, "zero_hpz_partition_size": group_size}
        content["zero_optimization"].update(zero)
        config = folder / f"{name}.json"
        config.write_text(json.dumps(content))
        arguments = train_flags(toy_model, instruction_file, folder / name, deepspeed=config, **flags, **more)
        result = launch(arguments, 4, "torchrun", timeout_s=300)
        assert result.returncode == 0, result.stdout + result.stderr
        return folder / name

    return run


@pytest.fixture(scope="module")
def plain(train) -> Path:
    return train("plain", 1)


def losses(run: Path) -> list[tuple[int, float]]:
    return [(r["step"], r["loss"]) for kind in ("train", "validation") for r in read_metrics(run, kind)]


def weights(run: Path) -> list[str]:
    files = [*run.glob("checkpoints/step-00000004/*.safetensors"), *run.glob("model/*.safetensors")]
    assert len(files) == 5
    return sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


@pytest.mark.slow
def test_two_groups_of_two_ranks_train_as_four_plain_ones(train, plain):
    run = train("hpz", 2)
    assert len(losses(run)) == 8
    assert losses(run) == losses(plain)
    assert weights(run) == weights(plain)


@pytest.mark.slow
def test_groups_resume_from_a_checkpoint_that_was_written_without(train, plain):
    run = train("resumed", 2, resume_from_checkpoint=plain / "checkpoints" / "step-00000002")
    assert losses(run) == [(step, loss) for step, loss in losses(plain) if step > 2]
    assert weights(run) == weights(plain)
