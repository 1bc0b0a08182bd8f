"""Writes a model that is in training, cut into partitions, as a folder in the released layout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import nn

from medsft.chatglm import ChatGLMConfig, ChatGLMTokenizer
from medsft.checkpoint.release import ReleaseWriter
from medsft.engine.distributed import World, together
from medsft.engine.zero import gathered
from medsft.errors import UserError
from medsft.provenance import Provenance
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
    """Writes `folder` in the released layout: safetensors shards, config, tokenizer, model card and the rest.

    A collective. Rank 0 writes, holding one shard and a parameter or two; the other ranks hold one
    parameter. The weights have the type that the model computes in. `progress` is called on rank 0 with the
    bytes gathered and those in all. The folder appears under its name only when all of it is on disk; one
    that the run has left there before is replaced then.
    """
    dtype = next(model.parameters()).dtype
    with together(world), writing(folder):
        writer = None
        if world.is_main:
            source = Path(provenance.base_model)
            writer = ReleaseWriter(folder, config, tokenizer, dtype, max_shard_bytes, source, replace=True)
    num_bytes = sum(param.ds_numel * param.element_size() for param in model.parameters())
    failure: UserError | None = None
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
        except UserError as error:
            failure = error
    with together(world):
        if writer is not None:
            try:
                if failure is not None:
                    raise failure
                with writing(folder):
                    writer.finish(provenance)
            except UserError:
                writer.abandon()
                raise
