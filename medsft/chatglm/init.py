"""Writes randomly initialised ChatGLMs of any size in the released file layout.

The model is made tensor by tensor and written shard by shard: memory stays near one shard, also for 6B.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from medsft.chatglm.base import open_tokenizer
from medsft.chatglm.configuration import ChatGLMConfig
from medsft.chatglm.generation import release_generation_config
from medsft.chatglm.initialization import fill_parameter
from medsft.chatglm.rotary import inverse_frequencies
from medsft.chatglm.tokenization import ChatGLMTokenizer
from medsft.chatglm.weights.load import parse_dtype
from medsft.chatglm.weights.release import RELEASES
from medsft.chatglm.weights.writer import parse_size
from medsft.errors import UserError
from medsft.files import replace_file, replacing
from medsft.shapes import PRESETS

EMBEDDING_NAME = "transformer.word_embeddings.weight"
HEAD_NAME = "lm_head.weight"

# Vocabularies other than the released are padded up to a multiple of this many rows.
_ROW_MULTIPLE = 64

DEFAULT_SHARD_SIZE = "2GB"


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a checkpoint: its name in the release, shape, dtype, and size in bytes."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def count_parameters(config: ChatGLMConfig) -> int:
    """Trainable parameters of a model of this shape; a tied head counts once."""
    hidden, inner = config.hidden_size, config.inner_hidden_size
    attention = 4 * hidden * hidden + 4 * hidden
    feed_forward = 2 * hidden * inner + inner + hidden
    layer = attention + feed_forward + 4 * hidden
    embeddings = config.vocab_size * hidden * (1 if config.tie_word_embeddings else 2)
    return embeddings + config.num_layers * layer + 2 * hidden


def padded_vocab_rows(tokenizer: ChatGLMTokenizer) -> int:
    """Embedding rows for a tokenizer: as released, or the next multiple of 64."""
    rows = -(-tokenizer.vocab_size // _ROW_MULTIPLE) * _ROW_MULTIPLE
    released = RELEASES.get(tokenizer.release)
    return released.num_rows if released else rows


def make_config(
    tokenizer: ChatGLMTokenizer, preset: str = "toy", overrides: dict[str, Any] | None = None
) -> ChatGLMConfig:
    """Configuration of a preset for a tokenizer; `overrides` are ChatGLMConfig fields and win.

    Raises UserError for an unknown preset or field, or a shape that cannot be built.
    """
    if preset not in PRESETS:
        raise UserError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}.")
    fields = {
        **PRESETS[preset],
        "vocab_size": padded_vocab_rows(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eop_token_id,
        "mask_token_id": tokenizer.mask_token_id,
        "gmask_token_id": tokenizer.gmask_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    known = {*fields, "max_sequence_length", "layernorm_epsilon", "tie_word_embeddings", "use_cache"}
    unknown = sorted(set(overrides or {}) - known)
    if unknown:
        raise UserError(f"unknown model field {', '.join(unknown)}; known are {', '.join(sorted(known))}.")
    fields |= overrides or {}
    if fields["vocab_size"] < tokenizer.vocab_size:
        raise UserError(
            f"vocab_size {fields['vocab_size']} is less than the tokenizer's {tokenizer.vocab_size} ids; "
            "leave it out to have it chosen."
        )
    return ChatGLMConfig(**fields)


def parameter_shapes(config: ChatGLMConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of the release except the rotary buffers, in its order."""
    hidden, inner = config.hidden_size, config.inner_hidden_size
    layer = {
        "input_layernorm.weight": (hidden,),
        "input_layernorm.bias": (hidden,),
        "attention.query_key_value.weight": (3 * hidden, hidden),
        "attention.query_key_value.bias": (3 * hidden,),
        "attention.dense.weight": (hidden, hidden),
        "attention.dense.bias": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "post_attention_layernorm.bias": (hidden,),
        "mlp.dense_h_to_4h.weight": (inner, hidden),
        "mlp.dense_h_to_4h.bias": (inner,),
        "mlp.dense_4h_to_h.weight": (hidden, inner),
        "mlp.dense_4h_to_h.bias": (hidden,),
    }
    return {
        EMBEDDING_NAME: (config.vocab_size, hidden),
        **{
            f"transformer.layers.{index}.{name}": shape
            for index in range(config.num_layers)
            for name, shape in layer.items()
        },
        "transformer.final_layernorm.weight": (hidden,),
        "transformer.final_layernorm.bias": (hidden,),
        HEAD_NAME: (config.vocab_size, hidden),
    }


def release_tensors(config: ChatGLMConfig, dtype: torch.dtype) -> list[TensorSpec]:
    """Tensors of a `.bin` release in its order: both tied matrices, and a rotary buffer (fp16) per layer."""
    tensors = []
    for name, shape in parameter_shapes(config).items():
        tensors.append(TensorSpec(name, shape, dtype))
        if name.endswith("input_layernorm.bias"):
            buffer = name.replace("input_layernorm.bias", "attention.rotary_emb.inv_freq")
            tensors.append(TensorSpec(buffer, (config.head_dim // 4,), torch.float16))
    return tensors


def initial_tensor(spec: TensorSpec, config: ChatGLMConfig, seed: int) -> torch.Tensor:
    """The tensor's values: a function of seed, name and shape alone, so no shard depends on another."""
    if spec.name.endswith("rotary_emb.inv_freq"):
        return inverse_frequencies(config.head_dim // 2).to(spec.dtype)
    # Tied matrices are stored twice, equal.
    name = EMBEDDING_NAME if spec.name == HEAD_NAME and config.tie_word_embeddings else spec.name
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    tensor = torch.empty(spec.shape, dtype=spec.dtype)
    *_, role, leaf = name.split(".")
    fill_parameter(tensor, role, leaf, config, generator)
    return tensor


def plan_shards(tensors: list[TensorSpec], max_shard_bytes: int) -> list[list[TensorSpec]]:
    """Tensors in order, cut where a shard would grow over `max_shard_bytes`; a larger tensor has its own."""
    shards: list[list[TensorSpec]] = []
    num_bytes = 0
    for tensor in tensors:
        if not shards or num_bytes + tensor.num_bytes > max_shard_bytes:
            shards.append([])
            num_bytes = 0
        shards[-1].append(tensor)
        num_bytes += tensor.num_bytes
    return shards


def write_random_model(
    output_dir: str | Path,
    tokenizer_dir: str | Path,
    preset: str = "toy",
    overrides: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    dtype: str = "float16",
    shard_size: str | int = DEFAULT_SHARD_SIZE,
    weights_format: Literal["bin", "safetensors"] = "bin",
    overwrite: bool = False,
    on_shard: Callable[[int, int], None] | None = None,
) -> ChatGLMConfig:
    """Write config, tokenizer, generation defaults and random weights to `output_dir`; return the config.

    `preset` names a shape of PRESETS, `overrides` changes fields of it. "bin" mirrors the release: shards
    named pytorch_model-0000X-of-0000N.bin with an index, both tied matrices and the rotary buffers stored.
    "safetensors" is laid out as `save_pretrained` does it: a tied head is left out, one shard needs no index.
    The values depend on `seed` and the shape alone, not on the sharding or format. `on_shard(done, total)` is
    called after each shard. Raises UserError for bad arguments, and for a folder that already holds a model
    unless `overwrite` is true.
    """
    stored = parse_dtype(dtype)
    if weights_format not in ("bin", "safetensors"):
        raise UserError(f"weights_format is {weights_format!r}, must be bin or safetensors.")
    max_shard_bytes = parse_size(shard_size)
    tokenizer = open_tokenizer(Path(tokenizer_dir))
    config = make_config(tokenizer, preset, overrides)
    config.dtype = stored
    config.architectures = ["ChatGLMModel"]  # what the release says
    folder = Path(output_dir)
    _make_room(folder, overwrite)

    tensors = release_tensors(config, stored)
    if weights_format == "safetensors":
        tensors = [tensor for tensor in tensors if not _left_out_of_safetensors(tensor.name, config)]
    _write_shards(folder, plan_shards(tensors, max_shard_bytes), config, seed, weights_format, on_shard)
    tokenizer.save_pretrained(folder)
    release_generation_config(config).save_pretrained(folder)
    config.save_pretrained(folder)  # last: a folder with it is complete
    return config


def _left_out_of_safetensors(name: str, config: ChatGLMConfig) -> bool:
    return name.endswith("rotary_emb.inv_freq") or (name == HEAD_NAME and config.tie_word_embeddings)


def _model_files(folder: Path) -> Iterator[Path]:
    for pattern in ("config.json", "*.bin", "*.bin.index.json", "*.safetensors", "*.safetensors.index.json"):
        yield from folder.glob(pattern)


def _make_room(folder: Path, overwrite: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder to write the model to.")
    present = sorted(path.name for path in _model_files(folder))
    if present and not overwrite:
        raise UserError(
            f"{folder} already holds a model ({', '.join(present[:3])}{' …' if len(present) > 3 else ''}). "
            "Choose another folder, or remove this one first."
        )
    for path in list(_model_files(folder)):
        path.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def _write_shard(path: Path, weights: dict[str, torch.Tensor]) -> None:
    with replacing(path) as temporary:
        if path.suffix == ".bin":
            with temporary.open("wb") as file:  # given a path, torch writes that path into the file
                torch.save(weights, file)
        else:
            temporary.touch()
            mode = temporary.stat().st_mode  # what the umask says; safetensors makes files private
            save_file(weights, temporary, metadata={"format": "pt"})
            temporary.chmod(mode)


def _write_shards(
    folder: Path,
    shards: list[list[TensorSpec]],
    config: ChatGLMConfig,
    seed: int,
    weights_format: str,
    on_shard: Callable[[int, int], None] | None,
) -> None:
    stem = "pytorch_model" if weights_format == "bin" else "model"
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"{stem}-{number:05d}-of-{len(shards):05d}.{weights_format}"
        if weights_format == "safetensors" and len(shards) == 1:
            file_name = f"{stem}.{weights_format}"
        _write_shard(folder / file_name, {spec.name: initial_tensor(spec, config, seed) for spec in shard})
        weight_map |= {spec.name: file_name for spec in shard}
        if on_shard is not None:
            on_shard(number, len(shards))
    if weights_format == "bin" or len(shards) > 1:
        total_size = sum(spec.num_bytes for shard in shards for spec in shard)
        index = {"metadata": {"total_size": total_size}, "weight_map": dict(sorted(weight_map.items()))}
        content = json.dumps(index, indent=2) + "\n"
        replace_file(folder / f"{stem}.{weights_format}.index.json", content.encode())
