"""Sizes of a ChatGLM: known ones by name, and which can be built. Without torch, for those who only count."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SIZES = ("vocab_size", "hidden_size", "num_layers", "num_attention_heads", "inner_hidden_size")

RELEASED_ROWS = 130_528
"""Rows of v1.1's vocabulary."""

# Shapes by name. Parameters of the blocks and the final LayerNorm, to which the (tied) embedding comes with
# vocabulary rows x hidden size: toy 0.4 M, small 3.2 M, tiny 1.4 M (28 thin layers, to test depth),
# 60m 59 M, 350m 353 M, 1b 1.01 G, 6b 5.64 G (6,173,286,400 with v1.1's vocabulary: ChatGLM-6B).
PRESETS: dict[str, dict[str, int]] = {
    "toy": {"hidden_size": 128, "num_layers": 2, "num_attention_heads": 4, "inner_hidden_size": 512},
    "tiny": {"hidden_size": 64, "num_layers": 28, "num_attention_heads": 4, "inner_hidden_size": 256},
    "small": {"hidden_size": 256, "num_layers": 4, "num_attention_heads": 8, "inner_hidden_size": 1024},
    "60m": {"hidden_size": 640, "num_layers": 12, "num_attention_heads": 10, "inner_hidden_size": 2560},
    "350m": {"hidden_size": 1024, "num_layers": 28, "num_attention_heads": 16, "inner_hidden_size": 4096},
    "1b": {"hidden_size": 2048, "num_layers": 20, "num_attention_heads": 16, "inner_hidden_size": 8192},
    "6b": {"hidden_size": 4096, "num_layers": 28, "num_attention_heads": 32, "inner_hidden_size": 16384},
}


def not_whole(sizes: Mapping[str, Any]) -> list[str]:
    """Those of `SIZES` that are given and no whole numbers, each with its value: `num_layers is '28'`."""
    return [f"{name} is {sizes[name]!r}" for name in SIZES if type(sizes.get(name, 1)) is not int]


def size_faults(sizes: Mapping[str, Any]) -> list[str]:
    """What makes these sizes (every one of `SIZES`) impossible to build; empty if nothing does."""
    faults = [f"{fault}, must be a whole number" for fault in not_whole(sizes)]
    if not faults:
        faults = [f"{name} is {sizes[name]}, must be at least 1" for name in SIZES if sizes[name] < 1]
    if not faults and sizes["hidden_size"] % (4 * sizes["num_attention_heads"]):
        width, heads = sizes["hidden_size"], sizes["num_attention_heads"]
        faults.append(
            f"hidden_size {width} is not a multiple of 4 x num_attention_heads ({heads}): each head is split "
            "over two position axes, each half into pairs"
        )
    return faults
