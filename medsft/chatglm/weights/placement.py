"""Blocks of one model on several devices, for models that one device cannot hold.

The devices take turns, each with its blocks; accelerate's hooks carry the states from one to the next. That
is room for weights and cache, and no more speed than one device has.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

import torch
from torch import nn

from medsft.chatglm.modeling import ChatGLMForConditionalGeneration
from medsft.errors import UserError
from medsft.host_memory import free_memory_bytes

_BLOCKS = "transformer.layers"

Placement = Mapping[str, torch.device]
"""Name of a module -> the device that holds all of it. Every parameter is in one of them."""


def check_accelerate() -> None:
    """Raises UserError where accelerate is not installed."""
    if find_spec("accelerate") is None:
        raise UserError("several devices need accelerate, not installed here: pip install 'medsft[devices]'.")


def devices_of_blocks(
    num_blocks: int, block_bytes: int, other_bytes: int, free_bytes: Sequence[int]
) -> list[int]:
    """For each block the number of its device, rising: each device gets weights as it has room.

    `other_bytes`, the embedding mostly, are on the first device.
    """
    total = other_bytes + num_blocks * block_bytes
    ends = [total * filled / sum(free_bytes) for filled in accumulate(free_bytes)]
    middles = (other_bytes + (number + 0.5) * block_bytes for number in range(num_blocks))
    return [min(bisect_left(ends, middle), len(ends) - 1) for middle in middles]


def num_bytes(module: nn.Module, dtype: torch.dtype) -> int:
    """Of its parameters, tied ones once, when they get `dtype` (integers keep theirs)."""
    return sum(p.numel() * (p if p.dtype == torch.int8 else dtype).itemsize for p in module.parameters())


def check_host_memory(folder: Path, need_bytes: int) -> None:
    """Raises UserError where the weights do not fit into what this host has free.

    Linux hands out memory that it does not have and kills the process when it is used, without a word.
    """
    free_bytes = free_memory_bytes()
    if need_bytes > free_bytes:
        raise UserError(
            f"{folder} takes {need_bytes / 1e9:.1f} GB in this host's memory, of which "
            f"{free_bytes / 1e9:.1f} GB are free. Give --quantize 8 or 4, --dtype bf16, or "
            "--device cuda where there is a GPU."
        )


def place(
    model: ChatGLMForConditionalGeneration, dtype: torch.dtype, devices: Sequence[torch.device]
) -> Placement:
    """Where a model, still on meta, goes when its parameters get `dtype` (integers keep theirs)."""
    blocks = model.transformer.layers
    block_bytes = num_bytes(blocks[0], dtype)
    other_bytes = num_bytes(model, dtype) - len(blocks) * block_bytes
    numbers = devices_of_blocks(len(blocks), block_bytes, other_bytes, [_free_bytes(one) for one in devices])
    first = devices[0]  # tied weights lie in one place
    others = dict.fromkeys(("transformer.word_embeddings", "transformer.final_layernorm", "lm_head"), first)
    return others | {f"{_BLOCKS}.{number}": devices[chosen] for number, chosen in enumerate(numbers)}


def device_of(parameter: str, placement: Placement) -> torch.device:
    """The device that a parameter of that name belongs on."""
    return next(device for name, device in placement.items() if parameter.startswith(f"{name}."))


def connect(model: ChatGLMForConditionalGeneration, placement: Placement) -> None:
    """Makes each block take its inputs to its own device; outputs come back to where the inputs were."""
    from accelerate import dispatch_model

    dispatch_model(
        model,
        dict(placement),
        main_device=placement["lm_head"],
        skip_keys=model._skip_keys_device_placement,
        force_hooks=True,
    )


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 1
