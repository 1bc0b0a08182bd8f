"""A toy ChatGLM, pairs to train it on, and what a training leaves behind."""

from __future__ import annotations

import functools
import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from cluster import LOGIN, REPOSITORY

PYTHON = sys.executable
# One thread sums in one order, and there are more ranks than cores anyway.
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}
SHORT_STEPS = 12
_NUM_PAIRS = 64


@dataclass(frozen=True)
class Toy:
    """A model in the released layout, fp32 weights, and training data."""

    model: Path
    data: Path


@functools.cache
def make_toy(session: Path) -> Toy:
    """The one of this session, in the session's folder (`tmp_path_factory.getbasetemp()`)."""
    from medsft.chatglm.init import write_random_model
    from medsft.chatglm.tokenizer_training import train_tokenizer
    from medsft.knowledge.build import build_pairs

    folder = session / "toy 模型"
    folder.mkdir()
    build_pairs([REPOSITORY / "medsft" / "knowledge" / "sample.jsonl"], folder / "all.jsonl", seed=0)
    lines = (folder / "all.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)[:_NUM_PAIRS]
    data = folder / "pairs 数据.jsonl"
    data.write_text("".join(lines), encoding="utf-8")
    texts = (record["context"] + record["target"] for record in map(json.loads, lines))
    train_tokenizer(texts, folder / "tokenizer", vocab_size=600)
    shape = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "inner_hidden_size": 64}
    write_random_model(folder / "toy model", folder / "tokenizer", overrides=shape, seed=1, dtype="float32")
    return Toy(folder / "toy model", data)


def place_flags(toy: Toy, output: Path) -> list[str]:
    """What the job scripts take from the environment, as flags of train.py."""
    return [
        *("--deepspeed", "ds_configs/zero3_cpu.json"),
        *("--model_name_or_path", str(toy.model)),
        *("--train_file", str(toy.data)),
        *("--output_dir", str(output)),
    ]


def step_flags(num_steps: int) -> list[str]:
    """Everything that decides on the losses."""
    values = {
        "max_steps": num_steps,
        "global_batch_size": 4,
        "per_device_train_batch_size": 2,
        "learning_rate": 2e-3,
        "warmup_steps": 2,
        "seed": 3,
        "max_source_length": 64,
        "max_target_length": 64,
        "logging_steps": 1,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@functools.cache
def local_losses(session: Path) -> tuple[float, ...]:
    """Losses of `SHORT_STEPS` steps in one process of this machine, without any launcher."""
    output = session / "local run"
    flags = [*place_flags(make_toy(session), output), *step_flags(SHORT_STEPS), "--save_strategy", "no"]
    subprocess.run(
        [PYTHON, "medsft/train.py", *flags],
        cwd=REPOSITORY,
        env=LOGIN | ENVIRONMENT,
        check=True,
        capture_output=True,
        timeout=180,
    )
    losses = tuple(record["loss"] for record in metrics(output))
    assert len(losses) == SHORT_STEPS
    # It learns, or there would be nothing to compare.
    assert losses[-1] < losses[0] - 0.1
    return losses


def metrics(output: Path) -> list[dict]:
    """The training lines of metrics.jsonl; none where it is not there yet."""
    path = output / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    # The last line may still be in the making.
    lines = text[: text.rfind("\n") + 1].splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == "train"]


def last_step(output: Path) -> int:
    """Steps that are done, 0 before the first."""
    return max((record["step"] for record in metrics(output)), default=0)


def curve(output: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of each line, in the order of the file."""
    return [(record["step"], record["loss"], record["grad_norm"]) for record in metrics(output)]


def weights_hash(output: Path) -> str:
    """SHA-256 of the weights in the model that a finished run has written."""
    digest = hashlib.sha256()
    paths = sorted((output / "model").glob("*.safetensors"))
    assert paths
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
