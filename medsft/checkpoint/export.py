"""Writes a partitioned model as a folder that loads anywhere: ours, transformers, the original code."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from medsft.chatglm import ChatGLMConfig, ChatGLMTokenizer
from medsft.chatglm.generation import release_generation_config
from medsft.chatglm.weights import ShardWriter
from medsft.checkpoint.model_card import model_card
from medsft.engine.distributed import World, together
from medsft.engine.zero import gathered
from medsft.errors import UserError
from medsft.files import sync, write_text
from medsft.provenance import Provenance, write_provenance
from medsft.run_folder import writing


def export_model(
    model: nn.Module,
    config: ChatGLMConfig,
    tokenizer: ChatGLMTokenizer,
    provenance: Provenance,
    folder: Path,
    max_shard_bytes: int,
    world: World,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes `folder` with safetensors shards, config, tokenizer, generation config and model card.

    A collective. Rank 0 writes, holding about two shards (the tensors and their file image) and a
    parameter; the other ranks hold one parameter. Tied weights are stored once. `progress` is called on rank
    0 with the bytes gathered and those in all. The folder appears under its name only when all of it is on
    disk.
    """
    temporary = folder.with_name(f".{folder.name}.tmp")
    with together(world), writing(folder):
        writer = None
        if world.is_main:
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir(parents=True)
            writer = ShardWriter(temporary, max_shard_bytes)
    num_bytes = sum(param.ds_numel * param.element_size() for param in model.parameters())
    failure: UserError | None = None
    dtype = torch.float32
    num_written = 0
    for name, tensor in gathered(model, world):
        if progress is not None and tensor is not None:
            num_written += tensor.nbytes
            progress(num_written, num_bytes)
        if writer is None or tensor is None or failure is not None:
            continue  # gathering is a collective: a rank that cannot write must go through it all the same
        try:
            with writing(folder):
                writer.add(name, tensor)
            dtype = tensor.dtype
        except UserError as error:
            failure = error
    with together(world):
        if writer is not None:
            try:
                if failure is not None:
                    raise failure
                with writing(folder):
                    writer.finish()
                    _write_companions(temporary, config, tokenizer, dtype, provenance)
                    sync(temporary)
                    temporary.replace(folder)
                    sync(folder.parent)
            except UserError:
                shutil.rmtree(temporary, ignore_errors=True)
                raise


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
    write_provenance(folder, provenance)
    write_text(folder / "README.md", model_card(provenance))
