"""Writes a partitioned model as a folder that loads anywhere: ours, transformers, the original code."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from medsft.chatglm import ChatGLMConfig, ChatGLMTokenizer
from medsft.chatglm.generation import release_generation_config
from medsft.chatglm.weights import ShardWriter
from medsft.checkpoint.model_card import model_card
from medsft.checkpoint.provenance import Provenance
from medsft.engine.distributed import World, together
from medsft.engine.zero import gathered
from medsft.files import sync, write_json, write_text


def export_model(
    model: nn.Module,
    config: ChatGLMConfig,
    tokenizer: ChatGLMTokenizer,
    provenance: Provenance,
    folder: Path,
    max_shard_bytes: int,
    world: World,
) -> None:
    """Writes `folder` with safetensors shards, config, tokenizer, generation config and model card.

    A collective. Rank 0 writes, holding one shard and one parameter at a time; the other ranks hold one
    parameter. Tied weights are stored once. The folder appears under its name only when all of it is on
    disk.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    with together(world):
        writer = None
        if world.is_main:
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir(parents=True)
            writer = ShardWriter(temporary, max_shard_bytes)
    dtype = torch.float32
    with together(world):
        for name, tensor in gathered(model, world):
            if writer is not None and tensor is not None:
                writer.add(name, tensor)
                dtype = tensor.dtype
    with together(world):
        if writer is not None:
            writer.finish()
            _write_companions(temporary, config, tokenizer, dtype, provenance)
            sync(temporary)
            temporary.replace(folder)
            sync(folder.parent)


def _write_companions(
    folder: Path,
    config: ChatGLMConfig,
    tokenizer: ChatGLMTokenizer,
    dtype: torch.dtype,
    provenance: Provenance,
) -> None:
    settings = ChatGLMConfig.from_dict({**config.to_dict(), "dtype": str(dtype).removeprefix("torch.")})
    settings.save_pretrained(folder)
    release_generation_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(folder / "medsft.json", {"format": 1, **asdict(provenance)})
    write_text(folder / "README.md", model_card(provenance))
