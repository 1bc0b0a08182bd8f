"""Model folders in the released layout, written tensor by tensor: from a checkpoint, or from a live model.

They hold every name of the release, the head and the rotary buffers too, though a tied head equals the
embedding and the buffers follow from the model's shape. The original code has both without reading them: it
ties on load, and its `RotaryEmbedding._load_from_state_dict` does nothing. But it declares no names that may
be missing. Without them transformers tells its user of newly initialised weights that should be trained, and
where it builds the model without memory first, they are what memory happens to hold.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from medsft.chatglm import ChatGLMConfig, ChatGLMTokenizer
from medsft.chatglm.base import copy_travelling_files, open_tokenizer
from medsft.chatglm.generation import release_generation_config
from medsft.chatglm.init import parameter_shapes
from medsft.chatglm.rotary import inverse_frequencies
from medsft.chatglm.weights import ShardWriter
from medsft.chatglm.weights.check import read_config
from medsft.chatglm.weights.files import EMBEDDING_NAME, HEAD_NAME
from medsft.checkpoint.manifest import Manifest
from medsft.checkpoint.model_card import model_card
from medsft.checkpoint.reader import Checkpoint
from medsft.errors import UserError
from medsft.files import sync, write_text
from medsft.provenance import Provenance, write_provenance

MODEL_FOLDER = "model"
"""Inside a checkpoint: configuration, tokenizer and what travels with them."""

_ROTARY_MARK = "input_layernorm.bias"
"""The release has a layer's rotary buffer behind this parameter."""

_CHUNK_ELEMENTS = 1 << 22


class ReleaseWriter:
    """A model folder being written; it has its name when all of it is on the disk, and none before.

    `add` takes the model's parameters in its order, each once; `finish` the rest. Held in memory: one shard
    and one parameter. `source` is a folder whose code and licences come along. Leaving the `with` block
    through an exception, or `abandon`, removes what is written.

    Raises `UserError` where `folder` is not free, unless it may be replaced (by the run it belongs to): the
    old one then stays until the new one is complete.
    """

    def __init__(
        self,
        folder: Path,
        config: ChatGLMConfig,
        tokenizer: ChatGLMTokenizer,
        dtype: torch.dtype,
        max_shard_bytes: int,
        source: Path,
        replace: bool = False,
    ) -> None:
        self.folder = folder.absolute()
        self._may_replace = replace
        self._check_name()
        self._config = config
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._temporary = self.folder.with_name(f".{self.folder.name}.tmp")
        if self._temporary.exists():
            shutil.rmtree(self._temporary)
        self._temporary.mkdir(parents=True)
        copy_travelling_files(source, self._temporary)
        self._shards = ShardWriter(self._temporary, max_shard_bytes)

    def __enter__(self) -> ReleaseWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.abandon()

    def add(self, name: str, tensor: Tensor) -> None:
        """Adds a parameter, and what the release stores beside it."""
        assert tensor.dtype == self._dtype, (name, tensor.dtype)
        self._shards.add(name, tensor)
        if name == EMBEDDING_NAME and self._config.tie_word_embeddings:
            self._shards.add(HEAD_NAME, tensor.clone())  # a file stores no two tensors in one memory
        if name.endswith(_ROTARY_MARK):
            # In fp16 always: the release rounds the frequencies so, and bf16 would lose bits of them.
            frequencies = inverse_frequencies(self._config.head_dim // 2).to(torch.float16)
            self._shards.add(rotary_name(name), frequencies)

    def finish(self, provenance: Provenance) -> None:
        """Writes what is left of the weights and all other files, and gives the folder its name."""
        self._shards.finish()
        dtype = str(self._dtype).removeprefix("torch.")
        config = ChatGLMConfig.from_dict({**self._config.to_dict(), "dtype": dtype})
        config.save_pretrained(self._temporary)
        release_generation_config(config).save_pretrained(self._temporary)
        self._tokenizer.save_pretrained(self._temporary)
        write_provenance(self._temporary, provenance)
        write_text(self._temporary / "README.md", model_card(provenance))
        for path in self._temporary.iterdir():
            sync(path)
        sync(self._temporary)
        self._give_name()

    def abandon(self) -> None:
        """Removes what is written so far, as far as that can be done."""
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _check_name(self) -> None:
        if not self._may_replace:
            check_free(self.folder)

    def _give_name(self) -> None:
        self._check_name()
        replaced = self.folder.with_name(f".{self.folder.name}.replaced")
        shutil.rmtree(replaced, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(replaced)
        self._temporary.rename(self.folder)
        sync(self.folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def rotary_name(name: str) -> str:
    """Name of the rotary buffer of the layer that the parameter `….input_layernorm.bias` belongs to."""
    assert name.endswith(_ROTARY_MARK), name
    return name.removesuffix(_ROTARY_MARK) + "attention.rotary_emb.inv_freq"


def check_free(folder: Path) -> None:
    """Raises `UserError` unless a new model folder can have this name: nothing there, or an empty folder."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"The output {folder} exists and is not an empty folder; name a new one.")


def export_checkpoint(
    checkpoint: Checkpoint,
    output: Path,
    dtype: torch.dtype,
    max_shard_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Writes the master weights of a checkpoint as a model folder in the released layout.

    Needs no GPU, no other rank and no DeepSpeed. Of the checkpoint a few MiB are read at a time; held in
    memory are one shard of the output and one parameter in `dtype`. `progress` is called with the bytes of
    parameters written and those in all. The folder appears when it is complete; on any error nothing is left.

    Raises `UserError` where `output` exists and is not empty, the disk is too full, the checkpoint's
    parameters are not those of its configuration, or a weight is not a number or too large for `dtype`.
    """
    description = checkpoint.folder / MODEL_FOLDER
    with _explained(checkpoint, output):
        check_free(output)
        config = read_config(description)
        _check_parameters(checkpoint, config)
        names = list(checkpoint_parameters(config))
        num_elements = sum(checkpoint.manifest.parameters[name].num_elements for name in names)
        num_bytes = num_elements * dtype.itemsize
        _check_space(output, num_bytes + config.vocab_size * config.hidden_size * dtype.itemsize)
        tokenizer = open_tokenizer(description)
        with ReleaseWriter(output, config, tokenizer, dtype, max_shard_bytes, description) as writer:
            num_written = 0
            for name in names:
                tensor = _converted(checkpoint, name, dtype)
                writer.add(name, tensor)
                num_written += tensor.nbytes
                if progress is not None:
                    progress(num_written, num_bytes)
            writer.finish(provenance_of(checkpoint.manifest))


def checkpoint_parameters(config: ChatGLMConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of what is trained, in the model's order: a tied head is the embedding."""
    shapes = parameter_shapes(config)
    if config.tie_word_embeddings:
        del shapes[HEAD_NAME]
    return shapes


def provenance_of(manifest: Manifest) -> Provenance:
    """Where the weights of a checkpoint come from, as the run itself would have written it."""
    return Provenance(
        base_model=manifest.base_model,
        data_fingerprint=manifest.identity.data,
        prompt_template=manifest.prompt_template,
        flags=manifest.flags,
        versions=manifest.versions,
        step=manifest.step,
        examples_seen=manifest.examples_seen,
        tokens_seen=manifest.tokens_seen,
        train_loss=manifest.train_loss,
    )


def _converted(checkpoint: Checkpoint, name: str, dtype: torch.dtype) -> Tensor:
    """The parameter in `dtype`, with its shape; read and converted piece by piece."""
    tensor = torch.empty(checkpoint.manifest.parameters[name].shape, dtype=dtype)
    flat = tensor.view(-1)
    for start in range(0, flat.numel(), _CHUNK_ELEMENTS):
        end = min(start + _CHUNK_ELEMENTS, flat.numel())
        stored = checkpoint.read_range(name, start, end)
        flat[start:end].copy_(stored)
        _check_finite(checkpoint, name, stored, flat[start:end])
    return tensor


def _check_finite(checkpoint: Checkpoint, name: str, stored: Tensor, converted: Tensor) -> None:
    if bool(torch.stack(torch.aminmax(converted)).isfinite().all()):  # a NaN anywhere makes both NaN
        return
    low, high = torch.aminmax(stored)
    largest = max(-float(low), float(high))
    if not bool(torch.stack((low, high)).isfinite().all()):
        raise UserError(
            f"{name} in {checkpoint.folder} holds NaN or infinite values: the training had diverged by step "
            f"{checkpoint.manifest.step}. Export an earlier checkpoint."
        )
    dtype = str(converted.dtype).removeprefix("torch.")
    raise UserError(
        f"{name} in {checkpoint.folder} has a value of magnitude {largest:g}, and {dtype} ends at "
        f"{torch.finfo(converted.dtype).max:g}. Export with --dtype "
        f"{'bf16' if converted.dtype == torch.float16 else 'fp32'}, which has the range for it."
    )


def _check_parameters(checkpoint: Checkpoint, config: ChatGLMConfig) -> None:
    expected = checkpoint_parameters(config)
    found = {name: tuple(item.shape) for name, item in checkpoint.manifest.parameters.items()}
    wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if wrong:
        name = wrong[0]
        raise UserError(
            f"{checkpoint.folder} does not hold the parameters that its {MODEL_FOLDER}/config.json asks for: "
            f"{len(wrong)} differ, {name} has shape {found.get(name, 'none')} there and should have "
            f"{expected.get(name, 'none')}. Export another checkpoint of this run, or put back the "
            "config.json that it was written with."
        )


def _check_space(output: Path, num_bytes: int) -> None:
    there = next(folder for folder in output.absolute().parents if folder.exists())
    free = shutil.disk_usage(there).free
    if free < num_bytes:
        raise UserError(
            f"{there} has {free / 2**30:.1f} GiB free, the model needs {num_bytes / 2**30:.1f} GiB. Make "
            "room or name an output on another disk."
        )


@contextmanager
def _explained(checkpoint: Checkpoint, output: Path) -> Iterator[None]:
    """Faults of disks, found in the block, become `UserError`s that say on which side."""
    try:
        yield
    except (OSError, SafetensorError, UserError) as error:
        if not checkpoint.folder.exists():
            raise UserError(
                f"{checkpoint.folder} was deleted while it was read, as a run does with old checkpoints. "
                "Export a newer one, or give the run a higher --save_total_limit."
            ) from error
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"{output} cannot be written ({error}). Make room there or name another output."
        ) from error
