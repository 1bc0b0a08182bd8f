"""Linear layers that hold int8 or int4 weights.

Legend: O output rows, I input columns.
"""

import torch
from torch import nn
from torch.nn import functional as F

from medsft.chatglm.quantization.rows import check_bits, dequantize_rows, stored_integers

_BLOCK_ELEMENTS = 1 << 20
"""Weights turned back into floats at a time on a CPU: what its caches hold."""


class QuantizedLinear(nn.Module):
    """`nn.Linear` over integers, under the released names: weight, weight_scale, bias. For inference only."""

    def __init__(self, in_features: int, out_features: int, bits: int):
        super().__init__()
        check_bits(bits)
        self.bits = bits
        weight = torch.empty(out_features, in_features * bits // 8, dtype=torch.int8)
        scale = torch.empty(out_features, dtype=torch.float16)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = nn.Parameter(scale, requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[…, I] -> […, O] in the type of `states`."""
        return plain_product(states, self.weight, self.weight_scale, self.bits) + self.bias


def plain_product(states: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor, bits: int) -> torch.Tensor:
    """[…, I] -> […, O] in the type of `states`; the weights are turned back block by block.

    The scale goes onto the product, one number a row (as in torchao's weight-only int8); in fp16 onto the
    weights, as the sum over bare integers would leave its range.
    """
    rows_a_block = len(weight)
    if states.device.type == "cpu":
        rows_a_block = max(1, _BLOCK_ELEMENTS // states.shape[-1])
    is_narrow = states.dtype == torch.float16
    parts = [
        F.linear(states, dequantize_rows(*block, bits, states.dtype))
        if is_narrow
        else F.linear(states, stored_integers(block[0], bits).to(states.dtype))
        for block in zip(weight.split(rows_a_block), scale.split(rows_a_block), strict=True)
    ]
    product = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return product if is_narrow else product * scale.to(states.dtype)


def quantize_layers(module: nn.Module, bits: int) -> None:
    """Puts a `QuantizedLinear`, not yet filled, in the place of every linear layer inside `module`."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            with torch.device(child.weight.device):
                setattr(module, name, QuantizedLinear(child.in_features, child.out_features, bits))
        else:
            quantize_layers(child, bits)
