"""Weight matrices in int8 and int4, symmetric per output row, in the numbers of the released files.

Legend: O output rows, I input columns. `scale` [O] = max|w| of the row / (2^(bits-1) - 1), in fp16;
`weight` = round(w / scale) as int8 [O, I], or two columns a byte [O, I / 2] with the even one in the high
nibble. Checked against the released ChatGLM-6B code (`quantization.py`).
"""

import re

import torch

from medsft.errors import UserError

BITS = (8, 4)
SCALE_SUFFIX = "_scale"
"""A quantised `….weight` has its scale beside it as `….weight_scale`."""

QUANTIZED_NAMES = re.compile(
    r"transformer\.layers\.\d+\.(attention\.(query_key_value|dense)|mlp\.(dense_h_to_4h|dense_4h_to_h))\.weight"
)
"""The four linear layers of each block; embedding, head, biases and LayerNorms stay as they are."""


def check_bits(bits: int) -> None:
    """Raises UserError unless weights can be stored in so many bits."""
    if bits not in BITS:
        raise UserError(
            f"Weights cannot be quantised to {bits} bits; it may be {' or '.join(map(str, BITS))}."
        )


def quantize_rows(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Integers [O, I] (packed [O, I / 2] for 4 bits) and fp16 scales [O] of `weight` [O, I].

    A row too small for an fp16 scale becomes zeros. Raises UserError for NaN or infinite weights, for ones
    too large for an fp16 scale, and for 4 bits and an odd I.
    """
    check_bits(bits)
    largest = 2 ** (bits - 1) - 1
    weight = weight.float()
    scale = (weight.abs().amax(dim=1) / largest).half()
    if not scale.isfinite().all():
        raise UserError(
            "Weights with NaN, infinite or huge values cannot be quantised; the model has diverged."
        )
    divisor = torch.where(scale == 0, torch.inf, scale.float())[:, None]
    rounded = (weight / divisor).round().clamp(-largest, largest).to(torch.int8)
    return (pack_int4(rounded) if bits == 4 else rounded), scale


def pack_int4(integers: torch.Tensor) -> torch.Tensor:
    """int8 [O, I] of values between -8 and 7 -> two columns a byte, int8 [O, I / 2]."""
    if integers.shape[1] % 2:
        raise UserError(f"A matrix of {integers.shape[1]} columns cannot be packed in pairs for int4.")
    return (integers[:, ::2] << 4) | (integers[:, 1::2] & 0x0F)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """int8 [O, I / 2] -> int8 [O, I], sign-extended; exactly what `pack_int4` was given."""
    # A shift to the right of a signed number brings in its sign.
    return torch.stack((packed >> 4, packed << 4 >> 4), dim=2).flatten(1)


def stored_integers(weight: torch.Tensor, bits: int) -> torch.Tensor:
    """The stored weights one by one, int8 [O, I]."""
    return unpack_int4(weight) if bits == 4 else weight


def dequantize_rows(weight: torch.Tensor, scale: torch.Tensor, bits: int, dtype: torch.dtype) -> torch.Tensor:
    """The weights [O, I] that the integers stand for, in `dtype`."""
    return stored_integers(weight, bits).to(dtype) * scale[:, None].to(dtype)
