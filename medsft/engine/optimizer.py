"""AdamW on the parameters as DeepSpeed partitions them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from medsft.engine.deepspeed_config import offloads_optimizer


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: matrices decay, biases and LayerNorm weights do not (transformers' convention).

    Without decay there is one group. Shared parameters appear once. Under ZeRO-3 `param.shape` is that of
    the local slice, so the names decide.
    """
    named = list(model.named_parameters())
    if weight_decay == 0:
        return [{"params": [param for _, param in named], "weight_decay": 0.0}]
    flat = [param for name, param in named if name.endswith(".bias") or "layernorm" in name]
    matrices = [param for name, param in named if not (name.endswith(".bias") or "layernorm" in name)]
    return [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": flat, "weight_decay": 0.0},
    ]


def build_optimizer(
    model: nn.Module,
    ds_config: dict[str, Any],
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """AdamW for `deepspeed.initialize`: DeepSpeed's CPU Adam where the states are offloaded, else torch's.

    torch's fused kernel does it in one pass over memory, on a CPU too, and needs no compilation at start,
    unlike DeepSpeed's.
    """
    groups = decay_groups(model, weight_decay)
    if offloads_optimizer(ds_config):
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(groups, lr=learning_rate, betas=betas, eps=epsilon, adamw_mode=True)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=True)
