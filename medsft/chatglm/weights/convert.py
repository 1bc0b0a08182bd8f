"""A model folder rewritten: another container format, another type, or v0.1 slimmed to v1.1's vocabulary."""

import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from medsft.chatglm.quantization import QUANTIZED_NAMES, SCALE_SUFFIX, check_bits, quantize_rows
from medsft.chatglm.weights.check import (
    CONFIG_FILE,
    IGNORED_NAMES,
    Progress,
    check_release,
    open_release,
    refuse_quantised,
    stores_both_tied,
    verify_release,
)
from medsft.chatglm.weights.files import HEAD_NAME, TIED_PARTNERS, WeightFiles
from medsft.chatglm.weights.load import parse_dtype
from medsft.chatglm.weights.release import TOKENIZER_FILE
from medsft.chatglm.weights.shards import read_json
from medsft.chatglm.weights.slim import Slimming, plan_slimming, shift_ids
from medsft.chatglm.weights.verify import bytes_to_verify
from medsft.chatglm.weights.writer import (
    DEFAULT_SHARD_BYTES,
    ShardWriter,
    WrittenWeights,
    parse_size,
)
from medsft.errors import UserError
from medsft.files import sync, write_json
from medsft.provenance import FILE_NAME as PROVENANCE_FILE

TOKENIZER_FILES = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
)
# What the model was trained from and with, which says how it wants a question written, is one of them.
DOCUMENT_FILES = ("README.md", "LICENSE", "MODEL_LICENSE", PROVENANCE_FILE)
# Code of the original, for those who load with it; each release has its own.
CODE_FILES = ("configuration_chatglm.py", "modeling_chatglm.py", "tokenization_chatglm.py", "quantization.py")
GENERATION_FILE = "generation_config.json"


def convert(
    source: str | Path,
    output: str | Path,
    vocabulary: str | None = None,
    weights_format: str = "safetensors",
    tokenizer_dir: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    quantize: int | None = None,
    shard_size: int | str = DEFAULT_SHARD_BYTES,
    verify: bool = True,
    progress: Progress | None = None,
) -> WrittenWeights:
    """Writes the model of `source` into the new folder `output`, holding at most one shard in memory.

    vocabulary: "v1.1" drops the image tokens of v0.1's vocabulary, the first 20,000 rows of embedding and
    head, and needs `tokenizer_dir` with v1.1's tokenizer files; None keeps it. weights_format:
    "safetensors" or "bin". tokenizer_dir: folder to take the tokenizer files from (None: `source`).
    dtype: type of the weights (None: as stored). quantize: 8 or 4 bits for the linear layers of the blocks,
    in the format of the released int8 and int4 models; dtype is that of all other tensors. shard_size: bytes,
    or "2GB". verify: read and check every byte of the source first (see `check_release`). progress: called
    with bytes done and bytes in all.

    The folder appears under its name when it is complete, synced and checked; on any error nothing is left.
    Raises UserError when `output` is not empty, the source is not sound, the numberings do not fit, or the
    disk is too full.
    """
    source, output = Path(source), Path(output).resolve()
    if output.is_file() or (output.is_dir() and any(output.iterdir())):
        raise UserError(f"The output {output} exists and is not an empty folder; name a new one.")
    if vocabulary not in (None, "v1.1"):
        raise UserError(
            f"The vocabulary {vocabulary!r} cannot be converted to; it may be 'v1.1', or be left away to "
            "keep it."
        )
    target_type = None if dtype is None else parse_dtype(dtype)
    max_shard_bytes = parse_size(shard_size)
    tokenizer_source = source if tokenizer_dir is None else Path(tokenizer_dir)
    # When slimming, the given tokenizer fits the result, not the source.
    model, files = open_release(source, source if vocabulary else tokenizer_source)
    config = read_json(source / CONFIG_FILE)
    refuse_quantised(source, model.config, "medsft convert")
    if quantize is not None:
        check_bits(quantize)
    slimming = plan_slimming(source, config, files, tokenizer_dir) if vocabulary else None
    check_space(output.parent, files, target_type, quantize)

    num_verified = bytes_to_verify(files) if verify else 0
    total = num_verified + files.num_bytes

    def report(done: int) -> None:
        if progress is not None:
            progress(done, total)

    if verify:
        verify_release(model, files, lambda done, _: report(done))
    skipped = HEAD_NAME if weights_format == "safetensors" and stores_both_tied(model, files) else None
    partial = output.parent / f".{output.name}.partial-{secrets.token_hex(4)}"
    partial.mkdir(parents=True)
    try:
        with ShardWriter(partial, max_shard_bytes, weights_format) as writer:
            done = num_verified
            for name in files.names:
                if name != skipped:
                    if quantize is not None and QUANTIZED_NAMES.fullmatch(name):
                        integers, scale = quantize_rows(files.read(name), quantize)
                        writer.add(name, integers)
                        writer.add(name + SCALE_SUFFIX, scale)
                    else:
                        writer.add(name, converted(name, files.read(name), slimming, target_type))
                done += files.num_bytes_of(name)
                report(done)
            written = writer.finish()
        if quantize is not None:
            config = {**config, "quantization_bit": quantize}
        _write_rest(source, tokenizer_source, partial, config, slimming, target_type)
        check_release(partial)
        partial.replace(output)
        sync(output.parent)
    finally:
        if partial.exists():
            shutil.rmtree(partial)
    return written


def converted(name: str, tensor: Tensor, slimming: Slimming | None, dtype: torch.dtype | None) -> Tensor:
    """The tensor without its dropped rows and in `dtype`; the release's buffers keep their type."""
    if slimming is not None and name in TIED_PARTNERS:
        tensor = tensor[slimming.num_dropped :]
    if dtype is not None and not IGNORED_NAMES.fullmatch(name):
        tensor = tensor.to(dtype)
    return tensor


def check_space(
    folder: Path, files: WeightFiles, dtype: torch.dtype | None, quantize: int | None = None
) -> None:
    """Raises UserError when the disk of `folder`, which may not exist yet, has no room for the weights."""
    while not folder.exists():
        folder = folder.parent

    def bits(name: str) -> int:
        if quantize is not None and QUANTIZED_NAMES.fullmatch(name):
            return quantize
        return 8 * (dtype or files.dtype(name)).itemsize

    needed = sum(files.shape(name).numel() * bits(name) // 8 for name in files.names)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder} has {free / 2**30:.1f} GiB free, the weights need {needed / 2**30:.1f} GiB. Make room "
            "or name an output on another disk."
        )


def _write_rest(
    source: Path,
    tokenizer_source: Path,
    output: Path,
    config: dict[str, Any],
    slimming: Slimming | None,
    dtype: torch.dtype | None,
) -> None:
    """Everything but the weights; config.json last."""
    for name in DOCUMENT_FILES:
        _copy(source / name, output / name)
    code_source = source if slimming is None else tokenizer_source
    for name in CODE_FILES:
        _copy(code_source / name, output / name)
    for name in TOKENIZER_FILES:
        _copy(tokenizer_source / name, output / name)
    if (source / GENERATION_FILE).is_file():
        generation = read_json(source / GENERATION_FILE)
        if slimming is not None:
            generation = shift_ids(generation, slimming.num_dropped)
        write_json(output / GENERATION_FILE, generation)
    if slimming is not None:
        config = {**config, "vocab_size": slimming.num_rows, **slimming.ids}
    if dtype is not None:
        config = {**config, "torch_dtype": str(dtype).removeprefix("torch.")}
        if "dtype" in config:
            config["dtype"] = config["torch_dtype"]
    write_json(output / CONFIG_FILE, config)


def _copy(source: Path, target: Path) -> None:
    if source.is_file():
        shutil.copyfile(source, target)
        sync(target)
