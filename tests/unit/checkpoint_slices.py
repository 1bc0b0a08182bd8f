"""Checkpoints of awkward tensors, bit patterns and numbers of ranks: the format without a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsft.checkpoint.layout import MANIFEST, shard_name
from medsft.checkpoint.manifest import (
    STATES,
    FileEntry,
    Identity,
    Manifest,
    Parameter,
    RankState,
    Validation,
    tensor_name,
    write_manifest,
)
from medsft.checkpoint.manifest import Slice as Piece
from medsft.checkpoint.shard import write_shard

SHAPES = {
    "transformer.word_embeddings.weight": (37, 8),
    "transformer.层.0.bias": (3,),  # fewer elements than 7 ranks
    "scale": (),
    "transformer.final_layernorm.weight": (4,),  # 3 ranks have slices of 2, 2 and 0 elements
    "transformer.h.weight": (2, 3, 5),
}
CONFIG = '{"model_type": "chatglm", "名称": "测试"}\n'.encode()

MANIFEST_OF_NOTHING = Manifest(
    step=100,
    epoch=1.25,
    examples_seen=1600,
    tokens_seen=123_456,
    train_loss=1.5,
    validation=Validation(80, 1.7320508075688772),
    created="2026-01-02T03:04:05+00:00",
    world_size=1,
    identity=Identity("a" * 64, "b" * 64, "c" * 64, 2**63, 16),
    plan={"num_examples": 1280, "num_steps": 300, "fingerprint": "c" * 64, "seed": 2**63},
    base_model="模型/ChatGLM 6B",
    prompt_template="med-chatglm",
    flags={"learning_rate": 1e-05, "train_file": ["数据/问答 1.jsonl"], "max_steps": None, "bf16": True},
    deepspeed={"zero_optimization": {"stage": 3, "sub_group_size": 1e9}},
    versions={"medsft": "0.1.0", "torch": "2.13.0+cpu"},
    adam_step=99,
    loss_scaler={"cur_scale": 65536.0, "cur_iter": 100},
    counters={"num_skipped": 1, "loss_sum": 0.1, "last": None},
    ranks=(RankState(0.30000000000000004, {"torch_cpu": "AAEC/+=="}),),
    files={},
    parameters={},
)
"""Every kind of value that a manifest has, and no file."""


def random_states(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, dict[str, Tensor]]:
    """State -> name -> fp32 tensor of random bits: NaNs, infinities and denormals among them."""
    random = torch.Generator().manual_seed(seed)
    states = {}
    for state in STATES:
        states[state] = {
            name: torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, generator=random).view(
                torch.float32
            )
            for name, shape in shapes.items()
        }
    return states


def slice_of(num_elements: int, rank: int, world_size: int) -> tuple[int, int]:
    """Start and end of a rank's part of a flattened parameter, as DeepSpeed cuts it."""
    size = -(-num_elements // world_size)
    return min(rank * size, num_elements), min((rank + 1) * size, num_elements)


def write_slices(
    folder: Path, states: Mapping[str, Mapping[str, Tensor]], world_size: int, **fields: Any
) -> Manifest:
    """Writes a checkpoint into a new folder as that many ranks would; `fields` go into its manifest."""
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "config.json").write_bytes(CONFIG)
    files = {"model/config.json": FileEntry(len(CONFIG), hashlib.sha256(CONFIG).hexdigest())}
    pieces: dict[str, list[Piece]] = {name: [] for name in states["master"]}
    for rank in range(world_size):
        file = shard_name(rank, world_size)
        tensors = {}
        for name, whole in states["master"].items():
            start, end = slice_of(whole.numel(), rank, world_size)
            if start < end:
                pieces[name].append(Piece(file, start, end))
                for state in STATES:
                    tensors[tensor_name(state, name)] = states[state][name].reshape(-1)[start:end]
        files[file] = write_shard(folder / file, tensors)
    manifest = replace(
        MANIFEST_OF_NOTHING,
        world_size=world_size,
        ranks=tuple(RankState(0.1 * rank, {"torch_cpu": "AA=="}) for rank in range(world_size)),
        files=files,
        parameters={
            name: Parameter(tuple(whole.shape), tuple(pieces[name]))
            for name, whole in states["master"].items()
        },
    )
    manifest = replace(manifest, **fields)
    write_manifest(folder, manifest)
    return manifest


def seal(folder: Path, content: dict[str, Any]) -> None:
    """Writes a manifest with a digest that fits, whatever it says: what a faulty writer would leave."""
    content = {name: value for name, value in content.items() if name != "sha256"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def bits(tensor: Tensor) -> Tensor:
    """What is compared where NaN must equal itself and -0 must not equal 0."""
    return tensor.contiguous().view(torch.int32)


def num_elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(prod(shape) for shape in shapes.values())
