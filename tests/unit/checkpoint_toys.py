"""Real checkpoints of toy models, without a training."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from medsft.chatglm.init import write_random_model
from medsft.chatglm.weights import open_weights
from medsft.chatglm.weights.check import read_config
from medsft.checkpoint.commit import begin, commit
from medsft.checkpoint.layout import shard_name
from medsft.checkpoint.manifest import (
    STATES,
    FileEntry,
    Identity,
    Manifest,
    Parameter,
    RankState,
    Validation,
    even_slices,
    tensor_name,
)
from medsft.checkpoint.release import MODEL_FOLDER, checkpoint_parameters
from medsft.checkpoint.shard import write_shard
from medsft.checkpoint.verify import describe_file
from tests.unit.weights_toys import train_toy_tokenizer

SHAPE = {"hidden_size": 32, "num_layers": 2, "num_attention_heads": 2, "inner_hidden_size": 64}


def toy_base(folder: Path, **overrides: Any) -> Path:
    """A random fp32 ChatGLM in the released layout, with the licence and code files that a release has."""
    tokenizer = train_toy_tokenizer(folder.with_name(folder.name + " tokenizer"))
    write_random_model(folder, tokenizer, overrides={**SHAPE, **overrides}, seed=3, dtype="float32")
    (folder / "MODEL_LICENSE").write_text("The model licence.", encoding="utf-8")
    (folder / "modeling_chatglm.py").write_text("# the original code", encoding="utf-8")
    return folder


def write_checkpoint(
    root: Path,
    base: Path,
    step: int = 100,
    world_size: int = 2,
    train_loss: float | None = 2.5,
    validation: Validation | None = None,
    change: Callable[[str, Tensor], Tensor] = lambda name, weight: weight,
    **fields: Any,
) -> Path:
    """Commits the weights of a model folder as the checkpoint of a step; returns its folder.

    `change` gives the fp32 weight to store for a name and the base's weight. Adam's moments are made up.
    `fields` replace those of the manifest.
    """
    config = read_config(base)
    shapes = checkpoint_parameters(config)
    weights = open_weights(base)
    flat = {name: change(name, weights.read(name).float()).reshape(-1) for name in shapes}
    temporary = begin(root, step)
    files = _write_model_folder(base, temporary)
    shards = [shard_name(rank, world_size) for rank in range(world_size)]
    slices = {name: even_slices(whole.numel(), shards) for name, whole in flat.items()}
    for file in shards:
        tensors = {
            tensor_name(state, name): (flat[name][piece.start : piece.end] / factor).contiguous()
            for name, pieces in slices.items()
            for piece in pieces
            if piece.file == file
            for factor, state in enumerate(STATES, start=1)
        }
        files[file] = write_shard(temporary / file, tensors)
    manifest = Manifest(
        step=step,
        epoch=step / 50,
        examples_seen=step * 16,
        tokens_seen=step * 1000,
        train_loss=train_loss,
        validation=validation,
        created="2024-05-06T07:08:09+00:00",
        world_size=world_size,
        identity=Identity("a" * 64, "b" * 64, "c" * 64, 2023, 16),
        plan={"num_examples": 800, "num_steps": 150, "num_examples_total": 2400, "global_batch_size": 16},
        base_model=str(base),
        prompt_template="med-chatglm",
        flags={"learning_rate": 0.001, "seed": 42, "train_file": ["问答 数据.jsonl"]},
        deepspeed={"zero_optimization": {"stage": 3}},
        versions={"medsft": "0.1.0", "torch": "2.13.0"},
        adam_step=step,
        loss_scaler={},
        counters={"skipped_steps": 0},
        ranks=tuple(RankState(0.0, {}) for _ in range(world_size)),
        files=files,
        parameters={name: Parameter(tuple(shapes[name]), pieces) for name, pieces in slices.items()},
    )
    return commit(root, step, temporary, replace(manifest, **fields))


def flip_bit(path: Path, position: int = -1) -> None:
    """Changes one bit of a file and nothing else; a negative position counts from the end."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def master_weights(base: Path) -> dict[str, Tensor]:
    """Trained parameters of a model folder in fp32, by name."""
    weights = open_weights(base)
    return {name: weights.read(name).float().clone() for name in checkpoint_parameters(read_config(base))}


def _write_model_folder(base: Path, temporary: Path) -> dict[str, FileEntry]:
    folder = temporary / MODEL_FOLDER
    folder.mkdir()
    for path in base.iterdir():
        if path.suffix not in (".bin", ".safetensors") and not path.name.endswith(".index.json"):
            shutil.copyfile(path, folder / path.name)
    return {f"{MODEL_FOLDER}/{path.name}": describe_file(path) for path in sorted(folder.iterdir())}
